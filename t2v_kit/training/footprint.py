"""Predict the GPU memory and RAM that a LoRA's training takes. Needs no GPU and no weights.

The transformer, cut to two blocks of each kind, runs forward and back on PyTorch's meta device with the very levers of
the training, while every living tensor is added up, as `memory.footprint` does for sampling.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch.overrides import TorchFunctionMode

from ..errors import UserError
from ..hunyuan.masks import blocks, mask_assumed, skip_full_masks
from ..memory.estimate import GIB, WORDS, coefficients
from ..memory.footprint import LiveBytes
from ..memory.plan import QUANTISATIONS, Size
from ..memory.weights import Configs, parameters, weights
from .levers import less_memory
from .lora import lora, target_layers
from .options import TrainSettings

#: The share of a prediction that stays free: gaps between the allocator's pieces took 1 to 6 % in lora_training.json,
#: and what CUDA takes varies.
SPARE = 0.08


@dataclass(frozen=True)
class TrainEstimate:
    """What a training of a LoRA needs on the GPU. `print` shows it. GB are GiB.

    Attributes:
        size: Of a sample.
        settings: Of the training.
        weights_gb: The transformer's weights, as far as they lie there.
        lora_gb: The LoRA with its float32 copy, gradients, optimiser and moving average.
        work_gb: What the blocks leave and need at work.
        vram_gb: The peak of the steps, by PyTorch's allocator.
        loading_gb: The peak before them, when `load` has put the base there, but for the blocks that are streamed.
        ram_gb: What waits in RAM during the steps, with the process itself. PyTorch pins powers of two; while copies
            are not over it can be half as much again.
    """

    size: Size
    settings: TrainSettings
    weights_gb: float
    lora_gb: float
    work_gb: float
    vram_gb: float
    loading_gb: float
    ram_gb: float

    def fits(self, vram_gb: float) -> bool:
        """Whether loading and steps fit a card of so many GiB, less what CUDA's context and the allocator take."""
        return self.card_gb <= vram_gb

    @property
    def card_gb(self) -> float:
        """GiB of the smallest card that it fits."""
        return (1 + SPARE) * max(self.vram_gb, self.loading_gb) + coefficients()["vram"]["context_gib"]

    def __str__(self) -> str:
        size = f"{self.size.height}x{self.size.width}x{self.size.num_frames}"
        parts = f"weights {self.weights_gb:.1f}, LoRA {self.lora_gb:.1f}, work {self.work_gb:.1f}"
        return f"training at {size}: {self.vram_gb:.1f} GiB ({parts}), RAM {self.ram_gb:.1f} GiB"


def estimate_training(
    settings: TrainSettings, size: Size | None = None, model="hunyuan", quantisation: str = "nf4"
) -> TrainEstimate:
    """Predict the peak of GPU memory of a LoRA's training, and what waits in RAM.

    Args:
        settings: Of the training; height, width and num_frames are those of a sample, unless `size` is given.
        size: Of a sample; what is left open is 320x512x33 frames.
        model: What `load` takes, or loaded Models.
        quantisation: Of the base, a key of `memory.plan.QUANTISATIONS`; the rest is bfloat16.

    Raises:
        UserError: All weights are trained (rank=0), or the model or quantisation is unknown.

    Example:
        >>> settings = TrainSettings(activations="offload", chunk=4096, optimizer="adamw8bit")
        >>> 8 < estimate_training(settings, Size(320, 512, 61)).vram_gb < 9
        True
    """
    if settings.rank == 0:
        raise UserError("rank=0: only a LoRA's training is predicted; rank=16 would work.", setting="rank")
    if quantisation not in QUANTISATIONS:
        raise UserError(f"quantisation={quantisation!r}: must be one of {', '.join(QUANTISATIONS)}; 'nf4' would work.")
    size = size or sample_size(settings)
    configs = Configs.of(model)
    own = weights(configs, "transformer", 2, QUANTISATIONS[quantisation][0])
    lying = own.without_last(settings.streamed_blocks, QUANTISATIONS[quantisation][0])
    lying += own.largest if quantisation != "none" else 0
    config, vae = dict(configs.transformer), dict(configs.vae)
    space = vae["spatial_compression_ratio"] * config["patch_size"]
    frames = (size.num_frames - 1) // vae["temporal_compression_ratio"] + 1
    tokens = frames * (size.height // space) * (size.width // space)
    work = settings.batch_size * _work(configs.transformer, tokens, settings)
    adapter = _adapter_bytes(configs.transformer, settings)
    there, lora_gb, work_gb = lying / GIB, adapter / GIB, work / GIB
    waiting = own.waiting(settings.streamed_blocks, QUANTISATIONS[quantisation][0])
    waiting += settings.batch_size * _inputs_in_ram(config, tokens, settings)
    ram_gb = waiting / GIB + coefficients()["ram"]["process_gib"]
    return TrainEstimate(size, settings, there, lora_gb, work_gb, there + lora_gb + work_gb, there, ram_gb)


def sample_size(settings: TrainSettings) -> Size:
    """The size of a sample; what the settings leave open is 320x512x33 frames."""
    return Size(settings.height or 320, settings.width or 512, settings.num_frames or 33)


@functools.lru_cache(32)
def _adapter_sides(config: tuple, targets: str) -> int:
    """Inputs and outputs of all layers that get a LoRA, added up: numbers of one of rank 1."""
    model = parameters(lambda: HunyuanVideoTransformer3DModel(**dict(config)), torch.bfloat16)
    layers: list[Any] = [model.get_submodule(name) for name in target_layers(model, TrainSettings(targets=targets))]
    return sum(layer.in_features + layer.out_features for layer in layers)


def _adapter_bytes(config: tuple, settings: TrainSettings) -> int:
    """Bytes of the LoRA on the way back: bfloat16 with gradients, a float32 copy, the optimiser's state, the average.

    The copy's own gradients come later, when nothing of the blocks is left.
    """
    numbers = settings.rank * _adapter_sides(config, settings.targets)
    state = 8 if settings.optimizer == "adamw" else 2
    return numbers * (2 + 2 + 4 + state + (4 if settings.ema else 0))


def _inputs_in_ram(config: dict[str, Any], tokens: int, settings: TrainSettings) -> int:
    """Bytes of the block inputs that `offload` takes to pinned RAM, each a power of two."""
    if settings.activations != "offload":
        return 0
    width = config["num_attention_heads"] * config["attention_head_dim"]
    each = sum(2 ** math.ceil(math.log2(2 * count * width)) for count in (tokens, WORDS))
    return each * _offloaded(config, settings)


def _offloaded(config: dict[str, Any], settings: TrainSettings) -> int:
    """How many blocks have their inputs in RAM."""
    count = config["num_layers"] + config["num_single_layers"]
    return count if settings.offloaded_blocks is None else min(settings.offloaded_blocks, count)


def _work(config: tuple, tokens: int, settings: TrainSettings) -> float:
    """Peak bytes of a step on top of all weights; once there are many tokens, a further one costs the same."""
    few = 16 * settings.chunk if settings.chunk else 2**12
    if tokens <= few:
        return _work_count(config, tokens, settings)
    many = few + 4 * (settings.chunk or 2**10)
    low, high = (_work_count(config, count, settings) for count in (few, many))
    return low + (high - low) * (tokens - few) / (many - few)


def _work_count(config: tuple, tokens: int, settings: TrainSettings) -> float:
    """The same, by running a block or two of each kind, and counting what the other blocks leave."""
    known = dict(config)
    count = known["num_layers"] + known["num_single_layers"]
    how = "keep" if settings.activations == "keep" else "recompute"
    levers = TrainSettings(rank=settings.rank, targets=settings.targets, activations=how, chunk=settings.chunk)
    one = _peak(config, 1, tokens, levers)
    if how == "keep":
        return one + (_peak(config, 2, tokens, levers) - one) / 2 * (count - 2)
    # The two blocks of the count left their inputs; those of `offload` come back two at a time, and `fp8` has half of
    # each.
    left = {"recompute": count, "offload": max(count - _offloaded(known, settings), 2), "fp8": count / 2}[
        settings.activations
    ]
    left += 2 if settings.streamed_blocks else 0  # the gradients between two blocks, which are ways back of their own
    return one + (left - 2) * 2 * (tokens + WORDS) * known["num_attention_heads"] * known["attention_head_dim"]


@functools.lru_cache(256)
def _peak(config: tuple, each: int, tokens: int, levers: TrainSettings) -> int:
    """Peak bytes of a forward and a backward pass of `each` blocks of each kind, on top of the weights."""
    short: dict[str, Any] = dict(config) | {"num_layers": each, "num_single_layers": each}
    model = parameters(lambda: HunyuanVideoTransformer3DModel(**short), torch.bfloat16)
    skip_full_masks(model)
    patch, dtype = short["patch_size"], torch.bfloat16
    frames = tokens * short["patch_size_t"]
    with torch.device("meta"), lora(model, levers), less_memory(model, levers):
        attentions: list[Any] = [block.attn for block in blocks(model)]
        processors = [attention.processor for attention in attentions]
        for attention, processor in zip(attentions, processors):
            attention.set_processor(_Counted(processor))
        with mask_assumed(full=True), LiveBytes(model) as live:
            velocity = model(
                hidden_states=torch.empty(1, short["in_channels"], frames, patch, patch, dtype=dtype),
                timestep=torch.empty(1, dtype=dtype),
                encoder_hidden_states=torch.empty(1, WORDS, short["text_embed_dim"], dtype=dtype),
                encoder_attention_mask=torch.empty(1, WORDS, dtype=dtype),
                pooled_projections=torch.empty(1, short["pooled_projection_dim"], dtype=dtype),
                guidance=torch.empty(1, dtype=dtype),
                return_dict=False,
            )[0]
            velocity.float().square().mean().backward()
        for attention, processor in zip(attentions, processors):
            attention.set_processor(processor)
    return live.peak


class _Counted:
    """An attention processor inside which attention takes a fused kernel's memory, also when it is computed again."""

    _parallel_config = _attention_backend = None

    def __init__(self, plain: Any) -> None:
        self.plain = plain

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, image_rotary_emb=None):
        with _FusedAttention():
            return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)


class _Attention(torch.autograd.Function):
    """Memory of a fused attention: its inputs and its result are kept, and as many gradients come back."""

    @staticmethod
    def forward(ctx, query, key, value):
        result = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, result)
        return result

    @staticmethod
    def backward(ctx, *gradients):
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class _FusedAttention(TorchFunctionMode):
    """Attention as a fused kernel does it; the meta device would make a matrix of all pairs."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args)) | (kwargs or {})
            return _Attention.apply(given["query"], given["key"], given["value"])
        return function(*args, **(kwargs or {}))
