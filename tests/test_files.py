"""Video files of all kinds: nothing lost, nothing invented, and an interrupted film is the same film."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction

import av
import imageio_ffmpeg
import mediapy
import numpy as np
import pytest
import torch
from conftest import drawn, psnr
from spandrel.architectures.Compact import Compact

from t2v_kit import (
    DamagedVideo,
    UserError,
    read_metadata,
    save_video,
    upscale,
    upscale_file,
    upscale_frames,
    video_writer,
)
from t2v_kit.cli import main
from t2v_kit.stages.upscaling import enlarging as ROOM
from t2v_kit.video.decoder_process import DecoderProcess
from tests.films import FFMPEG, KINDS, PAGE, decoder, look, nearest, run, shown
from tests.forks import python

quiet = dict(progress=False)


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
for length in (8, 80):
    save_video("in.mp4", np.broadcast_to(frame, (length, *frame.shape)), 24)
    upscale_file("in.mp4", "out.mp4", sys.argv[1], progress=False, batch=2)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the resource module is Unix's")
def test_memory_stays_flat(tmp_path, compact):
    """80 frames need no more memory than 8: the enlarged ones together would be 24 MB, the growth is below 12."""
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


# ---- colours, opacity, damage -----------------------------------------------------------------------------


def ffmpeg(*arguments) -> None:
    subprocess.run([FFMPEG, "-v", "error", "-y", *map(str, arguments)], check=True)


@pytest.fixture(scope="module")
def repeating(tmp_path_factory):
    """A x4 network that repeats each pixel."""
    return nearest(tmp_path_factory.mktemp("nearest"))


def write_flat(path, code, transfer: int, primaries: int = 9) -> None:
    """Two frames of one RGB colour from 0 to 1 in 10 bits, lossless, tagged."""
    picture = np.broadcast_to(np.round(np.array(code) * 65535).astype(np.uint16), (16, 16, 3))
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=10)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv444p10le"
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 9, primaries, transfer, 1
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb48le")
            frame = frame.reformat(format="yuv444p10le", dst_colorspace=9, src_color_range=2, dst_color_range=1)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def pq(light: float) -> float:
    """SMPTE ST 2084: cd/m2 to a code from 0 to 1."""
    power = (light / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


@pytest.mark.parametrize(
    ("light", "lowest", "highest"), [(0, 0, 1), (1, 30, 45), (100, 205, 235), (203, 235, 248), (1000, 254, 255)]
)
def test_hdr_light_becomes_sdr(tmp_path, repeating, light, lowest, highest):
    """100 cd/m2, white on an SDR screen, is bright; 203, white in HDR, brighter still; 1000 is the end."""
    write_flat(tmp_path / "a.mkv", [pq(light)] * 3, 16)
    with pytest.warns(UserWarning, match="HDR was mapped to SDR"):
        target = upscale_file(tmp_path / "a.mkv", tmp_path / "b.mp4", repeating, dtype="float32", **quiet)
    grey = shown(target)[0, 30, 30].astype(int)
    assert lowest <= grey.min() and grey.max() <= highest and np.ptp(grey) <= 2
    assert look(target).tags[:3] == (1, 1, 1)


def test_hdr_keeps_its_codes_in_10_bits(tmp_path, repeating):
    """Within a level of 1023, tags and all; 10 bits of the network's own, not 8 in a 10-bit file."""
    codes = [pq(100) + 1 / 1023, pq(10), pq(400)]
    write_flat(tmp_path / "a.mkv", codes, 16)
    target = upscale_file(tmp_path / "a.mkv", tmp_path / "b.mkv", repeating, codec="hevc", bit_depth=10, crf=0, **quiet)
    with av.open(str(target)) as file:
        frame = next(file.decode(video=0))
    assert (frame.colorspace, frame.color_primaries, frame.color_trc, frame.format.name) == (9, 9, 16, "yuv420p10le")
    with av.open(str(tmp_path / "a.mkv")) as file:
        source = next(file.decode(video=0))
    wanted, came = (np.frombuffer(each.planes[0], np.uint16).reshape(each.height, -1) for each in (source, frame))
    assert abs(int(came[30, 30]) - int(wanted[8, 8])) <= 1


@pytest.mark.parametrize(
    ("tags", "size", "wanted"),
    [
        ("", "48x32", (6, 6, 6, 1)),
        ("", "32x600", (1, 1, 1, 1)),
        ("-colorspace bt709 -color_primaries bt709 -color_trc bt709", "48x32", (1, 1, 1, 1)),
        ("-colorspace bt470bg -color_primaries bt470bg -color_trc gamma28", "48x32", (5, 5, 5, 1)),
        ("-colorspace bt2020nc -color_primaries bt2020 -color_trc bt2020-10", "48x32", (9, 9, 14, 1)),
        ("-color_range pc", "48x32", (6, 6, 6, 1)),
    ],
)
def test_colour_tags(tmp_path, repeating, tags, size, wanted):
    """Tags stay; without them BT.601 or 709 by the source's size is meant, and the enlarged file says which."""
    source = f"color=c=0x20A060:s={size}:r=10:d=0.2"
    encode = [*tags.split(), "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "1"]
    ffmpeg("-f", "lavfi", "-i", source, *encode, tmp_path / "a.mp4")
    target = upscale_file(tmp_path / "a.mp4", tmp_path / "b.mp4", repeating, dtype="float32", **quiet)
    assert look(target).tags == wanted
    with av.open(str(tmp_path / "a.mp4")) as file:
        frame = next(file.decode(video=0))
    matrix = {5: "bt470bg", 6: "smpte170m"}.get(wanted[0], {1: "ITU709", 9: "BT2020"}.get(wanted[0]))
    matrix = {"bt470bg": "ITU601", "smpte170m": "ITU601"}.get(matrix, matrix)
    full = 2 if "pc" in tags else 1
    meant = frame.to_ndarray(format="rgb24", src_colorspace=matrix, src_color_range=full, dst_color_range=2)[8, 8]
    assert np.abs(shown(target)[0, 30, 30].astype(int) - meant).max() <= 3


@pytest.mark.parametrize(
    ("target", "codec"), [("b.webm", None), ("b.mov", "prores"), ("b.mkv", "ffv1"), ("b.gif", None)]
)
def test_opacity_is_kept(tmp_path, repeating, target, codec):
    """Opaque left half, transparent right half: in every container that can say so."""
    picture = np.full((32, 48, 4), (200, 60, 30, 255), np.uint8)
    picture[:, 24:, 3] = 0
    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        stream = file.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "bgra"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgba")))
        file.mux(stream.encode(None))
    path = upscale_file(tmp_path / "a.mkv", tmp_path / target, repeating, codec=codec, dtype="float32", **quiet)
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        context = decoder(stream)
        frames = [frame for packet in file.demux(stream) for frame in context.decode(packet if packet.size else None)]
    back = frames[0].to_ndarray(format="rgba")
    assert back[64, 10, 3] >= 253 and back[64, 180, 3] <= 2
    assert np.abs(back[64, 20, :3].astype(int) - (200, 60, 30)).max() < 12


def test_an_interlaced_film_has_no_combs(tmp_path, repeating):
    """A bar that moves between two fields: after deinterlacing neighbouring rows agree as in the progressive film."""
    bar = "color=black:s=64x64:r=50:d=0.6[a];color=white:s=12x64:r=50:d=0.6[b];[a][b]overlay=x=mod(n*4\\,48)"
    code = ["-flags", "+ilme+ildct", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "1"]
    ffmpeg("-f", "lavfi", "-i", bar, "-vf", "interlace=lowpass=0,fieldorder=tff", *code, tmp_path / "a.mp4")
    with pytest.warns(UserWarning, match="deinterlaced"):
        target = upscale_file(tmp_path / "a.mp4", tmp_path / "b.mp4", repeating, dtype="float32", **quiet)

    def combs(frames: np.ndarray) -> float:
        """How much rows differ from the next in a way that the row after undoes."""
        rows = frames.astype(float).mean(axis=3)
        return float(np.abs(2 * rows[:, 1:-1] - rows[:, :-2] - rows[:, 2:]).mean())

    small = shown(target)[:, 2::4, 2::4]
    assert combs(small) < 0.2 * combs(shown(tmp_path / "a.mp4"))
    assert len(small) == len(look(tmp_path / "a.mp4").times)


def test_a_cut_film_keeps_what_came(tmp_path, repeating):
    """The error counts the frames, the file's name says that it is not whole, the target's own name stays free."""
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=48x32:r=10:d=3", "-g", 5, "-movflags", "+faststart", tmp_path / "a.mp4")
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: len(data) * 2 // 3])
    (tmp_path / "b.mp4").write_text("an older file")
    with pytest.raises(DamagedVideo, match=r"is damaged .*ends after \d+ of 30.* \d+ of 30 frames came") as caught:
        upscale_file(tmp_path / "half.mp4", tmp_path / "b.mp4", repeating, **quiet)
    assert caught.value.path == tmp_path / "b.incomplete.mp4"
    assert 5 < caught.value.frames == len(look(caught.value.path).times) < 25
    assert (tmp_path / "b.mp4").read_text() == "an older file"


def test_the_command_line_ends_with_1_for_a_damaged_film(tmp_path, repeating, capsys):
    """One line on stderr; a user's mistake has 2."""
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=48x32:r=10:d=2", "-g", 5, "-movflags", "+faststart", tmp_path / "a.mp4")
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: len(data) * 2 // 3])
    command = ["upscale", str(tmp_path / "half.mp4"), str(tmp_path / "b.mp4"), "--model", str(repeating)]
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 1 and "b.incomplete.mp4" in capsys.readouterr().err
    assert main(["upscale", str(tmp_path / "a.mp4"), str(tmp_path / "b.xyz"), "--model", str(repeating)]) == 2
    options = ["--codec", "hevc", "--crf", "30", "--bit-depth", "10", "--fps", "5", "--audio", "none", "--scale", "2"]
    assert main(["upscale", str(tmp_path / "a.mp4"), str(tmp_path / "c.mp4"), "--model", str(repeating), *options]) == 0
    after = look(tmp_path / "c.mp4")
    assert (after.codec, after.pixels, len(after.times), after.size) == ("hevc", "yuv420p10le", 10, (96, 64))


# ---- targets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("x.xyz", {}, r"must end in \.mp4, .*x\.mp4' would work"),
        ("x", {}, r"must end in .*x\.mp4' would work"),
        ("x.mk", {}, r"x\.mkv' would work"),
        ("folder.mp4", {}, r"is a folder; .*large\.mp4' would work"),
        ("taken/x.mp4", {}, "cannot be written"),
        ("x.mp4", {"codec": "prores"}, r"a \.mp4 file holds h264 or hevc or av1; .*x\.mov' would work"),
        ("x.mp4", {"codec": "h265"}, "codec='h265': is unknown"),
        ("x.mkv", {"codec": "ffv1", "crf": 3}, "ffv1 has no such scale"),
        ("x.mp4", {"crf": 99}, "whole number from 0 .best. to 51; 16 would work"),
        ("x.webm", {"bit_depth": 10, "codec": "vp9"}, "vp9 stores 8 bits"),
        ("x.mp4", {"bit_depth": 9}, "bit_depth=9: h264 stores 8 or 10 bits"),
        ("x.mp4", {"fps": 0}, "fps=0: must be 'keep' or a number"),
        ("x.mp4", {"audio": "loud"}, "audio='loud'"),
    ],
)
def test_a_target_that_cannot_be_is_refused_before_the_work(tmp_path, repeating, monkeypatch, name, options, message):
    """One line with what would work; no network is loaded and nothing is written."""
    save_video(tmp_path / "a.mp4", drawn(1, 1), 16)
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setattr("t2v_kit.stages.upscaling.films.prepared", lambda *_: 1 // 0)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as caught:
        upscale_file(tmp_path / "a.mp4", tmp_path / name, repeating, **options, **quiet)
    assert "\n" not in str(caught.value) and sorted(tmp_path.rglob("*")) == before


def test_the_same_frames_are_the_same_bytes(tmp_path):
    """Also while other work fills the memory: x264's AVX-512 code gave up to five different files for these."""
    frames, files = np.random.default_rng(0).integers(0, 256, (9, 128, 192, 3), dtype=np.uint8), set()
    for _ in range(12):
        with video_writer(tmp_path / "a.mp4", (128, 192), 8) as writer:
            for frame in frames:
                torch.randn(1, 16, 64, 64) @ torch.randn(64, 64)
                writer.add_image(frame // 2 + 64)
        files.add((tmp_path / "a.mp4").read_bytes())
    assert len(files) == 1


def test_a_home_folder_is_understood(tmp_path, repeating, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_video(tmp_path / "a.mp4", drawn(1, 1), 16)
    assert upscale_file("~/a.mp4", "~/b.mp4", repeating, 1, **quiet) == tmp_path / "b.mp4"


# ---- interruptions ----------------------------------------------------------------------------------------


LONG = """
import sys
from t2v_kit import upscale_file
from t2v_kit.video import segments
segments._PIXELS, segments._FEWEST = 1, 4
upscale_file(sys.argv[1], sys.argv[2], sys.argv[3], dtype="float32", progress=False)
"""


def test_killed_at_any_moment_the_film_is_the_same(tmp_path, repeating, monkeypatch):
    """kill -9 at random moments: in the end the same bytes as in one go, and nothing else in the folder."""
    source = tmp_path / "a.mkv"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=4", "-f", "lavfi", "-i", "sine=d=4", "-c:a", "aac", source)
    command = ["-c", LONG, source]
    monkeypatch.setattr("t2v_kit.video.segments._PIXELS", 1)
    monkeypatch.setattr("t2v_kit.video.segments._FEWEST", 4)
    upscale_file(source, tmp_path / "one.mp4", repeating, dtype="float32", **quiet)
    dice, folder, grown = random.Random(3), tmp_path / ".part.two.mp4", [0]
    for _ in range(3):
        child = python([*command, tmp_path / "two.mp4", repeating], {})
        wanted, limit = grown[-1] + dice.randint(2, 6), time.monotonic() + 60
        while len(list(folder.glob("0*.mkv"))) < wanted and time.monotonic() < limit:
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 0.05))
        child.kill()
        child.wait()
        grown.append(len(list(folder.glob("0*.mkv"))))
    assert grown == sorted(set(grown)) and grown[-1] < 25  # each went on behind what the last one had
    upscale_file(source, tmp_path / "two.mp4", repeating, dtype="float32", **quiet)
    assert (tmp_path / "two.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.mkv", "one.mp4", "two.mp4"}
    assert len(look(tmp_path / "two.mp4").times) == 100


def test_parts_of_another_job_are_not_used(tmp_path, repeating, monkeypatch):
    """After an interruption other settings begin again, and say so."""
    monkeypatch.setattr("t2v_kit.video.segments._PIXELS", 1)
    save_video(tmp_path / "a.mp4", drawn(1, 3).repeat(8, axis=0), 16)
    real, calls = ROOM.enlarge_or_none, []

    def stops(*arguments):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(ROOM, "enlarge_or_none", stops)
    with pytest.raises(KeyboardInterrupt):
        upscale_file(tmp_path / "a.mp4", tmp_path / "b.mp4", repeating, 2, batch=1, **quiet)
    assert len(list((tmp_path / ".part.b.mp4").glob("0*.mkv"))) == 2
    done = len(calls)
    upscale_file(tmp_path / "a.mp4", tmp_path / "b.mp4", repeating, 2, batch=1, **quiet)
    assert len(calls) - done == 24 - 16  # two parts of eight were there already
    calls[:] = [1] * 2
    with pytest.raises(KeyboardInterrupt):
        upscale_file(tmp_path / "a.mp4", tmp_path / "b.mp4", repeating, 2, batch=1, **quiet)
    with pytest.warns(UserWarning, match="made with another encoding.*begun again"):
        upscale_file(tmp_path / "a.mp4", tmp_path / "b.mp4", repeating, 2, batch=1, crf=30, **quiet)
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "b.mp4"}


@pytest.mark.skipif(sys.platform == "win32", reason="signals are Unix's")
def test_a_crash_of_the_decoder_is_not_the_end(tmp_path):
    """Killed by a segmentation fault, the decoder is started again behind the last frame; killed once more, it leaves
    out the packet at which it died, and says so."""
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=320x240:r=25:d=3", "-g", 1, tmp_path / "a.mp4")
    with DecoderProcess(tmp_path / "a.mp4") as film:
        wanted = [frame.pts for frame in film.frames()]
    for crashes in ([20], [20, 40]):
        with DecoderProcess(tmp_path / "a.mp4") as film:
            came = []
            for frame in film.frames():
                came.append(frame.pts)
                if len(came) in crashes:
                    film._process.stdout.peek()  # until it is at the next packet, whose frame is larger than a pipe
                    film._process.send_signal(signal.SIGSEGV)
        assert came == sorted(set(came)) and set(came) <= set(wanted)
        assert len(wanted) - len(came) == len(crashes) - 1 == len(film.damage)


def test_the_bar_begins_at_once(tmp_path, repeating, capsys, monkeypatch):
    """The length is known from the file's index, without counting frames, before the network is loaded."""
    save_video(tmp_path / "a.mp4", drawn(1, 3), 16)
    monkeypatch.setattr("t2v_kit.stages.upscaling.films.prepared", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        upscale_file(tmp_path / "a.mp4", tmp_path / "b.mp4", repeating)
    assert "0/3" in capsys.readouterr().err
