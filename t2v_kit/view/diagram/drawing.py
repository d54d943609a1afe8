# ruff: noqa: RUF001 (a drawing has multiplication signs and a sigma)
"""The pipeline's architecture as a drawing: a band for the top of a notebook, and the whole of it."""

from __future__ import annotations

import base64
import difflib
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ...errors import UserError
from ...toyland import Scene, render

if TYPE_CHECKING:
    from .board import Board


# Part: its colour, dark enough for white letters on it, and what it does.
PARTS = {
    "prompt": ("#3A6EA5", "words become numbers"),
    "noise": ("#6B6B7B", "where the video starts"),
    "transformer": ("#C8553D", "video and text attend to each other"),
    "denoise": ("#8E4585", "noise becomes latents, step by step"),
    "vae": ("#2E7D4F", "latents become frames"),
    "upscale": ("#A67C00", "frames become larger"),
}


def show_diagram(lit: str | None = None, small: bool = True) -> None:
    """Show the architecture in the notebook, with one part in colour and the others pale.

    lit: 'prompt', 'noise', 'transformer', 'denoise', 'vae' or 'upscale'; None colours all of them.
    small: a band of 900x130 pixels; False draws every block (1200x990).
    Raises UserError for a part that is not in the drawing.
    """
    from IPython.display import display

    picture = diagram(lit, small)
    file = io.BytesIO()
    picture.quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    words = f"The pipeline: {' > '.join(PARTS)}." + (f" Lit: {lit}, {PARTS[lit][1]}." if lit else "")
    data = {"image/png": base64.b64encode(file.getvalue()).decode(), "text/plain": words}
    # Drawn with two pixels for each one shown, so that letters are sharp on fine screens.
    display(data, metadata={"image/png": {"width": picture.width // 2, "alt": words}}, raw=True)


def diagram(lit: str | None = None, small: bool = True) -> Image.Image:
    """What `show_diagram` shows, as an RGB picture with twice its width and height in pixels."""
    if lit is not None and lit not in PARTS:
        near = difflib.get_close_matches(str(lit), PARTS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(PARTS)} would work."
        raise UserError(f"lit={lit!r}: is not a part of the diagram; {hint}")
    from .board import Board  # here: matplotlib writes a font cache when it is first imported

    colours = {part: colour for part, (colour, _) in PARTS.items()}
    board = Board(*((900, 130) if small else (1200, 990)), colours, lit)
    (_band if small else _whole)(board)
    return board.picture()


def _scene(height: int) -> np.ndarray:
    """A frame of Toyland at any size, (height, width, 3) uint8: what comes out in the end."""
    scene = Scene("car", "red", "street", "sunny", "right", "slow", seed=3)
    return render(scene, height, height * 12 // 7, 1)[0]


def _noise() -> np.ndarray:
    return np.random.default_rng(0).integers(60, 240, (7, 12, 3)).astype(np.uint8)


def _band(board: Board) -> None:
    """900 x 130: the parts in the order in which a prompt meets them."""
    board.box("prompt", 8, 12, 132, 47, "prompt", "Llama · CLIP")
    board.box("noise", 8, 71, 132, 47, "noise", room=66)
    board.thumbnail(76, 78, 56, 33, _noise(), "noise")
    board.box("denoise", 176, 8, 284, 114, "denoise", frame=True)
    board.box("transformer", 196, 42, 206, 68, "transformer", at_top=True)
    for number in range(4):  # dual-stream blocks have a lane for text and one for video, single-stream blocks one
        board.block("transformer", 208 + 21 * number, 70, 13, 13)
        board.block("transformer", 208 + 21 * number, 87, 13, 13)
    for number in range(7):
        board.block("transformer", 296 + 14 * number, 70, 8, 30)
    board.arrow((140, 36), (168, 36), (168, 62), (196, 62))
    board.arrow((140, 94), (168, 94), (168, 88), (196, 88))
    board.arrow((402, 76), (478, 76))
    board.arrow((430, 76), (430, 23), (299, 23), (299, 42))
    board.text(364, 31, "again, less noisy", 9, "denoise")
    for x, width, name, height in ((478, 60, "latents", 14), (648, 60, "video", 28), (820, 72, "enlarged", 84)):
        tall = width * 7 / 12
        board.thumbnail(x, 76 - tall / 2, width, tall, _scene(height))
        board.text(x + width / 2, 76 + tall / 2 + 10, name, 9, colour=board.LINE)
    board.box("vae", 558, 50, 70, 52, "VAE", "decode")
    board.box("upscale", 728, 50, 72, 52, "upscale", "4 times")
    for left, right in ((538, 558), (628, 648), (708, 728), (800, 820)):
        board.arrow((left, 76), (right, 76))


def _whole(board: Board) -> None:
    """1200 x 990: every kind of block. Counts are those of the 13B's published config."""
    _whole_text(board)
    board.box("denoise", 262, 20, 644, 782, "denoise, one step", frame=True, size=15)
    board.box("transformer", 282, 52, 590, 664, "transformer", frame=True, size=15)
    _whole_modulation(board)
    board.box("transformer", 450, 84, 150, 46, "token refiner", "2 blocks, text alone")
    board.box("transformer", 640, 84, 200, 46, "patches 1 × 2 × 2", "a token: 16 × 16 pixels, 4 frames")
    _whole_dual(board)
    _whole_single(board)
    board.box("transformer", 640, 656, 200, 42, "norm · linear · unpatch", "video tokens become a velocity")
    board.box("denoise", 450, 738, 390, 46, "scheduler", "latents + (next σ − σ) · velocity")
    board.arrow((740, 698), (740, 738))
    board.arrow((840, 761), (889, 761), (889, 107), (840, 107))
    board.text(897, 450, "again, with less noise", 11, "denoise", rotation=90)
    board.box("noise", 940, 78, 240, 58, "noise", "drawn by the seed", room=110)
    board.thumbnail(1064, 84, 79, 46, _noise(), "noise")
    board.arrow((940, 107), (840, 107))
    _whole_attention(board)
    _whole_rope(board)
    board.text(
        1068,
        580,
        "20 and 40 blocks, heads of 128 numbers:\nthe 13B; pocket has fewer and smaller ones",
        11,
        colour=board.LINE,
    )
    _whole_frames(board)


def _whole_text(board: Board) -> None:
    board.box("prompt", 20, 20, 214, 330, "prompt", frame=True, size=15)
    board.text(127, 62, "“A red car on the street.”", 12, "prompt", style="italic")
    board.box("prompt", 36, 84, 182, 46, "Llama", "reads it behind an instruction")
    board.text(127, 160, "hidden states of the third last\nlayer: a row for each token", 10, "prompt")
    board.box("prompt", 36, 236, 182, 46, "CLIP", "reads it as a whole")
    board.text(127, 311, "pooled: one row for\nthe whole sentence", 10, "prompt")
    board.arrow((218, 107), (450, 107))
    board.arrow((218, 259), (300, 259))


def _whole_modulation(board: Board) -> None:
    board.box("transformer", 300, 228, 108, 62, "modulation", "their sum: shift,\nscale and gate")
    for x, name in ((324, "timestep"), (384, "guidance")):
        board.text(x, 192, name, 11, "transformer")
        board.arrow((x, 201), (x, 228))
    board.arrow((408, 259), (432, 259))
    board.arrow((354, 290), (354, 545), (432, 545))
    board.arrow((354, 545), (354, 677), (640, 677))


def _whole_dual(board: Board) -> None:
    """Two lanes with weights of their own that meet in attention."""
    board.box("transformer", 432, 150, 424, 270, "dual-stream × 20", frame=True, at_top=True)
    for x, width, rope, name in ((450, 150, "", "text"), (640, 200, " · RoPE", "video")):
        board.box("transformer", x, 190, width, 34, f"norm · q k v{rope}", size=11)
        board.box("transformer", x, 312, width, 34, "linear · gate · add", size=11)
        board.box("transformer", x, 366, width, 34, "norm · MLP · gate · add", size=10)
        middle = x + width / 2
        board.arrow((middle, 130), (middle, 190))
        board.text(middle + 8, 140, f"{name} tokens", 10, colour=board.LINE, ha="left")
        for top, bottom in ((224, 250), (288, 312), (346, 366), (400, 482)):
            board.arrow((middle, top), (middle, bottom))
    board.box("transformer", 450, 250, 390, 38, "attention over all tokens, video and text", size=12)


def _whole_single(board: Board) -> None:
    """One lane, one set of weights; attention and MLP side by side."""
    board.box("transformer", 432, 440, 424, 196, "single-stream × 40", frame=True, at_top=True)
    board.box("transformer", 450, 482, 390, 32, "text and video in one row · norm", size=11)
    board.box("transformer", 450, 536, 250, 34, "q k v · RoPE · attention", size=11)
    board.box("transformer", 720, 536, 120, 34, "MLP", size=11)
    board.box("transformer", 450, 590, 390, 32, "side by side · linear · gate · add", size=11)
    for x in (575, 780):
        board.arrow((x, 514), (x, 536))
        board.arrow((x, 570), (x, 590))
    board.arrow((740, 622), (740, 656))


def _whole_attention(board: Board) -> None:
    """Queries by keys: the four meetings of video and text, and which of them a heat map shows."""
    board.text(1068, 216, "attention: who looks at whom", 13, "transformer", weight="bold")
    board.arrow((840, 269), (958, 269), dashed=True, head=False)
    x, y, video, text = 984, 262, 132, 44
    for across, down, words in ((0, 0, "video → video"), (0, 1, "text → video"), (1, 1, "")):
        left, top = x + across * (video + 4), y + down * (video + 4)
        width, height = (text if across else video), (text if down else video)
        board.patch("transformer", left, top, width, height, words)
    board.patch("transformer", x + video + 4, y, text, video, "video\n→ text", strong=True)
    board.text(x + 90, y - 13, "keys: what is looked at", 10, colour=board.LINE)
    board.text(x - 12, y + 90, "queries: who looks", 10, colour=board.LINE, rotation=90)
    board.text(1074, 470, "the dark part, one column of it\nfor each word: its heat map", 11, "transformer")


def _whole_rope(board: Board) -> None:
    """How a head's 128 numbers are shared among time, height and width (rope_axes_dim of the 13B)."""
    board.text(127, 470, "RoPE: where a token is", 13, "transformer", weight="bold")
    left = 31
    for share, name, strong in ((16, "t", True), (56, "row", False), (56, "column", True)):
        width = share * 1.5
        board.patch("transformer", left, 490, width - 3, 34, name, strong=strong)
        board.text(left + width / 2, 537, share, 10, colour=board.LINE)
        left += width
    words = "of the 128 numbers of each head's\nq and k: turned by an angle that\ngrows with the position"
    board.text(127, 580, words, 11, "transformer")


def _whole_frames(board: Board) -> None:
    """After the last step: latents, frames, larger frames; and the way back."""
    board.arrow((560, 784), (560, 822), (345, 822), (345, 858))
    board.text(572, 815, "after the last step", 11, colour=board.LINE, ha="left")
    shown = ((286, 118, 14, "latents 16 × T × H × W"), (632, 118, 28, "video (4T − 3) × 8H × 8W"),
             (990, 190, 112, "four times as high and wide"))  # fmt: skip
    for x, width, height, words in shown:
        tall = width * 7 / 12
        board.thumbnail(x, 894 - tall / 2, width, tall, _scene(height))
        board.text(x + width / 2, 894 + tall / 2 + 14, words, 11, colour=board.LINE)
    board.box("vae", 20, 862, 214, 64, "VAE encoder", "only to look at films, and in training")
    board.box("vae", 440, 862, 160, 64, "VAE decoder", "causal 3D convolutions,\n4 × in time, 8 × in space")
    board.box("upscale", 788, 862, 164, 64, "upscale", "Real-ESRGAN,\nframe after frame")
    board.arrow((234, 894), (286, 894), dashed=True)
    for left, right in ((404, 440), (600, 632), (750, 788), (952, 990)):
        board.arrow((left, 894), (right, 894))
