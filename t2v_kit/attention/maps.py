"""Attention heat maps: how much each part of the video attends to a word, by block and denoising step.

In this transformer video and text tokens share one attention, so each video token has a weight for each word.
Cross-attention maps as in Prompt-to-Prompt (https://arxiv.org/abs/2208.01626) and DAAM
(https://arxiv.org/abs/2210.04885) are one part of that joint attention: video queries by text keys.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from ..errors import UserError, check_text, check_whole, did_you_mean, is_whole, quoted
from ..stages.prompt import PromptEncoding
from ..video.arrays import check_video
from .watching import AttentionMaps, WatchedProcessor, Watcher

if TYPE_CHECKING:
    from ..model.models import Models

CHOICES = {"looker": ("video", "word"), "among": ("all", "text")}


@contextlib.contextmanager
def watch_attention(
    models: Models,
    prompt: PromptEncoding,
    words: str | list[str] | dict[str, list[int]],
    blocks: list[int] | None = None,
    looker: str = "video",
    among: str = "all",
    every: int = 1,
    by_head: bool = False,
) -> Iterator[AttentionMaps]:
    """Record attention maps: inside the `with` block, `denoise` also fills the `AttentionMaps` that it yields.

    The transformer's output stays the same to the last bit. Weights are summed inside PyTorch's own attention, in
    parts: the matrix of all tokens by all tokens, 1.4 TB for the 118,800 video tokens of 720x1280x129, never exists.
    Watching every token of a block costs about as much as the block's attention. Calls with another prompt, such as
    the negative one, are not recorded.

    Args:
        models: A loaded model.
        prompt: The encoding that `denoise` is given.
        words: A word or phrase of the prompt, a list of them, or names with the numbers of their tokens.
        blocks: The numbers of the blocks to watch, dual-stream blocks first, then single-stream; None watches all.
        looker: 'video' records how much each video token attends to the word, 'word' how much the word attends to
            each video token.
        among: 'all' counts weights among all keys, as the softmax does; 'text' counts them among the text tokens
            alone, as models with cross-attention do, so that video tokens that hardly attend to text weigh as much as
            others.
        every: 2 watches every second row and column of each frame.
        by_head: Keep the heads apart.

    Yields:
        The `AttentionMaps`, which gain a row with every step.

    Raises:
        UserError: A word is not in the prompt, a block or choice does not exist, or attention does not go through
            PyTorch's scaled_dot_product_attention.

    Example:
        >>> with watch_attention(models, prompt, "car") as watched:
        ...     *_, last = denoise(models, prompt, latents, settings)
        >>> heat = watched.maps["car"].mean((0, 1))  # over steps and blocks: (T, H', W')
    """
    transformer: Any = models.network("transformer")
    names = [f"dual {i}" for i in range(len(transformer.transformer_blocks))]
    names += [f"single {i}" for i in range(len(transformer.single_transformer_blocks))]
    chosen = list(range(len(names))) if blocks is None else list(blocks)
    _check(names, chosen, every, looker=looker, among=among)
    watched = AttentionMaps(find_tokens(prompt, words), _real_tokens(prompt), [names[i] for i in chosen])
    watcher = Watcher(watched, prompt, transformer, looker, among, every, by_head)
    modules = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    with contextlib.ExitStack() as undo:
        for place, number in enumerate(chosen):
            attn = modules[number].attn
            if isinstance(attn.processor, WatchedProcessor):
                raise UserError("this transformer is being watched already; one watch_attention takes several words.")
            undo.callback(attn.set_processor, attn.processor)
            attn.set_processor(WatchedProcessor(attn.processor, watcher, place))
        undo.callback(transformer.register_forward_pre_hook(watcher.begin_step, with_kwargs=True).remove)
        yield watched


def find_tokens(prompt: PromptEncoding, words: str | list[str] | dict[str, list[int]]) -> dict[str, list[int]]:
    """Find the tokens that spell each word or phrase, wherever it occurs as a whole word. Case does not matter.

    Args:
        prompt: An encoded prompt.
        words: A word or phrase, a list of them, or names with the numbers of their tokens, which are only checked.

    Returns:
        The numbers of the tokens by word.

    Raises:
        UserError: A word is not in the prompt, or a number is not a token's.

    Example:
        >>> find_tokens(encode_prompt(models, "A red car."), "car")
        {'car': [3]}
    """
    tokens = _real_tokens(prompt)
    if not words:
        raise UserError(f"words={words!r}: name at least one; {tokens[0].strip()!r} would work.")
    if isinstance(words, dict):
        for name, numbers in words.items():
            if not numbers or not all(is_whole(n) and 0 <= n < len(tokens) for n in numbers):
                raise UserError(f"tokens {numbers!r} of {name!r}: must be from 0 to {len(tokens) - 1}; [0] would work.")
        return {name: list(numbers) for name, numbers in words.items()}
    spelled = _bytes(prompt.text.encode(), tokens)
    text = b"".join(spelled).decode(errors="surrogateescape")
    ends = np.cumsum([len(token) for token in spelled])
    tokens_of = {}
    for word in [words] if isinstance(words, str) else words:
        check_text("word", word)
        spans = [match.span() for match in re.finditer(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, re.IGNORECASE)]
        if not spans:
            known = dict.fromkeys(re.findall(r"\w+", prompt.text or text))
            hint = did_you_mean(word, known, f"there are {', '.join(known)}.")
            raise UserError(f"word {word!r}: is not in the prompt; {hint}", setting="words")
        places = [[len(text[:each].encode(errors="surrogateescape")) for each in span] for span in spans]
        inside = [any(end - len(token) < stop and start < end for start, stop in places) and token.strip() != b""
                  for token, end in zip(spelled, ends)]  # fmt: skip
        tokens_of[word] = np.flatnonzero(inside).tolist()
    return tokens_of


def overlay_heat(video: np.ndarray, heat: np.ndarray, highest: float | None = None) -> np.ndarray:
    """Draw heat over a video: grey and dim where it is cold, glowing where it is hot.

    Args:
        video: `(frames, H, W, 3)` uint8.
        heat: (T, H', W') of any range. T latent frames stand for 4 (T - 1) + 1 frames: heat is interpolated over time
            and space.
        highest: The heat that glows most; None is the maximum of `heat`. Give the same one to compare videos.

    Returns:
        `(frames, H, W, 3)` uint8.

    Raises:
        UserError: `video` is not a video, or `heat` is not finite or not three-dimensional.
    """
    from matplotlib import colormaps

    check_video(video)

    if heat.ndim != 3 or not np.isfinite(heat).all():
        raise UserError(f"heat {heat.shape}: must be finite and (T, H', W'); the mean over steps and blocks is.")
    frames, height, width, _ = video.shape
    spread = F.interpolate(torch.from_numpy(_at_frames(heat, frames))[:, None], (height, width), mode="bilinear")
    lowest, highest = heat.min(), heat.max() if highest is None else highest
    strength = ((spread[:, 0, :, :, None].numpy() - lowest) / max(highest - lowest, 1e-12)).clip(0, 1)
    grey = video.mean(axis=-1, keepdims=True) * (0.75 - 0.35 * strength)
    glow = colormaps["inferno"](strength[..., 0])[..., :3] * 255
    return (grey * (1 - 0.8 * strength) + glow * 0.8 * strength).clip(0, 255).astype(np.uint8)


def token_mask(mask: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Reduce a mask over pixels to the share of each token's pixels that it covers.

    The first latent frame stands for the first frame alone, each other for an equal share of the rest.

    Args:
        mask: (frames, H, W) bool.
        grid: (T, H', W'), as the last three axes of a heat map.

    Returns:
        (T, H', W') float32, 0 to 1.
    """
    length, height, width = grid
    pixels = torch.from_numpy(np.ascontiguousarray(mask))[None].float()
    groups = [pixels[:, :1], *(pixels[:, 1:].tensor_split(length - 1, dim=1) if length > 1 else ())]
    return torch.cat([F.adaptive_avg_pool3d(group, (1, height, width)) for group in groups], dim=1)[0].numpy()


def auc(heat: np.ndarray, mask: np.ndarray) -> float:
    """Measure how well heat locates a mask: the probability that a place inside is hotter than one outside.

    This is the area under the ROC curve; a tie counts half.

    Args:
        heat: Any shape.
        mask: Of the same shape: bool, or the share of each place that lies inside, 0 to 1.

    Returns:
        1 when every place inside is hotter, 0.5 when heat carries no information.

    Raises:
        UserError: The shapes differ, or nothing or everything lies inside.
    """
    if heat.shape != mask.shape:
        raise UserError(f"heat is {heat.shape} and mask {mask.shape}: must have one shape; token_mask reduces a mask.")
    _, rank = np.unique(heat, return_inverse=True)
    inside = np.bincount(rank.ravel(), mask.ravel().astype(np.float64))
    outside = np.bincount(rank.ravel(), 1 - mask.ravel().astype(np.float64))
    if not inside.sum() or not outside.sum():
        raise UserError(f"mask covers {float(mask.mean()):.0%} of the places: must cover some and not all of them.")
    colder = np.cumsum(outside) - outside / 2
    return float((inside * colder).sum() / (inside.sum() * outside.sum()))


def _bytes(text: bytes, tokens: list[str]) -> list[bytes]:
    """Each token's text in UTF-8.

    A token that is part of a character has a raw name, one letter a byte; its bytes are read in the prompt's text.
    """
    place = max(text.find(tokens[0].encode()), 0)  # a line break at the beginning may be cut off with the instruction
    spelled = []
    for token in tokens:
        own = token.encode()
        if not token.isascii() and not text.startswith(own, place):
            own = text[place : place + len(token)] or own
        spelled.append(own)
        place += len(own)
    return spelled


def _real_tokens(prompt: PromptEncoding) -> list[str]:
    """The prompt's tokens without padding."""
    return prompt.tokens[: int(prompt.mask.sum())]


def _check(names: list[str], chosen: list[int], every: int, **choices: str) -> None:
    for number in chosen:
        if not is_whole(number) or not 0 <= number < len(names):
            raise UserError(f"block {quoted(number)}: must be from 0 to {len(names) - 1}; {len(names) - 1} would work.")
    if not chosen:
        raise UserError("blocks=[]: must name at least one block; None watches all.", setting="blocks")
    for name, value in choices.items():
        if value not in CHOICES[name]:
            known = " or ".join(map(repr, CHOICES[name]))
            hint = did_you_mean(value, CHOICES[name], f"{CHOICES[name][0]!r} would work.")
            raise UserError(f"{name}={quoted(value)}: must be {known}; {hint}", setting=name)
    if choices == {"looker": "word", "among": "text"}:
        raise UserError("among='text': needs looker='video'; that or among='all' would work.", setting="among")
    check_whole("every", every)


def _at_frames(heat: np.ndarray, frames: int) -> np.ndarray:
    """Heat at each video frame, (frames, H', W') float32, interpolated between the centres of latent frames."""
    length = len(heat)
    stride = (frames - 1) / max(length - 1, 1)
    middles = [0, *(stride * (k - 0.5) + 0.5 for k in range(1, length))]
    place = np.interp(np.arange(frames), middles, np.arange(length))
    below = np.floor(place).astype(int)
    above, part = np.minimum(below + 1, length - 1), (place - below)[:, None, None]
    return (heat[below] * (1 - part) + heat[above] * part).astype(np.float32)
