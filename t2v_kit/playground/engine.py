"""Which model, with which LoRAs, in how much memory, and which upscaler."""

from __future__ import annotations

import dataclasses
import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import torch

from ..errors import UserError
from ..hunyuan.files import HUNYUAN_DEFAULTS
from ..hunyuan.lora_arguments import parse_loras
from ..hunyuan.names import GIGABYTES, HUB_ID
from ..memory.choose import as_plan, ladder
from ..memory.estimate import TFLOPS, estimate
from ..memory.machine import Machine
from ..memory.plan import Plan, Size
from ..memory.rules import check
from ..model.loading import load
from ..model.models import Models
from ..run.upscalers import AUTO, NONE
from ..settings import Settings
from ..stages.upscaling.names import LANCZOS, PUBLISHED, SHIPPED
from .bars import duration
from .controls import Field
from .look import aligned, heading, show_if, tip
from .loras import LoraRows
from .rules import Rules

_CARDS = (6, 8, 12, 16, 24, 40)  # GB
_FOLDER, _FILE = "another folder …", "another file …"


@dataclasses.dataclass(frozen=True)
class Choice:
    """What the drop-downs said at one moment. A run keeps it, whatever is turned meanwhile.

    Attributes:
        name: The model, as `load` takes it.
        memory: "device", "auto", the GB of a card, or a plan.
        size: The size that the plan is for.
    """

    name: str
    memory: str | Plan
    size: Size


class Engine:
    """Drop-downs for model, memory plan and upscaler, and the LoRAs. `.box` is what is shown.

    Args:
        models: The model that is loaded already.
        changed: Called after every change.

    Attributes:
        models: The loaded model; None while another one is being loaded.
        rules: The rules of the model that was loaded last.
        loras: The LoRAs that a run is made with.
    """

    def __init__(self, models: Models, changed: Callable[[], object]) -> None:
        self.models: Models | None = models
        self.rules = Rules.of(models)
        self._machine, self._changed = Machine.here(models.device), changed
        self._choice: Choice | None = None
        self._verdicts: dict[Choice, tuple[Plan | None, str, str]] = {}
        self._planner: threading.Thread | None = None
        self._sources: dict[str, str] = {}  # what the LoRAs' names on the panel turned out to be
        names = list(dict.fromkeys([models.name, "pocket", "hunyuan", _FOLDER]))
        why = f"Pocket is shipped; hunyuan is the 13B model, {GIGABYTES[HUB_ID]} GB to download."
        self.model = _choice("model", names, why)
        self.folder = _path("folder", "a folder in HunyuanVideo's layout")
        why = "What is quantised, offloaded and tiled, to fit a smaller GPU."
        self.memory = _choice("memory", _plans(models.memory, self._machine), why)
        upscalers = [AUTO, NONE, LANCZOS, *SHIPPED, *PUBLISHED, _FILE]
        why = "auto is the model's own, or else a Real-ESRGAN network if one is at hand; others are fetched once."
        self.upscaler = _choice("upscaler", upscalers, why)
        self.file = _path("file", "a Real-ESRGAN file, .pth or .safetensors")
        self.fields = {"model": Field(self.model), "folder": Field(self.folder), "memory": Field(self.memory)}
        self.fields |= {"upscaler": Field(self.upscaler), "file": Field(self.file)}
        for name, field in self.fields.items():
            field.widget.add_class(f"t2v-{name}")
            field.widget.observe(lambda _: changed(), "value")
        self.loras = LoraRows(models.loras.arguments, changed)
        boxes = {name: field.box for name, field in self.fields.items()}
        model = [boxes.pop("model"), boxes.pop("folder"), self.loras.box]
        self.box = widgets.VBox([heading("Model"), *model, *boxes.values()])

    @property
    def name(self) -> str:
        """The chosen model, as `load` takes it."""
        if self.model.value != _FOLDER:
            return str(self.model.value)
        return str(Path(self.folder.value.strip()).expanduser().absolute())  # as a loaded model is named

    @property
    def upscale(self) -> str:
        """The chosen upscaler, as `generate` takes it."""
        return str(self.file.value).strip() if self.upscaler.value == _FILE else str(self.upscaler.value)

    @property
    def chosen_rules(self) -> Rules:
        """The rules that the chosen model is checked against.

        Before the 13B model is loaded, these are its published defaults and what it shares with the loaded model: the
        same classes. Another folder is checked once it is loaded.
        """
        if self.name != "hunyuan" or self.rules.name == "hunyuan":
            return self.rules
        known = {"defaults": HUNYUAN_DEFAULTS, "trained_sizes": (), "world": None}
        return dataclasses.replace(self.rules, name="hunyuan", source="hunyuan", **known)

    @property
    def choice(self) -> Choice | None:
        """What is chosen now; None while something is wrong."""
        return self._choice

    def plan(self, choice: Choice) -> Plan | None:
        """The memory plan of a choice, computed now unless the planner has done so already.

        Raises:
            UserError: It does not fit.
        """
        planner = self._planner
        if planner is not None:
            planner.join()
        if choice not in self._verdicts:
            self._verdicts[choice] = self._ask(choice)
        plan, line, kind = self._verdicts[choice]
        if kind == "error":
            raise UserError(line)
        return plan

    def holds(self, files: dict[str, Any], plan: Plan | None) -> bool:
        """Whether the loaded model was read by these keywords of `load`, at any strength, and is under this plan."""
        if self.models is None or self.models.memory != plan:
            return False
        own = self.models.arguments
        same = all(own.get(name) == value for name, value in files.items() if name != "loras")
        wanted = [self._source(name) for name, _ in parse_loras(files.get("loras"))]
        return same and wanted == [lora.source for lora in self.models.loras]

    def _source(self, name: str) -> str:
        """What a loaded model calls a LoRA."""
        path = Path(name).expanduser()
        return self._sources.get(name) or (os.path.abspath(path) if path.is_file() else name)

    def release(self) -> None:
        """Let go of the loaded model and give its memory back, so that the next one does not have to fit beside it."""
        self.models = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def load(self, files: dict[str, Any], plan: Plan | None) -> Models:
        """Return a model under a plan, loaded unless it is already.

        Args:
            files: `Models.arguments`, or its name and LoRAs alone.
            plan: The memory plan, if any.

        Raises:
            UserError: As `t2v_kit.load` says. No model is loaded then.
        """
        if self.models is None or not self.holds(files, plan):
            self.release()
            self.models = load(**files, memory=plan)
            self.rules = Rules.of(self.models)
            names = [name for name, _ in parse_loras(files.get("loras"))]
            self._sources |= dict(zip(names, (lora.source for lora in self.models.loras)))
        elif self.models.loras:
            with self.models.lock:
                self.models.loras.set(*(strength for _, strength in parse_loras(files["loras"])))
        return self.models

    def check(self, settings: Settings | None) -> bool:
        """Show beside each control what is wrong with it.

        Args:
            settings: Complete settings, for whose size the planner is asked; None when they are wrong.

        Returns:
            Whether the choice can be run.
        """
        show_if(self.fields["folder"].box, self.model.value == _FOLDER)
        show_if(self.fields["file"].box, self.upscaler.value == _FILE)
        for field in self.fields.values():
            field.say("")
        self._choice, wrong = None, {}
        if self.model.value == _FOLDER and not Path(self.name, "model_index.json").is_file():
            wrong["folder"] = f"{self.name!r}: holds no model_index.json; the folder of a model would work."
        if self.upscaler.value == _FILE and not Path(self.upscale).is_file():
            wrong["file"] = f"{self.upscale!r}: is no file; the path of a Real-ESRGAN file would work."
        for name, line in wrong.items():
            self.fields[name].say(line, "error")
        turned = self.loras.check(settings and settings.num_inference_steps)
        if settings is None or wrong or not turned:
            return not wrong and turned
        memory: Any = self.memory.value
        choice = Choice(self.name, memory, _size(settings))
        plan, line, kind = self._verdict(choice)
        self.fields["memory"].say(line, kind)
        if kind == "error":
            return False
        self._choice = choice
        if not self.holds({"name": self.name, "loras": self.loras.value}, plan):
            self.fields["model"].say("Loaded when you generate.")
        return True

    def _verdict(self, choice: Choice) -> tuple[Plan | None, str, str]:
        """As `verdict`. With a GPU that takes seconds: a thread computes it, and everything is checked again."""
        if not self._machine.vram_gb:
            self._verdicts[choice] = self._ask(choice)
        if choice not in self._verdicts and (self._planner is None or not self._planner.is_alive()):

            def ask() -> None:
                self._verdicts[choice] = self._ask(choice)
                self._planner = None
                self._changed()

            self._planner = threading.Thread(target=ask, daemon=True)
            self._planner.start()
        return self._verdicts.get(choice, (None, "The planner is computing …", "hint"))

    def _ask(self, choice: Choice) -> tuple[Plan | None, str, str]:
        """The planner knows the 13B model without its files, and others by their folder."""
        memory = None if choice.memory == "device" else choice.memory
        return verdict(memory, self._machine, choice.size, choice.name)


def verdict(memory: Plan | str | None, machine: Machine, size: Size, model: str) -> tuple[Plan | None, str, str]:
    """Ask the planner about a choice on a machine.

    Args:
        memory: As `load` takes it.
        machine: GPU memory and RAM.
        size: Of the video.
        model: As `load` takes it.

    Returns:
        The plan, one line about it, and the line's kind: 'good', 'hint' or 'error'.
    """
    if not machine.vram_gb and memory in (None, "auto"):
        if model == "hunyuan":
            return (
                None,
                "No GPU here: on a CPU the 13B model takes minutes to hours a step; pocket is made for it.",
                "hint",
            )
        return None, f"No GPU here: the CPU computes, with {machine.ram_gb:.0f} GB of RAM.", "hint"
    sizes = {"height": size.height, "width": size.width, "num_frames": size.num_frames}
    plan, gpu = None, machine.gpu if machine.gpu in TFLOPS else None
    try:
        if memory is not None:
            plan = check(as_plan(memory, model, machine, **sizes), machine, model=model)
        kept = plan or ladder(machine.capability >= (8, 0))[0]
        needs = estimate(kept, size, model, gpu=gpu or next(iter(TFLOPS)))
    except UserError as error:
        return None, str(error), "error"
    line = f"{kept.name}: {needs.vram_gb:.1f} of {machine.vram_gb:g} GB on the GPU, {needs.ram_gb:.0f} GB of RAM"
    seconds = [row["seconds"] for row in needs.rows]
    if gpu and None not in seconds:
        line += f", about {duration(sum(seconds))}"
    if needs.fits(machine):
        return plan, f"{line}: fits.", "good"
    if memory is None:  # load() then keeps one network at a time on the GPU
        return (
            None,
            f"{line}: does not fit at once, and moving networks takes time; try 'auto'.",
            "hint",
        )
    return plan, f"{line}: does not fit; 'auto' finds what does.", "error"


def _size(settings: Settings) -> Size:
    """The size of complete settings."""
    height, width, frames, steps = (
        settings.height, settings.width, settings.num_frames, settings.num_inference_steps
    )  # fmt: skip
    assert height and width and frames and steps
    return Size(height, width, frames, steps)


def _plans(loaded: Plan | None, machine: Machine) -> list[tuple[str, str | Plan]]:
    """The entries of the memory menu that mean something on this machine; cards need a GPU."""
    plans: list[tuple[str, str | Plan]] = [(f"as loaded: {loaded.name}", loaded)] if loaded else []
    place = "GPU" if machine.vram_gb else "CPU"
    plans += [(f"everything on the {place}", "device"), ("auto: chosen for this machine", "auto")]
    cards = [gb for gb in _CARDS if machine.vram_gb and gb <= machine.vram_gb]
    return plans + [(f"as for a card of {gb} GB", str(gb)) for gb in cards]


def _choice(name: str, options: list, why: str) -> widgets.Dropdown:
    return tip(widgets.Dropdown(options=options, description=name, **aligned()), why)


def _path(name: str, placeholder: str) -> widgets.Text:
    return widgets.Text(placeholder=placeholder, description=name, continuous_update=False, **aligned())
