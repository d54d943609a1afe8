"""Trains pocket's second text encoder as CLIP was: `python -m training.clip --seconds 60`.

A small CLIPTextModel and a small video network learn to recognise which caption belongs to which clip of a batch
(Radford et al. 2021). Only the text half is kept: HunyuanVideo takes its pooled vector, the state of the end token.
Weights go to OUT/text_encoder_2, the numbers to OUT/clip.json.
"""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from t2v_kit.toyland import FPS, Scene, random_scene
from t2v_kit.toyland.picture import draw

from . import common
from .lessons import ATTRIBUTES, write
from .llm import autocast, linear_probe

TOKENIZER = Path(__file__).resolve().parent.parent / "t2v_kit" / "pocket" / "tokenizer_2"
LENGTH = 77  # tokens a caption in training, as in the pipeline: one shape, so that a step can be recorded
FRAMES, HEIGHT, WIDTH = 5, 56, 96  # five looks at a clip, spread over the two seconds of its 33 frames


def build(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP's text transformer in small: 0.6 M parameters. It pools where its configured end token stands."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            projection_dim=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class VideoNet(nn.Module):
    """(B, 3, FRAMES, HEIGHT, WIDTH) in [0, 1] -> (B, 128). The frames are stacked as channels."""

    def __init__(self):
        super().__init__()
        widths = (3 * FRAMES, 64, 128, 192, 256)
        blocks = [
            nn.Sequential(
                nn.Conv2d(a, b, 3, stride=2, padding=1),
                nn.GroupNorm(8, b),
                nn.SiLU(),
                nn.Conv2d(b, b, 3, padding=1),
                nn.GroupNorm(8, b),
                nn.SiLU(),
            )
            for a, b in pairwise(widths)
        ]
        self.layers = nn.Sequential(*blocks, nn.Flatten(), nn.LazyLinear(128))

    def forward(self, video):
        return self.layers(video.flatten(1, 2) * 2 - 1)


class Pair(nn.Module):
    """Both halves and their meeting place."""

    def __init__(self, tokenizer: CLIPTokenizer):
        super().__init__()
        self.text, self.video = build(tokenizer), VideoNet()
        self.projection = nn.Linear(128, 128, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # CLIP's start, 1 / 0.07

    def forward(self, ids, video):
        """(B, B) similarities: rows are captions, columns clips."""
        words = F.normalize(self.projection(self.text(input_ids=ids).pooler_output), dim=-1)
        seen = F.normalize(self.video(video), dim=-1)
        return self.log_scale.clamp(max=4.6).exp() * words @ seen.T  # CLIP's ceiling, 100


def look(scenes: list[Scene], device: str) -> torch.Tensor:
    """(B, 3, FRAMES, HEIGHT, WIDTH) uint8: the first, the last and three frames between of each scene's clip."""
    image = draw(scenes, HEIGHT, WIDTH, FRAMES, FPS * (FRAMES - 1) / 32, device).image
    return (image * 255).round().to(torch.uint8)


class Clips:
    """A pool of drawn clips; every draw renews a part of it, for drawing many at once is cheapest."""

    def __init__(self, size: int, part: int, device: str, seed: int):
        self.rng, self.part, self.device, self.next = random.Random(seed), part, device, 0
        self.scenes = [random_scene(self.rng, unseen=False) for _ in range(size)]
        self.video = torch.cat([look(self.scenes[i : i + part], device) for i in range(0, size, part)])

    def renew(self):
        where = slice(self.next, self.next + self.part)
        self.scenes[where] = [random_scene(self.rng, unseen=False) for _ in self.scenes[where]]
        self.video[where] = look(self.scenes[where], self.device)
        self.next = where.stop % len(self.scenes)

    def batch(self, count: int) -> tuple[list[Scene], torch.Tensor]:
        chosen = self.rng.sample(range(len(self.scenes)), count)
        return [self.scenes[i] for i in chosen], self.video[torch.tensor(chosen, device=self.device)].float() / 255


def tokenize(tokenizer, captions: list[str], device: str, length: int | None = None) -> torch.Tensor:
    """(B, L): L is `length`, or that of the longest caption."""
    return tokenizer(
        captions, padding="max_length" if length else "longest", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids.to(device)


def train(pair: Pair, tokenizer: CLIPTokenizer, clips: Clips, args):
    optimizer = torch.optim.AdamW(pair.parameters(), weight_decay=0.05, betas=(0.9, 0.98))
    targets = torch.arange(args.batch, device=args.device)

    def step(ids, video):
        with autocast(args.device):
            similar = pair(ids, video).float()
        right = (similar.argmax(1) == targets).float().mean()
        return (F.cross_entropy(similar, targets) + F.cross_entropy(similar.T, targets)) / 2, right

    recorder, rng = common.Recorder(pair, args.device != "cpu"), random.Random(args.seed + 1)
    clock = common.Clock(args.seconds, args.log_every)
    for i in clock:
        common.learning_rate(optimizer, args.peak, clock.progress, decay=0.5)
        if i % args.renew_every == args.renew_every - 1:
            clips.renew()
        scenes, video = clips.batch(args.batch)
        captions = [write(scene, rng)[0] for scene in scenes]
        loss, right = recorder(step, ids=tokenize(tokenizer, captions, args.device, LENGTH), video=video)
        torch.nn.utils.clip_grad_norm_(pair.parameters(), 1.0)
        optimizer.step()
        clock.log(loss=loss, right=right)
    print(f"{clock.step} steps of {args.batch}")


@torch.no_grad()
def evaluate(pair: Pair, tokenizer: CLIPTokenizer, device: str, batch: int, probed: int) -> dict:
    """On held-out scenes: how often the right clip is found among `batch` for a caption and the other way round,
    and how well a linear probe reads each attribute off the pooled vector."""
    rng = random.Random(1)
    scenes = [random_scene(rng, unseen=True) for _ in range(max(batch, probed))]
    written = [write(scene, rng, silent=0, rough=0) for scene in scenes]
    ids = tokenize(tokenizer, [text for text, *_ in written], device, LENGTH)
    similar = pair(ids[:batch], look(scenes[:batch], device).float() / 255)
    targets = torch.arange(batch, device=device)
    pooled = torch.cat([pair.text(input_ids=part).pooler_output for part in ids.split(256)]).float().cpu()
    return dict(
        batch=batch,
        clip_for_caption=(similar.argmax(1) == targets).float().mean().item(),
        caption_for_clip=(similar.argmax(0) == targets).float().mean().item(),
        pooled_rms=pooled.square().mean().sqrt().item(),
        probes={name: linear_probe(pooled, [facts[name] for _, facts, _ in written]) for name in ATTRIBUTES},
    )


def main():
    args = common.options(
        __doc__, seconds=60.0, batch=256, peak=1e-3, clips=16384, part=512, renew_every=8, judged=256, probed=8000
    )
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    pair = Pair(tokenizer).to(args.device)
    clips = Clips(args.clips, args.part, args.device, args.seed)
    pair.video(clips.batch(2)[1])  # gives the lazy layer its size before the optimizer asks for it
    print(f"{args.clips} clips drawn", flush=True)
    train(pair, tokenizer, clips, args)
    pair.eval()
    common.save(pair.text, args.out / "text_encoder_2")
    pair.text = CLIPTextModel.from_pretrained(args.out / "text_encoder_2", dtype=torch.float32).to(args.device)
    numbers = dict(
        seconds=args.seconds,
        parameters=pair.text.num_parameters(),
        **evaluate(pair, tokenizer, args.device, args.judged, args.probed),
    )
    (args.out / "clip.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(
        "of {batch} held-out: clip for caption {clip_for_caption:.1%}, caption for clip {caption_for_clip:.1%}; "
        "pooled rms {pooled_rms:.2f}".format(**numbers)
    )
    for name, accuracy in numbers["probes"].items():
        print(f"probe {name:17s} pooled {accuracy:6.1%}")


if __name__ == "__main__":
    main()
