"""Trains pocket's two tokenizers on Toyland's captions: `python -m training.tokenizers --out t2v_kit/pocket`.

`tokenizer`: byte-level BPE with Llama 3's split pattern and chat tokens. A word in a form that captions often have,
'red' and ' Red' as well as ' red', is one token; all else is spelt in pieces of a small BPE. All words of the
instructions are one token each, so the pipeline's default template takes the 95 tokens that HunyuanVideo crops.
`tokenizer_2`: BPE in CLIP's style, lower case, closed by the end token that the text encoder pools.
Both know every byte, so any text can be read.
Needs no GPU; takes half a minute.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from t2v_kit.toyland import lexicon
from t2v_kit.toyland.grammar import known_words

from . import common, lessons

#: Llama 3's split pattern, from the tokenizer.json of Meta-Llama-3-8B
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BOS, PAD = "<|begin_of_text|>", "<pad>"
CHAT_TOKENS = [BOS, "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", PAD]
CLIP_LENGTH = 77  # CLIP's own limit, as HunyuanVideoPipeline asks for it
SPACE = "Ġ"  # how a byte-level vocabulary writes the space before a word


def splitter() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")


def fixed_texts() -> list[str]:
    """The instructions' and the answers' own words; "{}" is one token too, as it is for Llama 3."""
    texts = [re.sub(r"<\|.*?\|>", "\n\n", text) for text in lessons.TEMPLATES.values()]
    facts = dict.fromkeys(lessons.ATTRIBUTES)
    rng = random.Random(0)
    drawn = [
        lessons.draw_lesson(rng, name) for name in ("describe", "who", "where", "motion", "plain") for _ in range(500)
    ]
    texts += [lessons.answer(name, facts) for name in ("describe", "where")] + [lesson.answer for lesson in drawn]
    return [*texts, "system", "user", "assistant", "\n\n", "{}"]


def first_words() -> list[str]:
    """What a prompt may well begin with, in small letters and capitalised: subjects, colours, places, skies, speeds;
    subjects and colours after a space and in capitals too."""

    def words(*tables):
        return sorted(
            {
                word
                for table in tables
                for texts in table.values()
                for text in texts
                for word in re.findall("[a-z]+", text.lower())
            }
        )

    forms = []
    for word in words(lexicon.NOUNS, {c: (c,) for c in lexicon.SHADES}, lexicon.SHADES):
        forms += [word, word.capitalize(), " " + word.capitalize(), word.upper(), " " + word.upper()]
    for word in words(lexicon.SPOTS, lexicon.SKY_LEADS, lexicon.SPEED_TAGS):
        forms += [word, word.capitalize()]
    return forms


def llama_tokenizer(
    captions: list[str], words: frozenset[str], pieces: int = 800, size: int = 4400
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in Llama 3's style. Its merges make `pieces` tokens; the others of `size` are whole
    words, which `ignore_merges` looks up first, as in Llama 3. A word is one of them after a space in any case, in
    other forms (at the start of a text, capitalised, in capitals) if it is one of `first_words`, else by how often
    captions have it so."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [splitter(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=pieces, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
        ),
    )
    table = json.loads(bpe.to_str())
    vocab = table["model"]["vocab"]

    def forms(texts):
        return Counter(form for text in texts for form, _ in splitter().pre_tokenize_str(text))

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    wanted = [*sorted(forms(fixed_texts())), *(" " + word for word in sorted(words)), *first_words()]
    wanted += [
        form
        for form, _ in forms(captions).most_common()  # most common first, ties as they came
        if re.fullmatch(r" ?[A-Za-z]+|-[a-z]+|[ .,!?:;]+\n*", form) and form.strip(" -").lower() in words | {""}
    ]
    for form in wanted:
        if len(vocab) < size - len(CHAT_TOKENS):
            vocab.setdefault(level.pre_tokenize_str(form)[0][0], len(vocab))
    table["model"]["ignore_merges"] = True
    bpe = Tokenizer.from_str(json.dumps(table))
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(CHAT_TOKENS)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token="<|end_of_text|>",
        pad_token=PAD,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def speller(tokenizer: PreTrainedTokenizerFast, dropout: float | None = None) -> Tokenizer:
    """The same tokenizer without its whole words: every word in pieces. `dropout` is that of the merges (BPE-dropout,
    https://arxiv.org/abs/1910.13267)."""
    table = json.loads(tokenizer.backend_tokenizer.to_str())
    table["model"] |= {"ignore_merges": False, "dropout": dropout}
    return Tokenizer.from_str(json.dumps(table))


def clip_tokenizer(texts: list[str], vocab_size: int = 3200) -> CLIPTokenizer:
    """A tokenizer of CLIP's own class. As in CLIP the vocabulary is every byte, every byte that ends a word, the
    merges, and last the start and end tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = CLIPTokenizer().backend_tokenizer  # CLIP's normaliser and split pattern
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=1,
            show_progress=False,
            end_of_word_suffix="</w>",
            initial_alphabet=letters,
        ),
    )
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_LENGTH)


def main():
    args = common.options(__doc__, out=Path("t2v_kit/pocket"), captions=40_000)
    words, rng = known_words(), random.Random(0)
    drawn = [lessons.draw_lesson(rng, "correct", rough=0) for _ in range(args.captions)]
    llama = llama_tokenizer([lesson.caption for lesson in drawn], words)
    clip = clip_tokenizer([lesson.answer for lesson in drawn] + sorted(words))
    llama.save_pretrained(args.out / "tokenizer")
    clip.save_pretrained(args.out / "tokenizer_2")
    prefix = lessons.TEMPLATES["describe"].split("{}")[0]
    print(f"{len(words)} words, vocabularies of {len(llama)} and {len(clip)} tokens")
    print(f"{len(llama(prefix).input_ids)} tokens in the default prefix")
    for name, form in (
        ("after a space", " {}".format),
        ("first", str),
        ("capitalised", str.capitalize),
        ("capitalised after a space", lambda w: " " + w.capitalize()),
        ("in capitals", lambda w: " " + w.upper()),
    ):
        split = [word for word in words if len(llama.tokenize(form(word))) > 1]
        print(f"one token {name}: {len(words) - len(split)} of {len(words)}")
    split = [word for word in words if len(clip.tokenize(word)) > 1]
    print(f"one token of CLIP's: {len(words) - len(split)} of {len(words)}")


if __name__ == "__main__":
    main()
