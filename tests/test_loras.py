"""LoRAs: every format gives the same video, strengths act as they say, and nothing is left out silently."""

import re
from pathlib import Path

import lora_files
import numpy as np
import pytest
import torch
from diffusers import HunyuanVideoPipeline
from diffusers.loaders.single_file_utils import convert_hunyuan_video_transformer_to_diffusers
from safetensors.torch import load_file, save_file

from t2v_kit import (
    Stopped,
    UserError,
    compare,
    denoise,
    encode_prompt,
    generate,
    initial_latents,
    load,
    resume,
    sweep,
    velocity,
)
from t2v_kit.cli import main
from t2v_kit.hunyuan.files import POCKET
from t2v_kit.hunyuan.lora_arguments import lora_from_text
from t2v_kit.hunyuan.lora_files import find_lora
from t2v_kit.hunyuan.lora_keys import fit
from t2v_kit.memory.plan import Part, Plan
from t2v_kit.model import loading
from t2v_kit.run.folder import read_record
from t2v_kit.run.record import made_with, unknown_code
from t2v_kit.settings import Settings
from t2v_kit.video.files import save_video, video_reader

SMALL = {"height": 32, "width": 32, "num_frames": 1, "num_inference_steps": 2}
SETTINGS = Settings("A red car drives to the left on the beach.", seed=3, **SMALL)
RUN = {"prompt": SETTINGS.prompt, **SMALL, "upscale": "none", "progress": False}
WHOLE = Part("float32", "none", "none")
FORMATS = (
    *("tencent under transformer", "tencent under diffusion_model", "tencent alone", "comfyui", "musubi"),
    *("kohya with comfyui's names", "kohya with diffusers' names", "numbered parts", "peft's own prefix"),
    "diffusers alone",
)

pytestmark = pytest.mark.filterwarnings("ignore:.*is not a size pocket was trained on")


@pytest.fixture(scope="module")
def files(pocket, tmp_path_factory) -> dict[str, Path]:
    return lora_files.write_all(pocket.pipe.transformer, tmp_path_factory.mktemp("loras"))


@pytest.fixture(scope="module")
def prompt(pocket):
    return encode_prompt(pocket, SETTINGS.prompt)


@pytest.fixture(scope="module")
def by_diffusers(files, pocket, prompt) -> torch.Tensor:
    """What plain diffusers makes of its own format, its loader and nothing of this package's."""
    models = load("pocket", device="cpu")
    models.pipe.load_lora_weights(str(files["diffusers"]))
    for weight in models.pipe.transformer.parameters():  # out of the mapped file: a CPU rounds by where numbers lie
        weight.data = weight.data.clone()
    return latents(models, prompt)


@pytest.fixture(scope="module")
def styled(files):
    return load("pocket", device="cpu", loras=[files["musubi"]])


def latents(models, prompt, settings=SETTINGS) -> torch.Tensor:
    *_, last = denoise(models, prompt, initial_latents(models, settings), settings)
    return last.latents


def shapes(transformer) -> dict[str, tuple[int, ...]]:
    names = (name.removesuffix(".weight") for name in transformer.state_dict() if name.endswith(".weight"))
    return {name: tuple(transformer.get_submodule(name).weight.shape) for name in names}


@pytest.mark.parametrize("name", ("diffusers", *FORMATS))
def test_every_format_gives_the_bits_of_diffusers_own(name, files, prompt, pocket, by_diffusers):
    models = load("pocket", device="cpu", loras=[files[name]])
    layers = sum(len(names) for *_, names in lora_files.LAYERS)
    assert len(models.loras[0].layers) == layers and not models.loras[0].unmatched
    assert torch.equal(latents(models, prompt), by_diffusers)
    assert not torch.equal(by_diffusers, latents(pocket, prompt))


def test_every_layer_has_tencents_name(pocket):
    """Against diffusers' converter of whole checkpoints, which knows every layer. It has the width of the 13B written
    in where it cuts linear1, so that one is left to the test above."""
    transformer = pocket.pipe.transformer
    draw = torch.Generator().manual_seed(1)
    known = shapes(transformer)
    delta = {}
    for name, shape in tencent_layers(known).items():
        delta[f"{name}.weight"] = torch.randn(shape, generator=draw)
    expected = convert_hunyuan_video_transformer_to_diffusers(dict(delta))
    tensors = {}
    for key, whole in delta.items():  # of full rank, `down` is the matrix itself or the identity
        name = key.removesuffix(".weight")
        columns = whole.shape[1]
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = torch.eye(columns), whole
    fitted = fit(tensors, known, "test")
    assert not fitted.unmatched
    assert {f"{name}.weight" for name in fitted.layers} == expected.keys()
    for name, layer in fitted.layers.items():
        assert torch.equal(layer.alpha / layer.rank * layer.up @ layer.down, expected[f"{name}.weight"]), name


def tencent_layers(known: dict) -> dict[str, tuple[int, int]]:
    """All linear layers of Tencent's network but linear1, as hyvideo/modules/models.py names them."""
    wide = known["proj_out"][1]
    mlp, patch = 4 * wide, known["proj_out"][0]
    text, pooled = known["context_embedder.proj_in"][1], known["time_text_embed.text_embedder.linear_1"][1]
    found = {"time_in.mlp.0": (wide, 256), "time_in.mlp.2": (wide, wide)}
    found |= {"guidance_in.mlp.0": (wide, 256), "guidance_in.mlp.2": (wide, wide)}
    found |= {"vector_in.in_layer": (wide, pooled), "vector_in.out_layer": (wide, wide)}
    found |= {"txt_in.input_embedder": (wide, text), "final_layer.linear": (patch, wide)}
    found |= {"txt_in.t_embedder.mlp.0": (wide, 256), "txt_in.t_embedder.mlp.2": (wide, wide)}
    found |= {"txt_in.c_embedder.linear_1": (wide, text), "txt_in.c_embedder.linear_2": (wide, wide)}
    found |= {"final_layer.adaLN_modulation.1": (2 * wide, wide)}
    for block in range(2):
        at = f"txt_in.individual_token_refiner.blocks.{block}"
        found |= {f"{at}.self_attn_qkv": (3 * wide, wide), f"{at}.self_attn_proj": (wide, wide)}
        found |= {f"{at}.mlp.fc1": (mlp, wide), f"{at}.mlp.fc2": (wide, mlp)}
        found |= {f"{at}.adaLN_modulation.1": (2 * wide, wide)}
    for block in range(4):
        for stream in ("img", "txt"):
            at = f"double_blocks.{block}.{stream}"
            found |= {f"{at}_mod.linear": (6 * wide, wide), f"{at}_attn_qkv": (3 * wide, wide)}
            found |= {f"{at}_attn_proj": (wide, wide), f"{at}_mlp.fc1": (mlp, wide), f"{at}_mlp.fc2": (wide, mlp)}
    for block in range(7):
        at = f"single_blocks.{block}"
        found |= {f"{at}.linear2": (wide, wide + mlp), f"{at}.modulation.linear": (3 * wide, wide)}
    return found


def test_switched_off_it_is_the_model_without(styled, pocket, prompt, by_diffusers):
    without = latents(pocket, prompt)
    for strength in (0, [0, 0]):
        styled.loras.set(strength)
        assert torch.equal(latents(styled, prompt), without)
    styled.loras.set([1, 1])
    assert torch.equal(latents(styled, prompt), by_diffusers)
    styled.loras.set(1)
    assert torch.equal(latents(styled, prompt), by_diffusers)


def test_a_strength_for_each_step(styled, pocket, prompt):
    """Step by step the latents are those of a model with that step's strength."""
    noise = initial_latents(styled, SETTINGS)
    styled.loras.set([1, 0])
    first, second = denoise(styled, prompt, noise, SETTINGS)
    (plain,) = denoise(pocket, prompt, first.latents, SETTINGS, start=1)
    assert torch.equal(second.latents, plain.latents)
    with pytest.raises(UserError, match="no step"):
        velocity(styled, prompt, noise, 0.5)
    styled.loras.set([1, 0, 1])
    with pytest.raises(UserError, match="has 3 strengths, but there are 2 steps"):
        SETTINGS.check(styled)
    styled.loras.set(1)
    with_lora, _ = denoise(styled, prompt, noise, SETTINGS)
    assert torch.equal(first.latents, with_lora.latents)


def test_several_add_up(files, pocket, prompt, by_diffusers, tmp_path):
    """Half of one and half of the other is the whole, up to the order of sums; each is named after its file."""
    models = load("pocket", device="cpu", loras=[(files["musubi"], 0.5), (files["comfyui"], 0.5)])
    assert [lora.name for lora in models.loras] == ["musubi", "comfyui"]
    assert (latents(models, prompt) - by_diffusers).abs().max() < 1e-4
    models.loras.set(1, 0)
    assert torch.equal(latents(models, prompt), by_diffusers)


def test_the_table_and_what_is_unmatched(files, tmp_path, pocket):
    tensors = load_file(files["musubi"])
    tensors["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"] = torch.ones(4, 4)
    tensors["lora_unet_single_blocks_39_linear2.alpha"] = torch.tensor(4.0)
    save_file(tensors, tmp_path / "mixed.safetensors")
    with pytest.warns(UserWarning, match=r"2 of its keys .*: lora_te1_text_model.*, lora_unet_single_blocks_39"):
        models = load("pocket", device="cpu", loras=[(tmp_path / "mixed.safetensors", 0.8)])
    header, row = repr(models.loras).splitlines()
    assert header.split() == ["LoRA", "strength", "layers", "unmatched", "keys", "rank", "alpha", "file"]
    assert row.split()[:6] == ["mixed", "0.8", str(len(models.loras[0].layers)), "2", "4", "2"]
    assert models.arguments == {"name": "pocket", "loras": [[str(tmp_path / "mixed.safetensors"), 0.8]]}


def refused(tensors: dict, pocket, **more) -> str:
    with pytest.raises(UserError) as caught:
        fit(tensors, shapes(pocket.pipe.transformer), "x.safetensors", **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_kinds_are_refused_by_name(pocket):
    at = "transformer.transformer_blocks.0.attn.to_q"
    plain = {f"{at}.lora_A.weight": torch.ones(4, 192), f"{at}.lora_B.weight": torch.ones(192, 4)}
    for key, kind in {
        f"{at}.dora_scale": "DoRA",
        f"{at}.lora_magnitude_vector": "DoRA",
        f"{at}.hada_w1_a": "LoHa",
        f"{at}.lokr_w1": "LoKr",
        f"{at}.lora_mid.weight": "Tucker",
    }.items():
        assert kind in refused({**plain, key: torch.ones(4)}, pocket)
    config = {"lora_alpha": 4, "use_dora": True}
    assert "DoRA" in refused(plain, pocket, config=config)


def test_what_fits_nothing_is_an_error(pocket):
    wan = {"diffusion_model.blocks.0.cross_attn.k.lora_A.weight": torch.ones(4, 192)}
    assert "no key in it is about a layer of this model" in refused(wan, pocket).replace("transformer", "model")
    of_13b = {
        "double_blocks.0.img_attn_qkv.lora_A.weight": torch.ones(4, 3072),
        "double_blocks.0.img_attn_qkv.lora_B.weight": torch.ones(9216, 4),
    }
    assert "576x192 here, and 9216x3072 in the file, which is made for the 13B" in refused(of_13b, pocket)
    of_another = {
        "proj_out.lora_A.weight": torch.ones(4, 100),
        "proj_out.lora_B.weight": torch.ones(64, 4),
    }
    assert "64x192 here, and 64x100 in the file; a LoRA that was trained on this model" in refused(of_another, pocket)


def test_alpha_of_peft(pocket):
    """From the metadata, with patterns; rsLoRA divides by the root of the rank; 0 stands for the rank."""
    names = ["transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_q"]
    tensors = {f"{name}.lora_A.weight": torch.ones(4, 192) for name in names}
    tensors |= {f"{name}.lora_B.weight": torch.ones(192, 4) for name in names}
    known = shapes(pocket.pipe.transformer)
    config = {"lora_alpha": 8, "alpha_pattern": {"transformer_blocks.1.attn.to_q": 2}}
    assert [layer.alpha for layer in fit(tensors, known, "x", config=config).layers.values()] == [8, 2]
    config["use_rslora"] = True
    assert [layer.alpha for layer in fit(tensors, known, "x", config=config).layers.values()] == [16, 4]
    tensors[f"{names[0]}.alpha"] = torch.tensor(0)
    assert [layer.alpha for layer in fit(tensors, known, "x").layers.values()] == [4, 4]


def test_biases_reach_the_model(pocket, prompt, tmp_path):
    at = "transformer_blocks.0.attn.to_q"
    tensors = {f"{at}.lora_A.weight": torch.zeros(4, 192), f"{at}.lora_B.weight": torch.zeros(192, 4)}
    tensors |= {
        f"{at[:-1]}k{end}": tensor.clone() for end, tensor in {k[len(at) :]: t for k, t in tensors.items()}.items()
    }
    tensors[f"{at}.lora_B.bias"] = torch.full((192,), 0.5)
    save_file(tensors, tmp_path / "bias.safetensors")
    models = load("pocket", device="cpu", loras=tmp_path / "bias.safetensors")
    layer = models.pipe.transformer.get_submodule(at)
    ones = torch.ones(1, 192)
    with torch.no_grad():
        assert torch.allclose(layer(ones), layer.base_layer(ones) + 0.5)


@pytest.mark.parametrize(
    ("loras", "line"),
    [
        (0.5, r"must be a list; \[\('style.safetensors', 0.8\)\] would work"),
        ([("a.safetensors", "strong")], "lora strength 'strong': must be a number from -10 to 10"),
        ([("a.safetensors", 30.0)], "lora strength 30.0: .*; 10 would work"),
        ([("a.safetensors", float("nan"))], "lora strength nan"),
        ([0.5], "0.5 is no file and no hub id"),
        (["nowhere.safetensors"], "there is no such file"),
    ],
)
def test_mistakes_are_told_before_the_model_is_read(loras, line, monkeypatch):
    monkeypatch.setattr(HunyuanVideoPipeline, "from_pretrained", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(UserError, match=line):
        load("pocket", device="cpu", loras=loras)


def test_where_files_are(files, tmp_path):
    assert find_lora(files["musubi"]).path == files["musubi"]
    near = files["musubi"].with_name("musubbi.safetensors")
    with pytest.raises(UserError, match=r"did you mean '.*musubi.safetensors'"):
        find_lora(near)
    with pytest.raises(UserError, match=r"holds 11 .safetensors files; '.*' would work"):
        find_lora(files["musubi"].parent)
    (tmp_path / "one").mkdir()
    with pytest.raises(UserError, match=r"holds no .safetensors file"):
        find_lora(tmp_path / "one")
    inside = tmp_path / "one" / "pytorch_lora_weights.safetensors"
    save_file(load_file(files["musubi"]), inside)
    assert find_lora(inside.parent).name == str(inside)
    (tmp_path / "lora.pt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"is a .pt file"):
        find_lora(tmp_path / "lora.pt")
    inside.write_bytes(inside.read_bytes()[:-9])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        find_lora(inside)
    with pytest.raises(UserError, match=r"somebody/style .*cannot be downloaded"):
        find_lora("somebody/style")


def test_the_record_has_file_hash_and_strength(files, tmp_path):
    first = generate(**RUN, model="pocket", loras=[(files["musubi"], 0.8)], out=tmp_path / "a")
    digest = find_lora(files["musubi"]).digest()
    assert first.record["settings"]["loras"] == [[str(files["musubi"]), 0.8]]
    assert first.record["made_with"]["loras"] == [f"musubi ({digest}) at 0.8"]
    models = load(**first.record["made_with"]["loaded_by"], device="cpu")
    assert unknown_code(models) == []
    again = generate(**RUN, model=models, out=tmp_path / "b")
    assert again.reused == tmp_path / "a"  # same content, whatever loaded it
    weaker = generate(**RUN, model=models, loras=[(files["musubi"], 0.5)], out=tmp_path / "c")
    assert weaker.reused is None and models.loras.strengths == (0.5,)
    table = compare(first, weaker)
    assert table["loras"] == [[f"musubi ({digest}) at 0.8"], [f"musubi ({digest}) at 0.5"]]
    with pytest.raises(UserError, match="loaded already, with"):
        generate(**RUN, model=models, loras=[files["comfyui"]])
    rerun = generate(**first.record["settings"], progress=False)
    assert torch.equal(rerun.latents, first.latents)


def test_resume_puts_the_same_loras_on(files, tmp_path):
    """Also where the model is named anew; and a file that has changed meanwhile is noticed."""
    file = tmp_path / "style.safetensors"
    save_file(load_file(files["musubi"]), file)
    whole = generate(**RUN, loras=[(file, [1, 0.5])])

    def stopped(out, **how):
        steps: list = []
        with pytest.raises(Stopped):
            generate(**RUN, loras=[(file, [1, 0.5])], out=out, on_step=steps.append, stop=lambda: steps, reuse=False)
        assert len(steps) == 1
        return resume(out, progress=False, **how)

    assert torch.equal(stopped(tmp_path / "a").latents, whole.latents)
    assert torch.equal(stopped(tmp_path / "b", model="pocket").latents, whole.latents)
    tensors = load_file(file)
    save_file({key: tensor * 2 for key, tensor in tensors.items()}, file)
    (tmp_path / "a" / "video.mp4").unlink()
    with pytest.raises(UserError, match=r"loras was \['style \(.*at 1, 0.5'\], is \['style"):
        resume(tmp_path / "a", progress=False)


@pytest.mark.parametrize(
    ("text", "name", "strength"),
    [
        ("STYLE", "STYLE", 1.0),
        ("STYLE:0.8", "STYLE", 0.8),
        ("STYLE:-1", "STYLE", -1.0),
        ("STYLE:1,0.5,0", "STYLE", (1.0, 0.5, 0.0)),
        ("somebody/style:0.5", "somebody/style", 0.5),
        (
            "https://huggingface.co/a/b/resolve/main/c.safetensors",
            "https://huggingface.co/a/b/resolve/main/c.safetensors",
            1.0,
        ),
    ],
)
def test_a_lora_on_the_command_line(files, text, name, strength):
    there = str(files["musubi"])
    assert lora_from_text(text.replace("STYLE", there)) == (name.replace("STYLE", there), strength)


def test_the_command_line_puts_them_on(files, tmp_path, capsys, monkeypatch):
    """And says what was matched; resume does the same without being told."""
    monkeypatch.chdir(tmp_path)
    size = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    own, other = f"{files['musubi']}:0.5", f"{files['comfyui']}:1,0"
    assert main(["A red car.", *size, "--upscale", "none", "--out", "a", "--lora", own, "--lora", other]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"musubi +0.5 +26 +0 ", printed) and re.search(r"comfyui +1, 0 +26 +0 ", printed)
    loras = [[str(files["musubi"]), 0.5], [str(files["comfyui"]), [1.0, 0.0]]]
    assert read_record("a")["settings"]["loras"] == loras
    (tmp_path / "a" / "contact_sheet.png").unlink()
    assert main(["resume", "a"]) == 0 and "latents from" in capsys.readouterr().out


def test_a_sweep_over_the_strength(files, tmp_path):
    how = {**RUN, "loras": [files["musubi"]], "out": tmp_path / "grid"}
    result = sweep(**how, lora_strength=[0, 0.5, 1], seed=[0, 1])
    assert [run.folder.name for run in result.runs[:2]] == ["lora_strength=0,seed=0", "lora_strength=0,seed=1"]
    assert result.at(lora_strength=0.5, seed=1).settings["loras"] == [[str(files["musubi"]), 0.5]]
    plain, halfway = (generate(**RUN, loras=given) for given in (None, [(files["musubi"], 0.5)]))
    for run, alone in ((result.at(lora_strength=0), plain), (result.at(lora_strength=0.5), halfway)):
        assert np.array_equal(run.video(), read_video(alone, tmp_path / "alone.mp4"))
    with pytest.raises(UserError, match="there is no LoRA"):
        sweep(**{**how, "loras": None}, lora_strength=[0, 1])


def read_video(run, path) -> np.ndarray:
    """A run's frames after the way through a file."""
    save_video(path, run.video, run.settings.fps)
    with video_reader(path) as frames:
        return np.stack(list(frames))


def test_a_change_by_hand_is_seen(styled):
    """Strengths that were set past `models.loras` are what the record then says."""
    try:
        styled.pipe.transformer.set_adapters("musubi", 0.25)
        assert made_with(styled)["loras"] == ["musubi at 0.125"]  # alpha 2 over rank 4
        styled.pipe.transformer.disable_lora()
        assert made_with(styled)["loras"] == []
    finally:
        styled.pipe.transformer.enable_lora()
        styled.loras.set(1)
    assert made_with(styled)["loras"] == styled.loras.record


def test_a_plan_that_reads_the_transformer_anew(files, prompt, by_diffusers, tmp_path):
    """One stage in memory at a time: the LoRA is there after each reading, and what it made is reused."""
    part = {"dtype": "float32", "quantisation": "none", "offload": "none"}
    plan = {"text_encoder": part, "transformer": part, "vae": part, "one_stage": True}
    models = load("pocket", plan, device="cpu", loras=[files["musubi"]])
    assert models.loras.strengths == (1.0,) and POCKET.exists()
    for _ in range(2):
        assert torch.equal(latents(models, prompt), by_diffusers)
        models.network("vae")  # the transformer makes room
    assert unknown_code(models) == []
    run = generate(**RUN, model=models, out=tmp_path / "a")
    assert torch.equal(generate(**RUN, model=models, out=tmp_path / "b").latents, run.latents)
    assert generate(**RUN, model=models, out=tmp_path / "c").reused is not None
    models.network("transformer").set_adapters("musubi", 0.3)
    assert "read anew" in unknown_code(models)[0]


@pytest.mark.parametrize("offload", ["model", "group", "disk", "sequential"])
def test_a_plan_that_streams_the_transformer(offload, files, prompt, by_diffusers, monkeypatch):
    """Offloading without a GPU moves weights from RAM to RAM, which a rule refuses; here it shows that all is found."""
    monkeypatch.setattr(loading, "check", lambda made, *_, **__: made)
    plan = Plan(offload, WHOLE, Part("float32", "none", offload), WHOLE, one_stage=offload == "disk", chunk=3)
    models = load("pocket", plan, device="cpu", loras=[files["musubi"]])
    for _ in range(2):
        moved = latents(models, prompt)
        assert (moved - by_diffusers).norm() / by_diffusers.norm() < 1e-5
        models.network("vae")
    models.loras.set(0)
    without = load("pocket", plan, device="cpu")
    assert torch.equal(latents(models, prompt), latents(without, prompt))
    assert unknown_code(models) == []


def test_fp8_keeps_the_lora_as_it_is(files, prompt, monkeypatch):
    """Only the weights of the model are stored in 8 bits."""
    monkeypatch.setattr(loading, "check", lambda made, *_, **__: made)
    plan = Plan("fp8", WHOLE, Part("float32", "fp8", "none"), WHOLE)
    models = load("pocket", plan, device="cpu", loras=[files["musubi"]])
    layer = models.network("transformer").get_submodule("transformer_blocks.0.attn.to_q")
    assert layer.base_layer.weight.dtype == torch.float8_e4m3fn and layer.lora_A["musubi"].weight.dtype == torch.float32
    acting = latents(models, prompt)
    models.loras.set(0)
    assert torch.equal(latents(models, prompt), latents(load("pocket", plan, device="cpu"), prompt))
    assert (acting - latents(models, prompt)).norm() / acting.norm() > 0.1
    assert unknown_code(models) == []
