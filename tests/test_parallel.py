"""One video by several processes, on the CPU with gloo: the same video, and an end when a process is lost."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from t2v_kit import UserError, generate, load, resume
from t2v_kit.hunyuan.parallel import check_heads, join, shares
from t2v_kit.run.folder import read_log
from t2v_kit.run.launching import ERROR, _what_failed
from t2v_kit.run.progress import Stopped
from t2v_kit.run.worker import as_data
from t2v_kit.video.files import save_video
from tests import sharing
from tests.forks import python, together
from tests.sharing import CASES, computed

SMALL = {"height": 48, "width": 80, "num_frames": 9, "num_inference_steps": 3, "upscale": "none", "progress": False}
PROMPT = "A red car drives on the beach."


@pytest.fixture(scope="module")
def alone():
    return computed(load("pocket", device="cpu"))


def difference(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_make_the_video_of_one(size, alone, tmp_path):
    """Three heads on two processes are uneven, as are most of the lengths here."""
    together(size, [Path(sharing.__file__), tmp_path], {"PYTHONPATH": str(Path(__file__).parents[1])})
    for rank in range(size):
        of_rank = torch.load(tmp_path / f"{rank}.pt")
        for (latents, frames), (exact, video), settings in zip(of_rank, alone, CASES):
            assert difference(latents, exact) < 1e-5, settings
            if rank:
                assert len(frames) == 0
            else:
                assert frames.shape == video.shape
                assert (frames.int() - video.int()).abs().max() <= 1


def test_generate_on_two_can_be_watched_stopped_and_resumed(tmp_path):
    """From a video of which half is made anew, which the first process encodes: the video of one process."""
    frames = np.random.default_rng(0).integers(0, 256, (9, 48, 80, 3), np.uint8)
    asked: dict = SMALL | {
        "num_inference_steps": 8,
        "strength": 0.5,
        "video": save_video(tmp_path / "in.mp4", frames, 16),
    }
    steps = []
    with pytest.raises(Stopped, match=r"stopped in denoise.*resume"):
        generate(
            PROMPT, out=tmp_path / "run", gpus=2, on_step=steps.append, stop=lambda: len(steps) > 0, **asked
        )  # fmt: skip
    assert steps[0].index == 4 and steps[0].predicted_clean.shape == steps[0].latents.shape
    stages = []
    run = resume(tmp_path / "run", on_stage=lambda *stage: stages.append(stage), progress=False)
    assert run.record["settings"]["gpus"] == run.record["made_with"]["gpus"] == 2
    assert run.record["made_with"]["unknown_code"] is None
    assert next(done for name, done, _ in stages if name == "denoise") > 4, "it begins behind the checkpoint"
    whole = generate(PROMPT, **asked)
    assert difference(run.latents, whole.latents) < 1e-5
    assert run.video.shape == whole.video.shape and (run.folder / "video.mp4").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they go on until the video is made")
def test_processes_end_with_who_started_them(tmp_path):
    """As when a notebook's kernel is restarted."""
    asked = SMALL | {"out": str(tmp_path / "run"), "gpus": 2, "num_inference_steps": 1000}
    started_by = ["-c", f"import t2v_kit; t2v_kit.generate({PROMPT!r}, **{asked})"]
    starter = python(started_by, {"PYTHONPATH": str(Path(__file__).parents[1])})
    limit = time.monotonic() + 200
    while not any("step" in line for line in read_log(tmp_path / "run")) and time.monotonic() < limit:
        time.sleep(0.1)
    started = psutil.Process(starter.pid).children(recursive=True)
    starter.kill()
    starter.wait()
    assert len(started) >= 3 and not psutil.wait_procs(started, 60)[1]


def test_a_killed_process_ends_the_run_with_one_line_and_a_checkpoint(tmp_path):
    def kill(step) -> None:
        for process in psutil.Process().children(recursive=True):
            if process.environ().get("RANK") == "1":
                os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(
        UserError, match=r"gpus=2: process 2 of 2 was killed \(SIGKILL\) after step \d+; resume"
    ) as lost:
        generate(PROMPT, out=tmp_path / "run", gpus=2, on_step=kill, **SMALL | {"num_inference_steps": 30})
    assert "\n" not in str(lost.value)
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    assert not [each for each in psutil.Process().children(recursive=True) if "worker" in " ".join(each.cmdline())]


def test_torchrun_is_enough(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    size = ["--height", "48", "--width", "80", "--frames", "5", "--steps", "1", "--upscale", "none"]
    command = [*launcher, "-m", "t2v_kit", PROMPT, *size, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("loading pocket in 2 processes") == 1
    assert (tmp_path / "run" / "video.mp4").exists()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"gpus": 2}, r"gpus=2: needs a folder .*out='runs/mine' would work"),
        ({"gpus": 0, "out": "runs/x"}, "gpus=0: must be a whole number of devices from 1"),
        ({"gpus": 2, "out": "runs/x", "height": 50}, "height=50: must be a multiple of 16.*48 or 64 would work"),
        ({"gpus": 2, "out": "runs/x", "num_frames": 6}, "num_frames=6.*5 or 9 would work"),
        ({"gpus": 2, "out": "runs/x", "model": "pokcet"}, "pokcet"),
        ({"gpus": 2, "out": "runs/x", "first_frame": "in.png"}, r"gpus=2: first_frame is given.*gpus=1 would work"),
    ],
)
def test_mistakes_are_told_before_anything_starts(asked, message, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(UserError, match=message):
        generate(PROMPT, **SMALL | asked)


def test_what_the_first_process_refuses_is_told_as_it_is(tmp_path):
    """As for a model in a folder, of which only its configurations know what a token is."""
    (tmp_path / ERROR).write_bytes(pickle.dumps(as_data(UserError("height=50: no.", setting="height"))))
    told = _what_failed(tmp_path, tmp_path / "run", 2)
    assert isinstance(told, UserError) and str(told) == "height=50: no." and told.setting == "height"


def test_more_devices_than_heads_are_refused():
    check_heads({"num_attention_heads": 3}, 3)
    with pytest.raises(UserError, match=r"gpus=4: this transformer has 3 attention heads.*gpus=3 would work"):
        check_heads({"num_attention_heads": 3}, 4)
    with pytest.raises(UserError, match="first frame"):
        check_heads({"image_condition_type": "token_replace"}, 2)
    with pytest.raises(UserError, match="alone"):
        join()


@pytest.mark.parametrize(("whole", "size"), [(10, 4), (3, 2), (118_800, 7), (5, 5)])
def test_shares_are_those_of_tensor_split(whole, size):
    assert shares(whole, size) == [len(part) for part in torch.arange(whole).tensor_split(size)]
