"""The names of upscalers: which there are, which of them form pairs, and what somebody means who types another.

Nothing heavy is imported here, so that a mistaken name is told at once.
"""

from __future__ import annotations

import os
import re
from numbers import Real
from pathlib import Path
from typing import NamedTuple

from ...errors import UserError, near_match

FILE = "Real-ESRGAN file (.pth, .safetensors)"
_SHIPPED = Path(__file__).parents[2] / "pocket" / "upscaler"

#: Interpolation in place of a network, wherever an upscaler is named.
LANCZOS = "lanczos"

#: In place of an upscaler: the model's own, or no enlargement.
AUTO, NONE = "auto", "none"

#: Weights that come with the package, by name.
SHIPPED = {"pocket": _SHIPPED / "pocket_x4.safetensors", "pocket-wdn": _SHIPPED / "pocket_wdn_x4.safetensors"}


class Published(NamedTuple):
    """A file in a release.

    Attributes:
        address: Its URL.
        sha256: The SHA-256 (hex) that it must have to be read.
    """

    address: str
    sha256: str


_RELEASES = "https://github.com/xinntao/Real-ESRGAN/releases/download"

#: Real-ESRGAN's published weights by name, as its README and `inference_realesrgan.py` list them.
PUBLISHED = {
    name: Published(f"{_RELEASES}/{release}/{name}.pth", sha256)
    for name, release, sha256 in (
        ("RealESRGAN_x4plus", "v0.1.0", "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1"),
        ("RealESRGAN_x2plus", "v0.2.1", "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb"),
        ("RealESRGAN_x4plus_anime_6B", "v0.2.2.4", "f872d837d3c90ed2e05227bed711af5671a6fd1c9f7d7e91c911a61f155e99da"),
        ("realesr-animevideov3", "v0.2.5.0", "b8a8376811077954d82ca3fcf476f1ac3da3e8a68a4f4d71363008000a18b75d"),
        ("realesr-general-x4v3", "v0.2.5.0", "8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292"),
        ("realesr-general-wdn-x4v3", "v0.2.5.0", "1641f8c4464b9f097c9fdda5589273713f67cf59f3d909e0bd688f0cee269dca"),
    )
}

#: Scales below its own for which a network was published as well: the same weights, followed by a reduction.
REDUCED = {"realesr-animevideov3": (2, 3)}

#: What people type for a network: its name in other tools, or what it is called in passing. Letters and digits alone.
_OTHER_WORDS = {
    "esrgan": "RealESRGAN_x4plus",
    "realesrgan": "RealESRGAN_x4plus",
    "realesrnet": "RealESRGAN_x4plus",
    "x4": "RealESRGAN_x4plus",
    "x2": "RealESRGAN_x2plus",
    "anime": "RealESRGAN_x4plus_anime_6B",
    "animevideo": "realesr-animevideov3",
    "animevideox2": "realesr-animevideov3",
    "general": "realesr-general-x4v3",
    "generalwdn": "realesr-general-wdn-x4v3",
    "wdn": "realesr-general-wdn-x4v3",
    "toy": "pocket",
}

#: Networks that take noise away, each with the one of the same shape that keeps it (wdn: weak denoising).
PAIRS = {"pocket": "pocket-wdn", "realesr-general-x4v3": "realesr-general-wdn-x4v3"}


def check_name(model: str | os.PathLike) -> str:
    """Return an upscaler's name or path as text.

    Args:
        model: A name in `SHIPPED` or `PUBLISHED`, "lanczos", or the path of a file.

    Raises:
        UserError: There is no such upscaler and no such file; the message has the nearest name.
    """
    if not isinstance(model, (str, os.PathLike)):
        raise UserError(f"upscaler {model!r}: must be a name or the path of a {FILE}; 'pocket', or in generate 'none' "
                        "for no enlargement, would work.")  # fmt: skip
    name = str(model)
    if name not in (*SHIPPED, *PUBLISHED, LANCZOS) and not Path(model).is_file():
        near = _near(Path(name).name)
        every = ", ".join(repr(known) for known in (*SHIPPED, *PUBLISHED, LANCZOS))
        known = f"did you mean {near!r}? Else" if near else f"choose {every}, or"
        raise UserError(f"unknown upscaler {name!r}: {known} the path of a {FILE} works")
    return name


def check_strength(name: str, strength: float) -> float:
    """Return `strength` if it is from 0 to 1 and the upscaler is one of a pair.

    Raises:
        UserError: It is not.
    """
    number = float(strength) if isinstance(strength, Real) and not isinstance(strength, bool) else float("nan")
    if not 0 <= number <= 1:
        near = 0 if number < 0 else 1
        raise UserError(f"denoise_strength={strength!r} must be a number from 0 to 1: try {near}")
    if weak_of(name) is None:
        pairs = " and ".join(repr(pair) for pair in PAIRS)
        beside = f", or put {PAIRS[Path(name).stem]}{Path(name).suffix} beside it" if Path(name).stem in PAIRS else ""
        raise UserError(f"denoise_strength={strength!r} needs a pair of networks, which only {pairs} have: "
                        f"leave it out (None) for {name!r}{beside}")  # fmt: skip
    return number


def weak_of(name: str) -> str | None:
    """The network of a pair that keeps noise: by name, or for a file with such a name, the file beside it."""
    if name in PAIRS:
        return PAIRS[name]
    path = Path(name)
    if path.stem not in PAIRS:
        return None
    beside = path.with_name(PAIRS[path.stem] + path.suffix)
    return str(beside) if beside.is_file() else None


def _near(word: str) -> str | None:
    """The upscaler that somebody means who types this: its name, a part of it, or another tool's name for it."""
    known = {_plain(name): name for name in (*SHIPPED, *PUBLISHED, LANCZOS)}
    plain = _plain(re.sub(r"\.(pth|safetensors|onnx|param|bin)$", "", word))
    containing = [name for short, name in known.items() if plain and plain in short]
    if plain in _OTHER_WORDS:
        return _OTHER_WORDS[plain]
    if containing:
        return min(containing, key=len)
    near = near_match(plain, known)
    return near and known[near]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
