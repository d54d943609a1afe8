"""Pictures of videos: stills, contact sheets, videos side by side.

A video is `(T, H, W, 3)` uint8 everywhere, as in mediapy.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import UserError, check_whole
from ..video.arrays import check_video

_PAPER, _INK, _GREY = (255, 255, 255), (32, 32, 32), (112, 112, 112)
_ROW = 1200  # pixels: the width of a notebook's page, to which a row of small videos is enlarged
_LABEL = 768  # pixels: up to this width letters are 16 pixels high; a wider row is shown smaller, so they grow with it
_GAP = 8  # pixels between videos side by side


def stills(video: np.ndarray, count: int = 6) -> np.ndarray:
    """Put evenly spaced frames, from the first to the last, into one strip.

    Args:
        video: `(T, H, W, 3)` uint8.
        count: The number of frames; a shorter video gives each of its frames once.

    Returns:
        `(H, W', 3)` uint8.

    Raises:
        UserError: `video` is not a video, or `count` is not a whole number of at least 1.
    """
    frames = check_video(video)[_spread(len(video), count)]
    gap = np.full((frames.shape[1], 4, 3), 255, np.uint8)
    return np.concatenate([part for frame in frames for part in (gap, frame)][1:], axis=1)


def contact_sheet(
    video: np.ndarray,
    fps: float,
    title: str = "",
    count: int = 12,
    columns: int = 4,
    frame_width: int = 320,
    times: list[float] | None = None,
) -> Image.Image:
    """Put evenly spaced frames into a grid, each with its time in seconds, under a title.

    Args:
        video: `(T, H, W, 3)` uint8.
        fps: Frames a second.
        title: The text above, broken into lines.
        count: The number of frames.
        columns: The number of frames in a row.
        frame_width: The width of each frame in pixels.
        times: The time of each frame of `video` in seconds, where it holds the frames of `sheet_frames` alone.

    Returns:
        A Pillow image.

    Raises:
        UserError: `video` is not a video, or `count` or `columns` is not a whole number of at least 1.
    """
    check_whole("columns", columns)
    chosen = _spread(len(check_video(video)), count)
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)
    margin, label = 20, 26
    height = round(video.shape[1] * frame_width / video.shape[2])
    width = columns * (frame_width + margin) + margin
    lines = wrap(title, font(20), width - 2 * margin)
    top = margin + 28 * len(lines) + (8 if lines else 0)
    sheet = Image.new("RGB", (width, top + rows * (height + label + 10) + margin - 10), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((margin, margin - 4 + 28 * number), line, fill=_INK, font=font(20))
    for place, index in enumerate(chosen):
        x = margin + place % columns * (frame_width + margin)
        y = top + place // columns * (height + label + 10)
        sheet.paste(resized(video[index], frame_width, height), (x, y))
        draw.text((x, y + height + 5), f"{times[index] if times else index / fps:.2f} s", fill=_GREY, font=font(15))
    return sheet


def side_by_side(videos: dict[str, np.ndarray], height: int | None = None) -> np.ndarray:
    """Put videos next to each other under their names, all at one height.

    Smaller videos are enlarged by repeating pixels, so that the picture shows their own pixels.

    Args:
        videos: `(T, H, W, 3)` uint8 by name, all with the same number of frames.
        height: In pixels; None is the height of the tallest, up to three times as large (a whole number of times) where
            the row is at most 1,200 pixels wide then.

    Returns:
        `(T, H', W', 3)` uint8, H' and W' even.

    Raises:
        UserError: One is not a video, or they differ in their number of frames.

    Example:
        >>> both = side_by_side({"before": video, "after": enlarged})
    """
    lengths = {name: len(check_video(video, name)) for name, video in videos.items()}
    if len(set(lengths.values())) != 1:
        raise UserError(f"videos side by side: must have the same number of frames, but these have {lengths}.")
    tallest = height or max(video.shape[1] for video in videos.values())
    tallest += tallest % 2
    if height is None:
        gaps = _GAP * (len(videos) - 1)
        tallest *= min(3, max(1, (_ROW - gaps) // (_row(videos, tallest) - gaps)))
    label = _label(videos, tallest)
    panels = [_panel(name, video, tallest, label) for name, video in videos.items()]
    gap = np.full((*panels[0].shape[:2], _GAP, 3), 255, np.uint8)
    return np.concatenate([part for panel in panels for part in (gap, panel)][1:], axis=2)


def split_at(a: np.ndarray, b: np.ndarray, percent: float) -> np.ndarray:
    """Show `a` left of a white line at `percent` of the width and `b` right of it; all `(T, H, W, 3)` of one shape."""
    at = round(a.shape[2] * percent / 100)
    both = np.concatenate([a[:, :, :at], b[:, :, at:]], axis=2)
    both[:, :, max(at - 1, 0) : at + 1] = 255
    return both


def sheet_frames(length: int) -> list[int]:
    """The numbers of the frames that `contact_sheet` shows by default of a video of `length` frames."""
    return _spread(length, 12)


def _spread(length: int, count: int) -> list[int]:
    """At most `count` different frame numbers from the first to the last."""
    return np.unique(np.linspace(0, length - 1, check_whole("count", count)).round().astype(int)).tolist()


def resized(frame: np.ndarray, width: int, height: int) -> Image.Image:
    """`frame` at another size, by Lanczos."""
    return Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS)


def fitted(frame: np.ndarray, width: int) -> Image.Image:
    """`frame` as a picture, made smaller when it is wider than `width`; its height is even then."""
    if frame.shape[1] <= width:
        return Image.fromarray(frame)
    return resized(frame, width, max(2, round(frame.shape[0] * width / frame.shape[1] / 2) * 2))


def _width(video: np.ndarray, height: int) -> int:
    """The even width of a video shown at `height`."""
    return max(2, round(video.shape[2] * height / video.shape[1] / 2) * 2)


def _row(videos: dict[str, np.ndarray], height: int) -> int:
    """The width of all of them side by side at `height`."""
    return sum(_width(video, height) for video in videos.values()) + _GAP * (len(videos) - 1)


def _label(videos: dict[str, np.ndarray], height: int) -> int:
    """The size of the letters: as large as the row asks for, less where a name would be cut off, at least 16 pixels."""
    largest = round(16 * max(1, _row(videos, height) / _LABEL))

    def fits(size: int) -> bool:
        return all(font(size).getlength(name) <= _width(video, height) - 4 for name, video in videos.items())

    return next((size for size in range(largest, 16, -1) if fits(size)), 16)


def _panel(name: str, video: np.ndarray, height: int, label: int) -> np.ndarray:
    """One named video of `side_by_side`, its name in letters of `label` pixels: `(T, height + 1.75 label, W, 3)`."""
    width, letters = _width(video, height), font(label)
    strip = Image.new("RGB", (width, label * 7 // 8 * 2), _PAPER)
    ImageDraw.Draw(strip).text((2, 3 * label // 16), shortened(name, letters, width - 4), fill=_INK, font=letters)
    frames = [Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST) for frame in video]
    return np.stack([np.concatenate([np.asarray(strip), np.asarray(frame)]) for frame in frames])


def shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text`, or as much of its beginning as fits into `width` pixels with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and covers most alphabets."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """`text` as lines no wider than `width` pixels, broken between words."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
