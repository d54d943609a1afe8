"""Checkpoints of a training: one safetensors file with weights, moving average and the optimiser's state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..atomic import write_whole
from ..errors import UserError


def write_checkpoint(
    path: str | Path, tensors: dict[str, dict[str, torch.Tensor]], optimizer: Any, notes: dict
) -> Path:
    """Write a checkpoint, which is whole or absent.

    Args:
        path: The file; its folder must exist.
        tensors: Tables of tensors by the names of the tables, such as "weights".
        optimizer: Its state is written along.
        notes: Plain data that `read_checkpoint` returns.

    Returns:
        The path.
    """
    flat = {f"{table}/{name}": tensor for table, named in tensors.items() for name, tensor in named.items()}
    plain: dict[str, Any] = {}
    for name, value in _entries(optimizer.state_dict()["state"]):
        if isinstance(value, torch.Tensor):
            flat[f"optimizer/{name}"] = value
        else:
            plain[name] = value
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in flat.items()}
    with write_whole(path) as temporary:
        save_file(flat, temporary, {"notes": json.dumps(notes), "optimizer": json.dumps(plain)})
    return Path(path)


def _entries(state: dict, before: str = "") -> Iterator[tuple[str, Any]]:
    """What a table of tables holds, by the keys on the way to it: "0/exp_avg". bitsandbytes nests one level more."""
    for name, value in state.items():
        if isinstance(value, dict):
            yield from _entries(value, f"{before}{name}/")
        else:
            yield f"{before}{name}", value


def read_notes_of(path: str | Path) -> dict:
    """The notes of a checkpoint. Raises UserError when it is missing or damaged."""
    return _read(path, with_tensors=False)[1]


def read_checkpoint(path: str | Path, optimizer: Any) -> tuple[dict[str, dict[str, torch.Tensor]], dict]:
    """Read a checkpoint.

    Args:
        path: The file.
        optimizer: Its state is set.

    Returns:
        The tables of tensors, on the CPU, and the notes.

    Raises:
        UserError: The file is missing or damaged.
    """
    flat, notes, plain = _read(path, with_tensors=True)
    tables: dict[str, dict[str, torch.Tensor]] = {}
    entries = dict(_entries(plain))
    for name, tensor in flat.items():
        table, _, rest = name.partition("/")
        if table == "optimizer":
            entries[rest] = tensor
        else:
            tables.setdefault(table, {})[rest] = tensor
    state: dict[int, dict] = {}
    for name, value in entries.items():
        number, *tables_within, entry = name.split("/")
        place = state.setdefault(int(number), {})
        for each in tables_within:
            place = place.setdefault(each, {})
        place[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return tables, notes


def _read(path: str | Path, with_tensors: bool) -> tuple[dict[str, torch.Tensor], dict, dict]:
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            # Cloned to where PyTorch puts tensors: the last bits of a product depend on where its operands begin.
            flat = {name: file.get_tensor(name).clone() for name in file.keys()} if with_tensors else {}  # noqa: SIM118
            return flat, json.loads(said["notes"]), json.loads(said["optimizer"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"{path}: is not a checkpoint of a training ({str(error)[:120]}); one that `t2v train` wrote would work."
        ) from error
