"""How long `make demo` takes once everything is installed, beside diffusers and spandrel alone on the same weights.

    python -m benchmarks.demo --out benchmarks/results/demo.json

Runs by turns, each a process of its own that finds nothing to reuse: the command, the command with its prompt padded as
diffusers pads it, and `benchmarks.plain_diffusers`. Seconds are of the whole process, imports included; whether the
latents are those of diffusers to the bit is looked at.
"""

from __future__ import annotations

import t2v_kit  # noqa: F401  (first: it makes torchvision importable)

# isort: split
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file

from benchmarks.common import GIB, PROMPT, header, write
from t2v_kit.run.folder import read_log

COMMANDS = {
    "plain": ["benchmarks.plain_diffusers"],
    "demo": ["t2v_kit", PROMPT, "--seed", "0", "--out"],
    "padded": ["t2v_kit", PROMPT, "--seed", "0", "--padded-prompt", "--out"],
}


def once(name: str, folder: Path) -> dict[str, float]:
    """Seconds of the whole command and of its stages, and its peak of memory."""
    folder.mkdir()
    command = [sys.executable, "-m", *COMMANDS[name], str(folder)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    row = {"whole": time.perf_counter() - began, "ram_gib": used.ru_maxrss * 1024 / GIB}
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    stages = () if name == "plain" else read_log(folder)
    return row | {line["stage"]: line["seconds"] for line in stages if "peak_gib" in line}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report = header("demo") | {"weights": "pocket", "times": args.times}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(args.times):
            for name in COMMANDS:
                # A folder in a folder: runs beside each other would reuse each other's latents.
                place = Path(folder) / f"{turn}-{name}"
                place.mkdir()
                runs[name].append(once(name, place / "run"))
        theirs = load_file(Path(folder) / "0-plain" / "run" / "latents.safetensors")["latents"]
        for name in ("demo", "padded"):
            ours = load_file(Path(folder) / f"0-{name}" / "run" / "latents.safetensors")["latents"]
            difference = float((ours - theirs).norm() / theirs.norm())
            to_plain = statistics.median(
                one["whole"] / other["whole"] for one, other in zip(runs[name], runs["plain"], strict=True)
            )
            report[name] = {"relative_difference": difference, "to_plain": round(to_plain, 3)}
    for name, rows in runs.items():
        seconds = {stage: round(statistics.median(row[stage] for row in rows), 2) for stage in rows[0]}
        report.setdefault(name, {}).update(ram_gib=seconds.pop("ram_gib"), seconds=seconds)
        print(name, report[name])
    write(args.out, report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
