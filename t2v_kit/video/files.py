"""Video files, written and read frame by frame: MP4 that every browser plays, with a record of how it was made.

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
from typing import IO

import numpy as np

from ..atomic import write_whole
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
    """Write a video as H.264 in yuv420p, which every browser plays.

    Every frame is written once. The file gets its name when it is whole.

    Args:
        path: The file, ending in .mp4. Its folder must exist.
        video: `(T, H, W, 3)` uint8; H and W must be even, because yuv420p stores colour for blocks of 2x2 pixels.
        fps: Frames a second.
        metadata: Stored as JSON in the file's comment, the one field that MP4 keeps whatever is in it;
            `read_metadata` returns it.

    Returns:
        The path.

    Raises:
        UserError: `video` is not such an array, a side is odd, or `path` does not end in .mp4.
    """
    height, width = check_video(video).shape[1:3]
    with video_writer(path, (height, width), fps, metadata) as writer:
        for frame in video:
            writer.add_image(frame)
    return Path(path)


@contextlib.contextmanager
def video_writer(path: str | Path, shape: tuple[int, int], fps: float, metadata: dict | None = None) -> Iterator:
    """`save_video` for frames that come one by one.

    Args:
        path, fps, metadata: As for `save_video`.
        shape: (height, width), even.

    Yields:
        A writer; `writer.add_image(frame)` takes `(H, W, 3)` uint8, or `(H, W)` grey.

    Raises:
        UserError: A side is odd, or `path` does not end in .mp4.

    Example:
        >>> with video_writer("out.mp4", (112, 192), 8) as writer:
        ...     for frame in video:
        ...         writer.add_image(frame)
    """
    _check_target(path, shape)
    arguments = {"crf": _CRF, "encoded_format": "yuv420p", "ffmpeg_args": [*MP4_ARGS, *_comment(metadata)]}
    with (
        write_whole(path) as temporary,
        mediapy_with_ffmpeg().VideoWriter(temporary, shape, fps=fps, **arguments) as writer,
    ):
        yield writer


def _check_target(path: str | Path, shape: tuple[int, int]) -> None:
    """Refuse what ffmpeg would write as something else than was asked for."""
    if Path(path).suffix.lower() != ".mp4":
        raise UserError(f"path={str(path)!r}: must end in .mp4; {str(Path(path).with_suffix('.mp4'))!r} would work.")
    if shape[0] % 2 or shape[1] % 2:
        raise UserError(
            f"{shape[1]}x{shape[0]} pixels: an MP4 that every browser plays has an even width and height; "
            f"{shape[1] // 2 * 2 or 2}x{shape[0] // 2 * 2 or 2} would work."
        )


def mp4_command(path: str | Path, shape: tuple[int, int], fps: float, metadata: dict | None = None) -> list[str]:
    """The ffmpeg command that writes the same file as `video_writer`, from yuv420p frames on its standard input."""
    _check_target(path, shape)
    form = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{shape[1]}x{shape[0]}", "-r", f"{fps}", "-i", "-"]
    codec = ["-an", "-vcodec", "libx264", "-pix_fmt", "yuv420p", "-crf", f"{_CRF}"]
    return [_ffmpeg(), "-v", "error", "-y", *form, *codec, *_TAGS, *_comment(metadata), os.path.abspath(path)]


def _comment(metadata: dict | None) -> list[str]:
    return ["-metadata", f"comment={json.dumps(metadata)}"] if metadata else []


@dataclass
class Frames:
    """The frames of a file, `(H, W, 3)` uint8, to be iterated once.

    Attributes:
        shape: (height, width).
        fps: Frames a second.
        num_images: The number of frames; -1 when it is not known.
    """

    shape: tuple[int, int]
    fps: float
    num_images: int
    _pipe: IO[bytes] = field(repr=False)

    def __len__(self) -> int:
        return max(self.num_images, 0)

    def __iter__(self) -> Iterator[np.ndarray]:
        while data := self._pipe.read(3 * self.shape[0] * self.shape[1]):
            yield np.frombuffer(data, np.uint8).reshape(*self.shape, 3)


@contextlib.contextmanager
def video_reader(path: str | Path) -> Iterator[Frames]:
    """Read a video file's frames one by one, as they are stored: none dropped or doubled.

    A video that a phone recorded upright comes upright, as players show it.

    Args:
        path: Any file that ffmpeg reads.

    Yields:
        `Frames`: iterable once, with `shape` (height, width), `fps` and `num_images`.

    Raises:
        UserError: The file is missing or is not a video.

    Example:
        >>> with video_reader("in.mp4") as frames:
        ...     video = np.stack(list(frames))
    """
    # Not by mediapy, which reads an upright video as a wide one, and fails at tags that are not UTF-8.
    command = [_ffmpeg(), "-nostdin", "-i", os.path.abspath(path), "-map", "0:v:0", "-vsync", "vfr"]
    log = subprocess.run([*command, "-f", "null", "-"], capture_output=True).stderr.decode(errors="replace")
    stream = re.search(r"Stream #0:.*?: Video: .*?, (\d+)x(\d+).*?([\d.]+)(k?) (?:fps|tbr)", log)
    if not stream:
        why = "it has no pictures" if "Stream #0:" in log else log.strip().splitlines()[-1].strip()
        raise UserError(f"cannot read {str(path)!r} as a video: {why}")
    width, height = int(stream[1]), int(stream[2])
    turned = re.search(r"rotation of (-?[\d.]+)", log[stream.end() :].split("Stream #")[0])  # the next is another's
    if turned and round(float(turned[1])) % 180 == 90:
        width, height = height, width
    counts = re.findall(r"frame= *(\d+)", log)
    fps = float(stream[3]) * (1000 if stream[4] else 1)
    command += ["-v", "panic", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield Frames((height, width), _whole_rate(fps), int(counts[-1]) if counts else -1, process.stdout)


def _whole_rate(fps: float) -> float:
    """The exact rates of broadcasting, of which ffmpeg prints two digits: 23.98 is 24000/1001, 29.97 is 30000/1001."""
    broadcast = round(fps * 1.001) * 1000 / 1001
    return broadcast if fps % 1 and abs(fps - broadcast) < 0.006 else fps


def read_metadata(path: str | Path) -> dict:
    """Return the metadata that `save_video` stored: prompt, seed, settings, versions and the hash of the weights.

    Args:
        path: A video file.

    Raises:
        UserError: The file is missing, is not a video, or carries no such metadata.
    """
    command = [_ffmpeg(), "-v", "error", "-i", os.path.abspath(path), "-f", "ffmetadata", "-"]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    if result.returncode:
        raise UserError(f"cannot read {str(path)!r} as a video: {result.stderr.strip().splitlines()[-1]}")
    comment = re.search(r"^comment=((?:\\.|[^\\\n])*)$", result.stdout, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\\(.)", r"\1", comment[1], flags=re.DOTALL) if comment else ""  # ffmetadata escapes = ; # and \
    with contextlib.suppress(json.JSONDecodeError):  # no comment, or none of ours
        metadata = json.loads(text)
        if isinstance(metadata, dict):
            return metadata
    raise UserError(f"{str(path)!r} does not say how it was made; videos written by t2v_kit do")


def _ffmpeg() -> str:
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def mediapy_with_ffmpeg():
    """mediapy, set to use the ffmpeg of imageio-ffmpeg. Set at first use, because the setting is global."""
    import mediapy

    mediapy.set_ffmpeg(_ffmpeg())
    return mediapy
