"""A film that is made in parts: each part is whole on the disk before the next one begins, so a kill costs one part.

Parts have a fixed number of frames and an encoder each, so that an interrupted film is made of the same parts as one
that was made in one go.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from filelock import FileLock, Timeout

from ..atomic import PREFIX, write_whole
from ..errors import UserError, give_note
from .encoding import Encoder, Encoding, open_target

_PIXELS = 2.5e8  # pixels in a part, about 30 frames of 3840x2160
_FEWEST, _MOST = 8, 240  # frames in a part


class Segments:
    """The working folder of a film, beside its target.

    Args:
        target: The film to make.
        job: All that decides the parts, as JSON: parts of another job are thrown away.

    Raises:
        UserError: Another process is making the same film.
    """

    def __init__(self, target: Path, job: dict) -> None:
        self.folder = target.parent / f"{PREFIX}{target.name}"
        self.folder.mkdir(exist_ok=True)
        self._lock = FileLock(self.folder / "lock", timeout=0.2)
        try:
            self._lock.acquire()
        except Timeout:
            raise UserError(f"{str(target)!r}: another process is writing it; wait for it, or write another.") from None
        self._begin(job)

    def _begin(self, job: dict) -> None:
        record = self.folder / "job.json"
        earlier = None
        with contextlib.suppress(OSError, ValueError):
            earlier = json.loads(record.read_text("utf-8"))
        wanted = json.loads(json.dumps(job))
        if earlier is not None and earlier != wanted:
            changed = [name for name in wanted if earlier.get(name) != wanted[name]]
            give_note(f"the parts in {self.folder} were made with another {', '.join(changed)}: begun again")
        for path in self.folder.iterdir():
            stale = earlier != wanted and path.name != "lock"
            if stale or path.name.startswith(PREFIX):
                path.unlink()
        with write_whole(record) as temporary:
            temporary.write_text(json.dumps(wanted), "utf-8")
        self.done = []
        while self._file(len(self.done)).exists():
            times = self._file(len(self.done)).with_suffix(".json")
            self.done.append(json.loads(times.read_text("utf-8")))

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:06}.mkv"

    @property
    def frames(self) -> int:
        """Frames in the finished parts."""
        return sum(len(part["times"]) for part in self.done)

    @property
    def early(self) -> int:
        """How many places before its turn a frame is decoded, at most, in any part."""
        return max(part["early"] for part in self.done)

    @property
    def after(self) -> int | None:
        """The source's timestamp of the last frame that is done."""
        return self.done[-1]["source"] if self.done else None

    def part(self, index: int, encoding: Encoding, shape: tuple[int, int], rate: Fraction, **how) -> Part:
        """Begin a part.

        Args:
            index: Its place; parts may overlap in time, but are finished in order.
            encoding, shape, rate, how: As for `Encoder`.
        """
        return Part(self._file(index), encoding, shape, rate, **how)

    def finish(self, part: Part) -> None:
        """Make a part whole on the disk; it counts from now on."""
        part.finish()
        self.done.append(part.record)

    def files(self) -> Iterator[tuple[Path, list[list[int]]]]:
        """The finished parts: file, and (pts, duration) of each frame."""
        for index, part in enumerate(self.done):
            yield self._file(index), part["times"]

    def close(self, keep: bool) -> None:
        """Let go of the folder, and delete it unless it holds parts to keep."""
        self._lock.release()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)


class Part:
    """One part that is being written: frames by their order, their times beside them."""

    def __init__(self, file: Path, encoding: Encoding, shape: tuple[int, int], rate: Fraction, **how) -> None:
        self._file, self._open = file, contextlib.ExitStack()
        self._output = self._open.enter_context(open_target(self._open.enter_context(write_whole(file)), "matroska"))
        self.encoder = Encoder(self._output, encoding, shape, rate, **how)
        self.record: dict = {"times": [], "source": None, "early": 0}
        self._packets = 0

    def finish(self) -> None:
        """Write what the encoder still holds; only then do the files get their names."""
        try:
            self.store(self.encoder.finish())
            with write_whole(self._file.with_suffix(".json")) as times:
                times.write_text(json.dumps(self.record), "utf-8")
        except BaseException as error:
            self.abandon(error)
            raise
        self._open.close()

    def abandon(self, error: BaseException) -> None:
        """Delete what was written."""
        self._open.__exit__(type(error), error, error.__traceback__)

    def add(self, frame, times: list[tuple[int, int]], source: int, planes: bool = False) -> None:
        """Store a frame.

        Args:
            frame: As `Encoder.encode` takes it, or `encode_planes` where `planes` is set.
            times: (pts, duration) of each showing.
            source: The source's timestamp.
        """
        encode = self.encoder.encode_planes if planes else self.encoder.encode
        for time in times:
            self.store(encode(frame))
            self.record["times"].append(list(time))
        self.record["source"] = source

    def store(self, packets: list[av.Packet]) -> None:
        """Write packets; "early" becomes how many places before its turn a frame is decoded, at most."""
        for packet in packets:
            assert packet.pts is not None  # the number of the frame
            self.record["early"] = max(self.record["early"], self._packets - packet.pts)
            self._packets += 1
            self._output.mux(packet)


def part_length(shape: tuple[int, int]) -> int:
    """Frames in a part of (height, width)."""
    return int(min(max(_PIXELS // (shape[0] * shape[1]), _FEWEST), _MOST))
