"""HunyuanVideo's blocks with smaller intermediate results: the same mathematics, a few thousand tokens at a time.

diffusers' blocks hold up to 18 tensors of the size (tokens, width) at once, 12 GiB at 720x1280x129; in chunks it is
about 7, or 5 GiB (both counted, not measured). Attention is a processor of diffusers' own kind; the feed-forward layers
and the single-stream blocks get a diffusers `ModelHook` each, which keeps nothing between calls and can be removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.hooks import ModelHook
from diffusers.models.embeddings import apply_rotary_emb

from ..errors import UserError, check_whole
from .backends import attend
from .hooks import attach, detach
from .masks import blocks, needed_mask

_NAME = "t2v_kit_chunks"


class ChunkedAttention:
    """The attention of HunyuanVideo's blocks, projecting and rotating a few tokens at a time.

    Query, key and value are written chunk by chunk into tensors (1, N, heads, width of a head), so that the
    float32 copies that normalisation and rotation make are small. Needs torch.no_grad().

    Attributes:
        plain: The processor that this one replaces, which `remove_chunks` puts back.
        tokens: The size of a chunk.
        attend: What computes the attention of query, key and value: `attend` of `backends`, or `shared` of `parallel`.
    """

    def __init__(self, plain, tokens: int) -> None:
        self.plain, self.tokens, self.attend = plain, tokens, attend
        self._attention_backend = getattr(plain, "_attention_backend", None)  # set_attention_backend looks for it

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, image_rotary_emb=None):
        mask = needed_mask(attention_mask)
        text = encoder_hidden_states.shape[1]
        streams = (hidden_states, encoder_hidden_states)
        dual = attn.add_q_proj is not None
        second = (attn.add_q_proj, attn.norm_added_q) if dual else (attn.to_q, attn.norm_q)
        query = self._projected((attn.to_q, attn.norm_q), second, *streams, image_rotary_emb, attn.heads)
        second = (attn.add_k_proj, attn.norm_added_k) if dual else (attn.to_k, attn.norm_k)
        key = self._projected((attn.to_k, attn.norm_k), second, *streams, image_rotary_emb, attn.heads)
        second = (attn.add_v_proj, None) if dual else (attn.to_v, None)
        value = self._projected((attn.to_v, None), second, *streams, None, attn.heads)
        attended = self.attend(query, key, value, mask, self._attention_backend)
        del query, key, value
        attended = attended.flatten(2, 3).to(hidden_states.dtype)
        video, words = attended[:, :-text], attended[:, -text:]
        if attn.to_out is not None:  # the dual-stream blocks; the single-stream ones project after the attention
            in_chunks(attn.to_out[0], video, self.tokens, out=video)
            words = attn.to_add_out(words)
        return video, words

    def _projected(self, first, second, video, words, rotary: Any, heads: int) -> torch.Tensor:
        """Both streams through their (linear, norm), joined: (1, N, heads, width of a head)."""
        length = video.shape[1]
        joined = None
        for (linear, norm), stream, offset in ((first, video, 0), (second, words, length)):
            for part in slices(stream.shape[1], self.tokens):
                heads_of_part: Any = linear(stream[:, part]).unflatten(2, (heads, -1))
                heads_of_part = heads_of_part if norm is None else norm(heads_of_part)
                if rotary is not None and not offset:
                    angles: Any = (rotary[0][part], rotary[1][part])
                    heads_of_part = apply_rotary_emb(heads_of_part, angles, sequence_dim=1)
                if joined is None:
                    joined = heads_of_part.new_empty(1, length + words.shape[1], heads, heads_of_part.shape[-1])
                joined[:, offset + part.start : offset + part.stop] = heads_of_part
        assert joined is not None  # a prompt has tokens
        return joined


class _ChunkedFeedForward(ModelHook):
    """A feed-forward layer that overwrites its input: the dual-stream block has no other use for it."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def new_forward(self, module: torch.nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
        forward = self.fn_ref.original_forward
        assert forward is not None  # set when the hook was attached
        return in_chunks(forward, hidden_states, self.tokens, out=hidden_states)


class _ChunkedSingleBlock(ModelHook):
    """A single-stream block whose feed-forward branch exists only where it is used.

    The block's own forward computes act_mlp(proj_mlp(x)), four times as wide as x, before the attention and keeps it
    until proj_out has read both. Here all of it happens after the attention, a chunk at a time. Every layer is called
    as a module, so that offloading, casting and LoRA see their calls.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def new_forward(
        self,
        block: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        token_replace_emb: torch.Tensor | None = None,
        num_tokens: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        text = encoder_hidden_states.shape[1]
        residual = torch.cat([hidden_states, encoder_hidden_states], dim=1)
        if token_replace_emb is None:
            normed, gate = block.norm(residual, emb=temb)
            given = gate
        else:  # the first frame is a picture without noise, and has a gate of its own
            normed, gate, given = block.norm(residual, temb, token_replace_emb, num_tokens)
        both = block.attn(normed[:, :-text], normed[:, -text:], attention_mask, image_rotary_emb=image_rotary_emb)
        attended = torch.cat(both, dim=1)
        del both
        for part in slices(attended.shape[1], self.tokens):
            branch = block.act_mlp(block.proj_mlp(normed[:, part]))
            attended[:, part] = block.proj_out(torch.cat([attended[:, part], branch], dim=2))
        del normed
        if token_replace_emb is None:
            joined = gate.unsqueeze(1) * attended + residual
        else:
            attended[:, :num_tokens] *= given.unsqueeze(1)
            attended[:, num_tokens:] *= gate.unsqueeze(1)
            joined = attended + residual
        return joined[:, :-text], joined[:, -text:]


def use_chunks(transformer: HunyuanVideoTransformer3DModel, tokens: int) -> None:
    """Let every block work on `tokens` tokens at a time wherever they do not depend on each other.

    The results differ by rounding alone. Batch 1, without gradients.

    Args:
        transformer: After `skip_full_masks` and whatever changes the linear layers (quantisation, layerwise casting);
            before step caches, group offloading and compilation.
        tokens: The size of a chunk, at least 1.

    Raises:
        UserError: `tokens` is not such a number, a step cache is on, or the blocks work in chunks already.
    """
    tokens = check_whole("tokens", tokens)
    if transformer.is_cache_enabled:
        raise UserError("use_chunks: a step cache is on, and must come after the chunks; disable_cache() first works.")
    if any(isinstance(block.attn.processor, ChunkedAttention) for block in blocks(transformer)):
        raise UserError(f"use_chunks({tokens}): the blocks work in chunks already; remove_chunks first works.")
    for block in blocks(transformer):
        block.attn.set_processor(ChunkedAttention(block.attn.processor, tokens))
        if hasattr(block, "ff"):  # a dual-stream block
            attach(block.ff, _ChunkedFeedForward(tokens), _NAME)
        else:
            attach(block, _ChunkedSingleBlock(tokens), _NAME)


def remove_chunks(transformer: HunyuanVideoTransformer3DModel) -> None:
    """Undo `use_chunks`: processors and forwards are those from before."""
    for block in blocks(transformer):
        detach(getattr(block, "ff", block), _NAME)
        if isinstance(block.attn.processor, ChunkedAttention):
            block.attn.set_processor(block.attn.processor.plain)


def slices(length: int, size: int) -> Iterator[slice]:
    """0 to `length` in pieces of at most `size`."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def in_chunks(layer: Callable, tokens: torch.Tensor, size: int, out: torch.Tensor) -> torch.Tensor:
    """`layer` over (1, N, D), `size` tokens at a time, into `out`, which may be `tokens` itself."""
    for part in slices(tokens.shape[1], size):
        out[:, part] = layer(tokens[:, part])
    return out
