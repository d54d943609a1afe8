"""The controls: a widget for every setting, with its explanation, and errors shown before anything runs."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import traitlets

from ..errors import UserError, did_you_mean, quoted
from ..model.check import notes as model_notes
from ..model.check import resolve
from ..settings import KNOBS, Knob, Settings
from ..stages.prompt import prompt_notes
from .look import LABEL, UNDER, aligned, button, heading, note, show_if, tip
from .presets import presets, sentence
from .rules import Rules

_MAIN = ("width", "height", "num_frames", "num_inference_steps", "guidance_scale")
_ADVANCED = ("flow_shift", "fps", "negative_prompt", "true_cfg_scale", "padded_prompt", "travel", "riflex")
_GIVEN = (
    "video",
    "strength",
    "mask",
    "first_frame",
    "last_frame",
    "image",
    "fit",
    "resample",
)  # from a picture or a video
_EXAMPLE = "A red car on the beach at sunset."  # so that Generate works at once
_HINTS = {  # of texts, and how many lines their boxes have
    "prompt": (_EXAMPLE, 4),
    "negative_prompt": ("what the video should not show", 2),
    "travel": ("0-4: a sunny day | 12-: at night", 2),
}
_CHANGED = "your own"  # the drop-down's entry when no preset has these settings


class Number(widgets.HBox):
    """A slider and a box for its number. The box takes any number: what a slider cannot reach is not cut off.

    Attributes:
        value: The number in the box.
        slider, box: The two widgets.
    """

    value = traitlets.Any()

    def __init__(self, knob: Knob) -> None:
        whole = knob.kind == "whole"
        slider, box = (widgets.IntSlider, widgets.IntText) if whole else (widgets.FloatSlider, widgets.FloatText)
        ends = {"min": knob.slider[0], "max": knob.slider[1], "step": knob.step, "value": knob.slider[0]}
        looks = {"layout": {"flex": "1 1 auto", "width": "auto"}, "style": {"description_width": LABEL}}
        self.slider = slider(**ends, description=knob.label, readout=False, continuous_update=False, **looks)
        self.box = box(knob.slider[0], step=knob.step, layout={"width": "78px", "flex": "0 0 auto"})
        for part in (self.slider, self.box):
            tip(part, knob.help)
        super().__init__([self.slider, self.box], layout={"width": "100%"})
        self.value, self._following = knob.slider[0], False
        self.observe(self._follow, "value")
        self.slider.observe(self._take, "value")
        self.box.observe(self._take, "value")

    def offer(self, low: float, high: float) -> None:
        """Set the slider's ends; the number stays."""
        self._following = True
        if low > self.slider.max:  # in whichever order min <= max holds throughout
            self.slider.max, self.slider.min = high, low
        else:
            self.slider.min, self.slider.max = low, high
        self._following = False
        self._follow()

    def _take(self, change: dict) -> None:
        if not self._following:
            self.value = change["new"]

    def _follow(self, _=None) -> None:
        self._following = True
        self.box.value = self.value
        self.slider.value = min(max(self.value, self.slider.min), self.slider.max)
        self._following = False


class Field:
    """A control with a line under it, and other widgets at its right."""

    def __init__(self, widget: widgets.DOMWidget, *also: widgets.Widget) -> None:
        self.widget: Any = widget
        self.words = widgets.HTML(layout=UNDER)
        row = widgets.HBox([widget, *also]) if also else widget
        self.box = widgets.VBox([row, self.words])
        self.say("")

    def say(self, text: str, kind: str = "hint") -> None:
        """Show one line, 'error' or 'hint'; empty text takes the line away."""
        self.words.value = note(text, kind)
        show_if(self.words, bool(text))


class Controls:
    """Widgets for all of `Settings`. `.ask` and `.knobs` are what is shown.

    Every change takes `guard`, so that the thread of a run and the notebook's own do not meet in here.

    Args:
        rules: The model's defaults and limits; `adopt` changes them.
        changed: Called after every change.

    Attributes:
        ask: The prompt, with `slot` under it.
        slot: An empty box, for what should stay in sight of the prompt.
        knobs: All other settings.
        fields: The `Field` of each setting.
        guard: A reentrant lock on the controls.
    """

    def __init__(self, rules: Rules, changed: Callable[[], object]) -> None:
        self.rules, self._changed, self._quiet, self.guard = rules, changed, True, threading.RLock()
        self.fields = {name: Field(_widget(name, knob)) for name, knob in KNOBS.items()}
        for name, field in self.fields.items():
            field.widget.add_class(f"t2v-{name.replace('_', '-')}")
            field.widget.observe(self._on_change, "value")
        self.fields["seed"].widget.observe(self._on_seed, "value")
        self.fields["prompt"].widget.value = _EXAMPLE
        self._seed_extras()
        self.preset = widgets.Dropdown(description="preset", **aligned())
        tip(self.preset, "Settings that go together. Each can be changed afterwards.").add_class("t2v-preset")
        self.surprise = button("Surprise me", "t2v-surprise", "A sentence in the words that this model knows.")
        self.surprise.on_click(lambda _: self.set(prompt=sentence()))
        self.facts = widgets.HTML(layout=UNDER)
        self.slot = widgets.VBox()
        self.ask, self.knobs = self._layout()
        self.adopt(rules)
        self.preset.observe(self._on_preset, "value")

    def _layout(self) -> tuple[widgets.VBox, widgets.VBox]:
        boxes = {name: field.box for name, field in self.fields.items()}
        aside = widgets.HBox([self.surprise], layout=UNDER)
        self.noisy = widgets.Checkbox(False, description="preview the noisy latents", **aligned())
        tip(self.noisy, "Show the latents as they are. Off: the model's estimate of the clean video at that moment.")
        self.checkpoint_every = widgets.IntSlider(5, min=1, max=25, description="save every", **aligned())
        tip(self.checkpoint_every, "Save after so many steps: no more than these are lost if the machine goes down.")
        folded = [*(boxes[name] for name in _ADVANCED), self.checkpoint_every, self.noisy]
        self.advanced = widgets.Accordion([widgets.VBox(folded)], selected_index=None)
        self.advanced.set_title(0, "Advanced")
        self.advanced.layout.margin = "8px 0 0"
        self.given = widgets.Accordion([widgets.VBox([boxes[name] for name in _GIVEN])], selected_index=None)
        self.given.set_title(0, "From a video or picture")
        self.given.layout.margin = "8px 0 0"
        ask = widgets.VBox([boxes["prompt"], aside, self.slot])
        main = [boxes[name] for name in _MAIN]
        knobs = [heading("Video"), self.preset, *main, self.facts, boxes["seed"], self.given, self.advanced]
        return ask, widgets.VBox(knobs)

    def _seed_extras(self) -> None:
        """Dice and lock at the right of the seed. Unlocked, every new run draws another seed."""
        dice = button("", "t2v-dice", "Draw another seed, and keep it.", "36px", icon="random")
        dice.on_click(lambda _: self.set(seed=_random_seed()))
        self.lock = widgets.ToggleButton(False, icon="unlock", layout={"width": "36px", "flex": "0 0 auto"})
        tip(self.lock, "Locked: the next run keeps this seed. Unlocked: it draws another one.").add_class("t2v-lock")
        self.lock.observe(lambda change: setattr(self.lock, "icon", "lock" if change["new"] else "unlock"), "value")
        field = self.fields["seed"]
        field.box.children = [widgets.HBox([field.widget, dice, self.lock]), field.words]

    def adopt(self, rules: Rules) -> None:
        """Take over another model's defaults, slider ranges and presets; `changed` is not called."""
        with self.guard:
            self.rules, self._quiet = rules, True
            for name, field in self.fields.items():
                if isinstance(field.widget, Number):
                    field.widget.offer(*KNOBS[name].slider_range(rules.defaults.get(name)))
            self._presets = presets(rules)
            self.preset.options = [*self._presets, _CHANGED]
            show_if(self.surprise, rules.world == "toyland")
            for name, value in rules.defaults.items():
                self._put(name, value)
            self._quiet = False

    def values(self) -> dict[str, Any]:
        """The settings on the panel, as keywords of `Settings`."""
        values = {name: field.widget.value for name, field in self.fields.items()}
        values = {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}
        # Blank means none; only true CFG takes "" as a prompt to steer away from.
        values["negative_prompt"] = values["negative_prompt"] or ("" if values["true_cfg_scale"] > 1 else None)
        for name, knob in KNOBS.items():
            if knob.kind == "file" or name == "travel":
                values[name] = str(values[name]).strip() or None
        return values

    def set(self, **values) -> None:
        """Move the controls of these settings, then check all of them once. A seed that is set is locked.

        Raises:
            UserError: There is no such setting.
        """
        with self.guard:
            self._quiet = True
            try:
                for name, value in values.items():
                    self._put(name, value)
            finally:
                self._quiet = False
            self.lock.value |= "seed" in values
            self._on_change()

    def _put(self, name: str, value) -> None:
        if name not in self.fields:
            raise UserError(
                f"{name}={quoted(value)}: the panel has no such setting; {did_you_mean(name, self.fields)}",
                setting=name,
            )
        self.fields[name].widget.value = "" if value is None else value

    def roll(self) -> None:
        """Before a new run: draw another seed, unless it is locked."""
        with self.guard:
            if not self.lock.value:
                self._quiet = True
                self._put("seed", _random_seed())
                self._quiet = False
                self._on_change()

    def check(self) -> Settings | None:
        """Show under each control what is wrong with it.

        Returns:
            The complete settings; None when something is wrong.
        """
        with self.guard:
            for field in self.fields.values():
                field.say("")
            self.facts.value = ""
            values, errors = self.values(), 0
            self._name_preset(values)
            for _ in KNOBS:  # a wrong value is shown and replaced, so that the next one is found too
                try:
                    settings = resolve(Settings(**values), self.rules)  # type: ignore[arg-type]
                    break
                except UserError as error:
                    errors += 1
                    values |= self._blame(error)
            else:
                return None
            if errors:
                return None
            self._advise(settings)
            return settings

    def _blame(self, error: UserError) -> dict[str, Any]:
        """Show an error under the control it is about; returns what to put in place of the wrong value."""
        name = error.setting if error.setting in self.fields else "prompt"
        assert name is not None
        self.fields[name].say(str(error), "error")
        defaults = self.rules.defaults
        if name in ("prompt", "negative_prompt"):
            return {name: "a"}
        if name == "num_frames":  # perhaps too many video tokens, which the three make together
            return {key: defaults[key] for key in ("num_frames", "height", "width")}
        return {name: defaults.get(name, getattr(Settings("a"), name))}

    def _advise(self, settings: Settings) -> None:
        """Show what is allowed but worth knowing."""
        notes = model_notes(settings, self.rules)  # type: ignore[arg-type]
        notes["prompt"] = " ".join(prompt_notes(self.rules, settings.prompt))  # type: ignore[arg-type]
        height, width, frames = settings.height, settings.width, settings.num_frames
        assert height and width and frames and settings.fps  # complete settings
        sizes = {trained[1:] for trained in self.rules.trained_sizes}
        if "num_frames" in notes and (height, width) not in sizes:  # the note on sizes belongs to the odd one out
            notes["height" if width in {size[1] for size in sizes} else "width"] = notes.pop("num_frames")
        for name, line in notes.items():
            self.fields[name].say(line)
        latent_frames = (frames - 1) // self.rules.pipe.vae_scale_factor_temporal + 1
        tokens = latent_frames * height * width // 256
        seconds = f"{frames / settings.fps:.1f} s of video"
        self.facts.value = f'<span class="t2v-soft">{seconds}, {tokens:,} video tokens in each step</span>'

    def _on_change(self, _=None) -> None:
        with self.guard:
            if not self._quiet:
                self._changed()

    def _on_seed(self, _) -> None:
        """A seed that somebody typed is meant to be used."""
        if not self._quiet:
            self.lock.value = True

    def _on_preset(self, change: dict) -> None:
        if not self._quiet and change["new"] in self._presets:  # by hand, not by `_name_preset`
            self.set(**self._presets[change["new"]])

    def _name_preset(self, values: dict) -> None:
        """Show the preset that the settings are those of, if any."""
        same = (name for name, preset in self._presets.items() if preset.items() <= values.items())
        self._quiet = True
        self.preset.value = next(same, _CHANGED)
        self._quiet = False


def _random_seed() -> int:
    return random.randint(*map(int, KNOBS["seed"].slider))


def _widget(name: str, knob: Knob) -> widgets.DOMWidget:
    """The control of one setting; the ends of its slider are set by `adopt`."""
    looks = {"description": knob.label, **aligned()}
    if name == "seed":
        return tip(widgets.IntText(0, **looks), knob.help)
    if knob.kind == "flag":
        return tip(widgets.Checkbox(False, indent=True, **looks), knob.help)
    if knob.kind == "choice":
        return tip(widgets.Dropdown(options=knob.choices, **looks), knob.help)
    if knob.kind == "file":
        return tip(widgets.Text(placeholder="path of a file", continuous_update=False, **looks), knob.help)
    if knob.kind == "text":
        hint, rows = _HINTS[name]
        return tip(widgets.Textarea(placeholder=hint, rows=rows, continuous_update=False, **looks), knob.help)
    number, default = Number(knob), getattr(Settings("a"), name)
    if default is not None:
        number.value = default
    return number
