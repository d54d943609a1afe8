"""Does the path work at HunyuanVideo's full size? Random weights, every stage, seconds and memory.

    python -m benchmarks.full_size --out benchmarks/results/full_size.json

Writes randomly initialised weights of the published configurations in HunyuanVideo's folder layout (bf16
transformer of 12.8 B parameters, fp16 text encoders and VAE), loads that folder with `t2v_kit.load`, and goes
through the stages: encode, a few denoising steps, decode untiled and tiled, upscale with a random network of
RealESRGAN_x4plus's size. Writes seconds and peak memory of each stage as JSON. What it cannot show: pictures.

Wants a GPU with 80 GB and 45 GB of room for the weights (in /dev/shm if that is large enough). `--tiny` runs the same
lines with toy sizes on any machine.
"""

import t2v_kit  # first: it makes torchvision importable

# isort: split
import argparse
import contextlib
import json
import platform
import resource
import shutil
import tempfile
import time
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    logging,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from t2v_kit.hunyuan.files import POCKET
from t2v_kit.memory.weights import CLIP, LLAMA

PROMPT = "Sunny day, freedom and adventure, high motion. A man with a beard riding a motorcycle on the street."
GIB = 2**30
GROWTH = 32  # num_grow_ch of all of Real-ESRGAN's RRDBNets

# transformer, vae: the defaults of diffusers' classes are HunyuanVideo's configurations.
# upscaler: RealESRGAN_x4plus.
FULL = {
    "transformer": {},
    "vae": {},
    "llama": LLAMA,
    "clip": CLIP,
    "upscaler": {"features": 64, "blocks": 23},
    "video": {"height": 320, "width": 512, "num_frames": 61},
}
TINY = {
    "transformer": {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "text_embed_dim": 32,
        "pooled_projection_dim": 24,
        "rope_axes_dim": (4, 6, 6),
    },
    "vae": {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4},
    "llama": {
        "vocab_size": 5000,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
    },
    "clip": {
        "vocab_size": 5000,
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 24,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    "upscaler": {"features": 16, "blocks": 2},
    "video": {"height": 48, "width": 64, "num_frames": 9},
}


class OutOfTime(Exception):
    """The time-box is over."""


class Stages:
    """Seconds and memory of each stage, and the time-box over all of them."""

    def __init__(self, limit: float):
        self.deadline = time.perf_counter() + limit
        self.rows: list[dict] = []

    def check(self) -> None:
        if time.perf_counter() > self.deadline:
            raise OutOfTime

    @contextlib.contextmanager
    def __call__(self, name: str):
        """Time a block; the yielded dict is its row and takes what else was measured."""
        self.check()
        gpu = torch.cuda.is_available()
        row = {"stage": name}
        if gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            row["gpu_gib_before"] = round(torch.cuda.memory_allocated() / GIB, 2)
        began = time.perf_counter()
        yield row
        if gpu:
            torch.cuda.synchronize()
            row["gpu_gib_peak"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
        row["seconds"] = round(time.perf_counter() - began, 3)
        # of the whole process so far, in KiB on Linux
        row["host_gib_peak"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 2)
        self.rows.append(row)
        print(f"{name:16} {row['seconds']:8.2f} s", flush=True)


def random_pipeline(sizes: dict) -> HunyuanVideoPipeline:
    """A whole pipeline, its weights drawn on the GPU where there is one: seconds for 21 B parameters."""
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return HunyuanVideoPipeline(
            transformer=HunyuanVideoTransformer3DModel(**sizes["transformer"]).to(torch.bfloat16),
            text_encoder=LlamaModel(LlamaConfig(**sizes["llama"])).to(torch.float16),
            text_encoder_2=CLIPTextModel(CLIPTextConfig(**sizes["clip"])).to(torch.float16),
            vae=AutoencoderKLHunyuanVideo(**sizes["vae"]).to(torch.float16),
            tokenizer=PreTrainedTokenizerFast.from_pretrained(POCKET / "tokenizer"),
            tokenizer_2=CLIPTokenizer.from_pretrained(POCKET / "tokenizer_2"),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        )


def random_upscaler(features: int, blocks: int) -> dict[str, torch.Tensor]:
    """RRDBNet x4 under the names of Real-ESRGAN's files, with the small random values that its training begins with."""
    channels = {f"conv_{name}": (features, features) for name in ("body", "up1", "up2", "hr")}
    channels |= {"conv_first": (3, features), "conv_last": (features, 3)}
    for block in range(blocks):
        for dense in (1, 2, 3):
            for conv in range(1, 6):
                name = f"body.{block}.rdb{dense}.conv{conv}"
                channels[name] = (features + (conv - 1) * GROWTH, GROWTH if conv < 5 else features)
    state = {}
    for name, (inward, outward) in channels.items():
        state[f"{name}.weight"] = torch.randn(outward, inward, 3, 3) * 0.1 * (2 / (9 * inward)) ** 0.5
        state[f"{name}.bias"] = torch.zeros(outward)
    return state


def save(pipe: HunyuanVideoPipeline, sizes: dict, folder: Path) -> None:
    pipe.save_pretrained(folder)
    prefix = DEFAULT_PROMPT_TEMPLATE["template"].split("{}")[0]
    crop = len(pipe.tokenizer(prefix).input_ids)
    (folder / "t2v_kit.json").write_text(json.dumps({"crop_start": crop}))
    torch.save({"params_ema": random_upscaler(**sizes["upscaler"])}, folder / "x4plus.pth")


def go_through(stages: Stages, sizes: dict, steps: int, folder: Path, report: dict) -> None:
    """Every stage once, as a reader of the README would call them."""
    with stages("make weights"):
        pipe = random_pipeline(sizes)
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    report["parameters"] = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    with stages("save"):
        save(pipe, sizes, folder)
    del pipe, parts

    with stages("load"):
        models = t2v_kit.load(str(folder))
    settings = t2v_kit.Settings(PROMPT, num_inference_steps=steps, **sizes["video"]).check(models)
    with stages("encode prompt") as row:
        prompt = t2v_kit.encode_prompt(models, settings.prompt)
        row["tokens"], row["cropped"] = len(prompt.tokens), models.template["crop_start"]
    with stages("denoise") as row:
        row["step_seconds"] = []
        for step in t2v_kit.denoise(models, prompt, t2v_kit.initial_latents(models, settings), settings):
            row["step_seconds"].append(round(step.seconds, 3))
            stages.check()
        row["latents"] = list(step.latents.shape)
    with stages("decode"):
        t2v_kit.decode(models, step.latents)
    models.pipe.vae.enable_tiling()
    with stages("decode, tiled") as row:
        video = t2v_kit.decode(models, step.latents)
        row["video"] = list(video.shape)
    del models
    with stages("upscale") as row:
        row["video"] = list(t2v_kit.upscale(video, folder / "x4plus.pth", progress=False).shape)


def room_for(gib: float) -> str:
    """/dev/shm, which no disk can keep up with, if it has the room; else the temporary folder."""
    shm = Path("/dev/shm")
    return str(shm) if shm.is_dir() and shutil.disk_usage(shm).free > gib * GIB else tempfile.gettempdir()


def table(rows: list[dict]) -> str:
    lines = ["stage            seconds   GPU GiB before -> peak   host GiB peak"]
    for row in rows:
        gpu = f"{row['gpu_gib_before']:8.2f} -> {row['gpu_gib_peak']:.2f}" if "gpu_gib_peak" in row else "       -"
        lines.append(f"{row['stage']:16} {row['seconds']:7.2f}   {gpu:22} {row['host_gib_peak']:12.2f}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--seconds", type=float, default=270, help="begin no stage and no step after this long")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps")
    parser.add_argument("--weights", help="folder for the weights (default: /dev/shm or the temporary one)")
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    args = parser.parse_args()
    logging.set_verbosity_error()  # diffusers remarks on every `.to(dtype)`
    sizes = TINY if args.tiny else FULL
    gpu = torch.cuda.is_available()
    report = {
        "benchmark": "full_size",
        "weights": "random",
        "sizes": "tiny" if args.tiny else "full",
        "video": sizes["video"],
        "device": torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "diffusers", "transformers", "spandrel")},
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "finished": False,
    }
    stages = Stages(args.seconds)
    with tempfile.TemporaryDirectory(dir=args.weights or room_for(0 if args.tiny else 48)) as folder:
        try:
            go_through(stages, sizes, args.steps, Path(folder), report)
            report["finished"] = True
        except OutOfTime:
            print(f"stopped: the {args.seconds:g} seconds are over")
        finally:  # what was measured is kept, whatever went wrong after it
            report["stages"] = stages.rows
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(report["device"], report["parameters"], sep="\n")
    print(table(stages.rows))
    return 0 if report["finished"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
