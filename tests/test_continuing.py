"""What the LoRA for given parts is trained on, and what its measures measure."""

import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict

from benchmarks import figures
from t2v_kit import toyland
from t2v_kit.errors import UserError
from t2v_kit.hunyuan.lora_arguments import lora_from_text
from t2v_kit.hunyuan.names import shipped_lora
from t2v_kit.model.loading import load
from t2v_kit.settings import Settings
from t2v_kit.stages.denoising import denoise
from t2v_kit.stages.known import Known, known_parts
from t2v_kit.stages.noise import initial_latents
from t2v_kit.stages.prompt import encode_prompt
from training import continuing
from training import pocket as recipe


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
    again = load(tiny_folder, device="cpu", loras=[(continuing.save(model, tmp_path), 1.0)])
    assert len(again.loras) == 1 and again.loras.known_clean
    again.loras.set(0.0)
    assert not again.loras.known_clean  # it does not act: the weights are those of text to video


def test_sizes_of_the_recipe_fit_the_limit():
    """At rank 8 in float16 on pocket's shapes the file stays under 3 MB."""
    model = recipe.transformer()
    model.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=continuing.LAYERS))
    size = sum(value.numel() * 2 for value in get_peft_model_state_dict(model).values())
    assert size < 3_000_000


class TestShipped:
    """pocket's LoRA 'continue': found by its name, for clean known parts, and better than without it."""

    @pytest.fixture(scope="class")
    def taught(self):
        return load("pocket", device="cpu", loras=["continue"])

    def test_its_name_finds_it_and_known_parts_go_in_clean(self, taught, pocket):
        (lora,) = taught.loras
        assert lora.source == "continue" and not lora.unmatched and taught.loras.arguments == [["continue", 1.0]]
        few = Settings("A red car drives to the left on the beach.", num_frames=9, num_inference_steps=2)
        clip = toyland.render(toyland.random_scene(1, pair=0), num_frames=5)
        known = known_parts(taught, few, first=clip)
        assert known.clean and not known_parts(pocket, few, first=clip).clean
        noise = initial_latents(taught, few)
        first, _ = denoise(taught, encode_prompt(taught, few.prompt), noise, few, known=known)
        assert torch.equal(first.latents[:, :, :2], known.latents[:, :, :2])  # after the first of two steps already

    @pytest.mark.parametrize("name", ["continue:0.5", "continue"])
    def test_the_command_line_takes_it(self, name):
        assert lora_from_text(name) == ("continue", 0.5 if ":" in name else 1.0)

    def test_a_slip_is_told(self):
        with pytest.raises(UserError, match="lora 'contniue': there is no such file; did you mean 'continue'"):
            lora_from_text("contniue")

    def test_its_figures_are_of_these_weights_and_reach_the_aims(self, pocket):
        report = figures.read("continuing")
        assert report["weights"] == pocket.weights_hash
        without, taught = report["without"], report["with"]
        assert taught["given_psnr"] >= max(33, without["given_psnr"]) and taught["kept"]["all"] >= 0.95
        assert taught["speed_error"] <= 0.15 and taught["speed_error"] < without["speed_error"]
        assert shipped_lora("continue").stat().st_size < 3_000_000
