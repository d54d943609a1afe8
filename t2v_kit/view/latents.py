"""Latents as colours: a cheap look at them without the VAE."""

from __future__ import annotations

import numpy as np
import torch

from ..errors import UserError


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
