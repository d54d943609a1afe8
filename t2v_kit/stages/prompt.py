"""Stage 1: text becomes embeddings. A language model reads it token by token, CLIP as a whole."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import UserError, check_text, give_note
from ..hunyuan.tokens import CHAT, CLIP_TOKENS, LLM_TOKENS, check_length, prefix_tokens, token_rows

if TYPE_CHECKING:
    from ..model.models import Models



@dataclass(frozen=True, eq=False)
class PromptEncoding:
    """What the transformer is told about the prompt.

    prompt_embeds: (1, L, D), the language model's third last hidden states, in its dtype.
    mask: (1, L) int64, 1 for text and 0 for padding.  pooled: (1, P), CLIP's summary.
    tokens: the L tokens as text.  text: the prompt itself.
    """

    prompt_embeds: torch.Tensor
    mask: torch.Tensor
    pooled: torch.Tensor
    tokens: list[str]
    text: str = ""

    def save(self, path: str | os.PathLike) -> Path:
        """Write a safetensors file, under a temporary name first, and return its path."""
        path = Path(path)
        temporary = path.with_name(path.name + ".part")
        tensors = {name: getattr(self, name).contiguous() for name in ("prompt_embeds", "mask", "pooled")}
        save_file(tensors, temporary, {"tokens": json.dumps(self.tokens), "text": self.text})
        os.replace(temporary, path)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> PromptEncoding:
        """Read what `save` wrote, onto the CPU. Raises UserError if the file is missing or another."""
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
) -> PromptEncoding:
    """Encode a prompt exactly as the pipeline does.

    padded=False cuts the padding off: the same mathematics with fewer tokens to attend to.
    padded=True keeps all 256, as a plain pipeline call does.  allow_empty: also take "", the
    unconditional prompt.  instruction: another system instruction than the model's own (`prompt_template`).
    name: the setting that the text is, for messages.
    Raises UserError for text that is blank or over 256 tokens; warns once of a prompt over CLIP's 77
    tokens, and of words that the model's vocabulary.txt does not list.
    """
    check_text(name, text, allow_empty)
    template = prompt_template(models, instruction)
    rows = token_table(models, text, instruction)
    count = check_length(text, rows, name)
    for note in prompt_notes(models, text, name):
        give_note(note, models.notes_given)
    with _quiet_pipeline():
        models.network("text_encoder")
        embeds, pooled, mask = models.pipe.encode_prompt(
            text, prompt_template=template, device=models.device, max_sequence_length=LLM_TOKENS
        )
    length = mask.shape[1] if padded else count
    tokens = [row["token"] for row in rows if not row["cropped"]][:length]
    return PromptEncoding(embeds[:, :length].clone(), mask[:, :length].clone(), pooled, tokens, text)


def prompt_template(models: Models, instruction: str | None = None, tokenizer=None) -> dict:
    """{"template", "crop_start"} as the pipeline takes it: what is put around a prompt, and how much is cut off.

    instruction: the system's words before the prompt, in Llama 3's chat format; None leaves the model's own.
    tokenizer: another than the model's own; the crop is then counted in its tokens.
    Raises UserError for an instruction that is no text, or so long that no room is left for 256 tokens.
    """
    if instruction is None and tokenizer is None:
        return models.template
    template = models.template["template"]
    if instruction is not None:
        words = check_text("instruction", instruction, allow_empty=True).replace("{", "{{").replace("}", "}}")
        template = CHAT.replace("SYSTEM", words)
    crop = len(prefix_tokens(tokenizer or models.pipe.tokenizer, template))
    if not crop:
        raise UserError(
            f"tokenizer: joins {template.split('{}')[0][-20:]!r} with a prompt; one in Llama 3's style works."
        )
    room = models.pipe.text_encoder.config.max_position_embeddings - LLM_TOKENS
    if instruction is not None and crop > room:
        raise UserError(
            f"instruction={instruction[:60] + '...'!r}: takes {crop} tokens with its frame, and beside {LLM_TOKENS} "
            f"of prompt this language model has room for {room}; a shorter one would work."
        )
    return {"template": template, "crop_start": crop}


def token_table(models: Models, text: str, instruction: str | None = None, tokenizer=None) -> list[dict]:
    """Every token that the language model reads, in order, as rows of a table.

    A row is a dict: index, token (as text), id, cropped (belongs to the instruction before the
    prompt: read, then cut off), pad (fills up to 256; masked). Nothing is truncated here.
    instruction and tokenizer: others than the model's own, as in `prompt_template`.
    """
    template = prompt_template(models, instruction, tokenizer)
    return token_rows(tokenizer or models.pipe.tokenizer, template, text)


def prompt_notes(models: Models, text: str, name: str = "prompt") -> list[str]:
    """What is allowed but worth knowing about a prompt; `encode_prompt` tells each once."""
    notes = []
    count = len(models.pipe.tokenizer_2(text, verbose=False).input_ids)
    if count > CLIP_TOKENS:
        notes.append(
            f"{name}={text[:60] + '...'!r}: CLIP reads {CLIP_TOKENS} of its {count} tokens; "
            "the language model reads all of it."
        )
    words = dict.fromkeys(re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower()))
    new = [word for word in words if models.vocabulary is not None and word not in models.vocabulary]
    if new:
        notes.append(
            f"{models.name} has never seen: {', '.join(new)}. It will guess; the words it knows are listed in "
            f"{models.source}/vocabulary.txt"
        )
    return notes


@contextlib.contextmanager
def _quiet_pipeline():
    """Silence the pipeline's own note about CLIP's limit at each call: give_note has said it."""
    log = logging.getLogger("diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
