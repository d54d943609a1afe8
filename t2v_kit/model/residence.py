"""Carrying out a memory plan: networks come when their stage begins, and go or make room when the next one does.

A network that is not there is a skeleton on PyTorch's meta device: it has its configuration, its dtype and no weights,
so that settings can be checked before anything is read. Its first call brings it. Quantising, streaming and tiling
are those of diffusers, transformers and bitsandbytes.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import weakref

import accelerate
import numpy as np
import torch
from diffusers import BitsAndBytesConfig as DiffusersQuantisation
from diffusers import ModelMixin
from diffusers.hooks import apply_group_offloading
from diffusers.hooks.group_offloading import ModuleGroup
from transformers import BitsAndBytesConfig as TransformersQuantisation

from ..hunyuan.chunks import use_chunks
from ..hunyuan.files import ModelFiles
from ..hunyuan.masks import skip_full_masks
from ..memory.choose import out_of_memory
from ..memory.footprint import set_tiles
from ..memory.plan import Part, Plan, Size
from .single import read_single

STAGE = {"text_encoder": "encode", "text_encoder_2": "encode", "transformer": "denoise", "vae": "decode"}
CALLS = {"vae": ("encode", "decode")}  # what a stage calls of a network; of the others, forward
ALIGN = 512  # bytes


class Residence:
    """The networks of one model folder under a plan. `parts` are the very objects that the pipeline holds."""

    def __init__(self, files: ModelFiles, plan: Plan, device: torch.device) -> None:
        self.files, self.folder, self.plan, self.device = files, files.folder, plan, device
        self.there: set[str] = set()
        self.rests: dict[str, ModuleGroup] = {}
        index = json.loads((self.folder / "model_index.json").read_text("utf-8"))
        self.kinds = {name: getattr(importlib.import_module(index[name][0]), index[name][1]) for name in STAGE}
        self.parts = {name: self._skeleton(name) for name in STAGE}
        for name in STAGE:
            self._watch(name)

    def start(self) -> None:
        """Read everything now, unless the plan has one stage in memory at a time."""
        for name in () if self.plan.one_stage else STAGE:
            self.require(name)

    def require(self, name: str) -> torch.nn.Module:
        """The network, read and placed as the plan says; those of other stages make room for it."""
        for other in self.there - {name}:
            if STAGE[other] != STAGE[name]:
                self._leave(other)
        if name not in self.there:
            self._become(name, self._read(name))
            self._prepare(name)
            self._place(name)
            self._watch(name)
            self.there.add(name)
        elif self._part(name).offload == "model":
            self.parts[name].to(self.device)
        return self.parts[name]

    def _leave(self, name: str) -> None:
        """Forget a network, or put it into RAM, or let it be."""
        if self.plan.one_stage:
            self._become(name, self._skeleton(name))
            self._watch(name)
            self.there.discard(name)
            self.rests.pop(name, None)
        elif self._part(name).offload == "model":
            self.parts[name].to("cpu")
        elif name in self.rests:
            self.rests[name].offload_()
        else:
            return
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _part(self, name: str) -> Part:
        """CLIP follows the text encoder, whole: it is too small to stream or to quantise."""
        if name != "text_encoder_2":
            return getattr(self.plan, name)
        text = self.plan.text_encoder
        return Part(text.dtype, "none", "none" if text.offload == "none" else "model")

    def _skeleton(self, name: str) -> torch.nn.Module:
        """The network without weights."""
        kind, folder = self.kinds[name], self.folder / name
        with torch.device("meta"):
            if issubclass(kind, ModelMixin):
                made = kind.from_config(kind.load_config(folder, local_files_only=True))
            else:
                made = kind(kind.config_class.from_pretrained(folder, local_files_only=True))
        return torch.nn.Module.to(made, getattr(torch, self._part(name).dtype)).eval()

    def _read(self, name: str) -> torch.nn.Module:
        """The network with its weights, quantised on the GPU while they are read if the plan says so."""
        kind, part = self.kinds[name], self._part(name)
        dtype = getattr(torch, part.dtype)
        ours = issubclass(kind, ModelMixin)
        asked = {"torch_dtype" if ours else "dtype": dtype}
        if part.quantisation in ("int8", "nf4"):
            how = {"load_in_8bit": True} if part.quantisation == "int8" else {
                "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype,
            }  # fmt: skip
            asked["quantization_config"] = (DiffusersQuantisation if ours else TransformersQuantisation)(**how)
            asked["device_map"] = {"": self.device.index}
        if name == "transformer" and self.files.single is not None:
            asked.pop("device_map", None)
            return read_single(self.files, asked.pop("torch_dtype"), **asked)
        asked["variant"] = self.files.variant_of(name)
        found = kind.from_pretrained(self.folder / name, use_safetensors=True, local_files_only=True, **asked)
        return found.eval()

    def _become(self, name: str, other: torch.nn.Module) -> None:
        """Let the object that the pipeline holds be `other`, of the same class; a step cache stays switched on."""
        part = self.parts[name]
        kept = {key: part.__dict__[key] for key in ("_cache_config",) if key in part.__dict__}
        part.__dict__ = {**kept, **other.__dict__}

    def _prepare(self, name: str) -> None:
        """What is changed about a network before it is placed: the order is the one diffusers' hooks need."""
        part = self.parts[name]
        if name == "vae":
            set_tiles(part, self.plan.tile)
            if self.plan.slicing:
                part.enable_slicing()
        if name != "transformer":
            return
        cache = part.__dict__.pop("_cache_config", None)
        skip_full_masks(part)
        if self.plan.transformer.quantisation == "fp8":
            part.enable_layerwise_casting(torch.float8_e4m3fn, getattr(torch, self.plan.transformer.dtype))
        if self.plan.chunk:
            use_chunks(part, self.plan.chunk)
        if self.plan.attention != "native":
            part.set_attention_backend(self.plan.attention)
        if cache is not None:
            part.enable_cache(cache)

    def _place(self, name: str) -> None:
        part, how = self.parts[name], self._part(name)
        if how.offload in ("group", "disk"):
            if how.offload == "group":
                pin(part, self.device)
            apply_group_offloading(
                part,
                onload_device=self.device,
                offload_type="block_level",
                num_blocks_per_group=1,
                use_stream=self.device.type == "cuda",
                low_cpu_mem_usage=how.offload == "disk",
            )
            if name == "transformer":
                self._keep_rest(name)
        elif how.offload == "sequential":
            accelerate.cpu_offload(part, self.device, offload_buffers=bool(part._parameters))
        elif how.quantisation not in ("int8", "nf4"):  # those were read onto the device
            part.to(self.device)
        if name == "transformer" and self.plan.compile:
            part.compile_repeated_blocks()

    def _keep_rest(self, name: str) -> None:
        """Leave what is in no block on the GPU between the steps; diffusers would bring it back in each of them."""
        group = self.parts[name]._diffusers_hook.get_hook("group_offloading").group
        group.offload_leader = None  # nobody's forward sends it away: `_leave` does
        self.rests[name] = group

    def _watch(self, name: str) -> None:
        """Bring the network when it is called, and say what to do when memory runs out."""
        part = self.parts[name]
        for call in CALLS.get(name, ("forward",)):
            setattr(part, call, self._watched(name, call, getattr(part, call)))

    def _watched(self, name: str, call: str, inner):
        @functools.wraps(inner)
        def watched(*args, **kwargs):
            absent = name not in self.there
            try:
                part = self.require(name)
                return getattr(part, call)(*args, **kwargs) if absent else inner(*args, **kwargs)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not ran_out(error):
                    raise
                size = _size((*args, *kwargs.values()), self.parts["vae"])
                raise out_of_memory(self.plan, STAGE[name], size, self.folder, error) from error

        return watched


def pin(network: torch.nn.Module, device: torch.device) -> int:
    """Put every block's weights into one piece of pinned RAM, from which copies run beside computation.

    Returns how many blocks were. PyTorch's own pinning would round every tensor up to a power of two: half as much
    again. The RAM is given back when the last weight is gone.
    """
    if device.type != "cuda":
        return 0
    pinned = 0
    for stack in (child for child in network.children() if isinstance(child, torch.nn.ModuleList)):
        for block in stack:
            weights = [*block.parameters(), *block.buffers()]
            if any(weight.is_cuda for weight in weights):  # quantised while it was read: diffusers brings it to RAM
                continue
            places = [0]
            for weight in weights:
                places.append(places[-1] + -(-weight.numel() * weight.element_size() // ALIGN) * ALIGN)
            ram = np.empty(places[-1], np.uint8)
            for weight, place in zip(weights, places):
                room = torch.from_numpy(ram)[place : place + weight.numel() * weight.element_size()].view(weight.dtype)
                weight.data = room.view(weight.shape).copy_(weight.data)
            # Where this fails, diffusers pins the tensors itself. Freed RAM that CUDA still believes to be pinned
            # breaks the copies of whoever gets it next, so it is unpinned right before.
            if int(torch.cuda.cudart().cudaHostRegister(ram.ctypes.data, ram.nbytes, 0)) == 0:
                weakref.finalize(ram, torch.cuda.cudart().cudaHostUnregister, ram.ctypes.data).atexit = False
                pinned += 1
    return pinned


def ran_out(error: BaseException) -> bool:
    """Is this PyTorch's, cuBLAS' or cuDNN's way of saying that GPU memory ran out?"""
    words = ("out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _size(given: tuple, vae) -> Size | None:
    """The video's size, from the latents among a call's arguments."""
    for value in given:
        if isinstance(value, torch.Tensor) and value.ndim == 5:
            *_, t, h, w = value.shape
            space, time = vae.config.spatial_compression_ratio, vae.config.temporal_compression_ratio
            return Size(h * space, w * space, (t - 1) * time + 1)
    return None
