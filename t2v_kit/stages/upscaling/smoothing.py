"""Reduce the flicker of an upscaler that sees one frame at a time."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ...errors import UserError

_WINDOW = 5  # pixels of the small video over which its change is averaged, to distinguish motion from noise
_AROUND = 2  # pixels around motion that count as moving too: a pixel changes what the network makes of its neighbours


def steady(enlarged: np.ndarray, video: np.ndarray, tolerance: float = 8.0, keep: float = 0.8) -> np.ndarray:
    """Reduce flicker where an enlarged video stands still.

    A pixel of the small video that changes by less than `tolerance` from one frame to the next shows noise rather than
    motion. There, the enlarged frame is mixed with the result before it. This is a recursive filter: noise falls to
    sqrt((1 - keep) / (1 + keep)), a third at 0.8. Moving parts stay as they are, flicker included. The price: a change
    fainter than `tolerance`, such as a drifting cloud, lags behind by a few frames.

    Args:
        enlarged: `(T, H', W', 3)` uint8.
        video: `(T, H, W, 3)` uint8, from which it was enlarged.
        tolerance: Levels of 255, the mean over 5x5 pixels; above 0.
        keep: The share of the result before, from 0 to below 1.

    Returns:
        `(T, H', W', 3)` uint8.

    Raises:
        UserError: The two differ in their number of frames, or a number is out of range.
    """
    if len(enlarged) != len(video):
        raise UserError(f"steady needs the video that was enlarged: {len(enlarged)} frames came from {len(video)}")
    if not 0 <= keep < 1 or not tolerance > 0:
        raise UserError(f"keep={keep!r} and tolerance={tolerance!r}: from 0 to below 1, and above 0; try 0.8 and 8")
    shown = torch.from_numpy(enlarged[0]).float()
    result = [enlarged[0]]
    for before, now, frame in zip(video, video[1:], enlarged[1:]):
        mixed = keep * _stillness(before, now, frame.shape[:2], tolerance)
        shown = torch.lerp(torch.from_numpy(frame).float(), shown, mixed)
        result.append(shown.round().to(torch.uint8).numpy())
    return np.stack(result)


def _stillness(before: np.ndarray, now: np.ndarray, size: tuple[int, int], tolerance: float) -> torch.Tensor:
    """1 where the two frames differ by noise only, 0 where something moves, soft between: `(*size, 1)`."""
    change = np.abs(now.astype(np.float32) - before).mean(axis=2)
    mean = F.avg_pool2d(torch.from_numpy(change)[None, None], _WINDOW, 1, _WINDOW // 2, count_include_pad=False)
    worst = F.max_pool2d(mean, 2 * _AROUND + 1, 1, _AROUND)
    weight = torch.exp(-((worst / tolerance) ** 4))
    return F.interpolate(weight, size, mode="bilinear")[0, 0].unsqueeze(-1)
