"""Reduce the flicker of an upscaler that sees one frame at a time."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from skimage.registration import optical_flow_ilk

from ...errors import UserError

_WINDOW = 5  # pixels of the small video over which its change is averaged, to distinguish motion from noise
_AROUND = 2  # pixels around motion that count as moving too: a pixel changes what the network makes of its neighbours
_LOOSER = 2.0  # times the tolerance along motion: small frames that are moved to each other differ by more than noise
_WARPS = 3  # refinements of the flow: its ten by default measured no steadier
_MOVING = 0.75  # of `keep` along motion: what is resampled in every frame loses sharpness


def steady(
    enlarged: np.ndarray, video: np.ndarray, tolerance: float = 8.0, keep: float = 0.8, motion: bool = True
) -> np.ndarray:
    """Reduce flicker where an enlarged video stands still, and along its motion.

    A pixel of the small video that changes by less than `tolerance` from one frame to the next shows noise rather than
    motion. There, the enlarged frame is mixed with the result before it. This is a recursive filter: noise falls to
    sqrt((1 - keep) / (1 + keep)), a third at 0.8. Elsewhere the result before it is moved by the small frames' optical
    flow, and mixed in as far as the moved small frame agrees with the new one; what no frame before shows (behind
    something that moved, or where the flow is wrong) stays as the network made it. The prices: a change fainter than
    `tolerance`, such as a drifting cloud, lags behind by a few frames, moving parts become a little softer, and the
    flow (scikit-image's: Le Besnerais and Champagnat 2005) takes seconds for each small frame of half a million pixels.

    Args:
        enlarged: `(T, H', W', 3)` uint8.
        video: `(T, H, W, 3)` uint8, from which it was enlarged.
        tolerance: Levels of 255, the mean over 5x5 pixels; above 0.
        keep: The share of the result before, from 0 to below 1.
        motion: Whether to steady what moves too; False leaves it as it is.

    Returns:
        `(T, H', W', 3)` uint8.

    Raises:
        UserError: The two differ in their number of frames, or a number is out of range.
    """
    if len(enlarged) != len(video):
        raise UserError(f"steady needs the video that was enlarged: {len(enlarged)} frames came from {len(video)}")
    if not 0 <= keep < 1 or not tolerance > 0:
        raise UserError(f"keep={keep!r} and tolerance={tolerance!r}: from 0 to below 1, and above 0; try 0.8 and 8")
    shown = _planes(enlarged[0])
    result = [enlarged[0]]
    for before, now, frame in zip(map(_planes, video), map(_planes, video[1:]), map(_planes, enlarged[1:])):
        mixed = torch.lerp(frame, shown, keep * _stillness(before, now, frame.shape[2:], tolerance))
        shown = _along_motion(shown, mixed, frame, before, now, tolerance, keep) if motion else mixed
        result.append(shown[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy())
    return np.stack(result)


def _planes(frame: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frame).permute(2, 0, 1)[None].float()


def _stillness(before: torch.Tensor, now: torch.Tensor, size: torch.Size, tolerance: float) -> torch.Tensor:
    """1 where the two frames differ by noise only, 0 where something moves, soft between: `(1, 1, *size)`."""
    worst = F.max_pool2d(_change(before, now), 2 * _AROUND + 1, 1, _AROUND)
    return _agreement(worst, size, tolerance)


def _along_motion(shown, mixed, frame, before, now, tolerance: float, keep: float) -> torch.Tensor:
    """What `mixed` leaves as the network made it, mixed with the result before, moved to where it is now."""
    flow = _flow(now, before)
    size = frame.shape[2:]
    scale = flow.new_tensor([size[1] / flow.shape[3], size[0] / flow.shape[2]]).view(1, 2, 1, 1)
    earlier = _moved(shown, F.interpolate(flow, size, mode="bilinear") * scale, "bicubic")
    # No colour that the new frame lacks around the pixel: nothing trails behind what moves.
    brightest, darkest = F.max_pool2d(frame, 3, 1, 1), -F.max_pool2d(-frame, 3, 1, 1)
    agreement = _agreement(_change(_moved(before, flow, "bilinear"), now), size, _LOOSER * tolerance)
    along = torch.lerp(frame, earlier.clamp(darkest, brightest), _MOVING * keep * agreement)
    return torch.lerp(along, mixed, _stillness(before, now, size, tolerance))


def _flow(now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Where each pixel was in the frame before: (x, y) to add to its place, `(1, 2, H, W)`."""
    grey = (frame[0].mean(0).numpy() for frame in (now, before))
    down, across = optical_flow_ilk(*grey, num_warp=_WARPS)
    return torch.from_numpy(np.stack([across, down]))[None].float()


def _moved(picture: torch.Tensor, flow: torch.Tensor, mode: str) -> torch.Tensor:
    """Take each pixel of `(1, C, H, W)` where the flow points to."""
    height, width = picture.shape[2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = torch.stack([(x + flow[0, 0] + 0.5) * (2 / width) - 1, (y + flow[0, 1] + 0.5) * (2 / height) - 1], -1)
    return F.grid_sample(picture, at[None], mode=mode, padding_mode="border", align_corners=False)


def _change(before: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    change = (now - before).abs().mean(1, keepdim=True)
    return F.avg_pool2d(change, _WINDOW, 1, _WINDOW // 2, count_include_pad=False)


def _agreement(change: torch.Tensor, size: torch.Size, tolerance: float) -> torch.Tensor:
    return F.interpolate(torch.exp(-((change / tolerance) ** 4)), size, mode="bilinear")
