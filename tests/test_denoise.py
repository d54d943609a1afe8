"""The staged loop is the pipeline's, bit for bit, and can be watched, stopped and taken up again."""

import contextlib
import copy
import threading
import time
from dataclasses import replace

import accelerate
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
from t2v_kit.hunyuan.chunks import remove_chunks, use_chunks
from t2v_kit.hunyuan.files import POCKET
from t2v_kit.hunyuan.masks import NoFullMask, keep_full_masks, skip_full_masks
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


def evaluate(models, prompt, latents):
    """One plain call of the transformer, which takes no lock."""
    told = (prompt.prompt_embeds, prompt.mask, prompt.pooled, torch.tensor([6000.0]))
    with torch.no_grad():
        return models.pipe.transformer(latents, torch.tensor([500.0]), *told, return_dict=False)[0]


@pytest.mark.parametrize("padded", [True, False])
def test_a_call_in_another_thread_leaves_the_mask_alone(tiny32, settings, padded):
    """In the middle of each step another thread calls the same transformer, padded where this run is not."""
    prompts = {padded: encode_prompt(tiny32, PROMPT, padded) for padded in (True, False)}
    noise, between = initial_latents(tiny32, settings), []
    alone = our_run(tiny32, settings, prompts[padded])[0][-1].latents
    other = evaluate(tiny32, prompts[not padded], noise)

    def look_away(*_):
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: between.append(evaluate(tiny32, prompts[not padded], noise)))
            thread.start()
            thread.join(60)

    with tiny32.pipe.transformer.transformer_blocks[0].register_forward_pre_hook(look_away):
        assert torch.equal(our_run(tiny32, settings, prompts[padded])[0][-1].latents, alone)
    assert len(between) == 3 and all(torch.equal(velocity, other) for velocity in between)


def block_input(transformer):
    """What a dual-stream block takes, with a mask that leaves out the last three of seven text tokens."""
    generator = torch.Generator().manual_seed(0)
    video, words, state = (torch.randn(shape, generator=generator) for shape in ((1, 5, 32), (1, 7, 32), (1, 32)))
    mask = (torch.arange(12) < 9)[None, None, None]
    return video, words, state, mask


@pytest.mark.parametrize("stopped", [False, True])
def test_a_block_called_by_itself_minds_its_mask(tiny_folder, settings, stopped):
    """Also after a call without padding, and after one that was interrupted half-way."""
    models = load(tiny_folder, device="cpu")
    block = models.pipe.transformer.transformer_blocks[0]
    told = block_input(models.pipe.transformer)
    with torch.no_grad():
        before = block(*told)
        assert not torch.equal(before[0], block(*told[:3], None)[0])
    prompt, noise = encode_prompt(models, PROMPT), initial_latents(models, settings)

    def stop(*_):
        raise KeyboardInterrupt

    if stopped:
        with models.pipe.transformer.proj_out.register_forward_pre_hook(stop), pytest.raises(KeyboardInterrupt):
            evaluate(models, prompt, noise)
    else:
        evaluate(models, prompt, noise)
    with torch.no_grad():
        after = block(*told)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])


def forwards(transformer):
    """The processors, and everything that is set on the instances of the transformer's modules."""
    own = {name: [key for key in vars(module) if key in ("forward", "_diffusers_hook")]
           for name, module in transformer.named_modules()}  # fmt: skip
    return list(transformer.attn_processors.items()), own


def test_what_skips_masks_and_works_in_chunks_is_removed_without_a_trace(tiny_folder):
    transformer = HunyuanVideoPipeline.from_pretrained(tiny_folder, dtype=torch.float32).transformer
    (before, plain) = forwards(transformer)
    skip_full_masks(transformer)
    skip_full_masks(transformer)  # once is enough
    between, between_own = forwards(transformer)
    assert not any(one is other for (_, one), (_, other) in zip(before[1:], between[1:]) if "refiner" not in _)
    use_chunks(transformer, 5)
    with pytest.raises(UserError, match="work in chunks already"):
        use_chunks(transformer, 6)
    with pytest.raises(UserError, match="attention is wrapped; it works after remove_chunks"):
        keep_full_masks(transformer)
    remove_chunks(transformer)
    chunked, chunked_own = forwards(transformer)
    assert all(one is other for (_, one), (_, other) in zip(between, chunked)) and between_own == chunked_own
    keep_full_masks(transformer)
    after, own = forwards(transformer)
    assert all(one is other for (_, one), (_, other) in zip(before, after)) and own == plain
    assert not [key for key in vars(transformer) if "mask" in key]
    with pytest.raises(UserError, match="not that of skip_full_masks"):
        keep_full_masks(transformer)


def test_a_deep_copy_computes_with_its_own_weights(tiny32, settings):
    """And skips masks itself: nothing of it points back to the original."""
    prompt, noise = encode_prompt(tiny32, PROMPT), initial_latents(tiny32, settings)
    before = evaluate(tiny32, prompt, noise)
    twin = copy.deepcopy(tiny32)
    assert torch.equal(evaluate(twin, prompt, noise), before)
    with torch.no_grad():
        twin.pipe.transformer.proj_out.weight.zero_()
    assert not torch.equal(evaluate(twin, prompt, noise), before)
    assert torch.equal(evaluate(tiny32, prompt, noise), before)
    keep_full_masks(twin.pipe.transformer)
    assert isinstance(tiny32.pipe.transformer.transformer_blocks[0].attn.processor, NoFullMask)


def test_gradient_checkpointing_takes_the_same_way_twice(tiny_folder, settings):
    """The blocks are computed again in the backward pass, when the call whose mask was looked at is long over."""
    models = load(tiny_folder, device="cpu")
    transformer, prompt, noise = (
        models.pipe.transformer,
        encode_prompt(models, PROMPT),
        initial_latents(models, settings),
    )
    told = (prompt.prompt_embeds, prompt.mask, prompt.pooled, torch.tensor([6000.0]))
    masks = []
    original = HunyuanVideoAttnProcessor2_0.__call__

    def watch(self, attn, hidden, encoder=None, attention_mask=None, rotary=None):
        masks.append(attention_mask if encoder is not None else None)
        return original(self, attn, hidden, encoder, attention_mask, rotary)

    gradients = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HunyuanVideoAttnProcessor2_0, "__call__", watch)
        for checkpointing in (False, True):
            if checkpointing:
                transformer.enable_gradient_checkpointing()
            transformer.zero_grad()
            transformer.train()(noise, torch.tensor([500.0]), *told, return_dict=False)[0].square().mean().backward()
            gradients.append(transformer.x_embedder.proj.weight.grad.clone())
    torch.testing.assert_close(*gradients)
    assert masks and not any(mask is not None for mask in masks)


@pytest.mark.parametrize("chunks", [False, True])
def test_blocks_compile_into_one_graph(tiny_folder, settings, chunks):
    """Neither the decision about the mask nor the chunks' hooks break it: fullgraph raises otherwise."""
    models = load(tiny_folder, device="cpu")
    prompts = [encode_prompt(models, PROMPT, padded) for padded in (False, True)]
    noise = initial_latents(models, settings)
    if chunks:
        use_chunks(models.pipe.transformer, 16)
    before = [evaluate(models, prompt, noise) for prompt in prompts]
    torch._dynamo.reset()
    for block in (*models.pipe.transformer.transformer_blocks, *models.pipe.transformer.single_transformer_blocks):
        block.compile(backend="eager", fullgraph=True)
    for prompt, wanted in zip(prompts * 2, before * 2):
        torch.testing.assert_close(evaluate(models, prompt, noise), wanted, rtol=1e-4, atol=1e-5)


def in_threads(*tasks, seconds=1.5):
    """Each task in a thread of its own, over and over; what each returned, or the first error."""
    until, results, errors = time.monotonic() + seconds, [[] for _ in tasks], []

    def work(task, kept):
        try:
            while len(kept) < 2 or time.monotonic() < until:
                kept.append(task())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(tasks, results)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors, errors[0]
    return results


def test_two_runs_in_two_threads_give_the_bits_of_one_after_the_other(tiny32, settings):
    prompts = [encode_prompt(tiny32, PROMPT, padded) for padded in (False, True)]
    runs = [lambda prompt=prompt: our_run(tiny32, settings, prompt)[0][-1].latents for prompt in prompts]
    alone = [run() for run in runs]
    for results, wanted in zip(in_threads(*runs), alone):
        assert len(results) > 1 and all(torch.equal(latents, wanted) for latents in results)


def test_chunks_keep_nothing_that_threads_could_share(tiny_folder, settings):
    """Plain calls of one transformer, without any lock: no error, and the same bits each time."""
    models = load(tiny_folder, device="cpu")
    use_chunks(models.pipe.transformer, 3)
    prompts = [encode_prompt(models, PROMPT, padded) for padded in (False, True)]
    noise = [torch.randn(1, 4, t, 4, 6, generator=torch.Generator().manual_seed(t)) for t in (3, 5)]
    calls = [lambda prompt=p, latents=n: evaluate(models, prompt, latents) for p in prompts for n in noise]
    alone = [call() for call in calls]
    for results, wanted in zip(in_threads(*calls, seconds=2), alone):
        assert all(torch.equal(velocity, wanted) for velocity in results)


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


def test_a_preview_between_the_steps_leaves_the_step_cache_alone(tiny32, settings):
    """Decoding, encoding a prompt and one more evaluation's worth of stages do not empty it, as the pipeline would."""
    settings = replace(settings, **FOUR_STEPS)
    prompt, noise = encode_prompt(tiny32, PROMPT), initial_latents(tiny32, settings)
    with cached(tiny32.pipe, "first block"):
        alone = [step.latents for step in denoise(tiny32, prompt, noise, settings)]
        steps = []
        for step in denoise(tiny32, prompt, noise, settings):
            steps.append(step)
            decode(tiny32, step.predicted_clean)
            encode_prompt(tiny32, PROMPT)
    assert_same_bits(steps, alone)


@pytest.mark.parametrize(
    "latents, says",
    [
        (torch.zeros(1, 4, 3, 7, 9), r"latents \(1, 4, 3, 7, 9\): must be .*multiples.*; \(1, 4, 3, 6, 8\) would work"),
        (torch.zeros(1, 3, 3, 4, 6), r"\(1, 4, 3, 4, 6\) would work"),
        (torch.zeros(2, 4, 3, 4, 6), r"\(1, 4, 3, 4, 6\) would work"),
        (torch.zeros(4, 3, 4, 6), r"\(1, 4, 3, 4, 6\) would work"),
        (torch.zeros(1, 4, 0, 1, 6), r"\(1, 4, 1, 2, 6\) would work"),
        (torch.zeros(1, 4, 3, 4, 6, dtype=torch.int64), "latents are torch.int64.*float32 would work"),
        ([1.0], "latents are list"),
    ],
)
def test_latents_that_are_no_whole_patches_are_refused(tiny32, latents, says):
    with pytest.raises(UserError, match=says):
        velocity(tiny32, encode_prompt(tiny32, PROMPT), latents, 0.5)


def test_a_prompt_of_another_model_is_refused(tiny32, settings):
    prompt, noise = encode_prompt(tiny32, PROMPT), initial_latents(tiny32, settings)
    wrong = replace(prompt, prompt_embeds=prompt.prompt_embeds[..., :7])
    for call in (lambda p: next(denoise(tiny32, p, noise, settings)), lambda p: velocity(tiny32, p, noise, 0.5)):
        with pytest.raises(UserError, match=r"reads \(\(1, 'L', 32\), \(1, 'L'\), \(1, 24\)\)"):
            call(wrong)
        with pytest.raises(UserError, match="must be encoded; encode_prompt"):
            call(PROMPT)
        with pytest.raises(UserError, match="this transformer reads"):
            call(replace(prompt, mask=prompt.mask[:, 1:]))


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
    [
        ((1, 4, 2, 4, 6), 0, r"these settings need \(1, 4, 3, 4, 6\)"),
        ((1, 4, 3, 4, 6), 9, "start=9.*3 would work"),
        ((1, 4, 3, 4, 6), 0.5, "start=0.5: must be a whole number"),
    ],
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


class Place(accelerate.hooks.ModelHook):
    """What accelerate's model offload does, on a machine without a GPU: it notes who is on the device."""

    def __init__(self, resident, name):
        self.resident, self.name = resident, name

    def init_hook(self, module):
        self.resident.discard(self.name)
        return module

    def pre_forward(self, module, *args, **kwargs):
        self.resident.add(self.name)
        return args, kwargs


@pytest.fixture
def offloaded(tiny_folder):
    """The tiny model with model offload: who is on the device now, and all that were there together."""
    models = load(tiny_folder, device="cpu")
    resident, models.pipe._all_hooks = set(), []
    for name in ("text_encoder", "text_encoder_2", "transformer", "vae"):
        network = getattr(models.pipe, name)
        hook = Place(resident, name)
        accelerate.hooks.add_hook_to_module(network, hook)
        models.pipe._all_hooks.append(accelerate.hooks.UserCpuOffloadHook(network, hook))
    return models, resident


def test_a_stage_leaves_the_device_as_it_found_it(offloaded, settings):
    """Encode, denoise, decode, encode again: each begins on an empty device and leaves it empty."""
    models, resident = offloaded
    prompt = encode_prompt(models, PROMPT)
    assert resident == set()
    latents = []
    for step in denoise(models, prompt, initial_latents(models, settings), settings):
        assert resident == {"transformer"}
        latents.append(step.latents)
    assert resident == set()
    abandoned = denoise(models, prompt, initial_latents(models, settings), settings)
    next(abandoned)
    abandoned.close()
    assert resident == set()
    decode(models, latents[-1])
    assert resident == set()


def test_text_encoder_and_transformer_are_never_resident_together(offloaded, settings, monkeypatch):
    """Not either in the middle of a run, nor after a single evaluation."""
    models, _ = offloaded
    together = []
    noted = lambda self, module, *args, **kwargs: (  # noqa: E731
        self.resident.add(self.name), together.append(set(self.resident)), (args, kwargs))[2]  # fmt: skip
    monkeypatch.setattr(Place, "pre_forward", noted)
    prompt, noise = encode_prompt(models, PROMPT), initial_latents(models, settings)
    velocity(models, prompt, noise, 0.5)
    encode_prompt(models, PROMPT)
    for step in denoise(models, prompt, noise, settings):
        encode_prompt(models, PROMPT)
        decode(models, step.latents)
    assert {"transformer"} in together and {"text_encoder", "text_encoder_2"} in together and {"vae"} in together
    assert not [each for each in together if "transformer" in each and len(each) > 1]


def test_real_model_offload_is_released_by_accelerate(tiny_folder, settings):
    """accelerate's own hooks on the CPU: denoise and encode_prompt let every one of them offload its network."""
    models = load(tiny_folder, device="cpu")
    pipe, hook, offloads = models.pipe, None, []
    pipe._all_hooks = []
    for name in ("text_encoder", "text_encoder_2", "transformer", "vae"):
        _, hook = accelerate.cpu_offload_with_hook(getattr(pipe, name), "cpu", prev_module_hook=hook)
        hook.hook.init_hook = lambda module, name=name: offloads.append(name) or module.to("cpu")
        pipe._all_hooks.append(hook)
    prompt = encode_prompt(models, PROMPT)
    assert "text_encoder_2" in offloads[-4:]
    del offloads[:]
    list(denoise(models, prompt, initial_latents(models, settings), settings))
    assert "transformer" in offloads[-4:]


def test_prompt_travel_is_another_prompt_in_its_steps(tiny32, settings):
    """Each step is that of a run of the prompt which holds in it; the others go on with the run's own."""
    full = replace(settings, travel="2-: A blue balloon. | 0: A red car.").check(tiny32)
    noise, own = initial_latents(tiny32, full), encode_prompt(tiny32, PROMPT)
    steps, before = list(denoise(tiny32, own, noise, full)), noise
    for step, text in zip(steps, ["A red car.", PROMPT, "A blue balloon."], strict=True):
        alone = encode_prompt(tiny32, text)
        one = next(denoise(tiny32, alone, before, replace(full, travel=None), start=step.index))
        assert torch.equal(step.latents, one.latents)
        before = step.latents
    rest = list(denoise(tiny32, own, steps[0].latents, full, start=1))
    assert_same_bits(rest, [step.latents for step in steps[1:]])
