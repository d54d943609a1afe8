"""Train pocket's causal 3D VAE on Toyland.

Joint part: small crops first, then whole frames in clips of 17 (the length of the pipeline's own time tile), then
33 frames through diffusers' time tiles, as it will be used. After a share of `--robust` of the time the loss is what
is measured: each clip's PSNR, and that of its subjects' pixels (`--subject`: how much of the loss the latter are).
Then the latents' mean and deviation are folded into the 1 x 1 x 1 convolutions around them, so that HunyuanVideo's
scaling factor makes them unit variance. With `--stay` training goes on around a transformer that knows the latents:
they may hardly move, and a quarter of the clips is decoded from the latents as they were. With `--decoder` only the
decoder is trained on, and the latents stay to the last bit.
"""

from __future__ import annotations

import copy
import json
import random

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanVideo

from t2v_kit import toyland
from t2v_kit.toyland.picture import draw

from . import common, pocket

SIZE = 112, 192, 33  #: height, width and frames of pocket's videos
#: until this share of the time: frames, height, width (0: whole), clips a step on one GPU
JOINT = ((0.20, 9, 64, 96, 12), (0.85, 17, 0, 0, 4), (1.0, 33, 0, 0, 3))
FINEST, FEW = 1e-5, 50  #: a squared error nobody sees (of values in [-1, 1]); pixels too few to be called a subject
AS_THEY_WERE = 0.25  #: with --stay, the share of clips decoded from latents that have not moved: the transformer's own


class Clips:
    """A pool of rendered clips on the GPU, (N, 4, 33, 112, 192) uint8, renewed a few at a time: RGB, and 1 where a
    subject is.

    Drawing is many small kernels, so it pays to draw many clips at once and use each a few times."""

    def __init__(self, size: int, chunk: int, device: str, seed: int):
        self.rng, self.chunk, self.device, self.next = random.Random(seed), chunk, device, 0
        self.video = torch.cat([self.draw() for _ in range(size // chunk)])

    def draw(self) -> torch.Tensor:
        scenes = [toyland.random_scene(self.rng, pair=0.4, unseen=False) for _ in range(self.chunk)]
        canvas = draw(scenes, *SIZE, toyland.FPS, self.device, with_truth=True)
        video = (canvas.image * 255).round().to(torch.uint8)
        return torch.cat([video, (canvas.owner > 0).to(torch.uint8)[:, None]], 1)

    def renew(self):
        self.video[self.next : self.next + self.chunk] = self.draw()
        self.next = (self.next + self.chunk) % len(self.video)

    def sample(self, batch: int, frames: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Random clips, cut at a random place in time and space: (B, 3, frames, height, width) in [-1, 1], and
        (B, frames, height, width), 1 where a subject is, else 0."""
        total, full_height, full_width = self.video.shape[2:]
        t = self.rng.randrange(0, total - frames + 1)
        y = self.rng.randrange(0, full_height - height + 1) if height else 0
        x = self.rng.randrange(0, full_width - width + 1) if width else 0
        pick = torch.randint(len(self.video), (batch,), device=self.video.device)
        cut = self.video[pick, :, t : t + frames, y : y + height or None, x : x + width or None]
        return cut[:, :3].float() / 127.5 - 1, cut[:, 3].float()


def weights(x: torch.Tensor) -> torch.Tensor:
    """3 where something moved within two frames, else 1; x (B, 3, T, H, W) -> (B, 1, T, H, W)."""
    if x.shape[2] == 1:
        return torch.ones_like(x[:, :1])
    moved = (x[:, :, 1:] - x[:, :, :-1]).abs().amax(1, keepdim=True) > 0.06
    moved = F.pad(moved.float(), (0, 0, 0, 0, 1, 0))
    return 1 + 2 * F.max_pool3d(moved, (5, 3, 3), 1, (2, 1, 1))


def log_error(error: torch.Tensor, mask: torch.Tensor, subject: float) -> torch.Tensor:
    """The log of each clip's mean squared error, its subjects' pixels being counted apart with a share of `subject`:
    PSNR is measured so, clip by clip, and a clip that is hard already does not drown the others.

    error (B, T, H, W): squared; mask (B, T, H, W): 1 where a subject is. Times 1/1000, about a squared error here, so
    that what stands beside it in the loss weighs the same."""
    whole = error.mean((1, 2, 3)) + FINEST
    mask = F.max_pool2d(mask, 3, 1, 1)  # with their edges, or the errors move to just outside
    part = (error * mask).sum((1, 2, 3)) / (mask.sum((1, 2, 3)) + FEW) + FINEST
    return 1e-3 * ((1 - subject) * whole.log() + subject * part.log()).mean()


@torch.no_grad()
def fold(vae: AutoencoderKLHunyuanVideo, latents: torch.Tensor):
    """Give the latents mean 0 and deviation 1 / scaling_factor by channel, without changing any decoded pixel.

    latents (N, 16, T, H, W): what the encoder makes now."""
    mean, deviation = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    scale = 1 / (vae.config.scaling_factor * deviation)
    quant, post = vae.quant_conv, vae.post_quant_conv
    c = len(mean)
    quant.weight[:c] *= scale.view(-1, 1, 1, 1, 1)
    quant.bias[:c] = (quant.bias[:c] - mean) * scale
    quant.bias[c:] += 2 * scale.log()  # the log variance scales too
    post.bias += post.weight.flatten(1) @ mean
    post.weight /= scale.view(1, -1, 1, 1, 1)


@torch.no_grad()
def evaluate(vae: AutoencoderKLHunyuanVideo, device: str, count: int = 48) -> dict:
    """PSNR in dB on held-out clips through diffusers' plain forward, weights rounded to float16."""
    plain = pocket.vae()
    plain.load_state_dict({k: v.half().float() for k, v in vae.state_dict().items()})
    plain.to(device).eval()
    scores, by_frame = [], []
    for seed in range(0, count, 8):
        scenes = [toyland.random_scene(10_000 + seed + i, unseen=True) for i in range(min(8, count - seed))]
        x = toyland.render_batch(scenes, device=device)
        y = ((plain(x * 2 - 1).sample + 1) / 2).clamp(0, 1)
        error = (x - y).square()
        scores += (-10 * error.mean((1, 2, 3, 4)).log10()).tolist()
        by_frame.append(-10 * error.mean((1, 3, 4)).log10())
    by_frame, worst = torch.cat(by_frame).mean(0), sorted(scores)[: max(1, len(scores) // 10)]
    return {
        "psnr": sum(scores) / len(scores),
        "worst_tenth": sum(worst) / len(worst),
        "largest_step": by_frame.diff().abs().max().item(),
        "by_frame": [round(v, 2) for v in by_frame.tolist()],
    }


def main():
    args = common.options(
        __doc__,
        batch=0,
        rate=8e-4,
        stay=0.0,
        decoder=False,
        decay=0.5,
        subject=0.75,
        robust=0.7,
        pool=1024,
        chunk=64,
        save_every=120.0,
        kl=3e-6,
        noise=0.05,
        count=48,
        graphs=True,
        kernels=True,
    )
    cuda = args.device != "cpu"
    torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = True, 4
    torch.manual_seed(args.seed)  # every rank starts from the same weights
    vae = AutoencoderKLHunyuanVideo.from_pretrained(args.resume) if args.resume else pocket.vae()
    torch.manual_seed(args.seed * 1000 + args.rank)
    vae.to(args.device).train()
    average = common.Average(vae, 0.998)
    if cuda and args.kernels:
        from . import kernels  # Triton, which only machines with a GPU have

        kernels.speed_up(vae)
    autocast = torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=cuda, cache_enabled=False)

    clips = Clips(args.pool, args.chunk, args.device, args.seed * 97 + args.rank)
    if args.decoder:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    optimizer = common.Muon([p for p in vae.parameters() if p.requires_grad], args.rate)
    before = copy.deepcopy(vae).requires_grad_(False) if args.stay else None

    def both(x, noise: float):
        with autocast, torch.set_grad_enabled(not args.decoder):
            posterior = vae.encode(x).latent_dist
        mean, z, moved = posterior.mean.float(), posterior.sample(), torch.zeros((), device=x.device)
        if before:
            with autocast, torch.no_grad():
                old = before.encode(x).latent_dist.mode().float()
            moved = (mean - old).square().mean() / old.var()
            z = torch.where(torch.rand(len(z), 1, 1, 1, 1, device=z.device) < AS_THEY_WERE, old, z)
        with autocast:
            y = vae.decode(z + noise * z.detach().std() * torch.randn_like(z)).sample
        error, kl = y.float() - x, 0.5 * (mean.square() + posterior.var.float() - 1 - posterior.logvar.float())
        rest = args.kl * kl.mean() + args.stay * moved
        return error, rest, (error.detach().square().mean(), moved.detach())

    def robust(x, mask):  # at first, noise on the latents keeps their space smooth and L1 keeps edges sharp
        error, rest, seen = both(x, noise=args.noise)
        return (weights(x) * (error.square() + 0.3 * error.abs())).mean() + rest, *seen

    def exact(x, mask):
        error, rest, seen = both(x, noise=0.4 * args.noise)
        return log_error(error.square().mean(1), mask, args.subject) + rest, *seen

    phases = JOINT[1:] if args.resume else JOINT
    recorder = common.Recorder(vae, cuda and args.graphs)
    clock = common.Clock(args.seconds, args.log_every, args.rank)
    for i in clock:
        frames, height, width, batch = next(p[1:] for p in phases if clock.progress <= p[0])
        batch = args.batch or batch
        if i % 12 == 11:
            frames, height, width, batch = 1, 0, 0, 16  # single frames are videos too
        if i % 32 == 31:
            clips.renew()
        common.learning_rate(optimizer, args.rate, clock.progress, warmup=0.01, decay=args.decay)
        x, mask = clips.sample(batch, frames, height, width)
        late = args.stay or args.decoder or clock.progress >= args.robust
        loss, error, moved = recorder(exact if late else robust, True, x=x, mask=mask)
        common.average_gradients(vae)
        norm = torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(vae)
        clock.log(loss=loss, psnr=-10 * (error / 4).log10(), norm=norm, moved=moved.sqrt(), frames=frames)
        if clock.due(args.save_every):
            common.save(average.model, args.out / "vae")
    vae = average.model
    if not (args.stay or args.decoder):
        with torch.no_grad():
            fold(vae, torch.cat([vae.encode(clips.sample(4, 33, 0, 0)[0]).latent_dist.mode() for _ in range(16)]))
    common.save(vae, args.out / "vae")
    if args.rank == 0:
        numbers = evaluate(vae, args.device, args.count)
        numbers |= {"steps": clock.step, "seconds": args.seconds, "gpus": args.world}
        (args.out / "vae.json").write_text(json.dumps(numbers, indent=1))
        print(json.dumps(numbers), flush=True)


if __name__ == "__main__":
    main()
