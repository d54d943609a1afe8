"""The benchmarks run: at toy size, the same lines that ran on the GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def full_size(tmp_path: Path, *options: str) -> tuple[int, dict]:
    """Run `benchmarks.full_size --tiny`; its exit status and what it wrote."""
    command = [sys.executable, "-m", "benchmarks.full_size", "--tiny", "--weights", str(tmp_path)]
    out = tmp_path / "results" / "tiny.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command += ["--out", str(out), *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert out.exists(), done.stderr
    assert list(tmp_path.iterdir()) == [out.parent], "the weights are still there"
    return done.returncode, json.loads(out.read_text())


def test_full_size_goes_through_every_stage(tmp_path):
    """From written weights to an enlarged video: the shapes follow from each other and every stage was timed."""
    status, report = full_size(tmp_path, "--steps", "3")
    stages = {row["stage"]: row for row in report["stages"]}
    assert status == 0 and report["finished"]
    assert list(stages)[:3] == ["make weights", "save", "load"]
    assert stages["encode prompt"]["cropped"] == 95  # as for Llama 3's tokenizer
    assert len(stages["denoise"]["step_seconds"]) == 3
    assert stages["denoise"]["latents"] == [1, 16, 3, 6, 8]
    assert stages["decode, tiled"]["video"] == [9, 48, 64, 3]
    assert stages["upscale"]["video"] == [9, 192, 256, 3]
    assert all(row["seconds"] > 0 for row in report["stages"])


def test_full_size_keeps_what_it_measured_when_time_is_over(tmp_path):
    """The time-box ends the run between stages, without losing the results and with another exit status."""
    status, report = full_size(tmp_path, "--seconds", "0.01")
    assert status == 1 and not report["finished"]
    assert [row["stage"] for row in report["stages"]] == ["make weights"]
