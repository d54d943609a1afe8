"""Decoding in a process of its own, beside the network's work: a crash of the decoder is not the end of a film.

The child writes, for each frame, a line of JSON and its pixels. When it dies it is started again: first with one
thread, which some decoders need, then without the packet at which it died.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from .colour import Colour
from .decoding import Decoder, Frame, Info

_FRACTIONS = ("time_base", "rate", "sample_aspect", "origin")
_CRASHES = 100  # after so many the rest is given up


class Skipped(NamedTuple):
    """A frame that was decoded and not sent."""

    pts: int
    duration: int


_GRACE = 30  # seconds that a process without output has to end


class DecoderProcess:
    """`Decoder` in another process, which is started again when it crashes.

    Args:
        path: The file.
        deep: As for `Decoder`.

    Raises:
        UserError: As `Decoder`.

    Attributes:
        info, damage, notes: As of `Decoder`; the latter two are complete when `frames` has ended.
    """

    def __init__(self, path: str | Path, deep: bool = False) -> None:
        self.path, self.deep, self.after = os.path.abspath(path), deep, None
        self.damage: list[str] = []
        self.notes: list[str] = []
        self._threads, self._packet, self._crashes, self._leave_out = 0, 0, 0, set()
        self._process: subprocess.Popen | None = None
        self.info = self._begun()

    def __enter__(self) -> DecoderProcess:
        return self

    def __exit__(self, *_) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._messages.close()
            self._process = None

    def skip(self, after: int | None) -> None:
        """Let frames up to a timestamp come without pixels; before `frames`."""
        if after is not None:
            self.after = after
            self.info = self._begun()

    def frames(self) -> Iterator[Frame | Skipped]:
        """The frames in order; those up to `after` as `Skipped`."""
        last: int | None = None
        while True:
            line = self._line()
            if "end" in line:
                self.damage += line["end"]["damage"]
                self.notes += [note for note in line["end"]["notes"] if note not in self.notes]
                return
            if "crash" in line:
                if not self._restart(last):
                    return
                continue
            height, width = self.info.shape
            pixels = None
            if line["pixels"]:
                pixels = np.empty((height, width, self.info.channels), np.uint16 if self.deep else np.uint8)
                if not self._fill(pixels):
                    continue  # cut short by a crash, which the next line will be
            if last is not None and line["pts"] <= last:
                continue
            last, duration = int(line["pts"]), int(line["duration"])
            yield Skipped(last, duration) if pixels is None else Frame(pixels, last, duration)

    def _begun(self) -> Info:
        while True:
            self._start()
            line = self._line()
            if "mistake" in line:
                raise UserError(line["mistake"])
            if "info" in line:
                self.notes = line["notes"]
                return _info(line["info"])
            if not self._after_crash():
                raise UserError(f"cannot read {self.path!r} as a video: the decoder crashes at its first frames")

    def _restart(self, last: int | None) -> bool:
        """Start again behind the last frame that came; False when the film is given up."""
        if last is not None:
            self.after = last if self.after is None else max(last, self.after)
        while self._after_crash():
            self._start()
            if "info" in self._line():
                return True
        self.damage.append(f"the decoder crashed {_CRASHES} times, and the rest was given up")
        return False

    def _after_crash(self) -> bool:
        """Change what may have caused the crash; False when there were too many."""
        self._crashes += 1
        if self._threads == 0:
            self._threads = 1
        else:
            self._leave_out.add(self._packet)
        return self._crashes <= _CRASHES

    def _start(self) -> None:
        self.__exit__()
        job = {
            "path": self.path, "deep": self.deep, "after": self.after, "threads": self._threads,
            "leave_out": sorted(self._leave_out),
        }  # fmt: skip
        root = str(Path(__file__).parents[2])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
        command = [sys.executable, "-m", "t2v_kit.video.decoder_process", json.dumps(job)]
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115  (closed in __exit__; a pipe that is not read could fill up)
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._messages, env=environment
        )

    def _line(self) -> dict:
        """The next message that is not about a packet; {"crash": status} when there is no more."""
        assert self._process is not None and self._process.stdout is not None
        while True:
            text = self._process.stdout.readline()
            if not text.endswith(b"\n"):
                try:
                    status = self._process.wait(_GRACE)
                except subprocess.TimeoutExpired:  # it has closed its output and hangs: no better than a crash
                    self._process.kill()
                    status = self._process.wait()
                if status == 1:  # an exception, which no new start mends
                    self._messages.seek(0)
                    raise RuntimeError(f"decoding {self.path}: {self._messages.read().decode(errors='replace')}")
                return {"crash": self._process.returncode}
            line = json.loads(text)
            if "packet" not in line:
                return line
            self._packet = line["packet"]

    def _fill(self, pixels: np.ndarray) -> bool:
        assert self._process is not None and self._process.stdout is not None
        rest = memoryview(pixels.data).cast("B")
        while rest:
            count = self._process.stdout.readinto(rest)  # type: ignore[attr-defined]
            if not count:
                return False
            rest = rest[count:]
        return True


def _info(record: dict) -> Info:
    pairs = {name: Fraction(*record[name]) for name in _FRACTIONS}
    colour, shape, light = (
        Colour(**record["colour"]),
        tuple(record["shape"]),
        record["light"] and tuple(record["light"]),
    )
    return Info(**{**record, **pairs, "colour": colour, "shape": shape, "light": light})


def _main(job: dict) -> None:
    """The child: messages and pixels on standard output."""
    with suppress(AttributeError, ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    out = sys.stdout.buffer

    def say(**message) -> None:
        out.write(json.dumps(message).encode() + b"\n")

    def packet(index: int) -> None:
        say(packet=index)
        out.flush()

    try:
        decoder = Decoder(
            job["path"], job["deep"], job["threads"], frozenset(job["leave_out"]), packet if job["threads"] else None
        )
    except UserError as mistake:
        say(mistake=str(mistake))
        out.flush()
        return
    record = dataclasses.asdict(decoder.info)
    for name in _FRACTIONS:
        record[name] = (record[name].numerator, record[name].denominator)
    say(info=record, notes=decoder.notes)
    out.flush()
    with suppress(BrokenPipeError):
        for frame in decoder.frames():
            wanted = job["after"] is None or frame.pts > job["after"]
            say(pts=frame.pts, duration=frame.duration, pixels=wanted)
            if wanted:
                out.write(frame.pixels.data)
            out.flush()
        say(end={"damage": decoder.damage, "notes": decoder.notes})
        out.flush()


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
