"""What fits a model: presets, and sentences in its words."""

from __future__ import annotations

import random
from typing import Any

from ..toyland import caption, random_scene
from .rules import Rules


def presets(rules: Rules) -> dict[str, dict[str, Any]]:
    """Settings that go together, by name, derived from the model's own defaults."""
    own = dict(rules.defaults)
    steps, shorter = own["num_inference_steps"], (own["num_frames"] - 1) // 8 * 4 + 1
    size = {name: own[name] for name in ("width", "height")}
    if not rules.trained_sizes:  # the published model was trained on many sizes: half of each side is among them
        size = {name: value // 32 * 16 for name, value in size.items()}
    quick = {**own, **size, "num_frames": shorter, "num_inference_steps": max(4, steps * 2 // 5)}
    return {
        "Standard": own,
        "Quick look": quick,
        "Fine": {**own, "num_inference_steps": 2 * steps},
        "Still picture": {**own, "num_frames": 1},
    }


def sentence() -> str:
    """A random Toyland caption, written as one would write it."""
    return caption(random_scene(random.randrange(10**6)), careless=False)
