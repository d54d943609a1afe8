"""Which upscaler a run uses, and how its frames are enlarged."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from PIL import Image

from ..errors import UserError, give_note
from ..model.models import Models
from ..stages.upscaling.enlarging import upscale_frames
from ..stages.upscaling.packaged import how_to_get
from ..stages.upscaling.weights import PUBLISHED, SHIPPED, available_upscalers, load_upscaler, weight_files

AUTO, NONE, LANCZOS = "auto", "none", "lanczos"
SCALE = 4

# For real footage, the first one at hand. Both realesr networks are small and quick: general-x4v3 is made for footage
# of every kind but has to be fetched; animevideov3 is made for video and keeps it calm.
_FOR_FOOTAGE = ("realesr-general-x4v3", "realesr-animevideov3", "RealESRGAN_x4plus", "RealESRGAN_x2plus")
_SUGGESTED = "realesr-animevideov3"


def check_upscaler(upscale: str | os.PathLike | None) -> str:
    """The upscaler as it is recorded: "auto", "none", a name, or the absolute path of a file.

    Raises:
        UserError: The name is unknown, or the file is missing or damaged.
    """
    name = str(upscale).lower()
    if name in (AUTO, NONE, LANCZOS):
        return name
    load_upscaler(upscale)  # type: ignore[arg-type]
    return str(upscale) if str(upscale) in (*SHIPPED, *PUBLISHED) else os.path.abspath(str(upscale))


def choose_upscaler(models: Models) -> str:
    """The model's own upscaler, else a published Real-ESRGAN network that works offline, else Lanczos with a note."""
    if models.upscaler is not None:
        return models.upscaler
    at_hand = available_upscalers()
    for name in _FOR_FOOTAGE:
        if name in at_hand:
            with contextlib.suppress(UserError):  # damaged there, and out of reach
                load_upscaler(name, progress=False)
                return name
    give_note(
        f"upscale='auto': {models.name} has no upscaler of its own and no published one is at hand, so Lanczos "
        f"interpolation enlarges; upscale={_SUGGESTED!r} fetches Real-ESRGAN's (2.5 MB); {how_to_get(_SUGGESTED)}."
    )
    return LANCZOS


def upscaler_hash(upscale: str) -> str | None:
    """16 hex digits of the SHA-256 over the upscaler's files; None where there are none."""
    if upscale in (NONE, LANCZOS):
        return None
    digest = hashlib.sha256()
    for path, _ in weight_files(upscale, progress=False):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def enlarged(frames: Iterable[np.ndarray], upscale: str, device: torch.device) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8, enlarged fourfold one batch at a time."""
    if upscale != LANCZOS:
        return upscale_frames(frames, upscale, device=device, progress=False)
    return (_lanczos(frame) for frame in frames)


def _lanczos(frame: np.ndarray) -> np.ndarray:
    size = (SCALE * frame.shape[1], SCALE * frame.shape[0])
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
