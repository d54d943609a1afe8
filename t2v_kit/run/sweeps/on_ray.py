"""The runs of a sweep spread over the workers of a Ray cluster: several GPUs of this machine, or several machines."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from ...errors import UserError
from ...model.loading import load
from ...model.models import Models
from ...settings import Settings
from .cells import largest, make_one

_RETRIES = 3  # how often one run may take its worker down with it


def on_ray(cells: list[dict], places: list[Path], model, memory, upscale, bar) -> None:
    """Make the runs as Ray tasks: one at a time on a GPU, or on a CPU core where the cluster has no GPU.

    Connects to the cluster that this process is in, else starts one here and stops it at the end. When a worker
    dies, Ray runs its task again, which goes on behind the run's last checkpoint.
    """
    try:
        import ray
    except ImportError:
        raise UserError('engine="ray": Ray is missing; pip install "t2v-kit[ray]", or engine="local".') from None
    if isinstance(model, Models):
        raise UserError(f"model={model.name!r}: with engine='ray' every worker loads its own; give its name or folder.")
    plan = None if memory is None else json.dumps(memory.as_dict() if hasattr(memory, "as_dict") else memory)
    video = largest(cells) if isinstance(memory, (str, int, float)) else None  # else no plan is made for a size
    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        gpus = ray.cluster_resources().get("GPU", 0)
        task = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_retries=_RETRIES)(_in_worker)
        waiting = [
            task.remote(cell, str(place.absolute()), str(model), plan, video, upscale)
            for cell, place in zip(cells, places)
        ]
        while waiting:
            finished, waiting = ray.wait(waiting, num_returns=1)
            ray.get(finished)
            bar.update(len(finished))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except ray.exceptions.WorkerCrashedError as error:
        raise UserError(
            f"a worker died {_RETRIES + 1} times on the same run, perhaps of too little memory; what is finished "
            "is kept, and the same sweep goes on from there."
        ) from error
    finally:
        if ours:
            ray.shutdown()


def _in_worker(settings: dict, place: str, model: str, plan: str | None, video: Settings | None, upscale) -> bool:
    return make_one(_model(model, plan, video), settings, Path(place), upscale)


@functools.lru_cache(1)
def _model(name: str, plan: str | None, video: Settings | None) -> Models:
    """Loaded once in each worker, for all its runs; where a plan is made, for the size of `video`."""
    return load(name, None if plan is None else json.loads(plan), video=video)
