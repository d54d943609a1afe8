"""What means something on a GPU alone: bits, resuming, placing and moving networks, several threads on one model."""

import copy
import json
import threading
from pathlib import Path

import pytest
import torch
from conftest import PROMPT
from diffusers import HunyuanVideoPipeline
from safetensors.torch import load_file, save_file
from spandrel import ModelLoader
from spandrel.architectures.Compact import Compact

import t2v_kit.model.loading as loading_module
import t2v_kit.run.generating as run_module
from benchmarks.full_size import random_upscaler
from t2v_kit import Stopped, UserError, decode, denoise, encode_prompt, generate, initial_latents, resume
from t2v_kit.hunyuan.files import POCKET
from t2v_kit.hunyuan.masks import blocks, skip_full_masks
from t2v_kit.memory.choose import ladder
from t2v_kit.model.loading import load
from t2v_kit.model.quantise import HOWS, WHOLE, quantised
from t2v_kit.model.streamed import wait_in_ram
from t2v_kit.run.target import CHECKPOINT
from t2v_kit.settings import Settings
from t2v_kit.training.choosing import training_plan
from t2v_kit.training.looping import Trainer, train
from t2v_kit.training.options import TrainSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA is not available: nothing was tested on a GPU"),
]

SMALL = {"num_frames": 9, "height": 64, "width": 96, "num_inference_steps": 4, "seed": 3}
QUIET = {"upscale": "none", "progress": False}
CAR = "A red car drives to the left on the beach at sunset."
IN_BFLOAT16 = {"transformer": torch.bfloat16, "default": torch.float16}  # load's own choice on a GPU


@pytest.fixture(scope="module", params=["tiny", "pocket"])
def folder(request, tiny_folder) -> Path:
    return tiny_folder if request.param == "tiny" else POCKET


@pytest.fixture(scope="module")
def models(folder):
    return load(folder, device="cuda", dtype=IN_BFLOAT16)


@pytest.fixture
def no_encoder(monkeypatch):
    """MP4 files are not the point here, and the encoder may be missing on the machine that has the GPU."""
    monkeypatch.setattr(run_module, "save_video", lambda path, *_: Path(path).write_bytes(b"video"))


def pipeline_latents(pipe, settings, **prompt) -> torch.Tensor:
    pipe.scheduler.set_shift(settings.flow_shift)
    return pipe(
        height=settings.height,
        width=settings.width,
        num_frames=settings.num_frames,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        true_cfg_scale=settings.true_cfg_scale,
        generator=torch.Generator("cpu").manual_seed(settings.seed),
        output_type="latent",
        **prompt,
    ).frames


@pytest.mark.parametrize("cfg", [{}, {"true_cfg_scale": 2.0, "negative_prompt": ""}], ids=["plain", "true-cfg"])
def test_same_bits_as_the_pipeline_in_bfloat16(models, folder, cfg):
    """On the GPU too, the loop gives diffusers' own latents, by files that this package has not touched."""
    settings = Settings(CAR, padded_prompt=True, **SMALL, **cfg).check(models)
    *_, step = denoise(models, encode_prompt(models, CAR, padded=True), initial_latents(models, settings), settings)
    template = {"template": models.template["template"], "crop_start": models.template["crop_start"]}
    plain = HunyuanVideoPipeline.from_pretrained(folder, tokenizer=models.pipe.tokenizer, dtype=IN_BFLOAT16).to("cuda")
    plain.set_progress_bar_config(disable=True)
    negative = {"negative_prompt": ""} if cfg else {}
    theirs = pipeline_latents(plain, settings, prompt=CAR, prompt_template=template, **negative)
    assert step.latents.dtype == torch.bfloat16 and torch.equal(step.latents, theirs.to(step.latents.dtype))
    assert torch.isfinite(step.latents).all()


def test_compiled_networks_make_the_same_video(models, folder):
    """The blocks and the VAE, compiled for real: the difference is that of rounding, at two sizes of tile."""
    compiled = load(folder, device="cuda", dtype=IN_BFLOAT16, compile=True)
    plain, found = (generate(CAR, each, **SMALL, **QUIET).latents.float() for each in (models, compiled))
    assert (found - plain).norm() < 0.05 * plain.norm()
    for size in ((3, 8, 12), (3, 8, 6)):
        latents = torch.randn(1, plain.shape[1], *size, generator=torch.Generator().manual_seed(0))
        exact, fast = (decode(each, latents).astype(float) for each in (models, compiled))
        assert abs(fast - exact).max() <= 8 and abs(fast - exact).mean() < 0.2


def test_resume_gives_the_same_bits(models, tmp_path, no_encoder):
    """Stopped behind the second of four steps, saved, read and continued: the bits of an uninterrupted run."""
    whole = generate(CAR, models, **SMALL, **QUIET)
    steps: list = []
    with pytest.raises(Stopped):
        generate(CAR, models, tmp_path / "run", **SMALL, **QUIET, on_step=steps.append, stop=lambda: len(steps) == 2)
    assert (tmp_path / "run" / CHECKPOINT).exists()
    steps.clear()
    again = resume(tmp_path / "run", models, progress=False, on_step=steps.append)
    assert [step.index for step in steps] == [2, 3]
    assert again.latents.dtype == torch.bfloat16 and torch.equal(again.latents, whole.latents)
    assert torch.equal(load_file(tmp_path / "run/latents.safetensors")["latents"], whole.latents.cpu())
    made = json.loads((tmp_path / "run/settings.json").read_text())["made_with"]
    assert made["gpu"] == torch.cuda.get_device_name() and made["unknown_code"] is None


def test_finished_latents_are_reused_on_the_gpu(models, tmp_path, no_encoder):
    """Nothing that moves weights or counts tokens makes a second run look like another one."""
    first = generate(CAR, models, tmp_path / "first", **SMALL, **QUIET)
    second = generate(CAR, models, tmp_path / "second", **SMALL, **QUIET, fps=5)
    assert second.reused == tmp_path / "first" and torch.equal(second.latents.cpu(), first.latents.cpu())


def on_the_gpu(models) -> set[str]:
    """The networks with weights on the GPU."""
    names = ("text_encoder", "text_encoder_2", "transformer", "vae")
    return {name for name in names if any(weight.is_cuda for weight in getattr(models.pipe, name).parameters())}


def test_a_small_card_never_holds_two_stages(tiny_folder, monkeypatch):
    """Encode, denoise, encode again: whoever computes is alone, though the weights are moved by the library."""
    monkeypatch.setattr(loading_module.torch.cuda, "mem_get_info", lambda *_: (1, 1))
    models = load(tiny_folder, device="cuda", dtype=IN_BFLOAT16)
    monkeypatch.undo()
    settings = Settings(PROMPT, **SMALL).check(models)
    seen: list[set[str]] = []

    def look(*_) -> None:
        seen.append(on_the_gpu(models))

    networks = [models.pipe.text_encoder.layers[0], models.pipe.transformer.transformer_blocks[0]]
    handles = [network.register_forward_pre_hook(look) for network in networks]
    for _ in range(2):
        prompt = encode_prompt(models, PROMPT)
        list(denoise(models, prompt, initial_latents(models, settings), settings))
    for handle in handles:
        handle.remove()
    assert len(seen) == 2 * (1 + settings.num_inference_steps)
    for networks in seen:
        assert "transformer" not in networks or not networks & {"text_encoder", "text_encoder_2", "vae"}


def test_segments_grow_though_the_gpu_was_in_use_before(tiny_folder, monkeypatch):
    """As in a notebook that loads pocket first: without it, a plan's decoding runs out of memory that lies in gaps."""
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    before = torch.zeros(2**26, device="cuda")
    load(tiny_folder, memory=ladder()[0], device="cuda")
    after = torch.zeros(2**28, device="cuda")
    growing = {each["address"]: each["is_expandable"] for each in torch.cuda.memory_snapshot()}
    assert any(growing.values()), f"{before.data_ptr()}, {after.data_ptr()}: {growing}"


@pytest.fixture(scope="module")
def reference():
    """Latents of pocket without a plan, in the dtypes that the plans have."""
    models = load("pocket", device="cuda", dtype=IN_BFLOAT16)
    return generate(CAR, models, **SMALL, **QUIET).latents.float().cpu()


@pytest.mark.parametrize("plan", ladder(), ids=lambda plan: plan.name)
def test_every_kind_of_plan_on_pocket(plan, reference):
    """Moved weights give the same latents, quantised ones nearby; a second run of the same model gives the same."""
    try:
        models = load("pocket", memory=plan, device="cuda")
    except UserError as reason:
        if "bitsandbytes" in str(reason):
            pytest.skip("bitsandbytes is not installed: 4-bit plans were not tested")
        raise
    one, other = (generate(CAR, models, **SMALL, **QUIET).latents.float().cpu() for _ in range(2))
    assert torch.equal(one, other)
    error = ((one - reference).norm() / reference.norm()).item()
    quantised = plan.transformer.quantisation != "none"
    assert error < (0.5 if quantised else 1e-2), f"relative error {error:.3g}"
    assert not quantised or error > 0


@pytest.mark.parametrize("plan", ladder(), ids=lambda plan: plan.name)
def test_a_lora_under_every_kind_of_plan(plan, tmp_path):
    """It acts the same twice, as it must where networks are read anew, and at strength 0 it leaves the bits alone."""
    pytest.importorskip("peft", reason="peft is not installed: no LoRA was tested on a GPU")
    at, draw = "transformer.transformer_blocks.0.attn.to_q", torch.Generator().manual_seed(0)
    tensors = {f"{at}.lora_A.weight": torch.randn(4, 192, generator=draw) / 14}
    tensors[f"{at}.lora_B.weight"] = torch.randn(192, 4, generator=draw)
    save_file(tensors, tmp_path / "style.safetensors")
    try:
        models = load("pocket", memory=plan, device="cuda", loras=[tmp_path / "style.safetensors"])
    except UserError as reason:
        if "bitsandbytes" in str(reason):
            pytest.skip("bitsandbytes is not installed: 4-bit plans were not tested")
        raise
    one, other = (generate(CAR, models, **SMALL, **QUIET).latents for _ in range(2))
    models.loras.set(0)
    off = generate(CAR, models, **SMALL, **QUIET).latents
    without = generate(CAR, load("pocket", memory=plan, device="cuda"), **SMALL, **QUIET).latents
    assert torch.equal(one, other) and torch.equal(off, without)
    assert (one.float() - off.float()).norm() / off.float().norm() > 0.02


def test_the_panels_engine_makes_a_run(tmp_path, tiny_folder, no_encoder):
    """The playground, from the button to the history, with its model on the GPU."""
    pytest.importorskip("ipywidgets", reason="ipywidgets is not installed: the panel was not tested on a GPU")
    pytest.importorskip("mediapy", reason="mediapy is not installed: the panel was not tested on a GPU")
    from t2v_kit.playground import Playground

    panel = Playground(load(tiny_folder, device="cuda"), out=tmp_path / "runs")
    panel.engine.upscaler.value = "none"
    panel.controls.lock.value = True
    panel.controls.set(prompt=PROMPT, seed=3)
    panel.generate()
    panel.wait(60)
    assert "Done" in panel.status.value, panel.status.value
    assert panel.history.entries[-1].video.shape == (9, 32, 48, 3)


def test_two_threads_on_one_model(models):
    """Different prompts, seeds and paddings at the same time give what they give one after the other."""
    orders = [
        {"prompt": CAR, **SMALL},
        {"prompt": PROMPT, **SMALL, "seed": 4, "padded_prompt": True},
    ]
    alone = [generate(model=models, **order, **QUIET).latents for order in orders]
    failures: list[BaseException] = []

    def repeat(order: dict, expected: torch.Tensor) -> None:
        try:
            for _ in range(4):
                latents = generate(model=models, **order, **QUIET).latents
                assert torch.equal(latents, expected)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=repeat, args=pair, daemon=True) for pair in zip(orders, alone)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not failures, failures


def test_blocks_wait_in_ram_from_when_they_are_read(tiny_folder):
    """`load` with a training's plan: the GPU never holds the last blocks, and trains with them, step after step."""
    pytest.importorskip("bitsandbytes")
    from benchmarks.training import random_data

    plan = training_plan(TrainSettings(streamed_blocks=2))
    models = load(tiny_folder, memory=plan, device="cuda")
    transformer = models.network("transformer")
    waiting = [weight for block in blocks(transformer)[-2:] for weight in block.parameters()]
    others = {weight for weight in transformer.parameters()} - set(waiting)
    assert all(weight.is_pinned() for weight in waiting) and all(weight.is_cuda for weight in others)
    data = random_data(transformer, (9, 32, 48))
    settings = TrainSettings(steps=3, rank=2, optimizer="adamw8bit", activations="offload", streamed_blocks=2)
    losses = [step.loss for step in train(models, data, settings)]
    assert len(losses) == 3 and all(loss > 0 for loss in losses)
    assert all(weight.is_pinned() for weight in waiting)


def test_what_waits_in_ram_trains_the_same(tiny_folder):
    """A 4-bit base whose last blocks never lie on the GPU, or whose blocks' inputs leave it, has the gradients of one
    that lies there whole and keeps them."""
    pytest.importorskip("bitsandbytes")
    from benchmarks.training import random_data, random_nf4

    models = load(tiny_folder, device="cuda", dtype="bfloat16")
    config = {name: value for name, value in models.pipe.transformer.config.items() if name[0] != "_"}
    models.pipe.transformer = transformer = random_nf4(config)
    skip_full_masks(transformer)
    data, gradients = random_data(transformer, (9, 32, 48)), []
    levers = (
        {},
        {"activations": "offload"},
        {"activations": "offload", "offloaded_blocks": 2},
        {"streamed_blocks": 2},
        {"activations": "offload", "streamed_blocks": 2},
    )
    for each in levers:
        waiting = blocks(transformer)[-2:] if "streamed_blocks" in each else []
        for block in waiting:
            wait_in_ram(block)
        assert not any(weight.is_cuda for block in waiting for weight in block.parameters())
        assert all(weight.is_pinned() for block in waiting for weight in block.parameters())
        trainer = Trainer(models, data, TrainSettings(rank=2, caption_dropout=0.0, **each))
        with trainer.prepared():
            for name, weight in trainer.weights.items():
                assert weight.is_cuda, name
                if ".lora_B." in name:
                    weight.data.fill_(0.01)  # it begins at zero, where lora_A has no gradient
            trainer.losses(0)[0].mean().backward()
            gradients.append({name: weight.grad.clone() for name, weight in trainer.weights.items()})
    for name, gradient in gradients[0].items():
        for found, each in zip(gradients[1:], levers[1:]):
            torch.testing.assert_close(found[name], gradient, msg=lambda said, each=each: f"{each}: {said}")


@pytest.mark.parametrize("how", (*HOWS, *WHOLE))
def test_fewer_bits_make_nearly_the_same_step(tiny_folder, how):
    pytest.importorskip("bitsandbytes")
    models = load(tiny_folder, device="cuda", dtype="float32")
    settings = Settings(PROMPT, **SMALL).check(models)
    prompt, noise = encode_prompt(models, PROMPT), initial_latents(models, settings)
    plain, other = (next(iter(denoise(each, prompt, noise, settings))) for each in (models, quantised(models, how)))
    assert 0 < (other.latents - plain.latents).norm() < 0.5 * (plain.latents - noise).norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["compact", "dense"])
def test_the_upscalers_kernels_are_as_exact_as_pytorchs(kind, dtype):
    """Of several sizes in turn, with weights that let every layer count."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the kernels are for Hopper cards")
    from t2v_kit.stages.upscaling.fused import fused  # Triton comes with PyTorch for NVIDIA's cards alone

    torch.manual_seed(0)
    net = Compact(num_feat=64, num_conv=4, upscale=4) if kind == "compact" else small_dense_network()
    for weights in net.parameters():
        if weights.ndim == 4:
            torch.nn.init.kaiming_normal_(weights)
        else:
            torch.nn.init.uniform_(weights, 0.1, 0.3)
    net = net.cuda()
    short = copy.deepcopy(net).to(dtype)
    quick = fused(short)
    assert quick is not None
    for shape in ((1, 3, 16, 16), (2, 3, 45, 70), (1, 3, 131, 33)):
        pixels = torch.rand(shape, device="cuda")
        with torch.inference_mode():
            wanted, plain, ours = net(pixels), short(pixels.to(dtype)).float(), quick(pixels.to(dtype)).float()
        spread = (wanted - wanted.mean()).norm()
        assert (ours - wanted).norm() <= 1.5 * (plain - wanted).norm() <= 0.1 * spread


def small_dense_network() -> torch.nn.Module:
    """RRDBNet of two blocks, from its weights' names and sizes, as spandrel builds it."""
    return ModelLoader().load_from_state_dict(random_upscaler(64, 2)).model
