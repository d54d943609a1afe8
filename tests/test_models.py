"""load() reads every layout the same way, and says which file is wrong before it computes anything."""

import json
import shutil
import socket

import pytest
import torch
from conftest import PROMPT, llama3_tokenizer, tiny_transformer, write_gguf
from diffusers import HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from safetensors.torch import load_file, save_file
from transformers import LlamaTokenizerFast

from t2v_kit.errors import UserError
from t2v_kit.hunyuan.checkpoints import tencent_name
from t2v_kit.hunyuan.files import HUB_ID, absolute, locate
from t2v_kit.memory.plan import Part, Plan
from t2v_kit.model.loading import load
from t2v_kit.stages.denoising import velocity
from t2v_kit.stages.noise import initial_latents
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
    assert models.template["crop_start"] == 95 and models.world is None and models.trained_sizes == ()


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
    assert pocket.defaults["num_inference_steps"] <= 20 and pocket.world == "toyland"
    assert (pocket.defaults["num_frames"], pocket.defaults["height"], pocket.defaults["width"]) == (33, 112, 192)


def test_a_folder_named_from_here_is_found_from_elsewhere(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    models = load(folder.name, device="cpu")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert len(models.weights_hash) == 16
    assert models.name == models.source == str(folder) and models.arguments == {"name": str(folder)}
    assert load(models.name, device="cpu").weights_hash == models.weights_hash


def test_a_home_folder_and_dots_become_absolute(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in (f"~/{folder.name}", f"../{folder.name}", f"../elsewhere/../{folder.name}/"):
        assert locate(name).name == locate(name).source == str(folder)
    assert absolute("pocket") == "pocket" and absolute("hunyuan") == "hunyuan" and absolute("a/b") == "a/b"


@pytest.mark.parametrize(
    "name, says",
    [
        ("Pocket", "did you mean 'pocket'"),
        ("hunyaun", "did you mean 'hunyuan'"),
        ("HunyuanVideo", "did you mean 'hunyuan'"),
        ("13B", "did you mean 'hunyuan'"),
        ("tiny", "did you mean 'pocket'"),
        ("./modle", "did you mean 'model'"),
        ("modle.safetensors", "no such file"),
        ("Tencent/HunyuanVideo", f"did you mean '{HUB_ID}'"),
        ("hunyuanvideo-comunity/HunyuanVideo", f"did you mean '{HUB_ID}'"),
    ],
)
def test_near_names_of_models(folder, monkeypatch, tmp_path, name, says):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says) as raised:
        load(name, device="cpu")
    assert "\n" not in str(raised.value)


def test_any_hub_id_is_downloaded(folder, monkeypatch):
    """With its revision and variant; the hub itself is played by a folder."""
    asked = []
    monkeypatch.setattr(
        "t2v_kit.hunyuan.files.hf_hub_download",
        lambda name, file, **kw: asked.append((name, file, kw)) or folder / file,
    )
    monkeypatch.setattr(
        "diffusers.DiffusionPipeline.download", lambda name, **kw: asked.append((name, kw)) or str(folder)
    )
    models = load("someone/some-model", revision="v2", device="cpu")
    assert asked == [
        ("someone/some-model", "model_index.json", {"revision": "v2"}),
        ("someone/some-model", {"revision": "v2", "variant": None}),
    ]
    assert models.name == models.source == "someone/some-model" and models.revision == folder.name
    assert models.arguments == {"name": "someone/some-model", "revision": folder.name}


def test_a_repository_of_another_pipeline_is_refused_before_it_is_downloaded(folder, monkeypatch):
    edit_json(folder / "model_index.json", _class_name="FluxPipeline")
    monkeypatch.setattr("t2v_kit.hunyuan.files.hf_hub_download", lambda name, file, **_: folder / file)
    monkeypatch.setattr("diffusers.DiffusionPipeline.download", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match="someone/flux: holds a FluxPipeline; a HunyuanVideoPipeline, such as"):
        load("someone/flux", device="cpu")


@pytest.fixture
def half_folder(tiny_folder, tmp_path):
    """The tiny model as diffusers saves it with variant='fp16', the transformer in shards."""
    pipe = HunyuanVideoPipeline.from_pretrained(tiny_folder, dtype=torch.float16)
    folder = tmp_path / "half"
    pipe.save_pretrained(folder, variant="fp16")
    for path in (folder / "transformer").glob("*.safetensors"):
        path.unlink()
    pipe.transformer.save_pretrained(folder / "transformer", variant="fp16", max_shard_size="60KB")
    shutil.copy(tiny_folder / "t2v_kit.json", folder)
    return folder


def test_a_variant_is_loaded_hashed_and_checked(half_folder, tiny_folder, tiny32):
    models = load(half_folder, variant="fp16", device="cpu")
    assert models.pipe.transformer.dtype == torch.float32 and models.arguments["variant"] == "fp16"
    shards = models.files.weights("transformer")
    assert len(shards) > 1 and all(".fp16-0000" in path.name for path in shards)
    plain = models.weights_hash
    torch.testing.assert_close(
        models.pipe.transformer.proj_out.weight, tiny32.pipe.transformer.proj_out.weight, rtol=1e-3, atol=1e-4
    )
    data = bytearray(shards[0].read_bytes())
    data[-1] ^= 1
    shards[0].write_bytes(data)
    assert load(half_folder, variant="fp16", device="cpu").weights_hash != plain
    shards[0].write_bytes(data[:-9])
    with pytest.raises(UserError, match=r"fp16-00001-of.*is not a whole safetensors file"):
        load(half_folder, variant="fp16", device="cpu")
    shards[0].unlink()
    with pytest.raises(UserError, match=r"fp16-00001-of.*is missing"):
        load(half_folder, variant="fp16", device="cpu")


def test_a_folder_with_one_variant_is_recognised(half_folder):
    with pytest.warns(UserWarning, match="holds the variant 'fp16', which was loaded; variant='fp16' says so"):
        models = load(half_folder, device="cpu")
    assert models.weights_hash == load(half_folder, variant="fp16", device="cpu").weights_hash


def test_plain_and_variant_side_by_side(half_folder, tiny_folder, tiny32):
    """Each is loaded and hashed without the other; a variant that is not there is told."""
    shutil.copytree(tiny_folder, half_folder, dirs_exist_ok=True)
    assert load(half_folder, device="cpu").weights_hash == tiny32.weights_hash
    assert load(half_folder, variant="fp16", device="cpu").weights_hash != tiny32.weights_hash
    with pytest.raises(UserError, match=r"variant='fp61'.*no weights of that variant; did you mean 'fp16'"):
        load(half_folder, variant="fp61", device="cpu")
    with pytest.raises(UserError, match=r"variant='fp16'.*has none; variant=None works"):
        load(tiny_folder, variant="fp16", device="cpu")
    with pytest.raises(UserError, match="variant=16: must be a word"):
        load(tiny_folder, variant=16, device="cpu")


def test_a_variant_under_a_memory_plan(half_folder, tiny32):
    plan = Plan("as it is", *[Part("float32")] * 3)
    models = load(half_folder, memory=plan, variant="fp16", device="cpu")
    torch.testing.assert_close(
        models.network("vae").decoder.conv_out.conv.weight,
        tiny32.pipe.vae.decoder.conv_out.conv.weight,
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.fixture
def single(tiny_folder, tmp_path):
    """A transformer with other weights than the tiny model's, in one file under diffusers' names."""
    weights = load_file(tiny_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    weights["proj_out.bias"] = weights["proj_out.bias"] + 1
    save_file(weights, tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


def test_a_single_file_is_the_transformer_of_its_base(single, tiny_folder, tiny32, monkeypatch):
    monkeypatch.chdir(single.parent)
    models = load(single.name, base=tiny_folder, device="cpu")
    assert torch.equal(models.pipe.transformer.proj_out.bias, tiny32.pipe.transformer.proj_out.bias + 1)
    assert torch.equal(models.pipe.transformer.proj_out.weight, tiny32.pipe.transformer.proj_out.weight)
    assert models.name == models.source == str(single) and models.folder == tiny_folder
    assert models.arguments == {"name": str(single), "base": str(tiny_folder)}
    assert models.weights_hash != tiny32.weights_hash
    assert type(models.pipe.transformer.transformer_blocks[0].attn.processor).__name__ == "NoFullMask"
    planned = load(single, memory=Plan("as it is", *[Part("float32")] * 3), base=tiny_folder, device="cpu")
    assert torch.equal(planned.pipe.transformer.proj_out.bias, models.pipe.transformer.proj_out.bias)


def test_a_single_file_in_tencents_names(tiny_folder, tmp_path):
    """Without single-stream blocks, whose width diffusers takes for the 13B model's."""
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    torch.manual_seed(1)
    transformer = HunyuanVideoTransformer3DModel(**{**tiny_transformer().config, "num_single_layers": 0})
    transformer.save_pretrained(folder / "transformer")
    save_file(published_names(transformer.state_dict()), tmp_path / "published.safetensors")
    shutil.rmtree(folder / "transformer")
    transformer.save_config(folder / "transformer")  # the base's own weights are not needed
    models = load(tmp_path / "published.safetensors", base=folder, device="cpu")
    for name, weight in transformer.state_dict().items():
        assert torch.equal(models.pipe.transformer.state_dict()[name], weight), name


COMFYUI = (
    *(("txt_in.t_embedder.mlp.0.", "txt_in.t_embedder.in_layer."), ("mlp.2.", "out_layer.")),
    *(("_in.mlp.0.", "_in.in_layer."), ("c_embedder.linear_1.", "c_embedder.in_layer.")),
    *(("c_embedder.linear_2.", "c_embedder.out_layer."), ("_mod.linear.", "_mod.lin.")),
    *(("mlp.fc1.", "mlp.0."), ("mlp.fc2.", "mlp.2."), ("_attn_qkv.", "_attn.qkv."), ("_attn_proj.", "_attn.proj.")),
    *(("_attn_q_norm.weight", "_attn.norm.query_norm.scale"), ("_attn_k_norm.weight", "_attn.norm.key_norm.scale")),
)


@pytest.mark.parametrize("scales", ["scale_weight", "weight_scale", "of rows", "none"])
def test_a_single_file_in_8_bits(tiny_folder, tmp_path, scales):
    """In ComfyUI's names and with its prefix: each weight is what is stored times its scale."""
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    torch.manual_seed(1)
    transformer = HunyuanVideoTransformer3DModel(**{**tiny_transformer().config, "num_single_layers": 0})
    shutil.rmtree(folder / "transformer")
    transformer.save_config(folder / "transformer")
    stored, whole = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}, {}
    for name, weight in published_names(transformer.state_dict()).items():
        comfy = name
        for theirs, here in COMFYUI:
            comfy = comfy.replace(theirs, here)
        comfy = f"model.model.{comfy}"
        if weight.ndim != 2:
            stored[comfy], whole[name] = weight.clone(), weight
            continue
        scale = weight.abs().amax(dim=1, keepdim=True) if scales == "of rows" else weight.abs().max()
        scale = torch.ones(()) if scales == "none" else scale / 448
        stored[comfy] = (weight / scale).to(torch.float8_e4m3fn)
        whole[name] = stored[comfy].float() * scale
        layer = comfy.removesuffix(".weight")
        if scales != "none":
            stored[f"{layer}.{'weight_scale' if scales == 'weight_scale' else 'scale_weight'}"] = scale
            stored[f"{layer}.scale_input"] = torch.ones(())
    save_file(stored, tmp_path / "comfy.safetensors")
    save_file({name: weight.contiguous() for name, weight in whole.items()}, tmp_path / "tencent.safetensors")
    models, plain = (load(tmp_path / f"{name}.safetensors", base=folder, device="cpu") for name in ("comfy", "tencent"))
    for name, weight in plain.pipe.transformer.state_dict().items():
        assert torch.equal(models.pipe.transformer.state_dict()[name], weight), name


@pytest.mark.parametrize(
    ("comfy", "tencent"),
    [
        ("single_blocks.3.modulation.lin.weight", "single_blocks.3.modulation.linear.weight"),
        ("single_blocks.3.norm.query_norm.scale", "single_blocks.3.q_norm.weight"),
        ("double_blocks.0.txt_attn.norm.key_norm.scale", "double_blocks.0.txt_attn_k_norm.weight"),
        ("model.model.single_blocks.3.linear1.bias", "single_blocks.3.linear1.bias"),
        (
            "txt_in.individual_token_refiner.blocks.1.mlp.2.bias",
            "txt_in.individual_token_refiner.blocks.1.mlp.fc2.bias",
        ),
        ("guidance_in.mlp.0.weight", "guidance_in.mlp.0.weight"),
        ("transformer_blocks.0.ff.net.2.weight", "transformer_blocks.0.ff.net.2.weight"),
    ],
)
def test_comfyuis_names(comfy, tencent):
    assert tencent_name(comfy) == tencent


def published_names(weights):
    """A transformer's weights under the names of Tencent's checkpoint: fused projections, scale and shift swapped."""
    words = [
        ("x_embedder", "img_in"), ("time_text_embed.timestep_embedder.linear_1", "time_in.mlp.0"),
        ("time_text_embed.timestep_embedder.linear_2", "time_in.mlp.2"),
        ("time_text_embed.guidance_embedder.linear_1", "guidance_in.mlp.0"),
        ("time_text_embed.guidance_embedder.linear_2", "guidance_in.mlp.2"),
        ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
        ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
        ("transformer_blocks", "double_blocks"), ("attn.norm_q", "img_attn_q_norm"), ("attn.norm_k", "img_attn_k_norm"),
        ("attn.to_out.0", "img_attn_proj"), ("attn.norm_added_q", "txt_attn_q_norm"),
        ("attn.norm_added_k", "txt_attn_k_norm"), ("attn.to_add_out", "txt_attn_proj"),
        ("norm1.linear", "img_mod.linear"), ("norm1_context.linear", "txt_mod.linear"), ("ff_context", "txt_mlp"),
        ("ff.", "img_mlp."), ("net.0.proj", "fc1"), ("net.2", "fc2"), ("proj_out", "final_layer.linear"),
    ]  # fmt: skip
    refiner = [
        ("token_refiner.refiner_blocks", "individual_token_refiner.blocks"), ("norm_out.linear", "adaLN_modulation.1"),
        ("context_embedder", "txt_in"), ("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
        ("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
        ("time_text_embed.text_embedder", "c_embedder"), ("proj_in", "input_embedder"), (".ff.", ".mlp."),
        ("attn.to_out.0", "self_attn_proj"), ("net.0.proj", "fc1"), ("net.2", "fc2"),
    ]  # fmt: skip
    published, fused = {}, {}
    for name, weight in weights.items():
        inner = name.startswith("context_embedder")
        for old, new in (("to_q", "img_attn_qkv"), ("add_q_proj", "txt_attn_qkv")):
            if f".attn.{old}." in name:
                fused[name] = "self_attn_qkv" if inner else new
        if any(f".attn.{part}." in name for part in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")):
            continue
        if name.startswith("norm_out.linear"):
            published[name.replace("norm_out.linear", "final_layer.adaLN_modulation.1")] = torch.cat(
                weight.chunk(2)[::-1]
            )
            continue
        for old, new in refiner if inner else words:
            name = name.replace(old, new)
        published[name] = weight
    for name, new in fused.items():
        own = ("to_q", "to_k", "to_v") if "to_q" in name else ("add_q_proj", "add_k_proj", "add_v_proj")
        joined = torch.cat([weights[name.replace(own[0], part)] for part in own])
        name = name.replace(f"attn.{own[0]}", new)
        for old, new in refiner if name.startswith("context_embedder") else words:
            name = name.replace(old, new)
        published[name] = joined
    return {name: weight.contiguous() for name, weight in published.items()}


def test_a_gguf_file_is_read_quantised(tiny_folder, tmp_path, settings):
    """Rows of 32 numbers in 8 bits with a scale: near the model's own latents, from a file a quarter as large."""
    pytest.importorskip("gguf")
    weights = load_file(tiny_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    packed = write_gguf(tmp_path / "small.gguf", weights)
    models, exact = load(tmp_path / "small.gguf", base=tiny_folder, device="cpu"), load(tiny_folder, device="cpu")
    prompt, noise = encode_prompt(exact, PROMPT), initial_latents(exact, settings)
    one, other = (velocity(each, prompt, noise, 0.5) for each in (models, exact))
    assert packed and 1e-6 < float((one - other).norm() / other.norm()) < 0.05
    assert models.weights_hash != exact.weights_hash
    at = "transformer_blocks.0.attn.to_q"
    lora = {f"{at}.lora_A.weight": torch.randn(2, 32), f"{at}.lora_B.weight": torch.randn(32, 2)}
    save_file(lora, tmp_path / "lora.safetensors")
    styled = load(tmp_path / "small.gguf", base=tiny_folder, device="cpu", loras=[tmp_path / "lora.safetensors"])
    assert not torch.equal(velocity(styled, prompt, noise, 0.5), one)
    styled.loras.set(0)
    assert torch.equal(velocity(styled, prompt, noise, 0.5), one)


def test_without_the_package_gguf_it_is_named(tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "small.gguf").write_bytes(b"GGUF" + bytes(60))
    with monkeypatch.context() as patch:
        patch.setattr("t2v_kit.hunyuan.gguf_files.is_gguf_available", lambda: False)
        with pytest.raises(UserError, match=r"small.gguf: needs the package gguf, 0.10 or later; pip install gguf"):
            load(tmp_path / "small.gguf", base=tiny_folder, device="cpu")
    pytest.importorskip("gguf")
    (tmp_path / "small.gguf").write_bytes(b"text")
    with pytest.raises(UserError, match=r"small.gguf: is not a GGUF file; copy it again"):
        load(tmp_path / "small.gguf", base=tiny_folder, device="cpu")


def test_single_files_that_do_not_fit(single, tiny_folder, tmp_path):
    weights = load_file(single)
    save_file(
        {name: weight for name, weight in weights.items() if name != "proj_out.bias"}, tmp_path / "less.safetensors"
    )
    with pytest.raises(UserError, match=r"a weight of the transformer that .* is not in it"):
        load(tmp_path / "less.safetensors", base=tiny_folder, device="cpu")
    weights["proj_out.bias"] = torch.zeros(3)
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(
        UserError, match=r"cannot be read as the transformer that .* describes; another base= might work"
    ):
        load(tmp_path / "other.safetensors", base=tiny_folder, device="cpu")
    single.write_bytes(single.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"mine.safetensors: is not a whole safetensors file"):
        load(single, base=tiny_folder, device="cpu")
    with pytest.raises(UserError, match="is a single file too"):
        load(tmp_path / "other.safetensors", base=tmp_path / "less.safetensors", device="cpu")
    with pytest.raises(UserError, match="'pocket' is a whole model; only a single file takes a base"):
        load("pocket", base=tiny_folder)
