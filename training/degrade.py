"""Spoils sharp pictures the way the world does, in the spirit of Real-ESRGAN's second-order degradation.

Blur, resize, noise and compression, then all of it again (Wang et al. 2021, arXiv 2107.10833), with a stand-in for
a video codec as the last step. Plain torch on any device, whole batches at a time. Ranges are those of
Real-ESRGAN's x4plus options, narrowed where a frame of 192x112 would not survive them.
"""

import functools
import math
import random

import torch
import torch.nn.functional as F

KERNEL = 21  # side of the blur kernels, as in Real-ESRGAN
#: ITU-T T.81, tables K.1 and K.2: JPEG's quantisation of brightness and of colour at quality 50.
LUMA = torch.tensor([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99]).view(8, 8).float()  # fmt: skip
CHROMA = torch.tensor([
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, *[99] * 32]).view(8, 8).float()  # fmt: skip
YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])  # JFIF
_ANGLES = math.pi / 8 * (torch.arange(8.0) + 0.5) * torch.arange(8.0).view(8, 1)
COSINES = torch.cos(_ANGLES) / 2 * torch.tensor([0.5**0.5] + [1.0] * 7).view(8, 1)  # orthonormal DCT-II


def degrade(high: torch.Tensor, rng: random.Random, noise: float = 1.0, group: int = 8) -> torch.Tensor:
    """`(B, 3, 4h, 4w)` in [0, 1] to `(B, 3, h, w)`, spoilt and rounded to 8 bits. `rng` decides everything.

    noise: how much of the noise and how often the compression; 0 leaves blur and resizing only.
    group: pictures that share sizes and filters (kernels, noise and quality are each picture's own).
    """
    done = [_degrade(part, Dice(rng, part), noise) for part in high.split(group)]
    return (torch.cat(done).clamp(0, 1) * 255).round() / 255


class Dice:
    """Random numbers for one group: Python's for the choices, the device's for each picture."""

    def __init__(self, rng: random.Random, pictures: torch.Tensor):
        self.rng, self.pictures = rng, pictures
        self.torch = torch.Generator(pictures.device).manual_seed(rng.getrandbits(31))

    def maybe(self, probability: float) -> bool:
        return self.rng.random() < probability

    def each(self, low: float, high: float) -> torch.Tensor:
        """(B, 1, 1, 1), evenly from low to high."""
        shape = (len(self.pictures), 1, 1, 1)
        return low + (high - low) * torch.rand(shape, generator=self.torch, device=self.pictures.device)

    def normal(self, like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=self.torch, device=like.device)


def _degrade(x: torch.Tensor, dice: Dice, noise: float) -> torch.Tensor:
    height, width = x.shape[2] // 4, x.shape[3] // 4
    if dice.maybe(0.15):  # clean input must stay crisp
        return resize(x, (height, width), dice)
    x = blur(x, kernels(dice, 0.2, 2.5))
    x = rescale(x, dice.rng.uniform(0.4, 1.2), dice)
    x = add_noise(x, dice, 25 * noise, 2.0 * noise)
    if dice.maybe(0.7 * noise):
        x = jpeg(x, dice.each(40, 95))
    if dice.maybe(0.8):
        x = blur(x, kernels(dice, 0.2, 1.2))
    low = (round(height * dice.rng.uniform(0.8, 1.3)), round(width * dice.rng.uniform(0.8, 1.3)))
    x = add_noise(resize(x, low, dice), dice, 15 * noise, 1.0 * noise)
    if dice.maybe(0.3):  # ringing, before or after the last resize
        x = resize(blur(x, sinc(dice)), (height, width), dice)
    else:
        x = resize(x, (height, width), dice)
    if dice.maybe(0.5 * noise):
        return jpeg(x, dice.each(50, 95))
    return video_codec(x, dice.each(18, 32)) if dice.maybe(0.6 * noise) else x


# ---- blur ------------------------------------------------------------------------------------------------


def kernels(dice: Dice, low: float, high: float) -> torch.Tensor:
    """(B, 21, 21): Gaussian, generalised Gaussian and plateau, round or stretched, deviation `low` to `high`."""
    x, y = _grid(dice)
    turn, a, b = dice.each(0, math.pi), dice.each(low, high), dice.each(low, high)
    b = torch.where(dice.each(0, 1) < 0.6, a, b)
    u, v = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    distance = (u / a) ** 2 + (v / b) ** 2
    kind = dice.each(0, 1)
    power = torch.where(kind < 0.7, 1.0, torch.where(kind < 0.85, dice.each(0.5, 4), dice.each(1, 2)))
    shape = torch.where(kind < 0.85, torch.exp(-0.5 * distance**power), 1 / (1 + distance**power))
    return (shape / shape.sum((2, 3), keepdim=True))[:, 0]


def sinc(dice: Dice) -> torch.Tensor:
    """(B, 21, 21): circular low-pass filters, which ring as over-sharpened pictures do."""
    x, y = _grid(dice)
    r, cutoff = torch.hypot(x, y), dice.each(math.pi / 3, math.pi)
    shape = cutoff * torch.special.bessel_j1(cutoff * r) / (2 * math.pi * r.clamp(min=1e-6))
    shape = torch.where(r == 0, cutoff**2 / (4 * math.pi), shape)
    return (shape / shape.sum((2, 3), keepdim=True))[:, 0]


def _grid(dice: Dice) -> tuple[torch.Tensor, torch.Tensor]:
    line = torch.arange(KERNEL, device=dice.pictures.device) - KERNEL // 2.0
    return line.view(1, 1, 1, -1), line.view(1, 1, -1, 1)


def blur(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Each picture of `(B, 3, H, W)` with its own kernel of `(B, k, k)`, by FFT.

    At powers of two: the random sizes of `degrade` would each need a plan of their own, slow to make on a GPU.
    """
    pad = kernel.shape[-1] // 2
    x = F.pad(x, (pad,) * 4, mode="reflect")
    height, width = x.shape[-2:]
    size = [1 << (side - 1).bit_length() for side in (height, width)]
    product = torch.fft.rfft2(x, s=size) * torch.fft.rfft2(kernel, s=size).unsqueeze(1)
    return torch.fft.irfft2(product, s=size)[..., 2 * pad : height, 2 * pad : width]


# ---- size and noise --------------------------------------------------------------------------------------


def rescale(x: torch.Tensor, factor: float, dice: Dice) -> torch.Tensor:
    return resize(x, (round(x.shape[2] * factor), round(x.shape[3] * factor)), dice)


def resize(x: torch.Tensor, size: tuple[int, int], dice: Dice) -> torch.Tensor:
    """To (height, width) by a filter drawn from four, two of which alias."""
    options = ({"mode": "area"}, {"mode": "bilinear"}, {"mode": "bicubic"}, {"mode": "bicubic", "antialias": True})
    return F.interpolate(x, size, **dice.rng.choice(options)).clamp(0, 1)


def add_noise(x: torch.Tensor, dice: Dice, gauss: float, poisson: float) -> torch.Tensor:
    """Half the pictures get Gaussian noise of up to `gauss` levels of 255, half Poisson's (as the normal
    distribution it is close to, 256 photons for white) up to `poisson` times; 40 % of them the same in each colour."""
    grain = dice.normal(x)
    grain = torch.where(dice.each(0, 1) < 0.4, grain[:, :1], grain)
    by_light = dice.each(0, poisson) * (x / 256).sqrt()
    return (x + grain * torch.where(dice.each(0, 1) < 0.5, dice.each(0, gauss) / 255, by_light)).clamp(0, 1)


# ---- compression -----------------------------------------------------------------------------------------


def jpeg(x: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """JPEG's loss, colour at half size: `(B, 3, H, W)` in [0, 1], quality `(B, 1, 1, 1)` from 1 to 100."""
    factor = torch.where(quality < 50, 50 / quality, 2 - quality / 50)
    tables = [(table * factor).clamp(min=1) for table in _constants(x.device)[:2]]
    return _through_blocks(x, tables, rounding=0.5)


def video_codec(x: torch.Tensor, qp: torch.Tensor) -> torch.Tensor:
    """A stand-in for H.264's loss: flat steps of 2^((qp - 4) / 6), a dead zone that swallows faint detail, and
    borders of blocks smoothed afterwards. `qp` is `(B, 1, 1, 1)`."""
    step = 2 ** ((qp - 4) / 6)
    x = _through_blocks(x, [step.expand(-1, 1, 8, 8)] * 2, rounding=1 / 3)
    return _deblock(_deblock(x, step / 255).mT, step / 255).mT


def _deblock(x: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """Pulls the two pixels at each vertical border of 8x8 blocks together where they differ by less than a step."""
    x = x.clone()
    left, right = x[..., 7:-1:8], x[..., 8::8]
    jump = torch.where((right - left).abs() < limit, right - left, 0) / 4
    x[..., 7:-1:8], x[..., 8::8] = left + jump, right - jump
    return x


def _through_blocks(x: torch.Tensor, tables: list[torch.Tensor], rounding: float) -> torch.Tensor:
    """To YCbCr with colour at half size, 8x8 cosine transform, quantised by `tables` (luma, chroma), and back."""
    height, width = x.shape[2:]
    x = F.pad(x, (0, -width % 16, 0, -height % 16), mode="replicate") * 255 - 128
    _, _, to_ycc, to_rgb, cosines = _constants(x.device)
    ycc = torch.einsum("ij,bjhw->bihw", to_ycc, x)
    luma = _quantise(ycc[:, :1], tables[0], cosines, rounding)
    chroma = _quantise(F.avg_pool2d(ycc[:, 1:], 2), tables[1], cosines, rounding)
    ycc = torch.cat([luma, F.interpolate(chroma, scale_factor=2, mode="bilinear")], 1)
    rgb = torch.einsum("ij,bjhw->bihw", to_rgb, ycc)
    return ((rgb + 128) / 255).clamp(0, 1)[..., :height, :width]


def _quantise(x: torch.Tensor, table: torch.Tensor, cosines: torch.Tensor, rounding: float) -> torch.Tensor:
    blocks = x.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # (B, C, rows, columns, 8, 8)
    table = table.unsqueeze(1).unsqueeze(1)
    level = (cosines @ blocks @ cosines.T) / table
    blocks = cosines.T @ (level.sign() * (level.abs() + rounding).floor() * table) @ cosines
    return blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)


@functools.cache
def _constants(device: torch.device) -> list[torch.Tensor]:
    """LUMA, CHROMA, RGB to YCbCr, YCbCr to RGB and COSINES on `device`, copied there once."""
    return [table.to(device) for table in (LUMA, CHROMA, YCC, torch.linalg.inv(YCC), COSINES)]
