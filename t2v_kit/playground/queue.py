"""Runs that wait for their turn. Each is a folder with its settings, so that a restart of the kernel loses none."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ipywidgets as widgets

from ..atomic import write_whole
from .look import button, heading, note, show_if, soft

#: In the folder of a run that waits. It goes when the run ends; with settings.json beside it, the run has begun.
QUEUED = "queued.json"


@dataclass(frozen=True, eq=False)
class Waiting:
    """A run that waits.

    Attributes:
        folder: Where its files will be.
        settings: The keywords of `generate`, with the model's name, its LoRAs, and the memory plan as a dict.
    """

    folder: Path
    settings: dict


class Queue:
    """The runs that wait, in their order. `.box` is what is shown.

    Args:
        out: The folder whose subfolders are the runs; those that wait in it already are taken over.
        add: Called as add(prompts, seeds) by the button: an empty list stands for the prompt on the panel.
        run: Called by the button that starts the first one.

    Attributes:
        waiting: The runs, next one first.
        failed: A line for each run that failed.
    """

    def __init__(self, out: Path, add: Callable[[list[str], int], object], run: Callable[[], object]) -> None:
        self.waiting, self.failed = _found(out), list[str]()
        self._guard = threading.RLock()  # the thread of a run takes the next one while somebody reorders
        self.prompts = widgets.Textarea(
            placeholder="More prompts, one on each line. Empty: the prompt above.", rows=3, layout={"width": "auto"}
        )
        self.prompts.add_class("t2v-queue-prompts")
        self.seeds = widgets.BoundedIntText(1, min=1, max=100, description="seeds each", layout={"width": "160px"})
        self.add_button = button("Add to queue", "t2v-queue-add", "Wait in line with these settings.", icon="plus")
        self.add_button.on_click(lambda _: add(_lines(self.prompts.value), self.seeds.value))
        self.run_button = button("Run queue", "t2v-queue-run", "Make these videos, one after the other.", icon="play")
        self.run_button.on_click(lambda _: run())
        self.words = widgets.HTML()
        self.rows = widgets.VBox([])
        self.rows.add_class("t2v-queue-rows")
        buttons = widgets.HBox([self.seeds, self.add_button, self.run_button], layout={"flex_flow": "row wrap"})
        self.box = widgets.VBox([heading("Queue"), self.prompts, buttons, self.words, self.rows])
        self.box.add_class("t2v-queue")
        self._draw()

    def add(self, folder: Path, settings: dict) -> None:
        """Put a run at the end of the line.

        Args:
            folder: Where its files will be; made here.
            settings: As `Waiting` has them.

        Raises:
            OSError: The folder cannot be written to.
        """
        with self._guard:
            folder.mkdir(parents=True)
            self.waiting.append(Waiting(folder, settings))
            self._keep()

    def move(self, item: Waiting, by: int) -> None:
        """Let a run change places with one before it (by=-1) or after it (1); at the ends this does nothing."""
        with self._guard:
            if item in self.waiting:
                here = self.waiting.index(item)
                there = min(max(here + by, 0), len(self.waiting) - 1)
                self.waiting[here], self.waiting[there] = self.waiting[there], item
                self._keep()

    def remove(self, item: Waiting) -> None:
        """Take a run out of the line, and its folder away."""
        with self._guard:
            if item in self.waiting:
                self.waiting.remove(item)
                forget(item.folder)
                self._draw()

    def take(self) -> Waiting | None:
        """The next run, which leaves the line; None when nobody waits."""
        with self._guard:
            item = self.waiting.pop(0) if self.waiting else None
            self._draw()
            return item

    def say(self, text: str, kind: str = "hint") -> None:
        """Show one line, 'error' or 'hint', and below it what has failed."""
        self.words.value = note(text, kind) + "".join(note(line, "error") for line in self.failed)

    def free(self, ready: bool, running: bool) -> None:
        """Enable the buttons that make sense: `ready`, when the panel's settings are right; `running`, during a run."""
        self.add_button.disabled = not ready
        self.run_button.disabled = running or not self.waiting

    def _keep(self) -> None:
        """Write down every run with its place in the line."""
        for place, item in enumerate(self.waiting):
            text = json.dumps({"place": place, "settings": item.settings}, ensure_ascii=False, indent=1)
            with write_whole(item.folder / QUEUED) as temporary:
                temporary.write_text(text, "utf-8")
        self._draw()

    def _draw(self) -> None:
        self.rows.children = [self._row(item) for item in self.waiting]
        show_if(self.run_button, bool(self.waiting))

    def _row(self, item: Waiting) -> widgets.HBox:
        known = item.settings
        size = f"{known['num_frames']}x{known['height']}x{known['width']}, {known['num_inference_steps']} steps"
        text = widgets.HTML(soft(f"{known['prompt']} · {size}, seed {known['seed']}"), layout={"flex": "1 1 0"})
        up = button("", "t2v-queue-up", "Earlier.", "34px", icon="arrow-up")
        down = button("", "t2v-queue-down", "Later.", "34px", icon="arrow-down")
        out = button("", "t2v-queue-remove", "Take it out of the queue.", "34px", icon="times")
        up.on_click(lambda _: self.move(item, -1))
        down.on_click(lambda _: self.move(item, 1))
        out.on_click(lambda _: self.remove(item))
        return widgets.HBox([text, up, down, out])


def forget(folder: Path) -> None:
    """The run in `folder` waits no longer; a folder with nothing else in it goes."""
    (folder / QUEUED).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()  # only where it is empty


def _lines(text: str) -> list[str]:
    """The lines of a text that are not blank."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _found(out: Path) -> list[Waiting]:
    """The runs that wait under `out`, in their order; what cannot be read is left alone."""
    found = []
    for file in out.glob(f"*/{QUEUED}"):
        if (file.parent / "settings.json").exists():
            continue
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
            content = json.loads(file.read_text("utf-8"))
            found.append((content["place"], file.parent.name, Waiting(file.parent, dict(content["settings"]))))
    return [item for *_, item in sorted(found, key=lambda each: each[:2])]
