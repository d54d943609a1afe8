"""Looking at videos: stills, contact sheets, players, films side by side; and MP4 files that say how they were made.

A video is `(T, H, W, 3)` uint8 everywhere, as in mediapy.
"""

import base64
import contextlib
import html
import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .settings import UserError

# Colours are tagged as BT.709, which is what browsers assume of HD video and ffmpeg does not write by itself:
# untagged, a small video and its enlargement would be shown in slightly different colours.
_TAGS = [
    *("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"),
    *("-movflags", "+faststart"),  # the index first, so that a browser starts playing at once
]
_MP4_ARGS = ["-vf", "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int", *_TAGS]
_CRF = 16  # of x264, for files: no loss that one sees
_PAPER, _INK, _GREY = (255, 255, 255), (32, 32, 32), (112, 112, 112)


def save_video(path: str | Path, video: np.ndarray, fps: float, metadata: dict | None = None) -> Path:
    """Write `(T, H, W, 3)` uint8 as H.264 yuv420p, which every browser plays; H and W must be even.

    Every frame is written once, at `fps` frames a second. `metadata` is stored as one JSON in the file's
    comment, the one field that MP4 keeps whatever is in it; `read_metadata` gives it back. The file gets its
    name when it is whole.
    """
    height, width = _checked(video).shape[1:3]
    with video_writer(path, (height, width), fps, metadata) as writer:
        for frame in video:
            writer.add_image(frame)
    return Path(path)


@contextlib.contextmanager
def video_writer(path: str | Path, shape: tuple[int, int], fps: float, metadata: dict | None = None) -> Iterator:
    """`save_video` for frames that come one by one: `with video_writer(...) as writer: writer.add_image(frame)`.

    shape: (height, width), even.  A frame is `(H, W, 3)` uint8, or `(H, W)` grey.
    """
    arguments = {"crf": _CRF, "encoded_format": "yuv420p", "ffmpeg_args": [*_MP4_ARGS, *_comment(metadata)]}
    with (
        whole_or_absent(path) as temporary,
        _mediapy().VideoWriter(temporary, shape, fps=fps, **arguments) as writer,
    ):
        yield writer


@contextlib.contextmanager
def whole_or_absent(path: str | Path) -> Iterator[Path]:
    """Where to write a video: beside `path`, which it is renamed to at the end, or removed when that fails."""
    path = Path(os.path.abspath(path))
    if path.name.startswith(".part."):  # who calls it so renames it, as RunFolder does
        yield path
        return
    temporary = path.with_name(f".part.{path.stem}.mp4")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def mp4_command(path: str | Path, shape: tuple[int, int], fps: float, metadata: dict | None = None) -> list[str]:
    """The command that writes what `video_writer` writes, from frames that come as yuv420p to its standard input."""
    form = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{shape[1]}x{shape[0]}", "-r", f"{fps}", "-i", "-"]
    codec = ["-an", "-vcodec", "libx264", "-pix_fmt", "yuv420p", "-crf", f"{_CRF}"]
    return [_ffmpeg(), "-v", "error", "-y", *form, *codec, *_TAGS, *_comment(metadata), os.path.abspath(path)]


def _comment(metadata: dict | None) -> list[str]:
    return ["-metadata", f"comment={json.dumps(metadata)}"] if metadata else []


@dataclass
class Frames:
    """What `video_reader` gives: `(H, W, 3)` uint8 frames, to be iterated once.

    shape: (height, width).  fps: frames a second.  num_images: how many there are, -1 when that is not known.
    """

    shape: tuple[int, int]
    fps: float
    num_images: int
    _pipe: BinaryIO = field(repr=False)

    def __len__(self) -> int:
        return max(self.num_images, 0)

    def __iter__(self) -> Iterator[np.ndarray]:
        while data := self._pipe.read(3 * self.shape[0] * self.shape[1]):
            yield np.frombuffer(data, np.uint8).reshape(*self.shape, 3)


@contextlib.contextmanager
def video_reader(path: str | Path) -> Iterator[Frames]:
    """A video file's frames one by one, `(H, W, 3)` uint8, as they are stored: none dropped or doubled.

    The film of a phone that was held upright comes upright, as players show it. What is yielded can be iterated
    once, and has `shape` (height, width), `fps` and `num_images`.
    Raises UserError when the file is missing or is no video.
    """
    # Not by mediapy, which gives such a film the shape of a wide one, and fails at tags that are no UTF-8.
    command = [_ffmpeg(), "-nostdin", "-i", os.path.abspath(path), "-map", "0:v:0", "-vsync", "vfr"]
    told = subprocess.run([*command, "-f", "null", "-"], capture_output=True).stderr.decode(errors="replace")
    stream = re.search(r"Stream #0:.*?: Video: .*?, (\d+)x(\d+).*?([\d.]+)(k?) (?:fps|tbr)", told)
    if not stream:
        why = "it has no pictures" if "Stream #0:" in told else told.strip().splitlines()[-1].strip()
        raise UserError(f"cannot read {str(path)!r} as a video: {why}")
    width, height = int(stream[1]), int(stream[2])
    turned = re.search(r"rotation of (-?[\d.]+)", told[stream.end() :].split("Stream #")[0])  # the next is another's
    if turned and round(float(turned[1])) % 180 == 90:
        width, height = height, width
    counts = re.findall(r"frame= *(\d+)", told)
    fps = float(stream[3]) * (1000 if stream[4] else 1)
    command += ["-v", "panic", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        yield Frames((height, width), _whole_rate(fps), int(counts[-1]) if counts else -1, process.stdout)


def _whole_rate(fps: float) -> float:
    """Broadcasting's rates, which ffmpeg tells to two digits only: 23.98 is 24000/1001, 29.97 is 30000/1001."""
    broadcast = round(fps * 1.001) * 1000 / 1001
    return broadcast if fps % 1 and abs(fps - broadcast) < 0.006 else fps


def read_metadata(path: str | Path) -> dict:
    """What `save_video` stored in the MP4: prompt, seed, settings, versions and the hash of the weights.

    Raises UserError when the file is missing, is not a video, or carries no such comment.
    """
    command = [_ffmpeg(), "-v", "error", "-i", os.path.abspath(path), "-f", "ffmetadata", "-"]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    if result.returncode:
        raise UserError(f"cannot read {str(path)!r} as a video: {result.stderr.strip().splitlines()[-1]}")
    found = re.search(r"^comment=((?:\\.|[^\\\n])*)$", result.stdout, flags=re.MULTILINE | re.DOTALL)
    with contextlib.suppress(TypeError, json.JSONDecodeError):  # no comment, or none of ours
        told = json.loads(re.sub(r"\\(.)", r"\1", found[1], flags=re.DOTALL))  # ffmetadata escapes = ; # and \
        if isinstance(told, dict):
            return told
    raise UserError(f"{str(path)!r} does not say how it was made; videos written by t2v_kit do")


def stills(video: np.ndarray, count: int = 6) -> np.ndarray:
    """`count` frames from the first to the last, evenly spaced, in one strip: `(H, W', 3)` uint8."""
    frames = _checked(video)[_spread(len(video), count)]
    gap = np.full((frames.shape[1], 4, 3), 255, np.uint8)
    return np.concatenate([part for frame in frames for part in (gap, frame)][1:], axis=1)


def contact_sheet(
    video: np.ndarray, fps: float, title: str = "", count: int = 12, columns: int = 4, frame_width: int = 320
) -> Image.Image:
    """`count` evenly spaced frames in a grid, each with its time in seconds, under a title.

    Raises UserError for columns below 1.
    """
    if columns < 1:
        raise UserError(f"columns={columns}: must be at least 1; 4 would work.")
    chosen = _spread(len(_checked(video)), count)
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)
    margin, label = 20, 26
    height = round(video.shape[1] * frame_width / video.shape[2])
    width = columns * (frame_width + margin) + margin
    lines = _wrap(title, _font(20), width - 2 * margin)
    top = margin + 28 * len(lines) + (8 if lines else 0)
    sheet = Image.new("RGB", (width, top + rows * (height + label + 10) + margin - 10), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((margin, margin - 4 + 28 * number), line, fill=_INK, font=_font(20))
    for place, index in enumerate(chosen):
        x = margin + place % columns * (frame_width + margin)
        y = top + place // columns * (height + label + 10)
        sheet.paste(_resized(video[index], frame_width, height), (x, y))
        draw.text((x, y + height + 5), f"{index / fps:.2f} s", fill=_GREY, font=_font(15))
    return sheet


def side_by_side(videos: dict[str, np.ndarray], height: int | None = None) -> np.ndarray:
    """Films next to each other under their names: `(T, H', W', 3)` uint8, all brought to one height.

    `height` is that of the tallest when left out. Smaller films are enlarged by repeating pixels, so that
    what is seen is what is there. Raises UserError when they differ in their number of frames.
    """
    lengths = {name: len(_checked(video)) for name, video in videos.items()}
    if len(set(lengths.values())) != 1:
        raise UserError(f"films side by side need the same number of frames, but these have {lengths}")
    height = height or max(video.shape[1] for video in videos.values())
    panels = [_panel(name, video, height + height % 2) for name, video in videos.items()]
    gap = np.full((*panels[0].shape[:2], 8, 3), 255, np.uint8)
    return np.concatenate([part for panel in panels for part in (gap, panel)][1:], axis=2)


def split_at(a: np.ndarray, b: np.ndarray, percent: float) -> np.ndarray:
    """`a` left of a white line at `percent` of the width, `b` right of it: `(T, H, W, 3)` uint8, all of one shape."""
    at = round(a.shape[2] * percent / 100)
    both = np.concatenate([a[:, :, :at], b[:, :, at:]], axis=2)
    both[:, :, max(at - 1, 0) : at + 1] = 255
    return both


def animation(video: np.ndarray, fps: float, width: int = 384, quality: int = 60) -> bytes:
    """An animated WebP that repeats for ever, at most `width` pixels wide: for pages that block MP4."""
    frames = [_fitted(frame, width) for frame in _checked(video)]
    times = np.round(np.arange(len(frames) + 1) * 1000 / fps).astype(int)  # whole milliseconds that do not drift
    file = io.BytesIO()
    frames[0].save(
        file, "WEBP", save_all=True, append_images=frames[1:], duration=np.diff(times).tolist(), loop=0,
        quality=quality, method=4,
    )  # fmt: skip
    return file.getvalue()


def show_video(video: np.ndarray, fps: float, title: str = "", width: int = 768, page_width: int = 384) -> None:
    """Play a video inside the notebook, at most `width` pixels wide.

    Two faces of one output: a live notebook shows the H.264 player; pages that block players (a notebook
    on GitHub) show an animated WebP, at most `page_width` wide, which browsers accept in the place of a PNG.
    """
    from IPython.display import display

    frames = np.stack([_fitted(frame, width) for frame in _checked(video)])
    mediapy, (height, shown_width) = _mediapy(), frames.shape[1:3]
    encoded = "yuv420p" if height % 2 == shown_width % 2 == 0 else "yuv444p"
    mp4 = mediapy.compress_video(frames, fps=fps, crf=18, encoded_format=encoded, ffmpeg_args=_MP4_ARGS)
    player = mediapy.html_from_compressed_video(mp4, shown_width, height, title=html.escape(title) or None)
    webp = base64.b64encode(animation(video, fps, page_width)).decode()
    words = f"{title or 'video'}: {len(video)} frames of {video.shape[2]}x{video.shape[1]} at {fps:g} fps"
    display({"text/html": player, "image/png": webp, "text/plain": words}, raw=True)


def show_image(image: np.ndarray | Image.Image, width: int = 1200) -> None:
    """Show a picture in the notebook as one JPEG, at most `width` pixels wide (a tenth of a PNG's size)."""
    from IPython.display import Image as Shown
    from IPython.display import display

    file = io.BytesIO()
    _fitted(np.asarray(image), width).convert("RGB").save(file, "JPEG", quality=85)
    display(Shown(data=file.getvalue(), format="jpeg"))


def _checked(video: np.ndarray) -> np.ndarray:
    """The video itself, once it is one."""
    if not isinstance(video, np.ndarray) or video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3:
        got = f"{video.shape} {video.dtype}" if isinstance(video, np.ndarray) else type(video).__name__
        raise UserError(f"a video is a NumPy array (T, H, W, 3) of uint8, but this is {got}")
    if 0 in video.shape:
        raise UserError(f"a video needs at least one frame and one pixel, but this is {video.shape}")
    return video


def _spread(length: int, count: int) -> list[int]:
    """At most `count` different frame numbers from the first to the last."""
    return np.unique(np.linspace(0, length - 1, max(count, 1)).round().astype(int)).tolist()


def _resized(frame: np.ndarray, width: int, height: int) -> Image.Image:
    return Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS)


def _fitted(frame: np.ndarray, width: int) -> Image.Image:
    """The frame, made smaller when it is wider than `width`; its height stays even when it was."""
    if frame.shape[1] <= width:
        return Image.fromarray(frame)
    return _resized(frame, width, max(2, round(frame.shape[0] * width / frame.shape[1] / 2) * 2))


def _panel(name: str, video: np.ndarray, height: int) -> np.ndarray:
    """One named film of `side_by_side`: `(T, height + 28, W, 3)`."""
    width = round(video.shape[2] * height / video.shape[1] / 2) * 2
    label = Image.new("RGB", (width, 28), _PAPER)
    ImageDraw.Draw(label).text((2, 3), _shortened(name, _font(16), width - 4), fill=_INK, font=_font(16))
    film = [Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST) for frame in video]
    return np.stack([np.concatenate([np.asarray(label), np.asarray(frame)]) for frame in film])


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, or as much of its beginning as fits into `width` pixels with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows most alphabets."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The text in lines no wider than `width` pixels, broken between words."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _ffmpeg() -> str:
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def _mediapy():
    """mediapy with the ffmpeg that imageio-ffmpeg brings along: set at first use, because it is global."""
    import mediapy

    mediapy.set_ffmpeg(_ffmpeg())
    return mediapy
