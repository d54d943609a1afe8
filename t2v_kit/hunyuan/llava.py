"""The part of a text encoder whose blocks are worth streaming: all of a Llama, and of a Llava its language model."""

from __future__ import annotations

from typing import Any

import torch


def language_model(network: torch.nn.Module) -> Any:
    """Return the Llama inside a LlavaForConditionalGeneration; any other network itself."""
    inner = getattr(network, "model", None)
    return getattr(inner, "language_model", network)
