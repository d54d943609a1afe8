"""Video to video by strength: when does a red car become 'a blue car', and how much of the clip is left?

    python -m benchmarks.restyling --seconds 60 --out benchmarks/results/restyling.json
    python -m benchmarks.restyling --draw assets/strength.webp

Held-out clips of Toyland with a red car. Each is given to pocket with its own caption, in which red is blue, at
strengths from 0 to 1. By strength: the share in which the judge sees a blue car (and nothing else that is a subject),
and how the mask of what moves in the result overlaps that of the clip (intersection over union). One clip's
middle frames are written beside the file, and `--draw` makes the docs' picture of both.
"""

from __future__ import annotations

import t2v_kit  # first: it makes torchvision importable

# isort: split
import argparse
import json
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.common import RESULTS, header, write
from t2v_kit import Settings, toyland
from training.judge import answers, load_probes, score, table, wish

# Pocket's 20 steps spend most of their way at high noise, so the curve is looked at more closely there.
STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
SHOWN = (0.0, 0.4, 0.8, 0.9, 0.95, 1.0)  # in the picture


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "restyling.json")
    parser.add_argument("--draw", type=Path, help="draw the picture of what --out holds, and measure nothing")
    parser.add_argument("--seconds", type=float, default=60, help="begin no clip after this long")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--probes", type=Path, default=Path("training/weights"))
    args = parser.parse_args()
    if args.draw:
        draw(json.loads(args.out.read_text("utf-8")), Image.open(args.out.with_suffix(".png")), args.draw)
        return 0
    deadline = time.perf_counter() + args.seconds
    models = t2v_kit.load(args.model, dtype="float32")
    probes = load_probes(args.probes, models.device)
    report = header("restyling", weights=models.weights_hash, model=args.model) | {"clips": 0, "rows": {}}
    rows: dict[float, list[dict]] = {strength: [] for strength in STRENGTHS}
    for index, scene in enumerate(red_cars(args.clips)):
        if time.perf_counter() > deadline:
            break
        videos = restyled(models, scene, index, rows, probes)
        if not index:
            middle = [videos[strength][len(videos[strength]) // 2] for strength in SHOWN]
            args.out.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.concatenate(middle, axis=1)).save(args.out.with_suffix(".png"))
        report |= {"clips": index + 1, "rows": {f"{key:g}": summary(each) for key, each in rows.items()}}
        write(args.out, report)
        print(f"{index + 1} of {args.clips} clips", flush=True)
    for strength, row in report["rows"].items():
        print(f"{strength:4}", "  ".join(f"{key} {value}" for key, value in row.items()))
    return 0


def red_cars(count: int) -> list[toyland.Scene]:
    """Held-out scenes, of a fast red car and nobody else, without snow and rain, which move too."""
    rng, scenes = random.Random(8), []
    words = {"subject": "car", "colour": "red", "speed": "high"}
    while len(scenes) < count:
        places = {"place": rng.choice(toyland.PLACES), "sky": rng.choice(("sunny", "sunset", "night"))}
        scene = replace(toyland.random_scene(rng, pair=0), **words, **places)
        if toyland.held_out(scene):
            scenes.append(scene)
    return scenes


def restyled(models, scene: toyland.Scene, seed: int, rows: dict, probes) -> dict[float, np.ndarray]:
    """The clip of one scene at every strength; what is measured of them is added to `rows`."""
    wanted = replace(scene, colour="blue")
    settings = Settings(toyland.caption(wanted, careless=False), seed=seed).check(models)
    size = (settings.height, settings.width, settings.num_frames)
    drawn = toyland.render_batch([scene], *size, device=models.device)[0]
    clip, theirs = (drawn.permute(1, 2, 3, 0) * 255).round().to(torch.uint8).cpu().numpy(), moving(drawn)
    clean, prompt = t2v_kit.encode(models, clip), t2v_kit.encode_prompt(models, settings.prompt)
    videos = {}
    for strength in rows:
        latents = t2v_kit.initial_latents(models, settings, clean, strength)
        start = t2v_kit.start_step(models, settings, strength)
        for step in t2v_kit.denoise(models, prompt, latents, settings, start):
            latents = step.latents
        videos[strength] = t2v_kit.decode(models, latents)
        frames = torch.from_numpy(videos[strength]).to(models.device).permute(3, 0, 1, 2)[None].float() / 255
        verdicts = score(answers(probes, frames)[0], [wish(wanted)])
        rows[strength].append({"overlap": overlap(moving(frames[0]), theirs)} | table(verdicts))
    return videos


def moving(video: torch.Tensor) -> torch.Tensor:
    """Of (3, T, H, W) in [0, 1], (T, H, W) True where a frame is a tenth off the median picture: what moves."""
    return (video - video.median(1, keepdim=True).values).abs().amax(0) > 0.1


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Intersection over union of two masks."""
    return float((one & other).sum() / (one | other).sum().clamp(min=1))


def summary(each: list[dict]) -> dict:
    """Means over the clips."""
    names = ("subject", "colour", "all", "overlap")
    return {name: round(float(np.mean([one[name] for one in each if name in one])), 4) for name in names}


def draw(report: dict, middle: Image.Image, path: Path) -> None:
    """The two curves, and under them one clip's middle frame at every other strength."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.2), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, height_ratios=(3, 1))
    strengths = [float(key) for key in report["rows"]]
    both = [row["subject"] * row["colour"] for row in report["rows"].values()]
    above.plot(strengths, both, "o-", color="tab:blue", label="judged to be a blue car")
    kept = [row["overlap"] for row in report["rows"].values()]
    above.plot(strengths, kept, "s--", color="tab:red", label="overlap of what moves with the clip's")
    above.set(xlabel="strength", ylim=(-0.03, 1.03), title=f"'A blue car' over clips of a red car ({report['clips']})")
    above.legend(loc="center left")
    below.imshow(np.asarray(middle))
    below.set(title="one clip's middle frame at strength " + ", ".join(f"{strength:g}" for strength in SHOWN))
    below.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(path, lossless=True)


if __name__ == "__main__":
    raise SystemExit(main())
