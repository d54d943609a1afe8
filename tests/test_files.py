"""Video files of all kinds: nothing lost, nothing invented, and an interrupted film is the same film."""

from __future__ import annotations

import re
import subprocess
import sys
from fractions import Fraction

import av
import imageio_ffmpeg
import mediapy
import numpy as np
import pytest
import torch
from spandrel.architectures.Compact import Compact

from t2v_kit import DamagedVideo, UserError, read_metadata, save_video, toyland, upscale, upscale_file, upscale_frames
from t2v_kit.stages.upscaling import enlarging as ROOM
from tests.films import KINDS, PAGE, look, run, shown

quiet = dict(progress=False)
mediapy.set_ffmpeg(imageio_ffmpeg.get_ffmpeg_exe())


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


def drawn(scale: int, count: int = 3) -> np.ndarray:
    """Held-out scenes at `scale` times 56x96: (count, H, W, 3) uint8."""
    scenes = [toyland.random_scene(seed, unseen=True) for seed in range(count)]
    frames = toyland.render_batch(scenes, 56 * scale, 96 * scale, 1)[:, :, 0]
    return (frames.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()


@pytest.fixture(scope="module")
def compact(tmp_path_factory):
    """A compact network of random weights, x4, in a .pth as Real-ESRGAN publishes them."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("compact") / "compact.pth"
    torch.save({"params": Compact(num_feat=16, num_conv=3, upscale=4).state_dict()}, path)
    return path


def stream_of(path) -> str:
    """What ffmpeg says of a file's frames: its time base in the first line, then a line a frame."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "framecrc", "-"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("fps", [8, 24000 / 1001, 30000 / 1001, 12.5, 60])
def test_a_file_keeps_its_frames_and_rate(tmp_path, compact, fps):
    """As many frames as before at exactly the same times, each the enlarged one to compression."""
    video = drawn(1, 3).repeat(3, axis=0)
    source = save_video(tmp_path / "small.mp4", video, fps)
    target = upscale_file(source, tmp_path / "new folder" / "large.mp4", compact, dtype="float32", **quiet)
    before, after = stream_of(source).splitlines(), stream_of(target).splitlines()
    assert [line for line in before if "#tb" in line] == [line for line in after if "#tb" in line]
    assert len([line for line in after if line[0] != "#"]) == 9
    back = np.asarray(mediapy.read_video(target))
    wanted = upscale(np.asarray(mediapy.read_video(source)), compact, dtype="float32", **quiet)
    assert back.shape == wanted.shape == (9, 224, 384, 3)
    assert min(psnr(a, b) for a, b in zip(back, wanted)) > 25  # of two different scenes it is below 20


def test_planes_are_the_frames_colours(compact):
    """On a GPU frames leave as yuv420p: read back, they are as near to what was enlarged as ffmpeg's own are."""
    wanted = upscale(drawn(1, 1), compact, dtype="float32", **quiet)[0]
    (planes,) = upscale_frames(drawn(1, 1), compact, dtype="float32", planes=True, **quiet)
    assert planes.shape == (336, 384) and planes.dtype == np.uint8
    theirs = av.VideoFrame.from_ndarray(wanted, format="rgb24").reformat(format="yuv420p", dst_colorspace="ITU709")
    difference = np.abs(planes.astype(int) - theirs.to_ndarray())
    assert difference[:224].max() <= 2 and difference.mean() < 1


def test_a_file_still_says_how_it_was_made(tmp_path, compact):
    """Prompt, seed and the rest are carried, with what was done; a video from elsewhere gets that alone."""
    made = {"settings": {"prompt": "a red car", "seed": 7}}
    done = {"enlarged": {"model": str(compact), "scale": 2}}
    for metadata in (made, None):
        source = save_video(tmp_path / "a.mp4", drawn(1, 1), 16, metadata)
        target = upscale_file(source, tmp_path / "b.mp4", compact, 2, **quiet)
        assert read_metadata(target) == (metadata or {}) | done


def test_a_file_on_itself_and_a_failure_in_the_middle(tmp_path, compact, monkeypatch):
    """Source and target may be one; what fails leaves the old file whole and no half one."""
    path = save_video(tmp_path / "a.mp4", drawn(1, 3), 16)
    assert upscale_file(path, path, compact, 2, **quiet) == path
    assert mediapy.read_video(path).shape == (3, 112, 192, 3)
    whole = path.read_bytes()
    monkeypatch.setattr(ROOM, "enlarge_or_none", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        upscale_file(path, path, compact, 2, **quiet)
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]


def test_a_foreign_comment_is_not_carried(tmp_path, compact):
    """JSON, but none of ours."""
    source = save_video(tmp_path / "a.mp4", drawn(1, 1), 16, 2023)
    assert read_metadata(upscale_file(source, tmp_path / "b.mp4", compact, 2, **quiet)).keys() == {"enlarged"}


def test_mistakes_with_files_are_one_line(tmp_path, compact):
    """No file, no video, a scale that makes odd sides, a wrong option: told before anything is written."""
    source = save_video(tmp_path / "a.mp4", drawn(1, 1)[:, :, :90], 16)
    (tmp_path / "b.mp4").write_text("no video")
    for name, scale, message in (("b.mp4", 4, "b.mp4' as a video"), ("no.mp4", 4, "no.mp4' as a video"),
                                 ("a.mp4", 1.5, "makes 135x84.*try 2"), ("a.mp4", "2", "scale='2'"),
                                 ("a.mp4", np.nan, "scale=nan"), ("a.mp4", np.inf, "scale=inf")):  # fmt: skip
        with pytest.raises(UserError, match=message) as caught:
            upscale_file(tmp_path / name, tmp_path / "out.mp4", compact, scale, **quiet)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="tile=7"):
        upscale_file(source, tmp_path / "out.mp4", compact, tile=7, **quiet)
    assert not (tmp_path / "out.mp4").exists()


FLAT = """
import resource, sys
import numpy as np
from t2v_kit import save_video, upscale_file
frame = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
for length in (8, 120):
    save_video("in.mp4", np.broadcast_to(frame, (length, *frame.shape)), 24)
    upscale_file("in.mp4", "out.mp4", sys.argv[1], progress=False, batch=2)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the resource module is Unix's")
def test_memory_stays_flat(tmp_path, compact):
    """120 frames need no more memory than 8: the enlarged ones together would be 35 MB, the growth is below 12."""
    command = [sys.executable, "-c", FLAT, str(compact)]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    short, long = (int(line) * (1 if sys.platform == "darwin" else 1024) for line in said.split())
    assert long - short < 12e6


# ---- fifty kinds ------------------------------------------------------------------------------------------


STEP = {".mkv": Fraction(1, 1000), ".webm": Fraction(1, 1000), ".gif": Fraction(1, 100)}  # the container's clock
RESTARTED = (".ts", ".mpg")


def enlarged(frames: np.ndarray) -> np.ndarray:
    return frames.repeat(4, axis=1).repeat(4, axis=2)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_of_file(tmp_path, kind):
    """Every frame at its own time, pixels and colours as players show them, streams and tags kept, changes said."""
    result = run(kind, tmp_path)
    before, after = result.before, result.after
    assert [each for each in tmp_path.iterdir() if each.name.startswith(".part")] == []
    assert (result.damage is not None) == bool(kind.cut)

    if "fps" in kind.options:
        assert after.times == [Fraction(index, kind.options["fps"]) for index in range(24)]
    else:
        start = before.start if result.source.suffix in RESTARTED else 0
        wanted = [time - start for time in before.times]
        step = max(STEP.get(result.path.suffix, 0), Fraction(1, 50000))  # MPEG-PS states its start in microseconds
        assert len(after.times) == len(wanted)
        assert max(abs(a - b) for a, b in zip(after.times, wanted)) <= step
        if before.last > 0 and not kind.cut:
            assert after.last == pytest.approx(before.last, abs=0.011)

    assert len(result.notes) == len(kind.says), result.notes
    for note, pattern in zip(result.notes, kind.says):
        assert re.search(pattern, note), (note, pattern)

    ratio = Fraction(before.size[0], before.size[1]) * before.aspect  # as it is shown
    turned = Fraction(after.size[0], after.size[1]) * after.aspect
    assert abs(float(turned / ratio) - 1) < 0.01 or abs(float(turned * ratio) - 1) < 0.01
    if kind.like is not None:
        old, new = enlarged(shown(result.source)), shown(result.path)
        count = min(len(old), len(new))
        assert new.shape[1:] == old.shape[1:] and count >= len(after.times) - 1
        assert psnr(old[:count], new[:count]) > kind.like

    kept = [other for other in before.others if "data" not in other]
    changed = {"AAC into WebM": ["opus"], "PCM into MP4": ["aac"], "SubRip into MP4": ["mov_text"],
               "sound, not wanted": [], "sound into GIF": [], "MPEG-2 and sound in MPEG-PS": ["aac"]}  # fmt: skip
    assert [other for other in after.others if "data" not in other] == changed.get(kind.name, kept)
    assert after.chapters == before.chapters
    for name in ("title", "artist"):
        assert after.metadata.get(name) == before.metadata.get(name)
    assert f"| {kind.name} |" in PAGE.read_text("utf-8")


def test_the_page_lists_these_kinds():
    """The page lists these kinds and no others."""
    rows = re.findall(r"^\| ([^|]+) \| \w+: ", PAGE.read_text("utf-8"), re.MULTILINE)
    assert rows == [kind.name for kind in KINDS]
