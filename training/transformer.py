"""Train pocket's diffusion transformer: flow matching on the frozen VAE's latents and the frozen encoders' prompts.

Clips are drawn, encoded and kept on the GPU with several captions each, of which a tenth is partly wrong and a quarter
leaves something unsaid (or guidance would have nothing to do); a tenth of the prompts is empty. Half of the pooled
vectors belong to another caption, so that the tokens must be read. At first (`--images`) it learns from single frames,
of which it sees many times as many a second: what words mean shows in one. The guidance input stays at 1: distilling
guidance into it is `training.guidance`. Where training goes on from a distilled transformer, a share of `--guided`
keeps what that input has learnt: its lesson is what the average of the weights says with the prompt and with none.
Latents of 17 frames are the first of a clip's, as causality allows.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from diffusers.models.transformers import transformer_hunyuan_video as hunyuan
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from transformers import CLIPTextModel, LlamaModel, PreTrainedTokenizerFast

from t2v_kit import toyland
from t2v_kit.toyland.captions import draw_omit
from t2v_kit.toyland.picture import draw
from t2v_kit.toyland.slips import slip

from . import common, pocket

SHORT, LONG = 48, 128  #: text tokens kept in training: of most captions, and of those that are longer
CROP = DEFAULT_PROMPT_TEMPLATE["crop_start"]
SIDES = ((96, 96), (64, 96))  #: other frame sizes, a small part of the training
PROMPT = ("embeds", "lengths", "pooled")
WORDINGS = 8  #: captions kept with each clip, beside a long one


# ---- text ------------------------------------------------------------------------------------------------


@dataclass
class Said:
    """Prompts as the transformer takes them: embeds (B, L, 192) float16, lengths (B,), pooled (B, 128) float16."""

    embeds: torch.Tensor
    lengths: torch.Tensor
    pooled: torch.Tensor

    def __getitem__(self, index) -> Said:
        return Said(self.embeds[index], self.lengths[index], self.pooled[index])


class Text:
    """The frozen prompt encoders. `texts` -> Said, of `length` tokens."""

    def __init__(self, bundle: Path, device: str):
        self.device = device
        self.words = Tokens(bundle)
        self.llm = LlamaModel.from_pretrained(bundle / "text_encoder", dtype=torch.float32).to(device).eval()
        self.llm.layers = self.llm.layers[:-2]  # what is read lies two layers below the last
        self.llm.norm = torch.nn.Identity()
        self.clip = CLIPTextModel.from_pretrained(bundle / "text_encoder_2", dtype=torch.float32).to(device).eval()

    def __call__(self, texts: list[str], length: int = SHORT) -> Said:
        return self.encode(*self.words(texts, length))

    @torch.no_grad()
    def encode(self, ids: torch.Tensor, lengths: torch.Tensor, short: torch.Tensor, part: int = 1024) -> Said:
        """From tokens, as `Tokens` gives them. Right-padded rows need no mask: attention is causal."""
        done = []
        for i, n, s in zip(*(x.to(self.device).split(part) for x in (ids, lengths, short)), strict=True):
            states = self.llm(input_ids=i.long(), use_cache=False).last_hidden_state[:, CROP:].half()
            done.append((states, n, self.clip(input_ids=s.long()).pooler_output.half()))
        return Said(*map(torch.cat, zip(*done, strict=True)))


class Tokens:
    """Both tokenizers: `texts` -> ids (B, 95 + length) and lengths (B,) of the caption's part, for the LLM in its
    template; ids (B, 77) for CLIP. int32, on the CPU."""

    def __init__(self, bundle: Path):
        self.llm = PreTrainedTokenizerFast.from_pretrained(bundle / "tokenizer")
        self.clip = PreTrainedTokenizerFast.from_pretrained(bundle / "tokenizer_2")

    def __call__(self, texts: list[str], length: int = SHORT):
        full = [DEFAULT_PROMPT_TEMPLATE["template"].format(text) for text in texts]
        tokens = self.llm(full, max_length=CROP + length, padding="max_length", truncation=True, return_tensors="pt")
        short = self.clip(texts, max_length=77, padding="max_length", truncation=True, return_tensors="pt")
        lengths = tokens.attention_mask[:, CROP:].sum(1)
        return tokens.input_ids.int(), lengths.int(), short.input_ids.int()


@torch.no_grad()
def tell_apart(model, text: Text, times: float, count: int = 256):
    """Let the transformer hear `times` as clearly whether it was "left" or "right".

    The language model's states of the two, in the same place of the same sentence, are three times as near each other
    as those of two colours, and training listens to them last. What tells them apart is Fisher's linear discriminant;
    the projection of the states gets longer along it alone. Other words hardly have a share in it, so a transformer
    that has not listened yet answers nearly as before: at eight times 1 to 3 % of pocket's velocity changed.
    """
    rng = random.Random(0)
    scenes = [(toyland.random_scene(rng, pair=0.3, unseen=False), rng.getrandbits(30)) for _ in range(count)]
    left, right = (
        text([toyland.caption(replace(scene, direction=way), seed) for scene, seed in scenes])
        for way in ("left", "right")
    )
    left, right, long = left.embeds.float(), right.embeds.float(), left.lengths
    states = torch.cat([sentence[:n] for sentence, n in zip(left, long)])
    differ = left - right  # zero before the word, for the model reads from left to right
    first = (differ.norm(dim=-1) > 1e-3).int().argmax(1)
    along = differ[torch.arange(count), first].mean(0)
    across = torch.linalg.solve(torch.cov(states.T) + 1e-3 * states.var() * torch.eye(len(along)).to(along), along)
    across /= across @ along
    layer = model.context_embedder.proj_in
    longer = (times - 1) * (layer.weight @ along)
    layer.weight += torch.outer(longer, across)
    layer.bias -= longer * (states.mean(0) @ across)


def noisy_caption(scene: toyland.Scene, rng: random.Random, silent: float = 0.25, slips: float = 0.0) -> str:
    """A caption as a data set would have it: sometimes wrong, in a share of `silent` brief, in a share of `slips`
    mistyped beyond what captions are anyway."""
    fields = {
        "colour": toyland.COLOURS,
        "place": toyland.PLACES,
        "sky": toyland.SKIES,
        "direction": toyland.DIRECTIONS,
        "speed": toyland.SPEEDS,
    }
    if rng.random() < 0.10:
        bound = any(subject in toyland.ONLY_AT for subject, _ in scene.actors)
        wrong = rng.choice([name for name in fields if name != "place" or not bound])
        scene = replace(scene, **{wrong: rng.choice(fields[wrong])})
    text = toyland.caption(scene, rng.getrandbits(30), draw_omit(rng, silent))
    return slip(text, rng) if rng.random() < slips else text


# ---- clips -----------------------------------------------------------------------------------------------


class Captions(torch.utils.data.IterableDataset):
    """Scenes by the `chunk`, with tokens of WORDINGS captions of at most SHORT tokens for each, and of a longer one:
    written in processes of their own, for a caption takes longer to write than to read."""

    def __init__(self, bundle: Path, chunk: int, pair: float, seed: int, silent: float = 0.25, slips: float = 0.0):
        self.bundle, self.chunk, self.pair, self.seed = bundle, chunk, pair, seed
        self.noise = silent, slips

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        rng, tokens = random.Random(self.seed * 1000 + (worker.id if worker else 0)), Tokens(self.bundle)
        while True:
            scenes = [toyland.random_scene(rng, pair=self.pair, unseen=False) for _ in range(self.chunk)]
            texts = [noisy_caption(scene, rng, *self.noise) for scene in scenes for _ in range(WORDINGS + 2)]
            ids, lengths, pooled = (x.unflatten(0, (self.chunk, -1)) for x in tokens(texts, LONG))
            # the shortest first, the longest last: rarely are the former too long, or the latter short
            order = lengths.argsort(1)
            ids, lengths, pooled = (torch.stack([row[o] for row, o in zip(x, order)]) for x in (ids, lengths, pooled))
            brief = [x[:, :WORDINGS].flatten(0, 1) for x in (ids[..., : CROP + SHORT], lengths, pooled)]
            brief[1] = brief[1].clamp(max=SHORT)
            yield scenes, brief, [x[:, -1] for x in (ids, lengths, pooled)]


@dataclass
class Pool:
    """Encoded clips: latents (N, 16, T, h, w) float16 of unit variance, and (N, T, h, w) uint8, 1 where a subject is;
    WORDINGS captions for each, one after the other, and a long one for each."""

    latents: torch.Tensor
    subjects: torch.Tensor
    brief: Said
    long: Said

    def sample(self, batch: int, long: bool = False, subjects: bool = False) -> dict[str, torch.Tensor]:
        """clean, embeds, lengths and pooled of `batch` clips; if asked, where their `subjects` are."""
        pick = torch.randint(len(self.latents), (batch,), device=self.latents.device)
        said = self.long[pick] if long else self.brief[pick * WORDINGS + torch.randint_like(pick, WORDINGS)]
        return {"clean": self.latents[pick], **vars(said)} | ({"subjects": self.subjects[pick]} if subjects else {})

    def put(self, at: int, other: Pool):
        n = len(other.latents)
        self.latents[at : at + n], self.subjects[at : at + n] = other.latents, other.subjects
        for mine, new, k in ((self.brief, other.brief, WORDINGS), (self.long, other.long, 1)):
            for name, value in vars(new).items():
                getattr(mine, name)[at * k : (at + n) * k] = value


class Maker:
    """Draws scenes and encodes them, a chunk at a time; a share of `pair` has two subjects, `noise` are the shares of
    `noisy_caption`."""

    def __init__(
        self, bundle: Path, device: str, seed: int, chunk: int = 64, pair: float = 0.5, workers: int = 0, noise=()
    ):
        self.text, self.device, self.chunk = Text(bundle, device), device, chunk
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # many processes do what many threads would
        captions = Captions(bundle, chunk, pair, seed, *noise)
        ahead = 8 if workers else None
        self.captions = iter(torch.utils.data.DataLoader(captions, None, num_workers=workers, prefetch_factor=ahead))
        self.vae = AutoencoderKLHunyuanVideo.from_pretrained(bundle / "vae").to(device).eval()
        self.empty = self.text([""])

    def make(self, chunks: int = 1, **size) -> Pool:
        """New clips of render_batch's `size`, of several chunks of captions drawn at once."""
        scenes, brief, long = zip(*(next(self.captions) for _ in range(chunks)), strict=True)
        brief, long = ([torch.cat(parts) for parts in zip(*kind, strict=True)] for kind in (brief, long))
        clips = self.encode([scene for part in scenes for scene in part], **size)
        return Pool(*clips, self.text.encode(*brief), self.text.encode(*long))

    @torch.no_grad()
    def encode(self, scenes: list[toyland.Scene], height: int = 112, width: int = 192, num_frames: int = 33):
        """Latents (B, 16, T, h, w) float16 of unit variance, and where subjects are, (B, T, h, w) uint8."""
        canvas = draw(scenes, height, width, num_frames, toyland.FPS, self.device, with_truth=True)
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.device != "cpu"):
            latents = self.vae.encode(canvas.image * 2 - 1).latent_dist.mode()
        latents = (latents.float() * self.vae.config.scaling_factor).half()
        # a latent holds 8 x 8 pixels of four frames, the first of one
        first_alone = torch.nn.functional.pad((canvas.owner > 0).float(), (0, 0, 0, 0, 3, 0))
        return latents, torch.nn.functional.max_pool3d(first_alone, (4, 8, 8)).to(torch.uint8)

    def fill(self, seconds: float, most: int, chunks: int = 1, **size) -> Pool:
        """As many clips as `seconds` allow, up to `most`."""
        clock, parts = common.Clock(seconds), []
        for step in clock:
            if step * self.chunk * chunks >= most:
                break
            parts.append(self.make(chunks, **size))
        if not parts:
            raise ValueError(f"no clips in {seconds:.1f} seconds")
        brief, long = (
            Said(*(torch.cat([getattr(said, f.name) for said in kind]) for f in fields(Said)))
            for kind in zip(*((p.brief, p.long) for p in parts), strict=True)
        )
        return Pool(*(torch.cat([getattr(p, name) for p in parts]) for name in ("latents", "subjects")), brief, long)


# ---- training --------------------------------------------------------------------------------------------


def mask_by_a_channel(query, key, value, attn_mask=None, **_):
    """`dispatch_attention_fn` for training: a padding mask folded into one more channel of query and key.

    A mask keeps PyTorch off its fastest attention. A channel in which every query is 1 and every padded key is very
    negative has the same effect; eight channels are added, as the kernels want. query, key, value (B, N, heads, D).
    """
    scale = query.shape[-1] ** -0.5
    if attn_mask is not None:
        b, n, heads = key.shape[:3]
        keep = attn_mask.reshape(b, -1, n)[:, 0]
        hidden = torch.where(keep, 0.0, -30000.0).to(key.dtype).view(b, n, 1, 1).expand(b, n, heads, 1)
        query = torch.nn.functional.pad(torch.cat([query, torch.ones_like(query[..., :1])], -1), (0, 7))
        key = torch.nn.functional.pad(torch.cat([key, hidden], -1), (0, 7))
        value = torch.nn.functional.pad(value, (0, 8))
    out = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=scale
    )
    out = out.transpose(1, 2)
    return out if attn_mask is None else out[..., :-8]


def padded(embeds: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`embeds` (1, L, C) with as many tokens as `like`."""
    return torch.nn.functional.pad(embeds, (0, 0, 0, like.shape[1] - embeds.shape[1]))


def draw_sigmas(batch: int, device: str, shift: float, early: float = 0.2, late: float = 0.0) -> torch.Tensor:
    """A share of `early` in [0.9, 1], of `late` in [0, 0.3], 10 % uniform, the rest logit-normal (Esser et al. 2024),
    shifted as in sampling.

    The first because pocket decides there what its video shows: another colour or place in the prompt changes its
    velocity by 0.008 and 0.0005 in mean square at 0.85, by 0.10 and 0.14 at 0.97 (the velocity's own is about 2). The
    second because edges are made there, and the rest hardly ever comes so low: 2.4 % of it below 0.2.
    """
    sigma = torch.sigmoid(torch.randn(batch, device=device))
    sigma = shift * sigma / (1 + (shift - 1) * sigma)
    kind = torch.rand(batch, device=device)
    sigma = torch.where(kind < 0.10, torch.rand_like(sigma), sigma)
    sigma = torch.where((kind - 0.10 < late) & (kind >= 0.10), 0.3 * torch.rand_like(sigma), sigma)
    return torch.where(kind > 1 - early, 0.9 + 0.1 * torch.rand_like(sigma), sigma)


def velocity(model, noisy, sigma, embeds, lengths, pooled, guidance):
    """The transformer's output, (B, 16, T, H, W); sigma and guidance (B,)."""
    mask = torch.arange(embeds.shape[1], device=embeds.device)[None] < lengths[:, None]
    return model(
        hidden_states=noisy,
        timestep=sigma * 1000,
        encoder_hidden_states=embeds.float(),
        encoder_attention_mask=mask,
        pooled_projections=pooled.float(),
        guidance=guidance * 1000,
        return_dict=False,
    )[0]


@torch.no_grad()
def ask(teacher, empty, state) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's velocity for the state's prompt and for none, both at guidance 1, in float32.

    state: what `velocity` takes, with or without guidance; empty: embeds, lengths and pooled of the empty prompt, for a
    batch of one."""
    one, (embeds, *others) = torch.ones_like(state["sigma"]), empty
    nothing = padded(embeds, state["embeds"]), *others
    prompts = [state[name] for name in PROMPT], [e.expand(len(one), *e.shape[1:]) for e in nothing]
    told, untold = (velocity(teacher, state["noisy"], state["sigma"], *prompt, one).float() for prompt in prompts)
    return told, untold


def guided(told, untold, guidance, **_) -> torch.Tensor:
    """The target v_u + g (v_c - v_u), (B, 16, T, H, W) float32: what diffusers' true guidance makes of the teacher."""
    return untold + guidance.view(-1, 1, 1, 1, 1) * (told - untold)


def some_guidance(like: torch.Tensor) -> torch.Tensor:
    """1 to 8, shaped like `like`."""
    return 1 + 7 * torch.rand_like(like)


@torch.no_grad()
def examine(model, maker: Maker, autocast, count: int = 128) -> dict[str, dict[str, float]]:
    """The loss on held-out clips with true captions, by noise level, and that where subjects are; the noise is the same
    every time."""
    rng = random.Random(40_000)
    scenes = [toyland.random_scene(rng, pair=0.5, unseen=True) for _ in range(count)]
    said = maker.text([toyland.caption(scene) for scene in scenes])
    parts = [maker.encode(scenes[i : i + 32]) for i in range(0, count, 32)]
    clean, subjects = (torch.cat(part).float() for part in zip(*parts, strict=True))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(clean)
    one, losses = torch.ones(count, device=clean.device), {"all": {}, "subjects": {}}
    for sigma in (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0):
        with autocast:
            v = velocity(model, (1 - sigma) * clean + sigma * noise, sigma * one, **vars(said), guidance=one)
        error = (v.float() - (noise - clean)).square().mean(1)
        losses["all"][str(sigma)] = round(error.mean().item(), 5)
        losses["subjects"][str(sigma)] = round(((error * subjects).sum() / subjects.sum()).item(), 5)
    return losses


#: by kind of step: frames of the latents, whether with long captions, share of the steps, clips for each of `--batch`.
#: Only the first and the pictures are compiled; the others come too rarely to be worth it.
KINDS = {
    "clips": (9, False, 0.0, 1),
    "pictures": (1, False, 0.04, 4),
    "short clips": (5, False, 0.04, 1),
    "long captions": (9, True, 0.08, 0.5),
    "sides": (9, False, 0.01, 1),
}


def main():
    args = common.options(
        __doc__,
        batch=128,
        rate=1e-3,
        bundle=str(pocket.POCKET),
        pool=60_000,
        pool_seconds=40.0,
        workers=0,
        renew_every=60,
        compile=True,
        graphs=True,
        muon=True,
        images=0.15,
        decay=0.3,
        ema=0.9995,
        save_every=100.0,
        tell_apart=1.0,
        pair=0.55,
        early=0.25,
        late=0.0,
        silent=0.25,
        slips=0.0,
        drop=0.10,
        guided=0.0,
        subject=1.0,
    )
    cuda = args.device != "cpu"
    autocast = torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=cuda, cache_enabled=False)
    hunyuan.dispatch_attention_fn = mask_by_a_channel
    start = time.monotonic()
    torch.manual_seed(args.seed)  # every rank starts from the same weights
    model = HunyuanVideoTransformer3DModel.from_pretrained(args.resume) if args.resume else pocket.transformer()
    torch.manual_seed(args.seed * 1000 + args.rank)
    model.to(args.device, torch.float32).train()
    maker = Maker(
        Path(args.bundle),
        args.device,
        args.seed * 1000 + args.rank,
        64 if cuda else 4,
        args.pair,
        args.workers,
        (args.silent, args.slips),
    )
    if args.tell_apart != 1:
        tell_apart(model, maker.text, args.tell_apart)
    average = common.Average(model, args.ema)
    if args.muon:
        optimizer = common.Muon(model.parameters(), args.rate)
    else:
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=args.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=cuda
        )
    state = args.out / "transformer.state"
    if args.resume and (before := Path(args.resume).with_suffix(".state")).is_file():
        common.recall(before, model=model, average=average, optimizer=optimizer)
    most, seconds = args.pool // args.world, args.pool_seconds
    pools = {"clips": maker.fill(0.7 * seconds, most), "pictures": maker.fill(0.3 * seconds, most, 8, num_frames=1)}
    others = [maker.fill(seconds / 40, 512, height=h, width=w) for h, w in SIDES]
    if args.rank == 0:
        z = pools["clips"].latents.float()
        print(
            f"{time.monotonic() - start:.0f} s: {len(z)} clips and {len(pools['pictures'].latents)} pictures; "
            f"latents' mean {z.mean():.3f}, deviation {z.std():.3f}",
            flush=True,
        )
    if cuda and args.compile:
        for m in (model, average.model) if args.guided else (model,):
            for block in [*m.transformer_blocks, *m.single_transformer_blocks]:
                block.compile(dynamic=False)
    empty = maker.empty

    def step(target, guidance, weight, **given):
        with autocast:
            v = velocity(model, **given, guidance=guidance)
        error = ((v.float() - target).square().mean(1) * weight).mean((1, 2, 3)) / weight.mean((1, 2, 3))
        return ((error / (1 + (guidance - 1).square() / 4)).mean(),)  # guidance enlarges the target

    recorder, rng = common.Recorder(model, cuda and args.graphs), random.Random(args.seed)
    turn, seen, rare = 0, 0, list(KINDS)[1:]
    clock = common.Clock(args.seconds - (time.monotonic() - start), args.log_every, args.rank)
    for i in clock:
        if clock.progress < args.images:
            kind = "pictures"
        else:
            kind = rng.choices([*rare, "clips"], [*(s := [KINDS[k][2] for k in rare]), 1 - sum(s)])[0]
        frames, long, _, times = KINDS[kind]
        pool = others[i % 2] if kind == "sides" else pools["pictures" if frames == 1 else "clips"]
        batch = pool.sample(int(times * args.batch), long, subjects=True)
        clean = batch.pop("clean")[:, :, :frames].float()
        n = len(clean)
        tokens = clean[0, 0].numel() / 4
        shift = max(1.0, pocket.FLOW_SHIFT * math.sqrt(tokens / 756))
        sigma = draw_sigmas(n, args.device, shift, args.early, args.late)
        noise = torch.randn_like(clean)
        at = sigma.view(-1, 1, 1, 1, 1)
        drop = torch.rand(n, device=args.device) < args.drop
        swap = torch.rand(n, device=args.device) < 0.50
        pooled = torch.where(swap[:, None], batch["pooled"].roll(1, 0), batch["pooled"])
        nothing = padded(empty.embeds, batch["embeds"])
        given = {
            "noisy": (1 - at) * clean + at * noise,
            "sigma": sigma,
            "embeds": torch.where(drop[:, None, None], nothing, batch["embeds"]),
            "lengths": torch.where(drop, empty.lengths, batch["lengths"]),
            "pooled": torch.where(drop[:, None], empty.pooled, pooled),
        }
        target, guidance = noise - clean, torch.ones_like(sigma)
        # only where the noisy clip shows by itself where its subjects are: elsewhere a weight would add to them
        weight = 1 + (args.subject - 1) * batch["subjects"][:, :frames] * (sigma < 0.8).view(-1, 1, 1, 1)
        if kind == "clips" and rng.random() < args.guided:
            guidance = torch.where(drop, guidance, some_guidance(sigma))
            with autocast, torch.no_grad():
                target = guided(*ask(average.model, vars(empty).values(), given), guidance)
        compiled = kind in ("clips", "pictures")
        (loss,) = recorder(step, compiled, target=target, guidance=guidance, weight=weight, **given)
        common.average_gradients(model)
        common.learning_rate(optimizer, args.rate * min(1, (i + 1) / 300), clock.progress, warmup=0, decay=args.decay)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model)
        seen += n * args.world
        clock.log(loss=loss, norm=norm, frames=frames, seen=seen)
        if i % args.renew_every == args.renew_every - 1:
            pools["clips"].put(turn, maker.make())
            turn = (turn + maker.chunk) % (len(pools["clips"].latents) - maker.chunk + 1)
        if clock.due(args.save_every):
            common.save(average.model, args.out / "transformer")
            common.keep(state, model=model, average=average, optimizer=optimizer)
    common.save(average.model, args.out / "transformer")
    common.keep(state, model=model, average=average, optimizer=optimizer)
    if args.rank == 0:
        with torch.compiler.set_stance("force_eager"):
            losses = examine(average.model, maker, autocast, 128 if cuda else 2)
        numbers = {"loss": losses, "steps": clock.step, "seen": seen, "seconds": args.seconds, "gpus": args.world}
        (args.out / "transformer.json").write_text(json.dumps(numbers, indent=1))
        print(json.dumps(numbers), flush=True)


if __name__ == "__main__":
    main()
