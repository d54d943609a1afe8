"""LoRA files as people have them: whatever their keys are called, as layers of diffusers' HunyuanVideo transformer.

A LoRA adds `alpha / rank * up @ down` to a layer's weight (https://arxiv.org/abs/2106.09685). Its files differ in what
they call the layers (diffusers' names; Tencent's, with q, k and v in one matrix; ComfyUI's variant of those), in the
prefix before them, in whether dots became underscores (kohya-ss and musubi-tuner), in what they call the two matrices,
and in where alpha stands. All of that is undone here, with tensors in and tensors out.

diffusers 0.42 converts Tencent's names too, for the 13B alone: `_convert_hunyuan_video_lora_to_diffusers` has its width
of 3072 written in, cuts the `down` of the token refiner's fused layers in three, and leaves kohya's files unread.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch

from ..errors import UserError

HUNYUAN_WIDTH = 3072  # of the 13B: transformer/config.json of hunyuanvideo-community/HunyuanVideo, 24 heads of 128

#: Kinds of adapter that are no LoRA, by a piece of their keys.
OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_w": "LoHa",
    "lokr_": "LoKr",
    "oft_blocks": "OFT",
    "lora_mid": "a LoRA with a third, Tucker matrix",
}

_PREFIX = re.compile(
    r"(?:base_model\.)?(?:model\.)?(?:transformer\.|diffusion_model\.|unet\.|lora_unet_|lora_transformer_)?"
)
_ROLES = {
    "down": re.compile(r"\.(?:lora_A(?:\.\w+)?|lora_down|lora\.down|lora_linear_layer\.down)\.weight$"),
    "up": re.compile(r"\.(?:lora_B(?:\.\w+)?|lora_up|lora\.up|lora_linear_layer\.up)\.weight$"),
    "bias": re.compile(r"\.(?:lora_B(?:\.\w+)?|lora_up|lora\.up)\.bias$"),
    "alpha": re.compile(r"\.alpha$"),
}

#: Tencent's names by diffusers', from hyvideo/modules/models.py of the HunyuanVideo repository. Several of diffusers'
#: layers with the same name there are the rows of one matrix, in this order.
_TENCENT = {
    r"x_embedder\.proj": "img_in.proj",
    r"time_text_embed\.timestep_embedder\.linear_1": "time_in.mlp.0",
    r"time_text_embed\.timestep_embedder\.linear_2": "time_in.mlp.2",
    r"time_text_embed\.guidance_embedder\.linear_1": "guidance_in.mlp.0",
    r"time_text_embed\.guidance_embedder\.linear_2": "guidance_in.mlp.2",
    r"time_text_embed\.text_embedder\.linear_1": "vector_in.in_layer",
    r"time_text_embed\.text_embedder\.linear_2": "vector_in.out_layer",
    r"context_embedder\.proj_in": "txt_in.input_embedder",
    r"context_embedder\.time_text_embed\.timestep_embedder\.linear_1": "txt_in.t_embedder.mlp.0",
    r"context_embedder\.time_text_embed\.timestep_embedder\.linear_2": "txt_in.t_embedder.mlp.2",
    r"context_embedder\.time_text_embed\.text_embedder\.linear_(\d)": r"txt_in.c_embedder.linear_\1",
    r"context_embedder\.token_refiner\.refiner_blocks\.(\d+)\.attn\.to_[qkv]": (
        r"txt_in.individual_token_refiner.blocks.\1.self_attn_qkv"
    ),
    r"context_embedder\.token_refiner\.refiner_blocks\.(\d+)\.attn\.to_out\.0": (
        r"txt_in.individual_token_refiner.blocks.\1.self_attn_proj"
    ),
    r"context_embedder\.token_refiner\.refiner_blocks\.(\d+)\.ff\.net\.0\.proj": (
        r"txt_in.individual_token_refiner.blocks.\1.mlp.fc1"
    ),
    r"context_embedder\.token_refiner\.refiner_blocks\.(\d+)\.ff\.net\.2": (
        r"txt_in.individual_token_refiner.blocks.\1.mlp.fc2"
    ),
    r"context_embedder\.token_refiner\.refiner_blocks\.(\d+)\.norm_out\.linear": (
        r"txt_in.individual_token_refiner.blocks.\1.adaLN_modulation.1"
    ),
    r"transformer_blocks\.(\d+)\.norm1\.linear": r"double_blocks.\1.img_mod.linear",
    r"transformer_blocks\.(\d+)\.attn\.to_[qkv]": r"double_blocks.\1.img_attn_qkv",
    r"transformer_blocks\.(\d+)\.attn\.to_out\.0": r"double_blocks.\1.img_attn_proj",
    r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj": r"double_blocks.\1.img_mlp.fc1",
    r"transformer_blocks\.(\d+)\.ff\.net\.2": r"double_blocks.\1.img_mlp.fc2",
    r"transformer_blocks\.(\d+)\.norm1_context\.linear": r"double_blocks.\1.txt_mod.linear",
    r"transformer_blocks\.(\d+)\.attn\.add_[qkv]_proj": r"double_blocks.\1.txt_attn_qkv",
    r"transformer_blocks\.(\d+)\.attn\.to_add_out": r"double_blocks.\1.txt_attn_proj",
    r"transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj": r"double_blocks.\1.txt_mlp.fc1",
    r"transformer_blocks\.(\d+)\.ff_context\.net\.2": r"double_blocks.\1.txt_mlp.fc2",
    r"single_transformer_blocks\.(\d+)\.norm\.linear": r"single_blocks.\1.modulation.linear",
    r"single_transformer_blocks\.(\d+)\.(?:attn\.to_[qkv]|proj_mlp)": r"single_blocks.\1.linear1",
    r"single_transformer_blocks\.(\d+)\.proj_out": r"single_blocks.\1.linear2",
    r"norm_out\.linear": "final_layer.adaLN_modulation.1",
    r"proj_out": "final_layer.linear",
}
_ROWS = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "proj_mlp")  # the order in a fused matrix
_SHIFT_FIRST = "final_layer.adaLN_modulation.1"  # Tencent's rows are shift, then scale; diffusers' scale, then shift

#: ComfyUI's names by Tencent's, from `process_unet_state_dict` of its HunyuanVideo.
_COMFY = (
    ("txt_in.t_embedder.mlp.0", "txt_in.t_embedder.in_layer"),
    ("txt_in.t_embedder.mlp.2", "txt_in.t_embedder.out_layer"),
    ("txt_in.c_embedder.linear_1", "txt_in.c_embedder.in_layer"),
    ("txt_in.c_embedder.linear_2", "txt_in.c_embedder.out_layer"),
    ("_in.mlp.0", "_in.in_layer"),
    ("_in.mlp.2", "_in.out_layer"),
    ("_mod.linear", "_mod.lin"),
    ("modulation.linear", "modulation.lin"),
    ("_attn_", "_attn."),
    ("mlp.fc1", "mlp.0"),
    ("mlp.fc2", "mlp.2"),
)


class LoraLayer(NamedTuple):
    """What a LoRA adds to one layer: `alpha / rank * up @ down` to the weight, and `bias` to the bias.

    Attributes:
        down: (rank, in); of a convolution (rank, in, t, h, w).
        up: (out, rank); of a convolution (out, rank, 1, 1, 1).
        alpha: As in the formula.
        bias: (out,), or None.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float
    bias: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]


class Fitted(NamedTuple):
    """A LoRA file fitted to a transformer.

    Attributes:
        layers: By diffusers' name of the layer.
        unmatched: Keys of the file that belong to no layer of this transformer, sorted.
    """

    layers: dict[str, LoraLayer]
    unmatched: list[str]


def fit(
    tensors: Mapping[str, torch.Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    source: str,
    metadata: Mapping[str, str] | None = None,
    config: Mapping | None = None,
) -> Fitted:
    """Find the layers of a transformer that a LoRA file is about, whichever program wrote it.

    Args:
        tensors: The file's.
        shapes: Of the weights of the transformer's linear layers and convolutions, by their names in diffusers.
        source: What messages call the file.
        metadata: The file's; diffusers keeps peft's configuration in it.
        config: peft's configuration, where it is a file of its own (adapter_config.json).

    Raises:
        UserError: It is another kind of adapter, is about no layer of this transformer, or is for one of another size.
    """
    peft = _peft_config(metadata or {}) or dict(config or {})
    _refuse_other_kinds(tensors, peft, source)
    modules, unmatched = _by_module(tensors)
    known = _known_names(shapes)
    layers: dict[str, LoraLayer] = {}
    for name, parts in modules.items():
        bare = name[_PREFIX.match(name).end() :]  # type: ignore[union-attr]  (it also matches nothing)
        written = next((each for each in (name, bare) if each in known), None)
        keys = list(parts.values())
        if written is None or not {"up", "down"} <= parts.keys():
            unmatched += keys
            continue
        whole = _layer({role: tensors[key] for role, key in parts.items()}, bare, peft)
        for target, piece in _pieces(written, known[written], whole, shapes, source):
            if target in layers:
                raise UserError(f"{source}: has two LoRAs for {target} ({keys[0]} is one); a file with one would work.")
            layers[target] = piece
    if not layers:
        raise UserError(_nothing(source, unmatched))
    return Fitted(_same_biases(layers), sorted(unmatched))


def _nothing(source: str, unmatched: list[str]) -> str:
    """The message about a file of which no key is about a layer."""
    keys = ", ".join(sorted(unmatched)[:3]) or "there is none"
    return f"{source}: no key in it is about a layer of this transformer ({keys}); a LoRA for HunyuanVideo would work."


def _peft_config(metadata: Mapping[str, str]) -> dict:
    """peft's configuration in the metadata of a file that diffusers wrote, without the prefix of the transformer."""
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return {}
    start = "transformer."
    return {key.removeprefix(start): value for key, value in config.items() if key.startswith(start)}


def _refuse_other_kinds(tensors: Mapping[str, torch.Tensor], peft: Mapping, source: str) -> None:
    kinds = {kind: key for key in tensors for piece, kind in OTHER_KINDS.items() if piece in key}
    if peft.get("use_dora"):
        kinds["DoRA"] = "use_dora in its configuration"
    for kind, key in kinds.items():
        raise UserError(f"{source}: is {kind} ({key}); a plain LoRA would work.")


def _by_module(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The keys of each module by their role, and those that have none."""
    modules: dict[str, dict[str, str]] = {}
    rest = []
    for key in tensors:
        role = next((role for role, ending in _ROLES.items() if ending.search(key)), None)
        if role is None:
            rest.append(key)
        else:
            modules.setdefault(_ROLES[role].sub("", key), {})[role] = key
    return modules, rest


def _known_names(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, list[str]]]:
    """Everything that a layer may be called: Tencent's name or "", and the diffusers layers that it stands for."""
    tencent: dict[str, list[str]] = {}
    for name in shapes:
        for pattern, theirs in _TENCENT.items():
            if match := re.fullmatch(pattern, name):
                tencent.setdefault(match.expand(theirs), []).append(name)
    known = {name: ("", [name]) for name in shapes}
    for theirs, ours in tencent.items():
        ours.sort(key=_row)
        comfy = theirs
        for old, new in _COMFY:
            comfy = comfy.replace(old, new)
        for written in (theirs, comfy):
            known[written] = (theirs, ours)
            if len(ours) > 1:  # OneTrainer numbers the parts of a fused matrix
                known |= {f"{written}.{place}": ("", [name]) for place, name in enumerate(ours)}
    return {name.replace(".", "_"): target for name, target in known.items()} | known


def _row(name: str) -> int:
    """A layer's place among the rows of a fused matrix."""
    return next((place for place, end in enumerate(_ROWS) if name.endswith(end)), 0)


def _layer(parts: dict[str, torch.Tensor], name: str, peft: Mapping) -> LoraLayer:
    """One module of the file. Without an alpha in the file, it is the rank: a scale of 1, as peft writes them."""
    rank = parts["down"].shape[0]
    given = float(parts["alpha"]) if "alpha" in parts else _alpha_of_peft(peft, name, rank)
    alpha = given or float(rank)  # kohya-ss writes 0 for it
    return LoraLayer(parts["down"], parts["up"], alpha, parts.get("bias"))


def _alpha_of_peft(peft: Mapping, name: str, rank: int) -> float:
    """Alpha by peft's configuration. rsLoRA divides by the square root of the rank: here that is a greater alpha."""
    if peft.get("lora_alpha") is None:
        return float(rank)
    patterns = peft.get("alpha_pattern") or {}
    alpha = next(
        (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name)), peft["lora_alpha"]
    )
    return float(alpha) * math.sqrt(rank) if peft.get("use_rslora") else float(alpha)


def _pieces(
    written: str, known: tuple[str, list[str]], whole: LoraLayer, shapes: Mapping[str, tuple[int, ...]], source: str
) -> Iterator[tuple[str, LoraLayer]]:
    """The layers that a module of the file stands for, each with its rows."""
    theirs, targets = known
    rows = [shapes[target][0] for target in targets]
    wanted = (sum(rows), *shapes[targets[0]][1:])
    given = (whole.up.shape[0], *whole.down.shape[1:])
    if given != wanted or whole.up.shape[1:2] != (whole.rank,):
        raise UserError(_misfit(source, written, given, wanted, shapes))
    up, bias = whole.up, whole.bias
    if theirs == _SHIFT_FIRST:
        up, bias = (None if each is None else torch.cat(each.chunk(2)[::-1]) for each in (up, bias))
        assert up is not None
    ups = up.split(rows)
    biases = [None] * len(rows) if bias is None else bias.split(rows)
    for target, own, own_bias in zip(targets, ups, biases):
        yield target, LoraLayer(whole.down, own.clone(), whole.alpha, own_bias)


def _misfit(source: str, written: str, given: tuple, wanted: tuple, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The message about a LoRA for a transformer of another size."""
    here, there = ("x".join(map(str, size)) for size in (wanted, given))
    line = f"{source}: does not fit this model: {written} is {here} here, and {there} in the file"
    width = next((shape[0] for name, shape in shapes.items() if name.endswith("attn.to_q")), None)
    if HUNYUAN_WIDTH in given and width != HUNYUAN_WIDTH:
        return f"{line}, which is made for the 13B; load('hunyuan', loras=...) would work."
    return f"{line}; a LoRA that was trained on this model would work."


def _same_biases(layers: dict[str, LoraLayer]) -> dict[str, LoraLayer]:
    """peft gives either all layers of a LoRA a bias or none: zeros where the file has none."""
    if all(layer.bias is None for layer in layers.values()):
        return layers
    return {
        name: layer if layer.bias is not None else layer._replace(bias=layer.up.new_zeros(layer.up.shape[0]))
        for name, layer in layers.items()
    }


def peft_state(layers: Mapping[str, LoraLayer]) -> tuple[dict[str, torch.Tensor], dict]:
    """The layers as peft takes them.

    Returns:
        A state dict with diffusers' names, and the keywords of `peft.LoraConfig`.
    """
    state = {}
    for name, layer in layers.items():
        state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"] = layer.down, layer.up
        if layer.bias is not None:
            state[f"{name}.lora_B.bias"] = layer.bias
    first = next(iter(layers.values()))
    config = {
        "r": first.rank,
        "lora_alpha": first.alpha,
        "rank_pattern": {_exactly(name): each.rank for name, each in layers.items() if each.rank != first.rank},
        "alpha_pattern": {_exactly(name): each.alpha for name, each in layers.items() if each.alpha != first.alpha},
        "target_modules": "|".join(map(re.escape, sorted(layers))),
        "lora_bias": first.bias is not None,
    }
    return state, config


def _exactly(name: str) -> str:
    """A pattern of peft's for this layer alone: without ^ it would match every name that ends so."""
    return f"^{re.escape(name)}"
