"""The playground: turn every knob, watch the video form, stop it, compare runs, and copy the code that repeats one.

`Playground(models)` is the panel. It consists of plain ipywidgets, 7.7 (which Colab has) or 8, without JavaScript of
its own.
"""

from .compare import difference, differing, together
from .panel import Playground
from .preview import Preview

__all__ = ["Playground", "Preview", "difference", "differing", "together"]
