"""What 8-bit floats save and cost on the 13B transformer, random weights, 720x1280x129, one card with compiled blocks.

    python -m benchmarks.fp8 --seconds 170 --out benchmarks/results/fp8.json

A step with FlashAttention-3 in bfloat16; the same with its attention on 8-bit floats, with the blocks' linear layers
multiplying 8-bit floats, and with both: seconds, and how far the result is from the first one's. Beside them the
kernels alone. Blocks of one kind share their compiled graph, so that two blocks are enough to warm up. `--tiny` runs
the same lines on a CPU, where there is no such attention.
"""

from __future__ import annotations

import t2v_kit  # noqa: F401  (first: it makes torchvision importable)

# isort: split
import argparse
import json
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.common import guarded, header, measured
from benchmarks.full_size import FULL, TINY
from benchmarks.rows import SIZES, TINY_SIZE
from benchmarks.several_cards import LARGE, Setup, attention
from benchmarks.speed import WORDS, Transformer
from t2v_kit.hunyuan.backends import FP8, choose_backend, unusable, use_backend
from t2v_kit.hunyuan.compiling import compile_blocks
from t2v_kit.hunyuan.fp8_linear import Fp8Linear, multiply_in_fp8
from t2v_kit.hunyuan.masks import skip_full_masks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=170, help="begin nothing after this long")
    parser.add_argument("--rows", default="", help="only those whose name holds this regular expression")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, on a CPU")
    args = parser.parse_args()
    deadline = time.perf_counter() + args.seconds
    earlier = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}  # rows not measured now are kept
    report = earlier | header("fp8", sizes="tiny" if args.tiny else "full")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bench = Bench(args.tiny, device)
    for key, run in bench.rows().items():
        if not re.search(args.rows, key):
            continue
        guarded(report, key, run, args.out, deadline)
    print("\n".join(table(report)))
    return 0


class Bench:
    """One transformer that is changed from row to row."""

    def __init__(self, tiny: bool, device: str) -> None:
        self.tiny, self.device = tiny, device
        self.size = TINY_SIZE if tiny else SIZES[LARGE]
        self.sizes = TINY if tiny else FULL
        self.model: Transformer | None = None
        self.first: dict = {}

    def rows(self) -> dict[str, Callable[[], dict]]:
        """What is measured, in this order: each leaves the transformer as the next one needs it."""
        setup = Setup(self.tiny, self.device, None, Path())
        rows: dict[str, Callable[[], dict]] = {
            f"attention, {name}": partial(attention, setup, name) for name in ("_flash_3", FP8)
        }
        rows |= {f"linear, {kind}": partial(self.linear, kind) for kind in ("bfloat16", "fp8")}
        rows["step, bfloat16"] = partial(self.step, self.best)
        rows["step, attention in fp8"] = partial(self.step, lambda: FP8)
        rows["step, products in fp8"] = partial(self.step, self.best, products=True)
        rows["step, both in fp8"] = partial(self.step, lambda: FP8, products=True)
        return rows

    def best(self) -> str:
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        return choose_backend("auto", torch.device(self.device), dtype, 128)

    @torch.no_grad()
    def linear(self, kind: str) -> dict:
        """One layer of the feed-forward network over all tokens of the video."""
        width, tokens = (64, 400) if self.tiny else (3072, 118800)
        torch.manual_seed(0)
        place = {"device": self.device, "dtype": torch.float32 if self.device == "cpu" else torch.bfloat16}
        layer, x = torch.nn.Linear(width, 4 * width, **place), torch.randn(1, tokens, width, **place)
        exact = layer(x[:, :256]).float()
        layer = Fp8Linear(layer) if kind == "fp8" else layer
        if self.device == "cuda":
            layer = torch.compile(layer)
        times = 10
        result = layer(x)
        with measured({}) as row:
            for _ in range(times):
                result = layer(x)
        row["seconds"] /= times
        error = float((result[:, :256].float() - exact).norm() / exact.norm())
        flops = 2 * tokens * width * 4 * width
        return row | {"relative_error": error, "tflops": round(flops / max(row["seconds"], 1e-4) / 1e12, 1)}

    def step(self, backend: Callable[[], str], products: bool = False) -> dict:
        """One step, after a warm-up of one block of each kind."""
        if self.model is None:
            self.model = Transformer(self.sizes["transformer"], self.size, self.device)
            skip_full_masks(self.model.model)
        model, name = self.model.model, backend()
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        if products:
            multiply_in_fp8(model)
        if reason := unusable(name, torch.device(self.device), dtype, model.config.attention_head_dim):
            return {"not_run": reason}
        use_backend(model, name)
        torch._dynamo.reset()
        compile_blocks(model, "eager" if self.device == "cpu" else "inductor")
        row = {"backend": name, "warm_up": self.warm_up()}
        with measured(row):
            result = self.model.step(words=min(WORDS, self.model.prompt.shape[1])).float()
        self.first = self.first or {"result": result, "seconds": row["seconds"]}
        first = self.first["result"]
        row["relative_difference"] = float((result - first).norm() / first.norm())
        row["times_faster"] = round(self.first["seconds"] / row["seconds"], 3)
        return row

    def warm_up(self) -> float:
        """Seconds in which the first block of each kind was compiled and tuned."""
        began = time.perf_counter()
        model = self.model.model
        kinds = ("transformer_blocks", "single_transformer_blocks")
        whole = {kind: getattr(model, kind) for kind in kinds}
        try:
            for kind, every in whole.items():
                setattr(model, kind, every[:1])
            for _ in range(2):
                self.model.seconds(1, words=min(WORDS, self.model.prompt.shape[1]))
        finally:
            for kind, every in whole.items():
                setattr(model, kind, every)
        return round(time.perf_counter() - began, 1)


def table(report: dict) -> list[str]:
    """The rows, one a line."""
    lines = [report["device"]]
    names = (
        "tflops",
        "relative_error",
        "relative_difference",
        "times_faster",
        "gpu_gib",
        "warm_up",
        "not_run",
        "error",
    )
    for key, row in report.items():
        if isinstance(row, dict) and {"seconds", "error", "not_run"} & set(row):
            cells = [f"{name} {row[name]}" for name in names if row.get(name) is not None]
            lines.append(f"{key:28} {row.get('seconds', '-')} s  {'  '.join(cells)}")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
