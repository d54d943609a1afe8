"""What a model's configuration says about memory and arithmetic, counted without weights and without a GPU.

The networks are made on PyTorch's meta device, where tensors have shapes but no contents, and their real code runs
there while every tensor that lives is added up. So what is counted is what the code does, in any configuration.
"""

from __future__ import annotations

import functools
import math
import weakref
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from ..hunyuan.chunks import use_chunks
from ..hunyuan.masks import mask_assumed, skip_full_masks
from .weights import parameters

LLM_READS = 351  # tokens: 95 of the instruction and 256 of the prompt, what HunyuanVideoPipeline gives Llama to read
ROUND = 512  # bytes: the CUDA caching allocator hands out multiples of it (c10/cuda/CUDACachingAllocator.cpp)


class LiveBytes(TorchDispatchMode):
    """Adds up the tensors that operations make inside it: `.now` and `.peak` in bytes, each storage once.

    model: its weights are not counted, nor views of them.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sections: dict[str, int] = {}
        weights = (*model.parameters(), *model.buffers())
        self.known = {tensor.untyped_storage()._cdata: 0 for tensor in weights}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor)
        if function is torch.ops.aten.convolution.default and made.ndim == 5 and made.dtype.itemsize == 2:
            # cuDNN's 16-bit 3D convolutions compute channels last: input and output are there twice.
            self.peak = max(self.peak, self.now + args[0].nbytes + made.nbytes)
        return made

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage until nothing refers to it any more."""
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
        """What was the peak since the last call is part of this section's peak, in `.sections`."""
        self.sections[section] = max(self.sections.get(section, 0), self.peak)
        self.peak = self.now

    def _freed(self, key: int) -> None:
        self.now -= self.known.pop(key)


class _FusedAttention(TorchFunctionMode):
    """PyTorch's fused attention on a GPU makes nothing but its result; on the meta device it makes every product."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.scaled_dot_product_attention:
            return torch.empty_like(args[0] if args else kwargs["query"])
        return function(*args, **(kwargs or {}))


@contextmanager
def counted(model: torch.nn.Module):
    """A LiveBytes over the block, with fused attention, without gradients, on the meta device."""
    with torch.no_grad(), torch.device("meta"), LiveBytes(model) as live, _FusedAttention():
        yield live


def denoising_bytes(
    config: tuple, tokens: int, words: int, chunk: int | None, mask: bool, dtype: torch.dtype
) -> tuple[float, ...]:
    """Peak bytes of one transformer call beside its weights: in its dual-stream, its single-stream and no block.

    config: the transformer's, as items.  tokens: of the video.  words: length of the prompt.  chunk: as of
    `use_chunks`, None for diffusers' own blocks.  mask: attention gets a mask, as diffusers' always does.
    Once there are many tokens, every one of them costs the same, so two counts tell all others.
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
    """The same, counted. Blocks follow each other and free what they made: two of each kind tell what all need."""
    short = dict(config) | {"num_layers": 2, "num_single_layers": 2}
    model = parameters(lambda: HunyuanVideoTransformer3DModel(**short), dtype)
    skip_full_masks(model)
    if chunk:
        use_chunks(model, chunk)
    patch = short["patch_size"]
    shape = (tokens * short["patch_size_t"], patch, patch)
    with counted(model) as live:
        known = {
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
            model(**known)
        live.close("none")
    return live.sections["dual"], live.sections["single"], live.sections["none"]


@functools.lru_cache(256)
def decoding_cost(config: tuple, latents: tuple[int, int, int], tile: tuple[int, int] | None, dtype: torch.dtype):
    """(peak bytes of decoding beside the VAE's weights, its multiplications and additions).

    latents: (T, H, W).  tile: (height and width of a tile in pixels, the distance of two), None for no tiling.
    The largest tile is decoded once; putting the tiles together is run as it is, over tiles that are there at once.
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
    one, flops = _tile_cost(config, largest, dtype)
    flops *= sum(math.prod(shape) for shape, _ in calls) / math.prod(largest)
    return max(one + max(now for _, now in calls), live.peak, shown), flops


@functools.lru_cache(64)
def _tile_cost(config: tuple, latents: tuple[int, int, int], dtype: torch.dtype) -> tuple[int, int]:
    """(peak bytes, operations) of the decoder's pass over latents (T, H, W)."""
    vae = parameters(lambda: AutoencoderKLHunyuanVideo(**dict(config)), dtype)
    with counted(vae) as one, FlopCounterMode(display=False) as work:
        vae.decoder(torch.empty(1, vae.config.latent_channels, *latents, dtype=dtype))
    return one.peak, work.get_total_flops()


def set_tiles(vae: AutoencoderKLHunyuanVideo, tile: tuple[int, int] | None) -> None:
    """Tile the VAE's decoding in height and width; None leaves it to the VAE (which tiles in time alone)."""
    if tile:
        size, distance = tile
        vae.enable_tiling(size, size, None, distance, distance)


def reading_bytes(config: dict, dtype: torch.dtype) -> int:
    """Peak bytes of Llama's pass over a prompt beside its weights: every layer's states are kept, one layer works."""
    kept = (config["num_hidden_layers"] + 1) * config["hidden_size"]
    working = 4 * config["hidden_size"] + 3 * config["intermediate_size"]
    return LLM_READS * (kept + working) * dtype.itemsize


def linear_flops(config: dict, tokens: int) -> float:
    """Multiplications and additions of the transformer's matrices for one step: 2 a weight and token."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    wide = config.get("mlp_ratio", 4.0)
    dual, single = 4 + 2 * wide, 4 + 2 * wide  # query, key, value, output; in, out. In units of width^2
    return 2.0 * tokens * width**2 * (dual * config["num_layers"] + single * config["num_single_layers"])


def attention_flops(config: dict, tokens: int) -> float:
    """Those of attention for one step: queries by keys, and weights by values, 2 each."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return 4.0 * tokens**2 * width * (config["num_layers"] + config["num_single_layers"])
