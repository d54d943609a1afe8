"""Latents become the pipeline's frames, frames become latents, and broken ones are told."""

import numpy as np
import pytest
import torch

from t2v_kit import toyland
from t2v_kit.models import load
from t2v_kit.settings import UserError
from t2v_kit.vae import decode, encode


@pytest.fixture
def video():
    return np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), dtype=np.uint8)


def test_frames_have_the_pipelines_shape_and_bits(tiny, plain):
    """25 frames: beyond the 16 from which the VAE tiles time by default, as the pipeline leaves it."""
    latents = torch.randn(1, 4, 7, 4, 6, generator=torch.Generator().manual_seed(0))
    ours = decode(tiny, latents)
    assert ours.shape == (25, 32, 48, 3) and ours.dtype == np.uint8
    with torch.no_grad():
        pixels = plain.vae.decode(latents.to(plain.vae.dtype) / plain.vae.config.scaling_factor).sample
    frames = plain.video_processor.postprocess_video(pixels, output_type="pil")[0]
    np.testing.assert_array_equal(ours, np.stack([np.asarray(frame) for frame in frames]))


def test_tiling_follows_what_the_pipeline_is_set_to(tiny32):
    latents = torch.randn(1, 4, 7, 4, 6, generator=torch.Generator().manual_seed(0))
    tiled = decode(tiny32, latents)
    try:
        tiny32.pipe.vae.use_framewise_decoding = False
        whole = decode(tiny32, latents)
    finally:
        tiny32.pipe.vae.use_framewise_decoding = True
    assert not np.array_equal(tiled, whole)


def test_encode_is_the_vaes_scaled_mode(tiny, video):
    latents = encode(tiny, video)
    assert latents.shape == (1, 4, 3, 4, 6) and latents.dtype == torch.float32
    vae = tiny.pipe.vae
    pixels = torch.from_numpy(video).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        mode = vae.encode(pixels.to(vae.dtype)).latent_dist.mode()
    assert torch.equal(latents, mode.float() * vae.config.scaling_factor)


def test_encode_draws_by_seed(tiny32, video):
    drawn = [encode(tiny32, video, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], encode(tiny32, video))


@pytest.mark.parametrize(
    "wrong, says",
    [
        (np.zeros((8, 32, 48, 3), np.uint8), "8 frames: must have 4k.1; 5 would work"),
        (np.zeros((0, 32, 48, 3), np.uint8), "0 frames"),
        (np.zeros((9, 30, 48, 3), np.uint8), "30x48 pixels.*24x48 works"),
        (np.zeros((9, 32, 48, 3), np.float32), "video is float32"),
        (np.zeros((9, 32, 48), np.uint8), "video is uint8"),
        ("video.mp4", "video is str"),
    ],
)
def test_what_is_no_video_is_refused(tiny32, wrong, says):
    with pytest.raises(UserError, match=says):
        encode(tiny32, wrong)


@pytest.mark.parametrize("shape", [(4, 3, 4, 6), (2, 4, 3, 4, 6), (1, 16, 3, 4, 6)])
def test_what_are_no_latents_is_refused(tiny32, shape):
    with pytest.raises(UserError, match=r"must be \(1, 4, T, H, W\)"):
        decode(tiny32, torch.randn(shape))


@pytest.mark.parametrize("value, says", [(float("nan"), "frames are NaN"), (-9.0, "frames are entirely black")])
def test_nan_and_black_frames_name_cause_and_remedy(tiny_folder, value, says):
    models = load(tiny_folder, device="cpu")
    with torch.no_grad():
        models.pipe.vae.decoder.conv_out.conv.weight.zero_()
        models.pipe.vae.decoder.conv_out.conv.bias.fill_(value)
    with pytest.raises(UserError, match=f"{says} .*Likely cause: float16.*remedy: .*float32"):
        decode(models, torch.randn(1, 4, 3, 4, 6))


def test_pocket_carries_a_picture_through(pocket):
    """A cartoon comes back as itself: scale, shift, order of channels. evaluation.json has the PSNR over many."""
    scene = toyland.random_scene(0)
    clip = toyland.render(scene, height=112, width=192, num_frames=9)
    back = decode(pocket, encode(pocket, clip))
    error = np.mean((back.astype(float) - clip.astype(float)) ** 2)
    assert back.shape == clip.shape and 10 * np.log10(255**2 / error) > 20
