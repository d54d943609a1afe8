"""Measures of videos: closeness to a reference, and flicker.

A video is `(T, H, W, 3)` uint8; differences are in levels of 0 to 255 unless a docstring says otherwise.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import UserError
from .arrays import check_video


def psnr(video: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB: 10 log10(255^2 / mean squared difference).

    Twice the difference is 6 dB less.

    Args:
        video, other: Two videos or pictures of one shape, with values from 0 to 255.

    Returns:
        The ratio; infinite when nothing differs.

    Raises:
        UserError: The shapes differ.

    Example:
        >>> psnr(np.full((8, 8, 3), 100), np.full((8, 8, 3), 110))
        28.13...
    """
    _check_same_shape(video, other)
    error = float(np.mean((video.astype(np.float64) - other.astype(np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def motion_error(video: np.ndarray, other: np.ndarray) -> float:
    """How much the changes from one frame to the next differ between two videos.

    Args:
        video: `(T, H, W, 3)` uint8, at least two frames.
        other: The same shape: the one that counts as right.

    Returns:
        The mean absolute difference between their changes, as a share of the mean absolute change of `other`: 0 where
        both move alike, about 1 where one of them stands still. 0 where neither changes, infinite where `other` alone
        stands still; of a single frame 0.

    Raises:
        UserError: The shapes differ.

    Example:
        >>> moving = np.stack([np.full((8, 8, 3), 10 * t, np.uint8) for t in range(5)])
        >>> motion_error(moving[[0, 0, 0, 0, 0]], moving)
        1.0
    """
    _check_same_shape(check_video(video), check_video(other, "other"))
    changes, right = np.diff(video.astype(np.int16), axis=0), np.diff(other.astype(np.int16), axis=0)
    error, moved = float(np.abs(changes - right).sum()), float(np.abs(right).sum())
    return error / moved if moved else (math.inf if error else 0.0)


def ssim(video: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004), computed by scikit-image in windows of 7x7 pixels for each colour.

    Args:
        video, truth: `(T, H, W, 3)` uint8 of one shape, H and W at least 7.

    Returns:
        The mean over the frames: 1 for equal videos, around 0 for unrelated ones.

    Raises:
        UserError: The shapes differ, a side is below 7 pixels, or scikit-image is not installed.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise UserError("ssim needs scikit-image: pip install scikit-image") from error
    _check_same_shape(check_video(video), check_video(truth, "truth"))
    if min(video.shape[1:3]) < 7:
        raise UserError(f"video is {video.shape}: ssim needs a height and width of at least 7 pixels; 7x7 would work.")
    frames = [structural_similarity(a, b, channel_axis=-1, data_range=255) for a, b in zip(video, truth)]
    return float(np.mean(frames))


def still_pixels(video: np.ndarray, around: int = 8) -> np.ndarray:
    """Find the pixels that stay the same from one frame to the next, together with their surroundings.

    Meant for a video without noise, such as a rendered one: any change counts.

    Args:
        video: `(T, H, W, 3)` uint8.
        around: The distance in pixels within which nothing may change.

    Returns:
        `(T - 1, H, W)` bool.

    Raises:
        UserError: `video` is not a video.
    """
    check_video(video)
    changed = torch.from_numpy((video[1:] != video[:-1]).any(axis=3)).float().unsqueeze(1)
    window = 2 * around + 1
    return ~F.max_pool2d(changed, window, stride=1, padding=around)[:, 0].bool().numpy()


def flicker(video: np.ndarray, where: np.ndarray, flow: np.ndarray | None = None) -> float:
    """Mean change of pixels from one frame to the next, in levels of 0 to 255.

    Args:
        video: `(T, H, W, 3)` uint8.
        where: `(T - 1, H, W)` bool, the pixels of each frame but the last that are averaged.
        flow: `(T or T - 1, H, W, 2)`, motion (x, y) in pixels a frame as `toyland.truth` returns it. Each pixel is
            compared with the place it moves to (bilinear), so that motion alone does not count as change. None
            compares it with the same place.

    Returns:
        The mean absolute difference over `where`.

    Raises:
        UserError: The shapes do not fit, or `where` selects nothing.
    """
    check_video(video)
    if where.shape != (len(video) - 1, *video.shape[1:3]):
        raise UserError(
            f"where is {where.shape}: must be {(len(video) - 1, *video.shape[1:3])} for a video {video.shape}."
        )
    if not where.any():
        raise UserError("where is False everywhere: must select at least one pixel.")
    later = video[1:].astype(np.float32) if flow is None else followed(video, flow)
    return float(np.abs(later - video[:-1])[where].mean())


def followed(video: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Warp each next frame back to the frame before it: pixel p is taken at p + flow (bilinear).

    Args:
        video: `(T, H, W, 3)` uint8.
        flow: `(T or T - 1, H, W, 2)`, motion (x, y) in pixels a frame.

    Returns:
        `(T - 1, H, W, 3)` float32.

    Raises:
        UserError: `flow` has another shape.
    """
    steps, height, width = len(video) - 1, *video.shape[1:3]
    if flow.shape not in [(length, height, width, 2) for length in (steps, steps + 1)]:
        raise UserError(f"flow is {flow.shape}: must be {(steps, height, width, 2)} for a video {video.shape}.")
    later = torch.from_numpy(video[1:]).permute(0, 3, 1, 2).float()
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([x, y], -1) + torch.from_numpy(np.ascontiguousarray(flow[:steps], dtype=np.float32))
    place = (place * 2 + 1) / torch.tensor([width, height]) - 1  # centres of pixels, from -1 to 1
    moved = F.grid_sample(later, place, mode="bilinear", padding_mode="border", align_corners=False)
    return moved.permute(0, 2, 3, 1).numpy()


def _check_same_shape(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise UserError(f"{a.shape} and {b.shape}: must have the same shape to be compared.")
