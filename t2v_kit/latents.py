"""Noise, the schedule that takes it away, and a cheap look at latents without the VAE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import retrieve_timesteps
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .settings import Settings, UserError, tell_once

if TYPE_CHECKING:
    from .models import Models


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
        tell_once(f"flow_shift={settings.flow_shift:g} has no effect: {type(held).__name__} takes no shift.")
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


def fit_rgb(latents: torch.Tensor, video: np.ndarray, noise: float = 0.0) -> torch.Tensor:
    """The linear map (C + 1, 3) float32 from latents to colours that fits a video best.

    latents: (1, C, T, H, W); video: the (frames, height, width, 3) uint8 it was decoded to or encoded
    from. The last row is the offset. Least squares over all latent pixels.  noise: the best map for
    latents with noise of this deviation on them (0.1 costs little and keeps noise from being enlarged).
    """
    *_, frames, height, width = latents.shape
    pixels = torch.from_numpy(video).permute(3, 0, 1, 2)[None].float() / 255
    # The first latent frame holds one frame of video, each other an equal share of the rest.
    groups = [pixels[:, :, :1]]
    if frames > 1:
        groups += pixels[:, :, 1:].tensor_split(frames - 1, dim=2)
    small = [torch.nn.functional.adaptive_avg_pool3d(group, (1, height, width)) for group in groups]
    target = torch.cat(small, dim=2)[0].flatten(1).T
    known = latents[0].float().cpu().flatten(1).T
    rows = torch.cat([known, torch.ones(len(known), 1)], dim=1)
    if noise:  # its expected square is a sum over the weights: one more row for each of them, the offset's aside
        pull = noise * len(known) ** 0.5 * torch.eye(rows.shape[1])[:-1]
        rows, target = torch.cat([rows, pull]), torch.cat([target, torch.zeros(len(pull), 3)])
    return torch.linalg.lstsq(rows, target).solution


def preview_rgb(latents: torch.Tensor, matrix: torch.Tensor) -> np.ndarray:
    """Latents (1, C, T, H, W) as small frames (T, H, W, 3) uint8, by the map of `fit_rgb`."""
    rows = latents[0].detach().float().cpu().movedim(0, -1)
    colours = rows @ matrix[:-1] + matrix[-1]
    return (colours.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def tile_channels(latents: torch.Tensor, columns: int = 8, spread: float = 3.0) -> np.ndarray:
    """The channels of latents (1, C, T, H, W) side by side, as one grey film (T, H', W', 3) uint8.

    columns: how many stand in a row, with white lines between them.  spread: black is -spread, white is
    spread and mid-grey 0; three deviations of pure noise by default. Raises UserError for columns below 1.
    """
    if columns < 1:
        raise UserError(f"columns={columns}: must be at least 1; 8 would work.")
    grey = ((latents[0].detach().float().cpu() / spread).clamp(-1, 1) * 127.5 + 127.5).round()
    framed = torch.nn.functional.pad(grey, (0, 1, 0, 1), value=255)  # a line below and on the right of each
    empty = framed.new_full((-len(framed) % columns, *framed.shape[1:]), 255)
    rows = torch.cat([framed, empty]).unflatten(0, (-1, columns))  # (rows, columns, T, H + 1, W + 1)
    mosaic = rows.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)[:, :-1, :-1]
    return mosaic.to(torch.uint8)[..., None].expand(-1, -1, -1, 3).numpy().copy()
