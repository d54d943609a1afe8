"""The judge of adherence: two small video classifiers that say what a clip of Toyland shows, and the score sheet.

Both see 17 frames of 56x96. A is an R(2+1)D (Tran et al. 2018, arXiv:1711.11248); B sees single frames and lets
a transformer put them in order. They answer for every subject 'absent' or its colour, then place, sky, direction
of motion, speed, the way the subject faces, and whether this is a clean clip of the world at all: without that last
answer a closed list of classes would reward garbage. `training.probe` trains them.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from t2v_kit.toyland import COLOURS, DIRECTIONS, PLACES, SKIES, SPEEDS, SUBJECTS, Scene

FRAMES, HEIGHT, WIDTH = 17, 56, 96
CHOICES = dict(place=PLACES, sky=SKIES, direction=DIRECTIONS, speed=SPEEDS, facing=DIRECTIONS, clean=(False, True))
ATTRIBUTES = ("subject", "colour", "place", "sky", "direction", "speed")
NO_FRONT = ("ball", "balloon")  # look the same from both sides
SIZES = [len(COLOURS) + 1] * len(SUBJECTS) + [len(c) for c in CHOICES.values()]  # outputs of each question


# ---- the two networks ------------------------------------------------------------------------------------


def shrink(video: torch.Tensor) -> torch.Tensor:
    """(B, 3, T, H, W) in [0, 1], any size -> what the probes see, (B, 17, 3, 56, 96)."""
    index = torch.linspace(0, video.shape[2] - 1, FRAMES, device=video.device).round().long()
    frames = video[:, :, index].transpose(1, 2).flatten(0, 1)
    return F.interpolate(frames, (HEIGHT, WIDTH), mode="area").unflatten(0, (-1, FRAMES))


def conv(c_in, c_out, kernel=3, stride=1):
    """2D convolution, norm, ReLU over (B * T, C, H, W)."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()
    )


class OverTime(nn.Module):
    """A convolution along time only, over (B * T, C, H, W) in, (B * T', C', H, W) out."""

    def __init__(self, c_in, c_out, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, (3, 1), (stride, 1), (1, 0), bias=False)
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x, frames):
        b, (c, h, w) = x.shape[0] // frames, x.shape[1:]
        x = x.permute(0, 2, 3, 1).reshape(b, frames, h * w, c).permute(0, 3, 1, 2)  # time becomes an image's height
        x = torch.relu(self.norm(self.conv(x)))
        return x.permute(0, 2, 3, 1).reshape(-1, h, w, x.shape[1]).permute(0, 3, 1, 2)


class Block(nn.Module):
    """(space, time) twice; the second pair is residual. Halves height and width, and time if asked."""

    def __init__(self, c_in, c_out, time_stride):
        super().__init__()
        self.space, self.time = conv(c_in, c_out, stride=2), OverTime(c_out, c_out, time_stride)
        self.space2, self.time2 = conv(c_out, c_out), OverTime(c_out, c_out)
        self.time_stride = time_stride

    def forward(self, x, frames):
        x, frames = self.time(self.space(x), frames), -(-frames // self.time_stride)
        return x + self.time2(self.space2(x), frames), frames


class Probe(nn.Module):
    """(B, 3, T, H, W) in [0, 1] -> a list of logits, one for each question: all subjects (absent or a colour), then
    those of CHOICES. `features` is the same way without its last layer, (B, 160)."""

    width = 160

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(self.width, sum(SIZES))

    def forward(self, video):
        return self.last(self.features(shrink(video))).float().split(SIZES, dim=1)


class ProbeA(Probe):
    def __init__(self):
        super().__init__()
        self.stem, self.stem_time = conv(3, 24, 5, 2), OverTime(24, 32)
        self.blocks = nn.ModuleList([Block(32, 64, 1), Block(64, 96, 2), Block(96, 144, 2)])
        self.mix = nn.Linear(2 * 144, self.width)

    def features(self, clips):
        b, frames = clips.shape[:2]
        x = self.stem_time(self.stem(clips.flatten(0, 1) - 0.5), frames)
        for block in self.blocks:
            x, frames = block(x, frames)
        x = x.reshape(b, frames, *x.shape[1:])
        return torch.relu(self.mix(torch.cat([x.mean((1, 3, 4)), x.amax((1, 3, 4))], 1)))


class ProbeB(Probe):
    def __init__(self):
        super().__init__()
        self.frame = nn.Sequential(
            conv(3, 32, 5, 2), conv(32, 48, stride=2), conv(48, 64), conv(64, 96, stride=2), conv(96, 128, stride=2)
        )
        self.where = nn.Conv2d(128, 24, 1)  # keeps the layout, which the largest values below forget
        self.token = nn.Linear(24 * 4 * 6 + 128, self.width)
        self.position = nn.Parameter(torch.randn(FRAMES, self.width) * 0.02)
        layer = nn.TransformerEncoderLayer(self.width, 4, 3 * self.width, 0.0, batch_first=True, norm_first=True)
        self.time = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def features(self, clips):
        x = self.frame(clips.flatten(0, 1) - 0.5)
        x = self.token(torch.cat([self.where(x).flatten(1), x.amax((2, 3))], 1))
        x = self.time(x.unflatten(0, (-1, FRAMES)) + self.position)
        return torch.relu(x.mean(1) + x.amax(1))


KINDS = {"probe_a": ProbeA, "probe_b": ProbeB}


def load_probes(folder: Path, device="cpu") -> list[Probe]:
    """Both probes, ready to judge, in float32. Raises FileNotFoundError when `folder` lacks their weights."""
    probes = []
    for name, kind in KINDS.items():
        probe = kind()
        probe.load_state_dict(load_file(Path(folder) / f"{name}.safetensors"))
        probes.append(probe.float().eval().to(device))
    return probes


# ---- judging ---------------------------------------------------------------------------------------------


def wish(scene: Scene) -> dict:
    """What a clip of `scene` should show, as prompts_by_hand.json spells it."""
    return dict(subjects=dict(scene.actors)) | {name: getattr(scene, name) for name in ATTRIBUTES[2:]}


@torch.no_grad()
def answers(probes: list[Probe], video: torch.Tensor) -> list[list[torch.Tensor]]:
    """Probabilities on the CPU, a (B, n) tensor for each question: first the mean of all probes, then of each."""
    each = [[logits.softmax(1).cpu() for logits in probe(video)] for probe in probes]
    return [[sum(p) / len(p) for p in zip(*each)], *each]


def score(answer: list[torch.Tensor], wishes: list[dict]) -> dict[str, torch.Tensor]:
    """Whether each wish came true: float (B,) an attribute, 1 right, 0 wrong, NaN not asked for.

    subject: exactly the asked subjects are there. colour: each asked subject has its own. all: everything asked
    for at once. facing: no subject moves backwards. clean: not rejected.
    """
    rows = []
    actors, rest = answer[: len(SUBJECTS)], dict(zip(CHOICES, answer[len(SUBJECTS) :]))
    for i, asked in enumerate(wishes):
        seen = {s for s, p in zip(SUBJECTS, actors) if p[i].argmax() > 0}
        wanted = {s: c for s, c in asked["subjects"].items() if c}
        colours = {s: COLOURS[actors[SUBJECTS.index(s)][i, 1:].argmax()] == c for s, c in wanted.items()}
        row = dict(subject=seen == set(asked["subjects"]), colour=all(colours.values()) if colours else None)
        said = {name: CHOICES[name][p[i].argmax()] for name, p in rest.items()}
        row |= {name: said[name] == asked[name] if asked.get(name) else None for name in ATTRIBUTES[2:]}
        row["all"] = all(v for v in row.values() if v is not None)
        row["facing"] = None if set(asked["subjects"]) <= set(NO_FRONT) else said["facing"] == said["direction"]
        row["clean"] = said["clean"]
        rows.append([float("nan") if v is None else float(v) for v in row.values()])
    return dict(zip(row, torch.tensor(rows).T))


def table(scores: dict[str, torch.Tensor]) -> dict[str, float]:
    """Mean of each attribute over the clips that asked for it."""
    return {name: round(value.nanmean().item(), 4) for name, value in scores.items() if not value.isnan().all()}
