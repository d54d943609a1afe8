"""Frames as H.264 stores them, made where the network ran.

A frame of 3840x2176 is 25 MB of RGB, which ffmpeg converts on one core while the GPU waits. As brightness and two
colour planes of half the height and width it is half of that to fetch and to pipe, and nothing is left to convert.
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

KR, KB = 0.2126, 0.0722  # what red and blue have in brightness: ITU-R BT.709-6, table 3


@torch.inference_mode()
def as_planes(pixels: torch.Tensor) -> np.ndarray:
    """`(B, 3, H, W)` in [0, 1], H and W even, as yuv420p `(B, H * 3 / 2, W)` uint8 in BT.709's limited range."""
    red, green, blue = pixels.unbind(1)
    bright = KR * red + (1 - KR - KB) * green + KB * blue
    colour = torch.stack([(blue - bright) / (2 * (1 - KB)), (red - bright) / (2 * (1 - KR))], 1)
    small = 128 + 224 * F.avg_pool2d(colour, 2)
    planes = torch.cat([(16 + 219 * bright).flatten(1), small.flatten(1)], 1)
    batch, _, height, width = pixels.shape
    return planes.round_().to(torch.uint8).view(batch, height * 3 // 2, width).cpu().numpy()


class PlaneWriter:
    """`film.video_writer` for what `as_planes` makes: `with PlaneWriter(...) as writer: writer.add_image(planes)`."""

    def __init__(self, path: str | Path, shape: tuple[int, int], fps: float, metadata: dict | None = None) -> None:
        self.command = mp4_command(path, shape, fps, metadata)

    def __enter__(self) -> PlaneWriter:
        self.said = tempfile.TemporaryFile()  # a pipe nobody reads could fill up
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stderr=self.said)
        return self

    def add_image(self, planes: np.ndarray) -> None:
        try:
            self.process.stdin.write(planes.tobytes())
        except BrokenPipeError:
            raise self._failure() from None

    def __exit__(self, kind, *_) -> None:
        with self.said:
            with contextlib.suppress(BrokenPipeError):  # it ended before its input did, and says why
                self.process.stdin.close()
            if self.process.wait() and kind is None:
                raise self._failure()

    def _failure(self) -> RuntimeError:
        self.process.wait()
        self.said.seek(0)
        return RuntimeError(f"ffmpeg: {self.said.read().decode(errors='replace').strip()}")
