"""How Toyland is drawn: signed distance functions in plain torch, on any device, at any resolution.

World coordinates: y from 0 (top) to 1 (bottom), x from 0 to width / height. A shape is a signed distance
(negative inside, in world units); `Canvas.paint` turns it into coverage over one pixel, which is the
antialiasing. Actors are drawn in their own frame: u points where they face, v up, their feet (or middle, for
what flies) at the origin, about one unit tall.
"""
from __future__ import annotations

import math

import numpy as np
import torch

RGB = {"red": (.88, .15, .15), "yellow": (.98, .82, .12), "green": (.13, .62, .28), "blue": (.14, .36, .90),
       "purple": (.58, .23, .75), "white": (.96, .96, .97)}
DARK, GREY, PALE, SKIN, GLASS = (.13, .13, .16), (.55, .56, .60), (.82, .83, .86), (.95, .77, .60), (.76, .89, .96)
LIGHT = {"sunny": (1., 1., 1.), "sunset": (1., .84, .74), "night": (.50, .55, .74), "snow": (.93, .95, 1.)}
SIZE = {"motorcycle": .44, "car": .48, "bus": .42, "dog": .40, "cat": .40, "bird": .42, "balloon": .42,
        "plane": .42, "ball": .46, "robot": .38}  # world heights a unit of the actor's frame


# ---- shapes: signed distances ----------------------------------------------------------------------------

def circle(x, y, r):
    return torch.hypot(x, y) - r


def box(x, y, half_x, half_y, r=0.0):
    qx, qy = x.abs() - (half_x - r), y.abs() - (half_y - r)
    return torch.hypot(qx.clamp(min=0), qy.clamp(min=0)) + torch.maximum(qx, qy).clamp(max=0) - r


def ellipse(x, y, a, b):
    """Near the border a good distance; far away only its sign matters."""
    k = torch.hypot(x / a, y / b)
    return k * (k - 1) / torch.hypot(x / a**2, y / b**2).clamp(min=1e-6)


def capsule(x, y, ax, ay, bx, by, r):
    dx, dy = bx - ax, by - ay
    along = (((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return torch.hypot(x - ax - along * dx, y - ay - along * dy) - r


def triangle(x, y, *corners):
    """Convex, corners counter-clockwise in the frame they are given in: the largest distance to an edge."""
    distance = None
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1]):
        edge = ((x - ax) * (by - ay) - (y - ay) * (bx - ax)) / math.hypot(bx - ax, by - ay)
        distance = edge if distance is None else torch.maximum(distance, edge)
    return distance


class Canvas:
    """image (N, 3, T, H, W) in [0, 1]; with truth also owner (N, T, H, W), the actor's number or 0 for scenery,
    and flow (N, 2, T, H, W) in pixels a frame."""

    def __init__(self, image, with_truth=False):
        self.image, self.pixel, self.light = image, 1 / image.shape[3], None
        n, _, t, h, w = image.shape
        grid = dict(device=image.device, dtype=torch.float32)
        self.y = ((torch.arange(h, **grid) + .5) / h).view(1, 1, h, 1)
        self.x = ((torch.arange(w, **grid) + .5) / h).view(1, 1, 1, w)
        self.owner = torch.zeros(n, t, h, w, dtype=torch.uint8, device=image.device) if with_truth else None
        self.flow = torch.zeros(n, 2, t, h, w, **grid) if with_truth else None
        self.actor, self.motion = 0, None

    def part(self, index):
        """The clips at `index`, to draw on; `put_back` returns them."""
        piece = Canvas(self.image[index])
        piece.light = self.light[index]
        if self.owner is not None:
            piece.owner, piece.flow = self.owner[index], self.flow[index]
        return piece

    def put_back(self, index, piece):
        self.image[index] = piece.image
        if self.owner is not None:
            self.owner[index], self.flow[index] = piece.owner, piece.flow

    def paint(self, distance, colour, opacity=1.0, lit=1.0, soft=0.0):
        """Lay `colour` ((3,) or (N, 3)) over the shape. `lit`: how much the sky's light tints it. `soft`: blur
        of the border in world units."""
        colour = torch.as_tensor(colour, device=self.image.device, dtype=torch.float32).expand(self.image.shape[0], 3)
        colour = (colour * (1 + lit * (self.light - 1))).view(-1, 3, 1, 1, 1)
        cover = (.5 - distance / (self.pixel + soft)).clamp(0, 1) * opacity
        self.image += (colour - self.image) * cover.unsqueeze(1)
        if self.owner is not None and (self.actor or self.motion is not None):
            inside = (cover > .5).expand(self.owner.shape)
            self.owner = torch.where(inside, torch.tensor(self.actor, dtype=torch.uint8), self.owner)
            motion = self.motion if self.motion is not None else torch.zeros(2, 1, 1, 1)
            self.flow = torch.where(inside.unsqueeze(1), motion, self.flow)


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


# ---- actors ----------------------------------------------------------------------------------------------
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


ACTORS = dict(motorcycle=motorcycle, car=car, bus=bus, dog=dog, cat=cat, bird=bird, balloon=balloon, plane=plane,
              ball=ball, robot=robot)
AERIAL = {"bird": .30, "balloon": .36, "plane": .28}  # height of the middle, from the top
STRIDE = {"motorcycle": 1 / .21, "car": 1 / .16, "bus": 1 / .16, "ball": 1 / .18, "bird": 7., "balloon": 3.,
          "plane": 1.}  # radians of phase a unit of way
GROUND = {"street": .84, "beach": .84, "meadow": .82, "mountains": .84}


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
    middle = cy - rise
    canvas.actor = number
    if canvas.owner is not None:
        dy = torch.diff(middle, dim=1, append=2 * middle[:, -1:] - middle[:, -2:-1]) if cx.shape[1] > 1 else 0 * cx
        canvas.motion = torch.cat([(speed * facing / fps).expand(cx.shape), dy.expand(cx.shape)], 1).view(
            cx.shape[0], 2, cx.shape[1], 1, 1) / canvas.pixel
    if name not in AERIAL:  # a soft shadow, which moves with its actor but is not it
        canvas.actor = 0
        canvas.paint(ellipse(canvas.x - cx, canvas.y - cy, size * .55, .022), (0., 0., 0.), .28, soft=.01)
        canvas.actor = number
    ACTORS[name](Pen(canvas, cx, middle, size, facing), colour, phase)
    canvas.actor, canvas.motion = 0, None


# ---- scenery ---------------------------------------------------------------------------------------------
# Each takes (canvas, r): r (N, 32) are the scene's own random numbers in [0, 1).

def col(r, i):
    return r[:, i].view(-1, 1, 1, 1)


def shade_sky(canvas, top, bottom):
    blend = (canvas.y / .66).clamp(0, 1).unsqueeze(1)
    top, bottom = (torch.tensor(c, device=canvas.image.device).view(1, 3, 1, 1, 1) for c in (top, bottom))
    canvas.image += top + (bottom - top) * blend


def sunny(canvas, r, aspect):
    shade_sky(canvas, (.26, .58, .94), (.74, .90, .99))
    x, y = canvas.x - aspect * (.12 + .76 * col(r, 0)), canvas.y - .15 - .06 * col(r, 1)
    canvas.paint(circle(x, y, .11), (1., .97, .75), .5, lit=0, soft=.08)
    canvas.paint(circle(x, y, .075), (1., .92, .40), lit=0)


def sunset(canvas, r, aspect):
    shade_sky(canvas, (.46, .25, .52), (1., .62, .30))
    x, y = canvas.x - aspect * (.2 + .6 * col(r, 0)), canvas.y - .44
    canvas.paint(circle(x, y, .18), (1., .80, .40), .5, lit=0, soft=.10)
    canvas.paint(circle(x, y, .13), (1., .88, .50), lit=0)


def night(canvas, r, aspect):
    shade_sky(canvas, (.04, .06, .20), (.16, .20, .42))
    for i in range(14):
        x, y = canvas.x - aspect * ((i + .9 * r[:, i]) / 14).view(-1, 1, 1, 1), canvas.y - .02 - .40 * col(r, 31 - i)
        canvas.paint(circle(x, y, .010), (.95, .95, .80), lit=0, soft=.008)
    x, y = canvas.x - aspect * (.15 + .7 * col(r, 0)), canvas.y - .16
    canvas.paint(torch.maximum(circle(x, y, .075), -circle(x - .04, y + .02, .065)), (.98, .96, .82), lit=0)


def snow(canvas, r, aspect):
    shade_sky(canvas, (.62, .68, .76), (.84, .88, .92))


def street(canvas, r, aspect):
    wide = .30
    number = ((canvas.x + wide * col(r, 2)) / wide).floor()
    local = canvas.x + wide * col(r, 2) - (number + .5) * wide
    pick = (number.long() % 8).view(number.shape[0], -1)
    tall = .26 + .22 * torch.gather(r[:, 4:12], 1, pick).view(number.shape)
    tone = torch.gather(r[:, 12:20], 1, pick).view(number.shape)
    top = .66 - tall
    wall = box(local, canvas.y - .66, wide * .47, tall)
    canvas.paint(wall, (.80, .62, .50))
    canvas.paint(wall, (.60, .66, .76), (tone > .5).float())
    row = torch.remainder(canvas.y - top - .02, .10) - .05
    pane = box(local.abs() - wide * .22, row, .032, .026)
    inside = torch.maximum(pane, torch.maximum(top + .02 - canvas.y, canvas.y - .62))
    canvas.paint(inside, (.88, .87, .72), lit=.3)
    canvas.paint(.66 - canvas.y, (.72, .71, .70))
    canvas.paint(.71 - canvas.y, (.36, .37, .41))
    dash = torch.remainder(canvas.x + .4 * col(r, 3), .40) - .20
    canvas.paint(box(dash, canvas.y - .93, .11, .012), (.93, .92, .85))


def beach(canvas, r, aspect):
    canvas.paint(.50 - canvas.y, (.14, .50, .74))
    canvas.paint(.58 - canvas.y, (.22, .64, .80))
    shore = .67 + .012 * torch.sin(canvas.x * 5 + 6.28 * col(r, 2))
    canvas.paint(shore - canvas.y, (.97, .97, .94))
    canvas.paint(shore + .022 - canvas.y, (.94, .83, .60))
    x = canvas.x - aspect * (.08 + .84 * col(r, 3))
    lean = .10 * (col(r, 4) - .5)
    canvas.paint(capsule(x, canvas.y, 0., .78, lean, .36, .018), (.56, .38, .22))
    for turn in (-2.7, -2.0, -1.1, -.4, .3):
        u, v = x - lean, canvas.y - .36
        c, s = math.cos(turn), math.sin(turn)
        canvas.paint(ellipse(u * c + v * s - .09, v * c - u * s, .10, .026), (.16, .52, .26))


def meadow(canvas, r, aspect):
    hill = .56 + .05 * torch.sin(canvas.x * 3.1 + 6.28 * col(r, 2))
    canvas.paint(hill - canvas.y, (.44, .70, .36))
    canvas.paint(.63 + .03 * torch.sin(canvas.x * 2.3 + 6.28 * col(r, 3)) - canvas.y, (.56, .80, .38))
    for i in range(3):
        x, tall = canvas.x - aspect * (i + .15 + .7 * col(r, 5 + i)) / 3, .16 + .07 * col(r, 8 + i)
        canvas.paint(box(x, canvas.y - .60, .016, .07), (.46, .31, .20))
        canvas.paint(ellipse(x, canvas.y - .62 + tall, .09, .11), (.18, .50, .24))
    for i in range(8):
        x, y = canvas.x - aspect * (i + col(r, 11 + i)) / 8, canvas.y - .74 - .24 * col(r, 19 + i)
        canvas.paint(circle(x, y, .013), ((1., .60, .66), (1., .93, .55))[i % 2])


def mountains(canvas, r, aspect):
    for i, shade in ((0, .88), (2, .94), (1, 1.)):
        x, tall = canvas.x - aspect * (i + .2 + .6 * col(r, 4 + i)) / 3, .32 + .14 * col(r, 7 + i)
        flank = (x.abs() * .75 - (canvas.y - .66 + tall)) / 1.25
        canvas.paint(flank, (.50 * shade, .52 * shade, .60 * shade))
        cap = torch.maximum(flank, canvas.y - .66 + tall - .10 - .02 * torch.cos(x * 60))
        canvas.paint(cap, (.95, .96, .98))
    canvas.paint(.65 - canvas.y, (.50, .60, .42))
    canvas.paint(.76 - canvas.y, (.62, .62, .48))
    for i in range(4):
        x = canvas.x - aspect * (i + .1 + .8 * col(r, 12 + i)) / 4
        for step in (0., .055):
            y = canvas.y - .57 + step
            canvas.paint((x.abs() * 1.8 - y - .05) / 2.06 + torch.relu(y - .07) * 4, (.13, .37, .27))


SKIES = dict(sunny=sunny, sunset=sunset, night=night, snow=snow)
PLACES = dict(street=street, beach=beach, meadow=meadow, mountains=mountains)


def clouds(canvas, r, aspect, seconds):
    for i in range(2):
        drift = .03 * (col(r, 20 + i) - .5)
        x = canvas.x - aspect * (.15 + .7 * ((i + col(r, 22 + i)) / 2)) - drift * seconds
        y = canvas.y - .08 - .16 * col(r, 24 + i)
        puff = torch.minimum(torch.minimum(circle(x, y, .062), circle(x - .08, y + .012, .046)),
                             circle(x + .08, y + .012, .046))
        if canvas.flow is not None:
            canvas.motion = torch.cat([drift, 0 * drift], 1).unsqueeze(-1) / canvas.pixel / 16
        canvas.paint(torch.maximum(puff, y - .035), (.98, .98, 1.), .92, soft=.012)
    canvas.motion = None


def flakes(canvas, r, seconds):
    """Snow: one flake in each cell of a falling grid, at a place of its own in the cell."""
    cell, fall = .28, .15
    x, y = canvas.x / cell, (canvas.y - fall * seconds + 8 * cell) / cell
    column, row = x.floor(), y.floor()
    pick = (column * 5 + row * 3).long() % 32
    jitter = torch.gather(r.view(-1, 1, 32).expand(-1, pick.shape[1], -1),
                          2, pick.flatten(2)).view(pick.shape)
    px, py = column + .2 + .6 * jitter, row + .2 + .6 * torch.remainder(jitter * 7.3, 1.)
    if canvas.flow is not None:
        canvas.motion = torch.tensor([0., fall / 16 / canvas.pixel]).view(2, 1, 1, 1)
        kept = canvas.owner.clone()  # a flake moves, but what it falls in front of stays that subject's
    canvas.paint(circle((x - px) * cell, (y - py) * cell, .013 + .006 * jitter), (1., 1., 1.), .9, lit=0, soft=.006)
    if canvas.flow is not None:
        canvas.owner, canvas.motion = kept, None


# ---- the whole picture -----------------------------------------------------------------------------------

def groups(words, device):
    """(word, index tensor) for each word that occurs."""
    for word in dict.fromkeys(words):
        yield word, torch.tensor([i for i, w in enumerate(words) if w == word], device=device)


def draw(scenes, height, width, num_frames, fps, device, with_truth=False) -> Canvas:
    """Draw `scenes` (toyland.Scene) into a Canvas with image (B, 3, T, H, W)."""
    n, aspect = len(scenes), width / height
    numbers = np.stack([np.random.default_rng(s.seed).random(52) for s in scenes]).astype(np.float32)
    numbers = torch.from_numpy(numbers).to(device)
    r, own = numbers[:, :32], numbers[:, 32:]
    light = torch.tensor([LIGHT[s.sky] for s in scenes], device=device)
    still = Canvas(torch.zeros(n, 3, 1, height, width, device=device))
    still.light = light
    for kinds, field in ((SKIES, "sky"), (PLACES, "place")):
        for word, index in groups([getattr(s, field) for s in scenes], device):
            part = still.part(index)
            kinds[word](part, r[index], aspect)
            still.put_back(index, part)
    snowy = torch.tensor([i for i, s in enumerate(scenes) if s.sky == "snow"], device=device, dtype=torch.long)
    if len(snowy):
        part = still.part(snowy)
        part.paint(.655 - part.y, (.95, .97, 1.), .55, soft=.01)
        still.put_back(snowy, part)
    canvas = Canvas(still.image.repeat(1, 1, num_frames, 1, 1), with_truth)
    canvas.light = light
    seconds = ((torch.arange(num_frames, device=device) - (num_frames - 1) / 2) / fps).view(1, -1, 1, 1)
    cloudy = [s.sky in ("sunny", "sunset") for s in scenes]
    for wanted, index in groups(cloudy, device):
        if wanted:
            part = canvas.part(index)
            clouds(part, r[index], aspect, seconds)
            canvas.put_back(index, part)
    facing = torch.tensor([1. if s.direction == "right" else -1. for s in scenes], device=device).view(-1, 1, 1, 1)
    fast = torch.tensor([s.speed == "high" for s in scenes], device=device).view(-1, 1, 1, 1)
    paired = torch.tensor([s.companion is not None for s in scenes], device=device).view(-1, 1, 1, 1)
    speed = aspect * torch.where(fast, .28 + .06 * col(own, 0), .06 + .04 * col(own, 0))
    side = torch.where(col(own, 1) > .5, 1., -1.)
    for number in (2, 1):
        actors = [s.actors[number - 1] if len(s.actors) >= number else None for s in scenes]
        apart = side * (1.5 - number) * (.36 + .08 * col(own, 2))
        place = .5 + torch.where(paired, apart, .14 * (col(own, 2) - .5))
        base = 4 + 4 * number
        for name, index in groups([a[0] if a else None for a in actors], device):
            if name is None:
                continue
            part = canvas.part(index)
            mine, dims = own[index], index
            scale = (.90 + .25 * col(mine, base)) * torch.where(paired[dims], .82, 1.)
            cx = aspect * place[dims] + facing[dims] * speed[dims] * seconds
            ground = torch.tensor([GROUND[scenes[i].place] for i in index.tolist()], device=device).view(-1, 1, 1, 1)
            cy = (AERIAL[name] + .10 * (col(mine, base + 1) - .5) if name in AERIAL
                  else ground + .05 * (col(mine, base + 1) - .5) + .05 * (number == 1) * paired[dims])
            colour = torch.tensor([RGB[actors[i][1]] for i in index.tolist()], device=device)
            act(part, name, colour, number, cx, cy, speed[dims], facing[dims], 6.28 * col(mine, base + 2), scale, fps)
            canvas.put_back(index, part)
    if len(snowy):
        part = canvas.part(snowy)
        flakes(part, r[snowy], seconds)
        canvas.put_back(snowy, part)
    canvas.image.clamp_(0, 1)
    return canvas
