"""Latents and prompts of a data set, encoded once and kept beside it, so that training needs the transformer alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..atomic import write_whole
from ..errors import UserError, give_note
from ..stages.decoding import encode
from ..stages.prompt import PromptEncoding, encode_prompt
from .clips import ClipFolder, Sample, read_clips, read_frames
from .options import TrainSettings

if TYPE_CHECKING:
    from ..model.models import Models

CACHE = ".t2v_kit_cache"  # a folder beside the clips


@dataclass(frozen=True, eq=False)
class Encoded:
    """A data set as the transformer gets it.

    Attributes:
        samples: What was encoded.
        latents: Of each sample, (C, T, H, W) float32 on the CPU, scaled as `denoise` has them.
        prompts: Of each sample, on the CPU.
        empty: The empty prompt, for caption dropout.
        key: 16 hex digits over all of it: the same for the same content, order and model.
    """

    samples: tuple[Sample, ...]
    latents: tuple[torch.Tensor, ...]
    prompts: tuple[PromptEncoding, ...]
    empty: PromptEncoding
    key: str


def encode_clips(
    models: Models,
    data: ClipFolder | str | Path,
    settings: TrainSettings,
    on_sample: Callable[[int, int], object] | None = None,
) -> Encoded:
    """Encode a data set, or read what an earlier call has encoded.

    All that can be wrong is looked for first. Latents and prompts are safetensors in a folder .t2v_kit_cache beside
    the clips, named by what they depend on: the file's bytes, the piece, the size and the model's weights.

    Args:
        models: What `load` gave.
        data: What `read_clips` found, whose problems are left out; or a folder, which must have none.
        settings: Sizes of the samples.
        on_sample: Called as on_sample(done, total) after each sample.

    Returns:
        Everything that training needs besides the transformer.

    Raises:
        UserError: There are no clips, or what `read_clips` and `ClipFolder.samples` refuse.
    """
    if isinstance(data, ClipFolder):
        found = data if data.clips else data.check()
    else:
        found = read_clips(data).check()
    samples = found.samples(settings, models.defaults)
    _note_what_is_left(models, samples, found)
    cache = found.folder / CACHE
    try:
        cache.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{cache}: cannot be written ({error.strerror}); a copy of the folder would work.") from error
    prompts = {
        text: _prompt(models, text, cache) for text in dict.fromkeys(["", *(each.clip.caption for each in samples)])
    }
    latents = []
    for number, sample in enumerate(samples, 1):
        latents.append(_latents(models, sample, cache))
        if on_sample is not None:
            on_sample(number, len(samples))
    said = [(each.clip.digest, each.start, *each.size, each.clip.caption) for each in samples]
    key = _key(models, said)
    ordered = tuple(prompts[each.clip.caption] for each in samples)
    return Encoded(tuple(samples), tuple(latents), ordered, prompts[""], key)


def _note_what_is_left(models: Models, samples: list[Sample], found: ClipFolder) -> None:
    """Say how many frames are not used, and that clips play at another rate than the model's videos."""
    used = sum(sample.num_frames for sample in samples)
    frames = sum(clip.frames for clip in found.clips)
    if used < frames:
        give_note(f"{found.folder.name}: {frames - used} of {frames} frames are left over at the ends of clips.")
    rate = models.defaults["fps"]
    odd = [clip for clip in found.clips if clip.fps and not 0.8 < clip.fps / rate < 1.25]
    if odd:
        give_note(
            f"{found.folder.name}: {len(odd)} clips have another rate than the {rate:g} frames a second of the model's "
            f"videos, such as {odd[0].path.name} with {odd[0].fps:g}: what moves in them will move at another speed."
        )


def _latents(models: Models, sample: Sample, cache: Path) -> torch.Tensor:
    """(C, T, H, W) float32 of a sample, read or made."""
    file = cache / f"latents-{_key(models, (sample.clip.digest, sample.start, *sample.size))}.safetensors"
    if file.exists():
        try:
            return load_file(file)["latents"]
        except (OSError, SafetensorError, KeyError):
            file.unlink(missing_ok=True)  # damaged: made again
    latents = encode(models, read_frames(sample))[0].float().cpu().contiguous()
    with write_whole(file) as temporary:
        save_file({"latents": latents}, temporary)
    return latents


def _prompt(models: Models, text: str, cache: Path) -> PromptEncoding:
    """An encoded prompt on the CPU, read or made."""
    file = cache / f"prompt-{_key(models, (text, models.template))}.safetensors"
    if file.exists():
        try:
            return PromptEncoding.load(file)
        except UserError:
            file.unlink(missing_ok=True)
    made = encode_prompt(models, text, allow_empty=True)
    encoded = PromptEncoding(made.prompt_embeds.cpu(), made.mask.cpu(), made.pooled.cpu(), made.tokens, made.text)
    encoded.save(file)
    return encoded


def _key(models: Models, content: object) -> str:
    return hashlib.sha256(f"{models.weights_hash} {content!r}".encode()).hexdigest()[:16]
