"""The cells of the Colab editions that no notebook in notebooks/ has."""

NO_ADDRESS = """\
*Open in Colab: there is no badge here yet, because this project has no public address yet (`REPOSITORY` in \
`colab/build.py`). Until then: run `pip wheel . --no-deps` in the repository, upload this notebook to Colab (File, \
Upload notebook), tick `upload_wheel` in the setup cell below and give it the wheel.*"""

SETUP = """\
# @title Setup: installs the kit (a minute or two, the first time)
# @markdown A folder of your Drive for `runs/` (empty: they go when the machine goes)
drive_folder = ""  # @param {type:"string"}
upload_wheel = False  # @param {type:"boolean"}
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

from google.colab import drive, files

REPOSITORY = "{repository}"
if not util.find_spec("t2v_kit"):
    wheels = list(Path().glob("t2v_kit-*.whl")) or [Path(name) for name in (files.upload() if upload_wheel else ())]
    if not (wheels or REPOSITORY):
        raise RuntimeError("The kit has no public address yet: set REPOSITORY in this cell, or tick upload_wheel.")
    kept = [f"{name}=={metadata.version(name)}" for name in ("torch", "torchvision", "numpy", "ipywidgets")]
    Path("constraints.txt").write_text("\\n".join(kept))  # Colab's own stay as they are
    source = str(wheels[-1].resolve()) if wheels else f"git+{REPOSITORY}"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-c", "constraints.txt", source], check=True)
if drive_folder and not Path("runs").is_symlink():
    drive.mount("/content/drive")
    (there := Path("/content/drive/MyDrive", drive_folder)).mkdir(parents=True, exist_ok=True)
    Path("runs").symlink_to(there.resolve())"""

MACHINE = """\
# @title What this machine can do
import shutil
from pathlib import Path

import t2v_kit as t2v

machine, disk_gb = t2v.Machine.here(), shutil.disk_usage(Path.home()).free / 2**30
print(f"{machine.gpu or 'no GPU'}: {machine.vram_gb:g} GB, RAM {machine.ram_gb:g} GB, free disk {disk_gb:.0f} GB")
print("pocket, which the notebooks use: works here")
sizes = {"320x512x61": (320, 512, 61), "544x960x61": (544, 960, 61), "720x1280x129": (720, 1280, 129)}
for name, (height, width, num_frames) in sizes.items() if machine.vram_gb else ():
    try:
        plan = t2v.plan(machine=machine, height=height, width=width, num_frames=num_frames)
        asked = t2v.Settings("any", height=height, width=width, num_frames=num_frames)
        needs = t2v.estimate(plan, asked)
        fits = f"plan {plan.name!r}: {needs.vram_gb:.1f} GB of the GPU, {needs.ram_gb:.1f} GB of RAM"
        print(f"the 13B at {name}: {fits}" + (f"; the disk needs {needs.disk_gb:.0f} GB" * (needs.disk_gb > disk_gb)))
    except t2v.UserError as refused:
        print(f"the 13B at {name}: no. {refused}")
if not machine.vram_gb:
    print("the 13B: needs a GPU; Runtime, Change runtime type, T4 GPU")"""

NOT_RUN = """\
# HunyuanVideo on a Colab GPU

> **Not run.** This notebook has not been run on Colab, nor with the published weights. What was tested: its cells on \
*pocket*, on a CPU, with Colab's versions of IPython and ipywidgets; and that a plan is found for a T4, an L4 and an \
A100. Not known: whether what the plan promises holds on Colab, how long the download takes, what a T4, which has no \
bfloat16 and computes in float16, makes of these weights (NaN stops the run with a word), and all seconds.

**What you will do** Choose a video, see what it will need on this GPU before anything is downloaded, make it with a \
preview of every step, enlarge it, and go on where you were after a disconnect.

**What you need** A Colab GPU, and about 40 GB of free disk for the weights. Fill in a Drive folder below: what is in \
`runs/` then outlives the machine. On the free T4 the plan keeps the networks in 4 bits, and 320x512 with 61 \
frames is a size to begin with; an L4 or an A100 can do more."""

THIRTEEN_B = [
    (
        "choose-text",
        "markdown",
        "## The video\nSizes are height x width x frames. `by GPU memory` takes a small one on a T4 and larger "
        "ones from 20 and 39 GB on. `model` may also be a folder in HunyuanVideo's layout, on your Drive for example.",
    ),
    (
        "choose",
        "code",
        """\
model = "hunyuan"  # @param {type:"string"}
prompt = "Sunny day, freedom and adventure. A man with a beard riding a motorcycle."  # @param {type:"string"}
size = "by GPU memory"  # @param ["by GPU memory", "320x512x61", "544x960x61", "544x960x129", "720x1280x129"]
steps = 30  # @param {type:"integer"}
seed = 7  # @param {type:"integer"}
upscaler = "realesr-animevideov3"  # @param ["realesr-animevideov3", "pocket", "none"]
folder = "runs/hunyuan"  # @param {type:"string"}""",
    ),
    (
        "plan-text",
        "markdown",
        "## What it will need\nThe plan says where each network is kept; the table, what every stage takes. Nothing "
        "has been downloaded yet: if it is too much, change the size and run these cells again.",
    ),
    (
        "plan",
        "code",
        """\
if model == "hunyuan" and not machine.vram_gb:
    raise t2v.UserError("model='hunyuan': needs a GPU, this machine has none; Runtime, Change runtime type, T4 works.")
by_memory = {0: "320x512x61", 20: "544x960x61", 39: "544x960x129"}  # from so many GB on
largest = by_memory[max(gb for gb in by_memory if gb <= machine.vram_gb)]
height, width, num_frames = map(int, (largest if size == "by GPU memory" else size).split("x"))
asked = {"height": height, "width": width, "num_frames": num_frames, "num_inference_steps": steps, "seed": seed}
plan = t2v.plan(machine=machine, height=height, width=width, num_frames=num_frames)
print(plan)""",
    ),
    (
        "needs",
        "code",
        """\
settings = t2v.Settings(prompt, **asked)
try:
    needs = t2v.estimate(plan, settings, gpu=machine.gpu)
except t2v.UserError:
    needs = t2v.estimate(plan, settings)  # a GPU whose data sheet is not known: the seconds are another's
print(needs)
t2v.show_image(needs.picture(machine.vram_gb, machine.ram_gb))
if model == "hunyuan":
    print(f"to download: about {needs.disk_gb:.0f} GB, once for each machine; free: {disk_gb:.0f} GB")""",
    ),
    ("load-text", "markdown", "## Load\nNow the weights are downloaded, and kept as the plan says."),
    ("load", "code", 'models = t2v.load(model, memory=plan)  # the plan that memory="auto" finds for this size'),
    (
        "run-text",
        "markdown",
        "## Make it\nThe preview turns latents into colours by a small linear map, fitted here once: no decoding, next "
        "to no time. Every second step is saved in `folder`.\n\n**After a disconnect**: run the cells above again with "
        "the same Drive folder, tick `go_on`, and the run continues behind its last saved step, with the same bits as "
        "in one go. On another kind of GPU it refuses and says how to go on anyway.",
    ),
    (
        "preview",
        "code",
        """\
from IPython.display import Image, Markdown, display
from t2v_kit.playground import Preview

preview = Preview(models)


def show(step):
    if picture := preview.draw(step, seconds=3):
        shown.update(Image(data=picture, format="png", width=384))""",
    ),
    (
        "run",
        "code",
        """\
go_on = False  # @param {type:"boolean"}
shown = display(Markdown("*The preview appears here.*"), display_id=True)
if go_on:
    run = t2v.resume(folder, models, on_step=show, checkpoint_every=2)
else:
    run = t2v.generate(prompt, models, out=folder, upscale="none", on_step=show, checkpoint_every=2, **asked)
print(run.video.shape, "seconds:", {stage: round(seconds) for stage, seconds in run.seconds.items()})""",
    ),
    ("show", "code", "t2v.show_video(run.video, run.settings.fps)"),
    (
        "upscale-text",
        "markdown",
        "## Enlarge it\n`realesr-animevideov3` is Real-ESRGAN's network for animated video; its file, 2.5 MB, is "
        "fetched and its SHA-256 checked. `pocket` comes with the kit. The large video goes to the file frame by "
        "frame, and with a Drive folder into your Drive.",
    ),
    (
        "upscale",
        "code",
        """\
if upscaler != "none":
    larger = t2v.upscale_file(f"{folder}/video.mp4", f"{folder}/upscaled.mp4", upscaler)
    with t2v.video_reader(larger) as frames:
        print(larger, frames.num_images, "frames of", frames.shape)
        t2v.show_image(next(iter(frames)))""",
    ),
    (
        "end",
        "markdown",
        'The video carries its recipe: `t2v.read_metadata(f"{folder}/video.mp4")`. How the plan was chosen, and what '
        "4 bits do to a model: [06 · A 13B model on a small GPU](06_small_gpus.ipynb).",
    ),
]
