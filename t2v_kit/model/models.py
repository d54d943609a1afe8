"""A loaded model: the plain pipeline and what this package has to know about it."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import HunyuanVideoPipeline

from ..errors import give_note
from ..hunyuan.files import HASH_WHOLE_FILES_UP_TO, NETWORKS, header, weight_files
from ..memory.plan import Plan
from ..settings import Resolved, Settings
from .check import notes, resolve
from .residence import Residence


@dataclass
class Models:
    """A loaded model, as `load` returns it.

    Attributes:
        pipe: The HunyuanVideoPipeline; the stages use whatever it holds (scheduler, processors, LoRA).
        name: 'pocket', 'hunyuan' or the folder as given.
        source: The folder or the hub id.
        folder: Where its files are.
        defaults: What None means in `Settings`.
        template: The prompt_template for pipe.encode_prompt.
        device: Where it computes.
        revision: The hub's commit that was loaded, else None.
        trained_sizes: (frames, height, width) it was trained on; may be empty.
        vocabulary: The words that a toy model has seen; None when it does not list them.
        memory: The memory plan; None when it was loaded without one.
        upscaler: The upscaler made for its videos, as `upscale` takes it; None when it has none.
    """

    pipe: HunyuanVideoPipeline
    name: str
    source: str
    folder: Path
    defaults: dict
    template: dict
    device: torch.device
    revision: str | None = None
    trained_sizes: tuple[tuple[int, int, int], ...] = ()
    vocabulary: frozenset[str] | None = field(default=None, repr=False)
    memory: Plan | None = None
    residence: Residence | None = field(default=None, repr=False)
    upscaler: str | None = None
    notes_given: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def check(self, settings: Settings) -> Resolved:
        """Complete and check settings for this model, and give its notes; `Settings.check` says more."""
        full = resolve(settings, self)
        for message in notes(settings, self).values():
            give_note(message, self.notes_given)
        return full

    def network(self, name: str) -> torch.nn.Module:
        """Return a network of the pipeline, ready to be changed or called.

        Where a memory plan keeps one stage in memory at a time, the network is read now and those of other stages
        leave the device.

        Args:
            name: 'text_encoder', 'text_encoder_2', 'transformer' or 'vae'.
        """
        return self.residence.require(name) if self.residence else getattr(self.pipe, name)

    @functools.cached_property
    def weights_hash(self) -> str:
        """16 hex digits of the SHA-256 over all weight files.

        When the files are larger than 2 GiB together: 'headers-' and 16 digits over names, sizes and headers alone.
        """
        files = [path for name in NETWORKS for path in weight_files(self.folder / name)]
        whole = sum(path.stat().st_size for path in files) <= HASH_WHOLE_FILES_UP_TO
        digest = hashlib.sha256()
        for path in files:
            digest.update(f"{path.relative_to(self.folder).as_posix()} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes() if whole else header(path))
        return ("" if whole else "headers-") + digest.hexdigest()[:16]
