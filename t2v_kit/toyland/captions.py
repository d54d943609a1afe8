"""Toyland in words: what `caption` can say of a scene, and how carelessly people type it.

A pattern of `PATTERNS` is a text with slots. Most captions say everything; what `omit` names stays unsaid, and a
part of a pattern that has nothing left to say falls out. The words themselves are tables of `lexicon`.
"""
from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from . import lexicon as lex

if TYPE_CHECKING:
    from . import Scene

SAYABLE = ("colour", "place", "sky", "direction", "speed")  #: what a caption may leave unsaid

#: Parts are divided by "|"; one that begins with "?" is left out when it has nothing to say. A pattern that ends in
#: a full stop is written in sentences, the others are lists and titles. A digit behind a slot's name draws anew.
PATTERNS = tuple(pattern for pattern in """
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
""".strip().splitlines())
#: for captions that leave all or nearly all unsaid
SHORT_PATTERNS = tuple("""
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
""".strip().splitlines())
#: by attribute, the slots that say it
SPOKEN = {"place": {"place", "spot", "placeclause"}, "sky": {"sky", "lead", "it"}, "direction": {"way", "waytag", "wayclause"},
          "speed": {"speed", "tag", "speedclause"}}


OPTIONAL = {"colours"}.union(*SPOKEN.values())  #: slots that may be empty


@dataclass(frozen=True)
class Telling:
    """A caption as it is typed (`text`) and as it was meant (`plain`); `actors` are in the order of mention and
    `unsaid` names the attributes that are left out."""

    text: str
    plain: str
    actors: tuple[tuple[str, str], ...]
    unsaid: frozenset[str]


def caption(scene: Scene, seed: int | None = None, omit: tuple[str, ...] = ()) -> str:
    """The scene in words; another `seed` gives other wording and order (default: the scene's own seed).

    `omit` leaves attributes unsaid: any of "colour", "place", "sky", "direction", "speed"; "companion_colour" leaves
    out that of the companion alone.
    """
    return tell(scene, random.Random(scene.seed if seed is None else seed), omit).text


def tell(scene: Scene, rng: random.Random, omit: tuple[str, ...] = (), careless: bool = True) -> Telling:
    """A caption and what is known about it. `careless=False` leaves out the typing mistakes and the odd cases."""
    voice = Voice(scene, rng, frozenset(omit))
    plain = voice.say()
    return Telling(careless_typing(plain, rng) if careless else plain, plain, tuple(voice.actors), voice.omit)


def draw_omit(rng: random.Random, silent: float = 0.25) -> tuple[str, ...]:
    """What a caption of a data set leaves unsaid: nothing, or in a share of `silent` some or nearly all of it."""
    if rng.random() >= silent:
        return ()
    if rng.random() < 0.5:  # a detail or two
        return tuple(rng.sample(SAYABLE, rng.randint(1, 3))) + (("companion_colour",) if rng.random() < 0.15 else ())
    kept = rng.choice(((), (), ("colour",), ("colour",), ("colour",), ("place",), ("sky",), ("colour", "place"), ("colour", "place"),
                       ("place", "sky"), ("colour", "sky"), ("direction",), ("speed",), ("colour", "direction")))
    return tuple(field for field in SAYABLE if field not in kept)


# ---- grammar ---------------------------------------------------------------------------------------------

@cache
def parsed(pattern: str) -> tuple[tuple[bool, str, tuple[str, ...]], ...]:
    """(may be left out, text, names of its slots) of each part."""
    bars = pattern if " | " in pattern else None  # a list that is divided by bars is one part
    parts = [pattern] if bars else pattern.split("|")
    return tuple((part.startswith("?"), part.removeprefix("?"), tuple(re.findall(r"\{(\w+)\}", part))) for part in parts)


@cache
def slots(pattern: str) -> frozenset[str]:
    return frozenset(name for part in parsed(pattern) for name in part[2])


@cache
def fitting(short: bool, pair: bool, omit: frozenset[str]) -> tuple[str, ...]:
    """The patterns that can say all that `omit` does not name."""
    def fits(names):
        return (all(names & spoken for attribute, spoken in SPOKEN.items() if attribute not in omit)
                and not ("colours" in names and omit & {"colour", "companion_colour"}) and not (pair and "bare" in names))

    return tuple(p for p in (SHORT_PATTERNS if short else PATTERNS) if fits(slots(p)))


@cache
def conjugate(verb: str) -> tuple[str, str, str, str, str]:
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
    odd = {"person": "people", "man": "men", "woman": "women", "child": "children", "aircraft": "aircraft", "gentleman": "gentlemen",
           "being": "beings", "bus": "buses", "foal": "foals", "mustang": "mustangs"}
    if last in odd:
        many = odd[last]
    elif last.endswith("y") and last[-2] not in "aeiou":
        many = last[:-1] + "ies"
    else:
        many = last + ("es" if last.endswith(("s", "x", "ch", "sh")) else "s")
    return f"{head} {many}".strip()


def article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" and not noun.startswith(("uni", "one", "us")) else "a ") + noun


class Voice(dict):
    """One speaker of one caption: a dict of slots, each filled when a pattern first asks for it."""

    def __init__(self, scene: Scene, rng: random.Random, omit: frozenset[str]):
        self.scene, self.rng, self.omit = scene, rng, omit
        self.actors = list(scene.actors)
        rng.shuffle(self.actors)
        self.pair = len(self.actors) > 1
        self.main = self.actors[0][0]
        unsaid = len(omit & set(SAYABLE))
        short = unsaid >= 3 and rng.random() < (.75 if unsaid > 3 else .4)
        self.pattern = rng.choice(fitting(short, self.pair, omit))
        self.later = "colours" in slots(self.pattern)
        self.object = self.verb = ""
        self.hasty = False  # whether the verb has said the speed
        self.refer = []  # a short noun for each actor
        self.many = False
        self.name_all()

    def say(self) -> str:
        text = ""
        for optional, part, names in parsed(self.pattern):
            if optional and not any(self[name] for name in names if name in OPTIONAL):
                continue
            text += part.format_map(self)
        sentences = self.pattern[-1] in ".!"
        return tidy(text, sentences, self.rng)

    def __missing__(self, name: str) -> str:
        self[name] = text = getattr(self, "slot_" + name.rstrip("0123456789"))()
        return text

    def pick(self, table: dict | tuple | list, key: str | None = None) -> str:
        return self.rng.choice(table if key is None else table[key])

    def said(self, attribute: str) -> bool:
        return attribute not in self.omit

    # who

    def name_all(self):
        """Names of the actors, with article and without, in the pattern's way of saying their colours."""
        names = slots(self.pattern)
        acts = bool(names & {"verbs", "ing"})
        self.listed = bool(names & {"thing", "bare"})
        phrases = [self.name(*actor, acts=acts) for actor in self.actors]
        if not self.pair:
            self.who, = phrases
        else:
            joint = self.pick(lex.JOINERS)
            self.many = joint in ("and", "as well as", "plus", "&", "and also")
            self.who = f" {joint} ".join(phrases)
            if self.rng.random() < .08 and self.listed:
                self.who, self.many = ", ".join(phrases), True
            kinds = [s for s, _ in self.actors]
            if kinds == ["person", "dog"] and not self.listed and "in " not in phrases[0] and self.rng.random() < .4:
                self.who, self.many = phrases[0] + self.pick((" walking ", " with ", " and ")) + phrases[1], False

    def colour(self, subject: str, colour: str) -> str:
        """The colour's word, or nothing where it is left out here."""
        if self.later or not self.said("colour"):
            return ""
        if self.pair and not self.said("companion_colour") and (subject, colour) == self.scene.companion:
            return ""
        return colour if self.rng.random() < .72 else self.pick(lex.SHADES, colour)

    def name(self, subject: str, colour: str, acts: bool) -> str:
        rng = self.rng
        noun = lex.NOUNS[subject][0] if rng.random() < .5 else self.pick(lex.NOUNS, subject)
        shade = self.colour(subject, colour)
        before, after = shade, ""
        how = rng.random()
        if shade and how < .24 and not (self.listed and how > .08) and not acts_twice(self.pattern):
            before = ""
            if how < .05:
                after = f" in {shade}" if how < .03 else f", {shade},"
            elif how < .08:
                after = f", {shade},"
            elif subject == "person" and how < .2:
                wear = self.pick(lex.CLOTHES)
                after = rng.choice((f" in {article(shade)} {wear}", f" wearing {article(shade)} {wear}", f" dressed in {shade}",
                                    f" with {article(shade)} {wear}", f" in {shade}", f" in {shade} clothes"))
            elif how < .2:
                after = f" {rng.choice(('that is', 'which is', 'that is', 'whose colour is', 'of the colour', 'in the colour'))} {shade}"
                after += "," if "that" not in after and "which" not in after and rng.random() < .3 else ""
            elif subject in lex.WHEELED + ("plane", "boat", "ball", "robot"):
                after = f" painted {shade}"
            else:
                before = shade + rng.choice(("-coloured", "-colored", " coloured"))
        adjective = self.pick(lex.ADJECTIVES, subject) if rng.random() < .18 else \
            self.pick(lex.ANY_ADJECTIVES) if rng.random() < .08 else ""
        if set(adjective.split()) & set(noun.split()) or self["bare"]:
            adjective = ""
        if not after and not self.listed and rng.random() < .05:
            after = " " + self.pick(lex.TAILS, subject)
        self.refer.append("motorcycle" if subject == "motorcycle" else noun if rng.random() < .7 else lex.NOUNS[subject][0])
        if not self.pair and subject != "motorcycle" and not after and rng.random() < (.12 if self.listed else .03):
            self.many, self.plural = True, True
            thing = f"{adjective} {before} {plural(noun)}"
            return " ".join((thing if self.listed or rng.random() < .7 else rng.choice(("some ", "the ")) + thing).split())
        self.plural = False
        thing = " ".join(f"{adjective} {before} {noun}".split()) + after
        if subject == "motorcycle":
            ridden = rng.random()
            if ridden < .25 and acts and not self.pair and not self.listed and not after.endswith(","):
                self.object, thing = " " + self.determined(thing), self.pick(lex.BEARDED)
            elif ridden < .7 and not after:
                thing = self.pick(lex.RIDERS).replace("{ax}", article(thing)).replace("{x}", thing)
        if self.listed:
            return thing
        return self.determined(thing)

    def determined(self, thing: str) -> str:
        draw = self.rng.random()
        if draw < .76:
            return article(thing)
        if draw < .9:
            return "the " + thing
        return self.pick(("one ", "this ", "my ", "that ", "our ", "the ", "a single ", "another ")) + thing

    def slot_who(self) -> str:
        return self.who

    slot_thing = slot_who

    def slot_bare(self) -> str:
        """One or two words: the noun alone, or with its plain colour. Empty unless the pattern asks for it."""
        if "bare" not in slots(self.pattern):
            return ""
        subject, colour = self.actors[0]
        noun = lex.NOUNS[subject][0] if self.rng.random() < .5 else self.pick(lex.NOUNS, subject)
        self.many = False
        return f"{self.colour(subject, colour)} {noun}".strip()

    # what they do

    def choose_verb(self) -> str:
        if not self.verb:
            rng, subject = self.rng, self.main
            own = "" if self.pair and self.many else subject
            if self.object:
                self.verb = self.pick(("ride", "ride", "drive")) + self.object
            elif self.said("speed") and rng.random() < .2:
                self.hasty = True
                self.verb = self.pick(lex.QUICK_VERBS if self.scene.speed == "high" else lex.SLOW_VERBS, own)
            else:
                self.verb = self.pick(lex.BOTH_VERBS) if own == "" else self.pick(lex.VERBS, own)
        return self.verb

    def slot_verbs(self) -> str:
        """The verb in any tense, or its participle alone."""
        base, third, participle, past, past_participle = conjugate(self.choose_verb())
        be, was, have = ("are", "were", "have") if self.many else ("is", "was", "has")
        draw = self.rng.random()
        if draw < .42:
            return base if self.many else third
        if draw < .68:
            return f"{be} {participle}"
        if draw < .8:
            return participle if "that {verbs}" not in self.pattern else f"{be} {participle}"
        if draw < .88:
            return past
        return self.rng.choice((f"will {base}", f"{was} {participle}", f"{be} going to {base}", f"{have} {past_participle}",
                                f"{have} been {participle}", f"{be} seen {participle}", f"can be seen {participle}", f"may {base}",
                                f"will be {participle}", f"{'start' if self.many else 'starts'} to {base}", f"{'keep' if self.many else 'keeps'} {participle}",
                                f"{'love' if self.many else 'loves'} to {base}", f"could {base}", f"{be} {participle}"))

    def slot_ing(self) -> str:
        return conjugate(self.choose_verb())[2]

    def slot_seen(self) -> str:
        be, was = ("are", "were") if self.many else ("is", "was")
        return self.pick((f"{be} seen", "can be seen", f"{be} shown", f"{be} filmed", f"{was} seen", f"{be} captured", f"{was} filmed",
                          f"{be} pictured", "may be seen", f"{be} watched", f"{was} recorded", f"{be} being filmed"))

    def slot_seenfirst(self) -> str:
        return self.pick(("Seen here:", "Shown:", "Pictured:", "On the screen:", "Coming up:", "In the picture:", "Featuring", "Starring"))

    def slot_goesfirst(self) -> str:
        if self.many:
            return self.pick(("go", "are", "were", "come"))
        return self.pick(("goes", "is", "was", "comes", "goes"))

    def slot_theyre(self) -> str:
        return "they are" if self.pair else f"{self.pronoun()} {'are' if self.many else 'is'}"

    def pronoun(self) -> str:
        if self.pair:
            return self.pick(("they", "both", "they"))
        if self.many:
            return "they"
        noun = "the " + self.refer[0]
        return noun if self.main in ("person", "motorcycle") or self.rng.random() < .4 else "it"

    def clause(self, text: str) -> str:
        """A clause about the subject, its verbs agreeing with it."""
        it = self.pronoun()
        many = it in ("they", "both")
        verbs = ("go", "are", "head", "face", "move", "take") if many else ("goes", "is", "heads", "faces", "moves", "takes")
        return text.format(it=it, its="their" if many or self.main == "person" else "its",
                           **dict(zip(("goes", "is", "heads", "faces", "moves", "takes"), verbs)))

    def slot_colours(self) -> str:
        """'The dog is red and the cat is blue', where the colours have not been said before."""
        said = []
        for (subject, colour), noun in zip(self.actors, self.refer):
            word = colour if self.rng.random() < .72 else self.pick(lex.SHADES, colour)
            noun = plural(noun) if self.plural else noun
            if subject == "person" and self.rng.random() < .5:
                said.append(f"the {noun} {'wear' if self.plural else 'wears'} {word}")
            else:
                said.append(f"the {noun} {'are' if self.plural else 'is'} {word}")
        if self.pair:
            return self.pick((" and ", " and ", ", ", " while ", ". ", ", and ", "; ")).join(said)
        if not self.plural and self.main not in ("person", "motorcycle") and "who" in self and self.rng.random() < .3:
            colour = self.actors[0][1]
            return self.pick((f"it is {colour}", f"its colour is {colour}", f"it's {colour}", f"the colour is {colour}", f"color: {colour}",
                              f"it is painted {colour}" if self.main in lex.WHEELED else f"it is all {colour}"))
        return said[0]

    # where, under what sky, which way, how fast

    def slot_place(self) -> str:
        words, place = lex.PLACE_WORDS, self.scene.place
        if not self.said("place"):
            return ""
        kinds = {subject for subject, _ in self.actors}
        if kinds <= set(lex.AERIAL) and self.rng.random() < .4:
            return self.pick(lex.ABOVE, place)
        if kinds == {"boat"} and place == "beach" and self.rng.random() < .6:
            return self.pick(lex.AFLOAT)
        return self.pick(words[place][:8] if self.rng.random() < .3 else words[place])

    def slot_spot(self) -> str:
        return self.pick(lex.SPOTS, self.scene.place) if self.said("place") else ""

    def slot_placeclause(self) -> str:
        if not self.said("place"):
            return ""
        spot = self.pick([s for s in lex.SPOTS[self.scene.place] if s.startswith(("a ", "an ", "the "))])
        where = self.slot_place()
        return self.pick((f"the place is {spot}", f"the background is {spot}", f"the scene is {spot}", f"it happens {where}", f"the scene is set {where}",
                          f"all this happens {where}", f"the setting is {spot}", f"we are {where}", f"it takes place {where}", f"everything happens {where}"))

    def slot_sky(self) -> str:
        return self.pick(lex.SKY_WORDS, self.scene.sky) if self.said("sky") else ""

    def slot_lead(self) -> str:
        return self.pick(lex.SKY_LEADS, self.scene.sky) if self.said("sky") else ""

    def slot_it(self) -> str:
        return self.pick(lex.SKY_CLAUSES, self.scene.sky) if self.said("sky") else ""

    def slot_way(self) -> str:
        return self.pick(lex.DIRECTION_WORDS, self.scene.direction) if self.said("direction") else ""

    def slot_waytag(self) -> str:
        return self.pick(lex.DIRECTION_TAGS, self.scene.direction) if self.said("direction") else ""

    def slot_wayclause(self) -> str:
        return self.clause(self.pick(lex.DIRECTION_CLAUSES, self.scene.direction)) if self.said("direction") else ""

    def slot_speed(self) -> str:
        if not self.said("speed") or self.hasty and self.rng.random() < .6:
            return ""
        return self.pick(lex.SPEED_WORDS, self.scene.speed)

    def slot_tag(self) -> str:
        return self.pick(lex.SPEED_TAGS, self.scene.speed) if self.said("speed") else ""

    def slot_speedclause(self) -> str:
        if not self.said("speed") or self.hasty and self.rng.random() < .6:
            return ""
        return self.clause(self.pick(lex.SPEED_CLAUSES, self.scene.speed))

    # what means nothing

    def slot_mood(self) -> str:
        return self.pick(lex.MOODS)

    def slot_film(self) -> str:
        return self.pick(lex.FILM)

    def slot_shot(self) -> str:
        return self.pick(lex.SHOTS)

    def slot_ashot(self) -> str:
        return article(self.slot_shot())

    def slot_afilm(self) -> str:
        return article(self.slot_film())

    def slot_ask(self) -> str:
        return self.pick(lex.REQUESTS)

    def slot_watch(self) -> str:
        return self.pick(lex.WATCH)

    def slot_end(self) -> str:
        return self.pick(lex.ENDINGS)

    def slot_name(self) -> str:
        return self.pick(lex.NAMES)

    def slot_open(self) -> str:
        return self.pick(lex.OPENINGS)


def acts_twice(pattern: str) -> bool:
    """Whether a relative clause about the subject follows, so that its name had better not end in one."""
    return "that {verbs}" in pattern


GAPS = re.compile(r"\s+([,.:;!?])")
REPEATED = re.compile(r"([,.:;!?|-])(?:\s*[,:;|]|\s+-)+(?=\s|$)|[,:;]+(?=\s*[.!?])")
STARTS = re.compile(r"(?:^|(?<=[.!?] ))[a-z]")


def tidy(text: str, sentences: bool, rng: random.Random) -> str:
    """Mends the punctuation around what was left out, and begins sentences with a capital letter."""
    text = " ".join(text.split())
    text = GAPS.sub(r"\1", text)
    text = REPEATED.sub(lambda m: m[1] or "", text)
    while ".." in text or ". ." in text:
        text = text.replace("..", ".").replace(". .", ".")
    text = " ".join(text.replace("?.", "?").replace("!.", "!").replace(":.", ".").split()).strip(" ,:;|-")
    if sentences:
        text = text.lstrip(". ")
        text = STARTS.sub(lambda m: m[0].upper(), text)
        if text.startswith(("Can ", "Could ", "Would ", "How ", "What ")) and text.endswith(".") and rng.random() < .7:
            text = text[:-1] + "?"
        if text[-1:] not in ".!?":
            text += "."
    elif rng.random() < .4:
        text = text[:1].upper() + text[1:]
    return text


# ---- typing ----------------------------------------------------------------------------------------------

def mistype(word: str, rng: random.Random) -> str:
    """The word with two letters swapped, one dropped or one doubled; short words and what would be another word of
    Toyland stay as they are."""
    if len(word) < 3 or not word.isalpha():
        return word
    i, kind = rng.randrange(1, len(word) - 1), rng.random()
    if kind < .4 and len(word) > 3:
        new = word[:i] + word[i + 1] + word[i] + word[i + 2:]
    elif kind < .7 and len(word) > 4:
        new = word[:i] + word[i + 1:]
    else:
        new = word[:i] + word[i] + word[i:]
    return word if new.lower() in known_words() else new


def careless_typing(text: str, rng: random.Random) -> str:
    """The text as people type it: half the time as it should be, else in small letters, in capitals, without a full
    stop, with a slip of the fingers."""
    if rng.random() < .1:
        words = text.split(" ")
        for _ in range(rng.choice((1, 1, 2, 3))):
            at = rng.randrange(len(words))
            words[at] = mistype(words[at], rng)
        text = " ".join(words)
    case = rng.random()
    if case < .22:
        text = text.lower()
        text = text.rstrip(".") if case < .17 else text
    elif case < .29:
        text = text.upper()
    elif case < .35:
        text = " ".join(word[:1].upper() + word[1:] for word in text.split(" "))
    elif case < .38:
        text = text[:1].lower() + text[1:]
    end = rng.random()
    if end < .12:
        text = text.rstrip(".")
    elif end < .15:
        text = text.rstrip(".") + rng.choice(("!", "!!", " !", "...", "?", "!", " ."))
    elif end < .17:
        text = text.replace(",", "")
    elif end < .19 and ". " in text:
        text = text.replace(". ", rng.choice((".\n", "\n", ".\n\n", ".", " ")))
    elif end < .2:
        text = text.replace(", ", rng.choice((",", " , ", "\n", " / ", " + ")))
    elif end < .21:
        text = rng.choice(('"{}"', "({})", "'{}'", "- {}", "* {}", "Prompt: {}", "> {}")).format(text)
    space = rng.random()
    if space < .03:
        text = " " + text
    elif space < .06:
        text = text.replace(" ", "  ")
    elif space < .08:
        text += " "
    elif space < .09:
        at = text.find(" ", rng.randrange(len(text)))
        text = text if at < 0 else text[:at] + " " + text[at:]
    return text


def _texts():
    """Every phrase of the tables and the patterns."""
    for value in (getattr(lex, name) for name in dir(lex) if name.isupper()):
        if isinstance(value, dict):
            for texts in value.values():
                yield from texts
        elif isinstance(value, tuple):
            yield from value
    for pattern in (*PATTERNS, *SHORT_PATTERNS):
        yield pattern


@cache
def known_words() -> frozenset[str]:
    """Every word that captions are made of, in small letters: those of the tables, their plurals and verb forms."""
    words = set()
    for text in _texts():
        words.update(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", text).lower()))
    for nouns in lex.NOUNS.values():
        words.update(word for noun in nouns for word in re.findall(r"[a-z]+", plural(noun)))
    for table in (lex.VERBS, lex.QUICK_VERBS, lex.SLOW_VERBS, {"": lex.BOTH_VERBS}):
        words.update(word for verbs in table.values() for verb in verbs for form in conjugate(verb) for word in form.split())
    return frozenset(words)
