"""LoRAs with random weights for pocket, written as the programs write them that people train with."""

import json
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file

RANK, ALPHA = 4, 2.0
TO_Q, TO_ADD_Q = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")

#: Some layers of each kind: Tencent's name, ComfyUI's, and the layers that diffusers has for it, with their rows.
LAYERS = [
    ("double_blocks.0.img_attn_qkv", "double_blocks.0.img_attn.qkv", ["transformer_blocks.0." + n for n in TO_Q]),
    ("double_blocks.1.txt_attn_qkv", "double_blocks.1.txt_attn.qkv", ["transformer_blocks.1." + n for n in TO_ADD_Q]),
    ("double_blocks.0.img_attn_proj", "double_blocks.0.img_attn.proj", ["transformer_blocks.0.attn.to_out.0"]),
    ("double_blocks.0.txt_attn_proj", "double_blocks.0.txt_attn.proj", ["transformer_blocks.0.attn.to_add_out"]),
    ("double_blocks.2.img_mlp.fc1", "double_blocks.2.img_mlp.0", ["transformer_blocks.2.ff.net.0.proj"]),
    ("double_blocks.2.txt_mlp.fc2", "double_blocks.2.txt_mlp.2", ["transformer_blocks.2.ff_context.net.2"]),
    ("double_blocks.3.img_mod.linear", "double_blocks.3.img_mod.lin", ["transformer_blocks.3.norm1.linear"]),
    (
        "single_blocks.0.linear1",
        "single_blocks.0.linear1",
        ["single_transformer_blocks.0." + name for name in (*TO_Q, "proj_mlp")],
    ),
    ("single_blocks.6.linear2", "single_blocks.6.linear2", ["single_transformer_blocks.6.proj_out"]),
    (
        "single_blocks.1.modulation.linear",
        "single_blocks.1.modulation.lin",
        ["single_transformer_blocks.1.norm.linear"],
    ),
    (
        "txt_in.individual_token_refiner.blocks.0.self_attn_qkv",
        "txt_in.individual_token_refiner.blocks.0.self_attn.qkv",
        ["context_embedder.token_refiner.refiner_blocks.0." + name for name in TO_Q],
    ),
    (
        "txt_in.individual_token_refiner.blocks.1.mlp.fc1",
        "txt_in.individual_token_refiner.blocks.1.mlp.0",
        ["context_embedder.token_refiner.refiner_blocks.1.ff.net.0.proj"],
    ),
    (
        "txt_in.t_embedder.mlp.2",
        "txt_in.t_embedder.out_layer",
        ["context_embedder.time_text_embed.timestep_embedder.linear_2"],
    ),
    ("time_in.mlp.0", "time_in.in_layer", ["time_text_embed.timestep_embedder.linear_1"]),
    ("vector_in.out_layer", "vector_in.out_layer", ["time_text_embed.text_embedder.linear_2"]),
    ("final_layer.linear", "final_layer.linear", ["proj_out"]),
    ("final_layer.adaLN_modulation.1", "final_layer.adaLN_modulation.1", ["norm_out.linear"]),
]


def matrices(transformer) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Of each Tencent layer in LAYERS, `down` and `up`, large enough to change the video."""
    made, draw = {}, torch.Generator().manual_seed(0)
    for tencent, _, ours in LAYERS:
        weights = [transformer.get_submodule(name).weight for name in ours]
        rows, columns = sum(len(weight) for weight in weights), weights[0].shape[1]
        made[tencent] = (
            torch.randn(RANK, columns, generator=draw) / columns**0.5,
            torch.randn(rows, RANK, generator=draw) * 0.3,
        )
    return made


def as_diffusers(transformer) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The same by diffusers' names: rows of a fused matrix are cut, and of the last one the halves change places."""
    made = {}
    for tencent, _, ours in LAYERS:
        down, up = matrices(transformer)[tencent]
        if tencent == "final_layer.adaLN_modulation.1":
            up = torch.cat(up.chunk(2)[::-1])
        rows = [len(transformer.get_submodule(name).weight) for name in ours]
        made |= {name: (down, part) for name, part in zip(ours, up.split(rows))}
    return made


def write_all(transformer, folder: Path) -> dict[str, Path]:
    """A file of each format, all of the same LoRA."""
    tencent, ours = matrices(transformer), as_diffusers(transformer)
    comfy = {comfy: tencent[name] for name, comfy, _ in LAYERS}
    flat = {"lora_unet_" + name.replace(".", "_"): pair for name, pair in tencent.items()}
    flat_comfy = {"lora_unet_" + name.replace(".", "_"): pair for name, pair in comfy.items()}
    flat_ours = {"lora_transformer_" + name.replace(".", "_"): pair for name, pair in ours.items()}
    numbered = {
        f"transformer.{comfy}" + (f".{place}" if len(names) > 1 else ""): (
            tencent[name] if len(names) == 1 else ours[target]
        )
        for name, comfy, names in LAYERS
        for place, target in enumerate(names)
    }
    files = {
        "tencent under transformer": scaled(under("transformer.", tencent)),
        "tencent under diffusion_model": scaled(under("diffusion_model.", tencent)),
        "tencent alone": scaled(tencent),
        "comfyui": kohya(under("diffusion_model.", comfy)),
        "musubi": kohya(flat),
        "kohya with comfyui's names": kohya(flat_comfy),
        "kohya with diffusers' names": kohya(flat_ours),
        "numbered parts": kohya(numbered),
        "peft's own prefix": scaled(under("base_model.model.", ours)),
        "diffusers alone": scaled(ours),
    }
    written = {"diffusers": folder / "diffusers.safetensors"}
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(ours)).to_dict()  # type: ignore[arg-type]
    config = {
        f"transformer.{name}": sorted(value) if isinstance(value, set) else value for name, value in config.items()
    }
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(config)}
    save_file(peft_keys(under("transformer.", ours)), written["diffusers"], metadata)
    for name, tensors in files.items():
        written[name] = folder / f"{name.replace(' ', '_')}.safetensors"
        save_file({key: value.clone().contiguous() for key, value in tensors.items()}, written[name])
    return written


def under(prefix: str, pairs: dict) -> dict:
    return {prefix + name: pair for name, pair in pairs.items()}


def peft_keys(pairs: dict) -> dict[str, torch.Tensor]:
    downs = {f"{name}.lora_A.weight": down.clone() for name, (down, _) in pairs.items()}
    return downs | {f"{name}.lora_B.weight": up.clone() for name, (_, up) in pairs.items()}


def scaled(pairs: dict) -> dict[str, torch.Tensor]:
    """A file without alpha: its scale is in the matrices. A power of two leaves the bits alone."""
    return peft_keys({name: (down, up * (ALPHA / RANK)) for name, (down, up) in pairs.items()})


def kohya(pairs: dict) -> dict[str, torch.Tensor]:
    made = {}
    for name, (down, up) in pairs.items():
        made[f"{name}.lora_down.weight"], made[f"{name}.lora_up.weight"] = down, up
        made[f"{name}.alpha"] = torch.tensor(ALPHA)
    return made
