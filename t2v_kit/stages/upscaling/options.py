"""What may be asked of an enlargement: scales, tiles, dtypes, rates, and a place for the file.

Nothing heavy is imported here, so that a mistake is told at once.
"""

from __future__ import annotations

import os
import tempfile
from fractions import Fraction
from numbers import Real
from pathlib import Path

from ...atomic import PREFIX
from ...errors import UserError, is_whole
from ...video.encoding import whole_rate

MAX_SCALE = 16
TILE = 512  # side of the tiles that large frames are cut into
DTYPES = ("auto", "float32", "bfloat16", "float16")
AUDIO = ("copy", "none")


def check_scale(scale) -> None:
    """Raise UserError for a scale that is no number from 1 to `MAX_SCALE`."""
    number = float(scale) if isinstance(scale, Real) and not isinstance(scale, bool) else float("nan")
    if not 1 <= number <= MAX_SCALE:
        near = MAX_SCALE if number > MAX_SCALE else 4
        raise UserError(f"scale={scale!r} must be a number from 1 to {MAX_SCALE}: try {near}")


def check_options(scale, tile, batch) -> None:
    """Raise UserError for a scale, a side of tiles or a number of frames that cannot be."""
    check_scale(scale)
    if tile not in (None, "auto") and (not is_whole(tile) or tile < 0 or tile % 8):
        raise UserError(f"tile={tile!r} must be 'auto', a multiple of 8 input pixels, or 0 for none: try {TILE}")
    if batch not in (None, "auto") and (not is_whole(batch) or batch < 1):
        raise UserError(f"batch={batch!r} must be 'auto' or a whole number of frames, at least 1: try 1")


def check_dtype(dtype) -> str:
    """Return the name of a dtype, one of `DTYPES`. Raises UserError for another."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UserError(f"dtype={dtype!r} is unknown: choose one of {', '.join(DTYPES)}")
    return name


def check_fps(fps: float | str) -> Fraction | None:
    """Return frames a second as a fraction, None for "keep". Raises UserError for what is neither."""
    if fps == "keep":
        return None
    if isinstance(fps, Real) and not isinstance(fps, bool) and 0 < float(fps) <= 1000:
        return whole_rate(float(fps))
    raise UserError(f"fps={fps!r}: must be 'keep' or a number up to 1000; 'keep' would work.", setting="fps")


def check_audio(audio: str) -> None:
    """Raise UserError for what is not in `AUDIO`."""
    if audio not in AUDIO:
        raise UserError(f"audio={audio!r}: must be 'copy' or 'none'; 'copy' would work.", setting="audio")


def check_place(target: Path) -> None:
    """Refuse a target that cannot be written, before the work; leaves nothing behind. Raises UserError."""
    if target.is_dir():
        raise UserError(f"{str(target)!r} is a folder; {str(target / 'large.mp4')!r} would work.")
    folder = Path(os.path.abspath(target)).parent
    try:
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(prefix=PREFIX, dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{str(target)!r}: cannot be written ({error.strerror}); {target.name!r} would work."
        ) from error
