"""Latents become the pipeline's frames, frames become latents, and broken ones are told."""

import threading

import numpy as np
import pytest
import torch

from t2v_kit import toyland
from t2v_kit.errors import UserError
from t2v_kit.model.loading import load
from t2v_kit.stages.decoding import decode, encode, frozen_norms, tile_count, tiles
from t2v_kit.video.metrics import psnr


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
        (np.zeros((0, 32, 48, 3), np.uint8), "at least one frame"),
        (np.zeros((9, 30, 48, 3), np.uint8), "30x48 pixels.*24x48 works"),
        (np.zeros((9, 32, 48, 3), np.float32), r"video is \(9, 32, 48, 3\) float32"),
        (np.zeros((9, 32, 48), np.uint8), r"video is \(9, 32, 48\) uint8"),
        (7, "video is int: must be a file"),
    ],
)
def test_what_is_no_video_is_refused(tiny32, wrong, says):
    with pytest.raises(UserError, match=says):
        encode(tiny32, wrong)


@pytest.mark.parametrize("shape", [(4, 3, 4, 6), (2, 4, 3, 4, 6), (1, 16, 3, 4, 6)])
def test_what_are_no_latents_is_refused(tiny32, shape):
    with pytest.raises(UserError, match=r"must be \(1, 4, T, H, W\); \(1, 4, 3, 4, 6\) would work"):
        decode(tiny32, torch.randn(shape))


def test_empty_latents_and_latents_of_whole_numbers_are_refused(tiny32):
    with pytest.raises(UserError, match=r"\(1, 4, 0, 4, 6\): must be .*; \(1, 4, 1, 4, 6\) would work"):
        decode(tiny32, torch.zeros(1, 4, 0, 4, 6))
    with pytest.raises(UserError, match=r"latents are torch.int64.*float32 would work"):
        decode(tiny32, torch.zeros(1, 4, 3, 4, 6, dtype=torch.int64))
    with pytest.raises(UserError, match=r"latents are ndarray"):
        decode(tiny32, np.zeros((1, 4, 3, 4, 6)))


@pytest.mark.parametrize("seed", [-1, 0.5, 2**63, True])
def test_a_seed_is_a_whole_number(tiny32, video, seed):
    with pytest.raises(UserError, match=f"seed={seed}: must be a whole number"):
        encode(tiny32, video, seed=seed)


def test_frozen_norms_are_removed_after_an_error(tiny32, video):
    """Hooks and all: nothing is left on any module."""
    before = encode(tiny32, video)
    with pytest.raises(ZeroDivisionError), frozen_norms(tiny32):
        encode(tiny32, 255 - video)
        _ = 1 / 0
    assert torch.equal(encode(tiny32, video), before)
    own = {"forward", "_diffusers_hook"}
    assert not [module for module in tiny32.pipe.vae.modules() if own & set(vars(module))]


def test_stages_of_the_vae_in_two_threads(tiny32, video):
    """Encoding with frozen norms reads the first clip's statistics once, whoever else encodes meanwhile."""
    latents = encode(tiny32, video)
    results, threads = [], []
    for _ in range(4):
        threads.append(threading.Thread(target=lambda: results.append(encode(tiny32, video))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 4 and all(torch.equal(each, latents) for each in results)


@pytest.mark.parametrize("value, says", [(float("nan"), "frames are NaN"), (-9.0, "frames are entirely black")])
def test_nan_and_black_frames_name_cause_and_remedy(tiny_folder, value, says):
    models = load(tiny_folder, device="cpu")
    with torch.no_grad():
        models.pipe.vae.decoder.conv_out.conv.weight.zero_()
        models.pipe.vae.decoder.conv_out.conv.bias.fill_(value)
    with pytest.raises(UserError, match=f"{says} .*Likely cause: float16.*remedy: .*float32"):
        decode(models, torch.randn(1, 4, 3, 4, 6))


@pytest.fixture
def long_video():
    return np.random.default_rng(1).integers(0, 256, (33, 32, 48, 3), dtype=np.uint8)


def moved(models, video, first_changed: int) -> list[bool]:
    """Which latents are others when the frames from `first_changed` on are turned negative."""
    changed = video.copy()
    changed[first_changed:] = 255 - changed[first_changed:]
    difference = (encode(models, changed) - encode(models, video)).abs().amax((0, 1, 3, 4))
    return (difference > 1e-4).tolist()


def test_only_the_norms_look_ahead(tiny32, long_video):
    """All at once the last four of 33 frames move every latent; with the norms frozen, the last one alone."""
    with tiles(tiny32, pixels=None, frames=None):
        assert moved(tiny32, long_video, 29) == [True] * 9
        with frozen_norms(tiny32):
            encode(tiny32, long_video)
            assert moved(tiny32, long_video, 29) == [False] * 8 + [True]
            assert moved(tiny32, long_video, 1) == [False] + [True] * 8
    assert moved(tiny32, long_video, 29) == [False] * 8 + [True]  # diffusers' time tiles hide it


def test_frozen_norms_keep_the_first_clips_bits_and_leave_no_trace(tiny32, video):
    before = encode(tiny32, video)
    with frozen_norms(tiny32):
        torch.testing.assert_close(encode(tiny32, video), before, rtol=1e-5, atol=1e-5)
        part = encode(tiny32, video[:5])
        torch.testing.assert_close(part, before[:, :, :2], rtol=1e-5, atol=1e-5)
    assert torch.equal(encode(tiny32, video), before)
    assert not torch.equal(encode(tiny32, video[:5]), part)
    assert not [module for module in tiny32.pipe.vae.modules() if "forward" in vars(module)]


def test_frozen_norms_within_frozen_norms(tiny32, video):
    """The inner ones see another clip first; afterwards those around them go on as before."""
    other = 255 - video
    with frozen_norms(tiny32):
        before = encode(tiny32, video), encode(tiny32, other)
        with frozen_norms(tiny32):
            assert not torch.equal(encode(tiny32, other), before[1])
        assert torch.equal(encode(tiny32, other), before[1])
    assert not [module for module in tiny32.pipe.vae.modules() if "forward" in vars(module)]


def test_frozen_norms_follow_the_vaes_dtype(tiny, video):
    with frozen_norms(tiny):
        assert decode(tiny, encode(tiny, video)).shape == video.shape


@pytest.mark.parametrize(
    "shape, pixels, frames, total",
    [((9, 8, 12), 32, 16, 36), ((9, 8, 12), None, 16, 3), ((4, 8, 12), 32, 16, 12), ((9, 8, 12), None, None, 1)],
)
def test_tiles_are_told_one_by_one(tiny32, shape, pixels, frames, total):
    """As many as were announced, with the same frames; what the callback raises ends it, and leaves nothing behind."""
    latents, told = torch.randn(1, 4, *shape), []
    with tiles(tiny32, pixels, 0 if pixels is None else 8, frames):
        video = decode(tiny32, latents)
        assert tile_count(tiny32, latents) == total
        assert np.array_equal(decode(tiny32, latents, lambda *each: told.append(each)), video)
        assert told == [(done, total) for done in range(1, total + 1)]
        with pytest.raises(ZeroDivisionError):
            decode(tiny32, latents, lambda done, total: 1 / (done - 1))
        assert np.array_equal(decode(tiny32, latents), video)
    assert not hasattr(tiny32.pipe.vae.decoder, "_diffusers_hook")


def test_tiles_are_diffusers_own_and_are_put_back(tiny32):
    """Its defaults in time; in space, tiles of 16 pixels every 8 as `enable_tiling` sets them."""
    latents = torch.randn(1, 4, 7, 4, 6, generator=torch.Generator().manual_seed(0))
    vae, usual = tiny32.pipe.vae, decode(tiny32, latents)
    before = dict(vars(vae))
    with tiles(tiny32, pixels=None):
        np.testing.assert_array_equal(decode(tiny32, latents), usual)
    with pytest.raises(ZeroDivisionError), tiles(tiny32, pixels=16, overlap=8, frames=8, frame_overlap=0):
        ours = decode(tiny32, latents)
        _ = 1 / 0
    assert vars(vae) == before
    sizes = {"height": (16, 8), "width": (16, 8), "num_frames": (8, 8)}
    try:
        vae.enable_tiling(
            **{f"tile_sample_min_{name}": size for name, (size, _) in sizes.items()},
            **{f"tile_sample_stride_{name}": stride for name, (_, stride) in sizes.items()},
        )
        np.testing.assert_array_equal(decode(tiny32, latents), ours)
    finally:
        vars(vae).update(before)
    assert not np.array_equal(ours, usual)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"pixels": 60}, "pixels=60: must be a multiple of 8.*; 64 would work"),
        ({"pixels": 0}, "pixels=0.*; 8 would work"),
        ({"pixels": "64"}, "pixels='64'.*; 32 would work"),
        ({"pixels": 64, "overlap": 12}, "overlap=12: must be a multiple of 8, at most half of pixels; 16 would work"),
        ({"pixels": 64, "overlap": 40}, "overlap=40.*; 32 would work"),
        ({"pixels": 64, "overlap": -8}, "overlap=-8.*; 0 would work"),
        ({"frames": 6}, "frames=6: must be a multiple of 4.*; 8 would work"),
        ({"frames": 8, "frame_overlap": 2.0}, "frame_overlap=2.0: must be a multiple of 4.*; 0 would work"),
    ],
)
def test_tiles_that_do_not_come_out_whole_are_refused(tiny32, wrong, says):
    before = dict(vars(tiny32.pipe.vae))
    with pytest.raises(UserError, match=says), tiles(tiny32, **wrong):
        pass
    assert vars(tiny32.pipe.vae) == before


def test_psnr_is_that_of_its_definition():
    black = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(black, black) == float("inf")
    assert psnr(black, black + 255) == 0  # no wrapping round in 8 bits
    assert psnr(black, black + 10) == pytest.approx(28.13, abs=0.01)
    assert psnr(black, black + 5) - psnr(black, black + 10) == pytest.approx(6.02, abs=0.01)
    with pytest.raises(UserError, match=r"\(2, 4, 4, 3\) and \(1, 4, 4, 3\): must have the same shape"):
        psnr(black, black[:1])


def test_pocket_carries_a_picture_through(pocket):
    """A cartoon comes back as itself: scale, shift, order of channels. evaluation.json has the PSNR over many."""
    scene = toyland.random_scene(0)
    clip = toyland.render(scene, height=112, width=192, num_frames=9)
    back = decode(pocket, encode(pocket, clip))
    assert back.shape == clip.shape and psnr(back, clip) > 28
