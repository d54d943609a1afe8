"""Who appears in Toyland.

Actors are drawn in their own frame: u points where they face, v up, their feet (or middle, for what flies) at the
origin, about one unit tall.
"""
from __future__ import annotations

import math

import torch

from .canvas import box, capsule, circle, ellipse, triangle

DARK, GREY, PALE, SKIN, GLASS = (.13, .13, .16), (.55, .56, .60), (.82, .83, .86), (.95, .77, .60), (.76, .89, .96)
#: world heights a unit of the actor's frame
SIZE = {"motorcycle": .44, "car": .48, "bus": .42, "dog": .40, "cat": .40, "bird": .42, "balloon": .42,
        "plane": .42, "ball": .46, "robot": .38, "person": .38, "horse": .44, "truck": .44, "boat": .36}


class Pen:
    """Paints in an actor's own frame: position, size and facing taken care of."""

    def __init__(self, canvas, cx, cy, size, facing):
        self.canvas, self.size = canvas, size
        self.u, self.v = (canvas.x - cx) * facing / size, (cy - canvas.y) / size

    def __call__(self, shape, colour, *numbers, at=(0., 0.), turn=None, opacity=1.0):
        u, v = self.u - at[0], self.v - at[1]
        if turn is not None:
            c, s = torch.cos(turn), torch.sin(turn)
            u, v = u * c + v * s, v * c - u * s
        self.canvas.paint(shape(u, v, *numbers) * self.size, colour, opacity, lit=.45)


# Each takes (pen, colour (N, 3), phase (N, T, 1, 1) in radians, which grows as the actor moves).

def wheel(pen, u, v, r, phase):
    pen(circle, DARK, r, at=(u, v))
    pen(circle, PALE, r * .58, at=(u, v))
    pen(box, GREY, r * .58, r * .13, at=(u, v), turn=-phase)


def legs(pen, colour, phase, places, hip, reach, r):
    for i, place in enumerate(places):
        swing = reach * torch.sin(phase + i * math.pi * (1 if len(places) == 2 else .5 + (i > 1)))
        pen(capsule, colour, place, hip, place + swing, r, r)


def motorcycle(pen, colour, phase):
    wheel(pen, -.42, .21, .21, phase)
    wheel(pen, .42, .21, .21, phase)
    pen(capsule, GREY, -.45, .24, .05, .24, .035)                     # exhaust
    pen(capsule, GREY, .42, .21, .27, .66, .035)                      # fork
    pen(capsule, colour, -.36, .42, .22, .42, .11)                    # body
    pen(ellipse, colour, .20, .13, at=(.12, .50))                     # tank
    pen(capsule, (.20, .24, .42), -.14, .56, .08, .30, .065)          # leg
    pen(capsule, (.25, .22, .22), -.16, .60, -.06, .84, .115)         # jacket
    pen(capsule, (.36, .32, .31), -.05, .82, .24, .66, .05)           # arm
    pen(circle, (.36, .20, .10), .145, at=(.02, 1.04))                # hair
    pen(ellipse, SKIN, .11, .12, at=(.06, 1.06))                      # face
    pen(ellipse, (.36, .20, .10), .12, .095, at=(.06, .96))           # beard
    pen(circle, DARK, .022, at=(.10, 1.09))


def car(pen, colour, phase):
    pen(box, colour, .36, .20, .14, at=(-.06, .52))
    pen(box, GLASS, .28, .11, .07, at=(-.06, .54))
    pen(box, colour, .025, .14, at=(-.06, .52))
    pen(box, colour, .64, .17, .11, at=(0., .30))
    pen(circle, (1., .95, .70), .05, at=(.56, .33))
    wheel(pen, -.36, .16, .16, phase)
    wheel(pen, .36, .16, .16, phase)


def bus(pen, colour, phase):
    pen(box, colour, .88, .40, .09, at=(0., .54))
    for u in (-.63, -.21, .21, .63):
        pen(box, GLASS, .16, .13, .03, at=(u, .66))
    pen(box, PALE, .88, .035, at=(0., .40))
    wheel(pen, -.50, .16, .16, phase)
    wheel(pen, .50, .16, .16, phase)


def dog(pen, colour, phase):
    shade = colour * .72
    pen(capsule, colour, -.44, .50, -.64 + .05 * torch.sin(2 * phase), .76, .05)
    legs(pen, shade, phase, (-.30, -.18, .20, .30), .38, .15, .06)
    pen(capsule, colour, -.30, .46, .26, .48, .16)
    pen(capsule, colour, .26, .52, .42, .72, .11)
    pen(circle, colour, .17, at=(.44, .76))
    pen(capsule, colour, .52, .70, .68, .68, .085)
    pen(capsule, shade, .34, .84, .29, .62, .065)                     # floppy ear
    pen(circle, DARK, .045, at=(.75, .71))
    pen(circle, DARK, .028, at=(.50, .81))


def cat(pen, colour, phase):
    shade, wave = colour * .72, .06 * torch.sin(phase)
    pen(capsule, shade, -.36, .42, -.54, .70, .05)
    pen(capsule, shade, -.54, .70, -.46 + wave, 1.0, .05)             # tail, upright
    legs(pen, shade, phase, (-.28, -.18, .14, .24), .34, .12, .055)
    pen(capsule, colour, -.26, .40, .22, .40, .14)
    pen(triangle, shade, (.18, .78), (.36, .84), (.20, 1.04))
    pen(triangle, shade, (.40, .84), (.58, .78), (.56, 1.04))
    pen(circle, colour, .22, at=(.38, .70))
    for u in (.34, .50):
        pen(circle, PALE, .055, at=(u, .74))
        pen(circle, DARK, .030, at=(u + .01, .74))
    pen(circle, (.95, .55, .60), .032, at=(.45, .64))


def bird(pen, colour, phase):
    shade, flap = colour * .72, torch.sin(phase)
    pen(triangle, shade, (-.36, -.06), (-.36, .06), (-.66, .12), (-.66, -.06))
    pen(capsule, shade, 0., .06, -.12, .06 + .42 * flap, .11)         # far wing
    pen(ellipse, colour, .42, .21)
    pen(circle, colour, .17, at=(.36, .15))
    pen(triangle, (1., .62, .12), (.50, .09), (.70, .13), (.50, .21))
    pen(circle, DARK, .032, at=(.42, .20))
    pen(capsule, shade * .9, -.04, .04, -.20, .04 + .40 * flap, .10)  # near wing


def balloon(pen, colour, phase):
    sway = .03 * torch.sin(phase * .4)
    pen(capsule, GREY, -.20, -.05, -.09, -.50, .012)
    pen(capsule, GREY, .20, -.05, .09, -.50, .012)
    pen(box, (.55, .36, .20), .13, .10, .03, at=(sway, -.56))
    pen(triangle, colour, (-.12, -.30), (.12, -.30), (.38, .06), (-.38, .06))
    pen(circle, colour, .44, at=(0., .22))
    pen(ellipse, colour * .74, .25, .44, at=(0., .22))
    pen(ellipse, colour, .10, .44, at=(0., .22))


def plane(pen, colour, phase):
    shade = colour * .72
    pen(triangle, shade, (-.66, .04), (-.40, .04), (-.60, .36), (-.74, .36))
    pen(capsule, colour, -.58, .0, .48, .0, .15)
    pen(ellipse, GLASS, .15, .10, at=(.32, .10))
    for u in (-.30, -.10, .10):
        pen(circle, GLASS, .05, at=(u, .05))
    pen(capsule, shade, .10, -.04, -.24, -.22, .065)
    pen(ellipse, GREY, .035, .25, at=(.68, 0.), opacity=.8)           # propeller, a blur


def ball(pen, colour, phase):
    pen(circle, colour, .30, at=(0., .30))
    pen(lambda u, v: torch.maximum(box(u, v, .30, .075), circle(u, v, .30)), PALE, at=(0., .30), turn=-phase * .6)
    pen(circle, colour * .72, .09, at=(0., .30))


def robot(pen, colour, phase):
    legs(pen, GREY, phase, (-.11, .11), .40, .16, .065)
    pen(capsule, GREY, -.02, .70, -.02 + .20 * torch.sin(phase), .42, .05)
    pen(box, colour, .26, .22, .05, at=(0., .58))
    pen(box, PALE, .12, .09, .03, at=(.06, .58))
    pen(capsule, GREY, 0., 1.05, 0., 1.22, .022)
    pen(circle, colour, .055, at=(0., 1.24))
    pen(box, colour * .80, .22, .155, .05, at=(.02, .94))
    pen(box, DARK, .16, .075, .03, at=(.06, .95))
    pen(circle, (.45, .95, .95), .045, at=(0., .95))
    pen(circle, (.45, .95, .95), .045, at=(.13, .95))


def person(pen, colour, phase):
    shade, swing = colour * .72, torch.sin(phase)
    pen(capsule, shade, -.02, .74, -.02 - .20 * swing, .46, .058)     # far arm
    pen(circle, (.86, .69, .54), .062, at=(-.02 - .21 * swing, .43))
    for reach, dark in ((.17 * swing, .75), (-.17 * swing, 1.)):
        pen(capsule, (.24 * dark, .28 * dark, .46 * dark), 0., .42, reach, .08, .085)
        pen(capsule, DARK, reach - .02, .05, reach + .09, .05, .05)
    pen(capsule, colour, 0., .48, 0., .72, .175)                      # shirt
    pen(box, DARK, .172, .028, at=(0., .40))
    pen(capsule, shade, .0, .74, .20 * swing, .47, .062)              # near arm
    pen(circle, SKIN, .066, at=(.21 * swing, .44))
    pen(circle, SKIN, .175, at=(.02, 1.03))
    pen(circle, SKIN, .042, at=(.19, 1.0))                            # nose
    pen(ellipse, (.36, .20, .10), .12, .13, at=(-.08, 1.0))           # hair
    pen(circle, DARK, .028, at=(.11, 1.05))
    pen(cap, colour, .185, at=(.01, 1.07))
    pen(capsule, shade, .02, 1.10, .29, 1.09, .03)                    # its peak


def horse(pen, colour, phase):
    shade, dark = colour * .72, colour * .42
    wave = .06 * torch.sin(phase)
    pen(capsule, dark, -.42, .74, -.58, .58 + .3 * wave, .075)        # tail
    pen(capsule, dark, -.58, .58 + .3 * wave, -.62 + wave, .30, .06)
    for i, place in enumerate((-.34, -.22, .20, .30)):
        reach = place + .16 * torch.sin(phase + i * math.pi * (.5 + (i > 1)))
        pen(capsule, shade if i % 2 == 0 else colour, place, .52, reach, .08, .062)
        pen(box, DARK, .07, .045, .02, at=(reach, .045))              # hoof
    pen(capsule, colour, -.30, .62, .22, .62, .19)
    pen(capsule, colour, .26, .68, .48, 1.06, .12)                    # neck
    pen(capsule, colour, .46, 1.10, .45, 1.26, .05)                   # ear
    pen(capsule, dark, .12, .84, .36, 1.16, .075)                     # mane
    pen(capsule, colour, .50, 1.08, .74, .90, .105)                   # head
    pen(capsule, shade, .74, .90, .76, .88, .10)
    pen(circle, DARK, .03, at=(.56, 1.09))
    pen(circle, DARK, .02, at=(.80, .89))


def truck(pen, colour, phase):
    shade = colour * .72
    pen(box, DARK, .86, .06, .02, at=(0., .22))
    pen(box, colour, .54, .37, .03, at=(-.36, .64))
    for u in (-.66, -.36, -.06):
        pen(box, shade, .016, .30, at=(u, .64))                       # ribs of the load
    pen(box, shade, .54, .035, at=(-.36, .30))
    pen(box, colour, .27, .28, .09, at=(.54, .46))                    # cab
    pen(box, colour, .32, .13, .05, at=(.56, .31))
    pen(box, GLASS, .17, .11, .04, at=(.60, .57))
    pen(box, GREY, .03, .10, .02, at=(.88, .22))
    pen(circle, (1., .95, .70), .05, at=(.83, .34))
    for u in (-.66, -.28, .54):
        wheel(pen, u, .17, .17, phase)


def boat(pen, colour, phase):
    shade = colour * .72
    pen(capsule, (.45, .32, .22), -.02, .10, -.02, 1.02, .022)        # mast
    pen(triangle, colour, (-.60, .26), (-.07, .26), (-.07, 1.0))
    pen(triangle, PALE, (.05, .26), (.48, .26), (.05, .86))
    pen(triangle, colour, (-.01, .96), (-.01, 1.08), (-.20, 1.02))
    pen(hull, shade, .66, .21)
    pen(hull, colour, .66, .21, at=(0., .045))
    pen(box, PALE, .62, .02, at=(.02, .165))
    for u in (-.25, .0, .25):
        pen(circle, GLASS, .035, at=(u, .08))


def cap(u, v, r):
    """The upper half of a disc."""
    return torch.maximum(circle(u, v, r), -v)


def hull(u, v, half, tall):
    """A boat's side: flat above, its bow leaning forward."""
    low = triangle(u, v, (-half, tall), (-half * .72, -tall * .6), (half * .60, -tall * .6), (half * 1.12, tall))
    return low


ACTORS = dict(motorcycle=motorcycle, car=car, bus=bus, dog=dog, cat=cat, bird=bird, balloon=balloon, plane=plane,
              ball=ball, robot=robot, person=person, horse=horse, truck=truck, boat=boat)
AERIAL = {"bird": .30, "balloon": .36, "plane": .28}  # height of the middle, from the top
STRIDE = {"motorcycle": 1 / .21, "car": 1 / .16, "bus": 1 / .16, "ball": 1 / .18, "bird": 7., "balloon": 3.,
          "plane": 1.}  # radians of phase a unit of way
GROUND = {"street": .84, "beach": .84, "meadow": .82, "mountains": .84}
AFLOAT = {"boat": .615}  # height of the waterline


def act(canvas, name, colour, number, cx, cy, speed, facing, phase, scale, fps):
    """Draw one actor. cx (N, T, 1, 1) and cy (N, 1, 1, 1) in world units; speed (N, 1, 1, 1) in units a second."""
    size = SIZE[name] * scale
    start = phase
    phase = phase + (cx - cx[:, :1]) * facing / size * STRIDE.get(name, 6.)
    rise = torch.zeros_like(cx)
    if name == "ball":
        rise = .20 * torch.sin(phase * .3).abs()
    elif name in ("dog", "cat", "robot"):
        rise = .02 * torch.sin(phase).abs()
    elif name in ("bird", "balloon"):
        rise = .03 * torch.sin(phase * .25 + start)
    elif name in AFLOAT:
        rise = .008 * torch.sin(phase * .4 + start)
    middle = cy - rise
    canvas.actor = number
    if canvas.owner is not None:
        dy = torch.diff(middle, dim=1, append=2 * middle[:, -1:] - middle[:, -2:-1]) if cx.shape[1] > 1 else 0 * cx
        canvas.motion = torch.cat([(speed * facing / fps).expand(cx.shape), dy.expand(cx.shape)], 1).view(
            cx.shape[0], 2, cx.shape[1], 1, 1) / canvas.pixel
    if name not in AERIAL and name not in AFLOAT:  # a soft shadow, which moves with its actor but is not it
        canvas.actor = 0
        canvas.paint(ellipse(canvas.x - cx, canvas.y - cy, size * .55, .022), (0., 0., 0.), .28, soft=.01)
        canvas.actor = number
    ACTORS[name](Pen(canvas, cx, middle, size, facing), colour, phase)
    if name in AFLOAT:  # the water it moves in hides its keel
        canvas.actor = 0
        x, y, back = canvas.x - cx, canvas.y - cy, facing * size
        canvas.paint(ellipse(x + .12 * back, y - .028, size * .86, .022), (.30, .70, .84))
        canvas.paint(ellipse(x + .14 * back, y - .012, size * .80, .010), (.95, .97, 1.), .9, soft=.006)
    canvas.actor, canvas.motion = 0, None
