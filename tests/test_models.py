"""load() reads every layout the same way, and says which file is wrong before it computes anything."""

import json
import shutil
import socket

import pytest
import torch
from conftest import PROMPT, llama3_tokenizer
from diffusers import HunyuanVideoPipeline
from safetensors.torch import load_file, save_file
from transformers import LlamaTokenizerFast

from t2v_kit.errors import UserError
from t2v_kit.model.loading import load
from t2v_kit.stages.prompt import encode_prompt


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny model that a test may break."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_load_gives_the_plain_pipeline_in_float32_on_the_cpu(tiny_folder, tiny32):
    assert type(tiny32.pipe) is HunyuanVideoPipeline
    assert tiny32.name == tiny32.source == str(tiny_folder) and tiny32.revision is None
    parts = [tiny32.pipe.transformer, tiny32.pipe.vae, tiny32.pipe.text_encoder, tiny32.pipe.text_encoder_2]
    assert {part.dtype for part in parts} == {torch.float32}


def test_dtype_can_be_told_by_component(tiny_folder):
    dtype = {"transformer": "bfloat16", "default": "float32"}
    pipe = load(tiny_folder, device="cpu", dtype=dtype).pipe
    assert (pipe.transformer.dtype, pipe.vae.dtype) == (torch.bfloat16, torch.float32)


def test_a_folder_without_notes_has_hunyuanvideos_defaults(folder):
    (folder / "t2v_kit.json").unlink()
    models = load(folder, device="cpu")
    assert (models.defaults["height"], models.defaults["num_frames"], models.defaults["flow_shift"]) == (720, 129, 7.0)
    assert models.template["crop_start"] == 95 and models.vocabulary is None and models.trained_sizes == ()


@pytest.mark.parametrize(
    "missing",
    [
        "model_index.json",
        "tokenizer",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder",
    ],
)
def test_what_is_missing_is_named(folder, missing):
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=r"incomplete|missing") as caught:
        load(folder, device="cpu")
    assert missing.removesuffix("/diffusion_pytorch_model.safetensors") in str(caught.value)


def test_a_missing_shard_is_named(folder):
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part-00001-of-00002.safetensors"}}))
    with pytest.raises(UserError, match=r"part-00001-of-00002.safetensors: is missing"):
        load(folder, device="cpu")


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: b"\xff" * 64, lambda data: b""])
def test_corrupt_safetensors_are_named(folder, damage):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"vae.*diffusion_pytorch_model.safetensors: is not a whole safetensors"):
        load(folder, device="cpu")


def test_weights_of_another_shape_are_refused(folder):
    edit_json(folder / "vae" / "config.json", latent_channels=8)
    with pytest.raises(UserError, match=r"cannot be loaded"):
        load(folder, device="cpu")


def test_weights_that_are_not_all_there_are_refused(folder):
    path = folder / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    weights.pop("layers.1.mlp.up_proj.weight")
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"text_encoder.*layers.1.mlp.up_proj.weight"):
        load(folder, device="cpu")


def test_broken_json_and_another_pipeline_are_named(folder):
    (folder / "vae" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: is not JSON"):
        load(folder, device="cpu")
    edit_json(folder / "model_index.json", _class_name="StableDiffusionPipeline")
    with pytest.raises(UserError, match=r"StableDiffusionPipeline; a HunyuanVideoPipeline would work"):
        load(folder, device="cpu")


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"name": "pockt"}, "did you mean 'pocket'"),
        ({"name": "/no/such/folder"}, "an existing folder would work"),
        ({"name": 13}, "must be text"),
        ({"name": "pocket", "revision": "main"}, "only the hub has revisions"),
        ({"memory": "tiny"}, "memory='tiny'"),
        ({"device": "abacus"}, "device='abacus'.*'cpu' would work"),
    ],
)
def test_arguments_that_cannot_work(arguments, says):
    with pytest.raises(UserError, match=says):
        load(**arguments)


def test_a_dtype_that_is_none(tiny_folder):
    with pytest.raises(UserError, match=r"dtype='float8'.*'float32' would work"):
        load(tiny_folder, device="cpu", dtype="float8")


def test_hunyuan_without_network_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"hunyuanvideo-community/HunyuanVideo .revision v9.: cannot be downloaded"):
        load("hunyuan", revision="v9")


def test_a_folder_is_loaded_without_touching_the_network(tiny_folder, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load(tiny_folder, device="cpu")


def test_the_hash_follows_every_byte_of_the_weights(folder, tiny32):
    assert load(folder, device="cpu").weights_hash == tiny32.weights_hash
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert load(folder, device="cpu").weights_hash != tiny32.weights_hash


def test_a_large_folder_is_hashed_by_its_headers(folder, tiny32, monkeypatch):
    monkeypatch.setattr("t2v_kit.model.models.HASH_WHOLE_FILES_UP_TO", 0)
    assert load(folder, device="cpu").weights_hash.startswith("headers-")


def test_the_published_tokenizer_is_read_right(folder, tiny_folder):
    """HunyuanVideo's files name LlamaTokenizerFast, which reads a byte-level tokenizer wrongly."""
    edit_json(folder / "model_index.json", tokenizer=["transformers", "LlamaTokenizerFast"])
    edit_json(folder / "tokenizer" / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast", padding_side="left")
    trap = LlamaTokenizerFast.from_pretrained(folder / "tokenizer")
    assert PROMPT not in trap.decode(trap(PROMPT).input_ids)

    models = load(folder, device="cpu")
    tokenizer = models.pipe.tokenizer
    for text in (PROMPT, "  two  spaces, 1234\n\nnew line", "naïve 你好 🎈"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    padded = tokenizer(PROMPT, padding="max_length", max_length=30).attention_mask
    assert padded == sorted(padded, reverse=True) and 0 in padded
    prefix = models.template["template"].split("{}")[0]
    assert len(tokenizer(prefix).input_ids) == models.template["crop_start"]
    assert encode_prompt(models, PROMPT).tokens[:3] == ["A", " man", " with"]


@pytest.mark.parametrize("crop", [94, 96, 0])
def test_a_crop_that_is_not_the_prefix_is_refused(folder, tiny32, crop):
    edit_json(folder / "t2v_kit.json", crop_start=crop)
    length = tiny32.template["crop_start"]
    with pytest.raises(UserError, match=f"crops {crop} tokens, but the instruction .* has {length}"):
        load(folder, device="cpu")


def test_a_tokenizer_without_the_begin_token_is_refused(folder):
    """Its prefix is a token shorter, so the crop would eat the prompt's first word."""
    (folder / "t2v_kit.json").unlink()
    path = folder / "tokenizer" / "tokenizer.json"
    edit_json(path, post_processor=None)
    with pytest.raises(UserError, match=r"crops 95 tokens, but the instruction .* has 94"):
        load(folder, device="cpu")


def test_a_tokenizer_that_loses_spaces_is_refused(folder):
    edit_json(folder / "tokenizer" / "tokenizer.json", decoder={"type": "Fuse"})
    with pytest.raises(UserError, match=r"tokenizer: reads 'Sunny day.*back as"):
        load(folder, device="cpu")


def test_a_tokenizer_saved_with_left_padding_is_turned(folder):
    llama3_tokenizer(padding_side="left").save_pretrained(folder / "tokenizer")
    assert load(folder, device="cpu").pipe.tokenizer.padding_side == "right"


def test_pocket_runs_hunyuanvideos_own_template(pocket):
    """So that plain pipeline calls on its folder crop the right 95 tokens."""
    assert pocket.template["crop_start"] == 95 and pocket.source == "t2v_kit/pocket"
    assert pocket.defaults["num_inference_steps"] <= 20 and pocket.vocabulary
    assert (pocket.defaults["num_frames"], pocket.defaults["height"], pocket.defaults["width"]) == (33, 112, 192)


def test_a_folder_named_from_here_is_found_from_elsewhere(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    models = load(folder.name, device="cpu")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert len(models.weights_hash) == 16 and models.source == folder.name
