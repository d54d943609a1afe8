"""The strip of this session's runs: show one again, or pick two to compare."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ipywidgets as widgets
import numpy as np
from PIL import Image

from ..settings import KNOBS
from .look import button, show_if, soft, tip

if TYPE_CHECKING:
    from ..run.generating import Run

_THUMB = 200  # pixels


@dataclass(frozen=True, eq=False)
class Entry:
    """A finished run as the panel keeps it: its frames in memory, the enlarged ones only on disk.

    Attributes:
        number: 1 for the session's first run.
        video: (T, H, W, 3) uint8.
        settings: The keywords of `generate`.
        seconds: Of all stages together.
        folder: Where its files are.
    """

    number: int
    video: np.ndarray
    settings: dict
    seconds: float
    folder: Path

    @classmethod
    def of(cls, number: int, run: Run) -> Entry:
        """The entry of a run that was written to a folder."""
        assert run.folder is not None
        return cls(number, run.video, run.record["settings"], sum(run.seconds.values()), run.folder)

    @property
    def name(self) -> str:
        return f"run {self.number}"

    @property
    def fps(self) -> float:
        return self.settings["fps"]

    @property
    def files(self) -> dict[str, Path]:
        """The MP4 files by their names on the buttons: 'Video' and, where there is one, 'Enlarged'."""
        named = {"Video": self.folder / "video.mp4", "Enlarged": self.folder / "upscaled.mp4"}
        return {name: path for name, path in named.items() if path.exists()}


class History:
    """Cards of the runs, newest first. `.box` is what is shown.

    Args:
        show: Called with the Entry to show.
        use: Called with the settings to put back into the controls.
        compare: Called with two Entries, or with None twice when fewer than two are picked.
    """

    def __init__(
        self,
        show: Callable[[Entry], object],
        use: Callable[..., object],
        compare: Callable[[Entry | None, Entry | None], object],
    ) -> None:
        self._show, self._use, self._compare = show, use, compare
        self.entries: list[Entry] = []
        self.picked: list[Entry] = []
        self.toggles: list[widgets.ToggleButton] = []
        self.strip = widgets.HBox([], layout={"overflow": "auto", "align_items": "stretch", "padding": "2px"})
        self.box = widgets.VBox(
            [widgets.HTML("<h4>This session's runs</h4>"), self.strip], layout={"margin": "14px 0 0"}
        )
        self.box.add_class("t2v-history")
        show_if(self.box, False)

    def add(self, run: Run) -> Entry:
        """Add a card for a finished run."""
        entry = Entry.of(len(self.entries) + 1, run)
        self.entries.append(entry)
        self.strip.children = (self._card(entry), *self.strip.children)
        show_if(self.box, True)
        return entry

    def _card(self, entry: Entry) -> widgets.VBox:
        known = entry.settings
        picture = widgets.Image(
            value=_thumb(entry.video), format="jpeg", layout={"width": f"{_THUMB}px", "margin": "0"}
        )
        size = f"{known['num_frames']}x{known['height']}x{known['width']}"
        lines = (known["prompt"], f"{size}, {known['num_inference_steps']} steps", f"seed {known['seed']}")
        text = widgets.HTML(f"<b>{entry.name}</b>" + "".join(soft(line) for line in lines))
        look = button("Show", "t2v-show", f"Look at {entry.name} again.", "70px")
        look.on_click(lambda _: self._show(entry))
        back = button("", "t2v-use", "Put these settings back into the controls.", "36px", icon="sliders")
        back.on_click(lambda _: self._use(**{name: known[name] for name in KNOBS}))
        toggle = widgets.ToggleButton(False, description="Compare", layout={"width": "80px"})
        tip(toggle, "Pick two runs to compare them.").add_class("t2v-pick")
        toggle.observe(lambda change: self._pick(entry, change["new"]), "value")
        self.toggles.append(toggle)
        card = widgets.VBox(
            [picture, text, widgets.HBox([look, toggle, back])], layout={"flex": "0 0 auto", "margin": "0 10px 0 0"}
        )
        card.add_class("t2v-card")
        return card

    def _pick(self, entry: Entry, wanted: bool) -> None:
        """At most two are picked: a third takes the place of the one picked first."""
        self.picked = [each for each in self.picked if each is not entry] + ([entry] if wanted else [])
        if len(self.picked) > 2:
            self.toggles[self.picked[0].number - 1].value = False  # calls `_pick` again, which removes it
        else:
            pair = sorted(self.picked, key=lambda each: each.number)
            self._compare(*(pair if len(pair) == 2 else (None, None)))  # type: ignore[misc]


def _thumb(video: np.ndarray) -> bytes:
    """The middle frame as a JPEG of twice the card's width, for sharp screens."""
    picture, file = Image.fromarray(video[len(video) // 2]), io.BytesIO()
    picture.resize((2 * _THUMB, round(2 * _THUMB * picture.height / picture.width))).save(file, "JPEG", quality=85)
    return file.getvalue()
