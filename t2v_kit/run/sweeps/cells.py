"""One run of a sweep, in this process or in a worker."""

from __future__ import annotations

import math
import os
from pathlib import Path

from ...errors import UserError
from ...model.models import Models
from ...settings import Settings, settings_from
from ..folder import RunFolder
from ..generating import record_of, run_stages
from ..given import take_given
from ..records import RunRecord
from ..upscalers import AUTO, check_upscaler, choose_upscaler

STRENGTH = "lora_strength"  # an axis of a sweep that is no setting
ALSO = (
    "out",
    "model",
    "upscale",
    "memory",
    "engine",
    "gpus",
    "loras",
    STRENGTH,
)  # keywords of `sweep`, for near matches


def make_one(models: Models, settings: dict, place: Path, upscale: str | os.PathLike | None, **watchers) -> bool:
    """One run of a sweep, unless it is finished already, with the same model and versions; whether it was made.

    watchers: of `generate`; there is no bar unless they ask for it.
    """
    folder, named, settings = RunFolder(place), check_upscaler(upscale), dict(settings)
    strength = settings.pop(STRENGTH, None)
    if strength is not None:
        with models.lock:
            models.loras.set(*[strength] * len(models.loras))
    if (place / "settings.json").exists() and RunRecord.read(place).finished:
        named = choose_upscaler(models) if named == AUTO else named
        if folder.same_as(record_of(models, settings_from(**take_given(settings)[0]).check(models), named)):
            return False
    try:
        run_stages(**settings, model=models, out=place, upscale=named, **{"progress": False, **watchers})
    except UserError as mistake:
        raise UserError(f"{place.name}: {mistake}") from mistake
    return True


def largest(cells: list[dict]) -> Settings:
    """The run that needs the most memory, for which a plan is made; a side left open may be the model's largest."""

    def tokens(run: Settings) -> float:
        return math.prod(side or math.inf for side in (run.height, run.width, run.num_frames))

    return max(map(settings_of, cells), key=tokens)


def settings_of(cell: dict) -> Settings:
    """The settings of a run, without the strength of LoRAs."""
    return settings_from(also=ALSO, **{name: value for name, value in cell.items() if name != STRENGTH})
