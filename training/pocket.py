"""Pocket's models, by configuration, and the bundle they make together.

The classes are HunyuanVideo's own (diffusers and transformers); only the sizes are smaller. What is kept: 16
latent channels, 4 x 8 x 8 compression, the scaling factor, dual-stream then single-stream blocks, two layers of
token refiner, rotary axes for time, height and width, guidance as an input, patches of 1 x 2 x 2.

`python -m training.pocket --out FOLDER` gathers trained parts (FOLDER/vae, FOLDER/transformer, ...) into
`t2v_kit/pocket`, in HunyuanVideo's layout, and what the trainings measured into `benchmarks/results/training.json`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo, FlowMatchEulerDiscreteScheduler, HunyuanVideoTransformer3DModel

POCKET = Path(__file__).resolve().parent.parent / "t2v_kit" / "pocket"
RECORDS = POCKET.parents[1] / "benchmarks" / "results" / "training.json"
#: what the trainings leave beside their weights, by stage; (FOLDER or FOLDER/PLACE)/FILE
MEASURED = {
    "transformer": "transformer.json",
    "guidance": "student/guidance.json",
    "upscaler": "upscaler/upscaler.json",
}
FLOW_SHIFT = 3.0  #: HunyuanVideo uses 7 at about 119,000 tokens; pocket's 756 tokens want less


def vae() -> AutoencoderKLHunyuanVideo:
    return AutoencoderKLHunyuanVideo(block_out_channels=(16, 32, 64, 80), layers_per_block=1, norm_num_groups=8)


def transformer() -> HunyuanVideoTransformer3DModel:
    """Diffusers initialises like any linear layer; here modulation and output start at 0, as in DiT
    (Peebles and Xie 2022), so that every block starts as the identity."""
    model = HunyuanVideoTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=3,
        attention_head_dim=64,
        num_layers=4,
        num_single_layers=7,
        num_refiner_layers=2,
        mlp_ratio=4.0,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=256,
        pooled_projection_dim=128,
        rope_axes_dim=(8, 28, 28),
    )
    modulations = [
        m
        for name, m in model.named_modules()
        if name.endswith(("norm1.linear", "norm1_context.linear", "norm.linear", "norm_out.linear"))
    ]
    for linear in [*modulations, model.proj_out]:
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    return model


DATA = {
    "defaults": {
        "height": 112,
        "width": 192,
        "num_frames": 33,
        "num_inference_steps": 20,
        "guidance_scale": 3.0,
        "flow_shift": FLOW_SHIFT,
        "fps": 16,
    },
    "crop_start": 95,
    "dtype": "float32",
    "upscaler": "pocket",
    "world": "toyland",
    "trained_sizes": [[33, 112, 192], [17, 112, 192], [1, 112, 192], [33, 96, 96], [33, 64, 96]],
}
INDEX = {
    "_class_name": "HunyuanVideoPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "LlamaModel"],
    "text_encoder_2": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "tokenizer_2": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "HunyuanVideoTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLHunyuanVideo"],
}


def assemble(parts: Path, bundle: Path = POCKET):
    """Copy whatever parts are in `parts` into `bundle`, and write its index and its data."""
    for part in INDEX:
        if (parts / part).is_dir() and parts / part != bundle / part:
            shutil.copytree(parts / part, bundle / part, dirs_exist_ok=True)
        if (file := bundle / part / "config.json").exists():  # the folder it was trained in is nobody's business
            config = json.loads(file.read_text())
            config.pop("_name_or_path", None)
            file.write_text(json.dumps(config, indent=2) + "\n")
    FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT).save_pretrained(bundle / "scheduler")
    (bundle / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    (bundle / "t2v_kit.json").write_text(json.dumps(DATA, indent=2) + "\n")


def gather(parts: Path, records: Path = RECORDS):
    """Take over what the trainings in `parts` measured; of a stage that was not trained, the earlier record stays."""
    known = json.loads(records.read_text("utf-8")) if records.exists() else {}
    known |= {
        name: json.loads((parts / file).read_text("utf-8"))
        for name, file in MEASURED.items()
        if (parts / file).exists()
    }
    records.write_text(json.dumps(known, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    from .common import options

    trained = options(__doc__).out
    assemble(trained)
    gather(trained)
