"""Toyland in words: what `caption` can say of a scene."""
from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import Scene

NOUNS = {
    "motorcycle": ["man with a beard riding a {c}motorcycle", "bearded man riding a {c}motorcycle",
                   "man with a beard on a {c}motorbike", "bearded biker on a {c}motorcycle",
                   "{c}motorcycle ridden by a man with a beard", "biker with a beard riding a {c}motorbike"],
    "car": ["{c}car", "small {c}car", "{c}automobile", "shiny {c}car"],
    "bus": ["{c}bus", "big {c}bus", "long {c}bus", "{c}city bus"],
    "dog": ["{c}dog", "happy {c}dog", "{c}puppy", "friendly {c}dog"],
    "cat": ["{c}cat", "curious {c}cat", "{c}kitten", "little {c}cat"],
    "bird": ["{c}bird", "little {c}bird", "{c}songbird", "{c}bird with open wings"],
    "balloon": ["{c}balloon", "{c}hot air balloon", "big {c}balloon", "{c}hot-air balloon"],
    "plane": ["{c}plane", "{c}airplane", "small {c}plane", "{c}aeroplane", "{c}propeller plane"],
    "ball": ["{c}ball", "bouncing {c}ball", "{c}striped ball", "round {c}ball"],
    "robot": ["{c}robot", "friendly {c}robot", "{c}toy robot", "little {c}robot"],
}
VERBS = {
    "motorcycle": ["going", "travelling", "driving", "moving"], "car": ["driving", "rolling", "going", "moving"],
    "bus": ["driving", "rolling", "going", "moving"], "dog": ["running", "trotting", "walking", "moving"],
    "cat": ["running", "walking", "strolling", "moving"], "bird": ["flying", "flapping", "gliding", "moving"],
    "balloon": ["floating", "drifting", "flying", "moving"], "plane": ["flying", "cruising", "gliding", "moving"],
    "ball": ["bouncing", "rolling", "hopping", "moving"], "robot": ["walking", "marching", "striding", "moving"],
}
AERIAL = ("bird", "balloon", "plane")
PLACE_WORDS = {
    "street": ["on the street", "down the street", "in the city", "on a city street", "in town", "on the road"],
    "beach": ["on the beach", "by the sea", "along the shore", "at the seaside", "on the sand", "by the ocean"],
    "meadow": ["in a meadow", "across the meadow", "in the countryside", "on the grass", "in a grassy field",
               "among trees and flowers"],
    "mountains": ["in the mountains", "past the mountains", "below high mountain peaks", "in the alps",
                  "in front of mountains", "through a mountain valley"],
}
ABOVE = {"street": "over the street", "beach": "over the beach", "meadow": "over the meadow",
         "mountains": "over the mountains"}
SKY_LEADS = {
    "sunny": ["sunny day", "a bright sunny day", "clear blue sky", "sunshine", "bright daylight"],
    "sunset": ["sunset", "a golden sunset", "evening light", "dusk", "a glowing evening sky"],
    "night": ["starry night", "a night full of stars", "night", "moon and stars", "a dark night"],
    "snow": ["snowy day", "snowfall", "a winter day", "falling snow", "snow"],
}
SKY_WORDS = {
    "sunny": ["on a sunny day", "in the sunshine", "under a clear blue sky", "in bright sunlight", "at noon"],
    "sunset": ["at sunset", "at dusk", "in the evening light", "in the evening", "under a glowing sunset sky"],
    "night": ["at night", "under the stars", "on a starry night", "in the moonlight", "at midnight"],
    "snow": ["in the snow", "while snow falls", "on a snowy day", "in falling snow", "in winter"],
}
SPEED_TAGS = {"slow": ["slow motion", "slow movement", "low speed", "slow"],
              "high": ["high motion", "fast motion", "high speed", "fast"]}
SPEED_WORDS = {"slow": ["slowly", "in slow motion", "at low speed", "gently", "calmly", "very slowly"],
               "high": ["fast", "quickly", "at high speed", "at full speed", "rapidly", "very fast"]}
DIRECTION_WORDS = {d: [f"to the {d}", f"from {o} to {d}", f"towards the {d}", f"heading {d}", f"{d}wards"]
                   for d, o in (("left", "right"), ("right", "left"))}
MOODS = ["freedom and adventure", "peace and quiet", "joy and fun", "cinematic", "a feeling of freedom",
         "a cheerful cartoon", "beautiful scenery", "a lovely view", "dreamy atmosphere", "happy mood",
         "an epic journey", "good mood", "cartoon style", "wide shot", "colourful", "a calm scene"]
TEMPLATES = (  # each part may come out empty: `_tidy` mends the punctuation
    "{Lead}, {mood}, {tag}. {Who} {place} {way}.",
    "{Lead}, {mood}, {tag}. {Who} {place}, {verb} {way}.",
    "{Who} {verb} {way} {place} {sky}, {tag}.",
    "{Who} {verb} {speed} {way} {place} {sky}.",
    "{Tag} shot of {who} {verb} {way} {place}, {lead}.",
    "{Place}, {who} {verb} {way} {speed} {sky}.",
    "{Sky}, {who} {verb} {way} {place}, {tag}, {mood}.",
    "{Lead}. {Tag}. {Who} {verb} {place} {way}. {Mood}.",
    "{who}, {place}, {lead}, {way}, {tag}",
    "{tag}, {lead}, {who} {verb} {place}, {way}, {mood}",
    "{Mood}: {who} {verb} {way} {speed} {place} {sky}.",
    "A video of {who} {verb} {way} {place} {sky}, {speed}.",
)


def _article(noun: str, rng: random.Random) -> str:
    if rng.random() < .12:
        return "the " + noun
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _tidy(text: str) -> str:
    text = " ".join(text.split())
    for wrong, right in ((" ,", ","), (" .", "."), (",,", ","), (",.", "."), ("..", "."), (" :", ":")):
        while wrong in text:
            text = text.replace(wrong, right)
    return text.strip(" ,:")


def caption(scene: Scene, seed: int | None = None, omit: tuple[str, ...] = ()) -> str:
    """The scene in words; another `seed` gives other wording and order (default: the scene's own seed).

    `omit` leaves attributes unsaid: any of "colour", "place", "sky", "direction", "speed".
    """
    rng = random.Random(scene.seed if seed is None else seed)

    def say(attribute, choices):
        chosen = rng.choice(choices)  # drawn even when unsaid, so that omitting keeps the other words
        return "" if attribute in omit else chosen

    nouns = [rng.choice(NOUNS[s]).format(c="" if "colour" in omit else c + " ") for s, c in scene.actors]
    names = [_article(noun, rng) for noun in nouns]
    rng.shuffle(names)
    who = rng.choice((" and ", " and ", " next to ", " together with ")).join(names)
    verb = rng.choice(VERBS[scene.subject] if scene.companion is None else ["moving", "going", "travelling"])
    flies = all(s in AERIAL for s, _ in scene.actors)
    place = say("place", PLACE_WORDS[scene.place] + [ABOVE[scene.place]] * (2 if flies else 0))
    lead, sky = say("sky", SKY_LEADS[scene.sky]), say("sky", SKY_WORDS[scene.sky])
    tag, speed = say("speed", SPEED_TAGS[scene.speed]), say("speed", SPEED_WORDS[scene.speed])
    way, mood = say("direction", DIRECTION_WORDS[scene.direction]), rng.choice(MOODS)
    sentence = ("is " if scene.companion is None else "are ") if rng.random() < .25 else ""
    verb = sentence + ("" if way.startswith("heading") else verb)
    parts = dict(who=who, verb=verb, place=place, lead=lead, sky=sky, tag=tag, speed=speed, way=way, mood=mood)
    parts |= {key.capitalize(): text[:1].upper() + text[1:] for key, text in parts.items()}
    return _tidy(rng.choice(TEMPLATES).format(**parts))
