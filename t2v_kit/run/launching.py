"""`generate(gpus=N)` and `sweep(gpus=N)`: N processes by PyTorch's own launcher, watched through files."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..errors import UserError
from ..model.models import Models
from ..stages.denoising import Step
from .folder import read_log
from .progress import UNITS, Stopped

EVENTS, STEP, STOP = "events", "step.pt", "stop"  # files beside the job, while it runs
RESULT, VIDEO, ERROR = "result", "video.npy", "error"  # and when it is over
RUN = "run"  # the event of a sweep's finished run
#: PyTorch's launcher, which ends with who started it: a notebook's kernel that is restarted, a killed worker of Ray.
_LAUNCHER = """
import ctypes, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
from torch.distributed.run import main
main()
"""
_LOOK = 0.05  # seconds between two looks at the files
_GRACE = 60  # seconds that the others have after one has ended


def launch(
    gpus: int,
    job: dict,
    on_step: Callable[[Step], object] | None = None,
    on_stage: Callable[[str, int, int], object] | None = None,
    stop: Callable[[], bool] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Run a job of `worker` in several processes, one a device.

    Args:
        gpus: How many.
        job: What `worker` reads: how to "load" the model; "out", the folder; and either "settings", with "upscale" and
            "reuse", or "resume" and "anyway", or "cells", a sweep's (settings, folder) of each run, with "upscale".
        on_step: As `generate` takes it.
        on_stage: As `generate` takes it.
        stop: As `generate` takes it.
        progress: Show bars.

    Returns:
        The attributes of a `Run` by name; of "cells", none.

    Raises:
        UserError: What the first process raised; or a process was lost, and the line says how to continue.
        Stopped: `stop` returned True.
    """
    with tempfile.TemporaryDirectory(prefix="t2v-job-") as folder:
        place = Path(folder)
        blank = {"settings": None, "upscale": None, "reuse": True, "resume": False, "anyway": False, "cells": None}
        (place / "job").write_bytes(pickle.dumps(blank | job | {"steps": on_step is not None}))
        command = [sys.executable, "-c", _LAUNCHER, "--standalone", "--nproc-per-node", str(gpus)]
        with open(place / "output", "wb") as output:
            process = subprocess.Popen(
                [*command, "-m", "t2v_kit.run.worker", str(place / "job")],
                stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        watch = _Watch(place, on_step, on_stage, progress)
        try:
            while process.poll() is None:
                watch.look()
                if stop is not None and watch.started and stop():
                    (place / STOP).touch()
                time.sleep(_LOOK)
            watch.look()
        finally:
            watch.close()
            _end(process)
        if process.returncode:
            raise _what_failed(place, job["out"], gpus)
        if job.get("cells"):
            return {}
        result = torch.load(place / RESULT, weights_only=False)  # written by our own process
        return result | {"video": np.load(place / VIDEO)}


def check_devices(gpus: int, model: str | Path | Models) -> None:
    """Refuse what several processes of this machine cannot do.

    Raises:
        UserError: The model is loaded already, or there are fewer GPUs.
    """
    if isinstance(model, Models):
        raise UserError(
            f"gpus={gpus}: each process loads the model itself; model={model.name!r} would work.", setting="gpus"
        )
    cards = torch.cuda.device_count()
    if 0 < cards < gpus:
        raise UserError(f"gpus={gpus}: this machine has {cards}; gpus={cards} would work.", setting="gpus")


class _Watch:
    """Hands on what the first process reports, once each."""

    def __init__(self, place: Path, on_step, on_stage, progress: bool) -> None:
        self.place, self.on_step, self.on_stage, self.progress = place, on_step, on_stage, progress
        self.read, self.seen, self.started = 0, -1, False
        self.name, self.bar = "", None

    def look(self) -> None:
        """Report what is new."""
        with contextlib.suppress(FileNotFoundError), open(self.place / EVENTS, "rb") as file:
            file.seek(self.read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.read += len(line)
                self._report(*json.loads(line))

    def _report(self, name: str, done: int, total: int) -> None:
        self.started = self.started or name == "denoise"
        if self.bar is None or self.name != name:
            self.close()
            self.name = name
            shown = {"disable": not self.progress or total < 2, "unit": UNITS.get(name, "it")}
            self.bar = tqdm(total=total, initial=done, desc=f"{name:7}", **shown)
        self.bar.update(done - self.bar.n)
        if name == "denoise" and done and self.on_step is not None and (self.place / STEP).exists():
            step = Step(**torch.load(self.place / STEP, map_location="cpu", weights_only=False))
            if step.index > self.seen:
                self.seen = step.index
                self.on_step(step)
        if self.on_stage is not None:
            self.on_stage(name, done, total)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _end(process: subprocess.Popen) -> None:
    """No process of the launcher's outlives this."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _what_failed(place: Path, out: Path | str, gpus: int) -> Exception:
    """What the first process said, or which process was lost."""
    if (place / ERROR).exists():
        said = pickle.loads((place / ERROR).read_bytes())
        return Stopped(**said) if "stage" in said else UserError(said["message"], setting=said["setting"])
    output = (place / "output").read_text(errors="replace")
    first = re.search(r"Root Cause.*?rank\s*: (\d+).*?exitcode\s*: (-?\d+)", output, re.DOTALL)
    which = f"process {int(first[1]) + 1} of {gpus}" if first else f"one of {gpus} processes"
    how = "failed"
    if first and int(first[2]) < 0:
        how = f"was killed ({signal.Signals(-int(first[2])).name})"
    elif said := re.findall(r"^(?:\[rank\d+\]: *)?((?:\w+\.)*\w*(?:Error|Exception)\w*: .+)$", output, re.MULTILINE):
        how = f"failed ({said[0][:200]})"
    steps = [line["step"] for line in read_log(out) if "step" in line and line.get("stage") == "denoise"]
    after = f" after step {steps[-1]}; resume({str(out)!r}) continues" if steps else ""
    return UserError(f"gpus={gpus}: {which} {how}{after}.", setting="gpus")
