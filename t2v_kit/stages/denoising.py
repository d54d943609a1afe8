"""Stage 3: noise becomes latents, one step at a time. Observers consume the yielded Steps."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers import FasterCacheConfig, FlowMatchEulerDiscreteScheduler, PyramidAttentionBroadcastConfig
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..errors import UserError, check_whole, give_note
from ..hunyuan.longer import slowed, slower_time
from ..settings import Resolved, Settings, travelled
from .image import Conditioned, Picture, check_picture
from .known import Known, renoise
from .noise import check_sigma, initial_latents, latents_shape, levels, make_scheduler
from .prompt import PromptEncoding, encode_prompt

if TYPE_CHECKING:
    from ..model.models import Models


@dataclass(frozen=True, eq=False)
class Step:
    """One step of denoising.

    Attributes:
        index: 0 to num_inference_steps - 1.
        sigma: The noise level at which the transformer was evaluated, 1 to 0.
        latents: (1, C, T, H, W) after the step, in the transformer's dtype.
        predicted_clean: (1, C, T, H, W) float32, where the straight line from before the step ends:
            latents - sigma * velocity.
        seconds: The transformer's and the scheduler's time for this step.
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
    known: Known | None = None,
    image: Picture | None = None,
) -> Iterator[Step]:
    """Yield a Step for every step of the schedule; stop whenever you like.

    The bits are those of HunyuanVideoPipeline, also with a step cache that models.pipe.transformer.enable_cache(config)
    has switched on: every run starts and ends with an empty one. (SeaCacheConfig skips steps only here: the pipeline of
    diffusers 0.42 never tells SeaCache the step index, so it never skips there.) Several runs may take turns on one
    model, or run in several threads; each step has the model to itself.

    Args:
        models: What `load` gave.
        prompt: What `encode_prompt` gave.
        latents: (1, C, T, H, W), float32 noise of `initial_latents`; to resume, a Step's latents in their own dtype.
        settings: Size, steps, guidance and shift; with `travel`, other prompts in some steps, which are encoded here.
        start: The first step to compute; to resume, pass `start=step.index + 1`.
        negative: The negative prompt of true classifier-free guidance; by default settings.negative_prompt is encoded.
        known: What of the video is given. After each step it is put back at that step's noise level, mixed with the
            noise of settings.seed, and at the end as it is. With settings.resample above 1 each step is taken that
            often, with fresh noise in between (RePaint, https://arxiv.org/abs/2201.09865). The same bits as
            diffusers' inpainting pipelines where these keep to the unmasked part.
        image: For a model that starts from a picture: what `read_picture` gave. The bits are those of
            HunyuanVideoImageToVideoPipeline.

    Yields:
        Steps from `start` to the last.

    Raises:
        UserError: Latents or prompt do not fit these settings and this model, latents turn NaN or constant, or two
            runs take turns with one step cache.

    Example:
        >>> models = load("pocket", device="cpu")
        >>> settings = Settings("A red car.", num_frames=1, num_inference_steps=2)
        >>> prompt, noise = encode_prompt(models, settings.prompt), initial_latents(models, settings)
        >>> [step.index for step in denoise(models, prompt, noise, settings)]
        [0, 1]
    """
    full = settings.check(models)
    _check_run(models, latents, full, start)
    _check_prompt(models, prompt)
    picture = check_picture(models, image)
    if picture is not None and known is not None:
        raise UserError(f"known: {models.name} starts from a picture, and holds no other parts; known=None would work.")
    if full.true_cfg_scale > 1 and negative is None:
        assert full.negative_prompt is not None  # Settings refuse true_cfg_scale without one
        negative = encode_negative(models, full)
    if negative is not None:
        _check_prompt(models, negative)
    travel = [] if full.travel is None else travelled(full.travel)
    others = [
        (steps, encode_prompt(models, text, full.padded_prompt, name="travel", image=picture)) for steps, text in travel
    ]
    with models.lock:
        transformer = models.network("transformer")
        dtype = transformer.dtype  # asked once: it walks all modules
        scheduler = make_scheduler(models, full)
        order = scheduler.order  # evaluations of the transformer in a step: 2 of Heun's, else 1
        scheduler.set_begin_index(order * start)
        sigmas = levels(scheduler).tolist()
        # In the transformer's dtype, as the pipeline does: in bfloat16 6.0 and 6.02 are the same guidance.
        guidance = torch.tensor([full.guidance_scale], dtype=dtype, device=models.device) * 1000.0
        own = _conditions(prompt, guidance)
        branches = {"cond": own}
        prompts = {}
        for steps, other in others:
            prompts |= dict.fromkeys(steps, _conditions(other, guidance))
        if full.true_cfg_scale > 1 and negative is not None:
            branches["uncond"] = _conditions(negative, guidance)
        latents = latents.to(models.device)
        hold = None if known is None else _Hold(models, full, known, scheduler, latents)
        latents = latents if hold is None else hold.put(latents, sigmas[start])
        shown = None if picture is None else Conditioned(models.condition or "", picture, latents)
        cache = _StepCache(transformer, full, order)
        slower = slowed(transformer.config, models.trained_latents, latents.shape[2]) if full.riflex else None
    try:
        for index in range(start, full.num_inference_steps):
            with models.lock:  # never held while the caller has the Step
                began = time.perf_counter()
                cache.check()
                models.loras.at_step(index)
                sigma = sigmas[index]
                branches["cond"] = prompts.get(index, own)
                where = {"step_index": index, "num_inference_steps": full.num_inference_steps, "sigma": sigma}
                clean = None
                for repeat in range(1 if hold is None else full.resample):
                    taking = scheduler
                    if hold is not None and repeat:
                        latents, taking = hold.again(latents, index, repeat)
                        clean = None
                    for timestep in scheduler.timesteps[order * index : order * (index + 1)]:
                        seen = latents if shown is None else shown.seen(latents)
                        # A plan with one stage in memory may have to read the network first, and with it the embedding.
                        with slower_time(models.network("transformer") if slower else transformer, slower):
                            velocity = _velocity(models, transformer, seen, latents.dtype, timestep, branches,
                                                 full.true_cfg_scale, where)  # fmt: skip
                        clean = latents.float() - sigma * velocity.float() if clean is None else clean
                        take = functools.partial(_step, taking, timestep)
                        latents = take(velocity, latents) if shown is None else shown.stepped(take, velocity, latents)
                assert clean is not None  # a step has at least one evaluation
                if hold is not None:
                    latents = hold.put(latents, sigmas[index + 1])
                _check_alive(latents, index, dtype)
                seconds = time.perf_counter() - began
            yield Step(index, sigma, latents, clean, seconds)
    finally:
        with models.lock:
            cache.release()
            models.release()


def encode_negative(models: Models, full: Resolved) -> PromptEncoding:
    """The negative prompt of true classifier-free guidance; beside a black picture where the model reads one."""
    image = None if models.condition is None else Image.new("RGB", (full.width, full.height), 0)
    return encode_prompt(
        models, full.negative_prompt or "", full.padded_prompt, allow_empty=True, name="negative_prompt", image=image
    )


def _step(scheduler: Any, timestep: torch.Tensor, velocity: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    return scheduler.step(velocity, timestep, latents, return_dict=False)[0]


class _Hold:
    """What is known, during one run: put back after each step, and steps taken again."""

    def __init__(self, models: Models, full: Resolved, known: Known, scheduler: Any, latents: torch.Tensor) -> None:
        if not isinstance(known, Known):
            raise UserError(f"known is {type(known).__name__}: must be Known(latents, mask); known_parts gives it.")
        if known.latents.shape != latents.shape:
            raise UserError(
                f"known latents {tuple(known.latents.shape)}: must be shaped like those that are denoised, "
                f"{tuple(latents.shape)}."
            )
        if full.resample > 1 and (
            not isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or models.pipe.transformer.is_cache_enabled
        ):
            what = "a step cache" if models.pipe.transformer.is_cache_enabled else type(scheduler).__name__
            raise UserError(
                f"resample={full.resample}: {what} remembers earlier steps, and steps cannot be taken again; "
                "resample=1 would work.",
                setting="resample",
            )
        self.models, self.full, self.known = models, full, known
        self.sigmas: Any = scheduler.sigmas
        self.noise = initial_latents(models, full)

    def put(self, latents: torch.Tensor, sigma: float) -> torch.Tensor:
        return self.known.put(latents, self.noise, sigma)

    def again(self, latents: torch.Tensor, index: int, repeat: int) -> tuple[torch.Tensor, Any]:
        """Latents after step `index` noised back to before it, and a scheduler to take that step with once more."""
        sigma, lower = self.sigmas[index].item(), self.sigmas[index + 1].item()
        # A generator for each repetition, so that a resumed run draws the same numbers.
        number = (self.full.seed + 1_000_003 * (index * self.full.resample + repeat)) % 2**63
        fresh = torch.randn(latents.shape, generator=torch.Generator("cpu").manual_seed(number)).to(latents.device)
        higher = renoise(self.put(latents, lower).float(), lower, sigma, fresh).to(latents.dtype)
        scheduler = make_scheduler(self.models, self.full)
        scheduler.set_begin_index(index)
        return self.put(higher, sigma), scheduler


@torch.no_grad()
def _velocity(models: Models, transformer, latents, dtype, timestep, branches, true_cfg_scale, where) -> torch.Tensor:
    """The transformer's velocity (1, C, T, H, W); with two branches, steered away from the negative.

    latents: what it is given.  dtype: of the latents that the run carries on, in which the pipeline has the timestep.
    """
    velocities = {}
    models.pipe._current_timestep = timestep  # step caches ask for it, some here and some in their context
    try:
        for name, conditions in branches.items():
            with transformer.cache_context(name, timestep=timestep, **where):
                velocities[name] = transformer(
                    hidden_states=latents.to(conditions["encoder_hidden_states"].dtype),
                    timestep=timestep.expand(1).to(dtype),
                    return_dict=False,
                    **conditions,
                )[0]
    finally:
        models.pipe._current_timestep = None
    if "uncond" not in velocities:
        return velocities["cond"]
    return velocities["uncond"] + true_cfg_scale * (velocities["cond"] - velocities["uncond"])


def _conditions(prompt: PromptEncoding, guidance: torch.Tensor) -> dict[str, torch.Tensor]:
    """A prompt as the transformer's keywords, with the device and dtype of `guidance`."""
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
    """One evaluation of the transformer: the predicted velocity, the direction from video to noise.

    The training loss is the mean squared difference between it and noise - video
    (https://arxiv.org/abs/2210.02747); latents - sigma * velocity is the video that the transformer predicts.

    Args:
        models: What `load` gave.
        prompt: What `encode_prompt` gave.
        latents: (1, C, T, H, W) at noise level sigma, as `add_noise` mixes them; H and W even, for patches of 2x2.
        sigma: The noise level, above 0 to 1.
        guidance_scale: Distilled guidance; None for the model's default.

    Returns:
        (1, C, T, H, W), in the transformer's dtype.

    Raises:
        UserError: sigma is no noise level, the latents do not have such a shape, the prompt is of another model, a step
            cache is on, or a LoRA has another strength at each step.
    """
    level = check_sigma(sigma)
    if models.condition is not None:
        raise UserError(f"velocity: {models.name} needs a picture at every step; denoise(image=...) would work.")
    check_latents(models, latents)
    _check_prompt(models, prompt)
    with models.lock:
        transformer = models.network("transformer")
        if transformer.is_cache_enabled:
            raise UserError(
                "velocity with a step cache on: it would answer from other evaluations; disable_cache() works."
            )
        if models.loras.vary:
            raise UserError("velocity with a strength for each step: it has no step; models.loras.set(1.0) would work.")
        scale = models.defaults["guidance_scale"] if guidance_scale is None else guidance_scale
        guidance = torch.tensor([scale], dtype=transformer.dtype, device=models.device) * 1000.0
        timestep = torch.tensor(level * models.pipe.scheduler.config.num_train_timesteps, device=models.device)
        branches = {"cond": _conditions(prompt, guidance)}
        at = latents.to(models.device)
        return _velocity(models, transformer, at, at.dtype, timestep, branches, 1.0, {})


def check_latents(models: Models, latents: object) -> torch.Tensor:
    """Return latents that the transformer can cut into whole patches.

    Args:
        models: What `load` gave.
        latents: (1, C, T, H, W), floating point.

    Raises:
        UserError: They are something else; the message has the nearest shape that works.
    """
    config = models.pipe.transformer.config
    patch = (config.patch_size_t, config.patch_size, config.patch_size)
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
        kind = latents.dtype if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise UserError(f"latents are {kind}: must be a tensor of floating point numbers; float32 would work.")
    shape = tuple(latents.shape)
    size = shape[-3:] if latents.ndim >= 3 else (1, 2, 2)
    near = (1, config.out_channels, *(max(side, n // side * side) for n, side in zip(size, patch)))
    if shape != near:
        raise UserError(
            f"latents {shape}: must be (1, {config.out_channels}, T, H, W) with T, H and W multiples of the "
            f"transformer's patches {patch}; {near} would work."
        )
    return latents


def _check_prompt(models: Models, prompt: object) -> None:
    """Refuse what is no encoded prompt, and one of another model."""
    if not isinstance(prompt, PromptEncoding):
        raise UserError(f"prompt={str(prompt)[:60]!r}: must be encoded; encode_prompt(models, text) would work.")
    config = models.pipe.transformer.config
    shapes = tuple(prompt.prompt_embeds.shape), tuple(prompt.mask.shape), tuple(prompt.pooled.shape)
    length = shapes[0][1] if len(shapes[0]) == 3 else 0
    wanted = ((1, length, config.text_embed_dim), (1, length), (1, config.pooled_projection_dim))
    if shapes != wanted or not length:
        wanted = ((1, "L", config.text_embed_dim), (1, "L"), (1, config.pooled_projection_dim))
        raise UserError(
            f"prompt with prompt_embeds, mask and pooled of {shapes}: this transformer reads {wanted}; encode_prompt "
            "with the same model gives them."
        )


def count_work() -> FlopCounterMode:
    """Count the arithmetic of a block of code: PyTorch's own counter, with attention on the CPU, which it leaves out.

    Returns:
        A context; its `get_total_flops()` is what has been computed inside so far, in FLOPs.

    Example:
        >>> with count_work() as work:
        ...     _ = torch.randn(5, 6) @ torch.randn(6, 7)
        >>> work.get_total_flops()
        420
    """

    def attention(query, key, value, *rest, out_shape=None, **options) -> int:
        return sdpa_flop_count(query, key, value)

    cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={cpu: attention})


class _StepCache:
    """One run's hold on whatever cache of diffusers is on: empty when the run starts and when it ends.

    A cache keeps its state in the transformer, where it would reach the next run, and where a second run that takes
    turns with this one would read it; the latest run to start holds it.
    """

    def __init__(self, transformer: Any, settings: Resolved, order: int) -> None:
        self.transformer, self.config = transformer, transformer._cache_config
        if self.config is not None and order > 1:
            raise UserError(
                f"a step cache with a solver that evaluates each step {order} times: it would compare evaluations that "
                "do not follow each other; UniPC would work."
            )
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
        if self.config is not None and getattr(self.transformer, "_step_cache_holder", None) is not self:
            raise UserError(
                "a later run holds the step cache, or its network has left the memory in between; disable_cache(), or "
                "one stage after the other would work."
            )

    def release(self) -> None:
        """Forget everything, unless a later run has begun to fill the cache."""
        if getattr(self.transformer, "_step_cache_holder", None) is self:
            self.transformer._reset_stateful_cache()
            self.transformer._step_cache_holder = None


def _check_run(models: Models, latents: torch.Tensor, settings: Resolved, start: int) -> None:
    """Refuse latents of another size than the settings', and a start beyond the schedule."""
    shape = latents_shape(models, settings)
    if not isinstance(latents, torch.Tensor) or tuple(latents.shape) != shape:
        got = tuple(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise UserError(f"latents {got}: these settings need {shape}; initial_latents gives them.")
    check_latents(models, latents)
    check_whole("start", start, 0, settings.num_inference_steps)
    if 0 < start < settings.num_inference_steps and models.pipe.transformer.is_cache_enabled:
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
