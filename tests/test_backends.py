"""Attention kernels: which one is chosen, that each computes what PyTorch's own does, and compiled blocks."""

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from diffusers.models.attention_dispatch import AttentionBackendName

from t2v_kit import Settings, UserError, decode, encode_prompt, frozen_norms, initial_latents, load, velocity
from t2v_kit.hunyuan import backends
from t2v_kit.hunyuan.backends import (
    EXACT,
    FP8,
    NO_MASKS,
    choose_backend,
    probe,
    ranking,
    speeds,
    unusable,
    use_backend,
)
from t2v_kit.hunyuan.compiling import GRAPHS, compile_blocks, compile_vae
from t2v_kit.hunyuan.kernel_names import KERNELS
from t2v_kit.hunyuan.masks import blocks, skip_full_masks
from tests.conftest import tiny_transformer

CPU = torch.device("cpu")
H100 = (9, 0)


def test_on_a_cpu_auto_is_pytorchs_own(tiny32):
    assert choose_backend("auto", CPU, torch.float32, 64) == "native"
    assert tiny32.attention == "native" and "attention" not in tiny32.arguments
    assert all(block.attn.processor._attention_backend is None for block in blocks(tiny32.pipe.transformer))


@pytest.mark.parametrize(
    ("name", "near"), [("fa3", "_flash_3"), ("flash_3", "_flash_3"), ("natve", "native"), ("cudnn", "_native_cudnn")]
)
def test_a_wrong_name_gives_the_near_one(name, near):
    with pytest.raises(UserError, match=f"attention='{name}': .* did you mean '{near}'"):
        load("pocket", attention=name)


def test_what_is_not_installed_or_not_for_this_device_is_refused(monkeypatch):
    monkeypatch.setattr(backends.dispatch, "_CAN_USE_FLASH_ATTN_3", False)
    monkeypatch.setattr(backends, "plug_in_flash_3", lambda: False)
    with pytest.raises(UserError, match=r"attention='_flash_3': .*t2v-kit\[fast\].*attention='auto' would work"):
        choose_backend("_flash_3", CPU, torch.float32, 64)
    with pytest.raises(UserError, match=r"attention='_native_cudnn': does not compute on cpu"):
        choose_backend("_native_cudnn", CPU, torch.bfloat16, 64)


def test_auto_takes_the_fastest_exact_kernel_that_works(monkeypatch):
    """An H100 played by the CPU: what was measured is the shipped table, what is installed is said here."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: H100)
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(backends, "unusable", lambda *_: None)
    with pytest.warns(UserWarning, match="attention: _flash_3, measured at 702 TFLOP/s"):
        assert choose_backend("auto", cuda, torch.bfloat16, 128) == "_flash_3"
    monkeypatch.setattr(backends, "unusable", lambda name, *_: "no")
    assert choose_backend("auto", cuda, torch.bfloat16, 128) == "native"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(backends, "unusable", lambda *_: None)
    assert choose_backend("auto", cuda, torch.float16, 128) == "native", "no such card was measured"


def test_the_table_is_of_diffusers_names_and_exact_kernels_alone_are_ranked():
    assert all(AttentionBackendName(row["backend"]) for row in speeds()["rows"])
    ranked = ranking(H100)
    assert [row["tflops"] for row in ranked] == sorted((row["tflops"] for row in ranked), reverse=True)
    assert "sage" in [row["backend"] for row in speeds()["rows"]] and "sage" not in [row["backend"] for row in ranked]


def test_the_probe_sees_a_wrong_kernel(monkeypatch):
    assert probe("_native_math", CPU, torch.float32, 16) < 1e-5
    monkeypatch.setitem(
        backends.dispatch._AttentionBackendRegistry._backends,
        AttentionBackendName._NATIVE_MATH,
        lambda query, key, value, **_: value,
    )
    assert "is wrong on this card" in unusable("_native_math", CPU, torch.float32, 16)


@pytest.mark.parametrize("chunk", [None, 64])
def test_a_padded_prompt_is_right_with_a_kernel_that_takes_no_mask(tiny_folder, monkeypatch, chunk):
    """The kernel would raise at a mask; without padding it computes, and only then."""
    calls = []

    def kernel(query, key, value, attn_mask=None, **_):
        calls.append(attn_mask)
        out = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
        return out.transpose(1, 2)

    registry = backends.dispatch._AttentionBackendRegistry
    monkeypatch.setitem(registry._backends, AttentionBackendName._FLASH_3, kernel)
    models = load(tiny_folder, device="cpu")
    settings = Settings("A red car.", height=32, width=48, num_frames=5, num_inference_steps=1)
    padded, plain = (encode_prompt(models, settings.prompt, padded) for padded in (True, False))
    noise = initial_latents(models, settings)
    exact = velocity(models, padded, noise, 1.0)
    if chunk:
        from t2v_kit.hunyuan.chunks import use_chunks

        use_backend(models.pipe.transformer, "_flash_3")
        use_chunks(models.pipe.transformer, chunk)
    else:
        use_backend(models.pipe.transformer, "_flash_3")
    assert "_flash_3" in NO_MASKS
    assert torch.allclose(velocity(models, padded, noise, 1.0), exact, atol=1e-5)
    assert not calls
    assert torch.allclose(velocity(models, plain, noise, 1.0), exact, atol=1e-5)
    assert len(calls) == len(blocks(models.pipe.transformer)) and set(calls) == {None}
    assert registry.get_active_backend()[0] == AttentionBackendName.NATIVE, "other models keep theirs"


def test_compiled_blocks_compute_the_same_at_every_length_of_prompt():
    """Traced, not compiled to machine code. More lengths than PyTorch's own limit of graphs, and still no fall-back."""
    torch.manual_seed(0)
    transformer = tiny_transformer().eval()
    skip_full_masks(transformer)

    def step(words: int) -> torch.Tensor:
        drawn = torch.Generator().manual_seed(words)
        with torch.no_grad():
            return transformer(
                hidden_states=torch.randn(1, 4, 2, 4, 6, generator=drawn),
                timestep=torch.tensor([500.0]),
                encoder_hidden_states=torch.randn(1, words, 32, generator=drawn),
                encoder_attention_mask=torch.ones(1, words),
                pooled_projections=torch.randn(1, 24, generator=drawn),
                guidance=torch.tensor([6000.0]),
                return_dict=False,
            )[0]

    lengths = range(5, 17)
    plain = [step(words) for words in lengths]
    compile_blocks(transformer, backend="eager")
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    assert all(torch.allclose(step(words), exact, atol=1e-5) for words, exact in zip(lengths, plain))
    assert 0 < counters["stats"]["unique_graphs"] < 2 * len(lengths)
    assert not counters["graph_break"]


def test_a_compiled_vae_computes_the_same_at_every_size():
    """Traced, not compiled: tiles of several sizes, a single frame, one half of a tile; and few graphs for them all."""
    torch.manual_seed(0)
    channels = (8, 8, 16, 16)
    vae = AutoencoderKLHunyuanVideo(block_out_channels=channels, layers_per_block=1, norm_num_groups=4).eval()
    for weight in vae.parameters():
        if weight.ndim == 1:  # norms begin with one and zero
            weight.data.normal_()
    drawn = torch.Generator()
    counters = torch._dynamo.utils.counters

    def both_ways(sizes: tuple) -> list[torch.Tensor]:
        found = []
        for frames, height, width in sizes:
            latents = torch.randn(2, 16, frames, height, width, generator=drawn.manual_seed(frames))
            pixels = torch.rand(1, 3, 4 * frames - 3, 8 * height, 8 * width, generator=drawn)
            found += [vae.decode(latents, return_dict=False)[0], vae.encode(pixels).latent_dist.mean]
        return found

    with torch.no_grad():
        sizes = ((1, 9, 6), (2, 8, 8), (4, 6, 9))
        plain = both_ways(sizes)
        compile_vae(vae, backend="eager")
        torch._dynamo.reset()
        counters.clear()
        for found, exact in zip(both_ways(sizes), plain, strict=True):
            assert torch.allclose(found, exact, atol=1e-4 * float(exact.abs().max()))
        graphs = counters["stats"]["unique_graphs"]
        both_ways(((3, 5, 12), (2, 7, 10)))
    assert 0 < counters["stats"]["unique_graphs"] < graphs + 6 < GRAPHS, "50 calls of other sizes need next to none"
    assert not counters["graph_break"]


def test_a_compiled_vae_keeps_frozen_norms():
    """What is put on a group norm holds, though compiled code computes the others."""
    clips = torch.rand(2, 1, 16, 2, 4, 6).mul(2)
    models = load("pocket", device="cpu")

    def decoded() -> list:
        with frozen_norms(models):
            return [decode(models, clip) for clip in clips]

    exact = decoded()
    compile_vae(models.pipe.vae, backend="eager")
    assert all(abs(found.astype(int) - plain).max() <= 1 for found, plain in zip(decoded(), exact))


def test_compiling_is_for_gpus():
    with pytest.raises(UserError, match="compile=True: networks are compiled for a GPU alone"):
        load("pocket", device="cpu", compile=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", [backend.value for backend in AttentionBackendName if "hub" not in backend.value])
def test_each_kernel_computes_what_float32_does(name):
    backends.plug_in_flash_3()
    if reason := unusable(name, torch.device("cuda"), torch.bfloat16, 128):
        assert "wrong" not in reason, reason
        pytest.skip(reason)
    assert probe(name, "cuda", torch.bfloat16, 128, tokens=4000) < (0.2 if "sage" in name or name == FP8 else EXACT)


def test_the_names_of_kernels_are_those_of_diffusers():
    """Our list exists so that a mistaken name is told before diffusers is imported."""
    assert sorted(KERNELS) == sorted(backend.value for backend in AttentionBackendName)
