"""The files of a model in HunyuanVideoPipeline's layout: where they are, and whether they are whole."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open

from ..errors import UserError, did_you_mean, give_note, near_match
from .gguf_files import check_gguf, gguf_in
from .names import DOWNLOADS, HUB_ID, LINK, OTHER_WORDS, PUBLISHED, SINGLE_FILES, check_name, is_single_file

POCKET = Path(__file__).parents[1] / "pocket"

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
#: What a folder may be: text to video, or from a picture.
PIPELINES = ("HunyuanVideoPipeline", "HunyuanVideoImageToVideoPipeline")
#: Of HunyuanVideo-I2V in its guidance-distilled form: the example in diffusers' HunyuanVideoImageToVideoPipeline.
I2V_DEFAULTS = HUNYUAN_DEFAULTS | {"guidance_scale": 6.0}
#: Of the 33-channel form, which has no guidance input; the same example.
I2V_33_DEFAULTS = HUNYUAN_DEFAULTS | {"guidance_scale": 1.0}
NETWORKS = ("text_encoder", "text_encoder_2", "transformer", "vae")  # the components that have weights
HASH_WHOLE_FILES_UP_TO = 2 * 2**30  # bytes; above it reading everything would take minutes
_SHARD = re.compile(r"-\d+-of-\d+$")


class ModelFiles(NamedTuple):
    """Where a model's files are.

    Attributes:
        folder: The pipeline's folder, absolute.
        source: 'pocket', a hub id, or the absolute path that was given.
        revision: The hub's commit, else None.
        variant: The variant asked for, such as 'fp16'; components without such files use their plain ones.
        single: A single file with the transformer's weights, absolute, in place of the folder's own; or None.
        name: What `load` finds it by from any working directory.
        base: Where the rest of the pipeline is from, when there is a single file.
    """

    folder: Path
    source: str
    revision: str | None = None
    variant: str | None = None
    single: Path | None = None
    name: str = ""
    base: str | None = None

    @property
    def animates(self) -> bool:
        """Whether the pipeline makes a video out of a picture: HunyuanVideoImageToVideoPipeline."""
        return read_json(self.folder / "model_index.json").get("_class_name") == PIPELINES[1]

    def weights(self, part: str) -> list[Path]:
        """The weight files of one of NETWORKS."""
        if part == "transformer" and self.single is not None:
            return [self.single]
        return weight_files(self.folder / part, self.variant_of(part))

    def variant_of(self, part: str) -> str | None:
        """The variant whose files this component has; None for its plain ones.

        Raises:
            UserError: It has several variants, none of them asked for, and no plain files.
        """
        have = _variants(self.folder / part)
        if self.variant in have or None in have or not have:
            return self.variant if self.variant in have else None
        if len(have) > 1:
            names = " and ".join(repr(name) for name in sorted(filter(None, have)))
            raise UserError(
                f"{self.folder / part}: holds the variants {names} and no plain weights; "
                f"variant={min(filter(None, have))!r} would work."
            )
        return next(iter(have))

    def check(self) -> None:
        """Check that every file of the layout is there and whole.

        Raises:
            UserError: Names the first one that is missing or corrupt, or the variants that exist.
        """
        index = read_json(self.folder / "model_index.json")
        if index.get("_class_name") not in PIPELINES:
            raise UserError(f"{self.folder}: holds a {index.get('_class_name')}; a {PIPELINES[0]} would work.")
        configs = {name: "config.json" for name in NETWORKS}
        configs |= {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer.json"}
        configs |= {"tokenizer_2": "tokenizer_config.json"}
        if self.animates:
            configs |= {"image_processor": "preprocessor_config.json"}
        for name, config in configs.items():
            read_json(self.folder / name / config)
        parts = [name for name in NETWORKS if name != "transformer" or self.single is None]
        existing = {variant for name in parts for variant in _variants(self.folder / name) if variant}
        if self.variant is not None and self.variant not in existing:
            known = did_you_mean(self.variant, sorted(existing)) if existing else "it has none; variant=None works."
            raise UserError(f"variant={self.variant!r}: {self.source} has no weights of that variant; {known}")
        for name in NETWORKS:
            for path in self.weights(name):
                if path.suffix == ".gguf":
                    check_gguf(path)
                else:
                    header(path)


def locate(
    name: str | Path, revision: str | None = None, variant: str | None = None, base: str | Path | None = None
) -> ModelFiles:
    """Find a model's files, downloading them where the name is one of the hub's.

    Args:
        name: 'pocket', 'hunyuan', 'hunyuan-i2v', a folder, a hub id as 'user/repo', or a single .safetensors or .gguf
            file of the transformer (a path, or its link on the hub; or the folder of one .gguf file).
        revision: A branch, tag or commit of the hub.
        variant: Such as 'fp16'.
        base: The model that the rest of the pipeline is taken from, where `name` is a single file; by default
            'hunyuan'.

    Raises:
        UserError: There is no such model, or it cannot be downloaded.
    """
    name = (gguf_in(Path(name).expanduser()) if isinstance(name, (str, Path)) else None) or name
    check_name(name)
    if variant is not None and (not isinstance(variant, str) or not re.fullmatch(r"\w+", variant)):
        raise UserError(f"variant={variant!r}: must be a word in the weights' file names; 'fp16' would work.")
    path = Path(name).expanduser()
    link = LINK.match(name) if isinstance(name, str) else None
    if is_single_file(name):
        return _single_file(name, link, revision, variant, base)
    if base is not None:
        raise UserError(f"base={str(base)!r}: {str(name)!r} is a whole model; only a single file takes a base.")
    if isinstance(name, str) and name in PUBLISHED:
        return _download(PUBLISHED[name], revision, variant)._replace(name=name)
    if name == "pocket" or path.is_dir():
        if revision is not None:
            raise UserError(f"revision={revision!r}: only the hub has revisions; load('hunyuan', revision=...) works.")
        if name == "pocket":
            return ModelFiles(POCKET.absolute(), "t2v_kit/pocket", variant=variant, name="pocket")
        return ModelFiles(Path(os.path.abspath(path)), os.path.abspath(path), variant=variant, name=absolute(name))
    return _download(str(name), revision, variant)


def absolute(name: str | Path) -> str:
    """A model's name as it is found from any working directory: paths of folders and files become absolute."""
    path = Path(name).expanduser()
    known = isinstance(name, str) and name in ("pocket", *PUBLISHED)
    return os.path.abspath(path) if not known and path.exists() else str(name)


def from_hub(name: str, revision: str | None, fetch: Callable[[], str | os.PathLike[str]]) -> Path:
    """What `fetch` downloads from the hub; a UserError of one line where it cannot."""
    try:
        return Path(fetch())
    except (OSError, ValueError, HfHubHTTPError) as error:
        word = OTHER_WORDS.get(name.lower()) or near_match(name, [*DOWNLOADS])
        mean = f"did you mean {word!r}? " if word and word != name else ""
        raise UserError(
            f"{name} (revision {revision or 'main'}): cannot be downloaded, a folder would work: {mean}"
            f"{one_line(error)}"
        ) from error


def _download(name: str, revision: str | None, variant: str | None, without: str | None = None) -> ModelFiles:
    """A repository of the hub; `without`: a component whose weights are not needed."""
    if name in DOWNLOADS and not isinstance(try_to_load_from_cache(name, "model_index.json", revision=revision), str):
        give_note(DOWNLOADS[name])
    index = from_hub(name, revision, lambda: hf_hub_download(name, "model_index.json", revision=revision))
    if (kind := read_json(index).get("_class_name")) not in PIPELINES:  # before tens of gigabytes
        raise UserError(f"{name}: holds a {kind}; a {PIPELINES[0]}, such as {HUB_ID!r}, would work.")
    skipped = {} if without is None else {without: None}
    folder = from_hub(
        name, revision, lambda: DiffusionPipeline.download(name, revision=revision, variant=variant, **skipped)
    )
    if without is not None:
        config = f"{without}/config.json"
        from_hub(name, revision, lambda: hf_hub_download(name, config, revision=folder.name))
    return ModelFiles(folder, name, folder.name, variant, name=name)


def _single_file(name, link: re.Match | None, revision, variant, base) -> ModelFiles:
    """A transformer in one file, and the rest of the pipeline from `base`."""
    base = "hunyuan" if base is None else base
    if Path(str(base)).suffix.lower() in SINGLE_FILES and not Path(base).expanduser().is_dir():
        raise UserError(f"base={str(base)!r}: is a single file too; 'hunyuan' or a model's folder would work.")
    if link:
        repository, branch, inside = link.groups()
        at = revision or branch
        path = from_hub(repository, at, lambda: hf_hub_download(repository, inside, revision=at))
        source = str(name)
    else:
        path = Path(os.path.abspath(Path(name).expanduser()))
        source = str(path)
    if path.suffix.lower() == ".gguf":
        check_gguf(path)
    else:
        header(path)
    if base == "hunyuan" or base == HUB_ID:
        rest = _download(HUB_ID, None if link else revision, variant, without="transformer")
    else:
        rest = locate(base, None if link else revision, variant)
    return ModelFiles(rest.folder, source, rest.revision, variant, path, source, rest.name)


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors files of one component, with all shards that its index names.

    Args:
        folder: The component's folder.
        variant: Such as 'fp16'; None for the plain files.

    Raises:
        UserError: There are none, or a shard is missing.
    """
    files = {path.name for path in folder.glob("*.safetensors") if _variant(path) == variant}
    for index in folder.glob(f"*.safetensors.index.{variant}.json" if variant else "*.safetensors.index.json"):
        files |= set(read_json(index)["weight_map"].values())
    if not files:
        others = sorted(filter(None, _variants(folder)))
        hint = f"variant={others[0]!r} would work." if others else "the model folder is incomplete."
        raise UserError(f"{folder}: holds no *{f'.{variant}' * bool(variant)}.safetensors; {hint}")
    for name in files:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: is missing; the model folder is incomplete.")
    return [folder / name for name in sorted(files)]


def _variant(path: Path) -> str | None:
    """The variant in a weight file's name: 'fp16' of model.fp16-00001-of-00002.safetensors, None of a plain one."""
    return _SHARD.sub("", path.name.removesuffix(".safetensors")).partition(".")[2] or None


def _variants(folder: Path) -> set[str | None]:
    """The variants whose files a component's folder holds; None stands for the plain ones."""
    return {_variant(path) for path in folder.glob("*.safetensors")}


def header(path: Path) -> bytes:
    """The JSON header of a safetensors file, after checking that the file is as long as it says.

    Raises:
        UserError: It is cut off, or something else.
    """
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is not a whole safetensors file ({one_line(error)}); copy it again.") from error
    with open(path, "rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def read_json(path: Path) -> dict:
    """A JSON file of the model; UserError where it is missing or broken."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; the model folder is incomplete.") from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({one_line(error)}); copy it again.") from error


def one_line(error: BaseException) -> str:
    """An error's text without line breaks, at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
