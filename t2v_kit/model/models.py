"""A loaded model: the plain pipeline and what this package has to know about it."""

from __future__ import annotations

import copy
import functools
import hashlib
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..errors import give_note
from ..hunyuan.backends import NATIVE
from ..hunyuan.files import HASH_WHOLE_FILES_UP_TO, NETWORKS, ModelFiles, header
from ..hunyuan.parallel import Team
from ..memory.plan import Plan
from ..settings import Resolved, Settings
from .check import longest, notes, resolve
from .loras import Loras
from .residence import STAGE, Residence


class ModelLock:
    """A re-entrant lock for `with`; a copy of it is a new one, so that what holds it can be copied and pickled."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_) -> None:
        self._lock.release()

    def __reduce__(self):
        return ModelLock, ()


@dataclass
class Models:
    """A loaded model, as `load` returns it.

    Several threads may use one: each call of a stage, and each step of `denoise`, holds `lock`, and settings are
    checked with copies of the tokenizers. Calls of `pipe` itself are yours to guard, by `with models.lock:`.

    Attributes:
        pipe: The HunyuanVideoPipeline, or HunyuanVideoImageToVideoPipeline; the stages use whatever it holds
            (scheduler, processors, LoRA).
        name: What `load` takes to find it again from any directory: 'pocket', 'hunyuan', a hub id, or an absolute path.
        source: Where it is from: 't2v_kit/pocket', a hub id, or an absolute path.
        folder: Where its files are.
        files: The same in detail: which weight files, of which variant.
        defaults: What None means in `Settings`.
        template: The prompt_template for pipe.encode_prompt.
        device: Where it computes.
        revision: The hub's commit that was loaded, else None.
        trained_sizes: (frames, height, width) it was trained on; may be empty.
        world: "toyland" for a model that was trained on it alone and so knows its words alone; None for any other.
        memory: The memory plan; None when it was loaded without one.
        upscaler: The upscaler made for its videos, as `upscale` takes it; None when it has none.
        loras: The LoRAs that `load` put on the transformer, with their strengths; printed, a table.
        attention: The backend that the transformer's blocks attend with.
        compiled: Whether `load` compiled the transformer's blocks and the VAE.
        team: The processes that make one video together; None for one alone.
        lock: Held by whoever uses the networks; a thread may take it again while it holds it.
    """

    pipe: Any  # one of two classes of diffusers, which share most attributes and no base that declares them
    name: str
    source: str
    folder: Path
    files: ModelFiles
    defaults: dict
    template: dict
    device: torch.device
    revision: str | None = None
    trained_sizes: tuple[tuple[int, int, int], ...] = ()
    world: str | None = None
    memory: Plan | None = None
    residence: Residence | None = field(default=None, repr=False)
    upscaler: str | None = None
    attention: str = NATIVE
    compiled: bool = False
    team: Team | None = field(default=None, repr=False)
    loras: Loras = field(default_factory=Loras)
    # Of the networks, which dataclasses.replace hands on: so it must hand on their lock too.
    lock: ModelLock = field(default_factory=ModelLock, repr=False, compare=False)
    _counters: dict = field(default_factory=dict, repr=False, compare=False)
    notes_given: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @property
    def arguments(self) -> dict[str, Any]:
        """The keywords by which `load` reads the same again: name, and revision, variant, base, loras where given."""
        linked = self.files.single is not None and self.name.startswith("https:")  # the commit is that of the base
        revision = None if linked else self.revision
        given: dict[str, Any] = {
            "name": self.name,
            "revision": revision,
            "variant": self.files.variant,
            "base": self.files.base,
        }
        given["loras"] = self.loras.arguments or None
        given["attention"] = None if self.attention == NATIVE else self.attention
        given["compile"] = self.compiled or None
        return {key: value for key, value in given.items() if value is not None}

    def check(self, settings: Settings) -> Resolved:
        """Complete and check settings for this model, and give its notes; `Settings.check` says more."""
        full = resolve(settings, self)
        self.loras.check(full.num_inference_steps)
        for message in notes(settings, self).values():
            give_note(message, self.notes_given)
        return full

    @property
    def condition(self) -> str | None:
        """How a picture reaches the transformer: 'latent_concat' or 'token_replace'; None for text to video."""
        return self.pipe.transformer.config.image_condition_type

    @property
    def trained_latents(self) -> int:
        """How many latents the longest videos have that it was trained on; of its default size if that is not known."""
        return longest(self)

    def counter(self, name: str) -> PreTrainedTokenizerBase:
        """A copy of a tokenizer for counting tokens, which nobody pads with.

        Padding and truncation are a state of the tokenizer itself, which pipe.encode_prompt switches on: a count in
        another thread would switch it off in the middle of that.

        Args:
            name: 'tokenizer' or 'tokenizer_2'.
        """
        original = getattr(self.pipe, name)
        kept = self._counters.get(name)
        if kept is None or kept[0] is not original:
            twin = copy.deepcopy(original)
            twin.backend_tokenizer.no_padding()
            twin.backend_tokenizer.no_truncation()
            kept = self._counters[name] = (original, twin)
        return kept[1]

    def network(self, name: str) -> Any:  # a Module of its own class: `name` decides which
        """Return a network of the pipeline, ready to be changed or called; those of other stages leave the device.

        The latter applies where networks are offloaded one at a time. Under a memory plan with a single stage in
        memory, the network is read now.

        Args:
            name: 'text_encoder', 'text_encoder_2', 'transformer' or 'vae'.
        """
        with self.lock:
            if self.residence:
                return self.residence.require(name)
            network = getattr(self.pipe, name)
            stage = [getattr(self.pipe, other) for other in NETWORKS if STAGE[other] == STAGE[name]]
            self._offload(keep=stage)
            return network

    def release(self) -> None:
        """Offload every network that model offload or the memory plan offloads, as the pipeline does after a call.

        Unlike pipe.maybe_free_model_hooks, it leaves step caches alone: a preview in the middle of a run must not
        empty the run's cache. Without offloading nothing happens.
        """
        with self.lock:
            if self.residence:
                self.residence.release()
            self._offload(keep=[])

    def _offload(self, keep: list[torch.nn.Module]) -> None:
        for hook in getattr(self.pipe, "_all_hooks", ()):  # of enable_model_cpu_offload
            if not any(hook.model is network for network in keep):
                hook.offload()

    @functools.cached_property
    def weights_hash(self) -> str:
        """16 hex digits of the SHA-256 over all weight files.

        When the files are larger than 2 GiB together: 'headers-' and 16 digits over names, sizes and headers alone.
        """
        files = [path for name in NETWORKS for path in self.files.weights(name)]
        whole = sum(path.stat().st_size for path in files) <= HASH_WHOLE_FILES_UP_TO
        digest = hashlib.sha256()
        for path in files:
            inside = path.is_relative_to(self.folder)
            named = path.relative_to(self.folder).as_posix() if inside else path.name
            digest.update(f"{named} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes() if whole else _head(path))
        return ("" if whole else "headers-") + digest.hexdigest()[:16]


def _head(path: Path) -> bytes:
    """What names and sizes of the tensors begin with: a safetensors header, or the first MiB of a GGUF file."""
    if path.suffix.lower() != ".gguf":
        return header(path)
    with open(path, "rb") as file:
        return file.read(2**20)
