"""Videos as arrays: `(T, H, W, 3)` uint8, as in mediapy."""

from __future__ import annotations

import numpy as np

from ..errors import UserError


def check_video(video: object, name: str = "video") -> np.ndarray:
    """Return `video` if it is one: a NumPy array `(T, H, W, 3)` uint8 with at least one frame and one pixel.

    Args:
        video: The array.
        name: What it is, for the message.

    Raises:
        UserError: It is something else.
    """
    if not isinstance(video, np.ndarray) or video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3:
        kind = f"{video.shape} {video.dtype}" if isinstance(video, np.ndarray) else type(video).__name__
        raise UserError(f"{name} is {kind}: must be a NumPy array (T, H, W, 3) of uint8.", setting=name)
    if 0 in video.shape:
        raise UserError(f"{name} is {video.shape}: must have at least one frame and one pixel.", setting=name)
    return video


def even(video: np.ndarray) -> np.ndarray:
    """`(T, H, W, 3)` with an even height and width: an odd last row or column is repeated.

    H.264 in yuv420p, the only form that every browser plays, stores colour for blocks of 2x2 pixels.
    """
    odd_rows, odd_columns = video.shape[1] % 2, video.shape[2] % 2
    return (
        np.pad(video, [(0, 0), (0, odd_rows), (0, odd_columns), (0, 0)], mode="edge")
        if odd_rows + odd_columns
        else video
    )
