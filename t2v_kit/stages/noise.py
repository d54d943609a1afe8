"""Noise, the schedule that takes it away, and the straight path between video and noise."""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import FlowMatchHeunDiscreteScheduler
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import retrieve_timesteps
from diffusers.utils.torch_utils import randn_tensor

from ..errors import UserError, give_note
from ..settings import Resolved, Settings
from .decoding import encode
from .image import Picture, check_picture, mixed

if TYPE_CHECKING:
    from ..model.models import Models


def initial_latents(
    models: Models,
    settings: Settings,
    video: object = None,
    strength: float | None = None,
    image: Picture | None = None,
) -> torch.Tensor:
    """Draw pure noise, the same for a seed everywhere; or mix a video with it, to start from.

    The noise comes from a CPU generator, as a seed gives other numbers on a GPU. A video is mixed with it to the noise
    level at which `start_step` lets `denoise` begin: with strength 1 the noise alone is left, with 0 the video.

    Args:
        models: What `load` gave.
        settings: Size and seed; with a video also steps, flow_shift, fps and fit.
        video: What `encode` takes, fitted to the size by settings.fit; or its latents, as `encode` returns them.
        strength: 0 to 1; None for settings.strength.
        image: For a model that starts from a picture: what `read_picture` gave. A thousandth of it is in the noise.

    Returns:
        (1, C, T, H, W) float32 on the model's device: T = (num_frames - 1) / 4 + 1, H and W an eighth of the pixels.

    Raises:
        UserError: The model cannot make this size, the video does not fit, or strength is out of range.

    Example:
        >>> models = load("pocket", device="cpu")
        >>> initial_latents(models, Settings("A red car.")).shape
        torch.Size([1, 16, 9, 14, 24])
    """
    full = settings.check(models)
    noise = _noise(models, full)
    if check_picture(models, image) is not None:
        if video is not None:
            raise UserError(f"video: {models.name} starts from a picture; video=None would work.", setting="video")
        assert image is not None
        return mixed(noise, image)
    if video is None:
        return noise
    start = start_step(models, full, strength)
    clean = video if isinstance(video, torch.Tensor) else encode_to(models, full, video)
    if clean.shape != noise.shape:
        raise UserError(
            f"video's latents {tuple(clean.shape)}: these settings need {tuple(noise.shape)}; encode with this size "
            "gives them.",
            setting="video",
        )
    sigma = levels(make_scheduler(models, full))[start].item()
    return add_noise(clean.to(noise), noise, sigma)


def start_step(models: Models, settings: Settings, strength: float | None = None) -> int:
    """Return the step at which `denoise` begins on a video: the last strength * num_inference_steps steps are run.

    This is how diffusers' video-to-video pipelines count, but to the nearest whole step; a note says where that is not
    what was asked for.

    Args:
        models: What `load` gave.
        settings: num_inference_steps and strength.
        strength: 0 to 1; None for settings.strength.

    Returns:
        0 (all steps) to num_inference_steps (none).

    Raises:
        UserError: strength is out of range.
    """
    steps = settings.check(models).num_inference_steps
    share = settings.strength if strength is None else dataclasses.replace(settings, strength=strength).strength
    run = math.floor(share * steps + 0.5)
    if abs(run - share * steps) > 1e-6:
        give_note(
            f"strength={share:g} of {steps} steps is {share * steps:g}: {run} are run, "
            f"as with strength={run / steps:.3g}."
        )
    return steps - run


def encode_to(models: Models, full: Resolved, video: object) -> torch.Tensor:
    """A video as latents of the settings' size, fitted by settings.fit."""
    return encode(
        models, video, fit=full.fit, height=full.height, width=full.width, num_frames=full.num_frames, fps=full.fps
    )


def latents_shape(models: Models, full: Resolved) -> tuple[int, int, int, int, int]:
    """The shape of these settings' latents: (1, C, T, H, W)."""
    pipe = models.pipe
    return (
        1,
        pipe.transformer.config.out_channels,
        (full.num_frames - 1) // pipe.vae_scale_factor_temporal + 1,
        full.height // pipe.vae_scale_factor_spatial,
        full.width // pipe.vae_scale_factor_spatial,
    )


def _noise(models: Models, full: Resolved) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(full.seed)
    return randn_tensor(latents_shape(models, full), generator=generator, device=models.device, dtype=torch.float32)


def make_scheduler(models: Models, settings: Settings) -> Any:
    """Make a scheduler of the pipeline's class, its timesteps set with settings.flow_shift.

    The sigmas go in evenly spaced from 1 and are shifted once, as the pipeline does it; `set_timesteps(n)` would
    shift the already shifted range a second time. Schedulers that take no sigmas make their own: Heun's the same,
    DPM-Solver's from 0.999 instead of 1.

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
    if isinstance(scheduler, FlowMatchHeunDiscreteScheduler):  # it makes its own sigmas, evenly between these two
        scheduler.sigma_max, scheduler.sigma_min = 1.0, 1 / steps
    if "sigmas" not in inspect.signature(scheduler.set_timesteps).parameters:
        scheduler.set_timesteps(steps, device=models.device)
        return scheduler
    sigmas: Any = np.linspace(1.0, 0.0, steps + 1)[:-1]  # diffusers says list, and its pipeline passes an array
    retrieve_timesteps(scheduler, steps, models.device, sigmas=sigmas)
    return scheduler


def levels(scheduler: Any) -> torch.Tensor:
    """Return the noise level before each step and after the last one, (steps + 1,), on the scheduler's device.

    A scheduler of second order, such as Heun's, evaluates the transformer twice in every step but the last, and lists
    its sigmas so.

    Args:
        scheduler: What `make_scheduler` gave.
    """
    return torch.cat([scheduler.sigmas[: -1 : scheduler.order], scheduler.sigmas[-1:]])


def sigma_schedule(models: Models, settings: Settings) -> torch.Tensor:
    """Return the noise levels of a run, from 1 (noise) to 0 (video).

    Args:
        models: What `load` returned.
        settings: With num_inference_steps and flow_shift, or None for the model's own.

    Returns:
        (num_inference_steps + 1,) float32 on the CPU.
    """
    return levels(make_scheduler(models, settings)).cpu()


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
