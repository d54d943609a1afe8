"""Knobs above a picture that follows them, and below it a strip of pictures for pages that cannot run anything.

A picture is `(H, W, 3)` uint8 and a video `(T, H, W, 3)` uint8, as everywhere. Written for ipywidgets 7.7, which Colab
has, and 8. The picture that follows is an `ipywidgets.Image` whose bytes are replaced, not captured output: so it works
without a front-end as well, and a test turns a knob by setting its `.value`.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import UserError, quoted
from .pictures import side_by_side, split_at
from .players import animation, show_image

if TYPE_CHECKING:
    import ipywidgets

_KINDS = "a knob is (min, max, step), a list of choices, a dict of named choices, True or False"
_LIVE = 768  # pixels: the width of the picture that follows the knobs
_SMALL = 384  # pixels: a narrower picture is enlarged by repeating its pixels
_STRIP = {"picture": 1120, "video": 768}  # pixels: the widest strip; every frame of a video's is stored
_WIDE = 3  # pictures at least this many times wider than high are stacked in the strip


def explore(draw: Callable[..., np.ndarray], *, strip: int = 5, fps: float = 16, **knobs) -> None:
    """Show the picture or video that `draw` returns, with a knob for each of its arguments.

    Pictures are drawn once for each position of the knobs and kept. An exception of `draw` is raised at the start; once
    a knob has been turned, it is shown in a line below the knobs.

    Args:
        draw: Called with a value for each knob, by name; returns a picture `(H, W, 3)` or a video `(T, H, W, 3)`,
            uint8.
        strip: The number of values of the first knob in the labelled strip below, drawn with the other knobs at their
            start; 0 for no strip. The strip is stored with the notebook, so that a page that cannot run anything shows
            what the knob does.
        fps: Frames a second of videos.
        **knobs: `(min, max, step)` is a slider that starts in the middle, of whole numbers if all three are; a list is
            a drop-down that starts at its first choice; a dict is a drop-down that shows its keys and passes its
            values; True or False is a check box that starts so.

    Raises:
        UserError: A knob is none of these, or `draw` returns something else.

    Example:
        >>> explore(lambda sigma, seed: picture(sigma, seed), sigma=(0.0, 1.0, 0.05), seed=[0, 1, 2])
    """
    turned = {name: _knob(name, given) for name, given in knobs.items()}
    if not turned:
        raise UserError("explore needs at least one knob; seed=[0, 1, 2] would work.")
    kept: dict[tuple, tuple[str, bytes]] = {}  # the picture as (format, bytes), by the knobs' stops

    def frames_at(stops: tuple) -> np.ndarray:
        values = {name: knob.meaning(stop) for (name, knob), stop in zip(turned.items(), stops)}
        frames = _frames(draw(**values), "draw must give")
        kept[stops] = _encoded(frames, fps)
        return frames

    def encoded_at(stops: tuple) -> tuple[str, bytes]:
        if stops not in kept:
            frames_at(stops)
        return kept[stops]

    start = tuple(knob.stop for knob in turned.values())
    first, *_ = turned.values()
    shown = [first.stops[i] for i in np.unique(np.linspace(0, len(first.stops) - 1, strip).round().astype(int))]
    panels = {first.label(stop): _strip_panel(frames_at((stop, *start[1:])), len(shown)) for stop in shown}
    _show_live(list(turned.values()), encoded_at, start)
    _show_strip(panels, fps)


def wipe(a: np.ndarray, b: np.ndarray, names: tuple[str, str] = ("before", "after"), fps: float = 16) -> None:
    """Show a slider that wipes between two pictures or videos: `a` left of a white line, `b` right of it.

    The smaller one is enlarged by repeating pixels, so that the picture shows its own pixels. The strip below shows
    `a`, half of each, and `b`.

    Args:
        a, b: Pictures `(H, W, 3)` or videos `(T, H, W, 3)`, uint8, of one aspect ratio and number of frames.
        names: Their names.
        fps: Frames a second of videos.

    Raises:
        UserError: The two differ in their number of frames, or one is neither a picture nor a video.
    """
    a, b = _frames(a, "wipe takes"), _frames(b, "wipe takes")
    if len(a) != len(b):
        raise UserError(
            f"{names[0]!r} has {len(a)} frames and {names[1]!r} has {len(b)}: wipe needs the same number; "
            f"the first {min(len(a), len(b))} of both would work."
        )
    size = max(a.shape[2], b.shape[2]), max(a.shape[1], b.shape[1])
    a, b = (np.stack([_sized(frame, *size) for frame in frames]) for frames in (a, b))

    explore(lambda wipe: split_at(a, b, wipe), strip=0, fps=fps, wipe=(0, 100, 5))
    panels = {names[0]: a, f"{names[0]} | {names[1]}": split_at(a, b, 50), names[1]: b}
    _show_strip({name: _strip_panel(frames, 3) for name, frames in panels.items()}, fps)


def step_through(videos: dict[str, np.ndarray]) -> None:
    """Show videos side by side as still frames, with a slider that goes from frame to frame.

    For the moving picture there is `show_video(side_by_side(videos), fps)`.

    Args:
        videos: `(T, H, W, 3)` uint8 by name, all with the same number of frames.

    Raises:
        UserError: As `side_by_side` says.
    """
    together = side_by_side(videos)
    if len(together) == 1:
        show_image(together[0])
    else:
        explore(lambda frame: together[frame], strip=3, frame=(0, len(together) - 1, 1))


@dataclass(frozen=True)
class _Knob:
    """A widget, its possible values (`stops`), and each stop's meaning to `draw` and label to a reader."""

    widget: ipywidgets.ValueWidget
    stops: list
    meaning: Callable[[Any], Any]
    label: Callable[[Any], str]

    @property
    def stop(self):
        """The current stop. The browser's side of a slider counts in floats that are a little off."""
        value = self.widget.value
        return round(value, 9) if isinstance(value, float) else value


def _knob(name: str, given) -> _Knob:
    import ipywidgets

    looks = {"description": name.replace("_", " "), "style": {"description_width": "initial"}}
    if isinstance(given, bool):
        return _Knob(ipywidgets.Checkbox(given, **looks), [False, True], bool, lambda stop: f"{name} = {stop}")
    if isinstance(given, tuple):
        stops = _slider_stops(name, given)
        slider = ipywidgets.IntSlider if isinstance(stops[0], int) else ipywidgets.FloatSlider
        decimals = max(len(f"{stop:.9f}".rstrip("0").partition(".")[2]) for stop in stops)
        looks["readout_format"] = "d" if slider is ipywidgets.IntSlider else f".{decimals}f"
        start = stops[(len(stops) - 1) // 2]
        limits = {"min": stops[0], "max": stops[-1], "step": given[2], "value": start, "continuous_update": False}
        return _Knob(slider(**limits, **looks), stops, lambda stop: stop, lambda stop: f"{name} = {stop:g}")
    if isinstance(given, (list, range, dict)) and len(given):
        labels = [str(choice) for choice in given]
        choices = list(given.values()) if isinstance(given, dict) else list(given)
        # The widget's own values are places in the list: choices need not be comparable then.
        widget = ipywidgets.Dropdown(options=[(label, place) for place, label in enumerate(labels)], value=0, **looks)
        captions = labels if isinstance(given, dict) else [f"{name} = {label}" for label in labels]
        return _Knob(widget, list(range(len(choices))), choices.__getitem__, captions.__getitem__)
    raise UserError(f"{name}={quoted(given)}: {_KINDS}; [{quoted(given)}] would work.")


def _slider_stops(name: str, given: tuple) -> list:
    good = len(given) == 3 and all(isinstance(x, Real) and not isinstance(x, bool) for x in given)
    if not good or not (given[0] < given[1] and given[2] > 0):
        raise UserError(
            f"{name}={quoted(given)}: a slider is (min, max, step) with min < max and step > 0; (0, 10, 1) would work."
        )
    low, high, step = given
    stops = [round(low + step * place, 9) for place in range(int((high - low) / step + 1e-6) + 1)]
    return [int(stop) for stop in stops] if all(isinstance(x, int) for x in given) else [float(stop) for stop in stops]


def _show_live(knobs: list[_Knob], encoded_at: Callable[[tuple], tuple[str, bytes]], start: tuple) -> None:
    """Show the knobs, a line for errors, and the picture that follows."""
    import ipywidgets
    from IPython.display import display

    picture, message = ipywidgets.Image(layout={"max_width": "100%", "align_self": "flex-start"}), ipywidgets.HTML()
    picture.format, picture.value = encoded_at(start)

    def follow(_) -> None:
        message.value = "drawing …"
        try:
            encoded = encoded_at(tuple(knob.stop for knob in knobs))
        except Exception as error:  # nobody would see what an observer raises
            message.value = html.escape(" ".join(f"{type(error).__name__}: {error}".split()))
            return
        with picture.hold_sync():  # both at once
            picture.format, picture.value = encoded
        message.value = ""

    for knob in knobs:
        knob.widget.observe(follow, "value")
    box = ipywidgets.VBox([*(knob.widget for knob in knobs), message, picture])
    box.add_class("t2v-explore")
    display(box)


def _frames(picture, who: str) -> np.ndarray:
    """A picture or a video as `(T, H, W, 3)` uint8."""
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-1] != 3 or 0 in pixels.shape:
        kind = f"{pixels.shape} {pixels.dtype}" if pixels.dtype != object else type(picture).__name__
        raise UserError(f"{who} a picture (H, W, 3) or a video (T, H, W, 3) of uint8, not {kind}.")
    return pixels if pixels.ndim == 4 else pixels[None]


def _encoded(frames: np.ndarray, fps: float) -> tuple[str, bytes]:
    """(format, bytes) for a page: a picture as PNG, a video as animated WebP."""
    height, width = frames.shape[1:3]
    times = min(_LIVE / width, max(1, _SMALL // width))
    size = max(1, round(width * times)), max(1, round(height * times))
    if len(frames) > 1:
        return "webp", animation(np.stack([_sized(frame, *size) for frame in frames]), fps, width=_LIVE, quality=75)
    file = io.BytesIO()
    Image.fromarray(_sized(frames[0], *size)).save(file, "PNG")
    return "png", file.getvalue()


def _sized(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    """`frame` at another size: enlarged by repeating pixels, made smaller by Lanczos."""
    if frame.shape[:2] == (height, width):
        return frame
    how = Image.Resampling.LANCZOS if width < frame.shape[1] else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(frame).resize((width, height), how))


def _strip_panel(frames: np.ndarray, count: int) -> np.ndarray:
    """Frames in the size for a strip of `count` panels; wide ones are stacked, and get all of its width."""
    height, width = frames.shape[1:3]
    strip = _STRIP["video" if len(frames) > 1 else "picture"]
    widest = strip if _wide(frames) else strip // count
    times = widest / width if width > widest else max(1, min(widest, _SMALL) // width)
    size = max(1, round(width * times)), max(1, round(height * times))
    return np.stack([_sized(frame, *size) for frame in frames])


def _show_strip(panels: dict[str, np.ndarray], fps: float) -> None:
    """Show labelled panels as one picture: a JPEG, or an animated WebP in the place of a PNG, as in `show_video`."""
    from IPython.display import display

    if not panels:
        return
    longest = max(map(len, panels.values()))  # shorter videos stop at their last frame
    panels = {name: video[np.arange(longest).clip(max=len(video) - 1)] for name, video in panels.items()}
    together = _below(panels) if _wide(*panels.values()) else side_by_side(panels)
    if len(together) == 1:
        show_image(together[0])
        return
    data = base64.b64encode(animation(together, fps, width=_STRIP["video"], quality=50)).decode()
    display({"image/png": data, "text/plain": ", ".join(panels)}, raw=True)


def _wide(*videos: np.ndarray) -> bool:
    return all(video.shape[2] >= _WIDE * video.shape[1] for video in videos)


def _below(panels: dict[str, np.ndarray]) -> np.ndarray:
    """As `side_by_side`, but one below the other."""
    rows = [side_by_side({name: video}, video.shape[1]) for name, video in panels.items()]
    width = max(row.shape[2] for row in rows)
    padded = [np.pad(r, [(0, 0), (0, 0), (0, width - r.shape[2]), (0, 0)], constant_values=255) for r in rows]
    return np.concatenate(padded, axis=1)
