"""One video on several devices: each process holds all weights and a share of the tokens, heads and tiles.

The processes are started by PyTorch's launcher (torchrun), and all of them call the same stages in the same order.

Denoising is Ulysses (arXiv:2309.14509). diffusers' own context parallelism splits the video's and the prompt's tokens
before the first block, by the plan below, which `HunyuanVideoTransformer3DModel` in diffusers 0.42 does not have. The
exchange inside attention and the gathering at the end are ours, because those of diffusers do not run beside
FlashAttention-3, refuse some numbers of heads (24 on 7 devices), ask for every length again in every block, and need an
accelerator (uneven lengths do not pass gloo). Once they do these, all of it is
`enable_parallelism(config=ContextParallelConfig(ulysses_degree=N, ulysses_anything=True), cp_plan=...)`.

Decoding shares out the VAE's tiles: the first process puts them together, so it alone has the frames, and they are the
same bits as on one device.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, HunyuanVideoTransformer3DModel
from diffusers.hooks import ModelHook
from diffusers.hooks.context_parallel import apply_context_parallel
from diffusers.models._modeling_parallel import ContextParallelInput

from ..errors import UserError
from .backends import attend
from .chunks import ChunkedAttention
from .hooks import attach
from .masks import blocks

#: Where the tokens are split.
PLAN = {
    "rope": {index: ContextParallelInput(split_dim=0, expected_dims=2, split_output=True) for index in (0, 1)},
    "transformer_blocks.0": {
        "hidden_states": ContextParallelInput(split_dim=1, expected_dims=3),
        "encoder_hidden_states": ContextParallelInput(split_dim=1, expected_dims=3),
    },
}
#: How long a process waits for the others before the run ends; reading 13B weights from a slow disk takes minutes.
PATIENCE = timedelta(minutes=15)
_ALL = 2**62  # tokens: in one piece
_NAME = "t2v_kit_share"
_joined: list[Team] = []  # the one team of this process; an operator's arguments cannot carry it


@dataclass
class Team:
    """The processes that make one video.

    Attributes:
        rank: This process, from 0.
        size: How many there are.
        device: Where this one computes.
        config: diffusers' description of the same.
        video: How many of the video's tokens each process has in the present call of the transformer.
        words: How many of the prompt's.
    """

    rank: int
    size: int
    device: torch.device
    config: ContextParallelConfig
    video: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        """How many tokens each process has, of both kinds."""
        return [video + words for video, words in zip(self.video, self.words)]

    @property
    def leads(self) -> bool:
        """Whether this process writes, shows and has the frames."""
        return self.rank == 0

    def agreed(self, value: Any) -> Any:
        """What the first process gives, in all of them: numbers, dataclasses, tensors on the CPU."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]


def launched() -> int:
    """How many processes a launcher has started this one among; 0 without a launcher."""
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() else 0


def join(on_cpu: bool = False) -> Team:
    """Meet the other processes that torchrun started.

    Args:
        on_cpu: Compute on the CPU although there are GPUs.

    Returns:
        The team; the same one at each call, until `leave`.

    Raises:
        UserError: This process was not started by torchrun, or a host has fewer GPUs than processes.
    """
    if _joined:
        return _joined[0]
    size = launched()
    if size < 2:
        raise UserError("gpus: this process is alone; torchrun --nproc-per-node 2 -m t2v_kit would work.")
    device = torch.device("cpu")
    if torch.cuda.is_available() and not on_cpu:
        local, cards = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if local >= cards:
            raise UserError(f"gpus: process {local + 1} of this host has no GPU; --nproc-per-node {cards} would work.")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    config = ContextParallelConfig(ulysses_degree=size, ulysses_anything=True)
    mesh = dist.init_device_mesh(device.type, config.mesh_shape, mesh_dim_names=config.mesh_dim_names)
    config.setup(dist.get_rank(), size, device, mesh)
    _joined.append(Team(dist.get_rank(), size, device, config))
    return _joined[0]


def leave() -> None:
    """Part from the other processes, if there are any; the next `join` meets them again."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    _joined.clear()


def check_heads(config: Mapping[str, Any], size: int) -> None:
    """Refuse what cannot be shared out.

    Args:
        config: The transformer's.
        size: How many devices.

    Raises:
        UserError: More devices than attention heads, or a transformer whose first frame has weights of its own.
    """
    heads = config.get("num_attention_heads", 24)
    if size > heads:
        raise UserError(
            f"gpus={size}: this transformer has {heads} attention heads to share out; gpus={heads} would work.",
            setting="gpus",
        )
    if config.get("image_condition_type") == "token_replace":
        raise UserError(
            f"gpus={size}: a transformer that is given its first frame cannot be shared out; gpus=1 would work.",
            setting="gpus",
        )


def share_transformer(transformer: HunyuanVideoTransformer3DModel, team: Team) -> None:
    """Let this process compute its share of every step; the result is the whole step in every process.

    Padding of the prompt is cut off first, which is the same mathematics. Without gradients.

    Args:
        transformer: After `skip_full_masks`, `use_backend` and `use_chunks`, before offloading and compilation.
        team: The processes.

    Raises:
        UserError: A step cache is on, which would decide by a share of the tokens; or as `check_heads` says.
    """
    check_heads(cast(Mapping[str, Any], transformer.config), team.size)
    if transformer.is_cache_enabled:
        raise UserError(f"gpus={team.size}: a step cache would decide by a share of the tokens; disable_cache() works.")
    for block in blocks(transformer):
        if not isinstance(block.attn.processor, ChunkedAttention):
            block.attn.set_processor(ChunkedAttention(block.attn.processor, _ALL))
        block.attn.processor.attend = shared
    apply_context_parallel(transformer, team.config, PLAN)
    attach(transformer.proj_out, _Gathered(team), _NAME)
    attach(transformer, _Trimmed(team), _NAME)


def share_tiles(vae: Any, team: Team) -> None:
    """Let this process decode its share of the VAE's tiles; the first one has them all.

    Args:
        vae: An AutoencoderKLHunyuanVideo, tiled as it will be.
        team: The processes.
    """
    attach(vae.decoder, _SharedTiles(vae, team), _NAME)


def shares(whole: int, size: int) -> list[int]:
    """`whole` things among `size` takers, as torch.tensor_split does it: the first ones have one more.

    Example:
        >>> shares(10, 4)
        [3, 3, 2, 2]
    """
    return [whole // size + (index < whole % size) for index in range(size)]


def shared(query, key, value, mask, backend) -> torch.Tensor:
    """`attend` for a share of the tokens; `_Trimmed` has seen to it that no mask is needed."""
    if mask is not None:
        raise ValueError("attention is shared out: it takes no mask")
    return shared_attention(query, key, value, "" if backend is None else getattr(backend, "value", backend))


@torch.library.custom_op("t2v_kit::shared_attention", mutates_args=())
def shared_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, backend: str) -> torch.Tensor:
    """Attention over the tokens of all processes: each computes some heads of it, for all tokens.

    An operator of its own, so that compiled blocks do not break apart at the exchange.

    Args:
        query: (1, own tokens, heads, width of a head), as key and value.
        key: The same shape.
        value: The same shape.
        backend: A name of diffusers.models.attention_dispatch; "" for the default.

    Returns:
        The same shape.
    """
    team = join()
    heads = shares(query.shape[2], team.size)
    query, key, value = _to_heads((query, key, value), heads, team)
    return _to_tokens(attend(query, key, value, None, backend or None), heads, team)


@shared_attention.register_fake
def _(query, key, value, backend):
    return query.new_empty(query.shape)


def _to_heads(tensors: Sequence[torch.Tensor], heads: list[int], team: Team) -> list[torch.Tensor]:
    """(1, own tokens, all heads, width) to (1, all tokens, own heads, width), several tensors at once."""
    count, (_, tokens, _, width) = len(tensors), tensors[0].shape
    own, sizes = heads[team.rank], [count * number * tokens * width for number in heads]
    sent = tensors[0].new_empty(sum(sizes))
    shares_of = zip(*(tensor[0].transpose(0, 1).split(heads) for tensor in tensors))
    for place, share in zip(sent.split(sizes), shares_of):
        torch.stack(share, out=place.view(count, -1, tokens, width))
    arriving = [count * own * length * width for length in team.lengths]
    received = sent.new_empty(sum(arriving))
    dist.all_to_all_single(received, sent, arriving, sizes)
    parts = [part.view(count, own, -1, width) for part in received.split(arriving)]
    return [each.transpose(0, 1)[None] for each in torch.cat(parts, dim=2)]


def _to_tokens(x: torch.Tensor, heads: list[int], team: Team) -> torch.Tensor:
    """(1, all tokens, own heads, width) to (1, own tokens, all heads, width)."""
    own, per_token = team.lengths[team.rank], x.shape[2] * x.shape[3]
    received = x.new_empty(own * sum(heads) * x.shape[3])
    sizes = [own * count * x.shape[3] for count in heads]
    dist.all_to_all_single(received, x[0].reshape(-1), sizes, [length * per_token for length in team.lengths])
    parts = [part.view(own, -1, x.shape[3]) for part in received.split(sizes)]
    return torch.cat(parts, dim=1)[None]


class _Trimmed(ModelHook):
    """Before each call of the transformer: cuts off the prompt's padding, and counts who has how many tokens."""

    def __init__(self, team: Team) -> None:
        super().__init__()
        self.team = team

    def pre_forward(self, module: Any, *args, **kwargs):
        names = ("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask", "pooled_projections")
        kwargs = dict(zip(names, args)) | kwargs
        words = int(kwargs["encoder_attention_mask"].sum(dim=1).max())
        if words < self.team.size:
            raise UserError(
                f"gpus={self.team.size}: the prompt has {words} tokens, which are shared out; gpus={max(words, 1)} or "
                "a longer prompt would work.",
                setting="gpus",
            )
        for name in ("encoder_hidden_states", "encoder_attention_mask"):
            kwargs[name] = kwargs[name][:, :words]
        config, (frames, height, width) = module.config, kwargs["hidden_states"].shape[2:]
        tokens = math.prod((frames // config.patch_size_t, height // config.patch_size, width // config.patch_size))
        self.team.video, self.team.words = shares(tokens, self.team.size), shares(words, self.team.size)
        return (), kwargs


class _Gathered(ModelHook):
    """Behind the last layer: the video's tokens of all processes, in each of them."""

    def __init__(self, team: Team) -> None:
        super().__init__()
        self.team = team

    def post_forward(self, module: torch.nn.Module, output: torch.Tensor) -> torch.Tensor:
        lengths = self.team.video
        padded = torch.nn.functional.pad(output, (0, 0, 0, max(lengths) - output.shape[1]))
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        return torch.cat([part[:, :length] for part, length in zip(parts, lengths)], dim=1)


class _SharedTiles(ModelHook):
    """The VAE's decoder where its calls take turns: the first process has every result, the others only their own."""

    def __init__(self, vae: Any, team: Team) -> None:
        super().__init__()
        self.space, self.time = vae.config.spatial_compression_ratio, vae.config.temporal_compression_ratio
        self.channels, self.team, self.calls = vae.config.out_channels, team, 0

    def new_forward(self, decoder: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
        owner, self.calls = self.calls % self.team.size, self.calls + 1
        if owner == self.team.rank:
            forward = self.fn_ref.original_forward
            assert forward is not None  # set when the hook was attached
            pixels = forward(latents)
            if not self.team.leads:
                dist.send(pixels.contiguous(), 0)
            return pixels
        batch, _, frames, height, width = latents.shape
        shape = (batch, self.channels, (frames - 1) * self.time + 1, height * self.space, width * self.space)
        pixels = latents.new_zeros(shape)
        if self.team.leads:
            dist.recv(pixels, owner)
        return pixels
