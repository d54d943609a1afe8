"""Video files: MP4 that every browser plays and that says how it was made, written and read frame by frame.

A video is `(T, H, W, 3)` uint8 everywhere, as in mediapy.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import UserError
from .arrays import check_video

# Colours are tagged as BT.709, which is what browsers assume of HD video and ffmpeg does not write by itself:
# untagged, a small video and its enlargement would be shown in slightly different colours.
_TAGS = [
    *("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"),
    *("-movflags", "+faststart"),  # the index first, so that a browser starts playing at once
]
MP4_ARGS = ["-vf", "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int", *_TAGS]
_CRF = 16  # of x264, for files: no loss that one sees


def save_video(path: str | Path, video: np.ndarray, fps: float, metadata: dict | None = None) -> Path:
    """Write `(T, H, W, 3)` uint8 as H.264 yuv420p, which every browser plays; H and W must be even.

    Every frame is written once, at `fps` frames a second. `metadata` is stored as one JSON in the file's
    comment, the one field that MP4 keeps whatever is in it; `read_metadata` gives it back. The file gets its
    name when it is whole.
    """
    height, width = check_video(video).shape[1:3]
    with video_writer(path, (height, width), fps, metadata) as writer:
        for frame in video:
            writer.add_image(frame)
    return Path(path)


@contextlib.contextmanager
def video_writer(path: str | Path, shape: tuple[int, int], fps: float, metadata: dict | None = None) -> Iterator:
    """`save_video` for frames that come one by one: `with video_writer(...) as writer: writer.add_image(frame)`.

    shape: (height, width), even.  A frame is `(H, W, 3)` uint8, or `(H, W)` grey.
    """
    arguments = {"crf": _CRF, "encoded_format": "yuv420p", "ffmpeg_args": [*MP4_ARGS, *_comment(metadata)]}
    with (
        whole_or_absent(path) as temporary,
        mediapy_with_ffmpeg().VideoWriter(temporary, shape, fps=fps, **arguments) as writer,
    ):
        yield writer


@contextlib.contextmanager
def whole_or_absent(path: str | Path) -> Iterator[Path]:
    """Where to write a video: beside `path`, which it is renamed to at the end, or removed when that fails."""
    path = Path(os.path.abspath(path))
    if path.name.startswith(".part."):  # who calls it so renames it, as RunFolder does
        yield path
        return
    temporary = path.with_name(f".part.{path.stem}.mp4")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def mp4_command(path: str | Path, shape: tuple[int, int], fps: float, metadata: dict | None = None) -> list[str]:
    """The command that writes what `video_writer` writes, from frames that come as yuv420p to its standard input."""
    form = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{shape[1]}x{shape[0]}", "-r", f"{fps}", "-i", "-"]
    codec = ["-an", "-vcodec", "libx264", "-pix_fmt", "yuv420p", "-crf", f"{_CRF}"]
    return [_ffmpeg(), "-v", "error", "-y", *form, *codec, *_TAGS, *_comment(metadata), os.path.abspath(path)]


def _comment(metadata: dict | None) -> list[str]:
    return ["-metadata", f"comment={json.dumps(metadata)}"] if metadata else []


@dataclass
class Frames:
    """What `video_reader` gives: `(H, W, 3)` uint8 frames, to be iterated once.

    shape: (height, width).  fps: frames a second.  num_images: how many there are, -1 when that is not known.
    """

    shape: tuple[int, int]
    fps: float
    num_images: int
    _pipe: BinaryIO = field(repr=False)

    def __len__(self) -> int:
        return max(self.num_images, 0)

    def __iter__(self) -> Iterator[np.ndarray]:
        while data := self._pipe.read(3 * self.shape[0] * self.shape[1]):
            yield np.frombuffer(data, np.uint8).reshape(*self.shape, 3)


@contextlib.contextmanager
def video_reader(path: str | Path) -> Iterator[Frames]:
    """A video file's frames one by one, `(H, W, 3)` uint8, as they are stored: none dropped or doubled.

    The film of a phone that was held upright comes upright, as players show it. What is yielded can be iterated
    once, and has `shape` (height, width), `fps` and `num_images`.
    Raises UserError when the file is missing or is no video.
    """
    # Not by mediapy, which gives such a film the shape of a wide one, and fails at tags that are no UTF-8.
    command = [_ffmpeg(), "-nostdin", "-i", os.path.abspath(path), "-map", "0:v:0", "-vsync", "vfr"]
    told = subprocess.run([*command, "-f", "null", "-"], capture_output=True).stderr.decode(errors="replace")
    stream = re.search(r"Stream #0:.*?: Video: .*?, (\d+)x(\d+).*?([\d.]+)(k?) (?:fps|tbr)", told)
    if not stream:
        why = "it has no pictures" if "Stream #0:" in told else told.strip().splitlines()[-1].strip()
        raise UserError(f"cannot read {str(path)!r} as a video: {why}")
    width, height = int(stream[1]), int(stream[2])
    turned = re.search(r"rotation of (-?[\d.]+)", told[stream.end() :].split("Stream #")[0])  # the next is another's
    if turned and round(float(turned[1])) % 180 == 90:
        width, height = height, width
    counts = re.findall(r"frame= *(\d+)", told)
    fps = float(stream[3]) * (1000 if stream[4] else 1)
    command += ["-v", "panic", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        yield Frames((height, width), _whole_rate(fps), int(counts[-1]) if counts else -1, process.stdout)


def _whole_rate(fps: float) -> float:
    """Broadcasting's rates, which ffmpeg tells to two digits only: 23.98 is 24000/1001, 29.97 is 30000/1001."""
    broadcast = round(fps * 1.001) * 1000 / 1001
    return broadcast if fps % 1 and abs(fps - broadcast) < 0.006 else fps


def read_metadata(path: str | Path) -> dict:
    """What `save_video` stored in the MP4: prompt, seed, settings, versions and the hash of the weights.

    Raises UserError when the file is missing, is not a video, or carries no such comment.
    """
    command = [_ffmpeg(), "-v", "error", "-i", os.path.abspath(path), "-f", "ffmetadata", "-"]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    if result.returncode:
        raise UserError(f"cannot read {str(path)!r} as a video: {result.stderr.strip().splitlines()[-1]}")
    found = re.search(r"^comment=((?:\\.|[^\\\n])*)$", result.stdout, flags=re.MULTILINE | re.DOTALL)
    with contextlib.suppress(TypeError, json.JSONDecodeError):  # no comment, or none of ours
        told = json.loads(re.sub(r"\\(.)", r"\1", found[1], flags=re.DOTALL))  # ffmetadata escapes = ; # and \
        if isinstance(told, dict):
            return told
    raise UserError(f"{str(path)!r} does not say how it was made; videos written by t2v_kit do")


def _ffmpeg() -> str:
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def mediapy_with_ffmpeg():
    """mediapy with the ffmpeg that imageio-ffmpeg brings along: set at first use, because it is global."""
    import mediapy

    mediapy.set_ffmpeg(_ffmpeg())
    return mediapy
