"""What the training scripts rely on: shortcuts that must not change the mathematics, and a clock that must."""

import copy
import itertools
import json
import math
import os
import random
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline
from diffusers.models.transformers import transformer_hunyuan_video as hunyuan

from t2v_kit import toyland
from training import agree, common, guidance, pocket, transformer, vae


@pytest.fixture
def small_transformer():
    torch.manual_seed(0)
    model = pocket.transformer()
    for p in model.parameters():
        if not p.any():  # what starts at zero would hide everything behind it
            torch.nn.init.normal_(p, std=0.02)
    return model


@torch.no_grad()
def test_a_mask_as_a_channel_is_the_same_mask(small_transformer, monkeypatch):
    """The trick that keeps training on fast attention gives what diffusers' masked attention gives."""
    inputs = {
        "noisy": torch.randn(2, 16, 2, 4, 6),
        "sigma": torch.tensor([0.5, 0.9]),
        "embeds": torch.randn(2, 12, 256),
        "lengths": torch.tensor([12, 7]),
        "pooled": torch.randn(2, 128),
        "guidance": torch.ones(2),
    }
    expected = transformer.velocity(small_transformer, **inputs)
    monkeypatch.setattr(hunyuan, "dispatch_attention_fn", transformer.mask_by_a_channel)
    got = transformer.velocity(small_transformer, **inputs)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    inputs["embeds"][1, 7:] += 5  # padding of the second prompt: nobody may see it
    assert torch.equal(transformer.velocity(small_transformer, **inputs), got)
    inputs["embeds"][1, :7] += 5
    assert not torch.equal(transformer.velocity(small_transformer, **inputs), got)


def test_left_and_right_can_be_told_apart_and_nothing_else_changes():
    """Eight times as clear in the projected states; a colour is as clear as before."""
    text = transformer.Text(pocket.POCKET, "cpu")
    torch.manual_seed(0)
    model = pocket.transformer()  # as it begins: what is shipped has been through this already
    said = ["a red car driving left on the beach.", "a red car driving right on the beach.",
            "a blue car driving left on the beach."]  # fmt: skip
    states = text(said).embeds.float()

    def apart():
        with torch.no_grad():
            here, other, blue = model.context_embedder.proj_in(states)
        return torch.stack([(here - other).norm(dim=-1).max(), (here - blue).norm(dim=-1).max()])

    before = apart()
    transformer.tell_apart(model, text, times=8, count=64)
    side, colour = (apart() / before).tolist()
    assert side > 3 and abs(colour - 1) < 0.05


def test_the_transformer_starts_at_zero():
    """Zero-initialised output: the first prediction is 0, whatever goes in."""
    model = pocket.transformer()
    with torch.no_grad():
        out = transformer.velocity(
            model,
            torch.randn(1, 16, 1, 4, 4),
            torch.ones(1),
            torch.randn(1, 3, 256),
            torch.tensor([3]),
            torch.randn(1, 128),
            torch.ones(1),
        )
    assert not out.any()


@torch.no_grad()
def test_folding_moves_no_pixel():
    """After `fold` the latents have unit variance by HunyuanVideo's scaling factor, and decode to the same video."""
    torch.manual_seed(0)
    model = pocket.vae().eval()
    x = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    before = model.encode(x).latent_dist
    decoded = model.decode(before.mode()).sample
    vae.fold(model, before.mode())
    after = model.encode(x).latent_dist
    latents = after.mode() * model.config.scaling_factor
    torch.testing.assert_close(latents.std((0, 2, 3, 4)), torch.ones(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.mean((0, 2, 3, 4)), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(model.decode(after.mode()).sample, decoded, atol=1e-4, rtol=0)
    ratio = (after.std / before.std).mean((0, 2, 3, 4)) * before.mode().std((0, 2, 3, 4)) * model.config.scaling_factor
    torch.testing.assert_close(ratio, torch.ones(16), atol=1e-2, rtol=0)  # the posterior's width scales with them


def test_what_trainings_measured_is_gathered(tmp_path):
    """A stage that was trained brings its record, of another the earlier one stays."""
    (tmp_path / "student").mkdir()
    (tmp_path / "student/guidance.json").write_text('{"steps": 2}')
    records = tmp_path / "training.json"
    records.write_text('{"guidance": {"steps": 1}, "upscaler": {"scenes": 3}}')
    pocket.gather(tmp_path, records)
    assert json.loads(records.read_text()) == {"guidance": {"steps": 2}, "upscaler": {"scenes": 3}}


@pytest.fixture
def small_clips(monkeypatch):
    whole = vae.toyland.render_batch
    monkeypatch.setattr(vae, "SIZE", (16, 24, 5))
    monkeypatch.setattr(vae.toyland, "render_batch", lambda scenes, **how: whole(scenes, 16, 24, num_frames=5, **how))


def test_clips_are_renewed_and_cut(small_clips):
    clips = vae.Clips(4, 2, "cpu", 0)
    before = clips.video.clone()
    clips.renew()
    assert [torch.equal(old, new) for old, new in zip(before, clips.video)] == [False, False, True, True]
    for frames, height, width in ((1, 0, 0), (2, 8, 16)):
        video, mask = clips.sample(3, frames, height, width)
        size = frames, height or 16, width or 24
        assert video.shape == (3, 3, *size) and mask.shape == (3, *size)


def test_a_clips_mask_is_its_subjects():
    """Drawn on their own, the subjects' pixels are those that the truth names."""
    clips = vae.Clips(2, 2, "cpu", 0)
    rng = random.Random(0)
    scenes = [toyland.random_scene(rng, pair=0.4, unseen=False) for _ in range(2)]
    for scene, (*video, mask) in zip(scenes, clips.video.numpy()):
        assert (mask == toyland.truth(scene).masks.any(0)).all()
        assert (np.stack(video, -1) == toyland.render(scene)).all()


def test_the_log_error_is_what_psnr_measures():
    """Half an error less is worth the same in every clip; subjects have their share, and a clip without any no part."""
    error, mask = torch.rand(2, 3, 16, 16), torch.zeros(2, 3, 16, 16)
    mask[:, :, 4:12] = 1

    def size(error, mask=mask, share=0.0):
        return 1e3 * vae.log_error(error, mask, share)

    scale = torch.tensor([0.01, 1.0]).view(2, 1, 1, 1)
    assert size(error) - size(error / 2) == pytest.approx(math.log(2), abs=1e-3)
    assert size(error * scale) - size(error * scale / 2) == pytest.approx(math.log(2), abs=5e-3)
    still = error.clone()
    still[:, :, :3] = 0  # what lies outside the mask and its edge
    assert size(still, share=1.0) == pytest.approx(size(error, share=1.0)) and size(still) < size(error) - 0.1
    assert size(error, 0 * mask, 1.0) == pytest.approx(math.log(vae.FINEST))


@pytest.fixture
def train_vae(small_clips, monkeypatch, tmp_path):
    """`training.vae` from pocket's own, a step in two seconds of its clock, judged on a single clip."""
    monkeypatch.setattr(vae, "JOINT", ((0.5, 5, 0, 0, 2), (1.0, 5, 0, 0, 2)))

    def run(*flags, **options):
        options = dict(resume=pocket.POCKET / "vae", pool=4, chunk=2, count=1, out=tmp_path) | options
        ticks = itertools.count()  # a step asks twice
        monkeypatch.setattr(common, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
        monkeypatch.setattr(sys, "argv", ["vae", *flags, *(f"--{name}={value}" for name, value in options.items())])
        vae.main()
        assert json.loads((tmp_path / "vae.json").read_text())["steps"] == options["seconds"] / 2
        return vae.AutoencoderKLHunyuanVideo.from_pretrained(tmp_path / "vae")

    return run


@pytest.fixture
def pockets_vae():
    return vae.AutoencoderKLHunyuanVideo.from_pretrained(pocket.POCKET / "vae")


def test_latents_stay_where_the_transformer_knows_them(train_vae, pockets_vae):
    """The more `--stay` weighs, the less training on moves the latents. The last of 12 steps sees single frames."""
    x = vae.toyland.render_batch([toyland.random_scene(i) for i in range(4)]) * 2 - 1

    def moved(stay):
        trained = train_vae(stay=stay, seconds=24)
        with torch.no_grad():
            old, new = (model.encode(x).latent_dist.mode() for model in (pockets_vae, trained))
        return ((new - old).norm() / old.norm()).item()

    assert 0 < moved(10) < 0.5 * moved(1e-9)


def test_the_decoder_alone_leaves_the_latents(train_vae, pockets_vae):
    """--decoder: what the encoder says stays to the last bit, what is decoded from it changes."""
    before, after = (model.state_dict() for model in (pockets_vae, train_vae("--decoder", seconds=8)))
    same = {name for name in before if torch.equal(before[name], after[name])}
    encoder = {name for name in before if name.startswith(("encoder.", "quant_conv."))}
    assert encoder <= same and len(same - encoder) < 0.1 * len(before)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_muon_takes_a_convolution_as_a_matrix(order, monkeypatch):
    """Filters take the steps that PyTorch's Muon takes with them laid flat: in either order of memory, two of one size
    together, and one that is taller than wide."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)  # PyTorch's rounds on the CPU too
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Conv2d(*size) for size in ((3, 4, 3), (3, 4, 3), (2, 40, 3))))
    model.to(memory_format=order)
    weights, biases = zip(*((layer.weight, layer.bias) for layer in model))
    flat = [torch.nn.Parameter(weight.detach().flatten(1).clone()) for weight in weights]
    before = [bias.detach().clone() for bias in biases]
    plain = torch.optim.Muon(flat, lr=0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    ours = common.Muon(model.parameters(), 0.02)
    for _ in range(3):
        for weight, bias, matrix in zip(weights, biases, flat):
            weight.grad, bias.grad = torch.randn(weight.shape), torch.ones_like(bias)
            matrix.grad = weight.grad.flatten(1)
        for optimizer in (ours, plain):
            optimizer.step()
    for weight, bias, matrix, start in zip(weights, biases, flat, before):
        torch.testing.assert_close(weight.flatten(1), matrix, atol=1e-5, rtol=0)
        torch.testing.assert_close(bias, start - 0.06, atol=1e-5, rtol=0)  # AdamW's


def test_moving_pixels_weigh_three_times():
    video = torch.zeros(1, 3, 9, 16, 16)
    video[:, :, 4:, 8, 8] = 1
    weight = vae.weights(video)
    assert weight[0, 0, 4, 8, 8] == 3 and weight[0, 0, 4, 2, 2] == 1 and weight[0, 0, 8, 8, 8] == 1
    assert (vae.weights(video[:, :, :1]) == 1).all()


def test_noisy_captions_are_mostly_true(monkeypatch):
    """About a tenth names a wrong attribute; more would teach nonsense, fewer would leave guidance nothing to do. And
    about a quarter leaves something unsaid."""
    said = []
    monkeypatch.setattr(toyland, "caption", lambda scene, seed, omit: said.append((scene, omit)))
    rng, boat = random.Random(0), toyland.Scene("boat", "red", "beach", "night", "left", "slow", seed=1)
    for _ in range(400):
        transformer.noisy_caption(boat, rng)
    wrong = [name for scene, _ in said for name in vars(scene) if getattr(scene, name) != getattr(boat, name)]
    assert 15 <= len(wrong) <= 60  # the wrong word is the right one now and then
    assert set(wrong) == {"colour", "sky", "direction", "speed"}  # and a boat stays at the beach
    assert 60 <= sum(bool(omit) for _, omit in said) <= 140


def test_a_share_of_captions_is_mistyped_on_purpose(monkeypatch):
    """With `slips` every caption goes through the slip of a finger, without any none does."""
    monkeypatch.setattr(toyland, "caption", lambda scene, seed, omit: "the red boat passes slowly")
    boat, rng = toyland.Scene("boat", "red", "beach", "night", "left", "slow", seed=1), random.Random(0)
    assert {transformer.noisy_caption(boat, rng) for _ in range(20)} == {"the red boat passes slowly"}
    assert len({transformer.noisy_caption(boat, rng, slips=1.0) for _ in range(20)}) > 10


@torch.no_grad()
def test_latents_know_where_their_subjects_are(monkeypatch):
    """A cell of the latents counts as a subject's if one of its 8 x 8 pixels is, in any of its four frames; the first
    latent holds one frame."""
    monkeypatch.setattr(transformer, "Captions", lambda *how: [])
    maker = transformer.Maker(pocket.POCKET, "cpu", 0)
    scene = toyland.Scene("car", "red", "beach", "sunny", "right", "high", seed=3)
    latents, subjects = maker.encode([scene], num_frames=5)
    masks = toyland.truth(scene, num_frames=5).masks.any(0)
    cells = masks.reshape(5, 14, 8, 24, 8).any((2, 4))
    assert latents.shape == (1, 16, 2, 14, 24) and subjects.shape == (1, 2, 14, 24)
    assert (subjects[0].numpy() == np.stack([cells[0], cells[1:].any(0)])).all()
    assert 0 < subjects.float().mean() < 0.5


@pytest.mark.parametrize("optimizer", [common.Muon, torch.optim.AdamW])
def test_training_goes_on_where_it_was(optimizer, tmp_path):
    """Weights, average and optimiser: three steps, and one, kept and recalled by others, and two, come to the same."""

    def begin():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        return model, common.Average(model, 0.9), optimizer(model.parameters(), lr=0.1)

    def go_on(model, average, steps, count):
        for _ in range(count):
            steps.zero_grad()
            model(torch.ones(1, 3)).square().sum().backward()
            steps.step()
            average.update(model)

    whole, first, second = begin(), begin(), begin()
    go_on(*whole, 3)
    go_on(*first, 1)
    names = "model", "average", "optimizer"
    common.keep(tmp_path / "it.state", **dict(zip(names, first)))
    common.recall(tmp_path / "it.state", **dict(zip(names, second)))
    go_on(*second, 2)
    for model, other in ((whole[0], second[0]), (whole[1].model, second[1].model)):
        for p, q in zip(model.parameters(), other.parameters()):
            torch.testing.assert_close(p, q)


def test_sigmas_reach_the_ends():
    torch.manual_seed(0)
    sigma = transformer.draw_sigmas(20_000, "cpu", 3.0)
    assert 0 <= sigma.min() < 0.01 and 0.999 < sigma.max() <= 1
    assert 0.25 < (sigma > 0.9).float().mean() < 0.36  # where pocket decides what is to be seen
    assert sigma.median() > transformer.draw_sigmas(20_000, "cpu", 1.0).median() + 0.1
    assert (sigma < 0.2).float().mean() < 0.05
    low = transformer.draw_sigmas(20_000, "cpu", 3.0, early=0.22, late=0.18)
    assert 0.12 < (low < 0.2).float().mean() < 0.18  # where edges are made
    assert 0.22 < (low > 0.9).float().mean() < 0.34 and low.min() >= 0 and low.max() <= 1


def test_a_clock_without_time_is_refused():
    with pytest.raises(ValueError, match="-3"):
        common.Clock(-3)


@pytest.fixture
def prompts():
    """Two prompts, and the empty one: embeds, lengths, pooled."""
    torch.manual_seed(1)
    return [torch.randn(2, 12, 256), torch.tensor([12, 7]), torch.randn(2, 128)], [
        torch.randn(1, 12, 256),
        torch.tensor([3]),
        torch.randn(1, 128),
    ]


def test_the_target_of_distillation_is_diffusers_true_guidance(small_transformer, prompts):
    """One step of HunyuanVideoPipeline with `true_cfg_scale` goes where the teacher's guided velocity points."""
    pipe = HunyuanVideoPipeline(None, None, small_transformer, None, FlowMatchEulerDiscreteScheduler(), None, None)
    pipe.set_progress_bar_config(disable=True)
    (embeds, lengths, pooled), empty = prompts
    noise, scales = torch.randn(2, 16, 2, 4, 6), torch.tensor([1.5, 6.0])
    state = {
        "noisy": noise,
        "sigma": torch.ones(2),
        "embeds": embeds,
        "lengths": lengths,
        "pooled": pooled,
        "guidance": scales,
    }
    target = guidance.guided(**guidance.answered(small_transformer, empty, state))
    for i, scale in enumerate(scales.tolist()):
        clean = pipe(
            height=32,
            width=48,
            num_frames=5,
            num_inference_steps=1,
            guidance_scale=1.0,
            true_cfg_scale=scale,
            latents=noise[i : i + 1],
            output_type="latent",
            return_dict=False,
            prompt_embeds=embeds[i : i + 1],
            pooled_prompt_embeds=pooled[i : i + 1],
            prompt_attention_mask=torch.arange(12)[None] < lengths[i],
            negative_prompt_embeds=empty[0],
            negative_prompt_attention_mask=torch.arange(12)[None] < empty[1],
            negative_pooled_prompt_embeds=empty[2],
        )[0]
        torch.testing.assert_close(noise[i : i + 1] - clean, target[i : i + 1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_an_empty_prompt_keeps_the_teachers_own_answer(small_transformer, prompts):
    """So true guidance by two passes finds in the student what it found in the teacher."""
    asked = dict(zip(("embeds", "lengths", "pooled"), prompts[0]), guidance=torch.tensor([4.0, 7.0]))
    noisy = torch.randn(2, 16, 1, 4, 4)
    state = guidance.answered(small_transformer, prompts[1], {"noisy": noisy, "sigma": torch.rand(2), **asked})
    given, target = guidance.split(guidance.with_empty(state, prompts[1], share=1))
    assert given["guidance"].tolist() == [1, 1]
    alone = transformer.velocity(
        small_transformer, noisy, state["sigma"], *(e.expand(2, *e.shape[1:]) for e in prompts[1]), torch.ones(2)
    )
    torch.testing.assert_close(target, alone)
    torch.testing.assert_close(transformer.velocity(small_transformer, **given), alone)


def test_own_paths_follow_the_student(prompts):
    """Under a constant velocity a path is straight: at noise level sigma it has gone sigma - 1 times that far."""
    seen = []

    def straight(by):
        def student(hidden_states, timestep, guidance, **_):
            seen.append((timestep / 1000, guidance / 1000))
            return (torch.full_like(hidden_states, by),)

        return student

    asked = dict(zip(("embeds", "lengths", "pooled"), prompts[0]), guidance=torch.tensor([2.0, 8.0]))
    ends = []
    for by in (0.0, 3.0):  # from the same noise
        torch.manual_seed(0)
        ends.append(guidance.rolled_out(straight(by), 4, torch.zeros(2, 16, 1, 4, 4), **asked))
    still, moved = ends
    way = 3 * (moved["sigma"] - 1).view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(moved["noisy"], still["noisy"] + way)
    assert len(seen) == 8 and torch.equal(seen[0][0], torch.ones(2))  # from pure noise, four steps a path
    assert all(torch.equal(told, asked["guidance"]) for _, told in seen)
    assert len(set(moved["sigma"].tolist())) == 2  # each sample has its own place to stop


def test_steps_of_distillation_reduce_the_loss(small_transformer, prompts):
    """From the teacher's copy, a few optimiser steps on one batch come closer to the guided velocity."""
    torch.manual_seed(0)
    student = copy.deepcopy(small_transformer)
    asked = dict(zip(("embeds", "lengths", "pooled"), prompts[0]), guidance=torch.tensor([3.0, 6.0]))
    state = guidance.noised(torch.randn(2, 16, 1, 4, 6), **asked)
    state, target = guidance.split(guidance.answered(small_transformer, prompts[1], state))
    step, recorder = guidance.make_step(student, nullcontext()), common.Recorder(student, graphs=False)
    optimizer, losses = torch.optim.AdamW(student.parameters(), lr=1e-3), []
    for _ in range(8):
        losses.append(recorder(step, True, target=target, **state)[0].item())
        optimizer.step()
    error = transformer.velocity(small_transformer, **state) - target
    weighted = (error.square().mean((1, 2, 3, 4)) / torch.tensor([2.0, 7.25])).mean().item()
    assert losses[0] == pytest.approx(weighted, rel=1e-4)  # 1 + (g - 1)^2 / 4 at guidance 3 and 6
    assert losses[-1] < 0.5 * losses[0]


def test_guidance_and_asking_twice_come_to_agree(small_transformer, prompts):
    """A few steps on one batch: they disagree less, while each answer stays near what it was."""
    torch.manual_seed(0)
    model = copy.deepcopy(small_transformer)
    asked = dict(zip(("embeds", "lengths", "pooled"), prompts[0]), guidance=torch.tensor([3.0, 6.0]))
    state = agree.lesson(small_transformer, prompts[1], guidance.noised(torch.randn(2, 16, 1, 4, 6), **asked))
    told, untold = guidance.answered(small_transformer, prompts[1], {**asked, **state})["told"], state["untold"]
    torch.testing.assert_close(state["told"], told)
    step, recorder = agree.make_step(model, prompts[1], nullcontext(), 4.0), common.Recorder(model, graphs=False)
    optimizer, found = torch.optim.AdamW(model.parameters(), lr=1e-4), []
    for _ in range(12):
        found.append([value.item() for value in recorder(step, True, **state)])
        optimizer.step()
    size = torch.tensor([2.0, 7.25])  # 1 + (g - 1)^2 / 4 at guidance 3 and 6
    off = state["knob"] - guidance.guided(told, untold, asked["guidance"])
    loss, moved, disagreed = found[0]
    assert moved == pytest.approx(0, abs=1e-9)
    assert disagreed == pytest.approx((off.square().mean((1, 2, 3, 4)) / size).mean().item(), rel=1e-4)
    assert loss == pytest.approx(4 * disagreed, rel=1e-5)
    assert found[-1][2] < 0.5 * disagreed and found[-1][1] < 0.2 * disagreed


FUSED = """
import torch, torch.nn.functional as F
import t2v_kit
from training import kernels
kernels.CHUNKS = 3  # each is a program, which the interpreter runs in turn
torch.manual_seed(0)
for shape, pads in (((2, 8, 3, 5, 6), (1, 1, 1, 1, 2, 0)), ((1, 12, 2, 4, 4), (0,) * 6)):
    for normed in (True, False):
        start = torch.randn(shape) * 2 + .5, torch.randn(shape[1]), torch.randn(shape[1])
        plain, fused = ([t.clone().requires_grad_() for t in start] for _ in range(2))
        x = F.silu(F.group_norm(plain[0], 4, plain[1], plain[2], 1e-6)) if normed else plain[0]
        wanted = F.pad(x, pads, mode="replicate")
        got = kernels.Step.apply(fused[0], *(fused[1:] if normed else (None, None)), 4, 1e-6, pads)
        slope = torch.randn_like(wanted)
        wanted.backward(slope)
        got.backward(slope)
        torch.testing.assert_close(got, wanted)
        for mine, right in list(zip(fused, plain))[:3 if normed else 1]:
            torch.testing.assert_close(mine.grad, right.grad)
"""


def test_fused_kernels_compute_what_torch_does():
    """The VAE's norm, SiLU and padding in one kernel, and their gradients; Triton's interpreter needs no GPU."""
    pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds")
    interpreted = {**os.environ, "TRITON_INTERPRET": "1"}  # must be set before torch imports Triton
    subprocess.run([sys.executable, "-c", FUSED], cwd=Path(__file__).parent.parent, env=interpreted, check=True)
