"""Stage 3: latents become frames, and frames become latents again; in tiles, and what is lost on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import UserError

if TYPE_CHECKING:
    from ..model.models import Models



@torch.no_grad()
def decode(models: Models, latents: torch.Tensor) -> np.ndarray:
    """Latents (1, C, T, H, W) as a video (frames, height, width, 3) uint8, 0 to 255.

    frames = 4 (T - 1) + 1, height = 8 H, width = 8 W. The same bits as the pipeline's frames; tiling
    is whatever models.pipe.vae is set to. Raises UserError for NaN or entirely black frames.
    """
    vae = models.network("vae")
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
    vae = models.network("vae")
    _check_video(video, models.pipe.vae_scale_factor_temporal, models.pipe.vae_scale_factor_spatial)
    pixels = torch.from_numpy(np.ascontiguousarray(video)).permute(3, 0, 1, 2)[None]
    pixels = (pixels.float() / 127.5 - 1).to(models.device, vae.dtype)
    spread = vae.encode(pixels).latent_dist
    generator = None if seed is None else torch.Generator("cpu").manual_seed(seed)
    latents = spread.mode() if seed is None else spread.sample(generator)
    models.pipe.maybe_free_model_hooks()
    return latents.float() * vae.config.scaling_factor


@contextlib.contextmanager
def tiles(
    models: Models, pixels: int | None = 256, overlap: int = 64, frames: int | None = 16, frame_overlap: int = 4
) -> Iterator[None]:
    """Inside `with tiles(models, ...):`, `encode` and `decode` work piece by piece, which takes less memory.

    pixels: height and width of a tile.  frames: its length (the VAE takes one more, to start from).
    overlap, frame_overlap: by how many pixels and frames neighbours overlap; over these one fades into the
    other.  None in place of a size: all at once. The defaults are diffusers' own, AutoencoderKLHunyuanVideo's
    256 pixels every 192 and 16 frames every 12; without this, it tiles time only. Where a memory plan keeps one
    stage in memory at a time, it lasts until another stage begins.
    Raises UserError unless sizes and overlaps are multiples of what the VAE makes one latent of (8 pixels,
    4 frames), and an overlap is at most half a tile.
    """
    vae = models.network("vae")
    stride = _stride("pixels", pixels, "overlap", overlap, models.pipe.vae_scale_factor_spatial)
    frame_stride = _stride("frames", frames, "frame_overlap", frame_overlap, models.pipe.vae_scale_factor_temporal)
    wanted = {"use_tiling": pixels is not None}
    wanted |= {"use_framewise_encoding": frames is not None, "use_framewise_decoding": frames is not None}
    for sizes, size, step in ((("height", "width"), pixels, stride), (("num_frames",), frames, frame_stride)):
        if size is not None:
            wanted |= {f"tile_sample_min_{name}": size for name in sizes}
            wanted |= {f"tile_sample_stride_{name}": step for name in sizes}
    before = {name: getattr(vae, name) for name in wanted}
    vars(vae).update(wanted)
    try:
        yield
    finally:
        vars(vae).update(before)


@contextlib.contextmanager
def frozen_norms(models: Models) -> Iterator[None]:
    """Inside `with frozen_norms(models):`, the VAE's group norms keep the statistics of what they saw first.

    A group norm takes mean and variance over all frames and pixels at once: the one part of this VAE through
    which later frames reach earlier ones, and why a tile differs from its part of the whole. With the first
    clip's statistics kept for those after it (encoder and decoder each have their own), that way is closed.
    """
    norms = [module for module in models.network("vae").modules() if isinstance(module, torch.nn.GroupNorm)]
    before = [vars(norm).get("forward") for norm in norms]  # that of another frozen_norms around this one
    for norm in norms:
        norm.forward = _freezing(norm)
    try:
        yield
    finally:
        for norm, outer in zip(norms, before):
            del norm.forward  # the class's own shows again
            if outer is not None:
                norm.forward = outer


def _freezing(norm: torch.nn.GroupNorm):
    """`norm`'s forward, with the mean and deviation of its first input for all later ones."""
    kept = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        groups = x.unflatten(1, (norm.num_groups, -1)).float()
        if not kept:
            variance, mean = torch.var_mean(groups, tuple(range(2, groups.ndim)), correction=0, keepdim=True)
            kept.extend((mean, (variance + norm.eps).sqrt()))
        mean, deviation = kept
        channels = (-1, *(1,) * (x.ndim - 2))
        scaled = ((groups - mean) / deviation).flatten(1, 2).to(x.dtype)
        return scaled * norm.weight.view(channels) + norm.bias.view(channels)

    return forward


def _stride(name: str, size: int | None, overlap_name: str, overlap: int, unit: int) -> int:
    """How far one tile starts from the next; UserError unless it and the tile come out whole in latents."""
    if size is None:
        return 0
    if not isinstance(size, int) or size < unit or size % unit:
        near = max(unit, round(size / unit) * unit) if isinstance(size, (int, float)) else 4 * unit
        raise UserError(f"{name}={size!r}: must be a multiple of {unit}, the VAE's compression; {near} would work.")
    if not isinstance(overlap, int) or overlap % unit or not 0 <= overlap <= size // 2:
        near = size // 2 // unit * unit
        if isinstance(overlap, (int, float)):
            near = min(max(round(overlap / unit) * unit, 0), near)
        raise UserError(
            f"{overlap_name}={overlap!r}: must be a multiple of {unit}, at most half of {name}; {near} would work."
        )
    return size - overlap


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
