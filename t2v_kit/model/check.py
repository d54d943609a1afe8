"""Settings against a model: its defaults filled in, its limits checked, and what is worth knowing about them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from ..errors import UserError, quoted
from ..hunyuan.longer import slowed
from ..hunyuan.tokens import check_length, token_rows
from ..settings import MAX_VIDEO_TOKENS, Resolved, Settings, check_multiples, travelled


class Limits(Protocol):
    """What these checks need to know of a model; `Models` has all of it."""

    pipe: Any
    name: str
    defaults: dict
    template: dict
    trained_sizes: tuple[tuple[int, int, int], ...]

    def counter(self, name: str) -> PreTrainedTokenizerBase: ...


def resolve(settings: Settings, models: Limits) -> Resolved:
    """Complete the settings with the model's defaults and check them, without giving notes.

    Raises:
        UserError: As `Settings.check` says.
    """
    given = {each.name: getattr(settings, each.name) for each in dataclasses.fields(settings)}
    missing = {name: value for name, value in models.defaults.items() if given[name] is None}
    full = Resolved(**(given | missing))
    config = models.pipe.transformer.config
    spatial = models.pipe.vae_scale_factor_spatial * config.patch_size
    temporal = models.pipe.vae_scale_factor_temporal * config.patch_size_t
    _check_size(full, spatial, temporal)
    _check_guidance(full, models.pipe.transformer.dtype)
    _check_lengths(full, models)
    _check_given(full, models)
    if full.mask is not None and full.video is None:
        raise UserError(
            f"mask={full.mask!r}: needs a video, of which it says what stays; video='in.mp4' would work.",
            setting="mask",
        )
    return full


def notes(settings: Settings, models: Limits) -> dict[str, str]:
    """What is allowed but worth knowing, by the setting it is about; `Settings.check` gives each once."""
    found = {}
    distilled = models.pipe.transformer.config.guidance_embeds
    guidance = models.defaults["guidance_scale"] if settings.guidance_scale is None else settings.guidance_scale
    if settings.guidance_scale is not None and not distilled:
        found["guidance_scale"] = "guidance_scale has no effect: this model was not trained with guidance_embeds."
    if settings.true_cfg_scale > 1 and distilled and guidance > 1:
        found["true_cfg_scale"] = (
            f"true_cfg_scale={settings.true_cfg_scale:g} comes on top of guidance_scale={guidance:g}, "
            "which is guidance too; guidance_scale=1 leaves it to true_cfg_scale alone."
        )
    if settings.negative_prompt is not None and settings.true_cfg_scale == 1:
        found["negative_prompt"] = "negative_prompt has no effect while true_cfg_scale is 1; try true_cfg_scale=3."
    if settings.video is None and settings.strength != type(settings).strength:
        found["strength"] = f"strength={settings.strength:g} has no effect without a video to start from."
    if settings.resample > 1 and not (settings.mask or settings.first_frame or settings.last_frame):
        found["resample"] = f"resample={settings.resample} has no effect without a beginning, an end or a mask."
    if models.pipe.transformer.config.image_condition_type == "latent_concat":
        frames, less = settings.num_frames or models.defaults["num_frames"], models.pipe.vae_scale_factor_temporal
        found["image"] = (
            f"{models.name} shows {frames - less} of {frames} frames: the first {less} are the picture's own, which "
            "its pipeline leaves out."
        )
    if settings.riflex and (reason := _not_longer(settings.num_frames or models.defaults["num_frames"], models)):
        found["riflex"] = f"riflex has no effect: {reason}."
    size = tuple(getattr(settings, key) or models.defaults[key] for key in ("num_frames", "height", "width"))
    if models.trained_sizes and size not in models.trained_sizes:
        known = ", ".join("x".join(map(str, trained)) for trained in models.trained_sizes)
        found["num_frames"] = (
            f"{size[0]}x{size[1]}x{size[2]} (frames x height x width) is not a size {models.name} "
            f"was trained on ({known}): expect it to do worse."
        )
    return found


def _check_given(full: Resolved, models: Limits) -> None:
    """A picture to animate is for models that were made for it; what is given otherwise is for the others."""
    if models.pipe.transformer.config.image_condition_type is None:
        if full.image is not None:
            raise UserError(
                f"image={quoted(full.image)}: {models.name} makes videos from text; first_frame={quoted(full.image)} "
                "would work, and so would the model 'hunyuan-i2v'.",
                setting="image",
            )
        return
    for name in ("video", "first_frame", "last_frame", "mask"):
        if (value := getattr(full, name)) is not None:
            raise UserError(
                f"{name}={quoted(value)}: {models.name} starts from a picture and holds no other parts; "
                f"image={quoted(value)} would work.",
                setting=name,
            )


def longest(models: Limits) -> int:
    """Latents of the longest videos that a model was trained on; of its default size where they are not known."""
    frames = max((size[0] for size in models.trained_sizes), default=models.defaults["num_frames"])
    return (frames - 1) // models.pipe.vae_scale_factor_temporal + 1


def _not_longer(frames: int, models: Limits) -> str:
    """Why RIFLEx changes nothing for a video of this length; empty where it does."""
    time, trained = models.pipe.vae_scale_factor_temporal, longest(models)
    if slowed(models.pipe.transformer.config, trained, (frames - 1) // time + 1):
        return ""
    if (frames - 1) // time + 1 <= trained:
        return f"{models.name} was trained on up to {time * (trained - 1) + 1} frames, and these are {frames}"
    return f"{frames} frames lie within the period of {models.name}'s time frequency"


def _check_size(full: Resolved, spatial: int, temporal: int) -> None:
    """Sides and frames come out whole, and are not more tokens than any model takes."""
    check_multiples(full, spatial, temporal)
    k = (full.num_frames - 1) // temporal
    tokens_a_frame = full.height * full.width // spatial**2
    if tokens_a_frame * (k + 1) > MAX_VIDEO_TOKENS:
        frames = temporal * max(MAX_VIDEO_TOKENS // tokens_a_frame - 1, 0) + 1
        raise UserError(
            f"{full.num_frames}x{full.height}x{full.width} (frames x height x width): makes "
            f"{tokens_a_frame * (k + 1)} video tokens, at most {MAX_VIDEO_TOKENS} are allowed; "
            f"num_frames={frames} would work at this height and width.",
            setting="num_frames",
        )


def _check_guidance(full: Resolved, dtype: torch.dtype) -> None:
    """The pipeline multiplies guidance by 1000 in the transformer's dtype: float16 ends at 65504."""
    highest = math.floor(torch.finfo(dtype).max / 1000 * 10) / 10 if dtype.is_floating_point else math.inf
    if full.guidance_scale > highest:
        raise UserError(
            f"guidance_scale={full.guidance_scale}: the transformer's {dtype} carries at most {highest} "
            f"(it is multiplied by 1000); {highest} would work, or load the transformer in bfloat16.",
            setting="guidance_scale",
        )


def _check_lengths(full: Resolved, models: Limits) -> None:
    """Prompts over the language model's limit are refused; the negative one only where it is read at all."""
    for name in ("prompt", "negative_prompt") if full.true_cfg_scale > 1 else ("prompt",):
        text = getattr(full, name)
        check_length(text, token_rows(models.counter("tokenizer"), models.template, text), name)
    for steps, text in travelled(full.travel) if full.travel is not None else ():
        check_length(text, token_rows(models.counter("tokenizer"), models.template, text), "travel")
        if steps.start >= full.num_inference_steps:
            raise UserError(
                f"travel={quoted(full.travel)}: begins a part at step {steps.start} of {full.num_inference_steps}, "
                f"counted from 0; {full.num_inference_steps - 1} would work.",
                setting="travel",
            )
