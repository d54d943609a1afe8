"""Stage 1: text becomes embeddings. A language model reads it token by token, CLIP as a whole."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from .settings import UserError, check_text, tell_once

if TYPE_CHECKING:
    from .models import Models

LLM_TOKENS = 256  # max_sequence_length of HunyuanVideoPipeline.__call__; its end token counts
CLIP_TOKENS = 77  # what HunyuanVideoPipeline.encode_prompt asks of CLIP; start and end token count
# How DEFAULT_PROMPT_TEMPLATE of diffusers frames its instruction: Llama 3's chat format.
CHAT = (
    "<|start_header_id|>system<|end_header_id|>\n\nSYSTEM<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
)
PROBE = "Sunny day, freedom and adventure, high motion. A man with a beard riding a motorcycle on the street."


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
        tell_once(note)
    with _quiet_pipeline():
        models.bring("text_encoder")
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
    crop = len(_prefix(tokenizer or models.pipe.tokenizer, template))
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
    tokenizer, crop = tokenizer or models.pipe.tokenizer, template["crop_start"]
    ids = tokenizer(template["template"].format(text), verbose=False).input_ids
    real = len(ids)
    ids += [tokenizer.pad_token_id] * (crop + LLM_TOKENS - real)
    return [
        {"index": i, "token": _readable(tokenizer, id), "id": id, "cropped": i < crop, "pad": i >= real}
        for i, id in enumerate(ids)
    ]


def check_length(text: str, rows: list[dict], name: str = "prompt") -> int:
    """How many of the rows of `token_table` are the prompt's own; UserError when they are over the limit.

    name: the setting that the text is, 'prompt' or 'negative_prompt'.
    """
    count = sum(not row["cropped"] and not row["pad"] for row in rows)
    if count > LLM_TOKENS:
        raise UserError(
            f"{name}={text[:60] + '...'!r}: has {count} tokens, {count - LLM_TOKENS} over the limit of "
            f"{LLM_TOKENS}; a prompt shorter by about {_words_over(text, count)} words would work."
        )
    return count


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


def load_tokenizer(folder: Path, template: dict, model: Path) -> tuple[PreTrainedTokenizerFast, dict]:
    """The language model's tokenizer, and the template with its crop counted or confirmed.

    Always read as PreTrainedTokenizerFast: transformers 5 puts SentencePiece spaces and left padding
    over HunyuanVideo's byte-level file when it is read through the class its model_index.json names.
    Raises UserError when text does not come back from its tokens, when padding is not on the right, or
    when the instruction before the prompt is not exactly as many tokens as are cropped.
    """
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, padding_side="right", local_files_only=True)
    except Exception as error:  # the Rust library raises plain Exception for a broken tokenizer.json
        raise UserError(f"{folder}: the tokenizer cannot be read: {str(error)[:200]}; copy it again.") from error
    text = template["template"].format(PROBE)
    ids = tokenizer(text).input_ids
    back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if not back.endswith(text):
        raise UserError(
            f"{folder}: reads {PROBE!r} back as {back[-len(PROBE) - 20 :]!r}; a byte-level tokenizer works."
        )
    if tokenizer.pad_token_id is None:
        raise UserError(f"{folder}: has no pad_token; name one in tokenizer_config.json.")
    mask = tokenizer(text, padding="max_length", max_length=len(ids) + 3).attention_mask
    if mask != [1] * len(ids) + [0] * 3:
        raise UserError(f"{folder}: pads {mask[:3]}...{mask[-3:]}, must pad on the right by masked tokens.")
    prefix = _prefix(tokenizer, template["template"])
    crop = len(prefix) if template["crop_start"] is None else template["crop_start"]
    if not prefix or crop != len(prefix):
        raise UserError(
            f"{model}: crops {crop} tokens, but the instruction before the prompt has {len(prefix)} in this "
            f"tokenizer; the tokenizer of the text encoder, or crop_start in t2v_kit.json, would put it right."
        )
    return tokenizer, {"template": template["template"], "crop_start": crop}


def _prefix(tokenizer: PreTrainedTokenizerFast, template: str) -> list[int]:
    """The tokens before the prompt, those that are cut off; none if they run into the prompt's own."""
    prefix = tokenizer(template.format("\0").split("\0")[0]).input_ids
    return prefix if tokenizer(template.format(PROBE)).input_ids[: len(prefix)] == prefix else []


def _readable(tokenizer: PreTrainedTokenizerFast, id: int) -> str:
    """A token as text; its raw name where it is only a part of a character."""
    text = tokenizer.decode([id], clean_up_tokenization_spaces=False)
    return tokenizer.convert_ids_to_tokens(id) if "\N{REPLACEMENT CHARACTER}" in text else text


def _words_over(text: str, count: int) -> int:
    return math.ceil(len(text.split()) * (count - LLM_TOKENS) / count)


@contextlib.contextmanager
def _quiet_pipeline():
    """Silence the pipeline's own note about CLIP's limit at each call: tell_once has said it."""
    log = logging.getLogger("diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
