"""The question before so many GB are downloaded."""

from __future__ import annotations

import re
import sys
import warnings

from ..errors import UserError
from ..hunyuan.names import DOWNLOADS, PUBLISHED
from ..settings import Settings


def ask_for_download(wanted: Settings, revision: str | None, model: str = "hunyuan") -> None:
    """Before the 13B's weights are fetched: their size, where their licence holds, what this machine could do."""
    hub = PUBLISHED.get(model, model)
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(hub, "model_index.json", revision=revision), str):
        return  # a download was agreed to before
    print(f"{DOWNLOADS[hub]}\nThis machine: {_what_is_possible(wanted, model)}", flush=True)
    if not sys.stdin.isatty():
        raise UserError(f"--model {model}: nobody is there to agree to the download; --yes would work.")
    if input("Download? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError(f"--model {model}: not downloaded; --model pocket needs no download.")
    warnings.filterwarnings("ignore", re.escape(DOWNLOADS[hub]))  # which has just been read


def _what_is_possible(wanted: Settings, model: str) -> str:
    """The plan that fits this machine's GPU for the video, or that there is none."""
    from ..memory.choose import plan as choose_plan
    from ..memory.estimate import estimate
    from ..memory.machine import Machine
    from ..memory.plan import Size

    machine = Machine.here()
    if not machine.vram_gb:
        return (
            f"no GPU, {machine.ram_gb:g} GB of RAM. The 13B needs a GPU to be of use; t2v plan --vram 12 plans for one."
        )
    size = Size(wanted.height or 720, wanted.width or 1280, wanted.num_frames or 129)
    try:
        chosen = choose_plan(height=size.height, width=size.width, num_frames=size.num_frames, model=model)
        needs = estimate(chosen, size, model)
    except UserError as mistake:
        return f"{machine.gpu}. {mistake}"
    return f"{machine.gpu}. --memory auto takes {needs.vram_gb:.1f} GB of the GPU and {needs.ram_gb:.1f} GB of RAM."
