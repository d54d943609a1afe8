"""The machine that a memory plan is for: the GPU, its memory, the RAM."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from ..errors import UserError
from ..hunyuan.files import one_line


def pick_device(device: str | torch.device | None) -> torch.device:
    """Return the device to compute on, with its number.

    Args:
        device: As PyTorch takes it; None is the current GPU if there is one, else the CPU.

    Raises:
        UserError: This machine, or this build of PyTorch, has no such device.
    """
    try:
        # Says whether this torch build and machine have it, and which GPU "cuda" is: some calls want its number.
        return torch.empty(0, device=device or ("cuda" if torch.cuda.is_available() else "cpu")).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UserError(f"device={device!r}: cannot be used ({one_line(error)}); 'cpu' would work.") from error


@dataclass(frozen=True)
class Machine:
    """What a plan can use.

    Attributes:
        vram_gb: The card's memory in GiB, as cards are sold; 0 without a GPU.
        ram_gb: The RAM in GiB.
        capability: CUDA's compute capability; (8, 0) and above computes in bfloat16.
        bitsandbytes: The installed version, None without it.
        gpu: The card's name.
    """

    vram_gb: float
    ram_gb: float
    capability: tuple[int, int] = (8, 0)
    bitsandbytes: str | None = "0.48"
    gpu: str = ""

    @classmethod
    def here(cls, device=None) -> Machine:
        """Measure this machine: the card's whole memory, and the RAM that there is or that the container may use.

        Args:
            device: Whose memory; None is the current GPU if there is one.
        """
        try:
            bitsandbytes = version("bitsandbytes")
        except PackageNotFoundError:
            bitsandbytes = None
        ram = min(psutil.virtual_memory().total, _container_limit()) / 2**30
        if not torch.cuda.is_available() or (device is not None and torch.device(device).type == "cpu"):
            return cls(0, round(ram, 1), (0, 0), bitsandbytes)
        index = None if device is None else torch.device(device).index
        device = torch.cuda.current_device() if index is None else index  # PyTorch's own "cuda" is not enough below
        card = torch.cuda.get_device_properties(device)
        # Of what the driver reports as total, a process may have been given a fraction; PyTorch keeps that to itself.
        total = card.total_memory * torch.cuda.get_per_process_memory_fraction(device)
        return cls(round(total / 2**30, 1), round(ram, 1), (card.major, card.minor), bitsandbytes, card.name)


def machine_with(vram_gb: float | None, ram_gb: float | None) -> Machine:
    """Return this machine, with other amounts of memory where they are given.

    Args:
        vram_gb: GiB of the card; None is this machine's.
        ram_gb: GiB of RAM; None is this machine's.

    Raises:
        UserError: One of them is no amount of memory.
    """
    for name, value in (("vram_gb", vram_gb), ("ram_gb", ram_gb)):
        if value is not None and (isinstance(value, (bool, str)) or not 0 <= value < float("inf")):
            raise UserError(f"{name}={value!r}: must be a number of GB; 16 would work.")
    if vram_gb is not None and ram_gb is not None:
        return Machine(vram_gb, ram_gb)
    here = Machine.here()
    if vram_gb is not None:
        return Machine(vram_gb, here.ram_gb)
    return here if ram_gb is None else dataclasses.replace(here, ram_gb=ram_gb)


def _container_limit() -> float:
    """Bytes that the control group of this process may use."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if Path(path).exists() and (text := Path(path).read_text().strip()).isdigit():
            return float(text)
    return float("inf")
