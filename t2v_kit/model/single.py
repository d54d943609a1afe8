"""A transformer from a single file: its published names or diffusers', .safetensors or .gguf, read by diffusers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import GGUFQuantizationConfig, HunyuanVideoTransformer3DModel
from safetensors import SafetensorError

from ..errors import UserError
from ..hunyuan.checkpoints import needs_restoring, restored
from ..hunyuan.files import ModelFiles, one_line


def read_single(files: ModelFiles, dtype: torch.dtype, **options) -> HunyuanVideoTransformer3DModel:
    """Read `files.single` as the transformer that the pipeline's folder describes.

    Args:
        files: Names the file, and the folder whose transformer/config.json says what it holds.
        dtype: What the transformer computes in. A .gguf file stays quantised and is unpacked layer by layer; 8-bit
            weights of a .safetensors file become this while they are read.
        **options: Further keywords of `HunyuanVideoTransformer3DModel.from_single_file`.

    Raises:
        UserError: The file does not hold this transformer.
    """
    assert files.single is not None
    if files.single.suffix.lower() == ".gguf":
        options["quantization_config"] = GGUFQuantizationConfig(compute_dtype=dtype)
    try:
        source: Any = str(files.single)
        if files.single.suffix.lower() == ".safetensors" and needs_restoring(files.single):
            source = restored(files.single, dtype)
        transformer = HunyuanVideoTransformer3DModel.from_single_file(
            source,
            config=str(files.folder),
            subfolder="transformer",
            torch_dtype=dtype,
            local_files_only=True,
            **options,
        )
        missing = [name for name, parameter in transformer.named_parameters() if parameter.is_meta]
    except NotImplementedError as error:  # diffusers casts what has no contents
        raise _incomplete(files, "a weight") from error
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{files.single}: cannot be read as the transformer that {files.folder} describes; another base= might "
            f"work: {one_line(error)}"
        ) from error
    if missing:
        raise _incomplete(files, missing[0])
    return transformer.eval()


def _incomplete(files: ModelFiles, weight: str) -> UserError:
    """The error about a weight that the file lacks."""
    return UserError(
        f"{files.single}: {weight} of the transformer that {files.folder} describes is not in it; a whole file, or "
        "another base=, would work."
    )
