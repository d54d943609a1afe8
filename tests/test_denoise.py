"""The staged loop is the pipeline's, bit for bit, and can be watched, stopped and taken up again."""

import contextlib
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import PROMPT
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    HunyuanVideoPipeline,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from safetensors.torch import load_file, save_file

from t2v_kit.errors import UserError
from t2v_kit.hunyuan.files import POCKET
from t2v_kit.model.loading import load
from t2v_kit.settings import Settings
from t2v_kit.stages.decoding import decode
from t2v_kit.stages.denoising import count_work, denoise, velocity
from t2v_kit.stages.noise import add_noise, initial_latents, sigma_schedule
from t2v_kit.stages.prompt import PromptEncoding, encode_prompt


def pipeline_run(pipe, settings, **prompt):
    """The latents after each step, and the frames, of a call of the pipeline."""
    latents = []
    pipe.scheduler.set_shift(settings.flow_shift)
    frames = pipe(
        height=settings.height,
        width=settings.width,
        num_frames=settings.num_frames,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        true_cfg_scale=settings.true_cfg_scale,
        generator=torch.Generator("cpu").manual_seed(settings.seed),
        callback_on_step_end=lambda pipe, i, t, held: latents.append(held["latents"]) or {},
        **prompt,
    ).frames[0]
    return latents, np.stack([np.asarray(frame) for frame in frames])


def our_run(models, settings, prompt):
    steps = list(denoise(models, prompt, initial_latents(models, settings), settings))
    return steps, decode(models, steps[-1].latents)


def assert_same_bits(steps, latents):
    assert len(steps) == len(latents)
    for step, theirs in zip(steps, latents, strict=True):
        assert step.latents.dtype == theirs.dtype and torch.equal(step.latents, theirs)


@pytest.mark.parametrize("shift, guidance", [(7.0, 6.0), (3.0, 1.0)])
def test_padded_run_is_the_plain_call(tiny, plain, settings, shift, guidance):
    settings = replace(settings, flow_shift=shift, guidance_scale=guidance).check(tiny)
    steps, video = our_run(tiny, settings, encode_prompt(tiny, PROMPT, padded=True))
    latents, frames = pipeline_run(plain, settings, prompt=PROMPT)
    assert_same_bits(steps, latents)
    np.testing.assert_array_equal(video, frames)


@pytest.mark.parametrize("which", ["plain", "ours"])
def test_cut_run_is_the_call_with_the_same_embeddings(tiny, plain, settings, which):
    """On the CPU of diffusers alone too: there a mask that masks nothing changes no bit."""
    settings = settings.check(tiny)
    prompt = encode_prompt(tiny, PROMPT)
    steps, video = our_run(tiny, settings, prompt)
    told = {"prompt_embeds": prompt.prompt_embeds, "pooled_prompt_embeds": prompt.pooled}
    pipe = plain if which == "plain" else tiny.pipe
    latents, frames = pipeline_run(pipe, settings, prompt_attention_mask=prompt.mask, **told)
    assert_same_bits(steps, latents)
    np.testing.assert_array_equal(video, frames)


def test_true_guidance_is_the_pipelines(tiny, plain, settings):
    settings = replace(settings, true_cfg_scale=3.0, negative_prompt="", padded_prompt=True).check(tiny)
    steps, _ = our_run(tiny, settings, encode_prompt(tiny, PROMPT, padded=True))
    latents, _ = pipeline_run(plain, settings, prompt=PROMPT, negative_prompt="")
    assert_same_bits(steps, latents)
    without, _ = our_run(
        tiny, replace(settings, true_cfg_scale=1.0, negative_prompt=None), encode_prompt(tiny, PROMPT, padded=True)
    )
    assert not torch.equal(without[-1].latents, steps[-1].latents)


def test_a_run_leaves_the_plain_pipeline_plain(tiny, plain, settings):
    """models.pipe gives what diffusers gives, after mask-free runs with another shift as before."""
    settings = settings.check(tiny)
    our_run(tiny, replace(settings, flow_shift=2.0), encode_prompt(tiny, PROMPT))
    ours, _ = pipeline_run(tiny.pipe, settings, prompt=PROMPT)
    theirs, _ = pipeline_run(plain, settings, prompt=PROMPT)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("padded", [True, False])
def test_the_blocks_get_a_mask_only_for_padding(tiny32, settings, padded, monkeypatch):
    seen = []
    original = HunyuanVideoAttnProcessor2_0.__call__

    def watch(self, attn, hidden, encoder=None, attention_mask=None, rotary=None):
        seen.append((encoder is not None, attention_mask is not None))
        return original(self, attn, hidden, encoder, attention_mask, rotary)

    monkeypatch.setattr(HunyuanVideoAttnProcessor2_0, "__call__", watch)
    prompt = encode_prompt(tiny32, PROMPT, padded=padded)
    next(denoise(tiny32, prompt, initial_latents(tiny32, settings), settings))
    assert [masked for in_block, masked in seen if in_block] == [padded] * 3  # 1 dual and 2 single blocks


@pytest.mark.parametrize("padded", [True, False])
def test_a_run_in_another_thread_leaves_the_mask_alone(tiny32, settings, padded):
    """In the middle of each step another thread runs the same model, padded where this one is not."""
    prompts = {padded: encode_prompt(tiny32, PROMPT, padded) for padded in (True, False)}
    run = lambda padded: our_run(tiny32, settings, prompts[padded])[0][-1].latents  # noqa: E731
    alone, between = run(padded), []

    def look_away(*_):
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: between.append(run(not padded)))
            thread.start()
            thread.join()

    with tiny32.pipe.transformer.transformer_blocks[0].register_forward_pre_hook(look_away):
        assert torch.equal(run(padded), alone)
    assert len(between) == 3 and all(torch.equal(latents, run(not padded)) for latents in between)


def test_cutting_the_padding_is_the_same_mathematics(tiny32, settings):
    steps = [our_run(tiny32, settings, encode_prompt(tiny32, PROMPT, padded))[0] for padded in (True, False)]
    torch.testing.assert_close(steps[0][-1].latents, steps[1][-1].latents, rtol=1e-4, atol=1e-5)


def test_steps_tell_sigma_clean_and_time(tiny32, settings):
    start = initial_latents(tiny32, settings)
    steps = list(denoise(tiny32, encode_prompt(tiny32, PROMPT), start, settings))
    sigmas = sigma_schedule(tiny32, settings)
    assert [step.index for step in steps] == [0, 1, 2] and all(step.seconds > 0 for step in steps)
    assert [step.sigma for step in steps] == sigmas[:-1].tolist()
    # On the straight line from `predicted_clean` (sigma 0) through the latents before the step lies
    # the point that the step reached; the last step reaches the end itself.
    for before, step, after in zip([start] + [s.latents for s in steps], steps, sigmas[1:], strict=False):
        slope = (before - step.predicted_clean) / step.sigma
        torch.testing.assert_close(step.latents, step.predicted_clean + after * slope)
    torch.testing.assert_close(steps[-1].predicted_clean, steps[-1].latents)


def test_velocity_is_what_a_step_follows(tiny32, settings):
    prompt, noise = encode_prompt(tiny32, PROMPT), initial_latents(tiny32, settings)
    first, second, _ = denoise(tiny32, prompt, noise, settings)
    told = velocity(tiny32, prompt, first.latents, second.sigma)
    torch.testing.assert_close(first.latents - second.sigma * told, second.predicted_clean)
    assert not told.requires_grad
    assert not torch.equal(told, velocity(tiny32, prompt, first.latents, second.sigma, guidance_scale=1.0))


@pytest.mark.parametrize("sigma", [0, -0.5, 1.5, float("nan")])
def test_velocity_needs_a_noise_level(tiny32, settings, sigma):
    with pytest.raises(UserError, match=f"sigma={sigma}: must be above 0"):
        velocity(tiny32, encode_prompt(tiny32, PROMPT), initial_latents(tiny32, settings), sigma)


def test_saved_prompt_and_latents_go_on_to_the_same_video(tiny, settings, tmp_path):
    prompt = encode_prompt(tiny, PROMPT)
    steps, video = our_run(tiny, settings, prompt)
    prompt.save(tmp_path / "prompt.safetensors")
    save_file({"latents": steps[0].latents}, tmp_path / "latents.safetensors")

    prompt = PromptEncoding.load(tmp_path / "prompt.safetensors")
    latents = load_file(tmp_path / "latents.safetensors")["latents"]
    resumed = list(denoise(tiny, prompt, latents, settings, start=1))
    assert [step.index for step in resumed] == [1, 2]
    assert_same_bits(resumed, [step.latents for step in steps[1:]])
    np.testing.assert_array_equal(decode(tiny, resumed[-1].latents), video)


def test_starting_late_from_a_noised_video_is_a_shorter_run(tiny32, settings):
    clean = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    noisy = add_noise(clean, initial_latents(tiny32, settings), sigma_schedule(tiny32, settings)[2])
    steps = list(denoise(tiny32, encode_prompt(tiny32, PROMPT), noisy, settings, start=2))
    assert [step.index for step in steps] == [2]


def test_gradients_are_the_callers_own_affair(tiny32, settings):
    """A generator that yields inside torch.no_grad() would switch them off between the steps."""
    for step in denoise(tiny32, encode_prompt(tiny32, PROMPT), initial_latents(tiny32, settings), settings):
        assert torch.is_grad_enabled() and not step.latents.requires_grad


def test_two_runs_side_by_side_do_not_disturb_each_other(tiny32, settings):
    cut, padded = (encode_prompt(tiny32, PROMPT, padded) for padded in (False, True))
    apart = [our_run(tiny32, settings, prompt)[0] for prompt in (cut, padded)]
    noise = initial_latents(tiny32, settings)
    pairs = list(zip(*(denoise(tiny32, prompt, noise, settings) for prompt in (cut, padded)), strict=True))
    for steps, together in zip(apart, zip(*pairs, strict=True), strict=True):
        assert_same_bits(together, [step.latents for step in steps])


# Each makes the tiny model skip something within four steps; `pipe` tells pyramid broadcast the timestep.
CACHES = {
    "first block": lambda pipe: FirstBlockCacheConfig(threshold=10.0),
    "mag": lambda pipe: MagCacheConfig(10.0, 3, 0.25, 4, mag_ratios=[1.0] * 4),
    "taylor": lambda pipe: TaylorSeerCacheConfig(3, 2, taylor_factors_dtype=torch.float32),
    "taylor lite": lambda pipe: TaylorSeerCacheConfig(3, 2, taylor_factors_dtype=torch.float32, use_lite_mode=True),
    "pyramid": lambda pipe: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000),
        current_timestep_callback=lambda: pipe.current_timestep,
    ),
    "faster": lambda pipe: FasterCacheConfig(
        spatial_attention_timestep_skip_range=(0, 1000),
        current_timestep_callback=lambda: pipe.current_timestep,
        is_guidance_distilled=True,
        tensor_format="BCFHW",
    ),
}
FOUR_STEPS = {"num_inference_steps": 4}


@contextlib.contextmanager
def cached(pipe, name):
    pipe.transformer.enable_cache(CACHES[name](pipe) if isinstance(name, str) else name)
    try:
        yield
    finally:
        pipe.transformer.disable_cache()


@pytest.mark.parametrize("name", CACHES)
def test_with_a_step_cache_it_is_the_pipelines_cached_run(tiny, plain, settings, name):
    """The same bits as diffusers with the same cache, other bits than without, and the same once more."""
    settings = replace(settings, **FOUR_STEPS).check(tiny)
    prompt = encode_prompt(tiny, PROMPT, padded=True)
    exact, _ = our_run(tiny, settings, prompt)
    with cached(tiny.pipe, name), cached(plain, name):
        first, second = (our_run(tiny, settings, prompt)[0] for _ in range(2))
        latents, _ = pipeline_run(plain, settings, prompt=PROMPT)
    assert_same_bits(first, latents)
    assert_same_bits(second, latents)
    assert not torch.equal(first[-1].latents, exact[-1].latents)
    assert_same_bits(our_run(tiny, settings, prompt)[0], [step.latents for step in exact])


@pytest.mark.parametrize("name", ["first block", "mag", "taylor"])
def test_true_guidance_keeps_two_memories(tiny, plain, settings, name, recwarn):
    alone = {"true_cfg_scale": 3.0, "negative_prompt": "", "guidance_scale": 1.0}
    settings = replace(settings, padded_prompt=True, **alone, **FOUR_STEPS).check(tiny)
    with cached(tiny.pipe, name), cached(plain, name):
        steps, _ = our_run(tiny, settings, encode_prompt(tiny, PROMPT, padded=True))
        latents, _ = pipeline_run(plain, settings, prompt=PROMPT, negative_prompt="")
    assert_same_bits(steps, latents)
    assert not recwarn.list


def test_pyramid_broadcast_mixes_the_two_prompts_and_says_so(tiny32, settings):
    """It counts the calls of both prompts in one row, here as in the pipeline."""
    settings = replace(settings, true_cfg_scale=3.0, negative_prompt="", **FOUR_STEPS)
    with cached(tiny32.pipe, "pyramid"), pytest.warns(UserWarning, match="one memory for both prompts"):
        next(denoise(tiny32, encode_prompt(tiny32, PROMPT), initial_latents(tiny32, settings), settings))


def test_a_step_cache_begins_empty_in_the_middle_and_says_so(tiny32, settings):
    with cached(tiny32.pipe, "first block"), pytest.warns(UserWarning, match="start=1: the step cache begins empty"):
        next(denoise(tiny32, encode_prompt(tiny32, PROMPT), initial_latents(tiny32, settings), settings, start=1))


def test_an_abandoned_run_leaves_nothing_in_the_cache(tiny32, settings):
    """Dropped half-way, kept alive half-way, or closed while the next one goes on: the next is undisturbed."""
    settings = replace(settings, **FOUR_STEPS)
    prompt, noise = encode_prompt(tiny32, PROMPT), initial_latents(tiny32, settings)
    with cached(tiny32.pipe, "first block"):
        whole = [step.latents for step in denoise(tiny32, prompt, noise, settings)]
        for step in denoise(tiny32, prompt, noise + 1, settings):
            if step.index == 1:
                break
        assert_same_bits(list(denoise(tiny32, prompt, noise, settings)), whole)

        held, older = (denoise(tiny32, prompt, noise + 1, settings) for _ in range(2))
        next(older)
        next(held)
        run = denoise(tiny32, prompt, noise, settings)
        steps = [next(run)]
        held.close()
        with pytest.raises(UserError, match="a later run holds the step cache"):
            next(older)
        assert_same_bits([*steps, *run], whole)


def test_a_cache_is_not_switched_within_a_run(tiny32, settings):
    run = denoise(tiny32, encode_prompt(tiny32, PROMPT), initial_latents(tiny32, settings), settings)
    next(run)
    with cached(tiny32.pipe, "first block"), pytest.raises(UserError, match="switched on, off or over"):
        next(run)


def test_velocity_does_not_answer_from_a_cache(tiny32, settings):
    with cached(tiny32.pipe, "first block"), pytest.raises(UserError, match="velocity with a step cache on"):
        velocity(tiny32, encode_prompt(tiny32, PROMPT), initial_latents(tiny32, settings), 0.5)


def test_a_cache_for_another_number_of_steps_is_refused(tiny32, settings):
    wrong = MagCacheConfig(num_inference_steps=28, mag_ratios=[1.0] * 28)
    with cached(tiny32.pipe, wrong), pytest.raises(UserError, match=r"steps=28\).*num_inference_steps=3 would work"):
        next(denoise(tiny32, encode_prompt(tiny32, PROMPT), initial_latents(tiny32, settings), settings))


def test_work_is_counted_with_attention():
    """Two FLOPs for each product that is summed: (5, 6) by (6, 7), and 3 queries by 4 keys by 8 numbers, twice."""
    q, k = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 4, 8)
    with count_work() as work:
        torch.randn(5, 6) @ torch.randn(6, 7)
        assert work.get_total_flops() == 2 * 5 * 6 * 7
        torch.nn.functional.scaled_dot_product_attention(q, k, k)
    assert work.get_total_flops() == 2 * 5 * 6 * 7 + 2 * (2 * 2 * 3 * 4 * 8)


def test_sea_cache_learns_where_in_the_schedule_it_is(tiny32, settings, monkeypatch):
    """It skips the blocks of a step only when it is told the step and its sigma; else it computes them all."""
    settings, prompt = replace(settings, **FOUR_STEPS), encode_prompt(tiny32, PROMPT)
    calls = []
    forward = HunyuanVideoAttnProcessor2_0.__call__
    monkeypatch.setattr(
        HunyuanVideoAttnProcessor2_0,
        "__call__",
        lambda self, *args, **kw: calls.append(1) or forward(self, *args, **kw),
    )
    list(denoise(tiny32, prompt, initial_latents(tiny32, settings), settings))
    whole = len(calls)
    sea = SeaCacheConfig(10.0, 0, raw_vision_callback=lambda module, args, told: list(told["hidden_states"].unbind(0)))
    with cached(tiny32.pipe, sea):
        list(denoise(tiny32, prompt, initial_latents(tiny32, settings), settings))
    assert len(calls) - whole == whole // 2  # the first and the last of four steps are computed


@pytest.mark.parametrize(
    "value, dtype, cause",
    [(float("nan"), "bfloat16", "NaN or infinity in the weights"), (0.0, "float32", "all weights are zero")],
)
def test_broken_latents_stop_the_run_at_their_step(tiny_folder, settings, value, dtype, cause):
    models = load(tiny_folder, device="cpu", dtype=dtype)
    start = torch.zeros(1, 4, 3, 4, 6)
    with torch.no_grad():
        models.pipe.transformer.proj_out.weight.fill_(value)
        models.pipe.transformer.proj_out.bias.fill_(value)
    with pytest.raises(UserError, match=f"step 0: the latents run from .*{cause}.*; remedy: load the transformer"):
        list(denoise(models, encode_prompt(models, PROMPT), start, settings))


def test_float16_overflow_is_named_as_the_cause(tiny_folder, settings):
    models = load(tiny_folder, device="cpu", dtype={"transformer": "float16", "default": "float32"})
    with torch.no_grad():
        models.pipe.transformer.proj_out.weight.mul_(60000)
    with pytest.raises(UserError, match=r"float16 overflows .* bfloat16"):
        list(denoise(models, encode_prompt(models, PROMPT), initial_latents(models, settings), settings))


@pytest.mark.parametrize(
    "shape, start, says",
    [((1, 4, 2, 4, 6), 0, r"these settings need \(1, 4, 3, 4, 6\)"), ((1, 4, 3, 4, 6), 9, "start=9")],
)
def test_latents_of_other_settings_are_refused(tiny32, settings, shape, start, says):
    with pytest.raises(UserError, match=says):
        next(denoise(tiny32, encode_prompt(tiny32, PROMPT), torch.randn(shape), settings, start=start))


@pytest.mark.parametrize("padded", [True, False])
def test_pocket_gives_the_pipelines_bits(pocket, padded):
    """The shipped weights at a small size, through diffusers alone: every step, and the frames."""
    settings = Settings(PROMPT, num_frames=5, num_inference_steps=2).check(pocket)
    prompt = encode_prompt(pocket, PROMPT, padded)
    told = {
        "prompt_embeds": prompt.prompt_embeds,
        "pooled_prompt_embeds": prompt.pooled,
        "prompt_attention_mask": prompt.mask,
    }
    steps, video = our_run(pocket, settings, prompt)
    plain = HunyuanVideoPipeline.from_pretrained(POCKET, dtype=torch.float32)
    latents, frames = pipeline_run(plain, settings, **({"prompt": PROMPT} if padded else told))
    assert_same_bits(steps, latents)
    np.testing.assert_array_equal(video, frames)
