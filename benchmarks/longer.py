"""Longer than trained: does pocket's video begin again, and what does RIFLEx change?

    python -m benchmarks.longer --seconds 60 --out benchmarks/results/longer.json

Held-out scenes at two and four times the trained number of frames, with `riflex` and without, from the same noise.
Repetition is measured on what a frame differs by from the video's median picture: the cosine of two frames that lie a
number of frames apart, averaged over the video, and of that the highest value over all distances of at least 24
frames. Beside it stand the same of the drawn Toyland clip, and the judge's verdicts.
"""

from __future__ import annotations

import t2v_kit  # first: it makes torchvision importable

# isort: split
import argparse
import math
import random
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import RESULTS, header, write
from t2v_kit import Settings, toyland
from t2v_kit.hunyuan.longer import slowed
from training.judge import answers, load_probes, score, table, wish

LEAST = 24  # frames between two that are compared: nearer ones are alike because little has moved


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "longer.json")
    parser.add_argument("--seconds", type=float, default=60, help="begin no video after this long")
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--probes", type=Path, default=Path("training/weights"))
    args = parser.parse_args()
    deadline = time.perf_counter() + args.seconds
    models = t2v_kit.load(args.model, dtype="float32")
    probes = load_probes(args.probes, models.device)
    trained = models.trained_latents
    report = header("longer", weights=models.weights_hash, model=args.model)
    report |= {"trained_frames": 4 * (trained - 1) + 1, "rows": {}}
    found: dict[str, list[dict]] = {}
    rng = random.Random(11)
    for index in range(args.scenes):
        scene = toyland.random_scene(rng, pair=0, unseen=True)
        for times in (1, 2, 4):
            latents = times * (trained - 1) + 1
            change = slowed(models.pipe.transformer.config, trained, latents)
            for riflex in (False, True) if change else (False,):
                if time.perf_counter() > deadline:
                    break
                frames = 4 * (latents - 1) + 1
                settings = Settings(
                    toyland.caption(scene, careless=False), num_frames=frames, seed=index, riflex=riflex
                )
                row = measured(models, scene, settings.check(models), probes)
                found.setdefault(f"{times} times{', RIFLEx' * riflex}", []).append(row)
        report |= {"rows": {name: summary(each) for name, each in found.items()}}
        write(args.out, report)
        print(f"{index + 1} of {args.scenes} scenes", flush=True)
    for name, row in report["rows"].items():
        print(f"{name:18}", "  ".join(f"{key} {value}" for key, value in row.items()))
    return 0


def measured(models, scene: toyland.Scene, settings, probes) -> dict:
    """One video: its repetition, that of the drawn clip, and the judge's verdicts."""
    prompt = t2v_kit.encode_prompt(models, settings.prompt)
    noise = t2v_kit.initial_latents(models, settings)
    *_, last = t2v_kit.denoise(models, prompt, noise, settings)
    video = t2v_kit.decode(models, last.latents)
    size = (settings.height, settings.width, settings.num_frames)
    drawn = toyland.render_batch([scene], *size, device=models.device)[0]
    frames = torch.from_numpy(video).to(models.device).permute(3, 0, 1, 2)[None].float() / 255
    row = {"frames": settings.num_frames, "repetition": repetition(frames[0]), "drawn": repetition(drawn)}
    return row | table(score(answers(probes, frames)[0], [wish(scene)]))


def repetition(video: torch.Tensor, least: int = LEAST) -> float:
    """The highest mean cosine of two frames a distance apart, without what all frames share; 1 for a video that runs
    twice. NaN for a video that is too short to have such frames. The video is (3, T, H, W) in [0, 1]."""
    small = video[:, :, ::2, ::2].transpose(0, 1).flatten(1)
    moving = torch.nn.functional.normalize(small - small.median(0).values, dim=1, eps=1e-6)
    alike = moving @ moving.T
    distances = range(least, len(moving) - least // 3)
    return max((alike.diagonal(offset).mean().item() for offset in distances), default=math.nan)


def summary(each: list[dict]) -> dict:
    """Means over the scenes."""
    names = ("frames", "repetition", "drawn", "subject", "colour", "direction", "all", "clean")
    means = {name: round(float(np.nanmean([one[name] for one in each if name in one])), 4) for name in names}
    return means | {"videos": len(each)}


if __name__ == "__main__":
    raise SystemExit(main())
