"""Who appears in Toyland.

Actors are drawn in their own frame: u points where they face, v up, their feet (or middle, for what flies) at the
origin, about one unit tall.
"""

from __future__ import annotations

import math

import torch

from .canvas import box, capsule, circle, ellipse, triangle

DARK, GREY, PALE, SKIN, GLASS = (
    (0.13, 0.13, 0.16),
    (0.55, 0.56, 0.60),
    (0.82, 0.83, 0.86),
    (0.95, 0.77, 0.60),
    (0.76, 0.89, 0.96),
)
#: world heights a unit of the actor's frame
SIZE = {
    "motorcycle": 0.44,
    "car": 0.48,
    "bus": 0.42,
    "dog": 0.40,
    "cat": 0.40,
    "bird": 0.42,
    "balloon": 0.42,
    "plane": 0.42,
    "ball": 0.46,
    "robot": 0.38,
    "person": 0.38,
    "horse": 0.44,
    "truck": 0.44,
    "boat": 0.36,
}


class Pen:
    """Paints in an actor's own frame: position, size and facing taken care of."""

    def __init__(self, canvas, cx, cy, size, facing):
        self.canvas, self.size = canvas, size
        self.u, self.v = (canvas.x - cx) * facing / size, (cy - canvas.y) / size

    def __call__(self, shape, colour, *numbers, at=(0.0, 0.0), turn=None, opacity=1.0):
        u, v = self.u - at[0], self.v - at[1]
        if turn is not None:
            c, s = torch.cos(turn), torch.sin(turn)
            u, v = u * c + v * s, v * c - u * s
        self.canvas.paint(shape(u, v, *numbers) * self.size, colour, opacity, lit=0.45)


# Each takes (pen, colour (N, 3), phase (N, T, 1, 1) in radians, which grows as the actor moves).


def wheel(pen, u, v, r, phase):
    pen(circle, DARK, r, at=(u, v))
    pen(circle, PALE, r * 0.58, at=(u, v))
    pen(box, GREY, r * 0.58, r * 0.13, at=(u, v), turn=-phase)


def legs(pen, colour, phase, places, hip, reach, r):
    for i, place in enumerate(places):
        swing = reach * torch.sin(phase + i * math.pi * (1 if len(places) == 2 else 0.5 + (i > 1)))
        pen(capsule, colour, place, hip, place + swing, r, r)


def motorcycle(pen, colour, phase):
    wheel(pen, -0.42, 0.21, 0.21, phase)
    wheel(pen, 0.42, 0.21, 0.21, phase)
    pen(capsule, GREY, -0.45, 0.24, 0.05, 0.24, 0.035)  # exhaust
    pen(capsule, GREY, 0.42, 0.21, 0.27, 0.66, 0.035)  # fork
    pen(capsule, colour, -0.36, 0.42, 0.22, 0.42, 0.11)  # body
    pen(ellipse, colour, 0.20, 0.13, at=(0.12, 0.50))  # tank
    pen(capsule, (0.20, 0.24, 0.42), -0.14, 0.56, 0.08, 0.30, 0.065)  # leg
    pen(capsule, (0.25, 0.22, 0.22), -0.16, 0.60, -0.06, 0.84, 0.115)  # jacket
    pen(capsule, (0.36, 0.32, 0.31), -0.05, 0.82, 0.24, 0.66, 0.05)  # arm
    pen(circle, (0.36, 0.20, 0.10), 0.145, at=(0.02, 1.04))  # hair
    pen(ellipse, SKIN, 0.11, 0.12, at=(0.06, 1.06))  # face
    pen(ellipse, (0.36, 0.20, 0.10), 0.12, 0.095, at=(0.06, 0.96))  # beard
    pen(circle, DARK, 0.022, at=(0.10, 1.09))


def car(pen, colour, phase):
    pen(box, colour, 0.36, 0.20, 0.14, at=(-0.06, 0.52))
    pen(box, GLASS, 0.28, 0.11, 0.07, at=(-0.06, 0.54))
    pen(box, colour, 0.025, 0.14, at=(-0.06, 0.52))
    pen(box, colour, 0.64, 0.17, 0.11, at=(0.0, 0.30))
    pen(circle, (1.0, 0.95, 0.70), 0.05, at=(0.56, 0.33))
    wheel(pen, -0.36, 0.16, 0.16, phase)
    wheel(pen, 0.36, 0.16, 0.16, phase)


def bus(pen, colour, phase):
    pen(box, colour, 0.88, 0.40, 0.09, at=(0.0, 0.54))
    for u in (-0.63, -0.21, 0.21, 0.63):
        pen(box, GLASS, 0.16, 0.13, 0.03, at=(u, 0.66))
    pen(box, PALE, 0.88, 0.035, at=(0.0, 0.40))
    wheel(pen, -0.50, 0.16, 0.16, phase)
    wheel(pen, 0.50, 0.16, 0.16, phase)


def dog(pen, colour, phase):
    shade = colour * 0.72
    pen(capsule, colour, -0.44, 0.50, -0.64 + 0.05 * torch.sin(2 * phase), 0.76, 0.05)
    legs(pen, shade, phase, (-0.30, -0.18, 0.20, 0.30), 0.38, 0.15, 0.06)
    pen(capsule, colour, -0.30, 0.46, 0.26, 0.48, 0.16)
    pen(capsule, colour, 0.26, 0.52, 0.42, 0.72, 0.11)
    pen(circle, colour, 0.17, at=(0.44, 0.76))
    pen(capsule, colour, 0.52, 0.70, 0.68, 0.68, 0.085)
    pen(capsule, shade, 0.34, 0.84, 0.29, 0.62, 0.065)  # floppy ear
    pen(circle, DARK, 0.045, at=(0.75, 0.71))
    pen(circle, DARK, 0.028, at=(0.50, 0.81))


def cat(pen, colour, phase):
    shade, wave = colour * 0.72, 0.06 * torch.sin(phase)
    pen(capsule, shade, -0.36, 0.42, -0.54, 0.70, 0.05)
    pen(capsule, shade, -0.54, 0.70, -0.46 + wave, 1.0, 0.05)  # tail, upright
    legs(pen, shade, phase, (-0.28, -0.18, 0.14, 0.24), 0.34, 0.12, 0.055)
    pen(capsule, colour, -0.26, 0.40, 0.22, 0.40, 0.14)
    pen(triangle, shade, (0.18, 0.78), (0.36, 0.84), (0.20, 1.04))
    pen(triangle, shade, (0.40, 0.84), (0.58, 0.78), (0.56, 1.04))
    pen(circle, colour, 0.22, at=(0.38, 0.70))
    for u in (0.34, 0.50):
        pen(circle, PALE, 0.055, at=(u, 0.74))
        pen(circle, DARK, 0.030, at=(u + 0.01, 0.74))
    pen(circle, (0.95, 0.55, 0.60), 0.032, at=(0.45, 0.64))


def bird(pen, colour, phase):
    shade, flap = colour * 0.72, torch.sin(phase)
    pen(triangle, shade, (-0.36, -0.06), (-0.36, 0.06), (-0.66, 0.12), (-0.66, -0.06))
    pen(capsule, shade, 0.0, 0.06, -0.12, 0.06 + 0.42 * flap, 0.11)  # far wing
    pen(ellipse, colour, 0.42, 0.21)
    pen(circle, colour, 0.17, at=(0.36, 0.15))
    pen(triangle, (1.0, 0.62, 0.12), (0.50, 0.09), (0.70, 0.13), (0.50, 0.21))
    pen(circle, DARK, 0.032, at=(0.42, 0.20))
    pen(capsule, shade * 0.9, -0.04, 0.04, -0.20, 0.04 + 0.40 * flap, 0.10)  # near wing


def balloon(pen, colour, phase):
    sway = 0.03 * torch.sin(phase * 0.4)
    pen(capsule, GREY, -0.20, -0.05, -0.09, -0.50, 0.012)
    pen(capsule, GREY, 0.20, -0.05, 0.09, -0.50, 0.012)
    pen(box, (0.55, 0.36, 0.20), 0.13, 0.10, 0.03, at=(sway, -0.56))
    pen(triangle, colour, (-0.12, -0.30), (0.12, -0.30), (0.38, 0.06), (-0.38, 0.06))
    pen(circle, colour, 0.44, at=(0.0, 0.22))
    pen(ellipse, colour * 0.74, 0.25, 0.44, at=(0.0, 0.22))
    pen(ellipse, colour, 0.10, 0.44, at=(0.0, 0.22))


def plane(pen, colour, phase):
    shade = colour * 0.72
    pen(triangle, shade, (-0.66, 0.04), (-0.40, 0.04), (-0.60, 0.36), (-0.74, 0.36))
    pen(capsule, colour, -0.58, 0.0, 0.48, 0.0, 0.15)
    pen(ellipse, GLASS, 0.15, 0.10, at=(0.32, 0.10))
    for u in (-0.30, -0.10, 0.10):
        pen(circle, GLASS, 0.05, at=(u, 0.05))
    pen(capsule, shade, 0.10, -0.04, -0.24, -0.22, 0.065)
    pen(ellipse, GREY, 0.035, 0.25, at=(0.68, 0.0), opacity=0.8)  # propeller, a blur


def ball(pen, colour, phase):
    pen(circle, colour, 0.30, at=(0.0, 0.30))
    pen(lambda u, v: torch.maximum(box(u, v, 0.30, 0.075), circle(u, v, 0.30)), PALE, at=(0.0, 0.30), turn=-phase * 0.6)
    pen(circle, colour * 0.72, 0.09, at=(0.0, 0.30))


def robot(pen, colour, phase):
    legs(pen, GREY, phase, (-0.11, 0.11), 0.40, 0.16, 0.065)
    pen(capsule, GREY, -0.02, 0.70, -0.02 + 0.20 * torch.sin(phase), 0.42, 0.05)
    pen(box, colour, 0.26, 0.22, 0.05, at=(0.0, 0.58))
    pen(box, PALE, 0.12, 0.09, 0.03, at=(0.06, 0.58))
    pen(capsule, GREY, 0.0, 1.05, 0.0, 1.22, 0.022)
    pen(circle, colour, 0.055, at=(0.0, 1.24))
    pen(box, colour * 0.80, 0.22, 0.155, 0.05, at=(0.02, 0.94))
    pen(box, DARK, 0.16, 0.075, 0.03, at=(0.06, 0.95))
    pen(circle, (0.45, 0.95, 0.95), 0.045, at=(0.0, 0.95))
    pen(circle, (0.45, 0.95, 0.95), 0.045, at=(0.13, 0.95))


def person(pen, colour, phase):
    shade, swing = colour * 0.72, torch.sin(phase)
    pen(capsule, shade, -0.02, 0.74, -0.02 - 0.20 * swing, 0.46, 0.058)  # far arm
    pen(circle, (0.86, 0.69, 0.54), 0.062, at=(-0.02 - 0.21 * swing, 0.43))
    for reach, dark in ((0.17 * swing, 0.75), (-0.17 * swing, 1.0)):
        pen(capsule, (0.24 * dark, 0.28 * dark, 0.46 * dark), 0.0, 0.42, reach, 0.08, 0.085)
        pen(capsule, DARK, reach - 0.02, 0.05, reach + 0.09, 0.05, 0.05)
    pen(capsule, colour, 0.0, 0.48, 0.0, 0.72, 0.175)  # shirt
    pen(box, DARK, 0.172, 0.028, at=(0.0, 0.40))
    pen(capsule, shade, 0.0, 0.74, 0.20 * swing, 0.47, 0.062)  # near arm
    pen(circle, SKIN, 0.066, at=(0.21 * swing, 0.44))
    pen(circle, SKIN, 0.175, at=(0.02, 1.03))
    pen(circle, SKIN, 0.042, at=(0.19, 1.0))  # nose
    pen(ellipse, (0.36, 0.20, 0.10), 0.12, 0.13, at=(-0.08, 1.0))  # hair
    pen(circle, DARK, 0.028, at=(0.11, 1.05))
    pen(cap, colour, 0.185, at=(0.01, 1.07))
    pen(capsule, shade, 0.02, 1.10, 0.29, 1.09, 0.03)  # its peak


def horse(pen, colour, phase):
    shade, dark = colour * 0.72, colour * 0.42
    wave = 0.06 * torch.sin(phase)
    pen(capsule, dark, -0.42, 0.74, -0.58, 0.58 + 0.3 * wave, 0.075)  # tail
    pen(capsule, dark, -0.58, 0.58 + 0.3 * wave, -0.62 + wave, 0.30, 0.06)
    for i, place in enumerate((-0.34, -0.22, 0.20, 0.30)):
        reach = place + 0.16 * torch.sin(phase + i * math.pi * (0.5 + (i > 1)))
        pen(capsule, shade if i % 2 == 0 else colour, place, 0.52, reach, 0.08, 0.062)
        pen(box, DARK, 0.07, 0.045, 0.02, at=(reach, 0.045))  # hoof
    pen(capsule, colour, -0.30, 0.62, 0.22, 0.62, 0.19)
    pen(capsule, colour, 0.26, 0.68, 0.48, 1.06, 0.12)  # neck
    pen(capsule, colour, 0.46, 1.10, 0.45, 1.26, 0.05)  # ear
    pen(capsule, dark, 0.12, 0.84, 0.36, 1.16, 0.075)  # mane
    pen(capsule, colour, 0.50, 1.08, 0.74, 0.90, 0.105)  # head
    pen(capsule, shade, 0.74, 0.90, 0.76, 0.88, 0.10)
    pen(circle, DARK, 0.03, at=(0.56, 1.09))
    pen(circle, DARK, 0.02, at=(0.80, 0.89))


def truck(pen, colour, phase):
    shade = colour * 0.72
    pen(box, DARK, 0.86, 0.06, 0.02, at=(0.0, 0.22))
    pen(box, colour, 0.54, 0.37, 0.03, at=(-0.36, 0.64))
    for u in (-0.66, -0.36, -0.06):
        pen(box, shade, 0.016, 0.30, at=(u, 0.64))  # ribs of the load
    pen(box, shade, 0.54, 0.035, at=(-0.36, 0.30))
    pen(box, colour, 0.27, 0.28, 0.09, at=(0.54, 0.46))  # cab
    pen(box, colour, 0.32, 0.13, 0.05, at=(0.56, 0.31))
    pen(box, GLASS, 0.17, 0.11, 0.04, at=(0.60, 0.57))
    pen(box, GREY, 0.03, 0.10, 0.02, at=(0.88, 0.22))
    pen(circle, (1.0, 0.95, 0.70), 0.05, at=(0.83, 0.34))
    for u in (-0.66, -0.28, 0.54):
        wheel(pen, u, 0.17, 0.17, phase)


def boat(pen, colour, phase):
    shade = colour * 0.72
    pen(capsule, (0.45, 0.32, 0.22), -0.02, 0.10, -0.02, 1.02, 0.022)  # mast
    pen(triangle, colour, (-0.60, 0.26), (-0.07, 0.26), (-0.07, 1.0))
    pen(triangle, PALE, (0.05, 0.26), (0.48, 0.26), (0.05, 0.86))
    pen(triangle, colour, (-0.01, 0.96), (-0.01, 1.08), (-0.20, 1.02))
    pen(hull, shade, 0.66, 0.21)
    pen(hull, colour, 0.66, 0.21, at=(0.0, 0.045))
    pen(box, PALE, 0.62, 0.02, at=(0.02, 0.165))
    for u in (-0.25, 0.0, 0.25):
        pen(circle, GLASS, 0.035, at=(u, 0.08))


def cap(u, v, r):
    """The upper half of a disc."""
    return torch.maximum(circle(u, v, r), -v)


def hull(u, v, half, tall):
    """A boat's side: flat above, its bow leaning forward."""
    low = triangle(u, v, (-half, tall), (-half * 0.72, -tall * 0.6), (half * 0.60, -tall * 0.6), (half * 1.12, tall))
    return low


ACTORS = dict(
    motorcycle=motorcycle,
    car=car,
    bus=bus,
    dog=dog,
    cat=cat,
    bird=bird,
    balloon=balloon,
    plane=plane,
    ball=ball,
    robot=robot,
    person=person,
    horse=horse,
    truck=truck,
    boat=boat,
)
AERIAL = {"bird": 0.30, "balloon": 0.36, "plane": 0.28}  # height of the middle, from the top
STRIDE = {
    "motorcycle": 1 / 0.21,
    "car": 1 / 0.16,
    "bus": 1 / 0.16,
    "ball": 1 / 0.18,
    "bird": 7.0,
    "balloon": 3.0,
    "plane": 1.0,
}  # radians of phase a unit of way
GROUND = {"street": 0.84, "beach": 0.84, "meadow": 0.82, "mountains": 0.84}
AFLOAT = {"boat": 0.615}  # height of the waterline


def act(canvas, name, colour, number, cx, cy, speed, facing, phase, scale, fps):
    """Draw one actor. cx (N, T, 1, 1) and cy (N, 1, 1, 1) in world units; speed (N, 1, 1, 1) in units a second."""
    size = SIZE[name] * scale
    start = phase
    phase = phase + (cx - cx[:, :1]) * facing / size * STRIDE.get(name, 6.0)
    rise = torch.zeros_like(cx)
    if name == "ball":
        rise = 0.20 * torch.sin(phase * 0.3).abs()
    elif name in ("dog", "cat", "robot"):
        rise = 0.02 * torch.sin(phase).abs()
    elif name in ("bird", "balloon"):
        rise = 0.03 * torch.sin(phase * 0.25 + start)
    elif name in AFLOAT:
        rise = 0.008 * torch.sin(phase * 0.4 + start)
    middle = cy - rise
    canvas.actor = number
    if canvas.owner is not None:
        dy = torch.diff(middle, dim=1, append=2 * middle[:, -1:] - middle[:, -2:-1]) if cx.shape[1] > 1 else 0 * cx
        canvas.motion = (
            torch.cat([(speed * facing / fps).expand(cx.shape), dy.expand(cx.shape)], 1).view(
                cx.shape[0], 2, cx.shape[1], 1, 1
            )
            / canvas.pixel
        )
    if name not in AERIAL and name not in AFLOAT:  # a soft shadow, which moves with its actor but is not it
        canvas.actor = 0
        canvas.paint(ellipse(canvas.x - cx, canvas.y - cy, size * 0.55, 0.022), (0.0, 0.0, 0.0), 0.28, soft=0.01)
        canvas.actor = number
    ACTORS[name](Pen(canvas, cx, middle, size, facing), colour, phase)
    if name in AFLOAT:  # the water it moves in hides its keel
        canvas.actor = 0
        x, y, back = canvas.x - cx, canvas.y - cy, facing * size
        canvas.paint(ellipse(x + 0.12 * back, y - 0.028, size * 0.86, 0.022), (0.30, 0.70, 0.84))
        canvas.paint(ellipse(x + 0.14 * back, y - 0.012, size * 0.80, 0.010), (0.95, 0.97, 1.0), 0.9, soft=0.006)
    canvas.actor, canvas.motion = 0, None
