"""A sheet to draw boxes, arrows and small pictures on, in pixels: what `diagram` is drawn with."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path
from PIL import Image


class Board:
    """A sheet with pixels for coordinates, y downwards, that knows which part is lit."""

    INK, LINE, PALE_TEXT = "#22252B", "#70757F", "#9A9FA8"

    def __init__(self, width: int, height: int, colours: dict[str, str], lit: str | None):
        self.colours, self.lit = colours, lit
        self.figure = Figure(figsize=(width / 100, height / 100), dpi=200, facecolor="white")
        FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes([0, 0, 1, 1], xlim=(0, width), ylim=(height, 0))
        self.axes.axis("off")

    def picture(self) -> Image.Image:
        self.figure.canvas.draw()
        return Image.fromarray(np.asarray(self.figure.canvas.buffer_rgba())[..., :3])

    def shines(self, part: str) -> bool:
        return self.lit in (None, part)

    def text(self, x, y, words, size=11, part=None, colour=None, **keywords) -> None:
        colour = colour or (self.INK if part is None or self.shines(part) else self.PALE_TEXT)
        keywords = {"ha": "center", "va": "center", "linespacing": 1.25} | keywords
        self.axes.text(x, y, words, size=size * 0.72, color=colour, zorder=5, **keywords)

    def box(self, part, x, y, width, height, title="", note="", size=13, frame=False, at_top=False, room=0) -> None:
        """A rounded box with words in its middle, or `at_top` of it, `room` pixels at its right left free.

        `frame` keeps it light, for others inside, its title at the top left, or in the middle `at_top`.
        """
        strong, shines = self.colours[part], self.shines(part)
        face = mixed(strong, 0.9 if shines else 0.96) if frame else strong if shines else mixed(strong, 0.88)
        edge = strong if shines else mixed(strong, 0.65)
        shape = f"round,pad=0,rounding_size={10 if frame else 6}"
        self.axes.add_patch(
            FancyBboxPatch((x, y), width, height, shape, fc=face, ec=edge, lw=1.1 if shines else 0.7, zorder=2)
        )
        ink = (strong if frame else "white") if shines else mixed(strong, 0.35)
        if frame:
            place = {"x": x + width / 2} if at_top else {"x": x + 12, "ha": "left"}
            self.text(y=y + 15, words=title, size=size, colour=ink, weight="bold", **place)
            return
        middle, lines = x + (width - room) / 2, note.count("\n") + 1 if note else 0
        self.text(middle, y + (14 if at_top else height / 2 - 6.5 * lines), title, size, colour=ink, weight="bold")
        if note:
            self.text(middle, y + height / 2 + 8.5, note, 10, colour=ink)

    def block(self, part, x, y, width, height) -> None:
        """A small plain rectangle on top of a box: one block of the transformer."""
        face = "white" if self.shines(part) else mixed(self.colours[part], 0.7)
        self.axes.add_patch(Rectangle((x, y), width, height, fc=face, ec="none", alpha=0.92, zorder=4))

    def patch(self, part, x, y, width, height, words, strong=False) -> None:
        """A square-cornered field of a small chart, `strong` or lighter."""
        face = mixed(self.colours[part], (0 if strong else 0.75) if self.shines(part) else (0.7 if strong else 0.92))
        self.axes.add_patch(Rectangle((x, y), width, height, fc=face, ec="none", zorder=2))
        self.text(x + width / 2, y + height / 2, words, 10, part, "white" if strong else None)

    def arrow(self, *points, dashed=False, head=True) -> None:
        """A line through `points`, (x, y) each, with a head at its end."""
        style = "-|>,head_length=3.2,head_width=1.9" if head else "-"
        self.axes.add_patch(
            FancyArrowPatch(
                path=Path(points), arrowstyle=style, lw=1, color=self.LINE, zorder=3, joinstyle="round",
                linestyle=(0, (3, 2)) if dashed else "-",
            )
        )  # fmt: skip

    def thumbnail(self, x, y, width, height, pixels, part=None) -> None:
        """A small picture (h, w, 3) uint8, its pixels as squares; paler when its part is not lit."""
        paler = pixels if part is None or self.shines(part) else (pixels * 0.4 + 255 * 0.6).astype(np.uint8)
        self.axes.imshow(paler, extent=(x, x + width, y + height, y), interpolation="nearest", zorder=4, aspect="auto")


def mixed(colour: str, white: float) -> tuple[float, ...]:
    """`colour` with this share of white in it."""
    return tuple(channel * (1 - white) + white for channel in to_rgb(colour))
