"""The video of `make demo` as one makes it with diffusers and spandrel alone, on the same weights.

    python -m benchmarks.plain_diffusers PROMPT FOLDER

Reads pocket with `HunyuanVideoPipeline.from_pretrained`, calls the pipeline with pocket's settings, and enlarges each
frame with pocket's network. Writes video.mp4, upscaled.mp4 and the denoised latents into FOLDER.
"""

import t2v_kit  # noqa: F401  (it makes torchvision importable, and imports nothing else)

# isort: split
import json
import sys
from pathlib import Path

import torch
from diffusers import HunyuanVideoPipeline
from diffusers.utils import export_to_video
from safetensors.torch import save_file
from spandrel import ModelLoader

from t2v_kit.hunyuan.files import POCKET


@torch.inference_mode()
def main(prompt: str, folder: Path) -> None:
    wanted = json.loads((POCKET / "t2v_kit.json").read_text("utf-8"))["defaults"]
    fps, shift = wanted.pop("fps"), wanted.pop("flow_shift")
    pipe = HunyuanVideoPipeline.from_pretrained(POCKET, dtype=torch.float32)
    pipe.scheduler.set_shift(shift)
    latents = []
    frames = pipe(
        prompt,
        **wanted,
        generator=torch.Generator("cpu").manual_seed(0),
        callback_on_step_end=lambda pipe, step, time, held: latents.append(held["latents"]) or {},
        output_type="pt",
    ).frames[0]
    export_to_video(list(frames.permute(0, 2, 3, 1).numpy()), str(folder / "video.mp4"), fps=fps)
    network = ModelLoader().load_from_file(POCKET / "upscaler" / "pocket_x4.safetensors")
    large = [network(frame[None])[0].clamp(0, 1).permute(1, 2, 0).numpy() for frame in frames]
    export_to_video(large, str(folder / "upscaled.mp4"), fps=fps)
    save_file({"latents": latents[-1].contiguous()}, folder / "latents.safetensors")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
