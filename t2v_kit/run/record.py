"""What decides the bits of latents, as data: a run compares it with that of earlier runs to know what it may reuse.

The list is short and closed: settings, weights, adapters with their strengths, plain attributes of the modules, device,
threads and versions, on a pipeline whose parts are the classes of known libraries, unpatched. `unknown_code` names
whatever else is on a model, and then nothing is reused.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import inspect
import json
import platform
import sys
from collections.abc import Iterator
from datetime import datetime

import diffusers
import torch
import transformers

from .._version import __version__
from ..hunyuan.files import NETWORKS
from ..model.models import Models
from .given import GIVEN

#: Settings that don't touch latents. Weights and LoRAs do, by whatever name: `made_with` has their hashes.
AFTER_LATENTS = ("model", "loras", "upscale", "fps")

#: What was used, besides the settings, to make the latents. Another device or version rounds differently.
DECIDES_LATENTS = (
    *("weights_hash", "networks", "loras", "template", "scheduler", "step_cache", "attention", "hooks", "compiled"),
    *("memory", "device", "gpu", "gpus", "threads", "precision", "dtype", "unknown_code"),
    *("t2v_kit", "torch", "diffusers", "transformers"),
)

# Libraries whose classes and functions do what follows from the record.
KNOWN = ("t2v_kit", "torch", "diffusers", "transformers", "accelerate", "peft", "bitsandbytes", "huggingface_hub")
_KNOWN = frozenset((*KNOWN, *sys.stdlib_module_names))
_WRAPPERS = ("t2v_kit.", "diffusers.hooks.", "accelerate.")  # which may wrap a method of one object
_PLACING = (
    "t2v_kit.",
    "diffusers.hooks.group_offloading",
    "diffusers.hooks.layerwise_casting",
    "diffusers.hooks.context_parallel",
)  # ModelHooks


def made_with(models: Models) -> dict:
    """The model as it is now, the device and the versions: what settings.json says beside the settings."""
    with models.lock:  # another run may be at a step with other strengths
        models.loras.at_step(0)
        return _made_with(models)


def _made_with(models: Models) -> dict:
    pipe, transformer, plan = models.pipe, models.pipe.transformer, models.memory
    reread = plan is not None and plan.one_stage  # at each stage, as the files and the plan say
    networks = (pipe.text_encoder, pipe.text_encoder_2, transformer)
    on_cpu = models.device.type == "cpu"
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "model": models.source,
        "revision": models.revision,
        "loaded_by": models.arguments,
        "weights_hash": models.weights_hash,
        "networks": None if reread else networks_hash(*networks, device=models.device),
        "vae": None if reread else networks_hash(pipe.vae, device=models.device),
        "loras": sorted({*_loaded_loras(models), *(lora for each in networks for lora in _loras(each, models))}),
        "template": _digest([models.template, _tokenizer(pipe.tokenizer), _tokenizer(pipe.tokenizer_2)]),
        "scheduler": _scheduler(pipe.scheduler),
        "step_cache": _step_cache(transformer),
        "attention": None if reread else sorted(set(map(_processor, transformer.attn_processors.values()))),
        "hooks": None if reread else sorted({_origin(hook) for hook in _model_hooks(transformer)}),
        "compiled": any(module._compiled_call_impl is not None for module in transformer.modules()),
        "unknown_code": unknown_code(models) or None,
        "memory": plan.as_dict() if plan is not None else None,
        "device": str(models.device),
        "gpu": None if on_cpu else torch.cuda.get_device_name(models.device),
        "gpus": None if models.team is None else models.team.size,  # each adds up a share
        "threads": torch.get_num_threads() if on_cpu else None,  # another number adds up in another order
        "precision": _precision(models.device),
        "dtype": plan.transformer.dtype if plan is not None else str(transformer.dtype).removeprefix("torch."),
        "t2v_kit": __version__,
        "python": platform.python_version(),
        # of what is imported, build tag included: the installed metadata says 2.13.0 of a 2.13.0+cu130
        "torch": str(torch.__version__),
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


def latents_key(record: dict) -> str:
    """16 hex digits: two records with the same ones make the same latents, to the bit."""
    return _digest(_decisive(record))


def prompt_key(record: dict) -> str:
    """16 hex digits: two records with the same ones encode the same prompt, to the bit."""
    names = ("prompt", "padded_prompt", "memory")
    settings = {name: record["settings"].get(name) for name in names}
    if picture := (record["made_with"].get("given") or {}).get("image"):  # read beside the prompt, at the video's size
        settings |= {name: record["settings"].get(name) for name in ("height", "width", "fit")} | {"image": picture}
    made = {name: record["made_with"].get(name) for name in DECIDES_LATENTS if name not in ("scheduler", "step_cache")}
    return _digest(settings | made)


def differences(earlier: dict, now: dict) -> dict[str, tuple]:
    """Where two records differ in what decides latents: {name: (earlier, now)}. Unknown code always does."""
    one, other = _decisive(earlier), _decisive(now)
    pairs = {name: (one.get(name), other.get(name)) for name in one | other}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] or (name == "unknown_code" and pair[1])}


def _decisive(record: dict) -> dict:
    settings = {name: value for name, value in record["settings"].items() if name not in AFTER_LATENTS}
    given = record["made_with"].get("given") or {}
    for name in (*GIVEN, "strength", "fit", "resample"):  # which act, or say anything, only with something given
        settings.pop(name, None)
    if given:
        settings |= given | {name: record["settings"].get(name) for name in ("fps", "fit")}
    if "video" in given:
        settings["strength"] = record["settings"].get("strength")
    if set(given) - {"video", "image"}:
        settings["resample"] = record["settings"].get("resample")
    if not settings.get("riflex"):  # records from before it had none
        settings.pop("riflex", None)
    if settings.get("true_cfg_scale") == 1:
        settings["negative_prompt"] = None  # it does not act
    return settings | {name: record["made_with"].get(name) for name in DECIDES_LATENTS}


def networks_hash(*networks: torch.nn.Module, device: torch.device | str = "cpu") -> str:
    """16 hex digits over the networks as they are now: an edited layer counts, unlike in the hash of the files.

    Over configs, over each module's class and plain attributes (a LoRA's strength, whether it is merged, an epsilon),
    and over the names, shapes and summed bits of all tensors: 0.03 s for pocket. A GPU as `device` adds up faster than
    a CPU, also weights that wait in RAM. Weights on torch's meta device count by name and shape.
    """
    parts: list = []
    for network in networks:
        config = network.config if isinstance(network.config, dict) else network.config.to_dict()  # type: ignore
        parts.append({name: value for name, value in config.items() if not name.startswith("_")})
        parts += [[name, type(module).__qualname__, _attributes(module)] for name, module in network.named_modules()]
        tensors = dict(network.named_buffers()) | network.state_dict()  # which lacks buffers that are not saved
        parts += [
            [name, list(tensor.shape), str(tensor.dtype), _sums_of_bits(tensor, device)]
            for name, tensor in tensors.items()
            if isinstance(tensor, torch.Tensor)
        ]
    return _digest(parts)


def unknown_code(models: Models) -> list[str]:
    """What is on the model that no known library put there, or that the rest of the record does not describe."""
    pipe, everywhere = models.pipe, torch.nn.modules.module
    hooks = [*everywhere._global_forward_hooks.values(), *everywhere._global_forward_pre_hooks.values()]
    found = [f"hook {_origin(hook)}" for hook in hooks]
    kinds: dict[type, tuple[dict, list[str]]] = {}  # hundreds of modules are of a dozen classes
    found += [*_patches(pipe, kinds), *_patches(pipe.scheduler, kinds)]
    config = pipe.transformer._cache_config
    for name, value in vars(config).items() if config is not None else ():
        if callable(value) and name != "current_timestep_callback":
            found.append(f"{type(config).__name__}.{name}")
    one_stage = models.memory is not None and models.memory.one_stage
    of_transformer, as_set = set(pipe.transformer.modules()), models.loras.acts_as_set(pipe.transformer)
    for module in (module for name in NETWORKS for module in getattr(pipe, name).modules()):
        found += _patches(module, kinds)
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        hooks += [hook for hook in (getattr(module, "_hf_hook", None),) if hook is not None]
        found += [f"hook {_origin(hook)}" for hook in hooks if not _known(hook) or _origin(hook).startswith("torch.")]
        for processor in _processors(getattr(module, "processor", None)):
            known = _known(processor)
            found += _patches(processor, kinds) if known else [f"attention processor {_origin(processor)}"]
        if isinstance(module, torch.nn.Dropout) and module.training and module.p:
            found.append("dropout in training mode")
        if type(module).__module__.startswith("peft."):
            if not type(module).__module__.startswith("peft.tuners.lora"):
                found.append(_origin(module))
            elif one_stage and not (module in of_transformer and as_set):
                found.append("a LoRA on a network that is read anew at each stage")
    allowed = (*_PLACING, type(config).__module__) if config is not None else _PLACING
    hooks = [hook for name in NETWORKS for hook in _model_hooks(getattr(pipe, name))]
    found += [f"hook {_origin(hook)}" for hook in hooks if not type(hook).__module__.startswith(allowed)]
    return sorted(set(found))


def _patches(thing, kinds: dict[type, tuple[dict, list[str]]]) -> list[str]:
    """Methods of an object that are not its class's own; its class where no known library defines that.

    `kinds` keeps what was found of each class.
    """
    kind = type(thing)
    if not _known(kind):
        return [f"class {_origin(kind)}"]
    if kind not in kinds:
        kinds[kind] = _functions(kind), list(_patches_of(kind))
    functions, of_kind = kinds[kind]
    found = list(of_kind)
    for name, value in vars(thing).items():
        if name not in functions:
            continue
        of_class, layers = list(_layers(functions[name])), list(_layers(value))
        wrappers = [layer for layer in layers if layer not in of_class]
        outside = [layer for layer in wrappers if not _module(layer).startswith(_WRAPPERS)]
        ends_well = layers[-1] in of_class or _module(layers[-1]).startswith("t2v_kit.")
        if outside or not ends_well:
            found.append(f"{_origin(kind)}.{name} replaced by {_origin((outside or layers)[0])}")
    return found


def _functions(kind: type) -> dict:
    """A class's functions by name, those of the classes above it among them."""
    of_bases = {name: value for base in reversed(kind.__mro__) for name, value in vars(base).items()}
    return {name: value for name, value in of_bases.items() if inspect.isfunction(value)}


def _patches_of(kind: type) -> Iterator[str]:
    """Methods of a class that were put into it by others."""
    for base in kind.__mro__:
        for name, value in vars(base).items():
            if base is torch.nn.Module and name in ("forward", "__call__"):
                continue  # defined there under another name
            if name == "forward" and not inspect.isfunction(value):
                yield f"{_origin(base)}.{name} replaced by {_origin(value)}"
            elif isinstance(value, functools.partial) or inspect.isfunction(value):
                layers = list(_layers(value))
                moved = name == "forward" and layers[-1].__qualname__ != f"{base.__qualname__}.forward"
                if moved or not all(map(_known, layers)):
                    yield f"{_origin(base)}.{name} replaced by {_origin(value)}"


def _layers(value) -> Iterator:
    """The functions that a wrapped one consists of, the outermost first."""
    while value is not None:
        yield value.func if isinstance(value, functools.partial) else getattr(value, "__func__", value)
        value = getattr(value, "__wrapped__", None)


def _known(thing) -> bool:
    """Whether a function, or the class of an object, was written in a known library or in Python's own."""
    return _module(thing).split(".")[0] in _KNOWN


def _module(thing) -> str:
    """The module in which a function, or the class of an object, was written."""
    # A function's globals, unlike its __module__, are not copied from the one that it wraps by functools.wraps.
    function = getattr(thing, "__func__", thing)
    if hasattr(function, "__globals__"):
        return function.__globals__["__name__"]
    return (thing if isinstance(thing, type) or hasattr(thing, "__qualname__") else type(thing)).__module__ or ""


def _origin(thing) -> str:
    """Where a function, or the class of an object, comes from: its module and its name there."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def _model_hooks(network: torch.nn.Module) -> list:
    """diffusers' ModelHooks on the network."""
    registries = [getattr(module, "_diffusers_hook", None) for module in network.modules()]
    return [hook for registry in registries if registry is not None for hook in registry.hooks.values()]


def _loaded_loras(models: Models) -> list[str]:
    """Those that `load` put on, by name, hash and strength; none once the adapters were changed by other means."""
    return models.loras.record if models.loras.acts_as_set(models.pipe.transformer) else []


def _loras(network, models: Models) -> Iterator[str]:
    """Other LoRAs that act on a network, each with its scale (or scales, where layers differ)."""
    if network is models.pipe.transformer and models.loras.acts_as_set(network):
        return
    for layer in network.modules():
        if type(layer).__module__.startswith("peft.tuners.lora") and hasattr(layer, "merged_adapters"):
            yield from (f"{name} merged" for name in layer.merged_adapters)
            active = () if layer.disable_adapters or layer.merged_adapters else layer.active_adapters
            yield from (f"{name} at {layer.scaling[name]:g}" for name in active if name in layer.scaling)


def _attributes(module: torch.nn.Module) -> dict:
    """A module's plain attributes, without those of hooks and step caches, which the record has by themselves."""
    skipped = {"training", "name_or_path", "_hf_peft_config_loaded"}
    return {
        name: value
        for name, value in vars(module).items()
        if name not in skipped and "hook" not in name and "cache" not in name and _is_plain(value)
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return value is None or isinstance(value, (str, int, float, torch.dtype, enum.Enum))


def _step_cache(transformer: torch.nn.Module) -> str | None:
    """The step cache that is enabled, with its numbers, as text; None without one."""
    if not transformer.is_cache_enabled:
        return None
    config = transformer._cache_config
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    written = ", ".join(f"{name}={value}" for name, value in fields.items() if not callable(value))
    return f"{type(config).__name__}({written})"


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


def _tokenizer(tokenizer) -> list:
    """Class, size and added words. Its files are not hashed: they are loaded, and rarely changed, with the weights."""
    return [type(tokenizer).__name__, len(tokenizer), sorted(tokenizer.get_added_vocab().items())]


def _scheduler(scheduler) -> str:
    """Class and config; the shift comes from the settings."""
    skipped = ("shift", "flow_shift")
    config = {name: value for name, value in scheduler.config.items() if name[0] != "_" and name not in skipped}
    return f"{type(scheduler).__name__} {_digest(config)}"


def _processor(processor) -> str:
    """Class and plain attributes."""
    plain = sorted((name, str(value)) for name, value in vars(processor).items() if _is_plain(value))
    return f"{_origin(processor)}({', '.join(f'{name}={value}' for name, value in plain)})"


def _processors(processor) -> list:
    """A processor and those that it calls in turn; none for None."""
    inner = getattr(processor, "processor", None) or getattr(processor, "plain", None)
    return [] if processor is None else [processor, *_processors(inner)]


def _precision(device: torch.device) -> str:
    """PyTorch's global switches that change how it rounds."""
    on = torch.backends
    kernels = {"flash": on.cuda.flash_sdp_enabled(), "efficient": on.cuda.mem_efficient_sdp_enabled()}
    kernels |= {"math": on.cuda.math_sdp_enabled(), "cudnn": on.cuda.cudnn_sdp_enabled()}
    switches = {
        "matmul": torch.get_float32_matmul_precision(),
        "tf32": on.cudnn.allow_tf32,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "autocast": torch.is_autocast_enabled(device.type) and str(torch.get_autocast_dtype(device.type)),
        "attention": "+".join(name for name, enabled in kernels.items() if enabled),
        **({"cpu": on.cpu.get_cpu_capability()} if device.type == "cpu" else {}),
    }
    return ", ".join(f"{name} {value}" for name, value in switches.items())


def _digest(content: object) -> str:
    text = json.dumps(content, sort_keys=True, default=_written, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _written(value: object) -> object:
    """What JSON cannot hold: a set, whose order is another in each process, and names of all kinds."""
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)
