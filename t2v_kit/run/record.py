"""What decides the bits of latents, written down: so that a run knows which work of an earlier one is its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import secrets
from datetime import datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch

from .._version import __version__

if TYPE_CHECKING:
    from ..model.models import Models

AFTER_LATENTS = ("model", "upscale", "fps")  # settings that don't touch latents; the weights do, by whatever name

#: What was used, besides the settings, to make the latents. Another device or version rounds differently.
DECIDES_LATENTS = (
    *("weights_hash", "networks", "template", "scheduler", "step_cache", "attention", "own_code", "memory"),
    *("device", "gpu", "dtype"),
    *("t2v_kit", "torch", "diffusers", "transformers"),
)

# Whose hooks and attention processors are known: what they do follows from the settings, the plan and the versions.
KNOWN = ("t2v_kit", "diffusers", "transformers", "accelerate", "peft", "bitsandbytes")


def made_with(models: Models) -> dict:
    """The model as it is now, the device and the versions: what settings.json says beside the settings."""
    pipe, transformer = models.pipe, models.pipe.transformer
    networks = (pipe.text_encoder, pipe.text_encoder_2, transformer)
    planned = models.memory is not None
    come_and_go = planned and models.memory.one_stage  # read anew at each stage: as the files and the plan say
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "model": models.source,
        "revision": models.revision,
        "weights_hash": models.weights_hash,
        "networks": None if come_and_go else networks_hash(*networks, device=models.device),
        "template": _digest(models.template),
        "scheduler": _scheduler(pipe.scheduler),
        "step_cache": step_cache(transformer),
        "attention": None if come_and_go else sorted(set(map(_processor, transformer.attn_processors.values()))),
        "own_code": own_code(*networks),
        "memory": models.memory.as_dict() if planned else None,
        "device": str(models.device),
        "gpu": torch.cuda.get_device_name(models.device) if models.device.type == "cuda" else None,
        "dtype": models.memory.transformer.dtype if planned else str(transformer.dtype).removeprefix("torch."),
        "t2v_kit": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "diffusers", "transformers")},
    }


def latents_key(record: dict) -> str:
    """16 hex digits: two records with the same ones make the same latents, to the bit."""
    return _digest(_decisive(record))


def prompt_key(record: dict) -> str:
    """16 hex digits: two records with the same ones encode the same prompt, to the bit."""
    named = {name: record["settings"].get(name) for name in ("prompt", "padded_prompt", "memory")}
    made = {name: record["made_with"].get(name) for name in DECIDES_LATENTS if name not in ("scheduler", "step_cache")}
    return _digest(named | made)


def differences(earlier: dict, now: dict) -> dict[str, tuple]:
    """Where two records differ in what decides latents: {name: (earlier, now)}."""
    one, other = _decisive(earlier), _decisive(now)
    pairs = {name: (one.get(name), other.get(name)) for name in one | other}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _decisive(record: dict) -> dict:
    settings = {name: value for name, value in record["settings"].items() if name not in AFTER_LATENTS}
    return settings | {name: record["made_with"].get(name) for name in DECIDES_LATENTS}


def networks_hash(*networks: torch.nn.Module, device: torch.device | str = "cpu") -> str:
    """16 hex digits over the weights as they are now: a LoRA or an edited layer counts, unlike in the files' hash.

    Over classes, configs, and the names, shapes and summed bits of all tensors: 0.03 s for pocket. A GPU as `device`
    adds up faster than a CPU, those that wait in RAM as well. Weights that wait outside of memory (on torch's meta
    device) count by name and shape.
    """
    told = []
    for network in networks:
        config = network.config if isinstance(network.config, dict) else network.config.to_dict()
        told.append([type(network).__name__, {k: v for k, v in config.items() if not k.startswith("_")}])
        told += [
            [name, list(tensor.shape), str(tensor.dtype), _sums_of_bits(tensor, device)]
            for name, tensor in network.state_dict().items()
            if isinstance(tensor, torch.Tensor)
        ]
    return _digest(told)


def own_code(*networks: torch.nn.Module) -> str | None:
    """The hooks and attention processors of neither the libraries nor this package; None when there are none.

    Nobody can read what they do, so a number that is never the same again follows: nothing passes for their work.
    """
    found = []
    for module in (module for network in networks for module in network.modules()):
        found += [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        found += _wrapped(getattr(module, "processor", None))
    strangers = sorted({_origin(each) for each in found if _origin(each).split(".")[0] not in KNOWN})
    return f"{', '.join(strangers)} {secrets.token_hex(4)}" if strangers else None


def step_cache(transformer: torch.nn.Module) -> str | None:
    """The step cache that is enabled, with its numbers, as text; None without one."""
    if not transformer.is_cache_enabled:
        return None
    config = transformer._cache_config
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    told = ", ".join(f"{name}={value}" for name, value in fields.items() if not callable(value))
    return f"{type(config).__name__}({told})"


def _sums_of_bits(tensor: torch.Tensor, device: torch.device | str) -> list[int]:
    """The tensor's bits, read as whole numbers and summed along rows and along columns, each weighted by its place.

    Whole numbers give the same sum in any order, so threads and devices agree.
    """
    if tensor.is_meta:
        return []
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    tensor = tensor.detach().as_subclass(torch.Tensor)  # bitsandbytes' own kind would quantise on the way
    table = tensor.to(device).contiguous().view(whole).reshape(len(tensor) if tensor.ndim else 1, -1)
    sums = [table.sum(dim=side, dtype=torch.int64) for side in (0, 1)]
    places = [torch.arange(1, len(each) + 1, device=device) * 0x9E3779B1 % 2**31 for each in sums]
    return [int((each * weights).sum()) for each, weights in zip(sums, places)]


def _scheduler(scheduler) -> str:
    """Class and config; the shift comes from the settings."""
    skipped = ("shift", "flow_shift")
    config = {name: value for name, value in scheduler.config.items() if name[0] != "_" and name not in skipped}
    return f"{type(scheduler).__name__} {_digest(config)}"


def _processor(processor) -> str:
    """Class and plain attributes."""
    plain = sorted(pair for pair in vars(processor).items() if isinstance(pair[1], (str, int, float)))
    told = ", ".join(f"{name}={value}" for name, value in plain)
    return f"{_origin(processor)}({told})"


def _wrapped(processor) -> list:
    """A processor and those that it calls in turn; none for None."""
    inner = getattr(processor, "processor", None) or getattr(processor, "plain", None)
    return [] if processor is None else [processor, *_wrapped(inner)]


def _origin(thing) -> str:
    """Where a function, or the class of an object, comes from: its module and its name there."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def _digest(content: object) -> str:
    text = json.dumps(content, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
