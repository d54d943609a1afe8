"""Trains pocket's two tokenizers on Toyland's captions: `python -m training.tokenizers --out t2v_kit/pocket`.

`tokenizer`: byte-level BPE with Llama 3's split pattern and chat tokens. Every word of the world and of the
instructions is one token, so the pipeline's default template takes the 95 tokens that HunyuanVideo crops.
`tokenizer_2`: BPE in CLIP's style, lower case, closed by the end token that the text encoder pools.
Both know every byte, so any text can be read. `vocabulary.txt` lists the words that captions are made of.
Needs no GPU; takes seconds.
"""
from __future__ import annotations

import json
import random
import re
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from t2v_kit.toyland import caption, random_scene

from . import common, lessons

#: Llama 3's split pattern, from the tokenizer.json of Meta-Llama-3-8B
LLAMA3_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")
BOS, PAD = "<|begin_of_text|>", "<pad>"
CHAT_TOKENS = [BOS, "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", PAD]
CLIP_LENGTH = 77  # CLIP's own limit, as HunyuanVideoPipeline asks for it


def vocabulary(captions: int = 40_000) -> list[str]:
    """The words of many captions, lower case, in alphabetical order; the rarest comes about once in 500 captions."""
    rng = random.Random(0)
    texts = (caption(random_scene(rng)) for _ in range(captions))
    return sorted({word for text in texts for word in re.findall(r"[a-z]+", text.lower())})


def corpus(words: list[str], count: int = 20_000) -> list[str]:
    """Lessons as the language model will read them, and each word alone, capitalised, and after a space."""
    rng = random.Random(0)
    drawn = [lessons.draw_lesson(rng, rough=0) for _ in range(count)]
    texts = [text for lesson in drawn for text in (lesson.caption, lesson.answer)]
    # the templates' own words, without the chat tokens; "{}" is one token too, as it is for Llama 3
    texts += [re.sub(r"<\|.*?\|>", "\n", text) for text in lessons.TEMPLATES.values()]
    texts += ["system", "user", "assistant", "\n\n"]
    return texts + [form for word in words for form in (word, " " + word, word.capitalize(), " " + word.capitalize())]


def llama_tokenizer(texts: list[str], vocab_size: int = 2500) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in Llama 3's style; training ends by itself when every word is one token."""
    bpe = Tokenizer(models.BPE(ignore_merges=True))
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=1, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    bpe.add_special_tokens(CHAT_TOKENS)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS, eos_token="<|end_of_text|>", pad_token=PAD,
                                   padding_side="right", clean_up_tokenization_spaces=False)


def clip_tokenizer(texts: list[str], vocab_size: int = 2500) -> CLIPTokenizer:
    """A tokenizer of CLIP's own class. As in CLIP the vocabulary is every byte, every byte that ends a word, the
    merges, and last the start and end tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = CLIPTokenizer().backend_tokenizer  # CLIP's normaliser and split pattern
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=1, show_progress=False, end_of_word_suffix="</w>",
        initial_alphabet=letters))
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_LENGTH)


def main():
    args = common.options(__doc__, out=Path("t2v_kit/pocket"))
    words = vocabulary()
    texts = corpus(words)
    llama, clip = llama_tokenizer(texts), clip_tokenizer(texts)
    llama.save_pretrained(args.out / "tokenizer")
    clip.save_pretrained(args.out / "tokenizer_2")
    (args.out / "vocabulary.txt").write_text("\n".join(words) + "\n")
    prefix = lessons.TEMPLATES["describe"].split("{}")[0]
    split = [word for word in words if len(llama.tokenize(" " + word)) > 1]
    print(f"{len(words)} words, vocabularies of {len(llama)} and {len(clip)} tokens")
    print(f"{len(llama(prefix).input_ids)} tokens in the default prefix; split words: {', '.join(split) or 'none'}")


if __name__ == "__main__":
    main()
