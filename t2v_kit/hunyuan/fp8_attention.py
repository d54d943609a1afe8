"""Attention on 8-bit floats (e4m3) by FlashAttention-3, on a card of compute capability 9.0: quicker, and not exact."""

from __future__ import annotations

import importlib
from typing import Any

import torch

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max  # 448


def attend_in_fp8(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None = None
) -> torch.Tensor:
    """Attention by FlashAttention-3 with query, key and value rounded to 8-bit floats, each head with its own scales.

    The mean of the keys is taken off first: it adds the same to every score of a query, which softmax does not see, and
    what is left is smaller (https://arxiv.org/abs/2410.02367).

    Args:
        query: (1, N, heads, width of a head), bfloat16, as key and value.
        key: The same shape.
        value: The same shape.
        scale: What the products are multiplied by; None is 1 / sqrt(width).

    Returns:
        The same shape, bfloat16.
    """
    parts, scales = zip(*(_by_head(each) for each in (query, key - key.mean(dim=1, keepdim=True), value)))
    return flash_attention_3_fp8(*parts, *scales, scale)


def _by_head(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, N, heads, width) as 8-bit floats, and what each head is multiplied by, (1, heads) float32."""
    scale = x.abs().amax(dim=(1, 3)).float().clamp(min=1e-12) / LARGEST
    return (x.float() / scale[:, None, :, None]).to(E4M3), scale


@torch.library.custom_op("t2v_kit::flash_attention_3_fp8", mutates_args=())
def flash_attention_3_fp8(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_scale: torch.Tensor,
    key_scale: torch.Tensor,
    value_scale: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """FlashAttention-3 by `fa3-fwd` on 8-bit floats, as an operator that compiled blocks call without breaking apart.

    Args:
        query: (1, N, heads, width of a head) float8_e4m3fn, as key and value.
        key: The same shape.
        value: The same shape.
        query_scale: (1, heads) float32: what the numbers of a head are multiplied by, as for key and value.
        key_scale: The same shape.
        value_scale: The same shape.
        scale: What the products are multiplied by; None is 1 / sqrt(width).

    Returns:
        (1, N, heads, width) bfloat16, contiguous.
    """
    kernel: Any = importlib.import_module("fa3_fwd_interface").flash_attn_func
    descaled = {"q_descale": query_scale, "k_descale": key_scale, "v_descale": value_scale}
    return kernel(query, key, value, softmax_scale=scale, **descaled).contiguous()


@flash_attention_3_fp8.register_fake
def _(query, key, value, query_scale, key_scale, value_scale, scale=None):
    return query.new_empty(query.shape, dtype=torch.bfloat16)
