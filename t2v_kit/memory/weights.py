"""The size of a model's networks from their configurations alone: all weights, each block, the largest layer."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from ..hunyuan.files import locate, read_json
from ..hunyuan.gguf_files import PLAIN, PackedTensor, gguf_of, packed_tensors
from ..hunyuan.llava import language_model
from ..hunyuan.names import I2V_33_ID, I2V_ID

# Text encoders of hunyuanvideo-community/HunyuanVideo: a Llama 3 8B with llava's vocabulary; CLIP ViT-L/14.
LLAMA = {
    "vocab_size": 128_320,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
# What HunyuanVideo-I2V has for it: the same with CLIP ViT-L/14 at 336 pixels before it (xtuner/llava-llama-3-8b-v1_1).
VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
# What differs in the transformers of the two image-to-video repositories.
I2V_TRANSFORMERS = {
    "hunyuan-i2v": {"image_condition_type": "token_replace"},
    I2V_ID: {"image_condition_type": "token_replace"},
    I2V_33_ID: {"image_condition_type": "latent_concat", "in_channels": 33, "guidance_embeds": False},
}
CLIP = {
    "vocab_size": 49_408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
VISION_KEY = "vision"  # among a language model's settings, those of the eye before it


def parameters(make: Callable[[], torch.nn.Module], dtype: torch.dtype) -> Any:
    """Return the network that `make` gives, in `dtype` on the meta device: its parameters have shapes, no contents."""
    with torch.device("meta"):
        return torch.nn.Module.to(make(), dtype).requires_grad_(False).eval()  # diffusers' own `to` warns


@dataclass(frozen=True)
class Weights:
    """Bytes of a network's weights.

    Attributes:
        total: Of all of them.
        stacks: Of each block in each stack of blocks, in the order in which they work.
        largest: Of the largest linear layer in the dtype it computes in: a quantised one is unpacked to that.
    """

    total: int
    stacks: tuple[tuple[int, ...], ...]
    largest: int = 0

    @property
    def rest(self) -> int:
        """Bytes of what is in no block."""
        return self.total - sum(map(sum, self.stacks))

    @property
    def streamed(self) -> tuple[int, ...]:
        """Peak bytes on the GPU while blocks are streamed: one at work, the next, and what is in no block.

        One number for each stack while it works, and one for the time when none does.
        """
        blocks = [block for stack in self.stacks for block in stack]
        pairs = iter(map(sum, zip(blocks, (*blocks[1:], 0))))
        return *(self.rest + max(next(pairs) for _ in stack) for stack in self.stacks), self.rest

    def without_last(self, count: int, linear: float | None) -> int:
        """Bytes on the device while the last blocks wait in RAM, of which two at a time are on the device.

        Args:
            count: How many blocks wait.
            linear: Bytes of a weight of a quantised linear layer, as in `weights`: scales of 4 bits are no parameters,
                and stay.
        """
        waiting = self._last(count)
        two = sum(sorted(waiting)[-2:])
        return self.total - int(_moved(linear) * (sum(waiting) - two))

    def waiting(self, count: int, linear: float | None) -> int:
        """Bytes in RAM while the last blocks wait there; the arguments are those of `without_last`."""
        return int(_moved(linear) * sum(self._last(count)))

    def _last(self, count: int) -> list[int]:
        blocks = [block for stack in self.stacks for block in stack]
        return blocks[len(blocks) - min(count, len(blocks)) :]


def _moved(linear: float | None) -> float:
    """The share of a block's bytes that moves with its weights: all but the scales of 4 bits."""
    return 1.0 if linear is None or linear >= 1 else 0.5 / linear


@functools.lru_cache(64)
def weights(configs: Configs, network: str, number: float, linear: float | None = None, skip: tuple = ()) -> Weights:
    """Count the bytes of a network.

    Args:
        configs: The model's.
        network: A field of `Configs`.
        number: Bytes of a weight.
        linear: Bytes of a weight of a quantised linear layer; None without quantisation.
        skip: Linear layers whose name holds one of these words are not quantised.
    """
    if network == "transformer" and configs.packed:
        return _packed_weights(configs, number)
    model = configs.make(network)

    def size(prefix: str, module: torch.nn.Module) -> int:
        total = 0
        for name, layer in module.named_modules(prefix=prefix):
            plain = not isinstance(layer, torch.nn.Linear) or any(word in name for word in skip)
            linear_weight = number if linear is None or plain else linear
            for key, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
                total += math.ceil(tensor.numel() * (linear_weight if key == "weight" else number))
        return total

    streamed = language_model(model)
    stacks = [(name, child) for name, child in streamed.named_children() if isinstance(child, torch.nn.ModuleList)]
    blocks = tuple(tuple(size(name, block) for block in stack) for name, stack in stacks)
    linears = [layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    return Weights(size("", model), blocks, int(number * max(linears, default=0)))


def _packed_weights(configs: Configs, number: float) -> Weights:
    """A transformer as diffusers holds a GGUF file: packed as it is there, plain tensors in what it computes in."""
    counts = [dict(configs.transformer)[name] for name in ("num_layers", "num_single_layers")]
    stacks, rest = [[0] * count for count in counts], 0
    for tensor in configs.packed:
        size = math.ceil(tensor.numbers * number) if tensor.kind in PLAIN else tensor.bytes
        if tensor.stack is None or tensor.block >= len(stacks[tensor.stack]):
            rest += size
        else:
            stacks[tensor.stack][tensor.block] += size
    return Weights(rest + sum(map(sum, stacks)), tuple(map(tuple, stacks)))


@dataclass(frozen=True)
class Configs:
    """The configurations of a model's networks, as tuples of items, which caches can hash.

    Attributes:
        text_encoder: Of Llama, or of a Llava.
        text_encoder_2: Of CLIP.
        transformer: Of the transformer.
        vae: Of the VAE.
        packed: The tensors of the GGUF file that the transformer is read from; empty for any other.
    """

    text_encoder: tuple
    text_encoder_2: tuple
    transformer: tuple
    vae: tuple
    packed: tuple[PackedTensor, ...] = ()

    @classmethod
    def of(cls, model) -> Configs:
        """Return a model's configurations.

        Args:
            model: What `load` takes, loaded Models, or ModelFiles. What the hub has is known without its files; so is
                what a GGUF file belongs to when it comes by its path alone: HunyuanVideo.

        Raises:
            UserError: There is no such model, its folder lacks a configuration, or a GGUF file cannot be read.
        """
        gguf = gguf_of(model)
        packed = packed_tensors(gguf) if gguf is not None else ()
        if model == "hunyuan" or (packed and isinstance(model, (str, Path))):
            configs = (LLAMA, CLIP, _defaults(HunyuanVideoTransformer3DModel), _defaults(AutoencoderKLHunyuanVideo))
        elif isinstance(model, str) and model in I2V_TRANSFORMERS:
            transformer = _defaults(HunyuanVideoTransformer3DModel) | I2V_TRANSFORMERS[model]
            configs = (LLAMA | {VISION_KEY: VISION}, CLIP, transformer, _defaults(AutoencoderKLHunyuanVideo))
        else:
            folder = getattr(model, "folder", None) or locate(model, None)[0]
            names = [field.name for field in dataclasses.fields(cls) if field.name != "packed"]
            configs = [read_json(folder / name / "config.json") for name in names]
            configs[0] = _flat(configs[0])
        return cls(*map(_items, configs), packed=packed)

    def make(self, network: str) -> torch.nn.Module:
        """Return a network on the meta device, in float32."""
        return _network(network, getattr(self, network))


def _defaults(network: type) -> dict:
    """The defaults of diffusers' classes are HunyuanVideo's configurations."""
    signature = inspect.signature(network.__init__).parameters.values()
    return {p.name: p.default for p in signature if p.default is not inspect.Parameter.empty}


def _flat(config: dict) -> dict:
    """A Llava's configuration as that of its language model, with the one of its eye beside."""
    if "vision_config" not in config:
        return config
    return config["text_config"] | {VISION_KEY: config["vision_config"]}


def _items(config: dict) -> tuple:
    """What can be hashed of a configuration; nested dicts (of rotary angles) change no size, but for the eye's."""
    plain: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in config.items() if not key.startswith("_")
    }
    if VISION_KEY in plain:
        plain[VISION_KEY] = _items(plain[VISION_KEY])
    return tuple((key, value) for key, value in plain.items() if not isinstance(value, dict))


@functools.lru_cache(16)
def _network(network: str, config: tuple) -> torch.nn.Module:
    # lists again, which some releases of transformers insist on: they were tuples only to be hashed
    settings: dict[str, Any] = {
        key: list(value) if isinstance(value, tuple) and key != VISION_KEY else value for key, value in config
    }
    kinds = {
        "text_encoder": lambda: _text_encoder(settings),
        "text_encoder_2": lambda: CLIPTextModel(CLIPTextConfig.from_dict(settings)),
        "transformer": lambda: HunyuanVideoTransformer3DModel(**settings),
        "vae": lambda: AutoencoderKLHunyuanVideo(**settings),
    }
    return parameters(kinds[network], torch.float32)


def _text_encoder(settings: dict) -> torch.nn.Module:
    """Llama; with an eye before it, a Llava."""
    eye = settings.pop(VISION_KEY, None)
    if eye is None:
        return LlamaModel(LlamaConfig.from_dict(settings))
    text = LlamaConfig.from_dict(settings).to_dict()
    # A nested configuration is a dict again: of its items, `_items` made a tuple.
    vision = {key: list(value) if isinstance(value, tuple) else value for key, value in eye}
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))
