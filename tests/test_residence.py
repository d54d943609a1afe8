"""Memory plans carried out: the same bits wherever networks wait, and what quantisation does to them."""

import dataclasses
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import PROMPT
from diffusers import FirstBlockCacheConfig

from t2v_kit import (
    Settings,
    decode,
    denoise,
    encode_prompt,
    frozen_norms,
    initial_latents,
    load,
    tiles,
    watch_attention,
)
from t2v_kit.errors import UserError
from t2v_kit.hunyuan.chunks import use_chunks
from t2v_kit.memory.choose import OutOfMemory
from t2v_kit.memory.plan import Part, Plan
from t2v_kit.model import loading
from t2v_kit.model.quantise import code_book, layer_errors, linear, quantised, round_trip
from t2v_kit.model.residence import CallHook, pin

F32 = Part("float32")


# --- carried out


@pytest.fixture
def let_through():
    """Offload without a GPU moves weights from RAM to RAM: useless, which is why a rule refuses it, but testable."""
    patch = pytest.MonkeyPatch()
    patch.setattr(loading, "check", lambda made, *_, **__: made)
    yield
    patch.undo()


def run(models, settings, padded=False):
    full = settings.check(models)
    prompt = encode_prompt(models, PROMPT, padded)
    *_, last = denoise(models, prompt, initial_latents(models, full), full)
    return last.latents, decode(models, last.latents)


MOVED = {
    "chunks": Plan("chunks", F32, F32, F32, chunk=5),
    "one stage": Plan("one stage", F32, F32, F32, one_stage=True, chunk=7),
    "model": Plan("model", *[Part("float32", "none", "model")] * 3, slicing=True),
    "group": Plan("group", *[Part("float32", "none", "group")] * 2, Part("float32", "none", "model"), chunk=6),
    "disk": Plan("disk", *[Part("float32", "none", "disk")] * 2, F32, one_stage=True),
    "sequential": Plan("sequential", *[Part("float32", "none", "sequential")] * 2, F32),
}


@pytest.mark.parametrize("made", MOVED.values(), ids=MOVED)
def test_a_plan_changes_where_things_are_and_not_the_video(let_through, tiny_folder, tiny32, settings, made):
    """Twice in a row, so that what left comes back: the latents to 1e-5, the frames to a step."""
    latents, video = run(tiny32, settings)
    models = load(tiny_folder, memory=made, device="cpu")
    assert models.memory == made
    told: list = []
    for _ in range(2):
        other, frames = run(models, settings)
        decode(models, other, lambda *each: told.append(each))
        assert float((other - latents).norm() / latents.norm()) < 1e-5
        assert np.abs(frames.astype(int) - video).max() <= 1
    assert told == [(1, 1)] * 2


def test_one_stage_is_there_at_a_time(let_through, tiny_folder, settings):
    """What a stage needs has contents; the networks of the other stages are skeletons, with configuration and dtype."""
    models = load(tiny_folder, memory=MOVED["one stage"], device="cpu")

    def there():
        names = ("text_encoder", "text_encoder_2", "transformer", "vae")
        return {name for name in names if not next(getattr(models.pipe, name).parameters()).is_meta}

    assert there() == set()
    prompt = encode_prompt(models, PROMPT)
    assert there() == {"text_encoder", "text_encoder_2"}
    full = settings.check(models)
    *_, step = (
        each for each in denoise(models, prompt, initial_latents(models, full), full) if there() == {"transformer"}
    )
    assert step.index == 2
    decode(models, step.latents)
    assert there() == {"vae"} and models.pipe.transformer.dtype == torch.float32
    assert models.network("transformer") is models.pipe.transformer and there() == {"transformer"}


def test_a_step_cache_survives_one_stage_at_a_time(let_through, tiny_folder, settings):
    """Switched on for a transformer that leaves and comes back, it is on again, and starts empty each time."""
    models = load(tiny_folder, memory=MOVED["one stage"], device="cpu")
    models.network("transformer").enable_cache(FirstBlockCacheConfig(threshold=1e9))
    full = settings.check(models)
    models.network("text_encoder")
    prompt = encode_prompt(models, PROMPT)
    models.network("transformer")
    first, second = (
        [step.latents for step in denoise(models, prompt, initial_latents(models, full), full)][-1] for _ in range(2)
    )
    assert models.pipe.transformer.is_cache_enabled and torch.equal(first, second)


@pytest.mark.parametrize("padded", [False, True])
def test_chunks_are_the_same_mathematics(pocket, padded):
    """On pocket in float32, with padding and without: within 1e-5 of the blocks as they are."""
    small = Settings(PROMPT, num_inference_steps=2, num_frames=5).check(pocket)
    prompt, noise = encode_prompt(pocket, PROMPT, padded), initial_latents(pocket, small)
    plain = [step.latents for step in denoise(pocket, prompt, noise, small)][-1]
    models = load("pocket", device="cpu")
    use_chunks(models.pipe.transformer, 100)
    chunked = [step.latents for step in denoise(models, prompt, noise, small)][-1]
    assert float((chunked - plain).norm() / plain.norm()) < 1e-5


def test_auto_on_a_cpu_is_the_model_as_it_is(pocket):
    models = load("pocket", memory="auto", device="cpu")
    assert models.memory.name == "CPU" and models.pipe.transformer.dtype == torch.float32
    assert torch.equal(models.pipe.transformer.proj_out.weight, pocket.pipe.transformer.proj_out.weight)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"memory": Plan(transformer=Part("float32", "nf4"))}, "no GPU.*remedy: memory=None computes on the CPU"),
        ({"memory": "12GB"}, "memory='12GB': this machine has no GPU"),
        ({"memory": "auto", "dtype": "float32"}, "the plan has the dtypes"),
        ({"memory": {"transformer": {"dtype": "bfloat16", "offload": "group"}}}, "no GPU"),
    ],
)
def test_load_refuses_before_it_reads(arguments, says):
    with pytest.raises(UserError, match=says):
        load("pocket", device="cpu", **arguments)


def test_hunyuan_is_refused_before_the_download(monkeypatch):
    """A plan that cannot work is told without asking the hub for 40 GB."""

    def download(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", download)
    with pytest.raises(UserError, match="remedy"):
        load("hunyuan", memory=Plan(transformer=Part("float32", "nf4")), device="cpu")


def test_pinned_memory_is_given_back_with_the_last_weight(monkeypatch):
    """CUDA is told the address before the RAM is anybody else's; what it copies from is what was there."""
    calls = []

    class Cuda:
        cudaHostRegister = staticmethod(lambda address, size, flags: calls.append((address, size)) or 0)
        cudaHostUnregister = staticmethod(lambda address: calls.remove(next(c for c in calls if c[0] == address)) or 0)

    monkeypatch.setattr(torch.cuda, "cudart", Cuda)

    def one_bias() -> torch.Tensor:
        network = torch.nn.Module()
        network.blocks = torch.nn.ModuleList(torch.nn.Linear(6, 5) for _ in range(3))
        before = [weight.clone() for weight in network.parameters()]
        assert pin(network, torch.device("cuda")) == len(calls) == 3
        for weight, old in zip(network.parameters(), before):
            assert torch.equal(weight, old) and any(a <= weight.data_ptr() < a + size for a, size in calls)
        return network.blocks[1].bias.data

    kept = one_bias()
    gc.collect()
    assert len(calls) == 1
    del kept
    assert not calls


def test_threads_take_turns_with_one_models_networks(let_through, tiny_folder, tiny32):
    """One decodes while another denoises under a plan with room for one stage: no network goes while it works."""
    models = load(tiny_folder, memory=MOVED["one stage"], device="cpu")
    latents, words = torch.randn(1, 4, 3, 4, 6), torch.randn(1, 7, 32)
    given = (latents, torch.ones(1), words, torch.ones(1, 7), torch.randn(1, 24), torch.ones(1))

    @torch.no_grad()
    def step(pipe):
        return pipe.transformer(*given, return_dict=False)[0]

    @torch.no_grad()
    def frames(pipe):
        return pipe.vae.decode(latents, return_dict=False)[0]

    wanted, start = [step(tiny32.pipe), frames(tiny32.pipe)], threading.Barrier(2)

    def repeat(work) -> list[torch.Tensor]:
        start.wait()
        return [work(models.pipe) for _ in range(4)]

    with ThreadPoolExecutor(2) as threads:
        runs = [run.result() for run in [threads.submit(repeat, work) for work in (step, frames)]]
    for results, exact in zip(runs, wanted):
        assert all(torch.allclose(result, exact, atol=1e-5) for result in results)


@pytest.mark.parametrize("kind", ["model", "group"])
def test_a_stage_leaves_the_device_as_it_found_it(let_through, tiny_folder, monkeypatch, kind):
    """After `release` nothing that the plan offloads is left on the device, and a network works again afterwards."""
    models = load(tiny_folder, memory=MOVED[kind], device="cpu")
    where = {name: "cpu" for name in models.residence.parts}  # a CPU stands for the card: so the orders are recorded

    def record(name, original):
        return lambda self, *args, **kwargs: where.update({name: args[0]}) or original(*args, **kwargs)

    for name, network in models.residence.parts.items():
        monkeypatch.setattr(network, "to", record(name, network.to).__get__(network))
        if name in models.residence._root_groups:
            group = models.residence._root_groups[name]
            monkeypatch.setattr(group, "offload_", lambda name=name: where.update({name: "cpu"}))
    card = monkeypatch.setattr(models.residence, "device", torch.device("cpu", 0)) or models.residence.device
    for name in ("text_encoder", "transformer", "text_encoder", "vae"):
        models.network(name)
        if kind == "model":
            assert [other for other, place in where.items() if place == card] == [name]
        models.residence.release()
        assert set(where.values()) == {"cpu"}


def test_a_call_hook_is_removed_without_a_trace():
    """The instance has its own methods again, those that it had before, and the class never changed."""
    layer, calls = torch.nn.Linear(2, 2), []
    before, own = dict(vars(layer)), torch.nn.Linear.forward
    hook = CallHook(layer, ("forward", "extra_repr"), lambda method, inner, *args: calls.append(method) or inner(*args))
    x = torch.ones(1, 2)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias)) and "in_features" in repr(
        layer
    )
    assert calls == ["forward", "extra_repr"]
    hook.remove()
    assert vars(layer) == before and torch.nn.Linear.forward is own
    layer.forward = earlier = lambda x: 2 * x
    CallHook(layer, ("forward",), lambda *_: None).remove()
    assert layer.forward is earlier


@pytest.mark.parametrize("name", ["int4", None])
def test_another_quantisation_is_refused(name):
    with pytest.raises(UserError, match=f"how={name!r}: must be int8 or nf4"):
        round_trip(torch.ones(1, 64), name)


# --- out of memory


@pytest.mark.parametrize(
    "network, call, stage", [("transformer", "proj_out", "denoise"), ("vae", "post_quant_conv", "decode")]
)
def test_out_of_memory_says_what_to_do(let_through, tiny_folder, settings, monkeypatch, network, call, stage):
    """Stage, plan, next cheaper plan, and what is kept; then memory suffices again, and so does the model."""
    models = load(tiny_folder, memory=Plan("large", F32, F32, F32), device="cpu")
    layer = getattr(getattr(models.pipe, network), call)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full.")

    monkeypatch.setattr(layer, "forward", full)
    with pytest.raises(OutOfMemory, match=f"^{stage}: out of GPU memory with plan 'large'.*2.00 GiB") as caught:
        run(models, settings)
    assert "latents.safetensors" in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.undo()
    run(models, settings)


def test_other_errors_stay_what_they_are(let_through, tiny_folder, settings, monkeypatch):
    models = load(tiny_folder, memory=Plan("large", F32, F32, F32), device="cpu")
    monkeypatch.setattr(models.pipe.transformer.proj_out, "forward", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(models, settings)


# --- what quantisation does


def test_code_books():
    """int8: 255 even steps. nf4: 16 levels from -1 to 1 with an exact zero, close together where numbers are many."""
    eight, four = code_book("int8"), code_book("nf4")
    assert len(eight) == 255 and np.ptp(np.diff(eight)) < 1e-6
    assert len(four) == 16 and (four[0], four[7], four[15]) == (-1, 0, 1)
    assert np.diff(four)[7] < np.diff(four)[0] and np.diff(four)[7] < np.diff(four)[-1]


def test_nf4_is_what_bitsandbytes_multiplies_with():
    """A rounded layer and Linear4bit itself, from the same numbers: equal to rounding, and 9 % off the exact one."""
    from bitsandbytes.nn import Linear4bit

    torch.manual_seed(0)
    plain = torch.nn.Linear(192, 256)
    theirs = Linear4bit(192, 256, quant_type="nf4", compute_dtype=torch.float32, compress_statistics=False)
    theirs.load_state_dict(plain.state_dict())
    theirs = theirs.to("cpu")
    x = torch.randn(5, 192)
    exact = plain(x)
    ours = linear(plain, "nf4")(x)
    assert float((theirs(x) - ours).norm() / ours.norm()) < 1e-5
    assert 0.07 < float((ours - exact).norm() / exact.norm()) < 0.12


def test_int8_loses_less_than_nf4_and_leaves_the_original(pocket):
    """Every linear layer of the transformer becomes Linear8bitLt; the given model keeps its own."""
    from bitsandbytes.nn import Linear8bitLt

    before = pocket.pipe.transformer.proj_out.weight.clone()
    eight = quantised(pocket, "int8").pipe.transformer
    layers = [layer for layer in eight.modules() if isinstance(layer, torch.nn.Linear)]
    assert layers and all(isinstance(layer, Linear8bitLt) for layer in layers)
    assert torch.equal(pocket.pipe.transformer.proj_out.weight, before)
    small, large = (np.mean(list(layer_errors(pocket.pipe.transformer, how).values())) for how in ("int8", "nf4"))
    assert small < 0.02 < large < 0.2


@pytest.mark.parametrize("how", ["int8", "nf4"])
def test_a_quantised_pocket_denoises_otherwise(pocket, settings, how):
    """Near the exact latents, and not equal to them."""
    small = dataclasses.replace(settings, num_frames=5, num_inference_steps=2).check(pocket)
    prompt, noise = encode_prompt(pocket, PROMPT), initial_latents(pocket, small)
    exact, rounded = (
        [step.latents for step in denoise(models, prompt, noise, small)][-1]
        for models in (pocket, quantised(pocket, how))
    )
    assert 1e-5 < float((rounded - exact).norm() / exact.norm()) < 0.5


def test_what_is_changed_within_a_block_is_there_at_its_stage(let_through, tiny_folder, settings):
    """Tiles, frozen norms and watched attention, begun while the network they are about is not there."""
    models = load(tiny_folder, memory=dataclasses.replace(MOVED["one stage"], tile=(32, 16)), device="cpu")
    latents, prompt = torch.randn(1, 4, 3, 4, 6), encode_prompt(models, PROMPT)
    with tiles(models, pixels=16, overlap=8), frozen_norms(models):
        decode(models, latents)
        assert models.pipe.vae.tile_sample_min_height == 16
        decode(models, 2 * latents)
        assert any("forward" in vars(module) for module in models.pipe.vae.modules())
    assert (models.pipe.vae.use_tiling, models.pipe.vae.tile_sample_min_height) == (True, 32)  # the plan's own
    with watch_attention(models, prompt, "man") as watched:
        list(denoise(models, prompt, initial_latents(models, settings), settings))
    assert watched.maps["man"].shape[0] == 3


def test_quantising_leaves_the_callers_random_numbers(tiny32):
    before = torch.random.get_rng_state()
    quantised(tiny32, "nf4")
    assert torch.equal(torch.random.get_rng_state(), before)
