"""Training in less memory: what a block leaves for the backward pass, and where its weights wait.

A training step needs every block's intermediate results twice, once on the way forward and once on the way back. What
is not kept is computed again. Each of these levers can be pulled alone, gives the same gradients as plain autograd
(8-bit inputs apart, which say so), and is let go without a trace:

- *recompute*: a block keeps its input alone, which is gradient checkpointing (https://arxiv.org/abs/1604.06174);
- *offload*: that input waits in pinned RAM, of all blocks or the first ones; *fp8*: it waits in 8 bits;
- *chunk*: within a block, projections and feed-forward layers take some tokens at a time and keep their inputs alone,
  so that one block at work holds about thirty tensors of the size (tokens, width) instead of over a hundred;
- *streamed blocks*: the frozen weights of the last blocks wait in RAM, and the next one's are fetched during this one's
  work, in either direction.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.hooks import ModelHook
from diffusers.models.embeddings import apply_rotary_emb
from torch.utils.checkpoint import checkpoint

from ..hunyuan.backends import attend
from ..hunyuan.chunks import slices
from ..hunyuan.hooks import attach, detach
from ..hunyuan.masks import blocks, mask_assumed, mask_is_assumed_full, needed_mask
from ..model.streamed import StreamedBlocks
from .offloading import OffloadedInputs, is_stream
from .options import TrainSettings

_NAME = "t2v_kit_training"
_LARGEST_FP8 = torch.finfo(torch.float8_e4m3fn).max

#: The same results and gradients, computed again on the way back. Nothing here draws random numbers.
_again: Callable[..., Any] = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


@contextlib.contextmanager
def less_memory(transformer: HunyuanVideoTransformer3DModel, settings: TrainSettings) -> Iterator[None]:
    """Inside, the transformer trains with the settings' activations, chunk and streamed_blocks.

    Args:
        transformer: With its LoRA, on its device.
        settings: Of which these are looked at, and offloaded_blocks.
    """
    every = blocks(transformer)
    # PyTorch's own attention: the kernels that are installed for sampling may have no way back.
    backends = [(processor, processor._attention_backend) for processor in (block.attn.processor for block in every)]
    for processor, _ in backends:
        processor._attention_backend = None
    streamed, offloaded = None, None
    if settings.streamed_blocks:
        streamed = StreamedBlocks(every[-settings.streamed_blocks :], transformer.device)
    if settings.activations == "offload":
        offloaded = OffloadedInputs(every, settings.offloaded_blocks, transformer.device)
    if settings.chunk:
        _use_chunks(every, settings.chunk)
    if settings.activations != "keep" or streamed is not None:
        around = _fp8_around if settings.activations == "fp8" else _nothing_around
        around = offloaded.around if offloaded is not None else around
        transformer.enable_gradient_checkpointing(functools.partial(_run, around, streamed))
    try:
        yield
    finally:
        transformer.disable_gradient_checkpointing()
        if settings.chunk:
            _remove_chunks(every)
        if offloaded is not None:
            offloaded.close()
        if streamed is not None:
            streamed.close()
        for processor, backend in backends:
            processor._attention_backend = backend


def _run(around: Callable, streamed: StreamedBlocks | None, block: torch.nn.Module, *inputs):
    """diffusers' gradient_checkpointing_func: one block, of which the input alone is kept."""
    full = mask_is_assumed_full()  # decided once a call of the transformer, and true of the second computation too

    def call(*again):
        with mask_assumed(full):
            if streamed is not None:
                streamed.fetch(block)
            return block(*again)

    again = _again
    if streamed is not None and block in streamed:
        # bitsandbytes' layers hold on to their weights from the way forward, unless there is no graph on it.
        again = functools.partial(checkpoint, use_reentrant=True, preserve_rng_state=False)
        if not inputs[0].requires_grad:  # of the first block; without it there would be no way back
            inputs[0].requires_grad_()
    with around(block):  # its hooks are for the inputs: inside, checkpoint has its own
        return again(call, *inputs)


def _nothing_around(_block: torch.nn.Module) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext()


def _fp8_around(_block: torch.nn.Module) -> contextlib.AbstractContextManager:
    return torch.autograd.graph.saved_tensors_hooks(_to_fp8, _from_fp8)


def _to_fp8(tensor: torch.Tensor):
    if not is_stream(tensor):
        return tensor
    scale = tensor.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / _LARGEST_FP8  # a token has one
    return (tensor / scale).to(torch.float8_e4m3fn), scale, tensor.dtype


def _from_fp8(kept) -> torch.Tensor:
    if isinstance(kept, torch.Tensor):
        return kept
    small, scale, dtype = kept
    return (small.float() * scale).to(dtype)


def _use_chunks(every: list[Any], tokens: int) -> None:
    for block in every:
        block.attn.set_processor(FrugalAttention(block.attn.processor, tokens))
        if hasattr(block, "ff"):  # a dual-stream block
            attach(block.ff, _FrugalFeedForward(tokens), _NAME)
        else:
            attach(block, _FrugalSingleBlock(tokens), _NAME)


def _remove_chunks(every: list[Any]) -> None:
    for block in every:
        detach(getattr(block, "ff", block), _NAME)
        block.attn.set_processor(block.attn.processor.plain)


class FrugalAttention:
    """The attention of HunyuanVideo's blocks with gradients, whose queries and keys are computed twice.

    Their normalisation and rotation leave float32 copies for the backward pass, over twenty tensors of the size
    (tokens, width) a block; so each chunk of them keeps its input alone.

    Attributes:
        plain: The processor that this one replaces.
        tokens: The size of a chunk.
    """

    _parallel_config = None

    def __init__(self, plain, tokens: int) -> None:
        self.plain, self.tokens = plain, tokens
        self._attention_backend = getattr(plain, "_attention_backend", None)

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, image_rotary_emb=None):
        mask = needed_mask(attention_mask)
        video, words = hidden_states, encoder_hidden_states
        dual = attn.add_q_proj is not None
        joined = {}
        for name, norm, added_norm in (("q", "norm_q", "norm_added_q"), ("k", "norm_k", "norm_added_k"), ("v", "", "")):
            own = getattr(attn, f"to_{name}"), getattr(attn, norm) if norm else None
            added = own
            if dual:
                added = getattr(attn, f"add_{name}_proj"), getattr(attn, added_norm) if added_norm else None
            rotary = image_rotary_emb if norm else None
            pieces = self._pieces(*own, video, rotary, attn.heads) + self._pieces(*added, words, None, attn.heads)
            joined[name] = torch.cat(pieces, dim=1)
        attended = attend(joined["q"], joined["k"], joined["v"], mask, self._attention_backend)
        attended = attended.flatten(2, 3).to(hidden_states.dtype)
        video, words = attended[:, : -words.shape[1]], attended[:, -words.shape[1] :]
        if attn.to_out is not None:  # the dual-stream blocks; the single-stream ones project after the attention
            video, words = attn.to_out[0](video), attn.to_add_out(words)
        return video, words

    def _pieces(self, linear, norm, stream, rotary, heads: int) -> list[torch.Tensor]:
        """(1, chunk, heads, width of a head) of each chunk."""
        pieces = []
        for part in slices(stream.shape[1], self.tokens):
            angles = () if rotary is None else (rotary[0][part], rotary[1][part])
            call = functools.partial(_projected, linear, norm, heads)
            pieces.append(call(stream[:, part]) if norm is None else _again(call, stream[:, part], *angles))
        return pieces


def _projected(linear, norm, heads: int, tokens: torch.Tensor, *angles: torch.Tensor) -> torch.Tensor:
    """Tokens through a projection, its norm and the rotation, as heads."""
    split: Any = linear(tokens).unflatten(2, (heads, -1))
    split = split if norm is None else norm(split)
    rotation: Any = angles  # diffusers says a tuple of one, and takes cosines and sines
    return apply_rotary_emb(split, rotation, sequence_dim=1) if angles else split  # type: ignore[return-value]


class _FrugalFeedForward(ModelHook):
    """A feed-forward layer, some tokens at a time; each time its four times wider middle is computed again."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def new_forward(self, module: torch.nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
        forward: Any = self.fn_ref.original_forward
        parts = slices(hidden_states.shape[1], self.tokens)
        return torch.cat([_again(forward, hidden_states[:, part]) for part in parts], dim=1)


class _FrugalSingleBlock(ModelHook):
    """A single-stream block whose feed-forward branch comes after the attention, some tokens at a time."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def new_forward(
        self,
        block: Any,
        hidden_states,
        encoder_hidden_states,
        temb,
        attention_mask=None,
        image_rotary_emb=None,
        *_,
        **__,
    ):
        text = encoder_hidden_states.shape[1]
        residual = torch.cat([hidden_states, encoder_hidden_states], dim=1)
        normed, gate = block.norm(residual, emb=temb)
        both = block.attn(normed[:, :-text], normed[:, -text:], attention_mask, image_rotary_emb=image_rotary_emb)
        attended = torch.cat(both, dim=1)

        def branch(attended: torch.Tensor, normed: torch.Tensor) -> torch.Tensor:
            return block.proj_out(torch.cat([attended, block.act_mlp(block.proj_mlp(normed))], dim=2))

        parts = slices(attended.shape[1], self.tokens)
        output = torch.cat([_again(branch, attended[:, part], normed[:, part]) for part in parts], dim=1)
        joined = gate.unsqueeze(1) * output + residual
        return joined[:, :-text], joined[:, -text:]
