"""Stage 4: latents become frames, and frames become latents again; in tiles, and what is lost on the way."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers.hooks import ModelHook
from einops import rearrange

from ..errors import UserError, check_whole, is_whole
from ..hunyuan.hooks import attach, detach
from ..video.clips import MOST_FRAMES, fit_clip, read_clip

if TYPE_CHECKING:
    from ..model.models import Models

_frozen = itertools.count()
_WATCHING = "t2v_kit_watched_tiles"


@torch.no_grad()
def decode(models: Models, latents: torch.Tensor, on_tile: Callable[[int, int], object] | None = None) -> np.ndarray:
    """Turn latents into a video: the pipeline's frames to the bit, or to rounding where `load` compiled the VAE.

    Args:
        models: What `load` gave. Tiling is whatever models.pipe.vae is set to (`tiles`).
        latents: (1, C, T, H, W), floating point.
        on_tile: Called as on_tile(done, total) after each tile that the decoder has turned into pixels (`tile_count`
            of them). What it raises ends the decoding.

    Returns:
        (frames, height, width, 3) uint8, 0 to 255: frames = 4 (T - 1) + 1, height = 8 H, width = 8 W; four frames less
        for a model of image_condition_type "latent_concat", as its pipeline shows them. Where several
        processes make one video, the first of them has it; the others have no frames: (0, height, width, 3).

    Raises:
        UserError: Another shape; or the frames are NaN or entirely black.

    Example:
        >>> models = load("pocket", device="cpu")
        >>> decode(models, torch.randn(1, 16, 1, 4, 6)).shape
        (1, 32, 48, 3)
    """
    _check_latents(latents, models.pipe.vae.config.latent_channels)
    with models.lock:
        vae = models.network("vae")
        try:
            # To the VAE's dtype before dividing, as the pipeline does: the other order gives other bits.
            scaled = latents.to(models.device, vae.dtype) / vae.config.scaling_factor
            with _watched(vae.decoder, on_tile, tile_count(models, latents)):
                pixels = vae.decode(scaled, return_dict=False)[0]
            if models.team is not None and not models.team.leads:  # it has its own tiles alone
                return np.empty((0, *pixels.shape[-2:], 3), np.uint8)
            finite = bool(torch.isfinite(pixels).all())
            frames = models.pipe.video_processor.postprocess_video(pixels, output_type="pt")[0]
            # Floats become bytes where they are, frame by frame: to be moved, they would be four times as many.
            shown = [rearrange((frame.float() * 255).round().byte(), "c h w -> h w c") for frame in frames]
            video = torch.stack(shown).cpu().numpy()
        finally:
            models.release()
    if not finite or not video.any():
        raise UserError(
            f"decode: the frames are {'entirely black' if finite else 'NaN'} with the VAE in {vae.dtype}. Likely "
            "cause: float16 overflow in the VAE, or latents that are already broken; remedy: "
            "models.pipe.vae.to(torch.float32) and decode the latents again."
        )
    # A picture that is joined to the latents' channels is a latent by itself, whose frames the pipeline leaves out.
    behind = models.pipe.vae_scale_factor_temporal
    return video[behind if models.condition == "latent_concat" and len(video) > behind else 0 :]


def tile_count(models: Models, latents: torch.Tensor) -> int:
    """Count the tiles in which `decode` works with the model's tiling as it is.

    Args:
        models: What `load` gave.
        latents: (1, C, T, H, W).

    Returns:
        How often the decoder will run; 1 where nothing is tiled.
    """
    vae, space, time = models.pipe.vae, models.pipe.vae_scale_factor_spatial, models.pipe.vae_scale_factor_temporal
    frames, height, width = latents.shape[-3:]
    length, rows, columns = 1, 1, 1
    if vae.use_framewise_decoding and frames > vae.tile_sample_min_num_frames // time:
        length = len(range(0, frames, vae.tile_sample_stride_num_frames // time))
    if vae.use_tiling and (height > vae.tile_sample_min_height // space or width > vae.tile_sample_min_width // space):
        rows = len(range(0, height, vae.tile_sample_stride_height // space))
        columns = len(range(0, width, vae.tile_sample_stride_width // space))
    return length * rows * columns


@torch.no_grad()
def encode(
    models: Models,
    video: object,
    seed: int | None = None,
    *,
    fit: str = "refuse",
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
) -> torch.Tensor:
    """Turn a video into latents, scaled as `denoise` has them.

    Latent 0 is frame 0 alone; latent i above 0 is the four frames 4i - 3 to 4i (`latent_frames`).

    Args:
        models: What `load` gave.
        video: (frames, height, width, 3) uint8; one picture, (height, width, 3) uint8 or a PIL image; or the path of a
            video or picture. A file is read at `fps` by its timestamps.
        seed: Draw from the VAE's distribution with this seed; None takes its middle.
        fit: What happens to another size or length. "refuse": an error. "crop": scaled to cover the frame, the middle
            and the first frames are kept. "pad": scaled to lie within it, on black; the last frame is held. What is
            done is said in a note.
        height, width: Pixels to fit to, multiples of 8; None for the video's own, to the next multiple of 8.
        num_frames: Frames to fit to, 4k + 1; None for the video's own, likewise.
        fps: Frames a second to take from a file; None for the model's own.

    Returns:
        (1, C, T, H, W) float32 on the model's device.

    Raises:
        UserError: A file that is no video, a size or length that does not fit, or a seed that is not a whole number.

    Example:
        >>> models = load("pocket", device="cpu")
        >>> encode(models, np.zeros((60, 100, 3), np.uint8), fit="crop").shape
        torch.Size([1, 16, 1, 7, 12])
    """
    spatial, temporal = models.pipe.vae_scale_factor_spatial, models.pipe.vae_scale_factor_temporal
    for name, value, unit, rest in (("height", height, spatial, 0), ("width", width, spatial, 0),
                                    ("num_frames", num_frames, temporal, 1)):  # fmt: skip
        if value is not None and (not is_whole(value) or value < 1 or value % unit != rest % unit):
            rule = f"{unit}k+1" if rest else f"a multiple of {unit}"
            raise UserError(f"{name}={value!r}: must be {rule}; {4 * unit + rest} would work.", setting=name)
    drawn = None if seed is None else check_whole("seed", seed, 0, 2**63 - 1)
    most = MOST_FRAMES if num_frames is None else num_frames
    clip = read_clip(video, "video", models.defaults["fps"] if fps is None else fps, most)
    frames = fit_clip(clip, height, width, num_frames, fit, (spatial, temporal))
    generator = None if drawn is None else torch.Generator("cpu").manual_seed(drawn)
    with models.lock:
        vae = models.network("vae")
        try:
            pixels = rearrange(torch.from_numpy(frames), "t h w c -> 1 c t h w")
            pixels = (pixels.float() / 127.5 - 1).to(models.device, vae.dtype)
            spread = vae.encode(pixels).latent_dist
            latents = spread.mode() if generator is None else spread.sample(generator)
        finally:
            models.release()
    return latents.float() * vae.config.scaling_factor


def latent_frames(index: int, temporal: int = 4) -> range:
    """Return the frames that a latent stands for: the first one alone, then `temporal` each.

    Args:
        index: Of the latent, from 0.
        temporal: Frames that share a latent; 4 in HunyuanVideo's VAE.

    Example:
        >>> [list(latent_frames(index)) for index in range(3)]
        [[0], [1, 2, 3, 4], [5, 6, 7, 8]]
    """
    index = check_whole("index", index, 0)
    return range(0, 1) if index == 0 else range(temporal * (index - 1) + 1, temporal * index + 1)


@contextlib.contextmanager
def tiles(
    models: Models, pixels: int | None = 256, overlap: int = 64, frames: int | None = 16, frame_overlap: int = 4
) -> Iterator[None]:
    """Inside `with tiles(models, ...):`, `encode` and `decode` work piece by piece, which takes less memory.

    The defaults are diffusers' own for AutoencoderKLHunyuanVideo: 256 pixels every 192 and 16 frames every 12; without
    `tiles`, it tiles time only. The setting is the model's: it holds for every thread. Where a memory plan keeps one
    stage in memory at a time, it lasts until another stage begins.

    Args:
        models: What `load` gave.
        pixels: Height and width of a tile; None for the whole frame.
        overlap: By how many pixels neighbours overlap; over these one fades into the other.
        frames: Length of a tile (the VAE takes one more, to start from); None for all frames.
        frame_overlap: By how many frames neighbours overlap.

    Raises:
        UserError: A size or overlap is not a multiple of what the VAE makes one latent of (8 pixels, 4 frames), or an
            overlap is more than half a tile.
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
    with models.lock:
        before = {name: getattr(vae, name) for name in wanted}
        vars(vae).update(wanted)
    try:
        yield
    finally:
        with models.lock:
            vars(vae).update(before)


@contextlib.contextmanager
def frozen_norms(models: Models) -> Iterator[None]:
    """Inside `with frozen_norms(models):`, the VAE's group norms keep the statistics of their first input.

    A group norm takes mean and variance over all frames and pixels at once: the one part of this VAE through
    which later frames reach earlier ones, and why a tile differs from its part of the whole. With the first
    clip's statistics kept for those after it (encoder and decoder each have their own), that way is closed. Blocks
    may be nested: the innermost one counts.

    Args:
        models: What `load` gave.
    """
    name = f"t2v_kit_frozen_norms_{next(_frozen)}"
    with models.lock:
        norms = [module for module in models.network("vae").modules() if isinstance(module, torch.nn.GroupNorm)]
        for norm in norms:
            attach(norm, _FrozenNorm(), name)
    try:
        yield
    finally:
        with models.lock:
            for norm in norms:
                detach(norm, name)


@contextlib.contextmanager
def _watched(decoder: torch.nn.Module, on_tile: Callable[[int, int], object] | None, total: int) -> Iterator[None]:
    """Inside it, `on_tile` is called after each run of the decoder."""
    if on_tile is None:
        yield
        return
    attach(decoder, _AfterEach(on_tile, total), _WATCHING)
    try:
        yield
    finally:
        detach(decoder, _WATCHING)


class _AfterEach(ModelHook):
    """Counts the runs of a module."""

    def __init__(self, on_tile: Callable[[int, int], object], total: int) -> None:
        super().__init__()
        self.on_tile, self.done, self.total = on_tile, 0, total

    def post_forward(self, module: torch.nn.Module, output):
        self.done += 1
        self.on_tile(self.done, self.total)
        return output


class _FrozenNorm(ModelHook):
    """A group norm with the mean and deviation of its first input for all later ones."""

    def __init__(self) -> None:
        super().__init__()
        self.statistics: tuple[torch.Tensor, torch.Tensor] | None = None

    def new_forward(self, norm: torch.nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
        groups = rearrange(x, "b (g c) ... -> b g c ...", g=norm.num_groups).float()
        if self.statistics is None:
            variance, mean = torch.var_mean(groups, tuple(range(2, groups.ndim)), correction=0, keepdim=True)
            self.statistics = mean, (variance + norm.eps).sqrt()
        mean, deviation = self.statistics
        scaled = rearrange((groups - mean) / deviation, "b g c ... -> b (g c) ...").to(x.dtype)
        channels = (-1, *(1,) * (x.ndim - 2))
        return scaled * norm.weight.view(channels) + norm.bias.view(channels)


def _stride(name: str, size: int | None, overlap_name: str, overlap: int, unit: int) -> int:
    """How far one tile starts from the next; UserError unless it and the tile come out whole in latents."""
    if size is None:
        return 0
    if not is_whole(size) or size < unit or size % unit:
        near = max(unit, round(size / unit) * unit) if isinstance(size, (int, float)) else 4 * unit
        raise UserError(f"{name}={size!r}: must be a multiple of {unit}, the VAE's compression; {near} would work.")
    if not is_whole(overlap) or overlap % unit or not 0 <= overlap <= size // 2:
        near = size // 2 // unit * unit
        if isinstance(overlap, (int, float)):
            near = min(max(round(overlap / unit) * unit, 0), near)
        raise UserError(
            f"{overlap_name}={overlap!r}: must be a multiple of {unit}, at most half of {name}; {near} would work."
        )
    return size - overlap


def _check_latents(latents: object, channels: int) -> None:
    """Refuse what the VAE would not decode, or would decode to nothing."""
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
        kind = latents.dtype if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise UserError(f"latents are {kind}: must be a tensor of floating point numbers; float32 would work.")
    shape = tuple(latents.shape)
    near = (1, channels, *(max(1, size) for size in (shape[-3:] if latents.ndim >= 3 else (1, 4, 6))))
    if shape != near:
        raise UserError(f"latents {shape}: must be (1, {channels}, T, H, W); {near} would work.")
