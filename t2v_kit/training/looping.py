"""`train`: flow matching by the pipeline's own convention, as a generator of steps that one can watch and stop.

A clip's latents x and noise e are mixed to (1 - sigma) x + sigma e; the transformer learns the velocity e - x, which is
what `denoise` follows back (https://arxiv.org/abs/2210.02747). Every random number of a step follows from the seed and
the step's number, so a training that is resumed goes on with the same bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce

from ..errors import UserError
from ..hunyuan.chunks import ChunkedAttention
from ..hunyuan.masks import blocks
from .cache import Encoded, encode_clips
from .checkpoints import read_checkpoint, write_checkpoint
from .clips import ClipFolder
from .levers import less_memory
from .lora import lora, write_lora
from .options import TrainSettings

if TYPE_CHECKING:
    from ..model.models import Models

_BETAS = (0.9, 0.99)
_CAPTIONS = 20  # of the data, in the metadata of what is saved


@dataclass(frozen=True, eq=False)
class TrainStep:
    """One step of training.

    Attributes:
        index: 0 to steps - 1.
        loss: The mean square error of the velocity, before the weights changed.
        sigma: The mean noise level of the batch.
        seconds: For the whole step.
        learning_rate: Of this step.
        grad_norm: The gradient's length before it was shortened.
        losses, sigmas: The same of each sample.
    """

    index: int
    loss: float
    sigma: float
    seconds: float
    learning_rate: float
    grad_norm: float
    losses: tuple[float, ...]
    sigmas: tuple[float, ...]
    _trainer: Trainer = field(repr=False)

    def save(self, path: str | os.PathLike) -> Path:
        """Write what has been trained so far: the moving average, where there is one.

        Args:
            path: For a LoRA a file ending in .safetensors, which `pipe.load_lora_weights` takes; for a training of all
                weights (rank=0) a folder, which `load` takes.

        Returns:
            The path.

        Raises:
            UserError: The training has gone on since this step.
        """
        return self._trainer.of(self).save(Path(path), self.index)

    def checkpoint(self, path: str | os.PathLike) -> Path:
        """Write a file from which `train(..., resume_from=path)` goes on with the same bits.

        Raises:
            UserError: The training has gone on since this step.
        """
        return self._trainer.of(self).checkpoint(Path(path), self.index)

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        """Inside, the model is whole and has the weights that `save` would write: the stages can be called.

        Raises:
            UserError: The training has gone on since this step, its loop has ended and its LoRA has left the model, or
                the memory plan has one stage in memory at a time.
        """
        trainer = self._trainer.of(self)
        if trainer.over and trainer.settings.rank:
            raise UserError(
                "sampling after the training: its LoRA has left the model; what step.save wrote would work, with "
                "load(..., loras=[...]) or pipe.load_lora_weights."
            )
        plan = trainer.models.memory
        if plan is not None and plan.one_stage:
            raise UserError("sampling while training: the memory plan keeps one stage; a plan without one_stage works.")
        with trainer.averaged(), trainer.whole():
            yield


def train(
    models: Models,
    data: Encoded | ClipFolder | str | Path,
    settings: TrainSettings,
    resume_from: str | os.PathLike | None = None,
) -> Iterator[TrainStep]:
    """Train a LoRA, or all weights of the transformer, and yield a TrainStep after every step.

    Stop whenever you like. A LoRA leaves the model when the loop ends: `step.save` keeps it. Weights that are all
    trained stay in the model. In several processes (`accelerate launch`), each has its own part of a step, and the
    gradients are averaged.

    Args:
        models: What `load` gave, without a step cache; its text encoders and VAE leave the GPU.
        data: A folder as `read_clips` takes it, or what `read_clips` or `encode_clips` returned.
        settings: Everything that decides the training.
        resume_from: A checkpoint of a training of the same data with the same settings; `steps` alone may be more.

    Yields:
        Steps up to the last.

    Raises:
        UserError: The data, the checkpoint or the model's memory plan does not fit, or the loss is no number.

    Example:
        >>> for step in train(load("pocket"), "my_dog", TrainSettings(steps=200)):  # doctest: +SKIP
        ...     print(step.index, step.loss)
        >>> step.save("dog.safetensors")  # doctest: +SKIP
    """
    _check_trainable(models, settings)
    encoded = data if isinstance(data, Encoded) else encode_clips(models, data, settings)
    trainer = Trainer(models, encoded, settings)
    with trainer.prepared():
        first = 0 if resume_from is None else trainer.resume(Path(resume_from))
        for index in range(first, settings.steps):
            yield trainer.step(index)


def draw_sigmas(count: int, shift: float, high_noise: float, generator: torch.Generator) -> torch.Tensor:
    """Draw noise levels to train at.

    Args:
        count: How many.
        shift: As flow_shift in sampling.
        high_noise: The share drawn evenly from 0.9 to 1; the others are logit-normal and shifted.
        generator: On the CPU.

    Returns:
        (count,) float32, above 0 to 1.
    """
    usual = torch.sigmoid(torch.randn(count, generator=generator))
    usual = shift * usual / (1 + (shift - 1) * usual)
    high = 0.9 + 0.1 * torch.rand(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < high_noise, high, usual)


class Trainer:
    """What `train` works with: the weights that change, their optimiser, the data's order.

    Attributes:
        models: The model.
        data: The encoded data.
        settings: Of the training.
    """

    def __init__(self, models: Models, data: Encoded, settings: TrainSettings) -> None:
        self.models, self.data, self.settings = models, data, settings
        together = int(os.environ.get("WORLD_SIZE", 1)) > 1
        self._state = PartialState(cpu=models.device.type == "cpu") if together else None
        self.world = self._state.num_processes if self._state else 1
        self.rank = self._state.process_index if self._state else 0
        self.weights: dict[str, torch.Tensor] = {}  # of the model
        self.masters: dict[str, torch.Tensor] = {}  # the same in float32, which the optimiser changes
        self.average: dict[str, torch.Tensor] = {}
        self.over = False  # the loop has ended
        self._others: list[Any] = []  # networks that are off the GPU
        self._latest: TrainStep | None = None

    def of(self, step: TrainStep) -> Trainer:
        """Itself. Raises UserError unless `step` is the latest."""
        if step is not self._latest:
            latest = self._latest.index if self._latest else 0
            raise UserError(f"step {step.index}: the training is at step {latest} by now; that one would work.")
        return self

    @contextlib.contextmanager
    def prepared(self) -> Iterator[None]:
        """Inside, the transformer is alone on the device and its weights ask for gradients."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._end)
            with self.models.lock:
                self.transformer = self.models.network("transformer")
                stack.enter_context(self._alone())
                chosen = lora if self.settings.rank else _all_weights
                self.weights = stack.enter_context(chosen(self.transformer, self.settings))
                dtype = self.transformer.dtype
                self.masters = {
                    name: weight.detach().float().clone() if dtype != torch.float32 else weight
                    for name, weight in self.weights.items()
                }
                for weight in self.weights.values():
                    weight.data = weight.data.to(dtype)
                if self.settings.ema:
                    self.average = {name: weight.detach().clone() for name, weight in self.masters.items()}
                self.optimizer = self._make_optimizer()
                stack.enter_context(less_memory(self.transformer, self.settings))
            yield

    def _end(self) -> None:
        """`save` and `checkpoint` of the last step work on: the tensors are kept though the LoRA leaves the model."""
        self.over = True
        for weight in self.weights.values():
            weight.grad = None

    def _make_optimizer(self) -> Any:
        weights, chosen = list(self.masters.values()), self.settings
        common = {"lr": chosen.learning_rate, "betas": _BETAS, "weight_decay": chosen.weight_decay}
        if chosen.optimizer == "adamw":
            return torch.optim.AdamW(weights, **common)
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(weights, **common)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Inside, the text encoders and the VAE are off the GPU, where nothing else takes care of them."""
        if self.models.device.type == "cuda" and not self.models.residence and not getattr(
            self.models.pipe, "_all_hooks", ()
        ):  # fmt: skip
            self._others = [getattr(self.models.pipe, name) for name in ("text_encoder", "text_encoder_2", "vae")]
        try:
            self._move_others("cpu")
            yield
        finally:
            self._move_others(self.models.device)
            self._others = []  # so that nothing moves them after the end

    def _move_others(self, device) -> None:
        for network in self._others:
            network.to(device)
        if self._others:
            torch.cuda.empty_cache()

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, every network is where the stages expect it."""
        self._move_others(self.models.device)
        try:
            yield
        finally:
            self._move_others("cpu")

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the moving average, where there is one."""
        if not self.average:
            yield
            return
        kept = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self._set(self.average)
        try:
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, values: dict[str, torch.Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(values[name])

    def step(self, index: int) -> TrainStep:
        """Train one step."""
        with self.models.lock, torch.enable_grad():
            began = time.perf_counter()
            rate = self.settings.rate_at(index)
            for weight in self.weights.values():
                weight.grad = None
            losses, sigmas = self.losses(index)
            loss = losses.mean()
            loss.backward()
            norm = self._update(index, rate)
            values = losses.detach().tolist()
            seconds = time.perf_counter() - began
        mean = sum(values) / len(values)
        if not math.isfinite(mean):
            raise UserError(
                f"step {index}: the loss is {mean}; learning_rate={self.settings.learning_rate:g} may be too high, and "
                f"{self.settings.learning_rate / 10:g} may work."
            )
        noise = tuple(sigmas.tolist())
        self._latest = TrainStep(
            index, mean, sum(noise) / len(noise), seconds, rate, norm, tuple(values), noise, _trainer=self
        )
        return self._latest

    def losses(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of each sample of a step, and its noise level; both (B,)."""
        chosen, pipe, device = self.settings, self.models.pipe, self.models.device
        numbers = self._batch(index)
        seed = np.random.SeedSequence((chosen.seed, index, self.rank)).generate_state(1, np.uint64)[0]
        generator = torch.Generator("cpu").manual_seed(int(seed) >> 1)
        clean = torch.stack([self.data.latents[number] for number in numbers])
        shift = chosen.flow_shift if chosen.flow_shift is not None else self.models.defaults["flow_shift"]
        sigmas = draw_sigmas(len(numbers), shift, chosen.high_noise, generator)
        noise = torch.randn(clean.shape, generator=generator)
        dropped = torch.rand(len(numbers), generator=generator) < chosen.caption_dropout
        prompts = [
            self.data.empty if drop else self.data.prompts[number] for number, drop in zip(numbers, dropped.tolist())
        ]
        level = sigmas.view(-1, 1, 1, 1, 1)
        noisy = ((1 - level) * clean + level * noise).to(device)
        dtype = self.transformer.dtype
        guidance = torch.tensor([chosen.guidance_scale], dtype=dtype, device=device) * 1000.0
        timestep = (sigmas * pipe.scheduler.config.num_train_timesteps).to(device, dtype)
        velocity = self.transformer(
            hidden_states=noisy.to(dtype),
            timestep=timestep,
            guidance=guidance.expand(len(numbers)),
            return_dict=False,
            **_joined(prompts, device, dtype),
        )[0]
        target = (noise - clean).to(device)
        return (velocity.float() - target).square().mean((1, 2, 3, 4)), sigmas

    def _batch(self, index: int) -> list[int]:
        """The numbers of this process's samples in a step; all are of one size."""
        sizes: dict[tuple, list[int]] = {}
        for number, sample in enumerate(self.data.samples):
            sizes.setdefault(sample.size, []).append(number)
        share = self.settings.batch_size * self.world
        each = sum(math.ceil(len(numbers) / share) for numbers in sizes.values())
        epoch, place = divmod(index, each)
        random = np.random.default_rng((self.settings.seed, epoch))
        batches = []
        for size in sorted(sizes):
            order = [sizes[size][i] for i in random.permutation(len(sizes[size]))]
            while len(order) % self.world:  # a share for every process: some samples come twice
                order.append(order[len(order) % len(sizes[size])])
            batches += [order[start : start + share] for start in range(0, len(order), share)]
        return batches[random.permutation(len(batches))[place]][self.rank :: self.world]

    @torch.no_grad()
    def _update(self, index: int, rate: float) -> float:
        """Change the weights; returns the gradient's length."""
        for name, weight in self.weights.items():
            gradient: Any = torch.zeros_like(weight) if weight.grad is None else weight.grad
            weight.grad = None
            gradient = reduce(gradient, "mean") if self.world > 1 else gradient
            self.masters[name].grad = gradient.float()
        limit = self.settings.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.masters.values()), limit))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        for name, weight in self.weights.items():
            if self.masters[name] is not weight:
                weight.copy_(self.masters[name])
        kept = min(self.settings.ema, (1 + index) / (10 + index))  # an average over what there is, at first
        for name, mean in self.average.items():
            mean.lerp_(self.masters[name], 1 - kept)
        return norm

    def save(self, path: Path, index: int) -> Path:
        """What has been trained: see `TrainStep.save`."""
        if self.settings.rank:
            values = {name: weight.detach() for name, weight in (self.average or self.masters).items()}
            return write_lora(path, values, self.settings, self.trained_on(index))
        with self.averaged():
            self.models.pipe.save_pretrained(path)
        extra = self.models.folder / "t2v_kit.json"
        if extra.exists():
            shutil.copy(extra, path / "t2v_kit.json")
        (path / "training.json").write_text(json.dumps(self.trained_on(index), indent=2) + "\n", encoding="utf-8")
        return path

    def trained_on(self, index: int) -> dict:
        """A record of the training so far: model, data and settings."""
        captions = list(dict.fromkeys(sample.clip.caption for sample in self.data.samples))
        return {
            "model": self.models.source,
            "weights": self.models.weights_hash,
            "revision": self.models.revision,
            "steps": index + 1,
            "samples": len(self.data.samples),
            "sizes": sorted({sample.size for sample in self.data.samples}),
            "captions": captions[:_CAPTIONS],
            "more_captions": max(0, len(captions) - _CAPTIONS),
            "settings": dataclasses.asdict(self.settings),
        }

    def checkpoint(self, path: Path, index: int) -> Path:
        """See `TrainStep.checkpoint`."""
        tensors = {"weights": self.masters, "average": self.average}
        return write_checkpoint(path, tensors, self.optimizer, {"index": index} | self._identity())

    def _identity(self) -> dict:
        """What a checkpoint must agree in."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "data": self.data.key,
            "weights": self.models.weights_hash,
            "world": self.world,
        }

    @torch.no_grad()
    def resume(self, path: Path) -> int:
        """Take a checkpoint's state; returns the number of the next step."""
        tables, notes = read_checkpoint(path, self.optimizer)
        mine = self._identity()
        for name in ("data", "weights", "world"):
            if notes[name] != mine[name]:
                what = {"data": "other clips or captions", "weights": "another model", "world": "more or fewer GPUs"}
                raise UserError(f"{path}: is of a training with {what[name]}; with those it would work.")
        for name, value in notes["settings"].items():
            if value != mine["settings"][name] and name != "steps":
                raise UserError(f"{name}={mine['settings'][name]!r}: the training has {value!r}, which would work.")
        for name, tensor in tables.get("weights", {}).items():
            self.masters[name].copy_(tensor)
            self.weights[name].copy_(tensor)
        for name, tensor in tables.get("average", {}).items():
            self.average[name].copy_(tensor)
        return notes["index"] + 1


@contextlib.contextmanager
def _all_weights(transformer: Any, _settings: TrainSettings) -> Iterator[dict[str, torch.Tensor]]:
    """Inside, every weight of the transformer asks for a gradient."""
    named = dict(transformer.named_parameters())
    fixed = [name for name, weight in named.items() if not weight.is_floating_point()]
    if fixed:
        raise UserError(f"rank=0: {fixed[0]} is quantised and cannot be trained; rank=16 would work.", setting="rank")
    asked = {name: weight.requires_grad for name, weight in named.items()}
    for weight in named.values():
        weight.requires_grad_(True)
    try:
        yield named
    finally:
        for name, weight in named.items():
            weight.requires_grad_(asked[name])


def _joined(prompts: list, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Prompts as a batch of the transformer's keywords, the shorter ones padded and masked."""
    longest = max(prompt.prompt_embeds.shape[1] for prompt in prompts)
    embeds, masks = [], []
    for prompt in prompts:
        missing = longest - prompt.prompt_embeds.shape[1]
        embeds.append(torch.nn.functional.pad(prompt.prompt_embeds, (0, 0, 0, missing)))
        masks.append(torch.nn.functional.pad(prompt.mask, (0, missing)))
    place = {"device": device, "dtype": dtype}
    return {
        "encoder_hidden_states": torch.cat(embeds).to(**place),
        "encoder_attention_mask": torch.cat(masks).to(**place),
        "pooled_projections": torch.cat([prompt.pooled for prompt in prompts]).to(**place),
    }


def _check_trainable(models: Models, settings: TrainSettings) -> None:
    """Refuse what the loop could not train, before anything is encoded."""
    transformer, plan = models.pipe.transformer, models.memory
    if transformer.is_cache_enabled:
        raise UserError("train: a step cache is on, and skips what should be learnt; disable_cache() first works.")
    if plan is not None and (plan.chunk or plan.compile or plan.transformer.offload != "none"):
        raise UserError(
            "train: the memory plan's chunk, compile or offload of the transformer has no gradients; a plan without "
            "them, and TrainSettings(chunk=2048, activations='offload', streamed_blocks=20), would work."
        )
    waiting = plan.waiting_blocks if plan is not None else 0
    if settings.streamed_blocks < min(waiting, len(blocks(transformer))):
        raise UserError(
            f"streamed_blocks={settings.streamed_blocks}: the memory plan has {waiting} blocks waiting in RAM; "
            f"streamed_blocks={waiting} would work.",
            setting="streamed_blocks",
        )
    if any(isinstance(block.attn.processor, ChunkedAttention) for block in blocks(transformer)):
        raise UserError("train: the blocks work in chunks without gradients; TrainSettings(chunk=2048) would work.")
