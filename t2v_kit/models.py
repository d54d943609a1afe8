"""load(): pocket, the 13B HunyuanVideo, or any folder in its layout. One code path for all."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, HunyuanVideoPipeline
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open

from .denoise import skip_full_masks
from .memory import Plan, as_plan
from .memory.machine import Machine
from .memory.residence import Residence
from .memory.rules import check
from .prompt import load_tokenizer
from .settings import Settings, UserError

POCKET = Path(__file__).parent / "pocket"
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


@dataclass
class Models:
    """A loaded model: the plain pipeline and what this package has to know about it.

    pipe: HunyuanVideoPipeline; whatever it holds (scheduler, processors, LoRA) the stages use.
    name: 'pocket', 'hunyuan' or the folder as given.  source: folder or hub id.
    revision: the hub's commit that was loaded, else None.  defaults: what None means in Settings.
    template: prompt_template for pipe.encode_prompt.  trained_sizes: (frames, height, width), may be
    empty.  vocabulary: the words a toy model has seen, None when it does not list them.
    memory: the memory plan, None when it was loaded without one.
    """

    pipe: HunyuanVideoPipeline
    name: str
    source: str
    folder: Path
    defaults: dict
    template: dict
    device: torch.device
    revision: str | None = None
    trained_sizes: tuple[tuple[int, int, int], ...] = ()
    vocabulary: frozenset[str] | None = field(default=None, repr=False)
    memory: Plan | None = None
    residence: Residence | None = field(default=None, repr=False)

    def bring(self, network: str) -> torch.nn.Module:
        """A network of the pipeline, ready to be changed or called: where a plan keeps one stage in memory
        at a time, it is read now and those of other stages go. 'text_encoder', 'transformer' or 'vae'."""
        return self.residence.bring(network) if self.residence else getattr(self.pipe, network)

    @functools.cached_property
    def weights_hash(self) -> str:
        """16 hex digits of the SHA-256 over all weight files; 'headers-' and 16 digits over the
        names, sizes and headers alone when the files are larger than 2 GiB together."""
        files = [path for name in NETWORKS for path in _weight_files(self.folder / name)]
        whole = sum(path.stat().st_size for path in files) <= HASH_WHOLE_FILES_UP_TO
        digest = hashlib.sha256()
        for path in files:
            digest.update(f"{path.relative_to(self.folder).as_posix()} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes() if whole else _header(path))
        return ("" if whole else "headers-") + digest.hexdigest()[:16]


def load(
    name: str | Path = "pocket",
    memory: Plan | dict | str | float | None = None,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | dict | None = None,
    video: Settings | None = None,
) -> Models:
    """Load a text-to-video model.

    name: 'pocket' (shipped, offline), 'hunyuan' (13B, downloaded from the hub) or a folder in the
    layout of HunyuanVideoPipeline.save_pretrained.  memory: None, everything on the device (or, where
    it does not fit, the library's model offload); a `Plan` or its dict; 'auto', the best plan of this
    machine; or the GB of GPU memory to get along with. The latter two are for the size of `video`, what
    is left open there being the model's default.  With a plan, dtypes
    are the plan's, and one that has a single stage in memory reads each network anew: what is changed on
    models.pipe.transformer lasts until the next stage.  revision: a branch, tag or commit of the hub.
    device: 'cuda' if there is one, else 'cpu'.  dtype: one for all, or a dict by component as
    diffusers takes it; by default float32 on the CPU, and on CUDA bfloat16 for the transformer and
    float16 for the rest (what HunyuanVideo's documentation recommends) unless the model says otherwise.
    Raises UserError for an unknown name, a missing, incomplete or corrupt file, a tokenizer that
    does not read text back, or a prompt template whose prefix is not what would be cropped.
    """
    if memory is not None and dtype is not None:
        raise UserError(f"dtype={dtype!r}: with memory=, the plan has the dtypes; dtype=None works.")
    if memory is not None:  # of no effect once CUDA is in use: blocks that come and go leave no gaps behind
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    device = _device(device)
    plan = _plan(memory, name, HUNYUAN_DEFAULTS, video, device) if name == "hunyuan" else None  # before the download
    folder, source, commit = _locate(name, revision)
    extra = _read_json(folder / "t2v_kit.json") if (folder / "t2v_kit.json").exists() else {}
    check_folder(folder)
    defaults = HUNYUAN_DEFAULTS | extra.get("defaults", {})
    plan = plan or _plan(memory, folder, defaults, video, device)
    tokenizer, template = load_tokenizer(folder / "tokenizer", _template(extra), folder)
    dtype = _dtype(dtype or extra.get("dtype"), device)
    try:
        residence = None if plan is None else Residence(folder, plan, device)
        pipe = HunyuanVideoPipeline.from_pretrained(
            folder,
            tokenizer=tokenizer,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            **(residence.parts if residence else {}),
        )
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be loaded as a HunyuanVideoPipeline: {_one_line(error)}") from error
    _check_complete(pipe, folder)
    if residence:
        residence.start()
    else:
        _place(pipe, device)
        skip_full_masks(pipe.transformer)
    words = folder / "vocabulary.txt"
    return Models(
        pipe=pipe,
        name=str(name),
        source=source,
        folder=folder,
        revision=commit,
        defaults=defaults,
        template=template,
        device=device,
        trained_sizes=tuple(tuple(size) for size in extra.get("trained_sizes", ())),
        vocabulary=frozenset(words.read_text("utf-8").lower().split()) if words.exists() else None,
        memory=plan,
        residence=residence,
    )


def check_folder(folder: Path) -> None:
    """Raise a UserError that names the first file of the layout that is missing or corrupt."""
    index = _read_json(folder / "model_index.json")
    if index.get("_class_name") != "HunyuanVideoPipeline":
        raise UserError(f"{folder}: holds a {index.get('_class_name')}; a HunyuanVideoPipeline would work.")
    configs = {name: "config.json" for name in NETWORKS}
    configs |= {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer.json"}
    configs |= {"tokenizer_2": "tokenizer_config.json"}
    for name, config in configs.items():
        _read_json(folder / name / config)
    for name in NETWORKS:
        for path in _weight_files(folder / name):
            _header(path)


def _locate(name: str | Path, revision: str | None) -> tuple[Path, str, str | None]:
    """(folder, source, commit) of a model name; downloads only for 'hunyuan'."""
    if not isinstance(name, (str, Path)):
        raise UserError(f"model {name!r}: must be text; 'pocket', 'hunyuan' or an existing folder would work.")
    if name == "hunyuan":
        try:
            folder = Path(DiffusionPipeline.download(HUB_ID, revision=revision))
        except (OSError, ValueError, HfHubHTTPError) as error:
            raise UserError(
                f"{HUB_ID} (revision {revision or 'main'}): cannot be downloaded, a folder would work: "
                f"{_one_line(error)}"
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


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one component, all shards that its index names included."""
    files = {path.name for path in folder.glob("*.safetensors")}
    for index in folder.glob("*.safetensors.index.json"):
        files |= set(_read_json(index)["weight_map"].values())
    if not files:
        raise UserError(f"{folder}: holds no *.safetensors; the model folder is incomplete.")
    for name in files:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: is missing; the model folder is incomplete.")
    return [folder / name for name in sorted(files)]


def _header(path: Path) -> bytes:
    """The JSON header of a safetensors file, after checking that the file is as long as it says."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is not a whole safetensors file ({_one_line(error)}); copy it again.") from error
    with open(path, "rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def _check_complete(pipe: HunyuanVideoPipeline, folder: Path) -> None:
    """Refuse weights that lack a parameter: the libraries would fill it with random numbers.

    A file may name its tensors with a prefix more or less ("text_model.") than today's classes.
    """
    for part in NETWORKS:
        keys = {key for path in _weight_files(folder / part) for key in json.loads(_header(path))}
        tails = {key.split(".", cut)[-1] for key in keys for cut in range(3)}
        for name, _ in getattr(pipe, part).named_parameters():
            if name not in tails and not any(name.split(".", cut)[-1] in keys for cut in range(1, 3)):
                raise UserError(f"{folder / part}: {name} is not in its files; the model folder is incomplete.")


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; the model folder is incomplete.") from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({_one_line(error)}); copy it again.") from error


def _template(extra: dict) -> dict:
    """The pipeline's own prompt template, with this model's crop (None: count the prefix)."""
    crop = extra.get("crop_start", DEFAULT_PROMPT_TEMPLATE["crop_start"])
    return {"template": DEFAULT_PROMPT_TEMPLATE["template"], "crop_start": crop}


def _device(device: str | torch.device | None) -> torch.device:
    try:
        # Says whether this torch build and machine have it, and which GPU "cuda" is: some calls want its number.
        return torch.empty(0, device=device or ("cuda" if torch.cuda.is_available() else "cpu")).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UserError(f"device={device!r}: cannot be used ({_one_line(error)}); 'cpu' would work.") from error


def _dtype(dtype: str | torch.dtype | dict | None, device: torch.device) -> torch.dtype | dict:
    """What from_pretrained takes: one dtype, or a dict with 'default'."""
    if dtype is None:
        on_gpu = {"transformer": torch.bfloat16, "default": torch.float16}
        return on_gpu if device.type == "cuda" else torch.float32
    if isinstance(dtype, dict):
        return {name: _dtype(value, device) for name, value in dtype.items()}
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.bfloat16, torch.float16):
        raise UserError(f"dtype={dtype!r}: must be float32, bfloat16 or float16; 'float32' would work.")
    return found


def _plan(memory, model: str | Path, defaults: dict, video: Settings | None, device: torch.device) -> Plan | None:
    """load's `memory` as a Plan that this machine can carry out; model: 'hunyuan' or its folder."""
    if memory is None:
        return None
    machine = Machine.here(device)
    size = {name: getattr(video, name, None) or defaults[name] for name in ("height", "width", "num_frames")}
    return check(as_plan(memory, model, machine, **size), machine, model=model)


def _place(pipe: HunyuanVideoPipeline, device: torch.device) -> None:
    """Move everything to the device; on a GPU that is too small, one whole model at a time."""
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    size = sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
    # A fifth of the memory is left for activations: 7.6 GiB of them beside 24 GiB of weights at 720p.
    if device.type == "cuda" and size > 0.8 * torch.cuda.mem_get_info(device)[0]:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
