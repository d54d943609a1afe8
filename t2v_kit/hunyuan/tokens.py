"""HunyuanVideo's tokens: the prompt template, the tokenizer of its language model, and the rows it reads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import (
    DEFAULT_PROMPT_TEMPLATE as I2V_PROMPT_TEMPLATE,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import UserError

LLM_TOKENS = 256  # max_sequence_length of HunyuanVideoPipeline.__call__; its end token counts
CLIP_TOKENS = 77  # what HunyuanVideoPipeline.encode_prompt asks of CLIP; start and end token count
#: Of so many of a picture's tokens the transformer reads one: HunyuanVideoImageToVideoPipeline.__call__.
IMAGE_EMBED_INTERLEAVE = {"latent_concat": 2, "token_replace": 4}

# How DEFAULT_PROMPT_TEMPLATE of diffusers frames its instruction: Llama 3's chat format.
CHAT = (
    "<|start_header_id|>system<|end_header_id|>\n\nSYSTEM<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
)
PROBE = "Sunny day, freedom and adventure, high motion. A man with a beard riding a motorcycle on the street."


def own_template(extra: dict, animates: bool = False) -> dict:
    """The pipeline's own prompt template, with this model's crop (None: count the prefix).

    animates: that of the pipeline that makes a video out of a picture.
    """
    own = I2V_PROMPT_TEMPLATE if animates else DEFAULT_PROMPT_TEMPLATE
    return {"template": own["template"], "crop_start": extra.get("crop_start", own["crop_start"])}


def image_places(tokenizer: PreTrainedTokenizerBase, template: dict, config: Any, model: Path | str) -> dict:
    """Where the picture's embeddings stand among the tokens of the instruction, as the pipeline's template says it.

    Args:
        tokenizer: The language model's.
        template: What `load_tokenizer` gave.
        config: The text encoder's, a LlavaConfig: image_token_index, and image and patch size of vision_config.
        model: The model's name, for messages.

    Returns:
        image_emb_start, image_emb_end and image_emb_len; 5, 581 and 576 in HunyuanVideo-I2V.

    Raises:
        UserError: The instruction has no place for a picture, or several.
    """
    ids = prefix_tokens(tokenizer, template["template"])
    token, vision = config.image_token_index, config.vision_config
    if ids.count(token) != 1:
        raise UserError(
            f"{model}: the instruction has {ids.count(token)} places for a picture, must be one; the tokenizer of the "
            "text encoder would put it right."
        )
    length = (vision.image_size // vision.patch_size) ** 2
    start = ids.index(token)
    return {"image_emb_start": start, "image_emb_end": start + length, "image_emb_len": length}


def without_reply(tokens: list, ids: list[int], tokenizer: PreTrainedTokenizerBase, crop: int) -> list:
    """What is kept of `tokens` by the pipeline that reads a picture: not the four with which the reply is opened.

    Args:
        tokens: One thing for each id.
        ids: All that the language model reads, without padding and before the picture takes its place.
        tokenizer: The language model's.
        crop: Tokens of the instruction.
    """
    header: Any = tokenizer.convert_tokens_to_ids("<|end_header_id|>")
    reply = len(ids) - ids[::-1].index(header)
    return tokens[crop : reply - 4] + tokens[reply:]


def token_rows(tokenizer: PreTrainedTokenizerBase, template: dict, text: str) -> list[dict]:
    """Every token that the language model reads, in order: what `token_table` returns."""
    crop = template["crop_start"]
    ids = tokenizer(template["template"].format(text), verbose=False).input_ids
    real = len(ids)
    ids += [tokenizer.pad_token_id] * (crop + LLM_TOKENS - real)
    return [
        {"index": i, "token": readable(tokenizer, id), "id": id, "cropped": i < crop, "pad": i >= real}
        for i, id in enumerate(ids)
    ]


def check_length(text: str, rows: list[dict], name: str = "prompt") -> int:
    """Count the prompt's own tokens among the rows of `token_table`.

    Args:
        text: The prompt.
        rows: Its rows.
        name: The setting that the text is, 'prompt' or 'negative_prompt', for the message.

    Returns:
        Tokens, its end token among them.

    Raises:
        UserError: They are over the limit of 256.
    """
    count = sum(not row["cropped"] and not row["pad"] for row in rows)
    if count > LLM_TOKENS:
        raise UserError(
            f"{name}={text[:60] + '...'!r}: has {count} tokens, {count - LLM_TOKENS} over the limit of "
            f"{LLM_TOKENS}; a prompt shorter by about {_words_over(text, count)} words would work.",
            setting=name,
        )
    return count


def load_tokenizer(folder: Path, template: dict, model: Path | str) -> tuple[PreTrainedTokenizerFast, dict]:
    """Read the language model's tokenizer, and count or confirm the template's crop.

    It is always read as PreTrainedTokenizerFast: transformers 5 puts SentencePiece spaces and left padding
    over HunyuanVideo's byte-level file when it is read through the class its model_index.json names.

    Args:
        folder: The tokenizer's folder.
        template: "template" and "crop_start"; None as crop_start counts the tokens before the prompt.
        model: The model's name, for messages.

    Returns:
        The tokenizer, and the template with its crop.

    Raises:
        UserError: Text does not come back from its tokens, padding is not on the right, or the instruction before the
            prompt is not exactly as many tokens as are cropped.
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
    prefix = prefix_tokens(tokenizer, template["template"])
    crop = len(prefix) if template["crop_start"] is None else template["crop_start"]
    if not prefix or crop != len(prefix):
        raise UserError(
            f"{model}: crops {crop} tokens, but the instruction before the prompt has {len(prefix)} in this "
            f"tokenizer; the tokenizer of the text encoder, or crop_start in t2v_kit.json, would put it right."
        )
    return tokenizer, {"template": template["template"], "crop_start": crop}


def prefix_tokens(tokenizer: PreTrainedTokenizerBase, template: str) -> list[int]:
    """The tokens before the prompt, those that are cut off; none if they run into the prompt's own."""
    prefix = tokenizer(template.format("\0").split("\0")[0]).input_ids
    return prefix if tokenizer(template.format(PROBE)).input_ids[: len(prefix)] == prefix else []


def readable(tokenizer: PreTrainedTokenizerBase, id: int) -> str:
    """A token as text; its raw name where it is only a part of a character."""
    text = str(tokenizer.decode([id], clean_up_tokenization_spaces=False))
    return str(tokenizer.convert_ids_to_tokens(id)) if "\N{REPLACEMENT CHARACTER}" in text else text


def _words_over(text: str, count: int) -> int:
    """By about how many words a prompt of `count` tokens is too long."""
    return math.ceil(len(text.split()) * (count - LLM_TOKENS) / count)
