"""The transformer's blocks compiled, one graph for each kind of block: a warm-up, then fewer seconds a step."""

from __future__ import annotations

import torch
from diffusers import HunyuanVideoTransformer3DModel

#: Graphs of one kind of block that are kept. Beyond PyTorch's own limit of 8 it goes on without compiling, in silence;
#: a second length of prompt makes lengths symbols, so that few more graphs than sizes of videos are needed.
GRAPHS = 64


def compile_blocks(transformer: HunyuanVideoTransformer3DModel, backend: str = "inductor") -> None:
    """Compile every block at its first call, which takes a minute or more; blocks of one kind share their graph.

    Args:
        transformer: After everything that changes its blocks.
        backend: Of torch.compile; "eager" traces the blocks without compiling them, which tests do.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    transformer.compile_repeated_blocks(backend=backend)
