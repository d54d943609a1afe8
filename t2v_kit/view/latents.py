"""Latents as colours: a cheap preview without the VAE."""

from __future__ import annotations

import numpy as np
import torch

from ..errors import check_whole
from ..video.arrays import check_video


def fit_rgb(latents: torch.Tensor, video: np.ndarray, noise: float = 0.0) -> torch.Tensor:
    """Fit a linear map from latents to colours, by least squares over all latent pixels.

    Args:
        latents: (1, C, T, H, W).
        video: `(frames, height, width, 3)` uint8, which the latents were encoded from or decoded to.
        noise: The standard deviation of noise on the latents for which the map is best. 0.1 costs little and keeps
            the map from amplifying noise.

    Returns:
        (C + 1, 3) float32 for colours from 0 to 1; the last row is the offset.

    Raises:
        UserError: `video` is not a video.
    """
    check_video(video)
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
    """Draw latents as small frames.

    Args:
        latents: (1, C, T, H, W).
        matrix: (C + 1, 3), as `fit_rgb` returns it.

    Returns:
        `(T, H, W, 3)` uint8, one pixel for each latent pixel.
    """
    rows = latents[0].detach().float().cpu().movedim(0, -1)
    colours = rows @ matrix[:-1] + matrix[-1]
    return (colours.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def tile_channels(latents: torch.Tensor, columns: int = 8, spread: float = 3.0) -> np.ndarray:
    """Draw the channels of latents side by side in grey, with white lines between them.

    Args:
        latents: (1, C, T, H, W).
        columns: The number of channels in a row, at least 1.
        spread: The value that is white; -spread is black and 0 mid-grey. 3 is three standard deviations of pure noise.

    Returns:
        `(T, H', W', 3)` uint8.

    Raises:
        UserError: `columns` is not a whole number of at least 1.
    """
    check_whole("columns", columns)
    grey = ((latents[0].detach().float().cpu() / spread).clamp(-1, 1) * 127.5 + 127.5).round()
    framed = torch.nn.functional.pad(grey, (0, 1, 0, 1), value=255)  # a line below and on the right of each
    empty = framed.new_full((-len(framed) % columns, *framed.shape[1:]), 255)
    rows = torch.cat([framed, empty]).unflatten(0, (-1, columns))  # (rows, columns, T, H + 1, W + 1)
    mosaic = rows.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)[:, :-1, :-1]
    return mosaic.to(torch.uint8)[..., None].expand(-1, -1, -1, 3).numpy().copy()
