"""Which model, in how much memory, and which upscaler."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import ipywidgets as widgets

from ..errors import UserError
from ..hunyuan.files import HUNYUAN_DEFAULTS
from ..memory.choose import as_plan, ladder
from ..memory.estimate import TFLOPS, estimate
from ..memory.machine import Machine
from ..memory.plan import Plan, Size
from ..memory.rules import check
from ..model.loading import load
from ..model.models import Models
from ..settings import Settings
from ..stages.upscaling.weights import PUBLISHED, SHIPPED
from .bars import duration
from .controls import Field
from .look import aligned, heading, show_if, tip

_PLANS = [("everything on the device", "device"), ("chosen for this machine", "auto")]
_PLANS += [(f"as for a card of {gb} GB", str(gb)) for gb in (6, 8, 12, 16, 24, 40)]
_FOLDER, _FILE = "another folder …", "another file …"


class Engine:
    """Drop-downs for model, memory plan and upscaler; `.box` is what is shown.

    models: what is loaded already.  changed: called after every change.
    """

    def __init__(self, models: Models, changed: Callable[[], None]) -> None:
        self.models, self._plan = models, models.memory
        self._machine, self._changed = Machine.here(models.device), changed
        self._verdicts: dict[tuple, tuple] = {}
        self._planner: threading.Thread | None = None
        plans = [(f"as loaded: {models.memory.name}", models.memory)] if models.memory else []
        names = list(dict.fromkeys([models.name, "pocket", "hunyuan", _FOLDER]))
        self.model = _choice("model", names, "Pocket is shipped; hunyuan is the 13B model, 41 GB to download.")
        self.folder = _path("folder", "a folder in HunyuanVideo's layout")
        self.memory = _choice(
            "memory", [*plans, *_PLANS], "What is quantised, offloaded and tiled, to fit a smaller GPU."
        )
        upscalers = ["none", *SHIPPED, *PUBLISHED, _FILE]
        self.upscaler = _choice("upscaler", upscalers, "Real-ESRGAN's weights. Published files are fetched once.")
        self.upscaler.value = "pocket"
        self.file = _path("file", "a Real-ESRGAN file, .pth or .safetensors")
        self.fields = {"model": Field(self.model), "folder": Field(self.folder), "memory": Field(self.memory)}
        self.fields |= {"upscaler": Field(self.upscaler), "file": Field(self.file)}
        for name, field in self.fields.items():
            field.widget.add_class(f"t2v-{name}")
            field.widget.observe(lambda _: changed(), "value")
        self.box = widgets.VBox([heading("Model"), *(field.box for field in self.fields.values())])

    @property
    def name(self) -> str:
        """What `load` takes."""
        return self.folder.value.strip() if self.model.value == _FOLDER else self.model.value

    @property
    def upscale(self) -> str:
        """What `generate` takes."""
        return self.file.value.strip() if self.upscaler.value == _FILE else self.upscaler.value

    @property
    def is_loaded(self) -> bool:
        """Whether the model that is there is the chosen one, kept as the chosen plan says."""
        return (self.models.name, self.models.memory) == (self.name, self._plan)

    def rules(self) -> Models:
        """The loaded model; before the 13B one is loaded, what is known of it: the same classes, its defaults."""
        if self.name != "hunyuan" or self.models.name == "hunyuan":
            return self.models
        known = {"defaults": HUNYUAN_DEFAULTS, "trained_sizes": (), "vocabulary": None}
        return dataclasses.replace(self.models, name="hunyuan", source="hunyuan", **known)

    def load(self) -> Models:
        """The chosen model, loaded unless it is already. Raises UserError as `t2v_kit.load` does."""
        while self._planner is not None and self._planner.is_alive():
            self._planner.join()
        if not self.is_loaded:
            self.models = load(self.name, memory=self._plan)
        return self.models

    def check(self, settings: Settings | None) -> bool:
        """Say beside each control what is wrong; True when nothing is. settings: complete, for the memory verdict."""
        show_if(self.fields["folder"].box, self.model.value == _FOLDER)
        show_if(self.fields["file"].box, self.upscaler.value == _FILE)
        for field in self.fields.values():
            field.say("")
        wrong = {}
        if self.model.value == _FOLDER and not Path(self.name, "model_index.json").is_file():
            wrong["folder"] = f"{self.name!r}: holds no model_index.json; the folder of a model would work."
        if self.upscaler.value == _FILE and not Path(self.upscale).is_file():
            wrong["file"] = f"{self.upscale!r}: is no file; the path of a Real-ESRGAN file would work."
        for name, line in wrong.items():
            self.fields[name].say(line, "error")
        if settings is not None and not wrong:
            # The 13B model is known to the planner without its files.
            asked = (
                self.models
                if self.name == self.models.name
                else self.name
                if self.name == "hunyuan"
                else Path(self.name)
            )
            self._plan, line, kind = self._verdict(settings, asked)
            self.fields["memory"].say(line, kind)
            if kind != "error" and not self.is_loaded:
                self.fields["model"].say("Loaded when you generate.")
            return kind != "error"
        return not wrong

    def _verdict(self, settings: Settings, model: Models | str | Path) -> tuple[Plan | None, str, str]:
        """What `verdict` says. With a GPU it takes seconds: then a thread asks, and everything is checked again."""
        memory = None if self.memory.value == "device" else self.memory.value
        asked = (memory, self._machine, settings, model)
        size = (settings.height, settings.width, settings.num_frames, settings.num_inference_steps)
        key = (self.name, self.memory.value, size)
        if not self._machine.vram_gb:
            self._verdicts[key] = verdict(*asked)
        if key not in self._verdicts and (self._planner is None or not self._planner.is_alive()):

            def ask() -> None:
                self._verdicts[key] = verdict(*asked)
                self._planner = None
                self._changed()

            self._planner = threading.Thread(target=ask, daemon=True)
            self._planner.start()
        return self._verdicts.get(key, (None, "The planner is computing …", "hint"))


def verdict(
    memory: Plan | str | None, machine: Machine, settings: Settings, model: Models | str | Path
) -> tuple[Plan | None, str, str]:
    """What the planner makes of a choice on a machine: the plan, a line, and whether it is good, a hint or an error.

    memory: as `load` takes it.  settings: complete; the size decides.  model: loaded, 'hunyuan' or a folder.
    """
    if not machine.vram_gb and memory in (None, "auto"):
        if model == "hunyuan":
            return (
                None,
                "No GPU here: on a CPU the 13B model takes minutes to hours a step; pocket is made for it.",
                "hint",
            )
        return None, f"No GPU here: the CPU computes, with {machine.ram_gb:.0f} GB of RAM.", "hint"
    size = Size(settings.height, settings.width, settings.num_frames, settings.num_inference_steps)
    sizes = {"height": size.height, "width": size.width, "num_frames": size.num_frames}
    plan, gpu = None, machine.gpu if machine.gpu in TFLOPS else None
    try:
        if memory is not None:
            plan = check(as_plan(memory, model, machine, **sizes), machine, model=model)
        kept = plan or ladder(machine.capability >= (8, 0))[0]
        found = estimate(kept, size, model, **({"gpu": gpu} if gpu else {}))
    except UserError as error:
        return None, str(error), "error"
    line = f"{kept.name}: {found.vram_gb:.1f} of {machine.vram_gb:g} GB on the GPU, {found.ram_gb:.0f} GB of RAM"
    seconds = [row["seconds"] for row in found.rows]
    if gpu and None not in seconds:
        line += f", about {duration(sum(seconds))}"
    if found.fits(machine):
        return plan, f"{line}: fits.", "good"
    if memory is None:  # load() then keeps one network at a time on the GPU
        return (
            None,
            f"{line}: does not fit at once, and moving networks takes time; try 'chosen for this machine'.",
            "hint",
        )
    return plan, f"{line}: does not fit; 'chosen for this machine' finds what does.", "error"


def _choice(name: str, options: list, why: str) -> widgets.Dropdown:
    return tip(widgets.Dropdown(options=options, description=name, **aligned()), why)


def _path(name: str, placeholder: str) -> widgets.Text:
    return widgets.Text(placeholder=placeholder, description=name, continuous_update=False, **aligned())
