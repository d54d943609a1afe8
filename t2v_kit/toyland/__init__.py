"""Toyland: the cartoon world that pocket was trained on.

A `Scene` has two faces: `caption(scene)` says it in words, `render(scene)` draws it as a video at any
resolution. Because the world is drawn, its truth is known: `truth(scene)` gives the mask of each subject and
the motion of each pixel. Everything follows from the scene's fields and its seed.
"""
from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

import numpy as np
import torch

from .picture import draw

SUBJECTS = ("motorcycle", "car", "bus", "dog", "cat", "bird", "balloon", "plane", "ball", "robot")
COLOURS = ("red", "yellow", "green", "blue", "purple", "white")
PLACES = ("street", "beach", "meadow", "mountains")
SKIES = ("sunny", "sunset", "night", "snow")
DIRECTIONS = ("left", "right")
SPEEDS = ("slow", "high")
FPS = 16  #: frames a second at which Toyland's speeds are meant


@dataclass(frozen=True)
class Scene:
    """What happens in one clip. `companion` is a second (subject, colour) or None.

    `seed` decides everything the words leave open: size, position, phase, scenery.
    Raises ValueError when a word is not in the world.
    """

    subject: str
    colour: str
    place: str
    sky: str
    direction: str
    speed: str
    companion: tuple[str, str] | None = None
    seed: int = 0

    def __post_init__(self):
        allowed = dict(subject=SUBJECTS, colour=COLOURS, place=PLACES, sky=SKIES,
                       direction=DIRECTIONS, speed=SPEEDS)
        for field, words in allowed.items():
            if getattr(self, field) not in words:
                got = getattr(self, field)
                raise ValueError(f"{field}={got!r} is not in Toyland; choose one of {', '.join(words)}")
        if self.companion is not None and (self.companion[0] not in SUBJECTS or self.companion[1] not in COLOURS):
            raise ValueError(f"companion={self.companion!r} is not a (subject, colour) of Toyland, like ('dog', 'red')")

    @property
    def actors(self) -> tuple[tuple[str, str], ...]:
        """(subject, colour) of each subject, the main one first."""
        return ((self.subject, self.colour),) + ((self.companion,) if self.companion else ())


def held_out(scene: Scene) -> bool:
    """Whether training never sees this scene: a fixed tenth of subject x colour x place x sky x direction.

    The rule is a checksum of the words, so it needs no list. A scene of two is held out if either subject is.
    """
    where = f"{scene.place} {scene.sky} {scene.direction}"
    return any(zlib.crc32(f"{subject} {colour} {where}".encode()) % 10 == 0 for subject, colour in scene.actors)


def random_scene(rng: random.Random | int, pair: float = 0.25, unseen: bool | None = None) -> Scene:
    """A scene drawn evenly from the world; `pair` is the share of scenes with two subjects.

    `unseen=False` draws only what training may see, `True` only held-out scenes, None both.
    """
    rng = random.Random(rng) if isinstance(rng, int) else rng
    while True:
        subject, colour = rng.choice(SUBJECTS), rng.choice(COLOURS)
        companion = None
        if rng.random() < pair:
            companion = (rng.choice([s for s in SUBJECTS if s != subject]),
                         rng.choice([c for c in COLOURS if c != colour]))
        scene = Scene(subject, colour, rng.choice(PLACES), rng.choice(SKIES), rng.choice(DIRECTIONS),
                      rng.choice(SPEEDS), companion, rng.getrandbits(31))
        if unseen is None or held_out(scene) == unseen:
            return scene


# ---- words -----------------------------------------------------------------------------------------------

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


# ---- pictures --------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Truth:
    """What a scene really shows. masks: (S, T, H, W) bool, the visible pixels of each subject, in the order of
    `scene.actors`; flow: (T, H, W, 2) float32, motion (x, y) of each pixel in pixels a frame (subjects move as
    rigid bodies here: turning wheels and swinging legs are left out)."""

    masks: np.ndarray
    flow: np.ndarray


def render_batch(scenes: list[Scene], height: int = 112, width: int = 192, num_frames: int = 33,
                 device: str | torch.device = "cpu") -> torch.Tensor:
    """Draw scenes: (B, 3, T, H, W) float32 in [0, 1], 16 frames a second, on `device`."""
    return draw(scenes, height, width, num_frames, FPS, device).image


def render(scene: Scene, height: int = 112, width: int = 192, num_frames: int = 33) -> np.ndarray:
    """Draw one scene: (T, H, W, 3) uint8, 16 frames a second. Any size; the shapes stay sharp when it grows."""
    video = render_batch([scene], height, width, num_frames)[0]
    return (video.permute(1, 2, 3, 0) * 255).round().to(torch.uint8).numpy()


def truth(scene: Scene, height: int = 112, width: int = 192, num_frames: int = 33) -> Truth:
    """The masks and motion behind `render` at the same size."""
    canvas = draw([scene], height, width, num_frames, FPS, "cpu", with_truth=True)
    masks = [(canvas.owner[0] == i + 1).numpy() for i in range(len(scene.actors))]
    return Truth(np.stack(masks), canvas.flow[0].permute(1, 2, 3, 0).numpy())
