"""Which upscaler a run uses, and how its frames are enlarged."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError, give_note
from ..model.models import Models
from ..stages.upscaling.enlarging import upscale_frames
from ..stages.upscaling.packaged import how_to_get
from ..stages.upscaling.weights import LANCZOS, PUBLISHED, SHIPPED, available_upscalers, load_upscaler, weight_files
from ..video.files import read_metadata

AUTO, NONE = "auto", "none"

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
    return models.upscaler or _for_footage(models.name)


def upscaler_of_file(source: str | Path) -> str:
    """Choose for a video file as `choose_upscaler` does: pocket for what pocket made, a real network for footage.

    Raises:
        UserError: The source is no video.
    """
    try:
        made_by = read_metadata(source).get("settings", {}).get("model")
    except UserError:  # a video of another program
        made_by = None
    return "pocket" if made_by == "pocket" else _for_footage(Path(source).name)


def _for_footage(whose: str) -> str:
    at_hand = available_upscalers()
    for name in _FOR_FOOTAGE:
        if name in at_hand:
            with contextlib.suppress(UserError):  # damaged there, and out of reach
                load_upscaler(name, progress=False)
                return name
    give_note(
        f"upscale='auto': {whose} has no upscaler of its own and no published one is at hand, so Lanczos "
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
    return upscale_frames(frames, upscale, device=device, progress=False)
