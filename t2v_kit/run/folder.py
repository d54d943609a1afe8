"""The folder of a run: files that are whole or absent, a checkpoint to continue from, a log, and a lock."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..atomic import PREFIX, write_whole
from ..errors import UserError, give_note
from .record import latents_key
from .target import CHECKPOINT, FILES, LOCK, LOG, check_own, check_target, read_record, reason_of

if TYPE_CHECKING:
    from ..stages.denoising import Step


class RunFolder:
    """Where one run writes, for as long as it holds the folder's lock; with `path` None, nothing is written at all."""

    def __init__(self, path: str | os.PathLike | None):
        """Raises UserError when a file could not be written there; leaves nothing behind."""
        self.path = None if path is None else check_target(path)
        self.key = ""  # of the latents; known once the run is started
        self._early: list[str] = []  # lines of the log from before the folder existed
        self._lock: FileLock | None = None

    @property
    def started(self) -> bool:
        return bool(self.key)

    @contextlib.contextmanager
    def held(self) -> Iterator[RunFolder]:
        """Hold the folder's lock inside: at once if the folder exists, else from `start` on.

        Raises UserError when another run holds it.
        """
        if self.path is not None and self.path.is_dir():
            self._hold()
        try:
            yield self
        finally:
            if self._lock is not None:
                Path(self._lock.lock_file).unlink(missing_ok=True)  # while it is held: nobody can hold the old file
                self._lock.release()
                self._lock = None

    def _hold(self) -> None:
        assert self.path is not None
        file, holder = self.path / LOCK, ""
        with contextlib.suppress(OSError):
            holder = file.read_text()
        lock = FileLock(file, timeout=0.2)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"out={str(self.path)!r}: another run (process {holder or 'unknown'}) is writing there; wait for it, "
                f"or out={str(self.path) + '-2'!r} would work."
            ) from None
        except NotImplementedError:
            give_note(f"{self.path}: this file system has no locks; don't start two runs in one folder.")
            return
        self._lock = lock
        with contextlib.suppress(OSError):
            file.write_text(str(os.getpid()))

    def start(self, record: dict, step: int | None = None, source: Path | None = None) -> None:
        """Write the record, and delete what an earlier, different run left.

        step, source: where denoising continues, and whose latents these are; None when it begins. The old files go
        before settings.json changes: whenever this is interrupted, what lies in the folder belongs to the
        settings.json in it. Latents or a checkpoint that are continued stay.
        """
        self.key = latents_key(record)
        if self.path is None:
            return
        keep = {"prompt.safetensors", "latents.safetensors", CHECKPOINT, LOG} if source == self.path else set()
        if self.same_as(record):
            keep |= set(FILES)
        with self._writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                self._hold()
                check_own(self.path)
            for name in (*FILES[1:], CHECKPOINT, LOG):
                if name not in keep:
                    (self.path / name).unlink(missing_ok=True)
            for name in (*FILES, CHECKPOINT):  # of a run that was killed: whoever holds the lock is alone
                for leftover in self.path.glob(f"{PREFIX}{Path(name).stem}.*"):
                    leftover.unlink(missing_ok=True)
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        self.save("settings.json", lambda path: path.write_text(text, encoding="utf-8"))
        self.log(event="started", pid=os.getpid(), step=step, latents_from=source)

    def save(self, name: str, write: Callable[[Path], object]) -> None:
        """Let `write` make the file, which is whole or absent.

        Raises UserError when the file system refuses it; what was whole before is then still there.
        """
        if self.path is not None:
            with self.saving(name) as temporary:
                write(temporary)

    @contextlib.contextmanager
    def saving(self, name: str) -> Iterator[Path]:
        """`save` as a block that is given the temporary path."""
        assert self.path is not None
        with self._writing(self.path / name), write_whole(self.path / name) as temporary:
            yield temporary

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
        """Turn what a file system raises into one line that says how to continue; other errors pass through."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            code = _system_error(error)
            if code is None:
                raise
            remedy = "make room, and" if code in (errno.ENOSPC, errno.EDQUOT) else "once it can,"
            raise UserError(
                f"{what}: cannot be written ({os.strerror(code)}); what was finished is kept: {remedy} "
                f"resume({str(self.path)!r}) continues."
            ) from error

    @contextlib.contextmanager
    def checkpoints(self, every: int) -> Iterator[Callable[[Step], None]]:
        """A function that takes each Step: it saves every `every`-th, and on any way out the last one it took."""
        taken: Step | None = None
        saved: Step | None = None

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
            if (
                taken is not None and taken is not saved
            ):  # stopped, Ctrl-C, out of memory: the last whole step is not lost
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
        """Whether what lies here was made with the same settings, weights and versions, all of them known."""
        if self.path is None or record["made_with"].get("unknown_code"):
            return False
        with contextlib.suppress(UserError):
            earlier = read_record(self.path)
            undated = [{**each["made_with"], "date": None} for each in (earlier, record)]
            return earlier["settings"] == record["settings"] and undated[0] == undated[1]
        return False


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
            f"{path}: is damaged ({reason_of(error)}); delete this one file, and resume continues from what is left."
        ) from error


def read_log(folder: str | os.PathLike) -> list[dict]:
    """The lines of log.jsonl; one that a kill cut short is left out."""
    path, lines = Path(folder).expanduser() / LOG, []
    for text in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict)]


def _system_error(error: Exception) -> int | None:
    """The number of the file system's error behind an exception; None when it is of another kind.

    safetensors and ffmpeg have their own exceptions, and the system's words in them.
    """
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    if isinstance(error, SafetensorError) and (number := re.search(r"os error (\d+)", str(error))):
        return int(number[1])
    for code in (errno.ENOSPC, errno.EDQUOT):
        if isinstance(error, RuntimeError) and os.strerror(code) in str(error):
            return code
    return None
