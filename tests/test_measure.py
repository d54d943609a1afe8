"""Numbers for videos: they say what they claim, on videos whose truth is known by construction."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from t2v_kit import UserError, flicker, psnr, ssim, steady, still_pixels, toyland
from t2v_kit.video.metrics import followed

SCENE = toyland.Scene("car", "red", "street", "sunny", "right", "high", seed=3)


def noisy(video: np.ndarray, deviation: float, seed: int = 0) -> np.ndarray:
    grain = np.random.default_rng(seed).normal(0, deviation, video.shape)
    return (video + grain).round().clip(0, 255).astype(np.uint8)


def sliding(step: int, frames: int = 4) -> np.ndarray:
    """A random texture that slides right by `step` pixels a frame."""
    texture = np.random.default_rng(1).integers(0, 256, (24, 80, 3), dtype=np.uint8)
    return np.stack([texture[:, 40 - step * t : 72 - step * t] for t in range(frames)])


@pytest.fixture(scope="module")
def drawn():
    return toyland.render(SCENE, 56, 96, 9)


def test_ssim_knows_equal_and_unrelated(drawn):
    """1 for itself, falling with noise, near 0 for noise against noise."""
    values = [ssim(noisy(drawn, deviation), drawn) for deviation in (0, 2, 8, 32)]
    assert values[0] == 1 and values == sorted(values, reverse=True)
    assert abs(ssim(noisy(drawn * 0 + 128, 30), noisy(drawn * 0 + 128, 30, seed=1))) < 0.1


def test_psnr_is_scikit_images(drawn):
    video = noisy(drawn, 5)
    assert psnr(video, drawn) == pytest.approx(peak_signal_noise_ratio(drawn, video), abs=1e-4)


def test_flicker_of_noise_is_what_statistics_say():
    """Two frames with noise of deviation 6 differ by 6 * 2 / sqrt(pi) on average; a still video does not flicker."""
    plain = np.full((5, 64, 64, 3), 128, np.uint8)
    everywhere = np.ones((4, 64, 64), bool)
    assert flicker(plain, everywhere) == 0
    assert flicker(noisy(plain, 6), everywhere) == pytest.approx(6 * 2 / np.pi**0.5, rel=0.03)


def test_flicker_is_measured_where_it_is_asked():
    video = np.zeros((2, 4, 4, 3), np.uint8)
    video[1, 0, 0] = 90
    corner, rest = np.zeros((1, 4, 4), bool), np.ones((1, 4, 4), bool)
    corner[0, 0, 0] = True
    assert flicker(video, corner) == 90 and flicker(video, rest & ~corner) == 0


@pytest.mark.parametrize("step", [1, 3])
def test_along_its_motion_a_sliding_texture_does_not_flicker(step):
    """At the same place it changes much; followed by its flow, not at all; by half the flow, it does."""
    video = sliding(step)
    flow = np.zeros((4, 24, 32, 2))
    flow[..., 0] = step
    inside = np.zeros((3, 24, 32), bool)
    inside[:, :, : 32 - step] = True  # the rest leaves the picture
    assert flicker(video, inside) > 40
    assert flicker(video, inside, flow) < 0.01
    assert flicker(video, inside, flow / 2) > 20


@pytest.mark.parametrize("shape", [(5, 12, 16, 2), (2, 24, 32, 2), (3, 24, 32, 3)])
def test_a_flow_of_another_shape_is_refused(shape):
    with pytest.raises(UserError, match=r"flow is .*: must be \(3, 24, 32, 2\)"):
        flicker(sliding(1), np.ones((3, 24, 32), bool), np.zeros(shape))


def test_followed_takes_half_way_between_pixels():
    """A flow of half a pixel gives the mean of the two."""
    video = np.zeros((2, 1, 4, 3), np.uint8)
    video[1, 0, :, :] = np.array([0, 40, 80, 200])[:, None]
    flow = np.zeros((1, 1, 4, 2))
    flow[..., 0] = 0.5
    assert followed(video, flow)[0, 0, :3, 0] == pytest.approx([20, 60, 140], abs=1e-3)


def test_toylands_flow_takes_the_subject_along():
    """On a drawn scene the true motion explains most of the change inside the subject."""
    video, truth = toyland.render(SCENE, 112, 192, 9), toyland.truth(SCENE, 112, 192, 9)
    inside = truth.masks[0]
    inside = ~torch.nn.functional.max_pool2d((~torch.from_numpy(inside)).float()[:, None], 5, 1, 2)[:, 0].bool().numpy()
    assert flicker(video, inside[:-1], truth.flow) < 0.6 * flicker(video, inside[:-1])


def test_still_pixels_are_those_with_still_surroundings(drawn):
    """One pixel that changes once takes its surroundings out of two steps, and nothing else."""
    video = np.zeros((4, 30, 30, 3), np.uint8)
    video[1, 10, 20, 2] = 1
    still = still_pixels(video, around=3)
    assert still.shape == (3, 30, 30) and still[2].all()
    for step in (0, 1):
        moved = np.argwhere(~still[step])
        assert moved.min(0).tolist() == [7, 17] and moved.max(0).tolist() == [13, 23] and len(moved) == 49
    assert 0.2 < still_pixels(drawn, 4).mean() < 0.95


def test_steady_takes_noise_off_what_stands_still(drawn):
    """Noise falls to about a third where nothing moves, nearer to the truth; what moves is as it was."""
    video = noisy(np.concatenate([drawn, drawn[::-1], drawn]), 4)
    truth = np.concatenate([drawn, drawn[::-1], drawn])
    held = steady(video, video, motion=False)
    still = still_pixels(truth, 6)
    still[:8] = False  # until the filter has settled
    assert flicker(held, still) < 0.35 * flicker(video, still)
    assert psnr(held, truth) > psnr(video, truth) + 2
    moving = np.abs(truth[1:].astype(int) - truth[:-1]).mean(3) > 60
    assert np.abs(held[1:].astype(int) - video[1:])[moving].max() <= 1


def test_steady_along_motion_and_where_motion_uncovers():
    """A square on a textured ground: noise falls on what moves too, and what appears behind it has no ghost."""
    random = np.random.default_rng(0)
    ground = np.asarray(Image.fromarray(random.integers(60, 120, (16, 24, 3), np.uint8)).resize((96, 64)))
    square = np.asarray(Image.fromarray(random.integers(150, 250, (6, 6, 3), np.uint8)).resize((24, 24)))
    truth = np.repeat(ground[None], 8, axis=0)
    for index, frame in enumerate(truth):
        frame[20:44, 10 + 4 * index : 34 + 4 * index] = square
    video = noisy(truth, 6)
    where = np.zeros((7, 64, 96), bool)
    for index in range(3, 7):
        where[index, 24:40, 14 + 4 * index : 30 + 4 * index] = True
    flow = np.zeros((7, 64, 96, 2), np.float32)
    flow[..., 0] = 4
    held, before = steady(video, video), steady(video, video, motion=False)
    assert flicker(held, where, flow) < 0.8 * flicker(before, where, flow)
    assert psnr(held, truth) > psnr(before, truth)
    uncovered = np.abs(held[7, 20:44, 34:38].astype(int) - truth[7, 20:44, 34:38]).mean()
    assert uncovered < 1.2 * np.abs(video[7, 20:44, 34:38].astype(int) - truth[7, 20:44, 34:38]).mean()


def test_steady_at_another_size_and_on_one_frame(drawn):
    """The enlarged video may be any size; a single frame and a clean still come back as they were."""
    large = drawn.repeat(4, axis=1).repeat(4, axis=2)
    assert steady(large, drawn).shape == large.shape
    assert np.array_equal(steady(large[:1], drawn[:1]), large[:1])
    rest = np.repeat(large[:1], 5, axis=0)
    assert np.array_equal(steady(rest, np.repeat(drawn[:1], 5, axis=0)), rest)
    assert np.array_equal(steady(large, drawn, keep=0), large)


def test_mistakes_are_one_line(drawn, monkeypatch):
    """Shapes that do not fit, an empty region, numbers out of range, a missing library."""
    none = np.zeros((8, 56, 96), bool)
    wrong = [
        (lambda: ssim(drawn, drawn[1:]), "same shape"),
        (lambda: ssim(drawn[:, :5], drawn[:, :5]), "7x7"),
        (lambda: flicker(drawn, none), "False everywhere"),
        (lambda: flicker(drawn, none[1:]), "must be"),
        (lambda: steady(drawn, drawn[1:]), "9 frames came from 8"),
        (lambda: steady(drawn, drawn, keep=1), "keep=1 "),
    ]
    for call, message in wrong:
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(UserError, match="pip install scikit-image"):
        ssim(drawn, drawn)
