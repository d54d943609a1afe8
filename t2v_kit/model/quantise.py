"""The effect of int8 and nf4 on numbers, layers and a model, on any machine: bitsandbytes' own code on the CPU.

diffusers loads models that are quantised by bitsandbytes on a GPU only. Here a loaded model gets the same layers: int8
by bitsandbytes' Linear8bitLt itself, nf4 by rounding the weights to the values that Linear4bit multiplies with.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import torch
from diffusers import HunyuanVideoTransformer3DModel

from ..errors import UserError
from ..hunyuan.backends import use_backend
from ..hunyuan.fp8_linear import multiply_in_fp8
from ..hunyuan.masks import skip_full_masks
from .models import Models

BLOCK = 64  # numbers that share a scale in nf4: the default of bitsandbytes' quantize_4bit
HOWS = ("int8", "nf4")
#: What `quantised` takes beside these: weights kept in 8-bit floats (diffusers' layerwise casting), products of 8-bit
#: floats, and other dtypes.
WHOLE = ("fp8", "fp8 products", "bfloat16", "float16")


def code_book(how: str) -> np.ndarray:
    """Return the values that a quantised number can have, before they are multiplied by its scale.

    Args:
        how: 'int8' or 'nf4'.

    Returns:
        Rising float32 from -1 to 1: 255 values of int8, 16 of nf4.

    Raises:
        UserError: `how` is neither.

    Example:
        >>> len(code_book("nf4"))
        16
    """
    if _checked(how) == "int8":
        return np.arange(-127, 128, dtype=np.float32) / 127
    from bitsandbytes.functional import get_4bit_type

    return get_4bit_type("nf4", device="cpu").sort().values.numpy()


def round_trip(weight: torch.Tensor, how: str) -> torch.Tensor:
    """Quantise a weight and restore it.

    int8: the largest magnitude of each row becomes 127 (arXiv:2208.07339). nf4: that of each 64 numbers becomes 1,
    and each number the nearest of 16 levels that a normal distribution fills evenly (arXiv:2305.14314).

    Args:
        weight: (rows, columns).
        how: 'int8' or 'nf4'.

    Returns:
        The same shape and dtype.

    Raises:
        UserError: `how` is neither.
    """
    from bitsandbytes import functional

    if _checked(how) == "nf4":
        packed, state = functional.quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4")
        return functional.dequantize_4bit(packed, state)
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return (weight / scale).round() * scale


def layer_errors(network: torch.nn.Module, how: str) -> dict[str, float]:
    """Measure how far quantisation moves the weights of every linear layer.

    Args:
        network: Its `torch.nn.Linear` layers are measured.
        how: 'int8' or 'nf4'.

    Returns:
        By name of the layer, |rounded - weight| / |weight| (Euclidean norms).

    Raises:
        UserError: `how` is neither.
    """
    errors = {}
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Linear):
            weight = layer.weight.detach().float()
            errors[name] = float((round_trip(weight, how) - weight).norm() / weight.norm())
    return errors


@torch.random.fork_rng(devices=[])  # new layers draw weights before they get those of the old ones
def quantised(models: Models, how: str) -> Models:
    """Return the same model with a transformer of fewer bits; int8 and nf4 as diffusers' loader does it.

    The given models stay as they are, and share everything but the transformer with the new ones.

    Args:
        models: Loaded without a memory plan. It takes memory for a second transformer; `load(memory=Plan(...))` is what
            saves memory.
        how: 'int8' or 'nf4', every linear layer; 'fp8', weights kept in 8-bit floats and computed with in the dtype, as
            a plan does it; 'fp8 products', which multiply 8-bit floats (`Fp8Linear`); or 'bfloat16' or 'float16'.

    Raises:
        UserError: `how` is none of these, or the models have a memory plan, LoRAs or several processes.
    """
    if how not in (*HOWS, *WHOLE):
        raise UserError(f"how={how!r}: must be one of {', '.join((*HOWS, *WHOLE))}; 'nf4' would work.")
    for what, there in (("a memory plan", models.residence), ("LoRAs", models.loras), ("a team", models.team)):
        if there:
            raise UserError(f"how={how!r}: these models have {what}; load without it would work.")
    old = models.pipe.transformer
    new: Any = HunyuanVideoTransformer3DModel.from_config(old.config)
    torch.nn.Module.to(new, old.dtype)  # diffusers' own `to` warns of modules to keep in float32, even of none
    new.load_state_dict(old.state_dict())
    new = new.eval().to(models.device)  # before its layers are replaced: an int8 layer's scales would stay behind
    if how in HOWS:
        for name, layer in list(new.named_modules()):
            if isinstance(layer, torch.nn.Linear):
                parent, _, own = name.rpartition(".")
                setattr(new.get_submodule(parent), own, linear(layer, how))
    if how in ("bfloat16", "float16"):
        torch.nn.Module.to(new, getattr(torch, how))
    if how == "fp8 products":
        multiply_in_fp8(new)
    skip_full_masks(new)
    if how == "fp8":
        new.enable_layerwise_casting(torch.float8_e4m3fn, old.dtype)
    use_backend(new, models.attention)
    components: dict[str, Any] = models.pipe.components | {"transformer": new}
    pipe = type(models.pipe)(**components)
    return dataclasses.replace(models, pipe=pipe)


def linear(layer: torch.nn.Linear, how: str) -> torch.nn.Linear:
    """Return a layer that multiplies like bitsandbytes' int8, or with weights that were quantised to nf4 and restored.

    Args:
        layer: For nf4, it is changed itself.
        how: 'int8' or 'nf4'.

    Raises:
        UserError: `how` is neither.
    """
    if _checked(how) == "nf4":
        layer.weight.data = round_trip(layer.weight.data, "nf4")
        return layer
    from bitsandbytes.nn import Linear8bitLt

    # Otherwise it warns at every call that it rounds to float16 on the way to 8 bits.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    quantised_layer = Linear8bitLt(
        layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False
    )
    quantised_layer.load_state_dict(layer.state_dict())
    return quantised_layer.to(layer.weight.device)  # here the weights become 8 bits


def _checked(how: str) -> str:
    if how not in HOWS:
        raise UserError(f"how={how!r}: must be int8 or nf4; 'nf4' would work.")
    return how
