"""Looking at videos: what is written can be played, is what was given, and says how it was made."""

import base64
import io
import re
import subprocess

import imageio_ffmpeg
import mediapy
import numpy as np
import pytest
from PIL import Image

from t2v_kit.errors import UserError
from t2v_kit.video.files import read_metadata, save_video, video_reader, video_writer
from t2v_kit.view.pictures import contact_sheet, side_by_side, stills
from t2v_kit.view.players import animation, show_image, show_video


def film(frames: int = 9, height: int = 48, width: int = 64) -> np.ndarray:
    """A grey ramp over time with a coloured square that moves: every frame differs from its neighbours."""
    video = np.zeros((frames, height, width, 3), np.uint8)
    for index, frame in enumerate(video):
        frame[:] = 40 + 180 * index // frames
        frame[16:32, 2 * index : 2 * index + 16] = (220, 60, 30)
    return video


def ffmpeg(*arguments) -> None:
    """Make another file with ffmpeg."""
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *arguments], check=True)


def probe(path) -> str:
    """What ffmpeg says of a file."""
    return subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path)], capture_output=True, text=True).stderr


@pytest.fixture
def shown(monkeypatch):
    """What was displayed: a list of mime bundles."""
    bundles = []

    def keep(thing, raw=False):
        bundles.append(thing if raw else thing._repr_mimebundle_()[0])

    monkeypatch.setattr("IPython.display.display", keep)
    return bundles


@pytest.mark.parametrize("fps", [8, 16, 24])
def test_mp4_holds_every_frame_once_at_its_rate(tmp_path, fps):
    """No frame is dropped or doubled at any rate, and what is read back is what was written, to compression."""
    video = film()
    back = mediapy.read_video(save_video(tmp_path / "a.mp4", video, fps))
    assert back.shape == video.shape
    assert back.metadata.fps == fps
    assert np.abs(np.asarray(back).astype(int) - video).mean(axis=(1, 2, 3)).max() < 2


def test_mp4_plays_in_browsers(tmp_path):
    """H.264, yuv420p, tagged colours, and the index (moov) before the data (mdat)."""
    path = save_video(tmp_path / "a.mp4", film(), 16)
    stream = next(line for line in probe(path).splitlines() if "Video:" in line)
    assert "h264" in stream and "yuv420p(tv, bt709" in stream
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_mp4_keeps_colours(tmp_path):
    """Saturated colours survive the way to YUV and back: a wrong matrix would move them by 10 and more."""
    colours = np.array([[200, 30, 30], [30, 160, 40], [30, 40, 200], [220, 200, 40]], np.uint8)
    video = np.repeat(colours, 16, axis=0)[None, None].repeat(4, axis=0).repeat(32, axis=1)
    back = np.asarray(mediapy.read_video(save_video(tmp_path / "a.mp4", video, 8))).astype(int)
    middle = back[:, 16, 8::16]
    assert np.abs(middle - colours).max() <= 4


@pytest.mark.parametrize("prompt", ['"quotes" ; = # \\ two\\\\', "two\nlines\r\n\ttab", "🏍️ ünïcode 中文", "\ud800"])
def test_metadata_comes_back_whole(tmp_path, prompt):
    """One JSON in the comment survives quotes, newlines, emoji and ffmpeg's own special characters."""
    metadata = {"settings": {"prompt": prompt, "seed": 7, "flow_shift": 7.0}, "made_with": {"weights": "0af3"}}
    path = save_video(tmp_path / "a.mp4", film(2), 16, metadata)
    assert read_metadata(path) == metadata


def test_metadata_of_other_files(tmp_path):
    """A video without our comment, a file that is no video, and no file each say so."""
    with pytest.raises(UserError, match="how it was made"):
        read_metadata(save_video(tmp_path / "a.mp4", film(2), 16))
    for comment in ("2023", "true"):  # JSON, but none of ours
        ffmpeg("-y", "-i", tmp_path / "a.mp4", "-c", "copy", "-metadata", f"comment={comment}", tmp_path / "c.mp4")
        with pytest.raises(UserError, match="how it was made"):
            read_metadata(tmp_path / "c.mp4")
    (tmp_path / "b.mp4").write_text("not a video")
    for name in ("b.mp4", "missing.mp4"):
        with pytest.raises(UserError, match=f"cannot read .*{name}"):
            read_metadata(tmp_path / name)


@pytest.mark.parametrize("fps", [8, 12.5, 24000 / 1001, 30000 / 1001, 60])
def test_frames_one_by_one(tmp_path, fps):
    """The writer's file is `save_video`'s, and the reader gives its frames and its exact rate back."""
    video, path = film(), tmp_path / "a.mp4"
    with video_writer(path, video.shape[1:3], fps, {"seed": 7}) as writer:
        for frame in video:
            writer.add_image(frame)
    assert path.read_bytes() == save_video(tmp_path / "b.mp4", video, fps, {"seed": 7}).read_bytes()
    with video_reader(path) as reader:
        assert (reader.shape, reader.num_images) == ((48, 64), 9)
        assert reader.fps == pytest.approx(fps, abs=1e-9)
        back = np.stack(list(reader)).astype(int)
    theirs = np.asarray(mediapy.read_video(path)).astype(
        int
    )  # rounds down, and repeats colours where ours interpolates
    assert np.abs(back - theirs).mean() < 2 and np.abs(back - video).mean(axis=(1, 2, 3)).max() < 2


def test_a_reader_of_no_video_says_so(tmp_path):
    (tmp_path / "b.mp4").write_text("not a video")
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.1", tmp_path / "sound.m4a")
    for name in ("b.mp4", "missing.mp4", "sound.m4a"):
        with pytest.raises(UserError, match=f"cannot read .*{name}") as caught, video_reader(tmp_path / name):
            pass
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_film_of_a_turned_phone_is_turned_back(tmp_path, degrees):
    """Stored lying, with a note how to turn it: shape and frames are those that a player shows."""
    path = save_video(tmp_path / "lying.mp4", film(3), 16)
    ffmpeg("-display_rotation", f"{degrees}", "-i", path, "-c", "copy", tmp_path / "turned.mp4")
    with video_reader(path) as lying, video_reader(tmp_path / "turned.mp4") as turned:
        frames = np.rot90(np.stack(list(lying)), degrees // 90, axes=(1, 2))
        assert turned.shape == frames.shape[1:3] and turned.num_images == 3
        assert np.abs(np.stack(list(turned)).astype(int) - frames).mean() < 2


def test_tags_in_another_alphabet_do_not_matter(tmp_path):
    """Old cameras write Latin-1."""
    path = save_video(tmp_path / "a.mp4", film(3), 16)
    ffmpeg("-i", path, "-c", "copy", "-metadata", b"title=caf\xe9", tmp_path / "b.mp4")
    with video_reader(tmp_path / "b.mp4") as reader:
        assert len(list(reader)) == 3


@pytest.mark.parametrize("name", ["take:1/a.mp4", "-a.mp4", "50%d.mp4"])
def test_any_name_is_a_file(tmp_path, monkeypatch, name):
    """ffmpeg would take what is before a colon for a protocol, and a dash for an option."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    assert read_metadata(save_video(name, film(2), 16, {"seed": 7})) == {"seed": 7}
    with video_reader(name) as reader:
        assert len(list(reader)) == 2


def test_a_film_that_is_not_finished_replaces_nothing(tmp_path):
    path = save_video(tmp_path / "a.mp4", film(2), 16, {"seed": 7})
    whole = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), video_writer(path, (48, 64), 16) as writer:
        writer.add_image(film(1)[0])
        raise KeyboardInterrupt
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]


def test_stills_are_frames_of_the_video():
    """First and last frame are in it, unchanged; asking for more stills than frames gives each frame once."""
    video = film(9)
    strip = stills(video, 3)
    assert strip.shape == (48, 3 * 64 + 2 * 4, 3)
    for place, index in enumerate((0, 4, 8)):
        np.testing.assert_array_equal(strip[:, place * 68 : place * 68 + 64], video[index])
    assert stills(video, 99).shape[1] == 9 * 64 + 8 * 4
    np.testing.assert_array_equal(stills(video, 1), video[0])


def test_contact_sheet_shows_the_frames_in_order():
    """Frames sit in a grid, row by row; a long title is broken into lines and makes the sheet taller, not wider."""
    video = film(33)
    sheet = contact_sheet(video, 16, "a title")
    assert sheet.width == 4 * 340 + 20
    plain = np.asarray(contact_sheet(video, 16, frame_width=64))
    firsts = [plain[20 + row * (48 + 36) + 2, 20 + column * 84 + 62, 0] for row in range(3) for column in range(4)]
    expected = video[np.linspace(0, 32, 12).round().astype(int), 2, 62, 0]
    assert np.abs(np.array(firsts, int) - expected).max() <= 2
    longer = contact_sheet(video, 16, "many words " * 30)
    assert longer.width == sheet.width and longer.height > sheet.height


def test_contact_sheet_of_few_frames_has_no_empty_columns():
    """A single frame makes a sheet one frame wide."""
    assert contact_sheet(film(1), 16).width == 320 + 40
    with pytest.raises(UserError, match="columns=0: must be a whole number from 1; 1 would work"):
        contact_sheet(film(1), 16, columns=0)


def test_side_by_side_shows_small_pixels_as_they_are():
    """A film of a quarter of the size is enlarged by repeating pixels; the large one is untouched."""
    small = film(3)
    large = small.repeat(4, axis=1).repeat(4, axis=2)
    both = side_by_side({"before": small, "after": large}, height=192)
    assert both.shape == (3, 28 + 192, 2 * 256 + 8, 3)
    np.testing.assert_array_equal(both[:, 28:, :256], large)
    np.testing.assert_array_equal(both[:, 28:, 264:], large)
    assert (both[0, :28, :256] < 100).any(), "the name is written above"


@pytest.mark.parametrize(("width", "count", "times"), [(192, 1, 3), (192, 2, 3), (192, 3, 2), (192, 4, 1), (768, 2, 1)])
def test_a_row_of_small_films_is_enlarged_to_the_page(width, count, times):
    """By a whole number, so that pixels stay squares; the labels are 16 pixels high where the row is shown at 768."""
    frames = np.random.default_rng(0).integers(0, 200, (1, 112, width, 3), np.uint8)
    row = side_by_side({f"film {number}": frames for number in range(count)})
    label = row.shape[1] - 112 * times
    assert row.shape[2] == count * width * times + 8 * (count - 1)
    assert label / 28 == pytest.approx(max(1, row.shape[2] / 768), rel=0.1)
    np.testing.assert_array_equal(row[:, label:, : width * times], frames.repeat(times, 1).repeat(times, 2))


def test_letters_are_as_large_as_the_names_allow():
    """A row 1,200 pixels wide has letters of 25 pixels, unless a name would be cut off then."""
    frames = film(1, 112, 192)
    tall, low = (side_by_side({f"{n}{name}": frames for n in range(6)}).shape[1] for name in ("", " from sigma 0.9"))
    assert tall - 112 == 25 * 7 // 8 * 2 and 28 <= low - 112 < tall - 112


def test_a_long_name_is_shortened_to_its_film():
    """It ends in an ellipsis inside the panel; two names with one beginning are still two films."""
    one, other = "a name much longer than the film is wide", "a name much longer than the film is high"
    both = side_by_side({one: film(1), other: film(1), "short": film(1)}, height=48)
    assert both.shape[2] == 3 * 64 + 2 * 8
    np.testing.assert_array_equal(both[0, :28, :64], both[0, :28, 72:136])
    assert (both[0, :28, 50:62] < 200).any(), "it is used to the end"
    assert (both[0, :28, 62:72] == 255).all(), "but no further"


def test_side_by_side_refuses_different_lengths():
    """Films that do not run together are not cut in silence."""
    with pytest.raises(UserError, match="'a': 3, 'b': 4"):
        side_by_side({"a": film(3), "b": film(4)})


@pytest.mark.parametrize("fps", [16, 30])
def test_animation_has_every_frame_and_keeps_time(fps):
    """The WebP has all frames, repeats, is no wider than asked, and its whole milliseconds do not drift."""
    webp = Image.open(io.BytesIO(animation(film(31), fps, width=32)))
    assert (webp.format, webp.n_frames, webp.size, webp.info["loop"]) == ("WEBP", 31, (32, 24), 0)
    durations = []
    for index in range(webp.n_frames):
        webp.seek(index)
        webp.load()
        durations.append(webp.info["duration"])
    assert abs(sum(durations) - 31000 / fps) <= 1


def test_show_video_has_two_faces(shown):
    """A player for a live notebook, an animated picture for pages that block players, and the title escaped."""
    show_video(film(), 16, title="<script>alert(1)</script>")
    (bundle,) = shown
    assert "<video" in bundle["text/html"] and "video/mp4;base64," in bundle["text/html"]
    assert "<script>" not in bundle["text/html"] and "&lt;script&gt;" in bundle["text/html"]
    assert re.match("UklG", bundle["image/png"]), "a RIFF file in base64"
    assert bundle["text/plain"].endswith("9 frames of 64x48 at 16 fps")


def test_show_video_is_no_wider_than_asked(shown):
    """A large film is made smaller before it is put into the notebook."""
    show_video(film(3, 96, 128), 16, width=64, page_width=32)
    assert 'width="64" height="48"' in shown[0]["text/html"]
    assert Image.open(io.BytesIO(base64.b64decode(shown[0]["image/png"]))).size == (32, 24)


def test_a_small_video_is_shown_large_and_sharp(shown):
    """Three times in the player, by the browser, and twice in the animation, where each pixel is a square."""
    show_video(film(), 16)
    assert 'width="192" height="144"' in shown[0]["text/html"] and "image-rendering: pixelated" in shown[0]["text/html"]
    first = Image.open(io.BytesIO(base64.b64decode(shown[0]["image/png"])))
    assert first.size == (128, 96)
    pixels = np.asarray(first.convert("RGB")).astype(int)
    assert np.abs(pixels - film()[0].repeat(2, axis=0).repeat(2, axis=1)).mean() < 4


def test_a_wide_video_fits_a_narrow_page(shown):
    """The browser makes it smaller, and smoothly: letters would lose strokes if it left out pixels."""
    show_video(film(2, 48, 1000), 16)
    assert 'width="1000" height="48"' in shown[0]["text/html"] and "max-width: 100%" in shown[0]["text/html"]
    assert "pixelated" not in shown[0]["text/html"]


@pytest.mark.parametrize(("height", "width"), [(47, 64), (48, 63), (47, 63), (1, 1)])
def test_an_odd_size_plays_everywhere(shown, tmp_path, height, width):
    """Firefox and Safari play yuv420p alone, which has even sides: the last row and column are repeated."""
    video = film(3)[:, :height, :width]
    show_video(video, 16)
    mp4 = base64.b64decode(re.search(r"base64,([^\"']+)", shown[0]["text/html"])[1])
    (tmp_path / "a.mp4").write_bytes(mp4)
    stream = next(line for line in probe(tmp_path / "a.mp4").splitlines() if "Video:" in line)
    even = (height + height % 2, width + width % 2)
    assert "yuv420p(" in stream and f"{even[1]}x{even[0]}" in stream
    back = np.asarray(mediapy.read_video(tmp_path / "a.mp4")).astype(int)
    padded = np.pad(video, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)], mode="edge")
    assert back.shape == padded.shape and np.abs(back - padded).mean() < 4


@pytest.mark.parametrize(("height", "width", "works"), [(47, 64, "64x46"), (48, 63, "62x48"), (1, 1, "2x2")])
def test_a_file_of_an_odd_size_is_refused(tmp_path, height, width, works):
    """Its content would not be what was given; before anything is written."""
    with pytest.raises(UserError, match=f"{width}x{height} pixels.*{works} would work"):
        save_video(tmp_path / "a.mp4", film(2)[:, :height, :width], 16)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.gif", "a"])
def test_a_file_that_is_not_called_mp4_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"must end in \.mp4; .*a\.mp4' would work"):
        save_video(tmp_path / name, film(2), 16)
    assert not list(tmp_path.iterdir())


def test_show_image_stores_one_jpeg(shown):
    """One JPEG, not PNG and JPEG both as Jupyter does with PIL's images."""
    show_image(stills(film()))
    assert set(shown[0]) == {"image/jpeg"} or set(shown[0]) == {"image/jpeg", "text/plain"}


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8), [1]]
)
def test_what_is_no_video_is_refused(tmp_path, wrong):
    """Floats, a single picture, no frames, a list: each error says what a video is, and nothing is written."""
    with pytest.raises(UserError, match=r"^video is .*: must"):
        save_video(tmp_path / "a.mp4", wrong, 16)
    assert not list(tmp_path.iterdir())
