"""Toyland in words: what `caption` can say of a scene.

A pattern of `grammar` is a text with slots; `voice` fills them from the tables of `lexicon`; `slips` types the text as
people do. Most captions say everything. What `omit` names stays unsaid, and a part of a pattern that has nothing left
to say falls out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .grammar import SAYABLE
from .slips import careless_typing
from .voice import Voice

if TYPE_CHECKING:
    from . import Scene


@dataclass(frozen=True)
class Telling:
    """A caption as it is typed (`text`) and as it was meant (`plain`); `actors` are in the order of mention and
    `unsaid` names the attributes that are left out."""

    text: str
    plain: str
    actors: tuple[tuple[str, str], ...]
    unsaid: frozenset[str]


def caption(scene: Scene, seed: int | None = None, omit: tuple[str, ...] = (), careless: bool = True) -> str:
    """Say a scene in words.

    Args:
        scene: What happens in the clip.
        seed: Another seed gives another wording and order. Default: the scene's own seed.
        omit: What to leave unsaid: any of "colour", "place", "sky", "direction" and "speed", or "companion_colour" for
            the colour of the companion alone.
        careless: Whether to type the caption as people do, with odd cases, missing full stops and slips of the
            fingers; about half of the captions have some of it. False writes it as it should be.

    Returns:
        The caption, always the same for the same arguments.

    Example:
        >>> caption(Scene("dog", "red", "beach", "night", "left", "high"), seed=21, careless=False)
        'A shot of a red dog hurrying from right to left on the coast, midnight.'
    """
    return tell(scene, random.Random(scene.seed if seed is None else seed), omit, careless).text


def tell(scene: Scene, rng: random.Random, omit: tuple[str, ...] = (), careless: bool = True) -> Telling:
    """A caption and what is known about it: see `caption`."""
    voice = Voice(scene, rng, frozenset(omit))
    plain = voice.say()
    return Telling(careless_typing(plain, rng) if careless else plain, plain, tuple(voice.actors), voice.omit)


def draw_omit(rng: random.Random, silent: float = 0.25) -> tuple[str, ...]:
    """What a caption of a data set leaves unsaid: nothing, or in a share of `silent` some or nearly all of it."""
    if rng.random() >= silent:
        return ()
    if rng.random() < 0.5:  # a detail or two
        return tuple(rng.sample(SAYABLE, rng.randint(1, 3))) + (("companion_colour",) if rng.random() < 0.15 else ())
    kept = rng.choice(
        (
            (),
            (),
            ("colour",),
            ("colour",),
            ("colour",),
            ("place",),
            ("sky",),
            ("colour", "place"),
            ("colour", "place"),
            ("place", "sky"),
            ("colour", "sky"),
            ("direction",),
            ("speed",),
            ("colour", "direction"),
        )
    )
    return tuple(field for field in SAYABLE if field not in kept)
