"""How little memory does training a LoRA of the 13B take, and how much longer does it last? Random weights.

    python -m benchmarks.training --seconds 200 --out benchmarks/results/lora_training.json
    python -m benchmarks.training --rows '8 GB|24 GB' --seconds 250 --out benchmarks/results/lora_training.json
    python -m benchmarks.training --rows '8 GB' --levers '{"chunk": 2048}' --out /tmp/others.json
    torchrun --nproc-per-node 2 -m benchmarks.training --rows '12 GB' --out benchmarks/results/lora_training.json

A row is a size and the memory of a card. First comes what people do, without a limit: a 4-bit base, peft's LoRA in
float32, diffusers' gradient checkpointing, an 8-bit optimiser, a padded prompt with its mask. Then the steps of
`t2v_kit.train` with the levers that `fastest_levers` chooses for the card, whose memory is limited by
torch.cuda.set_per_process_memory_fraction, less what the CUDA context takes; the LoRA is written at the end. `overfit`
repeats one step of the smallest row with the same noise: its loss falls if the gradients are right. Under torchrun the
cards train together, each on a sample of its own, and the row is beside that of one card measured before. `--tiny` runs
the same lines with toy sizes on any machine.
"""

from __future__ import annotations

import os

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import t2v_kit  # before diffusers: it makes torchvision importable

# isort: split
import argparse
import gc
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from bitsandbytes.optim import AdamW8bit
from diffusers import HunyuanVideoTransformer3DModel
from peft import LoraConfig

from benchmarks.common import GIB, guarded, header, measured, write
from benchmarks.full_size import TINY, random_pipeline, save
from benchmarks.memory import cap
from t2v_kit.hunyuan.masks import blocks, keep_full_masks, skip_full_masks
from t2v_kit.memory.plan import Size
from t2v_kit.model.streamed import wait_in_ram
from t2v_kit.stages.prompt import PromptEncoding
from t2v_kit.training.cache import Encoded
from t2v_kit.training.choosing import fastest_levers
from t2v_kit.training.clips import Clip, Sample
from t2v_kit.training.footprint import estimate_training
from t2v_kit.training.looping import Trainer
from t2v_kit.training.lora import target_layers
from t2v_kit.training.options import LEVERS, TrainSettings

TOKENS = 40  # of a prompt, which diffusers pads to 256
PADDED = 256
STEPS = 3  # the first warms up


@dataclass(frozen=True)
class Row:
    """cap in GB of a card; size (frames, height, width)."""

    name: str
    cap: float
    size: tuple[int, int, int]
    steps: int = STEPS


ROWS = (
    Row("8 GB", 8, (33, 320, 512)),
    Row("12 GB", 12, (61, 320, 512)),
    Row("16 GB", 16, (49, 512, 768)),
    Row("24 GB", 24, (61, 544, 960)),
    Row("moonshot 12 GB", 12, (33, 544, 960)),
    Row("moonshot 24 GB", 24, (61, 720, 1280), 2),
)
TINY_SIZE = (9, 32, 48)
TINY_LEVERS = {"activations": "offload", "offloaded_blocks": 2, "chunk": 16, "streamed_blocks": 1}
LORA = TrainSettings(optimizer="adamw8bit", caption_dropout=0.0, warmup=0)
RANK, CARDS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
DEVICE = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")


def random_nf4(config: dict, waiting: int = 0) -> HunyuanVideoTransformer3DModel:
    """A transformer in 4 bits with random weights, made layer by layer: it is never there in 16 bits.

    The last `waiting` blocks go to RAM as soon as they are made, as those of `load` do when they are read.
    """
    with torch.device("meta"):
        transformer = HunyuanVideoTransformer3DModel(**config).to(torch.bfloat16)
    every = blocks(transformer)
    for number, block in enumerate(every):
        _fill(block)
        if number >= len(every) - waiting:
            wait_in_ram(block)
    _fill(transformer)
    transformer.is_loaded_in_4bit = True  # peft looks for it
    return transformer.eval()


def _fill(part: torch.nn.Module) -> None:
    """Give a block, or all that is not a block, its weights."""
    last = part.proj_out if isinstance(part, HunyuanVideoTransformer3DModel) else None
    for module in list(part.modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear and child is not last:
                setattr(module, name, _nf4(child))
    for module in part.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None and weight.is_meta:
                drawn = torch.randn(weight.shape, device=DEVICE, dtype=weight.dtype) * 0.02
                drawn += 1 if weight.ndim == 1 and name == "weight" else 0  # of a norm
                module._parameters[name] = torch.nn.Parameter(drawn, requires_grad=False)


def _nf4(linear: torch.nn.Linear) -> Linear4bit:
    shape, bias = (linear.out_features, linear.in_features), linear.bias is not None
    with torch.device("meta"):
        quantised = Linear4bit(shape[1], shape[0], bias, torch.bfloat16, compress_statistics=False, quant_type="nf4")
    quantised.support_avx512bf16_for_cpu = False  # its packing refuses the short rows of toy sizes
    drawn = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) * 0.02
    quantised.weight = Params4bit(
        drawn, requires_grad=False, quant_type="nf4", compress_statistics=False, module=quantised
    ).to(DEVICE)
    if bias:
        zeros = torch.zeros(shape[0], device=DEVICE, dtype=torch.bfloat16)
        quantised.bias = torch.nn.Parameter(zeros, requires_grad=False)
    return quantised


def random_data(transformer: HunyuanVideoTransformer3DModel, size: tuple[int, int, int]) -> Encoded:
    """One sample of this size, as `encode_clips` gives it."""
    frames, height, width = size
    config = transformer.config
    latents = torch.randn(config.in_channels, (frames - 1) // 4 + 1, height // 8, width // 8)
    prompt = PromptEncoding(
        torch.randn(1, TOKENS, config.text_embed_dim),
        torch.ones(1, TOKENS, dtype=torch.int64),
        torch.randn(1, config.pooled_projection_dim),
        [],
    )
    clip = Clip(Path("random"), "random", frames, height, width, 16.0, "")
    return Encoded((Sample(clip, 0, *size),), (latents,), (prompt,), prompt, "random")


def naive(transformer: HunyuanVideoTransformer3DModel, data: Encoded, steps: int, deadline: float) -> dict:
    """Steps as diffusers' and peft's own examples would train a 4-bit HunyuanVideo."""
    config = LoraConfig(r=16, lora_alpha=16, target_modules=target_layers(transformer, TrainSettings()))
    transformer.add_adapter(config, "naive")
    for name, weight in transformer.named_parameters():
        weight.requires_grad_(".naive." in name)
    weights = [weight for weight in transformer.parameters() if weight.requires_grad]
    optimizer = AdamW8bit(weights, lr=1e-4)
    transformer.enable_gradient_checkpointing()
    place = {"device": DEVICE, "dtype": torch.bfloat16}
    clean, prompt = data.latents[0][None].to(**place), data.prompts[0]
    mask = (torch.arange(PADDED, device=DEVICE) < TOKENS).to(torch.bfloat16)[None]
    text = torch.nn.functional.pad(prompt.prompt_embeds, (0, 0, 0, PADDED - TOKENS)).to(**place)

    def step() -> float:
        noise, sigma = torch.randn_like(clean), 0.7
        velocity = transformer(
            (1 - sigma) * clean + sigma * noise,
            torch.tensor([1000 * sigma], **place),
            text,
            mask,
            prompt.pooled.to(**place),
            torch.tensor([1000.0], **place),
            return_dict=False,
        )[0]
        loss = (velocity.float() - (noise - clean).float()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    try:
        return _timed(lambda _: step(), steps, deadline)
    finally:
        transformer.disable_gradient_checkpointing()
        transformer.unload_lora()


def ours(models, data: Encoded, levers: dict, steps: int, deadline: float, repeat: bool = False) -> dict:
    """Steps of `train`; with `repeat`, the first one again and again, at a higher rate."""
    settings = replace(LORA, steps=max(steps, 1000), learning_rate=1e-2 if repeat else 1e-4, **levers)
    trainer = Trainer(models, data, settings)
    losses = []

    def step(index: int) -> float:
        losses.append(trainer.step(0 if repeat else index).loss)
        return losses[-1]

    with trainer.prepared(), tempfile.TemporaryDirectory() as folder:
        result = _timed(step, steps, deadline)
        file = trainer.save(Path(folder) / "lora.safetensors", steps)
        result["lora_mb"] = round(file.stat().st_size / 1e6, 2)
    return result | {"losses": [round(loss, 6) for loss in losses]}


def _timed(step, steps: int, deadline: float) -> dict:
    """The median seconds of the steps after the first, and the peak."""
    seconds, row = [], {}
    with measured(row):
        for index in range(steps):
            if time.perf_counter() > deadline and index >= 2:
                break
            began = time.perf_counter()
            step(index)
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(round(time.perf_counter() - began, 3))
    return row | {"step_seconds": statistics.median(seconds[1:] or seconds), "all_steps": seconds}


def levers_for(row: Row) -> dict:
    """What the planner chooses for a row."""
    frames, height, width = row.size
    chosen, _ = fastest_levers(LORA, Size(height, width, frames), row.cap * 1e9 / GIB)
    return {name: getattr(chosen, name) for name in LEVERS}


def measure(models, row: Row, deadline: float, args: argparse.Namespace, alone: dict) -> dict:
    """Both ways of one row; of several cards ours only, beside the row of one card."""
    size = TINY_SIZE if args.tiny else row.size
    levers = args.levers or (TINY_LEVERS if args.tiny else levers_for(row))
    data, steps = random_data(models.pipe.transformer, size), args.steps or row.steps
    result = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "device": header("")["device"],
        "cards": CARDS,
        "size": list(size),
        "cap_gb": row.cap,
        "levers": levers,
    }
    if not args.tiny:
        frames, height, width = size
        predicted = estimate_training(replace(LORA, **levers), Size(height, width, frames))
        result["predicted_gib"] = round(predicted.vram_gb, 3)
    _limit(1.0)
    if CARDS == 1:
        result["naive"] = _unless_it_does_not_fit(lambda: _naive(models.pipe.transformer, data, steps, deadline))
    if levers.get("streamed_blocks"):
        make_transformer(models, args.tiny, levers["streamed_blocks"])
    if not args.unlimited:
        result |= cap(row.cap * 1e9 / GIB)
    result["levers_run"] = _unless_it_does_not_fit(lambda: ours(models, data, levers, steps, deadline))
    _clean()
    _limit(1.0)
    if "error" in result["levers_run"]:
        result["without_the_limit"] = ours(models, data, levers, 2, deadline)
    if levers.get("streamed_blocks"):
        make_transformer(models, args.tiny)
    seconds, plain = (run.get("step_seconds") for run in (result["levers_run"], result.get("naive", {})))
    result["times_naive"] = round(seconds / plain, 3) if seconds and plain else None
    one = alone.get("levers_run", {}).get("step_seconds")
    result["times_faster_than_one_card"] = round(CARDS * one / seconds, 3) if one and seconds and CARDS > 1 else None
    return result


def _unless_it_does_not_fit(run: Callable[[], dict]) -> dict:
    try:
        return run()
    except torch.OutOfMemoryError as error:
        return {"error": " ".join(str(error).split())[:400]}


def _naive(transformer: HunyuanVideoTransformer3DModel, data: Encoded, steps: int, deadline: float) -> dict:
    keep_full_masks(transformer)
    try:
        return naive(transformer, data, steps, deadline)
    finally:
        skip_full_masks(transformer)


def make_transformer(models, tiny: bool, waiting: int = 0) -> None:
    """Give the model a new transformer."""
    models.pipe.transformer = None
    _clean()
    models.pipe.transformer = random_nf4(TINY["transformer"] if tiny else {}, waiting)
    skip_full_masks(models.pipe.transformer)


def _limit(share: float) -> None:
    if DEVICE.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(share, DEVICE)


def _clean() -> None:
    gc.collect()  # networks and their hooks hold each other
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file; rows measured before stay in it")
    parser.add_argument("--seconds", type=float, default=200, help="begin no row and few steps after this long")
    parser.add_argument(
        "--rows", default=r"\d+ GB", help="regular expressions for whole names of rows, in their order, with | between"
    )
    parser.add_argument("--overfit", type=int, default=12, help="how often one step is repeated; 0 for not at all")
    parser.add_argument("--steps", type=int, help="of each row; by default its own number")
    parser.add_argument("--levers", type=json.loads, help="JSON of TrainSettings' levers, not those of the planner")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, on any machine")
    parser.add_argument("--unlimited", action="store_true", help="without limits: what would the peaks be?")
    args = parser.parse_args()
    if DEVICE.type == "cuda":
        torch.cuda.set_device(DEVICE)  # whose memory is limited and measured
    out = args.out if RANK == 0 else None
    deadline = time.perf_counter() + args.seconds
    now = header("training", sizes="tiny" if args.tiny else "full")
    before = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
    report = before | now if before.get("sizes") == now["sizes"] else now
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        save(random_pipeline(TINY), TINY, Path(folder))
        models = t2v_kit.load(folder, device=DEVICE, dtype="bfloat16")
        with measured({}) as made:
            make_transformer(models, args.tiny)
        report["weights_made"] = made
        if DEVICE.type == "cuda":
            report["weights_gib"] = round(torch.cuda.memory_allocated() / GIB, 2)
        for row in [row for name in args.rows.split("|") for row in ROWS if re.fullmatch(name, row.name)]:
            key = f"{row.name}, {CARDS} cards" if CARDS > 1 else row.name
            run = partial(measure, models, row, deadline, args, report.get(row.name, {}))
            guarded(report, key, run, out, deadline)
        if args.overfit:
            data = random_data(models.pipe.transformer, TINY_SIZE if args.tiny else ROWS[0].size)
            levers = {"activations": "offload", "chunk": 16 if args.tiny else 2048}
            _limit(1.0)
            repeated = partial(ours, models, data, levers, args.overfit, deadline, repeat=True)
            guarded(report, "overfit", repeated, out, deadline)
    write(out, report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
