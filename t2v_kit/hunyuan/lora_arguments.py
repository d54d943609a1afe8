"""What a user gives as LoRAs, checked before PyTorch is imported: files or hub ids, and strengths."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import UserError, near_match, quoted
from .names import SHIPPED_LORAS, shipped_lora

STRONGEST = 10.0  # people use 0.3 to 1.5, and negative ones; beyond this it is a typing mistake

Strength = float | tuple[float, ...]

_LINKED = re.compile(r"https?://")
_NAME = r"[A-Za-z0-9][\w.-]*"
_ON_HUB = re.compile(rf"{_NAME}/{_NAME}(?<!\.safetensors)(?:/.+\.safetensors)?")  # user/repo, or user/repo/file


def parse_loras(loras: object) -> list[tuple[str, Strength]]:
    """What a user gave as `loras`, as names and strengths, before anything is read.

    Args:
        loras: A list of files, hub ids or names of pocket's LoRAs, each alone (strength 1) or as a pair with its
            strength; or a single one.

    Raises:
        UserError: It is something else.
    """
    if loras is None:
        return []
    if isinstance(loras, (str, os.PathLike)):
        loras = [loras]
    if not isinstance(loras, (list, tuple)):
        raise UserError(f"loras={quoted(loras)}: must be a list; [('style.safetensors', 0.8)] would work.")
    pairs = []
    for each in loras:
        name, strength = each if isinstance(each, (list, tuple)) and len(each) == 2 else (each, 1.0)
        if not isinstance(name, (str, os.PathLike)):
            raise UserError(
                f"loras={quoted(loras)}: {quoted(name)} is no file and no hub id; "
                "[('style.safetensors', 0.8)] would work."
            )
        pairs.append((str(name), check_strength(strength)))
    return pairs


def check_strength(strength: object) -> Strength:
    """Return a strength as a float, or as a tuple of them where it is a list of one for each step.

    Raises:
        UserError: It is no number from -10 to 10.
    """
    if isinstance(strength, (list, tuple)) and strength:
        return tuple(_number(each) for each in strength)
    return _number(strength)


def _number(strength: object) -> float:
    if isinstance(strength, (int, float)) and not isinstance(strength, bool) and abs(strength) <= STRONGEST:
        return float(strength) + 0.0
    near = math.copysign(STRONGEST, strength) if isinstance(strength, float) and math.isfinite(strength) else 1.0
    raise UserError(
        f"lora strength {quoted(strength)}: must be a number from {-STRONGEST:g} to {STRONGEST:g} (1 as trained), or "
        f"a list of one for each step; {near:g} would work.",
        setting="loras",
    )


def lora_from_text(text: str) -> tuple[str, Strength]:
    """Read FILE[:STRENGTH], where STRENGTH may be numbers with commas between them, one for each step.

    Raises:
        UserError: A strength is out of range, or a file is missing.

    Example:
        >>> lora_from_text("user/style:0.8")
        ('user/style', 0.8)
    """
    name, _, tail = text.rpartition(":")
    numbers = [_as_number(each) for each in tail.split(",")]
    if not name or None in numbers:
        name, numbers = text, [1.0]
    check_present(name)
    return name, check_strength(numbers if len(numbers) > 1 else numbers[0])


def check_steps(loras: Iterable[tuple[str, Strength]], steps: int | None) -> None:
    """Check that strengths that are one for each step are for so many steps; None is a number not known yet.

    Raises:
        UserError: They are for another number.
    """
    for name, strength in loras:
        if steps is not None and isinstance(strength, tuple) and len(strength) != steps:
            raise UserError(
                f"lora {name!r}: has {len(strength)} strengths, but there are {steps} steps; one for each, or "
                f"num_inference_steps={len(strength)}, would work.",
                setting="loras",
            )


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def check_present(name: str) -> None:
    """Refuse what is neither a file, nor a folder, nor an id or link of the hub, nor the name of a LoRA of pocket's.

    Raises:
        UserError: There is no such file; the message has a near one.
    """
    path = Path(name).expanduser()
    if (
        shipped_lora(name)
        or path.exists()
        or _LINKED.match(name)
        or (_ON_HUB.fullmatch(name) and not path.parent.is_dir())
    ):
        return
    raise UserError(f"lora {name!r}: there is no such file; {_hint(path)}", setting="loras")


def _hint(path: Path) -> str:
    """A file beside it with nearly the same name, or what would work."""
    beside = [each.name for each in path.parent.glob("*.safetensors")] if path.parent.is_dir() else []
    near = near_match(path.name, beside)
    shipped = near_match(str(path), [each.stem for each in SHIPPED_LORAS.glob("*.safetensors")])
    word = str(path.parent / near) if near else shipped
    return f"did you mean {word!r}?" if word else "a .safetensors file or a hub id would work."
