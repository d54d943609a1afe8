"""What a video's numbers mean as colours: tags and their defaults, and HDR made into SDR.

Codes are those of ITU-T H.273, which files store and ffmpeg uses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

BT709, UNSPECIFIED, BT601, BT2020 = 1, 2, 6, 9
PQ, HLG = 16, 18  # transfer: SMPTE ST 2084 and ARIB STD-B67
#: Matrices that can be read and written, by their names in ffmpeg.
MATRICES = {1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020nc"}
_SHARES = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
_TRANSFER_OF = {5: 6, 6: 6, 9: 14}  # where the matrix is tagged and the transfer is not
_LUT = 49  # points on each axis of the table: at most 1 level of 255 from the formula, on grey

# ITU-R BT.2087-0, M2 inverted: linear light in BT.2020's primaries to BT.709's.
_TO_BT709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]]
)
_WHITE, _PEAK = 100.0, 1000.0  # cd/m2: of an SDR screen (BT.1886), and of HDR that does not state its peak


@dataclass(frozen=True)
class Colour:
    """How RGB values from 0 to 1 are stored and shown.

    Attributes:
        matrix, primaries, transfer: H.273 codes.
    """

    matrix: int = BT709
    primaries: int = BT709
    transfer: int = BT709

    @property
    def hdr(self) -> bool:
        """Whether the transfer is PQ or HLG."""
        return self.transfer in (PQ, HLG)

    @property
    def shares(self) -> tuple[float, float]:
        """The shares of red and blue in brightness."""
        return _SHARES.get(self.matrix, (0.299, 0.114))


def known_colour(matrix: int, primaries: int, transfer: int, size: tuple[int, int], rgb: bool) -> Colour:
    """Fill in the tags that a file leaves out, as players do.

    Args:
        matrix, primaries, transfer: The file's codes.
        size: (height, width): above 576 rows or 1279 columns untagged video is BT.709, below it is BT.601.
        rgb: Whether the file stores RGB, which is then written in BT.709.
    """
    if rgb:
        matrix = BT2020 if primaries == BT2020 else BT709
    elif matrix not in MATRICES:
        by_size = BT709 if size[0] > 576 or size[1] >= 1280 else BT601
        matrix = BT2020 if primaries == BT2020 else by_size
    unknown = (0, UNSPECIFIED, 3)
    primaries = primaries if primaries not in unknown else matrix if matrix in (1, 5, 6, 7, 9) else BT601
    transfer = transfer if transfer not in unknown else _TRANSFER_OF.get(matrix, BT709)
    return Colour(matrix, primaries, transfer)


def sdr(colour: Colour) -> Colour:
    """What `cube` makes of HDR."""
    return replace(colour, matrix=BT709, primaries=BT709, transfer=BT709)


def cube(transfer: int, peak: float | None = None) -> str:
    """The table that maps HDR in BT.2020 to SDR in BT.709, as a .cube file for ffmpeg's lut3d.

    Bright parts are rolled off by BT.2390's curve to a white of 100 cd/m2; out-of-gamut colours are clipped.

    Args:
        transfer: `PQ` or `HLG`.
        peak: The brightest light of the film in cd/m2; None where it is not stated. HLG is shown as on a screen of
            1000 cd/m2.
    """
    axis = np.linspace(0, 1, _LUT)
    blue, green, red = np.meshgrid(axis, axis, axis, indexing="ij")
    mapped = to_sdr(np.stack([red, green, blue], -1).reshape(-1, 3), transfer, peak)
    lines = "\n".join("{:.6f} {:.6f} {:.6f}".format(*row) for row in mapped)
    return f"LUT_3D_SIZE {_LUT}\n{lines}\n"


def to_sdr(rgb: np.ndarray, transfer: int, peak: float | None = None) -> np.ndarray:
    """`cube`'s formula: `(..., 3)` codes from 0 to 1 in BT.2020, to such codes in BT.709.

    Args:
        rgb: HDR codes, full range.
        transfer, peak: As for `cube`.
    """
    peak = max(peak or _PEAK, _WHITE) if transfer == PQ else _PEAK
    light = _pq_light(rgb) if transfer == PQ else _hlg_light(rgb)
    brightest = light.max(-1, keepdims=True)
    # The brightest channel is rolled off and the others follow, which keeps the hue.
    rolled = _pq_light(_roll_off(_pq_code(brightest), _pq_code(np.float64(peak)), _pq_code(np.float64(_WHITE))))
    light = light * rolled / np.maximum(brightest, 1e-9)
    return np.clip(light @ _TO_BT709.T / _WHITE, 0, 1) ** (1 / 2.4)  # BT.1886, the screen's curve, inverted


_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128  # SMPTE ST 2084


def _pq_light(code: np.ndarray) -> np.ndarray:
    power = np.clip(code, 0, 1) ** (1 / _M2)
    return 10000 * (np.maximum(power - _C1, 0) / (_C2 - _C3 * power)) ** (1 / _M1)


def _pq_code(light: np.ndarray | np.float64) -> np.ndarray:
    power = (np.maximum(light, 0) / 10000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


def _hlg_light(code: np.ndarray) -> np.ndarray:
    """BT.2100-2, table 5: the scene's light, then what a screen of 1000 cd/m2 makes of it (gamma 1.2)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    bright = scene @ np.array([0.2627, 0.6780, 0.0593])
    return _PEAK * scene * np.maximum(bright, 1e-9)[..., None] ** 0.2


def _roll_off(code: np.ndarray, peak: np.ndarray, white: np.ndarray) -> np.ndarray:
    """ITU-R BT.2390-10, section 5.4.1: PQ codes up to `peak` end at `white`; below the knee they stay."""
    e, most = np.minimum(code / peak, 1), white / peak
    knee = 1.5 * most - 0.5
    if knee >= 1:
        return code
    t = np.maximum(e - knee, 0) / (1 - knee)
    curve = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return np.where(e < knee, e, curve) * peak
