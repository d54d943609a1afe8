"""Let the transformer's guidance input and asking it twice agree, without changing what its videos show.

`training.guidance` leaves a student that falls short of true guidance: what guidance adds is a small difference of two
answers, made large, and one pass does not find all of it. Here the two answers come towards the pass as well. Each step
asks three times about the same noisy clips: at a guidance drawn from 1 to 8, and at guidance 1 with the prompt and with
none. The three learn to agree,

    v(guidance) = v_none + guidance (v_prompt - v_none),

with gradients into all of them, and each to stay near what the weights that training began with (the anchor) say: a
disagreement of d at guidance 6 is gone when v_prompt moves by about d / 10. Half of the states are noised clips, half
lie on the model's own short paths from noise, for there it will be asked.
"""

from __future__ import annotations

import json
import random
import time
from collections import deque
from pathlib import Path

import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models.transformers import transformer_hunyuan_video as hunyuan

from . import common, pocket
from .guidance import RARE, USUAL, draw, evaluate, noised, rolled_out
from .transformer import PROMPT, Maker, guided, mask_by_a_channel, padded, velocity


def thrice(model, empty, noisy, sigma, guidance, **prompt) -> tuple[torch.Tensor, ...]:
    """The velocity at the guidance asked for, and at guidance 1 with the prompt and with none, in float32."""
    one, (embeds, *others) = torch.ones_like(sigma), empty
    nothing = [padded(embeds, prompt["embeds"]), *others]
    prompts = {name: torch.cat([mine := prompt[name], mine, e.expand_as(mine)]) for name, e in zip(PROMPT, nothing)}
    each = {"noisy": noisy.repeat(3, 1, 1, 1, 1), "sigma": sigma.repeat(3), "guidance": torch.cat([guidance, one, one])}
    return velocity(model, **each, **prompts).float().chunk(3)


def make_step(model, empty, autocast, agree: float):
    """`step(knob=, told=, untold=, **state) -> (loss, moved, off)`, the first three being what the anchor says."""

    def step(knob, told, untold, guidance, **state):
        with autocast:
            new = thrice(model, empty, guidance=guidance, **state)
        size = 1 + (guidance - 1).square() / 4  # guidance enlarges both sides
        moved = [
            (v - old).square().mean((1, 2, 3, 4)) / by for v, old, by in zip(new, (knob, told, untold), (size, 1, 2))
        ]
        off = ((new[0] - guided(*new[1:], guidance)).square().mean((1, 2, 3, 4)) / size).mean()
        moved = sum(moved).mean()
        return moved + agree * off, moved.detach(), off.detach()

    return step


@torch.no_grad()
def lesson(anchor, empty, state) -> dict[str, torch.Tensor]:
    """The state with the anchor's three answers."""
    return state | dict(zip(("knob", "told", "untold"), thrice(anchor, empty, **state), strict=True))


def main():
    args = common.options(
        __doc__,
        seconds=300.0,
        batch=64,
        rate=5e-4,
        bundle=str(pocket.POCKET),
        pool=16_384,
        pool_seconds=20.0,
        renew_every=5,
        kept=64,
        compile=True,
        graphs=True,
        decay=0.6,
        ema=0.999,
        pair=0.65,
        silent=0.3,
        slips=0.2,
        agree=4.0,
        workers=0,
    )
    start, cuda, load = time.monotonic(), args.device != "cpu", HunyuanVideoTransformer3DModel.from_pretrained
    autocast = torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=cuda, cache_enabled=False)
    hunyuan.dispatch_attention_fn = mask_by_a_channel
    whole = args.resume or Path(args.bundle) / "transformer"
    model, anchor = (load(path).to(args.device, torch.float32) for path in (whole, whole))
    anchor.requires_grad_(False)
    average = common.Average(model, args.ema)
    noise, seed = (args.silent, args.slips), args.seed * 1000 + args.rank
    maker = Maker(Path(args.bundle), args.device, seed, 64 if cuda else 4, args.pair, args.workers, noise)
    pool, empty = maker.fill(args.pool_seconds, args.pool // args.world), tuple(vars(maker.empty).values())
    if cuda and args.compile:
        for m in (model, anchor, average.model):
            for block in [*m.transformer_blocks, *m.single_transformer_blocks]:
                block.compile(dynamic=False)
    optimizer = common.Muon(model.parameters(), args.rate)
    recorder, step = common.Recorder(model, cuda and args.graphs), make_step(model, empty, autocast, args.agree)
    rng, kept = random.Random(args.seed), {kind: deque(maxlen=args.kept) for kind in (USUAL, *RARE)}
    clock = common.Clock(args.seconds - (time.monotonic() - start), args.log_every, args.rank)
    for i in clock:
        kind = USUAL if i < 20 or rng.random() < 0.9 else rng.choices(list(RARE), RARE.values())[0]
        usual, states, (frames, long) = kind == USUAL, kept[kind], kind
        if len(states) < 4 or rng.random() < 1 / args.renew_every:
            state = draw(pool, args.batch if usual else args.batch // 2, frames, long)
            with autocast, torch.compiler.set_stance("default" if usual else "force_eager"), torch.no_grad():
                # paths of the average, for that is what will be used
                own = usual and rng.random() < 0.5
                state = rolled_out(average.model, rng.randint(4, 8), **state) if own else noised(**state)
                states.append(lesson(anchor, empty, state))
        loss, moved, off = recorder(step, usual, **rng.choice(states))
        common.average_gradients(model)
        common.learning_rate(optimizer, args.rate, clock.progress, decay=args.decay)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model)
        clock.log(loss=loss, moved=moved, off=off, norm=norm)
    common.save(average.model, args.out / "transformer")
    if args.rank == 0:
        saved = load(args.out / "transformer").to(args.device, torch.float32)  # as rounded to float16
        torch.set_float32_matmul_precision("highest")
        with torch.compiler.set_stance("force_eager"):
            held_out = maker.make()
            errors = {name: evaluate(m, m, empty, held_out) for name, m in {"before": anchor, "after": saved}.items()}
        numbers = {"errors": errors, "steps": clock.step, "batch": args.batch * args.world, "seconds": args.seconds}
        (args.out / "agree.json").write_text(json.dumps(numbers, indent=1))
        print(json.dumps(numbers), flush=True)


if __name__ == "__main__":
    main()
