"""Upscaling: any Real-ESRGAN file, the official frames, and no surprises from batches, tiles, streams and bad files."""

from __future__ import annotations

import io
import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from spandrel.architectures.Compact import Compact

from t2v_kit import UserError, load_upscaler, toyland, upscale, upscale_frames
from t2v_kit.upscale import UPSCALERS, _tiled
from training.degrade import KERNEL, Dice, blur, degrade, jpeg, kernels, sinc

WEAK_DENOISE = UPSCALERS["pocket"].with_name("pocket_wdn_x4.safetensors")
quiet = dict(progress=False)


def noise_video(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def furthest(a: np.ndarray, b: np.ndarray) -> int:
    """Largest difference in levels of 255."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


def drawn(scale: int, count: int = 3) -> np.ndarray:
    """Held-out scenes at `scale` times 56x96: (count, H, W, 3) uint8."""
    scenes = [toyland.random_scene(seed, unseen=True) for seed in range(count)]
    frames = toyland.render_batch(scenes, 56 * scale, 96 * scale, 1)[:, :, 0]
    return (frames.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()


def lanczos(frames: np.ndarray, scale: int = 4) -> np.ndarray:
    size = (frames.shape[2] * scale, frames.shape[1] * scale)
    return np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.LANCZOS)) for f in frames])


@pytest.fixture(scope="module")
def compact(tmp_path_factory):
    """A compact network of random weights, x4, in a .pth as Real-ESRGAN publishes them."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("compact") / "compact.pth"
    torch.save({"params": Compact(num_feat=16, num_conv=3, upscale=4).state_dict()}, path)
    return path


def rrdb(folder, scale: int):
    """A small RRDBNet of random weights, in a .pth as Real-ESRGAN publishes them; and the network itself."""
    arch = pytest.importorskip("basicsr.archs.rrdbnet_arch")
    torch.manual_seed(scale)
    net = arch.RRDBNet(3, 3, scale=scale, num_feat=16, num_block=1)
    for weight in net.parameters():  # basicsr starts so small that everything comes out grey
        weight.data *= 2
    torch.save({"params_ema": net.state_dict()}, folder / f"x{scale}.pth")
    return folder / f"x{scale}.pth", net


# ---- what comes out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "scale", "size"),
    [((2, 8, 12), 4, (32, 48)), ((1, 1, 1), 4, (4, 4)), ((3, 7, 5), 2, (14, 10)), ((1, 6, 9), 2.5, (15, 22)),
     ((1, 6, 9), 1, (6, 9)), ((1, 6, 9), 5, (30, 45))],
)  # fmt: skip
def test_sizes_of_every_scale(compact, shape, scale, size):
    """Every frame comes out once, at round(side * scale), whether the scale is the network's own or not."""
    enlarged = upscale(noise_video(*shape), compact, scale, **quiet)
    assert enlarged.shape == (shape[0], *size, 3)
    assert enlarged.dtype == np.uint8


def test_other_scales_are_the_networks_picture_resized(compact):
    """Scale 2 is the x4 picture made smaller: it agrees with Pillow's resampling of it."""
    video = drawn(1, 1)
    smaller = upscale(video, compact, 2, "float32", **quiet)
    large = Image.fromarray(upscale(video, compact, 4, "float32", **quiet)[0])
    assert psnr(smaller[0], np.asarray(large.resize((192, 112), Image.Resampling.BICUBIC))) > 40


def test_pocket_beats_lanczos_on_scenes_it_never_saw():
    """On held-out scenes, drawn small and spoilt, pocket comes at least 2 dB nearer the truth than Lanczos."""
    truth = drawn(8)
    pixels = torch.from_numpy(truth).permute(0, 3, 1, 2) / 255
    spoilt = (degrade(pixels, random.Random(0), group=1).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    assert psnr(upscale(spoilt, **quiet), truth) > psnr(lanczos(spoilt), truth) + 2
    small = drawn(2)
    assert psnr(upscale(small, **quiet), truth) > psnr(lanczos(small), truth) + 2


def test_the_shipped_pair_mixes(tmp_path):
    """Noise that is left grows from pocket_x4 over the mean of both state dicts to pocket_wdn_x4."""
    strong, weak = load_file(UPSCALERS["pocket"]), load_file(WEAK_DENOISE)
    half = {key: (value.float() + weak[key].float()) / 2 for key, value in strong.items()}
    save_file(half, tmp_path / "half.safetensors")
    grain = np.random.default_rng(0).normal(128, 10, (1, 48, 48, 3)).clip(0, 255).astype(np.uint8)
    paths = (UPSCALERS["pocket"], tmp_path / "half.safetensors", WEAK_DENOISE)
    left = [upscale(grain, path, dtype="float32", **quiet).std() for path in paths]
    assert left[0] < left[1] < left[2]


def test_bfloat16_stays_near_float32():
    """On pocket's weights bfloat16 moves no pixel of a drawn scene far: more than 45 dB between the two."""
    video = drawn(1)
    assert psnr(upscale(video, dtype="bfloat16", **quiet), upscale(video, dtype="float32", **quiet)) > 45


# ---- batches, streams, tiles ------------------------------------------------------------------------------


def test_batches_and_streams_change_nothing(compact):
    """Frames are the same in batches of 1, 2 and 5, and as a stream from a generator of unknown length."""
    video = noise_video(5, 12, 16)
    one = upscale(video, compact, dtype="float32", batch=1, **quiet)
    for batch in (2, 5, None):
        assert furthest(one, upscale(video, compact, dtype="float32", batch=batch, **quiet)) <= 1
    stream = upscale_frames((frame for frame in video), compact, dtype="float32", batch=2, **quiet)
    assert furthest(one, np.stack(list(stream))) <= 1


def test_a_stream_holds_one_batch_and_leaks_no_mode(compact):
    """The first frame comes after one batch was read, and between frames the caller's autograd is as it was."""
    read = []
    source = (read.append(i) or frame for i, frame in enumerate(noise_video(9, 8, 8)))
    stream = upscale_frames(source, compact, batch=2, **quiet)
    assert read == []
    next(stream)
    assert len(read) == 2
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_an_empty_stream_is_empty(compact):
    assert list(upscale_frames([], compact, **quiet)) == []


def test_frames_of_different_sizes_are_refused(compact):
    with pytest.raises(UserError, match=r"\(8, 9, 3\)"):
        list(upscale_frames([noise_video(8, 8), noise_video(8, 9)], compact, **quiet))


def test_tiles_give_the_untiled_frames():
    """With pocket's 18 convolutions the overlap covers all that a pixel can see: tiles change no level of 255."""
    video = drawn(1, 1)
    whole = upscale(video, dtype="float32", tile=0, **quiet)
    assert furthest(whole, upscale(video, dtype="float32", tile=32, **quiet)) <= 1
    net, pixels = load_upscaler(), torch.rand(1, 3, 40, 72)
    assert (_tiled(net, pixels, 32) - net(pixels)).abs().max() < 1e-5


def test_tiles_keep_step_with_pixel_unshuffle(tmp_path):
    """x2 networks look at pixels in pairs: tiles of an odd-sized frame still give the untiled one."""
    path, _ = rrdb(tmp_path, 2)
    video = noise_video(1, 61, 75)
    assert furthest(upscale(video, path, 2, "float32", tile=0, **quiet),
                    upscale(video, path, 2, "float32", tile=24, **quiet)) <= 1  # fmt: skip


# ---- the official package ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pocket", "x4", "x2"])
def test_frames_agree_with_realesrganer(tmp_path, kind):
    """On the same weights, in float32 and without pre-padding, frames are RealESRGANer's within 1 of 255."""
    official = pytest.importorskip("realesrgan")
    if kind == "pocket":
        from realesrgan.archs.srvgg_arch import SRVGGNetCompact

        path, net, scale = tmp_path / "pocket.pth", SRVGGNetCompact(3, 3, 64, 16, 4), 4
        torch.save({"params": load_file(UPSCALERS["pocket"])}, path)
    else:
        scale = int(kind[1])
        path, net = rrdb(tmp_path, scale)
    video = np.concatenate([drawn(1, 1)[:, :33, :47], noise_video(1, 33, 47)])
    theirs = official.RealESRGANer(scale, str(path), model=net, pre_pad=0, half=False, device="cpu")
    wanted = [theirs.enhance(np.ascontiguousarray(frame[..., ::-1]))[0][..., ::-1] for frame in video]  # BGR
    assert np.ptp(wanted) > 50  # the random networks do answer to their input
    assert furthest(upscale(video, path, scale, "float32", **quiet), np.stack(wanted)) <= 1


# ---- mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(dict(model="esrgan"), "unknown upscaler 'esrgan': choose 'pocket'"),
     (dict(model="nowhere/x4.pth"), "unknown upscaler 'nowhere/x4.pth'"),
     (dict(dtype="half"), "dtype='half'.*float16"),
     (dict(dtype="float16", device="cpu"), "float16.*needs a GPU.*bfloat16"),
     (dict(scale=0), "scale=0 .*1 to 16"), (dict(scale=float("nan")), "scale=nan"), (dict(scale="4"), "scale='4'"),
     (dict(scale=40), "scale=40 .*try 16"), (dict(tile=100), "tile=100 .*multiple of 8"), (dict(tile=-8), "tile=-8"),
     (dict(batch=0), "batch=0"), (dict(batch=1.5), "batch=1.5")],
)  # fmt: skip
def test_wrong_options_are_named(wrong, message):
    """One line that quotes the value and says what works; raised before the first frame, by the stream too."""
    with pytest.raises(UserError, match=message) as caught:
        upscale_frames(noise_video(1, 4, 4), **wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "video",
    [noise_video(4, 4), noise_video(1, 4, 4)[..., :1], noise_video(1, 4, 4) / 255.0, noise_video(0, 4, 4), [1, 2]],
    ids=["one frame", "grey", "float", "empty", "list"],
)
def test_what_is_no_video_is_refused(compact, video):
    """The message tells the shape that is wanted and what came instead."""
    with pytest.raises(UserError, match="a video to enlarge"):
        upscale(video, compact, **quiet)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kind", ["cut short", "text", "empty", "layers are missing", "another network", "no tensors"])
def test_damaged_and_foreign_files_are_refused(tmp_path, compact, kind, suffix):
    """Every one is one line with the file's name, whatever failed underneath."""
    path = tmp_path / f"broken{suffix}"
    state = torch.load(compact, weights_only=True)["params"]
    write = save_file if suffix == ".safetensors" else torch.save
    if kind == "cut short":
        write(state, path)
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind in ("text", "empty"):
        path.write_text("no weights here" * (kind == "text"))
    elif kind == "no tensors":
        write({} if write is save_file else {"epoch": 3}, path)
    else:
        missing = {key: value for key, value in state.items() if not key.startswith("body.2")}
        write(missing if kind == "layers are missing" else {"linear.weight": torch.ones(3, 3)}, path)
    with pytest.raises(UserError, match=f"broken{suffix}.*Real-ESRGAN file") as caught:
        load_upscaler(path)
    assert "\n" not in str(caught.value)


def test_a_network_that_does_not_enlarge_is_refused(tmp_path):
    """A compact denoiser, x1, is recognised and named, but it is no upscaler."""
    save_file(Compact(num_feat=8, num_conv=1, upscale=1).state_dict(), tmp_path / "x1.safetensors")
    with pytest.raises(UserError, match="Compact x1, which enlarges no RGB video"):
        load_upscaler(tmp_path / "x1.safetensors")


def test_a_file_never_runs_code(tmp_path):
    """A pickle that would write a file when it is loaded is refused, and writes nothing."""

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"params": Bomb()}))
    torch.save({"params": Bomb()}, tmp_path / "bomb2.pth")
    for name in ("bomb.pth", "bomb2.pth"):
        with pytest.raises(UserError, match=name):
            load_upscaler(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_pixels_that_are_no_numbers_stop_the_run(tmp_path, compact):
    """Weights that overflow give a line with the remedy instead of black frames."""
    state = torch.load(compact, weights_only=True)["params"]
    state["body.0.bias"] = torch.full_like(state["body.0.bias"], float("nan"))
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match=r"no numbers.*float32"):
        upscale(noise_video(1, 4, 4), tmp_path / "nan.safetensors", **quiet)


# ---- how its training data is spoilt ----------------------------------------------------------------------


def test_degrade_is_repeatable_and_keeps_its_promise():
    """The same seed spoils the same way, another seed differently; a quarter of the size, in whole levels."""
    high = torch.from_numpy(drawn(4)).permute(0, 3, 1, 2) / 255
    low = degrade(high, random.Random(5))
    assert low.shape == (3, 3, 56, 96)
    assert torch.equal(low, degrade(high, random.Random(5)))
    assert not torch.equal(low, degrade(high, random.Random(6)))
    assert torch.allclose((low * 255).round(), low * 255, atol=1e-4)
    assert (low - F.avg_pool2d(high, 4)).square().mean() < 10**-2  # the scene is still there, unmoved


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_jpeg_loses_what_jpeg_loses(quality):
    """Our JPEG is nearer to Pillow's than either is to the picture."""
    picture = drawn(2, 1)[0]
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    theirs = np.asarray(Image.open(file))
    pixels = torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0) / 255
    ours = jpeg(pixels, torch.full((1, 1, 1, 1), float(quality)))[0].permute(1, 2, 0).numpy() * 255
    assert psnr(ours, theirs) > psnr(picture, theirs) + 5


def test_blur_is_convolution():
    """The FFT gives the direct convolution, each picture with its own kernel; kernels and sinc filters sum to 1."""
    x = torch.rand(2, 3, 30, 40)
    dice = Dice(random.Random(0), x)
    kernel = kernels(dice, 1, 2.5)
    assert torch.allclose(kernel.sum((1, 2)), torch.ones(2))
    assert torch.allclose(sinc(dice).sum((1, 2)), torch.ones(2))
    padded = F.pad(x, (KERNEL // 2,) * 4, mode="reflect")
    wanted = [F.conv2d(p.unsqueeze(1), k.flip(0, 1)[None, None])[:, 0] for p, k in zip(padded, kernel)]
    assert torch.allclose(blur(x, kernel), torch.stack(wanted), atol=1e-5)
