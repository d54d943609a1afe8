"""The runs of a sweep spread over the workers of a Ray cluster: several GPUs of this machine, or several machines."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...hunyuan.lora_arguments import parse_loras
from ...hunyuan.lora_files import find_lora
from ...model.loading import load
from ...model.models import Models
from ...settings import Settings
from ..launching import launch
from .cells import largest, make_one

_RETRIES = 3  # how often one run may take its worker down with it
_LOOK = 30  # seconds: a run may take hours, so they end in a look at the cluster and not in an error


def on_ray(cells: list[dict], places: list[Path], model, memory, loras, upscale, bar, gpus: int = 1) -> None:
    """Make the runs as Ray tasks: each on so many GPUs of one machine, or CPU cores where the cluster has no GPU.

    Uses the cluster that this process is connected to, else starts one here and stops it at the end. When a worker
    dies, Ray runs its task again, which continues behind the run's last checkpoint. Whatever ends the sweep early
    cancels the tasks that are left, in a cluster of others as well.
    """
    try:
        import ray
        from ray import exceptions
    except ImportError:
        raise UserError('engine="ray": Ray is missing; pip install "t2v-kit[ray]", or engine="local".') from None
    if isinstance(model, Models):
        raise UserError(f"model={model.name!r}: with engine='ray' every worker loads its own; give its name or folder.")
    plan = None if memory is None else json.dumps(memory.as_dict() if hasattr(memory, "as_dict") else memory)
    adapters = json.dumps([[find_lora(name).name, strength] for name, strength in parse_loras(loras)])
    video = largest(cells) if isinstance(memory, (str, int, float)) else None  # else no plan is made for a size
    ours, waiting = not ray.is_initialized(), []
    if ours:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        kind = "GPU" if ray.cluster_resources().get("GPU") else "CPU"
        most = int(max(node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]))
        if gpus > max(most, 1):
            raise UserError(f"gpus={gpus}: no machine of the cluster has more than {most}.", setting="gpus")
        takes: dict[str, Any] = {"num_cpus": 1, "num_gpus": gpus} if kind == "GPU" else {"num_cpus": gpus}
        task = ray.remote(max_retries=_RETRIES, **takes)(_in_worker)
        waiting = [
            task.remote(cell, str(place.absolute()), str(model), plan, adapters, video, upscale, gpus)
            for cell, place in zip(cells, places)
        ]
        while waiting:
            finished, waiting = ray.wait(waiting, num_returns=1, timeout=_LOOK)
            ray.get(finished, timeout=_LOOK)
            bar.update(len(finished))
            if not finished and not any(ray.cluster_resources().get(kind) for kind in ("CPU", "GPU")):
                raise UserError("engine='ray': the cluster has lost its last worker; repeat the sweep to continue it.")
    except exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except exceptions.WorkerCrashedError as error:
        raise UserError(
            f"a worker died {_RETRIES + 1} times on the same run, perhaps of too little memory; what is finished "
            "is kept; repeat the same sweep to continue it."
        ) from error
    finally:
        for task in waiting:
            ray.cancel(task, force=True)
        if ours:
            ray.shutdown()


def _in_worker(settings: dict, place: str, model: str, plan: str | None, loras: str, video, upscale, gpus: int) -> None:
    if gpus == 1:
        make_one(_model(model, plan, loras, video), settings, Path(place), upscale)
        return
    how = {"name": model, "memory": plan and json.loads(plan), "loras": json.loads(loras), "video": video}
    job = {"load": how, "out": place, "cells": [(settings, place)], "upscale": upscale}
    launch(gpus, job, progress=False)


@functools.lru_cache(1)
def _model(name: str, plan: str | None, loras: str, video: Settings | None) -> Models:
    """Loaded once in each worker, for all its runs; where a plan is made, for the size of `video`."""
    return load(name, None if plan is None else json.loads(plan), video=video, loras=json.loads(loras))
