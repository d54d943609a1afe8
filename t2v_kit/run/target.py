"""Where a run may write: the names of its files, and whether a folder can take them.

Nothing heavy is imported here, so that a folder that cannot be written is told at once.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from ..errors import UserError
from ..stages.upscaling.names import NONE

#: What a finished run leaves in its folder, in the order in which it is written.
FILES = ("settings.json", "prompt.safetensors", "latents.safetensors", "video.mp4", "upscaled.mp4", "contact_sheet.png")
CHECKPOINT = "checkpoint.safetensors"  # exists while denoising, and after it was stopped
LOG = "log.jsonl"
TRAINING = "training.json"  # what a training leaves in its folder first
LOCK = ".run.lock"  # exists while a run writes here; holds its process id

#: Settings that every run has written down, in all versions.
ALWAYS_SET = ("prompt", "height", "width", "num_frames", "num_inference_steps", "fps", "upscale")


def check_target(out: str | os.PathLike) -> Path:
    """Return `out` as an absolute path, once a file could be written there; nothing is left behind.

    Absolute, because a later change of the working directory must not move the run.

    Raises:
        UserError: It names no folder that could be written.
    """
    if not isinstance(out, (str, os.PathLike)) or not str(out).strip():
        raise UserError(f"out={out!r}: must name a folder; 'runs/mine' would work.")
    try:
        folder = Path(os.path.abspath(Path(out).expanduser()))
        nearest = folder
        while not _exists(nearest):
            nearest = nearest.parent
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UserError(f"out={str(out)!r}: cannot be written ({reason_of(error)}); 'runs/mine' would work.") from error
    return folder


def _exists(path: Path) -> bool:
    """Unlike `Path.exists`, raises OSError for a name that can never exist, as one that is too long."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def reason_of(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]


def check_own(folder: Path | None) -> None:
    """Raise UserError where files lie that a new run would take away and that are not of a run of ours.

    Ours has settings.json before any other file, so wherever it was killed, that one is there and whole.
    """
    if folder is None:
        return
    present = [name for name in (*FILES, CHECKPOINT, LOG) if (folder / name).exists()]
    if not present:
        return
    try:
        read_record(folder)
    except UserError as mistake:
        raise UserError(
            f"out={str(folder)!r}: {present[0]} in it would be replaced, and is not of a run, as settings.json "
            f"is {'damaged' if 'settings.json' in present else 'missing'}; {str(folder / 'run')!r} would work."
        ) from mistake


def is_finished(folder: Path, settings: dict) -> bool:
    """Whether every file is there that a run with these settings leaves."""
    wanted = set(FILES) - ({"upscaled.mp4"} if settings["upscale"] == NONE else set())
    return all((folder / name).exists() for name in wanted)


def check_empty(out: str | os.PathLike) -> Path:
    """Return `out` once it is a new or empty folder. Raises UserError when it is not."""
    folder = check_target(out)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"out={str(out)!r}: is there and not empty; t2v resume goes on, {str(out) + '-2'!r} would work."
        )
    return folder


def check_training(folder: str | os.PathLike) -> None:
    """Raise UserError for a folder that holds no training's record."""
    if not (Path(folder).expanduser() / TRAINING).is_file():
        raise UserError(f"{str(folder)!r}: holds no training, no {TRAINING}; t2v train DATA --out {folder} makes one.")


def read_record(folder: str | os.PathLike) -> dict:
    """The folder's settings.json: {"settings": {...}, "made_with": {...}}. Raises UserError when it is none."""
    path = Path(folder).expanduser() / "settings.json"
    try:
        record = json.loads(path.read_text("utf-8"))
        tables = {name: dict(record[name]) for name in ("settings", "made_with")}
        missing = [name for name in ALWAYS_SET if name not in tables["settings"]]
        if not missing:
            return tables
        reason = f"settings lack {', '.join(missing)}"
    except FileNotFoundError:
        raise UserError(
            f"{str(folder)!r}: is no run, it has no settings.json; t2v gallery, or runs() in Python, lists the runs."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = reason_of(error)
    raise UserError(f"{path}: is not what generate writes ({reason}); copy the folder again or generate anew.")
