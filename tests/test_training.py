"""What the training scripts rely on: shortcuts that must not change the mathematics, and a clock that must."""
import random

import pytest
import torch
from diffusers.models.transformers import transformer_hunyuan_video as hunyuan

from t2v_kit import toyland
from training import common, pocket, transformer, vae


@pytest.fixture
def small_transformer():
    torch.manual_seed(0)
    model = pocket.transformer()
    for p in model.parameters():
        if not p.any():  # what starts at zero would hide everything behind it
            torch.nn.init.normal_(p, std=.02)
    return model


@torch.no_grad()
def test_a_mask_as_a_channel_is_the_same_mask(small_transformer, monkeypatch):
    """The trick that keeps training on fast attention gives what diffusers' masked attention gives."""
    inputs = {"noisy": torch.randn(2, 16, 2, 4, 6), "sigma": torch.tensor([.5, .9]), "embeds": torch.randn(2, 12, 192),
              "lengths": torch.tensor([12, 7]), "pooled": torch.randn(2, 128), "guidance": torch.ones(2)}
    expected = transformer.velocity(small_transformer, **inputs)
    monkeypatch.setattr(hunyuan, "dispatch_attention_fn", transformer.mask_by_a_channel)
    got = transformer.velocity(small_transformer, **inputs)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    inputs["embeds"][1, 7:] += 5  # padding of the second prompt: nobody may see it
    assert torch.equal(transformer.velocity(small_transformer, **inputs), got)
    inputs["embeds"][1, :7] += 5
    assert not torch.equal(transformer.velocity(small_transformer, **inputs), got)


def test_the_transformer_starts_at_zero():
    """Zero-initialised output: the first prediction is 0, whatever goes in."""
    model = pocket.transformer()
    with torch.no_grad():
        out = transformer.velocity(model, torch.randn(1, 16, 1, 4, 4), torch.ones(1), torch.randn(1, 3, 192),
                                   torch.tensor([3]), torch.randn(1, 128), torch.ones(1))
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


def test_moving_pixels_weigh_three_times():
    video = torch.zeros(1, 3, 9, 16, 16)
    video[:, :, 4:, 8, 8] = 1
    weight = vae.weights(video)
    assert weight[0, 0, 4, 8, 8] == 3 and weight[0, 0, 4, 2, 2] == 1 and weight[0, 0, 8, 8, 8] == 1
    assert (vae.weights(video[:, :, :1]) == 1).all()


def test_noisy_captions_are_mostly_true():
    """About a tenth name a wrong attribute; more would teach nonsense, fewer would leave guidance nothing to do."""
    rng, wrong = random.Random(0), 0
    scene = toyland.Scene("car", "red", "beach", "night", "left", "slow", seed=1)
    for _ in range(400):
        words = set(transformer.noisy_caption(scene, rng).lower().replace(",", " ").replace(".", " ").split())
        wrong += bool(words & {"yellow", "green", "purple", "white", "rightwards", "street", "mountains", "fast"})
    assert 8 <= wrong <= 60


def test_sigmas_reach_the_ends():
    torch.manual_seed(0)
    sigma = transformer.draw_sigmas(20_000, "cpu", 3.0)
    assert 0 <= sigma.min() < .01 and .999 < sigma.max() <= 1
    assert .03 < (sigma > .98).float().mean() < .12
    assert sigma.median() > transformer.draw_sigmas(20_000, "cpu", 1.0).median() + .1


def test_a_clock_without_time_is_refused():
    with pytest.raises(ValueError, match="-3"):
        common.Clock(-3)
