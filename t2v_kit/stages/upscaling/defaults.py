"""Which upscaler enlarges where none is named: never the toy one what it was not made for."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ...errors import UserError, give_note
from ...video.files import read_metadata
from .names import LANCZOS
from .packaged import how_to_get
from .weights import available_upscalers, load_upscaler

# For real footage, the first one at hand. Both realesr networks are small and quick: general-x4v3 is made for footage
# of every kind but has to be fetched; animevideov3 is made for video and keeps it calm.
_FOR_FOOTAGE = ("realesr-general-x4v3", "realesr-animevideov3", "RealESRGAN_x4plus", "RealESRGAN_x2plus")
_SUGGESTED = "realesr-animevideov3"


def upscaler_of_file(source: str | Path) -> str:
    """Choose for a video file: pocket's own upscaler for what pocket made, what `for_footage` finds for anything else.

    Raises:
        UserError: The source is no video.
    """
    try:
        made_by = read_metadata(source).get("settings", {}).get("model")
    except UserError:  # a video of another program
        made_by = None
    return "pocket" if made_by == "pocket" else for_footage(Path(source).name)


def for_footage(whose: str) -> str:
    """A published Real-ESRGAN network that works offline, else Lanczos with a note.

    Args:
        whose: What is to be enlarged, as the note names it.
    """
    at_hand = available_upscalers()
    for name in _FOR_FOOTAGE:
        if name in at_hand:
            with contextlib.suppress(UserError):  # damaged there, and out of reach
                load_upscaler(name, progress=False)
                return name
    give_note(
        f"upscale='auto': {whose} has no upscaler of its own and no published one is at hand, so Lanczos "
        f"interpolation enlarges; upscale={_SUGGESTED!r} fetches Real-ESRGAN's (2.5 MB); {how_to_get(_SUGGESTED)}."
    )
    return LANCZOS
