"""The patterns of Toyland's captions, and how words bend."""

from __future__ import annotations

import re
from functools import cache

from . import lexicon as lex

SAYABLE = ("colour", "place", "sky", "direction", "speed")  #: what a caption may leave unsaid

#: Parts are divided by "|"; one that begins with "?" is left out when it has nothing to say. A pattern that ends in
#: a full stop is written in sentences, the others are lists and titles. A digit behind a slot's name draws anew.
PATTERNS = tuple(
    """
{lead}, {mood}, {tag}. {who} {place} {way}.
{lead}, {mood}, {tag}. {who} {place}, {ing} {way}.
{who} {verbs} {way} {place} {sky}, {tag}.
{who} {verbs} {speed} {way} {place} {sky}.
{who} {verbs} {way} {speed} {place} {sky}.
{who} {verbs} {speed} {place} {sky} {way}.
{who} {verbs} {place} {way} {speed} {sky}.
{who} {verbs} {way} {sky} {place} {speed}.
{who} {verbs} {place}, {sky}, {speed} {way}.
{tag} shot of {who} {ing} {way} {place}, {lead}.
{tag} video of {who} {ing} {way} {place} {sky}.
{place}, {who} {verbs} {way} {speed} {sky}.
{place} {sky}, {who} {verbs} {speed} {way}.
{sky}, {who} {verbs} {way} {place}, {tag}, {mood}.
{sky}, {who} {verbs} {speed} {way} {place}.
{sky} {place} {who} {verbs} {way}, {speed}.
{speed} {who} {verbs} {way} {place} {sky}.
{way}, {speed}, {place}, {sky}: {who}.
{lead}. {tag}. {who} {verbs} {place} {way}. {mood}.
{mood}: {who} {verbs} {way} {speed} {place} {sky}.
{ashot} of {who} {ing} {way} {place} {sky}, {speed}.
{ashot} of {who} {ing} {speed} {way} {place}, {lead}.
{afilm} {shot} of {who} {ing} {way} {speed} {place} {sky}.
{shot} of {who} {ing} {way} {place} {sky}, {tag}
{film} {shot}, {who} {ing} {way} {place}, {lead}, {tag}, {film2}
{film}, {film2}, {who} {ing} {speed} {way} {place} {sky}, {film3}
{who} {ing} {way} {speed} {place} {sky}, {film}, {film2}, {mood}
{who}, {place}, {lead}, {way}, {tag}
{who}, {spot}, {lead}, {waytag}, {tag}
{thing}, {spot}, {lead}, {waytag}, {tag}
{thing}, {spot}, {tag}, {waytag}, {lead}, {film}, {film2}
{thing}, {lead}, {spot}, {waytag}, {tag}, {mood}
{lead}, {spot}, {thing}, {waytag}, {tag}
{spot}, {lead}, {thing}, {tag}, {waytag}
{tag}, {waytag}, {thing}, {lead}, {spot}
{tag}, {lead}, {who} {ing} {place}, {way}, {mood}
{film}, {thing}, {waytag}, {spot}, {lead}, {tag}, {film2}, {film3}
{thing} {ing} {way} {place} {sky} {speed}
{thing} {ing} {speed} {way} {place} {sky}
{thing} {place} {sky} {way} {speed}
{thing} {waytag} {tag} {spot} {lead}
{thing} | {spot} | {lead} | {waytag} | {tag}
{thing} - {spot} - {lead} - {waytag} - {tag}
{thing}: {spot}, {lead}, {waytag}, {tag}
{thing}; {spot}; {lead}; {waytag}; {tag}
{spot}. {lead}. {tag}. {waytag}. {thing}.
{thing}. {spot}. {lead}. {waytag}. {tag}.
subject: {thing}|?, place: {spot}|?, sky: {lead}|?, direction: {waytag}|?, speed: {tag}
{ask} {who} {ing} {way} {place} {sky}, {speed}.
{ask} {who} {ing} {speed} {way} {place} {sky}.
{ask} {who} {place} {sky}, {ing} {way} {speed}.
{ask} {who} that {verbs} {way} {speed} {place} {sky}.
{ask} {who} {place}, {lead}, {waytag}, {tag}, {end}.
{ask} {who} {ing} {way} {place} {sky}, {speed}, {end}.
{ask} {who} {ing} {speed} {place} {way}|?. Make sure that {it}|. {end}.
{ask} {who}.|? {placeclause}.|? {it}.|? {speedclause}.|? {wayclause}.
{watch} {who} {ing} {way} {speed} {place} {sky}.
{watch} {who} {ing} {speed} {way} {place}, {sky}.
{sky}, {watch} {who} that {verbs} {way} {speed} {place}.
{place} {watch} {who}.|? {wayclause}.|? {speedclause}.|? {it}.
{it} and {who} {verbs} {way} {speed} {place}.
{who} {verbs} {speed} {way} {place} while {it}.
{who} {verbs} {way} {place}.|? {it}.|? {speedclause}.
{who} {verbs} {speed} {place}.|? {wayclause}.|? {it}.
{who} {verbs} {place} {sky}.|? {wayclause}.|? {speedclause}.
{it}. {who} {verbs} {way} {speed} {place}.
{it}. {place} {who} {verbs} {way}.|? {speedclause}.
{who} {verbs} {place}.|? {colours}.|? {it}.|? {wayclause}.|? {speedclause}.
{who} {verbs} {way} {speed} {place} {sky}.|? {colours}.
{who} {verbs} {speed} {way}.|? {colours}.|? {placeclause}.|? {it}.
{colours}. {theyre} {ing} {way} {speed} {place} {sky}.
{colours}, {place}, {sky}, {speed}, {way}.
{colours}.|? {theyre} {place}.|? {it}.|? {wayclause}.|? {speedclause}.
{place}, {who} {verbs} {way}.|? {colours}.|? {it}.|? {speedclause}.
{ask} {who}.|? {colours}.|? {placeclause}.|? {wayclause}.|? {speedclause}.|? {it}.
{sky}, {who} {verbs} {speed} {way} {place}.|? {colours}.| {mood}.
{watch} {who}.|? {colours}.|? {theyre} {ing} {way} {speed}.|? {placeclause}.|? {it}.
{who} {seen} {ing} {way} {speed} {place} {sky}.
{who} {seen} {place} {sky}, {ing} {way} {speed}.
{sky} {who} {seen} {ing} {speed} {way} {place}.
{seenfirst} {who}, {ing} {way} {speed} {place} {sky}.
There {goesfirst} {who}, {way}, {speed}, {place}, {sky}.
{name}: {who} {ing} {way} {place} {sky}, {speed}
{name}. {who} {verbs} {speed} {way} {place} {sky}.
{name}: {spot}, {lead}. {who} {verbs} {way}, {tag}.
EXT. {spot} - {lead}. {who} {verbs} {way}, {tag}.
FADE IN: {place}, {lead}. {who} {ing} {way} {speed}. {film}.
Camera: {film}. {who} {ing} {speed} {way} {place} {sky}. {mood}.
The camera follows {who} {ing} {way} {speed} {place} {sky}.
The scene: {spot}, {lead}. The hero: {who}.|? The motion: {waytag}, {tag}.
Background: {spot}, {lead}. Foreground: {who}, {waytag}, {tag}.
{open}. {who} {verbs} {way} {speed} {place} {sky}.
{open}. {open2}. {who} {verbs} {speed} {way} {place} {sky}. {open3}.
{open}. {who} {verbs} {way} {place}.|? {it}.|? {speedclause}.| {open2}. {open3}. {mood}.
{who} {verbs} {place} {sky}, {ing} {way} {speed}. {open}. {open2}. {open3}. {film}, {film2}.
{who} {ing} {way} {speed} {place} {sky}. {open}. {open2}. {film}, {film2}, {film3}, {mood}.
{open}. {place}, {who} {verbs} {way}.|? {colours}.|? {speedclause}.|? {it}.| {open2}. {open3}.
{film}, {film2}. {open}. {watch} {who} {ing} {speed} {way} {place} {sky}. {open2}. {mood}, {mood2}.
{watch} {who} {ing} {place} {way}. {open}.|? {it}.|? {speedclause}.| {open2}.
""".strip().splitlines()
)
#: for captions that leave all or nearly all unsaid
SHORT_PATTERNS = tuple(
    """
{thing}
{thing}
{thing}
{thing}.
{who}
{who}
{who}.
{thing} {ing}
{thing} {ing} {way} {speed} {place} {sky}
{thing} {place} {sky}
{thing} {place}, {lead}, {tag}, {waytag}
{thing} {sky} {place} {speed} {way}
{thing}, {spot}, {lead}, {tag}, {waytag}
{thing} {spot} {lead} {tag} {waytag}
{spot} {lead} {tag} {thing} {waytag}
{lead} {spot} {tag} {thing} {waytag}
{tag} {thing} {waytag} {spot} {lead}
{who} {ing}
{who} {verbs}.
{who} {verbs} {speed} {way} {place} {sky}.
{who} {ing} {speed} {way} {place} {sky}
{who} {place} {sky} {way} {speed}
{who} {place} {sky} {speed} {way}.
{ask} {who}
{ask} {who}.
{ask} {thing}
{ask} {who} {place} {sky} {way} {speed}.
{ask} {who} {ing}
{watch} {who}.
{watch} {who} {ing} {way} {speed} {place} {sky}.
{thing}, {film}
{thing}, {film}, {film2}
{film} {thing}
{shot} of {who}
{shot} of {who} {ing} {way} {speed} {place} {sky}
{ashot} of {who}.
{thing} {shot}
{thing}, {mood}
{who} {verbs}.|? {colours}.|? {it}.|? {wayclause}.|? {speedclause}.|? {placeclause}.
{colours}.
{colours}. {theyre} {ing} {way} {speed} {place} {sky}.
{thing}, {end}
{name}: {thing}
just {who}
one {bare}
{bare}
{bare}
{bare}!
{bare} {ing}
{bare} {place} {sky} {way} {speed}
{bare} {spot} {lead} {tag} {waytag}
""".strip().splitlines()
)
#: by attribute, the slots that say it
SPOKEN = {
    "place": {"place", "spot", "placeclause"},
    "sky": {"sky", "lead", "it"},
    "direction": {"way", "waytag", "wayclause"},
    "speed": {"speed", "tag", "speedclause"},
}


OPTIONAL = {"colours"}.union(*SPOKEN.values())  #: slots that may be empty


@cache
def parsed(pattern: str) -> tuple[tuple[bool, str, tuple[str, ...]], ...]:
    """(may be left out, text, names of its slots) of each part."""
    parts = [pattern] if " | " in pattern else pattern.split("|")  # a list that is divided by bars is one part
    return tuple(
        (part.startswith("?"), part.removeprefix("?"), tuple(re.findall(r"\{(\w+)\}", part))) for part in parts
    )


@cache
def slots(pattern: str) -> frozenset[str]:
    return frozenset(name for part in parsed(pattern) for name in part[2])


@cache
def fitting(short: bool, pair: bool, omit: frozenset[str]) -> tuple[str, ...]:
    """The patterns that can say all that `omit` does not name."""

    def fits(names):
        if (pair and "bare" in names) or ("colours" in names and omit & {"colour", "companion_colour"}):
            return False
        return all(names & spoken for attribute, spoken in SPOKEN.items() if attribute not in omit)

    return tuple(p for p in (SHORT_PATTERNS if short else PATTERNS) if fits(slots(p)))


@cache
def conjugate(verb: str) -> tuple[str, ...]:
    """Base, third person, participle, past and past participle; "drive along" bends its first word."""
    base, _, rest = verb.partition(" ")
    if base in lex.IRREGULAR:
        forms = lex.IRREGULAR[base]
    else:
        es = base.endswith(("s", "sh", "ch", "x", "z"))
        stem = base.removesuffix("e")
        forms = (base, base + ("es" if es else "s"), stem + "ing", stem + "ed", stem + "ed")
    return tuple(f"{form} {rest}" if rest else form for form in forms)


@cache
def plural(noun: str) -> str:
    head, _, last = noun.rpartition(" ")
    if last in lex.PLURALS:
        many = lex.PLURALS[last]
    elif last.endswith("y") and last[-2] not in "aeiou":
        many = last[:-1] + "ies"
    else:
        many = last + ("es" if last.endswith(("s", "x", "ch", "sh")) else "s")
    return f"{head} {many}".strip()


def article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" and not noun.startswith(("uni", "one", "us")) else "a ") + noun


def phrases():
    """Every phrase of the tables and the patterns."""
    for value in (getattr(lex, name) for name in dir(lex) if name.isupper()):
        if isinstance(value, dict):
            for key, texts in value.items():
                yield from (key, texts) if isinstance(texts, str) else texts
        elif isinstance(value, tuple):
            yield from value
    yield from PATTERNS
    yield from SHORT_PATTERNS


@cache
def known_words() -> frozenset[str]:
    """Every word that captions are made of, in small letters: those of the tables, their plurals and verb forms."""
    words = set()
    for text in phrases():
        words.update(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", text).lower()))
    for nouns in lex.NOUNS.values():
        words.update(word for noun in nouns for word in re.findall(r"[a-z]+", plural(noun)))
    for table in (lex.VERBS, lex.QUICK_VERBS, lex.SLOW_VERBS, {"": lex.BOTH_VERBS}):
        words.update(
            word for verbs in table.values() for verb in verbs for form in conjugate(verb) for word in form.split()
        )
    return frozenset(words)
