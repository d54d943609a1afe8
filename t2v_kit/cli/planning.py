"""`t2v plan`: how a model fits into a GPU's memory."""

from __future__ import annotations

import re
import shlex

from ..errors import UserError
from ..hunyuan.names import ANIMATES, KNOWN, TOKEN, check_name
from ..memory.drivers import surely_no_gpu
from ..settings import check_multiples, settings_from
from .app import EXAMPLE, app, import_quietly

NO_GPU = "this machine has no GPU to plan for; --vram 12 would plan for one of 12 GB."


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
    wanted = settings_from(prompt=EXAMPLE, height=height, width=width, num_frames=num_frames)
    check_name(model)
    if model in KNOWN:  # of a folder, only its configurations know
        check_multiples(wanted, *TOKEN)
    for option, value in (("--vram", vram), ("--ram", ram)):
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{option} {value:g}: must be GB above 0; 16 would work.")
    if vram is None and surely_no_gpu():
        raise UserError(NO_GPU)
    import_quietly("memory.choose")
    from ..memory.choose import plan as choose_plan
    from ..memory.estimate import estimate
    from ..memory.machine import machine_with
    from ..memory.plan import Size

    machine = machine_with(vram, ram)
    if not machine.vram_gb:
        raise UserError(NO_GPU)
    chosen = choose_plan(None, None, height, width, num_frames, model, lossless, machine)
    print(estimate(chosen, Size(height, width, num_frames), model))
    if lossless or ram is not None:  # what the command line does not take
        given = f"{machine.vram_gb:g}, {machine.ram_gb:g}, {height}, {width}, {num_frames}, {model!r}, {lossless}"
        print(f"use: t2v_kit.load({model!r}, memory=t2v_kit.plan({given}))")
        return
    sizes = f"--height {height} --width {width} --num-frames {num_frames}"
    picture = " --image in.png" if model in ANIMATES else ""
    print(f'use: t2v "PROMPT" --model {shlex.quote(model)} --memory {machine.vram_gb:g} {sizes}{picture}')
