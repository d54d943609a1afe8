"""A training in a folder of its own: settings, losses, sample videos, a checkpoint to go on from, and what came out."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from .._version import __version__
from ..atomic import write_whole
from ..errors import UserError, give_note
from ..hunyuan.names import HUB_ID
from ..settings import Settings
from ..stages.decoding import decode
from ..stages.denoising import denoise
from ..stages.noise import initial_latents
from ..stages.prompt import encode_prompt
from ..training.cache import Encoded, encode_clips
from ..training.choosing import training_plan
from ..training.clips import read_clips
from ..training.looping import TrainStep, train
from ..training.options import TrainSettings, check_intervals, train_settings_from
from ..video.files import save_video
from .target import TRAINING, check_empty, check_training

if TYPE_CHECKING:
    from ..model.models import Models

LOSSES, CHECKPOINT, SAMPLES = "losses.jsonl", "checkpoint.safetensors", "samples"
LORA, MODEL = "lora.safetensors", "model"  # what comes out, of a LoRA and of a training of all weights


@dataclass(frozen=True, eq=False)
class Training:
    """A training as its folder records it.

    Attributes:
        folder: Where its files are.
        settings: All of them.
        data: The folder of clips.
        model: `load`'s keywords, name among them.
        memory: The memory plan of the base, as JSON holds it; None without one.
        prompt: Of the sample videos.
        every: (steps between samples, steps between checkpoints); 0 for none.
        losses: A dict for each step: step, loss, sigma, learning_rate, seconds.
    """

    folder: Path
    settings: TrainSettings
    data: Path
    model: dict
    prompt: str
    every: tuple[int, int]
    memory: dict | None
    losses: list[dict] = field(repr=False)

    @classmethod
    def read(cls, folder: str | os.PathLike) -> Training:
        """Read a training's folder.

        Raises:
            UserError: It is none.
        """
        where = Path(folder).expanduser()
        check_training(where)
        try:
            record = json.loads((where / TRAINING).read_text("utf-8"))
            settings = train_settings_from(**record["settings"])
            plain = [record[name] for name in ("data", "model", "prompt", "every")]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{where / TRAINING}: is not what t2v train writes ({str(error)[:120]}); copy the folder again, or "
                "train anew."
            ) from error
        memory = record.get("memory", _older_plan(plain[1]))
        return cls(where, settings, Path(plain[0]), plain[1], plain[2], tuple(plain[3]), memory, read_losses(where))

    @property
    def result(self) -> Path:
        """The LoRA, or the model's folder; there from the first checkpoint on."""
        return self.folder / (LORA if self.settings.rank else MODEL)

    @property
    def samples(self) -> list[Path]:
        """The sample videos, the oldest first."""
        return sorted((self.folder / SAMPLES).glob("*.mp4"))

    @property
    def finished(self) -> bool:
        """Whether the last step was made and what came out is there."""
        done = self.losses[-1]["step"] if self.losses else 0
        return done >= self.settings.steps and self.result.exists()


def _older_plan(model: dict) -> dict | None:
    """The plan of a record from before it named one, which the command had for the 13B."""
    known = isinstance(model, dict) and model.get("name") in ("hunyuan", HUB_ID)
    return training_plan(TrainSettings()).as_dict() if known else None


def read_losses(folder: Path) -> list[dict]:
    """The lines of losses.jsonl, the last one of each step; one that a kill cut short is left out."""
    by_step = {}
    path = folder / LOSSES
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            by_step[row["step"]] = row
        except (ValueError, KeyError, TypeError):
            continue
    return [by_step[step] for step in sorted(by_step)]


def start_training(
    models: Models,
    data: str | os.PathLike,
    settings: TrainSettings,
    out: str | os.PathLike,
    prompt: str | None = None,
    sample_every: int | None = None,
    checkpoint_every: int = 50,
    bars: bool = True,
) -> Training:
    """Train in a folder. Ctrl-C stops it with a checkpoint, from which `resume_training` goes on.

    Args:
        models: What `load` gave.
        data: A folder as `read_clips` takes it, without problems.
        settings: Of the training.
        out: The folder to write; it must be empty or new.
        prompt: Of the sample videos; by default the first clip's caption.
        sample_every: Steps between sample videos; 0 for none; by default a quarter of all.
        checkpoint_every: Steps between checkpoints, at least 1.
        bars: Whether to show bars.

    Returns:
        The training as it was recorded.

    Raises:
        UserError: The data or the folder cannot be used, or what `train` refuses.
    """
    every, checkpoint_every = check_intervals(settings.steps, sample_every, checkpoint_every)
    found = read_clips(Path(data)).check()
    folder = check_empty(out)
    if every and models.memory is not None and models.memory.one_stage:
        give_note("no sample videos while training: the memory plan keeps one stage in memory at a time.")
        every = 0
    record = {
        "settings": dataclasses.asdict(settings),
        "data": os.path.abspath(found.folder),
        "model": models.arguments,
        "memory": models.memory.as_dict() if models.memory is not None else None,
        "prompt": prompt or found.clips[0].caption,
        "every": [every, checkpoint_every],
        "made_with": {
            "t2v_kit": __version__,
            "weights": models.weights_hash,
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        },
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with write_whole(folder / TRAINING) as temporary:
            temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"out={str(out)!r}: cannot be written ({error.strerror}); 'runs/mine' would work.") from error
    return _go_on(models, Training.read(folder), bars)


def resume_training(folder: str | os.PathLike, models: Models, bars: bool = True) -> Training:
    """Go on with a training that was stopped or killed.

    Args:
        folder: Its folder.
        models: The model it was begun with.
        bars: Whether to show bars.

    Returns:
        The training; one that is finished comes back as it is.

    Raises:
        UserError: The folder holds no training, or data or model are others now.
    """
    training = Training.read(folder)
    return training if training.finished else _go_on(models, training, bars)


def _go_on(models: Models, training: Training, bars: bool) -> Training:
    checkpoint = training.folder / CHECKPOINT
    encoded = _encoded(models, training, bars)
    start = checkpoint if checkpoint.exists() else None
    done = len(training.losses) if start else 0
    main = int(os.environ.get("RANK", 0)) == 0  # of several processes, one writes
    step: TrainStep | None = None
    with tqdm(total=training.settings.steps, initial=done, desc="train", disable=not (bars and main)) as bar:
        try:
            for step in train(models, encoded, training.settings, start):
                bar.n = step.index + 1
                bar.set_postfix(loss=f"{step.loss:.3f}")
                if main:
                    _record(models, training, step)
        except BaseException:
            if step is not None and main:
                _keep(training, step)
            raise
    return Training.read(training.folder)


def _encoded(models: Models, training: Training, bars: bool) -> Encoded:
    with tqdm(desc="encode", unit="clip", disable=not bars) as bar:

        def show(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        return encode_clips(models, training.data, training.settings, show)


def _record(models: Models, training: Training, step: TrainStep) -> None:
    """Write a step's line, and a checkpoint and a sample where they are due."""
    number, (samples, checkpoints) = step.index + 1, training.every
    line = {
        "step": number,
        "loss": step.loss,
        "sigma": step.sigma,
        "learning_rate": step.learning_rate,
        "grad_norm": step.grad_norm,
        "seconds": round(step.seconds, 4),
    }
    with open(training.folder / LOSSES, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    last = number == training.settings.steps
    if samples and (number % samples == 0 or last):
        _sample(models, training, step)
    if number % checkpoints == 0 or last:
        _keep(training, step)


def _keep(training: Training, step: TrainStep) -> None:
    step.checkpoint(training.folder / CHECKPOINT)
    step.save(training.result)


def _sample(models: Models, training: Training, step: TrainStep) -> None:
    """A video of the prompt, always from the same noise."""
    frames = training.settings.num_frames
    settings = Settings(training.prompt, num_frames=frames, seed=training.settings.seed).check(models)
    with step.sampling():
        prompt, latents = encode_prompt(models, settings.prompt), initial_latents(models, settings)
        for each in denoise(models, prompt, latents, settings):
            latents = each.latents
        video = decode(models, latents)
    folder = training.folder / SAMPLES
    folder.mkdir(exist_ok=True)
    save_video(folder / f"{step.index + 1:06d}.mp4", video, settings.fps, {"prompt": settings.prompt})


def trainings(folder: str | os.PathLike = "runs") -> Iterator[Training]:
    """The trainings in a folder and below it, in the order of their names; a damaged one gets a note."""
    for path in sorted(Path(folder).expanduser().rglob(TRAINING)):
        if not (path.parent / LOSSES).exists():  # a model that was trained, not the training
            continue
        try:
            yield Training.read(path.parent)
        except UserError as error:
            give_note(str(error))
