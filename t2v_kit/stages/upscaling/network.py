"""Run frames through an upscaling network: precision, tiles, cores, and smaller batches where memory is short."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from ...errors import UserError
from .options import check_dtype
from .planes import on_host

try:
    from .fused import fused
except ImportError:  # Triton comes with PyTorch for NVIDIA's cards alone
    fused = None

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor


#: At most so many input pixels around a tile are enlarged and thrown away. Networks with no more convolutions of
#: 3x3 than that see no further (compact ones have 18 or 34), so their tiles give the untiled frames.
MAX_OVERLAP = 64
SMALLEST_TILE = 32  # below it, nearly all that the network computes is overlap
_TOLERANCE = 4.0  # levels of 255 by which 'auto' lets a shorter dtype differ on the trial picture: x4plus does by 1.1
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as OpenCV, and so the official tool, makes colours grey


def prepare(net: ImageModelDescriptor, dtype: str, device: torch.device) -> ImageModelDescriptor:
    """Move the network to its device in its dtype, channels last.

    Args:
        net: As `load_upscaler` returns it; it is moved itself.
        dtype: One of `options.DTYPES`.
        device: Where it will compute.

    Returns:
        The same network, or a copy in a shorter dtype.

    Raises:
        UserError: The dtype is unknown, or the network does not compute in it on this device.
    """
    chosen, auto = _choose_dtype(dtype, device), str(dtype) == "auto"
    net.to(device, torch.float32)
    net.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if chosen == torch.float32:
        return net
    shorter = copy.deepcopy(net).to(device, chosen)  # the way back would not bring the digits back
    wanted = _trial(net)
    reason = _failure(shorter, wanted, _TOLERANCE if auto else torch.inf)
    if reason and not auto:
        raise UserError(f"dtype={dtype!r} is not for {net.architecture.name} ({reason}): use 'float32' or 'auto'")
    if reason:
        return net
    _quicken(shorter, wanted)
    return shorter


def _quicken(net: ImageModelDescriptor, wanted: torch.Tensor) -> None:
    """Let `fused` compute the network where it can, and a trial shows the same picture."""
    quick = fused(net.model) if fused is not None else None
    if quick is not None:
        net.model.forward = quick
        if _failure(net, wanted, _TOLERANCE):
            del net.model.forward


def enlarge_or_none(
    net: ImageModelDescriptor,
    frames: np.ndarray,
    target: tuple[int, int],
    tile: int,
    workers: Executor | None = None,
    finish: Callable[[torch.Tensor], np.ndarray] | None = None,
) -> np.ndarray | None:
    """Enlarge a batch of frames; None where the GPU's memory does not suffice.

    Args:
        net: As `prepare` returns it.
        frames: `(B, H, W, C)` uint8.
        target: Height and width of the result.
        tile: As in `tiled`.
        workers: Threads that take one frame each (see `share_cores`); None takes one batch.
        finish: Converts `(B, C, *target)` in [0, 1], which it may overwrite, to the result; by default to uint8 frames.

    Returns:
        `(B, *target, C)` uint8, or what `finish` returns.

    Raises:
        UserError: The network's pixels are not finite numbers.
    """
    try:
        if workers is None:
            return _enlarge(net, frames, target, tile, finish or _as_frames)
        one = functools.partial(_enlarge, net, target=target, tile=tile, finish=finish or _as_frames)
        return np.concatenate(list(workers.map(one, frames[:, None])))
    except torch.OutOfMemoryError:
        pass  # the cache is emptied below: while the error exists, it holds the tensors of the layers that it passed
    torch.cuda.empty_cache()
    return None


def halved(batch: int, tile: int, side: int) -> tuple[int, int]:
    """Return a batch and a tile that need about half the memory or less.

    Args:
        batch: Frames at a time.
        tile: In input pixels; 0 for none.
        side: The frame's longer side.

    Raises:
        UserError: There is nothing smaller.
    """
    if batch > 1:
        return batch // 2, tile
    now = min(tile or side, side)
    smaller = max(SMALLEST_TILE, -(-now // 16) * 8)  # half of it, in whole eights
    if smaller >= now:
        raise UserError(f"out of GPU memory with batch=1 and tiles of {now}: free some, or try device='cpu'")
    return 1, smaller


@contextlib.contextmanager
def share_cores(frames: int) -> Iterator[Executor | None]:
    """Give threads for at most `frames` frames at a time, among which PyTorch's own threads are divided; None for one.

    Threads that share a frame wait for the slowest after every layer, which costs most on a busy machine and on small
    frames. A core with a frame of its own does not wait.
    """
    threads = torch.get_num_threads()
    count = min(frames, threads)
    if count == 1:
        yield None
        return
    began = threading.Barrier(count, timeout=60)  # seconds; a thread that cannot be started breaks it

    def begin() -> None:
        torch.get_num_threads()  # a thread's first call takes the global setting over, and would undo the next line
        torch.set_num_threads(threads // count)  # of this thread, and globally, for those that begin from now on
        began.wait()

    with ThreadPoolExecutor(count, initializer=begin) as workers:
        list(workers.map(lambda _: None, range(count)))  # until all have begun
        torch.set_num_threads(threads)
        yield workers


@torch.inference_mode()  # as a decorator of a plain function: around a `yield` it would leak into the caller
def _enlarge(net, frames: np.ndarray, target: tuple[int, int], tile: int, finish: Callable) -> np.ndarray:
    pixels = torch.from_numpy(frames).to(net.device).permute(0, 3, 1, 2)  # is channels last already
    colours = pixels[:, :3].expand(-1, 3, -1, -1)  # grey becomes three equal channels
    enlarged = tiled(net, colours.to(net.dtype) / 255, tile).float()
    if not enlarged.sum().isfinite():
        raise UserError(f"the upscaler gave pixels that are no numbers in {net.dtype}: try dtype='float32'")
    if enlarged.shape[2:] != target:
        enlarged = _resized(enlarged, target)
    if pixels.shape[1] == 1:
        enlarged = torch.einsum("bchw,c->bhw", enlarged, enlarged.new_tensor(_GREY)).unsqueeze(1)
    if pixels.shape[1] == 4:
        enlarged = torch.cat([enlarged, _resized(pixels[:, 3:].float() / 255, target)], 1)
    return finish(enlarged)


def _as_frames(pixels: torch.Tensor) -> np.ndarray:
    return on_host(pixels.mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous())


def _resized(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp_(0, 1)


def tiled(net: ImageModelDescriptor, pixels: torch.Tensor, tile: int) -> torch.Tensor:
    """Run the network in tiles, each with some pixels around it (`overlap`).

    Args:
        net: The network.
        pixels: `(B, 3, H, W)` in [0, 1].
        tile: Side of a tile in input pixels; 0 for none.

    Returns:
        `(B, 3, H * net.scale, W * net.scale)`.
    """
    batch, _, height, width = pixels.shape
    if not tile or tile >= max(height, width):
        return net(pixels)
    s, around = net.scale, overlap(net)
    whole = pixels.new_empty(batch, 3, height * s, width * s)
    for y in range(0, height, tile):
        for x in range(0, width, tile):
            top, left = max(y - around, 0), max(x - around, 0)
            bottom, right = min(y + tile, height), min(x + tile, width)
            part = net(pixels[:, :, top : bottom + around, left : right + around])
            inner = part[:, :, (y - top) * s : (bottom - top) * s, (x - left) * s : (right - left) * s]
            whole[:, :, y * s : bottom * s, x * s : right * s] = inner
    return whole


def overlap(net: ImageModelDescriptor) -> int:
    """Return how many input pixels the network gets around a tile: as far as it sees, in eights, up to MAX_OVERLAP.

    Real-ESRGAN's two architectures see a pixel further with each convolution; others (attention, U-Nets) get the most.
    """
    if net.architecture.id not in ("Compact", "ESRGAN"):
        return MAX_OVERLAP
    convolutions = [m for m in net.model.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size[0] > 1]
    return min(-(-len(convolutions) // 8) * 8, MAX_OVERLAP)


def _choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """On a CPU, bfloat16 only where the processor computes in it (elsewhere it is slower), float16 never."""
    name = check_dtype(dtype)
    if device.type == "cpu" and name == "float16":
        raise UserError("dtype='float16' needs a GPU: on the CPU use 'bfloat16', 'float32' or 'auto'")
    if name == "auto":
        best = {"cuda": "float16", "cpu": "bfloat16" if _cpu_has_bfloat16() else "float32"}
        name = best.get(device.type, "float32")
    return getattr(torch, name)


@torch.inference_mode()
def _trial(net) -> torch.Tensor:
    """A small picture of soft colours, enlarged by the network."""
    random = torch.Generator().manual_seed(0)
    colours = F.interpolate(torch.rand(1, 3, 4, 4, generator=random), (16, 16), mode="bilinear")
    return net(colours.to(net.device, net.dtype)).float()


def _failure(net, wanted: torch.Tensor, tolerance: float) -> str | None:
    """Why the network should not compute in its dtype, by trial; spandrel's flags are wrong for some, both ways.

    wanted: the trial's result in float32.  tolerance: the greatest mean difference from it, in levels of 255.
    """
    try:
        off = 255 * (_trial(net) - wanted).abs().mean().item()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return " ".join(str(error).split())[:200]
    if math.isnan(off):
        return "its pixels are no numbers"
    return f"{off:.1f} levels of 255 off" if off > tolerance else None


def _cpu_has_bfloat16() -> bool:
    able = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch that is supported
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
