"""Whole files: every frame enlarged once, with its own timestamp, and everything else of the file kept.

Decoding runs in a process beside the network's work, encoding beside it in turn; parts of the film are whole on the
disk one after the other, so that an interrupted film continues where it was.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from importlib.metadata import version
from math import ceil
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ...atomic import write_whole
from ...errors import UserError, give_note
from ...memory.machine import pick_device
from ...video.decoder_process import DecoderProcess, Skipped
from ...video.decoding import Frame, Info
from ...video.encoding import CODECS, Encoding, encoding_for, whole_rate
from ...video.files import opaque, read_metadata
from ...video.joining import join
from ...video.segments import Segments, part_length
from .defaults import upscaler_of_file
from .enlarging import enlarge_stream, prepared, target_size
from .options import check_audio, check_fps, check_options, check_place
from .planes import as_planes

_FASTEST = 240  # frames a second that encoders are told; the film's own times are kept whatever they are
_AHEAD = 4  # frames that are computed and wait for the encoder


class DamagedVideo(UserError):
    """The source is damaged or cut short; what came of it is in a file whose name says so.

    Attributes:
        path: That file.
        frames: How many enlarged frames are in it.
    """

    def __init__(self, message: str, path: Path, frames: int) -> None:
        super().__init__(message)
        self.path, self.frames = path, frames


def upscale_file(
    source: str | Path,
    target: str | Path,
    model: str | Path | None = None,
    scale: float = 4,
    *,
    codec: str | None = None,
    crf: int | None = None,
    bit_depth: int | None = None,
    fps: float | str = "keep",
    audio: str = "copy",
    dtype: str = "auto",
    tile: int | str | None = "auto",
    batch: int | str | None = "auto",
    device: str | torch.device | None = None,
    progress: bool = True,
    denoise_strength: float | None = None,
) -> Path:
    """Enlarge a video file of any length, with one batch of frames in memory at a time.

    Every frame is enlarged once and keeps its own timestamp. Frames come as players show them: upright, deinterlaced,
    the shape of their pixels and their colour tags kept. Sound, subtitles, chapters, covers and tags are copied where
    the container takes them, or transcoded; a note says what is changed or left out. If interrupted, the same call
    resumes, and makes the same file. The record that `read_metadata` finds is copied, with the upscaler and the scale
    added under "enlarged".

    Args:
        source: The video file.
        target: The file to write, which may be the source. Its ending is the container: .mp4, .m4v, .mov, .mkv, .webm
            or .gif.
        model: As in `upscale`; None is pocket's own upscaler for what pocket made, and for any other video a real
            network that works offline, else Lanczos interpolation with a note.
        scale: As in `upscale`.
        codec: "h264", "hevc", "av1", "vp9", "ffv1" (lossless) or "prores"; None takes the container's usual one.
        crf: The quality, 0 (best) to 51 (63 for AV1 and VP9); None is 16 for H.264 and about as good for others.
        bit_depth: 8, or 10, which also keeps HDR that is otherwise mapped to SDR; None is 8 where the codec has it.
        fps: "keep", or frames a second: frames are then shown again or left out to come at a constant rate.
        audio: "copy" or "none".
        dtype, tile, batch, device, progress, denoise_strength: As in `upscale`.

    Returns:
        The target's path.

    Raises:
        DamagedVideo: The source is damaged; the part that could be read is in `<name>.incomplete.<ending>`.
        UserError: As `upscale`; the source is no video, or the target cannot be written or hold what is asked for.

    Example:
        >>> upscale_file("in.mkv", "out.mp4", scale=2, codec="hevc", crf=20)  # doctest: +SKIP
        PosixPath('out.mp4')
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    tile, batch = (None if option == "auto" else option for option in (tile, batch))
    check_options(scale, tile, batch)
    encoding = encoding_for(target, codec, crf, bit_depth)
    rate = check_fps(fps)
    check_audio(audio)
    check_place(target)
    deep = encoding.bit_depth == 10
    film = _Film(source, deep)
    model = upscaler_of_file(source) if model is None else model
    with film.process:
        size, aspect = _shown_as(film.info, scale, encoding)
        _check_size(encoding, size, scale)
        place = pick_device(device)
        # 10 bits are lost in bfloat16, which has 8.
        precision = "float32" if deep and dtype == "auto" and place.type == "cpu" else dtype
        with tqdm(total=film.info.total or None, desc="upscale", unit="frame", disable=not progress) as bar:
            net = prepared(model, denoise_strength, progress, scale, precision, place)
            target.parent.mkdir(parents=True, exist_ok=True)
            job = _job(source, encoding, net, size, scale=scale, tile=tile, batch=batch, fps=str(fps))
            segments = Segments(target, job)
            try:
                film.seek(segments.after)
                film.say_notes(encoding)
                bar.update(segments.frames)
                _make_parts(film, segments, net, encoding, size, aspect, rate, bar, tile, batch)
                film.say_notes(encoding)
                done = segments.frames
                damage = film.process.damage
                path = target.with_name(f"{target.stem}.incomplete{target.suffix}") if damage else target
                record = _record(source, model, scale)
                base = film.info.time_base if rate is None else 1 / rate
                with write_whole(path) as temporary:
                    join(temporary, segments, encoding, source, base, film.info.origin, record, audio, aspect)
            except BaseException:
                segments.close(keep=bool(segments.done))
                raise
            segments.close(keep=False)
    if damage:
        of = f" of {film.info.total}" if film.info.total else ""
        raise DamagedVideo(
            f"{str(source)!r} is damaged ({'; '.join(damage)}): {done}{of} frames came and are in {str(path)!r}.",
            path, done,
        )  # fmt: skip
    return target


class _Film:
    """The source: its frames with their times, and its notes, each given once."""

    def __init__(self, source: Path, deep: bool) -> None:
        self.source, self.deep = source, deep
        self.process = DecoderProcess(source, deep)
        self.info = self.process.info
        self._given: set[str] = set()
        self.transparent = False

    def seek(self, after: int | None) -> None:
        """Begin behind a timestamp."""
        self.process.skip(after)

    def say_notes(self, encoding: Encoding) -> None:
        notes = [*self.process.notes]
        if self.info.bits > 8 and encoding.bit_depth == 8 and not any("HDR" in note for note in notes):
            notes.append(f"{self.info.bits} bits became 8; bit_depth=10 keeps 10")
        if self.transparent:
            notes.append(f"{encoding.codec} stores no opacity: what is transparent is over black; .webm keeps it")
        for note in notes:
            if note not in self._given:
                self._given.add(note)
                give_note(f"{self.source.name}: {note}")

    def timed(self, rate: Fraction | None) -> Iterator[tuple[np.ndarray, list[tuple[int, int]], int]]:
        """Frames that are shown, with (pts, duration) of each showing and the source's own timestamp."""
        held: Frame | Skipped | None = None
        start = 0
        for frame in self.process.frames():
            start = frame.pts if held is None else start
            if isinstance(held, Frame):
                yield from self._showings(held, frame.pts, start, rate)
            held = frame
        if isinstance(held, Frame):
            tick = round(1 / (self.info.rate * self.info.time_base))
            yield from self._showings(held, held.pts + (held.duration or max(1, tick)), start, rate)

    def _showings(self, frame: Frame, end: int, start: int, rate: Fraction | None):
        pixels, pts, _ = frame
        if rate is None:
            yield pixels, [(pts, end - pts)], pts
            return
        base = self.info.time_base
        first, behind = (ceil((each - start) * base * rate) for each in (pts, end))
        offset = round(start * base * rate)
        if times := [(offset + index, 1) for index in range(first, behind)]:
            yield pixels, times, pts


def _make_parts(film: _Film, segments: Segments, net, encoding: Encoding, size, aspect, rate, bar, tile, batch) -> None:
    """Enlarge what is not done yet, part by part."""
    info, times = film.info, deque()
    stored = Encoding("matroska", "ffv1", 8, None) if encoding.codec == "gif" else encoding
    channels = info.channels if stored.keeps_alpha else 3

    def pixels() -> Iterator[np.ndarray]:
        for frame, showings, source in film.timed(rate):
            times.append((showings, source))
            if frame.shape[2] > channels:
                film.transparent = film.transparent or bool((frame[..., 3] < np.iinfo(frame.dtype).max).any())
                frame = opaque(frame)
            yield frame.astype(np.float32) * (255 / 65535) if film.deep else frame

    planes = net is not None and net.device.type == "cuda" and stored.pixels(channels) == "yuv420p"
    finish = functools.partial(as_planes, shares=info.colour.shares) if planes else _as_uint16 if film.deep else None
    length = part_length(size)
    frames = _ahead(enlarge_stream(net, pixels(), size, tile, batch, False, finish, length))
    how = {
        "rate": min(whole_rate(rate or info.rate), Fraction(_FASTEST)), "channels": channels, "colour": info.colour,
        "sample_aspect": aspect, "light": info.light,
    }  # fmt: skip
    # An encoder holds a part's last frames back until its end: they are written while the next part has begun.
    with ThreadPoolExecutor(1) as thread:
        last = thread.submit(lambda: None)
        for index in itertools.count(len(segments.done)):
            few = list(itertools.islice(frames, 1))
            if not few:
                break
            part = segments.part(index, stored, size, **how)
            try:
                for frame in itertools.chain(few, itertools.islice(frames, length - 1)):
                    part.add(frame, *times.popleft(), planes=planes)
                    bar.update()
                last.result()
            except BaseException as error:
                part.abandon(error)
                raise
            last = thread.submit(segments.finish, part)
        last.result()


def _shown_as(info: Info, scale: float, encoding: Encoding) -> tuple[tuple[int, int], Fraction]:
    """(height, width) of the target and the shape of its pixels, which become square where no other can be stored."""
    (height, width), aspect = target_size(info.shape, scale), info.sample_aspect
    if aspect == 1 or encoding.keeps_aspect:
        return (height, width), aspect
    step = 2 if CODECS[encoding.codec].even else 1
    wide = max(step, step * round(width * aspect / step))
    give_note(f"{encoding.codec} in {encoding.container} has square pixels: {width} columns became {wide}")
    return (height, wide), Fraction(1)


def _as_uint16(pixels: torch.Tensor) -> np.ndarray:
    return pixels.mul_(65535).round_().permute(0, 2, 3, 1).contiguous().cpu().numpy().astype(np.uint16)


def _ahead(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same frames; a thread computes the next few while one is being written."""
    thread = ThreadPoolExecutor(1)
    try:
        following = deque(thread.submit(next, frames, None) for _ in range(_AHEAD))
        while (frame := following.popleft().result()) is not None:
            following.append(thread.submit(next, frames, None))
            yield frame
    finally:
        thread.shutdown(cancel_futures=True)  # who interrupts waits for one frame, not for all


def _job(source: Path, encoding: Encoding, net, size, **options) -> dict:
    """All that decides the parts of a film."""
    found = source.stat()
    digest = hashlib.sha256()
    for name, tensor in net.model.state_dict().items() if net is not None else ():
        digest.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    return {
        "source": [os.path.abspath(source), found.st_size, found.st_mtime_ns],
        "encoding": [encoding.container, encoding.codec, encoding.bit_depth, encoding.crf],
        "size": size,
        "network": "lanczos" if net is None else [digest.hexdigest()[:16], str(net.dtype), net.device.type],
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "av")},
        **options,
    }


def _record(source: Path, model: str | Path, scale: float) -> str:
    """What the file will say of how it was made: the source's own record, with what was done."""
    made = {"enlarged": {"model": os.fspath(model), "scale": scale}}
    try:
        return json.dumps(read_metadata(source) | made)
    except UserError:  # a video of another program has no record of ours, which is no mistake here
        return json.dumps(made)


def _check_size(encoding: Encoding, size: tuple[int, int], scale: float) -> None:
    if CODECS[encoding.codec].even and (size[0] % 2 or size[1] % 2):
        near = max(2, 2 * round(scale / 2))
        raise UserError(
            f"scale={scale!r} makes {size[1]}x{size[0]}, and the sides of {encoding.codec} are even: try {near}, or "
            "codec='ffv1' in an .mkv"
        )
