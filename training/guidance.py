"""Distil classifier-free guidance into the transformer's guidance input, as HunyuanVideo's own weights have it.

The frozen teacher is asked twice, with the prompt and with none, always at guidance 1. The student starts as its
copy, or from `--student`, where an earlier distillation ended, and learns to say at once what both make together
(Meng et al. 2023, https://arxiv.org/abs/2210.03142). Half of the batches are noised clips, half are states on the
student's own short paths from noise, for there it will be asked. The teacher's two answers are kept and used several
times, for what they make together is known at every guidance. A tenth of the prompts is empty, at guidance 1, so that
true guidance by two passes still works with the student.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections import deque
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models.transformers import transformer_hunyuan_video as hunyuan

from . import common, pocket
from .transformer import PROMPT, Maker, ask, draw_sigmas, guided, mask_by_a_channel, padded, some_guidance, velocity

GATE = (6, 0.05)  #: at this guidance, the largest relative error of the velocity that will do
USUAL = 9, False  #: frames of the latents, and whether with long captions
RARE = {(9, True): 2, (5, False): 1, (1, False): 1}  #: what else its teacher knows, and how often

# A state is what `velocity` takes: noisy (B, 16, T, H, W) float32, sigma and guidance (B,), and the prompt's
# embeds, lengths and pooled; and once the teacher was asked, its answers `told` and `untold`, shaped like noisy.
# `empty` holds embeds, lengths and pooled of the empty prompt, for a batch of one.


@torch.no_grad()
def answered(teacher, empty, state) -> dict[str, torch.Tensor]:
    """The state with the teacher's velocity for its prompt and for none, both at guidance 1, in float32."""
    told, untold = ask(teacher, empty, state)
    return state | {"told": told, "untold": untold}


def noised(clean, **prompt) -> dict[str, torch.Tensor]:
    """States as the teacher was trained on, from clean (B, 16, T, H, W)."""
    tokens = clean[0, 0].numel() / 4
    sigma = draw_sigmas(len(clean), clean.device, max(1.0, pocket.FLOW_SHIFT * math.sqrt(tokens / 756)), late=0.15)
    at = sigma.view(-1, 1, 1, 1, 1)
    return {"noisy": (1 - at) * clean + at * torch.randn_like(clean), "sigma": sigma, **prompt}


@torch.no_grad()
def rolled_out(student, steps: int, clean, **prompt) -> dict[str, torch.Tensor]:
    """States on the student's own paths: `steps` of Euler from noise shaped like `clean` to a random noise level."""
    way, noisy, shift = torch.rand(len(clean), device=clean.device), torch.randn_like(clean), pocket.FLOW_SHIFT
    even = [1 - way * j / steps for j in range(steps + 1)]
    sigmas = [shift * u / (1 + (shift - 1) * u) for u in even]
    for now, then in pairwise(sigmas):
        noisy = noisy + (then - now).view(-1, 1, 1, 1, 1) * velocity(student, noisy, now, **prompt).float()
    return {"noisy": noisy, "sigma": sigmas[-1], **prompt}


def draw(pool, batch: int, frames: int = 9, long: bool = False) -> dict[str, torch.Tensor]:
    """Clips with prompts and guidance; a quarter of the pooled vectors is another's, as the teacher knows it."""
    drawn, chance = pool.sample(batch, long), torch.rand(batch, device=pool.latents.device)
    pooled = torch.where(chance[:, None] < 0.25, drawn["pooled"].roll(1, 0), drawn["pooled"])
    clean = drawn["clean"][:, :, :frames].float()
    return {**drawn, "clean": clean, "guidance": some_guidance(chance), "pooled": pooled}


def with_empty(state, empty, share: float = 0.10) -> dict[str, torch.Tensor]:
    """The state with a share of its prompts empty, at guidance 1."""
    drop = torch.rand_like(state["sigma"]) < share
    instead = dict(zip(PROMPT, (padded(empty[0], state["embeds"]), *empty[1:])), told=state["untold"])
    instead = {
        name: torch.where(drop.view(-1, *[1] * (value.ndim - 1)), value, state[name]) for name, value in instead.items()
    }
    return state | instead | {"guidance": state["guidance"].masked_fill(drop, 1)}


def split(state) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What the student is given, and what it should say."""
    return {name: value for name, value in state.items() if name not in ("told", "untold")}, guided(**state)


def make_step(student, autocast):
    """`step(target=..., **state) -> (loss,)`: squared error, weighing less where guidance enlarges the target."""

    def step(target, **state):
        with autocast:
            v = velocity(student, **state)
        error = (v.float() - target).square().mean((1, 2, 3, 4))
        return ((error / (1 + (state["guidance"] - 1).square() / 4)).mean(),)

    return step


@torch.no_grad()
def evaluate(student, teacher, empty, pool) -> dict[str, dict[str, float]]:
    """|student - target| / |target| by guidance, in float32: guidance would enlarge bfloat16's own error."""
    drawn, errors = pool.sample(len(pool.latents)), {"noised": {}, "own paths": {}, "empty prompt": {}}
    for g in (1, 3, 6, 8):
        asked = drawn | {"clean": drawn["clean"].float(), "guidance": torch.full_like(drawn["pooled"][:, 0].float(), g)}
        states = {"noised": noised(**asked), "own paths": rolled_out(student, 8, **asked)}
        states = {name: answered(teacher, empty, state) for name, state in states.items()}
        if g == 1:
            states["empty prompt"] = with_empty(states["noised"], empty, 1)
        for name, state in states.items():
            given, target = split(state)
            errors[name][str(g)] = ((velocity(student, **given).float() - target).norm() / target.norm()).item()
    return errors


def main():
    args = common.options(
        __doc__,
        seconds=150.0,
        batch=128,
        rate=5e-4,
        bundle=str(pocket.POCKET),
        student="",
        pool=16_384,
        pool_seconds=20.0,
        renew_every=8,
        kept=48,
        compile=True,
        graphs=True,
        decay=0.5,
        pair=0.5,
        workers=0,
    )
    start, cuda, load = time.monotonic(), args.device != "cpu", HunyuanVideoTransformer3DModel.from_pretrained
    autocast = torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=cuda, cache_enabled=False)
    hunyuan.dispatch_attention_fn = mask_by_a_channel
    whole = args.resume or Path(args.bundle) / "transformer"
    teacher, student = (load(path).to(args.device, torch.float32) for path in (whole, args.student or whole))
    teacher.requires_grad_(False)
    average = common.Average(student, 0.999)
    maker = Maker(
        Path(args.bundle), args.device, args.seed * 1000 + args.rank, 64 if cuda else 4, args.pair, args.workers
    )
    pool, empty = maker.fill(args.pool_seconds, args.pool // args.world), tuple(vars(maker.empty).values())
    if cuda and args.compile:
        for m in (teacher, student, average.model):  # the first and the last share what is compiled
            for block in [*m.transformer_blocks, *m.single_transformer_blocks]:
                block.compile(dynamic=False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=cuda)
    recorder, step = common.Recorder(student, cuda and args.graphs), make_step(student, autocast)
    rng, kept = random.Random(args.seed), {kind: deque(maxlen=args.kept) for kind in (USUAL, *RARE)}
    clock = common.Clock(args.seconds - (time.monotonic() - start), args.log_every, args.rank)
    for i in clock:
        kind = USUAL if i < 20 or rng.random() < 0.85 else rng.choices(list(RARE), RARE.values())[0]
        usual, states, (frames, long) = kind == USUAL, kept[kind], kind
        if len(states) < 4 or rng.random() < 1 / args.renew_every:
            state, own = (
                draw(pool, args.batch if usual else args.batch // 2, frames, long),
                usual and rng.random() < 0.5,
            )
            with autocast, torch.compiler.set_stance("default" if usual else "force_eager"):
                # paths of the average, for that is what will be used
                state = rolled_out(average.model, rng.randint(4, 8), **state) if own else noised(**state)
                states.append((own, answered(teacher, empty, state)))
        own, state = rng.choice(states)
        if not own:  # a path has the guidance it was made with
            state = state | {"guidance": some_guidance(state["guidance"])}
        given, target = split(with_empty(state, empty))
        (loss,) = recorder(step, usual, target=target, **given)
        common.average_gradients(student)
        common.learning_rate(optimizer, args.rate, clock.progress, decay=args.decay)
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        average.update(student)
        clock.log(loss=loss, norm=norm)
    common.save(average.model, args.out / "transformer")
    if args.rank == 0:
        saved = load(args.out / "transformer").to(args.device, torch.float32)  # as rounded to float16
        torch.set_float32_matmul_precision("highest")
        with torch.compiler.set_stance("force_eager"):
            errors = evaluate(saved, teacher, empty, maker.make())
        for name, by_guidance in errors.items():
            print(f"{name:12}" + "".join(f"   {g}: {100 * error:6.2f} %" for g, error in by_guidance.items()))
        passed = max(errors[name][str(GATE[0])] for name in ("noised", "own paths")) <= GATE[1]
        numbers = {"errors": errors, "passed": passed, "steps": clock.step, "seconds": args.seconds}
        (args.out / "guidance.json").write_text(json.dumps(numbers, indent=1))
        print(json.dumps(numbers), flush=True)


if __name__ == "__main__":
    main()
