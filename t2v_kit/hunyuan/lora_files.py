"""The files of LoRAs: where they are on the disk or on the hub, and what is in them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from safetensors import safe_open

from ..errors import UserError
from .files import from_hub, header, read_json
from .lora_arguments import check_present
from .names import LINK, shipped_lora

#: What the metadata of a LoRA's file says when it was trained with known parts put in without noise.
KNOWN, CLEAN = "t2v_kit.known", "clean"
USUAL_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # diffusers', and peft's
_HUB_FILE = re.compile(r"([^/]+/[^/]+)(?:/(.+))?")  # user/repo[/file]


class LoraFile(NamedTuple):
    """A LoRA's file.

    Attributes:
        name: What finds it again from any directory: an absolute path, a hub id with the file, a link, or the name of a
            LoRA that comes with pocket.
        path: Where it is on the disk.
    """

    name: str
    path: Path

    def digest(self) -> str:
        """16 hex digits of the SHA-256 of the file."""
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors, on the CPU, in the file's dtypes."""
        with safe_open(self.path, framework="pt") as file:
            # Cloned, as a tensor may lie at any address in the file, and a CPU rounds by where it lies.
            return {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118  (it is no dict)

    def metadata(self) -> dict[str, str]:
        """The texts in its header."""
        return json.loads(header(self.path)).get("__metadata__", {})

    def config(self) -> dict:
        """peft's configuration beside it, adapter_config.json; empty where there is none."""
        beside = self.path.with_name("adapter_config.json")
        return read_json(beside) if self.path.name == USUAL_NAMES[1] and beside.exists() else {}


def find_lora(name: str | os.PathLike) -> LoraFile:
    """Find a LoRA's file, downloading it where the name is one of the hub's.

    Args:
        name: A .safetensors file, a folder with one, a hub id as 'user/repo' or 'user/repo/file.safetensors', a link to
            a file on the hub, or the name of a LoRA that comes with pocket, such as 'continue'.

    Raises:
        UserError: There is none, or several; it is of another format, damaged, or cannot be downloaded.
    """
    if not isinstance(name, (str, os.PathLike)) or not str(name).strip():
        raise UserError(f"lora {name!r}: must be a file or a hub id; 'style.safetensors' would work.")
    text, path = str(name), Path(name).expanduser()
    if shipped := shipped_lora(text):
        found = LoraFile(text, shipped)
    elif link := LINK.match(text):
        repository, revision, inside = link.groups()
        found = LoraFile(
            text, from_hub(repository, revision, lambda: hf_hub_download(repository, inside, revision=revision))
        )
    elif path.is_dir():
        inside = _chosen(text, sorted(each.name for each in path.glob("*.safetensors")))
        found = LoraFile(os.path.abspath(path / inside), path / inside)
    elif path.is_file():
        found = LoraFile(os.path.abspath(path), path)
    else:
        check_present(text)
        match = _HUB_FILE.fullmatch(text)
        if match is None:
            raise UserError(f"lora {text!r}: is no id or file of the hub; 'user/repo' would work.", setting="loras")
        found = _of_hub(*match.groups())
    if found.path.suffix.lower() != ".safetensors":
        raise UserError(f"lora {text!r}: is a {found.path.suffix or 'nameless'} file; a .safetensors file would work.")
    header(found.path)
    return found


def _of_hub(repository: str, inside: str | None) -> LoraFile:
    """A file of a repository; of one that is named without its file, the only one."""
    if inside is None:
        inside = _chosen(repository, _listed(repository))
    found = from_hub(repository, None, lambda: hf_hub_download(repository, inside))
    if inside == USUAL_NAMES[1]:  # it has alpha in a file of its own
        from_hub(repository, None, lambda: hf_hub_download(repository, "adapter_config.json"))
    return LoraFile(f"{repository}/{inside}", found)


def _listed(repository: str) -> list[str]:
    """The weight files of a repository; offline, the usual names."""
    try:
        files = HfApi().list_repo_files(repository)
    except (OSError, ValueError, HfHubHTTPError, OfflineModeIsEnabled):
        return [USUAL_NAMES[0]]  # downloading it says what is wrong, or finds it in the cache
    return [file for file in files if file.endswith(".safetensors")]


def _chosen(where: str, files: list[str]) -> str:
    """The one file of several that is a LoRA by its name, or the only one."""
    usual = [file for file in files if file in USUAL_NAMES]
    if len(files) == 1 or usual:
        return (usual or files)[0]
    if not files:
        raise UserError(f"lora {where!r}: holds no .safetensors file; one with a LoRA in it would work.")
    raise UserError(f"lora {where!r}: holds {len(files)} .safetensors files; {f'{where}/{files[0]}'!r} would work.")
