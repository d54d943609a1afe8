"""Figures in documents and notebooks, read from the files that hold the measurements.

    python -m benchmarks.figures            # list every mark of the documents and what it stands for
    python -m benchmarks.figures --write    # fill the marks
    python -m benchmarks.figures --check    # exit status 1 when a document disagrees with the measurements

No measured number is typed into a document. A document holds marks, and this script fills them:

- in a sentence or a cell of a table, `<!-- figure: POINTER as FORMAT -->…<!-- end -->`. POINTER is a file of
  benchmarks/results, or `evaluation` for the model's evaluation.json, and the keys that lead to the number:
  `evaluation/adherence/adherence/all`; the key of a row in a list is its stage or name. Or it is one of `DERIVED`
  below. FORMAT is Python's (`.1f`, `+.1f`, `.0%`). No line begins with such a mark: Markdown would take it for HTML;
- a whole table, on lines of their own, `<!-- benchmarks: NAME -->`, the table, `<!-- end -->`: `tables` of
  benchmarks/table.py has the names.

Notebooks call `figure(POINTER, FORMAT)`.
"""

from __future__ import annotations

import t2v_kit  # noqa: F401  (first: it makes torchvision importable)

# isort: split
import argparse
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

from safetensors import safe_open

from benchmarks.common import RESULTS
from benchmarks.rows import SIZES
from benchmarks.table import POCKET, STAGES, tables
from t2v_kit.hunyuan.longer import slowed
from t2v_kit.memory.estimate import estimate
from t2v_kit.memory.plan import Plan, Size

ROOT = Path(__file__).parents[1]
FOLDERS = (RESULTS, POCKET)  # where NAME.json is looked for
NETWORKS = ("text_encoder", "text_encoder_2", "vae", "transformer", "upscaler", "lora")  # pocket's folders of weights
# Tables that a document must have
REQUIRED = {"README.md": {"notebooks", "cards"}, "docs/memory.md": {"memory"}, "docs/speed.md": {"speed", "decoding"}}
REQUIRED |= {
    "docs/command-line.md": {"settings"},
    "docs/upscaling.md": {"upscaling_cpu", "upscaling_h200", "real_networks_cpu", "steadying"},
}
FIGURE = re.compile(r"(<!-- figure: ([^>]+?) as (\S+) -->)(.*?)(<!-- end -->)", re.DOTALL)
TABLE = re.compile(r"(<!-- benchmarks: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def documents(root: Path = ROOT) -> list[Path]:
    """Every document whose marks are filled."""
    named = [root / "README.md", root / "t2v_kit/pocket/README.md", root / "training/README.md"]
    return [path for path in (*named, *sorted((root / "docs").rglob("*.md"))) if path.exists()]


# Sections of evaluation.json that `training.evaluate` measures apart from the others.
APART = ("by_hand", "guidance", "text", "typing", "underspecified")


def figure(pointer: str, spec: str, folders: tuple[Path, ...] = FOLDERS) -> str:
    """One measured number as text.

    Args:
        pointer: A file's name and the keys that lead to the number, divided by slashes; or a name of `DERIVED`.
        spec: Python's format of the number. A percent sign is set apart by a space.
        folders: Where the file is looked for.

    Returns:
        The formatted number, "not measured yet" where the file is missing.

    Raises:
        KeyError: The file has no such number; the message names the step and what is there instead.

    Example:
        >>> figure("evaluation/adherence/adherence/all", ".0%")  # doctest: +SKIP
        '97 %'
    """
    if pointer in DERIVED:
        value = DERIVED[pointer](folders)
    else:
        value = None if _unmeasured(pointer, folders) else number(pointer, folders)
    return "not measured yet" if value is None else format(value, spec).replace("%", " %")


def _unmeasured(pointer: str, folders: tuple[Path, ...]) -> bool:
    """Whether the figure is in a section of evaluation.json that is measured apart and is not there yet."""
    file, section, *_ = pointer.split("/")
    paths = [folder / "evaluation.json" for folder in folders if (folder / "evaluation.json").exists()]
    return file == "evaluation" and section in APART and section not in json.loads(paths[0].read_text("utf-8"))


def number(pointer: str, folders: tuple[Path, ...] = FOLDERS) -> float | None:
    """The number that a pointer leads to; None where its file is missing."""
    name, *steps = pointer.split("/")
    value = read(name, folders)
    if value is None:
        return None
    for step in steps:
        if isinstance(value, list):  # of rows that each have a name
            value = {row.get("stage", row.get("name")): row for row in value if isinstance(row, dict)}
        if not isinstance(value, dict) or step not in value:
            there = list(value) if isinstance(value, dict) else value
            raise KeyError(f"figure {pointer}: there is no {step!r} in {there}")
        value = value[step]
    if not isinstance(value, (int, float)):
        raise KeyError(f"figure {pointer}: leads to no number but to {str(value)[:60]!r}")
    return value


def read(name: str, folders: tuple[Path, ...] = FOLDERS) -> dict | None:
    """NAME.json of the first folder that has it."""
    found = next((folder / f"{name}.json" for folder in folders if (folder / f"{name}.json").exists()), None)
    return json.loads(found.read_text("utf-8")) if found else None


def streaming_cost(folders: tuple[Path, ...]) -> float | None:
    """The largest share by which a streamed plan's step takes longer than an uncapped one's, 0 to 1."""
    report = read("memory", folders)
    rows = [row for row in (report or {"rows": {}})["rows"].values() if "step_seconds" in row]
    free = {row["size"]: row["step_seconds"] for row in rows if row["cap"] is None}
    own = [row for row in rows if row["kind"] == "ours" and row["cap"] and row["size"] in free]
    return max((row["step_seconds"] / free[row["size"]] - 1 for row in own), default=None)


def predictions(folders: tuple[Path, ...]) -> list[float]:
    """How far the plans' predicted GPU peaks lie above the measured ones, as shares, on rows kept out of the fit."""
    rows = [row for row in (read("memory", folders) or {"rows": {}})["rows"].values() if "plan" in row]
    above = []
    for row in rows:
        if row["set_aside"] and row["finished"]:
            measured = max(stage["gpu_gib"] for name, stage in row["stages"].items() if name in STAGES)
            above.append(estimate(Plan(**row["plan"]), Size(*SIZES[row["size"]])).vram_gb / measured - 1)
    return above


def bus_seconds(folders: tuple[Path, ...]) -> float | None:
    """Seconds in which a step copied the transformer to the GPU: the upper lane of the timeline's profile."""
    report = read("timeline", folders)
    return sum(end - start for start, end in report["lanes_ms"]["copy"]) / 1000 if report else None


def stored_gb(*stages: str) -> float:
    """GB (1e9 bytes) of the 13B's weights for these stages, in 16 bits, as its configurations have them."""
    return estimate(Plan(), Size(16, 16, 1), "hunyuan", stages=stages).disk_gb * 2**30 / 1e9


def millions(*parts: str) -> float:
    """Millions of numbers in all weight files of these folders of pocket."""
    total = 0
    for file in (file for part in parts for file in (POCKET / part).glob("*.safetensors")):
        with safe_open(file, "np") as weights:
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.offset_keys())
    return total / 1e6


def bytes_of(pattern: str) -> int:
    """Bytes of pocket's files that match a pattern."""
    return sum(path.stat().st_size for path in POCKET.glob(pattern) if path.is_file())


def period(folders: tuple[Path, ...]) -> int:
    """Latents after which the time frequency of pocket's that RIFLEx changes begins again, rounded down."""
    config = SimpleNamespace(**json.loads((POCKET / "transformer/config.json").read_text("utf-8")))
    trained = (int(read("longer", folders)["trained_frames"]) - 1) // 4 + 1
    return int(2 * math.pi / slowed(config, trained, 4 * trained).before)


#: Numbers that no file holds as they are: name to function
DERIVED = {
    "hunyuan download": lambda _: stored_gb("encode", "denoise", "decode"),
    "hunyuan billions": lambda _: stored_gb("encode", "denoise", "decode") / 2,
    "hunyuan transformer billions": lambda _: stored_gb("denoise") / 2,
    **{f"{part} millions": lambda _, part=part: millions(part) for part in NETWORKS},
    "pocket millions": lambda _: millions("text_encoder", "text_encoder_2", "vae", "transformer"),
    "pocket MiB": lambda _: (bytes_of("**/*") - bytes_of("lora/*")) / 2**20,
    "lora MiB": lambda _: bytes_of("lora/*") / 2**20,
    "period latents": period,
    "period frames": lambda folders: 4 * (period(folders) - 1) + 1,
    "streaming cost": streaming_cost,
    "bus seconds": bus_seconds,
    "prediction least above": lambda folders: min(predictions(folders), default=None),
    "prediction most above": lambda folders: max(predictions(folders), default=None),
}


def filled(text: str, folders: tuple[Path, ...] = FOLDERS) -> str:
    """A document's text with every mark as the measurements have it."""
    made = tables(folders)
    text = TABLE.sub(lambda mark: mark[1] + made.get(mark[2], "Not measured yet.") + "\n" + mark[4], text)
    return FIGURE.sub(lambda mark: mark[1] + figure(mark[2], mark[3], folders) + mark[5], text)


def stale(text: str, required: Iterable[str] = (), folders: tuple[Path, ...] = FOLDERS) -> list[str]:
    """What a document has that the measurements have not; empty when nothing.

    Args:
        text: The document.
        required: Names of tables that it must have.
        folders: Where results are looked for.
    """
    marked = {mark[2] for mark in TABLE.finditer(text)}
    trouble = [f"no place for the table {name}: <!-- benchmarks: {name} -->" for name in sorted({*required} - marked)]
    made = tables(folders)
    for mark in TABLE.finditer(text):
        if mark[3].rstrip("\n") != made.get(mark[2], "Not measured yet."):
            trouble.append(f"other numbers in the table {mark[2]}")
    for mark in FIGURE.finditer(text):
        if text[: mark.start()].endswith("\n"):
            trouble.append(f"a line begins with the mark of {mark[2]}")
        try:
            if mark[4] != (now := figure(mark[2], mark[3], folders)):
                trouble.append(f"{mark[2]} is {now}, not {mark[4]}")
        except KeyError as error:
            trouble.append(error.args[0])
    return trouble


def main() -> int:
    parser = argparse.ArgumentParser(description="Fill the documents with measured figures.")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    trouble = []
    for path in documents():
        text, name = path.read_text("utf-8"), path.relative_to(ROOT).as_posix()
        if args.write:
            path.write_text(text := filled(text), "utf-8")
        if args.write or args.check:
            trouble += [f"{name}: {line}" for line in stale(text, REQUIRED.get(name, ()))]
        else:
            print(*(f"{name}: {mark[2]} = {figure(mark[2], mark[3])}" for mark in FIGURE.finditer(text)), sep="\n")
            print(*(f"{name}: table {mark[2]}" for mark in TABLE.finditer(text)), sep="\n")
    if args.write or args.check:
        print(*trouble or ["every figure is the measured one"], sep="\n")
    return int(bool(trouble))


if __name__ == "__main__":
    raise SystemExit(main())
