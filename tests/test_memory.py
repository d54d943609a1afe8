"""Memory plans: chosen without GPU and weights, refused early, predicted as measured."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel

from t2v_kit.errors import UserError
from t2v_kit.memory import machine
from t2v_kit.memory.choose import as_plan, cheaper, fitting, ladder, out_of_memory, plan
from t2v_kit.memory.estimate import GIB, coefficients, estimate
from t2v_kit.memory.footprint import (
    LiveBytes,
    _denoising_count,
    attention_flops,
    decoding_cost,
    denoising_bytes,
    linear_flops,
)
from t2v_kit.memory.machine import Machine, machine_with
from t2v_kit.memory.plan import OFFLOADS, PARTS, Part, Plan, Size
from t2v_kit.memory.rules import RULES, as_markdown, broken, check
from t2v_kit.memory.weights import Configs, weights

F32 = Part("float32")
CARD = Machine(24, 64)


# --- what this machine has


def test_a_card_counts_with_the_share_that_the_process_may_take(monkeypatch):
    """The whole of it, times what PyTorch has been told to stay within; the name, and the generation in two numbers."""
    card = SimpleNamespace(total_memory=80 * GIB, major=9, minor=1, name="H100")
    cuda = {"is_available": lambda: True, "current_device": lambda: 1, "get_device_properties": {1: card}.get}
    for name, found in (cuda | {"get_per_process_memory_fraction": {1: 0.25}.get}).items():
        monkeypatch.setattr(torch.cuda, name, found)
    for device in (None, "cuda:1", torch.device("cuda", 1)):
        here = Machine.here(device)
        assert (here.vram_gb, here.capability, here.gpu) == (20, (9, 1), "H100")
    assert Machine.here("cpu").vram_gb == 0


def test_a_container_has_no_more_ram_than_it_may_use(monkeypatch):
    whole = Machine.here("cpu").ram_gb
    monkeypatch.setattr(machine, "_container_limit", lambda: 0.5 * GIB)
    assert Machine.here("cpu").ram_gb == 0.5 < whole


@pytest.mark.parametrize(("text", "limit"), [("1073741824\n", GIB), ("max\n", float("inf")), (None, float("inf"))])
def test_the_limit_of_a_control_group(monkeypatch, tmp_path, text, limit):
    file = tmp_path / "memory.max"
    if text:
        file.write_text(text)
    monkeypatch.setattr(machine, "Path", lambda path: file if path.endswith("memory.max") else tmp_path / "none")
    assert machine._container_limit() == limit


def test_other_amounts_of_memory():
    """What is given counts; the rest is this machine's."""
    here = Machine.here()
    assert machine_with(24, 64) == CARD
    assert (machine_with(24, None).vram_gb, machine_with(24, None).ram_gb) == (24, here.ram_gb)
    assert machine_with(None, None) == here and machine_with(None, 8).ram_gb == 8
    for wrong in (-1, True, "12", float("inf")):
        with pytest.raises(UserError, match="must be a number of GB; 16 would work"):
            machine_with(wrong, None)


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
        (lambda: plan(2, 4, 320, 512), "no plan fits 2 GB .* and 4 GB of RAM; a smaller height and width may work"),
        (lambda: estimate(Plan(), gpu="RTX 9090"), "gpu='RTX 9090'.*step_seconds= of a measured step works"),
        (lambda: as_plan("much", machine=CARD), "memory='much'.*'auto' would work"),
        (lambda: as_plan("12", machine=Machine(0, 32)), "memory='12': this machine has no GPU"),
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


def test_large_pictures_are_always_tiled():
    """The attention in the VAE's middle takes tokens squared: above 512x512 there are tiles however large the card."""
    large = Machine(500, 500)
    assert plan(machine=large, height=512, width=512, num_frames=17).tile is None
    assert plan(machine=large, height=512, width=528, num_frames=17).tile is not None
    assert plan(machine=large, height=528, width=512, num_frames=17).tile is not None


def test_a_t4_gets_float16():
    made = plan(machine=Machine(16, 12.7, (7, 5), gpu="Tesla T4"), height=320, width=512, num_frames=61)
    assert {part.dtype for part in made.parts().values()} == {"float16"}


def test_a_cpu_gets_float32_and_nothing_else():
    made = plan(0, 16)
    assert all(made.parts()[name] == F32 for name in PARTS) and not list(broken(made, Machine(0, 16)))


def test_a_size_that_is_too_long_names_one_that_works():
    with pytest.raises(UserError, match=r"320x512x129 .*: no plan fits 3 GB .* 64 GB of RAM; num_frames=61 would work"):
        plan(3, 64, 320, 512, 129)
    assert plan(3, 64, 320, 512, 61).one_stage


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
    "streams without RAM": (Plan(transformer=Part(offload="group")), Machine(24, 16)),
    "a GGUF file": (Plan(transformer=Part(offload="disk")), CARD),
    "waiting_blocks": (Plan(waiting_blocks=2), CARD),
}
GGUF = ("a GGUF file",)  # what is true of such a file alone


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.what[:30])
def test_every_rule_is_broken_by_its_example_and_by_no_good_plan(rule, tmp_path):
    """The table of rules is complete: each has an example here, names its remedy, and no plan of ours breaks it."""
    (start,) = [name for name in BREAKS if name in rule.what]
    (made, machine), context = BREAKS[start], {"padded_prompt": True}
    packed = start in GGUF
    if packed:
        (tmp_path / "a.gguf").touch()
        context["model"] = tmp_path / "a.gguf"
    assert rule.broken(made, machine, context)
    assert rule.what in as_markdown() and rule.remedy in as_markdown()
    if not packed:  # the others want to count the file, which is empty; test_gguf_plans has a whole one
        assert rule in broken(made, machine, **context)
        with pytest.raises(UserError, match="remedy: ") as caught:
            check(made, machine, **context)
        assert "\n" not in str(caught.value)
    good = ladder(packed=packed)
    assert not [kind.name for kind in good if rule.broken(kind, Machine(80, 128), context)]


@pytest.mark.parametrize(
    ("version", "refused"),
    [("0.45.1", True), ("0.48.0rc1", True), ("0.48", False), ("0.48.0", False), ("0.50rc1", False), ("1.0", False),
     ("0.100.0", False), ("0.49.0.dev0", False), ("0.48+cu130", False)],
)  # fmt: skip
def test_versions_are_compared_as_packaging_does(version, refused):
    """Candidates, development versions and local builds have letters in them, which a tuple of numbers cannot hold."""
    machine = Machine(24, 64, bitsandbytes=version)
    rules = [rule.what for rule in broken(Plan(transformer=Part("bfloat16", "int8", "model")), machine)]
    assert any("before 0.48" in rule for rule in rules) == refused


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


def test_a_compiled_vae_is_counted_as_it_was_measured():
    """Decoding 720x1280x129 in tiles of 512 pixels on an H200: 15.54 GiB as it is, 6.98 compiled, each within 2 %."""
    configs = Configs.of("hunyuan")
    for compiled, measured in ((False, 15.539), (True, 6.983)):
        work, _ = decoding_cost(configs.vae, (33, 90, 160), (512, 448), torch.float16, compiled)
        assert (weights(configs, "vae", 2).total + work) / GIB == pytest.approx(measured, rel=0.02)
    fast, slow = (
        estimate(Plan(tile=(512, 448), compile=each), Size(720, 1280, 129), stages=("decode",)).rows[0]
        for each in (True, False)
    )
    assert fast["seconds"] < 0.6 * slow["seconds"] and fast["work_gb"] < 0.6 * slow["work_gb"]


@pytest.mark.parametrize(("frames", "measured"), [(61, 4.65), (129, 8.27)])
def test_streamed_blocks_are_counted_where_they_work(frames, measured):
    """The single-stream blocks make the most and weigh the least: two peaks of an H200, within 2 %."""
    streamed = next(made for made in ladder() if made.name == "streamed")
    (row,) = estimate(streamed, Size(544, 960, frames), stages=("denoise",)).rows
    assert row["vram_gb"] == pytest.approx(measured, rel=0.02)


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


def test_streaming_weights_sets_the_pace_of_a_small_video():
    """A step that computes for less time than its weights travel takes as long as these."""
    streamed = next(made for made in ladder() if made.name == "streamed")
    small, large = (
        estimate(streamed, Size(320, 512, frames, num_inference_steps=1), stages=("denoise",)).rows[0]["seconds"]
        for frames in (1, 129)
    )
    travels = 25.64 / coefficients()["seconds"]["bus_gb_a_second"]  # 12.82 billion numbers of two bytes
    assert small == pytest.approx(travels, rel=0.01) and large > 1.2 * small


@pytest.mark.parametrize(
    ("gpu", "tflops"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA GeForce RTX 4090", 165),
     ("NVIDIA L4", 121), ("NVIDIA GeForce RTX 3090", 71), ("Tesla T4", 65)],
)  # fmt: skip
def test_seconds_of_other_cards_follow_their_data_sheets(gpu, tflops):
    """Dense 16-bit TFLOP/s, of which the H200 that was measured has 989; the estimate says what it was scaled by."""
    stages = ("encode", "denoise")
    ours, others = (estimate(Plan(), Size(320, 512, 61), gpu=name, stages=stages) for name in ("NVIDIA H200", gpu))
    for one, other in zip(ours.rows, others.rows):
        assert other["seconds"] / one["seconds"] == pytest.approx(989 / tflops)
        assert other["vram_gb"] == one["vram_gb"]
    assert ours.seconds_are == "measured coefficients of an NVIDIA H200"
    assert others.seconds_are == f"measured coefficients of an NVIDIA H200, scaled to {gpu}'s data sheet"


def test_a_text_encoder_on_disk_takes_the_time_to_read_it():
    there, on_disk = (
        estimate(Plan(text_encoder=Part("float16", "none", offload)), Size(320, 512, 61), stages=("encode",)).rows[0]
        for offload in ("none", "disk")
    )
    rate = coefficients()["seconds"]["disk_gb_a_second"]
    read = (on_disk["seconds"] - there["seconds"]) * rate / GIB * 1e9
    assert read == pytest.approx(13.98, rel=0.02)  # GiB of Llama's 7.5 billion numbers in float16


def test_a_transformer_on_disk_is_read_in_every_step():
    size = Size(320, 512, 61, num_inference_steps=3)
    there, on_disk = (
        estimate(Plan(transformer=Part("bfloat16", "none", offload)), size, stages=("denoise",)).rows[0]["seconds"]
        for offload in ("none", "disk")
    )
    assert on_disk - there == pytest.approx(3 * 25.64 / coefficients()["seconds"]["disk_gb_a_second"], rel=0.01)


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


def test_the_ram_of_an_estimate_is_what_waits_there():
    """The process, networks that wait in RAM, and when frames are decoded these in 8 bits."""
    size, known = Size(544, 960, 61), coefficients()["ram"]
    on_gpu = {row["stage"]: row["ram_gb"] for row in estimate(Plan(), size).rows}
    assert on_gpu["encode"] == on_gpu["denoise"] == known["process_gib"]
    frames = 3 * 544 * 960 * 61 / GIB
    assert frames == pytest.approx(0.089, abs=0.001)
    assert on_gpu["decode"] - known["process_gib"] == pytest.approx(frames)
    offloaded = estimate(Plan(transformer=Part("bfloat16", "none", "model")), size)
    heavy = weights(Configs.of("hunyuan"), "transformer", 2).total / GIB
    assert offloaded.rows[0]["ram_gb"] - on_gpu["encode"] == pytest.approx(heavy)
    one_stage = estimate(Plan(transformer=Part("bfloat16", "none", "model"), one_stage=True), size)
    assert one_stage.rows[0]["ram_gb"] == known["process_gib"] and one_stage.rows[1]["ram_gb"] > 20


def test_a_plan_must_fit_the_card_beside_its_context_and_the_ram():
    """The whole card less what CUDA keeps for itself; at exactly as much it fits."""
    need = estimate(Plan(), Size(320, 512, 61))
    context = coefficients()["vram"]["context_gib"]
    for vram, ram, fits in ((0.01, 0, True), (-0.01, 0, False), (0.01, -0.01, False)):
        assert need.fits(Machine(need.vram_gb + context + vram, need.ram_gb + ram)) == fits


def test_an_estimate_reads_and_draws():
    """A row a stage, and a picture that is redder where a bar crosses the card's line."""
    found = estimate(plan(12, 64, 544, 960, 61), Size(544, 960, 61))
    assert [row["stage"] for row in found.rows] == ["encode", "denoise", "decode"] and "denoise" in str(found)
    assert f"{found.rows[1]['seconds']:.1f}" in str(found) and "unknown" not in str(found)
    fits, crosses = found.picture(24, 64), found.picture(2, 64)
    assert fits.dtype == np.uint8 and fits.ndim == 3
    red = [((p[..., 0] > 170) & (p[..., 1] < 90)).sum() for p in (fits, crosses)]
    assert red[0] == 0 < red[1]


def test_blocks_that_wait_are_as_large_in_ram_as_on_the_gpu():
    """Whole blocks in 16 bits, of which two come back by turns; of 4 bits all but the scales, which stay."""
    own = weights(Configs.of("hunyuan"), "transformer", 2)
    last = [block for stack in own.stacks for block in stack][-5:]
    assert own.waiting(5, None) == sum(last)
    assert own.without_last(5, None) == own.total - sum(sorted(last)[:3])
    assert own.waiting(1000, None) == sum(block for stack in own.stacks for block in stack)
    packed = 0.5 + 4 / 64  # bytes of a weight with its share of a scale
    assert own.waiting(5, packed) == int(sum(last) * 0.5 / packed)


# --- out of memory


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
