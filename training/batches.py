"""Videos by the batch, for the evaluation: made, judged by the probes, and laid out to be looked at.

The same mathematics as `t2v_kit.denoise`, whose noise it uses; tests compare the two.
"""

from __future__ import annotations

import textwrap
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

import t2v_kit
from t2v_kit.stages.noise import make_scheduler
from training.judge import Probe, answers, score, shrink


@torch.no_grad()
def encode(models, texts: list[str]) -> dict[str, torch.Tensor]:
    """The transformer's text inputs for a batch; padding that no prompt of the batch needs is cut off."""
    embeds, pooled, mask = models.pipe.encode_prompt(texts, prompt_template=models.template, device=models.device)
    longest = int(mask.sum(1).max())
    return dict(
        encoder_hidden_states=embeds[:, :longest], encoder_attention_mask=mask[:, :longest], pooled_projections=pooled
    )


@torch.no_grad()
def velocity(transformer, latents, timestep, text: dict, guidance: float) -> torch.Tensor:
    n = len(latents)
    scale = torch.full((n,), guidance * 1000.0, device=latents.device, dtype=latents.dtype)
    return transformer(latents, timestep.expand(n).to(latents.dtype), guidance=scale, **text, return_dict=False)[0]


@torch.no_grad()
def trajectory(models, text: dict, seeds: list[int], guidance: float | None = None):
    """Denoise a batch with the model's defaults; yields (latents, timestep, velocity) before each step, and at the
    end (latents, None, None)."""
    settings = t2v_kit.Settings(prompt="any").check(models)
    guidance = settings.guidance_scale if guidance is None else guidance
    scheduler = make_scheduler(models, settings)
    latents = torch.cat([t2v_kit.initial_latents(models, replace(settings, seed=s)) for s in seeds]).to(models.device)
    for timestep in scheduler.timesteps:
        flow = velocity(models.pipe.transformer, latents, timestep, text, guidance)
        yield latents, timestep, flow
        latents = scheduler.step(flow, timestep, latents, return_dict=False)[0]
    yield latents, None, None


def size(models) -> dict[str, int]:
    """height, width and num_frames of the model's defaults, at which everything is made and drawn."""
    return {name: models.defaults[name] for name in ("height", "width", "num_frames")}


@torch.no_grad()
def make(models, text: dict, seeds: list[int], guidance: float | None = None) -> torch.Tensor:
    """Videos (B, 3, T, H, W) float32 in [0, 1]; the VAE decodes with its default tiling."""
    for latents, _, _ in trajectory(models, text, seeds, guidance):  # noqa: B007  the last one is what counts
        pass
    vae = models.pipe.vae
    parts = [vae.decode(z / vae.config.scaling_factor).sample for z in latents.to(vae.dtype).split(8)]
    return (torch.cat(parts).float() / 2 + 0.5).clamp(0, 1)


def edges(video: torch.Tensor) -> torch.Tensor:
    """Mean gradient of what moves, (B,) in [0, 1] a pixel; video (B, 3, T, H, W) in [0, 1].

    What moves is what differs from its pixel's median over time, and the two pixels around it: for want of a mask, the
    same for a generated clip and a drawn one. NaN where that is less than a thousandth of the clip."""
    moved = (video - video.median(2, keepdim=True).values).abs().amax(1) > 0.1
    moved = F.max_pool2d(moved.float(), 5, 1, 2)
    right, down = (F.pad(video.diff(dim=d), pad) for d, pad in ((4, (0, 1)), (3, (0, 0, 0, 1))))
    steep = torch.hypot(right, down).mean(1)
    share = moved.mean((1, 2, 3))
    return ((steep * moved).mean((1, 2, 3)) / share).masked_fill(share < 0.001, float("nan"))


@dataclass
class Judged:
    """What the probes say (`probe.answers` of all clips), the clips as they see them, (B, 17, 3, 56, 96) uint8, their
    `edges`, and the first few at full size, (n, 3, T, H, W) in [0, 1]."""

    said: list[list[torch.Tensor]]
    seen: torch.Tensor
    sharp: torch.Tensor
    videos: torch.Tensor

    def scores(self, wishes: list[dict]) -> list[dict[str, torch.Tensor]]:
        """Of both probes together, then of each: see `probe.score`."""
        return [score(answer, wishes[: len(self.seen)]) for answer in self.said]


def judge(
    models,
    probes: list[Probe],
    prompts: list[str],
    *,
    batch: int = 64,
    guidance: float | None = None,
    pooled_from: list[str] | None = None,
    deadline: float = float("inf"),
    keep: int = 0,
) -> Judged:
    """Make a video of each prompt, its number being the seed, and ask the probes.

    pooled_from: other prompts, which give the pooled vectors. deadline: no new batch begins after this
    time.monotonic(), so there may be fewer videos than prompts. keep: how many to return at full size."""
    said, seen, sharp, videos = [], [], [], []
    for start in range(0, len(prompts), batch):
        if start and time.monotonic() > deadline:
            break
        part = slice(start, min(start + batch, len(prompts)))
        text = encode(models, prompts[part])
        if pooled_from:
            text["pooled_projections"] = encode(models, pooled_from[part])["pooled_projections"]
        video = make(models, text, list(range(len(prompts)))[part], guidance)
        said.append(answers(probes, video))
        seen.append((shrink(video) * 255).round().to(torch.uint8).cpu())
        sharp.append(edges(video).cpu())
        videos.append(video[: max(0, keep - start)].cpu())
        print(f"  {part.stop} of {len(prompts)} videos", flush=True)
    said = [[torch.cat(parts) for parts in zip(*one)] for one in zip(*said)]
    return Judged(said, torch.cat(seen), torch.cat(sharp), torch.cat(videos))


# ---- pictures --------------------------------------------------------------------------------------------


def picture(frame: torch.Tensor) -> Image.Image:
    """(3, H, W) in [0, 1]."""
    return Image.fromarray((frame.permute(1, 2, 0) * 255).round().clamp(0, 255).byte().numpy())


def contact_sheet(prompts: list[str], videos: torch.Tensor, path: Path, columns: int = 2, frames: int = 4):
    """Each video as a strip of frames from first to last, with its prompt below."""
    _, _, t, h, w = videos.shape
    index = torch.linspace(0, t - 1, frames).round().long().tolist()
    wide, tall = frames * w + 8, h + 34
    sheet = Image.new("RGB", (columns * wide, -(-len(videos) // columns) * tall), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (prompt, video) in enumerate(zip(prompts, videos)):
        x, y = i % columns * wide, i // columns * tall
        for j, f in enumerate(index):
            sheet.paste(picture(video[:, f]), (x + j * w, y))
        draw.text((x, y + h + 2), "\n".join(textwrap.wrap(prompt, wide // 7)[:2]), fill="black")
    sheet.save(path)


def compare(pairs: list[tuple[torch.Tensor, torch.Tensor]], path: Path, frames: int = 7):
    """For each (true, decoded) pair of (3, T, H, W) in [0, 1] three rows of frames: true, decoded, and four times the
    absolute difference."""
    rows = []
    for true, decoded in pairs:
        index = torch.linspace(0, true.shape[1] - 1, frames).round().long()
        for video in (true, decoded, (4 * (true - decoded).abs()).clamp(0, 1)):
            rows.append(torch.cat(list(video[:, index].unbind(1)), 2))
    picture(torch.cat(rows, 1)).save(path)
