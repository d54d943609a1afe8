"""What a video is made with: one frozen dataclass, every rule and its reason in one place."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import numbers
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .models import Models

# (lowest, highest, why). Sizes beyond these are typing mistakes rather than wishes.
WHOLE_NUMBERS = {
    "height": (16, 4096, "pixels"),
    "width": (16, 4096, "pixels"),
    "num_frames": (1, 1001, "frames"),
    "num_inference_steps": (1, 1000, "the flow was trained on 1000 timesteps"),
    "seed": (0, 2**63 - 1, "torch.Generator takes a 64-bit integer"),
}
REAL_NUMBERS = {
    "guidance_scale": (0.0, 100.0, "distilled guidance is trained from 1 to about 8"),
    "flow_shift": (0.1, 100.0, "1 leaves the sigmas as they are; HunyuanVideo uses 7"),
    "fps": (1, 240, "frames a second"),
    "true_cfg_scale": (1.0, 100.0, "1 switches true classifier-free guidance off"),
}
# Four times 720x1280x129, HunyuanVideo's largest published size, in tokens of 4x16x16 pixels.
MAX_VIDEO_TOKENS = 4 * 118_800


class UserError(ValueError):
    """A mistake in what the user gave: one line with the value, the rule, and what would work."""


@functools.cache
def tell_once(message: str) -> None:
    """Warn with `message`; the same message is not repeated while the process lives.

    Under the package's name rather than a line of code: it is about what was asked, not about code.
    """
    warnings.warn_explicit(message, UserWarning, "t2v-kit", 1)


@dataclass(frozen=True)
class Settings:
    """Everything that decides a video besides the model; None means the model's own default.

    prompt: text, not blank.  negative_prompt: text or None; acts when true_cfg_scale > 1.
    true_cfg_scale: 1 to 100, classifier-free guidance by asking twice; 1 is off.
    height, width: pixels, multiples of the model's 16.  num_frames: 4k + 1.
    num_inference_steps: 1 to 1000.  guidance_scale: 0 to 100, the distilled guidance
    (https://huggingface.co/papers/2210.03142).  flow_shift: above 0, how long the schedule stays
    at high noise.  seed: 0 to 2**63 - 1.  fps: of the file that is written.
    padded_prompt: keep the padding of the prompt, as a plain pipeline call does (slower).
    Raises UserError for a wrong type or range here, and for what the model cannot do in `check`.
    """

    prompt: str
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    flow_shift: float | None = None
    seed: int = 0
    fps: float | None = None
    negative_prompt: str | None = None
    true_cfg_scale: float = 1.0
    padded_prompt: bool = False

    def __post_init__(self) -> None:
        check_text("prompt", self.prompt)
        if self.negative_prompt is not None:
            check_text("negative_prompt", self.negative_prompt, allow_empty=True)
        optional = {f.name for f in dataclasses.fields(self) if f.default is None}
        for kind, rules in ((numbers.Integral, WHOLE_NUMBERS), (numbers.Real, REAL_NUMBERS)):
            for name, (lowest, highest, why) in rules.items():
                value = getattr(self, name)
                if value is not None or name not in optional:
                    value = _number(name, value, kind, lowest, highest, why)
                    object.__setattr__(self, name, value)
        if not isinstance(self.padded_prompt, bool):
            raise UserError(f"padded_prompt={self.padded_prompt!r}: must be True or False; False is the default.")
        if self.true_cfg_scale > 1 and self.negative_prompt is None:
            raise UserError(
                f"true_cfg_scale={self.true_cfg_scale}: needs a negative_prompt to steer away from; "
                'negative_prompt="" works, and so does true_cfg_scale=1.'
            )

    def check(self, models: Models) -> Settings:
        """The same settings with the model's defaults filled in, checked against what it can do.

        Raises UserError when a size is not a multiple the model needs, when guidance_scale does not
        fit the transformer's dtype, or when a prompt is over 256 tokens. Warns once about a size it
        was not trained on.
        """
        full = self.complete(models)
        for note in self.notes(models).values():
            tell_once(note)
        return full

    def complete(self, models: Models) -> Settings:
        """What `check` gives, in silence: for whoever shows `notes` another way."""
        missing = {name: value for name, value in models.defaults.items() if getattr(self, name) is None}
        full = dataclasses.replace(self, **missing)
        config = models.pipe.transformer.config
        spatial = models.pipe.vae_scale_factor_spatial * config.patch_size
        temporal = models.pipe.vae_scale_factor_temporal * config.patch_size_t
        _check_multiples(full, spatial, temporal)
        _check_guidance(full, models.pipe.transformer.dtype)
        _check_lengths(full, models)
        return full

    def notes(self, models: Models) -> dict[str, str]:
        """What is allowed but worth knowing, by the setting it is about; `check` tells each once."""
        notes = {}
        distilled = models.pipe.transformer.config.guidance_embeds
        guidance = models.defaults["guidance_scale"] if self.guidance_scale is None else self.guidance_scale
        if self.guidance_scale is not None and not distilled:
            notes["guidance_scale"] = "guidance_scale has no effect: this model was not trained with guidance_embeds."
        if self.true_cfg_scale > 1 and distilled and guidance > 1:
            notes["true_cfg_scale"] = (
                f"true_cfg_scale={self.true_cfg_scale:g} comes on top of guidance_scale={guidance:g}, "
                "which is guidance too; guidance_scale=1 leaves it to true_cfg_scale alone."
            )
        if self.negative_prompt is not None and self.true_cfg_scale == 1:
            notes["negative_prompt"] = "negative_prompt has no effect while true_cfg_scale is 1; try true_cfg_scale=3."
        size = tuple(getattr(self, key) or models.defaults[key] for key in ("num_frames", "height", "width"))
        if models.trained_sizes and size not in models.trained_sizes:
            known = ", ".join("x".join(map(str, trained)) for trained in models.trained_sizes)
            notes["num_frames"] = (
                f"{size[0]}x{size[1]}x{size[2]} (frames x height x width) is not a size {models.name} "
                f"was trained on ({known}): expect it to do worse."
            )
        return notes


def settings_from(*, also: tuple[str, ...] = (), **keywords) -> Settings:
    """Settings from keywords, refusing an unknown one with the name that was probably meant.

    also: keyword names that the caller takes itself, offered among the near matches.
    """
    fields = [f.name for f in dataclasses.fields(Settings)]
    for name in keywords:
        if name not in fields:
            near = difflib.get_close_matches(name, [*fields, *also], n=1)
            hint = f"did you mean {near[0]}?" if near else "known are " + ", ".join([*fields, *also]) + "."
            raise UserError(f"{name}={keywords[name]!r}: there is no such setting; {hint}")
    if "prompt" not in keywords:
        raise UserError("prompt is missing: say what the video shows.")
    return Settings(**keywords)


def check_text(name: str, value: object, allow_empty: bool = False) -> str:
    """`value` if it is text that can be written down; raises UserError otherwise."""
    example = "'A red car on the street.' would work."
    if not isinstance(value, str):
        raise UserError(f"{name}={value!r}: must be text, not {type(value).__name__}; {example}")
    if not value.strip() and not allow_empty:
        raise UserError(f"{name}={value!r}: is empty; {example}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{name}={value!r}: holds half a character at {error.start}; {example}") from None
    return value


def _number(name, value, kind, lowest, highest, why):
    """`value` as a plain int or float, or a UserError. bool is a number to Python, not to us."""
    if isinstance(value, kind) and not isinstance(value, bool) and lowest <= value <= highest:  # NaN is not
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    what = "a whole number" if kind is numbers.Integral else "a number"
    raise UserError(
        f"{name}={value!r}: must be {what} from {lowest} to {highest} ({why}); "
        f"{_nearest(value, kind, lowest, highest)} would work."
    )


def _nearest(value, kind, lowest, highest):
    """The number nearest to `value`, which may be text or NaN, that the rule allows."""
    try:
        wish = int(value) if isinstance(value, numbers.Integral) else float(value)
    except (TypeError, ValueError):
        return lowest
    if wish != wish:
        return lowest
    nearest = min(max(wish, lowest), highest)
    return round(nearest) if kind is numbers.Integral else nearest


def _check_multiples(full: Settings, spatial: int, temporal: int) -> None:
    """The VAE shrinks space and time, the transformer cuts patches: both must come out whole."""
    for name in ("height", "width"):
        value = getattr(full, name)
        if value % spatial:
            below, above = value // spatial * spatial, (value // spatial + 1) * spatial
            near = f"{below} or {above}" if below else f"{above}"
            raise UserError(
                f"{name}={value}: must be a multiple of {spatial} (VAE compression times patch size); "
                f"{near} would work."
            )
    k = (full.num_frames - 1) // temporal
    if full.num_frames != temporal * k + 1:
        raise UserError(
            f"num_frames={full.num_frames}: must be {temporal}k+1 (the first frame stands alone, then "
            f"{temporal} share a latent); {temporal * k + 1} or {temporal * (k + 1) + 1} would work."
        )
    tokens_a_frame = full.height * full.width // spatial**2
    if tokens_a_frame * (k + 1) > MAX_VIDEO_TOKENS:
        frames = temporal * max(MAX_VIDEO_TOKENS // tokens_a_frame - 1, 0) + 1
        raise UserError(
            f"{full.num_frames}x{full.height}x{full.width} (frames x height x width): makes "
            f"{tokens_a_frame * (k + 1)} video tokens, at most {MAX_VIDEO_TOKENS} are allowed; "
            f"num_frames={frames} would work at this height and width."
        )


def _check_guidance(full: Settings, dtype: torch.dtype) -> None:
    """The pipeline multiplies guidance by 1000 in the transformer's dtype: fp16 ends at 65504."""
    import torch  # here, so that a typing mistake on the command line is answered before torch is loaded

    highest = math.floor(torch.finfo(dtype).max / 1000 * 10) / 10 if dtype.is_floating_point else math.inf
    if full.guidance_scale > highest:
        raise UserError(
            f"guidance_scale={full.guidance_scale}: the transformer's {dtype} carries at most {highest} "
            f"(it is multiplied by 1000); {highest} would work, or load the transformer in bfloat16."
        )


def _check_lengths(full: Settings, models: Models) -> None:
    """The language model reads so many tokens; the negative prompt's count where it is read at all."""
    from .prompt import check_length, token_table  # here: it imports this module, and torch

    for name in ("prompt", "negative_prompt") if full.true_cfg_scale > 1 else ("prompt",):
        text = getattr(full, name)
        check_length(text, token_table(models, text), name)
