"""A transformer read block by block into 4 bits, the last blocks of which wait in RAM: all of it is on the GPU never.

diffusers' `from_pretrained` puts whatever it quantises on one device, and has asked for the room of all before it reads
the first weight. Its own functions quantise here. Once its `device_map` may keep quantised blocks in RAM, this file is
unnecessary.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import accelerate
import torch
from diffusers import BitsAndBytesConfig, HunyuanVideoTransformer3DModel
from diffusers.models.model_loading_utils import load_model_dict_into_meta
from diffusers.quantizers.bitsandbytes import BnB4BitDiffusersQuantizer
from safetensors import safe_open

from ..errors import UserError
from ..hunyuan.files import ModelFiles, header
from ..hunyuan.masks import blocks
from .single import read_single
from .streamed import wait_in_ram

_BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")


def read_in_four_bits(
    files: ModelFiles, dtype: torch.dtype, device: torch.device, waiting: int
) -> HunyuanVideoTransformer3DModel:
    """Read a model's transformer in NF4.

    Args:
        files: Where it is. A single file is read into RAM as a whole first.
        dtype: What it computes in.
        device: Where it is quantised, and stays but for the blocks that wait.
        waiting: How many blocks, the last ones, go to RAM as soon as they are read.

    Raises:
        UserError: A weight is missing, or the weights are quantised already.
    """
    kind: Any = HunyuanVideoTransformer3DModel
    config = kind.load_config(files.folder / "transformer", local_files_only=True)
    if config.get("quantization_config") and files.single is None:
        raise UserError(
            f"{files.folder / 'transformer'}: its weights are quantised already, and are read as a whole; a model in "
            "16 bits, or waiting_blocks=0, would work."
        )
    with accelerate.init_empty_weights():
        transformer = kind.from_config(config)
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    quantiser = BnB4BitDiffusersQuantizer(how, pre_quantized=False)
    place: dict[str, Any] = {"": device}
    quantiser.preprocess_model(model=transformer, device_map=place, keep_in_fp32_modules=[])
    transformer.requires_grad_(False)  # only what is frozen waits, and a block's norms are to wait with it
    every = blocks(transformer)
    last = {_name(transformer, block) for block in every[len(every) - min(waiting, len(every)) :]}
    for name, weights in _by_block(files, dtype):
        load_model_dict_into_meta(transformer, weights, dtype=dtype, hf_quantizer=quantiser, device_map=place)
        if name in last:
            wait_in_ram(transformer.get_submodule(name))
    missing = [name for name, weight in transformer.named_parameters() if weight.is_meta]
    if missing:
        raise UserError(f"{files.folder / 'transformer'}: {missing[0]} is not in its files; a whole model would work.")
    quantiser.postprocess_model(transformer)
    transformer.hf_quantizer = quantiser
    return transformer.eval()


def _name(transformer: torch.nn.Module, block: torch.nn.Module) -> str:
    return next(name for name, module in transformer.named_modules() if module is block)


def _of_block(name: str) -> str:
    """Which block a weight belongs to: "transformer_blocks.0"; "" outside of blocks."""
    return ".".join(name.split(".")[:2]) if name.startswith(_BLOCKS) else ""


def _by_block(files: ModelFiles, dtype: torch.dtype) -> Iterator[tuple[str, OrderedDict[str, torch.Tensor]]]:
    """Each block's name and weights, in RAM."""
    readers: dict[str, Callable[[], torch.Tensor]] = {}
    if files.single is not None:
        whole = read_single(files, dtype).state_dict()
        readers = {name: lambda name=name: whole.pop(name) for name in whole}
    else:
        for path in files.weights("transformer"):
            for name in json.loads(header(path)):
                readers[name] = lambda name=name, path=path: _one(path, name)
    readers.pop("__metadata__", None)
    for block in sorted({_of_block(name) for name in readers}):
        yield block, OrderedDict((name, read()) for name, read in readers.items() if _of_block(name) == block)


def _one(path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)
