"""The folder of a run: files that are whole or absent, a checkpoint to go on from, and a log."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import UserError
from .record import latents_key

if TYPE_CHECKING:
    from ..stages.denoising import Step


#: What a finished run leaves in its folder, in the order in which it is written.
FILES = ("settings.json", "prompt.safetensors", "latents.safetensors", "video.mp4", "upscaled.mp4", "contact_sheet.png")
CHECKPOINT = "checkpoint.safetensors"  # there while denoising, and after it was stopped
LOG = "log.jsonl"

#: Settings that every run has written down, in all versions.
ALWAYS_SET = ("prompt", "height", "width", "num_frames", "num_inference_steps", "fps", "upscale")


class RunFolder:
    """Where a run is written; with `path` None, nothing is written at all."""

    def __init__(self, path: str | os.PathLike | None):
        """Raises UserError when a file could not be written there; leaves nothing behind."""
        self.path = None if path is None else _checked(path)
        self.key = ""  # of the latents; known once the run is started
        self._early: list[str] = []  # lines of the log from before there was a folder

    @property
    def started(self) -> bool:
        return bool(self.key)

    def check_own(self) -> None:
        """Raise UserError where files lie that `start` would take away and that are not of a run of ours.

        Ours has settings.json before any other file, so wherever it was killed, that one is there and whole.
        """
        there = [name for name in (*FILES, CHECKPOINT, LOG) if self.path and (self.path / name).exists()]
        if not there:
            return
        try:
            read_record(self.path)
        except UserError as mistake:
            raise UserError(
                f"out={str(self.path)!r}: {there[0]} in it would be replaced, and is not of a run, as settings.json is "
                f"{'damaged' if 'settings.json' in there else 'missing'}; {str(self.path / 'run')!r} would work."
            ) from mistake

    def start(self, record: dict, step: int | None = None, source: Path | None = None) -> None:
        """Write down what is being made, and take away what an earlier, different run left.

        step, source: where it goes on, and whose latents these are; None when it begins. The old files go before
        settings.json changes: whenever this is interrupted, what lies in the folder belongs to the settings.json
        in it. Latents or a checkpoint that it goes on from stay.
        """
        self.key = latents_key(record)
        if self.path is None:
            return
        ours = source is not None and source.absolute() == self.path.absolute()
        keep = {"prompt.safetensors", "latents.safetensors", CHECKPOINT, LOG} if ours else set()
        if self.same_as(record):
            keep |= set(FILES)
        with self._writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for name in (*FILES[1:], CHECKPOINT, LOG):
                if name not in keep:
                    (self.path / name).unlink(missing_ok=True)
            for leftover in self.path.glob(".part.*"):  # of a process that was killed
                leftover.unlink()
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        self.save("settings.json", lambda path: path.write_text(text, encoding="utf-8"))
        self.log(event="started", pid=os.getpid(), step=step, latents_from=source)

    def save(self, name: str, write: Callable[[Path], object]) -> None:
        """Let `write` make the file under a temporary name: renamed when it is whole, removed when that fails.

        Raises UserError when the disk is full or fails; what was whole before is then still there.
        """
        if self.path is None:
            return
        temporary = self.path / f".part.{name}"
        try:
            with self._writing(self.path / name):
                write(temporary)
                with open(temporary, "rb+") as file:
                    os.fsync(file.fileno())  # or a power failure could leave the new name with nothing in it
                os.replace(temporary, self.path / name)
        finally:
            for leftover in self.path.glob(f"{temporary.name}*"):  # a writer may have a temporary name of its own
                with contextlib.suppress(OSError):
                    leftover.unlink()

    def log(self, **line) -> None:
        """Add one line to log.jsonl, in one write; lines from before the folder is there wait for it."""
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        known = {name: value for name, value in line.items() if value is not None}
        self._early.append(json.dumps({"time": now, **known}, ensure_ascii=False, default=str) + "\n")
        if self.path is None or not self.started:
            return
        with self._writing(self.path / LOG), open(self.path / LOG, "ab", buffering=0) as file:
            file.write("".join(self._early).encode())
        self._early.clear()

    @contextlib.contextmanager
    def _writing(self, what: Path) -> Iterator[None]:
        """Turn what a full or failing disk raises into one line that says how to go on."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError: ffmpeg's, through mediapy
            raise UserError(
                f"{what}: cannot be written ({_reason(error)}); what was finished is kept: make room, and "
                f"resume({str(self.path)!r}) goes on."
            ) from error

    @contextlib.contextmanager
    def checkpoints(self, every: int) -> Iterator[Callable[[Step], None]]:
        """A function that takes each Step: it saves every `every`-th, and on any way out the last one it took."""
        taken, saved = None, None

        def take(step: Step) -> None:
            nonlocal taken, saved
            taken = step
            self.log(stage="denoise", step=step.index + 1, seconds=round(step.seconds, 4))
            if (step.index + 1) % every == 0:
                saved = step
                self.save_latents(CHECKPOINT, step.latents, step.index + 1)

        try:
            yield take
        except BaseException:
            if taken is not saved:  # stopped, Ctrl-C, out of memory: the last whole step is not lost
                with contextlib.suppress(UserError):  # a full disk, which is what stopped us
                    self.save_latents(CHECKPOINT, taken.latents, taken.index + 1)
            raise

    def save_latents(self, name: str, latents: torch.Tensor, step: int) -> None:
        """Latents in their own dtype, with the key of their content and the number of finished steps."""
        notes = {"key": self.key, "step": str(step)}
        self.save(name, lambda path: save_file({"latents": latents.contiguous()}, path, notes))

    def finish_latents(self, latents: torch.Tensor, steps: int) -> None:
        """All steps are done: the checkpoint has served."""
        self.save_latents("latents.safetensors", latents, steps)
        if self.path is not None:
            (self.path / CHECKPOINT).unlink(missing_ok=True)

    def same_as(self, record: dict) -> bool:
        """Whether what lies here was made with the same settings and versions."""
        with contextlib.suppress(UserError):
            there = read_record(self.path)
            undated = [{**each["made_with"], "date": None} for each in (there, record)]
            return there["settings"] == record["settings"] and undated[0] == undated[1]
        return False


def read_record(folder: str | os.PathLike) -> dict:
    """The folder's settings.json: {"settings": {...}, "made_with": {...}}. Raises UserError when it is none."""
    path = Path(folder).expanduser() / "settings.json"
    try:
        record = json.loads(path.read_text("utf-8"))
        tables = {name: dict(record[name]) for name in ("settings", "made_with")}
        missing = [name for name in ALWAYS_SET if name not in tables["settings"]]
        if not missing:
            return tables
        reason = f"settings lack {', '.join(missing)}"
    except FileNotFoundError:
        raise UserError(f"{str(folder)!r}: is no run, it has no settings.json; runs() lists those there are.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = _reason(error)
    raise UserError(f"{path}: is not what generate writes ({reason}); copy the folder again or generate anew.")


def read_latents(path: Path) -> tuple[torch.Tensor, int]:
    """Latents (1, C, T, H, W) on the CPU and how many steps they are through. Raises UserError when damaged."""
    # cloned for the same bits as in one go: see PromptEncoding.load
    with _opened(path) as file:
        return file.get_tensor("latents").clone(), int(file.metadata()["step"])


def read_notes(path: Path) -> dict:
    """The key and the step beside latents, without reading these. Raises UserError when damaged."""
    with _opened(path) as file:
        return file.metadata() or {}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: is damaged ({_reason(error)}); delete this one file, and resume goes on from what is left."
        ) from error


def read_log(folder: str | os.PathLike) -> list[dict]:
    """The lines of log.jsonl; one that a kill cut short is left out."""
    path, lines = Path(folder).expanduser() / LOG, []
    for text in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict)]


def _checked(out: str | os.PathLike) -> Path:
    """`out` as a Path, once a file could be written there; leaves nothing behind. Raises UserError."""
    if not isinstance(out, (str, os.PathLike)) or not str(out).strip():
        raise UserError(f"out={out!r}: must name a folder; 'runs/mine' would work.")
    folder = Path(out).expanduser()
    try:
        nearest = Path(os.path.abspath(folder))
        while not _exists(nearest):
            nearest = nearest.parent
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UserError(f"out={str(out)!r}: cannot be written ({_reason(error)}); 'runs/mine' would work.") from error
    return folder


def _exists(path: Path) -> bool:
    """Unlike `Path.exists`, raises OSError for a name that can never exist, as one that is too long."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]
