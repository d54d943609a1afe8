"""RIFLEx: one time frequency, found by the trained length, lowered for the whole video, and nothing left behind."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.transformers import transformer_hunyuan_video as theirs
from test_denoise import assert_same_bits

from benchmarks.longer import repetition
from benchmarks.restyling import moving, overlap, red_cars
from t2v_kit import toyland
from t2v_kit.hunyuan.longer import Slowed, slowed, slower_time
from t2v_kit.run.generating import record_of
from t2v_kit.run.record import latents_key, prompt_key
from t2v_kit.stages.denoising import denoise
from t2v_kit.stages.noise import initial_latents
from t2v_kit.stages.prompt import encode_prompt


def config(width: int, theta: float = 256.0):
    return SimpleNamespace(rope_axes_dim=(width, 56, 56), rope_theta=theta, patch_size_t=1)


@pytest.mark.parametrize("name, given, trained, k", [("HunyuanVideo", (16,), 33, 4), ("CogVideoX", (16, 1e4), 13, 2)])
def test_the_frequency_is_the_one_that_the_paper_found(name, given, trained, k):
    change = slowed(config(*given), trained, 2 * trained)
    assert change.index == k - 1
    assert change.now == pytest.approx(0.9 * 2 * math.pi / (2 * trained)) and change.now < change.before


def test_nothing_changes_where_the_video_is_short_enough():
    assert slowed(config(16), 33, 33) is None and slowed(config(16), 33, 20) is None
    assert slowed(config(8), 9, 17) is None  # pocket: 17 latents lie within the period of 25
    assert slowed(config(8), 9, 33) is not None


def test_one_pair_of_channels_changes_and_the_hook_leaves_no_trace(tiny32):
    transformer = tiny32.pipe.transformer
    before = transformer.rope(torch.zeros(1, 4, 7, 4, 6))
    with slower_time(transformer, Slowed(0, 1.0, 0.5)):
        during = transformer.rope(torch.zeros(1, 4, 7, 4, 6))
    for old, new, of in zip(before, during, (torch.cos, torch.sin)):
        assert torch.equal(old[:, 2:], new[:, 2:])
        angles = torch.arange(7).repeat_interleave(6) * 0.5
        assert torch.equal(new[:, :2], of(angles)[:, None].expand(-1, 2))
    assert "forward" not in vars(transformer.rope) and not hasattr(transformer.rope, "_diffusers_hook")


def test_the_bits_are_those_of_the_papers_code(tiny32, settings, monkeypatch):
    long = replace(settings, num_frames=25, riflex=True)
    prompt, noise = encode_prompt(tiny32, long.prompt), initial_latents(tiny32, long)
    ours = list(denoise(tiny32, prompt, noise, long))
    plain = [step.latents for step in denoise(tiny32, prompt, noise, replace(long, riflex=False))]
    original = theirs.get_1d_rotary_pos_embed

    def riflex(dim, pos, theta, use_real):
        """get_1d_rotary_pos_embed_riflex of thu-ml/RIFLEx, with k=1 and L_test=7 for the axis of time."""
        if dim != 4:
            return original(dim, pos, theta, use_real=use_real)
        freqs = 1.0 / (theta ** (torch.arange(0, dim, 2)[: (dim // 2)].float() / dim))
        freqs[0] = 0.9 * 2 * torch.pi / 7
        freqs = torch.outer(pos, freqs)
        return freqs.cos().repeat_interleave(2, dim=1).float(), freqs.sin().repeat_interleave(2, dim=1).float()

    monkeypatch.setattr(theirs, "get_1d_rotary_pos_embed", riflex)
    reference = [step.latents for step in denoise(tiny32, prompt, noise, replace(long, riflex=False))]
    assert_same_bits(ours, reference)
    assert not torch.equal(ours[-1].latents, plain[-1])


def test_it_decides_latents_and_older_records_still_count(tiny32, settings):
    off, on = (record_of(tiny32, replace(settings, riflex=r).check(tiny32), "none") for r in (False, True))
    assert latents_key(off) != latents_key(on) and prompt_key(off) == prompt_key(on)
    older = off | {"settings": {name: value for name, value in off["settings"].items() if name != "riflex"}}
    assert latents_key(older) == latents_key(off)


@pytest.mark.parametrize("frames, says", [(9, "was trained on up to 9 frames, and these are 9"), (25, "")])
def test_a_note_says_where_it_has_no_effect(tiny32, settings, frames, says, recwarn):
    replace(settings, num_frames=frames, riflex=True).check(tiny32)
    notes = [str(note.message) for note in recwarn if "riflex" in str(note.message)]
    assert len(notes) == bool(says) and all(says in note for note in notes)


def test_repetition_is_found_where_a_video_runs_twice():
    scene = toyland.random_scene(3, pair=0)
    clip, long = (toyland.render_batch([scene], 56, 96, frames)[0] for frames in (33, 66))
    assert repetition(torch.cat([clip, clip], 1)) > 0.99 > 0.5 > repetition(long)
    assert math.isnan(repetition(clip[:, :20]))


def test_what_moves_overlaps_itself_and_not_what_moves_elsewhere():
    red = [toyland.render_batch([scene], 56, 96, 17)[0] for scene in red_cars(2)]
    one, other = map(moving, red)
    assert overlap(one, one) == 1 and 0.02 < one.float().mean() < 0.4 and overlap(one, other) < 0.6
