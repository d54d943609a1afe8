"""The panel itself: its layout, and the thread in which a run happens."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from ..errors import UserError, check_whole
from ..memory.choose import as_plan
from ..memory.plan import Plan
from ..model.check import resolve
from ..model.loading import load
from ..model.models import Models
from ..run.generating import Run, generate, resume
from ..run.progress import Stopped
from ..run.recipe import reproducing
from ..run.target import CHECKPOINT, read_record
from ..settings import KNOBS, Settings
from .bars import StageBars
from .compare import Comparison
from .controls import Controls
from .engine import Engine
from .history import Entry, History
from .look import STYLE, button, failure, note, show_if
from .preview import Preview
from .queue import Queue, forget
from .screen import Screen

if TYPE_CHECKING:
    from ..stages.denoising import Step


class Playground(widgets.VBox):
    """The panel: `Playground(models)` as the last line of a cell shows it.

    Each button has a method, so that the panel can be used from code as well. A run happens in a thread: the controls
    check against `Rules`, which share nothing with the model that the run uses, and each run keeps the choices with
    which it began.

    Args:
        models: A loaded model, or a name that `load` takes. Drop your own reference to a large model before you load
            another one in the panel, or both stay in memory.
        out: The folder in which every run gets a folder of its own.

    Attributes:
        controls: The settings; `controls.set(seed=3)` moves them.
        engine: Model, LoRAs, memory plan and upscaler.
        history: The finished runs, in `history.entries`.
        queue: The runs that wait, in `queue.waiting`.
        unfinished: The folder that `resume` would continue, or None.
        preview: The previews, whose `share` is their part of the denoising time; None before the first run.

    Raises:
        UserError: As `load` says.
    """

    def __init__(self, models: Models | str = "pocket", out: str | Path = "runs/playground") -> None:
        models = models if isinstance(models, Models) else load(models)
        self.out, self.running = Path(out).expanduser().absolute(), False
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._stage = ""
        self.preview: Preview | None = None
        self.engine = Engine(models, self._check)
        self.controls = Controls(self.engine.rules, self._check)
        self.bars, self.screen, self.comparison = StageBars(), Screen(), Comparison()
        self.history = History(self.show, self.controls.set, self.comparison.show)
        self.queue = Queue(self.out, self._enqueue, self.run_queue)
        self._buttons()
        super().__init__(self._layout())
        self.add_class("t2v")
        self.unfinished = _unfinished(self.out)
        if self.unfinished:
            self._say(note(f"{_short(self.unfinished)} was not finished; Resume continues it."))
        self._free()

    def generate(self) -> None:
        """Begin a run with the settings of the panel. While a run is in progress this does nothing; when a setting is
        wrong, the panel says which."""
        with self.controls.guard:
            if self.running:
                return
            self.controls.roll()
            choice = self.engine.choice if self._check() else None
            if choice is None:
                self._say(note("A setting needs another value; the line under it says which would work.", "error"))
                return
            settings = self.controls.values() | {"upscale": self.engine.upscale}
            folder, loras = self._new_folder(), self.engine.loras.value
            every = self.controls.checkpoint_every.value

            def make(**watchers) -> Run:
                models = self._load({"name": choice.name, "loras": loras}, self.engine.plan(choice))
                return generate(**settings, model=models, out=folder, checkpoint_every=every, **watchers)

            self._begin(make, folder, settings)

    def resume(self, folder: str | Path | None = None) -> None:
        """Continue the run that was stopped or failed, or the one in `folder`, with the model it was begun with.

        Args:
            folder: A run's folder; None for the run that `unfinished` names. Without one this does nothing.

        Raises:
            UserError: `folder` holds no run.
        """
        with self.controls.guard:
            folder = self.unfinished if folder is None else Path(folder).expanduser().absolute()
            if folder is None or self.running:
                return
            record = read_record(folder)
            settings, plan = record["settings"], record["settings"].get("memory")
            files = record["made_with"].get("loaded_by", {"name": settings["model"]})

            def make(**watchers) -> Run:
                models = self._load(files, None if plan is None else as_plan(plan))
                return resume(folder, model=models, **watchers)

            self._begin(make, folder, settings)

    def enqueue(self, prompts: Sequence[str] = (), seeds: int = 1) -> None:
        """Let runs with the panel's settings wait in the queue. After a run that ends well or fails, the next begins.

        Args:
            prompts: One run for each; none stands for the prompt on the panel.
            seeds: As many runs of each, with the panel's seed and those that follow it.

        Raises:
            UserError: A setting or a prompt is wrong, or the plan does not fit. Nothing is queued then.
        """
        with self.controls.guard:
            choice, values = self.engine.choice if self._check() else None, self.controls.values()
            if choice is None:
                raise UserError("a setting on the panel needs another value; the line under it says which would work.")
            plan = self.engine.plan(choice)
            values |= {"upscale": self.engine.upscale, "model": choice.name, "memory": plan and plan.as_dict()}
            values["loras"] = self.engine.loras.value
            wanted = [
                values | {"prompt": prompt, "seed": values["seed"] + number}
                for prompt in prompts or [values["prompt"]]
                for number in range(check_whole("seeds", seeds, 1, works=1))
            ]
            for each in wanted:
                resolve(Settings(**{name: each[name] for name in KNOBS}), self.engine.chosen_rules)  # type: ignore
            for each in wanted:
                self.queue.add(self._new_folder(), each)
            self._free()

    def run_queue(self) -> None:
        """Begin the run that waits first. While a run is in progress, or when none waits, this does nothing."""
        with self.controls.guard:
            item = None if self.running else self.queue.take()
            if item is None:
                return
            settings, every = dict(item.settings), self.controls.checkpoint_every.value
            files, plan = {"name": settings.pop("model"), "loras": settings.pop("loras", [])}, settings.pop("memory")

            def make(**watchers) -> Run:
                try:
                    models = self._load(files, None if plan is None else as_plan(plan))
                    return generate(**settings, model=models, out=item.folder, checkpoint_every=every, **watchers)
                except Exception as error:
                    if not isinstance(error, Stopped):
                        self.queue.failed.append(f"{settings['prompt']}: {error}")
                    raise
                finally:
                    forget(item.folder)

            self._begin(make, item.folder, settings, queued=True)

    def stop(self) -> None:
        """Stop after the step, tile or frame that is being made; `resume` continues from there."""
        if self.running:
            self._stop.set()
            self.stop_button.disabled = True
            whole = f"Stopping when the stage '{self._stage}' is done; it cannot be interrupted …"
            unit = {"denoise": "step", "decode": "tile", "upscale": "frame"}.get(self._stage)
            self._say(note(f"Stopping after this {unit} …" if unit else whole))

    def wait(self, timeout: float | None = None) -> None:
        """Wait until no run is in progress and, once the queue runs, until none waits.

        Args:
            timeout: Seconds to wait at most; None waits as long as it takes.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while (thread := self._thread) is not None and thread.is_alive():
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
            if until is not None and time.monotonic() >= until:
                return

    def show(self, entry: Entry) -> None:
        """Put a run of the history on the screen.

        Args:
            entry: One of `history.entries`.
        """
        self.screen.play(entry.files, f"{entry.name}: {entry.settings['prompt']}", entry)
        self._show_code()

    def code(self) -> str:
        """Write the Python that makes the same video.

        Returns:
            A call of `generate` for the run on the screen, or for the panel's settings when the screen is empty.
        """
        if self.screen.entry is not None:
            return reproducing(self.screen.entry.settings)
        own = {"model": self.engine.name, "upscale": self.engine.upscale, "loras": self.engine.loras.value or None}
        return reproducing(self.controls.values() | own)

    def _buttons(self) -> None:
        primary = {"button_style": "primary", "icon": "play"}
        self.generate_button = button("Generate", "t2v-generate", "Make this video.", "124px", **primary)
        stop, go_on = "Stop within one step; the run can be resumed.", "Continue after the last finished step."
        self.stop_button = button("Stop", "t2v-stop", stop, "88px", icon="stop")
        self.resume_button = button("Resume", "t2v-resume", go_on, "104px", icon="forward")
        self.generate_button.on_click(lambda _: self.generate())
        self.stop_button.on_click(lambda _: self.stop())
        self.resume_button.on_click(lambda _: self.resume())
        self.code_button = widgets.ToggleButton(False, description="Show code", icon="code", layout={"width": "120px"})
        self.code_button.add_class("t2v-show-code")
        self.code_button.observe(self._show_code, "value")
        self.code_text = widgets.Textarea(rows=17, layout={"width": "100%"})
        self.code_text.add_class("t2v-code")
        self.status = widgets.HTML(layout={"margin": "8px 0"})
        self.status.add_class("t2v-status")
        self._show_code()

    def _layout(self) -> list[widgets.Widget]:
        buttons = [self.generate_button, self.stop_button, self.resume_button, self.code_button]
        row = widgets.HBox(buttons, layout={"flex_flow": "row wrap", "margin": "10px 0 0"})
        self.controls.slot.children = [row, self.status]
        knobs = widgets.VBox([self.controls.knobs, self.engine.box])
        side = widgets.VBox(
            [self.controls.ask, knobs], layout={"flex": "1 1 340px", "min_width": "0", "max_width": "430px"}
        )
        film = widgets.VBox([self.screen.box, self.code_text, self.bars.box])
        more = widgets.VBox([self.queue.box, self.history.box])
        stage = widgets.VBox([film, more], layout={"flex": "1 1 460px", "min_width": "0"})
        # In a narrow window the style sheet takes the columns apart, and puts what is shown between prompt and knobs.
        boxes = {"side": side, "ask": self.controls.ask, "knobs": knobs, "stage": stage, "film": film, "more": more}
        for name, box in boxes.items():
            box.add_class(f"t2v-{name}")
        columns = widgets.HBox([side, stage], layout={"flex_flow": "row wrap"})
        columns.add_class("t2v-columns")
        return [widgets.HTML(STYLE), columns, self.comparison.box]

    def _check(self) -> bool:
        """Check all settings, and show what is wrong where it is. True when a run could begin."""
        with self.controls.guard:
            rules = self.engine.chosen_rules
            if rules.name != self.controls.rules.name:
                self.controls.adopt(rules)
            settings = self.controls.check()
            ready = self.engine.check(settings) and settings is not None
            self.generate_button.disabled = self.running or not ready
            self.queue.free(ready, self.running)
            return ready

    def _enqueue(self, prompts: list[str], seeds: int) -> None:
        """`enqueue` for the button: what is wrong is said beside it."""
        try:
            self.enqueue(prompts, seeds)
        except (UserError, OSError) as error:
            self.queue.say(str(error), "error")
        else:
            self.queue.prompts.value = ""
            self.queue.say("" if self.running else "Run queue begins with the first.")

    def _new_folder(self) -> Path:
        """A folder for one run, that no other run has."""
        folder = self.out / datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
        while folder.exists():
            folder = folder.with_name(f"{folder.name}-")
        return folder

    def _begin(self, make: Callable[..., Run], folder: Path, settings: dict, queued: bool = False) -> None:
        """Start `make` in a thread: the notebook and this panel stay alive."""
        self._stop.clear()
        if queued:
            self.queue.say(
                f"{len(self.queue.waiting)} more to come." if self.queue.waiting else "This is the last one."
            )
        self.running, self.unfinished, self._folder, self._making = True, None, folder, settings
        self.bars.reset(upscale=settings["upscale"] != "none")
        self.screen.clear()
        self._say(note("Working …"))
        self._free()
        self._thread = threading.Thread(target=self._work, args=(make,), daemon=True)
        self._thread.start()

    def _work(self, make: Callable[..., Run]) -> None:
        """The thread's work. However it ends, the panel is ready for the next run; the queue goes on unless stopped."""
        try:
            run = make(on_step=self._on_step, on_stage=self._on_stage, stop=self._stop.is_set, progress=False)
            self._finished(run)
        except Stopped as stopped:
            self._ended(note(f"Stopped in {stopped.stage} after {stopped.done} of {stopped.total}."))
        except UserError as error:
            self._ended(failure(str(error)))
        except Exception as error:  # whatever it was, the person at the panel has to see it
            line = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            self._ended(failure(line, traceback.format_exc()))
        finally:
            with self.controls.guard:
                self.running = False
                self._free()
                if not self._stop.is_set():
                    self.run_queue()

    def _load(self, files: dict[str, Any], plan: Plan | None) -> Models:
        """The model of a run, and the map for its previews. Another model is let go of first."""
        self._stage = "load"
        self.bars.update("load", 0, 1)
        if not self.engine.holds(files, plan):
            self.preview = None
        models = self.engine.load(files, plan)
        self.preview = self.preview or Preview(models)
        self.preview.begin()
        self.bars.update("load", 1, 1)
        return models

    def _on_step(self, step: Step) -> None:
        seconds = self._making["num_frames"] / self._making["fps"]
        began = time.perf_counter()
        assert self.preview is not None
        picture = self.preview.draw(step, seconds, noisy=self.controls.noisy.value)
        if picture is not None:
            cost = f"previews take {self.preview.share:.1%} of the time"
            self.screen.preview(picture, f"step {step.index + 1}, noise level {step.sigma:.2f} · {cost}")
            self.preview.count(time.perf_counter() - began)

    def _on_stage(self, name: str, done: int, total: int) -> None:
        if name == "load":
            return  # `_load` shows it
        self._stage = name
        self.bars.update(name, done, total)
        if name == "upscale" and done == 0:
            self.screen.play({"Video": self._folder / "video.mp4"}, "being enlarged …")

    def _finished(self, run: Run) -> None:
        entry = self.history.add(run)
        self.show(entry)
        if run.reused is None:
            reused = ""
        elif run.reused.absolute() == self._folder:
            reused = " Resumed from its own latents."
        else:
            reused = f" Latents reused from {_short(run.reused)}."
        self._say(note(f"Done in {entry.seconds:.1f} s: {_short(entry.folder)}.{reused}", "good"))

    def _ended(self, line: str) -> None:
        """Stopped or failed: say it, and offer to resume where something was saved."""
        self.bars.halt()
        self.screen.halt()
        self.unfinished = self._folder if _can_resume(self._folder) else None
        self._say(line)

    def _free(self) -> None:
        """Enable and show the buttons that make sense now."""
        self._check()
        self.stop_button.disabled = not self.running
        show_if(self.resume_button, not self.running and self.unfinished is not None)

    def _say(self, line: str) -> None:
        self.status.value = line

    def _show_code(self, _=None) -> None:
        show_if(self.code_text, self.code_button.value)
        if self.code_button.value:
            self.code_text.value = self.code()


def _short(folder: Path) -> Path:
    """A folder as seen from the working directory, where it lies below it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _can_resume(folder: Path) -> bool:
    """Whether something of a run is saved and not all of it."""
    saved = any((folder / name).exists() for name in (CHECKPOINT, "latents.safetensors"))
    return saved and not (folder / "contact_sheet.png").exists()


def _unfinished(out: Path) -> Path | None:
    """The newest run under `out` that can be resumed, after a crash or a restart of the kernel."""
    return max(filter(_can_resume, out.glob("*/")), key=lambda folder: folder.name, default=None)
