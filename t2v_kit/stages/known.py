"""Known parts: what of a video is given while the rest is denoised. First and last frames, a beginning, a mask."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from ..errors import UserError
from ..settings import Resolved, Settings
from ..video.clips import MOST_FRAMES, fit_clip, read_clip
from .decoding import encode
from .noise import add_noise, encode_to, initial_latents

if TYPE_CHECKING:
    from ..model.models import Models


@dataclass(frozen=True, eq=False)
class Known:
    """Latents of which a part is given.

    Attributes:
        latents: (1, C, T, H, W) clean, scaled as `encode` gives them; what they hold where nothing is given is not
            used.
        mask: (1, 1, T, H, W) bool, True where they are given. Of a patch of 2x2 cells some may be given, some not.
        clean: Put them in without noise at every step: for weights that were trained so, such as pocket's LoRA
            'continue'. Weights of text to video alone were not.

    Raises:
        UserError: The two do not belong together, or everything or nothing is given.

    Example:
        >>> mask = torch.zeros(1, 1, 3, 4, 6, dtype=torch.bool)
        >>> mask[:, :, 0] = True
        >>> f"{Known(torch.randn(1, 4, 3, 4, 6), mask).share:.2f}"
        '0.33'
    """

    latents: torch.Tensor = field(repr=False)
    mask: torch.Tensor = field(repr=False)
    clean: bool = False

    def __post_init__(self) -> None:
        for name, value in (("latents", self.latents), ("mask", self.mask)):
            if not isinstance(value, torch.Tensor):
                raise UserError(f"known {name} is {type(value).__name__}: must be a tensor; known_parts gives it.")
        if self.latents.ndim != 5 or not self.latents.is_floating_point():
            raise UserError(
                f"known latents are {self.latents.dtype} {tuple(self.latents.shape)}: must be (1, C, T, H, W) of "
                "floating point numbers; encode gives them."
            )
        wanted = (1, 1, *self.latents.shape[2:])
        if self.mask.dtype != torch.bool or tuple(self.mask.shape) != wanted:
            raise UserError(
                f"known mask is {self.mask.dtype} {tuple(self.mask.shape)}: must be torch.bool {wanted}, True where "
                "the latents are given."
            )
        if self.mask.all() or not self.mask.any():
            what = "everything: nothing is left to make; decode(models, latents) shows it"
            raise UserError(f"known covers {what if self.mask.all() else 'nothing: denoise without known would work'}.")

    @property
    def share(self) -> float:
        """The share of the latents that is given, above 0 and below 1."""
        return self.mask.float().mean().item()

    def put(self, latents: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
        """Replace what is given in `latents` by itself at noise level `sigma`, mixed with `noise`.

        Args:
            latents: (1, C, T, H, W) at noise level sigma.
            noise: As many standard normal numbers; the same at every step, so that what is given walks the straight
                line of flow matching.
            sigma: 0 to 1.
        """
        given = add_noise(self.latents.to(noise), noise, 0.0 if self.clean else sigma).to(latents.dtype)
        return torch.where(self.mask.to(latents.device), given, latents)


def renoise(latents: torch.Tensor, sigma: float, higher: float, noise: torch.Tensor) -> torch.Tensor:
    """Take latents from noise level `sigma` back up to `higher`, with fresh noise: RePaint's resampling for flows.

    The clip's share must go from 1 - sigma to 1 - higher, which scales the noise that is already in it; fresh noise
    fills the variance up to higher^2 (https://arxiv.org/abs/2201.09865 has it for diffusion).

    Args:
        latents: (1, C, T, H, W) at noise level sigma.
        sigma, higher: 0 <= sigma < higher <= 1.
        noise: As many standard normal numbers, fresh.
    """
    keep = (1 - higher) / (1 - sigma)
    return keep * latents + math.sqrt(max(higher**2 - (keep * sigma) ** 2, 0.0)) * noise


def known_parts(
    models: Models,
    settings: Settings,
    first: object = None,
    last: object = None,
    video: object = None,
    mask: object = None,
) -> Known:
    """Encode what is given of a video: its beginning, its end, or all but a masked region.

    Latent 0 is frame 0 alone, each later one four frames. So a beginning is 4k + 1 frames (k + 1 latents), an end 4k
    frames (k latents). A cell of the latents, 8x8 pixels of those frames, is given only where no pixel of it is to be
    made anew.

    Args:
        models: What `load` gave.
        settings: Size, fps and fit.
        first: A picture, or a clip of 4k + 1 frames: as `encode` takes it.
        last: A picture, which is held for the last four frames, or a clip of 4k frames.
        video: The video of which `mask` keeps a part: as `encode` takes it.
        mask: A picture for all frames, or a video with as many frames as `video`: bright (128 and more) where the video
            is made anew, dark where it stays. A bool array (T, H, W) or (H, W) does as well. Of the video's own size,
            or of the size that the settings say.

    Returns:
        What `denoise` takes as `known`; clean where a LoRA on the model was trained so.

    Raises:
        UserError: One of them does not fit, or everything or nothing is given.

    Example:
        >>> models = load("pocket", device="cpu")
        >>> picture = np.zeros((112, 192, 3), np.uint8)
        >>> known_parts(models, Settings("A red car."), first=picture).mask[0, 0, :, 0, 0].tolist()
        [True, False, False, False, False, False, False, False, False]
    """
    full = settings.check(models)
    return known_of(models, full, fitted_parts(models, full, first, last, video, mask))


@dataclass(frozen=True, eq=False)
class Fitted:
    """Given clips at the settings' size, uint8; None where there is none.

    Attributes:
        first: (4k + 1, H, W, 3).
        last: (4k + 1, H, W, 3): a frame to start from, and the 4k frames that are given.
        video: (T, H, W, 3).
        kept: (T, H, W) bool, True where the video stays.
        digests: Of what was given, by argument.
    """

    first: np.ndarray | None = None
    last: np.ndarray | None = None
    video: np.ndarray | None = None
    kept: np.ndarray | None = None
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def any_known(self) -> bool:
        """Whether a part of the latents is given, besides a video to start from."""
        return self.first is not None or self.last is not None or self.kept is not None


def fitted_parts(
    models: Models, full: Resolved, first: object = None, last: object = None, video: object = None, mask: object = None
) -> Fitted:
    """Read and fit what is given, without a network. Raises UserError as `known_parts` says."""
    temporal, fps = models.pipe.vae_scale_factor_temporal, full.fps
    units, digests, parts = (models.pipe.vae_scale_factor_spatial, temporal), {}, {}
    if mask is not None and video is None:
        raise UserError("mask is given without a video: it says which part of one stays; video='in.mp4' would work.",
                        setting="mask")  # fmt: skip
    if first is not None:
        clip = read_clip(first, "first_frame", fps, full.num_frames)
        digests["first_frame"] = clip.digest
        parts["first"] = fit_clip(clip, full.height, full.width, None, full.fit, units, "first_frame")
    if last is not None:
        clip = read_clip(last, "last_frame", fps, full.num_frames)
        digests["last_frame"] = clip.digest
        parts["last"] = _end(clip, full, units)
    known = sum((len(part) - 1) // temporal for part in parts.values()) + (first is not None)
    if known > (full.num_frames - 1) // temporal:
        raise UserError(
            f"first_frame and last_frame cover all {full.num_frames} frames: nothing is left to make; num_frames="
            f"{temporal * known + 1} would work.",
            setting="first_frame" if first is not None else "last_frame",
        )
    if video is not None:
        clip = read_clip(video, "video", fps, full.num_frames)
        digests["video"] = clip.digest
        parts["video"] = fit_clip(clip, full.height, full.width, full.num_frames, full.fit, units, "video")
        if mask is not None:
            parts["kept"], digests["mask"] = _kept(mask, clip, full, units)
    return Fitted(**parts, digests=digests)


def known_of(models: Models, full: Resolved, parts: Fitted, clean: torch.Tensor | None = None) -> Known:
    """Encode fitted parts. clean: the video's latents, where they are there already.

    Raises UserError when everything or nothing is given.
    """
    noise = initial_latents(models, full)  # for the shape and the device
    latents, mask = torch.zeros_like(noise), torch.zeros_like(noise[:, :1], dtype=torch.bool)
    if parts.video is not None and parts.kept is not None:
        latents = (encode_to(models, full, parts.video) if clean is None else clean).clone()
        mask = covered(parts.kept, models.pipe.vae_scale_factor_temporal, models.pipe.vae_scale_factor_spatial)
        mask = mask.to(noise.device)
    if parts.first is not None:
        begin = encode(models, parts.first)
        latents[:, :, : begin.shape[2]], mask[:, :, : begin.shape[2]] = begin, True
    if parts.last is not None:
        end = encode(models, parts.last)[:, :, 1:]
        latents[:, :, -end.shape[2] :], mask[:, :, -end.shape[2] :] = end, True
    return Known(latents, mask, models.loras.known_clean)


def covered(kept: np.ndarray, temporal: int = 4, spatial: int = 8) -> torch.Tensor:
    """Turn a mask of pixels into one of latents: a cell is True where all of its pixels are.

    Args:
        kept: (frames, height, width) bool; frames 4k + 1.
        temporal, spatial: Frames and pixels that share a latent.

    Returns:
        (1, 1, T, H, W) bool.

    Example:
        >>> kept = np.ones((5, 16, 16), bool)
        >>> kept[3, 0, 0] = False
        >>> covered(kept)[0, 0].tolist()
        [[[True, True], [True, True]], [[False, True], [True, True]]]
    """
    missing = torch.from_numpy(~kept).float()[None, None]
    missing = torch.cat([missing[:, :, :1].expand(-1, -1, temporal - 1, -1, -1), missing], dim=2)
    return F.max_pool3d(missing, (temporal, spatial, spatial)) == 0


def _end(clip, full: Resolved, units: tuple[int, int]) -> np.ndarray:
    """The clip at the end, with a frame in front of it, because the first latent of a clip is one frame alone."""
    temporal, count = units[1], len(clip.frames)
    if count == 1:
        frame = fit_clip(clip, full.height, full.width, 1, full.fit, units, "last_frame")
        return frame.repeat(temporal + 1, axis=0)
    if count % temporal:
        raise UserError(
            f"last_frame has {count} frames: must be a picture or {temporal}k frames; the last "
            f"{max(count // temporal * temporal, temporal)} would work.",
            setting="last_frame",
        )
    frames = fit_clip(
        type(clip)(np.concatenate([clip.frames[:1], clip.frames]), clip.name, clip.digest, clip.timing, clip.more),
        full.height, full.width, None, full.fit, units, "last_frame",
    )  # fmt: skip
    return frames


def _kept(mask: object, video, full: Resolved, units: tuple[int, int]) -> tuple[np.ndarray, str]:
    """(T, H, W) True where the video stays, at the settings' size, and the mask's digest."""
    clip = read_clip(mask, "mask", full.fps, min(full.num_frames, MOST_FRAMES))
    size, sizes = clip.frames.shape[1:3], (video.frames.shape[1:3], (full.height, full.width))
    if size not in sizes:
        raise UserError(
            f"mask is {size[0]}x{size[1]} pixels: must be of the video's size; {sizes[0][0]}x{sizes[0][1]} would work.",
            setting="mask",
        )
    count = len(clip.frames)
    if count not in (1, full.num_frames, len(video.frames)):
        raise UserError(
            f"mask has {count} frames: must be one picture, or as many as the video; {full.num_frames} would work.",
            setting="mask",
        )
    fitted = fit_clip(clip, full.height, full.width, count if count == 1 else full.num_frames, full.fit, units, "mask")
    anew = fitted.mean(axis=3) >= 128
    if count == 1:
        anew = anew.repeat(full.num_frames, axis=0)
    if anew.all() or not anew.any():
        what = (
            "white everywhere: nothing of the video stays" if anew.all() else "black everywhere: nothing is made anew"
        )
        raise UserError(f"mask is {what}; white where the video is made anew, black where it stays.", setting="mask")
    return ~anew, clip.digest
