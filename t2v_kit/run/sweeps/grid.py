"""A labelled grid of films: rows and columns named after what was varied."""

from __future__ import annotations

import itertools

import numpy as np
from PIL import Image, ImageDraw

from ...view.pictures import font, wrap

_SMALLEST = 176  # pixels: narrower films are enlarged by repeating their pixels, so that labels fit above them
_MARGIN, _GAP, _LINE = 150, 10, 19  # pixels: the column of row labels, between films, a line of text
_LINES = 4  # of a label; a longer one is cut


def grid(axes: dict[str, list], videos: list[np.ndarray]) -> np.ndarray:
    """Films `(T, H, W, 3)` uint8 as one, `(T, H', W', 3)`, on white; H' and W' are even, as MP4 wants them.

    axes: {name: values}; videos: one for each combination, the last axis fastest, which runs along a row. Films
    of other sizes stand in the middle of their place; a shorter one holds its last frame.
    """
    names = list(axes)
    columns = len(axes[names[-1]]) if names else 1
    heads = [_label(names[-1], value) for value in axes[names[-1]]] if names else []
    sides = [
        ", ".join(map(_label, names[:-1], combination)) for combination in itertools.product(*list(axes.values())[:-1])
    ]
    videos = [_enlarged(video) for video in videos]
    height, width = (max(video.shape[side] for video in videos) for side in (1, 2))
    margin = _MARGIN if len(names) > 1 else _GAP
    heads = [wrap(head, font(14), width)[:_LINES] for head in heads]
    top = _GAP + _LINE * max(map(len, heads), default=0)
    corners = [
        (top + row * (height + _GAP), margin + column * (width + _GAP))
        for row in range(len(videos) // columns)
        for column in range(columns)
    ]
    sheet = Image.new("RGB", (margin + columns * (width + _GAP), corners[-1][0] + height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for (_, x), lines in zip(corners, heads):
        draw.multiline_text((x, 6), "\n".join(lines), fill=(32, 32, 32), font=font(14))
    for (y, _), side in zip(corners[::columns], sides if len(names) > 1 else ()):
        lines = wrap(side, font(14), margin - 2 * _GAP)[: max(1, height // _LINE)]
        draw.multiline_text((_GAP, y), "\n".join(lines), fill=(32, 32, 32), font=font(14))
    paper = np.asarray(sheet)
    paper = np.pad(paper, ((0, paper.shape[0] % 2), (0, paper.shape[1] % 2), (0, 0)), constant_values=255)
    film = np.repeat(paper[None], max(map(len, videos)), axis=0)
    for (y, x), video in zip(corners, videos):
        y, x = y + (height - video.shape[1]) // 2, x + (width - video.shape[2]) // 2
        film[:, y : y + video.shape[1], x : x + video.shape[2]] = video[np.arange(len(film)).clip(max=len(video) - 1)]
    return film


def _enlarged(video: np.ndarray) -> np.ndarray:
    times = -(-_SMALLEST // video.shape[2])
    return video.repeat(times, axis=1).repeat(times, axis=2) if times > 1 else video


def _label(name: str, value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if name == "prompt" else f"{name} {text}"
