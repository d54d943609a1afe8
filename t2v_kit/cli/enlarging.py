"""`t2v upscale`: enlarge a video file."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from ..errors import UserError
from ..memory.drivers import check_device
from ..stages.upscaling.names import check_name, check_strength
from .app import app, import_quietly


@app.command
def upscale(
    source: str,
    target: str,
    /,
    *,
    model: str | None = None,
    scale: float = 4,
    codec: str | None = None,
    crf: int | None = None,
    bit_depth: int | None = None,
    fps: str = "keep",
    audio: str = "copy",
    denoise_strength: float | None = None,
    tile: int | None = None,
    batch: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
) -> None:
    """Enlarge a video file. If interrupted, the same command resumes.

    Args:
        source: The video to read.
        target: The video to write: .mp4, .m4v, .mov, .mkv, .webm or .gif.
        model: pocket, lanczos, a weight file, or a published network's name; by default pocket for what it made.
        scale: The enlargement, 1 to 16.
        codec: h264, hevc, av1, vp9, ffv1 (lossless) or prores; by default the usual one of the target's kind.
        crf: The quality, 0 (best) to 51; for av1 and vp9 to 63.
        bit_depth: 8 or 10; 10 also keeps HDR, which is otherwise mapped to SDR.
        fps: keep, or the frames a second to show.
        audio: copy or none.
        denoise_strength: 0 keeps noise, 1 takes it away; for upscalers that come in pairs.
        tile: Side of the tiles in input pixels, a multiple of 8; 0 for none.
        batch: Frames at work together.
        dtype: float32, bfloat16, float16 or auto.
        device: cpu, cuda or cuda:1; by default the first GPU.
    """
    if not Path(source).expanduser().exists():
        raise UserError(f"{source!r}: there is no such file to enlarge.")
    rate: str | float = fps
    if fps != "keep":
        try:
            rate = float(fps)
        except ValueError:
            raise UserError(f"--fps {fps}: must be keep or a number; keep would work.") from None
    if model is not None:
        check_name(model)
    if denoise_strength is not None and model is not None:
        check_strength(model, denoise_strength)
    check_device(device)
    from ..stages.upscaling.options import check_audio, check_dtype, check_fps, check_options, check_place
    from ..video.encoding import encoding_for
    from ..video.files import video_reader

    check_options(scale, tile, batch)
    encoding_for(Path(target).expanduser(), codec, crf, bit_depth)
    check_fps(rate)
    check_audio(audio)
    check_dtype(dtype or "auto")
    check_place(Path(target).expanduser())
    with video_reader(source):
        pass  # it opens as a video
    options = {
        "codec": codec, "crf": crf, "bit_depth": bit_depth, "denoise_strength": denoise_strength,
        "tile": tile, "batch": batch, "dtype": dtype, "device": device,
    }  # fmt: skip
    started = time.perf_counter()
    import_quietly("stages.upscaling.films")
    from ..stages.upscaling.films import DamagedVideo, upscale_file

    small = Path(source).expanduser()
    given = {name: value for name, value in options.items() if value is not None}
    try:
        path = upscale_file(small, target, model, scale, fps=rate, audio=audio, **given)
    except DamagedVideo as damage:  # not the user's mistake: another exit status
        print(f"t2v: {damage}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt("; the same command resumes it") from None
    print(f"written  {path}  {path.stat().st_size / 1000:.1f} kB  in {time.perf_counter() - started:.1f} s")
