"""Attention without a mask that masks nothing, which lets PyTorch use its fastest kernels.

`HunyuanVideoTransformer3DModel.forward` in diffusers 0.42 builds an attention mask for every prompt, and any mask keeps
PyTorch off its fastest attention: 30.9 instead of 22.5 s a step at 720x1280x129 on an H200. This file becomes
unnecessary once that method passes `attention_mask=None` to its blocks where `encoder_attention_mask` is all ones.

Whether the mask masks nothing is decided once a call, for the whole transformer, because each look at it would make the
CPU wait for the GPU. The decision belongs to one call in one thread, and ends with it, also when the call fails.

The transformer's forward is wrapped by a bound method rather than by a `ModelHook`: a deep copy of a model with a
registered `ModelHook` silently computes with the weights of the original, and people do copy transformers.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0

from ..errors import UserError
from .backends import NO_MASKS

_call = threading.local()  # .full: whether the mask of the transformer's call in this thread masks nothing
_INNER = "_forward_before_skip_full_masks"
_MASKS_NOTHING = "_masks_nothing"


class NoFullMask(HunyuanVideoAttnProcessor2_0):
    """HunyuanVideo's own attention, without the mask when it masks nothing.

    Attributes:
        original: The processor that this one replaces, which `keep_full_masks` puts back. It computes the calls that
            need a mask where the backend of this one takes none.
    """

    def __init__(self, original: HunyuanVideoAttnProcessor2_0) -> None:
        super().__init__()
        self.original = original
        self._attention_backend, self._parallel_config = original._attention_backend, original._parallel_config

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        mask = needed_mask(attention_mask)
        if mask is not None and getattr(self._attention_backend, "value", None) in NO_MASKS:
            return self.original(attn, hidden_states, encoder_hidden_states, mask, image_rotary_emb)
        return super().__call__(attn, hidden_states, encoder_hidden_states, mask, image_rotary_emb)


def needed_mask(mask: torch.Tensor | None) -> torch.Tensor | None:
    """The mask, or None where the call of the transformer in this thread has found that it masks nothing."""
    training = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if mask is None or getattr(_call, "full", False):
        if mask is not None and training:
            # Gradient checkpointing computes the block again after the call, perhaps in a thread of autograd, and must
            # take the same way: the mask itself carries the decision there.
            setattr(mask, _MASKS_NOTHING, True)
        return None
    return None if training and getattr(mask, _MASKS_NOTHING, False) else mask


@contextlib.contextmanager
def mask_assumed(full: bool) -> Iterator[None]:
    """Inside, in this thread, blocks attend without their mask if `full`, and with it otherwise."""
    before = getattr(_call, "full", False)
    _call.full = full
    try:
        yield
    finally:
        _call.full = before


def mask_is_assumed_full() -> bool:
    """Whether blocks in this thread attend without their mask now."""
    return getattr(_call, "full", False)


@functools.wraps(HunyuanVideoTransformer3DModel.forward)
def _forward(self: HunyuanVideoTransformer3DModel, *args, **kwargs):
    """The transformer's own forward, with the decision about the mask made before it and withdrawn after it."""
    inner = vars(self).get(_INNER) or MethodType(type(self).forward, self)
    mask = kwargs["encoder_attention_mask"] if "encoder_attention_mask" in kwargs else args[3]
    if mask.is_meta:  # it has no contents: whoever counts on the meta device says by `mask_assumed` what it would be
        return inner(*args, **kwargs)
    with mask_assumed(bool(mask.all())):
        return inner(*args, **kwargs)


def blocks(transformer: HunyuanVideoTransformer3DModel) -> list[Any]:
    """All blocks in the order they work, first the dual-stream ones; to type checkers a list's items are anything."""
    return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]


def skip_full_masks(transformer: HunyuanVideoTransformer3DModel) -> None:
    """Let the blocks attend without a mask whenever the prompt has no padding.

    A padded prompt keeps its mask, and a call of the pipeline with the same embeddings takes the same way, since all of
    it lives in the transformer. Processors of another class than diffusers' own are left alone, and so is the token
    refiner, which has another kind. A second call changes nothing.

    Args:
        transformer: Before `use_chunks`, step caches, offloading and compilation.
    """
    if getattr(vars(transformer).get("forward"), "__func__", None) is _forward:
        return
    for block in blocks(transformer):
        if type(block.attn.processor) is HunyuanVideoAttnProcessor2_0:
            block.attn.set_processor(NoFullMask(block.attn.processor))
    if "forward" in vars(transformer):  # accelerate's hooks, where bitsandbytes quantised it while it was read
        setattr(transformer, _INNER, transformer.forward)
    transformer.forward = MethodType(_forward, transformer)


def keep_full_masks(transformer: HunyuanVideoTransformer3DModel) -> None:
    """Undo `skip_full_masks`: every block gets back the very processor it had, the transformer its own forward.

    Raises:
        UserError: Something else has wrapped the transformer's forward or a block's attention since then.
    """
    if getattr(vars(transformer).get("forward"), "__func__", None) is not _forward:
        raise UserError(
            "keep_full_masks: the transformer's forward is not that of skip_full_masks; it works once step caches "
            "(disable_cache) and hooks that came later are removed."
        )
    processors = [block.attn.processor for block in blocks(transformer)]
    if any(hasattr(processor, "plain") or hasattr(processor, "processor") for processor in processors):
        raise UserError(
            "keep_full_masks: attention is wrapped; it works after remove_chunks, and when nothing watches."
        )
    for block, processor in zip(blocks(transformer), processors):
        if isinstance(processor, NoFullMask):
            block.attn.set_processor(processor.original)
    del transformer.forward
    if _INNER in vars(transformer):
        transformer.forward = vars(transformer).pop(_INNER)
