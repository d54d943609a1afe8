"""Noise from a seed, the shifted schedule, the straight path, and colours without the VAE."""

import numpy as np
import pytest
import torch
from conftest import PROMPT
from diffusers import EulerDiscreteScheduler, UniPCMultistepScheduler

from t2v_kit.errors import UserError
from t2v_kit.settings import Settings
from t2v_kit.stages.noise import add_noise, initial_latents, make_scheduler, sigma_schedule
from t2v_kit.view.latents import fit_rgb, preview_rgb, tile_channels


def test_noise_is_float32_from_a_cpu_generator(tiny, settings):
    drawn = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(settings.seed))
    latents = initial_latents(tiny, settings)
    assert latents.dtype == torch.float32 and torch.equal(latents.cpu(), drawn)
    assert not torch.equal(latents, initial_latents(tiny, Settings(PROMPT, seed=settings.seed + 1)))


def test_a_size_the_model_cannot_make_is_refused(tiny32):
    with pytest.raises(UserError, match=r"num_frames=56"):
        initial_latents(tiny32, Settings(PROMPT, num_frames=56))


@pytest.mark.parametrize("shift", [1.0, 7.0, 17.0])
def test_sigmas_are_shifted_once(tiny32, shift):
    """SD3's time shift, https://arxiv.org/abs/2403.03206 eq. 23, over evenly spaced sigmas."""
    sigmas = sigma_schedule(tiny32, Settings(PROMPT, num_inference_steps=4, flow_shift=shift))
    even = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    torch.testing.assert_close(sigmas, shift * even / (1 + (shift - 1) * even))


def test_schedulers_that_name_their_shift_otherwise(tiny32, monkeypatch):
    """UniPC's flow_shift gives the same sigmas; one without a shift is told."""
    settings = Settings(PROMPT, num_inference_steps=4, flow_shift=5.0)
    wanted = sigma_schedule(tiny32, settings)
    unipc = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    monkeypatch.setattr(tiny32.pipe, "scheduler", unipc)
    torch.testing.assert_close(sigma_schedule(tiny32, settings), wanted)
    monkeypatch.setattr(tiny32.pipe, "scheduler", EulerDiscreteScheduler())
    with pytest.warns(UserWarning, match="flow_shift=5 has no effect: EulerDiscreteScheduler takes no shift"):
        make_scheduler(tiny32, settings)


def test_each_run_has_a_scheduler_of_its_own(tiny32):
    held = dict(tiny32.pipe.scheduler.config)
    scheduler = make_scheduler(tiny32, Settings(PROMPT, flow_shift=3.0))
    assert scheduler.shift == scheduler.config.shift == 3.0
    assert dict(tiny32.pipe.scheduler.config) == held and tiny32.pipe.scheduler.shift == 7.0


def test_noise_is_mixed_on_a_straight_line():
    latents, noise = torch.zeros(1, 4, 1, 2, 2), torch.ones(1, 4, 1, 2, 2)
    assert torch.equal(add_noise(latents, noise, 0), latents) and torch.equal(add_noise(latents, noise, 1.0), noise)
    assert torch.equal(add_noise(latents, noise, torch.tensor(0.25)), 0.25 * noise)
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match=r"sigma="):
            add_noise(latents, noise, wrong)
    with pytest.raises(UserError, match=r"must be shaped like"):
        add_noise(latents, noise[:, :2], 0.5)
    with pytest.raises(UserError, match=r"sigma is a tensor of shape \(2,\): must be one number; 0.5 would work"):
        add_noise(latents, noise, torch.tensor([0.1, 0.2]))
    with pytest.raises(UserError, match="sigma is 'half': must be one number"):
        add_noise(latents, noise, "half")
    with pytest.raises(UserError, match=r"sigma=2: must be from 0 \(video\) to 1 \(noise\); 1 would work"):
        add_noise(latents, noise, 2)
    with pytest.raises(UserError, match=r"latents is torch.uint8: must be a tensor of floating point"):
        add_noise(latents.to(torch.uint8), noise, 0.5)
    with pytest.raises(UserError, match=r"noise is ndarray"):
        add_noise(latents, noise.numpy(), 0.5)


def test_the_preview_finds_a_linear_map_again():
    """Colours that are linear in the latents come back exactly, to the pixel and the frame."""
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)
    colours = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 255
    latents = torch.cat([2 * colours - 1, colours[:, :1] + colours[:, 1:2]], dim=1)
    # As the VAE packs time: one frame, then groups of four; 8x8 pixels to a latent.
    video = np.concatenate([frames[:1], np.repeat(frames[1:], 4, axis=0)]).repeat(8, axis=1).repeat(8, axis=2)
    assert video.shape == (9, 32, 48, 3)
    np.testing.assert_array_equal(preview_rgb(latents, fit_rgb(latents, video)), frames)


def test_a_map_fitted_for_noise_is_the_one_that_noise_itself_would_give():
    """Against plain least squares on many noisy copies; and noisy latents then look more like the clean ones."""
    generator = torch.Generator().manual_seed(0)
    frames = np.random.default_rng(0).integers(0, 256, (1, 8, 12, 3), dtype=np.uint8)
    video = frames.repeat(8, axis=1).repeat(8, axis=2)
    latents = torch.randn(1, 6, 1, 8, 12, generator=generator)
    copies = latents.repeat(1, 1, 1, 1, 400)
    noisy = copies + 0.5 * torch.randn(copies.shape, generator=generator)
    found = fit_rgb(latents, video, noise=0.5)
    torch.testing.assert_close(found, fit_rgb(noisy, np.tile(video, (1, 1, 400, 1))), atol=0.005, rtol=0)
    assert (found - fit_rgb(latents, video)).abs().max() > 0.01


def test_the_preview_of_a_single_frame():
    latents, video = torch.randn(1, 4, 1, 2, 3), np.zeros((1, 16, 24, 3), np.uint8)
    assert preview_rgb(latents, fit_rgb(latents, video)).shape == (1, 2, 3, 3)


def test_the_channels_stand_side_by_side():
    """Each channel is found again where it belongs, frame by frame; the lines and the empty places are white."""
    latents = torch.linspace(-2, 2, 3)[None, :, None, None, None].expand(1, 3, 2, 4, 5).clone()
    latents[0, 0, 1] = -9  # beyond the spread
    film = tile_channels(latents, columns=2, spread=2)
    assert film.shape == (2, 9, 11, 3) and film.dtype == np.uint8
    np.testing.assert_array_equal(film[0, :4, :5], 0)
    np.testing.assert_array_equal(film[1, :4, :5], 0)
    np.testing.assert_array_equal(film[0, :4, 6:], 128)
    assert film[0, 4].min() == film[0, :, 5].min() == film[0, 5:, :].min() == 255


@pytest.mark.parametrize("columns", [0, -1])
def test_channels_need_a_column(columns):
    with pytest.raises(UserError, match=f"columns={columns}: must be a whole number from 1"):
        tile_channels(torch.zeros(1, 4, 1, 2, 2), columns)
