"""Files, pictures and arrays as clips of a wanted size, length and rate: read, and fitted by a rule that is named."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError, give_note
from .arrays import check_video
from .decoding import Decoder, Frame
from .files import opaque

#: The longest video that settings allow; of a longer file no more is read.
MOST_FRAMES = 1001


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames that were given as a file, a picture or an array.

    Attributes:
        frames: (T, H, W, 3) uint8.
        name: The file's path, or "array" or "picture", for messages.
        digest: 16 hex digits of the SHA-256 of the file's content; of an array, of its shape and numbers.
        timing: What reading did to the rate, in words; empty when nothing was done.
        more: Whether the file goes on behind these frames.
    """

    frames: np.ndarray = field(repr=False)
    name: str
    digest: str
    timing: str = ""
    more: bool = False


def read_clip(source: object, name: str = "video", fps: float | None = None, most: int = MOST_FRAMES) -> Clip:
    """Read a clip.

    A file is taken at `fps` by its timestamps: at each time 0, 1/fps, 2/fps, ... after its first frame comes the frame
    that a player shows then. So 24 frames a second become 16 by leaving out every third frame, and a variable rate
    becomes an even one. Pictures and arrays are taken frame by frame.

    Args:
        source: The path of a video or picture, (T, H, W, 3) or (H, W, 3) uint8, a PIL image,
            or a bool array (T, H, W) or (H, W), True for white.
        name: The argument's name, for messages.
        fps: Frames a second to take from a file; None takes each frame once.
        most: How many frames are read at most.

    Raises:
        UserError: The file is missing or has no pictures, or the source is of another kind.

    Example:
        >>> read_clip(np.zeros((32, 48, 3), np.uint8)).frames.shape
        (1, 32, 48, 3)
    """
    if not isinstance(source, (str, os.PathLike)):
        kind = "picture" if isinstance(source, Image.Image) else "array"
        return Clip(_in_memory(source, name), kind, digest_of(source, name))
    path = Path(source).expanduser().absolute()
    digest = _file_digest(path, name)
    try:
        decoder = Decoder(path)
    except UserError as error:
        raise UserError(f"{name}: {error}", setting=name) from error
    try:
        rate, base = decoder.info.rate, decoder.info.time_base
        frames = decoder.frames()
        if fps is not None:
            frames = _at_rate(frames, base, Fraction(fps).limit_denominator(10**6), 1 / rate)
        taken, more = _first(frames, most)
    finally:
        decoder.close()
    for line in (*decoder.damage, *decoder.notes):
        give_note(f"{path}: {line}")
    still = len(taken) == 1 and not more
    timing = (
        "" if fps is None or still or abs(rate - fps) < 0.01 else f"{float(rate):g} frames a second taken at {fps:g}"
    )
    return Clip(np.stack(taken), str(path), digest, timing, more)


def fit_clip(
    clip: Clip,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    fit: str = "refuse",
    units: tuple[int, int] = (8, 4),
    name: str = "video",
) -> np.ndarray:
    """Fit a clip to a size and a length. What was done is said in one note.

    - "refuse": nothing is changed; another size or length is an error.
    - "crop": scaled so that it covers the frame, and the middle is kept; the first `frames` frames are kept. A clip
      that is too short is an error: nothing can be cut from it.
    - "pad": scaled so that it lies within the frame, on black; a clip that is too short holds its last frame, and of
      one that is too long the first `frames` are kept.

    Args:
        clip: What `read_clip` gave.
        height, width: Pixels; None for the clip's own, to a multiple of units[0]: rounded down by "crop", up by "pad".
        frames: How many; None for the clip's own, to units[1] k + 1, rounded likewise.
        fit: "refuse", "crop" or "pad".
        units: Pixels and frames that share a latent.
        name: The argument's name, for messages.

    Returns:
        (frames, height, width, 3) uint8.

    Raises:
        UserError: The clip does not fit, or there is no such rule.
    """
    if fit not in ("crop", "pad", "refuse"):
        raise UserError(f"fit={fit!r}: must be crop, pad or refuse; 'crop' would work.", setting="fit")
    own = clip.frames.shape[1:3]
    free = height is None and width is None
    size = tuple(_near(given, side, units[0], fit) for given, side in zip((height, width), own))
    count = _near_count(frames, len(clip.frames), units[1], fit)
    _check_fits(clip, size, count, fit, units, name)
    done = [clip.timing] if clip.timing else []
    kept = clip.frames[:count]
    if len(kept) < len(clip.frames) or clip.more:
        done.append(f"the first {count} frames kept")
    if own != size:
        kept, words = _resized(kept, size, fit, 1.0 if free else None)
        done.append(words)
    if len(kept) < count:
        done.append(f"the last frame held for {count - len(kept)} more")
        kept = np.concatenate([kept, kept[-1:].repeat(count - len(kept), axis=0)])
    if done:
        give_note(f"{name}={clip.name}: {'; '.join(done)}.")
    return np.ascontiguousarray(kept)


def digest_of(source: object, name: str = "video") -> str:
    """Identify what `read_clip` takes by its content, without decoding it.

    Args:
        source: As for `read_clip`.
        name: The argument's name, for messages.

    Returns:
        16 hex digits of a SHA-256: of a file's content, else of the shape and the numbers.

    Raises:
        UserError: A file that cannot be read, or another kind of source.
    """
    if isinstance(source, (str, os.PathLike)):
        return _file_digest(Path(source).expanduser().absolute(), name)
    held = _in_memory(source, name)
    return hashlib.sha256(str(held.shape).encode() + np.ascontiguousarray(held).tobytes()).hexdigest()[:16]


def _in_memory(source: object, name: str) -> np.ndarray:
    """A picture or an array as (T, H, W, 3) uint8; a bool array, as masks are, in black and white."""
    if isinstance(source, Image.Image):
        return np.asarray(source.convert("RGB"))[None]
    if isinstance(source, np.ndarray):
        if source.dtype == bool and source.ndim in (2, 3):
            source = (source[..., None].astype(np.uint8) * 255).repeat(3, axis=-1)
        picture = source.ndim == 3 and source.shape[2] == 3 and source.dtype == np.uint8
        return check_video(source[None] if picture else source, name)
    raise UserError(
        f"{name} is {type(source).__name__}: must be a file, a picture or an array (T, H, W, 3) of uint8; "
        "'in.mp4' would work.",
        setting=name,
    )


def _file_digest(path: Path, name: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{name}={str(path)!r}: cannot be read ({reason}); a video or a picture would work.", setting=name
        ) from error


def _at_rate(frames: Iterable[Frame], base: Fraction, fps: Fraction, tick: Fraction) -> Iterator[Frame]:
    """The frame shown at 0, 1/fps, 2/fps, ... after the first.

    base: seconds in a unit of the timestamps. They are rounded to it, and some files count milliseconds: a frame that
    begins that little after a wanted time counts as shown.  tick: seconds that the last frame is shown where the file
    does not say.
    """
    shown, start, wanted = None, Fraction(0), 0
    rounding = min(base / 2, Fraction(1, 2000))
    for frame in frames:
        if shown is None:
            start = frame.pts * base
        else:
            while start + wanted / fps + rounding < frame.pts * base:
                yield shown
                wanted += 1
        shown = frame
    if shown is not None:
        end = shown.pts * base + (shown.duration * base or tick)
        while wanted == 0 or start + wanted / fps + rounding < end:
            yield shown
            wanted += 1


def _first(frames: Iterable[Frame], most: int) -> tuple[list[np.ndarray], bool]:
    """The first frames as RGB of 8 bits, and whether there are more."""
    taken: list[np.ndarray] = []
    for frame in frames:
        if len(taken) == most:
            return taken, True
        taken.append(opaque(frame.pixels))
    return taken, False


def _near(given: int | None, own: int, unit: int, fit: str) -> int:
    """The side wanted, or the clip's own to a whole multiple."""
    if given is not None:
        return given
    return own if fit == "refuse" else max(unit, (own if fit == "crop" else own + unit - 1) // unit * unit)


def _near_count(given: int | None, own: int, unit: int, fit: str) -> int:
    if given is not None:
        return given
    return own if fit == "refuse" else ((own - 1) if fit == "crop" else (own + unit - 2)) // unit * unit + 1


def _check_fits(clip: Clip, size: tuple[int, ...], count: int, fit: str, units: tuple[int, int], name: str) -> None:
    """Refuse what the rule cannot fit."""
    (frames, *own), (spatial, temporal) = clip.frames.shape[:3], units
    if fit == "refuse" and (size[0] % spatial or size[1] % spatial):
        near = [max(spatial, side // spatial * spatial) for side in own]
        raise UserError(
            f"{name} is {own[0]}x{own[1]} pixels: must be multiples of {spatial}; {near[0]}x{near[1]} works, and so "
            'does fit="crop".',
            setting=name,
        )
    if fit == "refuse" and tuple(own) != tuple(size):
        raise UserError(
            f"{name} is {own[0]}x{own[1]} pixels: must be {size[0]}x{size[1]} with fit='refuse'; "
            "fit='crop' would work.",
            setting=name,
        )
    if fit == "refuse" and (count - 1) % temporal:
        near = temporal * ((count - 1) // temporal) + 1
        raise UserError(
            f'{name} has {frames} frames: must have {temporal}k+1; {near} would work, and so does fit="crop".',
            setting=name,
        )
    if frames < count and fit != "pad":
        whole = temporal * ((frames - 1) // temporal) + 1
        raise UserError(
            f"{name} has {frames} frames: {count} are needed; num_frames={whole} would work, and so does fit='pad', "
            "which holds the last frame.",
            setting=name,
        )
    if fit == "refuse" and (frames > count or clip.more):
        raise UserError(
            f"{name} has {'over ' * clip.more}{frames} frames: must have {count} with fit='refuse'; fit='crop' keeps "
            "the first.",
            setting=name,
        )


def _resized(frames: np.ndarray, size: tuple[int, ...], fit: str, scale: float | None) -> tuple[np.ndarray, str]:
    """Frames of another size, and what was done. scale: the factor; None for the one that covers or lies within."""
    own, (height, width) = frames.shape[1:3], size
    factors = height / own[0], width / own[1]
    scale = (max(factors) if fit == "crop" else min(factors)) if scale is None else scale
    rows, columns = (round(side * scale) for side in own)
    if fit == "crop":
        rows, columns = max(rows, height), max(columns, width)
    else:
        rows, columns = min(max(rows, 1), height), min(max(columns, 1), width)
    words = [] if (rows, columns) == own else [f"scaled from {own[0]}x{own[1]} to {rows}x{columns}"]
    if words:
        images = (Image.fromarray(frame).resize((columns, rows), Image.Resampling.LANCZOS) for frame in frames)
        frames = np.stack([np.asarray(image) for image in images])
    top, left = abs(rows - height) // 2, abs(columns - width) // 2
    if fit == "crop":
        frames = frames[:, top : top + height, left : left + width]
        if (rows, columns) != (height, width):
            words.append(f"{rows - height} rows and {columns - width} columns cut off around the middle")
    else:
        around = [(0, 0), (top, height - rows - top), (left, width - columns - left), (0, 0)]
        frames = np.pad(frames, around)
        if (rows, columns) != (height, width):
            words.append(f"{height - rows} black rows and {width - columns} black columns added")
    return frames, ", ".join(words)
