"""Memory plans: how each network is quantised, where it waits and how its work is cut up. Plain data.

    plan(vram_gb=12, ram_gb=32, height=544, width=960, num_frames=129)    # needs neither GPU nor weights
    load("hunyuan", memory=plan(vram_gb=12, ram_gb=32))                   # or memory="auto", which looks at the machine

`t2v_kit.estimate` predicts what a plan needs, `rules` lists what cannot work, and `model.residence` carries a plan out.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

from ..errors import UserError, check_whole, did_you_mean, is_whole

PARTS = ("text_encoder", "transformer", "vae")  # CLIP, 0.2 GiB, goes with the text encoder
QUANTISATIONS = {  # bytes a number of the linear layers takes, and what it is
    "none": (None, "as the dtype says"),
    "fp8": (1.0, "kept in 8-bit floats, computed in the dtype: layerwise casting of diffusers"),
    "int8": (1.0, "LLM.int8() of bitsandbytes (arXiv:2208.07339): weights and activations in 8 bits"),
    "nf4": (0.5 + 4 / 64, "NF4 of bitsandbytes (arXiv:2305.14314): 16 levels, a scale for 64 numbers"),
}
OFFLOADS = {
    "none": "on the device from its first use on",
    "model": "on the device while it works, in RAM before and after",
    "group": "block by block from pinned RAM: one is copied while the one before it computes",
    "disk": "block by block out of the model's own files, which the system maps: next to no RAM",
    "sequential": "layer by layer, waiting for every copy: the least memory, and very slow",
}
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes

# (size, distance) of the VAE's tiles in pixels, from the fewest seams to the least memory; (256, 192) is diffusers'
# default. None: no tiles in height and width.
UNTILED = 512 * 512  # pixels; the attention in the VAE's middle takes tokens^2, 10 GiB of mask at 720x1280
TILES = (None, (512, 448), (384, 320), (256, 192), (192, 144), (128, 96))
CHUNKS = (None, 8192)  # tokens; fewer save nothing more where there are many tokens


@dataclass(frozen=True)
class Part:
    """How one network is kept.

    Attributes:
        dtype: What it computes in, a key of `DTYPES`.
        quantisation: How its linear layers are stored, a key of `QUANTISATIONS`.
        offload: Where it waits, a key of `OFFLOADS`.

    Raises:
        UserError: One of them is no such key.
    """

    dtype: str = "bfloat16"
    quantisation: str = "none"
    offload: str = "none"

    def __post_init__(self) -> None:
        for name, known in (("dtype", DTYPES), ("quantisation", QUANTISATIONS), ("offload", OFFLOADS)):
            if getattr(self, name) not in list(known):
                raise UserError(
                    f"{name}={getattr(self, name)!r}: must be one of {', '.join(known)}; {next(iter(known))!r} works."
                )


@dataclass(frozen=True)
class Plan:
    """How a model is kept in memory and computed. `print` shows a plan; `dataclasses.replace` gives a changed one.

    `rules.check` refuses combinations that cannot work on a machine.

    Attributes:
        name: For people.
        text_encoder: How Llama is kept. CLIP follows it, unquantised and never streamed.
        transformer: How the transformer is kept.
        vae: How the VAE is kept.
        one_stage: A network is read from disk when its stage begins, and dropped when the next stage begins.
        tile: (size, distance) of the VAE's tiles in pixels, multiples of 16; None decodes whole pictures. The VAE
            tiles in time in either case.
        slicing: The VAE takes the videos of a batch one by one.
        chunk: How many tokens the feed-forward layers and projections take at a time; None takes all at once.
        attention: An attention backend of diffusers.
        compile: The transformer's blocks and the VAE are compiled at their first call.
        waiting_blocks: How many blocks of a transformer in 4 bits, the last ones, wait in RAM from when they are read,
            for a training with as many `streamed_blocks`.

    Raises:
        UserError: A value is of the wrong kind.

    Example:
        >>> Plan(transformer=Part("bfloat16", offload="group"), tile=(256, 192), chunk=8192).tile
        (256, 192)
    """

    name: str = "by hand"
    text_encoder: Part = Part("float16")
    transformer: Part = Part()
    vae: Part = Part("float16")
    one_stage: bool = False
    tile: tuple[int, int] | None = None
    slicing: bool = False
    chunk: int | None = None
    attention: str = "native"
    compile: bool = False
    waiting_blocks: int = 0

    def __post_init__(self) -> None:
        for name, part in self.parts().items():
            if isinstance(part, dict):
                object.__setattr__(self, name, _from_dict(Part, part, name))
            elif not isinstance(part, Part):
                raise UserError(f"{name}={part!r}: must be a Part or its dict; Part('float16') would work.")
        for name in ("one_stage", "slicing", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name}={getattr(self, name)!r}: must be True or False; False would work.")
        if self.tile is not None:
            if not _is_tile(self.tile):
                raise UserError(
                    f"tile={self.tile!r}: must be (size, distance), multiples of 16; (256, 192) would work."
                )
            object.__setattr__(self, "tile", tuple(map(int, self.tile)))
        if self.chunk is not None:
            object.__setattr__(self, "chunk", check_whole("chunk", self.chunk, unit="tokens", works=8192))
        waiting = check_whole("waiting_blocks", self.waiting_blocks, 0, unit="blocks", works=0)
        object.__setattr__(self, "waiting_blocks", waiting)
        if self.attention not in (known := _backends()):
            raise UserError(f"attention={self.attention!r}: must be one of {', '.join(known)}; 'native' would work.")

    def parts(self) -> dict[str, Part]:
        """The networks' parts by name."""
        return {name: getattr(self, name) for name in PARTS}

    def as_dict(self) -> dict:
        """The plan as JSON can hold it: `Plan(**plan.as_dict()) == plan`."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def __str__(self) -> str:
        lines = [f"plan {self.name!r}" + (", one stage in memory at a time" if self.one_stage else "")]
        for name, part in self.parts().items():
            lines.append(f"  {name:13} {part.dtype:9} {part.quantisation:5} {part.offload:6}  {OFFLOADS[part.offload]}")
        tiles = f"{self.tile[0]} pixels wide and high, every {self.tile[1]}" if self.tile else "in time only"
        chunk = f"{self.chunk} tokens at a time" if self.chunk else "all tokens at once"
        lines.append(f"  VAE tiles     {tiles}{', batch sliced' if self.slicing else ''}")
        lines.append(f"  feed-forward  {chunk}")
        lines.append(f"  attention     {self.attention}{', blocks and VAE compiled' if self.compile else ''}")
        if self.waiting_blocks:
            lines.append(f"  in RAM        the last {self.waiting_blocks} blocks, to be trained")
        return "\n".join(lines)


@dataclass(frozen=True)
class Size:
    """The size of a video, which decides a plan besides the machine.

    Attributes:
        height: In pixels.
        width: In pixels.
        num_frames: How many frames.
        num_inference_steps: How many steps of denoising: for the seconds of an estimate alone.
    """

    height: int = 720
    width: int = 1280
    num_frames: int = 129
    num_inference_steps: int = field(default=50, compare=False)


def _from_dict(kind: type, given: dict, what: str):
    """A Plan or a Part from its fields by name, as JSON holds them."""
    known = [each.name for each in dataclasses.fields(kind)]
    for name in given:
        if name not in known:
            raise UserError(f"{what}: has no {name!r}; {did_you_mean(name, known)}")
    return kind(**given)


def _is_tile(tile) -> bool:
    if not isinstance(tile, (tuple, list)) or len(tile) != 2 or not all(map(is_whole, tile)):
        return False
    size, distance = tile
    return 0 < distance <= size and size % 16 == distance % 16 == 0


def _backends() -> list[str]:
    """The names of diffusers' attention backends."""
    from diffusers.models.attention_dispatch import AttentionBackendName  # 'native' is one of them

    return [backend.value for backend in AttentionBackendName]


def gigabytes(memory: object) -> float | None:
    """Read what stands for a plan: the GB of GPU memory to stay within, or None for 'auto'.

    Args:
        memory: 'auto', or GB as 12, '12' or '12GB'.

    Raises:
        UserError: It is neither.
    """
    text = str(memory).strip().lower()
    if text == "auto":
        return None
    try:
        vram = float(text.removesuffix("gb"))
    except ValueError:
        vram = 0
    if not 0 < vram < float("inf"):
        raise UserError(f"memory={memory!r}: must be a plan, 'auto' or GB of GPU memory; 'auto' would work.")
    return vram
