"""Earlier work with the same content, in a run's folder or in one beside it: latents, a checkpoint, a prompt."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..errors import UserError
from ..stages.prompt import PromptEncoding
from .folder import read_latents, read_notes
from .record import latents_key, prompt_key
from .target import CHECKPOINT, read_record


@dataclass(frozen=True, eq=False)
class SavedLatents:
    """Latents of earlier work.

    Attributes:
        latents: (1, C, T, H, W) on the CPU, in the transformer's dtype.
        step: How many denoising steps they are through.
        source: The folder they were read from.
    """

    latents: torch.Tensor = field(repr=False)
    step: int
    source: Path


def find_latents(folder: Path, record: dict) -> SavedLatents | None:
    """Those that `record` would make: whole or half-way in this folder, or whole in one beside it."""
    key, beside = latents_key(record), sorted(folder.parent.glob("*/latents.safetensors"))
    for file in (folder / "latents.safetensors", folder / CHECKPOINT, *beside):
        with contextlib.suppress(UserError, OSError):  # damaged or not readable: made again
            if file.exists() and read_notes(file).get("key") == key:
                return SavedLatents(*read_latents(file), file.parent)
    return None


def find_prompt(folder: Path, record: dict) -> tuple[PromptEncoding, Path] | None:
    """The prompt of `record`, encoded by the same text encoders for a run in this folder or in one beside it."""
    for file in (folder / "prompt.safetensors", *sorted(folder.parent.glob("*/prompt.safetensors"))):
        with contextlib.suppress(UserError, OSError):
            if file.exists() and prompt_key(read_record(file.parent)) == prompt_key(record):
                return PromptEncoding.load(file), file.parent
    return None
