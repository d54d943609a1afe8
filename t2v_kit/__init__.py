"""Text-to-video taken apart: HunyuanVideo makes the video, Real-ESRGAN enlarges it, every stage can be looked at.

Names are loaded when they are first used (PEP 562), so that `import t2v_kit` costs next to nothing.
"""

from importlib import import_module

from . import _imports  # noqa: F401  (import hooks that act when diffusers imports torchvision)
from ._version import __version__  # noqa: F401

_MODULES = {
    "attention.maps": ("auc", "find_tokens", "overlay_heat", "token_mask", "watch_attention"),
    "attention.watching": ("AttentionMaps",),
    "errors": ("UserError",),
    "memory.choose": ("plan",),
    "memory.estimate": ("estimate",),
    "memory.machine": ("Machine",),
    "memory.plan": ("Part", "Plan", "Size"),
    "model.loading": ("load",),
    "model.models": ("Models",),
    "playground": ("Playground",),
    "run.auditing": ("Audit", "audit"),
    "run.continuing": ("Extended", "Seam", "extend"),
    "run.generating": ("Run", "generate", "resume"),
    "run.progress": ("Stopped",),
    "run.records": ("RunRecord", "compare", "gallery", "runs"),
    "run.sweeps.sweeping": ("Sweep", "sweep"),
    "settings": ("Resolved", "Settings"),
    "stages.decoding": ("decode", "encode", "frozen_norms", "latent_frames", "tiles"),
    "stages.denoising": ("Step", "count_work", "denoise", "velocity"),
    "stages.image": ("Picture", "read_picture"),
    "stages.known": ("Known", "covered", "known_parts"),
    "stages.noise": ("add_noise", "initial_latents", "sigma_schedule", "start_step"),
    "stages.prompt": ("PromptEncoding", "encode_prompt", "prompt_template", "token_table"),
    "stages.upscaling.enlarging": ("upscale", "upscale_frames"),
    "stages.upscaling.films": ("DamagedVideo", "upscale_file"),
    "stages.upscaling.smoothing": ("steady",),
    "stages.upscaling.weights": ("load_upscaler",),
    "training.cache": ("encode_clips",),
    "training.clips": ("read_clips",),
    "training.choosing": ("choose_levers", "fastest_levers", "training_plan"),
    "training.footprint": ("estimate_training",),
    "training.looping": ("TrainStep", "train"),
    "training.options": ("TrainSettings",),
    "training.toyland_clips": ("write_toyland",),
    "video.files": ("read_metadata", "save_video", "video_reader", "video_writer"),
    "video.metrics": ("flicker", "motion_error", "psnr", "ssim", "still_pixels"),
    "view.diagram": ("show_diagram",),
    "view.latents": ("fit_rgb", "preview_rgb", "tile_channels"),
    "view.pictures": ("contact_sheet", "side_by_side", "stills"),
    "view.players": ("animation", "show_image", "show_video"),
    "view.widgets": ("explore", "step_through", "wipe"),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted([*_WHERE, "toyland"])


def __getattr__(name: str):
    if name == "toyland":
        return import_module(".toyland", __name__)
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
