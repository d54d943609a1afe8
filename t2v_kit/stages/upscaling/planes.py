"""Frames as H.264 stores them, computed where the network ran.

A frame of 3840x2176 is 25 MB of RGB, which ffmpeg converts on one core while the GPU waits. As brightness and two
colour planes of half the height and width it is half as much to copy and to pipe, and ffmpeg has nothing to convert.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ...video.files import mp4_command

KR, KB = 0.2126, 0.0722  # the shares of red and blue in brightness: ITU-R BT.709-6, item 3.2


@torch.inference_mode()
def as_planes(pixels: torch.Tensor) -> np.ndarray:
    """Convert frames to yuv420p in BT.709's limited range.

    Args:
        pixels: `(B, 3, H, W)` in [0, 1], H and W even.

    Returns:
        `(B, H * 3 / 2, W)` uint8: brightness, then the two colour planes.
    """
    red, green, blue = pixels.unbind(1)
    bright = KR * red + (1 - KR - KB) * green + KB * blue
    colour = torch.stack([(blue - bright) / (2 * (1 - KB)), (red - bright) / (2 * (1 - KR))], 1)
    small = 128 + 224 * F.avg_pool2d(colour, 2)
    planes = torch.cat([(16 + 219 * bright).flatten(1), small.flatten(1)], 1)
    batch, _, height, width = pixels.shape
    return planes.round_().to(torch.uint8).view(batch, height * 3 // 2, width).cpu().numpy()


class PlaneWriter:
    """Writes the planes of `as_planes` to an MP4, as `video.files.video_writer` writes frames.

    Example:
        >>> with PlaneWriter("a.mp4", (64, 96), fps=16) as writer:
        ...     writer.add_image(np.full((96, 96), 128, np.uint8))
    """

    def __init__(self, path: str | Path, shape: tuple[int, int], fps: float, metadata: dict | None = None) -> None:
        self.command = mp4_command(path, shape, fps, metadata)

    def __enter__(self) -> PlaneWriter:
        self.messages = tempfile.TemporaryFile()  # a pipe that is not read could fill up
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stderr=self.messages)
        assert self.process.stdin is not None  # it is a pipe
        self.pipe = self.process.stdin
        return self

    def add_image(self, planes: np.ndarray) -> None:
        """Write a frame: `(H * 3 / 2, W)` uint8."""
        try:
            self.pipe.write(planes.tobytes())
        except BrokenPipeError:
            raise self._failure() from None

    def __exit__(self, kind, *_) -> None:
        with self.messages:
            with contextlib.suppress(BrokenPipeError):  # ffmpeg ended before its input did, and says why
                self.pipe.close()
            if self.process.wait() and kind is None:
                raise self._failure()

    def _failure(self) -> RuntimeError:
        self.process.wait()
        self.messages.seek(0)
        return RuntimeError(f"ffmpeg: {self.messages.read().decode(errors='replace').strip()}")
