"""Predict the GPU memory that a LoRA's training takes, and choose the levers that fit. Needs no GPU and no weights.

The transformer, cut to two blocks of each kind, runs forward and back on PyTorch's meta device with the very levers of
the training, while every living tensor is added up, as `memory.footprint` does for sampling.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch.overrides import TorchFunctionMode

from ..errors import UserError
from ..hunyuan.files import HUNYUAN_DEFAULTS, locate, read_json
from ..hunyuan.masks import blocks, mask_assumed, skip_full_masks
from ..memory.estimate import GIB, WORDS, coefficients
from ..memory.footprint import LiveBytes
from ..memory.plan import QUANTISATIONS, Size
from ..memory.weights import Configs, Weights, parameters, weights
from .clips import ClipFolder
from .levers import less_memory
from .lora import lora, target_layers
from .options import TrainSettings

#: Chunks that `fastest_levers` tries, the quickest first: each chunk's work is done once more on the way back.
CHUNKS = (0, 8192, 4096, 2048)
#: The share of a prediction that stays free: gaps between the allocator's pieces took 3 to 6 % in lora_training.json.
SPARE = 0.06


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
    """

    size: Size
    settings: TrainSettings
    weights_gb: float
    lora_gb: float
    work_gb: float
    vram_gb: float
    loading_gb: float

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
        return f"training at {size}: {self.vram_gb:.1f} GiB ({parts})"


def estimate_training(
    settings: TrainSettings, size: Size | None = None, model="hunyuan", quantisation: str = "nf4"
) -> TrainEstimate:
    """Predict the peak of GPU memory of a LoRA's training.

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
    size = size or Size(settings.height or 320, settings.width or 512, settings.num_frames or 33)
    configs = Configs.of(model)
    own = weights(configs, "transformer", 2, QUANTISATIONS[quantisation][0])
    lying = _weights_there(own, settings.streamed_blocks, QUANTISATIONS[quantisation][0])
    lying += own.largest if quantisation != "none" else 0
    config, vae = dict(configs.transformer), dict(configs.vae)
    space = vae["spatial_compression_ratio"] * config["patch_size"]
    frames = (size.num_frames - 1) // vae["temporal_compression_ratio"] + 1
    tokens = frames * (size.height // space) * (size.width // space)
    work = settings.batch_size * _work(configs.transformer, tokens, settings)
    adapter = _adapter_bytes(configs.transformer, settings)
    there, lora_gb, work_gb = lying / GIB, adapter / GIB, work / GIB
    return TrainEstimate(size, settings, there, lora_gb, work_gb, there + lora_gb + work_gb, there)


def fastest_levers(
    settings: TrainSettings, size: Size, vram_gb: float, model="hunyuan"
) -> tuple[TrainSettings, TrainEstimate]:
    """Set activations, offloaded_blocks, chunk and streamed_blocks to the quickest that fit a card.

    What only moves bytes comes before what computes more, since copies go on beside the computation: first as few
    blocks as needed have their inputs in RAM, then as few as needed their weights, and only then is the work done in
    chunks.

    Args:
        settings: Of the training; its levers are replaced.
        size: Of the largest sample.
        vram_gb: Of the card, in GiB. The base is in 4 bits.
        model: What `load` takes.

    Returns:
        The settings, and what they need.

    Raises:
        UserError: Nothing fits.

    Example:
        >>> fastest_levers(TrainSettings(), Size(320, 512, 33), 24)[0].activations
        'recompute'
    """
    kept = _with(settings, activations="keep")
    if (needed := estimate_training(kept, size, model)).fits(vram_gb):
        return kept, needed
    config = dict(Configs.of(model).transformer)
    count = config["num_layers"] + config["num_single_layers"]
    for chunk in CHUNKS:
        tried = _fewest(settings, chunk, count, lambda each: estimate_training(each, size, model).fits(vram_gb))
        if tried is not None:
            return tried, estimate_training(tried, size, model)
    needed = estimate_training(_moving(settings, CHUNKS[-1], 2 * count, count), size, model)
    raise UserError(
        f"memory={vram_gb:g}: is not enough: samples of {size.height}x{size.width}x{size.num_frames} need at least "
        f"{needed.vram_gb:.1f} GiB, and CUDA {coefficients()['vram']['context_gib']:.1f} beside; "
        f"memory={math.ceil(needed.card_gb)} would work.",
        setting="memory",
    )


def _with(settings: TrainSettings, **levers: Any) -> TrainSettings:
    """The settings with these levers and no others."""
    none = {"activations": "recompute", "offloaded_blocks": None, "chunk": 0, "streamed_blocks": 0}
    return dataclasses.replace(settings, **(none | levers))


def _moving(settings: TrainSettings, chunk: int, moved: int, count: int) -> TrainSettings:
    """The settings with so many things in RAM: the inputs of the first blocks, then the weights of the last."""
    offloaded, streamed = min(moved, count), max(0, moved - count)
    if moved == 0:
        return _with(settings, chunk=chunk)
    return _with(settings, activations="offload", offloaded_blocks=offloaded, chunk=chunk, streamed_blocks=streamed)


def _fewest(
    settings: TrainSettings, chunk: int, count: int, fits: Callable[[TrainSettings], bool]
) -> TrainSettings | None:
    """The settings with the fewest things in RAM that fit; None where all are too many."""
    low, high = 0, 2 * count
    if not fits(_moving(settings, chunk, high, count)):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(_moving(settings, chunk, middle, count)) else (middle + 1, high)
    return _moving(settings, chunk, high, count)


def choose_levers(
    settings: TrainSettings, vram_gb: float, data: ClipFolder, model="hunyuan"
) -> tuple[TrainSettings, TrainEstimate]:
    """`fastest_levers` for the largest sample of a folder.

    Args:
        settings: Of the training; its levers are replaced.
        vram_gb: Of the card, in GiB.
        data: What is trained on.
        model: What `load` takes.

    Returns:
        The settings, and what they need.

    Raises:
        UserError: Nothing fits.
    """
    folder = None if model == "hunyuan" else locate(model).folder
    extra = read_json(folder / "t2v_kit.json") if folder and (folder / "t2v_kit.json").exists() else {}
    samples = data.samples(settings, HUNYUAN_DEFAULTS | extra.get("defaults", {}))
    largest = max(samples, key=lambda sample: sample.num_frames * sample.height * sample.width)
    return fastest_levers(settings, Size(largest.height, largest.width, largest.num_frames), vram_gb, model)


def _weights_there(own: Weights, streamed: int, linear: float | None) -> int:
    """Bytes of weights on the GPU with the last blocks streamed: of these, two are there."""
    blocks = [block for stack in own.stacks for block in stack]
    waiting = blocks[len(blocks) - min(streamed, len(blocks)) :]
    # The scales of 4 bits, which are no parameters, stay on the GPU.
    moved = 1.0 if linear is None or linear >= 1 else 0.5 / linear
    return own.total - int(moved * (sum(waiting) - sum(sorted(waiting)[-2:])))


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
    offloaded = count if settings.offloaded_blocks is None else min(settings.offloaded_blocks, count)
    left = {"recompute": count, "offload": max(count - offloaded, 2), "fp8": count / 2}[settings.activations]
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
