"""What Toyland knows of a prompt's words: which it lacks, what comes near, and what would work instead."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache

from . import lexicon as lex
from .grammar import conjugate, known_words, plural

#: words that people type and Toyland lacks, with what comes nearest in it
NEAREST = {
    "van": "truck",
    "taxi": "car",
    "cab": "car",
    "jeep": "car",
    "suv": "car",
    "ambulance": "truck",
    "tractor": "truck",
    "train": "bus",
    "tram": "bus",
    "bicycle": "motorcycle",
    "cyclist": "motorcycle",
    "helicopter": "plane",
    "glider": "plane",
    "zeppelin": "balloon",
    "blimp": "balloon",
    "ferry": "boat",
    "canoe": "boat",
    "kayak": "boat",
    "donkey": "horse",
    "zebra": "horse",
    "cow": "horse",
    "unicorn": "horse",
    "wolf": "dog",
    "fox": "dog",
    "husky": "dog",
    "corgi": "dog",
    "lion": "cat",
    "tiger": "cat",
    "panther": "cat",
    "duck": "bird",
    "owl": "bird",
    "crow": "bird",
    "chicken": "bird",
    "butterfly": "bird",
    "cyborg": "robot",
    "baby": "child",
    "dancer": "person",
    "soldier": "person",
    "runner": "person",
    "basketball": "ball",
    "sphere": "ball",
    "pink": "purple",
    "turquoise": "blue",
    "cyan": "blue",
    "maroon": "red",
    "beige": "white",
    "forest": "meadow",
    "jungle": "meadow",
    "lake": "sea",
    "river": "sea",
    "island": "beach",
    "desert": "beach",
    "village": "town",
    "canyon": "valley",
    "volcano": "mountain",
    "fog": "rain",
    "foggy": "rainy",
    "cloudy": "rainy",
    "hail": "snow",
    "sprinting": "running",
    "swimming": "floating",
}


def phrase_words(texts) -> frozenset[str]:
    return frozenset(word for text in texts for word in re.findall(r"[a-z]+", text.lower()))


@cache
def words() -> dict[str, dict[str, tuple[str, ...]]]:
    """What Toyland's captions can say, by kind and then by what it means.

    Returns:
        A dict with the keys "subjects", "colours", "places", "skies", "directions", "speeds", "verbs" and "fillers".
        Each value maps a value of the scene to the words and phrases for it, the plainest first; of verbs, a subject
        to what it does; of fillers, which mean nothing here, their sort to the phrases.

    Example:
        >>> words()["subjects"]["horse"][:2]
        ('horse', 'pony')
    """

    def distinct(*tables):
        return {key: tuple(dict.fromkeys(text for table in tables for text in table.get(key, ()))) for key in tables[0]}

    colours = {colour: (colour, *shades) for colour, shades in lex.SHADES.items()}
    verbs = {
        subject: tuple(
            dict.fromkeys(
                form
                for table in (lex.VERBS, lex.QUICK_VERBS, lex.SLOW_VERBS)
                for verb in table[subject]
                for form in conjugate(verb)
            )
        )
        for subject in lex.NOUNS
    }
    fillers = {
        "adjectives": lex.ANY_ADJECTIVES,
        "moods": lex.MOODS,
        "film": lex.FILM,
        "shots": lex.SHOTS,
        "requests": lex.REQUESTS,
        "openings": lex.WATCH,
        "endings": lex.ENDINGS,
    }
    return {
        "subjects": distinct(lex.NOUNS),
        "colours": colours,
        "places": distinct(lex.PLACE_WORDS, lex.ABOVE, lex.SPOTS),
        "skies": distinct(lex.SKY_WORDS, lex.SKY_LEADS, lex.SKY_CLAUSES),
        "directions": distinct(lex.DIRECTION_WORDS, lex.DIRECTION_TAGS),
        "speeds": distinct(lex.SPEED_WORDS, lex.SPEED_TAGS),
        "verbs": verbs,
        "fillers": fillers,
    }


@cache
def meanings() -> dict[str, tuple[str, str]]:
    """Of each word that settles it alone, its kind and value: 'puppy' is ("subjects", "dog")."""
    found = {}
    for subject, nouns in lex.NOUNS.items():
        for noun in nouns:
            for form in (noun, plural(noun)):
                found[form.split()[-1]] = "subjects", subject
    found |= {word: ("subjects", "motorcycle") for word in ("biker", "bikers", "motorcyclist", "rider")}
    for word in ("being", "beings", "rig", "rigs", "auto"):
        found.pop(word, None)
    for colour, shades in lex.SHADES.items():
        found |= {shade: ("colours", colour) for shade in (colour, *shades) if shade.isalpha()}
    for kind, tables in (
        ("places", (lex.SPOTS,)),
        ("skies", (lex.SKY_LEADS, lex.SKY_WORDS)),
        ("speeds", (lex.SPEED_TAGS, lex.SPEED_WORDS)),
    ):
        by_value = {value: phrase_words(text for table in tables for text in table[value]) for value in tables[0]}
        for value, said in by_value.items():
            others = frozenset().union(*(said for other, said in by_value.items() if other != value))
            for word in said - others - IDLE - found.keys():
                found[word] = kind, value
    ways = {word: ("directions", way) for way in lex.DIRECTION_WORDS for word in (way, way + "ward", way + "wards")}
    return found | ways


#: words of the phrases for places, skies and speeds that settle nothing alone
IDLE = frozenset(
    re.findall(
        r"\w+",
        """
    a an the in on of at to it is its and or by with no so as big high very really quite too light day days time late
    early middle falling full beautiful good warm white blue green golden orange clear heavy empty busy quiet cold
    hot wet foot front between near through across along under over before into during while when weather up down out
    taking all without super rather ever great like possible pace motion movement speed same fire flower flowers main
    tall past open broad even field walking hour last goes sets setting romantic fiery glow glowing after scene
    beneath among bad clouds mo low lightning landscape range skies top calm
""",
    )
)


@dataclass(frozen=True)
class Reading:
    """What Toyland knows of a prompt.

    Attributes:
        unknown: The words that no caption has, in small letters, in the order of the prompt.
        nearest: For some of them, the word of Toyland that comes nearest, by spelling or by meaning.
        subjects: The subjects of Toyland that the prompt names, in the order of mention.
        suggestions: Three prompts that would work, as near to this one as can be; empty when a subject is named.
    """

    unknown: tuple[str, ...]
    nearest: dict[str, str]
    subjects: tuple[str, ...]
    suggestions: tuple[str, ...]


def read_prompt(prompt: str) -> Reading:
    """Say what Toyland knows of a prompt's words. Case, plurals and verb forms make no difference.

    Args:
        prompt: Any text.

    Returns:
        A `Reading`.

    Example:
        >>> read_prompt("Dogs and a spaceship").subjects
        ('dog',)
        >>> read_prompt("A spaceship at night").suggestions[0]
        'a red car on the street at night'
    """
    text = shaded().sub(lambda found: shades()[found[0]], prompt.lower())
    said = list(dict.fromkeys(re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text)))
    said = [word.removesuffix("'s") for word in said]
    unknown = tuple(word for word in said if not is_known(word))
    near = {word: other for word in unknown if (other := nearest(word))}
    meant = [meanings().get(word) or meanings().get(word.removesuffix("s")) for word in said]
    subjects = tuple(dict.fromkeys(value for kind, value in filter(None, meant) if kind == "subjects"))
    return Reading(unknown, near, subjects, () if subjects else suggest(meant, near))


@cache
def shades() -> dict[str, str]:
    """The colour of each shade of several words: of 'forest green', which makes no forest known."""
    return {shade: colour for colour, phrases in lex.SHADES.items() for shade in phrases if not shade.isalpha()}


@cache
def shaded() -> re.Pattern:
    return re.compile(rf"\b({'|'.join(sorted(map(re.escape, shades()), key=len, reverse=True))})\b")


def is_known(word: str) -> bool:
    """Whether captions have the word, or one that differs by its ending only."""
    known = known_words() - NEAREST.keys()
    endings = ("", word), ("s", word[:-1]), ("es", word[:-2]), ("ies", word[:-3] + "y")
    return any(word.endswith(ending) and stem in known for ending, stem in endings if stem)


def nearest(word: str) -> str | None:
    """The word of Toyland that comes nearest to an unknown one, by meaning or by spelling; None if none is near."""
    for form in (word, word.removesuffix("s")):
        if form in NEAREST:
            return NEAREST[form]
    if len(word) < 3:
        return None
    candidates = [other for other in meanings() if len(other) > 2]
    swapped = [other for other in candidates if sorted(other) == sorted(word) and other[0] == word[0]]
    close = difflib.get_close_matches(word, candidates, 1, 0.85 if len(word) > 3 else 0.9)
    return (swapped or close or [None])[0]


def suggest(meant: list[tuple[str, str] | None], near: dict[str, str]) -> tuple[str, ...]:
    """Three prompts with a subject of Toyland and whatever else the prompt says that Toyland knows."""
    for other in near.values():
        meant = [*meant, meanings().get(other)]
    said = {}
    for kind, value in filter(None, meant):
        said.setdefault(kind, value)
    subjects = list(dict.fromkeys([said.get("subjects", "car"), "car", "dog", "balloon"]))[:3]
    places = {"car": "street", "dog": "beach", "balloon": "mountains"}
    colours = ("red", "blue", "yellow")
    prompts = []
    for subject, colour in zip(subjects, colours):
        place = said.get("places", "beach" if subject == "boat" else places.get(subject, "meadow"))
        where = lex.ABOVE[place][0] if subject in lex.AERIAL else lex.PLACE_WORDS[place][0]
        parts = ["a", said.get("colours", colour), subject, where]
        parts += [PLAIN_SKY[said["skies"]]] if "skies" in said else []
        parts += [f"to the {said['directions']}"] if "directions" in said else []
        parts += [lex.SPEED_WORDS[said["speeds"]][0]] if "speeds" in said else []
        prompts.append(" ".join(parts))
    return tuple(prompts)


PLAIN_SKY = {sky: phrases[0] for sky, phrases in lex.SKY_WORDS.items()}
