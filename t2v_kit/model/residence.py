"""Carrying out a memory plan: networks are read when their stage begins, and make room when the next one does.

A network that is not loaded is a skeleton on PyTorch's meta device: it has its configuration and its dtype but no
weights, so that settings can be checked before anything is read. Calling it loads it. Quantising, streaming and tiling
are those of diffusers, transformers and bitsandbytes.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import threading
from collections.abc import Callable
from typing import Any

import accelerate
import torch
from diffusers import BitsAndBytesConfig as DiffusersQuantisation
from diffusers import ModelMixin
from diffusers.hooks import apply_group_offloading
from diffusers.hooks.group_offloading import ModuleGroup
from transformers import BitsAndBytesConfig as TransformersQuantisation

from ..errors import UserError
from ..hunyuan.backends import use_backend
from ..hunyuan.chunks import use_chunks
from ..hunyuan.compiling import compile_blocks, compile_vae
from ..hunyuan.files import ModelFiles
from ..hunyuan.llava import language_model
from ..hunyuan.masks import skip_full_masks
from ..hunyuan.parallel import Team, share_tiles, share_transformer
from ..memory.choose import out_of_memory
from ..memory.footprint import set_tiles
from ..memory.plan import Part, Plan, Size
from .four_bits import read_in_four_bits
from .loras import Loras
from .single import read_single
from .streamed import packed_in_ram

STAGE = {"text_encoder": "encode", "text_encoder_2": "encode", "transformer": "denoise", "vae": "decode"}
CALLS = {"vae": ("encode", "decode")}  # the methods of a network that a stage calls; of the others, forward


class Residence:
    """The networks of one model folder under a plan.

    Threads may share it: one network works at a time, and none is moved while it works.

    Attributes:
        folder: The model's folder.
        plan: The plan that is carried out.
        device: Where the networks compute.
        parts: The networks by name. The pipeline holds the same objects, whose contents come and go.
        loras: On the transformer, whenever it is read.
        lock: Held while a network is loaded, moved or called.
    """

    def __init__(
        self,
        files: ModelFiles,
        plan: Plan,
        device: torch.device,
        fit_loras: Callable[[torch.nn.Module], Loras],
        team: Team | None = None,
    ) -> None:
        """Make skeletons of the networks.

        Args:
            files: Where they are.
            plan: How they are read and placed.
            device: Where they compute.
            fit_loras: Finds the layers of the transformer, here a skeleton, that LoRAs are about.
            team: The processes among which transformer and VAE are shared out.

        Raises:
            UserError: What `fit_loras` raises.
        """
        self.files, self.folder, self.plan, self.device, self.team = files, files.folder, plan, device, team
        self.lock = threading.RLock()
        self._loaded: set[str] = set()
        self._root_groups: dict[str, ModuleGroup] = {}
        index = json.loads((self.folder / "model_index.json").read_text("utf-8"))
        self.kinds: dict[str, Any] = {
            name: getattr(importlib.import_module(index[name][0]), index[name][1]) for name in STAGE
        }
        self.parts = {name: self._skeleton(name) for name in STAGE}
        self.loras = fit_loras(self.parts["transformer"])
        self._hooks = {name: self._hook(name) for name in STAGE}

    def start(self) -> None:
        """Read every network now, unless the plan keeps one stage in memory at a time."""
        for name in () if self.plan.one_stage else STAGE:
            self.require(name)
        self.release()

    def require(self, name: str) -> torch.nn.Module:
        """Return a network, loaded and placed as the plan says; those of other stages make room for it.

        Args:
            name: A key of `STAGE`.
        """
        with self.lock:
            others = [other for other in sorted(self._loaded - {name}) if STAGE[other] != STAGE[name]]
            if any([self._leave(other) for other in others]):
                self._free()
            if name not in self._loaded:
                self._fill(name, self._read(name))
                self._prepare(name)
                self._place(name)
                self._hooks[name] = self._hook(name)
                self._loaded.add(name)
            elif self._part(name).offload == "model":
                self.parts[name].to(self.device)
            elif self._streams_a_part(name):
                self._around(name, self.device)
            return self.parts[name]

    def release(self) -> None:
        """Take every network that the plan offloads off the device, as at the end of a stage.

        Networks that the plan keeps on the device stay; under a plan with one stage in memory, until the next stage.
        """
        with self.lock:
            moved = [self._offload(name) for name in sorted(self._loaded)]
            if any(moved):
                self._free()

    def _leave(self, name: str) -> bool:
        """Make room for another stage; whether it does."""
        if not self.plan.one_stage:
            return self._offload(name)
        self._fill(name, self._skeleton(name))
        self._hooks[name] = self._hook(name)
        self._loaded.discard(name)
        self._root_groups.pop(name, None)
        return True

    def _offload(self, name: str) -> bool:
        """Move a network from the device to RAM if the plan says so; whether it does."""
        if self._part(name).offload == "model":
            self.parts[name].to("cpu")
        elif name in self._root_groups:
            self._root_groups[name].offload_()
            if self._streams_a_part(name):
                self._around(name, torch.device("cpu"))
        else:
            return False
        return True

    def _free(self) -> None:
        """Give memory that nothing uses any more back to the system and to the driver."""
        if self.plan.one_stage:
            gc.collect()  # what left was part of reference cycles; weights that only moved were not
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
        kind: Any = self.kinds[name]
        folder = self.folder / name
        with torch.device("meta"):
            if bool(issubclass(kind, ModelMixin)):  # bool() keeps type checkers from narrowing Any
                network = kind.from_config(kind.load_config(folder, local_files_only=True))
            else:
                network = kind(kind.config_class.from_pretrained(folder, local_files_only=True))
        if name == "vae":
            set_tiles(network, self.plan.tile)  # so that they can be counted before the weights are there
        return torch.nn.Module.to(network, getattr(torch, self._part(name).dtype)).eval()

    def _read(self, name: str) -> torch.nn.Module:
        """The network with its weights, quantised on the GPU while they are read if the plan says so."""
        kind, part = self.kinds[name], self._part(name)
        dtype = getattr(torch, part.dtype)
        if name == "transformer" and self.plan.waiting_blocks:
            return read_in_four_bits(self.files, dtype, self.device, self.plan.waiting_blocks)
        ours = issubclass(kind, ModelMixin)
        asked: dict[str, Any] = {"torch_dtype" if ours else "dtype": dtype}
        if part.quantisation in ("int8", "nf4"):
            how: dict[str, Any] = {"load_in_8bit": True}
            if part.quantisation == "nf4":
                how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
            asked["quantization_config"] = (DiffusersQuantisation if ours else TransformersQuantisation)(**how)
            asked["device_map"] = {"": self.device.index}
        if name == "transformer" and self.files.single is not None:
            asked.pop("device_map", None)
            return read_single(self.files, asked.pop("torch_dtype"), **asked)
        asked["variant"] = self.files.variant_of(name)
        network = kind.from_pretrained(self.folder / name, use_safetensors=True, local_files_only=True, **asked)
        return network.eval()

    def _fill(self, name: str, source: torch.nn.Module) -> None:
        """Give the object that the pipeline holds the contents of `source`, of the same class; step caches stay on.

        `load_state_dict(assign=True)` would not do: bitsandbytes replaces layers, and some buffers are in no file.
        Replacing `__dict__` at once leaves no moment in which another thread could read half a network.
        """
        network = self.parts[name]
        self._hooks[name].remove()
        kept = {key: vars(network)[key] for key in ("_cache_config",) if key in vars(network)}
        network.__dict__ = {**kept, **vars(source)}

    def _prepare(self, name: str) -> None:
        """Change what has to be changed before the network is placed, in the order that diffusers' hooks need."""
        part: Any = self.parts[name]
        if name == "vae":
            set_tiles(part, self.plan.tile)
            if self.plan.slicing:
                part.enable_slicing()
            if self.team is not None:
                share_tiles(part, self.team)
        if name != "transformer":
            return
        cache = part.__dict__.pop("_cache_config", None)
        self.loras.put_on(part)  # below the hooks, which see its layers as they see others
        skip_full_masks(part)
        if self.plan.transformer.quantisation == "fp8":
            part.enable_layerwise_casting(torch.float8_e4m3fn, getattr(torch, self.plan.transformer.dtype))
        use_backend(part, self.plan.attention)
        if self.plan.chunk:
            use_chunks(part, self.plan.chunk)
        if self.team is not None:
            share_transformer(part, self.team)
        if cache is not None:
            part.enable_cache(cache)

    def _place(self, name: str) -> None:
        """Put the network where its offload says, and compile it if the plan says so."""
        part: Any = self.parts[name]
        how = self._part(name)
        if how.offload in ("group", "disk"):
            streamed = language_model(part)
            if how.offload == "group":
                pin(streamed, self.device)
            apply_group_offloading(
                streamed,
                onload_device=self.device,
                offload_type="block_level",
                num_blocks_per_group=1,
                use_stream=self.device.type == "cuda",
                low_cpu_mem_usage=how.offload == "disk",
            )
            if name == "transformer" or streamed is not part:
                self._keep_root_group(name, streamed)
            if streamed is not part:
                self._around(name, self.device)
        elif how.offload == "sequential":
            accelerate.cpu_offload(part, self.device, offload_buffers=bool(part._parameters))
        elif how.quantisation not in ("int8", "nf4"):  # those were read onto the device
            part.to(self.device)
        compile_part = {"transformer": compile_blocks, "vae": compile_vae}.get(name)
        if self.plan.compile and compile_part is not None:
            compile_part(part)

    def _streams_a_part(self, name: str) -> bool:
        """Whether only a part of the network is streamed: the language model of a Llava."""
        return (
            self._part(name).offload in ("group", "disk") and language_model(self.parts[name]) is not self.parts[name]
        )

    def _around(self, name: str, device: torch.device) -> None:
        """Move what is around a language model, its eye and its head, and the words' embeddings, which are read before
        the model is called."""
        network: Any = self.parts[name]
        inner = language_model(network)
        held = {id(tensor) for tensor in (*inner.parameters(), *inner.buffers())}
        for module in network.modules():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None and id(tensor) not in held:
                    tensor.data = tensor.data.to(device)
        if device.type != "cpu":
            self._root_groups[name].onload_()

    def _keep_root_group(self, name: str, network: torch.nn.Module) -> None:
        """Leave what is in no block on the GPU between the steps; diffusers would copy it there in each of them."""
        registry: Any = network._diffusers_hook
        group = registry.get_hook("group_offloading").group
        group.offload_leader = None  # no module's forward offloads it: `_offload` does
        self._root_groups[name] = group

    def _hook(self, name: str) -> CallHook:
        """Load the network when it is called, and say what to do when memory runs out."""
        return CallHook(self.parts[name], CALLS.get(name, ("forward",)), functools.partial(self._call, name))

    def _call(self, name: str, method: str, inner: Callable, *args, **kwargs):
        count = self.plan.waiting_blocks if name == "transformer" else 0
        if count and not self.parts[name].is_gradient_checkpointing:  # which is how a training streams them
            raise UserError(
                f"waiting_blocks={count}: the memory plan has these blocks in RAM for a training alone, of which "
                f"TrainSettings(streamed_blocks={count}) would work; another plan draws."
            )
        with self.lock:
            try:
                loaded = name in self._loaded
                network = self.require(name)
                return (inner if loaded else getattr(network, method))(*args, **kwargs)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not ran_out(error):
                    raise
                size = _size((*args, *kwargs.values()), self.parts["vae"])
                raise out_of_memory(self.plan, STAGE[name], size, self.files, error) from error


class CallHook:
    """A function around methods of one network, until it is removed.

    A `diffusers.hooks.ModelHook` cannot do this in diffusers 0.42: it wraps `forward` alone, and what is called of a
    VAE is `encode` and `decode`; and `HookRegistry.remove_hook` cuts off an outer hook with a forward of its own when
    an inner one is removed, as group offloading's is after the first call. Once both are otherwise, this is one.
    """

    def __init__(self, network: torch.nn.Module, methods: tuple[str, ...], around: Callable) -> None:
        """Wrap the methods.

        Args:
            network: Its instance gets the wrappers; its class stays as it is.
            methods: Their names.
            around: Called with a method's name, the method from before, and the arguments of the call.
        """
        self.network = network
        self._before = {method: vars(network).get(method) for method in methods}
        for method in methods:
            inner = getattr(network, method)
            setattr(network, method, _wrapped(functools.partial(around, method, inner), inner))

    def remove(self) -> None:
        """Give the network back the methods that it had."""
        for method, before in self._before.items():
            delattr(self.network, method)
            if before is not None:
                setattr(self.network, method, before)


def _wrapped(outer: Callable, inner: Callable) -> Callable:
    """`outer` under the name and signature of `inner`."""

    @functools.wraps(inner)
    def call(*args, **kwargs):
        return outer(*args, **kwargs)

    return call


def pin(network: torch.nn.Module, device: torch.device) -> int:
    """Put every block's weights into one piece of pinned RAM, from which copies overlap with computation.

    Args:
        network: Its stacks of blocks are its children that are a ModuleList.
        device: Nothing is pinned unless it is a CUDA device.

    Returns:
        How many blocks were pinned.
    """
    if device.type != "cuda":
        return 0
    pinned = 0
    for stack in (child for child in network.children() if isinstance(child, torch.nn.ModuleList)):
        for block in stack:
            weights = [*block.parameters(), *block.buffers()]
            if any(weight.is_cuda for weight in weights):  # quantised while it was read: diffusers brings it to RAM
                continue
            copies, held = packed_in_ram([weight.data for weight in weights], pinned=True)
            for weight, copy in zip(weights, copies):  # where this is not pinned, diffusers pins the tensors itself
                weight.data = copy
            pinned += held
    return pinned


def ran_out(error: BaseException) -> bool:
    """Whether this is PyTorch's, cuBLAS' or cuDNN's way of saying that GPU memory ran out."""
    words = ("out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _size(arguments: tuple, vae) -> Size | None:
    """The video's size, from the latents among the arguments of a call."""
    for value in arguments:
        if isinstance(value, torch.Tensor) and value.ndim == 5:
            *_, t, h, w = value.shape
            space, time = vae.config.spatial_compression_ratio, vae.config.temporal_compression_ratio
            return Size(h * space, w * space, (t - 1) * time + 1)
    return None
