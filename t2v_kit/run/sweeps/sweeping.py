"""Many runs at once: every combination of some settings, as a labelled grid; on this machine, or spread by Ray."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ...errors import UserError, check_whole, fresh_notes
from ...hunyuan.lora_arguments import check_strength
from ...memory.plan import Plan
from ...model.models import Models
from ...video.files import save_video
from ..folder import RunFolder
from ..generating import loaded
from ..given import check_shareable
from ..launching import RUN, check_devices, launch
from ..records import RunRecord
from ..target import check_own, check_target
from ..upscalers import check_upscaler
from .cells import STRENGTH, largest, make_one, settings_of
from .grid import grid
from .on_ray import on_ray

ENGINES = ("local", "ray")


@dataclass(frozen=True, eq=False)
class Sweep:
    """A finished sweep, as `sweep` returns it.

    Attributes:
        folder: Where the runs are, with grid.png and grid.mp4; an absolute path.
        axes: {setting: its values}, in the order given; the last one runs along a row of the grid.
        runs: One for each combination, the last axis fastest.
    """

    folder: Path
    axes: dict[str, list]
    runs: list[RunRecord] = field(repr=False)

    def at(self, **values) -> RunRecord:
        """The first run with these values.

        Raises:
            UserError: No run has them.

        Example:
            >>> result.at(guidance_scale=3, seed=0).video()  # doctest: +SKIP
        """
        for run, chosen in zip(self.runs, itertools.product(*self.axes.values())):
            known = run.settings | dict(zip(self.axes, chosen))
            if all(known.get(name) == value for name, value in values.items()):
                return run
        raise UserError(f"{values}: no run of this sweep; its axes are {self.axes}.")

    def picture(self) -> np.ndarray:
        """The middle frame of every run in a grid (H, W, 3) uint8, its rows and columns labelled."""
        frames = [video[len(video) // 2][None] for video in self._videos()]
        return grid(self.axes, frames)[0]

    def film(self) -> np.ndarray:
        """All runs playing at once, (T, H, W, 3) uint8; a shorter one holds its last frame."""
        return grid(self.axes, list(self._videos()))

    def _videos(self) -> Iterator[np.ndarray]:
        return (run.video() for run in self.runs)


def sweep(
    *,
    out: str | os.PathLike,
    model: str | Models = "pocket",
    upscale: str | os.PathLike | None = "none",
    memory: Plan | dict | str | float | None = None,
    loras: Sequence | str | Path | None = None,
    engine: str = "local",
    gpus: int | None = None,
    progress: bool = True,
    **settings,
) -> Sweep:
    """Make a run for every combination of the settings that are given as lists.

    Finished runs are kept, and an interrupted one continues: repeat the same call.

    Args:
        out: A folder; each run gets one in it, named after its values. Workers on other machines must see it under
            the same path.
        model, upscale, memory, loras: As for `generate`.
        engine: "local", one run after the other; or "ray", on the Ray cluster that this process is connected to, or
            on one of this machine: one worker a GPU, or a CPU core where there is none. The bits are the same. A
            worker that dies is replaced, and its run continues.
        gpus: How many devices make each video together, as for `generate`; "local" then makes one video after the
            other on all of them, "ray" as many at a time as the cluster has devices for. Each video of "ray" loads the
            model anew.
        progress: Show a bar.
        **settings: Fields of `Settings`, prompt and seed among them, and lora_strength, of all LoRAs; a list or tuple
            has several values.

    Returns:
        The runs and the grid.

    Raises:
        UserError: For every mistake in these before the first run; with Ray, what only the loaded model can tell
            comes from its worker.

    Example:
        >>> result = sweep(prompt="A red car.", guidance_scale=[1, 3, 6], num_inference_steps=[4, 8], out="runs/cfg")
        >>> len(result.runs)
        6
    """
    if engine not in ENGINES:
        raise UserError(f"engine={engine!r}: must be one of {', '.join(ENGINES)}; 'local' would work.")
    axes = {name: list(value) for name, value in settings.items() if isinstance(value, (list, tuple))}
    cells = _cells(settings, axes)
    if STRENGTH in settings and not (model.loras if isinstance(model, Models) else loras):
        raise UserError(
            f"lora_strength={settings[STRENGTH]}: there is no LoRA; loras=['style.safetensors'] would work."
        )
    several = 1 if gpus is None else check_whole("gpus", gpus, unit="devices")
    if several > 1:
        _check_several(several, model, cells, engine)
    folder = RunFolder(out).path
    if folder is None:
        raise UserError("out=None: a sweep is kept in a folder; 'runs/sweep' would work.")
    places = [folder / _name(axes, cell) for cell in cells]
    if len(set(places)) < len(places):
        raise UserError(f"{axes}: has values that read the same to six digits; values further apart would work.")
    for place in places:
        check_own(check_target(place))
    make_all = on_ray if engine == "ray" else _one_by_one
    check_upscaler(upscale)
    with fresh_notes(), tqdm(total=len(cells), desc="sweep", unit="run", disable=not progress) as bar:
        make_all(cells, places, model, memory, loras, upscale, bar, several)
    result = Sweep(folder, axes, [RunRecord.read(place) for place in places])
    _save_grid(result)
    return result


def _check_several(gpus: int, model: str | Models, cells: list[dict], engine: str) -> None:
    """Refuse what several devices cannot do together, for any run."""
    check_devices(gpus if engine == "local" else 1, model)
    for cell in cells:
        check_shareable(settings_of(cell), gpus)
        if STRENGTH in cell:
            raise UserError(
                f"{STRENGTH}={cell[STRENGTH]}: with gpus={gpus} the LoRAs keep their strengths; "
                f"loras=[('style.safetensors', {cell[STRENGTH]})] would work.",
                setting="gpus",
            )


def _one_by_one(cells: list[dict], places: list[Path], model, memory, loras, upscale, bar: tqdm, gpus: int) -> None:
    """The local engine."""
    if gpus > 1:
        _together(cells, places, model, memory, loras, upscale, bar, gpus)
        return
    models = loaded(model, memory, largest(cells), loras)
    for cell in cells:
        settings_of(cell).check(models)
    for cell, place in zip(cells, places):

        def show(step, place=place) -> None:
            bar.set_postfix_str(f"{place.name}: step {step.index + 1}")

        if not make_one(models, cell, place, upscale, on_step=show):
            bar.set_postfix_str(f"{place.name}: finished before")
        bar.update()


def _together(cells: list[dict], places: list[Path], model, memory, loras, upscale, bar: tqdm, gpus: int) -> None:
    """Each run by several processes, which load the model once for all of them."""

    def show(name: str, done: int, total: int) -> None:
        if name == RUN:
            bar.update(done - bar.n)
        elif bar.n < len(places):
            bar.set_postfix_str(f"{places[bar.n].name}: {name} {done}/{total}")

    load_by = {"name": model, "memory": memory, "loras": loras, "video": largest(cells)}
    runs = [(cell, str(place)) for cell, place in zip(cells, places)]
    job = {"load": load_by, "out": str(places[0].parent), "cells": runs, "upscale": upscale}
    launch(gpus, job, on_stage=show, progress=False)


def _cells(settings: dict, axes: dict[str, list]) -> list[dict]:
    """`generate`'s keywords for each combination, the last axis fastest. Raises UserError for a mistake in any."""
    for name, values in axes.items():
        if not values or any(value in values[:place] for place, value in enumerate(values)):
            raise UserError(f"{name}={values}: must hold at least one value, and none twice.")
    cells = [settings | dict(zip(axes, values)) for values in itertools.product(*axes.values())]
    for cell in cells:
        settings_of(cell)
        if STRENGTH in cell:
            check_strength(cell[STRENGTH])
    return cells


def _name(axes: dict[str, list], cell: dict) -> str:
    """The folder of a combination: guidance_scale=3,num_inference_steps=10; texts are cut and told apart by a hash."""
    return ",".join(f"{name}={_written(cell[name])}" for name in axes) or "run"


def _written(value: object) -> str:
    if not isinstance(value, str):
        return f"{value:g}" if isinstance(value, float) else str(value).lower()
    slug = re.sub("[^a-z0-9]+", "-", value.lower()).strip("-")[:30]
    return f"{slug}-{hashlib.sha256(value.encode()).hexdigest()[:4]}"


def _save_grid(result: Sweep) -> None:
    """grid.png and grid.mp4 beside the runs."""
    folder = RunFolder(result.folder)
    film = result.film()
    picture = Image.fromarray(result.picture())
    folder.save("grid.png", lambda path: picture.save(path, "PNG"))
    folder.save("grid.mp4", lambda path: save_video(path, film, max(run.settings["fps"] for run in result.runs)))
