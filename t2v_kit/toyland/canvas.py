"""Paper and pen: signed distance functions in plain torch, on any device, at any resolution.

World coordinates: y from 0 (top) to 1 (bottom), x from 0 to width / height. A shape is a signed distance
(negative inside, in world units); `Canvas.paint` turns it into coverage over one pixel, which is the
antialiasing.
"""

from __future__ import annotations

import math
from contextlib import contextmanager

import torch


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
        n, _, t, h, w = image.shape
        device = image.device
        self.image, self.pixel = image, 1 / h
        self.light = torch.ones(n, 3, device=device)
        self.y = ((torch.arange(h, dtype=torch.float32, device=device) + 0.5) / h).view(1, 1, h, 1)
        self.x = ((torch.arange(w, dtype=torch.float32, device=device) + 0.5) / h).view(1, 1, 1, w)
        self.owner = self.flow = self.motion = None
        if with_truth:
            self.owner = torch.zeros(n, t, h, w, dtype=torch.uint8, device=device)
            self.flow = torch.zeros(n, 2, t, h, w, device=device)
        self.actor = 0

    @contextmanager
    def part(self, index):
        """`with canvas.part(index) as part:` draws on the clips at `index` alone."""
        piece = Canvas(self.image[index])
        piece.light = self.light[index]
        if self.owner is not None and self.flow is not None:
            piece.owner, piece.flow = self.owner[index], self.flow[index]
        yield piece
        self.image[index] = piece.image
        if self.owner is not None and self.flow is not None:
            assert piece.owner is not None and piece.flow is not None
            self.owner[index], self.flow[index] = piece.owner, piece.flow

    def paint(self, distance, colour, opacity=1.0, lit=1.0, soft=0.0):
        """Lay `colour` ((3,) or (N, 3)) over the shape. `lit`: how much the sky's light tints it. `soft`: blur
        of the border in world units."""
        colour = torch.as_tensor(colour, device=self.image.device, dtype=torch.float32).expand(self.image.shape[0], 3)
        colour = (colour * (1 + lit * (self.light - 1))).view(-1, 3, 1, 1, 1)
        cover = (0.5 - distance / (self.pixel + soft)).clamp(0, 1) * opacity
        self.image += (colour - self.image) * cover.unsqueeze(1)
        if self.owner is not None and self.flow is not None and (self.actor or self.motion is not None):
            inside = (cover > 0.5).expand(self.owner.shape)
            self.owner = self.owner.masked_fill(inside, self.actor)
            motion = torch.zeros((), device=self.flow.device) if self.motion is None else self.motion
            self.flow = torch.where(inside.unsqueeze(1), motion, self.flow)
