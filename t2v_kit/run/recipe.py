"""The code that makes a run again, and the script or notebook around it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from ..atomic import write_whole
from ..errors import UserError
from ..settings import Settings


def reproducing(settings: dict, out: str = "") -> str:
    """Python that makes the same video again; settings: `generate`'s keywords. Those left at None are left out.

    out: the folder for its files, in Python; none are written without.
    """
    optional = {
        field.name: field.default for field in dataclasses.fields(Settings) if field.name not in ("prompt", "seed")
    }
    given = {name: value for name, value in settings.items() if value is not None and value != optional.get(name)}
    first = {name: given.pop(name) for name in ("prompt", "model", "seed") if name in given}
    lines = "".join(f"    {name}={value!r},\n" for name, value in (first | given).items())
    lines += f"    out={out},\n" if out else ""
    return f"import t2v_kit as t2v\n\nrun = t2v.generate(\n{lines})\nt2v.show_video(run.video, run.settings.fps)\n"


def write_recipe(path: str | Path, record: dict) -> Path:
    """A script (.py) or a notebook (.ipynb) that makes a run again, with what it was made with in words.

    record: as in settings.json. The script writes into a folder beside it, named like it.
    Raises UserError for another ending, and when the file cannot be written.
    """
    path = Path(os.path.abspath(Path(path).expanduser()))
    if path.suffix not in (".py", ".ipynb"):
        raise UserError(f"path={str(path)!r}: must end in .py or .ipynb; {str(path.with_suffix('.py'))!r} would work.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as temporary:
            temporary.write_text(_script(record) if path.suffix == ".py" else _notebook(record), encoding="utf-8")
    except OSError as error:
        raise UserError(f"path={str(path)!r}: cannot be written ({error.strerror}).") from error
    return path


def _script(record: dict) -> str:
    cell = reproducing(record["settings"], 'Path(__file__).with_suffix("")')
    cell = cell.rpartition("t2v.show_video")[0]  # a script shows nothing; its files do
    notes = "".join(f"# {line}\n" for line in _made_with(record))
    return f"{notes}from pathlib import Path\n\n{cell}print(*run.files, sep='\\n')\n"


def _notebook(record: dict) -> str:
    words = "# A run to make again\n\nMade with\n\n" + "\n".join(f"    {line}" for line in _made_with(record))
    cells = [
        {"cell_type": "markdown", "id": "made-with", "metadata": {}, "source": words},
        {
            **{"cell_type": "code", "id": "generate", "metadata": {}},
            **{"execution_count": None, "outputs": [], "source": reproducing(record["settings"]).rstrip()},
        },
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _made_with(record: dict) -> list[str]:
    """What decides the bits beside the settings, a line each."""
    names = ("model", "revision", "weights_hash", "device", "gpu", "dtype", "step_cache", "loras")
    names += ("t2v_kit", "python", "torch", "diffusers", "transformers")
    made = record["made_with"]
    return [f"{name} {made[name]}" for name in names if made.get(name)]
