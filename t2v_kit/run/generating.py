"""The five stages in a row, and going on with them where they were interrupted."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ..errors import UserError, give_note
from ..memory.choose import as_plan
from ..memory.plan import Plan
from ..model.loading import load
from ..model.models import Models
from ..settings import Settings, settings_from
from ..stages.decoding import decode
from ..stages.denoising import Step, denoise
from ..stages.noise import initial_latents
from ..stages.prompt import PromptEncoding, encode_prompt
from ..stages.upscaling.enlarging import upscale_frames
from ..stages.upscaling.weights import load_upscaler
from ..video.files import save_video
from ..view.pictures import contact_sheet
from .folder import CHECKPOINT, FILES, LOG, RunFolder, read_latents, read_record
from .progress import Progress
from .record import differences, latents_key, made_with
from .reuse import Found, find_latents, find_prompt

OWN = ("model", "out", "upscale", "memory")  # keywords of `generate` that are no fields of Settings
WATCHERS = ("checkpoint_every", "on_step", "on_stage", "stop", "progress")  # those that change nothing about the result


@dataclass(frozen=True, eq=False)
class Run:
    """What `generate` made.

    video: (T, H, W, 3) uint8.  upscaled: (T, 4H, 4W, 3) uint8, or None without upscaling.
    latents: (1, C, T', H', W'), what was decoded, in the transformer's dtype.  prompt: what it was told.
    settings: complete, no default left open.  seconds, memory: of each stage, the latter the peak in GiB of the
    GPU's tensors, on a CPU of the whole process.
    record: {"settings": {...}, "made_with": {...}} as in settings.json; `generate(**run.record["settings"])`
    makes the same video again.  folder: where the files are, None when none were written.
    reused: the folder whose latents were taken, finished or half-way; None when all steps were made here.
    """

    video: np.ndarray = field(repr=False)
    upscaled: np.ndarray | None = field(repr=False)
    latents: torch.Tensor = field(repr=False)
    prompt: PromptEncoding = field(repr=False)
    settings: Settings
    record: dict = field(repr=False)
    seconds: dict[str, float]
    memory: dict[str, float] = field(repr=False)
    folder: Path | None
    reused: Path | None = None

    @property
    def files(self) -> list[Path]:
        """The files that were written."""
        return [self.folder / name for name in (*FILES, LOG) if (self.folder / name).exists()] if self.folder else []


def generate(
    prompt: str,
    model: str | Models = "pocket",
    out: str | os.PathLike | None = None,
    upscale: str | os.PathLike | None = "pocket",
    seed: int = 0,
    *,
    memory: Plan | dict | str | float | None = None,
    checkpoint_every: int = 5,
    on_step: Callable[[Step], object] | None = None,
    on_stage: Callable[[str, int, int], object] | None = None,
    stop: Callable[[], bool] | None = None,
    progress: bool = True,
    reuse: bool | Found = True,
    **settings,
) -> Run:
    """Make a video from a prompt and enlarge it: encode, draw noise, denoise, decode, upscale.

    model: what `load` takes, or what it gave.  out: a folder for the files, made when it is missing; an
    earlier run in it is replaced, files of other origin never; None keeps everything in memory.
    upscale: "pocket", the name or the path of a Real-ESRGAN file as `upscale` takes it, or "none".
    memory: the plan that `load` takes, for a model given by name.  settings: any field of `Settings`.

    checkpoint_every: after so many steps the latents are saved, for `resume`; they are as well whenever
    denoising ends early.  reuse: latents of the same content (settings, weights, device, versions), in
    `out` or finished in a folder beside it, are taken and not made again; the bar and `Run.reused` say so.
    An encoded prompt as well.  (`resume` gives what it found.)

    on_step(step): called after each denoising step.  on_stage(name, done, total): at the start of a stage
    and after each of its units; the stages are load, encode, denoise (in steps), decode, upscale (in frames).
    stop(): asked at the same moments from the start of denoising on; where it says True, Stopped is raised
    and the run can be resumed.
    progress: show bars.

    Prompt encoding and latents are on disk before decoding starts, and no file is ever half-written.
    Raises UserError for every mistake in these, before anything is written, and when the disk is full.
    """
    wanted = settings_from(also=OWN, prompt=prompt, seed=seed, **settings)
    folder, upscale = RunFolder(out), _checked_upscaler(upscale)
    folder.check_own()
    _check_every(checkpoint_every)
    told = Progress(folder, on_step, on_stage, stop, progress)
    with told.stage("load", disable=True) as tick:
        models = loaded(model, memory, wanted)
        tick()
    told.device, wanted = models.device, wanted.check(models)
    record = record_of(models, wanted, upscale)
    found = reuse if isinstance(reuse, Found) else find_latents(folder.path, record) if reuse else None
    finished = found is not None and found.step == wanted.num_inference_steps

    with told.stage("encode", delay=1e-5, mininterval=0) as tick:  # no bar for a prompt that is too long
        encoding = find_prompt(folder.path, record) if reuse else None
        encoding = encoding or encode_prompt(models, wanted.prompt, wanted.padded_prompt)
        negative = None
        if wanted.true_cfg_scale > 1 and not finished:
            negative = encode_prompt(
                models, wanted.negative_prompt, wanted.padded_prompt, allow_empty=True, name="negative_prompt"
            )
        tick()
    folder.start(record, found and found.step, found and found.source)
    folder.save("prompt.safetensors", encoding.save)

    with told.stage("denoise", wanted.num_inference_steps, "step", **_beginning(found, models)) as tick:
        latents = found.latents.to(models.device) if found else initial_latents(models, wanted)
        start = found.step if found else 0
        with folder.checkpoints(checkpoint_every) as keep:
            for step in () if finished else denoise(models, encoding, latents, wanted, start, negative):
                latents = step.latents
                keep(step)
                tick(step)
    folder.finish_latents(latents, wanted.num_inference_steps)

    with told.stage("decode") as tick:
        video = decode(models, latents)
        tick()
    folder.save("video.mp4", lambda path: save_video(path, video, wanted.fps, record))

    enlarged = None
    if upscale:
        with told.stage("upscale", len(video), "frame") as tick:
            enlarged = _enlarged(video, upscale_frames(video, upscale, device=models.device, progress=False), tick)
        folder.save("upscaled.mp4", lambda path: save_video(path, enlarged, wanted.fps, record))
    sheet = contact_sheet(video if enlarged is None else enlarged, wanted.fps, wanted.prompt)
    folder.save("contact_sheet.png", lambda path: sheet.save(path, "PNG"))
    source = found and found.source
    return Run(video, enlarged, latents, encoding, wanted, record, told.seconds, told.memory, folder.path, source)


def resume(folder: str | os.PathLike, model: str | Models | None = None, anyway: bool = False, **watchers) -> Run:
    """Go on with the run in `folder` behind its last checkpoint, or with what follows its finished latents.

    The final latents are the same bits as those of a run in one go. model: the one it was begun with; None
    loads it by its recorded name.  watchers: checkpoint_every, on_step, on_stage, stop and progress of
    `generate`.  anyway: go on although weights, device, dtype or versions are others than at the start.

    Raises UserError, and leaves the folder as it is, when it holds no run, when a file in it is damaged, when
    something that decides the bits is different and `anyway` is not set, and for a setting among the watchers.
    """
    for name in watchers:
        if name not in WATCHERS:
            raise UserError(
                f"{name}={watchers[name]!r}: a resumed run keeps its settings, and resume takes {', '.join(WATCHERS)}; "
                "generate with another folder as out takes other settings."
            )
    folder = Path(folder).expanduser()
    record = read_record(folder)
    settings = {name: value for name, value in record["settings"].items() if name not in ("model", "memory", "upscale")}
    upscale, memory = (record["settings"].get(name) for name in ("upscale", "memory"))
    try:
        wanted = settings_from(**settings)
    except UserError as mistake:
        raise UserError(f"{folder / 'settings.json'}: of another version? {mistake}") from mistake
    saved = _saved(folder)
    if not isinstance(model, Models):
        model = load(model or record["settings"].get("model"), memory, record["made_with"].get("revision"))
    now = record_of(model, wanted.check(model), upscale)
    changed = differences(record, now)
    if saved and changed:
        watchers["reuse"] = _go_on_differently(folder, saved, changed, latents_key(now), anyway)
    return generate(**settings, model=model, out=folder, upscale=upscale, **watchers)


def _saved(folder: Path) -> Path | None:
    """The latents to go on from, whole; None when there are none yet."""
    for path in (folder / "latents.safetensors", folder / CHECKPOINT):
        if path.exists():
            read_latents(path)
            return path
    return None


def _go_on_differently(folder: Path, saved: Path, changed: dict, key: str, anyway: bool) -> Found:
    """The saved latents, for `generate` to go on from; they get the key of what they now belong to."""
    told = "; ".join(f"{name} was {earlier}, is {now}" for name, (earlier, now) in changed.items())
    if not anyway:
        raise UserError(
            f"{str(folder)!r}: the rest would not be the bits of a run in one go ({told}); restore that, or "
            f"resume({str(folder)!r}, anyway=True) goes on as it is."
        )
    give_note(f"{folder}: goes on although {told}; the bits may differ from those of a run in one go.")
    place = RunFolder(folder)
    place.key = key
    latents, step = read_latents(saved)
    place.save_latents(saved.name, latents, step)
    place.log(event="changed", **{name: list(pair) for name, pair in changed.items()})
    return Found(latents, step, folder)


def _beginning(found: Found | None, models: Models) -> dict:
    """How the bar of denoising begins. Warns once where the step number is not all that a scheduler knows."""
    if found is None:
        return {}
    scheduler = models.pipe.scheduler
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or scheduler.config.stochastic_sampling:
        give_note(f"{type(scheduler).__name__} forgets its earlier steps here; a run in one go may give other bits.")
    return {"done": found.step, "note": f"latents reused from {found.source}"}


def _enlarged(video: np.ndarray, frames, tick: Callable[[], None]) -> np.ndarray:
    """All frames of the upscaler's stream, (T, 4H, 4W, 3) uint8, the second copy of them avoided."""
    first = next(frames)
    enlarged = np.empty((len(video), *first.shape), np.uint8)
    enlarged[0] = first
    tick()
    for index, frame in enumerate(frames, 1):
        enlarged[index] = frame
        tick()
    return enlarged


def loaded(model: str | Models, memory: Plan | dict | str | float | None, video: Settings) -> Models:
    """The model itself, loaded where it is only named, with a memory plan for the size of `video`."""
    if not isinstance(model, Models):
        return load(model, memory, video=video) if memory is not None else load(model)
    if memory is not None and as_plan(memory) != model.memory:
        raise UserError(
            f"memory={memory!r}: this model is loaded already; load({model.name!r}, memory=...) would work."
        )
    return model


def _checked_upscaler(upscale: str | os.PathLike | None) -> str | os.PathLike | None:
    """None for none; a wrong name or a damaged file is told now, not after the denoising."""
    if str(upscale).lower() == "none":
        return None
    load_upscaler(upscale)
    return upscale


def _check_every(checkpoint_every: int) -> None:
    if not isinstance(checkpoint_every, int) or isinstance(checkpoint_every, bool) or checkpoint_every < 1:
        raise UserError(f"checkpoint_every={checkpoint_every!r}: must be a whole number of steps, at least 1; 5 works.")


def record_of(models: Models, settings: Settings, upscale: str | os.PathLike | None) -> dict:
    """What settings.json and the videos say: `generate`'s own keywords, and what else decided the result."""
    named = str(upscale).lower() if upscale is None else os.fspath(upscale)
    plan = models.memory and models.memory.as_dict()
    return {
        "settings": {**dataclasses.asdict(settings), "model": models.name, "memory": plan, "upscale": named},
        "made_with": made_with(models),
    }
