"""`TrainSettings`: everything that decides a training besides the model and the data, as plain data.

Each knob is described once, in its field's metadata, as in `t2v_kit.settings`: the command line and the documentation
read it from `TRAIN_KNOBS`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError, check_whole, did_you_mean, quoted
from ..settings import KNOBS, Knob, check_fields

#: What `activations` may be: what a block leaves behind for the backward pass, from the quickest to the smallest.
ACTIVATIONS = ("keep", "recompute", "offload", "fp8")
#: The settings that trade time for memory and change no gradient (but for "fp8").
LEVERS = ("activations", "offloaded_blocks", "chunk", "streamed_blocks")
OPTIMIZERS = ("adamw", "adamw8bit")
#: Names for `targets`, as ends of the transformer's linear layers.
TARGETS = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    "all": (
        *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out"),
    ),
}


def _whole(default: int | None, label: str, help: str, span: tuple[int, int], reason: str, step: int = 1) -> Any:
    return field(default=default, metadata={"knob": Knob("whole", label, help, *span, reason, step, span)})


def _real(default: float | None, label: str, help: str, span: tuple[float, float], reason: str) -> Any:
    return field(default=default, metadata={"knob": Knob("real", label, help, *span, reason, 0.01, span)})


def _word(default: str, label: str, help: str) -> Any:
    return field(default=default, metadata={"knob": Knob("text", label, help)})


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides a training besides the model and the data. None means the model's own.

    Attributes:
        steps: 1 to 10,000,000, how often the weights change.
        rank: 0 to 1024; 0 trains every weight of the transformer instead of a LoRA.
        alpha: Above 0 to 4096; the LoRA's part is multiplied by alpha / rank. None: as the rank.
        targets: "attention", "all", or ends of layers' names with commas between them.
        learning_rate: 1e-9 to 1.
        batch_size: 1 to 4096, samples in a step (of one process).
        warmup: 0 to 1,000,000 steps over which the learning rate rises.
        decay: 0 to 1, the share of the steps at the end over which it falls to nothing.
        weight_decay: 0 to 1.
        max_grad_norm: 0 to 1000; longer gradients are shortened to it; 0 leaves them.
        ema: 0 to 0.99999, the moving average that is saved and shown; 0 is none.
        caption_dropout: 0 to 1, the share of samples that are shown with the empty prompt.
        high_noise: 0 to 1, the share of noise levels drawn between 0.9 and 1.
        flow_shift: 0.1 to 100, how the other noise levels are shifted, as in sampling.
        guidance_scale: 0 to 100, what a transformer with embedded guidance is told.
        height, width: Pixels, multiples of 16.
        num_frames: 4k + 1 frames of a sample.
        activations: "keep", "recompute", "offload" or "fp8".
        offloaded_blocks: 0 to 1000, of how many blocks, the first ones, "offload" takes the inputs to RAM. None: all.
        chunk: 0 to 1,000,000 tokens that projections and feed-forward layers take at a time; 0 is all.
        streamed_blocks: 0 to 1000 blocks whose weights wait in RAM.
        optimizer: "adamw" or "adamw8bit".
        seed: 0 to 2**63 - 1.

    Raises:
        UserError: A value has the wrong type or is out of range.

    Example:
        >>> TrainSettings(steps=200, rank=8).alpha_or_rank
        8.0
    """

    steps: int = _whole(
        500, "steps", "How often the weights change.", (1, 10_000_000), "a step sees batch_size samples"
    )
    rank: int = _whole(
        16,
        "rank",
        "The LoRA's inner width: 4 to 32 for a subject or a style. 0 trains every weight of the transformer.",
        (0, 1024),
        "no layer is of use with more",
    )
    alpha: float | None = _real(
        None,
        "alpha",
        "The LoRA's part is multiplied by alpha / rank. By default it is the rank, which leaves it as it is.",
        (0.001, 4096.0),
        "a factor",
    )
    targets: str = _word(
        "attention",
        "layers",
        "Which layers get a LoRA: attention, all (feed-forward layers too), or ends of layers' names with commas.",
    )
    learning_rate: float = _real(
        1e-4,
        "learning rate",
        "How far a step goes. 1e-4 is usual for a LoRA of the 13B; pocket takes ten times as much.",
        (1e-9, 1.0),
        "AdamW moves each weight by about that much",
    )
    batch_size: int = _whole(
        1, "batch", "Samples in a step, of one size; a step of several GPUs has as many of each.", (1, 4096), "samples"
    )
    warmup: int = _whole(
        10, "warm-up", "Steps over which the learning rate rises from nothing.", (0, 1_000_000), "steps"
    )
    decay: float = _real(
        0.3, "decay", "The share of the steps, at the end, over which the learning rate falls to nothing.", (0.0, 1.0),
        "a share",
    )  # fmt: skip
    weight_decay: float = _real(
        0.01, "weight decay", "AdamW's pull of the weights towards nothing.", (0.0, 1.0), "a share of the learning rate"
    )
    max_grad_norm: float = _real(
        1.0, "gradient norm", "Longer gradients are shortened to this length; 0 leaves them.", (0.0, 1000.0), "a length"
    )
    ema: float = _real(
        0.0,
        "moving average",
        "What is saved is an average over about 1 / (1 - ema) steps; 0 saves the weights of the last one.",
        (0.0, 0.99999),
        "1 would never move",
    )
    caption_dropout: float = _real(
        0.1, "caption dropout", "The share of samples shown with the empty prompt.", (0.0, 1.0), "a share"
    )
    high_noise: float = _real(
        0.2,
        "high noise",
        "The share of noise levels drawn evenly between 0.9 and 1, where a video's layout is decided.",
        (0.0, 1.0),
        "a share",
    )
    flow_shift: float | None = _real(
        None,
        "flow shift",
        "How the other noise levels, logit-normal (https://arxiv.org/abs/2403.03206), are shifted, as in sampling.",
        (KNOBS["flow_shift"].lowest, KNOBS["flow_shift"].highest),
        KNOBS["flow_shift"].reason,
    )
    guidance_scale: float = _real(
        1.0,
        "guidance",
        "What a transformer with embedded guidance is told in training. At 1 its answer is the data's own velocity.",
        (KNOBS["guidance_scale"].lowest, KNOBS["guidance_scale"].highest),
        KNOBS["guidance_scale"].reason,
    )
    height: int | None = _whole(
        None, "height", "Height in pixels of every sample; with width. By default each keeps its own shape.",
        (16, 4096), "pixels", 16,
    )  # fmt: skip
    width: int | None = _whole(None, "width", "Width in pixels of every sample; with height.", (16, 4096), "pixels", 16)
    num_frames: int | None = _whole(
        None, "frames", "Frames of a sample, 4k + 1: longer clips give several, shorter ones are refused.",
        (1, 1001), "frames", 4,
    )  # fmt: skip
    activations: str = _word(
        "recompute",
        "activations",
        "What a block leaves for the backward pass: keep (everything), recompute (its input), offload (its input, in "
        "RAM) or fp8 (its input, rounded to 8 bits: gradients are approximate).",
    )
    offloaded_blocks: int | None = _whole(
        None,
        "offloaded blocks",
        "Of how many blocks, the first ones, offload takes the inputs to RAM; by default all.",
        (0, 1000),
        "blocks",
    )
    chunk: int = _whole(
        0,
        "chunk",
        "Tokens that projections and feed-forward layers take at a time, computed again in the backward pass; 0 is all "
        "at once. The same gradients in less memory.",
        (0, 1_000_000),
        "tokens",
    )
    streamed_blocks: int = _whole(
        0, "streamed blocks", "How many blocks, the last ones, keep their weights in RAM until their turn.",
        (0, 1000), "blocks",
    )  # fmt: skip
    optimizer: str = _word("adamw", "optimizer", "adamw, or adamw8bit (of bitsandbytes, its state in 8 bits).")
    seed: int = _whole(
        0, "seed", "Which noise, noise levels and order of the data.", (0, 2**63 - 1), KNOBS["seed"].reason
    )

    def __post_init__(self) -> None:
        check_fields(self, TRAIN_KNOBS)
        for name, known in (("activations", ACTIVATIONS), ("optimizer", OPTIMIZERS)):
            if (value := getattr(self, name)) not in known:
                raise UserError(f"{name}={quoted(value)}: is none; {did_you_mean(value, known)}", setting=name)
        if (self.height is None) != (self.width is None):
            given, missing = ("height", "width") if self.width is None else ("width", "height")
            raise UserError(
                f"{given}={getattr(self, given)}: needs {missing} too; {missing}={getattr(self, given)} would work.",
                setting=missing,
            )
        if self.offloaded_blocks is not None and self.activations != "offload":
            raise UserError(
                f"offloaded_blocks={self.offloaded_blocks}: is for activations='offload', not {self.activations!r}; "
                "with activations='offload' it works.",
                setting="offloaded_blocks",
            )
        if self.activations == "keep" and self.streamed_blocks:
            raise UserError(
                f"streamed_blocks={self.streamed_blocks}: what such a block computed cannot be kept, since its weights "
                "are gone on the way back; activations='recompute' would work.",
                setting="activations",
            )
        if self.rank == 0 and self.streamed_blocks:
            raise UserError(
                f"streamed_blocks={self.streamed_blocks}: weights that are trained cannot wait in RAM; rank=16 would "
                "work.",
                setting="streamed_blocks",
            )
        if not self.target_names:
            raise UserError(f"targets={self.targets!r}: names no layer; 'attention' would work.", setting="targets")

    @property
    def alpha_or_rank(self) -> float:
        """The LoRA's alpha: the rank where it is left open."""
        return float(self.rank if self.alpha is None else self.alpha)

    @property
    def target_names(self) -> tuple[str, ...]:
        """The ends of the names of the layers that get a LoRA."""
        return TARGETS.get(self.targets) or tuple(name.strip() for name in self.targets.split(",") if name.strip())

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, 0 to steps - 1: up linearly, level, and down linearly at the end."""
        up = (step + 1) / (self.warmup + 1) if step < self.warmup else 1.0
        falling = self.decay * self.steps
        down = min(1.0, (self.steps - step) / falling) if falling else 1.0
        return self.learning_rate * min(up, down)


TRAIN_KNOBS: dict[str, Knob] = {each.name: each.metadata["knob"] for each in dataclasses.fields(TrainSettings)}


def train_settings_from(**keywords) -> TrainSettings:
    """Training settings from keywords, refusing an unknown one with the name that was probably meant.

    Raises:
        UserError: An unknown keyword, or what `TrainSettings` refuses.
    """
    for name, value in keywords.items():
        if name not in TRAIN_KNOBS:
            known = did_you_mean(name, TRAIN_KNOBS)
            raise UserError(f"{name}={quoted(value)}: there is no such setting of a training; {known}", setting=name)
    return TrainSettings(**keywords)


def check_intervals(steps: int, sample_every: int | None, checkpoint_every: int) -> tuple[int, int]:
    """Steps between samples and between checkpoints, as whole numbers.

    Args:
        steps: Of the training.
        sample_every: From 0, which is none; None is a quarter of all steps.
        checkpoint_every: From 1.

    Raises:
        UserError: One of them is no such number.
    """
    every = steps // 4 if sample_every is None else sample_every
    return (
        check_whole("sample_every", every, 0, unit="steps", works=100),
        check_whole("checkpoint_every", checkpoint_every, unit="steps", works=50),
    )
