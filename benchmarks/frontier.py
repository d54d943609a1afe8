"""What shortcuts cost pocket: step caches, fewer steps, other solvers, fewer bits, each beside the same videos without.

    python -m benchmarks.frontier --prompts 56 --workers 6 --seconds 160 --out benchmarks/results/frontier.json
    python -m benchmarks.frontier --picture assets/frontier.png      # of what was measured

Held-out scenes with one subject, one video each at pocket's defaults. A row a shortcut, with means over the prompts
and their 95 % intervals: the share of the transformer's arithmetic and of the seconds; PSNR of the decoded video to the
plain one; PSNR to the same noise followed in 100 small steps, which is what a solver aims at; how far the motion
differs (`t2v_kit.motion_error`); and adherence as `training.judge` sees it. The thresholds are pocket's alone; what
carries over is how to find them. Seconds are taken at the end, by one process alone, each beside a plain run;
`--only-seconds` takes them again, of rows measured before, perhaps on another machine. The 100 small steps take as
long as five plain runs: `--without-exact` leaves them out. Rows of an earlier call, of the same prompts and weights,
stay.
"""

from __future__ import annotations

import t2v_kit  # first: it makes torchvision importable

# isort: split
import argparse
import contextlib
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import RESULTS, header, write
from t2v_kit import Settings, toyland
from t2v_kit.run.shortcuts import BITS, shortcut
from t2v_kit.stages.prompt import PromptEncoding
from training.judge import ATTRIBUTES, answers, load_probes, score, table, wish

PLAIN, EXACT = "plain", "100 steps"
KINDS = {
    "fewer steps": "#333333",
    "other solvers": "#8E5AA8",
    "first block": "#3A6EA5",
    "MagCache": "#4C9A5B",
    "SeaCache": "#C8553D",
    "TaylorSeer": "#D9A02B",
    "pyramid": "#888888",
    "FasterCache": "#B07A5A",
}
#: In this order; what the time does not suffice for is missing
WAYS = (
    *(f"{steps} steps" for steps in (15, 10, 7, 5)),
    *(f"{solver} + {steps} steps" for steps in (10, 7) for solver in ("UniPC", "DPM++")),
    *(f"Heun + {steps} steps" for steps in (8, 5)),  # 15 and 9 evaluations
    *(f"first block {limit}" for limit in (0.05, 0.1, 0.2)),
    *(f"MagCache {limit}" for limit in (0.06, 0.12, 0.24)),
    *(f"SeaCache {limit}" for limit in (0.15, 0.3, 0.6)),
    *(f"TaylorSeer {interval}" for interval in (2, 3, 4)),
    "pyramid 2",
    "FasterCache 2",
    "UniPC + 10 steps + SeaCache 0.3",
    "int8",
    "nf4",
    "fp8",
    "fp8 products",
    "bfloat16",
    "bfloat16 + attention _flash_3",
    "bfloat16 + attention _flash_3_fp8",
)
COUNTED = 12  # processes that count the arithmetic of their first prompt
TIMED = 2  # prompts, of each way


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=1200, help="begin no shortcut after this long")
    parser.add_argument("--prompts", type=int, default=56)
    parser.add_argument("--workers", type=int, default=1, help="processes that share the prompts")
    parser.add_argument("--worker", type=int, help="only this share of the prompts, without a summary")
    parser.add_argument("--ways", nargs="+", default=WAYS)
    parser.add_argument("--without-exact", action="store_true", help=f"don't compare with {EXACT}")
    parser.add_argument("--only-seconds", action="store_true", help="of the rows that are in --out, on this machine")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--probes", type=Path, default=Path("training/weights"))
    parser.add_argument("--picture", type=Path, help="draw what benchmarks/results has")
    args = parser.parse_args()
    if args.picture:
        picture(json.loads((RESULTS / "frontier.json").read_text("utf-8"))).savefig(args.picture, dpi=110)
        return 0
    if args.worker is not None:
        work(args, args.worker, args.out, args.seconds)
        return 0
    if args.only_seconds:
        report = json.loads(args.out.read_text("utf-8"))
        add_seconds(report, t2v_kit.load(args.model, dtype="float32"), args.seconds)
        write(args.out, report)
        print("\n".join(lines(report)))
        return 0
    began = time.perf_counter()
    found: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{index}.json") for index in range(args.workers)]
        if args.workers == 1:
            work(args, 0, files[0], 0.8 * args.seconds)
        shares = [worker(args, index, file) for index, file in enumerate(files)] if args.workers > 1 else []
        codes = [ended(share, began + args.seconds) for share in shares]
        for file in files:
            found += json.loads(file.read_text("utf-8")) if file.exists() else []
    if not found:
        raise SystemExit(f"no process measured anything: exit statuses {codes}")
    models = t2v_kit.load(args.model, dtype="float32")
    report = header("frontier", weights=models.weights_hash, model=args.model, processes=args.workers)
    report["prompts"] = len({one["prompt"] for one in found})
    report["settings"] = {"steps": Settings("any").check(models).num_inference_steps}
    whole = {one["prompt"]: one["operations"] for one in found if one["way"] == PLAIN and one["operations"]}
    by_way = {name: [one for one in found if one["way"] == name] for name in (PLAIN, *args.ways)}
    rows = report["rows"] = kept(args.out, report)
    for name, each in by_way.items():
        if len(each) == report["prompts"]:  # the last one may have been cut off
            rows[name] = (rows.get(name, {}) if name in counted(rows) else {}) | summary(each, whole)
    report["seconds_in_all"] = round(time.perf_counter() - began, 1)
    write(args.out, report)
    add_seconds(report, models, args.seconds - (time.perf_counter() - began))
    report["seconds_in_all"] = round(time.perf_counter() - began, 1)
    write(args.out, report)
    print("\n".join(lines(report)))
    return int(any(codes))


def kept(file: Path, report: dict) -> dict:
    """The rows that were measured before, of the same weights and prompts; each says on which device."""
    earlier = json.loads(file.read_text("utf-8")) if file.exists() else {}
    same = all(earlier.get(name) == report[name] for name in ("weights", "prompts", "settings"))
    return {name: {"device": earlier["device"]} | row for name, row in earlier["rows"].items()} if same else {}


def worker(args: argparse.Namespace, index: int, file: Path) -> subprocess.Popen:
    """A process that measures every `workers`-th prompt; it has 0.8 of the time, the rest is for the seconds."""
    options = {"out": file, "seconds": 0.8 * args.seconds, "prompts": args.prompts, "workers": args.workers}
    options |= {"worker": index, "model": args.model, "probes": args.probes}
    command = [sys.executable, "-m", "benchmarks.frontier", *(f"--{name}={value}" for name, value in options.items())]
    cards = max(torch.cuda.device_count(), 1)
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": str(index % cards)} if cards > 1 else {})
    command += ["--without-exact"] if args.without_exact else []
    return subprocess.Popen([*command, "--ways", *args.ways], env=environment)


def ended(share: subprocess.Popen, deadline: float) -> int:
    """A process's exit status; 0 for one that is stopped at the deadline, in the middle of a shortcut."""
    try:
        return share.wait(max(deadline - time.perf_counter(), 0))
    except subprocess.TimeoutExpired:
        share.kill()
        share.wait()
        return 0


def work(args: argparse.Namespace, index: int, out: Path, seconds: float) -> None:
    """What one process measures, a row a prompt and way, written after each way."""
    deadline = time.perf_counter() + seconds
    warnings.simplefilter("ignore")  # of words mistyped on purpose, once a run
    models = t2v_kit.load(args.model, dtype="float32")
    probes = load_probes(args.probes, models.device)
    cases = prompts(models, args.prompts)[index :: args.workers]
    truth = {EXACT: [], PLAIN: []}
    rows = []
    for way in (*(() if args.without_exact else (EXACT,)), PLAIN, *args.ways):
        if time.perf_counter() > deadline:
            break
        try:
            videos, share = made(models, cases, way, counting=index < COUNTED)
        except Exception as error:  # a kernel that this machine lacks leaves its row out, and stops no other
            print(f"{way}: {type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)
            continue
        truth |= {way: videos} if way in truth else {}
        for place, (case, video, plain) in enumerate(zip(cases, videos, truth[PLAIN] or videos)):
            row = {"way": way, "prompt": case.index, "operations": share if case is cases[0] else None}
            row |= {"psnr": near(video, plain)}
            row |= {"psnr_to_exact": near(video, truth[EXACT][place])} if truth[EXACT] else {}
            row |= {"motion_error": t2v_kit.motion_error(video, plain), "score": judged(probes, models, video, case)}
            rows.append(row)
        write(out, rows)
        if index == 0:
            print(f"{way}: done", flush=True)


@dataclass(frozen=True)
class Case:
    """A prompt, the scene that it describes, and its settings with a seed of its own."""

    index: int
    scene: toyland.Scene
    settings: Settings
    text: PromptEncoding


def prompts(models, count: int) -> list[Case]:
    """Held-out scenes with one subject, always the same ones."""
    rng = random.Random(5)
    scenes = [toyland.random_scene(rng, pair=0, unseen=True) for _ in range(count)]
    texts = [toyland.caption(scene, index) for index, scene in enumerate(scenes)]
    return [
        Case(index, scene, Settings(text, seed=index), t2v_kit.encode_prompt(models, text))
        for index, (scene, text) in enumerate(zip(scenes, texts))
    ]


def made(models, cases: list[Case], way: str, counting: bool) -> tuple[list[np.ndarray], int | None]:
    """Each case's video, and if they are counted the operations of the first one's steps; None where bits
    change them."""
    with taken(models, cases[0], way) as (other, settings):
        videos = [run(other, case, settings)[0] for case in cases]
        if not counting or set(way.split(" + ")) & set(BITS):
            return videos, None
        with t2v_kit.count_work() as work:
            run(other, cases[0], settings, decoded=False)
    return videos, work.get_total_flops()


def taken(models, case: Case, way: str):
    """The models and settings of a shortcut, prepared on one case."""
    if way == PLAIN:
        return contextlib.nullcontext((models, case.settings))
    return shortcut(way).taken(models, case.settings)


def run(models, case: Case, settings: Settings, decoded: bool = True) -> tuple[np.ndarray | None, float]:
    """A case's video as a shortcut's settings make it, and the seconds of its steps."""
    settings = replace(settings, prompt=case.settings.prompt, seed=case.settings.seed)
    noise = t2v_kit.initial_latents(models, settings)
    done = list(t2v_kit.denoise(models, case.text, noise, settings))
    video = t2v_kit.decode(models, done[-1].latents) if decoded else None
    return video, sum(step.seconds for step in done)


def near(video: np.ndarray, other: np.ndarray) -> float:
    """PSNR in dB, at most 99."""
    return min(t2v_kit.psnr(video, other), 99.0)


def judged(probes, models, video: np.ndarray, case: Case) -> dict[str, float]:
    """What came true of the scene, 0 or 1 by attribute; NaN where it was not asked for."""
    frames = torch.from_numpy(video).to(models.device).permute(3, 0, 1, 2)[None].float() / 255
    scores = score(answers(probes, frames)[0], [wish(case.scene)])
    return {name: scores[name].item() for name in (*ATTRIBUTES, "all", "clean")}


def summary(each: list[dict], whole: dict[int, int]) -> dict:
    """Means over the prompts with their 95 % intervals. whole: a plain run's operations, by prompt."""
    shares = [one["operations"] / whole[one["prompt"]] for one in each if one["operations"]]
    row: dict = {"prompts": len(each), "work": round(statistics.mean(shares), 3) if shares else None}
    for name in ("psnr", *(("psnr_to_exact",) if "psnr_to_exact" in each[0] else ()), "motion_error"):
        values = np.array([one[name] for one in each])
        drawn = np.random.default_rng(0).choice(values, (2000, len(values))).mean(1)  # bootstrap over the prompts
        row[name] = round(float(values.mean()), 3)
        row[f"{name}_interval"] = np.percentile(drawn, (2.5, 97.5)).round(3).tolist()
    scores = {name: torch.tensor([one["score"][name] for one in each]) for name in each[0]["score"]}
    row["adherence"] = table(scores)
    row["adherence_interval"] = wilson(int(scores["all"].sum()), len(each))
    return row


def wilson(right: int, count: int) -> list[float]:
    """The 95 % interval of a share (Wilson 1927), which does not collapse where all are right."""
    z, share = 1.96, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    return [round(max(0.0, middle - half), 4), round(min(1.0, middle + half), 4)]


def add_seconds(report: dict, models, seconds: float) -> None:
    """To each row the median seconds of its steps, each run beside a plain one of the same prompt."""
    deadline, rows = time.perf_counter() + seconds, counted(report["rows"])
    for row in rows.values():
        row.pop("seconds", None)
        row.pop("times_faster", None)
    report["timed_on"] = header("")["device"]
    cases = prompts(models, TIMED)
    run(models, cases[0], cases[0].settings, decoded=False)  # warms up
    for way, row in rows.items():
        if time.perf_counter() > deadline:
            break
        if models.device.type == "cpu" and any(
            part in BITS or part.startswith("attention") for part in way.split(" + ")
        ):
            continue  # bits and kernels are for GPUs
        plain = [run(models, case, case.settings, decoded=False)[1] for case in cases]
        with taken(models, cases[0], way) as (other, settings):
            found = [run(other, case, settings, decoded=False)[1] for case in cases]
        row["seconds"] = round(statistics.median(found), 4)
        row["times_faster"] = round(statistics.median(a / b for a, b in zip(plain, found)), 3)


def counted(rows: dict) -> dict:
    """The rows of more than one prompt."""
    return {name: row for name, row in rows.items() if row["prompts"] > 1}


def shorter(rows: dict) -> dict:
    """Those of them that leave some of the arithmetic out."""
    return {name: row for name, row in counted(rows).items() if row["work"] and row["work"] < 1}


def best(rows: dict) -> list[str]:
    """Names of the rows that no other one beats: with no more work, none is nearer to the plain run."""
    real = shorter(rows)
    return [
        name
        for name, row in real.items()
        if not any(
            other["work"] <= row["work"] and other["psnr"] > row["psnr"] for each, other in real.items() if each != name
        )
    ]


def picture(report: dict):
    """Work against PSNR to the plain run, with intervals; the frontier is the line that no row lies above.

    Returns:
        A figure of matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.add_subplot()
    rows = shorter(report["rows"])
    for kind, colour in KINDS.items():
        own = {name: row for name, row in rows.items() if kind_of(name) == kind}
        if not own:
            continue
        x, y = [row["work"] for row in own.values()], [row["psnr"] for row in own.values()]
        ends = np.array([row["psnr_interval"] for row in own.values()]).T
        axes.errorbar(x, y, np.abs(ends - y), fmt="o", color=colour, label=kind, capsize=3, ms=5)
        for name, (work, psnr) in zip(own, zip(x, y)):
            beside = [(other["work"], other["psnr"]) for other in rows.values() if abs(other["psnr"] - psnr) < 1.5]
            left = any((work, psnr) < each and each[0] - work < 0.11 for each in beside)  # where there is room
            low = any(work == each[0] and 0 < each[1] - psnr < 1 for each in beside)
            label = name.removeprefix(f"{kind} ")
            place = {"xytext": (-5 if left else 5, -9 if low else 4), "ha": "right" if left else "left"}
            if label.count(" + ") > 1:  # in two lines
                label, place = "\n+ ".join(label.rsplit(" + ", 1)), {"xytext": (5, -18), "ha": "left"}
            axes.annotate(label, (work, psnr), **place, textcoords="offset points", fontsize=7)
    line = sorted((rows[name]["work"], rows[name]["psnr"]) for name in best(rows))
    axes.plot(*zip(*line), color="#999999", lw=1, zorder=0)
    axes.set(xlabel="share of the plain run's arithmetic", ylabel="PSNR to the plain run, dB", xlim=(0, 1.02))
    axes.set_title(f"{report['prompts']} held-out prompts, pocket, mean and 95 % interval", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    axes.grid(alpha=0.3)
    return figure


def kind_of(name: str) -> str:
    """Which of `KINDS` a row belongs to."""
    if " + " in name:
        return "other solvers"
    return next((kind for kind in KINDS if name.startswith(kind)), "fewer steps")


def lines(report: dict) -> list[str]:
    """The rows as text."""
    found = [f"{report['device']}, {report['prompts']} prompts, {report['seconds_in_all']} s in all"]
    for name, row in counted(report["rows"]).items():
        low, high = row["psnr_interval"]
        found.append(
            f"{name:34} work {row['work'] or '-':>5}  x{row.get('times_faster', '-'):>5}  {row['psnr']:5.1f} dB "
            f"[{low:.1f}, {high:.1f}]  exact {row.get('psnr_to_exact', '-'):>5}  motion {row['motion_error']:.3f}  "
            f"all {row['adherence']['all']:.3f} {row['adherence_interval']}  clean {row['adherence']['clean']:.3f}"
        )
    return found


if __name__ == "__main__":
    raise SystemExit(main())
