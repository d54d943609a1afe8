"""The screen: the preview, then the video, then the enlarged video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import ipywidgets as widgets

from .look import note, show_if, soft

if TYPE_CHECKING:
    from .history import Entry

_LARGEST = 48 * 2**20  # bytes of a file that is sent to the browser; a 4x enlarged 720p film can have more
_EMPTY = '<div class="t2v-empty">The video will form here.</div>'


class Screen:
    """One picture or player at a time, and buttons that choose which. `.box` is what is shown.

    Attributes:
        entry: The finished run that is shown; None while one is in progress.
    """

    def __init__(self) -> None:
        self.entry: Entry | None = None
        self._files: dict[str, Path] = {}
        self.image = widgets.Image(format="webp", layout={"width": "100%"})
        self.image.add_class("t2v-preview")
        self.video = widgets.Video(format="mp4", autoplay=True, loop=True, layout={"width": "100%"})
        self.video.add_class("t2v-video")
        self.empty = widgets.HTML(_EMPTY, layout={"margin": "110px auto"})
        self.choice = widgets.ToggleButtons(options=["Preview"], style={"button_width": "92px"})
        self.choice.add_class("t2v-choice")
        self.caption = widgets.HTML()
        self.caption.add_class("t2v-caption")
        frame = widgets.VBox([self.empty, self.image, self.video])
        frame.add_class("t2v-screen")
        foot = widgets.HBox(
            [self.choice, self.caption], layout={"justify_content": "space-between", "flex_flow": "row wrap"}
        )
        self.box = widgets.VBox([frame, foot])
        self.choice.observe(self._draw, "value")
        self.clear()

    def clear(self) -> None:
        """Empty the screen for another run."""
        self.entry, self._files = None, {}
        self.image.value, self.caption.value = b"", ""
        self.choice.options = ["Preview"]
        self._draw()

    def halt(self) -> None:
        """The run was stopped or failed: the caption no longer speaks of work in progress."""
        if self.entry is None and self.caption.value:
            self.caption.value = soft("stopped")

    def preview(self, picture: bytes, caption: str) -> None:
        """Show the latents as they form: an animated WebP."""
        self.image.value, self.caption.value = picture, soft(caption)
        if self.empty.layout.display != "none":
            self._draw()

    def play(self, files: dict[str, Path], caption: str, entry: Entry | None = None) -> None:
        """Play the last of the MP4 files; the buttons lead to the others."""
        self.entry, self._files = entry, files
        names = [*(["Preview"] if self.image.value else []), *files]
        self.caption.value = soft(caption)
        self.choice.unobserve(self._draw, "value")  # new options jump to the first of them
        self.choice.options = names
        self.choice.value = names[-1]
        self.choice.observe(self._draw, "value")
        self._draw()

    def _draw(self, _=None) -> None:
        path = self._files.get(str(self.choice.value))
        if path is not None:
            if path.stat().st_size > _LARGEST:
                self.caption.value = note(
                    f"{path} is too large to be shown here ({path.stat().st_size / 2**20:.0f} MB)."
                )
            else:
                self.video.value = path.read_bytes()
        show_if(self.video, path is not None)
        show_if(self.image, path is None and bool(self.image.value))
        show_if(self.empty, path is None and not self.image.value)
        show_if(self.choice, len(self.choice.options) > 1)
