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


def rain(canvas, r, aspect):
    shade_sky(canvas, (.34, .39, .47), (.60, .65, .70))


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
    palm(canvas, r, aspect)


def palm(canvas, r, aspect, lowest=1.):
    """Near one side, for what happens is in the middle. `lowest`: the height down to which it is drawn."""
    x = canvas.x - aspect * (.05 + .36 * col(r, 3) + .54 * (col(r, 3) > .5))
    lean, cut = .10 * (col(r, 4) - .5), canvas.y - lowest
    canvas.paint(torch.maximum(capsule(x, canvas.y, 0., .78, lean, .36, .018), cut), (.56, .38, .22))
    for turn in (-2.7, -2.0, -1.1, -.4, .3):
        u, v = x - lean, canvas.y - .36
        c, s = math.cos(turn), math.sin(turn)
        canvas.paint(torch.maximum(ellipse(u * c + v * s - .09, v * c - u * s, .10, .026), cut), (.16, .52, .26))


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


SKIES = dict(sunny=sunny, sunset=sunset, night=night, snow=snow, rain=rain)
PLACES = dict(street=street, beach=beach, meadow=meadow, mountains=mountains)


def puddles(canvas, r, aspect):
    """Wet ground: darker, and the sky in a few puddles."""
    canvas.paint(.70 - canvas.y, (.30, .35, .42), .22, lit=0, soft=.02)
    for i in range(4):
        x, y = canvas.x - aspect * (i + .15 + .7 * col(r, 16 + i)) / 4, canvas.y - .76 - .18 * col(r, 26 + i)
        canvas.paint(ellipse(x, y, .10 + .05 * col(r, 11 + i), .016), (.66, .72, .78), .8, lit=0, soft=.004)


def clouds(canvas, r, aspect, seconds, colour=(.98, .98, 1.)):
    for i in range(2):
        drift = .03 * (col(r, 20 + i) - .5)
        x = canvas.x - aspect * (.15 + .7 * ((i + col(r, 22 + i)) / 2)) - drift * seconds
        y = canvas.y - .08 - .16 * col(r, 24 + i)
        puff = torch.minimum(torch.minimum(circle(x, y, .062), circle(x - .08, y + .012, .046)),
                             circle(x + .08, y + .012, .046))
        if canvas.flow is not None:
            canvas.motion = torch.cat([drift, 0 * drift], 1).unsqueeze(-1) / canvas.pixel / 16
        canvas.paint(torch.maximum(puff, y - .035), colour, .92, soft=.012)
    canvas.motion = None


def falling(canvas, r, seconds, wide, tall, fall, slant=0.):
    """A grid of cells that falls `fall` a second. Where each pixel is, in world units, from its cell's own place, and
    a number in [0, 1) for the cell."""
    x, y = (canvas.x + slant * canvas.y) / wide, (canvas.y - fall * seconds + 8 * tall) / tall
    column, row = x.floor(), y.floor()
    pick = (column * 5 + row * 3).long() % 32
    jitter = torch.gather(r.view(-1, 1, 32).expand(-1, pick.shape[1], -1),
                          2, pick.flatten(2)).view(pick.shape)
    px, py = column + .2 + .6 * jitter, row + .2 + .6 * torch.remainder(jitter * 7.3, 1.)
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
    x, y, own = falling(canvas, r, seconds, .28, .28, .15)
    with in_front(canvas, (0., .15 / 16)):
        canvas.paint(circle(x, y, .013 + .006 * own), (1., 1., 1.), .9, lit=0, soft=.006)


def drops(canvas, r, seconds):
    """Rain: slanting streaks, which fall four times as fast as snow."""
    x, y, _ = falling(canvas, r, seconds, .22, .40, .60, slant=.18)
    with in_front(canvas, (-.18 * .60 / 16, .60 / 16)):
        canvas.paint(box(x, y, .006, .038, .005), (.84, .89, .95), .75, lit=0, soft=.003)
