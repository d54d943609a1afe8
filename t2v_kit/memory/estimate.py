"""Predict what a memory plan needs, stage by stage, before anything is downloaded: GPU memory, RAM, disk, seconds.

Counted from the configurations (`footprint`), then fitted to measurements by a handful of coefficients in
`coefficients.json`, where each has its source; `python -m benchmarks.fit` fits them again.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from ..hunyuan.gguf_files import PLAIN
from ..hunyuan.tokens import IMAGE_EMBED_INTERLEAVE
from ..settings import Settings
from .footprint import (
    attention_flops,
    decoding_cost,
    denoising_bytes,
    linear_flops,
    picture_tokens,
    reading_bytes,
    unpacking_bytes,
)
from .machine import Machine
from .plan import DTYPES, QUANTISATIONS, Part, Plan, Size
from .weights import VISION_KEY, Configs, Weights, weights

GIB = 2**30
#: The stages that need a plan, with their networks, and their numbers among the five of a run.
STAGES = {"encode": ("text_encoder", "text_encoder_2"), "denoise": ("transformer",), "decode": ("vae",)}
NUMBERED = {"encode": "1 encode", "denoise": "3 denoise", "decode": "4 decode"}
WORDS = 40  # tokens of a prompt without its padding

# Dense 16-bit tensor-core TFLOP/s, summed in float32, from NVIDIA's data sheets and architecture white papers.
TFLOPS = {
    "NVIDIA H200": 989,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA GeForce RTX 4090": 165,
    "NVIDIA L4": 121,
    "NVIDIA GeForce RTX 3090": 71,
    "Tesla T4": 65,
}


@functools.cache
def coefficients() -> dict:
    """Return the contents of coefficients.json: what was measured and fitted."""
    return json.loads((Path(__file__).parent / "coefficients.json").read_text("utf-8"))


@dataclass(frozen=True)
class Estimate:
    """What a plan needs for a video. `print` shows it as a table. GB are GiB.

    Attributes:
        plan: The plan.
        size: Of the video.
        rows: A dict for each stage: stage, vram_gb (peak of PyTorch's allocator), ram_gb (peak of the process,
            without the files that the system maps), disk_gb (files read), seconds (None where nothing was measured);
            and the parts of these: weights_gb and work_gb on the GPU, pflop (by kind; 1e15 operations of one step).
        seconds_are: Where the seconds come from.
    """

    plan: Plan
    size: Size
    rows: list[dict] = field(repr=False)
    seconds_are: str = ""

    @property
    def vram_gb(self) -> float:
        """The highest peak of GPU memory of all stages."""
        return max(row["vram_gb"] for row in self.rows)

    @property
    def ram_gb(self) -> float:
        """The highest peak of RAM of all stages."""
        return max(row["ram_gb"] for row in self.rows)

    @property
    def disk_gb(self) -> float:
        """What all stages read from disk."""
        return sum(row["disk_gb"] for row in self.rows)

    def fits(self, machine: Machine) -> bool:
        """Return whether it fits the card, less what CUDA's context takes there, and the RAM."""
        available = machine.vram_gb - coefficients()["vram"]["context_gib"]
        return self.vram_gb <= available and self.ram_gb <= machine.ram_gb

    def __str__(self) -> str:
        size = f"{self.size.height}x{self.size.width}x{self.size.num_frames}"
        lines = [f"{self.plan.name}, {size}", "stage       GPU GiB   RAM GiB  read GiB   seconds"]
        for row in self.rows:
            seconds = "   unknown" if row["seconds"] is None else f"{row['seconds']:10.1f}"
            lines.append(
                f"{NUMBERED[row['stage']]:9} {row['vram_gb']:9.1f} {row['ram_gb']:9.1f} {row['disk_gb']:9.1f}{seconds}"
            )
        return "\n".join([*lines, f"seconds: {self.seconds_are}"])

    def picture(self, vram_gb: float, ram_gb: float | None = None) -> np.ndarray:
        """Draw the stages as bars, with the limits as lines.

        Args:
            vram_gb: The card's memory in GiB.
            ram_gb: The RAM in GiB; None draws no line.

        Returns:
            `(H, W, 3)` uint8.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 2.6), dpi=80, layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        sides = (("vram_gb", "GPU memory", vram_gb), ("ram_gb", "RAM", ram_gb))
        for ax, (key, title, limit) in zip(axes, sides):
            needs = [row[key] for row in self.rows]
            colours = ["#c0392b" if limit is not None and need > limit else "#2e86ab" for need in needs]
            ax.barh([NUMBERED[row["stage"]] for row in self.rows], needs, color=colours)
            if limit is not None:
                ax.axvline(limit, color="#222222", linestyle="--")
                title += f" (dashed: the limit, {limit:g} GB)"  # in the title: a legend would cover bars and the line
            ax.set_xlim(0, 1.15 * max([*needs, limit or 0]))
            ax.set(title=title, xlabel="GiB")
        axes[0].invert_yaxis()
        figure.suptitle(f"{self.plan.name}: {self.size.height}x{self.size.width}x{self.size.num_frames}")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def estimate(
    plan: Plan,
    settings: Size | Settings | None = None,
    model="hunyuan",
    gpu: str = "NVIDIA H200",
    step_seconds: float | None = None,
    stages: Sequence[str] = tuple(STAGES),
) -> Estimate:
    """Predict what a plan needs for a video, stage by stage. Needs no GPU and no weights.

    Args:
        plan: The plan.
        settings: Size, or Settings with height, width and num_frames; None is HunyuanVideo's 720x1280x129.
        model: What `load` takes, or loaded Models.
        gpu: A key of `TFLOPS`: the seconds measured on an H200 are scaled by the data sheets.
        step_seconds: A measured step of this very plan and size, in place of the scaled seconds.
        stages: Only these, of 'encode', 'denoise' and 'decode'.

    Raises:
        UserError: The GPU is not in the table, or there is no such model.

    Example:
        >>> estimate(Plan(), Size(544, 960, 61)).vram_gb > 24
        True
    """
    if gpu not in TFLOPS:
        raise UserError(
            f"gpu={gpu!r}: is not in the table ({', '.join(TFLOPS)}); step_seconds= of a measured step works."
        )
    video: Any = settings or Size()
    size = Size(video.height, video.width, video.num_frames, video.num_inference_steps or 50)
    needs = _Needs(plan, size, Configs.of(model), coefficients()["gpu"], gpu, step_seconds)
    known = coefficients()["gpu"]
    if step_seconds is not None:
        how = "from one measured step"
    else:
        how = f"measured coefficients of an {known}" + ("" if gpu == known else f", scaled to {gpu}'s data sheet")
    return Estimate(plan, size, [needs.row(stage) for stage in stages], how)


@dataclass(frozen=True)
class _Needs:
    """The arithmetic of one estimate."""

    plan: Plan
    size: Size
    configs: Configs
    known_gpu: str
    gpu: str
    step_seconds: float | None

    def row(self, stage: str) -> dict:
        works, seconds, pflop = getattr(self, stage)()
        fitted = coefficients()["vram"][stage]
        elsewhere = () if self.plan.one_stage else [part for name in STAGES if name != stage for part in STAGES[name]]
        first, *others = STAGES[stage]
        beside = sum(max(self.on_gpu(part)) for part in others)
        beside += sum(self.weights(part).largest for part in STAGES[stage] if self.part(part).quantisation != "none")
        beside += sum(self.weights(part).total for part in elsewhere if self.part(part).offload == "none")
        beside += self.unpacked() if stage == "denoise" else 0
        # Not every block that is there together with the largest intermediate results is a large one.
        held = [weights + beside for weights in self.on_gpu(first)]
        pairs = zip(held, works) if len(works) == len(held) else [(max(held), max(works))]
        on_gpu, work = max(pairs, key=lambda pair: pair[0] + fitted["factor"] * pair[1])
        ram = sum(self.in_ram(part) for part in (*STAGES[stage], *elsewhere))
        if stage == "decode":
            pixels = 3 * self.size.height * self.size.width * self.size.num_frames
            ram += pixels  # bytes: each is one
        return {
            "stage": stage,
            "vram_gb": on_gpu / GIB + fitted["factor"] * work / GIB + fitted["gib"],
            "ram_gb": ram / GIB + coefficients()["ram"]["process_gib"],
            "disk_gb": sum(self.weights(part, stored=True).total for part in STAGES[stage]) / GIB,
            "seconds": seconds,
            "weights_gb": on_gpu / GIB,
            "work_gb": work / GIB,
            "pflop": pflop,
        }

    def encode(self) -> tuple[tuple[float, ...], float | None, dict]:
        """Bytes of work on the GPU (while each stack of blocks works, or in all), seconds, operations."""
        dtype = getattr(torch, self.plan.text_encoder.dtype)
        rate = coefficients()["seconds"]
        seconds = None if rate["encode"] is None else self.slower() * rate["encode"]
        if seconds is not None and self.plan.text_encoder.offload == "disk":
            seconds += self.weights("text_encoder").total / 1e9 / rate["disk_gb_a_second"]
        return (reading_bytes(dict(self.configs.text_encoder), dtype),), seconds, {}

    def denoise(self) -> tuple[tuple[float, ...], float | None, dict]:
        config, (t, h, w) = dict(self.configs.transformer), self.latents()
        dtype = getattr(torch, self.plan.transformer.dtype)
        video = t * h * w // (config["patch_size"] ** 2 * config["patch_size_t"])
        words = WORDS + self.picture_words()
        mask, tokens = False, video + words  # one prompt without its padding
        works = denoising_bytes(self.configs.transformer, video, words, self.plan.chunk, mask, dtype)
        if self.plan.compile:
            width = config["num_attention_heads"] * config["attention_head_dim"]
            angles = 8 * tokens * sum(config["rope_axes_dim"])  # cosines and sines in float32
            whole = coefficients()["vram"]["compiled_tensors"] * tokens * width * dtype.itemsize
            works = tuple(min(work, whole + angles) for work in works)
        pflop = {"linear": linear_flops(config, tokens) / 1e15, "attention": attention_flops(config, tokens) / 1e15}
        return works, self.denoise_seconds(pflop), pflop

    def picture_words(self) -> int:
        """Tokens of a picture that stand before the prompt; 0 for text to video."""
        eye = dict(dict(self.configs.text_encoder).get(VISION_KEY, ()))
        condition = dict(self.configs.transformer).get("image_condition_type")
        return picture_tokens(eye) // IMAGE_EMBED_INTERLEAVE[condition] if eye and condition else 0

    def denoise_seconds(self, pflop: dict) -> float:
        if self.step_seconds is not None:
            return self.step_seconds * self.size.num_inference_steps
        rate = coefficients()["seconds"]
        linear = rate["linear_a_pflop_compiled" if self.plan.compile else "linear_a_pflop"]
        step = self.slower() * (linear * pflop["linear"] + rate["attention_a_pflop"] * pflop["attention"])
        streamed = self.weights("transformer").total / 1e9
        if self.plan.transformer.offload == "group":
            step = max(step, streamed / rate["bus_gb_a_second"])
        elif self.plan.transformer.offload == "disk":
            step += streamed / rate["disk_gb_a_second"]
        return step * self.size.num_inference_steps

    def decode(self) -> tuple[tuple[float, ...], float | None, dict]:
        dtype = getattr(torch, self.plan.vae.dtype)
        compiled = self.plan.compile
        work, flops = decoding_cost(self.configs.vae, self.latents(), self.plan.tile, dtype, compiled)
        rate = coefficients()["seconds"]["decode_a_pflop_compiled" if compiled else "decode_a_pflop"]
        return (work,), None if rate is None else self.slower() * rate * flops / 1e15, {"decode": flops / 1e15}

    def slower(self) -> float:
        """How many times slower than the GPU that was measured the GPU in question is, by the data sheets."""
        return TFLOPS[self.known_gpu] / TFLOPS[self.gpu]

    def latents(self) -> tuple[int, int, int]:
        vae = dict(self.configs.vae)
        space, time = vae["spatial_compression_ratio"], vae["temporal_compression_ratio"]
        return (self.size.num_frames - 1) // time + 1, self.size.height // space, self.size.width // space

    def part(self, network: str) -> Part:
        """CLIP follows the text encoder, whole: it is too small to stream or to quantise."""
        if network != "text_encoder_2":
            return getattr(self.plan, network)
        text = self.plan.text_encoder
        return Part(text.dtype, "none", "none" if text.offload == "none" else "model")

    def weights(self, network: str, stored: bool = False) -> Weights:
        """A network's weights as the plan keeps them, or as they are stored: in 16 bits."""
        part = self.part(network)
        if stored and network == "transformer" and self.configs.packed:
            return Weights(sum(tensor.bytes for tensor in self.configs.packed), ())
        if stored:
            return weights(self.configs, network, 2)
        skip = ("x_embedder", "context_embedder", "norm") if part.quantisation == "fp8" else ()
        return weights(self.configs, network, DTYPES[part.dtype], QUANTISATIONS[part.quantisation][0], skip)

    def unpacked(self) -> int:
        """Bytes of the largest layer of a GGUF file while it is unpacked to be multiplied with."""
        kinds = tuple(sorted({tensor.kind for tensor in self.configs.packed} - {*PLAIN}))
        dtype = getattr(torch, self.plan.transformer.dtype)
        return unpacking_bytes(self.configs.transformer, kinds, dtype) if kinds else 0

    def on_gpu(self, network: str) -> tuple[int, ...]:
        """Bytes of weights: while each of its stacks of blocks works, and while none does."""
        heavy, offload = self.weights(network), self.part(network).offload
        if network == "transformer" and self.plan.waiting_blocks:
            there = heavy.without_last(self.plan.waiting_blocks, QUANTISATIONS[self.part(network).quantisation][0])
            return (there,) * len(heavy.streamed)
        return heavy.streamed if offload in ("group", "disk", "sequential") else (heavy.total,) * len(heavy.streamed)

    def in_ram(self, network: str) -> int:
        """Bytes of weights that wait in RAM."""
        heavy, offload = self.weights(network), self.part(network).offload
        if network == "transformer" and self.plan.waiting_blocks:
            return heavy.total - max(self.on_gpu(network))
        if offload == "disk":  # two blocks, pinned for the way
            return max(heavy.streamed) - heavy.rest
        return 0 if offload == "none" else heavy.total
