"""Where the attention goes: prompt-token heat maps of any word, over blocks and denoising steps.

In this transformer video and text tokens attend to each other in one attention, so each video token has a
weight for each word. Cross-attention maps as in Prompt-to-Prompt (https://arxiv.org/abs/2208.01626) and DAAM
(https://arxiv.org/abs/2210.04885) are a strip of that joint attention: video queries by text keys.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from ..errors import UserError, check_text
from ..stages.prompt import PromptEncoding
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
    """Inside `with watch_attention(models, prompt, "car") as watched:`, `denoise` also fills `watched`.

    words: a word or phrase of the prompt, several, or a name with token numbers.  blocks: numbers of the
    blocks to watch, dual-stream first, then single-stream; None watches all.  looker: 'video', how much each
    video token looks at the word, or 'word', how much the word looks at each video token.  among: 'all' keys,
    as the softmax is, or what a video token gives to the 'text' alone, as in models with cross-attention: parts
    of the picture that hardly look at text then count as much as others.  every: 2 watches every second row
    and column of each frame.  by_head: keep the heads apart.

    What the transformer says stays the same to the last bit. Weights are summed inside PyTorch's own attention,
    in parts: no matrix of all tokens by all tokens is made, which would take 1.4 TB for the 118,800 video tokens
    of 720x1280x129. Watching every token of a block costs about as much as its attention. Calls with another
    prompt, such as the negative one, are not watched. Raises UserError for a word, block or choice that is not
    there, and when attention does not go through PyTorch's scaled_dot_product_attention.
    """
    transformer = models.network("transformer")
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
                raise UserError("this transformer is being watched already; one watch takes several words.")
            undo.callback(attn.set_processor, attn.processor)
            attn.set_processor(WatchedProcessor(attn.processor, watcher, place))
        undo.callback(transformer.register_forward_pre_hook(watcher.begin_step, with_kwargs=True).remove)
        yield watched


def find_tokens(prompt: PromptEncoding, words: str | list[str] | dict[str, list[int]]) -> dict[str, list[int]]:
    """The numbers of the tokens that spell each word or phrase, everywhere it occurs as a whole word.

    Upper and lower case are the same. A dict passes through, once its numbers are checked. Raises UserError for
    words that are not in the prompt, with the nearest that is.
    """
    tokens = _real_tokens(prompt)
    if not words:
        raise UserError(f"words={words!r}: name at least one; {tokens[0].strip()!r} would work.")
    if isinstance(words, dict):
        for name, numbers in words.items():
            if not numbers or not all(isinstance(n, int) and 0 <= n < len(tokens) for n in numbers):
                raise UserError(f"tokens {numbers!r} of {name!r}: must be from 0 to {len(tokens) - 1}; [0] would work.")
        return {name: list(numbers) for name, numbers in words.items()}
    spelled = _bytes(prompt.text.encode(), tokens)
    text = b"".join(spelled).decode(errors="surrogateescape")
    ends = np.cumsum([len(token) for token in spelled])
    found = {}
    for word in [words] if isinstance(words, str) else words:
        check_text("word", word)
        spans = [match.span() for match in re.finditer(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, re.IGNORECASE)]
        if not spans:
            there = dict.fromkeys(re.findall(r"\w+", prompt.text or text))
            near = difflib.get_close_matches(word, there, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(there)}."
            raise UserError(f"word {word!r}: is not in the prompt; {hint}")
        places = [[len(text[:each].encode(errors="surrogateescape")) for each in span] for span in spans]
        inside = [any(end - len(token) < stop and start < end for start, stop in places) and token.strip() != b""
                  for token, end in zip(spelled, ends)]  # fmt: skip
        found[word] = np.flatnonzero(inside).tolist()
    return found


def overlay_heat(video: np.ndarray, heat: np.ndarray, highest: float | None = None) -> np.ndarray:
    """Heat over a film: (frames, H, W, 3) uint8, grey and dim where it is cold, glowing where it is hot.

    video: (frames, H, W, 3) uint8.  heat: (T, H', W') of any range; T latent frames stand for 4 (T - 1) + 1
    frames, so it is stretched over time and space smoothly.  highest: the heat that glows most, by default
    the highest there is; set it to compare films.  Raises UserError when heat is not three-dimensional.
    """
    from matplotlib import colormaps

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
    """A mask over pixels as shares of tokens: (frames, H, W) bool to `grid` (T, H', W') float32, 0 to 1.

    The first latent frame stands for the first frame alone, each other for an equal share of the rest.
    """
    length, height, width = grid
    pixels = torch.from_numpy(np.ascontiguousarray(mask))[None].float()
    groups = [pixels[:, :1], *(pixels[:, 1:].tensor_split(length - 1, dim=1) if length > 1 else ())]
    return torch.cat([F.adaptive_avg_pool3d(group, (1, height, width)) for group in groups], dim=1)[0].numpy()


def auc(heat: np.ndarray, mask: np.ndarray) -> float:
    """How well heat finds a mask: the probability that a place inside is hotter than one outside.

    The area under the ROC curve, by ranks: 1 when every inside place is hotter, 0.5 when heat knows nothing; a
    tie counts half.  mask: shaped like heat, bool, or the share of each place that lies inside, 0 to 1.
    Raises UserError when shapes differ, or when nothing or everything lies inside.
    """
    if heat.shape != mask.shape:
        raise UserError(f"heat {heat.shape} and mask {mask.shape}: must have one shape; token_mask brings it about.")
    _, rank = np.unique(heat, return_inverse=True)
    inside = np.bincount(rank.ravel(), mask.ravel().astype(np.float64))
    outside = np.bincount(rank.ravel(), 1 - mask.ravel().astype(np.float64))
    if not inside.sum() or not outside.sum():
        raise UserError(f"mask covers {float(mask.mean()):.0%} of the places: some must be inside and some outside.")
    colder = np.cumsum(outside) - outside / 2
    return float((inside * colder).sum() / (inside.sum() * outside.sum()))


def _bytes(text: bytes, tokens: list[str]) -> list[bytes]:
    """What each token stands for, in UTF-8.

    One that is a part of a character has a raw name, a letter a byte: what it stands for is read in the prompt's text.
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
    """The prompt's tokens without its padding."""
    return prompt.tokens[: int(prompt.mask.sum())]


def _check(names: list[str], chosen: list[int], every: int, **choices: str) -> None:
    for number in chosen:
        if not isinstance(number, int) or not 0 <= number < len(names):
            raise UserError(f"block {number!r}: must be from 0 to {len(names) - 1}; {len(names) - 1} would work.")
    if not chosen:
        raise UserError("blocks=[]: nothing to watch; None watches all.")
    for name, value in choices.items():
        if value not in CHOICES[name]:
            known = " or ".join(map(repr, CHOICES[name]))
            raise UserError(f"{name}={value!r}: must be {known}; {CHOICES[name][0]!r} would work.")
    if choices == {"looker": "word", "among": "text"}:
        raise UserError("among='text': is about video tokens that look; looker='video' or among='all' would work.")
    if not isinstance(every, int) or every < 1:
        raise UserError(f"every={every!r}: must be a whole number from 1; 1 would work.")


def _at_frames(heat: np.ndarray, frames: int) -> np.ndarray:
    """Heat at each video frame, (frames, H', W') float32: between the middles of what latent frames stand for."""
    length = len(heat)
    stride = (frames - 1) / max(length - 1, 1)
    middles = [0, *(stride * (k - 0.5) + 0.5 for k in range(1, length))]
    place = np.interp(np.arange(frames), middles, np.arange(length))
    below = np.floor(place).astype(int)
    above, part = np.minimum(below + 1, length - 1), (place - below)[:, None, None]
    return (heat[below] * (1 - part) + heat[above] * part).astype(np.float32)
