"""The playground: turn every knob, watch the video form, stop it, compare it, and take the code home.

`Playground(models)` is the panel. Made of plain ipywidgets 7.7 (which Colab has) or 8, with no JavaScript of its own.
"""

from .compare import difference, differing, together
from .panel import Playground
from .preview import Preview

__all__ = ["Playground", "Preview", "difference", "differing", "together"]
