"""One run of a sweep, made here or in a worker."""

from __future__ import annotations

import math
import os
from pathlib import Path

from ...errors import UserError
from ...model.models import Models
from ...settings import Settings, settings_from
from ..folder import RunFolder
from ..generating import generate, record_of
from ..records import RunRecord


def make_one(models: Models, settings: dict, place: Path, upscale: str | os.PathLike | None, on_step=None) -> bool:
    """One run of a sweep, unless it is there already, made with the same model and versions; whether it was made."""
    folder = RunFolder(place)
    there = (place / "settings.json").exists() and RunRecord.read(place).finished
    if there and folder.same_as(record_of(models, settings_from(**settings).check(models), upscale)):
        return False
    try:
        generate(**settings, model=models, out=place, upscale=upscale, on_step=on_step, progress=False)
    except UserError as mistake:
        raise UserError(f"{place.name}: {mistake}") from mistake
    return True


def largest(cells: list[dict]) -> Settings:
    """The run that needs the most memory, for which a plan is made; a side left open may be the model's largest."""

    def tokens(run: Settings) -> float:
        return math.prod(side or math.inf for side in (run.height, run.width, run.num_frames))

    return max((settings_from(**cell) for cell in cells), key=tokens)
