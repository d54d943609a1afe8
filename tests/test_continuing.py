"""What the LoRA for given parts is trained on, and what its measures measure."""

import random

import numpy as np
import pytest
import torch
from diffusers import HunyuanVideoPipeline
from peft import LoraConfig, get_peft_model_state_dict

from t2v_kit.model.loading import load
from t2v_kit.stages.known import Known
from training import continuing, pocket


@pytest.mark.parametrize("kind", sorted({*continuing.KINDS}))
def test_what_is_given_is_a_part_and_of_its_kind(kind):
    for seed in range(20):
        given = continuing.draw_given(kind, (9, 14, 24), random.Random(seed))
        frames = given.flatten(3).all(-1)[0, 0].tolist()
        if kind == "plain":
            assert not given.any()
        elif kind == "box":
            assert given.any() and not given.all() and not any(frames) and (given[:, :, :1] == given).all()
        else:
            first = frames.index(False)
            assert first <= 4 and (first > 0) == (kind != "end") and frames[-1] == (kind != "beginning")
            assert not any(frames[first:-1])


def test_the_loss_is_of_what_is_made_and_the_given_part_is_clean(monkeypatch):
    """An answer that is right where nothing is given has no loss, whatever it says elsewhere."""
    clean, seen = torch.randn(2, 16, 3, 4, 6), {}
    given = continuing.draw_given("beginning", (3, 4, 6), random.Random(0)).expand(1, 1, 3, 4, 6)

    def answer(model, noisy, sigma, **said):
        seen.update(noisy=noisy, sigma=sigma.view(-1, 1, 1, 1, 1))
        right = (noisy - clean) / seen["sigma"]  # noise - clean, where noise was mixed in
        return torch.where(given, torch.full_like(noisy, model), right)

    monkeypatch.setattr(continuing, "velocity", answer)
    assert continuing.loss_of(100.0, clean, given, {}, 3.0) < 1e-6
    kept = given.expand_as(clean)
    assert torch.equal(seen["noisy"][kept], clean[kept]) and not torch.equal(seen["noisy"][~kept], clean[~kept])


@pytest.mark.parametrize("pixels", [-2, 1, 3])
def test_speed_is_that_of_what_moves(pixels):
    clip = np.full((9, 40, 120, 3), 60, np.uint8)
    for index, frame in enumerate(clip):
        left = 50 + pixels * index
        frame[10:20, left : left + 3] = 220
    assert continuing.speed(clip) == pytest.approx(pixels, abs=0.3)
    assert np.isnan(continuing.speed(clip[:1].repeat(5, 0)))


def test_known_parts_can_stay_without_noise():
    latents, noise = torch.randn(1, 4, 3, 4, 6), torch.randn(1, 4, 3, 4, 6)
    mask = torch.zeros(1, 1, 3, 4, 6, dtype=torch.bool)
    mask[:, :, 0] = True
    put = Known(latents, mask, clean=True).put(noise, noise, 0.8)
    assert torch.equal(put[:, :, 0], latents[:, :, 0]) and torch.equal(put[:, :, 1:], noise[:, :, 1:])
    assert not torch.equal(Known(latents, mask).put(noise, noise, 0.8)[:, :, 0], latents[:, :, 0])


def test_what_is_trained_is_saved_as_load_takes_it(tiny_folder, tmp_path):
    """The layers that are named exist in both kinds of block, take a gradient, and come back by `load`."""
    models = load(tiny_folder, device="cpu")
    model = models.pipe.transformer
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=continuing.LAYERS))
    said = {"embeds": torch.randn(1, 6, 32), "lengths": torch.tensor([6]), "pooled": torch.randn(1, 24)}
    given = continuing.draw_given("end", (3, 4, 6), random.Random(0))
    continuing.loss_of(model, torch.randn(1, 4, 3, 4, 6), given, said, 3.0).backward()
    trained = {name for name, value in model.named_parameters() if value.grad is not None}
    assert all("lora_" in name for name in trained)
    assert {name.split(".")[0] for name in trained} >= {"transformer_blocks", "single_transformer_blocks"}
    layers = get_peft_model_state_dict(model)
    HunyuanVideoPipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers, weight_name=continuing.FILE)
    again = load(tiny_folder, device="cpu", loras=[(tmp_path / continuing.FILE, 1.0)])
    assert len(again.loras) == 1


def test_sizes_of_the_recipe_fit_the_limit():
    """At rank 8 in float16 on pocket's shapes the file stays under 3 MB."""
    model = pocket.transformer()
    model.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=continuing.LAYERS))
    size = sum(value.numel() * 2 for value in get_peft_model_state_dict(model).values())
    assert size < 3_000_000
