"""Trains pocket's upscalers: Real-ESRGAN's compact network (64 features, 16 convolutions, x4) on Toyland.

    python -m training.upscaler --seconds 480 --out training/out/upscaler --vae t2v_kit/pocket

1. L1 on spoilt frames (training/degrade.py) beside their true high-resolution drawing, half of the time.
2. A short adversarial phase with a small U-Net critic, which sharpens; the critic's own features stand in for
   Real-ESRGAN's VGG. The result is pocket_x4, the counterpart of realesr-general-x4v3: it takes noise away.
3. The same again almost without noise and compression, starting from 2: pocket_wdn_x4, the counterpart of
   realesr-general-wdn-x4v3, takes noise for detail and keeps it. Both lie in one valley, so that mixing the two
   state dicts sets the strength of denoising, as `denoise_strength` does in Real-ESRGAN.

With --vae, 30 % of the inputs (--from-vae) are frames that went through pocket's own video VAE, the pictures it will
meet most.
The last line of each phase is followed by a table: PSNR on held-out scenes, also written to upscaler.json.
"""

import json
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import t2v_kit  # noqa: F401  (makes torchvision importable before spandrel and diffusers want it)
from t2v_kit import toyland
from training.common import Average, Clock, Muon, learning_rate, options
from training.degrade import degrade

HEIGHT, WIDTH = 112, 192  # pocket's own size; the truth is drawn at four times that
WEAK = 0.1  # share of noise and compression that pocket_wdn_x4 is trained with
#: Cartoons are flat: enlarging by repeated pixels has so small an L1 that L1 alone stays there for good.
SQUARED_WEIGHT = 50
CRITIC_WEIGHT, FEATURE_WEIGHT = 0.005, 0.2  # small beside L1: sharper, and hardly any PSNR lost
SETUP = 0.1  # share of the time that drawing may take before training starts, at most; a slow machine draws fewer
CLIPS = 4  # that go through the VAE at once
SPOILT = 50  # batches in a row without a finite gradient, after which training gives up
DEFAULT, WEAK_DENOISE = "pocket_x4", "pocket_wdn_x4"


def network() -> nn.Module:
    """SRVGGNetCompact with realesr-general-x4v3's sizes, started so that 18 layers in a row pass signals on."""
    from spandrel.architectures.Compact import Compact

    net = Compact(num_feat=64, num_conv=16, upscale=4)
    for layer in net.body:
        if isinstance(layer, nn.PReLU):
            nn.init.constant_(layer.weight, 0.8)
        else:
            nn.init.kaiming_normal_(layer.weight, a=0.8)
            nn.init.zeros_(layer.bias)
    net.body[-1].weight.data *= 0.1  # a small correction to repeated pixels
    return net.to(memory_format=torch.channels_last)


class Critic(nn.Module):
    """Real-ESRGAN's U-Net discriminator with spectral norm: one verdict a pixel. Also returns its features."""

    def __init__(self, width: int = 32):
        super().__init__()
        conv = lambda i, o, *size: spectral_norm(nn.Conv2d(i, o, *size, bias=False))  # noqa: E731
        self.first = nn.Conv2d(3, width, 3, 1, 1)
        self.down = nn.ModuleList(conv(width * 2**i, width * 2 ** (i + 1), 4, 2, 1) for i in range(3))
        self.up = nn.ModuleList(conv(width * 2 ** (i + 1), width * 2**i, 3, 1, 1) for i in (2, 1, 0))
        self.last = nn.Sequential(conv(width, width, 3, 1, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 3, 1, 1))

    def forward(self, x):
        features = [F.leaky_relu(self.first(x), 0.2)]
        for layer in self.down:
            features.append(F.leaky_relu(layer(features[-1]), 0.2))
        x = features[-1]
        for layer, skip in zip(self.up, features[-2::-1], strict=True):
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
            x = F.leaky_relu(layer(x), 0.2) + skip
        return self.last(x), features[1:]


class Frames:
    """Drawn frames on the device, renewed while training runs: `.high` (N, 3, 448, 768) uint8, and with a VAE
    `.decoded` (M, 3, 112, 192) beside its truth `.drawn` (M, 3, 448, 768)."""

    def __init__(self, count: int, clips: int, device: str, vae, seed: int, seconds: float, share: float = 0.3):
        """Draws `count` frames and `clips` clips, or as many as `seconds` allow (at least one lot of each); `share` of
        a batch comes from the latter."""
        self.rng, self.device, self.vae, self.share = random.Random(seed), device, vae, share
        self.high = self._empty(count, 4)
        self.keep = 8  # frames kept of each clip that went through the VAE
        self.decoded, self.drawn = self._empty(clips * self.keep, 1), self._empty(clips * self.keep, 4)
        self.next_frame = self.next_pair = 0
        half = time.monotonic() + seconds / 2
        while self.next_frame < count and (not self.next_frame or time.monotonic() < half):
            self.renew_frames(min(16, count - self.next_frame))
        pairs = len(self.decoded) if vae else 0
        while self.next_pair < pairs and (not self.next_pair or time.monotonic() < half + seconds / 2):
            self.renew_pairs(min(CLIPS, (pairs - self.next_pair) // self.keep))
        self.high = self.high[: self.next_frame]
        self.decoded, self.drawn = self.decoded[: self.next_pair], self.drawn[: self.next_pair]

    def _empty(self, count: int, scale: int) -> torch.Tensor:
        return torch.zeros(count, 3, scale * HEIGHT, scale * WIDTH, dtype=torch.uint8, device=self.device)

    def renew_frames(self, count: int):
        """The oldest `count` frames give way to new scenes."""
        scenes = [toyland.random_scene(self.rng, unseen=False) for _ in range(count)]
        drawn = toyland.render_batch(scenes, 4 * HEIGHT, 4 * WIDTH, 1, self.device)[:, :, 0]
        index = (torch.arange(count) + self.next_frame) % len(self.high)
        self.high[index.to(self.device)] = _bytes(drawn)
        self.next_frame += count

    def renew_pairs(self, clips: int = 1):
        """Clips of pocket's length through the VAE; some of their frames, and the same drawn large."""
        scenes = [toyland.random_scene(self.rng, unseen=False) for _ in range(clips)]
        for low, high in zip(*through_vae(self.vae, scenes, self.device), strict=True):
            chosen = torch.tensor(self.rng.sample(range(len(low)), self.keep), device=self.device)
            place = (torch.arange(self.keep) + self.next_pair).to(self.device) % len(self.decoded)
            self.decoded[place], self.drawn[place] = _bytes(low[chosen]), _bytes(high[chosen])
            self.next_pair += self.keep

    def batch(self, count: int, side: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
        """`count` crops: (B, 3, side, side) as the network meets them, (B, 3, 4 side, 4 side) as they should be."""
        pairs = round(count * self.share) if self.vae else 0
        high = self._crops([self.high], count - pairs, side)[0]
        low = degrade(high, self.rng, noise, group=12)
        if pairs:
            decoded, drawn = self._crops([self.decoded, self.drawn], pairs, side)
            low, high = torch.cat([low, decoded]), torch.cat([high, drawn])
        shape = dict(memory_format=torch.channels_last)
        return low.contiguous(**shape), high.contiguous(**shape)

    def _crops(self, sources: list[torch.Tensor], count: int, side: int) -> list[torch.Tensor]:
        """The same windows of each source, `side` low-resolution pixels wide; the livelier half of twice as many."""
        limits = len(sources[0]), HEIGHT - side + 1, WIDTH - side + 1
        spots = [[self.rng.randrange(limit) for limit in limits] for _ in range(2 * count)]
        spots = torch.tensor(spots).to(self.device, non_blocking=True)
        i, y, x = spots.T.reshape(3, -1, 1, 1, 1)
        colour, cut = torch.arange(3, device=self.device).view(3, 1, 1), []
        for source in sources:
            s = source.shape[2] // HEIGHT
            line = torch.arange(s * side, device=self.device)
            cut.append(source[i, colour, s * y + line.view(-1, 1), s * x + line].float() / 255)
        lively = F.avg_pool2d(cut[0], 4).std((1, 2, 3)).topk(count).indices
        return [windows[lively] for windows in cut]


def through_vae(vae, scenes: list, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips as the VAE gives them back, (B, T, 3, 112, 192), and drawn large, (B, T, 3, 448, 768); in [0, 1].

    A little noise on the latents stands for what the transformer gets wrong.
    """
    clip = toyland.render_batch(scenes, HEIGHT, WIDTH, device=device)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=device != "cpu"):
        latents = vae.encode(clip * 2 - 1).latent_dist.mode()
        noise = 0.05 / vae.config.scaling_factor * torch.randn_like(latents)
        decoded = vae.decode(latents + noise).sample.float()
    high = toyland.render_batch(scenes, 4 * HEIGHT, 4 * WIDTH, device=device)
    return (decoded.nan_to_num().transpose(1, 2) / 2 + 0.5).clamp(0, 1), high.transpose(1, 2)


def _bytes(x: torch.Tensor) -> torch.Tensor:
    return (x * 255).round().to(torch.uint8)


# ---- training --------------------------------------------------------------------------------------------


def train(name: str, net: nn.Module, frames: Frames, args, seconds: float, noise: float, peak: float, critic=None):
    """One phase; `net` ends as the moving average of itself, saved as `name`, also once a minute on the way."""
    print(f"{name}: {seconds:.0f} s, noise {noise}, {'adversarial' if critic else 'L1'}", flush=True)
    clock, average, saved = Clock(seconds, args.log_every), Average(net, 0.999), time.monotonic()
    optimizer = Muon(net.parameters(), peak)
    judge = torch.optim.Adam(critic.parameters(), betas=(0.9, 0.99)) if critic else None
    spoilt = torch.zeros((), device=args.device)
    for step in clock:
        learning_rate(optimizer, peak, clock.progress, decay=0.5)
        if step % 50 == 49:
            frames.renew_frames(min(args.renew, len(frames.high)))
            if frames.vae:
                frames.renew_pairs()
        low, high = frames.batch(args.batch, args.side, noise)
        with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.bf16):
            made = net(low)
        made = made.float()
        l1, squared = F.l1_loss(made, high), F.mse_loss(made, high)
        loss, numbers = l1 + SQUARED_WEIGHT * squared, dict(l1=l1.detach(), psnr=-10 * squared.detach().log10())
        if critic:  # in float32: spectral norm does not like to be autocast
            learning_rate(judge, peak, clock.progress, decay=0.5)
            extra, told = sharpen(critic, judge, made, high)
            loss, numbers = loss + extra, numbers | told
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        spoilt = (spoilt + 1) * ~guarded_step(optimizer, net)
        if step % SPOILT == SPOILT - 1 and spoilt >= SPOILT:  # read seldom: reading waits for the device
            raise RuntimeError(f"{name}: {int(spoilt)} batches in a row without a finite gradient, at step {step}")
        average.update(net)
        clock.log(**numbers)
        if time.monotonic() - saved > 60:
            write(average.model, args.out, name)
            saved = time.monotonic()
    net.load_state_dict(average.model.state_dict())
    write(net, args.out, name)


def guarded_step(optimizer: torch.optim.Optimizer, net: nn.Module) -> torch.Tensor:
    """A step along gradients clipped to norm 1; without a finite norm they count as zero. Returns whether finite,
    on the device, so that nothing waits for it."""
    finite = nn.utils.clip_grad_norm_(net.parameters(), 1.0).isfinite()
    for parameter in net.parameters():
        parameter.grad = torch.where(finite, parameter.grad, 0)
    optimizer.step()
    return finite


def sharpen(critic: Critic, judge: torch.optim.Optimizer, made: torch.Tensor, high: torch.Tensor):
    """One step of the critic, then what it has to say: the network's extra loss, and numbers to print."""
    real, fake = critic(high)[0], critic(made.detach())[0]
    verdict = F.softplus(-real).mean() + F.softplus(fake).mean()
    judge.zero_grad(set_to_none=True)
    verdict.backward()
    guarded_step(judge, critic)
    critic.requires_grad_(False)
    with torch.no_grad():
        wanted = critic(high)[1]
    opinion, features = critic(made)
    critic.requires_grad_(True)
    closeness = sum(F.l1_loss(a, b) for a, b in zip(features, wanted, strict=True))
    loss = CRITIC_WEIGHT * F.softplus(-opinion).mean() + FEATURE_WEIGHT * closeness
    return loss, dict(critic=verdict.detach(), features=closeness.detach())


def write(net: nn.Module, folder: Path, name: str):
    state = {key: value.to(torch.float16).contiguous() for key, value in net.state_dict().items()}
    save_file(state, folder / f"{name}.part", metadata={"format": "pt"})
    (folder / f"{name}.part").replace(folder / f"{name}.safetensors")


# ---- evaluation ------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(net: nn.Module, args, vae) -> dict:
    """PSNR in dB (8-bit, mean over frames) of Lanczos, both networks and their mixture on held-out scenes.

    degraded: `degrade` with its full ranges, seed 1, each frame its own; noisy: the scene drawn small plus
    Gaussian noise of deviation 10 of 255; clean: the scene drawn small; decoded: frames 4, 12, 20 and 28 of a
    clip that went through the VAE. All against the same scene drawn at 448x768.
    """
    rng = random.Random(1)
    scenes = [toyland.random_scene(rng, unseen=True) for _ in range(args.scenes)]
    inputs = {"degraded": [], "noisy": [], "clean": []} | ({"decoded": []} if vae else {})
    for scene in scenes:
        high = toyland.render_batch([scene], 4 * HEIGHT, 4 * WIDTH, 1, args.device)[:, :, 0]
        small = toyland.render_batch([scene], HEIGHT, WIDTH, 1, args.device)[:, :, 0]
        grain = torch.randn(small.shape, generator=torch.Generator().manual_seed(scene.seed)).to(args.device)
        inputs["degraded"].append((degrade(high, rng), high))
        inputs["noisy"].append(((small + grain * 10 / 255).clamp(0, 1), high))
        inputs["clean"].append((small, high))
    for scene in scenes[: max(1, len(scenes) // 4)] if vae else []:
        (low,), (high,) = through_vae(vae, [scene], args.device)
        inputs["decoded"] += [(low[t : t + 1], high[t : t + 1]) for t in (4, 12, 20, 28)]
    states = [load_file(args.out / f"{name}.safetensors", device=args.device) for name in (DEFAULT, WEAK_DENOISE)]
    half = {key: (value.float() + states[1][key].float()) / 2 for key, value in states[0].items()}
    results = {"Lanczos": {kind: _psnr(pairs, _lanczos) for kind, pairs in inputs.items()}}
    for name, state in ((DEFAULT, states[0]), ("half and half", half), (WEAK_DENOISE, states[1])):
        net.load_state_dict(state)
        results[name] = {kind: _psnr(pairs, net) for kind, pairs in inputs.items()}
    return results


def _psnr(pairs, enlarge) -> float:
    """Mean over the pairs, both sides as 8-bit pictures."""
    values = []
    for low, high in pairs:
        made = _bytes(enlarge(_bytes(low).float() / 255).clamp(0, 1))
        values.append(-10 * torch.log10(F.mse_loss(made.float(), _bytes(high).float()) / 255**2))
    return float(torch.stack(values).mean())


def _lanczos(low: torch.Tensor) -> torch.Tensor:
    picture = Image.fromarray(_bytes(low)[0].permute(1, 2, 0).cpu().numpy())
    large = picture.resize((4 * low.shape[3], 4 * low.shape[2]), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(large)).to(low.device).permute(2, 0, 1).unsqueeze(0) / 255


def main():
    args = options(__doc__.splitlines()[0], vae="", batch=64, side=48, frames=384, clips=48, renew=16, scenes=48,
                   rate=6e-4, from_vae=0.3, bf16=torch.cuda.is_available(), adversarial=True)  # fmt: skip
    start = time.monotonic()
    vae = None
    if args.vae:
        from diffusers import AutoencoderKLHunyuanVideo

        inside = dict(subfolder="vae") if (Path(args.vae) / "vae").is_dir() else {}
        vae = AutoencoderKLHunyuanVideo.from_pretrained(args.vae, torch_dtype=torch.float32, **inside)
        vae = vae.to(args.device).eval().requires_grad_(False)
    net = network().to(args.device)
    if args.resume:
        net.load_state_dict(load_file(args.resume, device=args.device))
    frames = Frames(args.frames, args.clips, args.device, vae, args.seed, min(20, SETUP * args.seconds), args.from_vae)
    setup = time.monotonic() - start
    left = max(0.95 * args.seconds - setup, 0.5 * args.seconds)  # the rest is for the evaluation
    print(f"{setup:.0f} s for {len(frames.high)} frames and {len(frames.decoded) // frames.keep} clips", flush=True)
    critic = Critic().to(args.device, memory_format=torch.channels_last) if args.adversarial else None
    train(DEFAULT, net, frames, args, 0.5 * left, 1.0, args.rate)
    train(DEFAULT, net, frames, args, 0.25 * left, 1.0, args.rate / 3, critic)
    train(WEAK_DENOISE, net, frames, args, 0.25 * left, WEAK, args.rate / 3, critic)
    results = evaluate(net, args, vae)
    print(f"{'PSNR, dB':16}" + "".join(f"{kind:>10}" for kind in results["Lanczos"]))
    for name, row in results.items():
        print(f"{name:16}" + "".join(f"{value:10.2f}" for value in row.values()))
    record = {"psnr_db": results, "scenes": args.scenes, "seconds": round(time.monotonic() - start),
              "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
              "torch": torch.__version__, "what": " ".join(evaluate.__doc__.split())}  # fmt: skip
    (args.out / "upscaler.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
