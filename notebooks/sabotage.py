"""Break one thing at a time and see that a notebook notices: `python notebooks/sabotage.py`, some minutes.

Each break is put into a copy of a notebook, right behind the import; then nbval runs the copy and compares the cells
that are meant to be compared. A break that no cell notices is a hole in the teaching as much as in the testing.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

HERE = Path(__file__).parent
WRAP = """
import t2v_kit as t2v

_whole = t2v.load


def _broken(*args, **kwargs):
    models = _whole(*args, **kwargs)
    {damage}
    return models


t2v.load = _broken
"""
BREAKS = {
    "the flow shift, doubled on the way to the scheduler": (
        "03_noisy_latents",
        "from dataclasses import replace; import t2v_kit.stages.noise as room; make = room.make_scheduler; "
        "room.make_scheduler = lambda models, s: make(models, replace(s, flow_shift=2 * s.flow_shift))",
    ),
    "the prompt's crop, one token short": ("01_prompt_encoding", "models.template['crop_start'] -= 1"),
    "the guidance, doubled on the way to the transformer": (
        "05_denoising",
        "from dataclasses import replace; run = t2v.denoise; t2v.denoise = lambda m, p, n, s, **k: "
        "run(m, p, n, replace(s, guidance_scale=2 * s.guidance_scale), **k)",
    ),
    "the VAE's scaling factor, 1": ("02_video_compression", "models.pipe.vae.register_to_config(scaling_factor=1.0)"),
}


def noticed(notebook: str, damage: str) -> bool:
    """Whether nbval fails on the notebook with `damage` done to every model that it loads."""
    broken = nbformat.read(HERE / f"{notebook}.ipynb", as_version=4)
    first = next(cell for cell in broken.cells if cell.cell_type == "code")
    first.source = WRAP.format(damage=damage) + first.source
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"{notebook}.ipynb"
        nbformat.write(broken, copy)
        options = [
            "--nbval-lax",
            "--nbval-current-env",
            "--nbval-cell-timeout=300",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
        ]
        result = subprocess.run([sys.executable, "-m", "pytest", *options, str(copy)], capture_output=True, text=True)
    return "disagrees" in result.stdout or "outputs differ" in result.stdout


def main() -> int:
    unseen = 0
    for name, (notebook, damage) in BREAKS.items():
        seen = noticed(notebook, damage)
        unseen += not seen
        print(f"{notebook:22} {'notices' if seen else 'DOES NOT NOTICE'}: {name}", flush=True)
    return unseen


if __name__ == "__main__":
    sys.exit(main())
