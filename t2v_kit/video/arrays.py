"""What a video is as an array: `(T, H, W, 3)` uint8, as in mediapy."""

from __future__ import annotations

import numpy as np

from ..errors import UserError


def check_video(video: np.ndarray) -> np.ndarray:
    """The video itself, once it is one."""
    if not isinstance(video, np.ndarray) or video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3:
        got = f"{video.shape} {video.dtype}" if isinstance(video, np.ndarray) else type(video).__name__
        raise UserError(f"a video is a NumPy array (T, H, W, 3) of uint8, but this is {got}")
    if 0 in video.shape:
        raise UserError(f"a video needs at least one frame and one pixel, but this is {video.shape}")
    return video
