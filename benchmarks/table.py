"""The tables in README.md that hold measurements, made from benchmarks/results/*.json.

    python -m benchmarks.table            # print them
    python -m benchmarks.table --write    # put them between their marks in README.md
    python -m benchmarks.table --check    # exit status 1 when README.md has other ones

A mark is a line `<!-- benchmarks: NAME -->`, its end `<!-- end -->`; NAME is memory or speed.
"""

from __future__ import annotations

import t2v_kit  # noqa: F401  (first: it makes torchvision importable)

# isort: split
import argparse
import json
import re
from pathlib import Path

from benchmarks.common import RESULTS
from benchmarks.rows import SIZES
from t2v_kit.memory.estimate import estimate
from t2v_kit.memory.plan import Plan, Size

README = Path(__file__).parents[1] / "README.md"
MARKED = re.compile(r"(<!-- benchmarks: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
STAGES = ("encode", "denoise", "decode", "whole")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    text = README.read_text("utf-8")
    if args.check:
        trouble = stale(text)
        print(trouble or "the tables are those of benchmarks/results")
        return int(bool(trouble))
    if args.write:
        README.write_text(renewed(text), "utf-8")
    else:
        print("\n\n".join(f"{name}\n\n{table}" for name, table in tables().items()))
    return 0


def tables(results: Path = RESULTS) -> dict[str, str]:
    """Each table whose results are there, as Markdown."""
    makers = {"memory": memory, "speed": speed}
    return {
        name: make(json.loads((results / f"{name}.json").read_text("utf-8")))
        for name, make in makers.items()
        if (results / f"{name}.json").exists()
    }


def renewed(text: str, results: Path = RESULTS) -> str:
    """README's text with every marked table as the results have it."""
    made = tables(results)
    return MARKED.sub(lambda found: found[1] + made.get(found[2], "Not measured yet.") + "\n" + found[3], text)


def stale(text: str, results: Path = RESULTS) -> str | None:
    """What is wrong with README's tables, None when nothing is."""
    marked = {name for _, name, _ in MARKED.findall(text)}
    missing = set(tables(results)) - marked
    if missing:
        return f"README.md has no place for {', '.join(sorted(missing))}: a line '<!-- benchmarks: NAME -->'"
    if renewed(text, results) != text:
        return "README.md has other numbers than benchmarks/results: run python -m benchmarks.table --write"
    return None


def memory(report: dict) -> str:
    """A row a cap and size: did it run, peaks and what `estimate` says now, seconds; the same by diffusers' recipe."""
    rows = report["rows"]
    free = {
        row["size"]: row["step_seconds"] for row in rows.values() if row.get("cap", 0) is None and "step_seconds" in row
    }
    titles = ["cap", "video", "plan", "GPU peak, predicted → measured", "RAM", "seconds a step", "against uncapped"]
    titles += ["decode", "50 steps¹"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    sizes = list(SIZES)
    for row in sorted(
        (row for row in rows.values() if "size" in row),
        key=lambda row: (sizes.index(row["size"]), row["cap"] or 0, row["kind"] == "diffusers"),
    ):
        lines.append("| " + " | ".join(_memory_cells(row, free.get(row["size"]))) + " |")
    lines += [
        "",
        f"One {report['device']}, {report['date'][:10]}, random weights; torch {report['versions']['torch']}, "
        f"diffusers {report['versions']['diffusers']}. GPU peaks in GiB, of PyTorch's allocator; the cap is PyTorch's "
        f"own, less the CUDA context ({_spread(rows, 'context_gib')} GiB). A capped H200 is no small card: "
        f"{_spread(rows, 'host_gib')} GiB of RAM, {_spread(rows, 'bus_gb_a_second')} GB/s to the GPU. RAM is the "
        "process' own peak. ¹ Arithmetic, not run.",
    ]
    return "\n".join(lines)


def _memory_cells(row: dict, free: float | None) -> list[str]:
    peaks = [row["stages"][name]["gpu_gib"] for name in STAGES if "gpu_gib" in row["stages"].get(name, {})]
    ram = max((stage.get("ram_gib", 0) for stage in row["stages"].values()), default=0)
    said = estimate(Plan(**row["plan"]), Size(*SIZES[row["size"]])).vram_gb if "plan" in row else None
    step = row.get("step_seconds")
    decode = row["stages"].get("decode", {}).get("seconds") or row["stages"].get("whole", {}).get("decode_seconds")
    name = "diffusers' recipe" if row["kind"] == "diffusers" else row.get("plan", {}).get("name", row["kind"])
    ratio = f"{step / free:.2f}x" if step and free and row["cap"] else ""
    if row["kind"] == "t4":
        name += " (T4's terms)"
    if not row.get("finished"):
        name += ": out of memory" if "OutOfMemory" in row.get("error", "") else ": failed"
    return [
        f"{row['cap']:g} GB" if row["cap"] else "none",
        row["size"].replace("x", " x "),
        name,
        f"{'' if said is None else f'{said:.1f} → '}{max(peaks):.1f}" if peaks else "",
        f"{ram:.1f}",
        f"{step:.2f}" if step else "",
        ratio,
        f"{decode:.0f} s" if decode else "",
        f"{50 * step / 60:.1f} min" if step else "",
    ]


def speed(report: dict) -> str:
    """A row a size and way of computing: seconds a step, how many times faster, how different."""
    lines = [
        "| video | blocks | seconds a step | times faster | relative difference | GPU GiB beside the weights |",
        "|---|---|---|---|---|---|",
    ]
    for key, row in report.items():
        size, _, kind = key.partition(", ")
        if not isinstance(row, dict) or "step_seconds" not in row:
            continue
        warm = f" (after {row['warm_up']:.0f} s of compiling)" if kind == "compiled" else ""
        different = f"{row['relative_difference']:.1e}" if "relative_difference" in row else ""
        faster = f"{row['times_faster']:.2f}" if "times_faster" in row else ""
        lines.append(
            f"| {size.replace('x', ' x ')} | {kind}{warm} | {row['seconds']:.2f} | {faster} | {different} "
            f"| {row.get('gpu_gib_beside_weights', '')} |"
        )
    return "\n".join([*lines, "", f"One {report['device']}, {report['date'][:10]}, random weights, uncapped."])


def _spread(rows: dict, key: str) -> str:
    values = [row[key] for row in rows.values() if key in row]
    ends = dict.fromkeys((min(values, default=0), max(values, default=0)))
    return " to ".join(f"{end:g}" for end in ends) if values else "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
