"""The transformer's blocks and the VAE compiled: a warm-up, then fewer seconds for each step and each tile."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from diffusers.hooks import ModelHook
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import (
    HunyuanVideoCausalConv3d,
    HunyuanVideoResnetBlockCausal3D,
    HunyuanVideoUpsampleCausal3D,
)

from .hooks import attach, is_hooked

#: Graphs that are kept of one kind of block, or of what lies between a VAE's convolutions. Beyond PyTorch's own limit
#: of 8 it goes on without compiling, in silence; a second length of prompt makes lengths symbols, and a tile's sizes
#: are, so that few more graphs than sizes of videos are needed.
GRAPHS = 128
_NAME = "t2v_kit_channels_last"


def compile_blocks(transformer: HunyuanVideoTransformer3DModel, backend: str = "inductor") -> None:
    """Compile every block at its first call, which takes a minute or more; blocks of one kind share their graph.

    Args:
        transformer: After everything that changes its blocks.
        backend: Of torch.compile; "eager" traces the blocks without compiling them, which tests do.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    transformer.compile_repeated_blocks(backend=backend)


def compile_vae(vae: AutoencoderKLHunyuanVideo, backend: str = "inductor") -> None:
    """Let the VAE's convolutions work channels last, and compile what lies between them.

    cuDNN computes channels last: in PyTorch's usual order it turns every input and output around. A group norm of 32
    groups keeps 32 of a GPU's 132 multiprocessors busy, and padding is a pass of its own. Here norm, activation,
    enlarging and padding are one function, which Triton makes a few kernels of in half a minute, whatever the size of a
    tile. Videos differ by the rounding of the dtype.

    Args:
        vae: Wherever its weights are.
        backend: Of torch.compile; "eager" traces without compiling.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    compiled = torch.compile(prepared, dynamic=False, backend=backend)  # but for the sizes that are marked

    def prepare(x, *settings) -> torch.Tensor:
        torch._dynamo.maybe_mark_dynamic(x, [2, 3, 4])
        return compiled(x, *settings)

    use_channels_last(vae, prepare)


def use_channels_last(vae: AutoencoderKLHunyuanVideo, prepare: Callable[..., torch.Tensor]) -> None:
    """Keep the VAE's videos channels last, and let `prepare` do what lies between convolutions.

    Args:
        vae: Wherever its weights are.
        prepare: `prepared`, or what does the same.
    """
    for weight in vae.parameters():
        if weight.ndim == 5:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)
    for module in vae.modules():
        if isinstance(module, HunyuanVideoResnetBlockCausal3D) and isinstance(module.nonlinearity, torch.nn.SiLU):
            attach(module, _ResnetBlock(prepare), _NAME)
        elif isinstance(module, HunyuanVideoUpsampleCausal3D):
            attach(module, _Upsampler(prepare), _NAME)
        elif isinstance(module, HunyuanVideoCausalConv3d):  # where no block of these two calls it
            attach(module, _Convolution(prepare), _NAME)
    for part in (vae.encoder, vae.decoder):
        attach(part.conv_norm_out, _Norm(prepare), _NAME)


def prepared(
    x: torch.Tensor,
    norm: tuple[torch.Tensor, torch.Tensor, int, float] | None,
    activate: bool,
    places: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """What a causal convolution takes: x normalised and activated, enlarged, and padded with copies of its edges.

    Args:
        x: (batch, C, T, H, W), channels last.
        norm: Weight, bias, number of groups and epsilon of a group norm; None for none, and no activation.
        activate: Whether SiLU follows the norm.
        places: What `_places` gives.

    Returns:
        (batch, C, frames, height, width), channels last.
    """
    shown = x[:, :, *places]  # first, as Triton would store what it has normalised before it picks from it
    if norm is not None:
        weight, bias, groups, epsilon = norm
        statistics = torch.var_mean(x.float(), 4, correction=0)  # of each row, as memory has them; then of each group
        variances, means = (part.unflatten(1, (groups, -1)).flatten(2) for part in statistics)
        variance, mean = variances.mean(2) + means.var(2, correction=0), means.mean(2)
        scale = weight.unflatten(0, (groups, -1)) * (variance + epsilon).rsqrt()[..., None]
        shift = bias.unflatten(0, (groups, -1)) - mean[..., None] * scale
        scale, shift = (part.flatten(1)[:, :, None, None, None] for part in (scale, shift))
        shown = shown.float() * scale + shift
        shown = (torch.nn.functional.silu(shown) if activate else shown).to(x.dtype)
    return shown.contiguous(memory_format=torch.channels_last_3d)


class _Prepared(ModelHook):
    """A part of the VAE that `prepare` works for."""

    def __init__(self, prepare: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.prepare = prepare

    def convolved(self, x: torch.Tensor, layer: HunyuanVideoCausalConv3d, norm=None, factors=(1, 1, 1)) -> torch.Tensor:
        """What the layer makes of x, once it has been normalised and enlarged."""
        across, _, down, _, before, _ = layer.time_causal_padding
        edges = before, down, across
        if norm is not None or any(edges) or factors != (1, 1, 1):
            places = _places(x.shape[2:], factors, edges, x.device)
            x = self.prepare(x, None if norm is None else _numbers(norm), True, places)
        return layer.conv(x)


class _ResnetBlock(_Prepared):
    def new_forward(self, block: HunyuanVideoResnetBlockCausal3D, x: torch.Tensor) -> torch.Tensor:
        if any(is_hooked(norm) for norm in (block.norm1, block.norm2)):  # its statistics are kept, say
            return cast(Callable, self.fn_ref.original_forward)(x)
        inner = self.convolved(self.convolved(x, block.conv1, block.norm1), block.conv2, block.norm2)
        return inner + (x if block.conv_shortcut is None else self.convolved(x, block.conv_shortcut))


class _Upsampler(_Prepared):
    def new_forward(self, block: HunyuanVideoUpsampleCausal3D, x: torch.Tensor) -> torch.Tensor:
        time, height, width = map(int, block.upsample_factor)
        return self.convolved(x, block.conv, factors=(time, height, width))


class _Convolution(_Prepared):
    def new_forward(self, layer: HunyuanVideoCausalConv3d, x: torch.Tensor) -> torch.Tensor:
        return self.convolved(x, layer)


class _Norm(_Prepared):
    def new_forward(self, norm: torch.nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
        places = _places(x.shape[2:], (1, 1, 1), (0, 0, 0), x.device)
        return self.prepare(x, _numbers(norm), False, places)


def _numbers(norm: torch.nn.GroupNorm) -> tuple[torch.Tensor, torch.Tensor, int, float]:
    return norm.weight, norm.bias, norm.num_groups, norm.eps


@functools.lru_cache(256)
def _places(
    shape: torch.Size, factors: tuple[int, int, int], edges: tuple[int, int, int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which frame, row and column of (T, H, W) each one of the enlarged and padded video shows.

    Args:
        shape: (T, H, W).
        factors: How many times longer, higher and wider; the first frame stays one.
        edges: Frames before the first, and pixels at either side in height and width.
        device: Where the numbers are needed.

    Returns:
        Indices as (frames, 1, 1), (height, 1) and (width,), which index three dimensions together.
    """
    frames, height, width = shape
    t = torch.arange(-edges[0], (frames - 1) * factors[0] + 1).clamp(min=0)
    h, w = (
        torch.arange(-edge, size * factor + edge).clamp(0, size * factor - 1) // factor
        for size, factor, edge in zip((height, width), factors[1:], edges[1:])
    )
    t = (t + factors[0] - 1) // factors[0]
    places = t[:, None, None].to(device), h[:, None].to(device), w.to(device)
    for place in places:
        torch._dynamo.maybe_mark_dynamic(place, 0)
    return places
