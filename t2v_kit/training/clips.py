"""Finding what to train on: clips and pictures with captions, as people have them, and what is wrong with them.

A data set is a folder. Captions are in text files of the same names (`dog.mp4`, `dog.txt`), or all in a
`metadata.jsonl` or `metadata.csv` with `file_name` and `text`, as Hugging Face's videofolder has it.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UserError, quoted
from ..video.decoding import Decoder
from .options import TrainSettings

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TABLES = ("metadata.jsonl", "metadata.csv")
MULTIPLE = 16  # pixels: eight of the VAE, two of the transformer's patches


@dataclass(frozen=True)
class Clip:
    """One file of a data set.

    Attributes:
        path: The video or picture.
        caption: Its text.
        frames: How many it has; 1 for a picture.
        height, width: Pixels, as it is shown.
        fps: Frames a second; 0 for a picture.
        digest: 16 hex digits of the SHA-256 of its bytes.
    """

    path: Path
    caption: str
    frames: int
    height: int
    width: int
    fps: float
    digest: str


@dataclass(frozen=True)
class Sample:
    """A piece of a clip as the model gets it: frames `start` to `start + num_frames`, at height x width."""

    clip: Clip
    start: int
    num_frames: int
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int, int]:
        """(num_frames, height, width): samples of one size may share a step."""
        return self.num_frames, self.height, self.width


@dataclass(frozen=True)
class ClipFolder:
    """A data set as it was found. `print` shows its sizes and what is wrong with it, a line each.

    Attributes:
        folder: Where it is.
        clips: What can be used.
        problems: What cannot be, and why.
    """

    folder: Path
    clips: tuple[Clip, ...]
    problems: tuple[str, ...] = field(repr=False)

    def __str__(self) -> str:
        sizes = Counter((clip.frames, clip.height, clip.width) for clip in self.clips)
        lines = [f"{len(self.clips)} to train on, {len(self.problems)} left out, in {self.folder.name}"]
        lines += [f"{count:6} of {t} frames, {h}x{w}" for (t, h, w), count in sorted(sizes.items())]
        return "\n".join([*lines, *(f"       {line}" for line in self.problems)])

    def check(self) -> ClipFolder:
        """Return itself when everything can be used.

        Raises:
            UserError: Something cannot be, or there is nothing.
        """
        if self.problems:
            first, more = self.problems[0], len(self.problems) - 1
            rest = f", and {more} more (t2v_kit.read_clips lists them)" if more else ""
            raise UserError(
                f"{self.folder}: {first}{rest}; without {'them' if more else 'it'}, {len(self.clips)} clips would work."
            )
        if not self.clips:
            raise UserError(
                f"{self.folder}: holds no clip or picture with a caption; dog.mp4 beside dog.txt would work."
            )
        return self

    def samples(self, settings: TrainSettings, defaults: dict) -> list[Sample]:
        """Cut the clips into pieces of the sizes that are trained.

        Args:
            settings: height, width and num_frames, where they are given.
            defaults: The model's: with none given, a clip keeps its shape and is made no larger than that area.

        Returns:
            The pieces, in the order of the clips: a clip that is twice as long as num_frames gives two.

        Raises:
            UserError: A clip is shorter than num_frames.
        """
        longest = settings.num_frames or defaults["num_frames"]
        if longest % 4 != 1:
            below = (longest - 1) // 4 * 4 + 1
            raise UserError(
                f"num_frames={longest}: must be 4k + 1; {below} or {below + 4} would work.", setting="num_frames"
            )
        short = [clip for clip in self.clips if clip.fps and settings.num_frames and clip.frames < longest]
        if short:
            raise UserError(
                f"{short[0].path.name}: has {short[0].frames} frames, too short for num_frames={longest} ({len(short)} "
                f"of {len(self.clips)} clips are); num_frames={min(clip.frames - 1 for clip in short) // 4 * 4 + 1} "
                "would work.",
                setting="num_frames",
            )
        return [sample for clip in self.clips for sample in _pieces(clip, longest, settings, defaults)]


def read_clips(folder: str | Path) -> ClipFolder:
    """Look at a folder of clips or pictures with captions.

    Every file is opened, and the first frame of it decoded, so that what is wrong is known before anything is loaded.

    Args:
        folder: With videos (any that `video_reader` reads) or pictures, and for each a text file of the same name; or
            with a metadata.jsonl or metadata.csv that has file_name and text, as Hugging Face's videofolder.

    Returns:
        The clips, in the order of their names, and what is wrong: no caption, a video of fewer than 5 frames, a file
        that cannot be read, a video whose frames change size.

    Raises:
        UserError: There is no such folder, or its table cannot be read.

    Example:
        >>> print(read_clips("my_dog"))  # doctest: +SKIP
    """
    where = Path(folder).expanduser()
    if not where.is_dir():
        raise UserError(f"data={str(folder)!r}: there is no such folder; one with dog.mp4 and dog.txt would work.")
    table = next((where / name for name in TABLES if (where / name).exists()), None)
    entries, problems = _from_table(table) if table else _from_texts(where)
    clips: list[Clip] = []
    for path, caption in entries:
        try:
            clips.append(_clip(path, caption))
        except UserError as error:
            problems.append(f"{path.name}: {error}")
    return ClipFolder(where, tuple(clips), tuple(problems))


def read_frames(sample: Sample) -> np.ndarray:
    """Read a sample's frames, scaled to cover its size and cut to it in the middle.

    Args:
        sample: The piece to read.

    Returns:
        (num_frames, height, width, 3) uint8.

    Raises:
        UserError: The file cannot be read any more, or is shorter than it says.
    """
    path, frames = sample.clip.path, []
    if sample.clip.fps:
        decoder = Decoder(path)
        try:
            for index, frame in enumerate(decoder.frames()):
                if index >= sample.start:
                    frames.append(_fitted(frame.pixels[..., :3], sample.height, sample.width))
                if len(frames) == sample.num_frames:
                    break
        finally:
            decoder.close()
    else:
        frames.append(_fitted(np.asarray(_picture(path)), sample.height, sample.width))
    if len(frames) < sample.num_frames:
        raise UserError(
            f"{path}: ends after {sample.start + len(frames)} frames and says {sample.clip.frames}; the file whole, or "
            "without it, would work."
        )
    return np.stack(frames)


def _from_table(table: Path) -> tuple[list[tuple[Path, str]], list[str]]:
    """(path, caption) of each row, and what is wrong with the others."""
    try:
        text = table.read_text("utf-8-sig")
        if table.suffix == ".csv":
            rows = list(csv.DictReader(text.splitlines()))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{table}: cannot be read ({error}); a line {_EXAMPLE} for each clip would work.") from error
    entries, problems = [], []
    for number, row in enumerate(rows, 1):
        name, caption = (row.get(key) if isinstance(row, dict) else None for key in ("file_name", "text"))
        if not isinstance(name, str) or not name.strip():
            problems.append(f"{table.name}, row {number}: has no file_name; {_EXAMPLE} would work")
        elif not isinstance(caption, str) or not caption.strip():
            problems.append(f"{name}: has no caption; a text in {table.name} would work")
        else:
            entries.append((table.parent / name, caption.strip()))
    return entries, problems


_EXAMPLE = '{"file_name": "dog.mp4", "text": "A dog on the beach."}'


def _from_texts(folder: Path) -> tuple[list[tuple[Path, str]], list[str]]:
    """(path, caption) of each video and picture with a text file, and what is wrong with the others."""
    entries, problems = [], []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in (*VIDEOS, *PICTURES) or path.name.startswith("."):
            continue
        text = path.with_suffix(".txt")
        try:
            caption = " ".join(text.read_text("utf-8-sig").split()) if text.exists() else ""
        except (OSError, UnicodeDecodeError):
            problems.append(f"{path.name}: its caption {text.name} is not UTF-8 text; saved as UTF-8 it would work")
            continue
        if caption:
            entries.append((path, caption))
        else:
            problems.append(f"{path.name}: has no caption; a text in {text.name} would work")
    return entries, problems


def _clip(path: Path, caption: str) -> Clip:
    """A file that can be trained on. Raises UserError with the reason, without the file's name."""
    if not path.exists():
        raise UserError("there is no such file; the name of one in the folder would work")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    if path.suffix.lower() in PICTURES:
        width, height = _picture(path).size
        frames, fps = 1, 0.0
    else:
        frames, height, width, fps = _film(path)
    if min(height, width) < MULTIPLE:
        raise UserError(f"is {height}x{width}, too small; {MULTIPLE}x{MULTIPLE} pixels or more would work")
    return Clip(path, caption, frames, height, width, fps, digest)


def _film(path: Path) -> tuple[int, int, int, float]:
    """(frames, height, width, fps) of a video that is decoded once, from start to end."""
    try:
        decoder = Decoder(path)
    except UserError as error:
        raise UserError(f"cannot be read as a video: {str(error).partition(': ')[2] or error}") from error
    try:
        frames = sum(1 for _ in decoder.frames())
        info = decoder.info
    finally:
        decoder.close()
    if any("another size" in note for note in decoder.notes):
        raise UserError("has frames of two sizes; cut where the size changes, it would work")
    if decoder.damage:
        raise UserError(f"is damaged: {decoder.damage[0]}; the file whole would work")
    if frames < 5:
        raise UserError(f"has {frames} frames, too short for a video; 5 or more would work")
    return frames, *info.shape, float(info.rate)


def _picture(path: Path) -> Image.Image:
    """An upright RGB picture."""
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot be read as a picture ({quoted(str(error), 80)}); a PNG or JPEG would work") from error


def _pieces(clip: Clip, longest: int, settings: TrainSettings, defaults: dict) -> list[Sample]:
    """A clip's samples: whole pieces of `longest` frames, or one of as many as it has."""
    if settings.height and settings.width:
        height, width = settings.height, settings.width
    else:
        height, width = own_size(clip.height, clip.width, defaults["height"] * defaults["width"])
    if clip.frames < longest:
        return [Sample(clip, 0, (clip.frames - 1) // 4 * 4 + 1, height, width)]
    starts = range(0, clip.frames - longest + 1, longest)
    return [Sample(clip, start, longest, height, width) for start in starts]


def own_size(height: int, width: int, area: int) -> tuple[int, int]:
    """The multiples of 16 nearest to a clip's own shape, with at most `area` pixels and no larger than it is.

    Example:
        >>> own_size(720, 1280, 112 * 192)
        (112, 192)
    """
    scale = min(1.0, (area / (height * width)) ** 0.5)
    rows = max(1, round(height * scale / MULTIPLE))
    columns = max(1, round(width * scale / MULTIPLE))
    while rows * columns * MULTIPLE**2 > area and max(rows, columns) > 1:
        rows, columns = (rows, columns - 1) if columns >= rows else (rows - 1, columns)
    rows, columns = min(rows, height // MULTIPLE), min(columns, width // MULTIPLE)
    return rows * MULTIPLE, columns * MULTIPLE


def _fitted(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """A frame scaled to cover height x width, and cut to it in the middle."""
    if frame.shape[:2] == (height, width):
        return frame
    return np.asarray(ImageOps.fit(Image.fromarray(frame), (width, height), Image.Resampling.LANCZOS))
