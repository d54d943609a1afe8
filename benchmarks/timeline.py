"""How streaming weights hides behind computing: one denoising step with group offload, as what ran when.

    python -m benchmarks.timeline --out benchmarks/results/timeline.json

A full-size random transformer streams its blocks from pinned RAM, as the plan "streamed" does; PyTorch's profiler
watches the third step. Of its kernels and copies only the intervals are kept in which the GPU computed or copied.
Needs a GPU and 30 GB of RAM; `--tiny` on a GPU shows the same with toy sizes.
"""

from __future__ import annotations

import t2v_kit  # noqa: F401  (first: it makes torchvision importable)

# isort: split
import argparse
from pathlib import Path

import torch
from diffusers.hooks import apply_group_offloading
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import header, write
from benchmarks.full_size import FULL, TINY
from benchmarks.rows import SIZES, TINY_SIZE
from benchmarks.speed import Transformer
from t2v_kit.hunyuan.chunks import use_chunks
from t2v_kit.hunyuan.masks import skip_full_masks
from t2v_kit.model.residence import pin

GAP = 0.1  # milliseconds: shorter pauses are not drawn


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", default="544x960x61", choices=SIZES)
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: there is nothing to copy to, and so nothing to time")
        return 1
    bench = Transformer(
        (TINY if args.tiny else FULL)["transformer"], TINY_SIZE if args.tiny else SIZES[args.size], "cuda"
    )
    skip_full_masks(bench.model)
    use_chunks(bench.model, 8192)
    pinned = pin(bench.model, torch.device("cuda"))
    apply_group_offloading(bench.model, torch.device("cuda"), num_blocks_per_group=1, use_stream=True)
    seconds = bench.seconds(2)
    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        seconds += bench.seconds(1)
    events = [
        (event.name(), event.start_ns() / 1e6, event.duration_ns() / 1e6)
        for event in watched.profiler.kineto_results.events()
        if event.device_type() == torch.autograd.DeviceType.CUDA
    ]
    report = header("timeline", sizes="tiny" if args.tiny else "full", size=args.size, plan="streamed")
    weights = sum(p.numel() * p.element_size() for p in bench.model.parameters())
    report |= {"step_seconds": seconds, "weights_gb": round(weights / 1e9, 2), "pinned_blocks": pinned}
    write(args.out, report | {"lanes_ms": lanes(events)})
    told = ", ".join(f"{name} {busy(lane):.0f} ms" for name, lane in lanes(events).items())
    print(f"{len(events)} events: {told}; steps {seconds}")
    return 0


def lanes(events: list[tuple[str, float, float]]) -> dict[str, list[list[float]]]:
    """(name, start, duration in ms) as {"copy": [[start, end], ...], "compute": ...}, from 0, near ones joined."""
    first = min((start for _, start, _ in events), default=0)
    found: dict[str, list[list[float]]] = {"copy": [], "compute": []}
    for name, start, length in sorted(events, key=lambda event: event[1]):
        if name.startswith("Memset") or (name.startswith("Memcpy") and "HtoD" not in name):
            continue
        lane = found["copy" if name.startswith("Memcpy") else "compute"]
        start, end = round(start - first, 3), round(start - first + length, 3)
        if lane and start - lane[-1][1] < GAP:
            lane[-1][1] = max(lane[-1][1], end)
        else:
            lane.append([start, end])
    return found


def busy(intervals: list[list[float]]) -> float:
    """Milliseconds that intervals, which do not overlap, last in all."""
    return sum(end - start for start, end in intervals)


if __name__ == "__main__":
    raise SystemExit(main())
