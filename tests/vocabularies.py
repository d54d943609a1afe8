"""The real vocabularies of HunyuanVideo's two text encoders, out of wheels that carry them. For tests alone.

    pip install --no-deps llama-models==0.3.0 open-clip-torch tiktoken    # tiktoken needs regex and requests

Llama 3's comes with `llama-models` under the Llama 3 Community License, CLIP's with `open-clip-torch` (MIT). Nothing of
either is copied into this repository.
"""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers import normalizers as normal
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

# The split pattern in the tokenizer.json of meta-llama/Meta-Llama-3-8B, and of OpenAI's clip/simple_tokenizer.py.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
CLIP_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

# Llama 3's special tokens from id 128,000 on, in their order; xtuner's llava, whose language model HunyuanVideo uses,
# adds <image> and <pad> behind all 256 of them.
LLAMA3_SPECIALS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|reserved_special_token_2|>", "<|reserved_special_token_3|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|reserved_special_token_4|>", "<|eot_id|>",
]  # fmt: skip
LLAMA3_SPECIALS += [f"<|reserved_special_token_{n}|>" for n in range(5, 251)]
LLAVA_SPECIALS = ["<image>", "<pad>"]


def missing(*packages: str) -> list[str]:
    """Those of the packages that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def llama3() -> PreTrainedTokenizerFast:
    """Llama 3's tokenizer with llava's two additions, as HunyuanVideo's language model reads prompts."""
    file = _file("llama_models", "llama3/tokenizer.model")
    tokenizer = TikTokenConverter(str(file), LLAMA3_SPLIT, extra_special_tokens=LLAMA3_SPECIALS).converted()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in LLAVA_SPECIALS])
    begin = "<|begin_of_text|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token="<|end_of_text|>",
        pad_token="<pad>",
        padding_side="right",
    )


def clip() -> PreTrainedTokenizerFast:
    """CLIP ViT-L/14's tokenizer: lower case, a word's end marked by </w>, padded by its end token."""
    lines = gzip.decompress(_file("open_clip", "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode("utf-8").split("\n")
    merges = [(left, right) for left, right in map(str.split, lines[1 : 49_152 - 256 - 2 + 1])]
    alphabet = list(_bytes_to_text().values())
    begin, end = "<|startoftext|>", "<|endoftext|>"
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *map("".join, merges), begin, end]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=end))
    tokenizer.normalizer = normal.Sequence([normal.NFC(), normal.Replace(Regex(r"\s+"), " "), normal.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_SPLIT), "removed", invert=True),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, vocabulary[end]), (begin, vocabulary[begin]), trim_offsets=False, add_prefix_space=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token=end, pad_token=end, unk_token=end, padding_side="right"
    )


def _file(package: str, path: str) -> Path:
    """A file of an installed package, which is not imported: its dependencies need not be there."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"{package} is not installed: it carries {path}")
    return Path(spec.submodule_search_locations[0], path)


def _bytes_to_text() -> dict[int, str]:
    """How byte-level BPE writes the 256 bytes: printable ones as themselves, first, the others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
