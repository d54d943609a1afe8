"""Frames as H.264 stores them, computed where the network ran.

A frame of 3840x2176 is 25 MB of RGB, which ffmpeg converts on one core while the GPU waits. As brightness and two
colour planes of half the height and width it is half as much to copy and to pipe, and ffmpeg has nothing to convert.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

_BT709 = (0.2126, 0.0722)  # the shares of red and blue in brightness: ITU-R BT.709-6, item 3.2


@torch.inference_mode()
def as_planes(pixels: torch.Tensor, shares: tuple[float, float] = _BT709) -> np.ndarray:
    """Convert frames to yuv420p in limited range.

    Args:
        pixels: `(B, 3, H, W)` in [0, 1], H and W even.
        shares: Of red and blue in brightness; by default BT.709's.

    Returns:
        `(B, H * 3 / 2, W)` uint8: brightness, then the two colour planes.
    """
    kr, kb = shares
    red, green, blue = pixels.unbind(1)
    bright = kr * red + (1 - kr - kb) * green + kb * blue
    colour = torch.stack([(blue - bright) / (2 * (1 - kb)), (red - bright) / (2 * (1 - kr))], 1)
    small = 128 + 224 * F.avg_pool2d(colour, 2)
    planes = torch.cat([(16 + 219 * bright).flatten(1), small.flatten(1)], 1)
    batch, _, height, width = pixels.shape
    planes = planes.round_().to(torch.uint8).view(batch, height * 3 // 2, width)
    return on_host(planes)


def on_host(pixels: torch.Tensor) -> np.ndarray:
    """A copy of a tensor for NumPy; from a GPU through pinned memory, which is several times as fast."""
    if pixels.device.type != "cuda":
        return pixels.numpy()
    return torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True).copy_(pixels).numpy()
