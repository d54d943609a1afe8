"""Single files of the transformer that diffusers does not read as they are: in 8 bits with scales, or named by ComfyUI.

A scaled 8-bit file holds `layer.weight` in float8 and a scale beside it; the weight is their product. It is multiplied
out while the file is read: the transformer has the dtype that was asked for, and needs the memory of that. A plan with
fp8 rounds it to 8 bits again, without scales.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from .files import header

_SCALES = (".scale_weight", ".weight_scale")  # ComfyUI's names, the older and the newer
#: Of activations, which are not rounded here, and marks without contents.
_WITHOUT_USE = re.compile(r"\.(?:scale_input|input_scale|comfy_quant)$|(?:^|\.)scaled_fp8$")
_PREFIX = re.compile(r"^(?:model\.model\.|model\.diffusion_model\.|diffusion_model\.|model\.)")

#: From ComfyUI's names to Tencent's: the inverse of `process_unet_state_dict` of its HunyuanVideo.
_TO_TENCENT = (
    (r"^txt_in\.t_embedder\.in_layer\.", "txt_in.t_embedder.mlp.0."),
    (r"^txt_in\.t_embedder\.out_layer\.", "txt_in.t_embedder.mlp.2."),
    (r"^txt_in\.c_embedder\.in_layer\.", "txt_in.c_embedder.linear_1."),
    (r"^txt_in\.c_embedder\.out_layer\.", "txt_in.c_embedder.linear_2."),
    (r"^(time_in|guidance_in)\.in_layer\.", r"\1.mlp.0."),
    (r"^(time_in|guidance_in)\.out_layer\.", r"\1.mlp.2."),
    (r"_mod\.lin\.", "_mod.linear."),
    (r"\.modulation\.lin\.", ".modulation.linear."),
    (r"_attn\.(qkv|proj)\.", r"_attn_\1."),
    (r"_attn\.norm\.(query|key)_norm\.scale$", lambda match: f"_attn_{match[1][0]}_norm.weight"),
    (r"\.norm\.(query|key)_norm\.scale$", lambda match: f".{match[1][0]}_norm.weight"),
    (r"mlp\.0\.(weight|bias)$", r"mlp.fc1.\1"),
    (r"mlp\.2\.(weight|bias)$", r"mlp.fc2.\1"),
)
_EMBEDDER = re.compile(r"^(?:time_in|guidance_in|txt_in\.t_embedder)\.mlp\.")  # there mlp.0 is Tencent's name too


def needs_restoring(path: Path) -> bool:
    """Whether a safetensors file has weights in 8 bits, or names with a prefix or of ComfyUI."""
    entries = {name: entry for name, entry in json.loads(header(path)).items() if name != "__metadata__"}
    in_8_bits = any(entry["dtype"].startswith("F8_") for entry in entries.values())
    return in_8_bits or any(tencent_name(name) != name for name in entries)


def restored(path: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Read a safetensors file under Tencent's names or diffusers', its 8-bit weights multiplied by their scales.

    Args:
        path: The file.
        dtype: Of what was in 8 bits; the rest stays as it is.

    Returns:
        The weights by name, on the CPU.
    """
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        scales = {name: file.get_tensor(name) for name in names if name.endswith(_SCALES)}
        kept = [name for name in names if name not in scales and not _WITHOUT_USE.search(name)]
        return {tencent_name(name): _whole(name, file.get_tensor(name), scales, dtype) for name in kept}


def _whole(name: str, weight: torch.Tensor, scales: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """One weight out of 8 bits. A scale is one number, or one for each row."""
    if weight.element_size() > 1:
        return weight
    layer = name.removesuffix(".weight")
    scale = next((scales[f"{layer}{end}"].float() for end in _SCALES if f"{layer}{end}" in scales), None)
    if scale is None:
        return weight.to(dtype)
    return (weight.float() * (scale.reshape(-1, *[1] * (weight.ndim - 1)) if scale.numel() > 1 else scale)).to(dtype)


def tencent_name(name: str) -> str:
    """A weight's name without ComfyUI's prefix and words; Tencent's and diffusers' names stay as they are."""
    name = _PREFIX.sub("", name)
    if name.startswith(("transformer_blocks.", "single_transformer_blocks.", "context_embedder.")):
        return name
    if _EMBEDDER.match(name):
        return name
    for pattern, theirs in _TO_TENCENT:
        name = re.sub(pattern, theirs, name)
        if _EMBEDDER.match(name):
            return name
    return name
