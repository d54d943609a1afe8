"""Choose the memory plan for a machine and a video: the fastest that fits, and a cheaper one when memory runs out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from ..errors import UserError
from ..hunyuan.gguf_files import gguf_of
from .drivers import NOTHING_TO_PLAN
from .estimate import estimate
from .machine import Machine, machine_with
from .plan import CHUNKS, TILES, UNTILED, Part, Plan, Size, _from_dict, gigabytes
from .rules import broken


def plan(
    vram_gb: float | None = None,
    ram_gb: float | None = None,
    height: int = 720,
    width: int = 1280,
    num_frames: int = 129,
    model: Any = "hunyuan",
    lossless: bool = False,
    machine: Machine | None = None,
) -> Plan:
    """Return the fastest memory plan that fits, as `estimate` predicts it. Needs no GPU and no weights.

    Args:
        vram_gb: GiB of the card; None is what this machine has.
        ram_gb: GiB of RAM; None is what this machine has.
        height: Of the video, in pixels.
        width: Of the video, in pixels.
        num_frames: Of the video.
        model: What `load` takes, or loaded Models; 'hunyuan' is known without its files.
        lossless: Only plans that do not quantise: they change the result by rounding alone.
        machine: A machine, in place of `vram_gb` and `ram_gb`.

    Returns:
        The plan; for a machine without a GPU, the one that computes in float32 on the CPU.

    Raises:
        UserError: No plan fits; the message names a number of frames that would.

    Example:
        >>> plan(vram_gb=24, ram_gb=64, height=320, width=512, num_frames=61).chunk
    """
    machine = machine or machine_with(vram_gb, ram_gb)
    size = Size(height, width, num_frames)
    if not machine.vram_gb:
        part = Part("float32")
        return Plan("CPU", part, part, part)
    for fastest in fitting(machine, size, model, lossless):
        return fastest
    shorter = (Size(height, width, n) for n in (61, 17) if n < num_frames)
    fewer = next((less.num_frames for less in shorter if any(fitting(machine, less, model, lossless))), 0)
    hint = f"num_frames={fewer} would work." if fewer else "a smaller height and width may work."
    raise UserError(
        f"{height}x{width}x{num_frames} (height x width x frames): no plan fits {machine.vram_gb:g} GB of GPU memory "
        f"and {machine.ram_gb:g} GB of RAM; {hint}"
    )


def fitting(machine: Machine, size: Size, model="hunyuan", lossless: bool = False) -> Iterator[Plan]:
    """Yield the plans that fit, from the fastest to the one with the least memory, each with the largest chunks and
    tiles that fit. The arguments are those of `plan`."""

    for base in ladder(machine.capability >= (8, 0), packed=gguf_of(model) is not None):
        quantised = any(part.quantisation != "none" for part in base.parts().values())
        if (lossless and quantised) or next(broken(base, machine, model=model), None):
            continue
        for change, choices, stage in (("chunk", CHUNKS, "denoise"), ("tile", TILES, "decode")):
            for choice in choices:
                if choice is None and change == "tile" and size.height * size.width > UNTILED:
                    continue
                base = dataclasses.replace(base, **{change: choice})
                if estimate(base, size, model, stages=(stage,)).fits(machine):
                    break
        if estimate(base, size, model).fits(machine):
            yield base


def ladder(bfloat16: bool = True, packed: bool = False) -> list[Plan]:
    """Return the kinds of plan, from the fastest to the one with the least memory, without chunks and tiles.

    Args:
        bfloat16: Whether the card computes in it; otherwise the transformer is in float16.
        packed: Whether the transformer is a GGUF file, which is neither quantised again nor streamed.
    """
    dtype = "bfloat16" if bfloat16 else "float16"

    def kind(name, text, transformer, vae="none", quantisation=("none", "none"), **more: Any) -> Plan:
        texts = Part("float16", quantisation[0], text)
        return Plan(name, texts, Part(dtype, quantisation[1], transformer), Part("float16", "none", vae), **more)

    whole = [
        kind("resident", "none", "none"),
        kind("one at a time", "model", "model", "model"),
        kind("one stage at a time", "none", "none", one_stage=True),
    ]
    if packed:
        return [
            *whole,
            kind("one at a time, text encoder streamed", "disk", "model", "model"),
            kind("one stage at a time, text encoder streamed", "disk", "none", one_stage=True),
            kind(
                "one stage at a time, text encoder in 4 bits",
                "none",
                "none",
                quantisation=("nf4", "none"),
                one_stage=True,
            ),
        ]
    return [
        *whole,
        kind("streamed", "disk", "group", "model"),
        kind("streamed, one stage at a time", "disk", "group", one_stage=True),
        kind("streamed in 8 bits", "disk", "group", quantisation=("none", "fp8"), one_stage=True),
        kind("4-bit", "none", "none", quantisation=("nf4", "nf4"), one_stage=True),
        kind("streamed from disk", "disk", "disk", one_stage=True),
    ]


def cheaper(plan: Plan, size: Size, model="hunyuan") -> Plan | None:
    """Return the first plan of the ladder that needs at least 5 % less GPU memory than `plan`; None without one.

    Args:
        plan: The plan for which memory did not suffice.
        size: Of the video.
        model: What `load` takes, or loaded Models.
    """

    now = estimate(plan, size, model).vram_gb
    for base in ladder(plan.transformer.dtype != "float16", packed=gguf_of(model) is not None):
        for change in ({"chunk": plan.chunk, "tile": plan.tile}, *({"chunk": 8192, "tile": t} for t in TILES[3:])):
            other = dataclasses.replace(base, **change)
            if estimate(other, size, model).vram_gb < 0.95 * now:
                return other
    return None


def as_plan(memory, model: Any = "hunyuan", machine: Machine | None = None, **size) -> Plan:
    """Return what `load(memory=...)` takes as a Plan.

    Args:
        memory: A Plan, its dict, 'auto' for the best plan of the machine, or GB of GPU memory, as 12, '12' or '12GB'.
        model: What `load` takes, or loaded Models.
        machine: Instead of this machine.
        size: height, width and num_frames of the video, for `plan`.

    Raises:
        UserError: It is none of these, or there is no GPU whose memory could be planned.
    """
    if isinstance(memory, Plan):
        return memory
    if isinstance(memory, dict):
        return _from_dict(Plan, memory, "memory plan")
    machine = machine or Machine.here()
    vram = gigabytes(memory)
    if vram is None:
        return plan(machine=machine, model=model, **size)
    if not machine.vram_gb:
        raise UserError(f"memory={memory!r}: {NOTHING_TO_PLAN}")
    return plan(machine=dataclasses.replace(machine, vram_gb=min(vram, machine.vram_gb)), model=model, **size)


class OutOfMemory(UserError):
    """GPU memory ran out. The message names the stage, the plan, the next cheaper plan, and the files that are kept."""


def out_of_memory(plan: Plan, stage: str, size: Size | None, model, error: Exception) -> OutOfMemory:
    """Make the error to raise in the place of PyTorch's.

    Args:
        plan: The plan under which it happened.
        stage: 'encode', 'denoise' or 'decode'.
        size: Of the video; None where it is not known.
        model: What `load` takes.
        error: PyTorch's own, whose numbers are quoted.
    """
    other = cheaper(plan, size or Size(), model)
    hint = (
        f"the next cheaper plan is {other.name!r} (memory={other.as_dict()})" if other else "this is the cheapest plan"
    )
    numbers = " ".join(str(error).split()).split(". ")[1:3]
    return OutOfMemory(
        f"{stage}: out of GPU memory with plan {plan.name!r} ({'. '.join(numbers)}); {hint}, and fewer frames or a "
        "smaller picture need less. Files of finished stages (prompt.safetensors, latents.safetensors) are kept."
    )
