"""How near a video comes to the true one, and how steady it stays.

Everything is told in levels of 255 unless it says otherwise; a video is `(T, H, W, 3)` uint8.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import UserError


def psnr(video: np.ndarray, other: np.ndarray) -> float:
    """How near two videos or frames of 0 to 255 are, in dB: 10 log10(255^2 / mean squared difference).

    Twice the difference is 6 dB less; infinite when nothing differs. Raises UserError if shapes differ.
    """
    if video.shape != other.shape:
        raise UserError(f"psnr of {video.shape} and {other.shape}: must have the same shape.")
    error = float(np.mean((video.astype(np.float64) - other.astype(np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def ssim(video: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity, the mean over the frames: 1 for equal videos, around 0 for unrelated ones.

    Computed by scikit-image (Wang et al. 2004, windows of 7x7, each colour by itself). Raises UserError when the
    shapes differ or a side is below 7 pixels, and when scikit-image is not installed.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise UserError("ssim needs scikit-image: pip install scikit-image") from error
    _check(video, truth)
    if min(video.shape[1:3]) < 7:
        raise UserError(f"ssim looks at windows of 7x7 pixels, but this is {video.shape}: take larger frames")
    frames = [structural_similarity(a, b, channel_axis=-1, data_range=255) for a, b in zip(video, truth)]
    return float(np.mean(frames))


def still_pixels(video: np.ndarray, around: int = 8) -> np.ndarray:
    """Where nothing happens from a frame to the next, nor within `around` pixels: `(T - 1, H, W)` bool.

    Meant for a video whose truth is known, such as a drawn one: any change counts.
    """
    changed = torch.from_numpy((video[1:] != video[:-1]).any(axis=3)).float().unsqueeze(1)
    window = 2 * around + 1
    return ~F.max_pool2d(changed, window, stride=1, padding=around)[:, 0].bool().numpy()


def flicker(video: np.ndarray, where: np.ndarray, flow: np.ndarray | None = None) -> float:
    """How much pixels change from a frame to the next, the mean over `where`, in levels of 255.

    where: `(T - 1, H, W)` bool, the pixels of each frame but the last that are looked at.
    flow: `(T or T - 1, H, W, 2)`, motion (x, y) in pixels a frame as `toyland.truth` gives it: each pixel is then
        compared with where it has gone to (bilinear), so that what only moves does not count as change. None: with
        the same place.
    Raises UserError when the shapes do not fit, or `where` is empty.
    """
    if where.shape != (len(video) - 1, *video.shape[1:3]):
        raise UserError(f"where={where.shape} must be {(len(video) - 1, *video.shape[1:3])} for a video {video.shape}")
    if not where.any():
        raise UserError("where is False everywhere: there is nothing to measure the flicker of")
    later = video[1:].astype(np.float32) if flow is None else followed(video, flow)
    return float(np.abs(later - video[:-1])[where].mean())


def followed(video: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Each next frame as seen from the frame before it: `(T - 1, H, W, 3)` float32, pixel p taken at p + flow.

    Raises UserError unless flow is `(T or T - 1, H, W, 2)`.
    """
    steps, height, width = len(video) - 1, *video.shape[1:3]
    if flow.shape not in [(length, height, width, 2) for length in (steps, steps + 1)]:
        raise UserError(f"flow={flow.shape} must be {(steps, height, width, 2)} for a video {video.shape}")
    later = torch.from_numpy(video[1:]).permute(0, 3, 1, 2).float()
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([x, y], -1) + torch.from_numpy(np.ascontiguousarray(flow[:steps], dtype=np.float32))
    place = (place * 2 + 1) / torch.tensor([width, height]) - 1  # pixels' middles, from -1 to 1
    moved = F.grid_sample(later, place, mode="bilinear", padding_mode="border", align_corners=False)
    return moved.permute(0, 2, 3, 1).numpy()


def _check(video: np.ndarray, truth: np.ndarray) -> None:
    if video.shape != truth.shape or video.ndim != 4:
        raise UserError(
            f"two videos to compare have one shape (T, H, W, 3), but these are {video.shape}, {truth.shape}"
        )
