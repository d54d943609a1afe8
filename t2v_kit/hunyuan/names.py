"""The names of models, as `load` takes them: which there are, and what somebody means who types another.

Nothing heavy is imported here, so that a mistaken name is told at once.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import UserError, near_match

HUB_ID = "hunyuanvideo-community/HunyuanVideo"
I2V_ID = "hunyuanvideo-community/HunyuanVideo-I2V"  # its picture replaces the tokens of the first frame
I2V_33_ID = "hunyuanvideo-community/HunyuanVideo-I2V-33ch"  # its picture is joined to the latents' channels
PUBLISHED = {"hunyuan": HUB_ID, "hunyuan-i2v": I2V_ID}  # short names of what the hub has
ANIMATES = ("hunyuan-i2v", I2V_ID, I2V_33_ID)  # names of models that start from a picture
_LICENCE = (
    "Licence: Tencent Hunyuan Community License. It does not apply in the European Union, the United Kingdom and South "
    "Korea: there it grants no right to use the weights."
)
#: GB (1e9 bytes) that each has to download, as its configuration counts them.
GIGABYTES = {HUB_ID: 41, I2V_ID: 43, I2V_33_ID: 43}
#: What anybody should know before weights are fetched, by the hub's id.
DOWNLOADS = {name: f"{name} is about {size} GB to download. {_LICENCE}" for name, size in GIGABYTES.items()}
DOWNLOAD = DOWNLOADS[HUB_ID]
#: Models whose configurations are known before they are read, and the pixels and frames of a token of theirs.
KNOWN = ("pocket", *PUBLISHED, *DOWNLOADS)
TOKEN = (16, 4)
SHIPPED_LORAS = Path(__file__).parents[1] / "pocket" / "lora"  # of pocket, each found by its file's name alone
SINGLE_FILES = (".safetensors", ".gguf")
OTHER_WORDS = {"toy": "pocket", "tiny": "pocket", "13b": "hunyuan", "i2v": "hunyuan-i2v"}  # lower case
OTHER_WORDS |= {"tencent/hunyuanvideo": HUB_ID, "tencent/hunyuanvideo-i2v": I2V_ID}
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # user/repo, as the hub names them
LINK = re.compile(r"https?://(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)/(?:blob|resolve)/([^/]+)/([^?]+)")


def check_name(name: str | Path) -> None:
    """Check that `load` could find a model: a known name, a folder, a file, or a name in the hub's form.

    Raises:
        UserError: It could not; the message has the nearest name.
    """
    if not isinstance(name, (str, Path)):
        raise UserError(f"model {name!r}: must be text; 'pocket', 'hunyuan' or an existing folder would work.")
    path = Path(name).expanduser()
    if is_single_file(name):
        if not LINK.match(str(name)) and not path.is_file():
            raise UserError(f"model {str(name)!r}: no such file; {hint(name)}")
    elif path.is_dir() and not (path / "model_index.json").is_file() and not any(path.glob("*.gguf")):
        raise UserError(f"{path / 'model_index.json'}: is missing; the folder of a HunyuanVideoPipeline would work.")
    elif name not in KNOWN and not path.is_dir() and not (isinstance(name, str) and REPOSITORY.fullmatch(name)):
        raise UserError(f"model {str(name)!r}: no such model or folder; {hint(name)}")


def is_single_file(name: str | Path) -> bool:
    """Whether a model's name is that of a file: a link to one on the hub, or a path with such an ending."""
    path = Path(name).expanduser()
    return bool(LINK.match(str(name))) or (path.suffix.lower() in SINGLE_FILES and not path.is_dir())


def hint(name: str | Path) -> str:
    """How the message about an unknown name ends: a model, or a neighbour on the disk, with nearly the same name."""
    word = OTHER_WORDS.get(str(name).lower()) or near_match(name, KNOWN)
    path = Path(name).expanduser()
    if word is None and path.parent.is_dir():
        near = near_match(path.name, [each.name for each in path.parent.iterdir() if not each.name.startswith(".")])
        word = near and str(path.parent / near)
    return f"did you mean {word!r}?" if word else "'pocket', 'hunyuan', a hub id or an existing folder would work."


def shipped_lora(name: str) -> Path | None:
    """The file of a LoRA that comes with pocket, such as 'continue'; None for any other name."""
    path = SHIPPED_LORAS / f"{name}.safetensors"
    return path if re.fullmatch(r"\w+", name) and path.is_file() else None
