"""The command line: `python -m t2v_kit "PROMPT"` makes a video and enlarges it."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import sys
import time
import unicodedata
import warnings
from datetime import datetime
from pathlib import Path

from .errors import UserError
from .settings import settings_from

EXAMPLE = "A man with a beard riding a motorcycle on the street."
KNOBS = {  # option, what its value is called, what it does
    "--num-frames": ("N", "frames of the video: 4k+1, as 17 or 33"),
    "--height": ("N", "height in pixels, a multiple of 16"),
    "--width": ("N", "width in pixels, a multiple of 16"),
    "--num-inference-steps": ("N", "denoising steps: more are slower and finer"),
    "--guidance-scale": ("X", "how strongly the prompt is followed"),
    "--flow-shift": ("X", "how long the noise stays high: bigger videos want more"),
    "--fps": ("N", "frames a second of the files written"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One line instead of the whole usage."""
        self.exit(2, f"t2v_kit: {message} (see --help)\n")


def parser() -> argparse.ArgumentParser:
    """The options; those that are left out take the model's own default."""
    made = _Parser(
        prog="python -m t2v_kit",
        description="Turn a prompt into a video with HunyuanVideo's pipeline and enlarge it with Real-ESRGAN's.",
        epilog=f'example: python -m t2v_kit "{EXAMPLE}" --seed 7',
        allow_abbrev=False,
    )
    made.add_argument("prompt", metavar="PROMPT", nargs="+", help="what the video shows, in quotes")
    made.add_argument(
        "--model", default="pocket", metavar="NAME", help="pocket (shipped, the default), hunyuan (13B) or a folder"
    )
    made.add_argument("--seed", type=_number, default=0, metavar="N", help="another seed, another video (default 0)")
    for option, (metavar, text) in KNOBS.items():
        made.add_argument(option, type=_number, metavar=metavar, help=f"{text} (default: the model's own)")
    made.add_argument(
        "--upscale",
        default="pocket",
        metavar="NAME",
        help="pocket (the default), none, a Real-ESRGAN weight file, or the name of a published one, which is fetched",
    )
    made.add_argument(
        "--memory",
        metavar="GB",
        help="auto, or GB of GPU memory to get along with (default: all on the device, or its networks in turn)",
    )
    made.add_argument("--revision", metavar="NAME", help="branch, tag or commit of --model hunyuan on the hub")
    made.add_argument("--out", metavar="DIR", help="folder for the files (default: a new one in runs/)")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status: 0, 2 after a user's mistake, 130 when stopped with Ctrl-C."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    if options["out"] is None:
        options["out"] = default_folder(options["prompt"], options["seed"])
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _note
            run = _generate(**options)
    except UserError as mistake:
        print(f"t2v_kit: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        folder = options["out"]
        kept = f"the same with --out {folder} goes on" if os.path.exists(folder) else "nothing was written"
        print(f"\nt2v_kit: stopped; {kept}", file=sys.stderr)
        return 130
    _report(run, time.perf_counter() - started)
    return 0


def _generate(model: str, upscale: str, out: str | Path, memory=None, revision=None, **settings):
    """`generate`, behind everything that can be checked before torch is loaded."""
    wanted = settings_from(**settings)
    print(f"loading {model}", flush=True)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on a CPU it recommends a package at every import
    from . import _imports  # noqa: F401, I001  (before diffusers)
    import diffusers
    import transformers

    from .run.generating import generate

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()  # one bar a stage, and they are ours
    if memory or revision:
        from .model.loading import load

        model = load(model, memory, revision, video=wanted)
    return generate(model=model, upscale=upscale, out=out, **settings)


def default_folder(prompt: str, seed: int) -> Path:
    """`runs/<date>-<prompt>-<seed>` with the prompt as a slug: ASCII letters and digits, at most 40."""
    plain = unicodedata.normalize("NFKD", str(prompt)).encode("ascii", "ignore").decode().lower()
    slug = re.sub("[^a-z0-9]+", "-", plain).strip("-")[:40].rstrip("-") or "video"
    return Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{slug}-{seed}"


def _note(message: Warning, *_) -> None:
    """A warning as one line, without the place in the code."""
    print(f"t2v_kit: note: {message}", file=sys.stderr)


def _parse(argv: list[str]) -> dict:
    """The options as `generate`'s keywords; knobs that were left out are left out here too."""
    made = parser()
    options, unknown = made.parse_known_args(argv)
    for option in unknown:
        if option.startswith("-"):
            near = difflib.get_close_matches(option.partition("=")[0], made._option_string_actions, n=1)
            made.error(f"unknown option {option!r}" + (f"; did you mean {near[0]}?" if near else ""))
    words = [*options.prompt, *unknown]
    if len(words) > 1:
        made.error(f'the prompt is one argument: put it in quotes, as in "{" ".join(words)}"')
    given = {name: value for name, value in vars(options).items() if value is not None}
    return {**given, "prompt": words[0], "out": options.out}


def _number(text: str) -> int | float:
    """A whole number where the text is one, else a decimal one: the rules are those of `Settings`."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _report(run, total: float) -> None:
    """Seconds a stage and the files written."""
    stages = "  ".join(f"{stage} {seconds:.1f}" for stage, seconds in run.seconds.items())
    print(f"seconds  {stages}  in all, with imports, {total:.1f}")
    if run.reused:
        print(f"reused   latents from {run.reused}")
    print(f"written  {run.folder}{os.sep}")
    for file in run.files:
        print(f"         {file.name:20} {file.stat().st_size / 1000:8.1f} kB")
if __name__ == "__main__":
    sys.exit(main())
