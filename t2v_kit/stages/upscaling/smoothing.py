"""A remedy for the flicker of an upscaler that looks at one frame at a time."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ...errors import UserError

_WINDOW = 5  # pixels of the small video over which its change is averaged, so that noise is told from motion
_AROUND = 2  # pixels around what moves that count as moving too: the network looks around as well


def steady(enlarged: np.ndarray, video: np.ndarray, tolerance: float = 8.0, keep: float = 0.8) -> np.ndarray:
    """The enlarged video with what stands still held still: `(T, H', W', 3)` uint8.

    Where `video`, which it was enlarged from, changes on average by less than `tolerance` levels of 255 to the next
    frame, that is noise rather than motion, and the enlarged frame is mixed with the one before: `keep` of what was
    shown so far. This is a recursive filter, so noise falls by sqrt((1 - keep) / (1 + keep)), a third at 0.8. What
    moves is left alone, and keeps its flicker. The price: a change fainter than `tolerance`, such as a cloud that
    drifts, lags behind by a few frames.
    Raises UserError when the two differ in their number of frames, or a number is out of range.
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
