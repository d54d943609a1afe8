"""The pipeline's architecture as a drawing: a band for the top of a notebook, and the whole of it.

The drawings are `architecture_band.svg` and `architecture.svg` beside this file. The class of their root lights a part:
a style sheet inside makes the other parts pale.
"""

from __future__ import annotations

from importlib.resources import files

from ..errors import UserError, did_you_mean, quoted

# Each part of the drawing, and what it does.
PARTS = {
    "prompt": "words become numbers",
    "noise": "where the video starts",
    "transformer": "video and text attend to each other",
    "denoise": "noise becomes latents, step by step",
    "vae": "latents become frames",
    "upscale": "frames become larger",
}


def show_diagram(lit: str | None = None, small: bool = True) -> None:
    """Show the architecture in the notebook, with one part in colour and the others pale.

    Args:
        lit: 'prompt', 'noise', 'transformer', 'denoise', 'vae' or 'upscale'; None colours all of them.
        small: True shows a band of 900x130 pixels, False every kind of block on 1200x990.

    Raises:
        UserError: `lit` is not a part of the drawing.

    Example:
        >>> show_diagram("vae")
    """
    from IPython.display import display

    words = f"The pipeline: {' > '.join(PARTS)}." + (f" Lit: {lit}, {PARTS[lit]}." if lit in PARTS else "")
    display({"image/svg+xml": diagram(lit, small), "text/plain": words}, raw=True)


def diagram(lit: str | None = None, small: bool = True) -> str:
    """The drawing that `show_diagram` shows, as SVG.

    Raises:
        UserError: `lit` is not a part of the drawing.
    """
    if lit is not None and lit not in PARTS:
        hint = did_you_mean(lit, PARTS, f"one of {', '.join(PARTS)} would work.")
        raise UserError(f"lit={quoted(lit)}: is not a part of the diagram; {hint}", setting="lit")
    drawing = files("t2v_kit.view") / ("architecture_band.svg" if small else "architecture.svg")
    return drawing.read_text("utf-8").replace("t2v-architecture all", f"t2v-architecture {lit or 'all'}", 1)
