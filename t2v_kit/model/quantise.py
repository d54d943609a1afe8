"""What int8 and nf4 do to numbers, to layers and to a model, on any machine: bitsandbytes' own code on the CPU.

diffusers loads what bitsandbytes quantises on a GPU only. Here a model that is loaded gets the same layers: int8 by
bitsandbytes' Linear8bitLt itself, and nf4 by rounding the weights to what Linear4bit unpacks before it multiplies.
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import torch
from diffusers import HunyuanVideoPipeline, HunyuanVideoTransformer3DModel

from ..errors import UserError
from ..hunyuan.masks import skip_full_masks
from .models import Models

BLOCK = 64  # numbers that share a scale in nf4: the default of bitsandbytes' quantize_4bit
HOWS = ("int8", "nf4")


def code_book(how: str) -> np.ndarray:
    """The values that a number may take, from -1 to 1, times its scale: 255 of int8, 16 of nf4. Rising float32."""
    if _checked(how) == "int8":
        return np.arange(-127, 128, dtype=np.float32) / 127
    from bitsandbytes.functional import get_4bit_type

    return get_4bit_type("nf4", device="cpu").sort().values.numpy()


def round_trip(weight: torch.Tensor, how: str) -> torch.Tensor:
    """A weight (rows, columns) as it comes back from int8 or nf4, in its own dtype.

    int8: the largest magnitude of each row becomes 127 (arXiv:2208.07339). nf4: that of each 64 numbers becomes 1,
    and each number the nearest of 16 levels that a normal distribution fills evenly (arXiv:2305.14314).
    """
    from bitsandbytes import functional

    if _checked(how) == "nf4":
        packed, state = functional.quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4")
        return functional.dequantize_4bit(packed, state)
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return (weight / scale).round() * scale


def layer_errors(network: torch.nn.Module, how: str) -> dict[str, float]:
    """By name of every linear layer: how far its weights move, |rounded - weight| / |weight| (Euclidean norms)."""
    errors = {}
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Linear):
            weight = layer.weight.detach().float()
            errors[name] = float((round_trip(weight, how) - weight).norm() / weight.norm())
    return errors


@torch.random.fork_rng(devices=[])  # new layers draw weights before they get those of the old ones
def quantised(models: Models, how: str) -> Models:
    """The same model with a quantised transformer: every linear layer, as diffusers' loader takes them.

    how: 'int8' or 'nf4'. The given models stay as they are; everything but the transformer is shared. For models
    loaded without a memory plan, on the CPU; on a GPU, `load(memory=Plan(...))` saves the memory as well.
    """
    old = models.pipe.transformer
    new = HunyuanVideoTransformer3DModel.from_config(old.config)
    torch.nn.Module.to(new, old.dtype)  # diffusers' own `to` warns of modules to keep in float32, even of none
    new.load_state_dict(old.state_dict())
    for name, layer in list(new.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            parent, _, own = name.rpartition(".")
            setattr(new.get_submodule(parent), own, linear(layer, how))
    skip_full_masks(new.eval().to(models.device))
    pipe = HunyuanVideoPipeline(**(models.pipe.components | {"transformer": new}))
    return dataclasses.replace(models, pipe=pipe)


def linear(layer: torch.nn.Linear, how: str) -> torch.nn.Linear:
    """A layer that multiplies like bitsandbytes' int8, or with weights that have been to nf4 and back."""
    if _checked(how) == "nf4":
        layer.weight.data = round_trip(layer.weight.data, "nf4")
        return layer
    from bitsandbytes.nn import Linear8bitLt

    # It would say at every call that it rounds to float16 on the way to 8 bits.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    made = Linear8bitLt(layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False)
    made.load_state_dict(layer.state_dict())
    return made.to(layer.weight.device)  # here the weights become 8 bits


def _checked(how: str) -> str:
    if how not in HOWS:
        raise UserError(f"how={how!r}: must be int8 or nf4; 'nf4' would work.")
    return how
