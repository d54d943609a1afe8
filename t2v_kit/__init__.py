"""Text-to-video taken apart: HunyuanVideo makes the video, Real-ESRGAN enlarges it, every stage can be looked at."""

import sys

from . import _torchvision  # noqa: F401  (first: hooks that act when diffusers imports torchvision; costs nothing)

__version__ = "0.1.0"

# Not for `python -m t2v_kit`, whose --help need not wait for torch: while Python looks for it, argv[0] is "-m".
if not (sys.argv[:1] == ["-m"] and __name__ in sys.orig_argv):
    from . import toyland
    from .attention import AttentionMaps, auc, find_tokens, overlay_heat, token_mask, watch_attention
    from .denoise import Step, count_work, denoise, velocity
    from .diagram import show_diagram
    from .film import read_metadata, save_video, video_reader, video_writer
    from .latents import add_noise, fit_rgb, initial_latents, preview_rgb, sigma_schedule, tile_channels
    from .measure import flicker, psnr, ssim, still_pixels
    from .memory import Part, Plan, plan
    from .memory.estimate import estimate
    from .memory.machine import Machine
    from .models import Models, load
    from .playground import Playground
    from .prompt import PromptEncoding, encode_prompt, prompt_template, token_table
    from .run import Run, generate, resume
    from .run.gallery import RunRecord, compare, gallery, runs
    from .run.progress import Stopped
    from .settings import Settings, UserError
    from .sweep import Sweep, sweep
    from .upscale import load_upscaler, upscale, upscale_file, upscale_frames
    from .upscale.steady import steady
    from .vae import decode, encode, frozen_norms, tiles
    from .view import (
        animation,
        contact_sheet,
        show_image,
        show_video,
        side_by_side,
        stills,
    )
    from .widgets import explore, step_through, wipe

__all__ = [
    "AttentionMaps",
    "Machine",
    "Models",
    "Part",
    "Plan",
    "Playground",
    "PromptEncoding",
    "Run",
    "RunRecord",
    "Settings",
    "Step",
    "Stopped",
    "Sweep",
    "UserError",
    "add_noise",
    "animation",
    "auc",
    "compare",
    "contact_sheet",
    "count_work",
    "decode",
    "denoise",
    "encode",
    "encode_prompt",
    "estimate",
    "explore",
    "find_tokens",
    "fit_rgb",
    "flicker",
    "frozen_norms",
    "gallery",
    "generate",
    "initial_latents",
    "load",
    "load_upscaler",
    "overlay_heat",
    "plan",
    "preview_rgb",
    "prompt_template",
    "psnr",
    "read_metadata",
    "resume",
    "runs",
    "save_video",
    "show_diagram",
    "show_image",
    "show_video",
    "side_by_side",
    "sigma_schedule",
    "ssim",
    "steady",
    "step_through",
    "still_pixels",
    "stills",
    "sweep",
    "tile_channels",
    "tiles",
    "token_mask",
    "token_table",
    "toyland",
    "upscale",
    "upscale_file",
    "upscale_frames",
    "velocity",
    "video_reader",
    "video_writer",
    "watch_attention",
    "wipe",
]
