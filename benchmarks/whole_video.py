"""How long does a whole video of the 13B take by the command, from its prompt to the file? Random weights.

    python -m benchmarks.whole_video --weights /dev/shm/13b --out benchmarks/results/whole_video.json

Writes random weights of the published sizes (42 GB) in HunyuanVideo's folder layout and runs `t2v PROMPT --model FOLDER
--compile` on them: 50 steps of 720 x 1280 x 129. After `--seconds` the command is interrupted as Ctrl-C would; called
once more with the same folder, the script has `t2v resume` go on. What it cannot show: the picture. `--tiny` runs the
same lines with toy sizes; without a GPU nothing is compiled.
"""

from __future__ import annotations

import t2v_kit  # noqa: F401  (first: it makes torchvision importable)

# isort: split
import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.common import PROMPT, header, write
from benchmarks.full_size import FULL, TINY, random_pipeline, save
from t2v_kit.run.folder import read_log

VIDEOS = {"full": (129, 720, 1280), "tiny": (9, 48, 64)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, default=Path(tempfile.gettempdir()) / "13b", help="folder for them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=3600, help="interrupt the command after this long")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    args = parser.parse_args()
    sizes = "tiny" if args.tiny else "full"
    run, size = args.weights / "run", VIDEOS[sizes]
    notes = args.weights / "whole_video.json"
    if notes.exists():
        report = json.loads(notes.read_text("utf-8"))
    else:
        report = header("whole_video", sizes=sizes, size=size, steps=args.steps, gpus=args.gpus, commands=[])
        networks = TINY if args.tiny else FULL
        save(random_pipeline(networks), networks, args.weights)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if (run / "settings.json").exists():
        words = ["resume", run]
    else:
        words = [PROMPT, "--model", args.weights, "--num-inference-steps", args.steps, "--upscale", "none"]
        for name, value in zip(("num-frames", "height", "width"), size, strict=True):
            words += [f"--{name}", value]
        words += ["--gpus", args.gpus, "--out", run, *["--compile"] * torch.cuda.is_available()]
    known = len(read_log(run))
    command = follow([str(word) for word in words], args.seconds)
    lines = read_log(run)
    if own := [line["seconds"] for line in lines[known:] if is_step(line)]:
        command["first_step"] = round(own[0], 2)  # warms up; a second process finds on disk what the first compiled
    report["commands"].append(command)
    steps = {line["step"]: line["seconds"] for line in lines if is_step(line)}
    report["step_seconds"] = [round(steps[step], 2) for step in sorted(steps)]
    report["stages"] = [line for line in lines if "peak_gib" in line]
    report["seconds"] = {"commands": round(sum(each["seconds"] for each in report["commands"]), 1)}
    if steps:
        report["seconds"] |= {
            "steps": round(sum(steps.values()), 1),
            "step": round(statistics.median(steps.values()), 2),
        }
    for path in (notes, args.out):
        write(path, report)
    print(json.dumps({name: report[name] for name in ("commands", "step_seconds", "stages", "seconds")}))
    return command["exit_status"]


def is_step(line: dict) -> bool:
    """Whether a line of the log is of a denoising step."""
    return "step" in line and "seconds" in line


def follow(words: list[str], limit: float) -> dict:
    """Run the command as people do, in a process of its own, and interrupt it when the time is over."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "t2v_kit", *words])
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
    name = "resume" if words[0] == "resume" else "make"
    return {"name": name, "seconds": round(time.perf_counter() - began, 1), "exit_status": process.returncode}


if __name__ == "__main__":
    raise SystemExit(main())
