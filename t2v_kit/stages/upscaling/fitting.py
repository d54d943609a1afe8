"""Fit a network to frames of colours and to the scale that is wanted, as another of spandrel's descriptors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor


def each_channel(net: ImageModelDescriptor) -> ImageModelDescriptor:
    """Let a network for grey pictures take colours: red, green and blue one after the other, as three pictures."""

    def call(model, pixels: torch.Tensor) -> torch.Tensor:
        grey = net._call_fn(model, pixels.flatten(0, 1).unsqueeze(1))
        return grey.view(pixels.shape[0], 3, *_larger(pixels, net.scale))

    return _replaced(net, call, channels=3)


def reduced(net: ImageModelDescriptor, scale: int) -> ImageModelDescriptor:
    """Let a network enlarge less: bicubic interpolation, without antialiasing, of what it gives before it is clamped.

    So end the x2 and x3 forms in which realesr-animevideov3 was published.

    Args:
        net: The network.
        scale: The enlargement, a whole number below `net.scale`.
    """

    def call(model, pixels: torch.Tensor) -> torch.Tensor:
        return F.interpolate(model(pixels).float(), _larger(pixels, scale), mode="bicubic")

    return _replaced(net, call, scale=scale)


def _larger(pixels: torch.Tensor, scale: int) -> tuple[int, int]:
    return pixels.shape[2] * scale, pixels.shape[3] * scale


def _replaced(net: ImageModelDescriptor, call, channels: int = 3, scale: int | None = None) -> ImageModelDescriptor:
    return type(net)(
        net.model,
        net.model.state_dict(),
        net.architecture,
        purpose=net.purpose,
        tags=net.tags,
        supports_half=net.supports_half,
        supports_bfloat16=net.supports_bfloat16,
        scale=scale or net.scale,
        input_channels=channels,
        output_channels=channels,
        size_requirements=net.size_requirements,
        tiling=net.tiling,
        call_fn=call,
    )
