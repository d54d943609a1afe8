"""The program `t2v` itself, and what its commands share. Nothing heavy is imported here."""

from __future__ import annotations

import gc
import os
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App

from .._version import __version__

if TYPE_CHECKING:
    from ..run.generating import Run

EXAMPLE = "A man with a beard riding a motorcycle on the street."

app = App(
    name="t2v",
    version=f"t2v {__version__}",
    help="Turn a prompt into a video with HunyuanVideo's pipeline and enlarge it with Real-ESRGAN's.",
    help_epilogue=f'Example: t2v "{EXAMPLE}" --seed 7',
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # `main` says how to continue
)


def what_remains(folder: str | Path) -> str:
    """What to do about a run that was stopped."""
    if (Path(folder).expanduser() / "settings.json").exists():
        return f"; t2v resume {shlex.quote(str(folder))} continues it"
    return "; nothing was written"


def import_quietly(module: str) -> None:
    """Import a module of the package before a command uses it, and leave no progress bars but the package's own.

    Hundreds of thousands of objects are made meanwhile, and all of them stay: looking for cycles among them would take
    a sixth of the time, and some whenever it is done later (`gc.freeze`).

    Args:
        module: Its name within the package, such as "run.generating".
    """
    name = f"t2v_kit.{module}"
    first = name not in sys.modules and gc.isenabled()
    if first:
        gc.disable()
    try:
        import_module(name)
        import diffusers
        import transformers

        for library in (diffusers, transformers):
            library.utils.logging.disable_progress_bar()
    finally:
        if first:
            gc.freeze()
            gc.enable()


def report(run: Run, total: float) -> None:
    """Print the seconds of each stage and the files written."""
    stages = "  ".join(f"{stage} {seconds:.1f}" for stage, seconds in run.seconds.items())
    print(f"seconds  {stages}  in all, with imports, {total:.1f}")
    if run.reused:
        print(f"reused   latents from {run.reused}")
    print(f"written  {run.folder}{os.sep}")
    for file in run.files:
        print(f"         {file.name:20} {file.stat().st_size / 1000:8.1f} kB")
