"""Every combination of some settings, once, whatever interrupts; and by Ray the same bits."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import mediapy
import numpy as np
import pytest
import torch
from conftest import PROMPT
from PIL import Image
from safetensors.torch import load_file

from t2v_kit import UserError, generate, read_metadata, runs, sweep
from t2v_kit.run.folder import read_log
from t2v_kit.run.generating import run_stages
from t2v_kit.run.sweeps import cells, sweeping
from t2v_kit.run.sweeps.grid import grid
from t2v_kit.run.sweeps.on_ray import on_ray

SMALL = {"prompt": PROMPT, "num_frames": 5, "height": 32, "width": 48}
NO_RAY = 'Ray is not installed (pip install "t2v-kit[ray]"): sweeps on a cluster were not tested'
KNOBS = {**SMALL, "guidance_scale": [1, 6.5], "num_inference_steps": [2, 3, 4]}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def module():
    """Where one run of a sweep is made."""
    return cells


def latents_in(folder: Path) -> torch.Tensor:
    return load_file(folder / "latents.safetensors")["latents"]


def test_every_combination_is_a_run(tiny32, here):
    """The last axis fastest; each run is the one that generate makes, in a folder named after its values."""
    made = sweep(**KNOBS, model=tiny32, out="sweep")
    asked = [(guidance, steps) for guidance in (1, 6.5) for steps in (2, 3, 4)]
    assert [(run.settings["guidance_scale"], run.settings["num_inference_steps"]) for run in made.runs] == asked
    assert made.axes == {"guidance_scale": [1, 6.5], "num_inference_steps": [2, 3, 4]}
    assert made.runs[4].folder == here / "sweep/guidance_scale=6.5,num_inference_steps=3"
    alone = generate(**SMALL, model=tiny32, guidance_scale=6.5, num_inference_steps=3, upscale="none")
    assert torch.equal(latents_in(made.runs[4].folder), alone.latents)
    assert made.at(guidance_scale=6.5, num_inference_steps=3) is made.runs[4]
    with pytest.raises(UserError, match="no run of this sweep"):
        made.at(guidance_scale=2)
    assert len(runs("sweep", finished=True)) == 6


def test_the_grid_is_saved_and_labelled(tiny32, here):
    """grid.png and grid.mp4 hold every run's frames at its place, rows and columns under words."""
    made = sweep(**KNOBS, model=tiny32, out="sweep")
    picture = np.asarray(Image.open("sweep/grid.png"))
    np.testing.assert_array_equal(picture, made.picture())
    film = mediapy.read_video("sweep/grid.mp4")
    assert film.shape == made.film().shape == (5, *picture.shape)
    for place, run in enumerate(made.runs):
        y, x = 29 + place // 3 * 138, 150 + place % 3 * 202
        frame = run.video()[2].repeat(4, axis=0).repeat(4, axis=1)  # so small a film is enlarged
        np.testing.assert_array_equal(picture[y : y + 128, x : x + 192], frame)
    assert picture[:20, 150:].min() < 100 and picture[40:, :140].min() < 100  # words above and at the left


def test_what_is_there_is_not_made_again(tiny32, here, module, monkeypatch):
    """A second call makes nothing; one more value makes that one only."""
    sweep(**KNOBS, model=tiny32, out="sweep")
    made = []
    monkeypatch.setattr(module, "run_stages", lambda **told: made.append(told["seed"]) or run_stages(**told))
    assert len(sweep(**KNOBS, seed=0, model=tiny32, out="sweep").runs) == 6 and not made
    sweep(**{**KNOBS, "seed": 0, "num_inference_steps": [2, 3, 4, 5]}, model=tiny32, out="sweep")
    assert made == [0, 0]


def test_another_model_makes_all_of_it_again(tiny32, here, module, monkeypatch):
    """The folders have the same names; what counts is what is in them."""
    sweep(**SMALL, seed=[1, 2], num_inference_steps=2, model=tiny32, out="sweep")
    before = latents_in(Path("sweep/seed=2"))
    weight = tiny32.pipe.transformer.proj_out.weight
    with torch.no_grad():
        weight.mul_(2)
        try:
            made = sweep(**SMALL, seed=[1, 2], num_inference_steps=2, model=tiny32, out="sweep")
        finally:
            weight.div_(2)
    assert not torch.equal(latents_in(made.runs[1].folder), before)


def test_an_interrupted_sweep_goes_on(tiny32, here, module, monkeypatch):
    """Ctrl-C in the third run: the first two stay, the third goes on behind its last step."""
    steps = []

    def interrupted(on_step, **told):
        def watch(step):
            steps.append(step.index)
            if len(steps) == 2 * 6 + 4:
                raise KeyboardInterrupt
            on_step(step)

        return run_stages(on_step=watch, **told)

    monkeypatch.setattr(module, "run_stages", interrupted)
    knobs = {**SMALL, "seed": [1, 2, 3, 4], "num_inference_steps": 6}
    with pytest.raises(KeyboardInterrupt):
        sweep(**knobs, model=tiny32, out="sweep")
    assert [run.finished for run in runs("sweep")] == [True, True, False]
    made = sweep(**knobs, model=tiny32, out="sweep")
    assert steps[16:] == [4, 5, *range(6)]
    for run in made.runs:
        alone = generate(**{**run.settings, "model": tiny32})
        assert torch.equal(latents_in(run.folder), alone.latents)


def test_one_bar(tiny32, here, capsys):
    """One progress bar for all of it, which counts runs and names the current one."""
    sweep(**SMALL, seed=[1, 2], num_inference_steps=2, model=tiny32, out="sweep")
    told = capsys.readouterr().err
    assert "sweep: 100%" in told and "2/2" in told and "seed=2: step 2" in told
    assert "denoise" not in told and "decode" not in told


def test_prompts_become_harmless_folder_names(tiny32, here):
    prompts = ["../../etc <b>A</b> car", "../../etc <b>A</b> cat", "摩托车"]
    made = sweep(**{**SMALL, "prompt": prompts}, num_inference_steps=1, model=tiny32, out="sweep")
    names = [run.folder.name for run in made.runs]
    assert len(set(names)) == 3 and all(run.folder.parent == here / "sweep" for run in made.runs)
    assert [run.settings["prompt"] for run in made.runs] == prompts
    assert read_metadata(made.runs[2].folder / "video.mp4")["settings"]["prompt"] == "摩托车"


MISTAKES = {
    "no value": ({"seed": []}, r"seed=\[\]: must hold at least one"),
    "twice": ({"seed": [1, 1]}, r"seed=\[1, 1\]: .* none twice"),
    "a wrong one": ({"num_frames": [5, 56]}, "num_frames=56.*53 or 57"),
    "a wrong type": ({"seed": [1, "two"]}, "seed='two'"),
    "too near": ({"guidance_scale": [1.00000001, 1.00000002]}, "read the same to six digits"),
    "unknown": ({"sede": [1]}, "did you mean 'seed'"),
    "gpus": ({"gpus": 2}, "gpus=2: each process loads the model itself"),
    "gpus and a part": ({"gpus": 2, "model": "pocket", "riflex": True}, "gpus=2: riflex is for one device"),
    "gpus and strengths": (
        {"gpus": 2, "model": "pocket", "loras": "continue", "lora_strength": [0, 1]},
        r"lora_strength=0: with gpus=2 .* keep their strengths; loras=",
    ),
    "no gpus": ({"gpus": 0}, "gpus=0: must be a whole number of devices"),
    "engine": ({"engine": "spark"}, "engine='spark': must be one of local, ray"),
    "out": ({"out": None}, "out=None: a sweep is kept in a folder"),
    "a long one": ({"prompt": [PROMPT, "word " * 400]}, "^prompt='word.*over the limit of 256"),
    "a long negative": (
        {"negative_prompt": ["fog", "word " * 400], "true_cfg_scale": 2.0},
        "^negative_prompt='word.*over the limit",
    ),
}


@pytest.mark.parametrize(("keywords", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_before_the_first_run(tiny32, here, keywords, message):
    with pytest.raises(UserError, match=message) as raised:
        sweep(**{**SMALL, "model": tiny32, "out": "sweep", **keywords})
    assert "\n" not in str(raised.value) and not list(here.iterdir())


def test_files_of_other_origin_are_told_before_the_first_run(tiny32, here):
    Path("sweep/seed=2").mkdir(parents=True)
    Path("sweep/seed=2/video.mp4").write_text("mine")
    with pytest.raises(UserError, match=r"seed=2': video.mp4 in it would be replaced"):
        sweep(**SMALL, seed=[1, 2], model=tiny32, out="sweep")
    assert [path.name for path in Path("sweep").iterdir()] == ["seed=2"]


def test_a_plan_is_made_for_the_largest_run(tiny32, here, monkeypatch):
    """A side left open may be the largest: it is the model's default."""
    heard = []
    monkeypatch.setattr(sweeping, "loaded", lambda model, memory, video, loras: heard.append(video) or tiny32)
    sweep(**{**SMALL, "height": [32, 64], "num_frames": [1, 5]}, num_inference_steps=1, memory=12, out="sweep")
    assert [(video.height, video.num_frames) for video in heard] == [(64, 5)]
    assert sweeping.largest([{**SMALL, "height": 4096}, {"prompt": PROMPT}]).height is None


def test_ray_wants_a_name(tiny32, here):
    """A model in this process's memory is not what workers would load."""
    pytest.importorskip("ray", reason=NO_RAY)
    with pytest.raises(UserError, match="every worker loads its own"):
        sweep(**SMALL, seed=[1, 2], model=tiny32, out="sweep", engine="ray")


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'pip install "t2v-kit\[ray\]", or engine="local"'):
        on_ray([], [], "pocket", None, None, "none", None)


def test_each_video_by_two_processes(tiny_folder, here):
    """The same video as of one; what is there is kept."""
    knobs = {**SMALL, "num_inference_steps": 3, "model": str(tiny_folder), "gpus": 2}
    sweep(**knobs, seed=[1], out="sweep")
    made = sweep(**knobs, seed=[1, 2], out="sweep")
    assert [run.made_with["gpus"] for run in made.runs] == [2, 2]
    first, second = (_pid(read_log(run.folder)) for run in made.runs)
    assert first != second, "the first one was made before"
    exact = generate(**SMALL, seed=2, num_inference_steps=3, model=str(tiny_folder), upscale="none").latents
    assert (latents_in(made.runs[1].folder) - exact).norm() < 1e-5 * exact.norm()


def test_grid_places_films_in_order():
    """Plain colours: row by row, the last axis along a row; a shorter film holds its last frame."""
    films = [np.full((2, 200, 300, 3), 40 * number, np.uint8) for number in range(4)]
    films[3] = np.concatenate([films[3], films[3][:1] + 5])
    film = grid({"seed": [1, 2], "fps": [8, 16]}, films)
    assert film.dtype == np.uint8 and len(film) == 3 and not film.shape[1] % 2 and not film.shape[2] % 2
    middles = film[:, [130, 340]][:, :, [300, 610]][..., 0]
    assert middles[0].tolist() == [[0, 40], [80, 120]] and middles[2].tolist() == [[0, 40], [80, 125]]
    assert grid({}, films[:1]).shape[0] == 2 and grid({"seed": [1, 2, 3]}, films[:3]).shape[2] > 900


class Cut:
    """A bar at which the driver is interrupted, with tasks left."""

    def update(self, finished: int) -> None:
        raise KeyboardInterrupt


def waits_for(reached, seconds: float = 60) -> bool:
    limit = time.monotonic() + seconds
    while not reached() and time.monotonic() < limit:
        time.sleep(0.2)
    return reached()


def test_ray_gives_the_same_bits_though_a_worker_is_killed(tiny_folder, here):
    """A cluster of two workers, one of them killed in the middle of denoising: its run goes on in another."""
    ray = pytest.importorskip("ray", reason=NO_RAY)
    knobs = {**SMALL, "seed": [1, 2, 3], "num_inference_steps": 150}
    killed = []

    def kill_one() -> None:
        limit = time.monotonic() + 300
        while not killed and time.monotonic() < limit:
            for log in here.glob("ray/*/log.jsonl"):
                lines = read_log(log.parent)
                if sum("step" in line and "seconds" in line for line in lines) >= 8:
                    os.kill(_pid(lines), signal.SIGKILL)
                    killed.append((log.parent, _pid(lines)))
                    return
            time.sleep(0.005)

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(KeyboardInterrupt):
            places = [here / f"cut/{n}" for n in range(3)]
            on_ray([{**knobs, "seed": 9}] * 3, places, tiny_folder, None, None, "none", Cut())
        assert waits_for(lambda: ray.available_resources().get("CPU") == 2), "tasks were left running"
        watcher = threading.Thread(target=kill_one, daemon=True)
        watcher.start()
        spread = sweep(**knobs, model=str(tiny_folder), out="ray", engine="ray")
        with pytest.raises(UserError, match="num_frames=6: must be 4k"):
            sweep(**{**knobs, "num_frames": 6}, model=str(tiny_folder), out="wrong", engine="ray")
        with pytest.raises(UserError, match="gpus=3: no machine of the cluster has more than 2"):
            sweep(**SMALL, seed=[1], model=str(tiny_folder), out="by three", engine="ray", gpus=3)
        shared = sweep(**SMALL, seed=[1], num_inference_steps=2, model=str(tiny_folder), out="2", engine="ray", gpus=2)
    finally:
        ray.shutdown()
    watcher.join(5)
    local = sweep(**knobs, model=str(tiny_folder), out="local")
    for one, other in zip(spread.runs, local.runs):
        assert torch.equal(latents_in(one.folder), latents_in(other.folder))
        assert one.settings == other.settings
    folder, pid = killed[0]
    starts = [line for line in read_log(folder) if line.get("event") == "started"]
    assert [line["pid"] == pid for line in starts] == [True, False] and starts[1]["step"] >= 5
    assert len({_pid(read_log(run.folder)) for run in spread.runs}) >= 2
    assert shared.runs[0].made_with["gpus"] == 2


def _pid(lines: list[dict]) -> int:
    """Who has written the end of a log."""
    return [line["pid"] for line in lines if "pid" in line][-1]
