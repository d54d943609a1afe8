"""`t2v "PROMPT"`: make a video, or one for each prompt of a file.

The options of a video are written from `KNOBS`, where each setting's help and range are said, instead of being listed
again.
"""

from __future__ import annotations

import inspect
import os
import re
import secrets
import time
import unicodedata
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from ..errors import UserError, check_whole, near_match
from ..hunyuan.kernel_names import check_kernel
from ..hunyuan.lora_arguments import check_steps, lora_from_text
from ..hunyuan.names import ANIMATES, DOWNLOADS, KNOWN, PUBLISHED, TOKEN, check_name
from ..memory.drivers import NOTHING_TO_PLAN, surely_no_gpu
from ..memory.plan import gigabytes
from ..run.target import check_own, check_target
from ..settings import KNOBS, Knob, Settings, check_multiples, settings_from
from ..stages.upscaling.names import AUTO, LANCZOS, NONE
from ..stages.upscaling.names import check_name as check_upscaler_name
from .app import app, import_quietly, report, what_remains
from .download import ask_for_download

#: Shorter words that are accepted for a setting.
SHORT = {
    "num_frames": "--frames",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "flow_shift": "--shift",
    "negative_prompt": "--negative",
    "true_cfg_scale": "--true-cfg",
}


def _make(
    *prompt: str,
    model: str = "pocket",
    upscale: str | None = None,
    memory: str | None = None,
    lora: list[str] | None = None,
    revision: str | None = None,
    gpus: int | None = None,
    attention: str = "auto",
    compile: bool = False,
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
        lora: FILE[:STRENGTH], a LoRA's file or hub id, and its strength; again for another. Several numbers with commas
            between them are one for each step.
        revision: Branch, tag or commit of a model on the hub.
        gpus: How many GPUs make the video together; under torchrun, as many as it started processes.
        attention: auto, or a kernel by the name that diffusers gives it.
        compile: Compile the transformer's blocks and the VAE: a slow first step, and faster ones.
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
    _check_files(wanted)
    loras = [lora_from_text(each) for each in lora or ()]
    folder: str | Path | None = out
    if folder is None:
        folder = Path("runs") / Path(prompts).stem if prompts else default_folder(wanted.prompt, wanted.seed)
    given = {name: getattr(wanted, name) for name, value in settings.items() if value is not None}
    if upscale is not None:
        given["upscale"] = upscale
    check_name(model)
    check_steps(loras, wanted.num_inference_steps)
    _check_machine(memory, attention, compile)
    if upscale is not None and upscale.lower() not in (AUTO, NONE, LANCZOS):
        check_upscaler_name(upscale)
    target = check_target(folder)
    if not several:
        check_own(target)
    if model in KNOWN:  # of a folder, only its configurations know
        check_multiples(wanted, *TOKEN)
        _check_image(wanted, model)
    if (model in PUBLISHED or model in DOWNLOADS) and not yes:
        ask_for_download(wanted, revision, model)
    if several and ((gpus or 1) > 1 or under_torchrun()):
        raise UserError(
            f"--prompts {prompts}: makes one video after the other, each on one GPU; one PROMPT would work."
        )
    if gpus is not None:
        from ..run.given import check_shareable

        check_shareable(wanted, check_whole("gpus", gpus, unit="devices"))
    how = {"attention": attention, "compile": compile}
    if under_torchrun():
        return _among_others(wanted, model, folder, {"memory": memory, "revision": revision, "loras": loras, **how},
                             given | {"reuse": reuse}, started)  # fmt: skip
    if gpus is not None and gpus > 1:
        if revision:
            raise UserError(f"--revision {revision}: is not for --gpus; torchrun -m t2v_kit takes it.")
        given |= {"gpus": gpus, "memory": memory, "loras": loras or None, **how}
        memory, loras = None, []
    print(f"loading {model}", flush=True)
    try:
        import_quietly("run.generating")
        from ..model.loading import load
        from ..run.generating import generate
        from ..run.sweeps.sweeping import sweep

        loaded: Any = model
        if "gpus" not in given and (memory or revision or loras or attention != "auto" or compile):
            loaded = load(model, memory, revision, video=wanted, loras=loras, **how)
        if loras:
            print(loaded.loras, flush=True)
        if several:
            result = sweep(prompt=several, model=loaded, out=folder, **{"upscale": "auto", **given})
            print(f"written  {result.folder}  {len(result.runs)} runs  in {time.perf_counter() - started:.1f} s")
            return
        run = generate(wanted.prompt, loaded, folder, reuse=reuse, **how | given)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(what_remains(folder)) from None
    report(run, time.perf_counter() - started)


def under_torchrun() -> bool:
    """Whether torchrun started this process among others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


def _among_others(wanted: Settings, model: str, folder, load_by: dict, given: dict, started: float) -> None:
    """Under torchrun: the first process makes the run and says so, the others compute their share."""
    import_quietly("run.generating")
    from ..hunyuan.parallel import join, leave
    from ..model.loading import load
    from ..run.generating import generate
    from ..run.team import follow

    team = join()
    if team.leads:
        print(f"loading {model} in {team.size} processes", flush=True)
    models = load(model, video=wanted, team=team, **load_by)
    if team.leads:
        run = generate(wanted.prompt, models, folder, checkpoint_every=1, **given)
        report(run, time.perf_counter() - started)
    else:
        follow(models)
    leave()


def _check_machine(memory: str | None, attention: str, compile: bool) -> None:
    """What asks for a GPU, and the name of a kernel, before PyTorch is imported. Raises UserError."""
    planned = None if memory is None else gigabytes(memory)
    if attention != "auto":
        check_kernel(attention)
    if (planned is not None or compile) and surely_no_gpu():
        if planned is not None:
            raise UserError(f"memory={memory!r}: {NOTHING_TO_PLAN}", setting="memory")
        raise UserError("compile=True: networks are compiled for a GPU alone; leaving --compile out would work.")


def _check_files(wanted: Settings) -> None:
    """Look into the files that the settings name, before anything is loaded. Raises UserError."""
    named = {name: getattr(wanted, name) for name, knob in KNOBS.items() if knob.kind == "file"}
    if named["mask"] is not None and named["video"] is None:
        raise UserError(f"--mask {named['mask']}: needs --video, of which it says what stays.")
    for name, file in named.items():
        if file is not None:
            from ..video.clips import read_clip

            read_clip(file, name, most=1)


def _check_image(wanted: Settings, model: str) -> None:
    """Whether a model that is known by its name takes the picture, or needs one. Raises UserError."""
    if model in ANIMATES and wanted.image is None:
        raise UserError(f"--model {model}: starts from a picture; --image in.png would work.", setting="image")
    if model not in ANIMATES and wanted.image is not None:
        raise UserError(
            f"--image {wanted.image}: {model} makes videos from text; --first-frame {wanted.image} would work, and so "
            "would --model hunyuan-i2v.",
            setting="image",
        )


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
    kind = {"flag": bool, "whole": int, "real": float}.get(knob.kind, str)
    span = f"{knob.lowest:g} to {knob.highest:g}." if name != "seed" else "random, or -1, draws one and prints it."
    how = Parameter(
        name=[f"--{name.replace('_', '-')}", *([SHORT[name]] if name in SHORT else [])],
        help=f"{knob.help} {span}" if kind in (int, float) else knob.help,
        converter={"seed": _seed}.get(name, _number) if kind in (int, float) else None,
        metavar={int: "INT", float: "FLOAT"}.get(kind),
        allow_leading_hyphen=kind is str,
        negative="",
        group="Settings",
    )
    # Where pydantic happens to be loaded, cyclopts has it check what the converters gave, and the default.
    given = int | float | str if kind in (int, float) else kind
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[given | None, how]
    )


def _signature() -> inspect.Signature:
    """The parameters of `_make` with each setting in the place of `**settings`."""
    prompt, *own, _ = inspect.signature(_make, eval_str=True).parameters.values()
    return inspect.Signature([prompt, *(_option(name, knob) for name, knob in KNOBS.items() if name != "prompt"), *own])


_make.__signature__ = _signature()  # type: ignore[attr-defined]
app.default(_make)


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
