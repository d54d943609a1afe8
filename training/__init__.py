"""How pocket was made: one short script a model, each run as `python -m training.NAME`."""

import t2v_kit  # noqa: F401  makes torchvision importable before a script imports diffusers or transformers
