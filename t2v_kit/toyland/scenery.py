"""Where it happens: skies, places, clouds, snow and rain.

Skies and places take (canvas, r, aspect): r (N, 32) are the scene's own random numbers in [0, 1), aspect is
width / height.
"""

from __future__ import annotations

import math
from contextlib import contextmanager

import torch

from .canvas import box, capsule, circle, ellipse


def col(r, i):
    return r[:, i].view(-1, 1, 1, 1)


def shade_sky(canvas, top, bottom):
    blend = (canvas.y / 0.66).clamp(0, 1).unsqueeze(1)
    top, bottom = (torch.tensor(c, device=canvas.image.device).view(1, 3, 1, 1, 1) for c in (top, bottom))
    canvas.image += top + (bottom - top) * blend


def sunny(canvas, r, aspect):
    shade_sky(canvas, (0.26, 0.58, 0.94), (0.74, 0.90, 0.99))
    x, y = canvas.x - aspect * (0.12 + 0.76 * col(r, 0)), canvas.y - 0.15 - 0.06 * col(r, 1)
    canvas.paint(circle(x, y, 0.11), (1.0, 0.97, 0.75), 0.5, lit=0, soft=0.08)
    canvas.paint(circle(x, y, 0.075), (1.0, 0.92, 0.40), lit=0)


def sunset(canvas, r, aspect):
    shade_sky(canvas, (0.46, 0.25, 0.52), (1.0, 0.62, 0.30))
    x, y = canvas.x - aspect * (0.2 + 0.6 * col(r, 0)), canvas.y - 0.44
    canvas.paint(circle(x, y, 0.18), (1.0, 0.80, 0.40), 0.5, lit=0, soft=0.10)
    canvas.paint(circle(x, y, 0.13), (1.0, 0.88, 0.50), lit=0)


def night(canvas, r, aspect):
    shade_sky(canvas, (0.04, 0.06, 0.20), (0.16, 0.20, 0.42))
    for i in range(14):
        x, y = canvas.x - aspect * ((i + 0.9 * r[:, i]) / 14).view(-1, 1, 1, 1), canvas.y - 0.02 - 0.40 * col(r, 31 - i)
        canvas.paint(circle(x, y, 0.010), (0.95, 0.95, 0.80), lit=0, soft=0.008)
    x, y = canvas.x - aspect * (0.15 + 0.7 * col(r, 0)), canvas.y - 0.16
    canvas.paint(torch.maximum(circle(x, y, 0.075), -circle(x - 0.04, y + 0.02, 0.065)), (0.98, 0.96, 0.82), lit=0)


def snow(canvas, r, aspect):
    shade_sky(canvas, (0.62, 0.68, 0.76), (0.84, 0.88, 0.92))


def rain(canvas, r, aspect):
    shade_sky(canvas, (0.34, 0.39, 0.47), (0.60, 0.65, 0.70))


def street(canvas, r, aspect):
    wide = 0.30
    number = ((canvas.x + wide * col(r, 2)) / wide).floor()
    local = canvas.x + wide * col(r, 2) - (number + 0.5) * wide
    pick = (number.long() % 8).view(number.shape[0], -1)
    tall = 0.26 + 0.22 * torch.gather(r[:, 4:12], 1, pick).view(number.shape)
    tone = torch.gather(r[:, 12:20], 1, pick).view(number.shape)
    top = 0.66 - tall
    wall = box(local, canvas.y - 0.66, wide * 0.47, tall)
    canvas.paint(wall, (0.80, 0.62, 0.50))
    canvas.paint(wall, (0.60, 0.66, 0.76), (tone > 0.5).float())
    row = torch.remainder(canvas.y - top - 0.02, 0.10) - 0.05
    pane = box(local.abs() - wide * 0.22, row, 0.032, 0.026)
    inside = torch.maximum(pane, torch.maximum(top + 0.02 - canvas.y, canvas.y - 0.62))
    canvas.paint(inside, (0.88, 0.87, 0.72), lit=0.3)
    canvas.paint(0.66 - canvas.y, (0.72, 0.71, 0.70))
    canvas.paint(0.71 - canvas.y, (0.36, 0.37, 0.41))
    dash = torch.remainder(canvas.x + 0.4 * col(r, 3), 0.40) - 0.20
    canvas.paint(box(dash, canvas.y - 0.93, 0.11, 0.012), (0.93, 0.92, 0.85))


def beach(canvas, r, aspect):
    canvas.paint(0.50 - canvas.y, (0.14, 0.50, 0.74))
    canvas.paint(0.58 - canvas.y, (0.22, 0.64, 0.80))
    shore = 0.67 + 0.012 * torch.sin(canvas.x * 5 + 6.28 * col(r, 2))
    canvas.paint(shore - canvas.y, (0.97, 0.97, 0.94))
    canvas.paint(shore + 0.022 - canvas.y, (0.94, 0.83, 0.60))
    palm(canvas, r, aspect)


def palm(canvas, r, aspect, lowest=1.0):
    """Near one side, for what happens is in the middle. `lowest`: the height down to which it is drawn."""
    x = canvas.x - aspect * (0.05 + 0.36 * col(r, 3) + 0.54 * (col(r, 3) > 0.5))
    lean, cut = 0.10 * (col(r, 4) - 0.5), canvas.y - lowest
    canvas.paint(torch.maximum(capsule(x, canvas.y, 0.0, 0.78, lean, 0.36, 0.018), cut), (0.56, 0.38, 0.22))
    for turn in (-2.7, -2.0, -1.1, -0.4, 0.3):
        u, v = x - lean, canvas.y - 0.36
        c, s = math.cos(turn), math.sin(turn)
        canvas.paint(torch.maximum(ellipse(u * c + v * s - 0.09, v * c - u * s, 0.10, 0.026), cut), (0.16, 0.52, 0.26))


def meadow(canvas, r, aspect):
    hill = 0.56 + 0.05 * torch.sin(canvas.x * 3.1 + 6.28 * col(r, 2))
    canvas.paint(hill - canvas.y, (0.44, 0.70, 0.36))
    canvas.paint(0.63 + 0.03 * torch.sin(canvas.x * 2.3 + 6.28 * col(r, 3)) - canvas.y, (0.56, 0.80, 0.38))
    for i in range(3):
        x, tall = canvas.x - aspect * (i + 0.15 + 0.7 * col(r, 5 + i)) / 3, 0.16 + 0.07 * col(r, 8 + i)
        canvas.paint(box(x, canvas.y - 0.60, 0.016, 0.07), (0.46, 0.31, 0.20))
        canvas.paint(ellipse(x, canvas.y - 0.62 + tall, 0.09, 0.11), (0.18, 0.50, 0.24))
    for i in range(8):
        x, y = canvas.x - aspect * (i + col(r, 11 + i)) / 8, canvas.y - 0.74 - 0.24 * col(r, 19 + i)
        canvas.paint(circle(x, y, 0.013), ((1.0, 0.60, 0.66), (1.0, 0.93, 0.55))[i % 2])


def mountains(canvas, r, aspect):
    for i, shade in ((0, 0.88), (2, 0.94), (1, 1.0)):
        x, tall = canvas.x - aspect * (i + 0.2 + 0.6 * col(r, 4 + i)) / 3, 0.32 + 0.14 * col(r, 7 + i)
        flank = (x.abs() * 0.75 - (canvas.y - 0.66 + tall)) / 1.25
        canvas.paint(flank, (0.50 * shade, 0.52 * shade, 0.60 * shade))
        cap = torch.maximum(flank, canvas.y - 0.66 + tall - 0.10 - 0.02 * torch.cos(x * 60))
        canvas.paint(cap, (0.95, 0.96, 0.98))
    canvas.paint(0.65 - canvas.y, (0.50, 0.60, 0.42))
    canvas.paint(0.76 - canvas.y, (0.62, 0.62, 0.48))
    for i in range(4):
        x = canvas.x - aspect * (i + 0.1 + 0.8 * col(r, 12 + i)) / 4
        for step in (0.0, 0.055):
            y = canvas.y - 0.57 + step
            canvas.paint((x.abs() * 1.8 - y - 0.05) / 2.06 + torch.relu(y - 0.07) * 4, (0.13, 0.37, 0.27))


SKIES = dict(sunny=sunny, sunset=sunset, night=night, snow=snow, rain=rain)
PLACES = dict(street=street, beach=beach, meadow=meadow, mountains=mountains)


def puddles(canvas, r, aspect):
    """Wet ground: darker, and the sky in a few puddles."""
    canvas.paint(0.70 - canvas.y, (0.30, 0.35, 0.42), 0.22, lit=0, soft=0.02)
    for i in range(4):
        x, y = canvas.x - aspect * (i + 0.15 + 0.7 * col(r, 16 + i)) / 4, canvas.y - 0.76 - 0.18 * col(r, 26 + i)
        canvas.paint(ellipse(x, y, 0.10 + 0.05 * col(r, 11 + i), 0.016), (0.66, 0.72, 0.78), 0.8, lit=0, soft=0.004)


def clouds(canvas, r, aspect, seconds, colour=(0.98, 0.98, 1.0)):
    for i in range(2):
        drift = 0.03 * (col(r, 20 + i) - 0.5)
        x = canvas.x - aspect * (0.15 + 0.7 * ((i + col(r, 22 + i)) / 2)) - drift * seconds
        y = canvas.y - 0.08 - 0.16 * col(r, 24 + i)
        puff = torch.minimum(
            torch.minimum(circle(x, y, 0.062), circle(x - 0.08, y + 0.012, 0.046)), circle(x + 0.08, y + 0.012, 0.046)
        )
        if canvas.flow is not None:
            canvas.motion = torch.cat([drift, 0 * drift], 1).unsqueeze(-1) / canvas.pixel / 16
        canvas.paint(torch.maximum(puff, y - 0.035), colour, 0.92, soft=0.012)
    canvas.motion = None


def falling(canvas, r, seconds, wide, tall, fall, slant=0.0):
    """A grid of cells that falls `fall` a second. Where each pixel is, in world units, from its cell's own place, and
    a number in [0, 1) for the cell."""
    x, y = (canvas.x + slant * canvas.y) / wide, (canvas.y - fall * seconds + 8 * tall) / tall
    column, row = x.floor(), y.floor()
    pick = (column * 5 + row * 3).long() % 32
    pick = pick.expand(len(r), *pick.shape[1:])  # each clip has numbers of its own
    jitter = torch.gather(r.view(-1, 1, 32).expand(-1, pick.shape[1], -1), 2, pick.flatten(2)).view(pick.shape)
    px, py = column + 0.2 + 0.6 * jitter, row + 0.2 + 0.6 * torch.remainder(jitter * 7.3, 1.0)
    return (x - px) * wide, (y - py) * tall, jitter


@contextmanager
def in_front(canvas, motion):
    """What is painted moves by `motion` world units a frame, (x, y); what it falls in front of stays that subject's."""
    if canvas.flow is None:
        yield
        return
    canvas.motion = torch.tensor(motion, device=canvas.flow.device).view(2, 1, 1, 1) / canvas.pixel
    kept = canvas.owner.clone()
    yield
    canvas.owner, canvas.motion = kept, None


def flakes(canvas, r, seconds):
    """Snow: one flake in each cell of a falling grid, at a place of its own in the cell."""
    x, y, own = falling(canvas, r, seconds, 0.28, 0.28, 0.15)
    with in_front(canvas, (0.0, 0.15 / 16)):
        canvas.paint(circle(x, y, 0.013 + 0.006 * own), (1.0, 1.0, 1.0), 0.9, lit=0, soft=0.006)


def drops(canvas, r, seconds):
    """Rain: slanting streaks, which fall four times as fast as snow."""
    x, y, _ = falling(canvas, r, seconds, 0.22, 0.40, 0.60, slant=0.18)
    with in_front(canvas, (-0.18 * 0.60 / 16, 0.60 / 16)):
        canvas.paint(box(x, y, 0.006, 0.038, 0.005), (0.84, 0.89, 0.95), 0.75, lit=0, soft=0.003)
