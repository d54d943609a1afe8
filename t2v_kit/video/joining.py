"""The last step of a film: its parts become one file, and what the source has beside pictures goes along.

Pictures, sound and subtitles are copied packet by packet. What a container does not take is transcoded where that is
possible, and otherwise left out and said.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.error
from av.filter import Graph

from ..errors import give_note
from .decoding import is_cover, main_stream
from .encoding import Encoding, open_target
from .segments import Segments

_SOUND = {"mp4": "aac", "mov": "aac", "webm": "libopus", "matroska": "aac"}
_TEXT = {"mp4": "mov_text", "mov": "mov_text", "webm": "webvtt", "matroska": "ass"}
_TEXTS = {"subrip", "srt", "ass", "ssa", "webvtt", "mov_text", "text"}
#: Tags in which the record of how a film was made may lie; the first that the film has no use for.
RECORDS = ("comment", "description", "synopsis")
# What a muxer writes itself, or what described the old file's pictures.
_OWN_TAGS = {
    "encoder", "major_brand", "minor_version", "compatible_brands", "duration", "handler_name", "vendor_id",
    "creation_time", "alpha_mode", "number_of_frames", "number_of_bytes", "bps", "language", "software",
}  # fmt: skip


def join(
    target: Path,
    segments: Segments,
    encoding: Encoding,
    source: Path,
    time_base: Fraction,
    origin: Fraction,
    record: str,
    audio: str,
    sample_aspect: Fraction,
) -> None:
    """Write the target from finished parts and the source's other streams.

    Args:
        target: The file to write; its container is `encoding`'s.
        segments: The parts, at least one frame in them.
        encoding: As the parts were made, but for GIF, which is encoded here.
        source: Where sound, subtitles, chapters and tags are.
        time_base: Of the parts' timestamps.
        origin: Seconds that were taken off the source's timestamps.
        record: How the film was made, as JSON; it replaces an earlier one or takes the first free of `RECORDS`.
        audio: "copy" or "none".
        sample_aspect: The shape of a pixel, width : height.
    """
    with av.open(f"file:{os.path.abspath(source)}", metadata_errors="replace") as old:
        held = dict(old.metadata)
        tags = _with_record(_tags(held), record)
        with open_target(target, encoding.container, time_base.denominator) as new:
            film = main_stream(old, source)
            stream = (
                None if encoding.container == "gif" else _film_stream(new, segments, film, time_base, sample_aspect)
            )
            others = [] if stream is None else _others(old, new, source, audio)
            kept = {id(each.stream) for each in others}
            _say_what_is_left(old, source, kept, encoding.container, audio)
            new.metadata.update(tags)
            if old.chapters() and encoding.container != "gif":
                new.set_chapters(old.chapters())
            if stream is None:
                _gif(new, segments, time_base)
            else:
                _mux(new, segments, stream, time_base, old, others, origin)
    with av.open(str(target), metadata_errors="replace") as written:
        lost = set(map(str.lower, tags)) - set(map(str.lower, written.metadata))
    if lost := lost & set(map(str.lower, _tags(held))):
        give_note(f"left out: tags {', '.join(sorted(lost))}, which {encoding.container} does not hold")


def _mux(new, segments: Segments, stream, time_base: Fraction, old, others: list, origin: Fraction) -> None:
    pictures, sounds = _pictures(segments, stream, time_base), _passed(old, others, origin)
    for _, _, packet in heapq.merge(pictures, sounds, key=lambda entry: entry[:2]):
        new.mux(packet)


def _tags(tags: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in tags.items() if name.lower() not in _OWN_TAGS}


def _with_record(tags: dict[str, str], record: str) -> dict[str, str]:
    names = {name.lower(): name for name in tags}
    free = [name for name in RECORDS if name not in names or is_record(tags[names[name]])]
    place = next((name for name in free if name in names), free[0] if free else RECORDS[-1])
    return {name: text for name, text in tags.items() if name.lower() != place} | {place: record}


def is_record(text: str) -> bool:
    """Whether a tag's text is a record of ours: a JSON object."""
    with contextlib.suppress(json.JSONDecodeError):
        return isinstance(json.loads(text), dict)
    return False


def _film_stream(new, segments: Segments, film, time_base: Fraction, sample_aspect: Fraction):
    path, _ = next(segments.files())
    with av.open(str(path)) as part:
        stream = new.add_stream_from_template(part.streams.video[0], opaque=True)
        stream.codec_context.sample_aspect_ratio = sample_aspect
        alpha = part.streams.video[0].metadata.get("ALPHA_MODE")
    stream.time_base = time_base
    _named(stream, film)
    if alpha:
        stream.metadata["alpha_mode"] = alpha
    return stream


def _pictures(segments: Segments, stream, time_base: Fraction) -> Iterator[tuple[float, int, av.Packet]]:
    """The parts' packets with the film's own times: entries of (seconds, order, packet)."""
    count, early, shown, tick = 0, segments.early, [], None
    indexed = stream.container.format.name in ("mp4", "mov")
    for path, times in segments.files():
        with av.open(str(path)) as part:
            packets = [packet for packet in part.demux(part.streams.video[0]) if packet.size]
            ranks = {pts: rank for rank, pts in enumerate(sorted(packet.pts or 0 for packet in packets))}
            shown = [*shown[len(shown) - early :], *(pts for pts, _ in times)]
            before, tick = len(shown) - len(times), tick or times[0][1]
            for place, packet in enumerate(packets):
                pts, duration = times[ranks[packet.pts or 0]]
                # Decoding times are the showing times in order, as many frames late as frames are reordered.
                index = before + place - early
                packet.dts = dts = shown[index] if index >= 0 else shown[0] + index * tick
                packet.pts, packet.duration = pts, duration
                if indexed and count == segments.frames - 1:
                    # MP4 reckons the film's length by decoding times, of which the last is `early` frames late.
                    packet.duration = max(1, sum(times[-1]) - early * tick - dts)
                packet.time_base, packet.stream = time_base, stream
                yield float(dts * time_base), count, packet
                count += 1


class _Copied:
    """A stream whose packets go along as they are."""

    def __init__(self, stream, new) -> None:
        self.stream, self.out = stream, new.add_stream_from_template(stream, opaque=True)
        _named(self.out, stream)

    def packets(self, packet) -> list[av.Packet]:
        packet.stream = self.out
        return [packet]

    def rest(self) -> list[av.Packet]:
        return []


class _Sound:
    """Sound in another codec."""

    def __init__(self, stream, new, codec: str) -> None:
        self.stream = stream
        rate = 48000 if codec == "libopus" else stream.codec_context.sample_rate
        self.out = new.add_stream(codec, rate=rate, layout=stream.codec_context.layout.name)
        self._resampler = av.AudioResampler(self.out.codec_context.format, self.out.codec_context.layout, rate)
        self._base = Fraction(1, rate)
        _named(self.out, stream)

    def packets(self, packet) -> list[av.Packet]:
        frames = []
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            give_note("sound: what could not be decoded was left out")
        return [made for frame in frames for part in self._resampler.resample(frame) for made in self._encode(part)]

    def rest(self) -> list[av.Packet]:
        left = [made for part in self._resampler.resample(None) for made in self._encode(part)]
        return left + self.out.encode(None)

    def _encode(self, frame) -> list[av.Packet]:
        return self.out.encode(frame)


class _Text:
    """Subtitles in another codec."""

    def __init__(self, stream, new, codec: str) -> None:
        self.stream = stream
        self.out = new.add_stream(codec)
        stream.codec_context.open()  # which writes the header
        self.out.codec_context.subtitle_header = stream.codec_context.subtitle_header
        self.out.codec_context.time_base = stream.time_base
        self.out.time_base = stream.time_base
        self.out.codec_context.open()
        _named(self.out, stream)

    def packets(self, packet) -> list[av.Packet]:
        decoded = self.stream.codec_context.decode2(packet) if packet.size else None
        if decoded is None:
            return []
        made = self.out.codec_context.encode_subtitle(decoded)
        made.pts, made.dts, made.duration = packet.pts, packet.pts, packet.duration
        made.time_base, made.stream = packet.time_base, self.out
        return [made]

    def rest(self) -> list[av.Packet]:
        return []


def _named(out, stream) -> None:
    for name, text in _tags(stream.metadata).items():
        out.metadata[name] = text
    if stream.language:
        out.metadata["language"] = stream.language
    out.disposition = stream.disposition


def _others(old, new, source, audio: str) -> list:
    """The streams that go along, each with its way."""
    film, container, others = main_stream(old, source), new.format.name, []
    for stream in old.streams:
        if stream is film or (stream.type == "audio" and audio == "none") or stream.type == "data":
            continue
        name = stream.codec_context.codec.canonical_name if stream.codec_context is not None else ""
        if stream.type == "attachment":
            if "matroska" in container:
                attached = new.add_attachment(stream.name or "attachment", stream.mimetype or "", stream.data)
                attached.metadata.update(_tags(stream.metadata))
                others.append(_Attached(stream))
            continue
        if stream.type == "video" and not is_cover(stream):
            continue
        if name and _takes(container, name, new, stream):
            others.append(_Copied(stream, new))
        elif stream.type == "audio" and stream.codec_context is not None:
            codec = _SOUND[encoding_name(container)]
            give_note(f"sound: {name} does not go into {container}, and became {codec.removeprefix('lib')}")
            others.append(_Sound(stream, new, codec))
        elif stream.type == "subtitle" and name in _TEXTS:
            codec = _TEXT[encoding_name(container)]
            give_note(f"subtitles: {name} does not go into {container}, and became {codec}")
            others.append(_Text(stream, new, codec))
    return others


class _Attached:
    """A file inside the file, such as a font."""

    def __init__(self, stream) -> None:
        self.stream = stream

    def packets(self, packet) -> list[av.Packet]:
        return []

    def rest(self) -> list[av.Packet]:
        return []


def encoding_name(container: str) -> str:
    """The key of a muxer in the tables here."""
    return next(name for name in _SOUND if name in container.split(","))


def _takes(container: str, name: str, new, stream) -> bool:
    """Whether a container holds a codec, and players find it there."""
    if container in ("mp4", "mov") and stream.type == "subtitle":
        return name == "mov_text"
    if container == "mp4" and name.startswith("pcm_"):
        return False
    if container in ("mp4", "mov") and name in ("mp1", "mp2"):  # would be labelled as MP3
        return False
    if stream.type == "video" and container == "webm":
        return False
    return name in new.supported_codecs


def _say_what_is_left(old, source, kept: set[int], container: str, audio: str) -> None:
    film = main_stream(old, source)
    for stream in old.streams:
        if stream is film or id(stream) in kept or (stream.type == "audio" and audio == "none"):
            continue
        if stream.type == "data" and old.chapters() and "mp4" in old.format.name:
            continue  # the chapters' titles, which are written anew
        name = stream.codec_context.codec.canonical_name if stream.codec_context is not None else "unknown codec"
        give_note(f"left out: stream {stream.index} ({stream.type}, {name}), which {container} does not take from here")
    if container == "gif" and old.chapters():
        give_note("left out: chapters, which gif does not hold")


def _passed(old, others: list, origin: Fraction) -> Iterator[tuple[float, int, av.Packet]]:
    """Packets of the other streams, in the order of the file, with the film's origin."""
    by_stream = {each.stream.index: each for each in others if not isinstance(each, _Attached)}
    if not by_stream:
        return
    seconds, count = 0.0, 1 << 40  # behind pictures of the same moment
    indexed = next(iter(by_stream.values())).out.container.format.name in ("mp4", "mov")
    try:
        for packet in old.demux([each.stream for each in by_stream.values()]):
            if not packet.size:
                continue
            if packet.dts is None and packet.pts is None:  # a cover
                packet.pts = packet.dts = 0
            shift = round(origin / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = None if packet.dts is None else packet.dts - shift
            base = packet.time_base
            start = packet.dts if packet.dts is not None else packet.pts or 0
            if start + (packet.duration or 0) <= 0 and not indexed:
                continue  # what a codec needs to begin, and players cut; it would make the container shift everything
            seconds = max(seconds, float(start * base))
            for made in by_stream[packet.stream.index].packets(packet):
                yield seconds, count, made
                count += 1
    except (av.error.FFmpegError, OSError):
        pass  # the film's own reading has said what is wrong with the file
    for each in by_stream.values():
        for made in each.rest():
            yield seconds, count, made
            count += 1


def _gif(new, segments: Segments, time_base: Fraction) -> None:
    """GIF keeps 256 colours a frame: a palette for each, and times in hundredths of a second."""
    encoder, graph, last = None, Graph(), -1
    for path, times in segments.files():
        with av.open(str(path)) as part:
            for picture, (pts, duration) in zip(part.decode(video=0), times):
                if encoder is None:
                    encoder = new.add_stream("gif", rate=100)
                    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, "pal8"
                    encoder.codec_context.time_base = encoder.time_base = Fraction(1, 100)
                    graph = _palette_graph(picture)
                picture.pts, picture.time_base = last + 1, Fraction(1, 100)
                graph.push(picture)
                small = graph.pull()
                last = max(last + 1, round(pts * time_base * 100))
                small.pts, small.time_base = last, Fraction(1, 100)
                for packet in encoder.encode(small):
                    packet.duration = max(1, round(duration * time_base * 100))
                    new.mux(packet)
    if encoder is not None:
        new.mux(encoder.encode(None))


def _palette_graph(picture) -> Graph:
    graph = Graph()
    start = graph.add_buffer(
        width=picture.width, height=picture.height, format=picture.format, time_base=Fraction(1, 100)
    )
    split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=single")
    use, end = graph.add("paletteuse", "new=1"), graph.add("buffersink")
    start.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(end)
    graph.configure()
    return graph
