"""Video files, written and read frame by frame: MP4 that every browser plays, with a record of how it was made.

A video is `(T, H, W, 3)` uint8 everywhere, as in mediapy.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from av.container import OutputContainer

from ..atomic import write_whole
from ..errors import UserError
from .arrays import check_video
from .decoding import Decoder, main_stream, unreadable
from .encoding import Encoder, check_size, encoding_for, muxed, open_target, whole_rate
from .joining import RECORDS, is_record

# What mediapy's ffmpeg needs for the same colours: BT.709, tagged, as browsers assume of HD video.
MP4_ARGS = [
    *("-vf", "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int"),
    *("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"),
    *("-movflags", "+faststart"),  # the index first, so that a browser starts playing at once
]


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
    if Path(path).suffix.lower() != ".mp4":
        raise UserError(f"path={str(path)!r}: must end in .mp4; {str(Path(path).with_suffix('.mp4'))!r} would work.")
    encoding = encoding_for(path)
    check_size(encoding, shape)
    with write_whole(path) as temporary, open_target(temporary, encoding.container) as file:
        if metadata:
            file.metadata["comment"] = json.dumps(metadata)
        encoder = Encoder(file, encoding, shape, whole_rate(fps))
        yield _Writer(file, encoder)
        muxed(file, encoder.finish())


class _Writer:
    """What `video_writer` gives."""

    def __init__(self, file: OutputContainer, encoder: Encoder) -> None:
        self._file, self._encoder = file, encoder

    def add_image(self, frame: np.ndarray) -> None:
        """Write a frame: `(H, W, 3)` uint8, or `(H, W)` grey."""
        muxed(self._file, self._encoder.encode(frame))


@dataclass
class Frames:
    """The frames of a file, `(H, W, 3)` uint8, to be iterated once.

    Attributes:
        shape: (height, width).
        fps: Frames a second; the mean rate where it varies.
        num_images: The number of frames by the file's index or length; 0 when it is not known.
        times: When the frames so far are shown, in seconds.
        damage: What was wrong with the file, a line each; complete after the last frame.
    """

    shape: tuple[int, int]
    fps: float
    num_images: int
    times: list[Fraction] = field(default_factory=list, repr=False)
    damage: list[str] = field(default_factory=list)
    _decoder: Decoder | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return self.num_images

    def __iter__(self) -> Iterator[np.ndarray]:
        assert self._decoder is not None
        for frame in self._decoder.frames():
            self.times.append(frame.pts * self._decoder.info.time_base)
            yield opaque(frame.pixels)
        self.damage += self._decoder.damage


def opaque(pixels: np.ndarray) -> np.ndarray:
    """Colours alone: where there is opacity, over black."""
    if pixels.shape[2] == 3:
        return pixels
    most = np.iinfo(pixels.dtype).max
    over = pixels[..., :3].astype(np.uint32) * pixels[..., 3:]
    return ((over + most // 2) // most).astype(pixels.dtype)


@contextlib.contextmanager
def video_reader(path: str | Path) -> Iterator[Frames]:
    """Read a video file's frames one by one, as they are stored: none dropped or doubled.

    They come as players show them: upright, deinterlaced, opacity over black, HDR mapped to SDR.

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
    decoder = Decoder(path)
    try:
        info = decoder.info
        yield Frames(info.shape, float(info.rate), info.total, _decoder=decoder)
    finally:
        decoder.close()


def read_metadata(path: str | Path) -> dict:
    """Return the metadata that `save_video` stored: prompt, seed, settings, versions and the hash of the weights.

    Args:
        path: A video file.

    Raises:
        UserError: The file is missing, is not a video, or carries no such metadata.
    """
    try:
        with av.open(f"file:{os.path.abspath(path)}", metadata_errors="replace") as file:
            main_stream(file, path)
            stored = {name.lower(): text for name, text in file.metadata.items()}
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise error if isinstance(error, UserError) else unreadable(path, error) from error
    for name in RECORDS:
        if is_record(stored.get(name, "")):
            return json.loads(stored[name])
    raise UserError(f"{str(path)!r} does not say how it was made; videos written by t2v_kit do")


def mediapy_with_ffmpeg():
    """mediapy, set to use the ffmpeg of imageio-ffmpeg. Set at first use, because the setting is global."""
    import imageio_ffmpeg
    import mediapy

    mediapy.set_ffmpeg(imageio_ffmpeg.get_ffmpeg_exe())
    return mediapy
