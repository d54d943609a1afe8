"""The observers of a running run: bars, seconds and peak memory of each stage, callbacks, and stopping."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from ..stages.denoising import Step
    from .folder import RunFolder

UNITS = {"denoise": "step", "decode": "tile", "upscale": "frame"}  # what a stage's bar counts
_LOOK = 0.01  # seconds between two looks at the process's memory


class Stopped(Exception):
    """Raised by `generate` and `resume` when `stop` returned True.

    Attributes:
        stage: The stage that was stopped.
        done, total: Its finished units (steps, tiles or frames), and how many it has.
        folder: What `resume` takes to continue behind the last finished step; None when nothing was written.
    """

    def __init__(self, stage: str, done: int, total: int, folder: Path | None):
        remedy = f"resume({str(folder)!r}) continues" if folder else "without an out folder nothing was kept"
        super().__init__(f"stopped in {stage} after {done} of {total}; {remedy}.")
        self.stage, self.done, self.total, self.folder = stage, done, total, folder


class Progress:
    """The watchers of one run. seconds, memory: by stage, the latter the peak in GiB."""

    def __init__(
        self,
        folder: RunFolder,
        on_step: Callable[[Step], object] | None = None,
        on_stage: Callable[[str, int, int], object] | None = None,
        stop: Callable[[], bool] | None = None,
        bars: bool = True,
    ):
        self.folder, self.on_step, self.on_stage, self.stop, self.bars = folder, on_step, on_stage, stop, bars
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, float] = {}
        self.device = torch.device("cpu")

    @contextlib.contextmanager
    def stage(self, name: str, total: int = 1, done: int = 0, note: str = "", **bar):
        """One stage of `total` units (`UNITS`), `done` of which were reused: yields a function to call after each unit.

        That function takes the denoising Step, where there is one, calls `on_step` and `on_stage`, and raises Stopped
        when `stop` returns True; so does the start of a stage, once the run's folder is started.
        """
        bar = {"disable": not self.bars, "unit": UNITS.get(name, "it"), **bar}
        with tqdm(total=total, initial=done, desc=f"{name:7}", **bar) as shown, self._measured(name):
            if note:
                shown.set_postfix_str(note)
            self._report(name, done, total)

            def tick(step: Step | None = None, note: str = "") -> None:
                nonlocal done
                done += 1
                if note:
                    shown.set_postfix_str(note)
                shown.update()
                if step is not None and self.on_step is not None:
                    self.on_step(step)
                self._report(name, done, total)

            yield tick

    def _report(self, name: str, done: int, total: int) -> None:
        if self.on_stage is not None:
            self.on_stage(name, done, total)
        if self.folder.started and done < total and self.stop is not None and self.stop():
            self.folder.log(event="stopped", stage=name, step=done)
            raise Stopped(name, done, total, self.folder.path)

    @contextlib.contextmanager
    def _measured(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        with _peak_memory(self.device) as peak:
            yield
        self.seconds[name] = time.perf_counter() - began
        self.memory[name] = peak[0] / 2**30
        self.folder.log(stage=name, seconds=round(self.seconds[name], 4), peak_gib=round(self.memory[name], 3))


@contextlib.contextmanager
def _peak_memory(device: torch.device) -> Iterator[list[int]]:
    """A list whose one number becomes the peak in bytes: of the GPU's tensors, else of the resident process."""
    peak = [0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak[0] = torch.cuda.max_memory_allocated(device)
        return
    process, over = psutil.Process(), threading.Event()

    def look() -> None:
        peak[0] = max(peak[0], process.memory_info().rss)

    def keep_looking() -> None:
        while not over.wait(_LOOK):
            look()

    look()
    watcher = threading.Thread(target=keep_looking, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join(10)  # it sleeps no longer than _LOOK
        look()
