"""Settings refuse what cannot work, in one line that quotes the value and offers one that does."""

import math
import pickle
import re
import warnings
from dataclasses import fields, replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from t2v_kit.errors import UserError, check_text, check_whole
from t2v_kit.model.check import notes, resolve
from t2v_kit.model.loading import load
from t2v_kit.settings import KNOBS, MAX_VIDEO_TOKENS, Settings, settings_from


@pytest.mark.parametrize(
    "wrong, quoted, offered",
    [
        ({"prompt": ""}, "''", "A red car"),
        ({"prompt": "  \n"}, r"'  \n'", "A red car"),
        ({"prompt": 7}, "7", "A red car"),
        ({"prompt": ["a car"]}, "['a car']", "list"),
        ({"prompt": None}, "None", "A red car"),
        ({"prompt": "half \ud800"}, r"\ud800", "half a character"),
        ({"height": 0}, "0", "16 would work"),
        ({"height": -16}, "-16", "16 would work"),
        ({"width": 10**6}, "1000000", "4096 would work"),
        ({"width": "192"}, "'192'", "192 would work"),
        ({"width": 192.0}, "192.0", "192 would work"),
        ({"height": True}, "True", "16 would work"),
        ({"num_frames": 0}, "0", "1 would work"),
        ({"num_frames": 33.5}, "33.5", "whole number"),
        ({"num_inference_steps": 0}, "0", "1 would work"),
        ({"num_inference_steps": 1001}, "1001", "1000 would work"),
        ({"guidance_scale": math.nan}, "nan", "0 would work"),
        ({"guidance_scale": math.inf}, "inf", "100 would work"),
        ({"seed": 10**400}, "1000", f"{2**63 - 1} would work"),
        ({"fps": True}, "True", "1 would work"),
        ({"num_frames": "many"}, "'many'", "1 would work"),
        ({"guidance_scale": -1}, "-1", "0 would work"),
        ({"guidance_scale": "6"}, "'6'", "a number"),
        ({"flow_shift": 0}, "0", "0.1 would work"),
        ({"flow_shift": False}, "False", "a number"),
        ({"fps": 0}, "0", "1 would work"),
        ({"fps": 1000}, "1000", "240 would work"),
        ({"seed": -1}, "-1", "0 would work"),
        ({"seed": 2**63}, str(2**63), f"{2**63 - 1} would work"),
        ({"seed": None}, "None", "0 would work"),
        ({"seed": 1.5}, "1.5", "whole number"),
        ({"padded_prompt": "yes"}, "'yes'", "False is the default"),
        ({"negative_prompt": 3}, "3", "must be text"),
        ({"true_cfg_scale": 3.0}, "3.0", "negative_prompt"),
        ({"true_cfg_scale": 0.5, "negative_prompt": "dark"}, "0.5", "1 would work"),
    ],
)
def test_a_wrong_value_is_quoted_with_one_that_works(wrong, quoted, offered):
    with pytest.raises(UserError) as caught:
        Settings(**({"prompt": "A car."} | wrong))
    message = str(caught.value)
    assert quoted in message and offered in message and next(iter(wrong)) in message
    assert "\n" not in message


def test_numpy_numbers_become_plain_ones():
    made = Settings("A car.", height=np.int64(112), guidance_scale=np.float32(2.5), fps=24)
    assert (type(made.height), type(made.guidance_scale), type(made.fps)) == (int, float, float)


@pytest.mark.parametrize("typed, meant", [("num_frame", "num_frames"), ("sede", "seed"), ("modle", "model")])
def test_an_unknown_keyword_offers_the_near_match(typed, meant):
    with pytest.raises(UserError, match=f"{typed}=.*did you mean '{meant}'"):
        settings_from(prompt="A car.", also=("model",), **{typed: 1})


def test_a_keyword_like_no_other_lists_what_there_is():
    with pytest.raises(UserError, match=r"xyzzy=1.*known are prompt, height"):
        settings_from(prompt="A car.", xyzzy=1)


def test_check_fills_in_the_defaults_of_the_model(tiny32):
    full = Settings("A car.", num_frames=5).check(tiny32)
    assert (full.num_frames, full.height, full.width, full.num_inference_steps, full.fps) == (5, 32, 48, 3, 8)
    assert full.guidance_scale == 6.0 and full.flow_shift == 7.0
    assert full.check(tiny32) == full


@pytest.mark.parametrize(
    "wrong, offered",
    [
        ({"num_frames": 56}, "53 or 57"),
        ({"num_frames": 2}, "1 or 5"),
        ({"height": 100}, "96 or 112"),
        ({"width": 24}, "16 or 32"),
    ],
)
def test_check_offers_the_neighbours_that_fit_the_model(tiny32, wrong, offered):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=f"{name}={value}.*{offered} would work"):
        Settings("A car.", **wrong).check(tiny32)


def test_check_stops_a_size_that_no_machine_holds(tiny32):
    with pytest.raises(UserError, match=r"num_frames=25 would work") as caught:
        Settings("A car.", height=4096, width=4096, num_frames=101).check(tiny32)
    assert str(MAX_VIDEO_TOKENS) in str(caught.value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not a size it was trained on
        Settings("A car.", height=4096, width=4096, num_frames=25).check(tiny32)


def test_guidance_ends_where_the_transformers_dtype_ends(tiny32, tiny_folder):
    """The pipeline multiplies by 1000 in that dtype: 65.5 becomes 65504 at most in float16."""
    Settings("A car.", guidance_scale=100).check(tiny32)
    half = load(tiny_folder, device="cpu", dtype={"transformer": "float16", "default": "float32"})
    with pytest.raises(UserError, match=r"guidance_scale=65.6.*float16.*65.5 would work"):
        Settings("A car.", guidance_scale=65.6).check(half)
    Settings("A car.", guidance_scale=65.5).check(half)
    assert torch.isfinite(torch.tensor([65.5], dtype=torch.float16) * 1000)
    assert torch.isinf(torch.tensor([65.6], dtype=torch.float16) * 1000)


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_a_prompt_over_the_limit_is_named(tiny32, name):
    """The negative one where it acts."""
    long = {"prompt": "A car.", "negative_prompt": "fog", name: "a red car " * 200}
    with pytest.raises(UserError, match=f"^{name}='a red car .*over the limit of 256.* would work"):
        Settings(**long, true_cfg_scale=2).check(tiny32)
    if name == "negative_prompt":
        Settings(**long).check(tiny32)


def test_complete_is_silent_and_leaves_the_telling_to_check(tiny32):
    wide = Settings("A car.", height=64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        full = resolve(wide, tiny32)
    with pytest.warns(UserWarning, match="9x64x48"):
        assert wide.check(tiny32) == full


def test_guidance_on_top_of_guidance_is_told(tiny32):
    both = Settings("A car.", negative_prompt="", true_cfg_scale=3.5, guidance_scale=4)
    assert "true_cfg_scale=3.5 comes on top of guidance_scale=4" in notes(both, tiny32)["true_cfg_scale"]
    assert "guidance_scale=6" in notes(replace(both, guidance_scale=None), tiny32)["true_cfg_scale"]  # the default
    for alone in ({"guidance_scale": 1}, {"true_cfg_scale": 1}):
        assert "true_cfg_scale" not in notes(replace(both, **alone), tiny32)


def test_an_untrained_size_is_told_once(tiny32):
    with pytest.warns(UserWarning, match=r"9x48x48 .* was trained on .9x32x48, 5x32x48."):
        Settings("A car.", height=48).check(tiny32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Settings("A car.", height=48).check(tiny32)
        Settings("A car.", num_frames=5).check(tiny32)


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.fractions(),
    st.text(st.characters(), max_size=20),
    st.binary(max_size=5),
    st.lists(st.integers(), max_size=3),
    st.complex_numbers(),
    st.sampled_from([np.int8(3), np.float32(0.3), np.bool_(True), np.zeros((3, 3)), Fraction(1, 3), object()]),
)
QUICK = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def suggestion(message: str):
    """The value that a message offers, as somebody would type it in."""
    offered = re.search(r"; (\S+|'.*') (?:would work|is the default)\.$", message)[1]
    return {"True": True, "False": False}.get(offered, offered.strip("'") if offered[0] == "'" else eval(offered))


@pytest.mark.parametrize("name", KNOBS)
@QUICK
@given(value=ANYTHING)
@example(value=math.inf)
@example(value=-0.0)
@example(value="\ud800")
def test_any_value_is_taken_or_refused_with_one_that_works(name, value):
    """Nothing else is raised; what is refused is quoted in one line, and what the line offers is taken."""
    given = {"prompt": "A car.", "negative_prompt": "fog"} | {name: value}
    try:
        taken = getattr(Settings(**given), name)
    except UserError as mistake:
        message = str(mistake)
        assert message.startswith(f"{name}=") and "\n" not in message and len(message) < 450
        assert mistake.setting == name
        if len(repr(value)) < 100 and "\n" not in repr(value):
            assert repr(value) in message
        better = suggestion(message)
        Settings(**given | {name: better})
    else:
        assert taken in (value, float(value) if isinstance(value, Fraction) else value) and type(taken) in (
            int,
            float,
            str,
            bool,
            type(None),
        )
        assert str(taken) != "-0.0"


@pytest.mark.parametrize("name", KNOBS)
def test_a_number_that_python_does_not_print_is_refused(name):
    """Of over 4300 digits, for which `repr` raises ValueError."""
    with pytest.raises(UserError, match=f"{name}=<int>: must be"):
        Settings(**{"prompt": "A car.", "negative_prompt": "fog"} | {name: 10**5000})


@QUICK
@given(st.fixed_dictionaries({}, optional={name: ANYTHING for name in KNOBS}))
def test_any_mixture_is_settings_or_one_mistake(given):
    try:
        made = settings_from(**given)
    except UserError as mistake:
        assert mistake.setting in KNOBS and "\n" not in str(mistake)
    else:
        assert pickle.loads(pickle.dumps(made)) == made and hash(made) == hash(replace(made))


@QUICK
@given(height=st.integers(1, 4096), width=st.integers(1, 4096), frames=st.integers(1, 1001))
def test_sizes_are_complete_or_come_with_neighbours_that_work(tiny32, height, width, frames):
    """Following the suggestions leads to settings that the model takes, in at most one step a side."""
    sizes = {"height": max(height, 16), "width": max(width, 16), "num_frames": frames}
    for _ in range(5):  # each side, the frames, the tokens that they make together, and the end
        try:
            full = resolve(Settings("A car.", **sizes), tiny32)
            break
        except UserError as mistake:
            sizes[mistake.setting] = int(re.search(r"(\d+)(?: or \d+)? would work", str(mistake))[1])
    assert full.height % 16 == full.width % 16 == (full.num_frames - 1) % 4 == 0


def test_a_mistake_carries_its_setting(tiny32):
    """Nobody reads the name out of the message, and it survives the way from another process."""
    wrong = {"height": 100, "width": 24, "num_frames": 56, "guidance_scale": -1, "seed": -1, "prompt": ""}
    for name, value in wrong.items():
        with pytest.raises(UserError) as caught:
            Settings(**({"prompt": "A car."} | {name: value})).check(tiny32)
        assert caught.value.setting == name
        assert pickle.loads(pickle.dumps(caught.value)).setting == name
    with pytest.raises(UserError) as caught:
        Settings("A car.", height=4096, width=4096, num_frames=101).check(tiny32)
    assert caught.value.setting == "num_frames" and not str(caught.value).startswith("num_frames")
    assert UserError("else").setting is None


def test_every_setting_is_described_once():
    for field in fields(Settings):
        knob = KNOBS[field.name]
        assert field.metadata["knob"] is knob and knob.label and knob.help.endswith(".")
        if knob.kind in ("whole", "real"):
            assert knob.reason and knob.lowest <= knob.slider[0] < knob.slider[1] + 1 <= knob.highest + 1


@pytest.mark.parametrize("value", [0, 7, -3, 2.5, math.nan, math.inf, "3", None, True])
def test_whole_numbers_offer_one_that_works(value):
    try:
        assert check_whole("count", value, 1, 5, "frames") == value
    except UserError as mistake:
        works = int(re.search(r"(\d+) would work", str(mistake))[1])
        assert check_whole("count", works, 1, 5) == works and mistake.setting == "count"


def test_text_that_cannot_be_written_is_refused():
    assert check_text("words", "", allow_empty=True) == ""
    for wrong in (b"bytes", None, "\ud83d"):
        with pytest.raises(UserError, match=r"^words="):
            check_text("words", wrong, allow_empty=True)


@pytest.mark.parametrize(
    "travel, says",
    [
        ("day", "must be steps and prompts, parted by"),
        ("0-4 day", "must be steps and prompts"),
        ("0-4: day | 4-6: night", "ranges of steps must not overlap"),
        ("5-3: day", "ranges of steps must not overlap"),
        ("0-4:  | 5-: night", "must be steps and prompts"),
    ],
)
def test_prompt_travel_has_a_form(travel, says):
    with pytest.raises(UserError, match=says):
        Settings("A car.", travel=travel)


def test_prompt_travel_lies_within_the_steps(tiny32):
    with pytest.raises(UserError, match="begins a part at step 3 of 3, counted from 0; 2 would work") as caught:
        Settings("A car.", travel="0-1: A car. | 3-: A red car.").check(tiny32)
    assert caught.value.setting == "travel"
    assert Settings("A car.", travel="2: A red car.").check(tiny32).travel == "2: A red car."
