"""Fits the estimate's coefficients to what was measured, and judges it on the rows that were set aside.

    python -m benchmarks.fit            # the judgement
    python -m benchmarks.fit --write    # new coefficients, from rows that are not set aside, then the judgement

Reads benchmarks/results/memory.json, and decoding.json for the seconds of decoding. GPU memory of a stage is
weights + factor x counted work + constant; the factor and the constant are fitted by least squares, and the constant is
then raised until no row is told too little.
"""

from __future__ import annotations

import t2v_kit  # first: it makes torchvision importable

# isort: split
import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import RESULTS
from benchmarks.rows import ROWS, SIZES, TINY_SIZE
from t2v_kit.memory.estimate import coefficients, estimate
from t2v_kit.memory.footprint import decoding_cost
from t2v_kit.memory.plan import TILES, Plan, Size
from t2v_kit.memory.weights import Configs

COEFFICIENTS = Path(t2v_kit.__file__).parent / "memory" / "coefficients.json"
OVER, UNDER = 0.10, 0.03  # how far an estimate may be over, and under, what was measured
STAGES = ("encode", "denoise", "decode")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS / "memory.json")
    parser.add_argument("--write", action="store_true", help="write t2v_kit/memory/coefficients.json")
    args = parser.parse_args()
    report = json.loads(args.results.read_text())
    if args.write:
        found = fitted(points(report, set_aside=False), coefficients(), report)
        COEFFICIENTS.write_text(json.dumps(found, indent=2) + "\n")
        coefficients.cache_clear()
    judged = judgement(points(report, set_aside=True))
    print(f"{'row, stage':40} {'measured':>9} {'estimate':>9}  difference  (GPU GiB; all of these were set aside)")
    for name, measured, told, fine in judged:
        print(f"{name:40} {measured:9.2f} {told:9.2f}  {told / measured - 1:+10.1%}  {'' if fine else 'outside'}")
    return 0 if all(fine for *_, fine in judged) else 1


def points(report: dict, set_aside: bool) -> list[dict]:
    """Every measured stage of our own rows, with what is counted for it now."""
    aside = {row.name: row.set_aside for row in ROWS}
    found = []
    for name, result in report["rows"].items():
        if "plan" not in result or aside.get(name, True) != set_aside:
            continue
        size = Size(*(TINY_SIZE if report["sizes"] == "tiny" else SIZES[result["size"]]))
        rows = {row["stage"]: row for row in estimate(Plan(**result["plan"]), size).rows}
        for stage in STAGES:
            if "gpu_gib" in result["stages"].get(stage, {}):
                found.append({"row": name, "result": result, "measured": result["stages"][stage]} | rows[stage])
    return found


def fitted(known: list[dict], old: dict, report: dict) -> dict:
    """The coefficients, where there are rows to fit them on; elsewhere the old ones."""
    new = json.loads(json.dumps(old))

    def fitted_on(points: list[dict]) -> str:
        rows = ", ".join(sorted({point["row"] for point in points}))
        return f"fitted on {rows} ({report['device']}, {report['date'][:10]}, benchmarks/results/memory.json)"

    source = fitted_on(known)
    for stage in STAGES:
        here = [point for point in known if point["stage"] == stage]
        if here:
            new["vram"][stage] = fit_memory(here)
            new["sources"][f"vram.{stage}"] = source
    here = [point for point in known if point["stage"] == "decode" and point["pflop"]["decode"]]
    if here:
        waiting = [point for point in known if point["stage"] != "decode"]  # which then kept floats of a whole video
        new["ram"]["process_gib"] = round(
            statistics.median(p["measured"]["ram_gib"] - p["ram_gb"] + old["ram"]["process_gib"] for p in waiting), 2
        )
        new["vram"]["context_gib"] = round(statistics.median(p["result"]["context_gib"] for p in known), 2)
        new["sources"] |= {"ram.process_gib": source, "vram.context_gib": source}
    new["seconds"] |= decoding_rates()
    new["sources"]["seconds.decode_a_pflop"] = "medians over tiles, as it is and compiled, of decoding.json"
    there = [p for p in known if p["stage"] == "encode" and p["result"]["plan"]["text_encoder"]["offload"] == "none"]
    encodes = [point["measured"]["seconds"] for point in there]
    if encodes:
        new["seconds"]["encode"] = round(statistics.median(encodes), 2)
        new["sources"]["seconds.encode"] = fitted_on(there)
    whole = {
        p["row"]: p
        for p in known
        if p["stage"] == "denoise" and p["result"]["cap"] is None and "step_seconds" in p["result"]
    }
    if len(whole) >= 2:
        pflop = np.array([[p["pflop"]["linear"], p["pflop"]["attention"]] for p in whole.values()])
        seconds = np.array([p["result"]["step_seconds"] for p in whole.values()])
        rates = np.linalg.lstsq(pflop / seconds[:, None], np.ones(len(seconds)), rcond=None)[0]
        new["seconds"]["linear_a_pflop"], new["seconds"]["attention_a_pflop"] = (round(float(r), 4) for r in rates)
        new["sources"]["seconds.linear, seconds.attention"] = (
            fitted_on(list(whole.values())) + "; the compiled rate as before"
        )
    return new


def decoding_rates(results: Path = RESULTS) -> dict[str, float]:
    """Seconds of decoding for 10^15 multiplications and additions, as it is and compiled: medians over tiles."""
    report = json.loads((results / "decoding.json").read_text())
    height, width, frames = SIZES[report["size"]]
    latents, found = ((frames - 1) // 4 + 1, height // 8, width // 8), {}
    for name, kind in (("decode_a_pflop", "as it is"), ("decode_a_pflop_compiled", "compiled")):
        rows = {tile: report.get(f"tile {tile[0]}, {kind}", {}) for tile in filter(None, TILES)}
        costs = {tile: decoding_cost(Configs.of("hunyuan").vae, latents, tile, torch.float16)[1] for tile in rows}
        rates = [1e15 * row["seconds"] / costs[tile] for tile, row in rows.items() if "seconds" in row]
        found[name] = round(statistics.median(rates), 4)
    return found


def fit_memory(here: list[dict]) -> dict:
    """factor and constant of one stage's GPU memory, never below what was measured."""
    work = np.array([point["work_gb"] for point in here])
    rest = np.array([point["measured"]["gpu_gib"] - point["weights_gb"] for point in here])
    if np.ptp(work) > 0.3 * work.max():  # from points that are near each other a line leads anywhere
        factor, gib = np.linalg.lstsq(np.stack([work, np.ones_like(work)], axis=1), rest, rcond=None)[0]
    else:
        factor, gib = 1.0, float(np.mean(rest - work))
    gib += max(0.0, float(np.max(rest - factor * work - gib)))
    return {"factor": round(float(factor), 4), "gib": round(float(gib), 3)}


def judgement(points: list[dict]) -> list[tuple[str, float, float, bool]]:
    """(row and stage, measured, estimate, within bounds) of each point."""
    found = []
    for point in points:
        measured, told = point["measured"]["gpu_gib"], point["vram_gb"]
        fine = -UNDER <= told / measured - 1 <= OVER
        found.append((f"{point['row']}, {point['stage']}", measured, told, bool(fine)))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
