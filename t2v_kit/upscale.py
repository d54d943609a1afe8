"""Stage 4: a video made larger by Real-ESRGAN, frames in batches.

Weight files are read by spandrel, which recognises Real-ESRGAN's two architectures by their keys: RRDBNet
(x4plus, x2plus, anime_6B) and the compact SRVGGNet (animevideov3, general-x4v3, pocket). What runs them is the
short loop below: batches, channels last, half precision where it is safe, tiles where memory asks for it. Where
the files come from is told in upscaler_files.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from .settings import UserError, tell_once
from .upscaler_files import FILE, read_tensors, weight_files

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

DTYPES = ("auto", "float32", "bfloat16", "float16")
MAX_SCALE = 16
#: Input pixels around a tile that the network sees and whose enlargement is thrown away. The compact networks
#: look at most 18 pixels far (18 convolutions of 3x3), so their tiles give the untiled frames.
OVERLAP = 24
#: Input pixels in one batch: more gains nothing. On a CPU it loses: from 32 MB an activation on, glibc returns
#: the memory to the system after each layer (bfloat16, 112x192: 0.07 s a frame in batches of 4, 0.16 s of 8).
_PIXELS = {"cpu": 4 * 112 * 192, "cuda": 2**20}
_LARGEST = 2**20  # input pixels of a frame from which on it is cut into tiles of _TILE
_TILE = 512
_SMALLEST_TILE = 32  # below it, nearly all that the network computes is overlap


def upscale(
    video: np.ndarray,
    model: str | Path = "pocket",
    scale: float = 4,
    dtype: str = "auto",
    tile: int | None = None,
    batch: int | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    denoise_strength: float | None = None,
) -> np.ndarray:
    """Enlarge a video: `(T, H, W, 3)` uint8 in, `(T, round(H * scale), round(W * scale), 3)` uint8 out.

    model: "pocket", or "pocket-wdn", which keeps noise; one of Real-ESRGAN's published files, fetched once and
        its SHA-256 checked ("RealESRGAN_x4plus", "RealESRGAN_x2plus", "RealESRGAN_x4plus_anime_6B",
        "realesr-animevideov3", "realesr-general-x4v3", "realesr-general-wdn-x4v3"); or the path of such a file
        (.pth or .safetensors).
    scale: the enlargement, 1 to 16; where it is not the network's own, its output is resized (antialiased
        bicubic).
    dtype: "auto" is float16 on a GPU, and on a CPU bfloat16 if the processor computes in it, else float32.
        With pocket's weights bfloat16 differs from float32 by at most 1 level of 255 (62 dB between the two).
    tile: side of the square tiles in input pixels, a multiple of 8; 0 for none; None cuts only huge frames.
    batch: frames that go through the network together; None fits them to the device.
    device: None is the first GPU, or the CPU where there is none.
    denoise_strength: 0 (noise is kept) to 1 (it is taken away), for "pocket" and "realesr-general-x4v3", which
        have a second network to be mixed with; None is the named network alone, the same as 1.

    When the GPU's memory does not suffice, `batch` is halved, then `tile`, given or not, and one warning says
    what worked.

    Raises UserError for an unknown upscaler, a file that is none, is damaged or can't be fetched, for a video,
    scale, dtype, tile, batch or denoise_strength that breaks the rules above, and when the smallest tile is
    still too large for the GPU.
    """
    _check_video(video)
    frames = upscale_frames(video, model, scale, dtype, tile, batch, device, progress, denoise_strength)
    height, width = _target(video.shape[1:3], scale)
    enlarged = np.empty((len(video), height, width, 3), np.uint8)
    for index, frame in enumerate(frames):
        enlarged[index] = frame
    return enlarged


def upscale_frames(
    frames: Iterable[np.ndarray],
    model: str | Path = "pocket",
    scale: float = 4,
    dtype: str = "auto",
    tile: int | None = None,
    batch: int | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    denoise_strength: float | None = None,
) -> Iterator[np.ndarray]:
    """`upscale` as a stream: `(H, W, 3)` uint8 frames of one size in, enlarged ones out, one batch in memory.

    The options are those of `upscale`; mistakes in them are raised here, not at the first frame.
    """
    _check_options(scale, tile, batch)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    net = load_upscaler(model, denoise_strength, progress)
    net.to(device, _choose_dtype(dtype, device, net))
    net.model.to(memory_format=torch.channels_last)
    return _stream(net, frames, scale, tile, batch, progress)


def load_upscaler(
    model: str | Path = "pocket", denoise_strength: float | None = None, progress: bool = True
) -> ImageModelDescriptor:
    """Read an upscaler: spandrel's descriptor (`.model`, `.scale`, `.architecture`), float32 on the CPU.

    model and denoise_strength are those of `upscale`. Only tensors are read from a .pth (`weights_only=True`):
    a file can never run code; a published file is not read at all unless its SHA-256 is right. It is kept in
    `torch.hub.get_dir()/checkpoints`.

    Raises UserError when the name is unknown or can't be fetched, denoise_strength is not from 0 to 1 or the
    model has no pair for it, and when a file is damaged or holds no network that enlarges RGB pictures.
    """
    import spandrel  # over a second: only who enlarges waits for it

    files = weight_files(model, denoise_strength, progress)
    names = " or ".join(repr(str(path)) for path, _ in files)
    try:
        parts = [(spandrel.canonicalize_state_dict(read_tensors(path)), share) for path, share in files]
        keys = parts[0][0].keys()
        net = spandrel.MAIN_REGISTRY.load({key: sum(w[key].float() * share for w, share in parts) for key in keys})
    except Exception as error:  # sizes are inferred from the keys: a wrong file can fail anywhere in there
        raise UserError(f"{names} is damaged or no upscaler: give a {FILE}") from error
    if not isinstance(net, spandrel.ImageModelDescriptor) or net.scale < 2 or net.input_channels != 3:
        what = f"{net.architecture.name} x{net.scale}"
        raise UserError(f"{names} holds {what}, which enlarges no RGB video: give a {FILE}")
    if factor := getattr(net.model, "shuffle_factor", None):
        # RealESRGANer pads a frame to whole pixel-unshuffled cells, spandrel further: other edges on odd sizes.
        net.size_requirements = spandrel.SizeRequirements(minimum=2, multiple_of=factor)
    net.model.eval().requires_grad_(False)
    return net


def _stream(net, frames, scale, tile, batch, progress) -> Iterator[np.ndarray]:
    total = len(frames) if hasattr(frames, "__len__") else None
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        return
    _check_video(np.asarray(first)[None])
    height, width = first.shape[:2]
    tile = tile if tile is not None else _TILE if height * width > _LARGEST else 0
    batch = batch or max(1, _PIXELS.get(net.device.type, _PIXELS["cpu"]) // (height * width))
    frames = _like(first, chain([first], frames))
    warned = short = False
    with tqdm(total=total, desc="upscale", unit="frame", disable=not progress) as bar:
        group = list(islice(frames, batch))
        while group:
            part = np.stack(group[:batch])
            enlarged = _enlarge_or_none(net, part, _target((height, width), scale), tile)
            if enlarged is None:
                short = True
                batch, tile = _halved(len(part), tile, max(height, width))
                continue
            if short and not warned:
                warned = True
                now = f"batch={batch} and tile={tile}" if tile else f"batch={batch}"
                tell_once(f"out of GPU memory: went on with {now}; give these to start so")
            bar.update(len(part))
            yield from enlarged
            group = group[len(part) :] or list(islice(frames, batch))


def _like(first: np.ndarray, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for frame in frames:
        if frame.shape != first.shape or frame.dtype != np.uint8:
            got = f"{frame.shape} {frame.dtype}"
            raise UserError(f"every frame must be {first.shape} uint8 like the first, but one is {got}")
        yield frame


def _halved(batch: int, tile: int, side: int) -> tuple[int, int]:
    """Batch and tile that need about half the memory or less; `side` is the frame's longer one."""
    if batch > 1:
        return batch // 2, tile
    now = min(tile or side, side)
    smaller = max(_SMALLEST_TILE, -(-now // 16) * 8)  # half of it, in whole eights
    if smaller >= now:
        raise UserError(f"out of GPU memory with batch=1 and tiles of {now}: free some, or try device='cpu'")
    return 1, smaller


def _enlarge_or_none(net, frames: np.ndarray, target: tuple[int, int], tile: int) -> np.ndarray | None:
    """`_enlarge`, or None where the GPU's memory does not suffice."""
    try:
        return _enlarge(net, frames, target, tile)
    except torch.OutOfMemoryError:
        pass  # as long as the error lives, so do the tensors of the layers it went through
    torch.cuda.empty_cache()
    return None


@torch.inference_mode()  # as a decorator of a plain function: around a `yield` it would leak into the caller
def _enlarge(net, frames: np.ndarray, target: tuple[int, int], tile: int) -> np.ndarray:
    """One batch: `(B, H, W, 3)` uint8 to `(B, *target, 3)` uint8."""
    pixels = torch.from_numpy(frames).to(net.device).permute(0, 3, 1, 2)  # is channels last already
    pixels = _tiled(net, pixels.to(net.dtype) / 255, tile).float()
    if not pixels.isfinite().all():
        raise UserError(f"the upscaler gave pixels that are no numbers in {net.dtype}: try dtype='float32'")
    if pixels.shape[2:] != target:
        pixels = F.interpolate(pixels, target, mode="bicubic", antialias=True).clamp_(0, 1)
    return pixels.mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def _tiled(net, pixels: torch.Tensor, tile: int) -> torch.Tensor:
    """The network on `(B, 3, H, W)` in [0, 1], in tiles of `tile` input pixels; it sees around them too."""
    batch, _, height, width = pixels.shape
    if not tile or tile >= max(height, width):
        return net(pixels)
    s, whole = net.scale, pixels.new_empty(batch, 3, height * net.scale, width * net.scale)
    for y in range(0, height, tile):
        for x in range(0, width, tile):
            top, left = max(y - OVERLAP, 0), max(x - OVERLAP, 0)
            bottom, right = min(y + tile, height), min(x + tile, width)
            part = net(pixels[:, :, top : bottom + OVERLAP, left : right + OVERLAP])
            inner = part[:, :, (y - top) * s : (bottom - top) * s, (x - left) * s : (right - left) * s]
            whole[:, :, y * s : bottom * s, x * s : right * s] = inner
    return whole


def _target(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


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


def _check_video(video) -> None:
    if not isinstance(video, np.ndarray) or video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3:
        got = f"{video.shape} {video.dtype}" if isinstance(video, np.ndarray) else type(video).__name__
        raise UserError(f"a video to enlarge is a NumPy array (T, H, W, 3) of uint8, but this is {got}")
    if 0 in video.shape:
        raise UserError(f"a video to enlarge has at least one frame and one pixel, but this is {video.shape}")


def _check_options(scale, tile, batch) -> None:
    if isinstance(scale, bool) or not isinstance(scale, Real) or not 1 <= scale <= MAX_SCALE:
        near = MAX_SCALE if isinstance(scale, Real) and scale > MAX_SCALE else 4
        raise UserError(f"scale={scale!r} must be a number from 1 to {MAX_SCALE}: try {near}")
    if tile is not None and (not isinstance(tile, int) or tile < 0 or tile % 8 or isinstance(tile, bool)):
        raise UserError(f"tile={tile!r} must be a multiple of 8 input pixels, or 0 for none: try {_TILE}")
    if batch is not None and (not isinstance(batch, int) or batch < 1 or isinstance(batch, bool)):
        raise UserError(f"batch={batch!r} must be a whole number of frames, at least 1")
