"""How heavy a model's networks are, from their configurations alone: the whole, its blocks, its largest layer."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

# Text encoders of hunyuanvideo-community/HunyuanVideo: a Llama 3 8B with llava's vocabulary; CLIP ViT-L/14.
LLAMA = {
    "vocab_size": 128_320,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
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


def parameters(make: Callable[[], torch.nn.Module], dtype: torch.dtype) -> torch.nn.Module:
    """The network `make` makes, in `dtype` on the meta device: its parameters have shapes and no contents."""
    with torch.device("meta"):
        return torch.nn.Module.to(make(), dtype).requires_grad_(False).eval()  # diffusers' own `to` warns


@dataclass(frozen=True)
class Weights:
    """Bytes of a network's weights: all of them, its stacks of blocks in the order they work, what is in no block."""

    total: int
    stacks: tuple[tuple[int, ...], ...]
    largest: int = 0  # of the linear layers, in the dtype it computes in: what a quantised one unpacks

    @property
    def rest(self) -> int:
        return self.total - sum(map(sum, self.stacks))

    @property
    def streamed(self) -> tuple[int, ...]:
        """What is on the GPU at most while blocks come and go: one that works, the next, and what is in no block.
        While each of the stacks works, and while none does."""
        blocks = [block for stack in self.stacks for block in stack]
        pairs = iter(map(sum, zip(blocks, (*blocks[1:], 0))))
        return *(self.rest + max(next(pairs) for _ in stack) for stack in self.stacks), self.rest


@functools.lru_cache(64)
def weights(configs: Configs, network: str, number: float, linear: float | None = None, skip: tuple = ()) -> Weights:
    """Bytes of one of the configs' networks.

    number: bytes of a weight.  linear: bytes of a weight of a quantised linear layer, None: not quantised.
    skip: linear layers whose name holds one of these words stay as they are.
    """
    model = configs.make(network)

    def size(prefix: str, module: torch.nn.Module) -> int:
        total = 0
        for name, layer in module.named_modules(prefix=prefix):
            quantised = linear and isinstance(layer, torch.nn.Linear) and not any(word in name for word in skip)
            for key, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
                total += math.ceil(tensor.numel() * (linear if quantised and key == "weight" else number))
        return total

    stacks = [(name, child) for name, child in model.named_children() if isinstance(child, torch.nn.ModuleList)]
    blocks = tuple(tuple(size(name, block) for block in stack) for name, stack in stacks)
    linears = [layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    return Weights(size("", model), blocks, int(number * max(linears, default=0)))


@dataclass(frozen=True)
class Configs:
    """The configurations of a model's networks, as items, so that results can be kept."""

    text_encoder: tuple
    text_encoder_2: tuple
    transformer: tuple
    vae: tuple

    @classmethod
    def of(cls, model) -> Configs:
        """Of what `load` takes, 'hunyuan', whose files need not be there, among it, or of loaded Models.

        Raises UserError for an unknown name and a folder without them.
        """
        from ..hunyuan.files import locate, read_json  # here: models needs this package itself

        if model == "hunyuan":
            found = (LLAMA, CLIP, _defaults(HunyuanVideoTransformer3DModel), _defaults(AutoencoderKLHunyuanVideo))
        else:
            folder = getattr(model, "folder", None) or locate(model, None)[0]
            names = [field.name for field in dataclasses.fields(cls)]
            found = (read_json(folder / name / "config.json") for name in names)
        return cls(*map(_items, found))

    def make(self, network: str) -> torch.nn.Module:
        """A network on the meta device, in float32."""
        return _made(network, getattr(self, network))


def _defaults(network: type) -> dict:
    """The defaults of diffusers' classes are HunyuanVideo's configurations."""
    signature = inspect.signature(network.__init__).parameters.values()
    return {p.name: p.default for p in signature if p.default is not inspect.Parameter.empty}


def _items(config: dict) -> tuple:
    """What can be compared and hashed of a configuration; nested dicts (of rotary angles) weigh nothing."""
    plain = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items() if not key.startswith("_")}
    return tuple((key, value) for key, value in plain.items() if not isinstance(value, dict))


@functools.lru_cache(16)
def _made(network: str, config: tuple) -> torch.nn.Module:
    # lists again, which some releases of transformers insist on: they were tuples only to be hashed
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in config}
    kinds = {
        "text_encoder": lambda: LlamaModel(LlamaConfig.from_dict(config)),
        "text_encoder_2": lambda: CLIPTextModel(CLIPTextConfig.from_dict(config)),
        "transformer": lambda: HunyuanVideoTransformer3DModel(**config),
        "vae": lambda: AutoencoderKLHunyuanVideo(**config),
    }
    return parameters(kinds[network], torch.float32)
