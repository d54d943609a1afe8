"""What cannot work, told before anything is loaded, each with its remedy; and what to do when memory runs out.

`RULES` is the table; `as_markdown()` is the same table to read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from packaging.version import Version

from ..errors import UserError
from ..hunyuan.chunks import NO_MASKS
from .estimate import estimate
from .machine import Machine
from .plan import QUANTISATIONS, Plan, Size

STREAMED = ("group", "disk", "sequential")
BITSANDBYTES = ("int8", "nf4")


@dataclass(frozen=True)
class Rule:
    """broken: (plan, machine, context) -> whether it is. what, why and remedy are what the user reads."""

    what: str
    why: str
    remedy: str
    broken: Callable[[Plan, Machine, dict], bool]


def _parts(made: Plan, quantisations=(), offloads=()) -> bool:
    """Does a part have one of these quantisations and one of these offloads?"""
    return any(part.quantisation in quantisations and part.offload in offloads for part in made.parts().values())


def _needs_gpu(made: Plan) -> bool:
    plain = all(part.quantisation == "none" and part.offload == "none" for part in made.parts().values())
    return not plain or made.compile


def _ram_gb(made: Plan, model) -> float:
    """GiB of RAM that a plan with pinned weights needs before the video decides anything; 0 without such weights."""
    if not _parts(made, QUANTISATIONS, ("group",)):
        return 0
    return estimate(made, Size(16, 16, 1), model, stages=("encode", "denoise")).ram_gb
RULES = (
    Rule(
        "quantisation, offload or compilation without a GPU",
        "they move weights between RAM and a GPU; diffusers quantises with bitsandbytes only where there is one",
        "memory=None computes on the CPU; t2v_kit.memory.quantise shows on a CPU what int8 and nf4 do to a model",
        lambda made, machine, _: not machine.vram_gb and _needs_gpu(made),
    ),
    Rule(
        "nf4 with streamed blocks (group, disk) or sequential offload",
        "the quantisation's own tensors stay behind (huggingface/diffusers issue 10800)",
        "offload='model' or 'none' for nf4, or stream without quantisation or with fp8",
        lambda made, *_: _parts(made, ("nf4",), STREAMED),
    ),
    Rule(
        "int8 with streamed blocks (group, disk) or sequential offload",
        "LLM.int8() keeps its scales outside of what is streamed",
        "offload='model' or 'none' for int8, or stream without quantisation or with fp8",
        lambda made, *_: _parts(made, ("int8",), STREAMED),
    ),
    Rule(
        "int8 or nf4 without bitsandbytes",
        "bitsandbytes has their kernels",
        "pip install 'bitsandbytes>=0.48', or quantisation='none'",
        lambda made, machine, _: (
            machine.bitsandbytes is None and _parts(made, BITSANDBYTES, ("none", "model", *STREAMED))
        ),
    ),
    Rule(
        "int8 that is moved, with bitsandbytes before 0.48",
        "it cannot move its 8-bit layers",
        "pip install 'bitsandbytes>=0.48', or offload='none'",
        lambda made, machine, _: _parts(made, ("int8",), ("model",)) and _older(machine.bitsandbytes, "0.48"),
    ),
    Rule(
        "a quantised VAE",
        "its layers are convolutions; it has 0.5 GiB of weights",
        "quantisation='none' for the VAE",
        lambda made, *_: made.vae.quantisation != "none",
    ),
    Rule(
        "a streamed VAE",
        "its blocks are needed again for every tile",
        "offload='model' for the VAE",
        lambda made, *_: made.vae.offload in STREAMED,
    ),
    Rule(
        "fp8 for the text encoder",
        "layerwise casting belongs to diffusers' networks",
        "quantisation='nf4' or 'int8' for the text encoder",
        lambda made, *_: made.text_encoder.quantisation == "fp8",
    ),
    Rule(
        "bfloat16 below compute capability 8",
        "such a GPU (a T4 has 7.5) emulates it, whatever torch.cuda.is_bf16_supported() says",
        "dtype='float16' for this part; look for NaN, which float16 may overflow to",
        lambda made, machine, _: (
            machine.vram_gb > 0
            and machine.capability < (8, 0)
            and any(part.dtype == "bfloat16" for part in made.parts().values())
        ),
    ),
    Rule(
        "an attention backend that takes no mask, and a padded prompt",
        "it would attend to the padding, or raise in the first step",
        "padded_prompt=False (the default), or attention='native'",
        lambda made, _, context: made.attention in NO_MASKS and context.get("padded_prompt", False),
    ),
    Rule(
        "streams without RAM to pin",
        "blocks are streamed from pinned RAM, which has to hold all of the network at once",
        "offload='disk' streams out of the files, and quantisation='fp8' halves what is pinned",
        lambda made, machine, context: _ram_gb(made, context.get("model", "hunyuan")) > machine.ram_gb,
    ),
)


def broken(made: Plan, machine: Machine, **context) -> Iterator[Rule]:
    """The rules that this plan breaks on this machine. context: model, padded_prompt."""
    return (rule for rule in RULES if rule.broken(made, machine, context))


def check(made: Plan, machine: Machine, **context) -> Plan:
    """The plan itself. Raises UserError for the first rule that it breaks."""
    for rule in broken(made, machine, **context):
        where = f"{machine.gpu or f'{machine.vram_gb:g} GB GPU'}" if machine.vram_gb else "no GPU"
        raise UserError(
            f"memory plan {made.name!r} ({where}, {machine.ram_gb:g} GB RAM): {rule.what}: {rule.why}; "
            f"remedy: {rule.remedy}."
        )
    return made


def as_markdown() -> str:
    """The rules as a table."""
    rows = [f"| {rule.what} | {rule.why} | {rule.remedy} |" for rule in RULES]
    return "\n".join(["| what cannot work | why | remedy |", "|---|---|---|", *rows])


def _older(installed: str | None, than: str) -> bool:
    return installed is not None and Version(installed) < Version(than)
