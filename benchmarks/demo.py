"""How long `make demo` takes once everything is installed, beside diffusers and spandrel alone on the same weights.

    python -m benchmarks.demo --out benchmarks/results/demo.json

Runs by turns, each a process of its own that finds nothing to reuse: `benchmarks.plain_diffusers`, the command, the
command with its prompt padded as diffusers pads it, and the command with threads that wait as libgomp has them
(`t2v_kit._imports`); then all but the padded one while one and two other programs keep a core busy each.
Seconds are of the whole process, imports included; whether the latents are those of diffusers to the bit is looked at.
"""

from __future__ import annotations

import t2v_kit  # noqa: F401  (first: it makes torchvision importable)

# isort: split
import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.common import GIB, PROMPT, header, write
from t2v_kit.run.folder import read_log

COMMANDS = {
    "plain": ["benchmarks.plain_diffusers", PROMPT],
    "demo": ["t2v_kit", PROMPT, "--seed", "0", "--out"],
    "padded": ["t2v_kit", PROMPT, "--seed", "0", "--padded-prompt", "--out"],
    "spinning": ["t2v_kit", PROMPT, "--seed", "0", "--out"],
}
BUSY = ("plain", "demo", "spinning")
LIBGOMP = {"GOMP_SPINCOUNT": "300000"}  # its own number
BUSY_TIMES = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=5, help="runs on a quiet machine; beside others there are three")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report = header("demo") | {"weights": "pocket", "times": args.times, "times_beside_others": BUSY_TIMES}
    with tempfile.TemporaryDirectory() as folder:
        report |= by_turns(tuple(COMMANDS), args.times, Path(folder))
        theirs = latents(Path(folder), "plain")
        for name in ("demo", "padded"):
            difference = float((latents(Path(folder), name) - theirs).norm() / theirs.norm())
            report[name]["relative_difference"] = difference
        write(args.out, report)
    for others in (1, 2):
        with tempfile.TemporaryDirectory() as folder, beside(others):
            report[f"beside {others}"] = by_turns(BUSY, BUSY_TIMES, Path(folder))
        write(args.out, report)
    return 0


def by_turns(names: tuple[str, ...], times: int, folder: Path) -> dict[str, dict]:
    """Medians of each command, and of its time as a part of that of diffusers beside it."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(times):
        for name in names:
            # A folder in a folder: runs beside each other would reuse each other's latents.
            runs[name].append(once(name, folder / f"{turn}-{name}" / "run"))
    report = {}
    for name, rows in runs.items():
        medians = {key: round(statistics.median(row[key] for row in rows), 2) for key in rows[0]}
        pairs = zip(rows, runs["plain"], strict=True)
        to_plain = round(statistics.median(row["whole"] / plain["whole"] for row, plain in pairs), 3)
        report[name] = {"to_plain": to_plain, "ram_gib": medians.pop("ram_gib"), "seconds": medians}
        print(name, report[name], flush=True)
    return report


def once(name: str, folder: Path) -> dict[str, float]:
    """Seconds of the whole command and of its stages, and its peak of memory."""
    folder.mkdir(parents=True)
    environment = dict(os.environ)
    if name in ("plain", "spinning"):
        environment |= LIBGOMP
    command = [sys.executable, "-m", *COMMANDS[name], str(folder)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    row = {"whole": time.perf_counter() - began, "ram_gib": used.ru_maxrss * 1024 / GIB}
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    stages = () if name == "plain" else read_log(folder)
    return row | {line["stage"]: line["seconds"] for line in stages if "peak_gib" in line}


def latents(folder: Path, name: str) -> torch.Tensor:
    """What the first run of a command denoised."""
    return load_file(folder / f"0-{name}" / "run" / "latents.safetensors")["latents"]


@contextlib.contextmanager
def beside(others: int):
    """As many programs that keep a core busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


if __name__ == "__main__":
    raise SystemExit(main())
