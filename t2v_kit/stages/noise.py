"""Noise, the schedule that takes it away, and the straight path between video and noise."""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import retrieve_timesteps

from ..errors import UserError, give_note
from ..settings import Settings

if TYPE_CHECKING:
    from ..model.models import Models


def initial_latents(models: Models, settings: Settings) -> torch.Tensor:
    """Draw pure noise, the same for a seed everywhere.

    It comes from a CPU generator, as a seed gives other numbers on a GPU.

    Args:
        models: What `load` gave.
        settings: Size and seed.

    Returns:
        (1, C, T, H, W) float32 on the model's device: T = (num_frames - 1) / 4 + 1, H and W an eighth of the pixels.

    Raises:
        UserError: The model cannot make this size.

    Example:
        >>> models = load("pocket", device="cpu")
        >>> initial_latents(models, Settings("A red car.")).shape
        torch.Size([1, 16, 9, 14, 24])
    """
    full = settings.check(models)
    return models.pipe.prepare_latents(
        batch_size=1,
        num_channels_latents=models.pipe.transformer.config.in_channels,
        height=full.height,
        width=full.width,
        num_frames=full.num_frames,
        dtype=torch.float32,
        device=models.device,
        generator=torch.Generator("cpu").manual_seed(full.seed),
    )


def make_scheduler(models: Models, settings: Settings) -> Any:
    """Make a scheduler of the pipeline's class, its timesteps set with settings.flow_shift.

    The sigmas go in evenly spaced from 1 and are shifted once, as the pipeline does it; `set_timesteps(n)` would
    shift the already shifted range a second time.

    Args:
        models: What `load` gave.
        settings: flow_shift and num_inference_steps.

    Returns:
        A scheduler of diffusers for one run alone.

    Warns:
        UserWarning: Once a run, where the scheduler takes no shift.
    """
    full = settings.check(models)
    held = models.pipe.scheduler
    shifts = [name for name in ("shift", "flow_shift") if name in held.config]  # the latter in UniPC's family
    if not shifts:
        message = f"flow_shift={full.flow_shift:g} has no effect: {type(held).__name__} takes no shift."
        give_note(message, models.notes_given)
    scheduler = type(held).from_config(held.config, **dict.fromkeys(shifts, full.flow_shift))
    steps = full.num_inference_steps
    sigmas: Any = np.linspace(1.0, 0.0, steps + 1)[:-1]  # diffusers says list, and its pipeline passes an array
    retrieve_timesteps(scheduler, steps, models.device, sigmas=sigmas)
    return scheduler


def sigma_schedule(models: Models, settings: Settings) -> torch.Tensor:
    """Return the noise levels of a run, from 1 (noise) to 0 (video).

    Args:
        models: What `load` returned.
        settings: With num_inference_steps and flow_shift, or None for the model's own.

    Returns:
        (num_inference_steps + 1,) float32 on the CPU.
    """
    return make_scheduler(models, settings).sigmas.cpu()


def add_noise(latents: torch.Tensor, noise: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
    """Mix latents with noise on the straight path of flow matching: (1 - sigma) * latents + sigma * noise.

    Args:
        latents: A video's latents, of any shape.
        noise: As many standard normal numbers.
        sigma: The noise level, one number from 0 (video) to 1 (noise) (https://arxiv.org/abs/2210.02747).

    Raises:
        UserError: The shapes differ, or sigma is not such a number.
    """
    for name, value in (("latents", latents), ("noise", noise)):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise UserError(f"{name} is {kind}: must be a tensor of floating point numbers; float32 would work.")
    if latents.shape != noise.shape:
        raise UserError(f"noise {tuple(noise.shape)}: must be shaped like the latents {tuple(latents.shape)}.")
    check_sigma(sigma, allow_zero=True)
    return (1 - sigma) * latents + sigma * noise


def check_sigma(sigma: object, allow_zero: bool = False) -> float:
    """Return a noise level as a number.

    Args:
        sigma: A number, or a tensor that holds one.
        allow_zero: Whether 0, the video itself, is one.

    Raises:
        UserError: It is something else, or out of range.
    """
    value = sigma.item() if isinstance(sigma, torch.Tensor) and sigma.numel() == 1 else sigma
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
        raise UserError(f"sigma is {got}: must be one number; 0.5 would work.")
    number = float(value)
    if number <= 1 and (number > 0 or (allow_zero and number == 0)):
        return number
    span = "from 0 (video) to 1 (noise)" if allow_zero else "above 0 (video) and at most 1 (noise)"
    works = min(max(number, 0.0 if allow_zero else 0.5), 1.0) if math.isfinite(number) else 0.5
    raise UserError(f"sigma={value!r}: must be {span}; {works:g} would work.")
