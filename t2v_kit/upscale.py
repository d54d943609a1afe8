"""Stage 4: a video made larger by Real-ESRGAN, frames in batches.

Weight files are read by spandrel, which recognises Real-ESRGAN's two architectures by their keys: RRDBNet
(x4plus, x2plus, anime_6B) and the compact SRVGGNet (animevideov3, general-x4v3, pocket). What runs them is the
short loop below: batches, channels last, half precision where it is safe, tiles where memory asks for it.
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

from .settings import UserError

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

#: Upscalers that have a name. Any other Real-ESRGAN file is given by its path.
UPSCALERS = {"pocket": Path(__file__).parent / "pocket" / "upscaler" / "pocket_x4.safetensors"}

_FILE = "Real-ESRGAN file (.pth, .safetensors)"
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


def upscale(
    video: np.ndarray,
    model: str | Path = "pocket",
    scale: float = 4,
    dtype: str = "auto",
    tile: int | None = None,
    batch: int | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Enlarge a video: `(T, H, W, 3)` uint8 in, `(T, round(H * scale), round(W * scale), 3)` uint8 out.

    model: "pocket", or the path of a Real-ESRGAN file (.pth or .safetensors).
    scale: the enlargement, 1 to 16; where it is not the network's own, its output is resized (antialiased
        bicubic).
    dtype: "auto" is float16 on a GPU, and on a CPU bfloat16 if the processor computes in it, else float32.
        With pocket's weights bfloat16 differs from float32 by at most 1 level of 255 (62 dB between the two).
    tile: side of the square tiles in input pixels, a multiple of 8; 0 for none; None cuts only huge frames.
    batch: frames that go through the network together; None fits them to the device.
    device: None is the first GPU, or the CPU where there is none.

    Raises UserError for an unknown upscaler, a file that is none or is damaged, and for a video, scale,
    dtype, tile or batch that breaks the rules above.
    """
    _check_video(video)
    frames = upscale_frames(video, model, scale, dtype, tile, batch, device, progress)
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
) -> Iterator[np.ndarray]:
    """`upscale` as a stream: `(H, W, 3)` uint8 frames of one size in, enlarged ones out, one batch in memory.

    The options are those of `upscale`; mistakes in them are raised here, not at the first frame.
    """
    _check_options(scale, tile, batch)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    net = load_upscaler(model)
    net.to(device, _choose_dtype(dtype, device, net))
    net.model.to(memory_format=torch.channels_last)
    return _stream(net, frames, scale, tile, batch, progress)


def load_upscaler(model: str | Path = "pocket") -> ImageModelDescriptor:
    """Read an upscaler: spandrel's descriptor (`.model`, `.scale`, `.architecture`), float32 on the CPU.

    Only tensors are read from a .pth (`weights_only=True`): a file can never run code. Raises UserError when
    the name is unknown, or the file is missing, damaged or holds no network that enlarges RGB pictures.
    """
    import spandrel  # over a second: only who enlarges waits for it

    path = UPSCALERS.get(str(model), Path(model))
    if not path.is_file():
        names = ", ".join(repr(name) for name in UPSCALERS)
        raise UserError(f"unknown upscaler {str(model)!r}: choose {names} or the path of a {_FILE}")
    try:
        state = spandrel.canonicalize_state_dict(_read(path))
        net = spandrel.MAIN_REGISTRY.load({key: value.float() for key, value in state.items()})
    except Exception as error:  # sizes are inferred from the keys: a wrong file can fail anywhere in there
        raise UserError(f"{str(path)!r} is damaged or no upscaler: give a {_FILE}") from error
    if not isinstance(net, spandrel.ImageModelDescriptor) or net.scale < 2 or net.input_channels != 3:
        what = f"{net.architecture.name} x{net.scale}"
        raise UserError(f"{str(path)!r} holds {what}, which enlarges no RGB video: give a {_FILE}")
    if factor := getattr(net.model, "shuffle_factor", None):
        # RealESRGANer pads a frame to whole pixel-unshuffled cells, spandrel further: other edges on odd sizes.
        net.size_requirements = spandrel.SizeRequirements(minimum=2, multiple_of=factor)
    net.model.eval().requires_grad_(False)
    return net


def _read(path: Path) -> dict:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


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
    frames = chain([first], frames)
    with tqdm(total=total, desc="upscale", unit="frame", disable=not progress) as bar:
        while group := list(islice(frames, batch)):
            for frame in group:
                if frame.shape != first.shape or frame.dtype != np.uint8:
                    got = f"{frame.shape} {frame.dtype}"
                    raise UserError(
                        f"every frame must be {first.shape} uint8 like the first, but one is {got}"
                    )
            enlarged = _enlarge(net, np.stack(group), _target((height, width), scale), tile)
            bar.update(len(group))
            yield from enlarged


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
