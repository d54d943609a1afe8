"""Does a video from a picture work at HunyuanVideo-I2V's full size, on a card of 16 GB? Random weights, every stage.

    python -m benchmarks.image_to_video --weights /dev/shm/i2v --make
    python -m benchmarks.image_to_video --weights /dev/shm/i2v --out benchmarks/results/image_to_video.json

`--make` writes random weights of the published configurations in HunyuanVideo-I2V's layout (43 GB). The second call
caps the GPU's memory, loads them with the plan for it, and goes through the stages: picture, prompt, a few denoising
steps, decoding. Seconds and peaks of each are written, beside what the plan predicted. `--tiny` takes toy sizes;
without a GPU there is no plan and no cap.
"""

from __future__ import annotations

import os

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as `load(memory=)`, before CUDA begins

import t2v_kit  # before diffusers: it makes torchvision importable

# isort: split
import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoTransformer3DModel,
    logging,
)
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from benchmarks.common import PROMPT, header, measured, write
from benchmarks.full_size import FULL, TINY
from benchmarks.memory import cap
from t2v_kit.hunyuan.files import POCKET
from t2v_kit.memory.weights import VISION

EYES = {"full": VISION, "tiny": VISION | {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                                          "num_attention_heads": 2, "image_size": 48, "patch_size": 2}}  # fmt: skip
VIDEOS = {"full": {"height": 544, "width": 960, "num_frames": 61}, "tiny": {"height": 48, "width": 64, "num_frames": 9}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=Path(tempfile.gettempdir()) / "i2v", help="folder for them")
    parser.add_argument("--make", action="store_true", help="write the weights, and nothing else")
    parser.add_argument("--form", choices=("token_replace", "latent_concat"), default="token_replace")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cap", type=float, default=16, help="GiB of GPU memory")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=120, help="begin no step after this long")
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    args = parser.parse_args()
    logging.set_verbosity_error()  # diffusers remarks on every `.to(dtype)`
    size = "tiny" if args.tiny else "full"
    if args.make:
        make(args.weights, size, args.form)
        return 0
    report = header("image_to_video", sizes=size, form=args.form, video=VIDEOS[size], stages={})
    try:
        go_through(args, size, report)
        report["finished"] = True
    finally:
        write(args.out, report)
    for name, row in report["stages"].items():
        print(f"{name:8}", "  ".join(f"{key} {value}" for key, value in row.items()))
    for row in report.get("predicted", []):
        print("planned", row["stage"], round(row["vram_gb"], 1), "GiB")
    return 0


def make(folder: Path, size: str, form: str) -> None:
    """Random weights of the published sizes, drawn on the GPU where there is one, in HunyuanVideo-I2V's layout."""
    sizes = FULL if size == "full" else TINY
    words = PreTrainedTokenizerFast.from_pretrained(POCKET / "tokenizer")
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    places = {"image_token_id": words.convert_tokens_to_ids("<image>"), "pad_token_id": words.pad_token_id}
    condition = {"image_condition_type": form, "in_channels": 16 if form == "token_replace" else 33}
    eye = CLIPVisionConfig(**{name: each for name, each in EYES[size].items() if name != "model_type"})
    llava = LlavaConfig(vision_config=eye, text_config=LlamaConfig(**sizes["llama"]), **places)
    side = EYES[size]["image_size"]
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        pipe = HunyuanVideoImageToVideoPipeline(
            transformer=HunyuanVideoTransformer3DModel(**sizes["transformer"], **condition).to(torch.bfloat16),
            text_encoder=LlavaForConditionalGeneration(llava).to(torch.float16),
            text_encoder_2=CLIPTextModel(CLIPTextConfig(**sizes["clip"])).to(torch.float16),
            vae=AutoencoderKLHunyuanVideo(**sizes["vae"]).to(torch.float16),
            tokenizer=words,
            tokenizer_2=CLIPTokenizer.from_pretrained(POCKET / "tokenizer_2"),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
            image_processor=CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        )
    pipe.save_pretrained(folder)
    (folder / "t2v_kit.json").write_text(json.dumps({"crop_start": None}))


def go_through(args, size: str, report: dict) -> None:
    """Every stage once under the plan, as a reader of the documents would call them."""
    gpu, stages, deadline = torch.cuda.is_available(), report["stages"], time.perf_counter() + args.seconds
    settings = t2v_kit.Settings(PROMPT, num_inference_steps=max(args.steps, 1), **VIDEOS[size])
    plan = None
    if gpu:
        report |= cap(args.cap)
        plan = t2v_kit.plan(args.cap, None, **VIDEOS[size], model=str(args.weights))
        report["plan"], report["predicted"] = plan.as_dict(), t2v_kit.estimate(plan, settings, args.weights).rows
    with measured(stages.setdefault("load", {})):
        models = t2v_kit.load(args.weights, memory=plan)
    full = settings.check(models)
    photo = np.random.default_rng(0).integers(0, 256, (full.height, full.width, 3), np.uint8)
    with measured(stages.setdefault("picture", {})):
        picture = t2v_kit.read_picture(models, full, photo)
    with measured(stages.setdefault("encode", {})) as row:
        prompt = t2v_kit.encode_prompt(models, full.prompt, image=picture)
        row["tokens"] = len(prompt.tokens)
    noise = t2v_kit.initial_latents(models, full, image=picture)
    with measured(stages.setdefault("denoise", {})) as row:
        row["step_seconds"] = []
        for step in t2v_kit.denoise(models, prompt, noise, full, image=picture):
            row["step_seconds"].append(round(step.seconds, 3))
            row["last_step_seconds"] = row["step_seconds"][-1]
            if time.perf_counter() > deadline:
                break
    with measured(stages.setdefault("decode", {})) as row:
        row["video"] = list(t2v_kit.decode(models, step.latents).shape)


if __name__ == "__main__":
    raise SystemExit(main())
