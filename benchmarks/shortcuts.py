"""What shortcuts cost pocket: step caches, fewer steps, fewer bits, each against the same videos without them.

    python -m benchmarks.shortcuts --seconds 1200 --out benchmarks/results/shortcuts.json

Held-out scenes with one subject, one video each at pocket's defaults. A row a shortcut: the share of the
transformer's arithmetic, how many times faster the steps are than those of the same prompt's plain run, PSNR of the
decoded video against the plain one, and adherence as `training.judge` sees it. The caches' thresholds are
pocket's alone; what carries over is how to find them.
"""

from __future__ import annotations

import t2v_kit  # first: it makes torchvision importable

# isort: split
import argparse
import ast
import contextlib
import functools
import io
import random
import statistics
import time
from dataclasses import replace
from pathlib import Path

import diffusers
import torch

from benchmarks.common import header, write
from t2v_kit import Settings, toyland
from t2v_kit.model import quantise
from training.judge import ATTRIBUTES, answers, load_probes, score, table, wish

BITS = ("int8", "nf4")  # as many operations as before, of which PyTorch does not count all


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1200, help="begin no prompt after this long")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--probes", type=Path, default=Path("training/weights"))
    args = parser.parse_args()
    deadline = time.perf_counter() + args.seconds
    models = t2v_kit.load(args.model, dtype="float32")
    probes = load_probes(args.probes, models.device)
    settings = Settings("any").check(models)
    ways = shortcuts(models, settings)
    report = header("shortcuts", weights=models.weights_hash, model=args.model) | {"rows": {}}
    found = {name: [] for name in ways}
    rng = random.Random(5)
    for index in range(args.prompts):
        if time.perf_counter() > deadline:
            break
        scene = toyland.random_scene(rng, pair=0, unseen=True)
        prompt = t2v_kit.encode_prompt(models, toyland.caption(scene, index))
        ours = replace(settings, prompt=prompt.text, seed=index)
        plain = None
        for name, way in ways.items():
            video, seconds, work = way(prompt, ours, count=not index and name not in BITS)
            plain = (video, seconds, work) if plain is None else plain
            frames = torch.from_numpy(video).to(models.device).permute(3, 0, 1, 2)[None].float() / 255
            found[name].append(
                {
                    "work": work and work / plain[2],
                    "faster": None if work else plain[1] / seconds,  # counting takes time
                    "psnr": t2v_kit.psnr(video, plain[0]),
                    "score": score(answers(probes, frames)[0], [wish(scene)]),
                }
            )
        report["prompts"], report["rows"] = index + 1, {name: summary(each) for name, each in found.items()}
        write(args.out, report)
        print(f"{index + 1} of {args.prompts} prompts", flush=True)
    for name, row in report["rows"].items():
        print(f"{name:24}", "  ".join(f"{key} {value}" for key, value in row.items()))
    return 0


def summary(each: list[dict]) -> dict:
    """Means over the prompts; times, which other work on the machine disturbs, as the median of all but the first
    prompt, with which the arithmetic is counted."""
    scores = {name: torch.cat([one["score"][name] for one in each]) for name in (*ATTRIBUTES, "all", "clean")}
    return {
        "work": round(each[0]["work"], 3) or None,
        "times_faster": round(statistics.median(one["faster"] for one in each[1:]), 2) if each[1:] else None,
        "psnr": round(statistics.mean(min(one["psnr"], 99) for one in each), 1),
        "adherence": table(scores),
    }


def shortcuts(models, settings: Settings) -> dict:
    """By name: (prompt, settings) -> (video, seconds of its steps, multiplications and additions)."""
    count = settings.num_inference_steps
    ways = {"plain": functools.partial(run, models)}
    for steps in (count // 2, 3 * count // 4):
        ways[f"{steps} steps"] = functools.partial(run, models, steps=steps)
    ratios = magnitudes(models, settings)

    def seen(_, args, told):
        return list(told["hidden_states"])

    caches = {
        f"first block {limit}": functools.partial(diffusers.FirstBlockCacheConfig, limit) for limit in (0.05, 0.1, 0.2)
    }
    caches |= {
        f"MagCache {limit}": functools.partial(
            diffusers.MagCacheConfig, limit, num_inference_steps=count, mag_ratios=ratios
        )
        for limit in (0.06, 0.12, 0.24)
    }
    caches |= {
        f"SeaCache {limit}": functools.partial(diffusers.SeaCacheConfig, limit, raw_vision_callback=seen)
        for limit in (0.15, 0.3, 0.6)
    }
    caches |= {
        f"TaylorSeer {interval}": functools.partial(
            diffusers.TaylorSeerCacheConfig, interval, use_lite_mode=True, taylor_factors_dtype=torch.float32
        )
        for interval in (2, 3, 4)
    }
    caches["pyramid 2"] = functools.partial(
        diffusers.PyramidAttentionBroadcastConfig,
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 950),
        current_timestep_callback=lambda: models.pipe.current_timestep,
    )
    ways |= {name: functools.partial(run, models, cache=cache) for name, cache in caches.items()}
    for how in BITS:
        ways[how] = functools.partial(run, quantise.quantised(models, how))
    return ways


def run(models, prompt, settings: Settings, steps: int | None = None, cache=None, count: bool = False):
    """The video, its steps' seconds, and if they are counted the operations (else 0)."""
    settings = replace(settings, num_inference_steps=steps or settings.num_inference_steps)
    transformer = models.pipe.transformer
    if cache is not None:
        transformer.enable_cache(cache())
    try:
        noise = t2v_kit.initial_latents(models, settings)
        with t2v_kit.count_work() if count else contextlib.nullcontext() as work:
            done = list(t2v_kit.denoise(models, prompt, noise, settings))
    finally:
        if cache is not None:
            transformer.disable_cache()
    video = t2v_kit.decode(models, done[-1].latents)
    return video, sum(step.seconds for step in done), work.get_total_flops() if work else 0


def magnitudes(models, settings: Settings) -> list[float]:
    """How much the blocks add from step to step, of one run with another seed: diffusers prints what MagCache needs."""
    config = diffusers.MagCacheConfig(calibrate=True, num_inference_steps=settings.num_inference_steps)
    prompt = t2v_kit.encode_prompt(models, toyland.caption(toyland.random_scene(1)))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        run(models, prompt, replace(settings, seed=99), cache=lambda: config)
    return ast.literal_eval(said.getvalue().splitlines()[-2])


if __name__ == "__main__":
    raise SystemExit(main())
