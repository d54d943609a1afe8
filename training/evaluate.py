"""Measure pocket as it is shipped, and write the numbers beside its weights (evaluation.json).

    python -m training.evaluate --what all --out training/out

What is measured: vae, adherence, by_hand, typing, underspecified, guidance, text, or all of them. Everything
runs on the saved weights in float32 with the pipeline's defaults (with `--fast` products in TF32 and, where it is not
itself measured, the VAE in bfloat16); the judge is `training.judge`. Scenes are held out
from training and follow from --seed: select checkpoints with another seed than the one reported. Pictures to look at
are written to --out.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import time
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import diffusers
import torch
from diffusers import HunyuanVideoTransformer3DModel

import t2v_kit
from t2v_kit.hunyuan.files import NETWORKS
from t2v_kit.toyland import FPS, Scene, caption, random_scene, render_batch
from t2v_kit.toyland.picture import draw
from training.batches import Judged, compare, contact_sheet, edges, encode, judge, size, trajectory, velocity
from training.common import options
from training.judge import ATTRIBUTES, KINDS, Probe, answers, load_probes, score, shrink, table, wish
from training.probe import through

BY_HAND = Path(__file__).with_name("prompts_by_hand.json")
GUIDANCE = (1.0, 3.0, 6.0)
FAST = "transformer float32 with TF32 products, VAE bfloat16"


@dataclass
class Bench:
    """What every measurement needs; `deadline` as in `batches.judge`."""

    models: object
    probes: list[Probe]
    batch: int
    count: int
    seed: int
    out: Path
    deadline: float
    teacher: HunyuanVideoTransformer3DModel

    def scenes(self, count: int, salt: int) -> list[Scene]:
        rng = random.Random(1_000_000 * salt + self.seed)
        return [random_scene(rng, unseen=True) for _ in range(count)]

    def draw(self, scenes: list[Scene]) -> torch.Tensor:
        return render_batch(scenes, device=self.models.device, **size(self.models))

    def judge(self, prompts: list[str], **how) -> Judged:
        return judge(self.models, self.probes, prompts, batch=self.batch, deadline=self.deadline, **how)


def psnr(error: torch.Tensor) -> torch.Tensor:
    """dB of a mean squared error of 8-bit values; no more than 78, for equal pictures."""
    return 10 * torch.log10(255**2 / error.clamp(min=1e-3))


def measure_vae(bench: Bench) -> dict:
    """PSNR on 8-bit frames of held-out clips, encoded to the posterior's mode and decoded with the default tiling."""
    vae, scenes = bench.models.pipe.vae, bench.scenes(min(64, bench.count), 1)
    clip, subject, by_frame, shown = [], [], [], []
    for start in range(0, len(scenes), 8):
        canvas = draw(
            scenes[start : start + 8], **size(bench.models), fps=FPS, device=bench.models.device, with_truth=True
        )
        true, masks = (canvas.image * 255).round(), (canvas.owner > 0).cpu()
        decoded = (through(vae, true / 255) * 255).round()
        error = (true - decoded).square().mean(1).cpu()  # (B, T, H, W)
        clip.append(psnr(error.mean((1, 2, 3))))
        subject.append(psnr((error * masks).sum((1, 2, 3)) / masks.sum((1, 2, 3))))
        by_frame.append(psnr(error.mean((2, 3))))
        shown += list(zip(true.cpu() / 255, decoded.cpu() / 255))[: max(0, 4 - len(shown))]
    clip, subject, by_frame = torch.cat(clip), torch.cat(subject), torch.cat(by_frame).mean(0)
    compare(shown, bench.out / "vae.png")
    return rounded(
        {
            "clips": len(scenes),
            "how": "dB on uint8 frames from each clip's mean squared error over all its pixels, then the mean over "
            "clips; subject: over the pixels of the subjects' masks; by frame: each clip's frame, then the mean over "
            "clips",
            "psnr": clip.mean(),
            "psnr_worst_tenth": clip.sort().values[: max(1, len(clip) // 10)].mean(),
            "psnr_subject": subject.mean(),
            "psnr_by_frame": by_frame.tolist(),
            "largest_jump_between_frames": by_frame.diff().abs().max(),
        },
        2,
    )


def measure_adherence(bench: Bench) -> dict:
    """Held-out captions, with the probes' own score on decoded true clips of the same scenes beside (ceiling)."""
    scenes = bench.scenes(bench.count, 2)
    prompts, wishes = [caption(s) for s in scenes], [wish(s) for s in scenes]
    judged = bench.judge(prompts, keep=24)
    both, a, b = judged.scores(wishes)
    done = len(judged.seen)
    ceiling, seen, sharp, again = [], [], [], []
    for start in range(0, done, bench.batch):
        part = slice(start, min(done, start + bench.batch))
        true = through(bench.models.pipe.vae, bench.draw(scenes[part]))
        ceiling.append(score(answers(bench.probes, true)[0], wishes[part]))
        seen.append((shrink(true) * 255).round().to(torch.uint8).cpu())
        sharp.append(edges(true).cpu())
        other = bench.draw([replace(s, seed=s.seed ^ 1) for s in scenes[part]])  # the same in words
        again.append((shrink(through(bench.models.pipe.vae, other)) * 255).round().to(torch.uint8).cpu())
    # what falls or flickers moves too, so only where nothing but the subject does
    clear = torch.tensor([s.speed == "high" and s.sky in ("sunny", "night") for s in scenes[:done]])
    generated, drawn, others = (features(bench, clips) for clips in (judged.seen, torch.cat(seen), torch.cat(again)))
    contact_sheet(prompts, judged.videos, bench.out / "adherence.png")
    words = {name: [getattr(s, name) for s in scenes[:done]] for name in ATTRIBUTES}
    alone = [s.companion is None for s in scenes[:done]]
    return {
        "prompts": done,
        "adherence": table(both),
        "ceiling": table({k: torch.cat([c[k] for c in ceiling]) for k in both}),
        "each_probe": {name: table(s) for name, s in zip(KINDS, (a, b))},
        "probes_agree": {k: round((a[k] == b[k])[~a[k].isnan()].float().mean().item(), 4) for k in both},
        "rejected": rounded(1 - both["clean"].mean()),
        "realism": rounded(
            {
                "how": "Frechet distance between the 160 features of probe A of the generated clips and of the same "
                "scenes drawn and through the VAE; floor: between the latter and the same drawn with other seeds",
                "frechet": frechet(generated, drawn),
                "floor": frechet(others, drawn),
            },
            2,
        ),
        "sharpness": rounded(
            {
                "how": "mean gradient of what moves (`batches.edges`) at high speed, sunny or at night",
                "clips": int(clear.sum()),
                "generated": judged.sharp[clear].nanmean(),
                "drawn": torch.cat(sharp)[clear].nanmean(),
                "ratio": judged.sharp[clear].nanmean() / torch.cat(sharp)[clear].nanmean(),
            }
        ),
        "one_subject": only(both, alone),
        "two_subjects": only(both, [not x for x in alone]),
        "by_word": {
            name: {word: only(both, [w == word for w in said])[name] for word in sorted(set(said))}
            for name, said in words.items()
        },
    }


@torch.no_grad()
def features(bench: Bench, seen: torch.Tensor) -> torch.Tensor:
    """Probe A's, (B, 160) float64 on the CPU, of clips as the probes see them."""
    parts = [bench.probes[0].features(part.to(bench.models.device) / 255.0) for part in seen.split(bench.batch)]
    return torch.cat(parts).double().cpu()


def frechet(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Frechet distance of two sets of features, (N, D), as if both were normal (Heusel et al. 2017)."""
    a, b = torch.cov(x.T), torch.cov(y.T)
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    both = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    return (x.mean(0) - y.mean(0)).square().sum() + a.trace() + b.trace() - 2 * both


def measure_by_hand(bench: Bench) -> dict:
    """The prompts of prompts_by_hand.json by kind, and what went wrong with which."""
    rows = by_hand(bench)
    judged = bench.judge([r["prompt"] for r in rows], keep=len(rows))
    rows = rows[: len(judged.seen)]
    both = judged.scores(rows)[0]
    some = range(0, len(rows), -(-len(rows) // 24))
    contact_sheet([rows[i]["prompt"] for i in some], judged.videos[some], bench.out / "by_hand.png")
    kinds = {kind: [r["kind"] == kind for r in rows] for kind in dict.fromkeys(r["kind"] for r in rows)}
    wrong = {r["prompt"]: [k for k in (*ATTRIBUTES, "clean") if both[k][i] == 0] for i, r in enumerate(rows)}
    ours = [r["kind"] != "project" for r in rows]
    return {
        "all but the project's own": {"prompts": sum(ours)} | only(both, ours),
        "by_kind": {kind: {"prompts": sum(which)} | only(both, which) for kind, which in kinds.items()},
        "wrong": {prompt: names for prompt, names in wrong.items() if names},
    }


def by_hand(bench: Bench) -> list[dict]:
    """The rows of prompts_by_hand.json; of each kind some, if fewer are wanted."""
    rows = json.loads(BY_HAND.read_text("utf-8"))
    return rows[:: max(1, len(rows) // bench.count)]


def measure_typing(bench: Bench) -> dict:
    """Prompts by hand as typed and with their first letter large or small, with a full stop or none, from the same
    noise. same: share of prompts on which the verdict, everything right or not, is one and the same."""
    rows = by_hand(bench)
    rows = rows[:: max(1, 2 * len(rows) // max(2, bench.count // 3))]
    bare = [row["prompt"].rstrip(".") for row in rows]
    verdicts = []
    for stop in ("", "."):
        for first in (str.upper, str.lower):
            judged = bench.judge([first(text[0]) + text[1:] + stop for text in bare])
            verdicts.append(judged.scores(rows)[0]["all"])
    many = min(map(len, verdicts))
    verdicts = torch.stack([v[:many] for v in verdicts])
    return rounded(
        {
            "prompts": many,
            "same": (verdicts == verdicts[0]).all(0).float().mean(),
            "all": {
                name: rate for name, rate in zip(("Large.", "small.", "Large", "small"), verdicts[[2, 3, 0, 1]].mean(1))
            },
        }
    )


def measure_underspecified(bench: Bench) -> dict:
    """Held-out captions of one subject that leave two to five of the other attributes open. clean_subject: the subject
    asked for and no other, in a clip of the world, facing where it moves."""
    rng = random.Random(bench.seed + 6)
    scenes = [random_scene(rng, pair=0, unseen=True) for _ in range(max(4, bench.count // 6))]
    open_to_choice = ("colour", "place", "sky", "direction", "speed")
    omitted = [tuple(rng.sample(open_to_choice, rng.randint(2, 5))) for _ in scenes]
    prompts = [caption(s, omit=omit) for s, omit in zip(scenes, omitted)]
    wishes = [
        {name: value for name, value in wish(s).items() if name not in omit}
        | {"subjects": {s.subject: None if "colour" in omit else s.colour}}
        for s, omit in zip(scenes, omitted)
    ]
    judged = bench.judge(prompts, keep=24)
    both = judged.scores(wishes)[0]
    contact_sheet(prompts, judged.videos, bench.out / "underspecified.png")
    good = (both["subject"] == 1) & (both["clean"] == 1) & (both["facing"] != 0)
    return rounded({"prompts": len(good), "clean_subject": good.float().mean()} | table(both))


def measure_guidance(bench: Bench) -> dict:
    """What the knob does. diversity: mean distance between four videos of one prompt that leaves place and sky open
    (of probe A's features; of pixels, root mean square, 0 to 1). chroma: mean of max - min over RGB, 0 to 1."""
    scenes = bench.scenes(max(4, bench.count // 5), 3)
    loose = [s for s in scenes[: max(2, bench.count // 25)] for _ in range(4)]
    texts, open_texts = [caption(s) for s in scenes], [caption(s, omit=("place", "sky")) for s in loose]
    result = {}
    for guidance in GUIDANCE:
        judged = bench.judge(texts, guidance=guidance)
        seen, free = judged.seen / 255, bench.judge(open_texts, guidance=guidance).seen / 255
        with torch.no_grad():
            features = bench.probes[0].features(free.to(bench.models.device)).cpu()
        result[f"{guidance:g}"] = {
            "prompts": len(seen),
            "adherence": table(judged.scores([wish(s) for s in scenes])[0]),
            "diversity_features": spread(features),
            "diversity_pixels": spread(free.flatten(1)) / free[0].numel() ** 0.5,
            "chroma": (seen.amax(2) - seen.amin(2)).mean(),
        } | teacher_distance(bench, texts[:16], guidance)
    return rounded(result)


def spread(x: torch.Tensor) -> torch.Tensor:
    """Mean distance between the members of each group of four, (4 n, D); an incomplete last group is left out."""
    groups = x[: len(x) // 4 * 4].unflatten(0, (-1, 4))
    return torch.stack([torch.pdist(group).mean() for group in groups]).mean()


def teacher_distance(bench: Bench, texts: list[str], guidance: float) -> dict:
    """How far one pass with distilled guidance is from true classifier-free guidance, two passes of the same
    transformer at guidance 1 (or of `--teacher`), relative to the latter's size, along the former's own way; and how
    far it would be if the knob did nothing."""
    text, empty = encode(bench.models, texts), encode(bench.models, [""] * len(texts))
    missed = idle = size = 0.0
    for latents, timestep, student in list(trajectory(bench.models, text, list(range(len(texts))), guidance))[:-1]:
        with_text = velocity(bench.teacher, latents, timestep, text, 1.0)
        without = velocity(bench.teacher, latents, timestep, empty, 1.0)
        target = without + guidance * (with_text - without)
        missed, idle = missed + (student - target).square().sum(), idle + (with_text - target).square().sum()
        size = size + target.square().sum()
    return {"velocity_error": (missed / size).sqrt(), "velocity_error_without_knob": (idle / size).sqrt()}


def measure_text(bench: Bench) -> dict:
    """Does the transformer read the tokens? Tokens and pooled vector of two different prompts, A and B, from the same
    noise. change: mean absolute difference of pixels to the video of A alone, 0 to 1."""
    scenes, others = bench.scenes(max(4, bench.count // 5), 4), bench.scenes(max(4, bench.count // 5), 5)
    a, b = [caption(s) for s in scenes], [caption(s) for s in others]
    plain, result = None, {}
    pairs = {"tokens A, pooled A": (a, a), "tokens A, pooled B": (a, b), "tokens B, pooled A": (b, a)}
    for name, (tokens, pooled) in pairs.items():
        judged = bench.judge(tokens, pooled_from=pooled)
        seen = judged.seen / 255
        plain = seen if plain is None else plain
        both = min(len(seen), len(plain))
        result[name] = {
            "prompts": len(seen),
            "follows_a": table(judged.scores([wish(s) for s in scenes])[0]),
            "follows_b": table(judged.scores([wish(s) for s in others])[0]),
            "change": (seen[:both] - plain[:both]).abs().mean(),
        }
    return rounded(result)


def only(scores: dict[str, torch.Tensor], which: list[bool]) -> dict[str, float]:
    """`table` of some of the clips."""
    return table({name: value[torch.tensor(which)] for name, value in scores.items()})


def digest(folder: Path) -> str:
    """16 hex digits of the SHA-256 over a part's weight files."""
    files = sorted(folder.glob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def rounded(value, digits: int = 4):
    """Tensors and floats in nested dicts and lists as rounded floats."""
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v, digits) for v in value]
    return round(float(value), digits) if isinstance(value, (float, torch.Tensor)) else value


#: the parts of the bundle that a measurement depends on; the others are free to change without it
PARTS = {"vae": ("vae",)} | dict.fromkeys(
    ("adherence", "by_hand", "typing", "underspecified", "guidance", "text"), NETWORKS
)
MEASUREMENTS = dict(
    vae=measure_vae,
    adherence=measure_adherence,
    by_hand=measure_by_hand,
    typing=measure_typing,
    underspecified=measure_underspecified,
    guidance=measure_guidance,
    text=measure_text,
)


def show(result: dict, indent: str = "  "):
    """A table: one line a dict of numbers."""
    for key, value in result.items():
        if isinstance(value, dict) and any(isinstance(v, dict) for v in value.values()):
            print(f"{indent}{key}")
            show(value, indent + "  ")
        elif isinstance(value, dict):
            print(f"{indent}{key:22s} " + "  ".join(f"{k} {v}" for k, v in value.items()))
        else:
            print(f"{indent}{key:22s} {value}")


def main():
    args = options(
        __doc__.splitlines()[0],
        what="all",
        model="pocket",
        teacher="",
        probes=Path("training/weights"),
        batch=64,
        count=600,
        seconds=1200.0,
        fast=False,
    )
    torch.set_float32_matmul_precision("high" if args.fast else "highest")
    models = t2v_kit.load(args.model, dtype="float32")
    exact = models.pipe.vae
    usual = copy.deepcopy(exact).bfloat16() if args.fast else exact
    teacher = models.pipe.transformer
    if args.teacher:
        teacher = HunyuanVideoTransformer3DModel.from_pretrained(args.teacher, torch_dtype=torch.float32)
        teacher = teacher.eval().to(models.device)
    bench = Bench(
        models,
        load_probes(args.probes, models.device),
        args.batch,
        args.count,
        args.seed,
        args.out,
        time.monotonic() + args.seconds,
        teacher,
    )
    on = torch.cuda.get_device_name(models.device) if models.device.type == "cuda" else "CPU"
    made_with = {
        "device": on,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "date": date.today().isoformat(),
        "seed": args.seed,
        "settings": models.defaults,
    }
    file = models.folder / "evaluation.json"
    wanted = list(MEASUREMENTS) if args.what == "all" else args.what.split(",")
    for name in wanted:
        start = time.monotonic()
        models.pipe.vae = exact if name == "vae" else usual
        result = MEASUREMENTS[name](bench)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
        show(result)
        known = json.loads(file.read_text("utf-8")) if file.exists() else {}
        used = {"weights": {part: digest(models.folder / part) for part in PARTS[name]}}
        used |= {"judge": digest(args.probes)} if name != "vae" else {}
        used["dtype"] = FAST if args.fast and name != "vae" else "float32"
        known[name] = result | {"made_with": used | made_with}
        part = file.with_suffix(".part")
        part.write_text(json.dumps(known, indent=1) + "\n", "utf-8")
        part.replace(file)


if __name__ == "__main__":
    main()
