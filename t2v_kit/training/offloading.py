"""Block inputs that wait in pinned RAM between the way forward and the way back, copied beside the computation.

A block's input goes while the block computes. It comes back while the block after it computes, which comes before it on
the way back. So nothing waits where a block takes longer than a copy, as it does at any size that needs this.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch


def is_stream(tensor: torch.Tensor) -> bool:
    """Whether a block's input is (B, N, D): video or text. The rest is small, or shared by all blocks."""
    return tensor.ndim == 3 and tensor.is_floating_point()


class _Waiting:
    """One tensor that waits in RAM.

    Attributes:
        ram: The copy.
        there: The tensor on the device, while it is there.
        event: When the latest copy, in either direction, is over.
    """

    def __init__(self, tensor: torch.Tensor, stream: Any) -> None:
        self.ram = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=stream is not None)
        self.there: torch.Tensor | None = tensor
        self.event: Any = None
        self._device, self._stream = tensor.device, stream
        self._copy(self.ram, tensor)

    def _copy(self, to: torch.Tensor, source: torch.Tensor) -> None:
        if self._stream is None:
            to.copy_(source)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            to.copy_(source, non_blocking=True)
        self.event = self._stream.record_event()

    def _wait(self) -> None:
        # The memory of what leaves is free for whatever this stream does next, in an order that never varies.
        if self.event is not None:
            torch.cuda.current_stream(self._device).wait_event(self.event)
            self.event = None

    def leave(self) -> None:
        """Off the device, once it is copied."""
        self._wait()
        self.there = None

    def fetch(self) -> None:
        """Begin to bring it back."""
        if self.there is None:
            self.there = torch.empty(self.ram.shape, dtype=self.ram.dtype, device=self._device)
            self._copy(self.there, self.ram)

    def take(self) -> torch.Tensor:
        """The tensor on the device, which is the caller's own from now on."""
        self.fetch()
        self._wait()
        tensor, self.there = self.there, None
        assert tensor is not None
        return tensor


class OffloadedInputs:
    """Takes the inputs of the first blocks to RAM, which have the longest to wait, and fetches each in time."""

    def __init__(self, every: list[torch.nn.Module], count: int | None, device: torch.device) -> None:
        """Take nothing yet.

        Args:
            every: All blocks, in the order in which they work.
            count: How many of them, from the first; None is all.
            device: Where they compute.
        """
        self._number = {block: number for number, block in enumerate(every)}
        self.count = len(every) if count is None else min(count, len(every))
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._waiting: dict[int, list[_Waiting]] = {}  # of the latest way forward, by block

    def around(self, block: torch.nn.Module) -> contextlib.AbstractContextManager:
        """Inside, what autograd keeps of this block is taken to RAM, if it is one of the first."""
        number = self._number[block]
        for waiting in self._waiting.get(number - 2, ()):  # a block's time after it was copied, at the earliest
            waiting.leave()
        self._waiting[number] = []
        pack, unpack = functools.partial(self._pack, number), functools.partial(self._unpack, number)
        return torch.autograd.graph.saved_tensors_hooks(pack, unpack)

    def _pack(self, number: int, tensor: torch.Tensor):
        if number >= self.count or not is_stream(tensor):
            return tensor
        waiting = _Waiting(tensor.detach().contiguous(), self._stream)
        self._waiting[number].append(waiting)
        return waiting

    def _unpack(self, number: int, kept) -> torch.Tensor:
        for earlier in self._waiting.get(number - 1, ()):
            earlier.fetch()
        return kept.take() if isinstance(kept, _Waiting) else kept

    def close(self) -> None:
        """Wait for copies that nobody asked for, as after an error."""
        if self._stream is not None:
            self._stream.synchronize()
        self._waiting.clear()
