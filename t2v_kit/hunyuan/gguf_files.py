"""What a GGUF file of the transformer holds, read from its header: names, kinds and sizes, no weights."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import NamedTuple

from diffusers.utils import is_gguf_available, is_gguf_version

from ..errors import UserError

_BLOCK = re.compile(r"(?:^|\.)(double_blocks|transformer_blocks|single_blocks|single_transformer_blocks)\.(\d+)\.")
#: Kinds that diffusers keeps as plain tensors, in the dtype that the transformer computes in.
PLAIN = ("F32", "F16")


class PackedTensor(NamedTuple):
    """One tensor of a GGUF file.

    Attributes:
        stack: 0 for a dual-stream block, 1 for a single-stream one, None outside of blocks.
        block: The block's number in its stack.
        kind: As GGUF names it, such as 'Q4_K'.
        numbers: How many numbers it has.
        bytes: How many bytes it takes in the file, and in memory where it stays packed.
    """

    stack: int | None
    block: int
    kind: str
    numbers: int
    bytes: int


def check_gguf(path: Path) -> None:
    """Refuse a file that is not GGUF by its first four bytes, and any while diffusers cannot read it.

    Raises:
        UserError: It is not, or the package gguf is missing or too old.
    """
    if not is_gguf_available() or is_gguf_version("<", "0.10.0"):
        raise UserError(f"{path}: needs the package gguf, 0.10 or later; pip install gguf works.")
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{path}: is not a GGUF file; copy it again.")


def gguf_in(folder: Path) -> Path | None:
    """The GGUF file of a folder that is no pipeline's; None without one.

    Raises:
        UserError: It has several.
    """
    if not folder.is_dir() or (folder / "model_index.json").exists():
        return None
    found = sorted(folder.glob("*.gguf"))
    if len(found) > 1:
        raise UserError(f"{folder}: holds {len(found)} GGUF files; one by its path, such as {found[0]}, would work.")
    return found[0] if found else None


def gguf_of(model: object) -> Path | None:
    """The GGUF file that a model's transformer is read from; None where it is read from something else.

    Args:
        model: What `load` takes, loaded Models, or ModelFiles.

    Raises:
        UserError: A folder with several of them.
    """
    path = getattr(getattr(model, "files", model), "single", None)
    if isinstance(model, (str, Path)):
        path = Path(model).expanduser()
        path = gguf_in(path) or path
    return path if isinstance(path, Path) and path.suffix.lower() == ".gguf" and path.is_file() else None


@functools.lru_cache(8)
def packed_tensors(path: Path) -> tuple[PackedTensor, ...]:
    """The tensors of a GGUF file.

    Args:
        path: The file.

    Raises:
        UserError: It is no GGUF file, is cut off, or holds a kind of tensor that diffusers does not unpack.
    """
    check_gguf(path)
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES  # needs the package gguf, as the next does
    from gguf import GGUFReader

    known = {*PLAIN, *(kind.name for kind in SUPPORTED_GGUF_QUANT_TYPES)}
    try:
        tensors = GGUFReader(path).tensors
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise UserError(f"{path}: cannot be read as GGUF ({str(error)[:120]}); copy it again.") from error
    packed = []
    for tensor in tensors:
        kind = tensor.tensor_type.name
        if kind not in known:
            raise UserError(
                f"{path}: {tensor.name} is of the kind {kind}, which diffusers does not unpack; a file in Q4_K or Q8_0 "
                "would work."
            )
        place = _BLOCK.search(tensor.name)
        stack = None if place is None else int(place[1].startswith("single"))
        block = 0 if place is None else int(place[2])
        packed.append(PackedTensor(stack, block, kind, int(tensor.n_elements), int(tensor.n_bytes)))
    return tuple(packed)
