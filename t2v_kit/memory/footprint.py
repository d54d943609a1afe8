"""Count the memory and the arithmetic of a model's networks from its configuration, without weights and without a GPU.

The networks are built on PyTorch's meta device, where tensors have shapes but no contents, and their real code runs
there while every living tensor is added up. So the count follows the code, in any configuration.
"""

from __future__ import annotations

import functools
import math
import weakref
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from ..hunyuan.chunks import use_chunks
from ..hunyuan.compiling import use_channels_last
from ..hunyuan.masks import mask_assumed, skip_full_masks
from .weights import VISION_KEY, parameters

LLM_READS = 351  # tokens: 95 of the instruction and 256 of the prompt, what HunyuanVideoPipeline gives Llama to read
I2V_READS = 7  # more of them around a picture: its instruction has 103, of which one is where the picture stands
ROUND = 512  # bytes: the CUDA caching allocator hands out multiples of it (c10/cuda/CUDACachingAllocator.cpp)


class LiveBytes(TorchDispatchMode):
    """Adds up the tensors that operations make inside it, each storage once.

    Attributes:
        now: Bytes of the tensors that live.
        peak: The most so far.
        sections: Peaks by name, see `close`.

    Example:
        >>> with torch.no_grad(), LiveBytes(torch.nn.Identity()) as live:
        ...     _ = torch.zeros(1000)
        >>> live.peak
        4096
    """

    def __init__(self, model: torch.nn.Module, channels_last: bool = False) -> None:
        """Count nothing of the model's weights, nor of views of them.

        Args:
            model: Whose weights are left out.
            channels_last: Whether its 3D convolutions are given their inputs channels last.
        """
        super().__init__()
        self.channels_last = channels_last
        self.now = self.peak = 0
        self.sections: dict[str, int] = {}
        weights = (*model.parameters(), *model.buffers())
        self.known = {tensor.untyped_storage()._cdata: 0 for tensor in weights}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor)
        turned = not self.channels_last and function is torch.ops.aten.convolution.default
        if turned and result.ndim == 5 and result.dtype.itemsize == 2:
            # cuDNN's 16-bit 3D convolutions compute channels last: input and output are there twice.
            self.peak = max(self.peak, self.now + args[0].nbytes + result.nbytes)
        return result

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage for as long as it lives."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:
            return
        size = math.ceil(storage.nbytes() / ROUND) * ROUND
        self.known[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key)

    def close(self, section: str) -> None:
        """End a section: the peak since the last call counts for `sections[section]`."""
        self.sections[section] = max(self.sections.get(section, 0), self.peak)
        self.peak = self.now

    def _freed(self, key: int) -> None:
        self.now -= self.known.pop(key)


class _FusedAttention(TorchFunctionMode):
    """Attention as on a GPU, where the fused kernel allocates its result alone; the meta device allocates more."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.scaled_dot_product_attention:
            return torch.empty_like(args[0] if args else (kwargs or {})["query"])
        return function(*args, **(kwargs or {}))


@contextmanager
def counted(model: torch.nn.Module, channels_last: bool = False):
    """Give a LiveBytes over the block, with fused attention, without gradients, on the meta device."""
    with torch.no_grad(), torch.device("meta"), LiveBytes(model, channels_last) as live, _FusedAttention():
        yield live


def denoising_bytes(
    config: tuple, tokens: int, words: int, chunk: int | None, mask: bool, dtype: torch.dtype
) -> tuple[float, ...]:
    """Count the peak bytes of one transformer call on top of its weights.

    Once there are many tokens, every further one costs the same, so all counts follow from two.

    Args:
        config: The transformer's, as items.
        tokens: Of the video.
        words: Tokens of the prompt.
        chunk: As in `use_chunks`; None for diffusers' own blocks.
        mask: Whether attention gets a mask, as in diffusers it always does.
        dtype: What the transformer computes in.

    Returns:
        The peaks in dual-stream blocks, in single-stream blocks, and outside of blocks.
    """
    few, many = (16 * chunk, 20 * chunk) if chunk else (2**14, 2**15)
    if chunk and tokens <= few:
        return _denoising_count(config, tokens, words, chunk, mask, dtype)
    low, high = (_denoising_count(config, n, words, chunk, mask, dtype) for n in (few, many))
    return tuple(a + (b - a) * (tokens - few) / (many - few) for a, b in zip(low, high))


@functools.lru_cache(256)
def _denoising_count(
    config: tuple, tokens: int, words: int, chunk: int | None, mask: bool, dtype: torch.dtype
) -> tuple[int, ...]:
    """The same, by running two blocks of each kind: blocks free their tensors, so more of them need no more."""
    short: dict[str, Any] = dict(config) | {"num_layers": 2, "num_single_layers": 2}
    model = parameters(lambda: HunyuanVideoTransformer3DModel(**short), dtype)
    skip_full_masks(model)
    if chunk:
        use_chunks(model, chunk)
    patch = short["patch_size"]
    shape = (tokens * short["patch_size_t"], patch, patch)
    with counted(model) as live:
        inputs = {
            "hidden_states": torch.empty(1, short["in_channels"], *shape, dtype=dtype),
            "timestep": torch.empty(1, dtype=dtype),
            "encoder_hidden_states": torch.empty(1, words, short["text_embed_dim"], dtype=dtype),
            "encoder_attention_mask": torch.empty(1, words, dtype=dtype),
            "pooled_projections": torch.empty(1, short["pooled_projection_dim"], dtype=dtype),
            "guidance": torch.empty(1, dtype=dtype),
        }
        for name, stack in (("dual", model.transformer_blocks), ("single", model.single_transformer_blocks)):
            for block in stack:
                block.register_forward_pre_hook(lambda *_: live.close("none"))
                block.register_forward_hook(lambda *_, name=name: live.close(name))
        with mask_assumed(full=not mask):  # on the meta device the mask has no contents to look at
            model(**inputs)
        live.close("none")
    return live.sections["dual"], live.sections["single"], live.sections["none"]


@functools.lru_cache(256)
def decoding_cost(
    config: tuple,
    latents: tuple[int, int, int],
    tile: tuple[int, int] | None,
    dtype: torch.dtype,
    compiled: bool = False,
) -> tuple[int, float]:
    """Count the peak bytes of decoding on top of the VAE's weights, and its multiplications and additions.

    The decoder runs once, on the largest tile; the code that joins tiles runs as it is, with empty tiles.

    Args:
        config: The VAE's, as items.
        latents: (T, H, W).
        tile: (height and width of a tile, distance of two) in pixels; None for no tiling in space.
        dtype: What the VAE computes in.
        compiled: Whether `compile_vae` has been at it.

    Returns:
        (bytes, operations).
    """
    vae = parameters(lambda: AutoencoderKLHunyuanVideo(**dict(config)), dtype)
    set_tiles(vae, tile)
    calls = []
    space, time = vae.spatial_compression_ratio, vae.temporal_compression_ratio

    def only_the_result(part: torch.Tensor) -> torch.Tensor:
        _, _, t, h, w = part.shape
        calls.append(((t, h, w), live.now))
        return part.new_empty(1, vae.config.out_channels, (t - 1) * time + 1, h * space, w * space)

    vae.decoder.forward = only_the_result
    vae.blend_h = vae.blend_v = vae.blend_t = lambda _, tile, extent: tile  # in place, row by row
    with counted(vae) as live:
        pixels = vae.decode(torch.empty(1, vae.config.latent_channels, *latents, dtype=dtype), return_dict=False)[0]
    shown = 3 * pixels.numel() * dtype.itemsize  # the frames, and two copies of them on their way to uint8
    largest = max((shape for shape, _ in calls), key=math.prod)
    one, flops = _tile_cost(config, largest, dtype, compiled)
    flops *= sum(math.prod(shape) for shape, _ in calls) / math.prod(largest)
    return max(one + max(now for _, now in calls), live.peak, shown), flops


@functools.lru_cache(64)
def _tile_cost(config: tuple, latents: tuple[int, int, int], dtype: torch.dtype, compiled: bool) -> tuple[int, int]:
    """Count (peak bytes, operations) of the decoder's pass over latents (T, H, W)."""
    vae = parameters(lambda: AutoencoderKLHunyuanVideo(**dict(config)), dtype)
    if compiled:
        use_channels_last(vae, _result_alone)
    with counted(vae, compiled) as one, FlopCounterMode(display=False) as work:
        vae.decoder(torch.empty(1, vae.config.latent_channels, *latents, dtype=dtype))
    return one.peak, work.get_total_flops()


def _result_alone(x: torch.Tensor, norm, activate, places: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """What a compiled `prepared` allocates, but for some numbers a row."""
    return torch.empty(*x.shape[:2], *(place.numel() for place in places), dtype=x.dtype)


def set_tiles(vae: AutoencoderKLHunyuanVideo, tile: tuple[int, int] | None) -> None:
    """Tile the VAE's decoding in height and width.

    Args:
        vae: The VAE.
        tile: (size, distance) in pixels; None leaves the VAE as it is (by default it tiles in time alone).
    """
    if tile:
        size, distance = tile
        vae.enable_tiling(size, size, None, distance, distance)


@functools.lru_cache(64)
def unpacking_bytes(config: tuple, kinds: tuple[str, ...], dtype: torch.dtype) -> int:
    """Count the peak bytes of unpacking the largest layer of a GGUF file's transformer, which each layer does anew.

    Args:
        config: The transformer's, as items.
        kinds: The kinds of packed tensors, as GGUF names them.
        dtype: What the transformer computes in.
    """
    from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    model = parameters(lambda: HunyuanVideoTransformer3DModel(**dict(config)), dtype)
    sizes = [layer.weight.shape for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    rows, columns = max(sizes, key=math.prod)
    peaks = [0]
    for kind in kinds:
        numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        packed = torch.empty(rows, -(-columns // numbers) * size, dtype=torch.uint8, device="meta")
        make: Any = GGUFParameter  # its `__new__` takes more than `Parameter`'s
        weight = make(packed, quant_type=GGMLQuantizationType[kind])
        with torch.no_grad(), torch.device("meta"), LiveBytes(torch.nn.Identity()) as live:
            dequantize_gguf_tensor(weight).to(dtype)
        peaks.append(live.peak)
    return max(peaks)


def reading_bytes(config: dict, dtype: torch.dtype) -> int:
    """Count the peak bytes of Llama's pass over a prompt on top of its weights.

    The states of every layer are kept, and one layer works. A Llava reads a picture too, and its head gives a number,
    which nobody uses, for each word of its vocabulary.
    """
    kept = (config["num_hidden_layers"] + 1) * config["hidden_size"]
    working = 4 * config["hidden_size"] + 3 * config["intermediate_size"]
    tokens, eye = LLM_READS, dict(config.get(VISION_KEY, ()))
    if eye:
        tokens += I2V_READS + picture_tokens(eye)
        working += config["vocab_size"]
    return tokens * (kept + working) * dtype.itemsize


def picture_tokens(eye: dict) -> int:
    """How many tokens a Llava's eye makes of a picture."""
    return (eye.get("image_size", 224) // eye.get("patch_size", 32)) ** 2  # the defaults of CLIPVisionConfig


def linear_flops(config: dict, tokens: int) -> float:
    """Count the multiplications and additions of the transformer's matrices in one step: 2 for each weight and token.

    Args:
        config: The transformer's.
        tokens: Of video and prompt together.
    """
    width = config["num_attention_heads"] * config["attention_head_dim"]
    wide = config.get("mlp_ratio", 4.0)
    dual, single = 4 + 2 * wide, 4 + 2 * wide  # query, key, value, output; in, out. In units of width^2
    return 2.0 * tokens * width**2 * (dual * config["num_layers"] + single * config["num_single_layers"])


def attention_flops(config: dict, tokens: int) -> float:
    """Count those of attention in one step: queries by keys, and weights by values, 2 each."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return 4.0 * tokens**2 * width * (config["num_layers"] + config["num_single_layers"])
