"""What a run is given besides words: videos and pictures, as files or in memory, and what identifies them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..settings import KNOBS, Settings
from ..video.clips import digest_of

#: Settings that name a file, and for which `generate` also takes an array or a picture.
GIVEN = tuple(name for name, knob in KNOBS.items() if knob.kind == "file")
_HELD = "in memory: "  # how a record names what is no file


def take_given(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, object]]:
    """Keywords for `Settings`, in which files are absolute paths, and the sources themselves by name.

    An array or a picture has its digest in place of a path.

    Raises:
        UserError: A source of another kind; or a record's word for an array, which nobody kept.
    """
    plain, sources = dict(settings), {}
    for name in GIVEN:
        value = settings.get(name)
        if isinstance(value, str) and value.startswith(_HELD):
            raise UserError(
                f"{name} was given as an array or picture, which no file holds: call generate with it again, and with "
                "the same out; it continues there.",
                setting=name,
            )
        if isinstance(value, (np.ndarray, Image.Image)):
            sources[name], plain[name] = value, f"{_HELD}{digest_of(value, name)}"
        elif isinstance(value, (str, os.PathLike)) and str(value).strip() and "\0" not in str(value):
            sources[name] = plain[name] = str(Path(value).expanduser().absolute())
    return plain, sources


def digests_of(sources: dict[str, object]) -> dict[str, str] | None:
    """16 hex digits of each source's content; None without sources. Raises UserError for a file that is not there."""
    return {name: digest_of(source, name) for name, source in sources.items()} or None


def check_shareable(settings: Settings, gpus: int) -> None:
    """Refuse what one device alone can do, before several are started.

    Args:
        settings: Of the video.
        gpus: How many devices are to make it.

    Raises:
        UserError: More than one, and a part of the video is given, or riflex is on.
    """
    for name in ("first_frame", "last_frame", "mask", "image"):
        if gpus > 1 and getattr(settings, name) is not None:
            raise UserError(
                f"gpus={gpus}: {name} is given, which one device alone can heed; gpus=1 would work.", setting="gpus"
            )
    if gpus > 1 and settings.riflex:
        raise UserError(f"gpus={gpus}: riflex is for one device; gpus=1 would work.", setting="gpus")
