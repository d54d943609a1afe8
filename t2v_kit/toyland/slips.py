"""Captions as people type them: odd cases, missing full stops, slips of the fingers."""

from __future__ import annotations

import random

from .grammar import known_words


def mistype(word: str, rng: random.Random) -> str:
    """The word with two letters swapped, one dropped or one doubled; short words and what would be another word of
    Toyland stay as they are."""
    if len(word) < 3 or not word.isalpha():
        return word
    i, kind = rng.randrange(1, len(word) - 1), rng.random()
    if kind < 0.4 and len(word) > 3:
        new = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    elif kind < 0.7 and len(word) > 4:
        new = word[:i] + word[i + 1 :]
    else:
        new = word[:i] + word[i] + word[i:]
    return word if new.lower() in known_words() else new


def slip(text: str, rng: random.Random) -> str:
    """The text with one to three of its words mistyped."""
    words = text.split(" ")
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(words))
        words[at] = mistype(words[at], rng)
    return " ".join(words)


def careless_typing(text: str, rng: random.Random) -> str:
    """The text as people type it: half the time as it should be, else in small letters, in capitals, without a full
    stop, with a slip of the fingers."""
    if rng.random() < 0.1:
        text = slip(text, rng)
    case = rng.random()
    if case < 0.22:
        text = text.lower()
        text = text.rstrip(".") if case < 0.17 else text
    elif case < 0.29:
        text = text.upper()
    elif case < 0.35:
        text = " ".join(word[:1].upper() + word[1:] for word in text.split(" "))
    elif case < 0.38:
        text = text[:1].lower() + text[1:]
    end = rng.random()
    if end < 0.12:
        text = text.rstrip(".")
    elif end < 0.15:
        text = text.rstrip(".") + rng.choice(("!", "!!", " !", "...", "?", "!", " ."))
    elif end < 0.17:
        text = text.replace(",", "")
    elif end < 0.19 and ". " in text:
        text = text.replace(". ", rng.choice((".\n", "\n", ".\n\n", ".", " ")))
    elif end < 0.2:
        text = text.replace(", ", rng.choice((",", " , ", "\n", " / ", " + ")))
    elif end < 0.21:
        text = rng.choice(('"{}"', "({})", "'{}'", "- {}", "* {}", "Prompt: {}", "> {}")).format(text)
    space = rng.random()
    if space < 0.03:
        text = " " + text
    elif space < 0.06:
        text = text.replace(" ", "  ")
    elif space < 0.08:
        text += " "
    elif space < 0.09:
        at = text.find(" ", rng.randrange(len(text)))
        text = text if at < 0 else text[:at] + " " + text[at:]
    return text
