"""The runs that were made: find them, look at them, see in what they differ, make them again."""

from __future__ import annotations

import dataclasses
import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..errors import UserError, give_note
from ..settings import Settings
from ..video.files import video_reader
from ..view.pictures import font, shortened, wrap
from .folder import CHECKPOINT, FILES, LOG, read_latents, read_log, read_record
from .generating import Run, generate
from .recipe import reproducing, write_recipe

_CARD = 240  # pixels: width of a card in the picture of a gallery
_PAPER, _INK, _GREY = (255, 255, 255), (32, 32, 32), (112, 112, 112)


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run as its folder tells it; frames and latents are read when they are asked for.

    settings: `generate`'s keywords, model and upscale among them.  made_with: model, hash, device, versions, date.
    steps: how many denoising steps are saved.  seconds, memory: by stage, as the log has them: what all sittings of
    a resumed run took together, and the highest peak in GiB.
    """

    folder: Path
    settings: dict = field(repr=False)
    made_with: dict = field(repr=False)
    steps: int
    seconds: dict[str, float] = field(repr=False)
    memory: dict[str, float] = field(repr=False)

    @classmethod
    def read(cls, folder: str | os.PathLike) -> RunRecord:
        """The run in a folder. Raises UserError when it is none, or when its latents are damaged."""
        folder = Path(folder).expanduser()
        record = read_record(folder)
        saved = [folder / name for name in ("latents.safetensors", CHECKPOINT) if (folder / name).exists()]
        steps = read_latents(saved[0])[1] if saved else 0
        return cls(folder, **record, steps=steps, **_by_stage(read_log(folder)))

    @property
    def finished(self) -> bool:
        """Whether every file is there; `resume(folder)` finishes the others."""
        wanted = set(FILES) - ({"upscaled.mp4"} if self.settings["upscale"] == "none" else set())
        return all((self.folder / name).exists() for name in wanted)

    @property
    def files(self) -> list[Path]:
        return [self.folder / name for name in (*FILES, LOG) if (self.folder / name).exists()]

    def video(self, upscaled: bool = False) -> np.ndarray:
        """The frames (T, H, W, 3) uint8 of the MP4, which are those of the run but for H.264's losses."""
        with video_reader(self.folder / ("upscaled.mp4" if upscaled else "video.mp4")) as frames:
            return np.stack(list(frames))

    def rerun(self, out: str | os.PathLike | None = None, **changes) -> Run:
        """`generate` with the same keywords, some of them changed."""
        return generate(**{**self.settings, **changes}, out=out)

    def code(self) -> str:
        """The cell that makes it again."""
        return reproducing(self.settings)

    def export(self, path: str | os.PathLike) -> Path:
        """A script (.py) or notebook (.ipynb) that makes it again."""
        return write_recipe(path, {"settings": self.settings, "made_with": self.made_with})


def runs(
    folder: str | os.PathLike = "runs", text: str = "", finished: bool | None = None, **settings
) -> list[RunRecord]:
    """The runs in `folder` and the folders in it, oldest first.

    text: only those whose prompt has these words, in any case.  finished: only those that are, or are not.
    settings: only those with these values, as in runs(seed=3, model="pocket").
    A folder that is damaged is told once and left out. Raises UserError for a setting that does not exist.
    """
    known = [f.name for f in dataclasses.fields(Settings)] + ["model", "upscale", "memory"]
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                f"{name}={settings[name]!r}: no setting of a run; did you mean {near[0] if near else 'seed'}?"
            )
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


def _when(record: RunRecord) -> tuple:
    """The date it was begun, to the second, and below that when it was written."""
    return str(record.made_with.get("date")), (record.folder / "settings.json").stat().st_mtime_ns


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
    """{name: [a value for each run]} of all that differs; prints as a table."""

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
    """What differs between runs, setting by setting, and then weights, device and versions, as a table.

    records: what `runs` or `generate` gave, or folders. Dates are no difference.
    """
    if len(records) < 2:
        raise UserError(f"compare needs two runs or more, but this is {len(records)}; runs() lists them.")
    read = [_record_of(each) for each in records]
    rows = {}
    for table in ("settings", "made_with"):
        for name in dict.fromkeys(key for each in read for key in each[1][table]):
            values = [each[1][table].get(name) for each in read]
            if name not in ("date", "networks") and any(value != values[0] for value in values):
                rows[name] = values
    return Comparison([name for name, _ in read], rows)


def gallery(found: str | os.PathLike | list[RunRecord] = "runs", columns: int = 4) -> np.ndarray:
    """A picture (H, W, 3) uint8 of runs: the middle frame of each, its folder, its prompt, and what sets it apart.

    found: what `runs` gave, or a folder for it. A run whose video is damaged is told once and left out.
    Raises UserError when there is no run, and for columns that are no number from 1.
    """
    if not isinstance(columns, int) or isinstance(columns, bool) or columns < 1:
        raise UserError(f"columns={columns!r}: must be a whole number, at least 1; 4 works.")
    records = runs(found) if isinstance(found, (str, os.PathLike)) else list(found)
    if not records:
        raise UserError(f"{str(found)!r}: holds no run; generate(..., out='runs/mine') makes one.")
    apart = compare(*records) if len(records) > 1 else {}
    own = [{name: values[place] for name, values in apart.items()} for place in range(len(records))]
    cards = []
    for record, known in zip(records, own):
        try:
            cards.append(_card(record, known))
        except ValueError as error:  # UserError among them: no video, or one without frames
            give_note(f"{record.folder}: left out of the gallery; {error}")
    if not cards:
        raise UserError(f"{str(records[0].folder)!r}: its video is damaged; resume makes it anew once it is deleted.")
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
        told = f"{record.steps} of {record.settings['num_inference_steps']} steps"
        ImageDraw.Draw(frame).text((8, 6), told, fill=_GREY, font=font(14))
    told = ", ".join(f"{name} {_short(value)}" for name, value in apart.items() if name != "prompt")
    lines = [(line, _INK) for line in wrap(record.settings["prompt"], font(13), _CARD)[:3]]
    lines += [(line, _GREY) for line in wrap(told, font(13), _CARD)[:3]]
    card = Image.new("RGB", (_CARD, frame.height + 26 + 17 * len(lines)), _PAPER)
    card.paste(frame)
    draw = ImageDraw.Draw(card)
    draw.text((0, frame.height + 5), shortened(record.folder.name, font(15), _CARD), fill=_INK, font=font(15))
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
