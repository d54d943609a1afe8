"""`Settings`: everything that decides a video besides the model, as one frozen dataclass of plain data.

Each knob is described here once, in its field's metadata: its range and the reason for it, label, step and help. The
command line, the panel and the documentation read it from `KNOBS`.
"""

from __future__ import annotations

import dataclasses
import numbers
import re
from dataclasses import dataclass, field
from typing import Any, Protocol

from .errors import UserError, check_text, did_you_mean, quoted

# Four times 720x1280x129, HunyuanVideo's largest published size, in tokens of 4x16x16 pixels.
MAX_VIDEO_TOKENS = 4 * 118_800
MOST_STEPS = 1000


@dataclass(frozen=True)
class Knob:
    """The description of one setting.

    Attributes:
        kind: "text", "file" (a path), "choice" (one of `choices`), "whole" (a whole number), "real" (a number) or
            "flag" (True or False).
        label: Its name in the panel.
        help: What it does, in a sentence or two.
        lowest, highest: The range of a number; values beyond it are typing mistakes rather than wishes.
        reason: Where the range comes from.
        step: The distance between a slider's stops, counted from `lowest`.
        slider: The lowest and highest stop of a slider. Its highest stop is at least twice the model's default.
        choices: The words of a choice, its default first.
    """

    kind: str
    label: str
    help: str
    lowest: float = 0
    highest: float = 0
    reason: str = ""
    step: float = 1
    slider: tuple[float, float] = (0, 0)
    choices: tuple[str, ...] = ()

    def nearest(self, value: float) -> int | float:
        """The allowed number nearest to `value`; for a whole number, one of a slider's stops."""
        near = min(max(value, self.lowest), self.highest)
        if self.kind != "whole":
            return near
        lowest, step = int(self.lowest), int(self.step)
        stop = lowest + (round(near) - lowest + step // 2) // step * step
        return stop if stop <= self.highest else stop - step

    def slider_range(self, default: float | None = None) -> tuple[float, float]:
        """The lowest and highest stop of a slider, for a model with this default."""
        low, high = self.slider
        return low, high if default is None else max(high, self.nearest(2 * default))


def _text(label: str, help: str, **default) -> Any:
    return field(**default, metadata={"knob": Knob("text", label, help)})


def _number(kind: str, default, label: str, help: str, span: tuple, reason: str, step: float, slider: tuple) -> Any:
    low, high = span
    return field(default=default, metadata={"knob": Knob(kind, label, help, low, high, reason, step, slider)})


def _file(label: str, help: str) -> Any:
    return field(default=None, metadata={"knob": Knob("file", label, help)})


def _choice(choices: tuple[str, ...], label: str, help: str) -> Any:
    return field(default=choices[0], metadata={"knob": Knob("choice", label, help, choices=choices)})


def _flag(default: bool, label: str, help: str) -> Any:
    return field(default=default, metadata={"knob": Knob("flag", label, help)})


_SIDE = "a multiple of 16: the VAE divides it by eight, the transformer cuts patches of two."


@dataclass(frozen=True)
class Settings:
    """Everything that decides a video besides the model. None means the model's own default.

    Attributes:
        prompt: What the video shows; not blank.
        height, width: Pixels, multiples of 16, up to 4096.
        num_frames: 4k + 1, up to 1001.
        num_inference_steps: 1 to 1000.
        guidance_scale: 0 to 100, the distilled guidance (https://huggingface.co/papers/2210.03142).
        flow_shift: 0.1 to 100; how long the schedule stays at high noise.
        seed: 0 to 2**63 - 1.
        fps: 1 to 240, frames a second of the file that is written.
        negative_prompt: What to steer away from, or None; acts when true_cfg_scale > 1.
        true_cfg_scale: 1 to 100, classifier-free guidance with two evaluations a step; 1 is off.
        padded_prompt: Keep the prompt's padding, as a plain pipeline call does (slower).
        video: Path of a video or picture to start from instead of pure noise, or None.
        strength: 0 to 1, with `video`: the share of the steps that are run on it, and so how much is made anew.
        fit: "crop", "pad" or "refuse": what happens to a given clip of another size or length.
        first_frame: Path of a picture with which the video begins, or of a clip of 4k + 1 frames; or None.
        last_frame: Path of a picture with which it ends, or of a clip of 4k frames; or None.
        mask: Path of a picture or video, with `video`: white is made anew, black stays; or None.
        resample: 1 to 20, with known parts: how often each step is taken (RePaint's resampling).
        image: Path of a picture that the video starts from, for a model that was made for it ('hunyuan-i2v'), or None.
        travel: Prompts that take the prompt's place in some steps, as in "0-4: a sunny day | 5-9: at night"; or None.
        riflex: For a video longer than the model was trained on: slow down the time frequency that would repeat.

    Raises:
        UserError: A value has the wrong type or is out of range; `check` adds the model's limits.

    Example:
        >>> Settings("A red car on the beach.", seed=7).seed
        7
    """

    prompt: str = _text(
        "prompt", "What the video shows. Pocket knows the words of its cartoon world; HunyuanVideo reads any sentence."
    )
    height: int | None = _number(
        "whole", None, "height", f"Height in pixels, {_SIDE}", (16, 4096), "pixels", 16, slider=(32, 32)
    )
    width: int | None = _number(
        "whole", None, "width", f"Width in pixels, {_SIDE}", (16, 4096), "pixels", 16, slider=(32, 32)
    )
    num_frames: int | None = _number(
        "whole",
        None,
        "frames",
        "Frames of the video: 4k + 1, such as 17 or 33, because the VAE keeps the first frame by itself and packs the "
        "others in groups of four.",
        (1, 1001),
        "frames",
        4,
        slider=(1, 5),
    )
    num_inference_steps: int | None = _number(
        "whole",
        None,
        "steps",
        "Denoising steps: how often the transformer is evaluated. Few are quick and rough; time grows with them.",
        (1, MOST_STEPS),
        "the flow was trained on 1000 timesteps",
        1,
        slider=(1, 50),
    )
    guidance_scale: float | None = _number(
        "real",
        None,
        "guidance",
        "How strongly the prompt is followed. One number handed to the transformer, which was trained with it "
        "(distilled guidance): it costs no time.",
        (0.0, 100.0),
        "distilled guidance is trained from 1 to about 8",
        0.1,
        slider=(1.0, 12.0),
    )
    flow_shift: float | None = _number(
        "real",
        None,
        "flow shift",
        "Where the steps are spent: 1 evenly; higher values stay longer at high noise, where layout is made. Bigger "
        "videos want more.",
        (0.1, 100.0),
        "1 leaves the sigmas as they are; HunyuanVideo uses 7",
        0.5,
        slider=(1.0, 12.0),
    )
    seed: int = _number(
        "whole",
        0,
        "seed",
        "Which noise the video grows out of. The same seed and settings give the same video.",
        (0, 2**63 - 1),
        "torch.Generator takes a 64-bit integer",
        1,
        slider=(0, 2**31 - 1),
    )
    fps: float | None = _number(
        "real",
        None,
        "frames/s",
        "Frames a second of the file. It changes how fast the video plays, not what is drawn.",
        (1.0, 240.0),
        "frames a second",
        1.0,
        slider=(1.0, 60.0),
    )
    negative_prompt: str | None = _text(
        "negative", "What to steer away from. It acts when true_cfg_scale is above 1.", default=None
    )
    true_cfg_scale: float = _number(
        "real",
        1.0,
        "true CFG",
        "Classifier-free guidance proper: two evaluations a step, so twice the time. 1 switches it off.",
        (1.0, 100.0),
        "1 switches true classifier-free guidance off",
        0.1,
        slider=(1.0, 10.0),
    )
    padded_prompt: bool = _flag(
        False,
        "keep the prompt's padding",
        "Keep the prompt's padding of 256 tokens, as a plain pipeline call does: slower, and not the same bits.",
    )
    video: str | None = _file(
        "from video", "Path of a video or picture to start from: noise is added to it, and strength says how much."
    )
    strength: float = _number(
        "real",
        0.6,
        "strength",
        "How much of the video above is made anew: 0 gives it back as it is, 1 forgets it. It is the share of the "
        "steps that are run.",
        (0.0, 1.0),
        "0 keeps the video, 1 is pure noise",
        0.05,
        slider=(0.0, 1.0),
    )
    fit: str = _choice(
        ("crop", "pad", "refuse"),
        "fit",
        "What happens to a given clip of another size or length: crop scales it to cover the frame and cuts what is "
        "over; pad adds black bars and holds the last frame; refuse takes exact sizes only.",
    )
    first_frame: str | None = _file(
        "begins with", "Path of a picture with which the video begins, or of a clip of 4k + 1 frames."
    )
    last_frame: str | None = _file(
        "ends with", "Path of a picture with which the video ends, held for 4 frames, or of a clip of 4k frames."
    )
    mask: str | None = _file(
        "mask", "Path of a picture or video, for a part of the video above: white is made anew, black stays."
    )
    image: str | None = _file(
        "picture",
        "Path of a picture to start from, for a model that makes videos out of pictures and needs one: hunyuan-i2v.",
    )
    resample: int = _number(
        "whole",
        1,
        "repeat steps",
        "With a beginning, an end or a mask: how often each step is taken, noised again in between, so that new and "
        "given parts agree better. Time grows with it.",
        (1, 20),
        "1 takes each step once; RePaint takes 10",
        1,
        slider=(1, 10),
    )
    travel: str | None = _text(
        "prompt travel",
        "Other prompts for some steps, counted from 0, as in '0-4: a sunny day | 12-: at night'. The prompt holds "
        "in the others. Early steps decide the layout, late ones the detail.",
        default=None,
    )
    riflex: bool = _flag(
        False,
        "RIFLEx: no repetition in long videos",
        "For a video longer than the model was trained on: lower the one time frequency whose period it would outgrow, "
        "after which it would begin again (RIFLEx, arXiv 2502.15894).",
    )

    def __post_init__(self) -> None:
        check_fields(self, KNOBS)
        if self.true_cfg_scale > 1 and self.negative_prompt is None:
            raise UserError(
                f"true_cfg_scale={self.true_cfg_scale}: needs a negative_prompt to steer away from; "
                'negative_prompt="" works, and so does true_cfg_scale=1.',
                setting="true_cfg_scale",
            )

    def check(self, models: SettingsChecker) -> Resolved:
        """Complete the settings with the model's defaults and check them against what it can do.

        Args:
            models: A loaded model, as `load` returns it.

        Returns:
            The complete settings; no field that a model has a default for is None.

        Raises:
            UserError: A size is not a multiple that the model needs, guidance_scale does not fit the transformer's
                dtype, or a prompt is longer than 256 tokens.

        Warns:
            UserWarning: Once a run, for values that are allowed but unwise, such as a size it was not trained on.
        """
        return models.check(self)


KNOBS: dict[str, Knob] = {each.name: each.metadata["knob"] for each in dataclasses.fields(Settings)}


@dataclass(frozen=True, kw_only=True)
class Resolved(Settings):
    """Complete settings, as `Settings.check` returns them: every field that a model has a default for is filled in."""

    # Required again, which the type rules of dataclasses do not allow for and Python does.
    height: int  # pyright: ignore[reportGeneralTypeIssues]
    width: int  # pyright: ignore[reportGeneralTypeIssues]
    num_frames: int  # pyright: ignore[reportGeneralTypeIssues]
    num_inference_steps: int  # pyright: ignore[reportGeneralTypeIssues]
    guidance_scale: float  # pyright: ignore[reportGeneralTypeIssues]
    flow_shift: float  # pyright: ignore[reportGeneralTypeIssues]
    fps: float  # pyright: ignore[reportGeneralTypeIssues]


class SettingsChecker(Protocol):
    """The part of a loaded model that `Settings.check` needs; `Models` has it."""

    def check(self, settings: Settings) -> Resolved: ...


def settings_from(*, also: tuple[str, ...] = (), **keywords) -> Settings:
    """Settings from keywords, refusing an unknown one with the name that was probably meant.

    Args:
        also: Keyword names that the caller takes itself, offered among the near matches.
        **keywords: Fields of `Settings`.

    Raises:
        UserError: An unknown keyword, a missing prompt, or what `Settings` refuses.
    """
    for name, value in keywords.items():
        if name not in KNOBS:
            raise UserError(
                f"{name}={quoted(value)}: there is no such setting; {did_you_mean(name, [*KNOBS, *also])}", setting=name
            )
    if "prompt" not in keywords:
        raise UserError("prompt is missing: say what the video shows.", setting="prompt")
    return Settings(**keywords)


def check_fields(settings: Any, knobs: dict[str, Knob]) -> None:
    """Check each field of a frozen dataclass of settings by its knob, and make numbers plain ints and floats.

    Args:
        settings: The dataclass's instance; a field whose default is None may be None.
        knobs: By the names of its fields.

    Raises:
        UserError: A value has the wrong type or is out of range.
    """
    for each in dataclasses.fields(settings):
        value, knob = getattr(settings, each.name), knobs[each.name]
        if value is None and each.default is None:
            continue
        if knob.kind in ("file", "choice"):
            _check_word(each.name, value, knob)
        elif each.name == "travel":
            travelled(value)
        elif knob.kind == "text":
            check_text(each.name, value, allow_empty=each.name == "negative_prompt")
        elif knob.kind == "flag":
            if not isinstance(value, bool):
                raise UserError(
                    f"{each.name}={quoted(value)}: must be True or False; {each.default} is the default.",
                    setting=each.name,
                )
        else:
            object.__setattr__(settings, each.name, _checked_number(each.name, value, knob))


def check_multiples(settings: Any, spatial: int, temporal: int) -> None:
    """Check that what the VAE compresses and the transformer cuts into patches comes out whole.

    Args:
        settings: `Settings` or `TrainSettings`, of which height, width and num_frames are looked at, where they are
            given.
        spatial: Pixels that a token is high and wide.
        temporal: Frames that share a latent.

    Raises:
        UserError: One of them does not; the message names the nearest values that do.
    """
    for name in ("height", "width"):
        value = getattr(settings, name)
        if value is not None and value % spatial:
            below, above = value // spatial * spatial, (value // spatial + 1) * spatial
            near = f"{below} or {above}" if below else f"{above}"
            raise UserError(
                f"{name}={value}: must be a multiple of {spatial} (VAE compression times patch size); "
                f"{near} would work.",
                setting=name,
            )
    if settings.num_frames is None:
        return
    k = (settings.num_frames - 1) // temporal
    if settings.num_frames != temporal * k + 1:
        raise UserError(
            f"num_frames={settings.num_frames}: must be {temporal}k+1 (the first frame stands alone, then "
            f"{temporal} share a latent); {temporal * k + 1} or {temporal * (k + 1) + 1} would work.",
            setting="num_frames",
        )


def travelled(travel: object) -> list[tuple[range, str]]:
    """Read a prompt travel: steps and the prompt that holds in them, in the order of the steps.

    Args:
        travel: Such as "0-4: a sunny day | 7: fog | 12-: at night"; "12-" goes on to the last step.

    Returns:
        (steps, prompt) for each part; an open end is 1000 steps, the most there are.

    Raises:
        UserError: Another form, a blank prompt, or steps that two parts claim.

    Example:
        >>> travelled("0-4: a sunny day | 12-: at night")
        [(range(0, 5), 'a sunny day'), (range(12, 1000), 'at night')]
    """
    works = "'0-4: A red car. | 5-: A blue car.' would work."
    parts = []
    for text in travel.split("|") if isinstance(travel, str) else ():
        form = re.fullmatch(r"\s*([0-9]{1,3})\s*(?:(-)\s*([0-9]{1,3})?)?\s*:(.*)", text, re.DOTALL)
        if form is None or not form[4].strip() or not _writable(form[4]):
            parts = []
            break
        first = int(form[1])
        last = (int(form[3]) if form[3] else MOST_STEPS - 1) if form[2] else first
        parts.append((range(first, last + 1), form[4].strip()))
    if not parts:
        raise UserError(f"travel={quoted(travel)}: must be steps and prompts, parted by | ; {works}", setting="travel")
    parts.sort(key=lambda part: part[0].start)
    ends = [0, *(steps.stop for steps, _ in parts)]
    if any(not steps or steps.start < end for (steps, _), end in zip(parts, ends)):
        raise UserError(f"travel={quoted(travel)}: ranges of steps must not overlap; {works}", setting="travel")
    return parts


def _check_word(name: str, value: Any, knob: Knob) -> None:
    """Refuse what is no path, or none of the choices. Whether the file is there is seen when it is read."""
    if knob.kind == "choice":
        if not isinstance(value, str) or value not in knob.choices:
            known = ", ".join(knob.choices)
            raise UserError(
                f"{name}={quoted(value)}: must be one of {known}; {knob.choices[0]!r} would work.", setting=name
            )
        return
    if not isinstance(value, str) or not value.strip() or "\0" in value or not _writable(value):
        raise UserError(f"{name}={quoted(value)}: must be the path of a file; 'in.mp4' would work.", setting=name)


def _writable(text: str) -> bool:
    """Whether text can be written down: it holds no half of a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _checked_number(name: str, value: Any, knob: Knob) -> int | float:
    """`value` as a plain int or float, one value for one meaning: 3 and 3.0 are the same guidance."""
    whole = knob.kind == "whole"
    right = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
    number: Any = value
    if right and knob.lowest <= number <= knob.highest:  # NaN is not
        return int(number) if whole else float(number) + 0.0  # -0.0 becomes 0.0
    raise UserError(
        f"{name}={quoted(value)}: must be {'a whole number' if whole else 'a number'} from {_plain(knob.lowest)} to "
        f"{_plain(knob.highest)} ({knob.reason}); {_plain(_suggestion(value, knob))} would work.",
        setting=name,
    )


def _plain(number: float) -> str:
    """240 for 240.0: what one would type."""
    return f"{number:.12g}" if isinstance(number, float) else str(number)


def _suggestion(value: Any, knob: Knob) -> int | float:
    """The allowed number nearest to `value`, which may be text or NaN."""
    try:
        wish = int(value) if isinstance(value, numbers.Integral) else float(value)
    except (TypeError, ValueError, OverflowError):
        return knob.lowest
    return knob.lowest if wish != wish else knob.nearest(wish)
