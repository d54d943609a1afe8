"""One run by several processes: the first one does what `generate` does, the others compute their share of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from ..errors import UserError
from ..model.models import Models
from ..settings import Resolved
from ..stages.decoding import decode
from ..stages.denoising import denoise
from ..stages.prompt import PromptEncoding
from .given import check_shareable


@dataclass(frozen=True, eq=False)
class Work:
    """What the others have to know for denoising and decoding, on the CPU.

    Attributes:
        settings: Complete.
        prompt: Encoded.
        negative: The encoded negative prompt, where it acts.
        latents: What the first step starts from, or the finished latents.
        start: The first step; their number when all are done.
    """

    settings: Resolved
    prompt: PromptEncoding
    negative: PromptEncoding | None
    latents: torch.Tensor
    start: int


def lead(models: Models, work: Work, known: object) -> None:
    """In the first process: tell the others what to do, if there are others. `known` are parts that are given.

    Raises:
        UserError: Parts of the video are given, or riflex is on, which are not shared out.
    """
    if models.team is None:
        return
    if known is not None:
        raise UserError(
            f"gpus={models.team.size}: known frames and masks are for one device; gpus=1 would work.", setting="gpus"
        )
    check_shareable(work.settings, models.team.size)
    models.team.agreed(dataclasses.replace(work, prompt=_on_cpu(work.prompt), negative=_on_cpu(work.negative),
                                           latents=work.latents.cpu()))  # fmt: skip


def follow(models: Models) -> bool:
    """In every other process: compute this one's share of the steps and tiles of the next run that the first one leads.

    Returns:
        Whether there was one: the first process ends with `models.team.agreed(None)`.
    """
    assert models.team is not None
    work: Work | None = models.team.agreed(None)
    if work is None:
        return False
    latents = work.latents.to(models.device)
    if work.start < work.settings.num_inference_steps:
        for step in denoise(models, work.prompt, latents, work.settings, work.start, work.negative):
            latents = step.latents
    decode(models, latents)
    return True


def _on_cpu(encoding: PromptEncoding | None) -> PromptEncoding | None:
    if encoding is None:
        return None
    tensors = {each.name: getattr(encoding, each.name) for each in dataclasses.fields(encoding)}
    moved = {name: each.cpu() for name, each in tensors.items() if isinstance(each, torch.Tensor)}
    return dataclasses.replace(encoding, **moved)
