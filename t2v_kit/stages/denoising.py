"""Stage 2: noise becomes latents, one step at a time. Everything that watches hangs on the Steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from diffusers import FasterCacheConfig, HunyuanVideoTransformer3DModel, PyramidAttentionBroadcastConfig
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..errors import UserError, give_note
from ..settings import Settings
from .noise import make_scheduler
from .prompt import PromptEncoding, encode_prompt

if TYPE_CHECKING:
    from ..model.models import Models



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
    settings.negative_prompt when not given.  Gives the same bits as HunyuanVideoPipeline, also with a
    step cache that models.pipe.transformer.enable_cache(config) switched on: every run starts and ends
    with an empty one.  (SeaCacheConfig caches only here: it asks where in the schedule it is, which
    the pipeline of diffusers 0.42 does not say.)  Raises UserError when latents turn NaN or constant, do
    not belong to these settings, or when two runs take turns with one cache.
    """
    settings = settings.check(models)
    _check_latents(models, latents, settings, start)
    if settings.true_cfg_scale > 1 and negative is None:
        negative = encode_prompt(
            models, settings.negative_prompt, settings.padded_prompt, allow_empty=True, name="negative_prompt"
        )
    transformer = models.network("transformer")
    dtype = transformer.dtype  # asked once: it walks all modules
    scheduler = make_scheduler(models, settings)
    scheduler.set_begin_index(start)
    # In the transformer's dtype, as the pipeline does: in bfloat16 6.0 and 6.02 are the same guidance.
    guidance = torch.tensor([settings.guidance_scale], dtype=dtype, device=models.device) * 1000.0
    branches = {"cond": _conditions(prompt, guidance)}
    if settings.true_cfg_scale > 1:
        branches["uncond"] = _conditions(negative, guidance)
    latents = latents.to(models.device)
    cache = _StepCache(transformer, settings)
    try:
        for index in range(start, settings.num_inference_steps):
            began = time.perf_counter()
            cache.check()
            timestep, sigma = scheduler.timesteps[index], scheduler.sigmas[index].item()
            models.pipe._current_timestep = timestep  # step caches ask for it, some here and some in their context
            where = {"step_index": index, "num_inference_steps": settings.num_inference_steps, "sigma": sigma}
            velocity = _velocity(transformer, latents, timestep, branches, settings.true_cfg_scale, where)
            clean = latents.float() - sigma * velocity.float()
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            _check_alive(latents, index, dtype)
            yield Step(index, sigma, latents, clean, time.perf_counter() - began)
    finally:
        models.pipe._current_timestep = None
        cache.release()


@torch.no_grad()
def _velocity(transformer, latents, timestep, branches, true_cfg_scale, where) -> torch.Tensor:
    """What the transformer says, (1, C, T, H, W); with two branches, steered away from the negative."""
    told = {}
    for name, conditions in branches.items():
        with transformer.cache_context(name, timestep=timestep, **where):
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


def velocity(
    models: Models,
    prompt: PromptEncoding,
    latents: torch.Tensor,
    sigma: float,
    guidance_scale: float | None = None,
) -> torch.Tensor:
    """What the transformer answers to one question: the direction from video to noise, (1, C, T, H, W).

    latents: (1, C, T, H, W) at noise level sigma, above 0 to 1, as `add_noise` mixes them. The training
    loss is the mean squared difference of this to noise - video (https://arxiv.org/abs/2210.02747), and
    latents - sigma * velocity the video it believes in.  guidance_scale: None for the model's default.
    Raises UserError for a sigma that is no noise level, and while a step cache is on.
    """
    if not 0 < sigma <= 1:
        raise UserError(f"sigma={sigma}: must be above 0 (video) and at most 1 (noise); 0.5 would work.")
    transformer = models.network("transformer")
    if transformer.is_cache_enabled:
        raise UserError("velocity with a step cache on: it would answer from other questions; disable_cache() works.")
    scale = models.defaults["guidance_scale"] if guidance_scale is None else guidance_scale
    guidance = torch.tensor([scale], dtype=transformer.dtype, device=models.device) * 1000.0
    timestep = torch.tensor(sigma * models.pipe.scheduler.config.num_train_timesteps, device=models.device)
    return _velocity(transformer, latents.to(models.device), timestep, {"cond": _conditions(prompt, guidance)}, 1.0, {})


def count_work() -> FlopCounterMode:
    """For `with count_work() as work:`; `work.get_total_flops()` is what was computed inside so far, in FLOPs.

    PyTorch's counter, and attention as the CPU computes it, which that one leaves out.
    """

    def attention(query, key, value, *rest, out_shape=None, **options) -> int:
        return sdpa_flop_count(query, key, value)

    cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={cpu: attention})


class _StepCache:
    """One run's hold on whatever cache of diffusers is on: empty when the run starts and when it ends.

    What a cache remembers lives in the transformer, where it would reach the next run, and where a second
    run that takes turns with this one would read it; the latest run to start holds it.
    """

    def __init__(self, transformer: HunyuanVideoTransformer3DModel, settings: Settings) -> None:
        self.transformer, self.config = transformer, transformer._cache_config
        planned = getattr(self.config, "num_inference_steps", settings.num_inference_steps)
        if planned != settings.num_inference_steps:
            raise UserError(
                f"{type(self.config).__name__}(num_inference_steps={planned}): must be the number of steps of the "
                f"run; num_inference_steps={settings.num_inference_steps} would work."
            )
        if settings.true_cfg_scale > 1 and isinstance(
            self.config, (PyramidAttentionBroadcastConfig, FasterCacheConfig)
        ):
            give_note(
                f"{type(self.config).__name__} has one memory for both prompts of true_cfg_scale and mixes them up; "
                "FirstBlockCacheConfig keeps them apart."
            )
        transformer._reset_stateful_cache()
        transformer._step_cache_holder = self

    def check(self) -> None:
        """Raise UserError when the cache is no longer the one that this run has filled."""
        if self.transformer._cache_config is not self.config:
            raise UserError("the step cache was switched on, off or over within a run; start the run again.")
        if self.config is not None and self.transformer._step_cache_holder is not self:
            raise UserError("a later run holds the step cache; disable_cache(), or one run after the other would work.")

    def release(self) -> None:
        """Forget everything, unless a later run has begun to fill the cache."""
        if self.transformer._step_cache_holder is self:
            self.transformer._reset_stateful_cache()
            self.transformer._step_cache_holder = None


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
    if 0 < start < settings.num_inference_steps and pipe.transformer.is_cache_enabled:
        give_note(f"start={start}: the step cache begins empty here; a run in one go may give other bits.")


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
