"""The networks that the upscaling benchmark runs, and the official tool's way to run them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from t2v_kit import load_upscaler
from t2v_kit.stages.upscaling.names import SHIPPED

from .full_size import random_upscaler

#: By the published files that have their size: kind, features, and blocks of an RRDBNet or the convolutions between
#: the first and the last of a compact network. RealESRGAN_x2plus is x4plus on a quarter of the pixels.
NETWORKS = {
    "compact, 16 convolutions (pocket, realesr-animevideov3)": ("compact", 64, 16),
    "compact, 32 convolutions (realesr-general-x4v3)": ("compact", 64, 32),
    "RRDBNet, 6 blocks (RealESRGAN_x4plus_anime_6B)": ("rrdb", 64, 6),
    "RRDBNet, 23 blocks (RealESRGAN_x4plus)": ("rrdb", 64, 23),
}
POCKET, *_, X4PLUS = NETWORKS


def weight_files(folder: Path) -> dict[str, Path]:
    """A file for each network: pocket's own, random values for the others. Speed and memory do not depend on them."""
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(0)
    files = {POCKET: SHIPPED["pocket"]}
    for number, (name, (kind, features, depth)) in enumerate(NETWORKS.items()):
        if name not in files:
            files[name] = folder / f"{number}.safetensors"
            compact = kind == "compact"
            made = Compact(num_feat=features, num_conv=depth, upscale=4).state_dict() if compact else None
            save_file(made or random_upscaler(features, depth), files[name])
    return files


def official(name: str, path: Path, device: str):
    """(the official upscaler, or its loop; which of the two) as its own tool sets it up: half precision on a GPU."""
    half = device == "cuda"
    kind, features, depth = NETWORKS[name]
    try:
        from basicsr.archs.rrdbnet_arch import RRDBNet
        from realesrgan import RealESRGANer
    except ImportError:
        return FrameLoop(load_upscaler(path).model, device, half), "its frame loop written down again"
    if kind == "compact":
        from realesrgan.archs.srvgg_arch import SRVGGNetCompact

        net = SRVGGNetCompact(3, 3, features, depth, 4)
    else:
        net = RRDBNet(3, 3, num_feat=features, num_block=depth, scale=4)
    with tempfile.TemporaryDirectory() as folder:  # it reads .pth only
        torch.save({"params": load_file(path)}, f"{folder}/x4.pth")
        return RealESRGANer(4, f"{folder}/x4.pth", model=net, half=half, device=device), "realesrgan"


class FrameLoop:
    """`RealESRGANer.enhance` of realesrgan 0.3.0 written down again: one frame at a time, NumPy before and after."""

    def __init__(self, net: torch.nn.Module, device: str, half: bool, scale: int = 4, pre_pad: int = 10):
        self.net = (net.half() if half else net).to(device).eval()
        self.device, self.half, self.scale, self.pre_pad = device, half, scale, pre_pad

    @torch.no_grad()
    def enhance(self, frame: np.ndarray) -> tuple[np.ndarray, str]:
        """`(H, W, 3)` uint8 in BGR to (the enlarged frame in BGR, "RGB"), as the original answers."""
        pixels = np.ascontiguousarray((frame.astype(np.float32) / 255)[..., ::-1])
        pixels = torch.from_numpy(np.transpose(pixels, (2, 0, 1))).float().unsqueeze(0).to(self.device)
        pixels = F.pad(pixels.half() if self.half else pixels, (0, self.pre_pad, 0, self.pre_pad), "reflect")
        height, width = (side * self.scale for side in frame.shape[:2])
        enlarged = self.net(pixels)[:, :, :height, :width]
        enlarged = enlarged.data.squeeze().float().cpu().clamp_(0, 1).numpy()
        enlarged = np.transpose(enlarged[[2, 1, 0]], (1, 2, 0))
        return (enlarged * 255.0).round().astype(np.uint8), "RGB"
