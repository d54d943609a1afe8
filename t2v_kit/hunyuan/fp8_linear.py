"""Linear layers that multiply 8-bit floats (e4m3: 4 bits of exponent, 3 of mantissa), which is not exact.

Quicker on a card with fp8 matrix units (compute capability 8.9 and up), and never used unless asked for. On other
devices they compute with the same rounded numbers, so that the error can be looked at anywhere.
"""

from __future__ import annotations

import torch
from diffusers import HunyuanVideoTransformer3DModel

from .fp8_attention import E4M3, LARGEST
from .masks import blocks


class Fp8Linear(torch.nn.Module):
    """A linear layer whose weight and input are rounded to 8-bit floats before they are multiplied.

    Each row of the weight, and each token of the input as it comes, has a scale of its own, so that its largest number
    becomes the largest that the format has.

    Args:
        layer: The layer that it takes the place of; its weight is rounded once, its bias is kept.
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight, scale = rounded(layer.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, self.in_features)
        if x.is_cuda and x.dtype == torch.bfloat16 and self.in_features % 16 == self.out_features % 16 == 0:
            # cuBLAS takes tokens by sixteens
            tokens, scale = rounded(torch.nn.functional.pad(flat, (0, 0, 0, -len(flat) % 16)))
            product = torch._scaled_mm(
                tokens,
                self.weight.t(),
                scale_a=scale,
                scale_b=self.scale.t(),
                bias=self.bias,
                out_dtype=x.dtype,
                use_fast_accum=True,
            )[: len(flat)]
        else:
            tokens, scale = rounded(flat)
            weight = (self.weight.float() * self.scale).to(x.dtype)
            product = torch.nn.functional.linear((tokens.float() * scale).to(x.dtype), weight, self.bias)
        return product.reshape(*x.shape[:-1], self.out_features)


def rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row to 8-bit floats.

    Args:
        x: (rows, columns).

    Returns:
        The rounded numbers, (rows, columns) float8_e4m3fn, and what they are multiplied by, (rows, 1) float32.
    """
    scale = x.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / LARGEST
    return (x.float() / scale).to(E4M3), scale


def multiply_in_fp8(transformer: HunyuanVideoTransformer3DModel) -> None:
    """Let the linear layers of the blocks that see every token multiply in 8-bit floats: attention and feed-forward.

    What sees one vector a step (modulation, embeddings) stays as it is: it would gain nothing.

    Args:
        transformer: Before chunks, LoRA, offloading and compilation.
    """
    for block in blocks(transformer):
        for name, layer in list(block.named_modules()):
            if isinstance(layer, torch.nn.Linear) and not name.startswith("norm"):
                parent, _, own = name.rpartition(".")
                setattr(block.get_submodule(parent), own, Fp8Linear(layer))
