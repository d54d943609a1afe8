"""Convolutions of 3x3 for NVIDIA's Hopper cards, in Triton, with everything that follows a convolution done on the way.

The networks here have few channels: cuDNN's convolutions of 64 or 32 channels, the copies that put channels side by
side and the activations wait for memory most of the time. Here a layer reads its input from the first channels of a
buffer and writes its result, activated, behind them or into another buffer, so that nothing is copied.

Frames lie in a buffer one pixel after the other, each row followed by one empty pixel and each frame by one empty row.
A neighbour is then always the same number of pixels away, and the edges see zeros.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false
# (Triton is not on every machine, and its decorator changes what a function is.)

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def _conv3x3(
    source, weights, target, bias, slope, first, second, pixels, width, height, target_stride, first_stride,
    second_stride, first_share, second_share, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, USED: tl.constexpr,
    ROWS: tl.constexpr, STEP: tl.constexpr, ACTIVE: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    """Each program makes ROWS - 2 pixels. The three columns of the window are summed apart, so that a pixel is read
    three times and not nine, and are shifted onto each other last."""
    start = tl.program_id(0) * (ROWS - 2) - 1
    left = tl.zeros((ROWS, OUTPUTS), tl.float32)
    middle = tl.zeros((ROWS, OUTPUTS), tl.float32)
    right = tl.zeros((ROWS, OUTPUTS), tl.float32)
    parts: tl.constexpr = INPUTS // STEP
    for k in range(3 * parts):
        row, channel = k // parts, k % parts * STEP
        tile = source.load([start + (row - 1) * (width + 1), channel])
        at = row * 3 * INPUTS + channel
        left = tl.dot(tile, weights.load([at, 0]), left)
        middle = tl.dot(tile, weights.load([at + INPUTS, 0]), middle)
        right = tl.dot(tile, weights.load([at + 2 * INPUTS, 0]), right)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, OUTPUTS)
    before = tl.broadcast_to(tl.maximum(rows - 1, 0)[:, None], (ROWS, OUTPUTS))
    behind = tl.broadcast_to(tl.minimum(rows + 1, ROWS - 1)[:, None], (ROWS, OUTPUTS))
    sums = middle + tl.gather(left, before, 0) + tl.gather(right, behind, 0)
    place = start + rows
    x, y = place % (width + 1), place // (width + 1) % (height + 1)
    inside = (rows > 0) & (rows < ROWS - 1) & (place >= 0) & (place < pixels) & (x < width) & (y < height)
    known = inside[:, None] & (columns < USED)[None, :]
    place = place.to(tl.int64)[:, None]
    sums += tl.load(bias + columns)[None, :]
    if ACTIVE:
        sums = tl.where(sums > 0, sums, sums * tl.load(slope + columns)[None, :])
    if ADDS > 0:
        sums = sums * first_share + tl.load(first + place * first_stride + columns[None, :], known, 0.0)
    if ADDS > 1:
        sums = sums * second_share + tl.load(second + place * second_stride + columns[None, :], known, 0.0)
    tl.store(target + place * target_stride + columns[None, :], sums.to(target.dtype.element_ty), known)


@triton.jit
def _conv2x2_up(
    source, weights, target, bias, slope, pixels, width, height, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A 3x3 convolution behind a doubling of the size by repeating pixels: each of the four pixels that one becomes
    sees 2x2 different ones."""
    start, phase = tl.program_id(0) * ROWS, tl.program_id(1)
    down, across = phase // 2, phase % 2
    sums = tl.zeros((ROWS, OUTPUTS), tl.float32)
    parts: tl.constexpr = INPUTS // STEP
    for k in range(4 * parts):
        tap, channel = k // parts, k % parts * STEP
        shift = (tap // 2 + down - 1) * (width + 1) + tap % 2 + across - 1
        tile = source.load([start + shift, channel])
        sums = tl.dot(tile, weights.load([(phase * 4 + tap) * INPUTS + channel, 0]), sums)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, OUTPUTS)
    place = start + rows
    x, line = place % (width + 1), place // (width + 1)
    y, frame = line % (height + 1), line // (height + 1)
    inside = (place < pixels) & (x < width) & (y < height)
    to = (frame.to(tl.int64) * (2 * height + 1) + 2 * y + down) * (2 * width + 1) + 2 * x + across
    sums += tl.load(bias + columns)[None, :]
    sums = tl.where(sums > 0, sums, sums * tl.load(slope + columns)[None, :])
    tl.store(
        target + to[:, None] * OUTPUTS + columns[None, :], sums.to(target.dtype.element_ty), inside[:, None]
    )  # fmt: skip


class Plane:
    """Frames in the form that the kernels take.

    Args:
        frames, height, width: Of what it holds.
        channels: For each pixel.
        dtype, device: Of its numbers.
    """

    def __init__(self, frames: int, height: int, width: int, channels: int, dtype: torch.dtype, device: torch.device):
        self.frames, self.height, self.width, self.channels = frames, height, width, channels
        self.pixels = frames * (height + 1) * (width + 1)
        self.data = torch.zeros(self.pixels, channels, dtype=dtype, device=device)
        self._tiles: dict[tuple[int, int], TensorDescriptor] = {}

    def tiles(self, rows: int, step: int) -> TensorDescriptor:
        if (rows, step) not in self._tiles:
            self._tiles[rows, step] = TensorDescriptor.from_tensor(self.data, [rows, step])
        return self._tiles[rows, step]

    @property
    def inside(self) -> torch.Tensor:
        """`(B, H, W, C)` without the empty pixels; a view."""
        whole = self.data.view(self.frames, self.height + 1, self.width + 1, self.channels)
        return whole[:, : self.height, : self.width]


@dataclass(frozen=True)
class Shape:
    """How a kernel is cut: pixels of a program, channels of a step, warps, and steps that are fetched ahead."""

    rows: int = 128
    step: int = 32
    warps: int = 4
    stages: int = 4


class Conv:
    """A 3x3 convolution with zeros around the edges, its activation, and what is added to it.

    Args:
        layer: The convolution, on the GPU in the dtype to compute in.
        slope: What negative results are multiplied by, one number or one for each channel; None for no activation.
        doubling: Whether its input is doubled in size first, by repeating pixels.
        shape: How the kernel is cut.
    """

    def __init__(
        self, layer: torch.nn.Conv2d, slope: float | torch.Tensor | None, doubling: bool = False,
        shape: Shape | None = None,
    ) -> None:  # fmt: skip
        weight = layer.weight.detach()
        outputs, inputs = weight.shape[:2]
        self.used, self.outputs = outputs, max(16, triton.next_power_of_2(outputs))
        self.inputs = max(16, -(-inputs // 16) * 16)
        self.doubling = doubling
        shape = shape or Shape()
        step = shape.step
        while self.inputs % step:
            step //= 2
        self.shape = Shape(shape.rows, step, shape.warps, shape.stages)
        taps = _merged(weight.float()) if doubling else weight.permute(2, 3, 1, 0).reshape(9, inputs, outputs)
        whole = weight.new_zeros(len(taps), self.inputs, self.outputs)
        whole[:, :inputs, :outputs] = taps.to(weight.dtype)
        self.weights = TensorDescriptor.from_tensor(whole.view(-1, self.outputs), [step, self.outputs])
        self.bias = weight.new_zeros(self.outputs, dtype=torch.float32)
        if layer.bias is not None:
            self.bias[:outputs] = layer.bias.detach().float()
        self.active = slope is not None
        self.slope = torch.ones_like(self.bias)
        if slope is not None:
            self.slope[:outputs] = slope

    def __call__(
        self, source: Plane, target: Plane, at: int = 0, adds: tuple[tuple[float, torch.Tensor], ...] = ()
    ) -> None:
        """Convolve the first channels of a plane.

        Args:
            source: What is read.
            target: What is written, not its empty pixels; may be `source` where other channels are written.
            at: The first channel to write.
            adds: Up to two (share, data of a plane): the result is multiplied by share, and the plane added to it.
        """
        s, data = self.shape, target.data[:, at:]
        tiles = source.tiles(s.rows, s.step)
        if self.doubling:
            _conv2x2_up[triton.cdiv(source.pixels, s.rows), 4](
                tiles, self.weights, data, self.bias, self.slope, source.pixels, source.width, source.height,
                self.inputs, self.outputs, s.rows, s.step, num_warps=s.warps, num_stages=s.stages,
            )  # fmt: skip
            return
        (share, first), (other, second) = (*adds, (1.0, data), (1.0, data))[:2]
        _conv3x3[(triton.cdiv(source.pixels, s.rows - 2),)](
            tiles, self.weights, data, self.bias, self.slope, first, second, source.pixels, source.width,
            source.height, data.stride(0), first.stride(0), second.stride(0), share, other, self.inputs,
            self.outputs, self.used, s.rows, s.step, self.active, len(adds), num_warps=s.warps, num_stages=s.stages,
        )  # fmt: skip


def _merged(weight: torch.Tensor) -> torch.Tensor:
    """The weights of `_conv2x2_up`: of the three rows (columns) of the window, two fall on the same pixel.

    Args:
        weight: `(out, in, 3, 3)`.

    Returns:
        `(16, in, out)`: four taps for each of the four phases.
    """
    both = [weight.new_tensor([[1, 0, 0], [0, 1, 1]]), weight.new_tensor([[1, 1, 0], [0, 0, 1]])]
    taps = [torch.einsum("oiyx,ay,bx->abio", weight, down, across) for down in both for across in both]
    return torch.stack(taps).reshape(16, *weight.shape[1::-1])
