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

from .captions import caption as caption
from .picture import draw
from .reading import Reading as Reading
from .reading import read_prompt as read_prompt
from .reading import words as words

SUBJECTS = (
    "motorcycle",
    "car",
    "bus",
    "dog",
    "cat",
    "bird",
    "balloon",
    "plane",
    "ball",
    "robot",
    "person",
    "horse",
    "truck",
    "boat",
)
COLOURS = ("red", "yellow", "green", "blue", "purple", "white")
PLACES = ("street", "beach", "meadow", "mountains")
SKIES = ("sunny", "sunset", "night", "snow", "rain")
DIRECTIONS = ("left", "right")
SPEEDS = ("slow", "high")
ONLY_AT = {"boat": "beach"}  #: subjects that one place alone has: a boat needs the sea
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
        allowed = dict(subject=SUBJECTS, colour=COLOURS, place=PLACES, sky=SKIES, direction=DIRECTIONS, speed=SPEEDS)
        for field, values in allowed.items():
            if getattr(self, field) not in values:
                got = getattr(self, field)
                raise ValueError(f"{field}={got!r} is not in Toyland; choose one of {', '.join(values)}")
        if self.companion is not None and (self.companion[0] not in SUBJECTS or self.companion[1] not in COLOURS):
            raise ValueError(f"companion={self.companion!r} is not a (subject, colour) of Toyland, like ('dog', 'red')")
        for subject, _ in self.actors:
            if (needed := ONLY_AT.get(subject, self.place)) != self.place:
                raise ValueError(
                    f"place={self.place!r} is not where a {subject} of Toyland can be; "
                    f"choose {needed}, or another subject"
                )

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

    A scene with a boat is at the beach. `unseen=False` draws only what training may see, `True` only held-out scenes,
    None both.
    """
    rng = random.Random(rng) if isinstance(rng, int) else rng
    while True:
        subject, colour = rng.choice(SUBJECTS), rng.choice(COLOURS)
        companion = None
        if rng.random() < pair:
            companion = (
                rng.choice([s for s in SUBJECTS if s != subject]),
                rng.choice([c for c in COLOURS if c != colour]),
            )
        place = ONLY_AT.get(subject) or (companion and ONLY_AT.get(companion[0])) or rng.choice(PLACES)
        scene = Scene(
            subject,
            colour,
            place,
            rng.choice(SKIES),
            rng.choice(DIRECTIONS),
            rng.choice(SPEEDS),
            companion,
            rng.getrandbits(31),
        )
        if unseen is None or held_out(scene) == unseen:
            return scene


# ---- pictures --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """What a scene really shows. masks: (S, T, H, W) bool, the visible pixels of each subject, in the order of
    `scene.actors`; flow: (T, H, W, 2) float32, motion (x, y) of each pixel in pixels a frame (subjects move as
    rigid bodies here: turning wheels and swinging legs are left out)."""

    masks: np.ndarray
    flow: np.ndarray


def render_batch(
    scenes: list[Scene], height: int = 112, width: int = 192, num_frames: int = 33, device: str | torch.device = "cpu"
) -> torch.Tensor:
    """Draw scenes: (B, 3, T, H, W) float32 in [0, 1], 16 frames a second, on `device`."""
    return draw(scenes, height, width, num_frames, FPS, device).image


def render(scene: Scene, height: int = 112, width: int = 192, num_frames: int = 33) -> np.ndarray:
    """Draw one scene: (T, H, W, 3) uint8, 16 frames a second. Any size; the shapes stay sharp when it grows."""
    video = render_batch([scene], height, width, num_frames)[0]
    return (video.permute(1, 2, 3, 0) * 255).round().to(torch.uint8).numpy()


def scenery(
    place: str, sky: str, seed: int = 0, height: int = 112, width: int = 192, num_frames: int = 33
) -> np.ndarray:
    """Draw a place and its sky with nobody in it: (T, H, W, 3) uint8, to draw a subject of one's own on."""
    scene = Scene("ball", "red", place, sky, "right", "slow", seed=seed)
    video = draw([scene], height, width, num_frames, FPS, "cpu", actors=False).image[0]
    return (video.permute(1, 2, 3, 0) * 255).round().to(torch.uint8).numpy()


def truth(scene: Scene, height: int = 112, width: int = 192, num_frames: int = 33) -> Truth:
    """The masks and motion behind `render` at the same size."""
    canvas = draw([scene], height, width, num_frames, FPS, "cpu", with_truth=True)
    assert canvas.owner is not None and canvas.flow is not None
    masks = [(canvas.owner[0] == i + 1).numpy() for i in range(len(scene.actors))]
    return Truth(np.stack(masks), canvas.flow[0].permute(1, 2, 3, 0).numpy())
