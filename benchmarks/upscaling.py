"""How fast is upscaling, beside the official frame loop and beside what the hardware can do? What memory does it take?

    python -m benchmarks.upscaling --device cpu --out benchmarks/results/upscaling_cpu.json
    python -m benchmarks.upscaling --device cuda --out benchmarks/results/upscaling_h200.json
    python -m benchmarks.upscaling --rows 'files|capped' ...      # some rows again, added to what is there

Four parts, the most wanted first, within the time that is given:
frames     `upscale` against `RealESRGANer.enhance` frame by frame, the same weights and frames, by turns
files      video file to video file: `upscale_file` against the official loop, the same reader and writer
capped     a clip of 129 frames of 960x544 to x4 with 8 GB of GPU memory
networks   seconds, memory and arithmetic of each network and size; the share of the rate of large matrix products;
           where `upscale` has kernels of its own, the seconds of PyTorch's too
On a CPU frames are 192x112 and nothing is capped. Where the realesrgan package is missing, its loop is the one in
upscalers.py, which a test sets beside the original. Weights are pocket's, or random in the published networks' sizes.
"""

import t2v_kit  # noqa: F401  (first: it makes torchvision importable)

# isort: split
import argparse
import functools
import json
import os
import re
import statistics
import tempfile
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from t2v_kit import load_upscaler, save_video, toyland, upscale, upscale_file
from t2v_kit.stages.upscaling.network import prepare, tiled
from t2v_kit.video.files import video_reader, video_writer

from .common import GIB, guarded, header, write
from .upscalers import NETWORKS, POCKET, X4PLUS, official, weight_files

CAP = 8e9  # bytes: a card of "8 GB"
SIZES = {"cpu": [(112, 192)], "cuda": [(112, 192), (320, 512), (544, 960), (720, 1280)], "tiny": [(16, 24)]}
SCENE = toyland.Scene("motorcycle", "red", "street", "sunny", "right", "high")


class Bench:
    """What is measured, on what, and until when."""

    def __init__(self, device: str, tiny: bool, deadline: float, folder: Path):
        self.device, self.tiny, self.deadline, self.folder = device, tiny, deadline, folder
        self.sizes = SIZES["tiny" if tiny else device]
        self.size = {"cpu": (112, 192), "cuda": (544, 960)}[device] if not tiny else (16, 24)
        self.files = weight_files(folder)

    def seconds(self, call) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def by_turns(self, theirs, ours, count: int, most: int = 9) -> dict:
        """Seconds a frame of both: a run to warm up, then one of each after the other; and the ratio of each pair."""
        theirs(), ours()
        pairs = []
        while len(pairs) < most and not (pairs and time.perf_counter() > self.deadline):
            pairs.append((self.seconds(theirs) / count, self.seconds(ours) / count))
        return {
            "official_seconds_a_frame": [round(a, 4) for a, _ in pairs],
            "ours_seconds_a_frame": [round(b, 4) for _, b in pairs],
            "times_faster": [round(a / b, 2) for a, b in pairs],
            "median_times_faster": round(statistics.median(a / b for a, b in pairs), 2),
        }

    def frames(self, name: str, dtype: str = "auto") -> dict:
        loop, which = official(name, self.files[name], self.device)
        video = toyland.render(SCENE, *self.size, 2 if self.tiny else 8)
        bgr = [np.ascontiguousarray(frame[..., ::-1]) for frame in video]

        def ours() -> None:
            upscale(video, self.files[name], dtype=dtype, device=self.device, progress=False)

        row = {"network": name, "size": self.size, "frames": len(video), "dtype": dtype, "official": which}
        return row | self.by_turns(lambda: [loop.enhance(frame) for frame in bgr], ours, len(video))

    def file_to_file(self, name: str, frames: int) -> dict:
        loop, which = official(name, self.files[name], self.device)
        source, target = self._source(frames), self.folder / "out.mp4"

        def theirs() -> None:
            size = self.size[0] * 4, self.size[1] * 4
            with video_reader(source) as reader, video_writer(target, size, reader.fps) as writer:
                for frame in reader:
                    writer.add_image(loop.enhance(frame[..., ::-1])[0][..., ::-1])

        def ours() -> None:
            upscale_file(source, target, self.files[name], device=self.device, progress=False)

        row = {"network": name, "size": self.size, "frames": frames, "official": which}
        return row | self.by_turns(theirs, ours, frames, most=3)

    def capped(self, name: str, frames: int = 129) -> dict:
        """Video to video under a cap that PyTorch may not exceed, and what the run said about it."""
        source, target = self._source(frames), self.folder / "out.mp4"
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.set_per_process_memory_fraction(CAP / torch.cuda.get_device_properties(0).total_memory)
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                seconds = self.seconds(lambda: upscale_file(source, target, self.files[name], progress=False))
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        with video_reader(target) as reader:
            video = [sum(1 for _ in reader), *reader.shape]
        row = {"network": name, "cap_gb": CAP / 1e9, "video": video, "seconds": round(seconds, 2)}
        row["gpu_gib_reserved_peak"] = round(torch.cuda.max_memory_reserved() / GIB, 2)
        return row | {"told": [str(one.message) for one in told if "GPU memory" in str(one.message)]}

    def network(self, name: str, height: int, width: int, rate: float) -> dict:
        """The network alone, as `upscale` prepares it, on frames that are on the device already."""
        net = prepare(load_upscaler(self.files[name]), "auto", torch.device(self.device))
        batch = max(1, 2**19 // (height * width)) if self.device == "cuda" else 1
        pixels = torch.rand(batch, 3, height, width).to(self.device, net.dtype, memory_format=torch.channels_last)
        flops = flops_a_pixel(self.files[name]) * height * width
        row = {"network": name, "size": [height, width], "batch": batch, "dtype": str(net.dtype).removeprefix("torch.")}
        row["million_parameters"] = round(sum(weight.numel() for weight in net.model.parameters()) / 1e6, 2)

        @torch.inference_mode()
        def once() -> None:
            tiled(net, pixels, 0)

        def median() -> float:
            once()
            if self.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            runs = [self.seconds(once) / batch]
            while len(runs) < 7 and time.perf_counter() < self.deadline:
                runs.append(self.seconds(once) / batch)
            return statistics.median(runs)

        seconds = median()
        row |= {"seconds_a_frame": round(seconds, 5), "gflop_a_frame": round(flops / 1e9, 1)}
        row["share_of_limit"] = round(flops / seconds / rate, 3)
        if self.device == "cuda":
            row["gpu_gib_peak"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
        if vars(net.model).pop("forward", None):
            row["pytorch_seconds_a_frame"] = round(median(), 5)
        return row

    def matrix_rate(self) -> float:
        """FLOP/s of a large matrix product in the dtype that `auto` chooses: the limit, as the hardware gives it."""
        dtype = prepare(load_upscaler(), "auto", torch.device(self.device)).dtype
        side = 64 if self.tiny else 8192 if self.device == "cuda" else 2048
        a = torch.randn(side, side).to(self.device, dtype)
        return 2 * side**3 / min(self.seconds(lambda: a @ a) for _ in range(12))

    def _source(self, frames: int) -> Path:
        return save_video(self.folder / "in.mp4", toyland.render(SCENE, *self.size, frames), 24)


@functools.cache
def flops_a_pixel(path: Path) -> float:
    """Floating point operations that a network needs for each input pixel, counted while it runs."""
    net = load_upscaler(path).model
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        net(torch.zeros(1, 3, 16, 16))
    return counter.get_total_flops() / 16**2


def go_through(bench: Bench, report: dict, out: Path, wanted: str = "") -> None:
    rate = bench.matrix_rate()
    report["matrix_product_tflops"] = round(rate / 1e12, 2)
    on_gpu, long = bench.device == "cuda", 2 if bench.tiny else 33
    rows = {
        "frames, pocket": lambda: bench.frames(POCKET),
        "frames, pocket in float32": lambda: bench.frames(POCKET, "float32"),
        "files, pocket": lambda: bench.file_to_file(POCKET, long),
    }
    if on_gpu:
        rows["files, x4plus"] = lambda: bench.file_to_file(X4PLUS, 17)
        rows["capped, pocket"] = lambda: bench.capped(POCKET)
        rows["capped, x4plus"] = lambda: bench.capped(X4PLUS)
    for name in NETWORKS:
        for height, width in bench.sizes:
            call = functools.partial(bench.network, name, height, width, rate)
            rows[f"networks, {name.split(' (')[0]}, {width}x{height}"] = call
    for key, call in rows.items():
        if re.search(wanted, key):
            guarded(report, key, call, out, bench.deadline)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=240, help="begin nothing new after this long")
    parser.add_argument("--rows", default="", help="regular expression for names of rows (default: all)")
    parser.add_argument("--tiny", action="store_true", help="toy sizes: the same lines on any machine")
    args = parser.parse_args()
    deadline = time.perf_counter() + args.seconds
    known = json.loads(args.out.read_text()) if args.rows and args.out.exists() else {}
    report = known | header("upscaling", threads=torch.get_num_threads(), weights="pocket's and random")
    # Processes that wanted a core just before: where it is above 0, others were at work too, and times are longer.
    report["load_before"] = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    for package in ("spandrel", "realesrgan", "basicsr", "mediapy", "imageio-ffmpeg"):
        try:
            report["versions"][package] = version(package)
        except PackageNotFoundError:
            report["versions"][package] = None
    with tempfile.TemporaryDirectory() as folder:
        go_through(Bench(args.device, args.tiny, deadline, Path(folder)), report, args.out, args.rows)
    write(args.out, report)


if __name__ == "__main__":
    main()
