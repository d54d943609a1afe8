"""How long `make demo` takes once everything is installed: the whole command, imports included, and each stage.

python -m benchmarks.demo --out benchmarks/results/demo.json
"""

from __future__ import annotations

import t2v_kit  # noqa: F401  (first: it makes torchvision importable)

# isort: split
import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import PROMPT, header, write
from t2v_kit.run.folder import read_log


def once() -> dict[str, float]:
    """Seconds of the whole command and of its stages, in a process of its own that finds nothing to reuse."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "t2v_kit", PROMPT, "--out", str(out)], check=True, capture_output=True)
        whole = time.perf_counter() - began
        return {"whole": whole} | {line["stage"]: line["seconds"] for line in read_log(out) if "peak_gib" in line}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    runs = [once() for _ in range(args.times)]
    seconds = {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}
    write(args.out, {**header("demo"), "weights": "pocket", "times": args.times, "seconds": seconds})
    print(*(f"{name}: {value:.1f} s" for name, value in seconds.items()), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
