"""What does the denoising loop cost over the transformer calls it makes? At most 1 % is the promise.

    python -m benchmarks.loop_overhead --out benchmarks/results/loop_overhead.json

Runs `denoise` at a model's default size and steps, padded and cut, several times. The bare transformer calls are
timed from inside (its `forward`, below every hook of ours), the loop from outside: what is left is the loop's cost,
measured in the same run, so that a busy machine disturbs both alike.
"""

import t2v_kit  # first: it makes torchvision importable

# isort: split
import argparse
import json
import os
import platform
import statistics
import time
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import torch

PROMPT = "Sunny day, freedom and adventure, high motion. A man with a beard riding a motorcycle on the street."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket", help="what load() takes")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    models = t2v_kit.load(arguments.model)
    settings = t2v_kit.Settings(PROMPT).check(models)
    result = {
        "what": "cost of the denoising loop over the bare transformer calls",
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "model": models.source,
        "weights_hash": models.weights_hash,
        "size": [settings.num_frames, settings.height, settings.width],
        "num_inference_steps": settings.num_inference_steps,
        "device": device_name(models.device),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")}
        | {"python": platform.python_version()},
        "prompt_cut": measure(models, settings, padded=False, runs=arguments.runs),
        "prompt_padded": measure(models, settings, padded=True, runs=arguments.runs),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def measure(models: t2v_kit.Models, settings: t2v_kit.Settings, padded: bool, runs: int) -> dict:
    """Seconds of whole runs and of the transformer calls inside them, after one run to warm up."""
    prompt = t2v_kit.encode_prompt(models, settings.prompt, padded)
    noise = t2v_kit.initial_latents(models, settings)
    timed_run(models, prompt, noise, settings)
    pairs = [timed_run(models, prompt, noise, settings) for _ in range(runs)]
    percent = [100 * (whole - inside) / inside for whole, inside in pairs]
    return {
        "tokens": prompt.mask.shape[1],
        "seconds": [round(whole, 3) for whole, _ in pairs],
        "seconds_in_transformer": [round(inside, 3) for _, inside in pairs],
        "overhead_percent": [round(value, 3) for value in percent],
        "median_overhead_percent": round(statistics.median(percent), 3),
    }


def timed_run(models, prompt, noise, settings) -> tuple[float, float]:
    """(seconds of the whole loop, seconds inside the transformer's forward) of one run."""
    transformer, inside = models.pipe.transformer, []
    forward = transformer.forward

    def timed(*args, **kwargs):
        wait(models.device)
        began = time.perf_counter()
        result = forward(*args, **kwargs)
        wait(models.device)
        inside.append(time.perf_counter() - began)
        return result

    transformer.forward = timed
    try:
        began = time.perf_counter()
        for _ in t2v_kit.denoise(models, prompt, noise, settings):
            pass
        wait(models.device)
        return time.perf_counter() - began, sum(inside)
    finally:
        del transformer.forward


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
