"""How long does decoding take, as it is and compiled? The VAE at full size with random weights, on an uncapped GPU.

    python -m benchmarks.decoding --out benchmarks/results/decoding.json

The whole stage is timed, from latents to frames in 8 bits, after a first tile; by size of tile, each as it is and as
`load(compile=True)` sets it up, with the seconds that the first tile then takes, the relative difference of its pixels
and what its time goes into. Random weights say nothing about pictures.
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

from benchmarks.common import GIB, guarded, header, kernels, measured
from benchmarks.full_size import FULL, TINY
from benchmarks.rows import SIZES, TINY_SIZE
from t2v_kit.hunyuan.compiling import compile_vae
from t2v_kit.memory.footprint import set_tiles
from t2v_kit.memory.plan import TILES

KINDS = ("as it is", "compiled")


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
    for tile in filter(None, TILES):
        for kind in KINDS:
            key = f"tile {tile[0]}, {kind}"
            if re.search(args.rows, key):
                decode = partial(decoding, config["vae"], size, tile, kind == "compiled")
                guarded(report, key, decode, args.out, deadline)
                plain, row = report.get(f"tile {tile[0]}, {KINDS[0]}", {}), report[key]
                if kind == "compiled" and "seconds" in plain and "seconds" in row:
                    row["times_faster"] = round(plain["seconds"] / row["seconds"], 3)
    return 0


def decoding(config: dict, size: tuple[int, int, int], tile: tuple[int, int], compiled: bool) -> dict:
    """Seconds and peak of `decode` in float16 (on a CPU float32), a first tile decoded before."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else torch.float16
    with torch.device(device):
        vae = torch.nn.Module.to(AutoencoderKLHunyuanVideo(**config), dtype).eval()
    models = t2v_kit.load("pocket", device=device)
    models.pipe.vae = vae
    set_tiles(vae, tile)
    height, width, frames = size
    shape = (1, vae.config.latent_channels, (frames - 1) // 4 + 1, height // 8, width // 8)
    latents = torch.randn(shape, device=device, dtype=dtype)
    small = latents[:, :, :5, : tile[0] // 8, : tile[0] // 8]
    with torch.no_grad():
        first = vae.decode(small, return_dict=False)[0]
        row = {"weights_gib": round(sum(p.numel() for p in vae.parameters()) * latents.element_size() / GIB, 3)}
        if compiled:
            compile_vae(vae, "eager" if device == "cpu" else "inductor")
            began = time.perf_counter()
            other = vae.decode(small, return_dict=False)[0]
            row["relative_difference"] = float((other - first).float().norm() / first.float().norm())
            row["warm_up"] = round(time.perf_counter() - began, 1)
            del other
        del first
        row["one_tile"] = kernels(lambda: vae.decode(small))
    with measured(row):
        t2v_kit.decode(models, latents)
    return row


if __name__ == "__main__":
    raise SystemExit(main())
