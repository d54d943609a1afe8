"""Videos and pictures shown inside a notebook."""

from __future__ import annotations

import base64
import html
import io

import numpy as np
from PIL import Image

from ..video.arrays import check_video, even
from ..video.files import MP4_ARGS, mediapy_with_ffmpeg
from .pictures import fitted


def animation(video: np.ndarray, fps: float, width: int = 384, quality: int = 60) -> bytes:
    """Encode a video as an animated WebP that repeats for ever, for pages that block MP4.

    Args:
        video: `(T, H, W, 3)` uint8.
        fps: Frames a second.
        width: The largest width in pixels; a wider video is made smaller.
        quality: 0 to 100.

    Returns:
        The bytes of the file.

    Raises:
        UserError: `video` is not such an array.
    """
    frames = [fitted(frame, width) for frame in check_video(video)]
    times = np.round(np.arange(len(frames) + 1) * 1000 / fps).astype(int)  # whole milliseconds that do not drift
    file = io.BytesIO()
    frames[0].save(
        file, "WEBP", save_all=True, append_images=frames[1:], duration=np.diff(times).tolist(), loop=0,
        quality=quality, method=4,
    )  # fmt: skip
    return file.getvalue()


def show_video(video: np.ndarray, fps: float, title: str = "", width: int = 1200, page_width: int = 768) -> None:
    """Play a video inside the notebook.

    The output has two forms: a live notebook shows the H.264 player; pages that block players (a notebook on GitHub)
    show an animated WebP, which browsers accept in the place of a PNG. An odd width or height is shown with its last
    column or row repeated: an MP4 that every browser plays has even sides. A small video is enlarged by repeating its
    pixels, so that what is seen is what was made: up to three times in the player, twice in the animation.

    Args:
        video: `(T, H, W, 3)` uint8.
        fps: Frames a second.
        title: A line above the player.
        width: The player's largest width in pixels; in a narrower page it is as wide as the page.
        page_width: The animation's largest width in pixels.

    Raises:
        UserError: `video` is not such an array.
    """
    from IPython.display import display

    frames = even(np.stack([np.asarray(fitted(frame, width)) for frame in check_video(video)]))
    mediapy, (height, shown_width) = mediapy_with_ffmpeg(), frames.shape[1:3]
    mp4 = mediapy.compress_video(frames, fps=fps, crf=18, encoded_format="yuv420p", ffmpeg_args=MP4_ARGS)
    times = _times(shown_width, width, 3)
    sharp = "image-rendering: pixelated; " if times > 1 else ""  # made smaller, letters would lose strokes by it
    player = (
        f"<div>{html.escape(title)}</div>"
        f'<video controls loop autoplay muted width="{shown_width * times}" height="{height * times}" '
        f'style="{sharp}max-width: 100%; height: auto" '
        f'src="data:video/mp4;base64,{base64.b64encode(mp4).decode()}"></video>'
    )
    twice = _times(video.shape[2], page_width, 2)
    webp = base64.b64encode(animation(video.repeat(twice, axis=1).repeat(twice, axis=2), fps, page_width)).decode()
    words = f"{title or 'video'}: {len(video)} frames of {video.shape[2]}x{video.shape[1]} at {fps:g} fps"
    display({"text/html": player, "image/png": webp, "text/plain": words}, raw=True)


def _times(width: int, limit: int, most: int) -> int:
    """How many times, up to `most`, something of this width may be enlarged within `limit` pixels."""
    return min(most, max(1, limit // width))


def show_image(image: np.ndarray | Image.Image, width: int = 1200) -> None:
    """Show a picture in the notebook as a JPEG, a tenth of a PNG's size.

    Args:
        image: `(H, W, 3)` uint8, or a Pillow image.
        width: The largest width in pixels; a wider picture is made smaller.
    """
    from IPython.display import Image as Shown
    from IPython.display import display

    file = io.BytesIO()
    fitted(np.asarray(image), width).convert("RGB").save(file, "JPEG", quality=85)
    display(Shown(data=file.getvalue(), format="jpeg"))
