"""The command line `t2v`, also `python -m t2v_kit`: videos, enlarged files, resumed runs, memory plans, lists of runs.

It stands on cyclopts: an option is a parameter, so the options of a video are written from `KNOBS`, where each
setting's help and range are said, instead of being listed again. Of the three libraries that read annotations,
cyclopts accepts a prompt where a subcommand's name could stand and imports in a tenth of a second; tyro takes five
times as long, and typer has no place for a command of the program itself next to its subcommands.

Nothing heavy is imported before everything that can be checked without a model is checked.
"""

from __future__ import annotations

import inspect
import os
import re
import secrets
import shlex
import sys
import time
import unicodedata
import warnings
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, Token, UnknownOptionError

from ._version import __version__
from .errors import UserError, near_match
from .settings import KNOBS, Knob, Settings, check_multiples, settings_from

if TYPE_CHECKING:
    from .run.generating import Run

#: The 13B model's repository, as `hunyuan.files` has it, which imports torch.
HUB_ID = "hunyuanvideo-community/HunyuanVideo"
#: Pixels and frames of a token, of HunyuanVideo and of pocket.
TOKEN = (16, 4)
EXAMPLE = "A man with a beard riding a motorcycle on the street."
#: Shorter words that are accepted for a setting.
SHORT = {
    "num_frames": "--frames",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "flow_shift": "--shift",
    "negative_prompt": "--negative",
    "true_cfg_scale": "--true-cfg",
}
#: Words of other tools, and the option that does the same here.
ELSEWHERE = {
    "--cfg": "--guidance-scale",
    "--cfg-scale": "--guidance-scale",
    "--length": "--num-frames",
    "--duration": "--num-frames",
    "--size": "--height",
    "--resolution": "--height",
    "--upscaler": "--upscale",
    "--output": "--out",
    "--vram": "--memory",
}

app = App(
    name="t2v",
    version=f"t2v {__version__}",
    help="Turn a prompt into a video with HunyuanVideo's pipeline and enlarge it with Real-ESRGAN's.",
    help_epilogue=f'Example: t2v "{EXAMPLE}" --seed 7',
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # `main` says how to continue
)


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The words after the program's name; None takes the process's own.

    Returns:
        The exit status: 0, 2 after a user's mistake, 130 when stopped with Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_note
            app(argv, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        print(f"t2v: {_mistake(error)} (see --help)", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"t2v: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\nt2v: stopped{''.join(map(str, stop.args))}", file=sys.stderr)
        return 130
    return 0


def _make(
    *prompt: str,
    model: str = "pocket",
    upscale: str | None = None,
    memory: str | None = None,
    revision: str | None = None,
    out: str | None = None,
    prompts: str | None = None,
    reuse: bool = True,
    yes: bool = False,
    **settings: Any,
) -> None:
    """Make a video.

    Args:
        prompt: What the video shows, in quotes.
        model: pocket (shipped), hunyuan (13B, from the hub), or a folder.
        upscale: pocket, lanczos, none, a weight file, or a published network's name; by default the model's own.
        memory: auto, or the GB of GPU memory to get along with.
        revision: Branch, tag or commit of a model on the hub.
        out: Folder for the files; by default a new one in runs/.
        prompts: A text file with a prompt on each line, in place of PROMPT: a run for each, in folders of --out.
        reuse: Take saved latents of the same settings.
        yes: Download the 13B model without asking.
    """
    started = time.perf_counter()
    several = None if prompts is None else _prompts_in(prompts)
    if several and prompt:
        raise UserError(f"--prompts {prompts}: takes the place of PROMPT {prompt[0]!r}; give one of the two.")
    if len(prompt) == 0 and not several:
        raise UserError("PROMPT is missing: say what the video shows, in quotes (see --help)")
    if len(prompt) > 1:
        command = near_match(prompt[0], [name for name in app if not name.startswith("-")])
        raise UserError(
            f'the prompt is one argument: put it in quotes, as in "{" ".join(prompt)}"'
            + (f"; or did you mean the command {command}?" if command else "")
        )
    if settings.get("seed") in ("random", -1):
        settings["seed"] = secrets.randbelow(2**32)
        print(f"seed {settings['seed']}", flush=True)
    chosen = {name: value for name, value in settings.items() if value is not None}
    wanted, *_ = [settings_from(prompt=each, **chosen) for each in several or prompt]  # all of them are checked
    folder: str | Path | None = out
    if folder is None:
        folder = Path("runs") / Path(prompts).stem if prompts else default_folder(wanted.prompt, wanted.seed)
    given = {name: getattr(wanted, name) for name, value in settings.items() if value is not None}
    if upscale is not None:
        given["upscale"] = upscale
    if model in ("pocket", "hunyuan", HUB_ID):  # of a folder, only its own configurations know
        check_multiples(wanted, *TOKEN)
    if model in ("hunyuan", HUB_ID) and not yes:
        _ask_for_download(wanted, revision)
    print(f"loading {model}", flush=True)
    try:
        _quieten()
        from .model.loading import load
        from .run.generating import generate
        from .run.sweeps.sweeping import sweep

        loaded = load(model, memory, revision, video=wanted) if memory or revision else model
        if several:
            result = sweep(prompt=several, model=loaded, out=folder, **{"upscale": "auto", **given})
            print(f"written  {result.folder}  {len(result.runs)} runs  in {time.perf_counter() - started:.1f} s")
            return
        run = generate(wanted.prompt, loaded, folder, reuse=reuse, **given)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_what_remains(folder)) from None
    _report(run, time.perf_counter() - started)


def _prompts_in(file: str) -> list[str]:
    """The lines of a file that are not blank."""
    try:
        lines = Path(file).expanduser().read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise UserError(f"--prompts {file}: {reason}; a text file with a prompt on each line would work.") from error
    if prompts := [line.strip() for line in lines if line.strip()]:
        return prompts
    raise UserError(f"--prompts {file}: holds no prompt; one on each line would work.")


def _ask_for_download(wanted: Settings, revision: str | None) -> None:
    """Before the 13B's weights are fetched: their size, where their licence holds, what this machine could do."""
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(HUB_ID, "model_index.json", revision=revision), str):
        return  # a download was agreed to before
    print(
        f"--model hunyuan downloads about 41 GB ({HUB_ID}).\n"
        "Licence: Tencent Hunyuan Community License. It does not apply in the European Union, the United Kingdom and "
        f"South Korea: there it grants no right to use the weights.\nThis machine: {_what_is_possible(wanted)}",
        flush=True,
    )
    if not sys.stdin.isatty():
        raise UserError("--model hunyuan: nobody is there to agree to the download; --yes would work.")
    if input("Download? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError("--model hunyuan: not downloaded; --model pocket needs no download.")


def _what_is_possible(wanted: Settings) -> str:
    """The plan that fits this machine's GPU for the video, or that there is none."""
    from .memory.choose import plan as choose_plan
    from .memory.estimate import estimate
    from .memory.machine import Machine
    from .memory.plan import Size

    machine = Machine.here()
    if not machine.vram_gb:
        return (
            f"no GPU, {machine.ram_gb:g} GB of RAM. The 13B needs a GPU to be of use; t2v plan --vram 12 plans for one."
        )
    size = Size(wanted.height or 720, wanted.width or 1280, wanted.num_frames or 129)
    try:
        needs = estimate(choose_plan(height=size.height, width=size.width, num_frames=size.num_frames), size)
    except UserError as mistake:
        return f"{machine.gpu}. {mistake}"
    return f"{machine.gpu}. --memory auto takes {needs.vram_gb:.1f} GB of the GPU and {needs.ram_gb:.1f} GB of RAM."


def _number(kind: Any, tokens: tuple[Token, ...]) -> int | float:
    """A whole number where the text is one, else a decimal one: the rules are those of `Settings`."""
    text = tokens[0].value
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    raise ValueError(f"{text!r} is not a number")


def _seed(kind: Any, tokens: tuple[Token, ...]) -> int | float | str:
    """As `_number`, or the word random."""
    return "random" if tokens[0].value.lower() == "random" else _number(kind, tokens)


def _option(name: str, knob: Knob) -> inspect.Parameter:
    """The option of a setting, described by its metadata. None, its default, leaves the setting to the model."""
    kind = {"text": str, "flag": bool, "whole": int, "real": float}[knob.kind]
    span = f"{knob.lowest:g} to {knob.highest:g}." if name != "seed" else "random, or -1, draws one and prints it."
    how = Parameter(
        name=[f"--{name.replace('_', '-')}", *([SHORT[name]] if name in SHORT else [])],
        help=f"{knob.help} {span}" if kind in (int, float) else knob.help,
        converter={"seed": _seed}.get(name, _number) if kind in (int, float) else None,
        allow_leading_hyphen=kind is str,
        negative="",
        group="Settings",
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, how])


def _signature() -> inspect.Signature:
    """The parameters of `_make` with each setting in the place of `**settings`."""
    prompt, *own, _ = inspect.signature(_make, eval_str=True).parameters.values()
    return inspect.Signature([prompt, *(_option(name, knob) for name, knob in KNOBS.items() if name != "prompt"), *own])


_make.__signature__ = _signature()  # type: ignore[attr-defined]
app.default(_make)


@app.command
def upscale(
    source: str,
    target: str,
    /,
    *,
    model: str | None = None,
    scale: float = 4,
    codec: str | None = None,
    crf: int | None = None,
    bit_depth: int | None = None,
    fps: str = "keep",
    audio: str = "copy",
    denoise_strength: float | None = None,
    tile: int | None = None,
    batch: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
) -> None:
    """Enlarge a video file. If interrupted, the same command resumes.

    Args:
        source: The video to read.
        target: The video to write: .mp4, .m4v, .mov, .mkv, .webm or .gif.
        model: pocket, lanczos, a weight file, or a published network's name; by default pocket for what it made.
        scale: The enlargement, 1 to 16.
        codec: h264, hevc, av1, vp9, ffv1 (lossless) or prores; by default the usual one of the target's kind.
        crf: The quality, 0 (best) to 51; for av1 and vp9 to 63.
        bit_depth: 8 or 10; 10 also keeps HDR, which is otherwise mapped to SDR.
        fps: keep, or the frames a second to show.
        audio: copy or none.
        denoise_strength: 0 keeps noise, 1 takes it away; for upscalers that come in pairs.
        tile: Side of the tiles in input pixels, a multiple of 8; 0 for none.
        batch: Frames at work together.
        dtype: float32, bfloat16, float16 or auto.
        device: cpu, cuda or cuda:1; by default the first GPU.
    """
    if not Path(source).expanduser().exists():
        raise UserError(f"{source!r}: there is no such file to enlarge.")
    rate: str | float = fps
    if fps != "keep":
        try:
            rate = float(fps)
        except ValueError:
            raise UserError(f"--fps {fps}: must be keep or a number; keep would work.") from None
    options = {
        "codec": codec, "crf": crf, "bit_depth": bit_depth, "denoise_strength": denoise_strength,
        "tile": tile, "batch": batch, "dtype": dtype, "device": device,
    }  # fmt: skip
    started = time.perf_counter()
    _quieten()
    from .stages.upscaling.films import DamagedVideo, upscale_file

    small = Path(source).expanduser()
    given = {name: value for name, value in options.items() if value is not None}
    try:
        path = upscale_file(small, target, model, scale, fps=rate, audio=audio, **given)
    except DamagedVideo as damage:  # not the user's mistake: another exit status
        print(f"t2v: {damage}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt("; the same command resumes it") from None
    print(f"written  {path}  {path.stat().st_size / 1000:.1f} kB  in {time.perf_counter() - started:.1f} s")


@app.command
def resume(folder: str, /, *, model: str | None = None, anyway: bool = False) -> None:
    """Continue an interrupted run.

    Args:
        folder: The run's folder.
        model: The model it was begun with; by default the recorded one.
        anyway: Continue although weights, device or versions are different now.
    """
    if not Path(folder).expanduser().is_dir():
        raise UserError(f"{folder!r}: there is no such folder; t2v gallery lists the runs.")
    started = time.perf_counter()
    try:
        _quieten()
        from .run.generating import resume as continue_run

        run = continue_run(folder, model, anyway)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_what_remains(folder)) from None
    _report(run, time.perf_counter() - started)


@app.command
def plan(
    *,
    vram: float | None = None,
    ram: float | None = None,
    size: str = "720x1280x129",
    model: str = "hunyuan",
    lossless: bool = False,
) -> None:
    """Plan a model's memory, and estimate what a video needs.

    Args:
        vram: GB of GPU memory; by default this machine's.
        ram: GB of RAM; by default this machine's.
        size: Height x width x frames of the video.
        model: pocket, hunyuan, or a folder.
        lossless: Only plans that change nothing but the rounding of the result.
    """
    numbers = re.fullmatch(r"(\d+)x(\d+)x(\d+)", size.lower())
    if numbers is None:
        raise UserError(f"--size {size}: must be height x width x frames; 720x1280x129 would work.")
    height, width, num_frames = map(int, numbers.groups())
    settings_from(prompt=EXAMPLE, height=height, width=width, num_frames=num_frames)
    _quieten()
    from .memory.choose import plan as choose_plan
    from .memory.estimate import estimate
    from .memory.machine import machine_with
    from .memory.plan import Size

    machine = machine_with(vram, ram)
    if not machine.vram_gb:
        raise UserError("this machine has no GPU to plan for; --vram 12 would plan for one of 12 GB.")
    chosen = choose_plan(None, None, height, width, num_frames, model, lossless, machine)
    print(estimate(chosen, Size(height, width, num_frames), model))
    sizes = f"--height {height} --width {width} --num-frames {num_frames}"
    print(f'use: t2v "PROMPT" --model {shlex.quote(model)} --memory {machine.vram_gb:g} {sizes}')


@app.command
def gallery(folder: str = "runs", /, *, out: str | None = None) -> None:
    """List the runs in a folder, and draw one picture of them.

    Args:
        folder: Where the runs are.
        out: The PNG to write; by default gallery.png in that folder.
    """
    where = Path(folder).expanduser()
    if not where.is_dir():
        raise UserError(f'{folder!r}: there is no such folder; t2v "PROMPT" makes a run in runs/.')
    target = where / "gallery.png" if out is None else Path(out).expanduser()
    if target.suffix.lower() != ".png":
        raise UserError(f"--out {out}: must end in .png; {target.with_suffix('.png')} would work.")
    _quieten()
    from PIL import Image

    from .atomic import write_whole
    from .run.records import gallery as draw_gallery
    from .run.records import runs

    records = runs(where)
    picture = draw_gallery(records if records else where)
    with write_whole(target) as temporary:
        Image.fromarray(picture).save(temporary, "PNG")
    for record in records:
        steps = "finished" if record.finished else f"{record.steps} of {record.settings['num_inference_steps']} steps"
        print(f"{record.folder}  {steps}  seed {record.settings['seed']}  {record.settings['prompt']}")
    print(f"written  {target}")


def default_folder(prompt: str, seed: int) -> Path:
    """Name a new run's folder: `runs/<date>-<prompt>-<seed>-<random>`, different at every call.

    Args:
        prompt: Its first 40 letters and digits are kept, in its own script; accents on Latin letters are dropped.
        seed: Put behind the prompt.

    Returns:
        A relative path. The date has milliseconds; the random part is four hexadecimal digits.

    Example:
        >>> default_folder("A red car", 7).name  # doctest: +SKIP
        '20261128-093012-417-a-red-car-7-5be1'
    """
    now = datetime.now()
    name = f"{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}-{_slug(prompt)}-{seed}-{secrets.token_hex(2)}"
    return Path("runs") / name


def _slug(text: str) -> str:
    """Letters and digits of any script in lower case, all else a hyphen; at most 40 characters, never empty."""
    decomposed = unicodedata.normalize("NFKD", text).lower()
    composed = unicodedata.normalize("NFC", re.sub("(?<=[a-z])[\u0300-\u036f]+", "", decomposed))
    words = re.findall(r"[^\W_]+(?:[^\W_]|[\u0300-\u036f\u0900-\u0dff])*", composed)  # vowel signs are no \w
    return "-".join(words)[:40].rstrip("-") or "video"


def _mistake(error: CycloptsError) -> str:
    """One line that says what was typed, and what was probably meant."""
    if isinstance(error, UnknownOptionError):
        word = (error.token.keyword or error.token.value).partition("=")[0]
        options = [name for argument in error.argument_collection or () for name in argument.names if name[:2] == "--"]
        near = ELSEWHERE.get(word) if ELSEWHERE.get(word) in options else near_match(word, options)
        return f"unknown option {word!r}" + (f"; did you mean {near}?" if near else "")
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name = error.argument.name
        return f"{name} needs a value" if name[:2] == "--" else f"{name.upper()} is missing"
    message = " ".join(str(error).split()).rstrip(".")
    return message[:1].lower() + message[1:]


def _what_remains(folder: str | Path) -> str:
    """What to do about a run that was stopped."""
    if (Path(folder).expanduser() / "settings.json").exists():
        return f"; t2v resume {shlex.quote(str(folder))} continues it"
    return "; nothing was written"


def _quieten() -> None:
    """No progress bars but the package's own: one for each stage."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()


def _print_note(message: Warning | str, *_: object) -> None:
    """Print a warning as one line, without the place in the code."""
    print(f"t2v: note: {message}", file=sys.stderr)


def _report(run: Run, total: float) -> None:
    """Print the seconds of each stage and the files written."""
    stages = "  ".join(f"{stage} {seconds:.1f}" for stage, seconds in run.seconds.items())
    print(f"seconds  {stages}  in all, with imports, {total:.1f}")
    if run.reused:
        print(f"reused   latents from {run.reused}")
    print(f"written  {run.folder}{os.sep}")
    for file in run.files:
        print(f"         {file.name:20} {file.stat().st_size / 1000:8.1f} kB")
