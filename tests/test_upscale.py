"""Upscaling: any Real-ESRGAN file, the official frames, and no surprises from batches, tiles, streams and bad files."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import drawn, psnr
from PIL import Image
from safetensors.torch import load_file, save_file
from spandrel.architectures.Compact import Compact
from spandrel.architectures.SwinIR import SwinIR

from benchmarks.upscalers import POCKET, FrameLoop, official, weight_files
from t2v_kit import (
    UserError,
    errors,
    load_upscaler,
    upscale,
    upscale_frames,
)
from t2v_kit.stages.upscaling import enlarging as ROOM
from t2v_kit.stages.upscaling import network as NETWORK
from t2v_kit.stages.upscaling import weights as FILES
from t2v_kit.stages.upscaling.names import PUBLISHED, SHIPPED, Published
from t2v_kit.stages.upscaling.network import overlap, prepare, share_cores, tiled
from t2v_kit.stages.upscaling.weights import available_upscalers
from tests.forks import finished
from training.degrade import KERNEL, Dice, blur, degrade, jpeg, kernels, sinc

quiet = dict(progress=False)
ROOT = Path(__file__).parents[1]


def noise_video(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def furthest(a: np.ndarray, b: np.ndarray) -> int:
    """Largest difference in levels of 255."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


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


def rrdb(folder, scale: int, blocks: int = 1):
    """A small RRDBNet of random weights, in a .pth as Real-ESRGAN publishes them; and the network itself."""
    arch = pytest.importorskip("basicsr.archs.rrdbnet_arch")
    torch.manual_seed(scale)
    net = arch.RRDBNet(3, 3, scale=scale, num_feat=16, num_block=blocks)
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


def test_bfloat16_stays_near_float32():
    """On pocket's weights bfloat16 moves no pixel of a drawn scene far: more than 45 dB between the two."""
    video = drawn(1)
    assert psnr(upscale(video, dtype="bfloat16", **quiet), upscale(video, dtype="float32", **quiet)) > 45


def test_a_network_that_cannot_compute_in_bfloat16_gets_float32(tmp_path, monkeypatch):
    """SwinIR mixes in float32 constants, though spandrel's flag says otherwise: 'auto' finds out by trial."""
    torch.manual_seed(0)
    sizes = {"img_size": 16, "embed_dim": 12, "depths": [1], "num_heads": [2], "window_size": 8, "mlp_ratio": 2}
    net = SwinIR(upscale=2, upsampler="pixelshuffledirect", resi_connection="1conv", **sizes)
    torch.save({"params": net.state_dict()}, tmp_path / "swinir.pth")
    monkeypatch.setattr(NETWORK, "_cpu_has_bfloat16", lambda: True)
    net = load_upscaler(tmp_path / "swinir.pth")
    assert net.architecture.name == "SwinIR" and net.supports_bfloat16
    assert prepare(net, "auto", torch.device("cpu")).dtype == torch.float32
    assert upscale(noise_video(1, 20, 12), tmp_path / "swinir.pth", 2, **quiet).shape == (1, 40, 24, 3)
    with pytest.raises(UserError, match=r"dtype='bfloat16' is not for SwinIR .*use 'float32' or 'auto'"):
        upscale(noise_video(1, 20, 12), tmp_path / "swinir.pth", 2, "bfloat16", **quiet)
    assert prepare(load_upscaler(), "auto", torch.device("cpu")).dtype == torch.bfloat16


def test_grey_stays_grey(compact):
    """One channel in, one out: what the colours of the same frame in three equal channels come to, by BT.601."""
    grey = noise_video(2, 9, 7)[..., :1]
    enlarged = upscale(grey, compact, dtype="float32", **quiet)
    assert enlarged.shape == (2, 36, 28, 1)
    wanted = upscale(grey.repeat(3, axis=3), compact, dtype="float32", **quiet) @ [0.299, 0.587, 0.114]
    assert np.abs(enlarged[..., 0] - wanted).max() <= 1


def test_alpha_is_enlarged_beside_the_colours(compact):
    """Colours are those of the opaque frame; alpha is what bicubic interpolation makes of it, and full stays full."""
    video = noise_video(2, 9, 8)
    for alpha in (np.full((2, 9, 8, 1), 255, np.uint8), noise_video(2, 9, 8)[..., 1:2] // 4 + 90):
        enlarged = upscale(np.concatenate([video, alpha], 3), compact, dtype="float32", **quiet)
        assert np.array_equal(enlarged[..., :3], upscale(video, compact, dtype="float32", **quiet))
        wanted = [np.asarray(Image.fromarray(a[..., 0]).resize((32, 36), Image.Resampling.BICUBIC)) for a in alpha]
        assert furthest(enlarged[..., 3], np.stack(wanted)) <= 2


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


def test_cores_with_a_frame_each_change_nothing(compact):
    """Four threads, three frames at a time: the single thread's frames, in order; PyTorch's setting stays as it was."""
    video, before = noise_video(7, 12, 16), torch.get_num_threads()
    torch.set_num_threads(1)
    one = upscale(video, compact, dtype="float32", batch=3, **quiet)
    try:
        torch.set_num_threads(4)
        with share_cores(3) as workers:
            assert list(workers.map(lambda _: torch.get_num_threads(), range(3))) == [1, 1, 1]
            assert torch.get_num_threads() == 4
        many = upscale(video, compact, dtype="float32", batch=3, **quiet)
        with ThreadPoolExecutor(1) as other:
            assert other.submit(torch.get_num_threads).result() == 4
    finally:
        torch.set_num_threads(before)
    assert furthest(one, many) <= 1


def test_auto_and_none_are_the_same(compact):
    video = noise_video(3, 12, 16)
    named = upscale(video, compact, tile="auto", batch="auto", dtype="auto", **quiet)
    assert np.array_equal(named, upscale(video, compact, tile=None, batch=None, **quiet))


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
    assert overlap(net) == 24
    assert (tiled(net, pixels, 32) - net(pixels)).abs().max() < 1e-5


def test_deeper_networks_see_further_around_tiles(tmp_path):
    """34 convolutions, as many as general-x4v3 has, get an overlap of 40: still the untiled frames, on any weights."""
    torch.manual_seed(0)
    path = tmp_path / "deep.pth"
    net = Compact(num_feat=8, num_conv=32, upscale=4)
    for weight in net.parameters():
        weight.data *= 1.5
    torch.save({"params": net.state_dict()}, path)
    net, pixels = load_upscaler(path), torch.rand(1, 3, 20, 100)
    assert overlap(net) == 40
    assert (tiled(net, pixels, 32) - net(pixels)).abs().max() < 1e-5


def test_tiles_of_a_deep_rrdbnet_stay_near(tmp_path):
    """96 convolutions could see further than the 64 pixels around a tile: at most 1 level of 255 comes of it."""
    path, _ = rrdb(tmp_path, 4, blocks=6)
    assert overlap(load_upscaler(path)) == 64
    video = noise_video(1, 24, 120)
    whole = upscale(video, path, dtype="float32", tile=0, **quiet)
    assert whole.std() > 10
    assert furthest(whole, upscale(video, path, dtype="float32", tile=24, **quiet)) <= 1


def test_tiles_keep_step_with_pixel_unshuffle(tmp_path):
    """x2 networks look at pixels in pairs: tiles of an odd-sized frame still give the untiled one."""
    path, _ = rrdb(tmp_path, 2)
    video = noise_video(1, 61, 75)
    assert furthest(upscale(video, path, 2, "float32", tile=0, **quiet),
                    upscale(video, path, 2, "float32", tile=24, **quiet)) <= 1  # fmt: skip


# ---- published files --------------------------------------------------------------------------------------


@pytest.fixture
def release(tmp_path, monkeypatch, compact):
    """Puts a network at a file:// address under a published name; there is no wheel, and torch.hub's cache is empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(FILES, "files_in_wheel", lambda name: None)

    def publish(name: str, weights=compact, sha256: str | None = None):
        source = tmp_path / "release" / f"{name}.pth"
        source.parent.mkdir(exist_ok=True)
        shutil.copy(weights, source)
        sha256 = sha256 or hashlib.sha256(source.read_bytes()).hexdigest()
        monkeypatch.setitem(PUBLISHED, name, Published(source.as_uri(), sha256))
        return source

    return publish


def cached(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "home").rglob("*") if path.is_file())


def test_a_published_file_is_fetched_once(tmp_path, compact, release, capfd):
    """It gives the local file's frames, lies in torch.hub's cache alone, and the second time needs no network."""
    source, video = release("RealESRGAN_x4plus"), noise_video(1, 8, 8)
    local = upscale(video, compact, **quiet)
    assert np.array_equal(upscale(video, "RealESRGAN_x4plus", **quiet), local)
    assert cached(tmp_path) == ["RealESRGAN_x4plus.pth"]
    assert capfd.readouterr().err == ""  # progress=False is silent while fetching too
    source.unlink()
    assert np.array_equal(upscale(video, "RealESRGAN_x4plus", **quiet), local)


def test_fetching_says_what_and_shows_a_bar(release, capfd):
    source = release("realesr-animevideov3")
    load_upscaler("realesr-animevideov3")
    shown = capfd.readouterr().err
    assert source.as_uri() in shown
    assert "100%" in shown


def test_a_spoilt_cache_is_fetched_anew(tmp_path, release):
    """What lies in the cache is checked each time: an altered file is replaced, not read."""
    source = release("RealESRGAN_x2plus")
    load_upscaler("RealESRGAN_x2plus", **quiet)
    file = next((tmp_path / "home").rglob("*.pth"))
    file.write_bytes(file.read_bytes()[:-100])
    load_upscaler("RealESRGAN_x2plus", **quiet)
    assert file.read_bytes() == source.read_bytes()


def test_a_wrong_sha256_is_never_read(tmp_path, release, monkeypatch):
    """Neither loaded nor kept; one line names the address and the way out."""
    read = []
    monkeypatch.setattr(FILES, "read_tensors", read.append)
    source = release("RealESRGAN_x4plus", sha256="0" * 64)
    with pytest.raises(UserError, match=r"not the published file.*give the path of that local file") as caught:
        load_upscaler("RealESRGAN_x4plus", **quiet)
    assert source.as_uri() in str(caught.value)
    assert "\n" not in str(caught.value)
    assert read == cached(tmp_path) == []


@pytest.mark.parametrize("address", ["file:///nowhere/x4.pth", "http://127.0.0.1:9/x4.pth"], ids=["missing", "refused"])
def test_no_network_is_one_clear_line(tmp_path, release, monkeypatch, address):
    """The line has the address and the way out, and no half file stays."""
    release("RealESRGAN_x4plus")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(PUBLISHED, "RealESRGAN_x4plus", Published(address, "0" * 64))
    with pytest.raises(UserError, match=f"could not be fetched from {address} .*that local file") as caught:
        load_upscaler("RealESRGAN_x4plus", **quiet)
    assert "\n" not in str(caught.value)
    assert cached(tmp_path) == []


def test_every_published_name_has_its_own_address_and_sha256():
    """Six files under their own names, each with a whole SHA-256 that no other has."""
    assert len(PUBLISHED) == len({published.sha256 for published in PUBLISHED.values()}) == 6
    for name, (address, sha256) in PUBLISHED.items():
        assert address.startswith("https://github.com/xinntao/Real-ESRGAN/releases/download/v0.")
        assert address.endswith(f"/{name}.pth")
        assert len(bytes.fromhex(sha256)) == 32


def test_what_works_offline_is_listed(release):
    """The shipped networks, and a published one as soon as it was fetched."""
    assert available_upscalers() == list(SHIPPED)
    release("realesr-animevideov3")
    load_upscaler("realesr-animevideov3", **quiet)
    assert available_upscalers() == [*SHIPPED, "realesr-animevideov3"]


# ---- strength of denoising --------------------------------------------------------------------------------


def test_denoise_strength_of_pocket():
    """Noise that is left grows from 1 to 0; 1 and None are pocket_x4 alone, 0 is pocket_wdn_x4 alone."""
    grain = np.random.default_rng(0).normal(128, 10, (1, 48, 48, 3)).clip(0, 255).astype(np.uint8)
    default = upscale(grain, dtype="float32", **quiet)
    one, half, zero = (upscale(grain, dtype="float32", denoise_strength=s, **quiet) for s in (1, 0.5, 0))
    assert one.std() < half.std() < zero.std()
    assert np.array_equal(one, default)
    assert np.array_equal(zero, upscale(grain, SHIPPED["pocket-wdn"], dtype="float32", **quiet))
    assert np.array_equal(zero, upscale(grain, "pocket-wdn", dtype="float32", **quiet))


def test_denoise_strength_is_the_official_tools(tmp_path, compact, release):
    """For realesr-general-x4v3 the weights are those of RealESRGANer's own interpolation, bit for bit."""
    official = pytest.importorskip("realesrgan")
    torch.manual_seed(1)
    net = Compact(num_feat=16, num_conv=3, upscale=4)
    torch.save({"params": net.state_dict()}, tmp_path / "wdn.pth")
    release("realesr-general-x4v3")
    release("realesr-general-wdn-x4v3", tmp_path / "wdn.pth")
    files = [str(compact), str(tmp_path / "wdn.pth")]
    theirs = official.RealESRGANer(4, files, dni_weight=[0.3, 1 - 0.3], model=net, half=False, device="cpu")
    ours = load_upscaler("realesr-general-x4v3", 0.3, **quiet).model.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in theirs.model.state_dict().items())


@pytest.mark.parametrize(("strength", "kept"), [(None, "x4v3"), (1, "x4v3"), (0, "wdn-x4v3")])
def test_denoise_strength_fetches_what_it_needs(tmp_path, release, strength, kept):
    """At its ends one network suffices, and the other one is not fetched."""
    release("realesr-general-x4v3")
    release("realesr-general-wdn-x4v3")
    load_upscaler("realesr-general-x4v3", strength, **quiet)
    assert cached(tmp_path) == [f"realesr-general-{kept}.pth"]


@pytest.mark.parametrize("model", ["a path", "pocket-wdn", "RealESRGAN_x4plus"])
def test_denoise_strength_needs_a_pair(compact, model):
    """Any other network is refused before anything is fetched, with the two names that work."""
    with pytest.raises(UserError, match="only 'pocket' and 'realesr-general-x4v3' have: leave it out"):
        load_upscaler(compact if model == "a path" else model, 0.5, **quiet)


# ---- too little memory ------------------------------------------------------------------------------------


@pytest.fixture
def small_gpu(compact, monkeypatch):
    """Gives `upscale` a network without memory for more than so many input pixels (`later`: from run two on).

    What it returns lists the runs.
    """

    def limit(pixels: int, later: int | None = None) -> list[tuple[int, ...]]:
        net, ran = load_upscaler(compact), []

        def check(_, inputs):
            batch, _, height, width = inputs[0].shape
            if batch * height * width > (later if later and ran else pixels):
                raise torch.OutOfMemoryError("CUDA out of memory.")
            ran.append((batch, height, width))

        errors._notes_of_this_run.get().clear()
        net.model.register_forward_pre_hook(check)
        monkeypatch.setattr(ROOM, "load_upscaler", lambda *_: net)
        monkeypatch.setattr(ROOM, "share_cores", lambda _: contextlib.nullcontext())  # a GPU takes whole batches
        return ran

    return limit


@pytest.mark.parametrize(
    ("pixels", "tile", "ended"),
    [(2 * 192 * 200, None, "batch=2;"), (192 * 200, None, "batch=1;"), (200 * 200, 0, "batch=1;"),
     (100 * 100, None, "batch=1 and tile=56;"), (160 * 160, 0, "batch=1 and tile=104;")],
)  # fmt: skip
def test_out_of_memory_goes_on_smaller(compact, small_gpu, pixels, tile, ended):
    """First fewer frames at once, then tiles; every frame comes once and unchanged; one warning for all of it."""
    video = noise_video(5, 192, 200)
    wanted = upscale(video, compact, dtype="float32", **quiet)
    ran = small_gpu(pixels)
    with pytest.warns(UserWarning, match=f"out of GPU memory: went on with {ended}") as told:
        enlarged = upscale(video, compact, dtype="float32", batch=4, tile=tile, **quiet)
    assert len(told) == 1
    assert furthest(enlarged, wanted) <= 1
    assert ran


def test_memory_that_shrinks_is_told_once(compact, small_gpu):
    """What was batch=2 needs batch=1 after the first pair: the run goes on, and warns no second time."""
    video = noise_video(5, 8, 8)
    wanted = upscale(video, compact, dtype="float32", **quiet)
    ran = small_gpu(2 * 8 * 8, later=8 * 8)
    with pytest.warns(UserWarning, match="out of GPU memory") as told:
        enlarged = upscale(video, compact, dtype="float32", batch=4, **quiet)
    assert len(told) == 1
    assert ran == [(2, 8, 8)] + 3 * [(1, 8, 8)]
    assert furthest(enlarged, wanted) <= 1


def test_enough_memory_warns_of_nothing(small_gpu):
    small_gpu(4 * 8 * 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        upscale(noise_video(6, 8, 8), dtype="float32", batch=4, **quiet)


def test_no_memory_even_for_the_smallest_tile(small_gpu):
    """It ends with one line instead of a loop."""
    small_gpu(100)
    with pytest.raises(UserError, match=r"batch=1 and tiles of 32: .*device='cpu'"):
        upscale(noise_video(3, 70, 90), dtype="float32", **quiet)


# ---- the official package ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pocket", "x4", "x2"])
def test_frames_agree_with_realesrganer(tmp_path, kind):
    """On the same weights, in float32 and without pre-padding, frames are RealESRGANer's within 1 of 255."""
    official = pytest.importorskip("realesrgan")
    if kind == "pocket":
        from realesrgan.archs.srvgg_arch import SRVGGNetCompact

        path, net, scale = tmp_path / "pocket.pth", SRVGGNetCompact(3, 3, 64, 16, 4), 4
        torch.save({"params": load_file(SHIPPED["pocket"])}, path)
    else:
        scale = int(kind[1])
        path, net = rrdb(tmp_path, scale)
    video = np.concatenate([drawn(1, 1)[:, :33, :47], noise_video(1, 33, 47)])
    theirs = official.RealESRGANer(scale, str(path), model=net, pre_pad=0, half=False, device="cpu")
    wanted = [theirs.enhance(np.ascontiguousarray(frame[..., ::-1]))[0][..., ::-1] for frame in video]  # BGR
    assert np.ptp(wanted) > 50  # the random networks do answer to their input
    assert furthest(upscale(video, path, scale, "float32", **quiet), np.stack(wanted)) <= 1


@pytest.mark.parametrize("size", [(16, 24), (13, 17)])
def test_the_benchmarks_frame_loop_is_the_official_one(tmp_path, size):
    """What the benchmark runs where realesrgan is missing gives the same frames, to the last level."""
    pytest.importorskip("realesrgan")
    path = weight_files(tmp_path)[POCKET]
    frame = noise_video(*size)
    theirs, which = official(POCKET, path, "cpu")
    assert which == "realesrgan"
    loop = FrameLoop(load_upscaler(path).model, "cpu", half=False)
    assert np.array_equal(loop.enhance(frame)[0], theirs.enhance(frame)[0])


def test_the_benchmark_runs(tmp_path):
    """At toy size, the same lines as on a GPU: every part has its numbers, and they fit each other."""
    out = tmp_path / "results" / "tiny.json"
    command = ["-m", "benchmarks.upscaling", "--tiny", "--device", "cpu", "--out", str(out)]
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = finished(command, environment)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    rows = {key: row for key, row in report.items() if isinstance(row, dict) and key != "versions"}
    assert len(rows) == 3 + 4 and not [row for row in rows.values() if "error" in row or "not_run" in row]
    pairs = rows["frames, pocket"]
    assert len(pairs["times_faster"]) == len(pairs["ours_seconds_a_frame"]) == 9
    parameters = [row["million_parameters"] for key, row in rows.items() if key.startswith("networks")]
    assert parameters == [0.62, 1.21, 4.47, 16.7]  # as the published files have
    assert report["command"].startswith("python -m benchmarks.upscaling --tiny")


KERNELS = """
import t2v_kit, torch
from spandrel import ModelLoader
from spandrel.architectures.Compact import Compact
from benchmarks.full_size import random_upscaler
from t2v_kit.stages.upscaling.fused import FusedCompact, FusedRRDB

torch.manual_seed(0)
dense = ModelLoader().load_from_state_dict(random_upscaler(64, 1)).model
for net, kind in ((Compact(num_feat=64, num_conv=2, upscale=4), FusedCompact), (dense, FusedRRDB)):
    for weights in net.parameters():  # each layer counts
        torch.nn.init.kaiming_normal_(weights) if weights.ndim == 4 else torch.nn.init.uniform_(weights, 0.1, 0.3)
    assert kind.fits(net)
    ours = kind(net)
    for shape in ((1, 3, 6, 9), (2, 3, 5, 4)):
        pixels = torch.rand(shape)
        with torch.inference_mode():
            torch.testing.assert_close(ours(pixels), net(pixels), rtol=1e-4, atol=1e-4)
"""


def test_the_kernels_for_hopper_cards_compute_what_torch_does():
    """Both networks, batches and sizes in turn; Triton's interpreter needs no GPU."""
    pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds")
    interpreted = {**os.environ, "TRITON_INTERPRET": "1"}  # must be set before torch imports Triton
    subprocess.run([sys.executable, "-c", KERNELS], cwd=ROOT, env=interpreted, check=True)


# ---- mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(dict(model="esrgan"), "unknown upscaler 'esrgan': did you mean 'RealESRGAN_x4plus'"),
     (dict(model="nowhere/x4.pth"), "unknown upscaler 'nowhere/x4.pth'"),
     (dict(dtype="half"), "dtype='half'.*float16"),
     (dict(dtype="float16", device="cpu"), "float16.*needs a GPU.*bfloat16"),
     (dict(scale=0), "scale=0 .*1 to 16"), (dict(scale=float("nan")), "scale=nan"), (dict(scale="4"), "scale='4'"),
     (dict(scale=40), "scale=40 .*try 16"), (dict(tile=100), "tile=100 .*multiple of 8"), (dict(tile=-8), "tile=-8"),
     (dict(tile="all"), "tile='all' .*'auto'"), (dict(batch="max"), "batch='max' .*'auto'"),
     (dict(batch=0), "batch=0"), (dict(batch=1.5), "batch=1.5"),
     (dict(denoise_strength=1.5), "denoise_strength=1.5 .*0 to 1: try 1"),
     (dict(denoise_strength=-1), "denoise_strength=-1 .*try 0"), (dict(denoise_strength=True), "denoise_strength=True"),
     (dict(denoise_strength=float("nan")), "denoise_strength=nan"),
     (dict(denoise_strength="1"), "denoise_strength='1'")],
)  # fmt: skip
def test_wrong_options_are_named(wrong, message):
    """One line that quotes the value and says what works; raised before the first frame, by the stream too."""
    with pytest.raises(UserError, match=message) as caught:
        upscale_frames(noise_video(1, 4, 4), **wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "video",
    [noise_video(4, 4), noise_video(1, 4, 4)[..., :2], noise_video(1, 4, 4) / 255.0, noise_video(0, 4, 4), [1, 2]],
    ids=["one frame", "two channels", "float", "empty", "list"],
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


def test_a_network_for_other_pictures_is_refused(tmp_path):
    """One for colours with opacity is recognised and named, but it takes no RGB video."""
    net = Compact(num_in_ch=4, num_out_ch=4, num_feat=8, num_conv=1, upscale=2)
    save_file(net.state_dict(), tmp_path / "rgba.safetensors")
    with pytest.raises(UserError, match=r"Compact x2 from 4 to 4 channels, which takes no RGB video"):
        load_upscaler(tmp_path / "rgba.safetensors")


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


# ---- what is left alone -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [False, None, 5])
def test_an_upscaler_that_is_no_name_is_refused(model):
    with pytest.raises(UserError, match=f"upscaler {model}: must be a name .*'none'"):
        upscale(noise_video(1, 8, 8), model, **quiet)


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(compact, device):
    with pytest.raises(UserError, match=f"device='{device}': cannot be used"):
        upscale(noise_video(1, 8, 8), compact, device=device, **quiet)


def test_the_callers_random_numbers_stay(compact):
    """A network is made with random weights before it gets its own: what is drawn afterwards is the same."""
    before = torch.random.get_rng_state()
    load_upscaler(compact)
    assert torch.equal(torch.random.get_rng_state(), before)
