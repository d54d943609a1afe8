"""LoRAs on the transformer of a loaded model, by peft: several at once, each with a strength, or one for every step."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError, give_note
from ..hunyuan.lora_arguments import Strength, check_steps, check_strength, parse_loras
from ..hunyuan.lora_files import CLEAN, KNOWN, LoraFile, find_lora
from ..hunyuan.lora_keys import LoraLayer, fit, peft_state


@dataclass(frozen=True)
class Lora:
    """One LoRA of a model.

    Attributes:
        name: The adapter's name in peft, from the file's.
        source: What finds its file again: an absolute path, a hub id with the file, or a link.
        hash: 16 hex digits of the SHA-256 of the file.
        layers: What it adds to each layer, by diffusers' names.
        unmatched: Keys of the file that belong to no layer of the model.
        known_clean: Whether it was trained with known parts put in without noise, as its file says.
    """

    name: str
    source: str
    hash: str
    layers: Mapping[str, LoraLayer] = field(repr=False, compare=False)
    unmatched: tuple[str, ...] = field(repr=False, compare=False)
    known_clean: bool = False

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of its layers, the most frequent first."""
        return tuple(rank for rank, _ in Counter(layer.rank for layer in self.layers.values()).most_common())

    @property
    def alphas(self) -> tuple[float, ...]:
        """The alphas of its layers, the most frequent first; the weight is changed by alpha / rank * up @ down."""
        return tuple(alpha for alpha, _ in Counter(layer.alpha for layer in self.layers.values()).most_common())


class Loras(Sequence[Lora]):
    """The LoRAs of a model and their strengths. Printed, a table of what was matched.

    A strength is a number, or one for each denoising step; 0 switches a LoRA off, and then the bits are those of the
    model without it.

    Example:
        >>> models = load("pocket", loras=[("style.safetensors", 0.8)])  # doctest: +SKIP
        >>> models.loras.set(0.5)  # doctest: +SKIP
    """

    def __init__(self, loras: Iterable[Lora] = (), strengths: Iterable[Strength] = ()) -> None:
        self._loras, self._strengths, self._step = tuple(loras), tuple(strengths), 0
        self._transformer: Any = None  # the object that the pipeline holds, once `put_on` was called

    def __getitem__(self, index):
        return self._loras[index]

    def __len__(self) -> int:
        return len(self._loras)

    @property
    def strengths(self) -> tuple[Strength, ...]:
        """Of each LoRA: a number, or a tuple of one for each step."""
        return self._strengths

    @property
    def arguments(self) -> list[list]:
        """What `load` takes as `loras` to put the same on again; plain data."""
        written = [list(each) if isinstance(each, tuple) else each for each in self._strengths]
        return [[lora.source, strength] for lora, strength in zip(self._loras, written)]

    @property
    def record(self) -> list[str]:
        """What decides the bits, as text: the name, the file's hash and the strength of each."""
        return [
            f"{lora.name} ({lora.hash}) at {_written(strength)}" for lora, strength in zip(self._loras, self._strengths)
        ]

    def set(self, *strengths: float | Sequence[float]) -> None:
        """Give the LoRAs other strengths. While another thread uses the model, hold `models.lock`.

        Args:
            *strengths: One for each LoRA: a number, or a list of as many numbers as there are denoising steps.

        Raises:
            UserError: Another number of them, or one is no number from -10 to 10.
        """
        if len(strengths) != len(self):
            raise UserError(f"{len(strengths)} strengths: this model has {len(self)} LoRAs; one for each would work.")
        self._strengths = tuple(map(check_strength, strengths))
        self._step = 0
        self._switch()

    def check(self, steps: int) -> None:
        """Check that a strength for each step is for this many.

        Raises:
            UserError: It is for another number.
        """
        check_steps([(lora.name, strength) for lora, strength in zip(self._loras, self._strengths)], steps)

    @property
    def known_clean(self) -> bool:
        """Whether a LoRA that acts wants known parts without noise (`Known.clean`), as 'continue' does."""
        return any(
            lora.known_clean and any(strength if isinstance(strength, tuple) else (strength,))
            for lora, strength in zip(self._loras, self._strengths)
        )

    @property
    def vary(self) -> bool:
        """Whether a LoRA has a strength for each step."""
        return any(isinstance(strength, tuple) for strength in self._strengths)

    def at_step(self, index: int) -> None:
        """Switch to the strengths of a denoising step; nothing to do where they are the same for all steps."""
        if self.vary:
            self._step = index
            self._switch()

    def put_on(self, transformer: Any) -> None:
        """Add the LoRAs to a transformer that has none, quantised or not, at the strengths of now.

        Args:
            transformer: A HunyuanVideoTransformer3DModel with its weights.
        """
        self._transformer = transformer
        for lora in self._loras:
            state, config = peft_state(lora.layers)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # of the one before, as is meant
                # Without low_cpu_mem_usage peft would fill the matrices with random numbers first.
                transformer.load_lora_adapter(
                    state, prefix=None, adapter_name=lora.name, metadata=config, low_cpu_mem_usage=True
                )
        self._switch()

    def acts_as_set(self, transformer: Any) -> bool:
        """Whether the adapters on a transformer are these alone, with the strengths that are set here."""
        wanted = dict(self._now())
        for layer in transformer.modules():
            scaling = getattr(layer, "scaling", None)
            if not type(layer).__module__.startswith("peft.") or not isinstance(scaling, dict):
                continue
            active = [] if layer.disable_adapters else [name for name in layer.active_adapters if name in scaling]
            expected = {
                name: wanted[name] * layer.lora_alpha[name] / layer.r[name] for name in scaling if name in wanted
            }
            if layer.merged_adapters or {name: scaling[name] for name in active} != expected:
                return False
        return True

    def _now(self) -> Iterator[tuple[str, float]]:
        """Name and strength of those that act."""
        for lora, strength in zip(self._loras, self._strengths):
            now = strength[min(self._step, len(strength) - 1)] if isinstance(strength, tuple) else strength
            if now:
                yield lora.name, now

    def _switch(self) -> None:
        """Let peft use the strengths of now, where the transformer is loaded."""
        if not getattr(self._transformer, "_hf_peft_config_loaded", False):
            return
        if acting := dict(self._now()):
            self._transformer.enable_lora()
            self._transformer.set_adapters(list(acting), list(acting.values()))
        else:
            self._transformer.disable_lora()

    def __repr__(self) -> str:
        if not self._loras:
            return "no LoRA"
        rows = [("LoRA", "strength", "layers", "unmatched keys", "rank", "alpha", "file")]
        for lora, strength in zip(self._loras, self._strengths):
            ranks, alphas = (", ".join(f"{each:g}" for each in values) for values in (lora.ranks, lora.alphas))
            counts = str(len(lora.layers)), str(len(lora.unmatched))
            rows.append((lora.name, _written(strength), *counts, ranks, alphas, lora.source))
        widths = [max(map(len, column)) for column in zip(*rows)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def find_loras(loras: object) -> list[tuple[LoraFile, Strength]]:
    """The files of what a user gave as `loras`; those of the hub are downloaded.

    Raises:
        UserError: One is missing, or is no such file.
    """
    return [(find_lora(name), strength) for name, strength in parse_loras(loras)]


def fit_loras(found: list[tuple[LoraFile, Strength]], transformer: torch.nn.Module) -> Loras:
    """Read the files and find the layers that they are about; a note names keys that belong to none.

    Args:
        found: What `find_loras` returned.
        transformer: Of it the layers' sizes matter, so it may be on PyTorch's meta device.

    Raises:
        UserError: A file is not about this transformer.
    """
    shapes = _shapes(transformer)
    loras: list[Lora] = []
    for file, _ in found:
        fitted = fit(file.tensors(), shapes, str(file.path), file.metadata(), file.config())
        if fitted.unmatched:
            give_note(
                f"{file.path}: {len(fitted.unmatched)} of its keys belong to no layer of this model and are left out: "
                f"{_few(fitted.unmatched)}."
            )
        name = _adapter_name(file.path, [lora.name for lora in loras])
        clean = file.metadata().get(KNOWN) == CLEAN
        loras.append(Lora(name, file.name, file.digest(), fitted.layers, tuple(fitted.unmatched), clean))
    return Loras(loras, [strength for _, strength in found])


def _shapes(transformer: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Of the weights that a LoRA can change. A quantised layer's own tensor has another shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear):
            shapes[name] = (module.out_features, module.in_features)
        elif isinstance(module, torch.nn.Conv3d):
            shapes[name] = tuple(module.weight.shape)
    return shapes


def _adapter_name(path: Path, taken: list[str]) -> str:
    """The file's name as peft takes one, without dots; a folder's where the file has the usual name."""
    stem = path.parent.name if path.stem in ("pytorch_lora_weights", "adapter_model") else path.stem
    plain = re.sub(r"\W+", "-", stem).strip("-") or "lora"
    plain = f"{plain}-lora" if hasattr(torch.nn.ModuleDict, plain) else plain  # where peft keeps its matrices
    return plain if plain not in taken else f"{plain}-{len(taken) + 1}"


def _few(keys: Sequence[str], most: int = 5) -> str:
    """The first few keys, and how many more there are."""
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + rest


def _written(strength: Strength) -> str:
    return ", ".join(f"{each:g}" for each in (strength if isinstance(strength, tuple) else (strength,)))
