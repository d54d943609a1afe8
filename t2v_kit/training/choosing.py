"""Choose the levers of a training, and the memory plan of its base, for a card: the quickest that fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from ..errors import UserError
from ..hunyuan.files import HUNYUAN_DEFAULTS, locate, read_json
from ..memory.estimate import coefficients, estimate
from ..memory.machine import machine_with
from ..memory.plan import TILES, UNTILED, Part, Plan, Size
from ..memory.weights import Configs
from .clips import ClipFolder
from .footprint import TrainEstimate, estimate_training, sample_size
from .options import TrainSettings

#: Chunks that `fastest_levers` tries, the quickest first: each chunk's work is done once more on the way back.
CHUNKS = (0, 8192, 4096, 2048)


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
    settings: TrainSettings, vram_gb: float, data: ClipFolder, model="hunyuan", ram_gb: float | None = None
) -> tuple[TrainSettings, TrainEstimate]:
    """`fastest_levers` for the largest sample of a folder.

    Args:
        settings: Of the training; its levers are replaced.
        vram_gb: Of the card, in GiB.
        data: What is trained on.
        model: What `load` takes.
        ram_gb: GiB of RAM; None is what this machine has.

    Returns:
        The settings, and what they need.

    Raises:
        UserError: Nothing fits, or what waits in RAM has no room there.
    """
    folder = None if model == "hunyuan" else locate(model).folder
    extra = read_json(folder / "t2v_kit.json") if folder and (folder / "t2v_kit.json").exists() else {}
    samples = data.samples(settings, HUNYUAN_DEFAULTS | extra.get("defaults", {}))
    largest = max(samples, key=lambda sample: sample.num_frames * sample.height * sample.width)
    size = Size(largest.height, largest.width, largest.num_frames)
    chosen, needed = fastest_levers(settings, size, vram_gb, model)
    room = machine_with(vram_gb, ram_gb).ram_gb
    if needed.ram_gb > room:
        without = estimate_training(_with(settings), size, model)
        raise UserError(
            f"memory={vram_gb:g}: {needed.ram_gb:.1f} GiB would wait in RAM, of which there are {room:g}; "
            f"memory={math.ceil(without.card_gb)}, where nothing waits there, or shorter samples would work.",
            setting="memory",
        )
    return chosen, needed


def training_plan(
    settings: TrainSettings, size: Size | None = None, vram_gb: float | None = None, model="hunyuan"
) -> Plan:
    """Return the memory plan to load the base of a LoRA's training with: in 4 bits, one stage in memory at a time.

    The blocks that the settings stream wait in RAM as soon as they are read. Text encoder and VAE, which read the data
    before the training, are streamed and tiled where they do not fit.

    Args:
        settings: Of the training, whose streamed_blocks count.
        size: Of the largest sample; by default that of the settings.
        vram_gb: Of the card, in GiB; None has room for every network.
        model: What `load` takes.

    Example:
        >>> training_plan(TrainSettings(streamed_blocks=30), vram_gb=8).waiting_blocks
        30
    """
    transformer = Part("bfloat16", "nf4")
    plan = Plan("nf4, to train", transformer=transformer, one_stage=True, waiting_blocks=settings.streamed_blocks)
    if vram_gb is None:
        return plan
    size, room = size or sample_size(settings), vram_gb - coefficients()["vram"]["context_gib"]
    for offload in ("none", "disk"):
        plan = dataclasses.replace(plan, text_encoder=Part("float16", offload=offload))
        if estimate(plan, size, model, stages=("encode",)).vram_gb <= room:
            break
    for tile in TILES:  # the VAE's encoder has a layer less in each block than its decoder, which is predicted
        plan = dataclasses.replace(plan, tile=tile)
        untiled = tile is None and size.height * size.width > UNTILED
        if not untiled and estimate(plan, size, model, stages=("decode",)).vram_gb <= room:
            break
    return plan
