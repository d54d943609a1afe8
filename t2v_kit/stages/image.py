"""A picture that a video starts from, for models that were made for it: HunyuanVideo-I2V in both of its forms.

The picture is read twice: by the language model, beside the prompt, and by the VAE. How its latents reach the
transformer is the model's `image_condition_type`. "token_replace": they stand in the place of the first frame's at
every step, without noise. "latent_concat": they are further channels, with a mask that says which frame they are of.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from ..errors import UserError
from ..settings import Settings
from ..video.clips import fit_clip, read_clip
from .decoding import encode

if TYPE_CHECKING:
    from ..model.models import Models

CONCAT, REPLACE = "latent_concat", "token_replace"
_NOISE = 0.999  # the share of noise that the pipeline mixes with the picture's latents to begin with


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture to start from, as the stages take it.

    Attributes:
        image: The fitted picture, for the language model.
        latents: (1, C, 1, H, W) float32, the VAE's, scaled.
        digest: Of what was given.
    """

    image: Image.Image = field(repr=False)
    latents: torch.Tensor = field(repr=False)
    digest: str


def read_picture(models: Models, settings: Settings, image: object) -> Picture:
    """Fit a picture to the video's size and encode it.

    Args:
        models: A model that starts from pictures.
        settings: Size and fit.
        image: A path, a PIL image, or (H, W, 3) uint8.

    Returns:
        What `encode_prompt`, `initial_latents` and `denoise` take as `image`.

    Raises:
        UserError: The model makes videos from text alone, or the picture cannot be read or does not fit.

    Example:
        >>> models = load("hunyuan-i2v")  # doctest: +SKIP
        >>> picture = read_picture(models, Settings("She smiles."), "portrait.jpg")  # doctest: +SKIP
        >>> prompt = encode_prompt(models, "She smiles.", image=picture)  # doctest: +SKIP
    """
    full = settings.check(models)
    if models.condition is None:
        raise UserError(
            f"image: {models.name} makes videos from text; known_parts(first=...) would work, and so would the model "
            "'hunyuan-i2v'.",
            setting="image",
        )
    pixels, digest = fitted_picture(models, full, image)
    return Picture(Image.fromarray(pixels), encode(models, pixels), digest)


def fitted_picture(models: Models, full, image: object) -> tuple[np.ndarray, str]:
    """(H, W, 3) uint8 at the settings' size, and the digest of what was given, without a network."""
    clip = read_clip(image, "image", full.fps, 2)
    if len(clip.frames) > 1:
        raise UserError(
            "image is a video: must be a picture; its first frame as a picture would work.", setting="image"
        )
    units = models.pipe.vae_scale_factor_spatial, models.pipe.vae_scale_factor_temporal
    return fit_clip(clip, full.height, full.width, 1, full.fit, units, "image")[0], clip.digest


def check_picture(models: Models, image: object) -> Picture | None:
    """Refuse a picture where the model takes none, and none where it needs one.

    Raises:
        UserError: Either; or it is no `Picture`.
    """
    if models.condition is None and image is not None:
        raise UserError(f"image: {models.name} makes videos from text; image=None would work.", setting="image")
    if models.condition is not None and not isinstance(image, Picture):
        got = "missing" if image is None else f"{type(image).__name__}"
        raise UserError(
            f"image is {got}: {models.name} starts from a picture; read_picture(models, settings, 'in.png') gives it.",
            setting="image",
        )
    return image  # type: ignore[return-value]


def mixed(noise: torch.Tensor, picture: Picture) -> torch.Tensor:
    """The noise that the pipeline begins with: a thousandth of it is the picture, in every frame."""
    share = torch.tensor([_NOISE], device=noise.device)
    return noise * share + picture.latents.to(noise).repeat(1, 1, noise.shape[2], 1, 1) * (1 - share)


class Conditioned:
    """What a picture changes in the loop of one run."""

    def __init__(self, condition: str, picture: Picture, latents: torch.Tensor) -> None:
        self.condition, self.latents = condition, picture.latents.to(latents.device)
        self.beside: torch.Tensor | None = None
        if condition == CONCAT:
            frames = latents.shape[2]
            held = self.latents.repeat(1, 1, frames, 1, 1)
            held[:, :, 1:] = 0
            mask = held.new_ones(1, 1, *held.shape[2:])
            mask[:, :, 1:] = 0
            self.beside = torch.cat([held, mask], dim=1)

    def seen(self, latents: torch.Tensor) -> torch.Tensor:
        """What the transformer is given for `latents`."""
        if self.beside is not None:
            return torch.cat([latents, self.beside], dim=1)
        return torch.cat([self.latents, latents[:, :, 1:]], dim=2)

    def stepped(self, step, velocity: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """The scheduler's step; a first frame that is replaced takes none."""
        if self.beside is not None:
            return step(velocity, latents)
        return torch.cat([self.latents, step(velocity[:, :, 1:], latents[:, :, 1:])], dim=2)
