"""Finished and unfinished runs on the disk: find them, look at them, compare them, repeat them."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..errors import UserError, check_whole, did_you_mean, give_note
from ..settings import Settings
from ..video.files import video_reader
from ..view.pictures import font, shortened, wrap
from .fine_tuning import Training, trainings
from .folder import read_latents, read_log
from .generating import Run, generate
from .recipe import reproducing, write_recipe
from .target import CHECKPOINT, FILES, LOG, is_finished, read_record

_CARD = 240  # pixels: width of a card in the picture of a gallery
_UNREADABLE = ("date", "networks", "vae")  # of made_with: dates, and hashes beside that of the weights' files
_PAPER, _INK, _GREY = (255, 255, 255), (32, 32, 32), (112, 112, 112)


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run as its folder records it; frames are read when they are asked for.

    Attributes:
        folder: Where its files are, an absolute path.
        settings: `generate`'s keywords, model and upscale among them.
        made_with: Model, hashes, device, versions and date.
        steps: How many denoising steps are saved.
        seconds: By stage, all sittings of a resumed run together.
        memory: By stage, the highest peak in GiB.
    """

    folder: Path
    settings: dict = field(repr=False)
    made_with: dict = field(repr=False)
    steps: int
    seconds: dict[str, float] = field(repr=False)
    memory: dict[str, float] = field(repr=False)

    @classmethod
    def read(cls, folder: str | os.PathLike) -> RunRecord:
        """Read the run in a folder.

        Raises:
            UserError: The folder holds no run, or its latents are damaged.
        """
        folder = Path(os.path.abspath(Path(folder).expanduser()))
        record = read_record(folder)
        saved = [folder / name for name in ("latents.safetensors", CHECKPOINT) if (folder / name).exists()]
        steps = read_latents(saved[0])[1] if saved else 0
        return cls(folder, **record, steps=steps, **_by_stage(read_log(folder)))

    @property
    def finished(self) -> bool:
        """Whether every file is there; `resume(folder)` makes the missing ones."""
        return is_finished(self.folder, self.settings)

    @property
    def files(self) -> list[Path]:
        return [self.folder / name for name in (*FILES, LOG) if (self.folder / name).exists()]

    def video(self, upscaled: bool = False) -> np.ndarray:
        """The frames of the MP4, (T, H, W, 3) uint8: those of the run but for H.264's small losses.

        Args:
            upscaled: Read upscaled.mp4 instead of video.mp4.

        Raises:
            UserError: The file is missing or damaged.
        """
        with video_reader(self.folder / ("upscaled.mp4" if upscaled else "video.mp4")) as frames:
            return np.stack(list(frames))

    def rerun(self, out: str | os.PathLike | None = None, **changes) -> Run:
        """Call `generate` with the same keywords, some of them changed.

        Args:
            out: The new run's folder; None keeps it in memory.
            **changes: Keywords of `generate`, such as seed=9.
        """
        return generate(**{**self.settings, **changes}, out=out)

    def code(self) -> str:
        """Python code that makes the same video again."""
        return reproducing(self.settings)

    def export(self, path: str | os.PathLike) -> Path:
        """Write a script (.py) or notebook (.ipynb) that makes the same video again, and return its path.

        Raises:
            UserError: `path` has another ending, or cannot be written.
        """
        return write_recipe(Path(path), {"settings": self.settings, "made_with": self.made_with})


def runs(
    folder: str | os.PathLike = "runs", text: str = "", finished: bool | None = None, **settings
) -> list[RunRecord]:
    """Find the runs in a folder and in the folders below it.

    A damaged run is left out with a note.

    Args:
        folder: Where to look.
        text: Only runs whose prompt has these words, in any case.
        finished: Only runs that are finished (True) or are not (False).
        **settings: Only runs with these values, as in runs(seed=3, model="pocket").

    Returns:
        The runs, oldest first.

    Raises:
        UserError: A setting does not exist.

    Example:
        >>> for record in runs("runs", "red car", finished=True):
        ...     print(record.folder.name, record.settings["seed"])
    """
    known = [f.name for f in dataclasses.fields(Settings)] + ["model", "upscale", "memory", "loras"]
    for name in settings:
        if name not in known:
            raise UserError(f"{name}={settings[name]!r}: no setting of a run; {did_you_mean(name, known)}")
    found = []
    for path in sorted(Path(folder).expanduser().rglob("settings.json")):
        try:
            record = RunRecord.read(path.parent)
        except UserError as error:
            give_note(str(error))
            continue
        words = text.lower() in record.settings.get("prompt", "").lower()
        fits = all(record.settings.get(name) == value for name, value in settings.items())
        if words and fits and finished in (None, record.finished):
            found.append(record)
    return sorted(found, key=_when)


def _when(record: RunRecord) -> tuple[datetime, int]:
    """When it was started, to the second, and below that when settings.json was written."""
    try:
        started = datetime.fromisoformat(str(record.made_with.get("date"))).astimezone(UTC)
    except (ValueError, OverflowError):
        started = datetime.fromtimestamp(0, UTC)
    return started, (record.folder / "settings.json").stat().st_mtime_ns


def _by_stage(lines: list[dict]) -> dict[str, dict[str, float]]:
    """A log's seconds and peaks by stage. Steps count by themselves where denoising was cut short."""
    seconds, memory, steps = {}, {}, 0.0
    for line in [*lines, {"event": "started"}]:
        stage, took = line.get("stage"), line.get("seconds", 0)
        if "peak_gib" in line:  # the whole stage
            seconds[stage] = seconds.get(stage, 0) + took
            memory[stage] = max(memory.get(stage, 0), line["peak_gib"])
            steps = 0.0 if stage == "denoise" else steps
        elif stage == "denoise":
            steps += took
        elif line.get("event") == "started" and steps:
            seconds["denoise"], steps = seconds.get("denoise", 0) + steps, 0.0
    return {"seconds": seconds, "memory": memory}


class Comparison(dict):
    """What differs between runs: a dict {name: [a value for each run]} that prints as a table."""

    def __init__(self, names: list[str], rows: dict[str, list]) -> None:
        super().__init__(rows)
        self.names = names

    def __repr__(self) -> str:
        if not self:
            return "no setting differs"
        table = [
            ["", *(_short(name, 28) for name in self.names)],
            *([name, *map(_short, values)] for name, values in self.items()),
        ]
        widths = [max(map(len, column)) for column in zip(*table)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table)


def compare(*records: RunRecord | Run | str | os.PathLike) -> Comparison:
    """Compare runs: which settings differ, and then which weights, devices and versions.

    Args:
        *records: Two or more of what `runs` or `generate` returned, or folders.

    Returns:
        A dict {name: [a value for each run]} that prints as a table. Dates are left out.

    Raises:
        UserError: Fewer than two runs, or a folder that holds none.

    Example:
        >>> compare("runs/first", "runs/second")  # doctest: +SKIP
    """
    if len(records) < 2:
        raise UserError(f"compare needs two runs or more, but this is {len(records)}; runs() lists them.")
    read = [_record_of(each) for each in records]
    rows = {}
    for table in ("settings", "made_with"):
        for name in dict.fromkeys(key for each in read for key in each[1][table]):
            values = [each[1][table].get(name) for each in read]
            if name not in _UNREADABLE and any(value != values[0] for value in values):
                rows[name] = values
    return Comparison([name for name, _ in read], rows)


def gallery(found: str | os.PathLike | list[RunRecord] = "runs", columns: int = 4) -> np.ndarray:
    """Draw an overview of runs: of each its middle frame, folder, prompt and what sets it apart from the others.

    A run whose video is damaged is left out with a note.

    Args:
        found: What `runs` returned, or a folder for it.
        columns: Cards in a row, at least 1.

    Returns:
        A picture, (H, W, 3) uint8.

    Raises:
        UserError: There is no run, or `columns` is no whole number from 1.

    Example:
        >>> show_image(gallery("runs"))  # doctest: +SKIP
    """
    columns = check_whole("columns", columns, works=4)
    named = isinstance(found, (str, os.PathLike))
    records = runs(found) if named else list(found)
    taught = [_training_card(training) for training in trainings(found)] if named else []
    if not records and not taught:
        raise UserError(f"{str(found)!r}: holds no run; generate(..., out='runs/mine') makes one.")
    apart = compare(*records) if len(records) > 1 else {}
    own = [{name: values[place] for name, values in apart.items()} for place in range(len(records))]
    cards = []
    for record, known in zip(records, own):
        try:
            cards.append(_card(record, known))
        except ValueError as error:  # UserError among them: no video, or one without frames
            give_note(f"{record.folder}: left out of the gallery; {error}")
    if not cards and not taught:
        raise UserError(f"{str(records[0].folder)!r}: its video is damaged; delete it, and resume makes it again.")
    cards += taught
    columns = min(columns, len(cards))
    rows = [cards[start : start + columns] for start in range(0, len(cards), columns)]
    heights = [max(card.height for card in row) for row in rows]
    sheet = Image.new("RGB", (columns * (_CARD + 16) + 16, sum(heights) + 16 * (len(rows) + 1)), _PAPER)
    for number, row in enumerate(rows):
        for place, card in enumerate(row):
            sheet.paste(card, (16 + place * (_CARD + 16), 16 * (number + 1) + sum(heights[:number])))
    return np.asarray(sheet)


def _card(record: RunRecord, apart: dict) -> Image.Image:
    """The middle frame over the folder's name and a few lines of words."""
    if (record.folder / "video.mp4").exists():
        video = record.video()
        frame = Image.fromarray(video[len(video) // 2])
        frame = frame.resize((_CARD, round(frame.height * _CARD / frame.width)), Image.Resampling.LANCZOS)
    else:
        frame = Image.new(
            "RGB", (_CARD, round(_CARD * record.settings["height"] / record.settings["width"])), (232,) * 3
        )
        words = f"{record.steps} of {record.settings['num_inference_steps']} steps"
        ImageDraw.Draw(frame).text((8, 6), words, fill=_GREY, font=font(14))
    differing = ", ".join(f"{name} {_short(value)}" for name, value in apart.items() if name != "prompt")
    lines = [(line, _INK) for line in wrap(record.settings["prompt"], font(13), _CARD)[:3]]
    lines += [(line, _GREY) for line in wrap(differing, font(13), _CARD)[:3]]
    return _framed(frame, record.folder.name, lines)


def _training_card(training: Training) -> Image.Image:
    """The middle frame of the latest sample video over how far the training is."""
    frame = Image.new("RGB", (_CARD, _CARD * 9 // 16), (232,) * 3)
    if training.samples:
        with video_reader(training.samples[-1]) as frames:
            video = list(frames)
        frame = Image.fromarray(video[len(video) // 2])
        frame = frame.resize((_CARD, round(frame.height * _CARD / frame.width)), Image.Resampling.LANCZOS)
    kind = f"LoRA of rank {training.settings.rank}" if training.settings.rank else "all weights"
    steps = training.losses[-1]["step"] if training.losses else 0
    words = f"training, {kind}: {steps} of {training.settings.steps} steps on {training.data.name}"
    lines = [(line, _INK) for line in wrap(training.prompt, font(13), _CARD)[:3]]
    lines += [(line, _GREY) for line in wrap(words, font(13), _CARD)[:3]]
    return _framed(frame, training.folder.name, lines)


def _framed(frame: Image.Image, name: str, lines: list) -> Image.Image:
    """A picture over a name and lines of words."""
    card = Image.new("RGB", (_CARD, frame.height + 26 + 17 * len(lines)), _PAPER)
    card.paste(frame)
    draw = ImageDraw.Draw(card)
    draw.text((0, frame.height + 5), shortened(name, font(15), _CARD), fill=_INK, font=font(15))
    for number, (line, colour) in enumerate(lines):
        draw.text((0, frame.height + 26 + 17 * number), line, fill=colour, font=font(13))
    return card


def _record_of(given: RunRecord | Run | str | os.PathLike) -> tuple[str, dict]:
    """The name of a run for a table's head, and its record."""
    if isinstance(given, Run):
        return (given.folder.name if given.folder else f"seed {given.settings.seed}"), given.record
    if not isinstance(given, RunRecord):
        given = RunRecord.read(given)
    return given.folder.name, {"settings": given.settings, "made_with": given.made_with}


def _short(value: object, most: int = 48) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= most else text[: most - 1] + "…"
