"""HunyuanVideo's blocks with smaller intermediate results: the same mathematics, a few thousand tokens at a time.

diffusers' blocks hold up to 18 tensors of the size (tokens, width) at once, 12 GiB at 720x1280x129; so done it is
about 7, 5 GiB (both counted, not measured). Nothing of the model is copied or forked: attention is a processor of
diffusers' own kind, and in the feed-forward layers only `forward` of single modules is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb

from ..errors import UserError

# The backends of diffusers.models.attention_dispatch that raise, or silently do something else, when given a mask.
NO_MASKS = ("flash", "flash_hub", "flash_4_hub", "_flash_3", "_flash_3_hub", "aiter_fa2_hub", "_native_flash", "sage")


class ChunkedAttention:
    """The attention of HunyuanVideo's blocks, projecting and rotating a few tokens at a time.

    Query, key and value are written chunk by chunk into tensors (1, N, heads, width of a head), so that the
    float32 copies that normalisation and rotation make are small. Needs torch.no_grad().
    """

    _parallel_config = None

    def __init__(self, plain, tokens: int) -> None:
        """plain: the processor that `skip_full_masks` set; it knows whether the mask masks anything."""
        self.plain, self.tokens = plain, tokens
        self._attention_backend = None  # set_attention_backend of diffusers looks for it

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        mask = None if self.plain.mask_is_full else attention_mask
        if mask is not None:
            check_mask(self._attention_backend)
        text = encoder_hidden_states.shape[1]
        told = (hidden_states, encoder_hidden_states, image_rotary_emb)
        dual = attn.add_q_proj is not None
        second = (attn.add_q_proj, attn.norm_added_q) if dual else (attn.to_q, attn.norm_q)
        query = self._projected((attn.to_q, attn.norm_q), second, *told, attn.heads)
        second = (attn.add_k_proj, attn.norm_added_k) if dual else (attn.to_k, attn.norm_k)
        key = self._projected((attn.to_k, attn.norm_k), second, *told, attn.heads)
        second = (attn.add_v_proj, None) if dual else (attn.to_v, None)
        value = self._projected((attn.to_v, None), second, *told[:2], None, attn.heads)
        found = dispatch_attention_fn(query, key, value, attn_mask=mask, backend=self._attention_backend)
        del query, key, value
        found = found.flatten(2, 3).to(hidden_states.dtype)
        video, words = found[:, :-text], found[:, -text:]
        if attn.to_out is not None:  # the dual-stream blocks; the single-stream ones project after the attention
            in_chunks(attn.to_out[0], video, self.tokens, out=video)
            words = attn.to_add_out(words)
        return video, words

    def _projected(self, first, second, video, words, rotary, heads: int) -> torch.Tensor:
        """Both streams through their (linear, norm), joined: (1, N, heads, width of a head)."""
        length = video.shape[1]
        joined = None
        for (linear, norm), stream, offset in ((first, video, 0), (second, words, length)):
            for part in slices(stream.shape[1], self.tokens):
                made = linear(stream[:, part]).unflatten(2, (heads, -1))
                made = made if norm is None else norm(made)
                if rotary is not None and not offset:
                    made = apply_rotary_emb(made, (rotary[0][part], rotary[1][part]), sequence_dim=1)
                if joined is None:
                    joined = made.new_empty(1, length + words.shape[1], heads, made.shape[-1])
                joined[:, offset + part.start : offset + part.stop] = made
        return joined


def use_chunks(transformer: HunyuanVideoTransformer3DModel, tokens: int) -> None:
    """Let every block work on `tokens` tokens at a time wherever they do not depend on each other.

    After `skip_full_masks`, and after whatever changes the linear layers (quantisation, layerwise casting); before
    group offloading and compilation. The results differ by rounding alone. Batch 1, without gradients.
    """
    for block in transformer.transformer_blocks:
        block.attn.set_processor(ChunkedAttention(block.attn.processor, tokens))
        block.ff.forward = _feed_forward(block.ff.forward, tokens)
    for block in transformer.single_transformer_blocks:
        block.attn.set_processor(ChunkedAttention(block.attn.processor, tokens))
        _join_feed_forward(block, tokens)


def check_mask(backend) -> None:
    """Raise UserError if this attention backend cannot leave out the padding."""
    name = getattr(backend, "value", backend)
    if name in NO_MASKS:
        raise UserError(
            f"attention={name!r}: takes no mask, so it would attend to the prompt's padding; "
            "padded_prompt=False (the default) or attention='native' would work."
        )


def slices(length: int, size: int) -> Iterator[slice]:
    """0 to `length` in pieces of at most `size`."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def in_chunks(layer: Callable, tokens: torch.Tensor, size: int, out: torch.Tensor) -> torch.Tensor:
    """`layer` over (1, N, D), `size` tokens at a time, into `out`, which may be `tokens` itself."""
    for part in slices(tokens.shape[1], size):
        out[:, part] = layer(tokens[:, part])
    return out


def _feed_forward(whole: Callable, size: int) -> Callable:
    """A feed-forward layer that overwrites its input: the dual-stream block has no other use for it."""

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        return in_chunks(whole, hidden_states, size, out=hidden_states)

    return forward


def _join_feed_forward(block: torch.nn.Module, size: int) -> None:
    """Let a single-stream block compute its feed-forward branch only where it is used.

    The block computes act_mlp(proj_mlp(x)), four times as wide as x, before the attention and keeps it until
    proj_out has read both. Here proj_mlp only remembers x, and proj_out does all of it a chunk at a time.
    """
    widen, activate, narrow = block.proj_mlp.forward, block.act_mlp.forward, block.proj_out.forward
    kept = []

    def remember(hidden_states: torch.Tensor) -> torch.Tensor:
        kept[:] = [hidden_states]
        return hidden_states[..., :0]

    def both(attended: torch.Tensor) -> torch.Tensor:
        (hidden_states,) = kept
        kept.clear()
        for part in slices(attended.shape[1], size):
            branch = activate(widen(hidden_states[:, part]))
            attended[:, part] = narrow(torch.cat([attended[:, part], branch], dim=2))
        return attended

    block.proj_mlp.forward, block.act_mlp.forward, block.proj_out.forward = remember, lambda nothing: nothing, both
