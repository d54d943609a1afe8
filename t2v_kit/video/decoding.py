"""Video files decoded frame by frame with PyAV: pictures upright, in RGB, each with its own timestamp.

What a file may get wrong or leave open is settled here and said: missing timestamps, untagged colours, HDR, interlaced
fields, rotation, damage.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.error
import numpy as np
from av.filter import Graph
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext

from ..errors import UserError
from .colour import MATRICES, UNSPECIFIED, Colour, cube, known_colour, sdr

_SCALE = "accurate_rnd+full_chroma_int+full_chroma_inp+bicubic"
_LEFT = 64  # frames that a decoder may hold at the end
_RESTARTING = {"mpegts", "mpeg", "vob", "rtsp", "wtv"}  # containers whose clock begins anywhere


class Frame(NamedTuple):
    """One frame: pixels (H, W, C), uint8 or uint16; when it is shown, and for how long, in units of the time base."""

    pixels: np.ndarray
    pts: int
    duration: int


@dataclass
class Info:
    """What is known of a film once its first frame is decoded.

    Attributes:
        shape: (height, width) as it is shown, after rotation.
        channels: 3, or 4 with opacity.
        deep: Whether the frames are uint16 instead of uint8.
        time_base: Seconds in one unit of the timestamps.
        rate: Frames a second: the constant rate, or the mean.
        total: The number of frames by the file's index or length, without counting them; 0 when unknown.
        sample_aspect: The shape of a pixel, width : height, after rotation.
        colour: What the RGB values mean.
        bits: Of the stored samples.
        light: (brightest pixel, brightest mean) in cd/m2, as HDR files state it; None without.
        origin: Seconds that were taken off the timestamps, where the file's clock begins anywhere.
    """

    shape: tuple[int, int]
    channels: int
    deep: bool
    time_base: Fraction
    rate: Fraction
    total: int
    sample_aspect: Fraction
    colour: Colour
    bits: int
    light: tuple[int, int] | None
    origin: Fraction


class Decoder:
    """One film, decoded once from the start.

    Args:
        path: The file.
        deep: Whether frames come as uint16 and HDR stays HDR; otherwise they are uint8 and SDR.
        threads: Of the decoder; 0 for one on each core.
        leave_out: Indices of packets that are not decoded, because the decoder crashes at them.
        on_packet: Called with the index of each packet before it is decoded.

    Raises:
        UserError: The file is missing, is no video, or gives no frame.

    Attributes:
        info: See `Info`.
        damage: What was wrong with the file, a line each; complete when `frames` has ended.
        notes: What was changed in reading; complete when `frames` has ended.
    """

    def __init__(
        self,
        path: str | Path,
        deep: bool = False,
        threads: int = 0,
        leave_out: frozenset[int] = frozenset(),
        on_packet: Callable[[int], object] | None = None,
    ) -> None:
        self.path, self.deep, self._leave_out, self._on_packet = path, deep, leave_out, on_packet
        self.damage: list[str] = []
        self.notes: list[str] = []
        try:
            # The scheme keeps ffmpeg from taking a colon for a protocol; tags of old cameras are not UTF-8.
            self._file = av.open(f"file:{os.path.abspath(path)}", metadata_errors="replace")
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise unreadable(path, error) from error
        try:
            self._stream = main_stream(self._file, path)
            self._codec = _codec(self._stream)
            # Threads for whole frames would be quicker, but lose good frames in front of a damaged one.
            self._codec.thread_type = "SLICE"  # type: ignore[assignment]
            self._codec.thread_count = threads
            self._set_clock()
            self._pictures = self._decoded()
            try:
                self._first = next(self._pictures)
            except StopIteration:
                why = self.damage[0] if self.damage else "it has no frames"
                raise UserError(f"cannot read {str(path)!r} as a video: {why}") from None
            self.info = self._describe(self._first)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def frames(self) -> Iterator[Frame]:
        """The frames in the order in which they are shown, their timestamps strictly increasing."""
        info, graph, form = self.info, Graph(), ("", 0, 0, False)
        durations: dict[int, int] = {}
        deinterlace = False

        def pulled(graph) -> Iterator[Frame]:
            while True:
                try:
                    picture = graph.pull()
                except (av.error.BlockingIOError, av.error.EOFError):
                    return
                pts = round(picture.pts * picture.time_base / info.time_base)
                yield Frame(self._turned(picture.to_ndarray()), pts, durations.pop(pts, 0))

        for picture in self._chained():
            deinterlace = deinterlace or picture.interlaced_frame
            kind = (picture.format.name, picture.width, picture.height, deinterlace)
            if kind != form:
                if form[0]:
                    graph.push(None)
                    yield from pulled(graph)
                    if kind[1:3] != form[1:3]:
                        self._note("frames of another size in the middle were scaled to the first one's")
                graph, form = self._graph(picture, deinterlace), kind
            durations[picture.pts or 0] = picture.duration or 0
            graph.push(picture)
            yield from pulled(graph)
        graph.push(None)
        yield from pulled(graph)
        self._look_for_the_end()

    def _chained(self) -> Iterator[av.VideoFrame]:
        yield self._first
        yield from self._pictures

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _set_clock(self) -> None:
        stream = self._stream
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate
        if rate is None or not 0 < rate <= 1000:
            rate = stream.guessed_rate if stream.guessed_rate and stream.guessed_rate <= 1000 else Fraction(25)
        self._rate, self._base = Fraction(rate), Fraction(stream.time_base or Fraction(1, 90000))
        self._tick = max(1, round(1 / (self._rate * self._base)))
        start = self._file.start_time  # of all streams together, in microseconds
        restarts = bool(_RESTARTING & set(self._file.format.name.split(",")))
        self._origin = round(Fraction(start, 1000000) / self._base) if restarts and start else 0

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Pictures with a timestamp, each after the last one's; damage is noted and decoding continues."""
        last: int | None = None
        self._last: int | None = None  # the end of the last picture
        self._packets = self._failed = self._corrupt = self._moved = 0
        for packet in self._demuxed():
            if packet is not None and packet.size:
                self._packets += 1
                self._corrupt += packet.is_corrupt
                if self._on_packet is not None:
                    self._on_packet(self._packets)
                if self._packets in self._leave_out:
                    self._failed += 1
                    continue
            elif packet is not None and packet.dts is not None:
                continue  # an empty packet is no end: AVI stores one for a frame that repeats
            for picture in self._decode(packet if packet is not None and packet.size else None):
                self._corrupt += picture.is_corrupt
                pts = picture.pts
                if pts is not None:
                    pts -= self._origin
                elif last is None:
                    pts = picture.dts or 0
                else:
                    pts = last + self._tick
                if last is not None and pts <= last:
                    self._moved += 1
                    pts = last + 1
                picture.pts, picture.time_base, last = pts, self._base, pts
                self._last = pts + (picture.duration or self._tick)
                yield picture
            if packet is None:
                return

    def _decode(self, packet) -> Iterator[av.VideoFrame]:
        """The pictures that a packet completes; with None, those that are left."""
        for _ in range(_LEFT if packet is None else 1):
            try:
                yield from self._codec.decode(packet)
                return
            except av.error.EOFError:
                return
            except (av.error.FFmpegError, ValueError):  # what a damaged packet left behind; the next call goes on
                if self._last is not None:
                    self._failed += 1
                else:
                    self._note("what lies before the first whole frame could not be decoded")

    def _demuxed(self) -> Iterator:
        """Packets of the film, then None; what ends the file early is noted."""
        packets = self._file.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except (av.error.FFmpegError, OSError) as error:
                self.damage.append(f"reading stopped ({_words(error)})")
                break
            if packet.size or packet.dts is not None:
                yield packet
        yield None

    def _look_for_the_end(self) -> None:
        """Compare what came with what the file's index or length promises."""
        if self._failed:
            self.damage.append(f"{self._failed} packets could not be decoded")
        if self._corrupt:
            self.damage.append(f"{self._corrupt} packets or frames are corrupt")
        if self._moved:
            self._note(f"{self._moved} frames had a timestamp no later than the one before: moved by the least step")
        indexed = _indexed(self._file, self._stream)
        if self._packets < indexed:
            self.damage.append(f"it ends after {self._packets} of {indexed} frames")
        elif not indexed:
            seconds, end = (
                _stated_seconds(self._file, self._stream),
                float(((self._last or 0) + self._origin) * self._base),
            )
            if seconds and end + max(0.25, 2 * self._tick * float(self._base)) < seconds:
                self.damage.append(f"it ends after {end:.2f} of {seconds:.2f} s")

    def _describe(self, first: av.VideoFrame) -> Info:
        stream, rgb = self._stream, _is_rgb(first.format)
        size = (first.height, first.width)
        colour = known_colour(int(first.colorspace), int(first.color_primaries), int(first.color_trc), size, rgb)
        if not rgb and first.colorspace not in (*MATRICES, 0, UNSPECIFIED):
            self._note(f"colour matrix {int(first.colorspace)} cannot be read: taken for {MATRICES[colour.matrix]}")
        light = _light(first)
        self._cube = None
        if colour.hdr and not self.deep:
            self._cube, colour = cube(colour.transfer, light and light[0]), sdr(colour)
            self._note("HDR was mapped to SDR; bit_depth=10 keeps it")
        if first.interlaced_frame:
            self._note("interlaced: deinterlaced by bwdif, a frame from each pair of fields")
        self._orientation = _orientation(first)
        aspect = Fraction(stream.sample_aspect_ratio or self._codec.sample_aspect_ratio or 1) or Fraction(1)
        if self._orientation[0] % 2:
            size, aspect = (size[1], size[0]), 1 / aspect
        alpha = any(part.is_alpha for part in first.format.components) or first.format.name in ("pal8", "bgra", "rgba")
        total = _indexed(self._file, stream) or stream.frames
        if not total:
            seconds = _stated_seconds(self._file, stream) or (self._file.duration or 0) / 1e6
            total = round(seconds * self._rate)
        bits = max(part.bits for part in first.format.components)
        return Info(
            size, 4 if alpha else 3, self.deep, self._base, self._rate, total, aspect, colour, bits, light,
            self._origin * self._base,
        )  # fmt: skip

    def _graph(self, picture: av.VideoFrame, deinterlace: bool) -> Graph:
        """From the stored form to RGB."""
        graph = Graph()
        source = picture.format
        nodes = [
            graph.add_buffer(width=picture.width, height=picture.height, format=source, time_base=self._base),
        ]
        if deinterlace:
            self._note("interlaced: deinterlaced by bwdif, a frame from each pair of fields")
            nodes.append(graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced"))
        options = {"flags": _SCALE, "out_range": "pc", "w": str(self._first.width), "h": str(self._first.height)}
        if not _is_rgb(source):
            matrix = int(self._first.colorspace)
            known = known_colour(matrix, int(self._first.color_primaries), 2, (picture.height, picture.width), False)
            options["in_color_matrix"] = MATRICES[known.matrix]
            full = int(picture.color_range) == 2 or source.name.startswith("yuvj")
            options["in_range"] = "pc" if full else "tv"
        nodes.append(graph.add("scale", **options))
        alpha = "a" if self.info.channels == 4 else ""
        if self._cube:
            nodes.append(graph.add("format", f"rgb{alpha}{'64' if alpha else '48'}le"))
            # A file, because that is what the filter reads; it is read when the filter is configured.
            handle, name = tempfile.mkstemp(suffix=".cube")
            with os.fdopen(handle, "w") as table:
                table.write(self._cube)
            nodes.append(graph.add("lut3d", file=name, interp="tetrahedral"))
        eight = f"rgb{alpha}" if alpha else "rgb24"
        nodes.append(graph.add("format", f"rgb{alpha}{'64' if alpha else '48'}le" if self.deep else eight))
        nodes.append(graph.add("buffersink"))
        try:
            graph.link_nodes(*nodes).configure()
        finally:
            if self._cube:
                os.unlink(name)
        return graph

    def _turned(self, pixels: np.ndarray) -> np.ndarray:
        quarters, mirrored = self._orientation
        if mirrored:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(np.rot90(pixels, quarters))


def unreadable(path: str | Path, error: Exception) -> UserError:
    """The error for a file that cannot be opened as a video."""
    return UserError(f"cannot read {str(path)!r} as a video: {_words(error)}")


def main_stream(file, path: str | Path):
    """The film among a file's streams: the first video that is no cover picture.

    Raises:
        UserError: There is none.
    """
    films = [stream for stream in file.streams.video if not is_cover(stream)]
    films = [stream for stream in films if stream.codec_context is not None] or films
    if not films:
        raise UserError(f"cannot read {str(path)!r} as a video: it has no pictures")
    return films[0]


def is_cover(stream) -> bool:
    """Whether a stream is a single attached picture."""
    return bool(stream.disposition & Disposition.attached_pic)


def _codec(stream) -> VideoCodecContext:
    """The stream's decoder; for VP8 and VP9 with opacity, libvpx's, because ffmpeg's own decodes colours alone."""
    context = stream.codec_context
    if context is None:
        raise UserError(f"cannot read {stream.container.name!r} as a video: its codec is unknown")
    tags = {name.lower(): text for name, text in stream.metadata.items()}
    full = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(context.name)
    if full and tags.get("alpha_mode") == "1":
        context = av.CodecContext.create(full, "r")
    assert isinstance(context, VideoCodecContext)
    return context


def _is_rgb(form) -> bool:
    return form.is_rgb or form.name == "pal8"


def _indexed(file, stream) -> int:
    """Frames in the file's index where it has a whole one, as MP4, MOV and AVI do."""
    if not {"mp4", "avi"} & set(file.format.name.split(",")):
        return 0
    return len(stream.index_entries)


def _stated_seconds(file, stream) -> float:
    """The end of the film by the file's own words; 0 where it says nothing, or nothing about this stream alone."""
    tag = stream.metadata.get("DURATION", "")
    try:
        hours, minutes, seconds = map(float, tag.split(":"))
        return 3600 * hours + 60 * minutes + seconds
    except ValueError:
        pass
    others = [other for other in file.streams if other.type in ("audio", "subtitle")]
    matroska = "matroska" in file.format.name
    return (file.duration or 0) / 1e6 if matroska and not others else 0


def _side_data(picture: av.VideoFrame) -> list[Any]:
    return list(picture.side_data)  # typed as a mapping, but it lists its values


def _light(picture: av.VideoFrame) -> tuple[int, int] | None:
    for data in _side_data(picture):
        if data.type.name == "CONTENT_LIGHT_LEVEL":
            most, mean = np.frombuffer(bytes(data), np.uint32, 2)
            return (int(most), int(mean)) if most else None
    return None


def _orientation(picture: av.VideoFrame) -> tuple[int, bool]:
    """Quarter turns counterclockwise, after mirroring left and right, from the display matrix."""
    for data in _side_data(picture):
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(bytes(data), np.int32, 5) / 65536
            mirrored = a * d - b * c < 0
            if mirrored:
                a, b = -a, -b
            return round(np.degrees(np.arctan2(-b, a)) / 90) % 4, bool(mirrored)
    return 0, False


def _words(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
