"""Nothing silent about a run: what decides its latents is recorded, one folder belongs to one run, paths stay."""

import errno
import json
import os
import types
from contextvars import Context
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROMPT
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel
from peft import LoraConfig
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact

from t2v_kit import UserError, generate, load, read_metadata, resume
from t2v_kit.run import folder as folder_module
from t2v_kit.run import generating as run_module
from t2v_kit.run.folder import RunFolder, read_log
from t2v_kit.run.record import made_with, networks_hash, unknown_code
from t2v_kit.run.target import CHECKPOINT, LOCK
from t2v_kit.run.upscalers import choose_upscaler

STEPS = {"num_inference_steps": 2, "num_frames": 5, "upscale": "none", "progress": False}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def model(tiny_folder):
    """A model of this file's own: a LoRA on it leaves traces."""
    return load(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def enlarger(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("upscaler") / "tiny_x4.safetensors"
    save_file(Compact(num_feat=8, num_conv=1, upscale=4, act_type="prelu").state_dict(), path)
    return path


def made_steps(model, out: str, **settings) -> int:
    """How many denoising steps a run made itself."""
    steps: list = []
    generate(**{"prompt": PROMPT, **STEPS, **settings}, model=model, out=out, on_step=steps.append)
    return len(steps)


def test_a_loras_strength_counts(model, here):
    """Strength, switching off and merging change no tensor's name; each makes other latents, and is recorded."""
    transformer = model.pipe.transformer
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "style")
    try:
        assert made_steps(model, "runs/one") == 2 and made_steps(model, "runs/again") == 0
        assert made_with(model)["loras"] == ["style at 4"]  # lora_alpha 8 over rank 2
        transformer.set_adapters("style", 0.1)
        assert made_steps(model, "runs/weak") == 2 and made_with(model)["loras"] == ["style at 0.4"]
        transformer.disable_lora()
        assert made_steps(model, "runs/off") == 2 and made_with(model)["loras"] == []
        transformer.enable_lora()
        transformer.set_adapters("style", 1.0)
        transformer.fuse_lora()
        assert made_steps(model, "runs/merged") == 2 and made_with(model)["loras"] == ["style merged"]
        assert unknown_code(model) == []
    finally:
        transformer.unfuse_lora()
        transformer.delete_adapters("style")


def on_the_class(model, monkeypatch):
    real = HunyuanVideoTransformer3DModel.forward

    def forward(self, *args, **kwargs):
        return real(self, *args, **kwargs)

    forward.__module__, forward.__qualname__ = real.__module__, real.__qualname__  # as functools.wraps does
    monkeypatch.setattr(HunyuanVideoTransformer3DModel, "forward", forward)


def on_the_object(model, monkeypatch):
    layer = model.pipe.transformer.proj_out
    monkeypatch.setattr(layer, "forward", lambda hidden: 0.5 * torch.nn.Linear.forward(layer, hidden), raising=False)


def from_a_library(model, monkeypatch):
    layer = model.pipe.transformer.transformer_blocks[0].attn.to_out[0]  # as many features in as out
    monkeypatch.setattr(layer, "forward", torch.nn.Identity().forward, raising=False)


def a_module_of_ones_own(model, monkeypatch):
    class Doubled(torch.nn.Linear):
        pass

    layers = model.pipe.transformer.transformer_blocks[0].attn.to_out
    own = Doubled(layers[0].in_features, layers[0].out_features)
    own.load_state_dict(layers[0].state_dict())
    monkeypatch.setitem(layers._modules, "0", own)


def a_global_hook(model, monkeypatch):
    hooks = dict(torch.nn.modules.module._global_forward_hooks)
    monkeypatch.setattr(torch.nn.modules.module, "_global_forward_hooks", {**hooks, 10**6: lambda *_: None})


def on_the_pipeline(model, monkeypatch):
    real = model.pipe.encode_prompt
    monkeypatch.setattr(model.pipe, "encode_prompt", lambda *args, **kwargs: real(*args, **kwargs), raising=False)


def on_the_scheduler(model, monkeypatch):
    def step(self, *args, **kwargs):
        return type(self).step(self, *args, **kwargs)

    monkeypatch.setattr(model.pipe.scheduler, "step", types.MethodType(step, model.pipe.scheduler), raising=False)


PATCHES = [on_the_class, on_the_object, from_a_library, a_module_of_ones_own, a_global_hook, on_the_pipeline]


@pytest.mark.parametrize("patch", [*PATCHES, on_the_scheduler])
def test_with_unknown_code_nothing_is_reused(model, here, monkeypatch, patch):
    """One line says why, once; without the patch, work from before it is reused again."""
    made_steps(model, "runs/plain")
    with monkeypatch.context() as patched:
        patch(model, patched)
        with pytest.warns(UserWarning, match="nothing is reused: what .* is not known") as notes:
            assert made_steps(model, "runs/patched") == 2
        assert len([note for note in notes if "nothing is reused" in str(note.message)]) == 1
    assert unknown_code(model) == []
    assert made_steps(model, "runs/later") == 0


def test_plain_attributes_and_unsaved_buffers_count(model):
    """What is no tensor of the state dict: a normalisation's epsilon, a buffer that is not saved."""
    transformer = model.pipe.transformer
    norm = next(each for each in transformer.modules() if getattr(each, "eps", None))
    before, epsilon = networks_hash(transformer), norm.eps
    norm.eps = 0.1
    assert networks_hash(transformer) != before
    norm.eps = epsilon
    assert networks_hash(transformer) == before
    llama = model.pipe.text_encoder
    before, buffer = networks_hash(llama), dict(llama.named_buffers())["rotary_emb.inv_freq"]
    buffer *= 2
    assert networks_hash(llama) != before
    buffer /= 2
    assert networks_hash(llama) == before


def test_threads_and_switches_count(model, here):
    """The number of CPU threads changes the order of sums, and autocast the dtype."""
    made_steps(model, "runs/first")
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert made_with(model)["threads"] == threads + 1 and made_steps(model, "runs/threads") == 2
    finally:
        torch.set_num_threads(threads)
    with torch.autocast("cpu", torch.bfloat16):
        assert made_steps(model, "runs/autocast") == 2
    assert made_steps(model, "runs/last") == 0


def test_settings_of_one_meaning_are_one(model, here):
    """3 is 3.0, and a negative prompt that does not act is none."""
    made_steps(model, "runs/first", guidance_scale=3)
    assert made_steps(model, "runs/second", guidance_scale=3.0) == 0
    assert made_steps(model, "runs/third", guidance_scale=3.0, negative_prompt="fog") == 0


def test_versions_are_those_that_were_imported(model, monkeypatch):
    """A CUDA build's torch says 2.13.0+cu130, and the metadata of its installation 2.13.0."""
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    assert made_with(model)["torch"] == "2.13.0+cu130"


def test_every_reuse_names_its_source(model, here, capsys):
    """Of latents and of an encoded prompt: in the bar, in the log and in the run."""
    generate(PROMPT, model, "runs/first", **STEPS)
    capsys.readouterr()
    second = generate(PROMPT, model, "runs/second", **{**STEPS, "progress": True}, seed=1)
    assert second.reused is None and second.reused_prompt == here / "runs/first"
    assert f"prompt reused from {here / 'runs/first'}" in capsys.readouterr().err
    assert [line["prompt_from"] for line in read_log("runs/second") if line.get("event") == "reused"] == [
        str(here / "runs/first")
    ]


def test_two_runs_in_one_folder(model, here):
    """The second is refused by name and process, whether the folder existed before or not, and touches nothing."""
    generate(PROMPT, model, "old", **STEPS)
    before = {path.name: path.read_bytes() for path in Path("old").iterdir()}
    for name in ("old", "new"):

        def intrude(step, name=name):
            with pytest.raises(UserError, match=rf"another run \(process {os.getpid()}\) .*'.*{name}-2' would work"):
                generate("A red car.", model, name, **STEPS)

        generate(PROMPT, model, name, **STEPS, reuse=False, on_step=intrude)
        assert not (here / name / LOCK).exists()
        assert json.loads((here / name / "settings.json").read_text())["settings"]["prompt"] == PROMPT
    assert set(before) == {path.name for path in Path("old").iterdir()}


def test_leftovers_of_a_killed_run_go_and_others_stay(model, here):
    """Only names that this folder's own run has; a file that something else is writing there stays."""
    Path("run").mkdir()
    for name in (".part.video.ab12.mp4", f".part.{Path(CHECKPOINT).stem}.cd34.safetensors", ".part.mine.ef56.mp4"):
        (here / "run" / name).write_text("half")
    generate(PROMPT, model, "run", **STEPS)
    assert [path.name for path in Path("run").glob(".part.*")] == [".part.mine.ef56.mp4"]


def test_a_change_of_directory_moves_nothing(model, enlarger, here, monkeypatch):
    """os.chdir during a run; and a model and an upscaler given by relative paths, resumed from elsewhere."""
    monkeypatch.chdir(enlarger.parent)
    (here / "elsewhere").mkdir()
    settings = {**STEPS, "upscale": enlarger.name}
    out = os.path.relpath(here / "run")

    def leave(step):
        os.chdir(here / "elsewhere")

    run = generate(PROMPT, model, out, **settings, on_step=leave)
    assert run.folder == here / "run" and {"video.mp4", "upscaled.mp4", "log.jsonl"} <= {f.name for f in run.files}
    assert run.record["settings"]["upscale"] == str(enlarger) and not list((here / "elsewhere").iterdir())
    (here / "run/upscaled.mp4").unlink()
    assert resume(here / "run", model, progress=False).upscaled.shape == (5, 128, 192, 3)


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (OSError(errno.ENOSPC, "x"), UserError, "No space left on device.*make room"),
        (OSError(errno.EDQUOT, "x"), UserError, "quota exceeded.*make room"),
        (PermissionError(errno.EACCES, "x"), UserError, "Permission denied.*once it can"),
        (RuntimeError("CUDA error: an illegal memory access"), RuntimeError, "^CUDA error"),
        (RuntimeError("ffmpeg: No space left on device"), UserError, "make room"),
        (KeyError("latents"), KeyError, "latents"),
    ],
    ids=["full", "quota", "permission", "cuda", "ffmpeg", "mistake"],
)
def test_an_error_while_saving_is_told_as_what_it_is(model, here, monkeypatch, error, raised, words):
    """Only a full disk or quota is one; what has nothing to do with files passes through."""

    def fail(*_):
        raise error

    monkeypatch.setattr(folder_module, "save_file", fail)
    with pytest.raises(raised, match=words) as caught:
        generate(PROMPT, model, "run", **STEPS)
    assert "make room" in str(caught.value) or "make room" not in words


def test_every_run_gives_its_notes(tiny32, here):
    """A second run with the same flaw is not a clean one. In a fresh context, as a user's notebook is."""

    def notes() -> int:
        with pytest.warns(UserWarning, match="is not a size .* was trained on") as given:
            generate(PROMPT, tiny32, **{**STEPS, "height": 48})
        return len(given)

    assert [Context().run(notes), Context().run(notes)] == [1, 1]
    generate(PROMPT, tiny32, "run", **{**STEPS, "height": 48})
    with pytest.warns(UserWarning, match="is not a size"):
        resume("run", tiny32, progress=False)


def _small(empty, shape, *more):
    """np.empty, which fails for an array of all 17 frames."""
    assert not isinstance(shape, tuple) or shape[0] != 17, "all enlarged frames are held in memory"
    return empty(shape, *more)


def test_enlarged_frames_are_streamed(model, enlarger, here, monkeypatch):
    """With a folder they go to the file, a batch at a time; without one they are an array. Later runs don't pass."""
    held: list[np.ndarray] = []
    real = run_module.enlarged

    def watched(*args):
        for frame in real(*args):
            held.append(frame)
            yield frame

    keywords = {**STEPS, "num_frames": 17, "upscale": enlarger}
    kept = generate(PROMPT, model, **keywords)
    with monkeypatch.context() as patched:
        patched.setattr(run_module, "enlarged", watched)
        real_empty = np.empty
        patched.setattr(run_module.np, "empty", lambda shape, *more: _small(real_empty, shape, *more))
        run = generate(PROMPT, model, "run", **keywords)
    assert len(held) == 17 and isinstance(kept.enlarged, np.ndarray) and run.enlarged == here / "run/upscaled.mp4"
    assert run.upscaled.shape == kept.upscaled.shape == (17, 128, 192, 3)
    assert np.abs(run.upscaled.astype(int) - kept.upscaled).mean() < 12  # H.264 on noise
    other = generate(PROMPT, model, "run", **keywords, seed=5)
    run.__dict__.pop("upscaled")
    with pytest.raises(UserError, match="a later run has replaced this file"):
        _ = run.upscaled
    assert other.upscaled is not None and read_metadata("run/upscaled.mp4") == other.record


def test_the_default_upscaler_is_the_models(model, pocket, here, monkeypatch, tmp_path, enlarger):
    """Pocket's for pocket; never for another model, which takes a network at hand, or else Lanczos with a note."""
    assert choose_upscaler(pocket) == "pocket" and model.upscaler is None
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("t2v_kit.stages.upscaling.weights.files_in_wheel", lambda name: None)
    with pytest.warns(UserWarning, match="Lanczos interpolation enlarges; upscale='realesr-animevideov3'"):
        run = generate(PROMPT, model, **{**STEPS, "upscale": "auto"})
    assert run.record["settings"]["upscale"] == "lanczos" and run.upscaled.shape == (5, 128, 192, 3)
    again = generate(**{**run.record["settings"], "model": model}, progress=False)
    assert (again.upscaled == run.upscaled).all()
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    (tmp_path / "hub/checkpoints/RealESRGAN_x4plus.pth").write_bytes(b"")
    monkeypatch.setattr("t2v_kit.stages.upscaling.defaults.load_upscaler", lambda name, **_: None)
    assert choose_upscaler(model) == "RealESRGAN_x4plus"


def test_the_lock_of_a_folder_without_a_run(here):
    """Held from the start where the folder exists, and gone with whatever ends the run."""
    Path("run").mkdir()
    with pytest.raises(ZeroDivisionError), RunFolder("run").held():
        assert (here / "run" / LOCK).read_text() == str(os.getpid())
        raise ZeroDivisionError
    assert not list(Path("run").iterdir())
