"""`torchrun -m t2v_kit.run.worker JOB`: one of the processes that `generate(gpus=...)` and `sweep(gpus=...)` start.

The first one writes the folder of each run, and beside the job what `launching` reads: a line for each unit of work,
the last step where somebody watches, and at the end the result or the error.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..atomic import write_whole
from ..errors import UserError
from ..hunyuan.parallel import join, leave
from ..model.loading import load
from .generating import resume, run_stages
from .launching import ERROR, EVENTS, RESULT, RUN, STEP, STOP, VIDEO
from .progress import Stopped
from .sweeps.cells import make_one
from .team import follow


def main(path: str) -> int:
    """Do this process's part of the job; the exit status is 0 when it is done."""
    job, place = pickle.loads(Path(path).read_bytes()), Path(path).parent
    team = join()
    if not team.leads:
        models = load(**job["load"], team=team)
        while follow(models):
            pass
        leave()
        return 0
    try:
        models = load(**job["load"], team=team)
        watchers: dict[str, Any] = {"checkpoint_every": 1, "progress": False}  # whoever is killed, no step is lost
        lines = Lines(place / EVENTS)
        watchers |= {"on_stage": lines, "stop": (place / STOP).exists}
        if job["steps"]:
            watchers["on_step"] = lambda step: _written(place / STEP, lambda file: torch.save(vars(step), file))
        if job["cells"]:
            for number, (settings, folder) in enumerate(job["cells"], 1):
                make_one(models, settings, Path(folder), job["upscale"], **watchers)
                lines(RUN, number, len(job["cells"]))
            run = None
        elif job["resume"]:
            run = resume(job["out"], models, job["anyway"], **watchers)
        else:
            run = run_stages(**job["settings"], model=models, out=job["out"], upscale=job["upscale"],
                             reuse=job["reuse"], **watchers)  # fmt: skip
    except (UserError, Stopped) as error:
        said = pickle.dumps(as_data(error))
        _written(place / ERROR, lambda file: file.write_bytes(said))
        return 1
    team.agreed(None)  # no run is left
    if run is not None:
        _written(place / VIDEO, lambda file: np.save(file, run.video, allow_pickle=False))
        names = ("settings", "record", "seconds", "memory", "reused", "reused_prompt", "prompt", "latents")
        result = {name: getattr(run, name) for name in names}
        _written(place / RESULT, lambda file: torch.save(result, file))
    leave()
    return 0


def as_data(error: UserError | Stopped) -> dict:
    """An error as data, for the process that waits."""
    if isinstance(error, Stopped):
        return {"stage": error.stage, "done": error.done, "total": error.total, "folder": error.folder}
    return {"message": str(error), "setting": error.setting}


class Lines:
    """Called as on_stage is; each call is a line of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, name: str, done: int, total: int) -> None:
        with open(self.path, "ab", buffering=0) as file:
            file.write((json.dumps([name, done, total]) + "\n").encode())


def _written(path: Path, write) -> None:
    with write_whole(path) as temporary:
        write(temporary)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
