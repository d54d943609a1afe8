"""A batch of frames through an upscaling network: precision, tiles, cores, and less at once when memory is short."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from ...errors import UserError

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

DTYPES = ("auto", "float32", "bfloat16", "float16")

#: At most so many input pixels around a tile are enlarged and thrown away. Networks with no more convolutions of
#: 3x3 than that see no further (compact ones have 18 or 34), so their tiles give the untiled frames.
MAX_OVERLAP = 64
SMALLEST_TILE = 32  # below it, nearly all that the network computes is overlap
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as OpenCV, and so the official tool, makes colours grey


def prepare(net: ImageModelDescriptor, dtype: str, device: torch.device) -> ImageModelDescriptor:
    """The network on its device, in its dtype, channels last. Raises UserError where the dtype is not for it."""
    net.to(device, _choose_dtype(dtype, device, net))
    net.model.to(memory_format=torch.channels_last)
    return net


def enlarge_or_none(
    net: ImageModelDescriptor,
    frames: np.ndarray,
    target: tuple[int, int],
    tile: int,
    workers: Executor | None = None,
    finish: Callable[[torch.Tensor], np.ndarray] | None = None,
) -> np.ndarray | None:
    """`(B, H, W, C)` uint8 to `(B, *target, C)` uint8, or None where the GPU's memory does not suffice.

    tile: see `tiled`.  workers: threads that take one frame each (see `share_cores`); None is one batch.
    finish: what makes the result of `(B, C, *target)` in [0, 1], which it may overwrite, instead.
    Raises UserError when the network's pixels are no numbers.
    """
    try:
        if workers is None:
            return _enlarge(net, frames, target, tile, finish or _as_frames)
        one = functools.partial(_enlarge, net, target=target, tile=tile, finish=finish or _as_frames)
        return np.concatenate(list(workers.map(one, frames[:, None])))
    except torch.OutOfMemoryError:
        pass  # as long as the error lives, so do the tensors of the layers it went through
    torch.cuda.empty_cache()
    return None


def halved(batch: int, tile: int, side: int) -> tuple[int, int]:
    """Batch and tile that need about half the memory or less; `side` is the frame's longer one."""
    if batch > 1:
        return batch // 2, tile
    now = min(tile or side, side)
    smaller = max(SMALLEST_TILE, -(-now // 16) * 8)  # half of it, in whole eights
    if smaller >= now:
        raise UserError(f"out of GPU memory with batch=1 and tiles of {now}: free some, or try device='cpu'")
    return 1, smaller


@contextlib.contextmanager
def share_cores(frames: int) -> Iterator[Executor | None]:
    """Threads for at most `frames` frames at a time, among which PyTorch's own threads are divided; None for one.

    A core with a frame of its own waits for nobody. Threads that share a frame wait for the slowest after every layer,
    which costs most on a busy machine and on small frames.
    """
    threads = torch.get_num_threads()
    count = min(frames, threads)
    if count == 1:
        yield None
        return
    began = threading.Barrier(count)

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
    return pixels.mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _resized(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp_(0, 1)


def tiled(net: ImageModelDescriptor, pixels: torch.Tensor, tile: int) -> torch.Tensor:
    """The network on `(B, 3, H, W)` in [0, 1], in tiles of `tile` input pixels (0: whole); it sees around them too."""
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
    """Input pixels that the network is shown around a tile: as far as it sees, up to MAX_OVERLAP; whole eights."""
    convolutions = [m for m in net.model.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size[0] > 1]
    return min(-(-len(convolutions) // 8) * 8, MAX_OVERLAP)


def _choose_dtype(dtype: str, device: torch.device, net) -> torch.dtype:
    """On a CPU, bfloat16 only where the processor computes in it (elsewhere it is slower), float16 never."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UserError(f"dtype={dtype!r} is unknown: choose one of {', '.join(DTYPES)}")
    if device.type == "cpu" and name == "float16":
        raise UserError("dtype='float16' needs a GPU: on the CPU use 'bfloat16', 'float32' or 'auto'")
    supported = {"float32": True, "bfloat16": net.supports_bfloat16, "float16": net.supports_half}
    if name == "auto":
        best = {"cuda": "float16", "cpu": "bfloat16" if _cpu_has_bfloat16() else "float32"}
        name = best.get(device.type, "float32")
        name = name if supported[name] else "float32"
    if not supported[name]:
        raise UserError(f"dtype={dtype!r} is not for {net.architecture.name}: use 'float32' or 'auto'")
    return getattr(torch, name)


def _cpu_has_bfloat16() -> bool:
    able = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch that is supported
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
