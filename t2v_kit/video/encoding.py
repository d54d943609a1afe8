"""Frames encoded with PyAV: which codec goes into which file, and how RGB becomes what it stores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Interpolation
from numpy._core._multiarray_umath import __cpu_features__  # type: ignore[attr-defined]

from ..errors import UserError, did_you_mean, near_match
from .colour import Colour

_EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


@dataclass(frozen=True)
class Codec:
    """A way to store frames.

    Attributes:
        encoder: ffmpeg's name.
        pixels: The stored form by bit depth.
        alpha: The stored form with opacity, by bit depth; empty where there is none.
        crf: The default quality; None where the codec has no such scale.
        worst: The highest CRF.
        even: Whether height and width must be even.
        options: Of the encoder.
    """

    encoder: str
    pixels: dict[int, str]
    alpha: dict[int, str]
    crf: int | None = None
    worst: int = 51
    even: bool = True
    options: tuple[tuple[str, str], ...] = ()


CODECS = {
    "h264": Codec("libx264", {8: "yuv420p", 10: "yuv420p10le"}, {}, 16),
    "hevc": Codec("libx265", {8: "yuv420p", 10: "yuv420p10le"}, {}, 18),
    "av1": Codec("libsvtav1", {8: "yuv420p", 10: "yuv420p10le"}, {}, 24, 63, options=(("preset", "8"),)),
    "vp9": Codec(
        "libvpx-vp9", {8: "yuv420p"}, {8: "yuva420p"}, 20, 63, options=(("b", "0"), ("deadline", "good"),
        ("cpu-used", "3"), ("auto-alt-ref", "0"), ("row-mt", "1")),
    ),
    "ffv1": Codec("ffv1", {8: "bgr0", 10: "gbrp10le"}, {8: "bgra", 10: "gbrap10le"}, even=False),
    "prores": Codec("prores_ks", {10: "yuv422p10le"}, {10: "yuva444p10le"}),
    "gif": Codec("gif", {8: "bgra"}, {8: "bgra"}, even=False),
}  # fmt: skip
#: The ending of a file: ffmpeg's name of the container, and the codecs that it takes, the default first.
CONTAINERS = {
    ".mp4": ("mp4", ("h264", "hevc", "av1")),
    ".m4v": ("mp4", ("h264", "hevc", "av1")),
    ".mov": ("mov", ("h264", "hevc", "prores")),
    ".mkv": ("matroska", ("h264", "hevc", "av1", "vp9", "ffv1", "prores")),
    ".webm": ("webm", ("vp9", "av1")),
    ".gif": ("gif", ("gif",)),
}
_PROFILES = {"prores": {False: "3", True: "4"}}  # 422 HQ; 4444


@dataclass(frozen=True)
class Encoding:
    """How a target is written: what `encoding_for` has checked.

    Attributes:
        container: ffmpeg's name.
        codec: A key of `CODECS`.
        bit_depth: 8 or 10.
        crf: None where the codec has none.
    """

    container: str
    codec: str
    bit_depth: int
    crf: int | None

    def pixels(self, channels: int) -> str:
        """The stored form for frames of 3 or 4 channels."""
        codec = CODECS[self.codec]
        return codec.alpha.get(self.bit_depth, codec.pixels[self.bit_depth]) if channels == 4 else codec.pixels[
            self.bit_depth
        ]  # fmt: skip

    @property
    def keeps_aspect(self) -> bool:
        """Whether the file can say that pixels are not square: MP4 and MOV can, and H.264 and H.265 themselves."""
        return self.container in ("mp4", "mov") or self.codec in ("h264", "hevc")

    @property
    def keeps_alpha(self) -> bool:
        return self.bit_depth in CODECS[self.codec].alpha


def encoding_for(
    path: str | Path, codec: str | None = None, crf: int | None = None, bit_depth: int | None = None
) -> Encoding:
    """Check what a file is to hold by its name and the options.

    Args:
        path: The file; its ending is one of `CONTAINERS`.
        codec: One of `CODECS`; None takes the container's first, which for 10 bits is H.265 instead of H.264.
        crf: The quality, 0 (best) to 51 (63 for AV1 and VP9); None takes the codec's default.
        bit_depth: 8 or 10; None is 8 where the codec has it.

    Raises:
        UserError: These do not go together.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in CONTAINERS:
        near = near_match(suffix, CONTAINERS) or ".mp4"
        raise UserError(
            f"path={str(path)!r}: must end in {', '.join(CONTAINERS)}; "
            f"{str(Path(path).with_suffix(near))!r} would work."
        )
    container, codecs = CONTAINERS[suffix]
    if codec is None:
        codec = next(name for name in codecs if bit_depth != 10 or name != "h264")
    if codec not in CODECS:
        raise UserError(f"codec={codec!r}: is unknown; {did_you_mean(codec, CODECS)}", setting="codec")
    if codec not in codecs:
        other = next(ending for ending, (_, held) in CONTAINERS.items() if codec in held)
        raise UserError(
            f"codec={codec!r}: a {suffix} file holds {' or '.join(codecs)}; "
            f"{str(Path(path).with_suffix(other))!r} would work.",
            setting="codec",
        )
    known = CODECS[codec]
    depth = bit_depth if bit_depth is not None else min(known.pixels)
    if depth not in known.pixels:
        depths = " or ".join(map(str, known.pixels))
        raise UserError(
            f"bit_depth={bit_depth!r}: {codec} stores {depths} bits; {depths} would work.", setting="bit_depth"
        )
    if crf is not None and known.crf is None:
        raise UserError(f"crf={crf!r}: {codec} has no such scale; leave it out.", setting="crf")
    if crf is not None and (isinstance(crf, bool) or not isinstance(crf, int) or not 0 <= crf <= known.worst):
        raise UserError(
            f"crf={crf!r}: must be a whole number from 0 (best) to {known.worst}; {known.crf} would work.",
            setting="crf",
        )
    return Encoding(container, codec, depth, known.crf if crf is None else crf)


def check_size(encoding: Encoding, shape: tuple[int, int]) -> None:
    """Raise UserError where the codec cannot store frames of (height, width)."""
    if CODECS[encoding.codec].even and (shape[0] % 2 or shape[1] % 2):
        raise UserError(
            f"{shape[1]}x{shape[0]} pixels: {encoding.codec} as players take it has an even width and height; "
            f"{shape[1] // 2 * 2 or 2}x{shape[0] // 2 * 2 or 2} would work."
        )


class Encoder:
    """Frames in, packets out, for one stream of a file that is being written.

    Args:
        file: The output container.
        encoding: See `encoding_for`.
        shape: (height, width).
        rate: Frames a second: constant, or the mean where `encode` is given timestamps.
        channels: 3, or 4 with opacity.
        colour: What the RGB values mean.
        sample_aspect: The shape of a pixel, width : height.
        time_base: Seconds in a unit of the timestamps; by default a frame.
        light: (brightest pixel, brightest mean) in cd/m2 for HDR.
    """

    def __init__(
        self,
        file: OutputContainer,
        encoding: Encoding,
        shape: tuple[int, int],
        rate: Fraction,
        channels: int = 3,
        colour: Colour | None = None,
        sample_aspect: Fraction = Fraction(1),
        time_base: Fraction | None = None,
        light: tuple[int, int] | None = None,
    ) -> None:
        colour = colour or Colour()
        codec = CODECS[encoding.codec]
        options = dict(codec.options)
        if encoding.crf is not None:
            options["crf"] = str(encoding.crf)
        if encoding.codec in _PROFILES:
            options["profile"] = _PROFILES[encoding.codec][channels == 4]
        if encoding.codec == "h264" and __cpu_features__.get("AVX512F"):
            # x264's AVX-512 code, as PyAV brings it, gives other bits from run to run; its AVX2 code does not.
            options["x264-params"] = "asm=avx2"
        if encoding.codec == "hevc":
            most = f":max-cll={light[0]},{light[1]}" if light and colour.hdr else ""
            options["x265-params"] = f"log-level=none{most}"
        os.environ.setdefault("SVT_LOG", "1")  # errors alone: it has no option for that
        stream = file.add_stream(codec.encoder, rate=rate, options=options)
        assert isinstance(stream, av.VideoStream)
        self.stream, self._colour = stream, colour
        self.pixels = encoding.pixels(channels)
        self._rgb = self.pixels in ("bgr0", "bgra", "gbrp10le", "gbrap10le")
        stream.height, stream.width = shape
        stream.pix_fmt = self.pixels
        context = stream.codec_context
        context.time_base = time_base or 1 / rate
        stream.time_base = context.time_base
        context.sample_aspect_ratio = sample_aspect
        context.color_primaries, context.color_trc = colour.primaries, colour.transfer
        context.colorspace, context.color_range = (0, 2) if self._rgb else (colour.matrix, 1)
        if encoding.codec == "hevc" and encoding.container in ("mp4", "mov"):
            context.codec_tag = "hvc1"  # which Apple's players ask for
        if encoding.codec == "vp9" and channels == 4:
            stream.metadata["alpha_mode"] = "1"  # by which players know
        self._count = 0

    def encode(self, pixels: np.ndarray, pts: int | None = None) -> list[av.Packet]:
        """Packets that a frame completes.

        Args:
            pixels: (H, W) grey, (H, W, 3) or (H, W, 4), uint8 or uint16.
            pts: When it is shown; None behind the last one.
        """
        return self.encode_picture(self.picture(pixels), pts)

    def encode_planes(self, planes: np.ndarray, pts: int | None = None) -> list[av.Packet]:
        """`encode` for (H * 3 / 2, W) uint8, yuv420p in the stream's own colours."""
        return self.encode_picture(av.VideoFrame.from_ndarray(planes, format="yuv420p"), pts)

    def encode_picture(self, picture: av.VideoFrame, pts: int | None) -> list[av.Packet]:
        """`encode` for a frame in the stored form."""
        picture.pts = self._count if pts is None else pts
        picture.time_base = self.stream.codec_context.time_base
        picture.colorspace, picture.color_range = (0, 2) if self._rgb else (self._colour.matrix, 1)
        picture.color_primaries, picture.color_trc = self._colour.primaries, self._colour.transfer
        self._count += 1
        return self.stream.encode(picture)

    def finish(self) -> list[av.Packet]:
        """The packets that were still waiting."""
        return self.stream.encode(None)

    def picture(self, pixels: np.ndarray) -> av.VideoFrame:
        """A frame in the stored form."""
        deep = pixels.dtype == np.uint16
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        name = {3: "rgb48le" if deep else "rgb24", 4: "rgba64le" if deep else "rgba"}[pixels.shape[2]]
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=name)
        if self._rgb:
            return picture.reformat(format=self.pixels)
        return picture.reformat(
            format=self.pixels, dst_colorspace=self._colour.matrix, interpolation=_EXACT,
            src_color_range=ColorRange.JPEG, dst_color_range=ColorRange.MPEG,
        )  # fmt: skip


def whole_rate(fps: float | Fraction) -> Fraction:
    """The exact rate: broadcasting's 23.976 and 29.97 are 24000/1001 and 30000/1001."""
    broadcast = Fraction(round(fps * 1.001) * 1000, 1001)
    if float(fps) % 1 and abs(float(fps) - float(broadcast)) < 0.006:
        return broadcast
    return Fraction(fps).limit_denominator(100000)


def open_target(path: str | Path, container: str, clock: int = 1) -> OutputContainer:
    """A file to write: MP4 with its index first, so that a browser starts playing at once.

    clock: Units in a second of the film's timestamps, in which MP4 then writes where a stream begins; its own default
        is milliseconds.
    """
    # MOV has a field for any tag; MP4 as players read it has not.
    flags = {"mp4": "+faststart", "mov": "+faststart+use_metadata_tags"}
    ticks = str(clock * -(-10000 // clock))
    options = {"movflags": flags[container], "movie_timescale": ticks} if container in flags else {}
    return av.open(f"file:{Path(path).absolute()}", "w", format=container, options=options)


def muxed(file: OutputContainer, packets: Iterator[av.Packet] | list[av.Packet]) -> None:
    for packet in packets:
        file.mux(packet)
