"""What fits a model: presets, and sentences in its words."""

from __future__ import annotations

import random
import re
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


def sentence(rules: Rules) -> str:
    """A Toyland caption in words that this model has read."""
    texts = [caption(random_scene(seed)) for seed in random.sample(range(10**6), 20)]
    words = rules.vocabulary or frozenset()
    return next((text for text in texts if set(re.findall(r"[a-z]+", text.lower())) <= words), texts[0])
