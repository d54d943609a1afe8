"""The files of a model in HunyuanVideoPipeline's layout: where they are, and whether they are whole."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path

from diffusers import DiffusionPipeline
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open

from ..errors import UserError

POCKET = Path(__file__).parents[1] / "pocket"
HUB_ID = "hunyuanvideo-community/HunyuanVideo"

# Sizes, steps and guidance: defaults of HunyuanVideoPipeline.__call__; shift 7 and 24 frames a second:
# scheduler config of the hub repository and the README of Tencent's HunyuanVideo.
HUNYUAN_DEFAULTS = {
    "height": 720,
    "width": 1280,
    "num_frames": 129,
    "num_inference_steps": 50,
    "guidance_scale": 6.0,
    "flow_shift": 7.0,
    "fps": 24,
}
NETWORKS = ("text_encoder", "text_encoder_2", "transformer", "vae")  # the components that have weights
HASH_WHOLE_FILES_UP_TO = 2 * 2**30  # bytes; above it reading everything would take minutes


def check_folder(folder: Path) -> None:
    """Raise a UserError that names the first file of the layout that is missing or corrupt."""
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") != "HunyuanVideoPipeline":
        raise UserError(f"{folder}: holds a {index.get('_class_name')}; a HunyuanVideoPipeline would work.")
    configs = {name: "config.json" for name in NETWORKS}
    configs |= {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer.json"}
    configs |= {"tokenizer_2": "tokenizer_config.json"}
    for name, config in configs.items():
        read_json(folder / name / config)
    for name in NETWORKS:
        for path in weight_files(folder / name):
            header(path)


def locate(name: str | Path, revision: str | None) -> tuple[Path, str, str | None]:
    """(folder, source, commit) of a model name; downloads only for 'hunyuan'."""
    if not isinstance(name, (str, Path)):
        raise UserError(f"model {name!r}: must be text; 'pocket', 'hunyuan' or an existing folder would work.")
    if name == "hunyuan":
        try:
            folder = Path(DiffusionPipeline.download(HUB_ID, revision=revision))
        except (OSError, ValueError, HfHubHTTPError) as error:
            raise UserError(
                f"{HUB_ID} (revision {revision or 'main'}): cannot be downloaded, a folder would work: "
                f"{one_line(error)}"
            ) from error
        return folder, HUB_ID, folder.name
    if revision is not None:
        raise UserError(f"revision={revision!r}: only the hub has revisions; load('hunyuan', revision=...) works.")
    folder = POCKET if name == "pocket" else Path(name).expanduser()
    if not folder.is_dir():
        near = get_close_matches(str(name), ["pocket", "hunyuan"], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "'pocket', 'hunyuan' or an existing folder would work."
        raise UserError(f"model {str(name)!r}: no such model or folder; {hint}")
    # absolute: its files are looked at again later, perhaps from another working directory
    return folder.absolute(), "t2v_kit/pocket" if name == "pocket" else str(folder), None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one component, all shards that its index names included."""
    files = {path.name for path in folder.glob("*.safetensors")}
    for index in folder.glob("*.safetensors.index.json"):
        files |= set(read_json(index)["weight_map"].values())
    if not files:
        raise UserError(f"{folder}: holds no *.safetensors; the model folder is incomplete.")
    for name in files:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: is missing; the model folder is incomplete.")
    return [folder / name for name in sorted(files)]


def header(path: Path) -> bytes:
    """The JSON header of a safetensors file, after checking that the file is as long as it says."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is not a whole safetensors file ({one_line(error)}); copy it again.") from error
    with open(path, "rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; the model folder is incomplete.") from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({one_line(error)}); copy it again.") from error


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
