"""The whole picture: scenery once, then what moves, frame by frame."""

from __future__ import annotations

import numpy as np
import torch

from .actors import AERIAL, AFLOAT, GROUND, act
from .canvas import Canvas
from .scenery import PLACES, SKIES, clouds, col, drops, flakes, palm, puddles

RGB = {
    "red": (0.88, 0.15, 0.15),
    "yellow": (0.98, 0.82, 0.12),
    "green": (0.13, 0.62, 0.28),
    "blue": (0.14, 0.36, 0.90),
    "purple": (0.58, 0.23, 0.75),
    "white": (0.96, 0.96, 0.97),
}
LIGHT = {
    "sunny": (1.0, 1.0, 1.0),
    "sunset": (1.0, 0.84, 0.74),
    "night": (0.50, 0.55, 0.74),
    "snow": (0.93, 0.95, 1.0),
    "rain": (0.74, 0.79, 0.86),
}
CLOUDS = {
    "sunny": (0.98, 0.98, 1.0),
    "sunset": (0.98, 0.98, 1.0),
    "rain": (0.70, 0.73, 0.78),
}  # colour, where there are any
FALLING = {"snow": flakes, "rain": drops}


def groups(words, device):
    """(word, index tensor) for each word that occurs."""
    for word in dict.fromkeys(words):
        yield word, torch.tensor([i for i, w in enumerate(words) if w == word], device=device)


def draw(scenes, height, width, num_frames, fps, device, with_truth=False, actors=True) -> Canvas:
    """Draw `scenes` (toyland.Scene), with their `actors` or without, into a Canvas with image (B, 3, T, H, W)."""
    aspect = width / height
    numbers = np.stack([np.random.default_rng(s.seed).random(52) for s in scenes]).astype(np.float32)
    scenery, own = torch.from_numpy(numbers).to(device).split([32, 20], 1)
    still = _background(scenes, scenery, height, width, device)
    canvas = Canvas(still.image.repeat(1, 1, num_frames, 1, 1), with_truth)
    canvas.light = still.light
    seconds = ((torch.arange(num_frames, device=device) - (num_frames - 1) / 2) / fps).view(1, -1, 1, 1)
    skies = dict(groups([s.sky for s in scenes], device))
    for sky, index in skies.items():
        if sky in CLOUDS:
            with canvas.part(index) as part:
                clouds(part, scenery[index], aspect, seconds, CLOUDS[sky])
    if actors:
        _actors(canvas, scenes, scenery, own, aspect, seconds, fps)
    for sky in FALLING.keys() & skies.keys():
        with canvas.part(skies[sky]) as part:
            FALLING[sky](part, scenery[skies[sky]], seconds)
    canvas.image.clamp_(0, 1)
    return canvas


def _background(scenes, r, height, width, device) -> Canvas:
    """What never moves, as a single frame."""
    still = Canvas(torch.zeros(len(scenes), 3, 1, height, width, device=device))
    still.light = torch.tensor([LIGHT[s.sky] for s in scenes], device=device)
    for kinds, field in ((SKIES, "sky"), (PLACES, "place")):
        for word, index in groups([getattr(s, field) for s in scenes], device):
            with still.part(index) as part:
                kinds[word](part, r[index], width / height)
    for sky, index in groups([s.sky for s in scenes], device):
        if sky == "snow":  # it has settled
            with still.part(index) as part:
                part.paint(0.655 - part.y, (0.95, 0.97, 1.0), 0.55, soft=0.01)
        elif sky == "rain":
            with still.part(index) as part:
                puddles(part, r[index], width / height)
    return still


def _actors(canvas, scenes, scenery, own, aspect, seconds, fps):
    """What is afloat, which is farthest away; then the companions, and the main subjects in front of them. A clip's
    middle is the middle of their way."""
    device = own.device
    facing = torch.tensor([1.0 if s.direction == "right" else -1.0 for s in scenes], device=device).view(-1, 1, 1, 1)
    fast = torch.tensor([s.speed == "high" for s in scenes], device=device).view(-1, 1, 1, 1)
    paired = torch.tensor([s.companion is not None for s in scenes], device=device).view(-1, 1, 1, 1)
    ground = torch.tensor([GROUND[s.place] for s in scenes], device=device).view(-1, 1, 1, 1)
    # Frame widths a second, so that a clip shows as much of the way at any shape of frame.
    speed = aspect * torch.where(fast, 0.28 + 0.06 * col(own, 0), 0.06 + 0.04 * col(own, 0))
    side = torch.where(col(own, 1) > 0.5, 1.0, -1.0)

    def act_all(number, afloat):
        names = [s.actors[number - 1][0] if len(s.actors) >= number else None for s in scenes]
        colours = torch.tensor(
            [RGB[s.actors[number - 1][1]] if name else (0.0, 0.0, 0.0) for s, name in zip(scenes, names)], device=device
        )
        apart = side * (1.5 - number) * (0.36 + 0.08 * col(own, 2))
        place = 0.5 + torch.where(paired, apart, 0.14 * (col(own, 2) - 0.5))
        base = 4 + 4 * number
        for name, index in groups(names, device):
            if name is None or (name in AFLOAT) != afloat:
                continue
            mine = own[index]
            scale = (0.90 + 0.25 * col(mine, base)) * torch.where(paired[index], 0.82, 1.0)
            cx = aspect * place[index] + facing[index] * speed[index] * seconds
            if name in AERIAL:
                cy = AERIAL[name] + 0.10 * (col(mine, base + 1) - 0.5)
            elif afloat:
                cy = AFLOAT[name] + 0.03 * (col(mine, base + 1) - 0.5)
            else:
                cy = ground[index] + 0.05 * (col(mine, base + 1) - 0.5) + 0.05 * (number == 1) * paired[index]
            phase = 6.28 * col(mine, base + 2)
            with canvas.part(index) as part:
                act(part, name, colours[index], number, cx, cy, speed[index], facing[index], phase, scale, fps)
                if afloat:  # the palm stands before it
                    part.motion = torch.zeros(2, 1, 1, 1, device=device)
                    palm(part, scenery[index], aspect, lowest=0.655)

    act_all(2, afloat=True)
    act_all(1, afloat=True)
    act_all(2, afloat=False)
    act_all(1, afloat=False)
