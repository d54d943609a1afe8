"""Given parts with what else acts on a model: streamed and quantised weights, several devices."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_given import noise_clip

from t2v_kit.errors import UserError
from t2v_kit.memory.plan import Part, Plan
from t2v_kit.model import quantise
from t2v_kit.model.residence import Residence
from t2v_kit.run.team import Work, lead
from t2v_kit.stages.denoising import denoise
from t2v_kit.stages.known import known_parts
from t2v_kit.stages.noise import initial_latents
from t2v_kit.stages.prompt import encode_prompt


def continued(models, settings):
    """The steps of a run whose first five frames are given, from a video at strength 1 - 1/3."""
    settings = replace(settings, strength=2 / 3)
    known = known_parts(models, settings, first=noise_clip(5))
    latents = initial_latents(models, settings, noise_clip())
    return known, list(denoise(models, encode_prompt(models, settings.prompt), latents, settings, 1, known=known))


@pytest.mark.parametrize("one_stage", [False, True])
def test_streamed_weights_give_the_same_bits(tiny32, settings, one_stage):
    part = Part("float32", "none", "group")
    streamed = Plan("streamed", part, part, Part("float32", "none", "model"), one_stage=one_stage)
    residence = Residence(tiny32.files, streamed, tiny32.device, lambda _: type(tiny32.loras)())
    pipe = type(tiny32.pipe)(**tiny32.pipe.components | residence.parts)
    residence.start()
    ours = replace(tiny32, pipe=pipe, residence=residence, memory=streamed)
    plain, steps = continued(tiny32, settings)[1], continued(ours, settings)[1]
    assert len(steps) == 2 and all(torch.equal(a.latents, b.latents) for a, b in zip(plain, steps))


@pytest.mark.parametrize("how", ["int8", "nf4"])
def test_quantised_weights_keep_what_is_given(tiny32, settings, how):
    known, steps = continued(quantise.quantised(tiny32, how), settings)
    assert torch.equal(steps[-1].latents[:, :, :2], known.latents[:, :, :2])
    assert not torch.equal(steps[-1].latents[:, :, 2:], continued(tiny32, settings)[1][-1].latents[:, :, 2:])


@pytest.mark.parametrize(
    "given, says", [("known", "known frames and masks are for one device"), ("riflex", "riflex is")]
)
def test_several_devices_refuse_what_they_do_not_share(tiny32, settings, given, says):
    models = SimpleNamespace(team=SimpleNamespace(size=2))
    full = replace(settings.check(tiny32), riflex=given == "riflex")
    prompt = encode_prompt(tiny32, settings.prompt)
    with pytest.raises(UserError, match=rf"gpus=2: {says}.*gpus=1 would work"):
        lead(models, Work(full, prompt, None, torch.zeros(1), 0), "parts" if given == "known" else None)


def test_a_source_video_is_shared_out(tiny32, settings):
    """What the others are told has the mixture of video and noise, and the step at which it begins."""
    told = []
    models = SimpleNamespace(team=SimpleNamespace(size=2, agreed=told.append))
    latents = initial_latents(tiny32, settings, noise_clip(), 1 / 3)
    lead(models, Work(settings.check(tiny32), encode_prompt(tiny32, settings.prompt), None, latents, 2), None)
    assert told[0].start == 2 and torch.equal(told[0].latents, latents)
