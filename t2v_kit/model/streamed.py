"""Blocks whose frozen weights wait in pinned RAM and come to the device for their turn, in a training.

diffusers' own group offloading cannot move layers of bitsandbytes, whose scales are no parameters
(huggingface/diffusers issue 10800), and knows no way back. Here the scales stay on the device.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

ALIGN = 512  # bytes; where any dtype may begin


def packed_in_ram(weights: Sequence[torch.Tensor], pinned: bool) -> tuple[list[torch.Tensor], bool]:
    """Copy tensors into one piece of RAM.

    PyTorch's own pinning would round every tensor up to a power of two: half as much again. The RAM is unpinned when
    the last tensor in it is gone.

    Args:
        weights: On any device.
        pinned: Whether to pin the RAM, so that copies overlap with computation. Needs CUDA.

    Returns:
        The same tensors in RAM, all of one storage; and whether it is pinned, which the system may refuse.
    """
    places = [0]
    for weight in weights:
        places.append(places[-1] + -(-weight.nbytes // ALIGN) * ALIGN)
    # Whole pages of its own: none can be pinned twice, and small pieces would share one.
    room = np.empty(places[-1] + 2 * mmap.PAGESIZE, np.uint8)
    first = -room.ctypes.data % mmap.PAGESIZE
    ram = room[first : first + -(-places[-1] // mmap.PAGESIZE) * mmap.PAGESIZE]
    whole = torch.from_numpy(ram)
    copies = [
        whole[place : place + weight.nbytes].view(weight.dtype).view(weight.shape).copy_(weight)
        for weight, place in zip(weights, places)
    ]
    if not pinned:
        return copies, False
    # Freed RAM that CUDA still believes to be pinned breaks the copies of its next owner, so it is unpinned right
    # before.
    cuda: Any = torch.cuda.cudart()
    if int(cuda.cudaHostRegister(ram.ctypes.data, ram.nbytes, 0)) != 0:
        return copies, False
    weakref.finalize(ram, cuda.cudaHostUnregister, ram.ctypes.data).atexit = False
    return copies, True


def wait_in_ram(block: torch.nn.Module) -> None:
    """Move a block's frozen weights to pinned RAM, where `TrainSettings.streamed_blocks` fetches them from.

    So a card can train that has no room for all weights at once: each block goes as soon as it is read.

    Args:
        block: On a GPU; on the CPU nothing changes.
    """
    weights = [weight for weight in block.parameters() if not weight.requires_grad]
    if weights and all(weight.is_cuda for weight in weights):
        for weight, copy in zip(weights, packed_in_ram([weight.data for weight in weights], pinned=True)[0]):
            weight.data = copy


def _whole(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The storage that all of them share, as bytes."""
    return torch.empty(0, dtype=torch.uint8).set_(tensors[0].untyped_storage())


def _wait_already(weights: Sequence[torch.Tensor]) -> bool:
    """Whether they lie in RAM together, as `wait_in_ram` leaves them."""
    return all(not weight.is_cuda for weight in weights) and (
        len({weight.untyped_storage().data_ptr() for weight in weights}) == 1
    )


class StreamedBlocks:
    """Blocks whose frozen weights wait in pinned RAM; two of them at most are on the device.

    A block's whole way back happens between its own `fetch` and the next one's.
    """

    def __init__(self, streamed: list[torch.nn.Module], device: torch.device) -> None:
        """Move the weights to RAM.

        Args:
            streamed: Neighbouring blocks, in the order in which they work.
            device: Where they compute.
        """
        self.device, self._last = device, -1
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._number = {block: number for number, block in enumerate(streamed)}
        self._weights = [[weight for weight in block.parameters() if not weight.requires_grad] for block in streamed]
        self._came_from = [[weight.device for weight in weights] for weights in self._weights]
        self._ram = [self._kept([weight.data for weight in weights]) for weights in self._weights]
        self._ready: dict[int, tuple[list[torch.Tensor], Any]] = {}
        for number in range(len(streamed)):
            self._drop(number)
        # Two places, by turns. PyTorch's allocator would give each copy memory of its own until the GPU has caught up.
        largest = max(_whole(ram).nbytes for ram in self._ram)
        places = 2 if self._stream is not None else 0
        self._places = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(places)]

    def __contains__(self, block: torch.nn.Module) -> bool:
        return block in self._number

    def _kept(self, weights: list[torch.Tensor]) -> list[torch.Tensor]:
        if self._stream is not None and _wait_already(weights):
            return weights
        return packed_in_ram(weights, self._stream is not None)[0]

    def fetch(self, block: torch.nn.Module) -> None:
        """Have a block's weights on the device, and begin to fetch those of the one that comes after it.

        Args:
            block: The block that is about to work; one that is not streamed changes nothing.
        """
        number = self._number.get(block)
        if number is None:
            return
        following = number + (1 if number > self._last else -1)
        if not 0 <= following < len(self._ram):  # where the way turns
            following = 2 * number - following
        self._last = number
        for other in [each for each in self._ready if each not in (number, following)]:
            self._drop(other)
        if number not in self._ready:
            self._copy(number)
        arrived, event = self._ready[number]
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)
        for weight, tensor in zip(self._weights[number], arrived):
            weight.data = tensor
        if 0 <= following < len(self._ram) and following not in self._ready:
            self._copy(following)

    def _copy(self, number: int) -> None:
        ram = self._ram[number]
        if self._stream is None:
            self._ready[number] = [tensor.clone() for tensor in ram], None
            return
        # What was in this place has been asked for already; the copy waits until that work is done.
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        whole = _whole(ram)
        place = self._places[number % 2][: whole.nbytes]
        with torch.cuda.stream(self._stream):
            place.copy_(whole, non_blocking=True)
        begins = [tensor.storage_offset() * tensor.itemsize for tensor in ram]
        arrived = [
            place[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for begin, tensor in zip(begins, ram)
        ]
        self._ready[number] = arrived, self._stream.record_event()

    def _drop(self, number: int) -> None:
        self._ready.pop(number, None)
        for weight, ram in zip(self._weights[number], self._ram[number]):
            weight.data = ram

    def close(self) -> None:
        """Put all weights back to where they were before."""
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
        self._ready.clear()
        self._places.clear()
        for weights, ram, devices in zip(self._weights, self._ram, self._came_from):
            for weight, tensor, device in zip(weights, ram, devices):
                weight.data = tensor.to(device)
