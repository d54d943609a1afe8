"""Memory plans: chosen without GPU and weights, refused early, predicted as measured, carried out to the same bits."""

import dataclasses
import gc
import json

import numpy as np
import pytest
import torch
from conftest import PROMPT
from diffusers import FirstBlockCacheConfig, HunyuanVideoTransformer3DModel

from t2v_kit import decode, denoise, encode_prompt, frozen_norms, initial_latents, load, tiles, watch_attention
from t2v_kit.errors import UserError
from t2v_kit.hunyuan.chunks import check_mask, use_chunks
from t2v_kit.memory.choose import OutOfMemory, as_plan, cheaper, fitting, ladder, out_of_memory, plan
from t2v_kit.memory.estimate import GIB, coefficients, estimate
from t2v_kit.memory.footprint import (
    LiveBytes,
    _denoising_count,
    attention_flops,
    decoding_cost,
    denoising_bytes,
    linear_flops,
)
from t2v_kit.memory.machine import Machine
from t2v_kit.memory.plan import OFFLOADS, PARTS, Part, Plan, Size
from t2v_kit.memory.rules import RULES, as_markdown, broken, check
from t2v_kit.memory.weights import Configs, weights
from t2v_kit.model import loading
from t2v_kit.model.quantise import code_book, layer_errors, linear, quantised, round_trip
from t2v_kit.model.residence import pin

F32 = Part("float32")
CARD = Machine(24, 64)


# --- plans as data


def test_a_plan_is_data_that_reads_and_survives_json():
    """Its dict makes the same plan; printing names every part, the tiles and the chunks."""
    made = Plan("mine", transformer=Part("bfloat16", "none", "group"), tile=(256, 192), chunk=8192)
    assert Plan(**json.loads(json.dumps(made.as_dict()))) == made
    for word in ("mine", "transformer", "group", OFFLOADS["group"], "256 pixels", "8192 tokens"):
        assert word in str(made)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: Part(quantisation="int4"), "quantisation='int4': must be one of none, fp8, int8, nf4"),
        (lambda: Part(offload="streams"), "offload='streams'.*'none' works"),
        (lambda: Part("float8"), "dtype='float8'"),
        (lambda: Plan(tile=(100, 90)), r"tile=\(100, 90\).*\(256, 192\) would work"),
        (lambda: Plan(chunk=0), "chunk=0.*8192 would work"),
        (lambda: Plan(chunk="8192"), "chunk='8192'.*8192 would work"),
        (lambda: Plan(tile=256), r"tile=256: .*\(256, 192\) would work"),
        (lambda: Plan(vae="float16"), r"vae='float16': must be a Part.*Part\('float16'\) would work"),
        (lambda: Plan(vae={"foo": 1}), "vae: has no 'foo'; known are dtype, quantisation, offload"),
        (lambda: Plan(one_stage="no"), "one_stage='no': must be True or False"),
        (lambda: Plan(attention="nonsense"), "attention='nonsense': must be one of .*'native' would work"),
        (lambda: as_plan({"foo": 1}), "memory plan: has no 'foo'; known are name, text_encoder"),
        (lambda: plan(12, 32, model="pockets"), "model 'pockets': no such model.*'pocket'"),
        (lambda: plan("8", 32), "vram_gb='8'.*16 would work"),
        (lambda: plan(-1, 32), "vram_gb=-1"),
        (lambda: plan(2, 4), "no plan fits 2 GB of GPU memory and 4 GB of RAM"),
        (lambda: estimate(Plan(), gpu="RTX 9090"), "gpu='RTX 9090'.*step_seconds= of a measured step works"),
        (lambda: as_plan("much", machine=CARD), "memory='much'.*'auto' would work"),
        (lambda: as_plan("12", machine=Machine(0, 32)), "memory='12': this machine has no GPU"),
        (lambda: quantised(None, "int4") if round_trip(torch.ones(1, 64), "int4") else 0, "how='int4'"),
    ],
)
def test_mistakes_are_one_line_with_a_remedy(wrong, says):
    with pytest.raises(UserError, match=says) as caught:
        wrong()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("vram", "ram", "size"),
    [(8, 64, (544, 960, 61)), (12, 64, (544, 960, 129)), (16, 64, (720, 1280, 61)), (24, 64, (720, 1280, 129)),
     (16, 12.7, (320, 512, 61))],
)  # fmt: skip
def test_a_plan_fits_the_card_it_was_made_for(vram, ram, size):
    """The sizes that the table of the README promises; what was chosen is predicted to fit and breaks no rule."""
    machine = Machine(vram, ram)
    made = plan(vram, ram, *size)
    assert estimate(made, Size(*size)).fits(machine)
    assert not list(broken(made, machine))


def test_what_load_takes_can_be_planned_for(pocket):
    """By name, as loaded models, or the folder: the same."""
    size = Size(64, 64, 5)
    first, *others = [estimate(Plan(), size, model).rows for model in ("pocket", pocket, pocket.folder)]
    assert others == [first] * 2
    assert plan(12, 32, 64, 64, 5, model="pocket").name == "resident"


def test_less_memory_never_gives_a_plan_that_needs_more():
    """From a large card to a small one, what is needed falls."""
    size = Size(544, 960, 61)
    needs = [estimate(plan(vram, 64, 544, 960, 61), size).vram_gb for vram in (80, 32, 16, 8)]
    assert needs == sorted(needs, reverse=True)


def test_lossless_refuses_to_quantise():
    """With little RAM the plan quantises; asked not to, it takes the files instead of the RAM."""
    small = {"vram_gb": 12, "ram_gb": 16, "height": 320, "width": 512, "num_frames": 61}
    assert plan(**small).transformer.quantisation == "nf4"
    made = plan(**small, lossless=True)
    assert made.transformer == Part("bfloat16", "none", "disk")


def test_a_t4_gets_float16():
    made = plan(machine=Machine(16, 12.7, (7, 5), gpu="Tesla T4"), height=320, width=512, num_frames=61)
    assert {part.dtype for part in made.parts().values()} == {"float16"}


def test_a_cpu_gets_float32_and_nothing_else():
    made = plan(0, 16)
    assert all(made.parts()[name] == F32 for name in PARTS) and not list(broken(made, Machine(0, 16)))


def test_a_size_that_is_too_long_names_one_that_works():
    with pytest.raises(UserError, match=r"2160x3840x129.*num_frames=(\d+) would work|smaller height"):
        plan(8, 32, 2160, 3840, 129)


@pytest.mark.parametrize(("model", "lossless"), [("hunyuan", True), ("pocket", False)])
def test_the_length_that_is_named_works(model, lossless, monkeypatch):
    """It is looked for with the same model and among the same plans."""
    asked = []
    monkeypatch.setattr("t2v_kit.memory.choose.fitting", lambda *given: asked.append(given) or iter(()))
    with pytest.raises(UserError, match="a smaller height and width may work"):
        plan(3.3, 64, model=model, lossless=lossless)
    assert [(size.num_frames, *rest) for _, size, *rest in asked] == [(n, model, lossless) for n in (129, 61, 17)]


# --- rules

BREAKS = {
    "quantisation, offload or compilation without a GPU": (Plan(transformer=Part(offload="group")), Machine(0, 64)),
    "nf4 with streamed": (Plan(transformer=Part("bfloat16", "nf4", "sequential")), CARD),
    "int8 with streamed": (Plan(transformer=Part("bfloat16", "int8", "group")), CARD),
    "without bitsandbytes": (Plan(transformer=Part("bfloat16", "nf4")), Machine(24, 64, bitsandbytes=None)),
    "int8 that is moved": (Plan(transformer=Part("bfloat16", "int8", "model")), Machine(24, 64, bitsandbytes="0.45.1")),
    "a quantised VAE": (Plan(vae=Part("float16", "nf4")), CARD),
    "a streamed VAE": (Plan(vae=Part("float16", "none", "group")), CARD),
    "fp8 for the text encoder": (Plan(text_encoder=Part("float16", "fp8")), CARD),
    "bfloat16 below": (Plan(), Machine(16, 64, (7, 5))),
    "an attention backend": (Plan(attention="flash"), CARD),
    "streams without RAM": (Plan(transformer=Part(offload="group")), Machine(24, 16)),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.what[:30])
def test_every_rule_is_broken_by_its_example_and_by_no_good_plan(rule):
    """The table of rules is complete: each has an example here, names its remedy, and no plan of ours breaks it."""
    (start,) = [name for name in BREAKS if name in rule.what]
    made, machine = BREAKS[start]
    assert rule in broken(made, machine, padded_prompt=True)
    assert rule.what in as_markdown() and rule.remedy in as_markdown()
    with pytest.raises(UserError, match="remedy: ") as caught:
        check(made, machine, padded_prompt=True)
    assert "\n" not in str(caught.value)
    assert not [kind.name for kind in ladder() if rule in broken(kind, Machine(80, 128), padded_prompt=True)]


def test_a_mask_for_a_backend_that_takes_none_is_refused():
    check_mask(None)
    check_mask("native")
    with pytest.raises(UserError, match=r"attention='flash': takes no mask.*padded_prompt=False"):
        check_mask("flash")


# --- counting


def test_live_bytes_counts_what_lives():
    """Two tensors of 1 MB at once, then one: the peak is theirs, views and weights are free."""
    layer = torch.nn.Linear(512, 512, device="meta")
    with torch.no_grad(), torch.device("meta"), LiveBytes(layer) as live:
        a = torch.empty(512, 512)
        b = layer(a).view(-1)
        assert live.now == 2 * 512 * 512 * 4
        del a, b
        assert live.now == 0
    assert live.peak == 2 * 512 * 512 * 4


@pytest.mark.parametrize(("tokens", "measured"), [(16 * 20 * 32, 25.0), (16 * 34 * 60, 27.3), (33 * 45 * 80, 36.3)])
def test_the_count_is_what_an_h200_measured(tokens, measured):
    """README's three peaks of the transformer in diffusers as it is (bfloat16, padded prompt, mask), within 1 %."""
    configs = Configs.of("hunyuan")
    work = denoising_bytes(configs.transformer, tokens, 256, None, True, torch.bfloat16)
    assert (weights(configs, "transformer", 2).total + max(work)) / GIB == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize(("frames", "tile", "measured"), [(61, 512, 52.94), (129, 512, 53.26)])
def test_the_count_knows_what_convolutions_take_beside_their_tensors(frames, tile, measured):
    """Decoding 544x960 on an H200 with 38.62 GiB of weights and workspace there: within 1 %."""
    latents = (frames - 1) // 4 + 1, 68, 120
    work, _ = decoding_cost(Configs.of("hunyuan").vae, latents, (tile, 448), torch.float16)
    assert 38.62 + work / GIB == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize(("frames", "measured"), [(61, 4.65), (129, 8.27)])
def test_streamed_blocks_are_counted_where_they_work(frames, measured):
    """The single-stream blocks make the most and weigh the least: two peaks of an H200, within 2 %."""
    streamed = next(made for made in ladder() if made.name == "streamed")
    (row,) = estimate(streamed, Size(544, 960, frames), stages=("denoise",)).rows
    assert row["vram_gb"] == pytest.approx(measured, rel=0.02)


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


def test_operations_are_those_counted_before():
    """12.03 PFLOP for a step at 720x1280x129."""
    config = dict(Configs.of("hunyuan").transformer)
    assert (linear_flops(config, 118_840) + attention_flops(config, 118_840)) / 1e15 == pytest.approx(12.03, rel=0.001)


def test_seconds_are_those_measured():
    """Fitted on larger videos, they tell 320x512x61, too: 0.523 s were measured there, 22.54 at 720x1280x129."""
    for size, measured in ((Size(320, 512, 61), 0.523), (Size(720, 1280, 129), 22.54)):
        (row,) = estimate(Plan(), size, stages=("denoise",)).rows
        assert row["seconds"] / 50 == pytest.approx(measured, rel=0.05)
    (row,) = estimate(Plan(), Size(320, 512, 61), stages=("denoise",), step_seconds=2).rows
    assert row["seconds"] == 100


def test_a_text_encoder_on_disk_takes_the_time_to_read_it():
    there, on_disk = (
        estimate(Plan(text_encoder=Part("float16", "none", offload)), Size(320, 512, 61), stages=("encode",)).rows[0]
        for offload in ("none", "disk")
    )
    rate = coefficients()["seconds"]["disk_gb_a_second"]
    read = (on_disk["seconds"] - there["seconds"]) * rate / GIB * 1e9
    assert read == pytest.approx(13.98, rel=0.02)  # GiB of Llama's 7.5 billion numbers in float16


def test_the_weights_are_those_of_the_published_model():
    """12.8 billion parameters in the transformer, 7.5 in Llama without its head, and 60 blocks that stream in pairs."""
    configs = Configs.of("hunyuan")
    found = weights(configs, "transformer", 2)
    assert found.total / 2e9 == pytest.approx(12.82, abs=0.01) and list(map(len, found.stacks)) == [20, 40]
    assert weights(configs, "text_encoder", 2).total / 2e9 == pytest.approx(7.5, abs=0.02)
    assert found.rest < found.streamed[1] < found.streamed[0] < 2.5 * GIB
    assert 2.5 * GIB < weights(configs, "transformer", 2, 0.5625).total < 0.32 * found.total


def test_chunks_and_tiles_save_memory():
    configs = Configs.of("hunyuan")
    whole, chunked = (
        max(denoising_bytes(configs.transformer, 118_800, 40, chunk, False, torch.bfloat16)) for chunk in (None, 8192)
    )
    assert chunked < 0.45 * whole
    costs = [decoding_cost(configs.vae, (16, 68, 120), tile, torch.float16)[0] for tile in ((384, 320), (128, 96))]
    assert costs[1] < costs[0]


def test_the_count_is_what_really_lives(tiny_folder):
    """The same transformer with contents on a CPU holds as many bytes as the count on the meta device says."""
    config = Configs.of(tiny_folder).transformer
    model = HunyuanVideoTransformer3DModel(**dict(config))
    model.transformer_blocks.extend(model.transformer_blocks[:1])
    told = _denoising_count(config, 72, 7, None, True, torch.float32)
    with torch.no_grad(), LiveBytes(model) as live:
        model(torch.zeros(1, 4, 3, 8, 12), torch.zeros(1), torch.zeros(1, 7, 32), torch.ones(1, 7), torch.zeros(1, 24),
              torch.zeros(1))  # fmt: skip
    assert live.peak == pytest.approx(max(told), rel=0.1)  # attention on a CPU is not the GPU's


def test_an_estimate_reads_and_draws():
    """A row a stage, and a picture that is redder where a bar crosses the card's line."""
    found = estimate(plan(12, 64, 544, 960, 61), Size(544, 960, 61))
    assert [row["stage"] for row in found.rows] == ["encode", "denoise", "decode"] and "denoise" in str(found)
    fits, crosses = found.picture(24, 64), found.picture(2, 64)
    assert fits.dtype == np.uint8 and fits.ndim == 3
    red = [((p[..., 0] > 170) & (p[..., 1] < 90)).sum() for p in (fits, crosses)]
    assert red[0] == 0 < red[1]


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
    for _ in range(2):
        other, frames = run(models, settings)
        assert float((other - latents).norm() / latents.norm()) < 1e-5
        assert np.abs(frames.astype(int) - video).max() <= 1


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
    from t2v_kit import Settings

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


def test_the_next_cheaper_plan_is_cheaper():
    """Down the ladder until it ends, each needing less; the error quotes it so that it can be pasted."""
    size, steps = Size(544, 960, 61), 0
    made = Plan(transformer=Part(), chunk=None)
    while other := cheaper(made, size):
        assert estimate(other, size).vram_gb < estimate(made, size).vram_gb
        made, steps = other, steps + 1
    assert steps >= 2
    error = out_of_memory(Plan(), "denoise", size, "hunyuan", RuntimeError("CUDA out of memory. Tried."))
    assert str(cheaper(Plan(), size).as_dict()) in str(error)
    assert "this is the cheapest plan" in str(out_of_memory(made, "decode", size, "hunyuan", RuntimeError("")))


def test_fitting_starts_with_the_fastest():
    names = [made.name for made in fitting(Machine(24, 64), Size(320, 512, 61))]
    assert names and names == sorted(names, key=[kind.name for kind in ladder()].index)


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
