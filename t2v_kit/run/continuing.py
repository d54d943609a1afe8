"""Videos longer than one run: each new clip begins with the last frames of the one before, and the seam is measured."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, check_whole
from ..model.loading import load
from ..model.models import Models
from ..settings import KNOBS
from ..stages.decoding import latent_frames
from ..stages.upscaling.names import NONE
from ..video.files import save_video, video_reader
from ..video.metrics import psnr
from .generating import Run, generate
from .given import GIVEN
from .target import read_record


@dataclass(frozen=True)
class Seam:
    """Where one clip meets the next.

    Attributes:
        frame: The first frame of the new clip, counted in the whole video.
        jump: The mean difference between the frames before and behind the seam, in levels of 0 to 255.
        usual: The median of that difference between neighbours among up to 8 frames on either side.
        given_psnr: How well the new clip shows the frames that it was given, in dB.
    """

    frame: int
    jump: float
    usual: float
    given_psnr: float

    @property
    def ratio(self) -> float:
        """jump / usual: 1 where the seam is like any other place, larger where it can be seen."""
        return self.jump / max(self.usual, 1e-6)


@dataclass(frozen=True, eq=False)
class Extended:
    """A video that was continued.

    Attributes:
        video: (T, H, W, 3) uint8: the given frames, then the new ones.
        fps: Frames a second.
        seams: One for each new clip; with loop, the last one is where the video meets its beginning.
        runs: The runs that made the clips.
        file: The video as a file, or None.
    """

    video: np.ndarray = field(repr=False)
    fps: float
    seams: tuple[Seam, ...]
    runs: tuple[Run, ...] = field(repr=False)
    file: Path | None = None


def extend(
    run: Run | str | os.PathLike,
    frames: int,
    overlap: int = 5,
    model: str | Path | Models | None = None,
    prompt: str | None = None,
    seed: int | None = None,
    loop: bool = False,
    out: str | os.PathLike | None = None,
    **options,
) -> Extended:
    """Continue a run: clips of its size are made one after the other, each given the last frames of what is there.

    The given frames are encoded anew, because the first latent of a clip stands for one frame alone. A clip of N frames
    gives N - overlap new ones; what the last one makes beyond `frames` is cut off.

    Args:
        run: A run, or the folder of a finished one.
        frames: How many new frames, at least 1.
        overlap: Frames that a new clip is given: 4k + 1, and fewer than a clip has. More of them carry the motion on
            better and leave fewer to make.
        model: What `load` takes, or what it returned; None loads the one that the run names.
        prompt: Another prompt for what follows; None keeps the run's.
        seed: Of the first new clip; each later one takes the next. None takes the one after the run's.
        loop: Close the circle: the new clip ends with the run's first four frames, which are not shown twice. One clip
            then makes all new frames, which must be a multiple of 4.
        out: A folder for the clips' own folders and `extended.mp4`; None keeps everything in memory.
        **options: Other keywords of `generate`, such as num_inference_steps, resample or progress.

    Returns:
        The video, its seams and its runs.

    Raises:
        UserError: A number does not fit, or what `generate` refuses.

    Example:
        >>> longer = extend(run, 24, overlap=9)  # doctest: +SKIP
        >>> [round(seam.ratio, 1) for seam in longer.seams]  # doctest: +SKIP
        [1.3]
    """
    video, record, fps = _made(run)
    length = record["settings"]["num_frames"]
    check_whole("frames", frames, 1)
    _check_overlap(overlap, min(length, len(video)))
    kept = _settings(record, options)
    kept["num_frames"] = _closing_length(frames, overlap) if loop else length
    kept["prompt"] = record["settings"]["prompt"] if prompt is None else prompt
    seed = record["settings"]["seed"] + 1 if seed is None else seed
    models = _loaded(record, model)
    begin, runs, seams, wanted = video[: len(latent_frames(1))], [], [], len(video) + frames
    while len(video) < wanted:
        clip = generate(
            **kept,
            model=models,
            out=None if out is None else Path(out).expanduser() / f"clip-{len(runs) + 1}",
            seed=seed + len(runs),
            first_frame=video[-overlap:],
            last_frame=begin if loop else None,
        )
        new = clip.video[overlap : overlap + wanted - len(video)]
        seams.append(_seam(len(video), video, new, psnr(video[-overlap:], clip.video[:overlap])))
        video, runs = np.concatenate([video, new]), [*runs, clip]
    if loop:
        seams.append(_seam(0, video, begin, psnr(begin, runs[-1].video[-len(begin) :])))
    file = None
    if out is not None:
        file = save_video(Path(out).expanduser() / "extended.mp4", video, fps, runs[-1].record)
    return Extended(video, fps, tuple(seams), tuple(runs), file)


def _made(run: Run | str | os.PathLike) -> tuple[np.ndarray, dict, float]:
    """A run's frames, record and rate; of a folder, the frames of its video.mp4."""
    if isinstance(run, Run):
        return run.video, run.record, run.settings.fps
    record, file = read_record(run), Path(run).expanduser() / "video.mp4"
    if not file.exists():
        raise UserError(f"{str(run)!r}: has no video.mp4 yet; resume({str(run)!r}) makes it.")
    with video_reader(file) as frames:
        return np.stack(list(frames)), record, record["settings"]["fps"]


def _settings(record: dict, options: dict) -> dict[str, Any]:
    """Keywords of `generate` for a clip: the run's settings, without what it was given, and the options."""
    for name in (*GIVEN, "num_frames", "strength"):
        if name in options:
            raise UserError(f"{name}={options[name]!r}: extend sets it from the run; generate takes it.", setting=name)
    settings = record["settings"]
    kept = {name: settings[name] for name in KNOBS if name in settings and name not in (*GIVEN, "strength", "seed")}
    return kept | {"upscale": NONE} | options


def _loaded(record: dict, model: str | Path | Models | None) -> Models:
    """The model itself; without one, what the run was made with."""
    if isinstance(model, Models):
        return model
    again = {} if model else record["made_with"].get("loaded_by", {})
    plan = record["settings"].get("memory")
    name, loras = model or record["settings"]["model"], record["settings"].get("loras")
    return load(**{"name": name, "loras": loras, **again, "memory": plan})


def _check_overlap(overlap: int, length: int) -> None:
    """Refuse an overlap that is not a whole number of latents, or leaves nothing to make."""
    temporal, highest = len(latent_frames(1)), length - 1
    whole = (highest - 1) // temporal * temporal + 1
    check_whole("overlap", overlap, 1, highest, "frames", works=min(temporal + 1, whole))
    if (overlap - 1) % temporal:
        near = min((overlap - 1) // temporal * temporal + temporal + 1, whole)
        raise UserError(
            f"overlap={overlap}: must be {temporal}k+1, whole latents; {near} would work.", setting="overlap"
        )


def _closing_length(frames: int, overlap: int) -> int:
    """Frames of the clip that closes a loop: what it is given, the new ones, and the first latent's worth again."""
    temporal = len(latent_frames(1))
    if frames % temporal:
        near = max(frames // temporal * temporal, temporal)
        raise UserError(
            f"frames={frames}: must be a multiple of {temporal} to close a loop; {near} would work.", setting="frames"
        )
    return overlap + frames + temporal


def _seam(frame: int, before: np.ndarray, behind: np.ndarray, given_psnr: float) -> Seam:
    """The seam between the last frame of one clip and the first of the other."""

    def steps(clip: np.ndarray) -> np.ndarray:
        return np.abs(np.diff(clip.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))

    near = np.concatenate([steps(before[-8:]), steps(behind[:8])])
    jump = steps(np.stack([before[-1], behind[0]]))[0]
    return Seam(frame, float(jump), float(np.median(near)) if len(near) else 0.0, float(given_psnr))
