"""Knobs: what is drawn follows them, headless as well, and what is stored shows a page what they do."""

import io

import ipywidgets
import numpy as np
import pytest
from PIL import Image

from t2v_kit import UserError, explore, step_through, wipe


def grey(level: int, height: int = 20, width: int = 32) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def film(frames: int = 4, height: int = 20, width: int = 32) -> np.ndarray:
    return np.stack([grey(40 * index, height, width) for index in range(frames)])


@pytest.fixture
def shown(monkeypatch):
    """What was displayed: the box of widgets and, below it, the strip as a mime bundle."""
    things = []
    monkeypatch.setattr("IPython.display.display", lambda thing, raw=False: things.append(thing))
    return things


def parts(box) -> tuple[list, ipywidgets.HTML, ipywidgets.Image]:
    """(knobs, message, picture)"""
    *knobs, message, picture = box.children
    return knobs, message, picture


def pixels(picture: ipywidgets.Image) -> np.ndarray:
    """The middle pixel of each frame that the widget holds now: (T, 3)."""
    image = Image.open(io.BytesIO(picture.value))
    assert image.format.lower() == picture.format
    frames = []
    for index in range(getattr(image, "n_frames", 1)):
        image.seek(index)
        frames.append(np.asarray(image.convert("RGB"))[image.height // 2, image.width // 2])
    return np.array(frames, int)


def strip(shown) -> Image.Image:
    data = shown[1]["image/png"] if isinstance(shown[1], dict) else shown[1].data
    if isinstance(data, str):
        import base64

        data = base64.b64decode(data)
    return Image.open(io.BytesIO(data))


def test_each_kind_of_knob_hands_on_its_values(shown):
    """Sliders whole and broken, lists, named choices and boxes: start, turned value, and the widget's kind."""
    calls = []

    def draw(**values):
        calls.append(values)
        return grey(0)

    things = [object(), object()]  # need not be comparable or printable
    explore(draw, strip=0, steps=(2, 10, 2), sigma=(0.0, 1.0, 0.05), seed=[7, 8], what=dict(zip("ab", things)), on=True)
    knobs, _, _ = parts(shown[0])
    kinds = ["IntSlider", "FloatSlider", "Dropdown", "Dropdown", "Checkbox"]
    assert [type(knob).__name__ for knob in knobs] == kinds
    assert not any(knob.continuous_update for knob in knobs[:2])
    assert calls == [dict(steps=6, sigma=0.5, seed=7, what=things[0], on=True)]
    knobs[0].value, knobs[1].value, knobs[4].value = 4, 0.15000000000000002, False
    knobs[2].label, knobs[3].label = "8", "b"
    assert calls[-1] == dict(steps=4, sigma=0.15, seed=8, what=things[1], on=False)
    assert isinstance(calls[-1]["steps"], int) and isinstance(calls[-1]["sigma"], float)


def test_the_picture_follows_and_is_drawn_once(shown):
    """Turning there and back draws each value once, and the bytes are that value's picture."""
    calls = []
    explore(lambda level: calls.append(level) or grey(level), strip=3, level=(0, 200, 50))
    (knob,), message, picture = parts(shown[0])
    assert pixels(picture).tolist() == [[100] * 3]
    for level in (50, 200, 50, 100):
        knob.value = level
        assert pixels(picture).tolist() == [[level] * 3]
        assert message.value == ""
    assert sorted(calls) == [0, 50, 100, 200], "the strip's three, and one more"


def test_an_error_is_one_line_and_the_knobs_live_on(shown):
    """What `draw` raises stands below the sliders, escaped; the picture stays, and the next value works again."""

    def draw(level):
        if level == 50:
            raise UserError("level=50 is <b>too\nmuch</b>")
        return grey(level)

    explore(draw, strip=3, level=(0, 200, 50))
    (knob,), message, picture = parts(shown[0])
    knob.value = 50
    assert message.value == "UserError: level=50 is &lt;b&gt;too much&lt;/b&gt;"
    assert pixels(picture).tolist() == [[100] * 3]
    knob.value = 150
    assert message.value == "" and pixels(picture).tolist() == [[150] * 3]


def test_an_error_at_the_start_is_raised(shown):
    """A cell whose drawing is broken fails, instead of showing an empty box."""
    with pytest.raises(ZeroDivisionError):
        explore(lambda level: 1 // 0, strip=0, level=[1])
    assert shown == []


def test_videos_are_animated(shown):
    """A video comes as WebP with all its frames, live and in the strip, where a shorter one stops at its end."""
    explore(lambda frames: film(frames), strip=2, fps=8, frames=[2, 6])
    (knob,), _, picture = parts(shown[0])
    knob.label = "6"
    assert picture.format == "webp" and len(pixels(picture)) == 6
    assert np.abs(pixels(picture)[:, 0] - 40 * np.arange(6)).max() < 6
    assert strip(shown).n_frames == 6


def test_the_strip_shows_the_first_knobs_values(shown):
    """Evenly spread from the least to the largest, each under its label; the others stand where they start."""
    explore(lambda level, more: grey(level + more), level=(0, 200, 10), more=[20, 5])
    picture = strip(shown)
    width = picture.width // 5
    middles = [picture.getpixel((width // 2 + width * k, picture.height - 10))[0] for k in range(5)]
    assert np.abs(np.array(middles) - (np.arange(5) * 50 + 20)).max() <= 3
    assert np.asarray(picture)[:28].min() < 100, "the labels are written above"


def test_wide_pictures_stand_below_each_other(shown):
    explore(lambda level: grey(level, 20, 400), strip=3, level=[0, 90, 180])
    picture = strip(shown)
    assert picture.width < 1200 and picture.height >= 3 * (20 + 28)


@pytest.mark.parametrize(
    ("size", "expected"), [((20, 32), (384, 240)), ((1, 1), (384, 384)), ((400, 1536), (768, 200))]
)
def test_the_live_picture_has_a_size_to_look_at(shown, size, expected):
    """Small pictures are enlarged by whole numbers, large ones made to fit."""
    explore(lambda level: grey(level, *size), strip=0, level=[0])
    assert Image.open(io.BytesIO(parts(shown[0])[2].value)).size == expected


def test_wipe_shows_a_left_of_the_line_and_b_right(shown):
    """At 50 % half of each, at the ends all of one; a smaller one is enlarged by repeating its pixels."""
    wipe(grey(200), grey(60, 10, 16), ("light", "dark"))
    (knob,), _, picture = parts(shown[0])

    def row():
        return np.asarray(Image.open(io.BytesIO(picture.value)).convert("RGB"))[100, :, 0]

    assert row()[20] == 200 and row()[-20] == 60
    knob.value = 100
    assert row()[20] == row()[-40] == 200
    knob.value = 0
    assert row()[40] == row()[-20] == 60
    assert strip(shown).width > 3 * 32


def test_wipe_of_videos_runs_both_in_step(shown):
    wipe(film(), film()[::-1].copy())
    picture = np.array(pixels(parts(shown[0])[2]))
    assert len(picture) == 4
    with pytest.raises(UserError, match="'before' has 4 frames and 'after' has 1"):
        wipe(film(), grey(0))


def test_step_through_stops_at_every_frame(shown):
    """The slider's frame is shown of each video; a single frame needs no slider."""
    step_through({"a": film(), "b": film(4, 40, 64)})
    (knob,), _, picture = parts(shown[0])
    for frame in (0, 3):
        knob.value = frame
        row = np.asarray(Image.open(io.BytesIO(picture.value)).convert("RGB"))[-10]
        assert abs(int(row[10, 0]) - 40 * frame) <= 2 and abs(int(row[-10, 0]) - 40 * frame) <= 2
    shown.clear()
    step_through({"a": film(1)})
    assert len(shown) == 1


@pytest.mark.parametrize(
    "wrong", [(1, 2), (2, 1, 1), (0, 1, 0), (0, 1, "a"), [], {}, 0.5, "abc", None, (True, 5, 1)], ids=repr
)
def test_what_is_no_knob_is_named(shown, wrong):
    """One line with the knob's name, its value, and what would work; nothing is shown."""
    with pytest.raises(UserError, match=r"^sigma=.*(would work|as in)") as caught:
        explore(lambda sigma: grey(0), sigma=wrong)
    assert "\n" not in str(caught.value) and shown == []


def test_no_knob_and_no_picture_are_refused(shown):
    with pytest.raises(UserError, match="at least one knob"):
        explore(lambda: grey(0))
    for wrong, got in ((grey(0) / 255, r"\(20, 32, 3\) float64"), (None, "NoneType"), (grey(0)[..., 0], r"\(20, 32\)")):
        with pytest.raises(UserError, match=f"draw must give a picture .*{got}"):
            explore(lambda a, wrong=wrong: wrong, a=[1])
