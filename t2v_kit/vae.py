"""Stage 3: latents become frames, and frames become latents again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from .settings import UserError

if TYPE_CHECKING:
    from .models import Models


@torch.no_grad()
def decode(models: Models, latents: torch.Tensor) -> np.ndarray:
    """Latents (1, C, T, H, W) as a video (frames, height, width, 3) uint8, 0 to 255.

    frames = 4 (T - 1) + 1, height = 8 H, width = 8 W. The same bits as the pipeline's frames; tiling
    is whatever models.pipe.vae is set to. Raises UserError for NaN or entirely black frames.
    """
    vae = models.pipe.vae
    if latents.ndim != 5 or latents.shape[0] != 1 or latents.shape[1] != vae.config.latent_channels:
        raise UserError(f"latents {tuple(latents.shape)}: must be (1, {vae.config.latent_channels}, T, H, W).")
    # To the VAE's dtype before dividing, as the pipeline does: the other order gives other bits.
    scaled = latents.to(models.device, vae.dtype) / vae.config.scaling_factor
    pixels = vae.decode(scaled, return_dict=False)[0]
    finite = bool(torch.isfinite(pixels).all())
    video = (models.pipe.video_processor.postprocess_video(pixels, output_type="np")[0] * 255).round()
    models.pipe.maybe_free_model_hooks()
    if not finite or not video.any():
        raise UserError(
            f"decode: the frames are {'entirely black' if finite else 'NaN'} with the VAE in {vae.dtype}. Likely "
            "cause: float16 overflow in the VAE, or latents that are already broken; remedy: "
            "models.pipe.vae.to(torch.float32) and decode the latents again."
        )
    return video.astype(np.uint8)


@torch.no_grad()
def encode(models: Models, video: np.ndarray, seed: int | None = None) -> torch.Tensor:
    """A video (frames, height, width, 3) uint8 as latents (1, C, T, H, W) float32, scaled for denoise.

    frames must be 4k+1, height and width multiples of 8. seed=None takes the middle of the VAE's
    distribution, a seed draws from it. Raises UserError for another shape or dtype.
    """
    vae = models.pipe.vae
    _check_video(video, models.pipe.vae_scale_factor_temporal, models.pipe.vae_scale_factor_spatial)
    pixels = torch.from_numpy(np.ascontiguousarray(video)).permute(3, 0, 1, 2)[None]
    pixels = (pixels.float() / 127.5 - 1).to(models.device, vae.dtype)
    spread = vae.encode(pixels).latent_dist
    generator = None if seed is None else torch.Generator("cpu").manual_seed(seed)
    latents = spread.mode() if seed is None else spread.sample(generator)
    models.pipe.maybe_free_model_hooks()
    return latents.float() * vae.config.scaling_factor


def _check_video(video: np.ndarray, temporal: int, spatial: int) -> None:
    if not isinstance(video, np.ndarray) or video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3:
        got = f"{video.dtype} {video.shape}" if isinstance(video, np.ndarray) else type(video).__name__
        raise UserError(f"video is {got}: must be a uint8 array (frames, height, width, 3).")
    frames, height, width, _ = video.shape
    whole = temporal * ((frames - 1) // temporal) + 1
    if frames < 1 or frames != whole:
        raise UserError(f"video has {frames} frames: must have {temporal}k+1; {max(whole, 1)} would work.")
    if height % spatial or width % spatial or not height * width:
        near = (height // spatial * spatial or spatial, width // spatial * spatial or spatial)
        raise UserError(f"video is {height}x{width} pixels: must be multiples of {spatial}; {near[0]}x{near[1]} works.")
