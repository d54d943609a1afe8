"""load(): pocket, the 13B HunyuanVideo, another repository, a folder or a single file. One code path for all."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import HunyuanVideoImageToVideoPipeline, HunyuanVideoPipeline
from safetensors import SafetensorError

from ..errors import UserError, give_note
from ..hunyuan.backends import choose_backend, use_backend
from ..hunyuan.compiling import compile_blocks, compile_vae
from ..hunyuan.files import (
    HUNYUAN_DEFAULTS,
    I2V_33_DEFAULTS,
    I2V_DEFAULTS,
    NETWORKS,
    ModelFiles,
    header,
    locate,
    one_line,
    read_json,
)
from ..hunyuan.kernel_names import NATIVE, check_kernel
from ..hunyuan.masks import skip_full_masks
from ..hunyuan.names import DOWNLOADS, PUBLISHED
from ..hunyuan.parallel import Team, check_heads, share_tiles, share_transformer
from ..hunyuan.tokens import image_places, load_tokenizer, own_template
from ..memory.choose import as_plan
from ..memory.machine import Machine, pick_device
from ..memory.plan import Plan
from ..memory.rules import check
from ..settings import Settings
from .loras import find_loras, fit_loras
from .models import Models
from .residence import Residence
from .single import read_single

T = TypeVar("T")
SEGMENTS = "expandable_segments:True"
# How parameters of a Llava begin today, and how in its files.
_OF_LLAVA = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)


def load(
    name: str | Path = "pocket",
    memory: Plan | dict | str | float | None = None,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | dict | None = None,
    video: Settings | None = None,
    variant: str | None = None,
    base: str | Path | None = None,
    loras: Sequence | str | Path | None = None,
    attention: str = "auto",
    compile: bool = False,
    team: Team | None = None,
) -> Models:
    """Load a text-to-video model.

    Args:
        name: 'pocket' (shipped, offline); 'hunyuan' (13B, downloaded from the hub); 'hunyuan-i2v' (of the same size,
            makes a video out of a picture); any hub id ('user/repo') or folder in the layout that save_pretrained of
            HunyuanVideoPipeline or HunyuanVideoImageToVideoPipeline writes; or a single .safetensors or .gguf file of
            the transformer, by path or by its link on the hub, with Tencent's names, ComfyUI's or diffusers'. Weights
            in 8 bits, with scales or without, are multiplied out while they are read.
        memory: None puts everything on the device (or, where it does not fit, uses diffusers' model offload). A `Plan`
            or its dict; 'auto', the best plan of this machine; or the GB of GPU memory to stay within. The latter two
            are for the size of `video`. With a plan, dtypes are the plan's, and one that has a single stage in memory
            reads each network anew: what is changed on models.pipe.transformer lasts until the next stage.
        revision: A branch, tag or commit of the hub.
        device: By default 'cuda' if there is one, else 'cpu'.
        dtype: One for all, or a dict by component as diffusers takes it. By default float32 on the CPU, and on CUDA
            bfloat16 for the transformer and float16 for the rest (what HunyuanVideo's documentation recommends),
            unless the model says otherwise.
        video: The size that `memory` is chosen for; what it leaves open is the model's default.
        variant: Load the weight files of this variant, such as 'fp16' (model.fp16.safetensors). Components without
            such files use their plain ones. A folder that has nothing but one variant needs no mention of it.
        base: Where the rest of the pipeline comes from when `name` is a single file; by default 'hunyuan'.
        loras: LoRAs for the transformer: a list of files or hub ids ('user/repo' or 'user/repo/file.safetensors'), each
            alone or as a pair with its strength, -10 to 10, where 1 is as trained and 0 is off; or with a list of one
            strength for each denoising step. Their keys may be diffusers', peft's, Tencent's, ComfyUI's, kohya-ss' or
            musubi-tuner's. `Models.loras` shows what was matched and takes other strengths.
        attention: Which kernel the transformer's blocks attend with: 'auto' (or a plan's own), the fastest exact one
            that is installed and was measured on such a card; or a backend of diffusers by name, such as 'native',
            '_native_cudnn' or 'sage'. On a CPU 'auto' is 'native'.
        compile: Compile the transformer's blocks and the VAE, on a GPU: the first step takes a minute or more, the
            others less; decoding begins half a minute later, and takes half as long. Results differ by rounding.
        team: The processes that make one video together, as `t2v_kit.hunyuan.parallel.join` gives them under torchrun;
            each of them loads the model, and all call the same stages in the same order.

    Returns:
        The model, ready for every stage.

    Raises:
        UserError: An unknown name, a failed download, a missing, incomplete or corrupt file, a tokenizer that does not
            read text back, a prompt template whose prefix is not what would be cropped, a LoRA that is missing, of
            another kind, or not about this model, or attention that is unknown or cannot be computed here.

    Example:
        >>> models = load("pocket", device="cpu")
        >>> models.defaults["num_frames"]
        33
    """
    wanted = find_loras(loras)
    if memory is not None and dtype is not None:
        raise UserError(f"dtype={dtype!r}: with memory=, the plan has the dtypes; dtype=None works.")
    if memory is not None:
        _let_segments_grow()
    if attention != "auto":
        check_kernel(attention)
    device = team.device if team is not None else pick_device(device)
    if compile and device.type != "cuda":
        raise UserError("compile=True: networks are compiled for a GPU alone; compile=False works.")
    published = name in PUBLISHED or name in DOWNLOADS  # its plan is made before the download
    plan = _plan(memory, str(name), HUNYUAN_DEFAULTS, video, device) if published else None
    files = locate(name, revision, variant, base)
    folder = files.folder
    extra = read_json(folder / "t2v_kit.json") if (folder / "t2v_kit.json").exists() else {}
    files.check()
    config = read_json(folder / "transformer" / "config.json")
    animates = files.animates
    if animates and team is not None:
        raise UserError(f"{name}: a video from a picture is made on one device; gpus=1 would work.", setting="gpus")
    defaults = _published_defaults(animates, config) | extra.get("defaults", {})
    plan = plan or _plan(memory, files, defaults, video, device)
    tokenizer, template = load_tokenizer(folder / "tokenizer", own_template(extra, animates), folder)
    dtypes = _dtype(dtype or extra.get("dtype"), device)
    if team is not None:
        check_heads(config, team.size)
    kept = plan is not None and attention == "auto" and plan.attention != NATIVE  # the plan names one itself
    attention = choose_backend(
        plan.attention if plan is not None and kept else attention,
        device,
        getattr(torch, plan.transformer.dtype) if plan is not None else _of_transformer(dtypes),
        config.get("attention_head_dim", 128),
    )
    if plan is not None:
        plan = dataclasses.replace(plan, attention=attention, compile=plan.compile or compile)
    residence, parts = None, {}
    if plan is not None:
        fitted = functools.partial(fit_loras, wanted)
        residence = _guarded(lambda: Residence(files, plan, device, fitted, team), folder)
        parts = residence.parts
    elif files.single is not None:
        parts = {"transformer": read_single(files, _of_transformer(dtypes))}
    variants = {files.variant_of(part) for part in NETWORKS} - {None}
    kind = HunyuanVideoImageToVideoPipeline if animates else HunyuanVideoPipeline
    pipe = _guarded(
        lambda: kind.from_pretrained(
            folder,
            tokenizer=tokenizer,
            dtype=dtypes,
            use_safetensors=True,
            local_files_only=True,
            variant=next(iter(variants), None),
            **parts,
        ),
        folder,
    )
    _check_complete(pipe, files)
    if animates:
        template |= image_places(tokenizer, template, pipe.text_encoder.config, folder)
    if residence:
        adapters = residence.loras
        residence.start()
    else:
        adapters = fit_loras(wanted, pipe.transformer)
        adapters.put_on(pipe.transformer)
        skip_full_masks(pipe.transformer)  # below the hooks of offloading
        use_backend(pipe.transformer, attention)
        if team is not None:
            share_transformer(pipe.transformer, team)
            share_tiles(pipe.vae, team)
        _place(pipe, device)
        if compile:
            compile_blocks(pipe.transformer)
            compile_vae(pipe.vae)
    models = Models(
        pipe=pipe,
        name=files.name,
        source=files.source,
        folder=folder,
        files=files,
        revision=files.revision,
        defaults=defaults,
        template=template,
        device=device,
        trained_sizes=tuple(tuple(size) for size in extra.get("trained_sizes", ())),
        world=extra.get("world"),
        memory=plan,
        residence=residence,
        upscaler=extra.get("upscaler"),
        loras=adapters,
        attention=attention,
        compiled=compile or (plan is not None and plan.compile),
        team=team,
    )
    if variant is None and variants:
        (only,) = variants
        give_note(f"{files.source}: holds the variant {only!r}, which was loaded; variant={only!r} says so.")
    return models


def _published_defaults(animates: bool, config: dict) -> dict:
    """What the published model of this kind does by itself; a model's own t2v_kit.json goes before."""
    if not animates:
        return HUNYUAN_DEFAULTS
    return I2V_33_DEFAULTS if config.get("image_condition_type") == "latent_concat" else I2V_DEFAULTS


def _guarded(read: Callable[[], T], folder: Path) -> T:
    """What `read` returns; the libraries' errors about the files as one line."""
    try:
        return read()
    except (OSError, ValueError, TypeError, KeyError, IndexError, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder}: cannot be loaded as a HunyuanVideoPipeline: {one_line(error)}") from error


def _of_transformer(dtypes: torch.dtype | dict) -> torch.dtype:
    """The transformer's dtype among those that from_pretrained takes."""
    if not isinstance(dtypes, dict):
        return dtypes
    return dtypes.get("transformer", dtypes.get("default", torch.float32))


def _check_complete(pipe, files: ModelFiles) -> None:
    """Refuse weights that lack a parameter: the libraries would fill it with random numbers.

    A file may name its tensors with a prefix more or less ("text_model.") than today's classes.
    """
    for part in NETWORKS:
        if part == "transformer" and files.single is not None:
            continue  # `read_single` looked
        keys = {key for path in files.weights(part) for key in json.loads(header(path))}
        tails = {key.split(".", cut)[-1] for key in keys for cut in range(3)}
        for name, _ in getattr(pipe, part).named_parameters():
            older = {old + name.removeprefix(new) for new, old in _OF_LLAVA if name.startswith(new)}
            found = name in tails or older & keys or any(name.split(".", cut)[-1] in keys for cut in range(1, 3))
            if not found:
                raise UserError(f"{files.folder / part}: {name} is not in its files; the model folder is incomplete.")


def _dtype(dtype: str | torch.dtype | dict | None, device: torch.device) -> torch.dtype | dict:
    """What from_pretrained takes: one dtype, or a dict with 'default'."""
    if dtype is None:
        on_gpu = {"transformer": torch.bfloat16, "default": torch.float16}
        return on_gpu if device.type == "cuda" else torch.float32
    if isinstance(dtype, dict):
        return {name: _dtype(value, device) for name, value in dtype.items()}
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if isinstance(dtype, torch.dtype) and dtype in known.values():
        return dtype
    if isinstance(dtype, str) and dtype in known:
        return known[dtype]
    raise UserError(f"dtype={dtype!r}: must be float32, bfloat16 or float16; 'float32' would work.")


def _plan(memory, model: str | ModelFiles, defaults: dict, video: Settings | None, device: torch.device) -> Plan | None:
    """load's `memory` as a Plan that this machine can carry out; model: 'hunyuan' or its files."""
    if memory is None:
        return None
    machine = Machine.here(device)
    size = {name: getattr(video, name, None) or defaults[name] for name in ("height", "width", "num_frames")}
    return check(as_plan(memory, model, machine, **size), machine, model=model)


def _let_segments_grow() -> None:
    """Have PyTorch take GPU memory in segments that grow: what comes and goes leaves no gaps, on which plans count.

    Someone who set PyTorch's variable has chosen already.
    """
    if {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(os.environ):
        return
    os.environ["PYTORCH_ALLOC_CONF"] = SEGMENTS
    if torch.cuda.is_initialized():  # it was read when CUDA began
        torch._C._accelerator_setAllocatorSettings(SEGMENTS)


def _place(pipe, device: torch.device) -> None:
    """Move everything to the device; on a GPU that is too small, one whole model at a time."""
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    size = sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
    # A fifth of the memory is left for activations: 7.6 GiB of them beside 24 GiB of weights at 720p.
    if device.type == "cuda" and size > 0.8 * torch.cuda.mem_get_info(device)[0]:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
