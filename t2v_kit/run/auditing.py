"""What a shortcut costs, on a prompt of one's own: the same seed with it and without, side by side, with the error."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..errors import UserError
from ..model.models import Models
from ..settings import KNOBS, Resolved, Settings
from ..stages.decoding import decode
from ..stages.denoising import denoise
from ..stages.noise import initial_latents
from ..stages.prompt import PromptEncoding, encode_prompt
from ..video.metrics import motion_error, psnr
from ..view.pictures import side_by_side
from ..view.players import show_image
from . import shortcuts

_GIVEN = ("video", "first_frame", "last_frame", "mask")  # settings of runs that begin with something given


@dataclass(frozen=True, eq=False)
class Audit:
    """A shortcut beside the plain run; in a notebook, shown as a table and a picture.

    Attributes:
        shortcut: Its name.
        settings: Of the plain run, complete.
        plain: The plain run's video, (T, H, W, 3) uint8.
        video: The shortcut's, of the same shape.
        plain_seconds: Of each denoising step of the plain run.
        seconds: Of each denoising step with the shortcut.
    """

    shortcut: str
    settings: Resolved = field(repr=False)
    plain: np.ndarray = field(repr=False)
    video: np.ndarray = field(repr=False)
    plain_seconds: tuple[float, ...] = field(repr=False)
    seconds: tuple[float, ...] = field(repr=False)

    @property
    def times_faster(self) -> float:
        """The seconds of all steps of the plain run, divided by those with the shortcut."""
        return sum(self.plain_seconds) / sum(self.seconds)

    @property
    def psnr(self) -> float:
        """How near the whole video is to the plain one, in dB; infinite where they are equal."""
        return psnr(self.video, self.plain)

    @property
    def frame_psnr(self) -> np.ndarray:
        """The same of each frame, (T,)."""
        return np.array([psnr(frame, plain) for frame, plain in zip(self.video, self.plain)])

    @property
    def motion_error(self) -> float:
        """How much the changes from frame to frame differ, as a share of the plain video's (`motion_error`)."""
        return motion_error(self.video, self.plain)

    @property
    def where(self) -> np.ndarray:
        """The mean difference at each place of the picture over frames and colours, (H, W) in levels of 0 to 255."""
        return np.abs(self.video.astype(np.float32) - self.plain).mean(axis=(0, 3))

    def table(self) -> dict[str, str]:
        """What was measured, as text by its name."""
        lowest = int(self.frame_psnr.argmin())
        found = {"PSNR": f"{self.psnr:.1f} dB", "worst frame": f"{lowest} ({self.frame_psnr[lowest]:.1f} dB)"}
        found["motion error"] = f"{self.motion_error:.1%}"
        found["steps"] = f"{len(self.seconds)} in {sum(self.seconds):.2f} s"
        found["plain run"] = f"{len(self.plain_seconds)} in {sum(self.plain_seconds):.2f} s"
        return found | {"times faster": f"{self.times_faster:.2f}"}

    def side_by_side(self) -> np.ndarray:
        """Both videos and, as brightness, four times their difference; (T, H', W', 3) uint8, for `show_video`."""
        difference = np.abs(self.video.astype(np.int16) - self.plain)
        seen = (4 * difference).clip(0, 255).astype(np.uint8)
        return side_by_side({"plain": self.plain, self.shortcut: self.video, "difference x 4": seen})

    def picture(self, frame: int | None = None) -> Image.Image:
        """Draw it: one frame side by side, where in the picture they differ, PSNR by frame, seconds by step.

        Args:
            frame: Which one; None is the one with the lowest PSNR.

        Raises:
            UserError: There is no such frame.
        """
        shown = int(self.frame_psnr.argmin()) if frame is None else frame
        if not 0 <= shown < len(self.video):
            raise UserError(f"frame={frame}: must be from 0 to {len(self.video) - 1}; 0 would work.", setting="frame")
        return _drawn(self, shown)

    def show(self, frame: int | None = None) -> None:
        """Show the table and the picture in the notebook.

        Args:
            frame: As for `picture`.
        """
        from IPython.display import HTML, display

        display(HTML(self._words()))
        show_image(self.picture(frame))

    def _repr_html_(self) -> str:
        file = io.BytesIO()
        self.picture().save(file, "JPEG", quality=85)
        picture = base64.b64encode(file.getvalue()).decode()
        return f'{self._words()}<img style="max-width: 100%" src="data:image/jpeg;base64,{picture}">'

    def _words(self) -> str:
        cells = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in self.table().items())
        return (
            f"<div><b>{html.escape(self.shortcut)}</b> beside the plain run of "
            f"“{html.escape(self.settings.prompt)}”, seed {self.settings.seed}</div><table>{cells}</table>"
        )


def audit(models: Models, prompt: str, shortcut: object, progress: bool = True, **settings) -> Audit:
    """Run a prompt twice from the same noise, plainly and with a shortcut, and compare the videos.

    MagCache needs to be calibrated, which takes a run more, of another seed. Where a step cache is on already, or the
    model was loaded with fewer bits or another attention, that is what counts as plain.

    Args:
        models: What `load` gave. As many bits or another attention are tried on a copy or put back.
        prompt: The text.
        shortcut: One by name: "10 steps"; a step cache with its threshold or interval, "first block 0.1",
            "MagCache 0.12", "SeaCache 0.3", "TaylorSeer 3", "pyramid 2", "FasterCache 2"; a solver, "UniPC", "DPM++" or
            "Heun"; fewer bits, "int8", "nf4", "fp8", "fp8 products", "bfloat16", "float16"; "attention sage"; several
            with " + " between them. Or a cache configuration of diffusers.
        progress: Show a bar.
        **settings: Fields of `Settings`, such as seed=3 or num_frames=17.

    Returns:
        The `Audit`.

    Raises:
        UserError: An unknown shortcut or setting, one that these models cannot take, or a clip that is given.

    Example:
        >>> models = load("pocket", device="cpu")
        >>> found = audit(models, "A red car.", "SeaCache 0.3", seed=5, num_frames=17)  # doctest: +SKIP
        >>> print(f"{found.times_faster:.1f} times faster, {found.psnr:.0f} dB")  # doctest: +SKIP
        1.6 times faster, 38 dB
    """
    taken = shortcuts.shortcut(shortcut)
    for name in settings:
        if name not in KNOBS or name in _GIVEN:
            raise UserError(f"{name}=: audit takes settings of a run from text alone; seed=1 would work.", setting=name)
    wanted = Settings(prompt, **settings)
    full = wanted.check(models)
    text = encode_prompt(models, full.prompt, full.padded_prompt)
    with tqdm(desc=f"audit {taken.name}", unit="step", disable=not progress) as bar:
        next(denoise(models, text, initial_latents(models, wanted), wanted))  # warms up
        plain, plain_seconds = _run(models, text, wanted, bar)
        with taken.taken(models, wanted) as (other, changed):
            video, seconds = _run(other, text, changed, bar)
    return Audit(taken.name, full, plain, video, plain_seconds, seconds)


def _run(models: Models, text: PromptEncoding, settings: Settings, bar: tqdm) -> tuple[np.ndarray, tuple[float, ...]]:
    """The video, and the seconds of each step."""
    seconds, latents = [], initial_latents(models, settings)
    for step in denoise(models, text, latents, settings):
        seconds.append(step.seconds)
        latents = step.latents
        bar.update()
    return decode(models, latents), tuple(seconds)


def _drawn(found: Audit, frame: int) -> Image.Image:
    """The picture of an audit: three panels of one frame, and two curves below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), dpi=80, layout="constrained")
    grid = figure.add_gridspec(2, 6, height_ratios=(3, 2))
    for place, (name, video) in enumerate({"plain": found.plain, found.shortcut: found.video}.items()):
        axes = figure.add_subplot(grid[0, 2 * place : 2 * place + 2])
        axes.imshow(video[frame])
        axes.set_title(f"{name}, frame {frame}")
        axes.axis("off")
    axes = figure.add_subplot(grid[0, 4:])
    heat = axes.imshow(found.where, cmap="magma", vmin=0)
    axes.set_title("where they differ, mean over the frames")
    axes.axis("off")
    figure.colorbar(heat, ax=axes, shrink=0.6, label="levels of 255")
    axes = figure.add_subplot(grid[1, :3])
    axes.plot(np.where(np.isfinite(found.frame_psnr), found.frame_psnr, np.nan), color="#3A6EA5", marker=".")
    axes.set(xlabel="frame", ylabel="PSNR, dB")
    axes.grid(alpha=0.3)
    axes = figure.add_subplot(grid[1, 3:])
    for name, seconds, colour in (
        ("plain", found.plain_seconds, "#BBBBBB"),
        (found.shortcut, found.seconds, "#3A6EA5"),
    ):
        axes.stairs(seconds, np.arange(len(seconds) + 1) + 0.5, fill=name == "plain", color=colour, label=name, lw=2)
    axes.set(xlabel="step", ylabel="seconds", ylim=(0, None))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
