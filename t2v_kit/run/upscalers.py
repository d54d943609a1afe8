"""Which upscaler a run uses, and how its frames are enlarged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from ..model.models import Models
from ..stages.upscaling.defaults import for_footage
from ..stages.upscaling.enlarging import upscale_frames
from ..stages.upscaling.names import AUTO, LANCZOS, NONE, PUBLISHED, SHIPPED
from ..stages.upscaling.weights import load_upscaler, weight_files


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
    return models.upscaler or for_footage(models.name)


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
