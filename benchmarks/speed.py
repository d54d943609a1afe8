"""Where do the seconds go? The transformer at full size with random weights, alone on an uncapped GPU.

    python -m benchmarks.speed --seconds 560 --out benchmarks/results/speed.json

For each size: a step in diffusers as it is (padded prompt, mask), without padding and mask as `load` sets it up, in
chunks, and with compiled blocks (warm-up and recompilations by prompt length beside it), each with the relative
difference of its result; what a skipped step of each step cache costs; and where a step's time goes (profile). Random
weights say nothing about pictures, nor how often a cache skips.
"""

from __future__ import annotations

import t2v_kit  # noqa: F401  (first: it makes torchvision importable)

# isort: split
import argparse
import contextlib
import gc
import json
import re
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from diffusers import (
    FirstBlockCacheConfig,
    HunyuanVideoTransformer3DModel,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)

from benchmarks.common import GIB, guarded, header, kernels, measured
from benchmarks.full_size import FULL, TINY
from benchmarks.rows import SIZES, TINY_SIZE
from t2v_kit.hunyuan.chunks import use_chunks
from t2v_kit.hunyuan.masks import skip_full_masks

PADDED, WORDS, OTHER_WORDS = 256, 40, (17, 23, 61, 88, 120)  # tokens of a prompt
STEPS = 50
LONG = 10  # seconds: of slower steps no more than needed
# What is measured of a step and by which method of `Transformer`, in this order: each leaves the model as the next one
# needs it.
KINDS = {
    "as it is": "as_it_is",
    "no padding, no mask": "no_padding_no_mask",
    "in chunks": "in_chunks",
    "step caches": "step_caches",
    "profile": "profile",
    "compiled": "compiled",
    "profile, compiled": "profile",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=560, help="begin nothing after this long")
    parser.add_argument("--sizes", nargs="+", default=["544x960x61", "720x1280x129"], choices=SIZES)
    parser.add_argument("--rows", default="", help="only those whose name holds this regular expression")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, on any machine")
    args = parser.parse_args()
    deadline = time.perf_counter() + args.seconds
    earlier = json.loads(args.out.read_text()) if args.out.exists() else {}  # rows not measured now are kept
    report = earlier | header("speed", sizes="tiny" if args.tiny else "full")
    for name in args.sizes:
        rows = [kind for kind in KINDS if re.search(args.rows, f"{name}, {kind}")]
        steps(report, name, rows, args, deadline)
        gc.collect()  # blocks and their hooks hold each other
        torch.cuda.empty_cache()
    print("\n".join(["", *(f"{key:48} {value}" for key, value in table(report))]))
    return 0


def steps(report: dict, name: str, rows: list[str], args: argparse.Namespace, deadline: float) -> None:
    """The rows of one size's steps, by one transformer."""
    if not rows:
        return
    size = TINY_SIZE if args.tiny else SIZES[name]
    config = (TINY if args.tiny else FULL)["transformer"]
    bench = Transformer(config, size, "cuda" if torch.cuda.is_available() else "cpu")
    for kind in rows:
        guarded(report, f"{name}, {kind}", partial(bench.row, kind), args.out, deadline)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype):
    """Inside, new parameters are of this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Transformer:
    """One random transformer, one video size, and every way of calling it that is compared."""

    def __init__(self, config: dict, size: tuple[int, int, int], device: str) -> None:
        torch.manual_seed(0)
        self.device = device
        self.dtype = torch.float32 if device == "cpu" else torch.bfloat16
        with torch.device(device), default_dtype(self.dtype):  # float32 first would take 48 GiB
            self.model = torch.nn.Module.to(HunyuanVideoTransformer3DModel(**config), self.dtype).eval()
        place = {"device": device, "dtype": self.dtype}
        self.prompt = torch.randn(1, PADDED, self.model.config.text_embed_dim, **place)
        self.pooled = torch.randn(1, self.model.config.pooled_projection_dim, **place)
        self.draw(size)
        self.first = {}

    def draw(self, size: tuple[int, int, int]) -> None:
        """Latents of this size, always the same ones."""
        height, width, frames = size
        shape = (1, self.model.config.in_channels, (frames - 1) // 4 + 1, height // 8, width // 8)
        drawn = torch.Generator(self.device).manual_seed(1)
        self.latents = torch.randn(shape, generator=drawn, device=self.device, dtype=self.dtype)

    @torch.no_grad()
    def step(self, words: int = WORDS, padded: bool = False, index: int = 0) -> torch.Tensor:
        length = PADDED if padded else words
        mask = torch.zeros(1, length, device=self.device, dtype=self.prompt.dtype)
        mask[:, :words] = 1
        with self.model.cache_context("cond"):
            return self.model(
                hidden_states=self.latents,
                timestep=torch.tensor([1000.0 - index], device=self.device).to(self.prompt.dtype),
                encoder_hidden_states=self.prompt[:, :length],
                encoder_attention_mask=mask,
                pooled_projections=self.pooled,
                guidance=torch.tensor([6000.0], device=self.device, dtype=self.prompt.dtype),
                return_dict=False,
            )[0]

    def seconds(self, times: int = 2, in_turn: bool = False, **how) -> list[float]:
        """Of so many calls, each asked about the same timestep or about the next one."""
        found = []
        for index in range(times) if in_turn else [0] * times:
            began = time.perf_counter()
            self.last = self.step(index=index, **how)
            if self.device != "cpu":
                torch.cuda.synchronize()
            found.append(round(time.perf_counter() - began, 4))
        return found

    def row(self, kind: str) -> dict:
        """A row of `KINDS`."""
        row = {}
        getattr(self, KINDS[kind])(row)
        return row

    def timed(self, row: dict, **how) -> None:
        """One call to warm up, two that count, and how far its result is from diffusers' own."""
        row["warm_up"] = self.seconds(1, **how)[0]
        with measured(row):
            row["step_seconds"] = self.seconds(2, **how)
        row["seconds"] = statistics.median(row["step_seconds"])
        if "gpu_gib" in row:
            weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
            row["gpu_gib_beside_weights"] = round(row["gpu_gib"] - weights / GIB, 3)
        if self.first:
            plain = self.first["result"].float()
            row["relative_difference"] = float((self.last.float() - plain).norm() / plain.norm())
            row["times_faster"] = round(self.first["seconds"] / row["seconds"], 3)

    def as_it_is(self, row: dict) -> None:
        self.timed(row, padded=True)
        self.first = {"result": self.last, "seconds": row["seconds"]}

    def no_padding_no_mask(self, row: dict) -> None:
        skip_full_masks(self.model)
        self.timed(row)

    def in_chunks(self, row: dict) -> None:
        """Instance attributes alone are changed, and taken back, so that what follows is not in chunks."""
        blocks = [*self.model.transformer_blocks, *self.model.single_transformer_blocks]
        before = [block.attn.processor for block in blocks]
        use_chunks(self.model, 8192)
        self.timed(row)
        for block, processor in zip(blocks, before):
            block.attn.set_processor(processor)
            for name in ("ff", "proj_mlp", "act_mlp", "proj_out"):
                getattr(block, name, self.model).__dict__.pop("forward", None)

    def compiled(self, row: dict) -> None:
        """Warm-up is compilation; the other prompt lengths show whether it ends, at whatever size of video."""
        from torch._dynamo.utils import counters

        counters.clear()
        skip_full_masks(self.model)
        self.model.compile_repeated_blocks(backend="eager" if self.device == "cpu" else "inductor")
        self.timed(row)
        if row["seconds"] > LONG:
            return
        row["by_prompt_length"] = {words: self.seconds(1, words=words)[0] for words in OTHER_WORDS}
        row["again"] = {words: self.seconds(1, words=words)[0] for words in OTHER_WORDS[:2]}
        row["graphs"] = counters["stats"].get("unique_graphs")

    def step_caches(self, row: dict) -> None:
        """A computed and a skipped step: the largest threshold skips whatever it may."""
        caches = {
            "first-block cache": FirstBlockCacheConfig(threshold=1e9),
            "MagCache": MagCacheConfig(
                threshold=1e9,
                max_skip_steps=3,
                retention_ratio=0.0,
                num_inference_steps=STEPS,
                mag_ratios=[1.0] * STEPS,
            ),
            "TaylorSeer": TaylorSeerCacheConfig(cache_interval=4, disable_cache_before_step=1, max_order=1),
            "pyramid broadcast": PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=2,
                spatial_attention_timestep_skip_range=(-1, 2000),
                spatial_attention_block_identifiers=("transformer_blocks", "single_transformer_blocks"),
                current_timestep_callback=lambda: 500,
            ),
        }
        for name, config in caches.items():
            try:
                self.model.enable_cache(config)
                found = self.seconds(4, in_turn=True)
                row[name] = {"seconds": found, "computed": max(found), "skipped": min(found)}
            except Exception as error:
                row[name] = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
            finally:
                self.model.disable_cache()

    def profile(self, row: dict) -> None:
        """The kernels that a step spends its time in."""
        row |= kernels(lambda: self.seconds(1))


def table(report: dict):
    for key, row in report.items():
        if isinstance(row, dict) and {"seconds", "error", "not_run"} & set(row):
            extra = [
                f"{n} {row[n]}"
                for n in ("times_faster", "relative_difference", "gpu_gib", "warm_up", "graphs")
                if n in row
            ]
            yield key, f"{row.get('seconds', '')} s  {'  '.join(extra)}{row.get('error', '')}{row.get('not_run', '')}"


if __name__ == "__main__":
    raise SystemExit(main())
