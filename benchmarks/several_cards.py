"""One video on one card, on two and on four, with the 13B transformer at full size and random weights.

    python -m benchmarks.several_cards --seconds 260 --out benchmarks/results/several_cards.json

The attention kernels' seconds and error; a step in diffusers as it is, as `load` sets it up, and compiled with the best
kernel, on one card, on two and on four; the VAE's decoding on as many; peaks of memory, and how far each result is from
diffusers'. What needs one card runs at the same time, each part on a card of its own; with four cards also what needs
two. A part that fails or takes too long is missing from the table and stops no other. `--rows` measures some rows
alone; the others stay as they are in the file. `--tiny` runs the same lines on a CPU with gloo.
"""

from __future__ import annotations

import t2v_kit  # noqa: F401  (first: it makes torchvision importable)

# isort: split
import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

from benchmarks.common import guarded, header, measured, write
from benchmarks.full_size import FULL, TINY
from benchmarks.rows import SIZES, TINY_SIZE
from benchmarks.speed import WORDS, Transformer, default_dtype
from t2v_kit.hunyuan.backends import choose_backend, unusable, use_backend
from t2v_kit.hunyuan.compiling import compile_blocks, compile_vae
from t2v_kit.hunyuan.masks import skip_full_masks
from t2v_kit.hunyuan.parallel import join, leave, share_tiles, share_transformer
from t2v_kit.memory.footprint import set_tiles

BACKENDS = ("native", "_native_cudnn", "_native_flash", "_flash_3", "sage")
LARGE, SMALL = "720x1280x129", "544x960x61"
TILE, LARGE_TILE = (256, 192), (512, 448)
HEADS, WIDTH, QUERIES = 24, 128, 256
NAMES = (
    "tflops",
    "gb_a_second",
    "relative_error",
    "calls",
    "gpu_gib",
    "times_faster",
    "relative_difference",
    "to_one_card",
)
SHARE = 0.6  # of the time: when the parts on one card end at the latest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=260, help="everything has ended after this long")
    parser.add_argument("--rows", default="", help="only those whose name holds this regular expression")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, on a CPU")
    parser.add_argument("--part", choices=PARTS, help="run this part alone, in this process")
    parser.add_argument("--ends", type=float, help="seconds since 1970 at which the part begins nothing new")
    args = parser.parse_args()
    if args.part:
        return run_part(args)
    begun = time.time()
    cards = torch.cuda.device_count()
    report = json.loads(args.out.read_text()) if args.rows and args.out.exists() else {}
    report |= header("several_cards", sizes="tiny" if args.tiny else "full")
    report |= {"cards": cards, "nccl": _nccl()}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        first_end, last_end = begun + SHARE * args.seconds, begun + args.seconds - 4

        def begin(part: str, on: range, ends: float) -> Process:
            return stack.enter_context(Process(part, on, ends, folder, args))

        beside = [begin("plain", range(1), first_end)]
        if cards < 2:
            beside[0].wait()
        beside.append(begin("compiled", range(cards > 1, 1 + (cards > 1)), first_end))
        if cards > 3:
            beside.append(begin("2 cards", range(2, 4), first_end))
        for process in beside:
            process.wait()
        begin("4 cards" if cards > 3 else "2 cards", range(4 if cards > 3 else 2), last_end).wait()
        for part in PARTS:
            with suppress(OSError, ValueError):
                report |= json.loads(Path(folder, f"{part}.json").read_text())
        compare(report, Path(folder))
        for log in sorted(Path(folder).glob("*.log")):
            report[f"log of {log.stem}"] = log.read_text(errors="replace")[-1500:]
    report["seconds_in_all"] = round(time.time() - begun, 1)
    write(args.out, report)
    print("\n".join(table(report)))
    return 0


class Process:
    """A part in processes of its own, ended with all of them when its time is over."""

    def __init__(self, part: str, cards: range, ends: float, folder: str, args) -> None:
        """cards: those it sees; with several, each of its processes has one of them."""
        self.ends = ends
        count = ["--standalone", "--nproc-per-node", str(len(cards))]
        launcher = ["-m", "torch.distributed.run", *count] if len(cards) > 1 else []
        command = [sys.executable, *launcher, "-m", "benchmarks.several_cards", "--part", part]
        command += ["--out", str(Path(folder, f"{part}.json")), "--ends", str(ends)]
        command += ["--rows", args.rows, *["--tiny"] * args.tiny]
        seen = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, cards))} if torch.cuda.is_available() else {}
        self.log = open(Path(folder, f"{part}.log"), "w")  # noqa: SIM115 (closed on the way out)
        self.process = subprocess.Popen(
            command, env=os.environ | seen, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True
        )

    def __enter__(self) -> Process:
        return self

    def wait(self) -> None:
        """Until it is through, or its time is over."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(max(1, self.ends - time.time()))
        self.__exit__()

    def __exit__(self, *_) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the group that this process began
        self.process.wait()
        self.log.close()


def run_part(args) -> int:
    """The rows of one part, each written as soon as it is there."""
    team = join() if "cards" in args.part else None
    on_gpu = torch.cuda.is_available()
    device = str(team.device) if team else ("cuda" if on_gpu else "cpu")
    setup = Setup(args.tiny, device, team, args.out.parent)
    out = args.out if team is None or team.leads else None
    deadline = time.perf_counter() + args.ends - time.time()
    report: dict = {}
    for key, row in PARTS[args.part](setup):
        if not re.search(args.rows, key):
            continue
        guarded(report, key, row, out, deadline)
    leave()
    return 0


class Setup:
    """What the parts share: sizes, device, team, and the places of results."""

    def __init__(self, tiny: bool, device: str, team, folder: Path) -> None:
        self.sizes, self.device, self.team, self.folder = (TINY if tiny else FULL), device, team, folder
        self.tiny = tiny
        self.bench: Transformer | None = None
        self.cards = team.size if team else 1

    def size(self, name: str) -> tuple[int, int, int]:
        if self.tiny:
            return (TINY_SIZE[0] + 16 * (name == LARGE), *TINY_SIZE[1:])
        return SIZES[name]

    def best(self) -> str:
        config = self.sizes["transformer"]
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        return choose_backend("auto", torch.device(self.device), dtype, config.get("attention_head_dim", WIDTH))

    def transformer(self) -> Transformer:
        if self.bench is None:
            self.bench = Transformer(self.sizes["transformer"], self.size(SMALL), self.device)
        return self.bench

    def step(self, size: str, kind: str, prepare: Callable[[Transformer], dict], calls: int, padded=False) -> dict:
        """Seconds of `calls` calls; the last one counts, those before it warm up. The result is kept."""
        bench = self.transformer()
        row = prepare(bench)
        bench.draw(self.size(size))
        row["calls"] = []
        for _ in range(calls):
            _wait_for_all(self)
            with measured({}) as call:
                result = bench.step(words=min(WORDS, bench.prompt.shape[1]), padded=padded)
            row["calls"].append(call["seconds"])
        row |= {"seconds": row["calls"][-1], "cards": self.cards} | {k: v for k, v in call.items() if "gib" in k}
        if self.team is None or self.team.leads:
            torch.save(result.cpu(), self.folder / f"{size}, {kind}.pt")
        return row

    def decoding(self, compiled: bool = False) -> dict:
        """One whole decode in float16 (on a CPU float32), a first tile decoded before by each process.

        As it is, tiles are diffusers' own; compiled they have 512 pixels.
        """
        self.bench = None
        if self.device != "cpu":
            torch.cuda.empty_cache()
        torch.manual_seed(0)
        dtype = torch.float32 if self.device == "cpu" else torch.float16
        with torch.device(self.device), default_dtype(dtype):
            vae = torch.nn.Module.to(AutoencoderKLHunyuanVideo(**self.sizes["vae"]), dtype).eval()
        tile = (32, 16) if self.tiny else LARGE_TILE if compiled else TILE
        set_tiles(vae, tile)
        if compiled:
            compile_vae(vae, "eager" if self.device == "cpu" else "inductor")
        height, width, frames = self.size(LARGE)
        shape = (1, vae.config.latent_channels, (frames - 1) // 4 + 1, height // 8, width // 8)
        generator = torch.Generator(self.device).manual_seed(1)
        latents = torch.randn(shape, generator=generator, dtype=dtype, device=self.device)
        with torch.no_grad():  # and in no `with torch.device`, in which PyTorch compiles nothing
            vae.decode(latents[:, :, :5, : tile[0] // 8, : tile[0] // 8])  # by each process for itself
            if self.team is not None:
                share_tiles(vae, self.team)
            _wait_for_all(self)
            with measured({"cards": self.cards}) as row:
                pixels = vae.decode(latents, return_dict=False)[0]
        if self.team is None or self.team.leads:
            name = f"{LARGE}, decode{', compiled' * compiled}, {self.cards}.pt"
            torch.save(pixels[:, :, ::8].half().cpu(), self.folder / name)
        return row


def plain(setup: Setup):
    """diffusers as it is, what `load` makes of it, the kernels, and decoding, on one card."""
    for size in (SMALL, LARGE):
        as_it_is = partial(setup.step, size, "as diffusers is", lambda bench: {}, 1 + (size == SMALL), padded=True)
        yield f"{size}, as diffusers is", as_it_is
    for size in (SMALL, LARGE):
        yield f"{size}, ours", partial(setup.step, size, "ours", ours, 1 + (size == SMALL))
    yield "forget", partial(_forget, setup)
    for backend in BACKENDS:
        yield f"attention, {backend}", partial(attention, setup, backend)
    yield f"{LARGE}, decode", setup.decoding


def compiled(setup: Setup):
    """The compiled step with the best kernel on one card, or among the team, where a second call still warms up.

    Then what its time goes into, what the exchange takes of it, and decoding, which takes the transformer's room.
    """
    among = f", {setup.cards} cards" if setup.team else ""
    prepare = partial(compiling, setup)
    yield f"{LARGE}, compiled{among}", partial(setup.step, LARGE, f"compiled{among}", prepare, 3 if setup.team else 2)
    yield f"{SMALL}, compiled{among}", partial(setup.step, SMALL, f"compiled{among}", lambda bench: {}, 3)
    yield f"{LARGE}, profile{among}", partial(profiled, setup)
    if setup.team is not None:
        yield f"exchange{among}", partial(exchange, setup)
    yield f"{LARGE}, decode, compiled{among}", partial(setup.decoding, True)


def several(setup: Setup):
    """What `compiled` measures, among the team, and decoding as it is."""
    yield from compiled(setup)
    yield f"{LARGE}, decode, {setup.cards} cards", setup.decoding


PARTS = {"plain": plain, "compiled": compiled, "2 cards": several, "4 cards": several}


def ours(bench: Transformer) -> dict:
    skip_full_masks(bench.model)
    return {"backend": "native"}


def compiling(setup: Setup, bench: Transformer) -> dict:
    skip_full_masks(bench.model)
    backend = setup.best()
    use_backend(bench.model, backend)
    if setup.team is not None:
        share_transformer(bench.model, setup.team)
    compile_blocks(bench.model, "eager" if setup.device == "cpu" else "inductor")
    return {"backend": backend}


def profiled(setup: Setup) -> dict:
    """The kernels that a compiled step spends its time in, on the first card."""
    row: dict = {}
    bench = setup.transformer()
    bench.draw(setup.size(LARGE))
    _wait_for_all(setup)
    bench.profile(row)
    return row


def exchange(setup: Setup) -> dict:
    """How many GB a second each card sends to the others: the queries of 720x1280x129, three times."""
    numbers = 2**12 if setup.tiny else 33 * 45 * 80 * HEADS * WIDTH // setup.cards // setup.cards * setup.cards
    sent = torch.zeros(numbers, dtype=torch.bfloat16, device=setup.device)
    received, seconds = torch.empty_like(sent), []
    for _ in range(4):  # the first one connects the cards
        _wait_for_all(setup)
        with measured({}) as call:
            for _ in range(3):
                torch.distributed.all_to_all_single(received, sent)
        seconds.append(call["seconds"])
    leaving = 3 * sent.nbytes * (setup.cards - 1) / setup.cards
    return {"seconds": min(seconds), "gb_a_second": round(leaving / max(min(seconds), 1e-4) / 1e9, 1)}


@torch.no_grad()
def attention(setup: Setup, name: str) -> dict:
    """Seconds of one kernel at 720x1280x129, and its error for some queries beside float32."""
    device, dtype = setup.device, torch.float32 if setup.device == "cpu" else torch.bfloat16
    if reason := unusable(name, torch.device(device), dtype, WIDTH):
        return {"not_run": reason}
    tokens = 400 if setup.tiny else 33 * 45 * 80 + WORDS
    generator = torch.Generator(device).manual_seed(0)
    query, key, value = torch.randn(3, 1, tokens, HEADS, WIDTH, generator=generator, device=device, dtype=dtype)
    seconds = []
    for _ in range(3):
        with measured({}) as call:
            found = dispatch_attention_fn(query, key, value, backend=AttentionBackendName(name))
        seconds.append(call["seconds"])
    part = [each.float().transpose(1, 2) for each in (query[:, :QUERIES], key, value)]
    weights = (part[0] @ part[1].transpose(2, 3) / WIDTH**0.5).softmax(-1)
    exact = (weights @ part[2]).transpose(1, 2)
    error = float((found[:, :QUERIES].float() - exact).norm() / exact.norm())
    flops = 4 * tokens**2 * HEADS * WIDTH
    return {
        "seconds": min(seconds),
        "tflops": round(flops / max(min(seconds), 1e-3) / 1e12, 1),
        "relative_error": error,
        "tokens": tokens,
    }


def compare(report: dict, folder: Path) -> None:
    """Relative differences: of the steps to diffusers', of two cards to one, of decoded frames."""

    def difference(key: str, name: str, to: str) -> dict[str, float]:
        files = [folder / f"{each}.pt" for each in (name, to)]
        if not all(file.exists() for file in files):
            return {}
        found, exact = (torch.load(file).float() for file in files)
        return {key: float((found - exact).norm() / exact.norm())}

    for size in (SMALL, LARGE):
        plain_seconds = report.get(f"{size}, as diffusers is", {}).get("seconds")
        for kind in ("ours", "compiled", "compiled, 2 cards", "compiled, 4 cards"):
            row = report.get(f"{size}, {kind}", {})
            if "seconds" in row:
                row |= difference("relative_difference", f"{size}, {kind}", f"{size}, as diffusers is")
                if "cards" in kind:
                    row |= difference("to_one_card", f"{size}, {kind}", f"{size}, compiled")
                if plain_seconds:
                    row["times_faster"] = round(plain_seconds / row["seconds"], 3)
    for kind in ("decode", "decode, compiled"):
        for cards in (2, 4):
            row = report.get(f"{LARGE}, {kind}, {cards} cards", {})
            if "seconds" in row:
                row |= difference("relative_difference", f"{LARGE}, {kind}, {cards}", f"{LARGE}, {kind}, 1")


def table(report: dict):
    """The rows that were measured, one a line."""
    yield f"{report['cards']} x {report['device']}, {report['seconds_in_all']} s in all"
    for key, row in report.items():
        if isinstance(row, dict) and {"seconds", "error", "not_run"} & set(row):
            extra = [f"{name} {_short(row[name])}" for name in NAMES if row.get(name) is not None]
            extra += [row[name] for name in ("error", "not_run") if name in row]
            yield f"{key:38} {row.get('seconds', '-')} s  {'  '.join(extra)}"


def _short(value) -> str:
    return f"{value:.2e}" if isinstance(value, float) and 0 < value < 0.1 else str(value)


def _forget(setup: Setup) -> dict:
    """Make room for what follows."""
    setup.bench = None
    if setup.device != "cpu":
        torch.cuda.empty_cache()
    return {}


def _wait_for_all(setup: Setup) -> None:
    """Time begins when every process is ready."""
    if setup.team is not None:
        torch.distributed.barrier()


def _nccl() -> str | None:
    return ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else None


if __name__ == "__main__":
    raise SystemExit(main())
