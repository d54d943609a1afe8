"""Train the judge of adherence (`training.judge`), and examine it.

    python -m training.probe --seconds 150 --vae t2v_kit/pocket/vae --out training/weights

The probes learn from renderings and VAE decodes (all combinations, held-out ones too: a judge must not share the
blind spots of the judged); from as many clips played backwards, so that direction can only be read from motion; and
from spoilt clips to reject. They never see a generated clip.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import t2v_kit  # noqa: F401  before diffusers: makes torchvision importable
from t2v_kit.toyland import (
    COLOURS,
    DIRECTIONS,
    FPS,
    ONLY_AT,
    PLACES,
    SKIES,
    SPEEDS,
    SUBJECTS,
    Scene,
    random_scene,
    render_batch,
)
from t2v_kit.toyland.picture import draw
from training.common import Clock, Muon, learning_rate, options
from training.judge import (
    FRAMES,
    HEIGHT,
    KINDS,
    NO_FRONT,
    SIZES,
    WIDTH,
    Probe,
    answers,
    load_probes,
    score,
    shrink,
    table,
    wish,
)

UNKNOWN = -100  #: a label that does not count (cross_entropy's ignore_index)


# ---- what they learn from --------------------------------------------------------------------------------


def labels(scenes: list[Scene]) -> torch.Tensor:
    """(B, questions) classes, in the order of SIZES."""
    rows = []
    for s in scenes:
        actors = dict(s.actors)
        row = [COLOURS.index(actors[name]) + 1 if name in actors else 0 for name in SUBJECTS]
        facing = UNKNOWN if set(actors) <= set(NO_FRONT) else DIRECTIONS.index(s.direction)
        rows.append(
            [
                *row,
                PLACES.index(s.place),
                SKIES.index(s.sky),
                DIRECTIONS.index(s.direction),
                SPEEDS.index(s.speed),
                facing,
                1,
            ]
        )
    return torch.tensor(rows)


@torch.no_grad()
def through(vae, video: torch.Tensor, noise: float = 0.0, batch: int = 8) -> torch.Tensor:
    """Encode and decode (B, 3, T, H, W) in [0, 1] with the VAE's own tiling; `noise`, in latent deviations, between."""
    out = []
    for part in video.split(batch):
        latents = vae.encode(part.to(vae.dtype) * 2 - 1).latent_dist.mode()
        latents = latents + noise * torch.randn_like(latents) / vae.config.scaling_factor
        out.append((vae.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1))
    return torch.cat(out)


def blend(one, other):
    """Two clips at once, or the first turning into the second."""
    n, _, t = one.shape[:3]
    weight = 0.35 + 0.3 * torch.rand(n, 1, 1, 1, 1, device=one.device)
    time = torch.linspace(-0.5, 0.5, t, device=one.device).view(1, 1, -1, 1, 1)
    ramp = torch.sigmoid((time - 0.5 * torch.rand_like(weight) + 0.25) * 12)
    return one.lerp(other, torch.where(torch.rand_like(weight) < 0.5, weight, ramp))


def melt(video):
    """Bent by a smooth random field that changes with time."""
    n, _, t, h, w = video.shape
    field = F.interpolate(torch.randn(n, 2, 4, 5, 8, device=video.device) * 0.12, (t, h, w), mode="trilinear")
    same = torch.eye(2, 3, device=video.device).expand(n * t, 2, 3)
    grid = F.affine_grid(same, (n * t, 3, h, w), align_corners=False)
    grid = grid + field.permute(0, 2, 3, 4, 1).flatten(0, 1)
    bent = F.grid_sample(video.transpose(1, 2).flatten(0, 1), grid, padding_mode="border", align_corners=False)
    return bent.unflatten(0, (n, t)).transpose(1, 2)


def dirty(video):
    """Half under heavy noise, half hardly to be made out."""
    n, _, t, h, w = video.shape
    blurred = F.interpolate(F.interpolate(video, (t, h // 14, w // 14), mode="area"), (t, h, w), mode="trilinear")
    noisy = (video + torch.randn_like(video) * (0.4 + 0.4 * torch.rand(n, 1, 1, 1, 1, device=video.device))).clamp(0, 1)
    return torch.where(torch.arange(n, device=video.device).view(-1, 1, 1, 1, 1) % 2 == 0, blurred, noisy)


SPOILT = {  # to be rejected; `twin` is the same scene with another main subject
    "morph": lambda video, twin: blend(video, twin),
    "mix": lambda video, twin: blend(video, twin.roll(1, 0)),
    "melt": lambda video, twin: melt(video),
    "dirty": lambda video, twin: dirty(video),
    "shuffled": lambda video, twin: video[:, :, torch.randperm(video.shape[2], device=video.device)],
    "still": lambda video, twin: video[:, :, :1].expand_as(video),
}


def twins(scenes: list[Scene], rng: random.Random) -> list[Scene]:
    """Each scene with another main subject that can be where it is."""
    return [
        replace(
            s,
            subject=rng.choice([x for x in SUBJECTS if x not in dict(s.actors) and ONLY_AT.get(x, s.place) == s.place]),
        )
        for s in scenes
    ]


def fresh(rng: random.Random, count: int, device, vae=None) -> tuple[torch.Tensor, torch.Tensor]:
    """New clips as the probes see them, (B, 17, 3, 56, 96) uint8, and labels (B, questions): a third as drawn, a third
    played backwards, a third spoilt; all decoded if a VAE is given."""
    scenes = [random_scene(rng, pair=0.5) for _ in range(count)]  # two at once are what is hard
    spoil = max(2, count // 3 // len(SPOILT))  # clips of each spoilt kind
    first = count - spoil * len(SPOILT)
    back = first // 2
    drawn = scenes + twins(scenes[first:], rng)
    if vae is None:  # half the frames a second: only every other frame is looked at
        video = draw(drawn, 2 * HEIGHT, 2 * WIDTH, FRAMES, FPS / 2, device).image
    else:
        video = through(vae, render_batch(drawn, device=device), noise=0.15 * rng.random())[:, :, ::2]
    video, twin = video[:count].clone(), video[count:]
    label = labels(scenes).to(device)
    video[:back] = video[:back].flip(2)
    label[:back, -4] = 1 - label[:back, -4]  # it moves the other way now, and faces as before
    label[:back, -1] = UNKNOWN  # neither clean nor spoilt: `facing` tells
    for i, kind in enumerate(SPOILT.values()):
        part = slice(i * spoil, (i + 1) * spoil)
        video[first:][part] = kind(video[first:][part].clone(), twin[part])
    label[first:, :-1], label[first:, -1] = UNKNOWN, 0
    return (shrink(video) * 255).round().to(torch.uint8), label


def augment(clips: torch.Tensor) -> torch.Tensor:
    """uint8 -> float in [0, 1] with other contrast, brightness, tint and a little noise."""

    def around(value, spread, channels=1):
        return value + spread * (2 * torch.rand(len(clips), 1, channels, 1, 1, device=clips.device) - 1)

    x = (clips / 255.0 - 0.5) * around(1.0, 0.15) * around(1.0, 0.05, 3) + 0.5 + around(0.0, 0.06)
    return (x + torch.randn_like(x) * around(0.02, 0.02)).clamp(0, 1)


# ---- training and the exam -------------------------------------------------------------------------------


def train(args, probes: list[Probe], vae=None):
    """Both probes on the same clips, from a pool in which new clips replace the oldest. Every `every`th step clips are
    added; every `vae_every`th addition is decoded, and smaller, because the VAE is what takes the time."""
    rng = random.Random(args.seed)
    pool = torch.zeros(args.pool, FRAMES, 3, HEIGHT, WIDTH, dtype=torch.uint8, device=args.device)
    marks = torch.zeros(args.pool, len(SIZES), dtype=torch.long, device=args.device)
    everything = [p for probe in probes for p in probe.parameters()]
    optimizer = Muon(everything, args.rate)
    filled, clock = 0, Clock(args.seconds, args.log_every)
    for step in clock:
        if step % args.every == 0 or filled < 4 * args.batch:  # or the first few clips are learnt by heart
            decoded = vae is not None and step // args.every % args.vae_every == args.vae_every - 1
            clips, label = fresh(rng, args.fresh // 3 if decoded else args.fresh, args.device, vae if decoded else None)
            slots = torch.arange(filled, filled + len(clips), device=args.device) % args.pool
            pool[slots], marks[slots] = clips, label
            filled += len(clips)
        pick = torch.randint(min(filled, args.pool), (args.batch,), device=args.device)
        video, label = augment(pool[pick]), marks[pick]
        losses = []
        for probe in probes:
            with torch.autocast(args.device.split(":")[0], torch.bfloat16):
                out = probe.last(probe.features(video)).float().split(SIZES, dim=1)
            # summed, not averaged: a batch may lack every label of a question, and the mean of none is NaN
            losses.append(
                sum(F.cross_entropy(o, t, ignore_index=UNKNOWN, reduction="sum") for o, t in zip(out, label.T))
                / args.batch
            )
        learning_rate(optimizer, args.rate, clock.progress, decay=0.6)
        optimizer.zero_grad()
        sum(losses).backward()
        torch.nn.utils.clip_grad_norm_(everything, 5.0)
        optimizer.step()
        clock.log(a=losses[0].detach(), b=losses[1].detach(), clips=filled)


@torch.no_grad()
def exam(probes: list[Probe], device, vae=None, count: int = 480, batch: int = 48) -> dict:
    """Held-out scenes, the same every time: as drawn, decoded, in shuffled order, and spoilt. Rates from 0 to 1."""
    torch.manual_seed(1)
    rng = random.Random(20_000)
    scenes = [random_scene(rng, unseen=True) for _ in range(count)]
    heard = {}  # by treatment, what both say together and each alone
    for start in range(0, count, batch):
        part = scenes[start : start + batch]
        drawn, twin = render_batch(part, device=device), render_batch(twins(part, rng), device=device)
        shown = {"drawn": drawn} | {name: kind(drawn, twin) for name, kind in SPOILT.items()}
        if vae is not None:
            shown["decoded"] = through(vae, drawn)
        for name, video in shown.items():
            scores = [score(answer, [wish(s) for s in part]) for answer in answers(probes, video)]
            heard.setdefault(name, []).append(scores)
    heard = {
        name: {
            who: {k: torch.cat([p[i][k] for p in parts]) for k in parts[0][i]} for i, who in enumerate(("both", *KINDS))
        }
        for name, parts in heard.items()
    }
    tables = {name: {who: table(scores) for who, scores in each.items()} for name, each in heard.items()}
    a, b = (heard["drawn"][name] for name in KINDS)
    return {
        **{name: tables[name] for name in ("drawn", "decoded") if name in tables},
        "direction when frames are shuffled": {who: t["direction"] for who, t in tables["shuffled"].items()},
        "rejected": {kind: {who: round(1 - t["clean"], 4) for who, t in tables[kind].items()} for kind in SPOILT},
        "agreement": {k: round((a[k] == b[k])[~a[k].isnan()].float().mean().item(), 4) for k in a},
        "clips": count,
        "parameters": {name: sum(p.numel() for p in probe.parameters()) for name, probe in zip(KINDS, probes)},
    }


def main():
    args = options(
        __doc__.splitlines()[0],
        seconds=150.0,
        out=Path("training/weights"),
        batch=192,
        fresh=96,
        every=4,
        pool=8192,
        rate=1e-3,
        vae="",
        vae_every=3,
        exam=480,
    )
    vae = None
    if args.vae:
        from diffusers import AutoencoderKLHunyuanVideo

        dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
        vae = AutoencoderKLHunyuanVideo.from_pretrained(args.vae, torch_dtype=dtype).eval().to(args.device)
    probes = load_probes(args.resume) if args.resume else [kind() for kind in KINDS.values()]
    probes = [probe.to(args.device, memory_format=torch.channels_last).train() for probe in probes]
    train(args, probes, vae)
    for name, probe in zip(KINDS, probes):
        state = {k: v.half() if v.is_floating_point() else v for k, v in probe.state_dict().items()}
        save_file({k: v.contiguous().cpu() for k, v in state.items()}, args.out / f"{name}.part")
        (args.out / f"{name}.part").replace(args.out / f"{name}.safetensors")
    saved = load_probes(args.out, args.device)  # what was saved is examined, not what was trained
    result = exam(saved, args.device, vae, args.exam) | {"seconds": args.seconds}
    (args.out / "probe.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
