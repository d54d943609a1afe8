"""Two runs compared: in step, with a wipe, as a difference, and in words and decibels."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import ipywidgets as widgets
import numpy as np

from ..errors import UserError
from ..video.arrays import even
from ..video.files import save_video
from ..video.metrics import psnr
from ..view.pictures import side_by_side, split_at
from ..view.players import animation
from .look import failure, heading, show_if, table, tip

if TYPE_CHECKING:
    from .history import Entry

GAIN = 4  # of the difference: a quarter of the range is shown at full strength
_TALL = 256  # pixels: smaller videos are enlarged to this height, so that their labels can be read


def mp4(video: np.ndarray, fps: float) -> bytes:
    """`(T, H, W, 3)` uint8 as the bytes of an H.264 file."""
    with tempfile.TemporaryDirectory() as folder:
        return save_video(Path(folder) / "video.mp4", even(video), fps).read_bytes()


def together(a: np.ndarray, b: np.ndarray, names: tuple[str, str]) -> np.ndarray:
    """Both videos in one `(T, H, W, 3)`, so that they play in step; the shorter one holds its last frame."""
    frames = max(len(a), len(b))
    videos = {name: np.concatenate([v, v[-1:].repeat(frames - len(v), 0)]) for name, v in zip(names, (a, b))}
    return side_by_side(videos, max(a.shape[1], b.shape[1], _TALL))


def difference(a: np.ndarray, b: np.ndarray, gain: float = GAIN) -> np.ndarray:
    """|a - b| times `gain`, `(T, H, W, 3)` uint8: black where two videos of one shape are the same.

    Raises:
        UserError: The shapes differ.
    """
    _check_same_shape(a, b)
    apart = np.abs(a.astype(np.int16) - b)
    return np.minimum(apart * gain, 255).astype(np.uint8)


def wiped(a: np.ndarray, b: np.ndarray, percent: int) -> np.ndarray:
    """`a` left of a white line at `percent` of the width, `b` right of it; `(T, H, W, 3)` uint8.

    Raises:
        UserError: The shapes differ.
    """
    _check_same_shape(a, b)
    return split_at(a, b, percent)


def differing(a: dict, b: dict) -> list[tuple[str, object, object]]:
    """The rows (name, value in a, value in b) in which two settings differ."""
    return [(name, a.get(name), b.get(name)) for name in a | b if a.get(name) != b.get(name)]


def _check_same_shape(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        sizes = [f"{v.shape[0]}x{v.shape[1]}x{v.shape[2]}" for v in (a, b)]
        raise UserError(f"{sizes[0]} and {sizes[1]} (frames x height x width): only videos of one size can be compared")


class Comparison:
    """Two picked runs, compared. `.box` is hidden until `show` is called."""

    VIEWS = ("In step", "Wipe", "Difference")

    def __init__(self) -> None:
        self.view = widgets.ToggleButtons(options=self.VIEWS, style={"button_width": "104px"})
        self.view.add_class("t2v-view")
        self.at = widgets.IntSlider(
            50, min=0, max=100, step=5, description="wipe", continuous_update=False, layout={"width": "100%"}
        )
        tip(self.at, "Left of the line is the first run, right of it the second.").add_class("t2v-wipe")
        self.film = widgets.Video(format="mp4", autoplay=True, loop=True, layout={"width": "100%"})
        self.film.add_class("t2v-compare-video")
        self.picture = widgets.Image(format="webp", layout={"width": "100%"})
        self.picture.add_class("t2v-compare-picture")
        self.trouble, self.words = widgets.HTML(), widgets.HTML()
        self.words.add_class("t2v-differences")
        self.view.observe(self._draw, "value")
        self.at.observe(self._draw, "value")
        screen = widgets.VBox([self.film, self.picture])
        screen.add_class("t2v-screen")
        left = widgets.VBox([self.view, self.at, screen, self.trouble], layout={"flex": "2 1 420px", "min_width": "0"})
        right = widgets.VBox([self.words], layout={"flex": "1 1 260px"})
        columns = widgets.HBox([left, right], layout={"flex_flow": "row wrap"})
        columns.add_class("t2v-columns")
        self.box = widgets.VBox([heading("Compare"), columns], layout={"margin": "14px 0 0"})
        self.box.add_class("t2v-compare")
        self.pair: tuple[Entry, Entry] | None = None
        show_if(self.box, False)

    def show(self, a: Entry | None, b: Entry | None) -> None:
        """Compare two runs of the history; None hides the comparison."""
        self.pair = (a, b) if a is not None and b is not None else None
        show_if(self.box, self.pair is not None)
        if self.pair:
            self.words.value = self._table(*self.pair)
            self._draw()

    def _table(self, a: Entry, b: Entry) -> str:
        """The settings that differ, and how far the frames are apart."""
        rows = differing(a.settings, b.settings)
        first, second = _common(a, b)
        if first.shape == second.shape:
            decibels = psnr(first, second)
            same = "the same frames" if math.isinf(decibels) else f"{decibels:.1f} dB between the two"
            if len(a.video) != len(b.video):
                same += f", over the first {len(first)} frames, which both have"
        else:
            same = "not for videos of two sizes"
        settings = table(("", a.name, b.name), [*rows, ("seconds", f"{a.seconds:.1f}", f"{b.seconds:.1f}")])
        return f'{settings}<p class="t2v-psnr"><b>PSNR</b> {same}</p>' + ("" if rows else "<p>No setting differs.</p>")

    def _draw(self, _=None) -> None:
        if self.pair is None:
            return
        a, b = self.pair
        show_if(self.at, self.view.value == "Wipe")
        show_if(self.picture, self.view.value == "Wipe")
        show_if(self.film, self.view.value != "Wipe")
        self.trouble.value = ""
        try:
            if self.view.value == "In step":
                self.film.value = mp4(together(a.video, b.video, (a.name, b.name)), a.fps)
            elif self.view.value == "Difference":
                self.film.value = mp4(difference(*_common(a, b)), a.fps)
            else:
                self.picture.value = animation(wiped(*_common(a, b), self.at.value), a.fps, width=640)
        except UserError as error:
            show_if(self.film, False)
            show_if(self.picture, False)
            self.trouble.value = failure(str(error))


def _common(a: Entry, b: Entry) -> tuple[np.ndarray, np.ndarray]:
    """The frames that both runs have: of 33 and 17, the first 17."""
    frames = min(len(a.video), len(b.video))
    return a.video[:frames], b.video[:frames]
