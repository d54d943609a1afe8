"""Train the transformer on, with its guidance input held to what the transformer itself says when it is asked twice.

`training.guidance` leaves a student that falls short of its teacher: what guidance adds is a small difference of two
answers, made large, and no one pass finds all of it. Here the two answers may come towards the pass as well. Each step
asks the transformer three times about the same noisy clips: at a guidance drawn from 1 to 8, and at guidance 1 with the
prompt and with none. The last two learn the flow (`training.transformer`), and all three learn to agree,

    v(guidance) = v_none + guidance (v_prompt - v_none),

with gradients into all of them. A disagreement of d is gone when v_prompt moves by about d / 10 at guidance 6: little,
beside what the flow's own loss leaves. A share of `--own` of the batches are states on the model's own short paths from
noise, for there it will be asked; they have no clip behind them, so the two answers stay near those of the weights that
training began with.
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
from .guidance import RARE, USUAL, answered, draw, evaluate, noised, rolled_out
from .transformer import PROMPT, Maker, examine, guided, mask_by_a_channel, padded, velocity


def make_step(model, empty, autocast, agree: float):
    """`step(**state) -> (loss, flow, off)`; the state also holds what the answers at guidance 1 should be: `told` and
    `untold`, shaped like noisy, and `weight` (B, T, H, W) of their errors."""

    def step(told, untold, weight, guidance, noisy, sigma, **prompt):
        one, (embeds, *others) = torch.ones_like(sigma), empty
        nothing = [padded(embeds, prompt["embeds"]), *others]
        prompts = {
            name: torch.cat([prompt[name], prompt[name], e.expand_as(prompt[name])]) for name, e in zip(PROMPT, nothing)
        }
        with autocast:
            v = velocity(
                model, noisy.repeat(3, 1, 1, 1, 1), sigma.repeat(3), **prompts, guidance=torch.cat([guidance, one, one])
            )
        knob, with_prompt, with_none = v.float().chunk(3)
        flow = sum(
            share * (((v - target).square().mean(1) * weight).mean((1, 2, 3)) / weight.mean((1, 2, 3))).mean()
            for share, v, target in ((1.0, with_prompt, told), (0.2, with_none, untold))
        )
        error = (knob - guided(with_prompt, with_none, guidance)).square().mean((1, 2, 3, 4))
        off = (error / (1 + (guidance - 1).square() / 4)).mean()  # guidance enlarges both sides
        return flow + agree * off, flow.detach(), off.detach()

    return step


def lesson(pool, batch: int, frames: int, long: bool, subject: float) -> dict[str, torch.Tensor]:
    """Noised clips with the flow as both answers; where subjects are it weighs `subject` times as much, only below a
    level of .8: above, the noisy clip does not show where they are."""
    drawn = draw(pool, batch, frames, long, subjects=True)
    clean, subjects = drawn.pop("clean"), drawn.pop("subjects")[:, :frames]
    noise = torch.randn_like(clean)
    state, flow = noised(clean, noise, **drawn), noise - clean
    shown = (state["sigma"] < 0.8).view(-1, 1, 1, 1)
    return state | {"told": flow, "untold": flow, "weight": 1 + (subject - 1) * subjects * shown}


def path(model, anchor, empty, **drawn) -> dict[str, torch.Tensor]:
    """States on the model's own paths, with the anchor's answers."""
    state = answered(anchor, empty, rolled_out(model, random.randint(4, 8), **drawn))
    return state | {"weight": torch.ones_like(state["noisy"][:, 0])}


def main():
    args = common.options(
        __doc__,
        seconds=300.0,
        batch=64,
        rate=5e-4,
        bundle=str(pocket.POCKET),
        pool=30_000,
        pool_seconds=20.0,
        renew_every=30,
        path_every=8,
        kept=48,
        compile=True,
        graphs=True,
        decay=0.6,
        ema=0.9995,
        pair=0.6,
        silent=0.3,
        slips=0.2,
        subject=2.5,
        own=0.4,
        agree=1.0,
        save_every=100.0,
        workers=0,
    )
    start, cuda, load = time.monotonic(), args.device != "cpu", HunyuanVideoTransformer3DModel.from_pretrained
    autocast = torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=cuda, cache_enabled=False)
    hunyuan.dispatch_attention_fn = mask_by_a_channel
    whole = args.resume or Path(args.bundle) / "transformer"
    model, anchor = (load(path).to(args.device, torch.float32) for path in (whole, whole))
    anchor.requires_grad_(False)
    average = common.Average(model, args.ema)
    noise = args.silent, args.slips
    seed = args.seed * 1000 + args.rank
    maker = Maker(Path(args.bundle), args.device, seed, 64 if cuda else 4, args.pair, args.workers, noise)
    pool, empty = maker.fill(args.pool_seconds, args.pool // args.world), tuple(vars(maker.empty).values())
    if cuda and args.compile:
        for m in (model, anchor, average.model):
            for block in [*m.transformer_blocks, *m.single_transformer_blocks]:
                block.compile(dynamic=False)
    optimizer = common.Muon(model.parameters(), args.rate)
    recorder, step = common.Recorder(model, cuda and args.graphs), make_step(model, empty, autocast, args.agree)
    rng, kept, turn = random.Random(args.seed), deque(maxlen=args.kept), 0
    clock = common.Clock(args.seconds - (time.monotonic() - start), args.log_every, args.rank)
    for i in clock:
        usual = i < 20 or rng.random() < 0.9
        frames, long = USUAL if usual else rng.choices(list(RARE), RARE.values())[0]
        batch = args.batch if usual else args.batch // 2
        if usual and (len(kept) < 4 or i % args.path_every == 0):
            with autocast:  # paths of the average, for that is what will be used
                kept.append(path(average.model, anchor, empty, **draw(pool, batch)))
        if usual and rng.random() < args.own:
            state = rng.choice(kept)
        else:
            state = lesson(pool, batch, frames, long, args.subject)
        loss, flow, off = recorder(step, usual, **state)
        common.average_gradients(model)
        common.learning_rate(optimizer, args.rate, clock.progress, decay=args.decay)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model)
        clock.log(loss=loss, flow=flow, off=off, norm=norm)
        if i % args.renew_every == args.renew_every - 1:
            pool.put(turn, maker.make())
            turn = (turn + maker.chunk) % (len(pool.latents) - maker.chunk + 1)
        if clock.due(args.save_every):
            common.save(average.model, args.out / "transformer")
    common.save(average.model, args.out / "transformer")
    if args.rank == 0:
        saved = load(args.out / "transformer").to(args.device, torch.float32)  # as rounded to float16
        torch.set_float32_matmul_precision("highest")
        with torch.compiler.set_stance("force_eager"):
            held_out = maker.make()
            numbers = {
                "errors": evaluate(saved, saved, empty, held_out),
                "errors_of_start": evaluate(anchor, anchor, empty, held_out),
                "loss": examine(saved, maker, autocast, 128 if cuda else 2),
                "loss_of_start": examine(anchor, maker, autocast, 128 if cuda else 2),
            }
        numbers |= {"steps": clock.step, "clips": clock.step * args.batch * args.world, "seconds": args.seconds}
        (args.out / "guidance.json").write_text(json.dumps(numbers, indent=1))
        print(json.dumps(numbers), flush=True)


if __name__ == "__main__":
    main()
