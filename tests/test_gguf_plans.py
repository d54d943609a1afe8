"""The planner counts GGUF files as they lie on the disk and in memory, and says what it cannot plan."""

import shutil

import numpy as np
import pytest
import torch
from conftest import PROMPT, write_gguf
from safetensors.torch import load_file

from t2v_kit import UserError, encode_prompt, estimate, initial_latents, plan, velocity
from t2v_kit.hunyuan.gguf_files import PackedTensor, gguf_of, packed_tensors
from t2v_kit.hunyuan.names import check_name
from t2v_kit.memory.estimate import GIB
from t2v_kit.memory.footprint import unpacking_bytes
from t2v_kit.memory.machine import Machine
from t2v_kit.memory.plan import Part, Plan, Size
from t2v_kit.memory.rules import check
from t2v_kit.memory.weights import Configs, weights
from t2v_kit.model.loading import load
from t2v_kit.settings import Settings

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def small(tiny_folder, tmp_path_factory):
    """The tiny model's transformer in Q8_0, alone in a folder."""
    path = tmp_path_factory.mktemp("packed") / "small.gguf"
    assert write_gguf(path, load_file(tiny_folder / "transformer" / "diffusion_pytorch_model.safetensors"))
    return path


@pytest.fixture
def large(small, monkeypatch):
    """The 13B in Q4_K, as far as its header says: 4.5 bits a number."""
    own = weights(Configs.of("hunyuan"), "transformer", 1)
    blocks = [(stack, block, size) for stack, sizes in enumerate(own.stacks) for block, size in enumerate(sizes)]
    tensors = [PackedTensor(stack, block, "Q4_K", size, size * 144 // 256) for stack, block, size in blocks]
    tensors.append(PackedTensor(None, 0, "F16", own.rest, 2 * own.rest))
    monkeypatch.setattr("t2v_kit.memory.weights.packed_tensors", lambda _: tuple(tensors))
    return small, tensors


def test_the_weights_are_those_that_load_holds(small, tiny_folder):
    """Packed ones byte for byte, plain ones in the dtype that computes; block by block."""
    models = load(small, base=tiny_folder, device="cpu")
    transformer = models.pipe.transformer
    counted = weights(Configs.of(models), "transformer", 4)
    assert counted.total == sum(weight.nbytes for weight in transformer.parameters())
    for stack, own in zip(counted.stacks, (transformer.transformer_blocks, transformer.single_transformer_blocks)):
        assert stack == tuple(sum(weight.nbytes for weight in block.parameters()) for block in own)
    plain = weights(Configs.of(tiny_folder), "transformer", 4).total
    assert counted.total < 0.6 * plain
    read = estimate(Plan(), Size(32, 48, 9), models, stages=("denoise",)).disk_gb * GIB
    assert read == sum(tensor.bytes for tensor in packed_tensors(small)) < small.stat().st_size


def test_names_of_tencents_files_are_sorted_into_blocks(tmp_path):
    """So are diffusers'; what is in no block counts as well."""
    writer = gguf.GGUFWriter(tmp_path / "names.gguf", "hyvid")
    for name in ("double_blocks.1.img_attn_qkv.weight", "single_blocks.12.linear1.weight", "img_in.proj.weight"):
        writer.add_tensor(name, np.zeros((2, 32), np.float32))
    writer.add_tensor("txt_in.individual_token_refiner.blocks.0.mlp.fc1.weight", np.zeros((2, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = sorted((tensor.stack, tensor.block, tensor.kind) for tensor in packed_tensors(tmp_path / "names.gguf")[:2])
    assert found == [(0, 1, "F32"), (1, 12, "F32")]
    rest = packed_tensors(tmp_path / "names.gguf")[2:]
    assert [(tensor.stack, tensor.kind, tensor.bytes) for tensor in rest] == [(None, "F32", 256), (None, "F16", 128)]


def test_a_plan_for_a_file_of_the_13b(large):
    """It is kept packed and whole, never quantised again; a small card has the text encoder come from disk."""
    path, tensors = large
    size = {"height": 544, "width": 960, "num_frames": 61}
    chosen = plan(24, 64, **size, model=path)
    needs = estimate(chosen, Size(544, 960, 61), path, stages=("denoise",)).rows[0]
    packed = sum(tensor.bytes for tensor in tensors) / GIB
    unpacked = unpacking_bytes(Configs.of("hunyuan").transformer, ("Q4_K",), torch.bfloat16) / GIB
    assert chosen.transformer == Part("bfloat16", offload="model") and 0.1 < unpacked < 0.5
    assert needs["weights_gb"] == pytest.approx(packed + unpacked) and needs["disk_gb"] == pytest.approx(packed)
    tight = plan(14, 32, **size, model=str(path))
    assert tight.text_encoder.offload == "disk" and tight.transformer.quantisation == "none"
    assert estimate(tight, Size(544, 960, 61), path).fits(Machine(14, 32))
    with pytest.raises(UserError, match="no plan fits 6 GB"):
        plan(6, 32, **size, model=path)


@pytest.mark.parametrize("part", [Part("bfloat16", "nf4"), Part("bfloat16", "fp8"), Part("bfloat16", offload="group")])
def test_what_cannot_be_planned_says_why(small, part):
    with pytest.raises(UserError, match=r"a GGUF file that is quantised again, or streamed .*: its weights are packed"):
        check(Plan(transformer=part, one_stage=True), Machine(24, 64), model=small)
    check(Plan(transformer=Part(offload="model"), one_stage=True), Machine(24, 64), model=small)


def test_a_kind_that_diffusers_does_not_unpack_is_named(small, monkeypatch):
    known = [kind for kind in gguf.GGMLQuantizationType if kind.name == "Q4_K"]
    monkeypatch.setattr("diffusers.quantizers.gguf.utils.SUPPORTED_GGUF_QUANT_TYPES", known)
    packed_tensors.cache_clear()
    with pytest.raises(UserError, match=r"is of the kind Q8_0, which diffusers does not unpack; a file in Q4_K"):
        plan(24, 64, model=small)
    packed_tensors.cache_clear()


def test_a_cut_file_is_refused(small, tmp_path):
    (tmp_path / "cut.gguf").write_bytes(small.read_bytes()[:200])
    with pytest.raises(UserError, match=r"cut\.gguf: cannot be read as GGUF .*; copy it again"):
        plan(24, 64, model=tmp_path / "cut.gguf")


def test_a_plan_is_carried_out(small, tiny_folder):
    """`load` with a plan gives the very velocity that it gives without one."""
    part = Part("float32")
    settings = Settings(PROMPT, height=32, width=48, num_frames=9)
    alone = load(small, base=tiny_folder, device="cpu")
    planned = load(small, base=tiny_folder, device="cpu", memory=Plan("CPU", part, part, part, one_stage=True))
    prompt, noise = encode_prompt(alone, PROMPT), initial_latents(alone, settings)
    assert torch.equal(velocity(planned, prompt, noise, 0.5), velocity(alone, prompt, noise, 0.5))


def test_the_folder_of_one_file_stands_for_it(small, tiny_folder, tmp_path):
    """Of two, one has to be named."""
    assert gguf_of(small.parent) == gguf_of(str(small)) == small and gguf_of(tiny_folder) is None
    check_name(small.parent)
    assert load(small.parent, base=tiny_folder, device="cpu").files.single == small
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(small, tmp_path / name)
    with pytest.raises(UserError, match=r"holds 2 GGUF files; one by its path, such as .*a\.gguf, would work"):
        load(tmp_path, base=tiny_folder, device="cpu")
