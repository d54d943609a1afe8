"""Does `t2v train --memory 8` train the 13B on a card of 8 GB, the way that people call it? Random weights.

    python -m benchmarks.training_by_command --weights /dev/shm/base --out benchmarks/results/training_by_command.json

Writes a folder in HunyuanVideo's layout, whose transformer has the published size in random bfloat16 (26 GB) and whose
text encoders and VAE are small, and a clip. Then the command trains a LoRA on it, the card's memory limited by
torch.cuda.set_per_process_memory_fraction, less what the CUDA context takes: reading the data, loading the base in 4
bits and training have to stay within. `--tiny` runs the same lines with toy sizes; without a GPU the base is not
quantised.
"""

from __future__ import annotations

import os

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as `load(memory=)`, before CUDA begins

import t2v_kit  # before diffusers: it makes torchvision importable

# isort: split
import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from diffusers import HunyuanVideoTransformer3DModel

from benchmarks.common import GIB, header, measured, write
from benchmarks.full_size import TINY, random_pipeline, save
from benchmarks.memory import cap
from t2v_kit.cli import main as t2v

#: The transformer of the published size, and small networks that fit its inputs.
SIZES = TINY | {
    "transformer": {},
    "llama": TINY["llama"] | {"hidden_size": 4096, "num_attention_heads": 32},
    "clip": TINY["clip"] | {"hidden_size": 768, "projection_dim": 768, "num_attention_heads": 12},
}
VIDEOS = {"full": (33, 320, 512), "tiny": (9, 32, 48)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--weights", type=Path, default=Path(tempfile.gettempdir()) / "base", help="folder for them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cap", type=float, default=8, help="GB of GPU memory")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    args = parser.parse_args()
    gpu = torch.cuda.is_available()
    frames, height, width = VIDEOS["tiny" if args.tiny else "full"]
    report = header("training_by_command", sizes="tiny" if args.tiny else "full", size=[frames, height, width])
    with measured(report.setdefault("making", {})):
        make(args.weights, TINY if args.tiny else SIZES)
    clips = t2v_kit.write_toyland(args.weights / "clips", 1, height, width, frames)
    run = args.weights / f"run-{time.time_ns()}"
    words = ["train", clips, "--model", args.weights, "--out", run, "--steps", args.steps, "--sample-every", 0]
    words += ["--warmup", 0, "--height", height, "--width", width, "--num-frames", frames, "--optimizer", "adamw8bit"]
    if gpu:
        report |= cap(args.cap * 1e9 / GIB) | {"cap_gb": args.cap}
        words += ["--memory", f"{args.cap * 1e9 / GIB:.3f}"]
    try:
        with measured(report.setdefault("train", {})) as row:
            row["exit_status"] = t2v([str(word) for word in words])
        if row["exit_status"] == 0:
            record = json.loads((run / "training.json").read_text("utf-8"))
            lines = [json.loads(line) for line in (run / "losses.jsonl").read_text("utf-8").splitlines()]
            row["all_steps"] = [round(line["seconds"], 3) for line in lines]
            row["step_seconds"] = statistics.median(row["all_steps"][1:])
            row["losses"] = [round(line["loss"], 6) for line in lines]
            row["lora_mb"] = round((run / "lora.safetensors").stat().st_size / 1e6, 2)
            names = ("activations", "offloaded_blocks", "chunk", "streamed_blocks")
            row["levers"] = {name: record["settings"][name] for name in names}
            row["memory"] = record["memory"]
    finally:
        write(args.out, report)
    print(json.dumps(report["train"]))
    return report["train"].get("exit_status", 1)


def make(folder: Path, sizes: dict) -> None:
    """Random weights, drawn on the GPU where there is one; the transformer is never there in more than 16 bits."""
    pipe = random_pipeline(sizes | {"transformer": TINY["transformer"]})
    place = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device("meta"):
        transformer = HunyuanVideoTransformer3DModel(**sizes["transformer"]).to(torch.bfloat16)
    transformer = transformer.to_empty(device=place)
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            weight.normal_(0, 0.02)
            if weight.ndim == 1 and name.endswith("weight"):  # of a norm
                weight.add_(1)
    pipe.transformer = transformer
    save(pipe, sizes, folder)
    del pipe, transformer
    if place == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    raise SystemExit(main())
