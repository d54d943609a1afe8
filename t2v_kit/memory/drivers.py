"""Whether PyTorch could find a GPU here, as far as that is known before PyTorch is imported."""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.metadata import PackageNotFoundError, version

from ..errors import UserError

#: How the refusal ends where a GPU's memory should be planned and there is no GPU.
NOTHING_TO_PLAN = "this machine has no GPU whose memory could be planned; 'auto' would work."


def surely_no_gpu() -> bool:
    """Whether it is certain that PyTorch will find no GPU; False says only that it may find one.

    It is where PyTorch is built for the processor alone, where GPUs are hidden from it, and where there is no driver of
    NVIDIA's to load. Of builds for other makers' GPUs nothing is known here.
    """
    try:
        build = version("torch").partition("+")[2]
    except PackageNotFoundError:
        return False
    if build == "cpu" or sys.platform == "darwin" or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return True
    if build and not build.startswith("cu"):
        return False
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return True
    return False


def check_device(device: str | None) -> None:
    """Raise UserError for a GPU where it is certain that there is none; PyTorch judges all else."""
    if device is not None and device.startswith("cuda") and surely_no_gpu():
        raise UserError(f"device={device!r}: this machine has no GPU that PyTorch could use; 'cpu' would work.")
