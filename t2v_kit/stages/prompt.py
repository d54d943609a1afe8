"""Stage 1: text becomes embeddings. A language model reads it token by token, CLIP as a whole."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..atomic import write_whole
from ..errors import UserError, check_text, give_note, quoted
from ..hunyuan.tokens import (
    CHAT,
    CLIP_TOKENS,
    IMAGE_EMBED_INTERLEAVE,
    LLM_TOKENS,
    check_length,
    prefix_tokens,
    token_rows,
    without_reply,
)
from ..toyland import read_prompt

if TYPE_CHECKING:
    from ..model.models import Models

PICTURE = "<image>"  # what stands for a picture's part among the tokens
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)
_CLIP_NOTES = ("The following part of your input was truncated", "Token indices sequence length is longer")


@dataclass(frozen=True, eq=False)
class PromptEncoding:
    """A prompt as the transformer reads it.

    Attributes:
        prompt_embeds: (1, L, D), the language model's third last hidden states, in its dtype.
        mask: (1, L) int64, 1 for text and 0 for padding.
        pooled: (1, P), CLIP's summary.
        tokens: The L tokens as text.
        text: The prompt itself.
    """

    prompt_embeds: torch.Tensor
    mask: torch.Tensor
    pooled: torch.Tensor
    tokens: list[str]
    text: str = ""

    def save(self, path: str | os.PathLike) -> Path:
        """Write a safetensors file, which is whole or absent.

        Args:
            path: The file; its folder must exist.

        Returns:
            The path.
        """
        path = Path(path)
        tensors = {name: getattr(self, name).contiguous() for name in ("prompt_embeds", "mask", "pooled")}
        with write_whole(path) as temporary:
            save_file(tensors, temporary, {"tokens": json.dumps(self.tokens), "text": self.text})
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> PromptEncoding:
        """Read what `save` wrote, onto the CPU.

        Raises:
            UserError: The file is missing or something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                # Cloned to where PyTorch puts tensors: in a file one begins at any byte, and the last bits of a CPU's
                # matrix products depend on where their operands begin.
                tensors = {name: file.get_tensor(name).clone() for name in ("prompt_embeds", "mask", "pooled")}
                notes = file.metadata()
                return cls(**tensors, tokens=json.loads(notes["tokens"]), text=notes["text"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: is not a saved prompt ({str(error)[:200]}); encode the prompt again.") from error


@torch.no_grad()
def encode_prompt(
    models: Models,
    text: str,
    padded: bool = False,
    allow_empty: bool = False,
    instruction: str | None = None,
    name: str = "prompt",
    image: Any = None,
) -> PromptEncoding:
    """Encode a prompt exactly as the pipeline does.

    Args:
        models: What `load` gave.
        text: The prompt, at most 256 tokens.
        padded: False cuts the padding off: the same mathematics with fewer tokens to attend to. True keeps all 256, as
            a plain pipeline call does.
        allow_empty: Also take "", the unconditional prompt.
        instruction: A system instruction in place of the model's own (`prompt_template`).
        name: The setting that the text is, for messages.
        image: For a model that starts from a picture: what `read_picture` gave. The language model reads it before the
            prompt, and its tokens come first, as "<image>". A PIL image is read as the pipeline's `encode_prompt` does
            by itself, which is how it reads a black one beside the negative prompt.

    Returns:
        The embeddings, on the model's device.

    Raises:
        UserError: The text is blank or over 256 tokens, or there is no picture where the model needs one.

    Warns:
        UserWarning: Once a run, of a prompt over CLIP's 77 tokens, and, of a model that knows Toyland alone, of words
            it does not know and of a prompt without a subject it can draw.

    Example:
        >>> models = load("pocket", device="cpu")
        >>> encode_prompt(models, "A red car on the beach.").prompt_embeds.shape
        torch.Size([1, 8, 256])
    """
    check_text(name, text, allow_empty)
    template = prompt_template(models, instruction)
    picture = _picture(models, image)
    rows = token_table(models, text, instruction)
    count = check_length(text, rows, name)
    for note in prompt_notes(models, text, name):
        give_note(note, models.notes_given)
    with models.lock, _clip_note_silenced():
        models.network("text_encoder")
        try:
            how = {"prompt": text, "prompt_template": template, "max_sequence_length": LLM_TOKENS}
            encoded: Any = models.pipe.encode_prompt(**how, **picture, device=models.device)
        finally:
            models.release()
    embeds, pooled, mask = encoded
    tokens = [row["token"] for row in rows if not row["cropped"]]
    if picture:
        tokens = _with_picture(models, rows, embeds.shape[1])
        count = int(mask.sum())
    length = mask.shape[1] if padded else count
    tokens = tokens[:length]
    return PromptEncoding(embeds[:, :length].clone(), mask[:, :length].clone(), pooled, tokens, text)


def _picture(models: Models, image: Any) -> dict:
    """The pipeline's keywords for a picture; none for a model of text alone."""
    if models.condition is None:
        if image is not None:
            raise UserError(f"image: {models.name} reads words alone; image=None would work.", setting="image")
        return {}
    picture = getattr(image, "image", image)
    if not isinstance(picture, Image.Image):
        got = "missing" if image is None else type(image).__name__
        raise UserError(
            f"image is {got}: {models.name} reads a picture before the prompt; read_picture(models, settings, "
            "'in.png') gives it.",
            setting="image",
        )
    # The pipeline's call says how many of the picture's tokens are kept; its encode_prompt alone has a default.
    if picture is image:
        return {"image": picture}
    return {"image": picture, "image_embed_interleave": IMAGE_EMBED_INTERLEAVE[models.condition]}


def _with_picture(models: Models, rows: list[dict], length: int) -> list[str]:
    """The tokens behind the rows of the embeddings: those of the picture first, then the prompt's."""
    words, ids = [row["token"] for row in rows], [row["id"] for row in rows if not row["pad"]]
    kept = without_reply(words, ids, models.counter("tokenizer"), models.template["crop_start"])
    return [PICTURE] * (length - len(kept)) + kept


def prompt_template(models: Models, instruction: str | None = None, tokenizer=None) -> dict:
    """Return what is put around a prompt, and how many tokens of it are cut off afterwards.

    Args:
        models: What `load` gave.
        instruction: The system's words before the prompt, in Llama 3's chat format; None leaves the model's own.
        tokenizer: Count the crop in the tokens of this one; None uses the model's.

    Returns:
        {"template": text with {} for the prompt, "crop_start": tokens}, as the pipeline takes it.

    Raises:
        UserError: The instruction is not text, or is so long that fewer than 256 tokens are left for the prompt.
    """
    if instruction is None and tokenizer is None:
        return models.template
    template = models.template["template"]
    if instruction is not None:
        words = check_text("instruction", instruction, allow_empty=True).replace("{", "{{").replace("}", "}}")
        template = CHAT.replace("SYSTEM", words)
    crop = len(prefix_tokens(tokenizer or models.counter("tokenizer"), template))
    if not crop:
        raise UserError(
            f"tokenizer: joins {template.split('{}')[0][-20:]!r} with a prompt; one in Llama 3's style works."
        )
    longest = models.pipe.text_encoder.config.max_position_embeddings - LLM_TOKENS
    if instruction is not None and crop > longest:
        raise UserError(
            f"instruction={instruction[:60] + '...'!r}: takes {crop} tokens with its frame, and beside {LLM_TOKENS} "
            f"of prompt this language model has room for {longest}; a shorter one would work."
        )
    return {"template": template, "crop_start": crop}


def token_table(models: Models, text: str, instruction: str | None = None, tokenizer=None) -> list[dict]:
    """List every token that the language model reads, in order, as rows of a table. Nothing is truncated.

    Args:
        models: What `load` gave.
        text: The prompt.
        instruction: As in `prompt_template`.
        tokenizer: As in `prompt_template`.

    Returns:
        A dict for each token: index, token (as text), id, cropped (it belongs to the instruction before the prompt:
        read, then cut off), pad (it fills up to 256, and is masked).
    """
    template = prompt_template(models, instruction, tokenizer)
    return token_rows(tokenizer or models.counter("tokenizer"), template, text)


def prompt_notes(models: Models, text: str, name: str = "prompt") -> list[str]:
    """What is allowed but worth knowing about a prompt; `encode_prompt` gives each note once."""
    notes = []
    count = len(models.counter("tokenizer_2")(text, verbose=False).input_ids)
    if count > CLIP_TOKENS:
        notes.append(
            f"{name}={text[:60] + '...'!r}: CLIP reads {CLIP_TOKENS} of its {count} tokens; "
            "the language model reads all of it."
        )
    if models.world == "toyland":
        notes += _toyland_notes(models.name, text, name)
    return notes


def _toyland_notes(model: str, text: str, name: str) -> list[str]:
    """What a model of Toyland's words alone makes of a prompt: words it ignores, and a subject that is missing."""
    reading, notes = read_prompt(text), []
    if reading.unknown:
        words = [f"{word} (nearest: {reading.nearest[word]})" if word in reading.nearest else word
                 for word in reading.unknown]  # fmt: skip
        what = ", ".join(words)
        notes.append(f"{model} ignores what it does not know: {what}; t2v_kit.toyland.words() lists its words.")
    if text.strip() and not reading.subjects and name == "prompt":
        tries = ", ".join(map(repr, reading.suggestions))
        notes.append(f"{name}={quoted(text)}: names no subject that {model} can draw; these would work: {tries}.")
    return notes


@contextlib.contextmanager
def _clip_note_silenced() -> Iterator[None]:
    """Silence the libraries' own notes about CLIP's limit in this thread: give_note has given it."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def _passes(record: logging.LogRecord) -> bool:
    """Whether a log record of the libraries is shown: all but these two notes, all of other threads."""
    return not (_quiet.get() and str(record.msg).startswith(_CLIP_NOTES))


for _name in ("diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video", "transformers.tokenization_utils_base"):
    logging.getLogger(_name).addFilter(_passes)
