"""LoRAs in the panel: a line for a file or an id of the hub, and for each LoRA its strength."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets

from ..errors import UserError
from ..hunyuan.lora_arguments import STRONGEST, Strength, check_present, check_strength, parse_loras
from ..settings import Knob
from .controls import Field, Number
from .look import aligned, button, tip

STRENGTH = Knob(
    "real",
    "strength",
    "How much of this LoRA: 1 is as it was trained, 0 switches it off, and below 0 it works the other way round.",
    -STRONGEST,
    STRONGEST,
    "1 is as trained",
    0.05,
    slider=(0.0, 2.0),
)


class LoraRows:
    """A row for each LoRA. `.box` is what is shown.

    Args:
        loras: Those of the loaded model, as `load` takes them.
        changed: Called after every change.
    """

    def __init__(self, loras: Sequence, changed: Callable[[], object]) -> None:
        self._changed, self._rows = changed, list[_Row]()
        self.file = widgets.Text(
            placeholder="a .safetensors file, or user/repo on the hub", description="LoRA", **aligned()
        )
        tip(self.file, "Changes what the model draws. Any usual format; several may act at once.").add_class("t2v-lora")
        self.file.layout = {"flex": "1 1 auto", "width": "auto"}
        self.add_button = button("Add", "t2v-lora-add", "Put this LoRA on the model.", "64px")
        self.add_button.on_click(lambda _: self.add(self.file.value.strip()))
        self.field = Field(self.file, self.add_button)
        self.rows = widgets.VBox([])
        self.rows.add_class("t2v-lora-rows")
        self.box = widgets.VBox([self.field.box, self.rows])
        self.put(loras)

    @property
    def value(self) -> list[list]:
        """The LoRAs and their strengths, as `load` takes them; plain data."""
        return [[row.name, row.strength] for row in self._rows]

    def put(self, loras: Sequence) -> None:
        """Show these LoRAs instead of the present ones; `changed` is not called."""
        self._rows = [_Row(self, name, strength) for name, strength in parse_loras(loras)]
        self._draw()

    def add(self, name: str, strength: float = 1.0) -> None:
        """Add one, unless it is missing or there already: then the line under the field says so."""
        try:
            check_present(name)
            if name in (row.name for row in self._rows):
                raise UserError(f"lora {name!r}: is there already; its strength can be changed.")
        except UserError as mistake:
            self.field.say(str(mistake), "error")
            return
        self.field.say("")
        self.file.value = ""
        self._rows.append(_Row(self, name, strength))
        self._draw()
        self._changed()

    def remove(self, row: _Row) -> None:
        """Take one away."""
        self._rows.remove(row)
        self._draw()
        self._changed()

    def check(self, steps: int | None) -> bool:
        """Show under each strength what is wrong with it; whether nothing is.

        Args:
            steps: Denoising steps, for strengths of one for each; None when that setting is wrong.
        """
        return all([row.check(steps) for row in self._rows])

    def changed(self) -> None:
        """A strength was turned."""
        self._changed()

    def _draw(self) -> None:
        self.rows.children = [row.field.box for row in self._rows]


class _Row:
    """One LoRA: its slider, named after its file, and a button that takes it away.

    A strength for each step, which code can give, stands in words: the panel has no control for it.
    """

    def __init__(self, rows: LoraRows, name: str, strength: Strength) -> None:
        self.name, self._given = name, strength
        out = button("", "t2v-lora-remove", "Take this LoRA off.", "34px", icon="times")
        out.on_click(lambda _: rows.remove(self))
        if isinstance(strength, tuple):
            words = ", ".join(f"{each:g}" for each in strength)
            self.widget: Any = widgets.HTML(words, description="strengths", **aligned())
        else:
            self.widget = Number(STRENGTH)
            self.widget.value = strength
            self.widget.observe(lambda _: rows.changed(), "value")
        self.widget.add_class("t2v-lora-strength")
        self.field = Field(self.widget, out)
        self.field.say(name)

    @property
    def strength(self) -> float | list[float]:
        """As `load` takes it."""
        return list(self._given) if isinstance(self._given, tuple) else round(float(self.widget.value), 6)

    def check(self, steps: int | None) -> bool:
        line = ""
        try:
            check_strength(self.strength)
        except UserError as mistake:
            line = str(mistake)
        if isinstance(self._given, tuple) and steps not in (None, len(self._given)):
            line = f"{len(self._given)} strengths for {steps} steps; as many of each would work."
        self.field.say(line or self.name, "error" if line else "hint")
        return not line
