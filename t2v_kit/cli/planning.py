"""`t2v plan`: how a model fits into a GPU's memory."""

from __future__ import annotations

import re
import shlex

from ..errors import UserError
from ..settings import settings_from
from .app import EXAMPLE, app, quieten


@app.command
def plan(
    *,
    vram: float | None = None,
    ram: float | None = None,
    size: str = "720x1280x129",
    model: str = "hunyuan",
    lossless: bool = False,
) -> None:
    """Plan a model's memory, and estimate what a video needs.

    Args:
        vram: GB of GPU memory; by default this machine's.
        ram: GB of RAM; by default this machine's.
        size: Height x width x frames of the video.
        model: pocket, hunyuan, or a folder.
        lossless: Only plans that change nothing but the rounding of the result.
    """
    numbers = re.fullmatch(r"(\d+)x(\d+)x(\d+)", size.lower())
    if numbers is None:
        raise UserError(f"--size {size}: must be height x width x frames; 720x1280x129 would work.")
    height, width, num_frames = map(int, numbers.groups())
    settings_from(prompt=EXAMPLE, height=height, width=width, num_frames=num_frames)
    quieten()
    from ..memory.choose import plan as choose_plan
    from ..memory.estimate import estimate
    from ..memory.machine import machine_with
    from ..memory.plan import Size

    machine = machine_with(vram, ram)
    if not machine.vram_gb:
        raise UserError("this machine has no GPU to plan for; --vram 12 would plan for one of 12 GB.")
    chosen = choose_plan(None, None, height, width, num_frames, model, lossless, machine)
    print(estimate(chosen, Size(height, width, num_frames), model))
    sizes = f"--height {height} --width {width} --num-frames {num_frames}"
    print(f'use: t2v "PROMPT" --model {shlex.quote(model)} --memory {machine.vram_gb:g} {sizes}')
