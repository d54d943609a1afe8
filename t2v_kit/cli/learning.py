"""`t2v train`: teach a model something, from a folder of clips with captions."""

from __future__ import annotations

import inspect
import os
import shlex
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ..errors import UserError, check_text
from ..hunyuan.names import HUB_ID, KNOWN, TOKEN, check_name
from ..memory.drivers import check_device, surely_no_gpu
from ..memory.plan import gigabytes
from ..run.target import check_empty, check_training
from ..settings import Knob, Settings, check_multiples
from ..training.options import LEVERS, TRAIN_KNOBS, check_intervals, train_settings_from
from .app import app, import_quietly
from .download import ask_for_download


def _train(
    data: str | None = None,
    /,
    *,
    model: str = "pocket",
    out: str | None = None,
    resume: str | None = None,
    memory: str | None = None,
    prompt: str | None = None,
    sample_every: int | None = None,
    checkpoint_every: int = 50,
    device: str | None = None,
    yes: bool = False,
    **settings: Any,
) -> None:
    """Train a LoRA on a folder of clips or pictures with captions. Ctrl-C stops with a checkpoint.

    Args:
        data: A folder with clip.mp4 and clip.txt, or with a metadata.jsonl of file_name and text.
        model: pocket (shipped), hunyuan (13B, from the hub, in 4 bits), or a folder.
        out: Folder for the files; by default a new one in runs/.
        resume: The folder of a training to go on with, in place of DATA.
        memory: nf4 (the base in 4 bits, the default of hunyuan), none, or GB of GPU memory: the base in 4 bits, and as
            few blocks' inputs and weights in RAM as fit, chunks where that is not enough.
        prompt: Of the sample videos; by default the first clip's caption.
        sample_every: Steps between sample videos; 0 for none; by default a quarter of all.
        checkpoint_every: Steps between checkpoints.
        device: cpu, cuda or cuda:1; by default the first GPU, and in several processes each its own.
        yes: Download the 13B model without asking.
    """
    if resume is not None:
        if data is not None:
            raise UserError(f"--resume {resume}: takes the place of DATA {data!r}; give one of the two.")
        given = {"memory": memory, "prompt": prompt, "sample_every": sample_every, "out": out, **settings}
        for name, value in given.items():
            if value is not None:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} {value}: a training that goes on keeps its settings; leave it out.")
        continue_training(resume, device)
        return
    if data is None:
        raise UserError("DATA is missing: a folder of clips with captions, as in t2v train my_dog (see --help)")
    chosen = train_settings_from(**{name: value for name, value in settings.items() if value is not None})
    limit = None if memory in (None, "nf4", "none") else _limit(memory, settings)
    if not Path(data).expanduser().is_dir():
        raise UserError(f"{data!r}: there is no such folder of clips; one with dog.mp4 and dog.txt would work.")
    if prompt is not None:
        check_text("prompt", prompt)
    check_intervals(chosen.steps, sample_every, checkpoint_every)
    check_name(model)
    if model in KNOWN:  # of a folder, only its configurations know
        check_multiples(chosen, *TOKEN)
    if out is not None:
        check_empty(out)
    _check_gpu(model, memory, device)
    from ..training.clips import read_clips

    found = read_clips(data).check()
    if model in ("hunyuan", HUB_ID) and not yes:
        ask_for_download(Settings("a training"), None)
    folder = out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-train-{Path(data).resolve().name}"
    started = time.perf_counter()
    import_quietly("run.fine_tuning")
    from ..run.fine_tuning import start_training

    size = None
    if limit is not None:
        from ..training.choosing import choose_levers

        chosen, needed = choose_levers(chosen, limit, found, model)
        size = needed.size
        values = {name: getattr(chosen, name) for name in LEVERS}
        levers = " ".join(f"--{name.replace('_', '-')} {each}" for name, each in values.items() if each is not None)
        print(f"{needed}: {levers}", flush=True)
    print(f"loading {model}", flush=True)
    plan = None
    if memory not in (None, "none") or (memory is None and model in ("hunyuan", HUB_ID)):
        from ..training.choosing import training_plan

        plan = training_plan(chosen, size, limit, model)
    models = _loaded({"name": model}, plan, device)
    try:
        training = start_training(models, data, chosen, folder, prompt, sample_every, checkpoint_every)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_what_remains(folder)) from None
    _report(training, time.perf_counter() - started)


def _limit(memory: str, settings: dict) -> float:
    """The GB of a card; what they decide is not given as well."""
    try:
        limit = gigabytes(memory)
    except UserError:
        limit = None
    if limit is None:
        raise UserError(f"--memory {memory}: must be nf4, none or GB of GPU memory; 24 would work.")
    given = [name for name in LEVERS if settings.get(name) is not None]
    if given:
        option = f"--{given[0].replace('_', '-')}"
        raise UserError(f"{option} {settings[given[0]]}: --memory {memory} chooses it; --memory nf4 would leave it.")
    return limit


def _check_gpu(model: str, memory: str | None, device: str | None) -> None:
    """What needs a GPU, where it is certain that there is none. Raises UserError."""
    check_device(device)
    if memory == "none" or not surely_no_gpu():
        return
    if memory is not None:
        raise UserError(f"--memory {memory}: 4 bits need a GPU, and this machine has none; --memory none would work.")
    if model in ("hunyuan", HUB_ID):
        raise UserError(f"--model {model}: is trained in 4 bits, which need a GPU; --model pocket works without one.")


def continue_training(folder: str, device: str | None = None) -> None:
    """Go on with the training in a folder."""
    check_device(device)
    check_training(folder)
    started = time.perf_counter()
    import_quietly("run.fine_tuning")
    from ..run.fine_tuning import Training, resume_training

    training = Training.read(folder)
    if not training.finished:
        models = _loaded(training.model, training.memory, device)
        try:
            training = resume_training(folder, models)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_what_remains(folder)) from None
    _report(training, time.perf_counter() - started)


def _loaded(arguments: dict, memory: Any, device: str | None):
    """The model, under a memory plan where there is one, on this process's GPU."""
    from ..model.loading import load

    if device is None and "LOCAL_RANK" in os.environ and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        device = _own_gpu(int(os.environ["LOCAL_RANK"]))
    return load(**arguments, memory=memory, device=device)


def _own_gpu(rank: int) -> str | None:
    import torch

    return f"cuda:{rank}" if torch.cuda.is_available() else None


def _what_remains(folder: str | Path) -> str:
    if (Path(folder).expanduser() / "checkpoint.safetensors").exists():
        return f"; t2v train --resume {shlex.quote(str(folder))} goes on"
    return "; no step was finished"


def _report(training: Any, seconds: float) -> None:
    last = training.losses[-min(20, len(training.losses)) :]
    mean = sum(row["loss"] for row in last) / max(len(last), 1)
    print(f"steps    {len(training.losses)} of {training.settings.steps}, loss of the last {len(last)}: {mean:.4f}")
    print(f"written  {training.result}  in {seconds:.1f} s")


def _option(name: str, knob: Knob) -> inspect.Parameter:
    """The option of a setting, described by its metadata. None, its default, leaves it to `TrainSettings`."""
    kind = {"text": str, "whole": int, "real": float}[knob.kind]
    span = "" if kind is str else f" {knob.lowest:g} to {knob.highest:g}."
    how = Parameter(name=f"--{name.replace('_', '-')}", help=f"{knob.help}{span}", group="Settings")
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, how])


def _signature() -> inspect.Signature:
    """The parameters of `_train` with each setting in the place of `**settings`."""
    *own, _ = inspect.signature(_train, eval_str=True).parameters.values()
    return inspect.Signature([*own, *(_option(name, knob) for name, knob in TRAIN_KNOBS.items())])


_train.__signature__ = _signature()  # type: ignore[attr-defined]
app.command(_train, name="train")
