"""load(): pocket, the 13B HunyuanVideo, or any folder in its layout. One code path for all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from diffusers import HunyuanVideoPipeline
from safetensors import SafetensorError

from ..errors import UserError
from ..hunyuan.files import HUNYUAN_DEFAULTS, NETWORKS, check_folder, header, locate, one_line, read_json, weight_files
from ..hunyuan.masks import skip_full_masks
from ..hunyuan.tokens import load_tokenizer, own_template
from ..memory.choose import as_plan
from ..memory.machine import Machine, pick_device
from ..memory.plan import Plan
from ..memory.rules import check
from ..settings import Settings
from .models import Models
from .residence import Residence


def load(
    name: str | Path = "pocket",
    memory: Plan | dict | str | float | None = None,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | dict | None = None,
    video: Settings | None = None,
) -> Models:
    """Load a text-to-video model.

    name: 'pocket' (shipped, offline), 'hunyuan' (13B, downloaded from the hub) or a folder in the
    layout of HunyuanVideoPipeline.save_pretrained.  memory: None, everything on the device (or, where
    it does not fit, the library's model offload); a `Plan` or its dict; 'auto', the best plan of this
    machine; or the GB of GPU memory to get along with. The latter two are for the size of `video`, what
    is left open there being the model's default.  With a plan, dtypes
    are the plan's, and one that has a single stage in memory reads each network anew: what is changed on
    models.pipe.transformer lasts until the next stage.  revision: a branch, tag or commit of the hub.
    device: 'cuda' if there is one, else 'cpu'.  dtype: one for all, or a dict by component as
    diffusers takes it; by default float32 on the CPU, and on CUDA bfloat16 for the transformer and
    float16 for the rest (what HunyuanVideo's documentation recommends) unless the model says otherwise.
    Raises UserError for an unknown name, a missing, incomplete or corrupt file, a tokenizer that
    does not read text back, or a prompt template whose prefix is not what would be cropped.
    """
    if memory is not None and dtype is not None:
        raise UserError(f"dtype={dtype!r}: with memory=, the plan has the dtypes; dtype=None works.")
    if memory is not None:  # of no effect once CUDA is in use: blocks that come and go leave no gaps behind
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    device = pick_device(device)
    plan = _plan(memory, name, HUNYUAN_DEFAULTS, video, device) if name == "hunyuan" else None  # before the download
    folder, source, commit = locate(name, revision)
    extra = read_json(folder / "t2v_kit.json") if (folder / "t2v_kit.json").exists() else {}
    check_folder(folder)
    defaults = HUNYUAN_DEFAULTS | extra.get("defaults", {})
    plan = plan or _plan(memory, folder, defaults, video, device)
    tokenizer, template = load_tokenizer(folder / "tokenizer", own_template(extra), folder)
    dtype = _dtype(dtype or extra.get("dtype"), device)
    try:
        residence = None if plan is None else Residence(folder, plan, device)
        pipe = HunyuanVideoPipeline.from_pretrained(
            folder,
            tokenizer=tokenizer,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            **(residence.parts if residence else {}),
        )
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be loaded as a HunyuanVideoPipeline: {one_line(error)}") from error
    _check_complete(pipe, folder)
    if residence:
        residence.start()
    else:
        _place(pipe, device)
        skip_full_masks(pipe.transformer)
    words = folder / "vocabulary.txt"
    return Models(
        pipe=pipe,
        name=str(name),
        source=source,
        folder=folder,
        revision=commit,
        defaults=defaults,
        template=template,
        device=device,
        trained_sizes=tuple(tuple(size) for size in extra.get("trained_sizes", ())),
        vocabulary=frozenset(words.read_text("utf-8").lower().split()) if words.exists() else None,
        memory=plan,
        residence=residence,
        upscaler=extra.get("upscaler"),
    )


def _check_complete(pipe: HunyuanVideoPipeline, folder: Path) -> None:
    """Refuse weights that lack a parameter: the libraries would fill it with random numbers.

    A file may name its tensors with a prefix more or less ("text_model.") than today's classes.
    """
    for part in NETWORKS:
        keys = {key for path in weight_files(folder / part) for key in json.loads(header(path))}
        tails = {key.split(".", cut)[-1] for key in keys for cut in range(3)}
        for name, _ in getattr(pipe, part).named_parameters():
            if name not in tails and not any(name.split(".", cut)[-1] in keys for cut in range(1, 3)):
                raise UserError(f"{folder / part}: {name} is not in its files; the model folder is incomplete.")


def _dtype(dtype: str | torch.dtype | dict | None, device: torch.device) -> torch.dtype | dict:
    """What from_pretrained takes: one dtype, or a dict with 'default'."""
    if dtype is None:
        on_gpu = {"transformer": torch.bfloat16, "default": torch.float16}
        return on_gpu if device.type == "cuda" else torch.float32
    if isinstance(dtype, dict):
        return {name: _dtype(value, device) for name, value in dtype.items()}
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.bfloat16, torch.float16):
        raise UserError(f"dtype={dtype!r}: must be float32, bfloat16 or float16; 'float32' would work.")
    return found


def _plan(memory, model: str | Path, defaults: dict, video: Settings | None, device: torch.device) -> Plan | None:
    """load's `memory` as a Plan that this machine can carry out; model: 'hunyuan' or its folder."""
    if memory is None:
        return None
    machine = Machine.here(device)
    size = {name: getattr(video, name, None) or defaults[name] for name in ("height", "width", "num_frames")}
    return check(as_plan(memory, model, machine, **size), machine, model=model)


def _place(pipe: HunyuanVideoPipeline, device: torch.device) -> None:
    """Move everything to the device; on a GPU that is too small, one whole model at a time."""
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    size = sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
    # A fifth of the memory is left for activations: 7.6 GiB of them beside 24 GiB of weights at 720p.
    if device.type == "cuda" and size > 0.8 * torch.cuda.mem_get_info(device)[0]:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
