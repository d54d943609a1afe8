"""Videos longer than a model was trained on: RIFLEx, which slows one time frequency of the rotary embedding down.

The embedding turns pairs of channels by an angle that grows with the latent's number, each pair at its own frequency.
Beyond the period of the frequency that tells the trained latents apart, later latents look like earlier ones, and the
video begins again. RIFLEx (https://arxiv.org/abs/2502.15894) lowers that one frequency until the whole video lies
within nine tenths of its period, and leaves the others, which motion depends on.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from diffusers.hooks import ModelHook

from .hooks import attach, detach

_NAME = "t2v_kit_longer"
_SHARE = 0.9  # of the period that the video may cover: the paper's own code, against repetition in the last frames


class Slowed(NamedTuple):
    """A frequency that is changed.

    Attributes:
        index: Of the pair of channels, from 0.
        before: Radians a latent.
        now: The same, lower.
    """

    index: int
    before: float
    now: float


def slowed(config: Any, trained: int, latents: int) -> Slowed | None:
    """Find the frequency that RIFLEx changes for a video of this length.

    It is the first whose period is longer than the trained videos. For HunyuanVideo (33 latents) that is the fourth
    pair, for CogVideoX (13) the second: the ones that the paper found.

    Args:
        config: The transformer's: rope_axes_dim, rope_theta and patch_size_t.
        trained: Latents of the longest videos that it was trained on.
        latents: Of the video that is made.

    Returns:
        What changes; None where nothing does: the video is not longer than the trained ones, or lies within nine tenths
        of the period as it is.

    Example:
        >>> from types import SimpleNamespace
        >>> config = SimpleNamespace(rope_axes_dim=(16, 56, 56), rope_theta=256.0, patch_size_t=1)
        >>> slowed(config, 33, 65)
        Slowed(index=3, before=0.125, now=0.08699...)
    """
    if latents <= trained:
        return None
    width, patch = config.rope_axes_dim[0], config.patch_size_t
    for index in range(width // 2):
        before = config.rope_theta ** (-2 * index / width)
        if 2 * math.pi / before > trained / patch:
            now = _SHARE * 2 * math.pi / (latents / patch)
            return Slowed(index, before, now) if now < before else None
    return None


@contextlib.contextmanager
def slower_time(transformer: Any, change: Slowed | None) -> Iterator[None]:
    """Inside it, the transformer's rotary embedding has the changed frequency; nothing happens for None."""
    if change is None:
        yield
        return
    attach(transformer.rope, _Slower(change), _NAME)
    try:
        yield
    finally:
        detach(transformer.rope, _NAME)


class _Slower(ModelHook):
    """The cosines and sines of one pair of time channels, computed anew; the others as they are."""

    def __init__(self, change: Slowed) -> None:
        super().__init__()
        self.change = change

    def new_forward(self, rope: Any, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        original = self.fn_ref.original_forward
        assert original is not None  # set when the hook was attached
        frames = hidden_states.shape[2] // rope.patch_size_t
        angles = torch.arange(frames, dtype=torch.float32, device=hidden_states.device) * self.change.now
        changed = []
        for table, of in zip(original(hidden_states), (torch.cos, torch.sin)):
            table = table.clone()
            pair = of(angles).repeat_interleave(table.shape[0] // frames)
            table[:, 2 * self.change.index : 2 * self.change.index + 2] = pair[:, None]  # time has the first channels
            changed.append(table)
        return tuple(changed)
