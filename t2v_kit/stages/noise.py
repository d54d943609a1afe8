"""Noise, the schedule that takes it away, and a cheap look at latents without the VAE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import retrieve_timesteps
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..errors import UserError, give_note
from ..settings import Settings

if TYPE_CHECKING:
    from ..model.models import Models



def initial_latents(models: Models, settings: Settings) -> torch.Tensor:
    """Pure noise (1, C, T, H, W) float32 on the model's device, the same for a seed everywhere.

    T = (num_frames - 1) / 4 + 1, H and W are an eighth of the pixels. Drawn by a CPU generator, as
    a seed gives other numbers on a GPU. Raises UserError for a size the model cannot make.
    """
    settings = settings.check(models)
    return models.pipe.prepare_latents(
        batch_size=1,
        num_channels_latents=models.pipe.transformer.config.in_channels,
        height=settings.height,
        width=settings.width,
        num_frames=settings.num_frames,
        dtype=torch.float32,
        device=models.device,
        generator=torch.Generator("cpu").manual_seed(settings.seed),
    )


def make_scheduler(models: Models, settings: Settings) -> SchedulerMixin:
    """A fresh scheduler of the pipeline's class, its timesteps set with settings.flow_shift.

    The sigmas go in evenly spaced from 1 and are shifted once, as the pipeline does it;
    `set_timesteps(n)` would shift the already shifted range a second time. Warns once of a scheduler that
    takes no shift.
    """
    settings = settings.check(models)
    held = models.pipe.scheduler
    shifts = [name for name in ("shift", "flow_shift") if name in held.config]  # the latter in UniPC's family
    if not shifts:
        message = f"flow_shift={settings.flow_shift:g} has no effect: {type(held).__name__} takes no shift."
        give_note(message, models.notes_given)
    scheduler = type(held).from_config(held.config, **dict.fromkeys(shifts, settings.flow_shift))
    steps = settings.num_inference_steps
    retrieve_timesteps(scheduler, steps, models.device, sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1])
    return scheduler


def sigma_schedule(models: Models, settings: Settings) -> torch.Tensor:
    """The noise levels (num_inference_steps + 1,) float32 on the CPU, from 1 (noise) to 0 (video)."""
    return make_scheduler(models, settings).sigmas.cpu()


def add_noise(latents: torch.Tensor, noise: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
    """(1 - sigma) * latents + sigma * noise, the straight path of flow matching.

    sigma is in [0, 1] (https://arxiv.org/abs/2210.02747). Raises UserError beyond, or if shapes differ.
    """
    if latents.shape != noise.shape:
        raise UserError(f"noise {tuple(noise.shape)}: must be shaped like the latents {tuple(latents.shape)}.")
    if not 0 <= float(sigma) <= 1:
        raise UserError(f"sigma={float(sigma)}: must be from 0 (video) to 1 (noise); 1 would work.")
    return (1 - sigma) * latents + sigma * noise
