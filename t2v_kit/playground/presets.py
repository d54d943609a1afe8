"""What fits a model: presets, the ranges of the sliders, and sentences in its words."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

from ..toyland import caption, random_scene

if TYPE_CHECKING:
    from ..model.models import Models


def presets(models: Models) -> dict[str, dict]:
    """Settings that go together, by name, made from the model's own defaults."""
    own = models.defaults
    steps, shorter = own["num_inference_steps"], (own["num_frames"] - 1) // 8 * 4 + 1
    size = {name: own[name] for name in ("width", "height")}
    if not models.trained_sizes:  # the published model was trained on many sizes: half of each side is among them
        size = {name: value // 32 * 16 for name, value in size.items()}
    quick = {**own, **size, "num_frames": shorter, "num_inference_steps": max(4, steps * 2 // 5)}
    return {
        "Standard": dict(own),
        "Quick look": quick,
        "Fine": {**own, "num_inference_steps": 2 * steps},
        "Still picture": {**own, "num_frames": 1},
    }


def ranges(defaults: dict) -> dict[str, tuple[float, float]]:
    """(lowest, highest) of each slider: around the model's defaults, ends on values that are allowed."""
    return {
        "width": (32, 2 * defaults["width"]),
        "height": (32, 2 * defaults["height"]),
        "num_frames": (1, 2 * defaults["num_frames"] - 1),
        "num_inference_steps": (1, max(50, 2 * defaults["num_inference_steps"])),
        "guidance_scale": (1.0, 12.0),
        "flow_shift": (1.0, 12.0),
        "fps": (1.0, 60.0),
        "true_cfg_scale": (1.0, 10.0),
    }


def sentence(models: Models) -> str:
    """A caption of Toyland that says only what this model has read."""
    for seed in random.sample(range(10**6), 20):
        text = caption(random_scene(seed))
        if set(re.findall(r"[a-z]+", text.lower())) <= (models.vocabulary or frozenset()):
            break
    return text
