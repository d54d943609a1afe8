"""Shortcuts: read by name, taken and put back, and set beside the plain run."""

import diffusers
import numpy as np
import pytest
import torch

from t2v_kit import Settings, UserError, audit, denoise, encode_prompt, initial_latents, motion_error, sigma_schedule
from t2v_kit.hunyuan.fp8_linear import Fp8Linear, multiply_in_fp8
from t2v_kit.hunyuan.masks import blocks
from t2v_kit.model.quantise import quantised
from t2v_kit.run.shortcuts import CACHES, SOLVERS, Shortcut, shortcut

PROMPT = "A red car on the street."
SMALL = {"height": 48, "width": 64, "num_frames": 9, "num_inference_steps": 6}


def latents(models, settings, start=0, noise=None):
    """The last step's latents, in one go or from a step on."""
    noise = initial_latents(models, settings) if noise is None else noise
    return [step.latents for step in denoise(models, encode_prompt(models, PROMPT), noise, settings, start)]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("10 steps", {"steps": 10}),
        ("seacache 0.3", {"cache": ("SeaCache", 0.3)}),
        ("TaylorSeer", {"cache": ("TaylorSeer", 3)}),
        ("attention _native_math", {"attention": "_native_math"}),
        ("DPM++ + 10 steps + first block 0.2", {"solver": "DPM++", "steps": 10, "cache": ("first block", 0.2)}),
        ("bfloat16 + UniPC", {"bits": "bfloat16", "solver": "UniPC"}),
    ],
)
def test_shortcuts_are_read_by_name(text, read):
    assert shortcut(text) == Shortcut(text, **read)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("SeaCach 0.3", "did you mean 'SeaCache 0.3'"),
        ("SeaCache -1", "takes a number from 0; 'SeaCache 0.3' would work"),
        ("TaylorSeer 2.5", "takes a whole number of steps from 2; 'TaylorSeer 3' would work"),
        ("int8 + nf4", "names two of a kind"),
        ("xyz", "known are first block 0.1"),
        (3, "must be a name"),
        ("", "must be a name"),
    ],
)
def test_what_is_no_shortcut_is_refused(text, said):
    with pytest.raises(UserError, match="shortcut=") as error:
        shortcut(text)
    assert said in str(error.value) and error.value.setting == "shortcut"


@pytest.mark.parametrize("name", [*CACHES, *SOLVERS, "3 steps", "nf4", "fp8", "fp8 products", "attention _native_math"])
def test_a_shortcut_is_taken_and_put_back(tiny32, name):
    """It gives another video (attention by other sums nearly the same one), and afterwards the plain one again."""
    settings = Settings(PROMPT, seed=3, **SMALL)
    plain = latents(tiny32, settings)[-1]
    with shortcut(name).taken(tiny32, settings) as (models, changed):
        other = latents(models, changed)[-1]
    difference = float((other - plain).norm() / plain.norm())
    assert difference < 1 and (difference > 0 or name in ("attention _native_math", "first block", "SeaCache"))
    assert torch.equal(latents(tiny32, settings)[-1], plain)


def test_heun_follows_the_same_levels_with_two_evaluations_a_step(tiny32, monkeypatch):
    """As many steps as asked for, at the plain run's levels, nearer to many small steps; a resumed run is the same."""
    settings = Settings(PROMPT, seed=3, **SMALL)
    levels, plain = sigma_schedule(tiny32, settings), latents(tiny32, settings)[-1]
    exact = latents(tiny32, Settings(PROMPT, seed=3, **SMALL | {"num_inference_steps": 96}))[-1]
    calls = []
    hook = tiny32.pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    with shortcut("Heun").taken(tiny32, settings) as (models, changed):
        torch.testing.assert_close(sigma_schedule(models, changed), levels)
        steps = latents(models, changed)
        assert torch.equal(latents(models, changed, 2, steps[1])[-1], steps[-1])
    hook.remove()
    assert len(steps) == 6 and len(calls) == (2 * 6 - 1) + (2 * 4 - 1)
    assert (steps[-1] - exact).norm() < (plain - exact).norm()


def test_a_step_cache_with_heun_is_refused(tiny32):
    settings = Settings(PROMPT, **SMALL)
    taken = shortcut("Heun + first block 0.1").taken(tiny32, settings)
    with pytest.raises(UserError, match="UniPC would work"), taken as (models, changed):
        latents(models, changed)


def test_an_audit_compares_the_same_noise(tiny32):
    """Equal where nothing is left out; else an error by frame, by place and in motion, and pictures of it."""
    same = audit(tiny32, PROMPT, "6 steps", progress=False, seed=3, **SMALL)
    assert same.psnr == np.inf and same.motion_error == 0 and not same.where.any()
    found = audit(tiny32, PROMPT, "3 steps", progress=False, seed=3, **SMALL)
    assert np.array_equal(found.plain, same.plain)
    assert found.video.shape == found.plain.shape == (9, 48, 64, 3)
    assert (len(found.plain_seconds), len(found.seconds)) == (6, 3) and found.times_faster > 1
    assert found.frame_psnr.shape == (9,) and found.frame_psnr.min() <= found.psnr <= found.frame_psnr.max()
    assert found.where.shape == (48, 64) and found.where.max() > 0 and found.motion_error > 0
    page = found._repr_html_()
    assert "3 steps" in page and "times faster" in page and page.count("<img") == 1
    assert found.side_by_side().ndim == 4 and same.picture(0).width > 400
    with pytest.raises(UserError, match="frame=9: must be from 0 to 8"):
        found.picture(9)


def test_an_audit_takes_diffusers_own_configuration_and_shows_a_prompt_as_text(tiny32):
    config = diffusers.FirstBlockCacheConfig(10.0)  # skips whatever it may
    found = audit(tiny32, "A <b>red</b> car.", config, progress=False, **SMALL)
    assert found.shortcut == "FirstBlockCache" and not tiny32.pipe.transformer.is_cache_enabled
    assert "<b>red" not in found._repr_html_()


@pytest.mark.parametrize("wrong", [{"video": "in.mp4"}, {"stepz": 3}])
def test_an_audit_takes_settings_from_text_alone(tiny32, wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))}=: audit takes settings"):
        audit(tiny32, PROMPT, "3 steps", **wrong)


def test_motion_error_is_a_share_of_the_motion():
    moving = np.stack([np.full((8, 8, 3), 10 * t, np.uint8) for t in range(5)])
    assert motion_error(moving, moving) == 0 and motion_error(moving[[0] * 5], moving) == 1
    assert motion_error(moving + 3, moving) == 0, "brighter, and moving alike"
    assert motion_error(moving, moving[[0] * 5]) == np.inf and motion_error(moving[:1], moving[:1]) == 0


def test_products_of_8_bit_floats_are_near_the_exact_ones():
    """Within the rounding of 3 bits of mantissa, whatever the scale of a row or token; the bias is exact."""
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(64, 96), torch.randn(2, 60, 64) * torch.tensor([1e-3, 1e3]).view(2, 1, 1)
    layer.weight.data *= torch.logspace(-3, 3, 96)[:, None]
    rounded, exact = Fp8Linear(layer)(x), layer(x)
    error = (rounded - exact).flatten(0, 1).norm(dim=0) / (exact - layer.bias).flatten(0, 1).norm(dim=0)
    assert 0.005 < error.mean() < 0.06 and error.max() < 0.1
    assert torch.equal(Fp8Linear(layer)(torch.zeros(1, 64)), layer.bias[None])


def test_products_in_8_bits_leave_modulation_and_embeddings_alone(tiny32):
    transformer = quantised(tiny32, "fp8 products").pipe.transformer
    changed = {name for name, layer in transformer.named_modules() if isinstance(layer, Fp8Linear)}
    assert changed and all("transformer_blocks" in name and ".norm" not in name for name in changed)
    assert any(".attn.to_q" in name for name in changed) and any("proj_mlp" in name for name in changed)
    before = sum(isinstance(layer, Fp8Linear) for layer in blocks(transformer)[0].modules())
    multiply_in_fp8(transformer)
    assert sum(isinstance(layer, Fp8Linear) for layer in blocks(transformer)[0].modules()) == before


def test_quantised_takes_known_names(tiny32):
    with pytest.raises(UserError, match="how='int4': must be one of int8, nf4, fp8"):
        quantised(tiny32, "int4")
