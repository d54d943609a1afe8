"""The controls: every setting of the pipeline, why it is there, and what is wrong with it before anything runs."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import ipywidgets as widgets

from ..errors import UserError
from ..model.check import notes as model_notes
from ..model.check import resolve
from ..settings import Settings
from ..stages.prompt import prompt_notes
from .look import UNDER, aligned, button, heading, note, show_if, tip
from .presets import presets, ranges, sentence

if TYPE_CHECKING:
    from ..model.models import Models

#: Why each setting is there: the tooltip of its control.
WHY = {
    "prompt": "What the video shows. Pocket knows the words of its cartoon world; HunyuanVideo reads any sentence.",
    "width": "Pixels, a multiple of 16: the VAE shrinks eight times, the transformer cuts patches of two.",
    "height": "Pixels, a multiple of 16: the VAE shrinks eight times, the transformer cuts patches of two.",
    "num_frames": "4k + 1: the VAE keeps the first frame by itself and packs the others by fours.",
    "num_inference_steps": "How often the transformer is asked. Few steps are quick and rough; time grows with them.",
    "guidance_scale": "How strongly the prompt is followed. One number handed to the transformer, which was trained "
    "with it (distilled guidance): it costs no time.",
    "seed": "Which noise the video grows out of. The same seed and settings give the same video.",
    "flow_shift": "Where the steps are spent: 1 evenly; higher values stay longer at high noise, where layout is made.",
    "fps": "Frames a second of the file. It changes how fast the film plays, not what is drawn.",
    "negative_prompt": "What to steer away from. It acts when true CFG is above 1.",
    "true_cfg_scale": "Classifier-free guidance proper: two passes a step, so twice the time. 1 switches it off.",
    "padded_prompt": "Keep the prompt's padding of 256 tokens, as a plain pipeline call does: slower, other bits.",
}
_LABELS = {
    "num_frames": "frames",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "flow_shift": "flow shift",
    "fps": "frames/s",
    "negative_prompt": "negative",
    "true_cfg_scale": "true CFG",
    "padded_prompt": "keep the prompt's padding",
}
_MAIN = ("width", "height", "num_frames", "num_inference_steps", "guidance_scale")
_ADVANCED = ("flow_shift", "fps", "negative_prompt", "true_cfg_scale", "padded_prompt")
_CHANGED = "your own"  # what the drop-down of presets says when no preset has these settings
_LARGEST_SEED = 2**31 - 1  # drawn by the dice; JavaScript holds every whole number up to 2**53


class Field:
    """A control and the line under it. `also` stands at its right."""

    def __init__(self, widget: widgets.Widget, *also: widgets.Widget) -> None:
        self.widget = widget
        self.words = widgets.HTML(layout=UNDER)
        row = widgets.HBox([widget, *also]) if also else widget
        self.box = widgets.VBox([row, self.words])
        self.say("")

    def say(self, text: str, kind: str = "hint") -> None:
        """Show one line, 'error' or 'hint'; empty text takes the line away."""
        self.words.value = note(text, kind)
        show_if(self.words, bool(text))


class Controls:
    """Widgets for all of `Settings`: `.values()`, `.set(...)`, `.check()`; `.box` is what is shown.

    models: whose defaults and limits hold; `.adopt(models)` changes them.  changed: called after every change.
    """

    def __init__(self, models: Models, changed: Callable[[], None]) -> None:
        self.models, self._changed, self._quiet = models, changed, False
        self.fields = {name: Field(tip(_widget(name), why)) for name, why in WHY.items()}
        for name, field in self.fields.items():
            field.widget.add_class(f"t2v-{name.replace('_', '-')}")
            field.widget.observe(self._on_change, "value")
        self._seed_extras()
        self.preset = widgets.Dropdown(description="preset", **aligned())
        tip(self.preset, "Settings that go together. Each can be changed afterwards.").add_class("t2v-preset")
        self.surprise = button("Surprise me", "t2v-surprise", "A sentence in the words that this model knows.")
        self.surprise.on_click(lambda _: self.set(prompt=sentence(self.models)))
        self.facts = widgets.HTML(layout=UNDER)
        self.box = self._layout()
        self.adopt(models)
        self.preset.observe(self._on_preset, "value")

    def _layout(self) -> widgets.VBox:
        boxes = {name: field.box for name, field in self.fields.items()}
        aside = widgets.HBox([self.surprise], layout=UNDER)
        self.noisy = widgets.Checkbox(False, description="preview the noisy latents", **aligned())
        tip(self.noisy, "Show the latents as they are. Off: what the model takes the clean video to be at that moment.")
        self.checkpoint_every = widgets.IntSlider(5, min=1, max=25, description="save every", **aligned())
        tip(self.checkpoint_every, "So many steps at most are lost when the machine is switched off in the middle.")
        folded = [*(boxes[name] for name in _ADVANCED), self.checkpoint_every, self.noisy]
        self.advanced = widgets.Accordion([widgets.VBox(folded)], selected_index=None)
        self.advanced.set_title(0, "Advanced")
        self.advanced.layout.margin = "8px 0 0"
        top = [boxes["prompt"], aside, heading("Video"), self.preset]
        main = [boxes[name] for name in _MAIN]
        return widgets.VBox([*top, *main, self.facts, boxes["seed"], self.advanced])

    def _seed_extras(self) -> None:
        """Dice and lock at the right of the seed. Unlocked, every new run draws another seed."""
        dice = button("", "t2v-dice", "Draw another seed.", "36px", icon="random")
        dice.on_click(lambda _: self.set(seed=random.randint(0, _LARGEST_SEED)))
        self.lock = widgets.ToggleButton(False, icon="unlock", layout={"width": "36px"})
        tip(self.lock, "Locked: the next run keeps this seed. Unlocked: it draws another one.").add_class("t2v-lock")
        self.lock.observe(lambda change: setattr(self.lock, "icon", "lock" if change["new"] else "unlock"), "value")
        field = self.fields["seed"]
        field.box.children = [widgets.HBox([field.widget, dice, self.lock]), field.words]

    def adopt(self, models: Models) -> None:
        """Take over another model's defaults, ranges and presets; `changed` is not called."""
        self.models, defaults = models, models.defaults
        self._quiet = True
        for name, (lowest, highest) in ranges(defaults).items():
            widget = self.fields[name].widget
            if lowest > widget.max:  # whichever order keeps min <= max
                widget.max, widget.min = highest, lowest
            else:
                widget.min, widget.max = lowest, highest
        self._presets = presets(models)
        self.preset.options = [*self._presets, _CHANGED]
        show_if(self.surprise, models.vocabulary is not None)
        for name, value in defaults.items():
            self._put(name, value)
        self._quiet = False

    def values(self) -> dict:
        """What the widgets say, as keywords of `Settings`."""
        values = {name: field.widget.value for name, field in self.fields.items()}
        values = {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}
        # Blank means none; only true CFG takes "" as a prompt to steer away from.
        values["negative_prompt"] = values["negative_prompt"] or ("" if values["true_cfg_scale"] > 1 else None)
        return values

    def set(self, **values) -> None:
        """Move the controls of these settings, then check all of them once."""
        self._quiet = True
        try:
            for name, value in values.items():
                self._put(name, value)
        finally:
            self._quiet = False
        self._on_change()

    def _put(self, name: str, value) -> None:
        if name not in self.fields:
            raise UserError(f"{name}={value!r}: the panel has no such setting; it has {', '.join(self.fields)}.")
        widget = self.fields[name].widget
        value = "" if value is None else value
        if widget.has_trait("max"):  # a slider would cut a larger value off in silence
            widget.max, widget.min = max(widget.max, value), min(widget.min, value)
        widget.value = value

    def roll(self) -> None:
        """Before a new run: another seed, unless it is locked."""
        if not self.lock.value:
            self.set(seed=random.randint(0, _LARGEST_SEED))

    def check(self) -> Settings | None:
        """Say under each control what is wrong with it; the complete Settings when nothing is."""
        for field in self.fields.values():
            field.say("")
        self.facts.value = ""
        values, errors = self.values(), 0
        self._name_preset(values)
        for _ in WHY:  # a wrong value is told and replaced, so that the next one is told too
            try:
                settings = resolve(Settings(**values), self.models)  # its notes are shown under the controls
                break
            except UserError as error:
                errors += 1
                values |= self._blame(str(error), values)
        if errors:
            return None
        self._advise(settings)
        return settings

    def _blame(self, line: str, values: dict) -> dict:
        """Show an error under the control it names; gives what to put in place of the wrong value."""
        named = re.match(r"(\w+)=", line)
        name = named[1] if named and named[1] in self.fields else "num_frames"  # too many video tokens
        self.fields[name].say(line, "error")
        if name in ("prompt", "negative_prompt"):
            return {name: "a"}
        if name == "num_frames":
            return {key: self.models.defaults[key] for key in ("num_frames", "height", "width")}
        return {name: self.models.defaults.get(name, getattr(Settings("a"), name))}

    def _advise(self, settings: Settings) -> None:
        """What is allowed, but worth knowing."""
        notes = model_notes(settings, self.models)
        notes["prompt"] = " ".join(prompt_notes(self.models, settings.prompt))
        for name, line in notes.items():
            self.fields[name].say(line)
        latent_frames = (settings.num_frames - 1) // self.models.pipe.vae_scale_factor_temporal + 1
        tokens = latent_frames * settings.height * settings.width // 256
        self.facts.value = (
            f'<span class="t2v-soft">{settings.num_frames / settings.fps:.1f} s of video, '
            f"{tokens:,} video tokens in each step</span>"
        )

    def _on_change(self, _=None) -> None:
        if not self._quiet:
            self._changed()

    def _on_preset(self, change: dict) -> None:
        if not self._quiet and change["new"] in self._presets:
            self.set(**self._presets[change["new"]])

    def _name_preset(self, values: dict) -> None:
        """Show the preset that the settings are those of, if any."""
        same = (name for name, preset in self._presets.items() if preset.items() <= values.items())
        self._quiet = True
        self.preset.value = next(same, _CHANGED)
        self._quiet = False


def _widget(name: str) -> widgets.Widget:
    """The control of one setting; its range is set by `adopt`."""
    looks = {"description": _LABELS.get(name, name), "continuous_update": False, **aligned()}
    if name == "prompt":
        return widgets.Textarea(placeholder="A red car on the beach at sunset.", rows=4, **looks)
    if name == "negative_prompt":
        return widgets.Textarea(placeholder="what the video should not show", rows=2, **looks)
    if name == "padded_prompt":
        return widgets.Checkbox(False, description=looks["description"], indent=True, **aligned())
    if name == "seed":
        return widgets.IntText(0, **looks)
    if name in ("guidance_scale", "flow_shift", "true_cfg_scale", "fps"):
        step = {"fps": 1.0, "flow_shift": 0.5}.get(name, 0.1)
        looks["readout_format"] = ".3g" if name == "fps" else ".1f"
        return widgets.FloatSlider(1.0, min=0.0, max=100.0, step=step, **looks)
    step = {"width": 16, "height": 16, "num_frames": 4}.get(name, 1)
    return widgets.IntSlider(1, min=1, max=4096, step=step, **looks)
