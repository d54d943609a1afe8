"""Settings refuse what cannot work, in one line that quotes the value and offers one that does."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from t2v_kit.errors import UserError
from t2v_kit.model.check import notes, resolve
from t2v_kit.settings import MAX_VIDEO_TOKENS, Settings, settings_from


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


def test_guidance_ends_where_the_transformers_dtype_ends(tiny32, monkeypatch):
    """The pipeline multiplies by 1000 in that dtype: 65.5 becomes 65504 at most in float16."""
    transformer = tiny32.pipe.transformer
    Settings("A car.", guidance_scale=100).check(tiny32)
    try:
        transformer.half()
        with pytest.raises(UserError, match=r"guidance_scale=65.6.*float16.*65.5 would work"):
            Settings("A car.", guidance_scale=65.6).check(tiny32)
        Settings("A car.", guidance_scale=65.5).check(tiny32)
    finally:
        transformer.float()
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
