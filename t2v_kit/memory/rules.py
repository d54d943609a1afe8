"""Combinations that cannot work, each with its reason and its remedy: refused before anything is loaded.

`RULES` is the table; `as_markdown()` prints it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from packaging.version import Version

from ..errors import UserError
from ..hunyuan.gguf_files import gguf_of
from .estimate import estimate
from .machine import Machine
from .plan import QUANTISATIONS, Plan, Size

STREAMED = ("group", "disk", "sequential")
BITSANDBYTES = ("int8", "nf4")


@dataclass(frozen=True)
class Rule:
    """One combination that cannot work.

    Attributes:
        what: The combination.
        why: The reason.
        remedy: What works instead.
        broken: Whether a plan on a machine, in a context (see `broken`), is such a combination.
    """

    what: str
    why: str
    remedy: str
    broken: Callable[[Plan, Machine, dict], bool]


def _parts(plan: Plan, quantisations=(), offloads=()) -> bool:
    """Whether a part has one of these quantisations and one of these offloads."""
    return any(part.quantisation in quantisations and part.offload in offloads for part in plan.parts().values())


def _needs_gpu(plan: Plan) -> bool:
    plain = all(part.quantisation == "none" and part.offload == "none" for part in plan.parts().values())
    return not plain or plan.compile


def _ram_gb(plan: Plan, model) -> float:
    """GiB of RAM that a plan with pinned weights needs before the video decides anything; 0 without such weights."""
    if not _parts(plan, QUANTISATIONS, ("group",)):
        return 0
    return estimate(plan, Size(16, 16, 1), model, stages=("encode", "denoise")).ram_gb


RULES = (
    Rule(
        "quantisation, offload or compilation without a GPU",
        "they move weights between RAM and a GPU; diffusers quantises with bitsandbytes only where there is one",
        "memory=None computes on the CPU; t2v_kit.model.quantise shows on a CPU what int8 and nf4 do to a model",
        lambda plan, machine, _: not machine.vram_gb and _needs_gpu(plan),
    ),
    Rule(
        "nf4 with streamed blocks (group, disk) or sequential offload",
        "the quantisation's own tensors stay behind (huggingface/diffusers issue 10800)",
        "offload='model' or 'none' for nf4, or stream without quantisation or with fp8",
        lambda plan, *_: _parts(plan, ("nf4",), STREAMED),
    ),
    Rule(
        "int8 with streamed blocks (group, disk) or sequential offload",
        "LLM.int8() keeps its scales outside of what is streamed",
        "offload='model' or 'none' for int8, or stream without quantisation or with fp8",
        lambda plan, *_: _parts(plan, ("int8",), STREAMED),
    ),
    Rule(
        "a GGUF file that is quantised again, or streamed (group, disk, sequential)",
        "its weights are packed already, as tensors of a kind of their own, which are moved as a whole",
        "quantisation='none' and offload='model' or 'none' for the transformer",
        lambda plan, _, context: (
            gguf_of(context.get("model")) is not None
            and (plan.transformer.quantisation != "none" or plan.transformer.offload in STREAMED)
        ),
    ),
    Rule(
        "waiting_blocks for a transformer that is not in 4 bits, or offloaded as a whole",
        "a training streams them one by one, of a base in 4 bits whose other blocks stay on the GPU",
        "Part('bfloat16', 'nf4') for the transformer, or waiting_blocks=0",
        lambda plan, *_: (
            plan.waiting_blocks > 0 and (plan.transformer.quantisation, plan.transformer.offload) != ("nf4", "none")
        ),
    ),
    Rule(
        "int8 or nf4 without bitsandbytes",
        "bitsandbytes has their kernels",
        "pip install 'bitsandbytes>=0.48', or quantisation='none'",
        lambda plan, machine, _: (
            machine.bitsandbytes is None and _parts(plan, BITSANDBYTES, ("none", "model", *STREAMED))
        ),
    ),
    Rule(
        "int8 that is moved, with bitsandbytes before 0.48",
        "it cannot move its 8-bit layers",
        "pip install 'bitsandbytes>=0.48', or offload='none'",
        lambda plan, machine, _: _parts(plan, ("int8",), ("model",)) and _older(machine.bitsandbytes, "0.48"),
    ),
    Rule(
        "a quantised VAE",
        "its layers are convolutions; it has 0.5 GiB of weights",
        "quantisation='none' for the VAE",
        lambda plan, *_: plan.vae.quantisation != "none",
    ),
    Rule(
        "a streamed VAE",
        "its blocks are needed again for every tile",
        "offload='model' for the VAE",
        lambda plan, *_: plan.vae.offload in STREAMED,
    ),
    Rule(
        "fp8 for the text encoder",
        "layerwise casting belongs to diffusers' networks",
        "quantisation='nf4' or 'int8' for the text encoder",
        lambda plan, *_: plan.text_encoder.quantisation == "fp8",
    ),
    Rule(
        "bfloat16 below compute capability 8",
        "such a GPU (a T4 has 7.5) emulates it, whatever torch.cuda.is_bf16_supported() says",
        "dtype='float16' for this part; look for NaN, which float16 may overflow to",
        lambda plan, machine, _: (
            machine.vram_gb > 0
            and machine.capability < (8, 0)
            and any(part.dtype == "bfloat16" for part in plan.parts().values())
        ),
    ),
    Rule(
        "streams without RAM to pin",
        "blocks are streamed from pinned RAM, which has to hold all of the network at once",
        "offload='disk' streams out of the files, and quantisation='fp8' halves what is pinned",
        lambda plan, machine, context: _ram_gb(plan, context.get("model", "hunyuan")) > machine.ram_gb,
    ),
)


def broken(plan: Plan, machine: Machine, **context) -> Iterator[Rule]:
    """Yield the rules that a plan breaks on a machine.

    Args:
        plan: The plan.
        machine: The machine.
        context: What else is known: model (as `load` takes it) and padded_prompt (bool).
    """
    return (rule for rule in RULES if rule.broken(plan, machine, context))


def check(plan: Plan, machine: Machine, **context) -> Plan:
    """Return the plan if it breaks no rule on this machine.

    Args:
        plan: The plan.
        machine: The machine.
        context: As in `broken`.

    Raises:
        UserError: It breaks a rule; the message has the reason and the remedy.
    """
    for rule in broken(plan, machine, **context):
        where = f"{machine.gpu or f'{machine.vram_gb:g} GB GPU'}" if machine.vram_gb else "no GPU"
        raise UserError(
            f"memory plan {plan.name!r} ({where}, {machine.ram_gb:g} GB RAM): {rule.what}: {rule.why}; "
            f"remedy: {rule.remedy}."
        )
    return plan


def as_markdown() -> str:
    """Return the rules as a Markdown table."""
    rows = [f"| {rule.what} | {rule.why} | {rule.remedy} |" for rule in RULES]
    return "\n".join(["| what cannot work | why | remedy |", "|---|---|---|", *rows])


def _older(installed: str | None, than: str) -> bool:
    return installed is not None and Version(installed) < Version(than)
