"""generate() is its stages and nothing more; what it leaves on disk is whole, complete, and makes the video again."""

import gc
import json
import time
from pathlib import Path

import mediapy
import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from safetensors.torch import load_file, save_file
from spandrel.architectures.Compact import Compact

import t2v_kit.run.folder as folder_module
import t2v_kit.run.generating as run_module
from t2v_kit import (
    Part,
    Plan,
    PromptEncoding,
    Settings,
    UserError,
    decode,
    denoise,
    encode_prompt,
    generate,
    initial_latents,
    read_metadata,
    upscale,
)
from t2v_kit.run.folder import read_log

PROMPT = "A man with a beard riding a motorcycle."


@pytest.fixture(scope="session")
def enlarger(tmp_path_factory) -> str:
    """The file of a tiny Real-ESRGAN network of the compact kind, x4, random weights."""
    torch.manual_seed(0)
    net = Compact(num_feat=8, num_conv=1, upscale=4, act_type="prelu")
    path = tmp_path_factory.mktemp("upscaler") / "tiny_x4.safetensors"
    save_file(net.state_dict(), path)
    return str(path)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


BEFORE_DECODING = {"settings.json", "log.jsonl", "prompt.safetensors", "latents.safetensors"}
ALWAYS = BEFORE_DECODING | {"video.mp4", "contact_sheet.png"}


def test_generate_is_the_five_stages_in_a_row(tiny32, enlarger):
    """Latents, frames and enlarged frames are the bits that the stages give when they are called one by one."""
    run = generate(PROMPT, tiny32, upscale=enlarger, seed=3)
    settings = Settings(PROMPT, seed=3).check(tiny32)
    prompt = encode_prompt(tiny32, PROMPT)
    *_, step = denoise(tiny32, prompt, initial_latents(tiny32, settings), settings)
    video = decode(tiny32, step.latents)
    assert torch.equal(run.latents, step.latents)
    np.testing.assert_array_equal(run.video, video)
    np.testing.assert_array_equal(run.upscaled, upscale(video, enlarger, device="cpu"))
    assert run.settings == settings and run.upscaled.shape == (9, 128, 192, 3)


def test_settings_json_makes_the_same_video_again(tiny32, tiny_folder, enlarger, here):
    """What settings.json and both videos say is enough, and another seed is another video."""
    knobs = {"num_inference_steps": 2, "flow_shift": 3, "padded_prompt": True}
    run = generate(PROMPT, str(tiny_folder), "first", enlarger, 5, **knobs)
    record = json.loads(Path("first/settings.json").read_text(encoding="utf-8"))
    assert record == run.record == read_metadata("first/video.mp4") == read_metadata("first/upscaled.mp4")
    again = generate(**record["settings"], out="again", reuse=False)
    np.testing.assert_array_equal(again.video, run.video)
    np.testing.assert_array_equal(again.upscaled, run.upscaled)
    assert again.settings == run.settings
    other = generate(**{**record["settings"], "seed": 6, "upscale": "none"})
    assert (other.video != run.video).any()


def test_made_with_says_what_decided_the_result(tiny32):
    """Versions, device, dtype and the weights' hash are those of what ran."""
    made = generate(PROMPT, tiny32, upscale="none").record["made_with"]
    assert made["weights_hash"] == tiny32.weights_hash and len(made["weights_hash"]) == 16
    assert (made["torch"], made["device"], made["dtype"]) == (torch.__version__, "cpu", "float32")


def test_the_folder_holds_what_it_should(tiny32, enlarger, here):
    """Exactly the promised files, videos with every frame at the asked rate, and nothing temporary."""
    run = generate(PROMPT, tiny32, "deep/er", enlarger, fps=12)
    assert names(here / "deep/er") == ALWAYS | {"upscaled.mp4"} == {path.name for path in run.files}
    for name, video in (("video.mp4", run.video), ("upscaled.mp4", run.upscaled)):
        back = mediapy.read_video(here / "deep/er" / name)
        assert back.shape == video.shape and back.metadata.fps == 12


def test_without_upscaling_there_is_no_upscaled_file(tiny32, enlarger, here):
    """A second run in the same folder takes the first one's away: what lies there belongs together."""
    generate(PROMPT, tiny32, "run", enlarger)
    (here / "run/notes.txt").write_text("mine")
    run = generate(PROMPT, tiny32, "run", None, seed=1)
    assert run.upscaled is None
    assert names(here / "run") == ALWAYS | {"notes.txt"}
    assert json.loads((here / "run/settings.json").read_text())["settings"]["upscale"] == "none"


@pytest.mark.parametrize("content", [None, "{", '{"editor.fontSize": 12}', '{"settings": {}, "made_with": {}}'])
def test_files_of_other_origin_are_not_replaced(tiny32, here, content):
    """One line that names the file and another folder, before anything is written."""
    mine = {"video.mp4": "a film", "log.jsonl": "a log"} | ({} if content is None else {"settings.json": content})
    (here / "mine").mkdir()
    for name, text in mine.items():
        (here / "mine" / name).write_text(text)
    told = "video.mp4 in it .* settings.json is missing" if content is None else "settings.json in it .* is damaged"
    with pytest.raises(UserError, match=f"out='{here}/mine': {told}; '{here}/mine/run' would work") as raised:
        generate(PROMPT, tiny32, "mine", "none")
    assert "\n" not in str(raised.value)
    assert {path.name: path.read_text() for path in (here / "mine").iterdir()} == mine
    generate(PROMPT, tiny32, "mine/run", **STEPS)


def test_without_a_folder_nothing_is_written(tiny32, here):
    """From Python, a run is kept in memory unless a folder is named."""
    run = generate(PROMPT, tiny32, upscale="none")
    assert run.folder is None and run.files == [] and names(here) == set()


def test_saved_prompt_and_latents_go_on_to_the_same_video(tiny32, here):
    """Either file is a place to start from: encode_prompt, or all of the denoising, need not run again."""
    run = generate(PROMPT, tiny32, "run", "none", seed=2)
    prompt = PromptEncoding.load("run/prompt.safetensors")
    *_, step = denoise(tiny32, prompt, initial_latents(tiny32, run.settings), run.settings)
    assert torch.equal(step.latents, run.latents)
    latents = load_file("run/latents.safetensors")["latents"]
    np.testing.assert_array_equal(decode(tiny32, latents), run.video)


def test_prompt_and_latents_are_on_disk_before_decoding(tiny32, here, monkeypatch):
    """Running out of memory in the VAE, after an hour of denoising, costs the decoding and nothing else."""

    def out_of_memory(*_):
        raise MemoryError

    monkeypatch.setattr(run_module, "decode", out_of_memory)
    with pytest.raises(MemoryError):
        generate(PROMPT, tiny32, "run", "none", seed=2)
    assert names(here / "run") == BEFORE_DECODING


@pytest.mark.parametrize("broken", ["save_video", "save_file"])
def test_no_file_is_half_written(tiny32, here, monkeypatch, broken):
    """Interrupted in the middle of a file, the earlier files are whole and of this one there is no trace."""
    module = run_module if broken == "save_video" else folder_module
    real = getattr(module, broken)

    def interrupted(*args):
        real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, broken, interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(PROMPT, tiny32, "run", "none")
    lost = {"video.mp4", "contact_sheet.png"} | ({"latents.safetensors"} if broken == "save_file" else set())
    assert names(here / "run") == ALWAYS - lost


def test_each_stage_has_a_bar_and_a_time(tiny32, enlarger, capsys):
    """Four bars that reach their end, steps and frames counted; the times are those of the stages."""
    run = generate(PROMPT, tiny32, upscale=enlarger)
    bars = capsys.readouterr().err
    for bar in ("encode : 100%", "denoise: 100%", "3/3", "decode : 100%", "upscale: 100%", "9/9"):
        assert bar in bars
    assert list(run.seconds) == ["load", "encode", "denoise", "decode", "upscale"]
    assert min(run.seconds.values()) >= 0


def test_a_negative_prompt_acts_and_is_repeated(tiny32, here):
    """True classifier-free guidance through generate: another video, and settings.json brings it back."""
    plain = generate(PROMPT, tiny32, upscale="none")
    steered = generate(PROMPT, tiny32, upscale="none", negative_prompt="a blue balloon", true_cfg_scale=4.0)
    again = generate(**{**steered.record["settings"], "model": tiny32})
    assert (plain.latents != steered.latents).any() and torch.equal(again.latents, steered.latents)


MISTAKES = {  # keywords, and what the message must name
    "empty prompt": ({"prompt": " "}, "prompt=' '"),
    "no text": ({"prompt": 7}, "prompt=7"),
    "frames": ({"num_frames": 56}, "num_frames=56.*53 or 57"),
    "height": ({"height": 100}, "height=100.*96 or 112"),
    "not a number": ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
    "long prompt": ({"prompt": "a red car " * 200}, "over the limit of 256"),
    "long negative": ({"negative_prompt": "a red car " * 200, "true_cfg_scale": 2.0}, "^negative_prompt=.*of 256"),
    "near keyword": ({"num_inference_step": 3}, "did you mean 'num_inference_steps'"),
    "near own keyword": ({"upscaler": "none"}, "did you mean 'upscale'"),
    "upscaler": ({"upscale": "missing.pth"}, "unknown upscaler 'missing.pth'"),
    "model": ({"model": "pokcet"}, "did you mean 'pocket'"),
    "folder name": ({"out": " "}, "out=' '"),
    "folder type": ({"out": 3}, "out=3"),
    "folder is a file": ({"out": "taken"}, "out='taken': cannot be written"),
    "folder under a file": ({"out": "taken/below"}, "out='taken/below': cannot be written"),
    "folder with a long name": ({"out": "x" * 300}, "cannot be written"),
    "folder with a null": ({"out": "a\0b"}, "cannot be written"),
}


@pytest.mark.parametrize(("keywords", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_before_anything_is_written(tiny32, here, capsys, keywords, message):
    """One line that quotes the value; no file, no folder, not even a progress bar."""
    (here / "taken").write_text("a file")
    with pytest.raises(UserError, match=message) as raised:
        generate(**{"prompt": PROMPT, "model": tiny32, "out": "run", "upscale": "none", **keywords})
    assert "\n" not in str(raised.value)
    assert names(here) == {"taken"} and (here / "taken").read_text() == "a file"
    assert capsys.readouterr().err == ""


def test_cheap_checks_come_before_the_model_is_loaded(here, monkeypatch):
    """A wrong number, upscaler or folder is told without waiting for the weights."""
    monkeypatch.setattr(run_module, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    (here / "taken").write_text("a file")
    for mistake in ({"seed": -1}, {"upscale": "missing.pth"}, {"out": "taken"}, {"num_step": 3}):
        with pytest.raises(UserError):
            generate(**{"prompt": PROMPT, "upscale": "none", **mistake})


# What is made anew, and what an earlier run's work is used for.

STEPS = {"upscale": "none", "progress": False}


def counted(*args, **keywords):
    """A run, and how many steps it made itself."""
    steps = []
    run = generate(*args, **{**STEPS, **keywords}, on_step=steps.append)
    return run, len(steps)


def test_a_new_upscaler_reuses_the_latents(tiny32, enlarger, here, capsys):
    """In the same folder: nothing is denoised, the bar says whose latents they are, the rest is new."""
    first, steps = counted(PROMPT, tiny32, "run")
    again, more = counted(PROMPT, tiny32, "run", upscale=enlarger, fps=5, progress=True)
    assert (steps, more) == (3, 0) and f"latents reused from {here / 'run'}" in capsys.readouterr().err
    assert again.reused == here / "run" and torch.equal(again.latents, first.latents)
    np.testing.assert_array_equal(again.video, first.video)
    assert names(here / "run") == ALWAYS | {"upscaled.mp4"}
    assert read_metadata("run/video.mp4")["settings"]["fps"] == 5
    assert json.loads((here / "run/settings.json").read_text()) == again.record


def test_latents_of_a_folder_beside_are_reused(tiny32, here):
    """Another folder with the same content; it becomes complete in itself."""
    first, _ = counted(PROMPT, tiny32, "runs/first")
    again, steps = counted(PROMPT, tiny32, "runs/second", fps=5)
    assert steps == 0 and again.reused == here / "runs/first"
    assert names(here / "runs/second") == ALWAYS
    assert torch.equal(load_file("runs/second/latents.safetensors")["latents"], first.latents)
    assert PromptEncoding.load("runs/second/prompt.safetensors").text == PROMPT
    assert counted(PROMPT, tiny32, "elsewhere/third")[1] == 3 and counted(PROMPT, tiny32)[1] == 3


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "A red car."}, {"seed": 1}, {"guidance_scale": 2.0}, {"flow_shift": 2.0}, {"padded_prompt": True},
        {"num_inference_steps": 4}, {"num_frames": 5}, {"negative_prompt": "", "true_cfg_scale": 2.0}, {"reuse": False},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_decides_the_latents_makes_them_anew(tiny32, here, change):
    counted(PROMPT, tiny32, "runs/first")
    run, steps = counted(**{"prompt": PROMPT, "model": tiny32, "out": "runs/second", **change})
    assert run.reused is None and steps == run.settings.num_inference_steps


def test_a_prompt_is_encoded_once(tiny32, here, monkeypatch):
    """Another seed takes the encoding of a run beside it; another text, or padding, is encoded."""
    counted(PROMPT, tiny32, "runs/first")
    encoded, real = [], run_module.encode_prompt
    monkeypatch.setattr(
        run_module, "encode_prompt", lambda *args, **told: encoded.append(args[1]) or real(*args, **told)
    )
    other, _ = counted(PROMPT, tiny32, "runs/second", seed=8)
    assert not encoded and torch.equal(other.latents, generate(PROMPT, tiny32, seed=8, **STEPS).latents)
    encoded.clear()
    for number, change in enumerate(({"prompt": "A red car."}, {"padded_prompt": True}, {"reuse": False})):
        counted(**{"prompt": PROMPT, "model": tiny32, "out": f"runs/more{number}", "seed": 9, **change})
    assert encoded == ["A red car.", PROMPT, PROMPT]


def edit_weight(models):
    weight = models.pipe.transformer.proj_out.weight
    weight.data[0] *= -1
    return lambda: weight.data[0].mul_(-1)


def edit_text_encoder(models):
    weight = models.pipe.text_encoder.embed_tokens.weight
    before = weight.data.clone()
    weight.data[:] = before.flip(0)
    return lambda: weight.data.copy_(before)


def other_scheduler(models):
    before = models.pipe.scheduler
    models.pipe.scheduler = type(before).from_config(before.config, use_karras_sigmas=True)
    return lambda: setattr(models.pipe, "scheduler", before)


def step_cache(models):
    models.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    return models.pipe.transformer.disable_cache


def other_template(models):
    before = models.template
    models.template = {**before, "template": before["template"].replace("video", "film")}
    return lambda: setattr(models, "template", before)


def a_hook(models):
    return models.pipe.transformer.transformer_blocks[0].norm1.register_forward_hook(lambda *_: None).remove


def own_processor(models):
    attn = models.pipe.transformer.single_transformer_blocks[0].attn
    before = attn.processor
    attn.set_processor(Scaled(before))
    return lambda: attn.set_processor(before)


class Scaled:
    """An attention processor that is neither diffusers' nor ours."""

    def __init__(self, processor, by=1.0):
        self.processor, self.by = processor, by

    def __call__(self, *args, **told):
        return tuple(self.by * each for each in self.processor(*args, **told))


CHANGES = [edit_weight, edit_text_encoder, other_scheduler, step_cache, other_template, a_hook, own_processor]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_makes_them_anew(tiny32, here, change):
    """What was done to the loaded model counts, not only which files it came from."""
    counted(PROMPT, tiny32, "runs/first")
    undo = change(tiny32)
    try:
        assert counted(PROMPT, tiny32, "runs/second")[1] == 3
    finally:
        undo()
    assert counted(PROMPT, tiny32, "runs/third")[0].reused == here / "runs/first"


def test_what_cannot_be_read_is_never_the_same(tiny32, here):
    """The very same processor may do something else today: told by name, and nothing of it is reused."""
    undo = own_processor(tiny32)
    processor = tiny32.pipe.transformer.single_transformer_blocks[0].attn.processor
    try:
        first, _ = counted(PROMPT, tiny32, "runs/first")
        processor.by = 0.5
        second, steps = counted(PROMPT, tiny32, "runs/second")
    finally:
        undo()
    assert steps == 3 and not torch.equal(first.latents, second.latents)
    assert any("Scaled" in name for name in first.record["made_with"]["unknown_code"])
    assert generate(PROMPT, tiny32, **STEPS).record["made_with"]["unknown_code"] is None


@pytest.mark.parametrize("chunk", [None, 5])
def test_weights_edited_under_a_memory_plan_count(tiny_folder, here, chunk):
    """As without a plan: the networks are there, only where they come and go with the stages they are not."""
    models = run_module.load(tiny_folder, memory=Plan("CPU", *[Part("float32")] * 3, chunk=chunk), device="cpu")
    counted(PROMPT, models, "runs/first")
    assert counted(PROMPT, models, "runs/second")[1] == 0
    undo = edit_weight(models)
    assert counted(PROMPT, models, "runs/third")[1] == 3
    undo()
    assert counted(PROMPT, models, "runs/fourth")[1] == 0


def test_a_plan_is_made_for_the_size_asked_for(tiny32, monkeypatch):
    """The planner hears the settings, not the model's default size."""
    heard = []

    def loading(name, memory, video, **_):
        heard.append((memory, video))
        return tiny32

    monkeypatch.setattr(run_module, "load", loading)
    generate(PROMPT, "pocket", memory=12, height=48, num_frames=5, **STEPS)
    ((memory, video),) = heard
    assert (memory, video.height, video.width, video.num_frames) == (12, 48, None, 5)


def test_damaged_latents_are_not_reused(tiny32, here):
    """Cut short, or of a file that is none: made anew, in the same folder and beside it."""
    counted(PROMPT, tiny32, "runs/first")
    latents = here / "runs/first/latents.safetensors"
    latents.write_bytes(latents.read_bytes()[:-1])
    assert counted(PROMPT, tiny32, "runs/second")[1] == 3
    latents.write_text("no tensors")
    (here / "runs/second/latents.safetensors").unlink()
    assert counted(PROMPT, tiny32, "runs/first")[1] == 3


def test_a_memory_plan_is_recorded_and_decides(tiny_folder, tiny32, here):
    """settings.json has the plan, so that the same call loads with it; other plans make latents anew."""
    plan = Plan(text_encoder=Part("float32"), transformer=Part("float32"), vae=Part("float32"), one_stage=True)
    counted(PROMPT, tiny32, "runs/plain")
    first, steps = counted(PROMPT, str(tiny_folder), "runs/first", memory=plan)
    settings = json.loads((here / "runs/first/settings.json").read_text())["settings"]
    assert steps == 3 and Plan(**settings["memory"]) == plan
    again, steps = counted(**{**settings, "out": "runs/second"})
    assert steps == 0 and torch.equal(again.latents, first.latents)
    with pytest.raises(UserError, match=r"memory=.*this model is loaded already"):
        generate(PROMPT, tiny32, memory=plan, **STEPS)


def test_stages_are_told_one_after_the_other(tiny32, enlarger, here):
    """Each from 0 to its total, steps and frames counted; the log has seconds and peak memory of each."""
    told = []
    run = generate(PROMPT, tiny32, "run", enlarger, progress=False, on_stage=lambda *each: told.append(each))
    totals = {"load": 1, "encode": 1, "denoise": 3, "decode": 1, "upscale": 9}
    assert told == [(name, done, total) for name, total in totals.items() for done in range(total + 1)]
    lines = {line["stage"]: line for line in read_log("run") if "peak_gib" in line}
    assert list(lines) == list(totals) == list(run.memory)
    for name, line in lines.items():
        assert line["seconds"] == pytest.approx(run.seconds[name], abs=1e-4)
        assert 0.05 < line["peak_gib"] == pytest.approx(run.memory[name], abs=1e-3)
    assert [line["step"] for line in read_log("run") if "step" in line] == [1, 2, 3]


def test_peak_memory_is_that_of_the_stage(tiny32, monkeypatch):
    """500 MB that live only while decoding are seen there, and not before."""
    real = run_module.decode

    def hungry(*args):
        held = np.ones(500_000_000, np.uint8)
        time.sleep(0.1)
        del held
        return real(*args)

    monkeypatch.setattr(run_module, "decode", hungry)
    gc.collect()  # what earlier tests have left may go at any moment
    memory = generate(PROMPT, tiny32, **STEPS).memory
    assert memory["decode"] - memory["denoise"] > 0.3
