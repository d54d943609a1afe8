"""Teach pocket to go on from what it is given: a LoRA for its transformer, trained on clips of which a part is clean.

In most batches the first one to four latents, the last one, or all but a box are put in without noise, and the
loss is taken on the rest; the other batches are plain text to video, so that this is not forgotten. What comes out is
shipped as pocket's LoRA 'continue', with which known parts go in clean. At the end it is measured on held-out scenes,
beside the same weights without it, which hold known parts noised to each step: how well the given frames are shown,
whether the judge still finds subject, colour and direction, whether the subject moves on at its speed, and how the
frame behind the seam jumps.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import HunyuanVideoPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import t2v_kit
from t2v_kit import toyland
from t2v_kit.hunyuan.lora_files import CLEAN, KNOWN
from training import common, pocket
from training.judge import answers, load_probes, score, table, wish
from training.transformer import Maker, draw_sigmas, velocity

#: Layers of the blocks that get a LoRA: attention of both kinds of block, and the single blocks' output.
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "proj_out"]
KINDS = ("plain", "beginning", "beginning", "end", "both ends", "box")  # of batches, each as often
FILE = "continue.safetensors"
GIVEN = 5  # frames of the held-out clips that are given


def draw_given(kind: str, shape: tuple[int, ...], rng: random.Random) -> torch.Tensor:
    """What is given of a batch's latents: (1, 1, T, H, W) bool; shape: (T, H, W)."""
    given = torch.zeros(1, 1, *shape, dtype=torch.bool)
    frames, height, width = shape
    if kind in ("beginning", "both ends"):
        given[:, :, : rng.randint(1, min(4, frames - 2))] = True
    if kind in ("end", "both ends"):
        given[:, :, -1] = True
    if kind == "box":
        h, w = rng.randint(height // 4, height // 2), rng.randint(width // 4, width // 2)
        top, left = rng.randint(0, height - h), rng.randint(0, width - w)
        given[:] = True
        given[..., top : top + h, left : left + w] = False
    return given


def loss_of(model, clean, given, said: dict, shift: float) -> torch.Tensor:
    """The flow-matching loss where nothing is given."""
    count, device = len(clean), clean.device
    sigma = draw_sigmas(count, str(device), shift)
    noise, at = torch.randn_like(clean), sigma.view(-1, 1, 1, 1, 1)
    noisy = torch.where(given, clean, (1 - at) * clean + at * noise)
    answer = velocity(model, noisy, sigma, **said, guidance=torch.ones(count, device=device))
    made = (~given).expand_as(clean)
    return (answer.float() - (noise - clean))[made].square().mean()


def train(args, model, maker: Maker) -> dict[str, float]:
    """Train the LoRA on `model`, in place."""
    pool, rng = maker.fill(args.pool_seconds, args.pool, num_frames=args.frames), random.Random(args.seed)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, args.rate, (0.9, 0.99), weight_decay=0.0)
    clock, mean = common.Clock(args.seconds, args.log_every), 0.0
    for step in clock:
        common.learning_rate(optimizer, args.rate, clock.progress)
        drawn = pool.sample(args.batch)
        clean = drawn.pop("clean").float()
        given = draw_given(rng.choice(KINDS), clean.shape[2:], rng).to(clean.device)
        with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.device != "cpu"):
            loss = loss_of(model, clean, given, drawn, args.shift)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mean = loss.detach() if step == 0 else 0.98 * mean + 0.02 * loss.detach()
        clock.log(loss=mean)
    return {"steps": clock.step, "clips": len(pool.latents), "loss": float(mean)}


@dataclass(frozen=True)
class Held:
    """A held-out clip: its scene, (T, H, W, 3) uint8, and its encoded caption."""

    scene: toyland.Scene
    clip: np.ndarray
    prompt: t2v_kit.PromptEncoding


def held_out(models, count: int, frames: int) -> list[Held]:
    """Scenes with one subject that training never shows."""
    scenes = [toyland.random_scene(50_000 + index, pair=0, unseen=True) for index in range(count)]
    size = {"height": models.defaults["height"], "width": models.defaults["width"], "num_frames": frames}
    return [
        Held(scene, toyland.render(scene, **size), t2v_kit.encode_prompt(models, toyland.caption(scene)))
        for scene in scenes
    ]


def speed(clip: np.ndarray) -> float:
    """Pixels a frame that what moves travels to the right, from the frames' differences to the median picture; NaN
    where nothing moves. Frames are (T, H, W, 3)."""
    moved = np.abs(clip.astype(np.int16) - np.median(clip, 0).astype(np.int16)).max(-1) > 25
    share = moved.mean((1, 2))
    if (share < 0.001).any():
        return float("nan")
    centres = (moved.sum(1) * np.arange(moved.shape[2])).sum(1) / moved.sum((1, 2))
    return float(np.polyfit(np.arange(len(centres)), centres, 1)[0])


def continued(models, held: Held, args, clean: bool) -> np.ndarray:
    """The clip made anew from its first GIVEN frames; clean: known parts without noise, as the LoRA has learnt."""
    text = toyland.caption(held.scene)
    settings = t2v_kit.Settings(text, num_frames=args.frames, num_inference_steps=args.steps).check(models)
    known = t2v_kit.known_parts(models, settings, first=held.clip[:GIVEN])
    known = t2v_kit.Known(known.latents, known.mask, clean)
    noise = t2v_kit.initial_latents(models, settings)
    *_, end = t2v_kit.denoise(models, held.prompt, noise, settings, known=known)
    return t2v_kit.decode(models, end.latents)


def measure(models, probes, clips: list[Held], args, clean: bool) -> dict:
    """What becomes of the held-out clips.

    Returns:
        given_psnr: of the frames that were given, dB.  jump: at the seam, in units of the true clip's median jump.
        speed_error: of the subject behind the seam, as a share of the true speed there; the median.
        kept: the judge's verdicts, shares of 1.
    """
    psnrs, jumps, speeds, videos = [], [], [], []
    for held in clips:
        video = continued(models, held, args, clean)
        psnrs.append(t2v_kit.psnr(video[:GIVEN], held.clip[:GIVEN]))
        steps = np.abs(np.diff(held.clip.astype(np.int16), axis=0)).mean((1, 2, 3))
        at_seam = np.abs(video[GIVEN].astype(np.int16) - video[GIVEN - 1]).mean()
        jumps.append(float(at_seam / np.median(steps)))
        true = speed(held.clip[GIVEN - 1 :])
        speeds.append(abs(speed(video[GIVEN - 1 :]) - true) / abs(true) if abs(true) > 0.2 else float("nan"))
        videos.append(torch.from_numpy(video).permute(3, 0, 1, 2).float() / 255)
    said = answers(probes, torch.stack(videos).to(models.device))
    verdicts = table(score(said[0], [wish(held.scene) for held in clips]))
    return {
        "given_psnr": round(float(np.mean(psnrs)), 2),
        "jump": round(float(np.median(jumps)), 3),
        "speed_error": round(float(np.nanmedian(speeds)), 4) if not np.isnan(speeds).all() else None,
        "kept": {name: verdicts.get(name) for name in ("subject", "colour", "direction", "all")},
    }


def save(model, folder: Path) -> Path:
    """Write the LoRA in float16, in diffusers' layout; its metadata says that known parts go in clean."""
    layers = {name: value.half() for name, value in get_peft_model_state_dict(model).items()}
    HunyuanVideoPipeline.save_lora_weights(folder, transformer_lora_layers=layers, weight_name=FILE)
    path = folder / FILE
    with safe_open(path, framework="pt") as file:
        metadata = {**(file.metadata() or {}), KNOWN: CLEAN}
    save_file(load_file(path), path, metadata)
    return path


def main() -> None:
    args = common.options(
        __doc__, batch=64, rate=1e-3, lora_rank=8, bundle=str(pocket.POCKET), pool=12_000, pool_seconds=25.0, workers=0,
        frames=33, shift=3.0, steps=20, measure=24,
    )  # fmt: skip
    models = t2v_kit.load(args.bundle, device=args.device, dtype="float32")
    probes = load_probes(Path("training/weights"), args.device)
    clips = held_out(models, args.measure, args.frames)
    report = {
        "weights": models.weights_hash,
        "given frames": GIVEN,
        "clips": len(clips),
        "without": measure(models, probes, clips, args, clean=False),
    }
    report["without, put in clean"] = measure(models, probes, clips, args, clean=True)
    model = models.pipe.transformer
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=args.lora_rank, lora_alpha=args.lora_rank, target_modules=LAYERS))
    report["trained"] = train(args, model, Maker(Path(args.bundle), args.device, args.seed, workers=args.workers))
    report["with"] = measure(models, probes, clips, args, clean=True)
    report["bytes"] = save(model, args.out).stat().st_size
    (args.out / "continuing.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
