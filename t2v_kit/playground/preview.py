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

BUDGET = 0.05  # the part of the denoising time that previews may take
_SCENES = 16  # cartoon frames that the map is fitted to: with 4 or 8, colours they lack come out wrong


class Preview:
    """Small moving pictures of Steps, drawn through a linear map from latents to colours.

    The map is fitted once for a model, to a row of cartoon frames seen through its own VAE. The model itself is not
    kept.

    Args:
        models: The model whose latents are drawn.
        budget: The part of the denoising time that previews may take, 0 to 1.

    Attributes:
        map: (C + 1, 3) float32, as `fit_rgb` returns it.
        fitting: The seconds that fitting took.
    """

    def __init__(self, models: Models, budget: float = BUDGET) -> None:
        began = time.perf_counter()
        scenes = [render(random_scene(seed), 64, 96, 1) for seed in range(_SCENES)]
        row = np.concatenate(scenes, axis=2)
        self.map: torch.Tensor = fit_rgb(encode(models, row), row)
        animation(row, 1, 96)  # the first one takes Pillow 50 ms of importing, which no run should pay
        self.fitting = time.perf_counter() - began
        self.budget = budget
        self.begin()

    def begin(self) -> None:
        """Start counting anew, for another run."""
        self._spent = self._last = self._denoising = 0.0

    @property
    def share(self) -> float:
        """The time that previews took, divided by the denoising time so far, which does not include them."""
        return self._spent / self._denoising if self._denoising else 0.0

    def draw(self, step: Step, seconds: float, noisy: bool = False) -> bytes | None:
        """Draw a Step as an animated WebP; call `count` with the seconds once it is shown.

        Args:
            step: A step of `denoise`.
            seconds: How long the animation plays.
            noisy: Draw the latents as they are instead of the model's estimate of the clean video.

        Returns:
            The WebP's bytes; None where drawing would exceed the budget.
        """
        self._denoising += step.seconds
        if self._spent + self._last > self.budget * self._denoising:
            return None
        frames = preview_rgb(step.latents if noisy else step.predicted_clean, self.map)
        return animation(frames, len(frames) / seconds)

    def count(self, seconds: float) -> None:
        """Add the seconds that a preview took to be drawn and sent."""
        self._spent += seconds
        self._last = seconds
