"""A base in 4 bits whose last blocks wait in RAM from when they are read: for cards that have no room for all."""

import json
import mmap
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import t2v_kit.model.loading as loading
from t2v_kit import TrainSettings, UserError, denoise, encode_prompt, initial_latents, train, write_toyland
from t2v_kit.hunyuan.files import locate
from t2v_kit.hunyuan.masks import blocks
from t2v_kit.memory.machine import Machine
from t2v_kit.memory.plan import Part, Plan
from t2v_kit.model import four_bits
from t2v_kit.model.loading import load
from t2v_kit.model.streamed import packed_in_ram
from t2v_kit.settings import Settings
from t2v_kit.training.lora import lora

pytest.importorskip("bitsandbytes")
PLAN = Plan(
    text_encoder=Part("float32"),
    transformer=Part("float32", "nf4"),
    vae=Part("float32"),
    one_stage=True,
    waiting_blocks=2,
)
SETTINGS = TrainSettings(steps=2, rank=2, streamed_blocks=2, caption_dropout=0.0)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """A machine with a card of 8 GB as far as plans can see; the CPU computes. bitsandbytes quantises there too, if it
    does not pack the weights anew for CPUs with AVX512-BF16, for which toy sizes are too small."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    monkeypatch.setattr(loading.Machine, "here", lambda *_: Machine(8, 32, bitsandbytes="0.48"))


@pytest.fixture
def watched(monkeypatch):
    """What was on the device, block by block, whenever a block went to RAM."""
    waited = []

    def wait(block):
        assert all(not weight.is_meta and not weight.requires_grad for weight in block.parameters())
        block.waits = True
        waited.append(block)

    monkeypatch.setattr(four_bits, "wait_in_ram", wait)
    return waited


def test_a_block_waits_before_the_next_is_read(tiny_folder, as_on_a_gpu, watched, monkeypatch):
    """Never are two of the waiting blocks on the device, and the weights are those of a 4-bit base."""
    read, there = four_bits.load_model_dict_into_meta, []

    def reading(transformer, weights, **options):
        read(transformer, weights, **options)
        last = blocks(transformer)[-2:]
        there.append(sum(not hasattr(each, "waits") and not next(each.parameters()).is_meta for each in last))

    monkeypatch.setattr(four_bits, "load_model_dict_into_meta", reading)
    models = load(tiny_folder, memory=PLAN, device="cpu")
    transformer = models.network("transformer")
    assert len(watched) == 2 and set(watched) == set(blocks(transformer)[-2:])
    assert max(there) == 1 and len(there) == 1 + len(blocks(transformer))
    from bitsandbytes import functional

    exact = load_file(tiny_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    packed = 0
    for name, weight in transformer.named_parameters():
        if hasattr(weight, "quant_state"):
            original = exact[name].float()
            expected = functional.dequantize_4bit(*functional.quantize_4bit(original, quant_type="nf4"))
            assert torch.equal(functional.dequantize_4bit(weight.data, weight.quant_state), expected), name
            packed += 1
        else:
            assert torch.equal(weight.data, exact[name].float()), name
    assert packed > 20


def test_packed_weights_have_pages_of_their_own():
    """Small pieces, too: a page can be pinned once alone. The weights are the same, in one storage."""
    weights = [torch.arange(5.0), torch.ones(3, 2, dtype=torch.bfloat16)]
    packed = [packed_in_ram(weights, pinned=False)[0] for _ in range(20)]
    for copies in packed:
        assert all(torch.equal(copy, weight) for copy, weight in zip(copies, weights))
        storage = copies[1].untyped_storage()
        assert storage.data_ptr() == copies[0].data_ptr()
        assert storage.data_ptr() % mmap.PAGESIZE == storage.nbytes() % mmap.PAGESIZE == 0


def test_it_trains_as_one_that_is_all_there(tiny_folder, tmp_path, as_on_a_gpu):
    """Through `load` and `train`: the same losses as a base in 4 bits without blocks in RAM."""
    clips = write_toyland(tmp_path / "clips", 1, 32, 48, 9)
    models = load(tiny_folder, memory=PLAN, device="cpu")
    waiting = [step.loss for step in train(models, clips, SETTINGS)]
    four_bits_alone = replace(PLAN, waiting_blocks=1)  # diffusers itself would ask for a GPU
    other = load(tiny_folder, memory=four_bits_alone, device="cpu")
    there = [step.loss for step in train(other, clips, replace(SETTINGS, streamed_blocks=1))]
    assert waiting == pytest.approx(there, rel=1e-4) and len(waiting) == 2
    with pytest.raises(UserError, match=r"streamed_blocks=1: the memory plan has 2 blocks waiting .*=2 would work"):
        next(train(models, clips, replace(SETTINGS, streamed_blocks=1)))


def test_it_draws_nothing(tiny_folder, as_on_a_gpu):
    """In one line, in place of an error about devices."""
    models = load(tiny_folder, memory=PLAN, device="cpu")
    settings = Settings("a", height=32, width=48, num_frames=9, num_inference_steps=1)
    prompt, noise = encode_prompt(models, "a"), initial_latents(models, settings)
    with pytest.raises(UserError, match="waiting_blocks=2: the memory plan has these blocks in RAM for a training"):
        next(denoise(models, prompt, noise, settings))


def test_a_single_file_waits_too(tiny_folder, tmp_path, as_on_a_gpu, watched):
    """Its transformer takes a LoRA like any other, whose weights are not among those in RAM."""
    weights = load_file(tiny_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file(weights, tmp_path / "whole.safetensors")
    models = load(tmp_path / "whole.safetensors", base=tiny_folder, memory=PLAN, device="cpu")
    transformer = models.network("transformer")
    assert len(watched) == 2 and set(watched) == set(blocks(transformer)[-2:])
    with lora(transformer, SETTINGS) as adapter:
        assert adapter and all(weight.requires_grad for weight in adapter.values())


def test_files_that_cannot_be_read_in_blocks(tiny_folder, tmp_path, watched):
    """A weight that is missing is named, and weights in 4 bits are refused."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    file, config = (
        folder / "transformer" / "diffusion_pytorch_model.safetensors",
        folder / "transformer" / "config.json",
    )
    weights = load_file(file)
    del weights["proj_out.weight"]
    save_file(weights, file)
    with pytest.raises(UserError, match=r"transformer: proj_out\.weight is not in its files"):
        four_bits.read_in_four_bits(locate(folder), torch.float32, torch.device("cpu"), 2)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"load_in_4bit": True}}))
    with pytest.raises(UserError, match="transformer: its weights are quantised already"):
        four_bits.read_in_four_bits(locate(folder), torch.float32, torch.device("cpu"), 2)
