"""The command line: what it writes, what it says, and how it answers mistakes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from t2v_kit import UserError, load, plan
from t2v_kit._version import __version__
from t2v_kit.cli import main
from t2v_kit.cli.making import default_folder
from t2v_kit.memory import drivers
from t2v_kit.run.target import ALWAYS_SET
from t2v_kit.settings import KNOBS
from t2v_kit.video.files import save_video

PROMPT = "A man with a beard riding a motorcycle."
ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "t2v_kit"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory with a file in the way and a damaged model folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    return tmp_path


def contents(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def status(*argv: str) -> int:
    """The exit status of the command in this process."""
    try:
        return main(list(argv))
    except SystemExit as stop:  # argparse's way
        return stop.code


def test_a_prompt_becomes_files(tiny_folder, here, capsys):
    """Exit 0, every knob reaches settings.json, seconds and files are printed."""
    knobs = "--seed 7 --num-frames 5 --height 48 --width 32 --num-inference-steps 2 --guidance-scale 4.5 --flow-shift 3"
    argv = [PROMPT, "--model", str(tiny_folder), "--upscale", "none", "--out", "mine", "--fps", "10", *knobs.split()]
    assert status(*argv) == 0
    settings = json.loads((here / "mine/settings.json").read_text(encoding="utf-8"))["settings"]
    asked = {
        "prompt": PROMPT, "model": str(tiny_folder), "upscale": "none", "seed": 7, "num_frames": 5, "height": 48,
        "width": 32, "num_inference_steps": 2, "guidance_scale": 4.5, "flow_shift": 3, "fps": 10,
    }  # fmt: skip
    assert {name: settings[name] for name in asked} == asked
    printed = capsys.readouterr().out
    assert re.search(r"encode \d.*denoise \d.*decode \d", printed) and "upscale" not in printed
    for name in ("video.mp4", "contact_sheet.png", "settings.json", "prompt.safetensors", "latents.safetensors"):
        assert name in printed and (here / "mine" / name).stat().st_size > 0
    assert "upscaled.mp4" not in printed


def test_without_out_each_run_gets_its_own_folder(tiny_folder, here):
    """runs/<date>-<prompt>-<seed>-<random>: two runs of one second and one prompt do not meet."""
    for _ in range(2):
        assert status(PROMPT, "--model", str(tiny_folder), "--upscale", "none", "--seed", "4", "--steps", "1") == 0
    folders = [folder.name for folder in (here / "runs").iterdir()]
    assert len(folders) == 2
    for name in folders:
        assert re.fullmatch(r"\d{8}-\d{6}-\d{3}-a-man-with-a-beard-riding-a-motorcycle-4-[0-9a-f]{4}", name)


@pytest.mark.parametrize(
    ("prompt", "slug"),
    [
        ("../../etc/passwd", "etc-passwd"),
        ("Ünïcode & <b>HTML</b>", "unicode-b-html-b"),
        ("摩托车 🏍️", "摩托车"),
        ("Красная машина", "красная-машина"),
        ("🏍️", "video"),
        ("word " * 50, "word-word-word-word-word-word-word-word"),
    ],
)
def test_a_prompt_in_a_file_name_is_harmless(prompt, slug):
    """Letters and digits only, short, never empty, never a path."""
    name = default_folder(prompt, 0).relative_to("runs").as_posix()
    assert re.fullmatch(rf"\d{{8}}-\d{{6}}-\d{{3}}-{slug}-0-[0-9a-f]{{4}}", name)
    assert default_folder(prompt, 0) != default_folder(prompt, 0)


BAD = {  # arguments beside the tiny model's, and what the line must say
    "empty prompt": ([""], "prompt=''"),
    "blank prompt": (["  \t"], r"prompt='  \\t'"),
    "half a character": (["\udcff"], "half a character"),
    "no prompt": ([], "PROMPT"),
    "prompt without quotes": (["a", "red", "car"], 'put it in quotes, as in "a red car"'),
    "long prompt": (["a red car " * 200], "has 60. tokens, 34. over the limit of 256"),
    "frames": (["a", "--num-frames", "56"], "num_frames=56.*53 or 57"),
    "no frames": (["a", "--num-frames", "0"], "num_frames=0.*1 would work"),
    "frames in words": (["a", "--num-frames", "many"], "--num-frames many: must be a whole number"),
    "half a frame": (["a", "--num-frames", "16.5"], "num_frames=16.5.*whole number"),
    "height": (["a", "--height", "100"], "height=100.*96 or 112"),
    "height zero": (["a", "--height", "0"], "height=0.*16 would work"),
    "height negative": (["a", "--height", "-16"], "height=-16.*16 would work"),
    "height absurd": (["a", "--height", "1000000"], "height=1000000.*4096 would work"),
    "width": (["a", "--width", "50"], "width=50.*48 or 64"),
    "size as a whole": (["a", "--width", "4096", "--height", "4096", "--num-frames", "129"], "video tokens"),
    "steps": (["a", "--num-inference-steps", "0"], "num_inference_steps=0.*1 would work"),
    "guidance": (["a", "--guidance-scale", "nan"], "guidance_scale=nan"),
    "guidance infinite": (["a", "--guidance-scale", "inf"], "guidance_scale=inf"),
    "shift": (["a", "--flow-shift", "0"], "flow_shift=0.*0.1 would work"),
    "fps": (["a", "--fps", "-5"], "fps=-5.*1 would work"),
    "seed": (["a", "--seed", "-2"], "seed=-2.*0 would work"),
    "seed huge": (["a", "--seed", str(2**64)], f"seed={2**64}.*{2**63 - 1} would work"),
    "model": (["a", "--model", "hunyan"], "did you mean 'hunyuan'"),
    "model is a file": (["a", "--model", "taken"], "model 'taken'"),
    "upscaler": (["a", "--upscale", "pokcet"], "unknown upscaler 'pokcet'"),
    "upscaler is no such file": (["a", "--upscale", "taken"], "'taken' is damaged or no upscaler"),
    "out is a file": (["a", "--out", "taken"], "out='taken': cannot be written"),
    "out below a file": (["a", "--out", "taken/x"], "out='taken/x': cannot be written"),
    "out is empty": (["a", "--out", ""], "out=''"),
    "unknown option": (["a", "--guidence-scale", "3"], "'--guidence-scale'; did you mean --guidance-scale"),
    "unknown option with value": (["a", "--step=3"], "unknown option '--step'; did you mean --steps"),
    "option without value": (["a", "--seed"], "--seed.*(needs a value|requires an argument)"),
    "word of another tool": (["a", "--cfg-scale", "3"], "did you mean --guidance-scale"),
    "prompts without a file": (
        ["--prompts", "prompts.txt"],
        "--prompts prompts.txt: No such file.*a prompt on each line",
    ),
    "prompts and a prompt": (["a", "--prompts", "taken"], "takes the place of PROMPT 'a'"),
    "a LoRA misspelt": (["a", "--lora", "taken.safetensor:0.5"], "'taken.safetensor': there is no such file"),
    "a LoRA's strength": (["a", "--lora", "taken:50"], "lora strength 50.0: must be a number from -10 to 10"),
    "a LoRA that is none": (["a", "--lora", "taken:0.5"], "is a nameless file; a .safetensors file would work"),
    "a command misspelt": (["resum", "x"], "did you mean the command resume"),
}


def test_a_file_of_prompts_becomes_runs_and_a_grid(tiny_folder, here, capsys):
    """A line, a run; blank lines are none; a second time nothing is made again."""
    Path("many.txt").write_text("A red car.\n\n  A blue cat. \n")
    command = ["--prompts", "many.txt", "--model", str(tiny_folder), "--upscale", "none", "--steps", "2"]
    assert status(*command) == 0
    runs = sorted(path.parent for path in Path("runs/many").glob("*/settings.json"))
    prompts = {json.loads((run / "settings.json").read_text())["settings"]["prompt"] for run in runs}
    assert prompts == {"A red car.", "A blue cat."} and Path("runs/many/grid.png").exists()
    made = {run: (run / "video.mp4").stat().st_mtime_ns for run in runs}
    assert status(*command) == 0
    assert made == {run: (run / "video.mp4").stat().st_mtime_ns for run in runs}
    assert "2 runs" in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "message"), BAD.values(), ids=BAD)
def test_a_mistake_gets_one_line_and_exit_2(tiny_folder, here, capsys, argv, message):
    """One clear line on stderr, nothing written."""
    before = contents(here)
    usual = {"--model": str(tiny_folder), "--upscale": "none"}
    assert status(*(word for name in usual if name not in argv for word in (name, usual[name])), *argv) == 2
    told = capsys.readouterr()
    assert re.search(message, told.err) and told.err.startswith("t2v: ")
    assert told.err.count("\n") == 1 and told.err.endswith("\n")
    assert contents(here) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that not even root can write in")
def test_where_pydantic_is_loaded_nothing_changes(here, capsys):
    """cyclopts has it check arguments where some other package has imported it, and options left out are None."""
    pytest.importorskip("pydantic")
    assert status("A car.", "--frames", "16.5") == 2
    assert re.search("num_frames=16.5.*whole number", capsys.readouterr().err)


def test_an_unwritable_folder_is_told_before_the_work(tiny_folder, here, capsys):
    """/proc takes no files from anybody."""
    assert status("a", "--model", str(tiny_folder), "--upscale", "none", "--out", "/proc/t2v") == 2
    assert "out='/proc/t2v': cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("harm", ["truncated", "missing", "no json", "no index"])
def test_a_damaged_model_folder(tiny_folder, here, capsys, harm):
    """A model folder that is incomplete or corrupt names the file that is to blame."""
    import shutil

    folder = here / "model"
    shutil.copytree(tiny_folder, folder)
    weights = next((folder / "vae").glob("*.safetensors"))
    blamed = {"no json": folder / "vae/config.json", "no index": folder / "model_index.json"}.get(harm, weights)
    if harm == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif harm == "no json":
        blamed.write_text("{")
    else:
        blamed.unlink()
    assert status("a", "--model", "model", "--upscale", "none", "--out", "run") == 2
    told = capsys.readouterr().err
    assert (blamed.name if harm != "missing" else "vae") in told and told.count("\n") == 1
    assert not (here / "run").exists()


def test_what_is_told_once_is_one_line(tiny_folder, here, capsys):
    """A prompt over CLIP's 77 tokens is no mistake: a note without a place in the code, and the video is made."""
    prompt = "A red car drives on the beach. " * 10
    assert status(prompt, "--model", str(tiny_folder), "--upscale", "none", "--out", "run") == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "note:" in line]
    assert len(notes) == 1 and "CLIP reads 77" in notes[0] and ".py" not in notes[0]


def test_help_does_not_wait_for_torch():
    """--help names every option, and comes before anything heavy is imported."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "t2v_kit", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0
    for option in ("model", "seed", "num-frames", "height", "width", "num-inference-steps", "guidance-scale",
                   "flow-shift", "fps", "upscale", "out"):  # fmt: skip
        assert f"--{option}" in result.stdout
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "cyclopts" in imported and not imported & {"torch", "numpy", "diffusers", "transformers"}


def test_the_command_itself(tiny_folder, here):
    """As typed in a shell: a mistake that only the loaded model can see is still one line and exit 2."""
    argv = [*COMMAND, PROMPT, "--model", str(tiny_folder), "--upscale", "none", "--num-frames", "56"]
    result = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, f"loading {tiny_folder}\n")
    assert re.fullmatch("t2v: num_frames=56: .*53 or 57.*\n", result.stderr)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_keeps_what_is_finished(tiny_folder, tmp_path):
    """Stopped while denoising: exit 130, one line that says how to go on, no file half-written."""
    out = tmp_path / "run"
    argv = [*COMMAND, PROMPT, "--model", str(tiny_folder), "--upscale", "none", "--num-inference-steps", "1000"]
    with subprocess.Popen([*argv, "--out", str(out)], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (out / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert told.splitlines()[-1] == f"t2v: stopped; t2v resume {out} continues it" and "Traceback" not in told
    assert {"settings.json", "prompt.safetensors", "checkpoint.safetensors", "log.jsonl"} <= contents(out)
    assert not [name for name in contents(out) if name.endswith((".mp4", ".png"))]


def test_a_random_seed_is_printed_and_recorded(tiny_folder, here, capsys):
    """`--seed random` and `--seed -1` draw one, and say which: the video can be made again."""
    for word in ("random", "-1"):
        out = f"run{word}"
        argv = [PROMPT, "--model", str(tiny_folder), "--upscale", "none", "--steps", "1", "--out", out, "--seed", word]
        assert status(*argv) == 0
        seed = int(re.search(r"^seed (\d+)$", capsys.readouterr().out, re.MULTILINE)[1])
        assert json.loads((here / out / "settings.json").read_text("utf-8"))["settings"]["seed"] == seed


def test_every_setting_is_an_option_with_its_help(capsys):
    """The options are written from the settings' metadata: nothing is said twice, and none is missing."""
    assert status("--help") == 0
    printed = " ".join(capsys.readouterr().out.split())
    for name, knob in KNOBS.items():
        assert name == "prompt" or f"--{name.replace('_', '-')}" in printed
        assert name == "prompt" or knob.help.split()[0] in printed


def test_true_guidance_and_a_negative_prompt_are_options(tiny_folder, here):
    argv = [PROMPT, "--model", str(tiny_folder), "--upscale", "none", "--steps", "1", "--out", "run"]
    assert status(*argv, "--negative-prompt", "a cat", "--true-cfg-scale", "2", "--padded-prompt") == 0
    settings = json.loads((here / "run/settings.json").read_text("utf-8"))["settings"]
    assert (settings["negative_prompt"], settings["true_cfg_scale"], settings["padded_prompt"]) == ("a cat", 2, True)


def test_the_other_commands(tiny_folder, here, capsys):
    """resume finishes what was stopped, upscale enlarges a file, gallery lists and draws, plan and --version print."""
    argv = [PROMPT, "--model", str(tiny_folder), "--upscale", "none", "--steps", "2", "--out", "runs/one"]
    assert status(*argv) == 0
    (here / "runs/one/contact_sheet.png").unlink()
    assert status("resume", "runs/one") == 0 and (here / "runs/one/contact_sheet.png").exists()
    before = (here / "runs/one/log.jsonl").read_text()
    assert status("resume", "runs/one") == 0 and (here / "runs/one/log.jsonl").read_text() == before
    assert status("upscale", "runs/one/video.mp4", "large.mp4", "--scale", "2") == 0 and (here / "large.mp4").exists()
    assert status("gallery") == 0 and (here / "runs/gallery.png").exists()
    capsys.readouterr()
    assert status("plan", "--vram", "12", "--ram", "32", "--size", "320x512x61", "--model", "hunyuan") == 0
    printed = capsys.readouterr().out
    assert "GPU GiB" in printed and "memory=t2v_kit.plan(12, 32, 320" in printed
    assert status("--version") == 0 and capsys.readouterr().out == f"t2v {__version__}\n"
    for mistake in (["resume", "nowhere"], ["upscale", "nowhere.mp4", "x.mp4"], ["plan", "--size", "large"]):
        assert status(*mistake) == 2 and capsys.readouterr().err.count("\n") == 1


BEFORE_TORCH = {
    "height": ([PROMPT, "--height", "100"], "96 or 112"),
    "height of hunyuan": ([PROMPT, "--model", "hunyuan", "--height", "100"], "96 or 112"),
    "frames": ([PROMPT, "--num-frames", "56"], "53 or 57"),
    "rate": ([PROMPT, "--fps", "0"], "1 would"),
    "model": ([PROMPT, "--model", "pockett"], "'pocket'"),
    "model folder": ([PROMPT, "--model", "empty"], "model_index.json"),
    "upscaler": ([PROMPT, "--upscale", "realesrgan"], "'RealESRGAN_x4plus'"),
    "upscaler's file": ([PROMPT, "--upscale", "weights.pth"], "Real-ESRGAN file"),
    "a LoRA's file": ([PROMPT, "--lora", "style.safetensors"], "there is no such file"),
    "a LoRA's strength": ([PROMPT, "--lora", "somebody/style:11"], "-10 to 10"),
    "a LoRA's strengths": (
        [PROMPT, "--lora", "continue:0,1", "--steps", "4"],
        "has 2 strengths, but there are 4 steps",
    ),
    "memory": ([PROMPT, "--memory", "lots"], "'auto'"),
    "memory without a GPU": ([PROMPT, "--memory", "12"], "no GPU whose memory could be planned"),
    "attention": ([PROMPT, "--attention", "fa3"], "'_flash_3'"),
    "compile without a GPU": ([PROMPT, "--compile"], "leaving --compile out would work"),
    "gpus": ([PROMPT, "--gpus", "0"], "from 1; 1 would work"),
    "riflex on several": ([PROMPT, "--gpus", "2", "--riflex"], "gpus=2: riflex is for one device"),
    "a first frame on several": ([PROMPT, "--gpus", "2", "--first-frame", "dot.png"], "gpus=2: first_frame is given"),
    "prompts on several": (["--prompts", "note.txt", "--gpus", "2"], "one PROMPT would work"),
    "image": ([PROMPT, "--image", "dot.png"], "--first-frame dot.png would work"),
    "out is a file": ([PROMPT, "--out", "note.txt"], "'runs/mine'"),
    "out is not a run": ([PROMPT, "--out", "films"], "video.mp4 in it would be replaced"),
    "resume": (["resume", "empty"], "settings.json"),
    "resume with a model": (["resume", "run", "--model", "pockett"], "'pocket'"),
    "upscale": (["upscale", "films/video.mp4", "x.mp4", "--model", "animevideo"], "'realesr-animevideov3'"),
    "upscale to": (["upscale", "films/video.mp4", "x.mpg"], ".mp4"),
    "upscale what is no film": (["upscale", "note.txt", "x.mp4"], "cannot read 'note.txt' as a video"),
    "scale": (["upscale", "films/video.mp4", "x.mp4", "--scale", "20"], "from 1 to 16: try 16"),
    "tile": (["upscale", "films/video.mp4", "x.mp4", "--tile", "13"], "a multiple of 8"),
    "dtype": (["upscale", "films/video.mp4", "x.mp4", "--dtype", "int8"], "bfloat16"),
    "audio": (["upscale", "films/video.mp4", "x.mp4", "--audio", "drop"], "'copy' would work"),
    "device": (["upscale", "films/video.mp4", "x.mp4", "--device", "cuda:1"], "'cpu' would work"),
    "denoise strength": (["upscale", "films/video.mp4", "x.mp4", "--model", "pocket", "--denoise-strength", "2"], "1"),
    "plan without a GPU": (["plan"], "--vram 12 would plan"),
    "plan for nothing": (["plan", "--vram", "-3"], "--vram -3: must be GB above 0"),
    "plan of a size": (["plan", "--vram", "12", "--size", "720x1281x129"], "1280 or 1296"),
    "a number": (["plan", "--vram", "12GB"], "--vram 12GB: must be a number"),
    "a word too many": (["plan", "12"], "'12' is not expected here"),
    "train in a folder": (["train", "dots", "--out", "films"], "is there and not empty"),
    "train on nothing": (["train", "empty"], "holds no clip or picture"),
    "train a model": (["train", "dots", "--model", "pockett"], "'pocket'"),
    "train in 4 bits": (["train", "dots", "--memory", "12"], "--memory none would work"),
    "train the 13B": (["train", "dots", "--model", "hunyuan"], "--model pocket works without one"),
    "train frames": (["train", "dots", "--num-frames", "10"], "9 or 13"),
    "train on a device": (["train", "dots", "--device", "cuda"], "'cpu' would work"),
    "train for a prompt": (["train", "dots", "--prompt", " "], "is empty"),
    "train with checkpoints": (["train", "dots", "--checkpoint-every", "0"], "50 would work"),
    "go on training otherwise": (["train", "--resume", "run", "--rank", "4"], "--rank 4: a training that goes on"),
    "go on training": (["train", "--resume", "run"], "holds no training"),
}
# In one process, in which no earlier command may have imported what the next one is asked about.
EACH = """
import contextlib, io, json, sys
from t2v_kit.cli import main
rows = []
for argv in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(argv)
    rows.append([status, out.getvalue(), err.getvalue(), [*{"torch", "diffusers", "transformers"} & set(sys.modules)]])
print(json.dumps(rows))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """By the names of `BEFORE_TORCH`: the exit status, both outputs, and what heavy was imported by then."""
    folder = tmp_path_factory.mktemp("here")
    for name in ("empty", "films", "run", "dots"):
        (folder / name).mkdir()
    (folder / "note.txt").write_text("a note")
    save_video(folder / "films/video.mp4", np.zeros((1, 16, 16, 3), np.uint8), fps=1)
    for place in (folder / "dot.png", folder / "dots/dot.png"):
        Image.new("RGB", (16, 16)).save(place)
    (folder / "dots/dot.txt").write_text("a dot")
    settings = dict.fromkeys(ALWAYS_SET, 1)
    (folder / "run/settings.json").write_text(json.dumps({"settings": settings, "made_with": {}}), "utf-8")
    before = sorted(folder.rglob("*"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    asked = json.dumps([argv for argv, _ in BEFORE_TORCH.values()])
    result = subprocess.run(
        [sys.executable, "-c", EACH], cwd=folder, env=environment, input=asked, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert sorted(folder.rglob("*")) == before, "something was written"
    return dict(zip(BEFORE_TORCH, json.loads(result.stdout)))


@pytest.mark.parametrize("name", BEFORE_TORCH)
def test_a_mistake_does_not_wait_for_torch(refusals, name):
    """It is one line and exit 2, nothing was loaded, asked for or written, and torch was not imported."""
    status, printed, said, imported = refusals[name]
    assert BEFORE_TORCH[name][1] in said and said.startswith("t2v: ") and said.count("\n") == 1
    assert status == 2 and printed == "" and imported == []


def test_whether_there_is_a_gpu_is_known_before_torch_only_where_it_is_certain(monkeypatch):
    """By the build of PyTorch, by hidden GPUs, and by the driver; a build for other GPUs may find some."""
    assert not (drivers.surely_no_gpu() and torch.cuda.is_available())
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def no_driver(name):
        raise OSError(name)

    for build, driver, sure in (
        ("2.11.0+cpu", str, True), ("2.11.0+cu128", str, False), ("2.11.0", str, False), ("2.11.0", no_driver, True),
        ("2.11.0+rocm7", no_driver, False),
    ):  # fmt: skip
        monkeypatch.setattr(drivers, "version", lambda _, build=build: build)
        monkeypatch.setattr(drivers.ctypes, "CDLL", driver)
        assert drivers.surely_no_gpu() == sure, (build, driver)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert drivers.surely_no_gpu()


def test_a_plan_says_what_gives_it(capsys):
    """The command where there is one for it, else the call in Python that makes the same plan."""
    size = ["--size", "320x512x61", "--vram", "12"]
    assert status("plan", *size) == 0 and "--memory 12 --height 320" in capsys.readouterr().out
    assert status("plan", *size, "--model", "hunyuan-i2v") == 0 and "--image in.png" in capsys.readouterr().out
    assert status("plan", *size, "--ram", "32", "--lossless") == 0
    call = capsys.readouterr().out.partition("memory=t2v_kit.")[2].rstrip().removesuffix(")")
    assert eval(call, {"plan": plan}) == plan(12, 32, 320, 512, 61, lossless=True)


def test_python_is_told_before_41_gb_are_fetched(monkeypatch):
    """A program is not asked, but size and territory are told; with the model in the cache nothing is."""
    from t2v_kit.hunyuan import files

    def offline(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr(files, "hf_hub_download", offline)
    for cached, notes in ((None, 1), ("model_index.json", 0)):
        monkeypatch.setattr(files, "try_to_load_from_cache", lambda *_, cached=cached, **__: cached)
        with warnings.catch_warnings(record=True) as caught, pytest.raises(UserError, match="offline"):
            warnings.simplefilter("always")
            load("hunyuan")
        assert [("41 GB" in str(each.message), "European Union" in str(each.message)) for each in caught] == [
            (True, True)
        ] * notes


def test_what_a_token_holds_is_what_the_model_says():
    from t2v_kit import load
    from t2v_kit.hunyuan.names import TOKEN

    pipe = load("pocket").pipe
    config = pipe.transformer.config
    space, time = pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal
    assert (space * config.patch_size, time * config.patch_size_t) == TOKEN


@pytest.fixture
def nothing_fetched(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    loaded = []
    monkeypatch.setattr("t2v_kit.run.generating.generate", lambda *words, **_: loaded.append(words) or 1 / 0)
    return loaded


def test_a_large_download_is_not_begun_unasked(here, capsys, monkeypatch, nothing_fetched):
    """Size, territory and machine are told; without a terminal it is refused, and --yes would have been enough."""
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert status(PROMPT, "--model", "hunyuan") == 2
    told = capsys.readouterr()
    assert "41 GB" in told.out and "European Union, the United Kingdom and South Korea" in told.out
    assert re.search(r"This machine: .*GB of RAM", told.out)
    assert "--yes would work" in told.err and told.err.count("\n") == 1 and not nothing_fetched


@pytest.mark.parametrize(("answer", "fetched"), [("n", False), ("", False), ("y", True), ("YES", True)])
def test_the_answer_decides_on_the_download(here, monkeypatch, nothing_fetched, answer, fetched):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    if fetched:
        with pytest.raises(ZeroDivisionError):
            status(PROMPT, "--model", "hunyuan")
    else:
        assert status(PROMPT, "--model", "hunyuan") == 2
    assert bool(nothing_fetched) == fetched


def test_yes_downloads_without_asking(here, capsys, monkeypatch, nothing_fetched):
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("asked"))
    with pytest.raises(ZeroDivisionError):
        status(PROMPT, "--model", "hunyuan", "--yes")
    assert nothing_fetched and "41 GB" not in capsys.readouterr().out


def test_help_answers_at_once():
    """In half a second on a quiet machine; three times that where other tests run too."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([*COMMAND, "--help"], cwd=ROOT, capture_output=True, check=True, timeout=60)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 1.5
