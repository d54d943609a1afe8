"""The LoRA that is trained: put into the transformer with peft, and written in diffusers' format."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.utils import delete_adapter_layers
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from ..atomic import write_whole
from ..errors import UserError, did_you_mean
from .options import TARGETS, TrainSettings

ADAPTER = "t2v_kit_training"
_BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")


def target_layers(transformer: HunyuanVideoTransformer3DModel, settings: TrainSettings) -> list[str]:
    """The names of the blocks' linear layers that get a LoRA.

    Raises:
        UserError: An end of a name fits no layer.
    """
    linear = [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith(_BLOCKS)
    ]
    linear = [name.removesuffix(".base_layer") for name in linear if ".lora_" not in name]
    ends = settings.target_names
    for end in ends:
        if settings.targets not in TARGETS and not any(_ends(name, end) for name in linear):
            known = sorted({name.split(".", 2)[2] for name in linear})
            raise UserError(f"targets={settings.targets!r}: {end!r} is no layer; {did_you_mean(end, known)}")
    return [name for name in linear if any(_ends(name, end) for end in ends)]


def _ends(name: str, end: str) -> bool:
    return name.split(".", 2)[2] == end or name.endswith(f".{end}")


def _adapted(transformer: HunyuanVideoTransformer3DModel) -> list[LoraLayer]:
    """The layers that have a LoRA."""
    return [module for module in transformer.modules() if isinstance(module, LoraLayer)]


@contextlib.contextmanager
def lora(transformer: HunyuanVideoTransformer3DModel, settings: TrainSettings) -> Iterator[dict[str, torch.Tensor]]:
    """Inside, the transformer has a fresh LoRA, the only weights that ask for gradients.

    Args:
        transformer: The model's; LoRAs that it has already stay and are not trained.
        settings: rank, alpha, targets and seed.

    Yields:
        The LoRA's weights by the names that diffusers gives them in a file, without "transformer.".
    """
    if ADAPTER in getattr(transformer, "peft_config", {}):
        raise UserError("train: another training of this model is under way; it works once that one's loop has ended.")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha_or_rank,  # type: ignore[arg-type]  (peft divides by it)
        target_modules=target_layers(transformer, settings),
        init_lora_weights=True,
    )
    asked = [(weight, weight.requires_grad) for weight in transformer.parameters()]
    active = {each: list(each.active_adapters) for each in _adapted(transformer)}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            transformer.add_adapter(config, ADAPTER)
        for each in _adapted(transformer):
            each.set_adapter([*active.get(each, []), *([ADAPTER] if ADAPTER in each.lora_A else [])])
        weights = {}
        for name, weight in transformer.named_parameters():
            ours = f".{ADAPTER}." in name
            weight.requires_grad_(ours)
            if ours:
                weight.data = weight.data.to(transformer.device)  # the layer's own weights may wait in RAM
                weights[name.replace(f".{ADAPTER}", "")] = weight
        yield weights
    finally:
        if active:
            delete_adapter_layers(transformer, ADAPTER)
            transformer.peft_config.pop(ADAPTER, None)
            for each, names in active.items():
                each.set_adapter(names)
        else:
            transformer.unload_lora()
        for weight, wanted in asked:
            weight.requires_grad_(wanted)


def write_lora(
    path: str | Path, weights: dict[str, torch.Tensor], settings: TrainSettings, trained: dict | None = None
) -> Path:
    """Write a LoRA that `pipe.load_lora_weights(path)` of plain diffusers takes.

    Args:
        path: A file ending in .safetensors; its folder must exist.
        weights: As `lora` yields them.
        settings: Of the training.
        trained: What it was trained on; stored as JSON under "t2v_kit" in the file's metadata.

    Returns:
        The path.

    Raises:
        UserError: `path` has another ending.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(
            f"path={str(path)!r}: must end in .safetensors; {str(path.with_suffix('.safetensors'))!r} would work."
        )
    names = sorted({name.rpartition(".lora_")[0] for name in weights})
    adapter = {
        "transformer.r": settings.rank,
        "transformer.lora_alpha": settings.alpha_or_rank,
        "transformer.target_modules": names,
    }
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(adapter, sort_keys=True)}
    metadata["t2v_kit"] = json.dumps(trained or {}, ensure_ascii=False)
    tensors = {f"transformer.{name}": weight.detach().cpu().contiguous() for name, weight in weights.items()}
    with write_whole(path) as temporary:
        save_file(tensors, temporary, metadata)
    return path
