"""Real-ESRGAN's two networks on NVIDIA's Hopper cards by `kernels`: the same sums, no copies between the layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from triton.errors import TritonError  # pyright: ignore[reportMissingImports]

from .kernels import Conv, Plane, Shape

_CAPABILITY = (9, 0)  # of the cards for which the shapes below were measured
_NARROW = Shape(256, 32, 8, 4)  # of convolutions to 32 channels
_WIDE = Shape(128, 32, 4, 4)  # of those to 64
_SHARE = 0.2  # of a block's result that is added to its input, and the slope of its activations: ESRGAN, section 3.1
_PIXEL = 16  # channels that the kernels want at least, for the three colours


def fused(net: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Give what computes the same as a network in less time; None where nothing here does.

    Args:
        net: spandrel's module, on its device in its dtype.
    """
    weight = next(net.parameters())
    if weight.device.type != "cuda" or weight.dtype not in (torch.float16, torch.bfloat16):
        return None
    if torch.cuda.get_device_capability(weight.device) != _CAPABILITY:
        return None
    kind = {"SRVGGNetCompact": FusedCompact, "RRDBNet": FusedRRDB}.get(type(net).__name__)
    return kind(net) if kind and kind.fits(net) else None


def _plainly(call):
    """Raise what Triton says of a kernel that cannot be made as PyTorch would."""

    @functools.wraps(call)
    def called(self, pixels: torch.Tensor) -> torch.Tensor:
        try:
            return call(self, pixels)
        except TritonError as error:
            raise RuntimeError(str(error)) from error

    return called


class FusedCompact:
    """A network of convolutions one after the other, SRVGGNetCompact.

    Its planes are kept from call to call, and a result is a view of one: one thread at a time, and a result is used
    before the next call.

    Args:
        net: spandrel's module, on the GPU in its dtype.
    """

    def __init__(self, net: Any) -> None:
        layers = list(net.body)
        slopes = [_slope(layer) for layer in layers[1::2]] + [None]
        self.convs = [Conv(layer, slope, shape=_WIDE) for layer, slope in zip(layers[::2], slopes)]
        self.scale, self.features = net.upscale, layers[0].out_channels
        self._planes: list[Plane] = []

    @staticmethod
    def fits(net: Any) -> bool:
        return net.num_feat == 64 and net.num_in_ch == 3 and net.num_out_ch * net.upscale**2 <= net.num_feat

    @_plainly
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Enlarge `(B, 3, H, W)`."""
        wanted = (1, _PIXEL), (1, self.features), (1, self.features)
        self._planes = _planes_for(pixels, self._planes, wanted)
        first, *pair = self._planes
        first.inside[..., :3] = pixels.permute(0, 2, 3, 1)
        source = first
        for index, conv in enumerate(self.convs):
            target = pair[index % 2]
            conv(source, target)
            source = target
        last = source.inside[..., : 3 * self.scale**2].permute(0, 3, 1, 2)
        return F.pixel_shuffle(last, self.scale) + F.interpolate(pixels, scale_factor=self.scale, mode="nearest")


class FusedRRDB:
    """A network of dense blocks, RRDBNet, that doubles the size twice. Its planes are kept as FusedCompact's are.

    Args:
        net: spandrel's module, on the GPU in its dtype.
    """

    def __init__(self, net: Any) -> None:
        first, trunk, *rest = net.model
        *blocks, after = trunk.sub
        self.first, self.after = Conv(first, None, shape=_WIDE), Conv(after, None, shape=_WIDE)
        self.blocks = [
            [
                [Conv(getattr(part, f"conv{i}")[0], _SHARE if i < 5 else None, shape=_NARROW if i < 5 else _WIDE)
                 for i in range(1, 6)]
                for part in (block.RDB1, block.RDB2, block.RDB3)
            ]
            for block in blocks
        ]  # fmt: skip
        *ups, high, last = [layer for layer in rest if isinstance(layer, torch.nn.Conv2d)]
        self.ups = [Conv(layer, _SHARE, doubling=True, shape=_WIDE) for layer in ups]
        self.high, self.last = Conv(high, _SHARE, shape=_WIDE), Conv(last, None, shape=_WIDE)
        self._planes: list[Plane] = []

    @staticmethod
    def fits(net: Any) -> bool:
        layers = [layer for layer in net.modules() if isinstance(layer, torch.nn.Conv2d)]
        return (
            net.scale == 4 and not net.shuffle_factor and layers[0].in_channels == 3
            and layers[0].out_channels == 64 and all(layer.kernel_size == (3, 3) for layer in layers)
            and layers[1].out_channels == 32 and layers[-1].out_channels == 3
        )  # fmt: skip

    @_plainly
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Enlarge `(B, 3, H, W)`."""
        dense = 64 + 4 * 32  # a block's input and what its first four layers add to it
        wanted = [(1, _PIXEL), (1, 64), *3 * [(1, dense)], (2, 64), (4, 64), (4, 64), (4, 4)]
        self._planes = _planes_for(pixels, self._planes, wanted)
        small, skip, *blocks, double, large, larger, result = self._planes
        small.inside[..., :3] = pixels.permute(0, 2, 3, 1)
        self.first(small, skip)
        self.first(small, blocks[0])
        start = blocks[0]
        for parts in self.blocks:
            for source, target, convs in zip(blocks, (*blocks[1:], start), parts):
                for index, conv in enumerate(convs[:4]):
                    conv(source, source, 64 + 32 * index)
                adds = ((_SHARE, source.data), (_SHARE, start.data))
                convs[4](source, target, 0, adds if target is start else adds[:1])
        self.after(start, blocks[1], 0, ((1.0, skip.data),))
        self.ups[0](blocks[1], double)
        self.ups[1](double, large)
        self.high(large, larger)
        self.last(larger, result)
        return result.inside[..., :3].permute(0, 3, 1, 2)


def _planes_for(pixels: torch.Tensor, planes: list[Plane], wanted: Sequence[tuple[int, int]]) -> list[Plane]:
    """The planes as they are if they are of this size, else new ones, of (enlargement, channels) each."""
    batch, _, height, width = pixels.shape
    if planes and planes[0].inside.shape[:3] == (batch, height, width):
        return planes
    planes.clear()  # the old ones go first
    planes += [
        Plane(batch, height * scale, width * scale, channels, pixels.dtype, pixels.device)
        for scale, channels in wanted
    ]  # fmt: skip
    return planes


def _slope(layer: torch.nn.Module) -> float | torch.Tensor:
    if isinstance(layer, torch.nn.PReLU):
        return layer.weight.detach().float()
    return layer.negative_slope if isinstance(layer, torch.nn.LeakyReLU) else 0.0
