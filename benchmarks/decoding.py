"""How long does decoding take, as it is and compiled? The VAE at full size with random weights, on an uncapped GPU.

    python -m benchmarks.decoding --out benchmarks/results/decoding.json

The whole stage is timed, from latents to frames in 8 bits, after a first tile; by size of tile, each as it is and as
`load(compile=True)` sets it up, with the seconds that the first tile then takes and the relative difference of its
pixels; and what a tile's time goes into. Random weights say nothing about pictures.
"""

from __future__ import annotations

import t2v_kit  # first: it makes torchvision importable

# isort: split
import argparse
import re
import time
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo

from benchmarks.common import GIB, guarded, header, kernels, measured, write
from benchmarks.full_size import FULL, TINY
from benchmarks.rows import SIZES, TINY_SIZE
from t2v_kit.hunyuan.compiling import compile_vae
from t2v_kit.memory.footprint import set_tiles
from t2v_kit.memory.plan import TILES

KINDS = ("as it is", "compiled")
PROFILED = (512, 448)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKEND = "inductor" if DEVICE == "cuda" else "eager"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300, help="begin nothing after this long")
    parser.add_argument("--size", default="720x1280x129", choices=SIZES)
    parser.add_argument("--rows", default="", help="only those whose name holds this regular expression")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, on any machine")
    args = parser.parse_args()
    deadline = time.perf_counter() + args.seconds
    report = header("decoding", sizes="tiny" if args.tiny else "full", size=args.size)
    config, size = (TINY, TINY_SIZE) if args.tiny else (FULL, SIZES[args.size])
    runs = {}
    for tile in filter(None, TILES):
        for kind in KINDS:
            setup = (config["vae"], size, tile, kind == "compiled")
            runs[f"tile {tile[0]}, {kind}"] = partial(decoding, *setup)
            if tile == PROFILED:
                runs[f"profile, {kind}"] = partial(profiled, *setup)
    for key, run in runs.items():
        if re.search(args.rows, key):
            guarded(report, key, run, args.out, deadline)
            plain, row = report.get(key.replace("compiled", "as it is"), {}), report[key]
            if "relative_difference" in row and "seconds" in plain:
                row["times_faster"] = round(plain["seconds"] / row["seconds"], 3)
    write(args.out, report)
    return 0


def decoding(config: dict, size: tuple[int, int, int], tile: tuple[int, int], compiled: bool) -> dict:
    """Seconds and peak of `decode` in float16 (on a CPU float32), a first tile decoded before."""
    models, latents = random_model(config, size, tile)
    vae, small = models.pipe.vae, of_one_tile(latents, tile)
    with torch.no_grad():
        first = vae.decode(small, return_dict=False)[0]
        row = {"weights_gib": round(sum(p.numel() for p in vae.parameters()) * latents.element_size() / GIB, 3)}
        if compiled:
            compile_vae(vae, BACKEND)
            began = time.perf_counter()
            other = vae.decode(small, return_dict=False)[0]
            row["relative_difference"] = float((other - first).float().norm() / first.float().norm())
            row["warm_up"] = round(time.perf_counter() - began, 1)
            del other
        del first
    with measured(row):
        t2v_kit.decode(models, latents)
    return row


def profiled(config: dict, size: tuple[int, int, int], tile: tuple[int, int], compiled: bool) -> dict:
    """The kernels that a tile's time goes into."""
    models, latents = random_model(config, size, tile)
    vae, small = models.pipe.vae, of_one_tile(latents, tile)
    if compiled:
        compile_vae(vae, BACKEND)
    with torch.no_grad():
        vae.decode(small)
        return kernels(lambda: vae.decode(small))


def random_model(config: dict, size: tuple[int, int, int], tile: tuple[int, int]):
    """A model whose VAE has random weights and works in such tiles, and latents of a video."""
    torch.manual_seed(0)
    dtype = torch.float32 if DEVICE == "cpu" else torch.float16
    models = t2v_kit.load("pocket", device=DEVICE)
    with torch.device(DEVICE):
        models.pipe.vae = torch.nn.Module.to(AutoencoderKLHunyuanVideo(**config), dtype).eval()
    set_tiles(models.pipe.vae, tile)
    height, width, frames = size
    shape = (1, models.pipe.vae.config.latent_channels, (frames - 1) // 4 + 1, height // 8, width // 8)
    return models, torch.randn(shape, device=DEVICE, dtype=dtype)


def of_one_tile(latents: torch.Tensor, tile: tuple[int, int]) -> torch.Tensor:
    """17 frames of the picture's corner, which are decoded at once, as a tile of the whole is; and their last five."""
    return latents[:, :, :5, : tile[0] // 8, : tile[0] // 8]


if __name__ == "__main__":
    raise SystemExit(main())
