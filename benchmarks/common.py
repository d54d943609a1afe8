"""What the benchmarks share: what ran where, peaks of memory, and parts that fail alone."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch
from torch.profiler import ProfilerActivity, profile

PROMPT = "Sunny day, freedom and adventure, high motion. A man with a beard riding a motorcycle on the street."
RESULTS = Path(__file__).parent / "results"
GIB = 2**30
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "bitsandbytes")


def header(benchmark: str, **more) -> dict:
    """Which script ran on what: device, RAM, versions, date, command."""
    gpu = torch.cuda.is_available()
    return {
        "benchmark": benchmark,
        "weights": "random",
        "device": torch.cuda.get_device_name() if gpu else f"CPU, {os.cpu_count()} cores",
        "gpu_gib": round(torch.cuda.get_device_properties(0).total_memory / GIB, 1) if gpu else 0,
        "ram_gib": round(psutil.virtual_memory().total / GIB, 1),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", f"benchmarks.{benchmark}", *sys.argv[1:]]),
        **more,
    }


def write(path: Path | None, report: dict) -> None:
    """The whole report, renamed when it is complete: what was measured survives whatever comes next."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


@contextmanager
def measured(row: dict):
    """Seconds, GPU peaks and RAM peaks of a block, put into `row`, also when the block fails."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    with HostPeak() as host:
        try:
            yield row
        finally:
            if gpu:
                torch.cuda.synchronize()
                row["gpu_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 3)
                row["gpu_gib_reserved"] = round(torch.cuda.max_memory_reserved() / GIB, 3)
            row["seconds"] = round(time.perf_counter() - began, 3)
    row["ram_gib"] = round(host.peak["RssAnon"] / GIB, 2)
    row["ram_gib_with_files"] = round(host.peak["VmRSS"] / GIB, 2)


def kernels(run: Callable[[], object], most: int = 15) -> dict:
    """Where a call's time goes: its operations and their kernels on the GPU (each counts twice), the longest first."""
    gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu) as watched:
        run()
        if gpu:
            torch.cuda.synchronize()
    key = "self_device_time_total" if gpu else "self_cpu_time_total"
    events = sorted(watched.key_averages(), key=lambda event: -getattr(event, key))
    listed = [
        {"name": event.key[:90], "ms": round(getattr(event, key) / 1e3, 2), "calls": event.count}
        for event in events[:most]
    ]
    return {"kernels": listed, "total_ms": round(sum(getattr(event, key) for event in events) / 1e3, 1)}


class HostPeak:
    """The largest RssAnon (the process' own memory) and VmRSS (with mapped files) in a block, in bytes."""

    def __enter__(self) -> HostPeak:
        self.peak = {"RssAnon": 0, "VmRSS": 0}
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while True:
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in self.peak:
                    self.peak[name] = max(self.peak[name], int(value.split()[0]) * 1024)
            if self.done.wait(0.05):
                return


def guarded(report: dict, key: str, action, out: Path | None, deadline: float) -> None:
    """`report[key] = action()`, or why not; what fails does not stop what follows, and all is written at once."""
    if time.perf_counter() > deadline:
        report[key] = {"not_run": "the time was over"}
    else:
        try:
            report[key] = action()
        except Exception as error:
            report[key] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            traceback.print_exc()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    print(f"{key}: {json.dumps(report[key])[:200]}", flush=True)
    write(out, report)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
