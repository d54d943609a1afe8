"""Which sizes are run under which caps, and which of them the estimate's coefficients may be fitted on.

Everything at 12 GB, at 720x1280x61 and on the T4's terms is set aside: `benchmarks.fit` does not read it, and how
well the estimate does is judged on it alone. This was decided, and committed, before anything was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

SIZES = {
    "544x960x61": (544, 960, 61),
    "544x960x129": (544, 960, 129),
    "720x1280x61": (720, 1280, 61),
    "720x1280x129": (720, 1280, 129),
    "320x512x61": (320, 512, 61),
}
TINY_SIZE = (48, 64, 9)
SET_ASIDE_CAPS = (12,)
SET_ASIDE_SIZES = ("720x1280x61", "320x512x61")


@dataclass(frozen=True)
class Row:
    """cap: GiB of GPU memory, None for the whole card.  kind: whose way of saving memory it is.
    slower: how many times the uncapped seconds a step may take.  expected: seconds on an H200, for planning alone."""

    size: str
    cap: float | None
    kind: str = "ours"
    slower: float | None = None
    expected: int = 90

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.cap or 'all'}-{self.size}"

    @property
    def set_aside(self) -> bool:
        return self.kind != "ours" or self.cap in SET_ASIDE_CAPS or self.size in SET_ASIDE_SIZES


# The most wanted first: a run is as long as its time-box, and the next one goes on.
ROWS = [
    Row("544x960x61", 8, slower=1.5, expected=50),
    Row("544x960x61", None, expected=40),
    Row("544x960x129", None, expected=70),
    Row("544x960x129", 12, slower=1.3, expected=80),
    Row("720x1280x61", None, expected=70),
    Row("720x1280x61", 16, slower=1.25, expected=80),
    Row("320x512x61", 16, "t4", expected=70),
    # What diffusers documents for this model: nf4, model offload, VAE tiling.
    Row("544x960x61", 8, "diffusers", expected=25),
    Row("544x960x129", 12, "diffusers", expected=60),
    Row("720x1280x61", 16, "diffusers", expected=90),
    Row("720x1280x129", None, expected=140),
    Row("720x1280x129", 24, slower=1.15, expected=120),
    Row("544x960x129", 8, slower=1.5, expected=70),
    Row("720x1280x129", 12, slower=1.3, expected=120),
    Row("720x1280x129", 16, slower=1.25, expected=115),
    Row("720x1280x129", 24, "diffusers", expected=180),
    # Is it so that nf4 cannot be streamed? Its rule stands until this row says otherwise.
    Row("544x960x61", 8, "nf4-streamed", expected=60),
    Row("720x1280x129", 8, slower=1.5, expected=160),
]
