"""A look at the latents while they form: a linear map to colours in place of the VAE, within a budget of time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..stages.decoding import encode
from ..toyland import random_scene, render
from ..view.latents import fit_rgb, preview_rgb
from ..view.players import animation

if TYPE_CHECKING:
    from ..model.models import Models
    from ..stages.denoising import Step

#: The part of the denoising time that previews may take.
BUDGET = 0.05
_SCENES = 16  # cartoon frames that the map is fitted to: with 4 or 8, colours they lack come out wrong


class Preview:
    """Small moving pictures of Steps. `.share` is their part of the time so far, `.fitting` the seconds of the map.

    The map is fitted once for a model: to a row of cartoon frames seen through its own VAE.
    """

    def __init__(self, models: Models, budget: float = BUDGET) -> None:
        self.models, began = models, time.perf_counter()
        scenes = [render(random_scene(seed), 64, 96, 1) for seed in range(_SCENES)]
        row = np.concatenate(scenes, axis=2)
        self.map: torch.Tensor = fit_rgb(encode(models, row), row)
        animation(row, 1, 96)  # the first one takes Pillow 50 ms of importing, which no run should pay
        self.fitting = time.perf_counter() - began
        self.budget = budget
        self.begin()

    def begin(self) -> None:
        """Another run: its share starts at nothing."""
        self._spent = self._last = self._denoising = 0.0

    @property
    def share(self) -> float:
        """What previews took, as a part of the denoising time so far (which they are not counted in)."""
        return self._spent / self._denoising if self._denoising else 0.0

    def draw(self, step: Step, seconds: float, noisy: bool = False) -> bytes | None:
        """The Step as an animated WebP that plays `seconds` long, or None where that would exceed the budget.

        noisy: show the latents as they are, else what the model takes the clean video to be. Whoever shows it calls
        `count` afterwards.
        """
        self._denoising += step.seconds
        if self._spent + self._last > self.budget * self._denoising:
            return None
        frames = preview_rgb(step.latents if noisy else step.predicted_clean, self.map)
        return animation(frames, len(frames) / seconds)

    def count(self, seconds: float) -> None:
        """Add what a preview took, drawing and sending."""
        self._spent += seconds
        self._last = seconds
