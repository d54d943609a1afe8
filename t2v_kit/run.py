"""The five stages in a row, and the folder they leave: all that is needed to look at a video and to make it again."""

import contextlib
import dataclasses
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm

from . import __version__
from .denoise import denoise
from .latents import initial_latents
from .models import Models, load
from .prompt import PromptEncoding, encode_prompt
from .settings import Settings, UserError, settings_from
from .upscale import load_upscaler
from .upscale import upscale as enlarge
from .vae import decode
from .view import contact_sheet, save_video

#: What a run leaves in its folder, in the order in which it is written.
FILES = ("settings.json", "prompt.safetensors", "latents.safetensors", "video.mp4", "upscaled.mp4", "contact_sheet.png")


@dataclass(frozen=True, eq=False)
class Run:
    """What `generate` made.

    video: (T, H, W, 3) uint8.  upscaled: (T, 4H, 4W, 3) uint8, or None without upscaling.
    latents: (1, C, T', H', W'), what was decoded, in the transformer's dtype.  prompt: what it was told.
    settings: complete, no default left open.  seconds: of each stage.
    record: {"settings": {...}, "made_with": {...}} as in settings.json; `generate(**run.record["settings"])`
    makes the same video again.  folder: where the files are, None when none were written.
    """

    video: np.ndarray = field(repr=False)
    upscaled: np.ndarray | None = field(repr=False)
    latents: torch.Tensor = field(repr=False)
    prompt: PromptEncoding = field(repr=False)
    settings: Settings
    record: dict = field(repr=False)
    seconds: dict[str, float]
    folder: Path | None

    @property
    def files(self) -> list[Path]:
        """The files that were written."""
        return [self.folder / name for name in FILES if (self.folder / name).exists()] if self.folder else []


def generate(
    prompt: str,
    model: str | Models = "pocket",
    out: str | os.PathLike | None = None,
    upscale: str | os.PathLike | None = "pocket",
    seed: int = 0,
    **settings,
) -> Run:
    """Make a video from a prompt and enlarge it: encode, draw noise, denoise, decode, upscale.

    model: what `load` takes, or what it gave.  out: a folder for the files, made when it is missing; an
    earlier run in it is replaced; None keeps everything in memory.  upscale: "pocket", the name or the
    path of a Real-ESRGAN file as `upscale` takes it, or "none".  settings: any field of `Settings`.
    Prompt encoding and latents are on disk before decoding starts, and no file is ever half-written.
    Raises UserError for every mistake in these, before anything is written.
    """
    wanted = settings_from(also=("model", "out", "upscale"), prompt=prompt, seed=seed, **settings)
    folder = None if out is None else _checked_folder(out)
    if str(upscale).lower() == "none":
        upscale = None
    else:
        load_upscaler(upscale)  # a wrong name or a damaged file is told now, not after the denoising
    seconds: dict[str, float] = {}
    with _stage("load", seconds, disable=True):
        models = model if isinstance(model, Models) else load(model)
    wanted = wanted.check(models)
    record = _record(models, wanted, upscale)

    with _stage("encode", seconds, delay=1e-5, mininterval=0) as bar:  # no bar for a prompt that is too long
        encoding = encode_prompt(models, wanted.prompt, wanted.padded_prompt)
        negative = None
        if wanted.true_cfg_scale > 1:
            negative = encode_prompt(models, wanted.negative_prompt, wanted.padded_prompt, allow_empty=True)
        bar.update()
    _start(folder, record)
    _write(folder, "prompt.safetensors", encoding.save)

    with _stage("denoise", seconds, total=wanted.num_inference_steps, unit="step") as bar:
        latents = initial_latents(models, wanted)
        for step in denoise(models, encoding, latents, wanted, negative=negative):
            latents = step.latents
            bar.update()
    _write(folder, "latents.safetensors", lambda path: save_file({"latents": latents.contiguous()}, path))

    with _stage("decode", seconds) as bar:
        video = decode(models, latents)
        bar.update()
    _write(folder, "video.mp4", lambda path: save_video(path, video, wanted.fps, record))

    enlarged = None
    if upscale:
        with _stage("upscale", seconds, disable=True):  # has its own bar, frame by frame
            enlarged = enlarge(video, upscale, device=models.device)
        _write(folder, "upscaled.mp4", lambda path: save_video(path, enlarged, wanted.fps, record))
    sheet = contact_sheet(video if enlarged is None else enlarged, wanted.fps, wanted.prompt)
    _write(folder, "contact_sheet.png", sheet.save)
    return Run(video, enlarged, latents, encoding, wanted, record, seconds, folder)


def _start(folder: Path | None, record: dict) -> None:
    """Make the folder, take away what an earlier run left in it, and write down what is being made."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    _write(folder, "settings.json", lambda path: path.write_text(text, encoding="utf-8"))


def _write(folder: Path | None, name: str, write: Callable[[Path], object]) -> None:
    """Let `write` make the file under a temporary name: renamed when it is whole, removed when that fails."""
    if folder is None:
        return
    temporary = folder / f".part.{name}"
    try:
        write(temporary)
        os.replace(temporary, folder / name)
    finally:
        temporary.unlink(missing_ok=True)


def _checked_folder(out: str | os.PathLike) -> Path:
    """`out` as a Path, once a file could be written there; leaves nothing behind. Raises UserError."""
    if not isinstance(out, (str, os.PathLike)) or not str(out).strip():
        raise UserError(f"out={out!r}: must name a folder; 'runs/mine' would work.")
    folder = Path(out).expanduser()
    try:
        nearest = Path(os.path.abspath(folder))
        while not _exists(nearest):
            nearest = nearest.parent
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"out={str(out)!r}: cannot be written ({reason}); 'runs/mine' would work.") from error
    return folder


def _exists(path: Path) -> bool:
    """Unlike `Path.exists`, raises OSError for a name that can never exist, as one that is too long."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _stage(name: str, seconds: dict[str, float], total: int = 1, **bar) -> Iterator[tqdm]:
    """A progress bar for one stage; its time is kept in `seconds`."""
    started = time.perf_counter()
    with tqdm(total=total, desc=f"{name:7}", **bar) as shown:
        yield shown
    seconds[name] = time.perf_counter() - started


def _record(models: Models, settings: Settings, upscale: str | os.PathLike | None) -> dict:
    """What settings.json and the videos say: `generate`'s own keywords, and what else decided the result."""
    transformer = models.pipe.transformer
    return {
        "settings": {
            **dataclasses.asdict(settings),
            "model": models.name,
            "upscale": str(upscale).lower() if upscale is None else os.fspath(upscale),
        },
        "made_with": {
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "model": models.source,
            "revision": models.revision,
            "weights_hash": models.weights_hash,
            "device": str(models.device),
            "dtype": str(transformer.dtype).removeprefix("torch."),
            "t2v_kit": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "diffusers", "transformers")},
        },
    }
