"""One progress bar for each stage, with the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable

import ipywidgets as widgets

from .look import show_if, soft

# The stages of `generate` in their order, and what each does: the labels' tooltips.
STAGES = {
    "load": "read the model from disk",
    "encode": "words to numbers",
    "denoise": "noise to latents",
    "decode": "latents to frames",
    "upscale": "frames to larger frames",
}


class StageBars:
    """Bars that `generate` fills when `update` is its `on_stage`. `.box` is what is shown.

    The seconds that a unit of work took are kept, so that a stage of a single unit (encoding) has an estimate from the
    second run on.

    Args:
        clock: Returns seconds, as `time.monotonic` does.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}  # seconds of a stage's unit in the last run
        self._began: dict[str, tuple[float, int]] = {}  # when a stage began, and with how many units done
        self.bars: dict[str, widgets.FloatProgress] = {}
        self.words: dict[str, widgets.HTML] = {}
        rows = []
        for name, what in STAGES.items():
            self.bars[name] = widgets.FloatProgress(0, min=0, max=1, layout={"flex": "1 1 auto", "width": "auto"})
            self.words[name] = widgets.HTML(layout={"width": "130px", "margin": "0 0 0 10px"})
            label = widgets.HTML(f'<span title="{what}">{name}</span>', layout={"width": "64px"})
            row = widgets.HBox([label, self.bars[name], self.words[name]])
            row.add_class(f"t2v-bar-{name}")
            rows.append(row)
        self._rows = dict(zip(STAGES, rows))
        self.box = widgets.VBox(rows)
        self.box.add_class("t2v-bars")
        self.reset()

    def reset(self, upscale: bool = True) -> None:
        """Empty all bars; show the last one only where frames are enlarged."""
        self._began = {}
        for name in STAGES:
            self.bars[name].value, self.bars[name].bar_style = 0.0, ""
            self.words[name].value = ""
        show_if(self._rows["upscale"], upscale)

    def update(self, name: str, done: int, total: int) -> None:
        """Show that a stage has finished `done` of its `total` units."""
        if name not in self.bars:
            return
        began, first = self._began.setdefault(name, (self._clock(), done))
        spent = self._clock() - began
        self.bars[name].value = done / total if total else 1.0
        if done >= total:
            self.bars[name].bar_style = "success"
            if total > first:
                self._last[name] = spent / (total - first)
            self.words[name].value = soft(duration(spent) if total > first else "nothing to do")
            return
        each = spent / (done - first) if done > first else self._last.get(name)
        left = f"{duration(each * (total - done))} left" if each is not None else "working …"
        self.bars[name].bar_style = "info"
        self.words[name].value = soft(f"{done}/{total} · {left}" if total > 1 else left)

    def halt(self) -> None:
        """Stopped or failed: a bar that was being filled turns orange, and no time is left to wait for."""
        for name, bar in self.bars.items():
            if bar.bar_style == "info":
                bar.bar_style = "warning"
                self.words[name].value = soft("stopped")


def duration(seconds: float) -> str:
    """Seconds as people say them: 0.4 s, 12 s, 3 min 05 s, 1 h 02 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
