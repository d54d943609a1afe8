"""Stage 2: noise becomes latents, one step at a time. Everything that watches hangs on the Steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0

from .latents import make_scheduler
from .prompt import PromptEncoding, encode_prompt
from .settings import Settings, UserError

if TYPE_CHECKING:
    from .models import Models


@dataclass(frozen=True, eq=False)
class Step:
    """One step of denoising.

    index: 0 to num_inference_steps - 1.  sigma: the noise level the transformer was asked at, 1 to 0.
    latents: (1, C, T, H, W) after the step, in the transformer's dtype.  predicted_clean: (1, C, T, H, W)
    float32, where the straight line from before the step ends: latents - sigma * velocity.
    seconds: the transformer's and the scheduler's time for this step.
    """

    index: int
    sigma: float
    latents: torch.Tensor
    predicted_clean: torch.Tensor
    seconds: float


def denoise(
    models: Models,
    prompt: PromptEncoding,
    latents: torch.Tensor,
    settings: Settings,
    start: int = 0,
    negative: PromptEncoding | None = None,
) -> Iterator[Step]:
    """Yield a Step for every step of the schedule; stop whenever you like.

    latents: (1, C, T, H, W), float32 noise, or a Step's latents in their own dtype to go on behind it
    with start = its index + 1.  negative: for true classifier-free guidance, encoded from
    settings.negative_prompt when not given.  Gives the same bits as HunyuanVideoPipeline.
    Raises UserError when latents turn NaN or constant, or do not belong to these settings.
    """
    settings = settings.check(models)
    _check_latents(models, latents, settings, start)
    transformer, dtype = models.pipe.transformer, models.pipe.transformer.dtype  # asked once: it walks all modules
    if settings.true_cfg_scale > 1 and negative is None:
        negative = encode_prompt(models, settings.negative_prompt, settings.padded_prompt, allow_empty=True)
    scheduler = make_scheduler(models, settings)
    scheduler.set_begin_index(start)
    # In the transformer's dtype, as the pipeline does: in bfloat16 6.0 and 6.02 are the same guidance.
    guidance = torch.tensor([settings.guidance_scale], dtype=dtype, device=models.device) * 1000.0
    branches = {"cond": _conditions(prompt, guidance)}
    if settings.true_cfg_scale > 1:
        branches["uncond"] = _conditions(negative, guidance)
    latents = latents.to(models.device)
    try:
        for index in range(start, settings.num_inference_steps):
            began = time.perf_counter()
            models.pipe._current_timestep = scheduler.timesteps[index]  # step caches of diffusers ask for it
            velocity = _velocity(transformer, latents, scheduler.timesteps[index], branches, settings.true_cfg_scale)
            sigma = scheduler.sigmas[index].item()
            clean = latents.float() - sigma * velocity.float()
            latents = scheduler.step(velocity, scheduler.timesteps[index], latents, return_dict=False)[0]
            _check_alive(latents, index, dtype)
            yield Step(index, sigma, latents, clean, time.perf_counter() - began)
    finally:
        models.pipe._current_timestep = None
        if transformer.is_cache_enabled:  # or the next run would start from this one's cache
            transformer._reset_stateful_cache()


@torch.no_grad()
def _velocity(transformer, latents, timestep, branches, true_cfg_scale) -> torch.Tensor:
    """What the transformer says, (1, C, T, H, W); with two branches, steered away from the negative."""
    told = {}
    for name, conditions in branches.items():
        with transformer.cache_context(name):
            told[name] = transformer(
                hidden_states=latents.to(conditions["encoder_hidden_states"].dtype),
                timestep=timestep.expand(1).to(latents.dtype),
                return_dict=False,
                **conditions,
            )[0]
    if "uncond" not in told:
        return told["cond"]
    return told["uncond"] + true_cfg_scale * (told["cond"] - told["uncond"])


def _conditions(prompt: PromptEncoding, guidance: torch.Tensor) -> dict[str, torch.Tensor]:
    """A prompt as the transformer's keywords, moved to where and what `guidance` is."""
    place = {"device": guidance.device, "dtype": guidance.dtype}
    return {
        "encoder_hidden_states": prompt.prompt_embeds.to(**place),
        "encoder_attention_mask": prompt.mask.to(**place),
        "pooled_projections": prompt.pooled.to(**place),
        "guidance": guidance,
    }


def _check_latents(models: Models, latents: torch.Tensor, settings: Settings, start: int) -> None:
    pipe = models.pipe
    shape = (
        1,
        pipe.transformer.config.in_channels,
        (settings.num_frames - 1) // pipe.vae_scale_factor_temporal + 1,
        settings.height // pipe.vae_scale_factor_spatial,
        settings.width // pipe.vae_scale_factor_spatial,
    )
    if tuple(latents.shape) != shape:
        raise UserError(f"latents {tuple(latents.shape)}: these settings need {shape}; initial_latents gives them.")
    if not 0 <= start <= settings.num_inference_steps:
        raise UserError(f"start={start}: must be from 0 to num_inference_steps={settings.num_inference_steps}.")
    if start and pipe.transformer.is_cache_enabled:
        raise UserError(f"start={start}: a step cache forgets what it knew; disable_cache() or start=0 would work.")


def _check_alive(latents: torch.Tensor, index: int, dtype: torch.dtype) -> None:
    """Stop at numbers that no later step can repair. One pass: NaN goes through both ends."""
    low, high = torch.stack(torch.aminmax(latents)).tolist()
    if math.isfinite(low) and math.isfinite(high) and low != high:
        return
    if dtype == torch.float16:
        cause = "float16 overflows in this transformer"
    else:
        cause = "all weights are zero" if low == high else "NaN or infinity in the weights or the prompt"
    raise UserError(
        f"step {index}: the latents run from {low} to {high}, no video can come of that. Likely cause: {cause}; "
        "remedy: load the transformer in bfloat16 or float32, from files known to be whole."
    )


class _NoFullMask(HunyuanVideoAttnProcessor2_0):
    """HunyuanVideo's own attention, without the mask when it masks nothing."""

    mask_is_full = False

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        mask = None if self.mask_is_full else attention_mask
        return super().__call__(attn, hidden_states, encoder_hidden_states, mask, image_rotary_emb)


def skip_full_masks(transformer: HunyuanVideoTransformer3DModel) -> None:
    """Let the blocks attend without a mask whenever the prompt has no padding.

    The transformer always builds a mask, and any mask keeps PyTorch off its fastest attention: 22.5
    instead of 30.9 s a step at 720x1280x129 on an H200. It lives in the transformer, so a call of the
    pipeline with the same embeddings takes the same way, and a padded prompt keeps its mask. Set on
    each block: the token refiner has another processor, which `set_attn_processor` would replace.
    """
    processor = _NoFullMask()
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        block.attn.set_processor(processor)

    def look_at_mask(_, args, kwargs):
        mask = kwargs["encoder_attention_mask"] if "encoder_attention_mask" in kwargs else args[3]
        processor.mask_is_full = bool(mask.all())

    transformer.register_forward_pre_hook(look_at_mask, with_kwargs=True)
