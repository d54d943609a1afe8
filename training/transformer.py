"""Train pocket's diffusion transformer: flow matching on the frozen VAE's latents and the frozen encoders' prompts.

Clips are drawn, encoded and kept on the GPU with their captions, of which a tenth is partly wrong and a quarter
leaves something unsaid (or guidance would have nothing to do), and a tenth is empty. Half of the pooled vectors
belong to another caption, so that the tokens must be read. The guidance input stays at 1: distilling guidance into
it is `training.guidance`. Latents of other lengths are cut from the first ones of a clip, as causality allows.
"""
from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from diffusers.models.transformers import transformer_hunyuan_video as hunyuan
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from transformers import CLIPTextModel, LlamaModel, PreTrainedTokenizerFast

from t2v_kit import toyland

from . import common, pocket

LENGTH = 48  #: text tokens kept in training; Toyland's captions are shorter
CROP = DEFAULT_PROMPT_TEMPLATE["crop_start"]
SIDES = ((96, 96), (64, 96))  #: other frame sizes, a small part of the training


# ---- text ------------------------------------------------------------------------------------------------

class Text:
    """The frozen prompt encoders. `texts` -> embeds (B, 48, 192) float16, lengths (B,), pooled (B, 128) float16."""

    def __init__(self, bundle: Path, device: str):
        self.device = device
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(bundle / "tokenizer")
        self.tokenizer_2 = PreTrainedTokenizerFast.from_pretrained(bundle / "tokenizer_2")
        self.llm = LlamaModel.from_pretrained(bundle / "text_encoder", dtype=torch.float32).to(device).eval()
        self.clip = CLIPTextModel.from_pretrained(bundle / "text_encoder_2", dtype=torch.float32).to(device).eval()

    @torch.no_grad()
    def __call__(self, texts: list[str]):
        full = [DEFAULT_PROMPT_TEMPLATE["template"].format(text) for text in texts]
        tokens = self.tokenizer(full, max_length=CROP + LENGTH, padding="max_length", truncation=True,
                                return_tensors="pt").to(self.device)
        states = self.llm(tokens.input_ids, tokens.attention_mask, output_hidden_states=True).hidden_states[-3]
        short = self.tokenizer_2(texts, max_length=77, padding="max_length", truncation=True, return_tensors="pt")
        pooled = self.clip(short.input_ids.to(self.device)).pooler_output
        return states[:, CROP:].half(), tokens.attention_mask[:, CROP:].sum(1), pooled.half()


@torch.no_grad()
def tell_apart(model, text: Text, times: float, count: int = 256):
    """Let the transformer hear `times` as clearly whether it was "left" or "right".

    The language model's states of the two, in the same place of the same sentence, are three times as near each other
    as those of two colours, and training listens to them last. What tells them apart is Fisher's linear discriminant;
    the projection of the states gets longer along it alone. Other words hardly have a share in it, so a transformer
    that has not listened yet answers nearly as before: at eight times 1 to 3 % of pocket's velocity changed.
    """
    rng = random.Random(0)
    scenes = [(toyland.random_scene(rng, pair=.3, unseen=False), rng.getrandbits(30)) for _ in range(count)]
    (left, long, _), (right, _, _) = (
        text([toyland.caption(replace(scene, direction=way), seed) for scene, seed in scenes]) for way in
        ("left", "right"))
    left, right = left.float(), right.float()
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


def noisy_caption(scene: toyland.Scene, rng: random.Random) -> str:
    """A caption as a data set would have it: sometimes wrong, sometimes brief."""
    fields = {"colour": toyland.COLOURS, "place": toyland.PLACES, "sky": toyland.SKIES,
              "direction": toyland.DIRECTIONS, "speed": toyland.SPEEDS}
    if rng.random() < .10:
        wrong = rng.choice(list(fields))
        scene = toyland.Scene(**{**vars(scene), wrong: rng.choice(fields[wrong])})
    omit = tuple(rng.sample(list(fields), rng.randint(1, 3))) if rng.random() < .25 else ()
    return toyland.caption(scene, rng.getrandbits(30), omit)


# ---- clips -----------------------------------------------------------------------------------------------

@dataclass
class Pool:
    """Encoded clips with `wordings` captions each: latents (N, 16, 9, h, w) float16 of unit variance."""

    latents: torch.Tensor
    embeds: torch.Tensor
    lengths: torch.Tensor
    pooled: torch.Tensor
    wordings: int

    def sample(self, batch: int) -> dict[str, torch.Tensor]:
        pick = torch.randint(len(self.latents), (batch,), device=self.latents.device)
        said = pick * self.wordings + torch.randint_like(pick, self.wordings)
        return {"clean": self.latents[pick], "embeds": self.embeds[said], "lengths": self.lengths[said],
                "pooled": self.pooled[said]}

    def put(self, at: int, other: Pool):
        n, k = len(other.latents), self.wordings
        self.latents[at : at + n] = other.latents
        for name in ("embeds", "lengths", "pooled"):
            getattr(self, name)[at * k : (at + n) * k] = getattr(other, name)


class Maker:
    """Draws scenes and encodes them, 64 at a time; a share of `pair` has two subjects."""

    def __init__(self, bundle: Path, device: str, seed: int, chunk: int = 64, wordings: int = 2, pair: float = .3):
        self.text, self.device, self.rng = Text(bundle, device), device, random.Random(seed)
        self.chunk, self.wordings, self.pair = chunk, wordings, pair
        self.vae = AutoencoderKLHunyuanVideo.from_pretrained(bundle / "vae").to(device).eval()
        self.empty = self.text([""])

    @torch.no_grad()
    def make(self, height: int = 112, width: int = 192) -> Pool:
        scenes = [toyland.random_scene(self.rng, pair=self.pair, unseen=False) for _ in range(self.chunk)]
        video = toyland.render_batch(scenes, height, width, device=self.device)
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.device != "cpu"):
            latents = self.vae.encode(video * 2 - 1).latent_dist.mode()
        words = [noisy_caption(s, self.rng) for s in scenes for _ in range(self.wordings)]
        return Pool((latents.float() * self.vae.config.scaling_factor).half(), *self.text(words), self.wordings)

    def fill(self, seconds: float, most: int, **size) -> Pool:
        """As many clips as `seconds` allow, up to `most`."""
        clock, parts = common.Clock(seconds), []
        for step in clock:
            if step * self.chunk >= most:
                break
            parts.append(self.make(**size))
        columns = [torch.cat([getattr(p, name) for p in parts]) for name in ("latents", "embeds", "lengths", "pooled")]
        return Pool(*columns, self.wordings)


# ---- training --------------------------------------------------------------------------------------------

def mask_by_a_channel(query, key, value, attn_mask=None, **_):
    """`dispatch_attention_fn` for training: a padding mask folded into one more channel of query and key.

    A mask keeps PyTorch off its fastest attention. A channel in which every query is 1 and every padded key is very
    negative has the same effect; eight channels are added, as the kernels want. query, key, value (B, N, heads, D).
    """
    scale = query.shape[-1] ** -.5
    if attn_mask is not None:
        b, n, heads = key.shape[:3]
        keep = attn_mask.reshape(b, -1, n)[:, 0]
        hidden = torch.where(keep, 0., -30000.).to(key.dtype).view(b, n, 1, 1).expand(b, n, heads, 1)
        query = torch.nn.functional.pad(torch.cat([query, torch.ones_like(query[..., :1])], -1), (0, 7))
        key = torch.nn.functional.pad(torch.cat([key, hidden], -1), (0, 7))
        value = torch.nn.functional.pad(value, (0, 8))
    out = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=scale)
    out = out.transpose(1, 2)
    return out if attn_mask is None else out[..., :-8]


def draw_sigmas(batch: int, device: str, shift: float, early: float = .2) -> torch.Tensor:
    """A share of `early` in [0.9, 1], 10 % uniform, the rest logit-normal (Esser et al. 2024), shifted as in sampling.

    The first because pocket decides there what its video shows: another colour or place in the prompt changes its
    velocity by 0.008 and 0.0005 in mean square at 0.85, by 0.10 and 0.14 at 0.97 (the velocity's own is about 2).
    """
    sigma = torch.sigmoid(torch.randn(batch, device=device))
    sigma = shift * sigma / (1 + (shift - 1) * sigma)
    kind = torch.rand(batch, device=device)
    sigma = torch.where(kind < .10, torch.rand_like(sigma), sigma)
    return torch.where(kind > 1 - early, .9 + .1 * torch.rand_like(sigma), sigma)


def velocity(model, noisy, sigma, embeds, lengths, pooled, guidance):
    """The transformer's output, (B, 16, T, H, W); sigma and guidance (B,)."""
    mask = torch.arange(embeds.shape[1], device=embeds.device)[None] < lengths[:, None]
    return model(hidden_states=noisy, timestep=sigma * 1000, encoder_hidden_states=embeds.float(),
                 encoder_attention_mask=mask, pooled_projections=pooled.float(), guidance=guidance * 1000,
                 return_dict=False)[0]


def main():
    args = common.options(__doc__, batch=128, rate=6e-4, bundle=str(pocket.POCKET), pool=40_000, pool_seconds=80.0,
                          renew_every=60, compile=True, graphs=True, decay=.2, save_every=150.0,
                          tell_apart=1.0, pair=.3, early=.2)
    cuda = args.device != "cpu"
    autocast = torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=cuda, cache_enabled=False)
    hunyuan.dispatch_attention_fn = mask_by_a_channel
    start = time.monotonic()
    torch.manual_seed(args.seed)  # every rank starts from the same weights
    model = HunyuanVideoTransformer3DModel.from_pretrained(args.resume) if args.resume else pocket.transformer()
    torch.manual_seed(args.seed * 1000 + args.rank)
    model.to(args.device, torch.float32).train()
    maker = Maker(Path(args.bundle), args.device, args.seed * 1000 + args.rank, chunk=64 if cuda else 4, pair=args.pair)
    if args.tell_apart != 1:
        tell_apart(model, maker.text, args.tell_apart)
    average = common.Average(model, .9995)
    pool = maker.fill(args.pool_seconds, args.pool // args.world)
    others = [maker.fill(args.pool_seconds / 20, 1024, height=h, width=w) for h, w in SIDES]
    if args.rank == 0:
        z = pool.latents.float()
        print(f"{len(z)} clips encoded; latents' mean {z.mean():.3f}, deviation {z.std():.3f}", flush=True)
    if cuda and args.compile:
        for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
            block.compile(dynamic=False)
    one = torch.ones(args.batch, device=args.device)
    empty_embeds, empty_length, empty_pooled = maker.empty

    def step(clean, noisy, sigma, noise, embeds, lengths, pooled):
        with autocast:
            v = velocity(model, noisy, sigma, embeds, lengths, pooled, one[: len(noisy)])
        return ((v.float() - (noise - clean)).square().mean(),)

    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(.9, .99), weight_decay=.01, fused=cuda)
    recorder, rng = common.Recorder(model, cuda and args.graphs), random.Random(args.seed)
    turn = 0
    clock = common.Clock(args.seconds - (time.monotonic() - start), args.log_every, args.rank)
    for i in clock:
        kind = rng.random() if i > 20 else 0
        batch = (pool if kind < .99 else others[i % 2]).sample(args.batch)
        frames = 9 if kind < .92 or kind >= .99 else (5 if kind < .96 else 1)
        clean = batch["clean"][:, :, :frames].float()
        tokens = clean[0, 0].numel() / 4
        shift = max(1.0, pocket.FLOW_SHIFT * math.sqrt(tokens / 756))
        sigma = draw_sigmas(args.batch, args.device, shift, args.early)
        noise = torch.randn_like(clean)
        at = sigma.view(-1, 1, 1, 1, 1)
        drop = torch.rand(args.batch, device=args.device) < .10
        swap = torch.rand(args.batch, device=args.device) < .50
        pooled = torch.where(swap[:, None], batch["pooled"].roll(1, 0), batch["pooled"])
        (loss,) = recorder(
            step, kind < .92, clean=clean, noisy=(1 - at) * clean + at * noise, sigma=sigma, noise=noise,
            embeds=torch.where(drop[:, None, None], empty_embeds, batch["embeds"]),
            lengths=torch.where(drop, empty_length, batch["lengths"]),
            pooled=torch.where(drop[:, None], empty_pooled, pooled))
        common.average_gradients(model)
        common.learning_rate(optimizer, args.rate * min(1, (i + 1) / 300), clock.progress, warmup=0, decay=args.decay)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model)
        clock.log(loss=loss, norm=norm, frames=frames)
        if i % args.renew_every == args.renew_every - 1:
            pool.put(turn, maker.make())
            turn = (turn + maker.chunk) % (len(pool.latents) - maker.chunk + 1)
        if clock.due(args.save_every):
            common.save(average.model, args.out / "transformer")
    common.save(average.model, args.out / "transformer")


if __name__ == "__main__":
    main()
