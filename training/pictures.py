"""The pictures that show pocket: those of its card and of README, from the weights as they are shipped.

    python -m training.pictures --out training/out

--out is where `training.evaluate` left its sheet of held-out captions, which becomes assets/pocket_captions.webp.

assets/pocket_vae.webp: two held-out clips, drawn, through the VAE, and their difference enlarged.
assets/pocket_upscaled.webp: a generated frame and one drawn small, enlarged by Lanczos and by pocket's upscaler.
assets/demo.webp and assets/contact_sheet.png: README's prompt, with its seed, enlarged.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from PIL import Image

import t2v_kit
from t2v_kit import toyland
from training.batches import compare
from training.common import options
from training.probe import through

ASSETS = Path(__file__).parents[1] / "assets"
PROMPT, SEED = "Sunny day, freedom and adventure, high motion. A man with a beard riding a motorcycle on the street.", 3
SMALL = 576, 336  #: of demo.webp: three quarters of the enlarged video


def vae(models, out: Path):
    rng = random.Random(1_000_000)
    scenes = [toyland.random_scene(rng, pair=1.0, unseen=True) for _ in range(2)]
    pairs = [(true, through(models.pipe.vae, true[None])[0]) for true in toyland.render_batch(scenes)]
    sheet = out / "pocket_vae.png"
    compare(pairs, sheet)
    as_webp(sheet, "pocket_vae")


def demo(out: Path) -> np.ndarray:
    """Writes README's video and contact sheet; returns the video as pocket made it, (T, H, W, 3) uint8."""
    result = t2v_kit.generate(PROMPT, out=out, seed=SEED)
    frames = result.upscaled
    assert frames is not None
    large = [Image.fromarray(frame).resize(SMALL, Image.Resampling.LANCZOS) for frame in frames]
    large[0].save(
        ASSETS / "demo.webp", save_all=True, append_images=large[1:], duration=62, loop=0, quality=70, method=6
    )
    (ASSETS / "contact_sheet.png").write_bytes((out / "contact_sheet.png").read_bytes())
    return result.video


def enlarged(frame: np.ndarray):
    scene = toyland.Scene("cat", "white", "meadow", "night", "left", "slow", seed=5)
    rows = []
    for low in (frame, toyland.render(scene, num_frames=17)[8]):
        sides = [t2v_kit.upscale(low[None], name)[0] for name in ("lanczos", "pocket")]
        h, w = sides[0].shape[:2]
        rows.append(np.concatenate([side[h // 4 :, w // 8 : 7 * w // 8] for side in sides], 1))
    Image.fromarray(np.concatenate(rows)).save(ASSETS / "pocket_upscaled.webp", quality=85, method=6)


def as_webp(picture: Path, name: str):
    Image.open(picture).save(ASSETS / f"{name}.webp", quality=85, method=6)


def main():
    args = options((__doc__ or "").splitlines()[0])
    models = t2v_kit.load("pocket", dtype="float32", device="cpu")
    vae(models, args.out)
    as_webp(args.out / "adherence.png", "pocket_captions")
    video = demo(args.out / "demo")
    enlarged(video[len(video) // 2])


if __name__ == "__main__":
    main()
