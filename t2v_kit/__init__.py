"""Text-to-video taken apart: HunyuanVideo makes the video, Real-ESRGAN enlarges it, every stage can be looked at."""

import sys

from . import _torchvision  # noqa: F401  (first: hooks that act when diffusers imports torchvision; costs nothing)

__version__ = "0.1.0"

# Not for `python -m t2v_kit`, whose --help need not wait for torch: while Python looks for it, argv[0] is "-m".
if not (sys.argv[:1] == ["-m"] and __name__ in sys.orig_argv):
    from . import toyland
    from .denoise import Step, denoise
    from .latents import add_noise, fit_rgb, initial_latents, preview_rgb, sigma_schedule
    from .models import Models, load
    from .prompt import PromptEncoding, encode_prompt, token_table
    from .run import Run, generate
    from .settings import Settings, UserError
    from .upscale import load_upscaler, upscale, upscale_frames
    from .vae import decode, encode
    from .view import (
        animation,
        contact_sheet,
        read_metadata,
        save_video,
        show_image,
        show_video,
        side_by_side,
        stills,
    )

__all__ = [
    "Models",
    "PromptEncoding",
    "Run",
    "Settings",
    "Step",
    "UserError",
    "add_noise",
    "animation",
    "contact_sheet",
    "decode",
    "denoise",
    "encode",
    "encode_prompt",
    "fit_rgb",
    "generate",
    "initial_latents",
    "load",
    "load_upscaler",
    "preview_rgb",
    "read_metadata",
    "save_video",
    "show_image",
    "show_video",
    "side_by_side",
    "sigma_schedule",
    "stills",
    "token_table",
    "toyland",
    "upscale",
    "upscale_frames",
]
