"""One speaker of one caption: fills a pattern with words for a scene."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import lexicon as lex
from .grammar import OPTIONAL, SAYABLE, article, conjugate, fitting, parsed, plural, slots

if TYPE_CHECKING:
    from . import Scene


#: slots that say an attribute of the scene in a phrase of a table
SIMPLE = {
    "spot": ("place", lex.SPOTS),
    "sky": ("sky", lex.SKY_WORDS),
    "lead": ("sky", lex.SKY_LEADS),
    "it": ("sky", lex.SKY_CLAUSES),
    "way": ("direction", lex.DIRECTION_WORDS),
    "waytag": ("direction", lex.DIRECTION_TAGS),
    "tag": ("speed", lex.SPEED_TAGS),
}
#: slots that mean nothing
FILLERS = {
    "mood": lex.MOODS,
    "film": lex.FILM,
    "shot": lex.SHOTS,
    "ask": lex.REQUESTS,
    "watch": lex.WATCH,
    "end": lex.ENDINGS,
    "name": lex.NAMES,
    "open": lex.OPENINGS,
    "seenfirst": lex.SEEN_FIRST,
}


class Voice(dict):
    """One speaker of one caption: a dict of slots, each filled when a pattern first asks for it."""

    def __init__(self, scene: Scene, rng: random.Random, omit: frozenset[str]):
        self.scene, self.rng, self.omit = scene, rng, omit
        self.actors = list(scene.actors)
        rng.shuffle(self.actors)
        self.pair = len(self.actors) > 1
        self.main = self.actors[0][0]
        unsaid = len(omit & set(SAYABLE))
        short = unsaid >= 3 and rng.random() < (0.75 if unsaid > 3 else 0.4)
        self.pattern = rng.choice(fitting(short, self.pair, omit))
        self.later = "colours" in slots(self.pattern)
        self.object = self.verb = ""
        self.hasty = False  # whether the verb has said the speed
        self.refer = []  # a short noun for each actor
        self.many = self.plural = False  # whether several act, whether the one noun stands in the plural
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
        slot = name.rstrip("0123456789")
        if slot in SIMPLE:
            attribute, table = SIMPLE[slot]
            text = self.pick(table[getattr(self.scene, attribute)]) if self.said(attribute) else ""
        elif slot in FILLERS:
            text = self.pick(FILLERS[slot])
        else:
            text = getattr(self, "slot_" + slot)()
        self[name] = text
        return text

    def pick(self, texts: Sequence[str]) -> str:
        return self.rng.choice(texts)

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
            (self.who,) = phrases
        else:
            joint = self.pick(lex.JOINERS)
            self.many = joint in ("and", "as well as", "plus", "&", "and also")
            self.who = f" {joint} ".join(phrases)
            if self.rng.random() < 0.08 and self.listed:
                self.who, self.many = ", ".join(phrases), True
            kinds = [s for s, _ in self.actors]
            if kinds == ["person", "dog"] and not self.listed and "in " not in phrases[0] and self.rng.random() < 0.4:
                self.who, self.many = phrases[0] + self.pick((" walking ", " with ", " and ")) + phrases[1], False

    def colour(self, subject: str, colour: str) -> str:
        """The colour's word, or nothing where it is left out here."""
        if self.later or not self.said("colour"):
            return ""
        if self.pair and not self.said("companion_colour") and (subject, colour) == self.scene.companion:
            return ""
        return colour if self.rng.random() < 0.72 else self.pick(lex.SHADES[colour])

    def name(self, subject: str, colour: str, acts: bool) -> str:
        rng = self.rng
        noun = lex.NOUNS[subject][0] if rng.random() < 0.5 else self.pick(lex.NOUNS[subject])
        shade = self.colour(subject, colour)
        before, after = shade, ""
        how = rng.random()
        if shade and how < 0.24 and not (self.listed and how > 0.08) and "that {verbs}" not in self.pattern:
            before = ""
            if how < 0.05:
                after = f" in {shade}" if how < 0.03 else f", {shade},"
            elif how < 0.08:
                after = f", {shade},"
            elif subject == "person" and how < 0.2:
                wear = self.pick(lex.CLOTHES)
                after = " " + self.pick(lex.WORN).format(wear=f"{article(shade)} {wear}", shade=shade)
            elif how < 0.2:
                after = f" {self.pick(lex.OF_COLOUR)} {shade}"
                after += "," if "that" not in after and "which" not in after and rng.random() < 0.3 else ""
            elif subject in (*lex.WHEELED, "plane", "boat", "ball", "robot"):
                after = f" painted {shade}"
            else:
                before = shade + rng.choice(("-coloured", "-colored", " coloured"))
        adjective = (
            self.pick(lex.ADJECTIVES[subject])
            if rng.random() < 0.18
            else self.pick(lex.ANY_ADJECTIVES)
            if rng.random() < 0.08
            else ""
        )
        if set(adjective.split()) & set(noun.split()) or self["bare"]:
            adjective = ""
        if not after and not self.listed and rng.random() < 0.05:
            after = " " + self.pick(lex.TAILS[subject])
        self.refer.append(
            "motorcycle" if subject == "motorcycle" else noun if rng.random() < 0.7 else lex.NOUNS[subject][0]
        )
        if not self.pair and subject != "motorcycle" and not after and rng.random() < (0.12 if self.listed else 0.03):
            self.many, self.plural = True, True
            thing = f"{adjective} {before} {plural(noun)}"
            some = "" if self.listed or rng.random() < 0.7 else rng.choice(("some ", "the "))
            return " ".join((some + thing).split())
        self.plural = False
        thing = " ".join(f"{adjective} {before} {noun}".split()) + after
        if subject == "motorcycle":
            ridden = rng.random()
            if ridden < 0.25 and acts and not self.pair and not self.listed and not after.endswith(","):
                self.object, thing = " " + self.determined(thing), self.pick(lex.BEARDED)
            elif ridden < 0.7 and not after:
                thing = self.pick(lex.RIDERS).replace("{ax}", article(thing)).replace("{x}", thing)
        if self.listed:
            return thing
        return self.determined(thing)

    def determined(self, thing: str) -> str:
        draw = self.rng.random()
        if draw < 0.76:
            return article(thing)
        if draw < 0.9:
            return "the " + thing
        return f"{self.pick(lex.DETERMINERS)} {thing}"

    def slot_who(self) -> str:
        return self.who

    slot_thing = slot_who

    def slot_bare(self) -> str:
        """One or two words: the noun alone, or with its plain colour. Empty unless the pattern asks for it."""
        if "bare" not in slots(self.pattern):
            return ""
        subject, colour = self.actors[0]
        noun = lex.NOUNS[subject][0] if self.rng.random() < 0.5 else self.pick(lex.NOUNS[subject])
        self.many = False
        return f"{self.colour(subject, colour)} {noun}".strip()

    # what they do

    def choose_verb(self) -> str:
        if not self.verb:
            rng, subject = self.rng, self.main
            own = "" if self.pair and self.many else subject
            if self.object:
                self.verb = self.pick(("ride", "ride", "drive")) + self.object
            elif self.said("speed") and rng.random() < 0.2:
                self.hasty = True
                self.verb = self.pick((lex.QUICK_VERBS if self.scene.speed == "high" else lex.SLOW_VERBS)[own])
            else:
                self.verb = self.pick(lex.BOTH_VERBS) if own == "" else self.pick(lex.VERBS[own])
        return self.verb

    def slot_verbs(self) -> str:
        """The verb in any tense, or its participle alone."""
        base, third, participle, past, past_participle = conjugate(self.choose_verb())
        be = "are" if self.many else "is"
        draw = self.rng.random()
        if draw < 0.42:
            return base if self.many else third
        if draw < 0.68:
            return f"{be} {participle}"
        if draw < 0.8:
            return participle if "that {verbs}" not in self.pattern else f"{be} {participle}"
        if draw < 0.88:
            return past
        tense = self.pick(lex.TENSES_OF_MANY if self.many else lex.TENSES)
        return tense.format(base=base, participle=participle, past_participle=past_participle)

    def slot_ing(self) -> str:
        return conjugate(self.choose_verb())[2]

    def slot_seen(self) -> str:
        return self.pick(lex.SEEN_MANY if self.many else lex.SEEN)

    def slot_goesfirst(self) -> str:
        return self.pick(("go", "are", "were", "come") if self.many else ("goes", "is", "was", "comes", "goes"))

    def slot_theyre(self) -> str:
        return "they are" if self.pair else f"{self.pronoun()} {'are' if self.many else 'is'}"

    def pronoun(self) -> str:
        if self.pair:
            return self.pick(("they", "both", "they"))
        if self.many:
            return "they"
        noun = "the " + self.refer[0]
        return noun if self.main in ("person", "motorcycle") or self.rng.random() < 0.4 else "it"

    def clause(self, text: str) -> str:
        """A clause about the subject, its verbs agreeing with it."""
        it = self.pronoun()
        many = it in ("they", "both")
        verbs = {one: others if many else one for one, others in lex.AGREEMENT.items()}
        return text.format(it=it, its="their" if many or self.main == "person" else "its", **verbs)

    def slot_colours(self) -> str:
        """'The dog is red and the cat is blue', where the colours have not been said before."""
        said = []
        for (subject, colour), noun in zip(self.actors, self.refer):
            word = colour if self.rng.random() < 0.72 else self.pick(lex.SHADES[colour])
            noun = plural(noun) if self.plural else noun
            if subject == "person" and self.rng.random() < 0.5:
                said.append(f"the {noun} {'wear' if self.plural else 'wears'} {word}")
            else:
                said.append(f"the {noun} {'are' if self.plural else 'is'} {word}")
        if self.pair:
            return self.pick((" and ", " and ", ", ", " while ", ". ", ", and ", "; ")).join(said)
        if not self.plural and self.main not in ("person", "motorcycle") and "who" in self and self.rng.random() < 0.3:
            how = "painted" if self.main in lex.WHEELED else "all"
            return self.pick(lex.ITS_COLOUR).format(colour=self.actors[0][1], how=how)
        return said[0]

    # where, under what sky, which way, how fast

    def slot_place(self) -> str:
        words, place = lex.PLACE_WORDS, self.scene.place
        if not self.said("place"):
            return ""
        kinds = {subject for subject, _ in self.actors}
        if kinds <= set(lex.AERIAL) and self.rng.random() < 0.4:
            return self.pick(lex.ABOVE[place])
        if kinds == {"boat"} and place == "beach" and self.rng.random() < 0.6:
            return self.pick(lex.AFLOAT)
        return self.pick(words[place][:8] if self.rng.random() < 0.3 else words[place])

    def slot_placeclause(self) -> str:
        if not self.said("place"):
            return ""
        spot = self.pick([s for s in lex.SPOTS[self.scene.place] if s.startswith(("a ", "an ", "the "))])
        where = self.slot_place()
        return self.pick(lex.PLACE_CLAUSES).format(spot=spot, where=where)

    def slot_wayclause(self) -> str:
        return self.clause(self.pick(lex.DIRECTION_CLAUSES[self.scene.direction])) if self.said("direction") else ""

    def slot_speed(self) -> str:
        if not self.said("speed") or (self.hasty and self.rng.random() < 0.6):
            return ""
        return self.pick(lex.SPEED_WORDS[self.scene.speed])

    def slot_speedclause(self) -> str:
        if not self.said("speed") or (self.hasty and self.rng.random() < 0.6):
            return ""
        return self.clause(self.pick(lex.SPEED_CLAUSES[self.scene.speed]))

    # what means nothing

    def slot_ashot(self) -> str:
        return article(self.pick(lex.SHOTS))

    def slot_afilm(self) -> str:
        return article(self.pick(lex.FILM))


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
        if text.startswith(("Can ", "Could ", "Would ", "How ", "What ")) and text.endswith(".") and rng.random() < 0.7:
            text = text[:-1] + "?"
        if text[-1:] not in ".!?":
            text += "."
    elif rng.random() < 0.4:
        text = text[:1].upper() + text[1:]
    return text
