"""Recording attention from inside diffusers' own attention processors, for `attention.maps.watch_attention`."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..errors import UserError
from ..stages.prompt import PromptEncoding

# Weights that may exist at a time where the kernel does not fuse softmax and sum: 256 MiB in float32.
WEIGHTS_AT_ONCE = 2**26
QUERIES_AT_ONCE = 1024  # on a GPU, where PyTorch fuses them for these shapes: there the weights never exist


@dataclass(eq=False)
class AttentionMaps:
    """The attention recorded by `watch_attention`; it gains a row with every step.

    Where a step cache skipped a block, values are NaN.

    Attributes:
        words: The numbers of the tokens of each word.
        tokens: All tokens of the prompt as text.
        blocks: The names of the watched blocks, such as 'dual 0' or 'single 3'.
        sigmas: The noise level of each step.
    """

    words: dict[str, list[int]]
    tokens: list[str]
    blocks: list[str]
    sigmas: list[float] = field(default_factory=list)
    _heat: list[np.ndarray] = field(default_factory=list, repr=False)
    _shares: list[np.ndarray] = field(default_factory=list, repr=False)

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """Heat by word: (steps, blocks, T, H', W') float32, or (steps, blocks, heads, T, H', W') by head.

        A value is the attention weight between the word and a video token, 0 to 1. The tokens of a word are summed
        where they are keys and averaged where they are queries; heads are averaged.

        Raises:
            UserError: Nothing was recorded yet.
        """
        self._check_filled()
        return {word: np.stack([heat[place] for heat in self._heat]) for place, word in enumerate(self.words)}

    @property
    def shares(self) -> np.ndarray:
        """Mean attention of the queries to each text token and, in the last place, to all video tokens together.

        Returns:
            (steps, blocks, len(tokens) + 1) float32; the last axis sums to 1.

        Raises:
            UserError: Nothing was recorded yet.
        """
        self._check_filled()
        return np.stack(self._shares)

    def _check_filled(self) -> None:
        if not self._heat:
            raise UserError("nothing was watched: run denoise with the watched prompt inside the with block.")


class Watcher:
    """Turns the queries and keys of each watched block into rows of the maps."""

    def __init__(self, watched: AttentionMaps, prompt: PromptEncoding, transformer, looker, among, every, by_head):
        self.watched, self.prompt = watched, prompt
        self.looker, self.among, self.every, self.by_head = looker, among, every, by_head
        self.config, self.forward = transformer.config, inspect.signature(type(transformer).forward)
        self.active = False

    def begin_step(self, transformer, args, kwargs) -> None:
        """Before each call of the transformer: record its size if it is this prompt's."""
        given = self.forward.bind(transformer, *args, **kwargs).arguments
        embeds, (*_, frames, height, width) = given["encoder_hidden_states"], given["hidden_states"].shape
        self.active = embeds.shape == self.prompt.prompt_embeds.shape and torch.equal(
            embeds, self.prompt.prompt_embeds.to(embeds)
        )
        if not self.active:
            return
        patch = self.config.patch_size
        self.grid = (frames // self.config.patch_size_t, height // patch, width // patch)
        self.text_length = embeds.shape[1]
        kept = torch.arange(int(np.prod(self.grid))).reshape(self.grid)[:, :: self.every, :: self.every]
        self.kept, shape = kept.flatten(), tuple(kept.shape)
        heads = (self.config.num_attention_heads,) if self.by_head else ()
        count = len(self.watched.blocks)
        self.watched.sigmas.append(float(given["timestep"].flatten()[0]) / 1000)  # the flow has 1000 timesteps
        self.watched._heat.append(np.full((len(self.watched.words), count, *heads, *shape), np.nan, np.float32))
        self.watched._shares.append(np.full((count, len(self.watched.tokens) + 1), np.nan, np.float32))

    def see(self, place: int, query, key, mask, scale) -> None:
        """Record queries and keys, (1, heads, video + text tokens, D), as the block's attention receives them."""
        gather = self._video_looks if self.looker == "video" else self._word_looks
        heat, shares = gather(query[:1], key[:1], mask, scale)
        heat = heat if self.by_head else heat.mean(dim=1)
        rows = self.watched._heat[-1]
        rows[:, place] = heat.cpu().numpy().reshape(rows[:, place].shape)
        self.watched._shares[-1][place] = shares.cpu().numpy()

    def _video_looks(self, query, key, mask, scale):
        """The weights of video queries: ((words, heads, kept tokens), (text tokens + 1,))."""
        video, real = key.shape[2] - self.text_length, len(self.watched.tokens)
        owner = torch.full((key.shape[2],), -1, device=key.device)
        owner[:video], owner[video : video + real] = real, torch.arange(real, device=key.device)
        columns = (owner[:, None] == torch.arange(real + 1, device=key.device)).to(key.dtype)
        heat, total = [], 0
        for some in self.kept.to(key.device).split(_queries_at_once(key)):
            weights = summed_attention(query[:, :, some], key, columns, mask, scale)[0]
            whole = weights[..., :real].sum(-1) if self.among == "text" else 1
            heat.append(torch.stack([weights[..., own].sum(-1) / whole for own in self.watched.words.values()]))
            total = total + weights.sum(dim=(0, 1))
        return torch.cat(heat, dim=-1), total / (len(self.kept) * key.shape[1])

    def _word_looks(self, query, key, mask, scale):
        """The weights of the words' queries, in the same shapes. They are few, so that all their weights fit."""
        video, real = key.shape[2] - self.text_length, len(self.watched.tokens)
        heat, shares = [], []
        for own in self.watched.words.values():
            weights = _weights(query[:, :, [video + number for number in own]], key, mask, scale)[0].mean(dim=1)
            heat.append(weights[:, self.kept.to(key.device)])
            text = weights[:, video : video + real].mean(dim=0)
            shares.append(torch.cat([text, weights[:, :video].mean(dim=0).sum()[None]]))
        return torch.stack(heat), torch.stack(shares).mean(dim=0)


class WatchedProcessor:
    """A block's own attention processor, with a watcher that sees its call of PyTorch's attention."""

    def __init__(self, processor, watcher: Watcher, place: int):
        self.processor, self.watcher, self.place = processor, watcher, place

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        with _Seeing(self.watcher, self.place) as seeing:
            result = self.processor(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        if self.watcher.active and not seeing.calls:
            raise UserError(
                "this attention backend cannot be watched, as it does not use PyTorch's scaled_dot_product_attention; "
                'models.pipe.transformer.set_attention_backend("native") would work.'
            )
        return result


class _Seeing(TorchFunctionMode):
    """In this thread and while it is on, shows calls of scaled_dot_product_attention to a watcher, unchanged."""

    def __init__(self, watcher: Watcher, place: int):
        super().__init__()
        self.watcher, self.place, self.calls = watcher, place, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and self.watcher.active:
            self.calls += 1
            given = dict(zip(("query", "key", "value", "attn_mask"), args)) | kwargs
            with torch.no_grad():
                self.watcher.see(self.place, given["query"], given["key"], given.get("attn_mask"), given.get("scale"))
        return func(*args, **kwargs)


def summed_attention(query, key, columns, mask=None, scale=None) -> torch.Tensor:
    """Compute softmax(query key^T / sqrt(D)) columns without ever holding the softmax.

    Attention with `columns` in the place of the values is this sum, so PyTorch's fused kernels compute it.

    Args:
        query: (1, heads, Q, D).
        key: (1, heads, N, D).
        columns: (N, G) of 0 and 1: the keys that are summed in each of G groups.
        mask: As for scaled_dot_product_attention, the same for all queries.
        scale: In the place of 1 / sqrt(D).

    Returns:
        (1, heads, Q, G) float32.
    """
    width, sums = key.shape[-1], []
    for some in columns.to(key.dtype).split(width, dim=1):
        values = F.pad(some, (0, width - some.shape[1])).expand(1, key.shape[1], -1, -1)  # kernels want D columns
        summed = F.scaled_dot_product_attention(query, key, values, attn_mask=mask, scale=scale)
        sums.append(summed[..., : some.shape[1]].float())
    return torch.cat(sums, dim=-1)


def _weights(query, key, mask, scale) -> torch.Tensor:
    """softmax(query key^T / sqrt(D)), (1, heads, Q, N) float32; for a handful of queries."""
    scores = query.float() @ key.float().mT * (scale or query.shape[-1] ** -0.5)
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(dim=-1)


def _queries_at_once(key: torch.Tensor) -> int:
    return QUERIES_AT_ONCE if key.is_cuda else max(1, WEIGHTS_AT_ONCE // (key.shape[1] * key.shape[2]))
