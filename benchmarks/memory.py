"""Does a capped GPU do what the plans promise? Full-size random weights, all stages, one process a row.

    python -m benchmarks.memory --seconds 560 --weights /dev/shm/t2v --out benchmarks/results/memory.json
    python -m benchmarks.memory --rows 'ours-(8|all)-544' ...     # some of benchmarks/rows.py, added to what is there

The cap is PyTorch's own (torch.cuda.set_per_process_memory_fraction), less what the CUDA context takes. A row loads
the folder by `t2v_kit.load(memory=plan(...))`, encodes two prompts (true classifier-free guidance needs a second one),
takes three denoising steps of a schedule of 50 (the first warms up), decodes, and writes its peaks and seconds. A
capped H200 is no small card: its bus and its host are larger, so both are written down too. Rows that were measured
before are kept and not repeated.
"""

from __future__ import annotations

import t2v_kit  # first: it makes torchvision importable

# isort: split
import argparse
import dataclasses
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
from diffusers import HunyuanVideoPipeline, PipelineQuantizationConfig
from safetensors.torch import save_file

from benchmarks.common import GIB, PROMPT, header, measured, write
from benchmarks.full_size import FULL, TINY, random_pipeline, room_for, save
from benchmarks.rows import ROWS, SIZES, TINY_SIZE, Row
from t2v_kit.memory.choose import plan
from t2v_kit.memory.machine import Machine
from t2v_kit.memory.plan import Part, Plan, Size
from t2v_kit.model import loading

STEPS = 3  # one to warm up, two to measure
T4 = {"capability": (7, 5), "gpu": "Tesla T4"}
T4_RAM = 12.7  # GB, of Google Colab's free machine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file; rows measured before stay in it")
    parser.add_argument("--seconds", type=float, default=560, help="begin no row that would not end by then")
    parser.add_argument("--rows", default="", help="regular expression for names of rows (default: all)")
    parser.add_argument("--weights", type=Path, help="folder of the weights, made when missing, and kept")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, on any machine")
    parser.add_argument("--again", action="store_true", help="measure rows again that are there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.weights = args.weights or Path(room_for(0 if args.tiny else 45)) / "t2v_kit-weights"
    if args.child:
        return child(args)
    deadline = time.perf_counter() + args.seconds
    report = json.loads(args.out.read_text()) if args.out.exists() else {"rows": {}}
    report = header("memory", sizes="tiny" if args.tiny else "full") | {"rows": report["rows"]}
    if not (args.weights / "model_index.json").exists():
        print("making weights", flush=True)
        Child("weights", args).result(deadline - time.perf_counter())
    waiting = [row for row in ROWS if re.search(args.rows, row.name) and (args.again or not _done(report, row))]
    standby = None
    for row, following in itertools.zip_longest(waiting, waiting[1:]):
        left = deadline - time.perf_counter()
        if left < (1 if args.tiny else row.expected):
            report["rows"].setdefault(row.name, {"not_run": f"needs about {row.expected} s, {left:.0f} were left"})
            continue
        process = standby if standby and standby.row == row.name else Child(row.name, args)
        standby = Child(following.name, args) if following else None
        report["rows"][row.name] = process.result(min(left, 3 * row.expected))
        write(args.out, report)
        print(line(row.name, report["rows"][row.name]), flush=True)
    if standby:
        standby.process.kill()
    write(args.out, report)
    print("\n".join(["", TITLE, *(line(name, result) for name, result in report["rows"].items())]))
    return 0


class Child:
    """A row's own process. It imports at once, and begins when its result is asked for: importing takes as long as
    a short row, and costs the row before it nothing."""

    def __init__(self, row: str, args) -> None:
        self.row, self.path = row, args.out.with_name(f".{args.out.name}.{row}")
        self.path.unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.memory", "--child", row, "--out", str(self.path)]
        command += ["--weights", str(args.weights), *(["--tiny"] if args.tiny else [])]
        environment = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"} | os.environ  # as `load(memory=)` has it
        pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)

    def result(self, seconds: float) -> dict:
        """What the process wrote before it ended, was killed, or ran out of time."""
        try:
            _, told = self.process.communicate("begin\n", timeout=max(seconds, 5))
            status, last = self.process.returncode, told.strip().splitlines()[-1:]
            ended = {"error": f"exit status {status}: {' '.join(last)[:300]}"} if status else {}
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            ended = {"error": f"stopped after {seconds:.0f} s"}
        found = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.path.unlink(missing_ok=True)
        return ended | found


def child(args) -> int:
    """One row, in a process of its own: a peak, a cap or a crash of one row is nobody else's."""
    if not sys.stdin.readline():  # nobody is left to tell it to begin
        return 1
    torch.manual_seed(0)
    if args.child == "weights":
        partial = args.weights.with_name(args.weights.name + ".part")
        sizes = TINY if args.tiny else FULL
        save(random_pipeline(sizes), sizes, partial)
        partial.rename(args.weights)
        return 0
    row = next(row for row in ROWS if row.name == args.child)
    result = dataclasses.asdict(row) | {
        "set_aside": row.set_aside,
        "stages": {},
    }
    result |= cap(row.cap)
    size = Size(*(TINY_SIZE if args.tiny else SIZES[row.size]))
    try:
        (diffusers_recipe if row.kind == "diffusers" else ours)(row, size, args.weights, result)
        result["finished"] = True
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    finally:
        write(args.out, result)
    return 0


def cap(gib: float | None) -> dict:
    """Cap this process' GPU memory, context included; the context's size, the bus' speed, the host's RAM."""
    if not torch.cuda.is_available():
        return {}
    torch.zeros(1, device="cuda") @ torch.zeros(1, 1, device="cuda")  # the context and cuBLAS
    free, total = torch.cuda.mem_get_info()
    context = (total - free - torch.cuda.memory_reserved()) / GIB
    pinned, there = torch.empty(GIB, dtype=torch.uint8).pin_memory(), torch.empty(GIB, dtype=torch.uint8, device="cuda")
    there.copy_(pinned, non_blocking=True)
    torch.cuda.synchronize()
    began = time.perf_counter()
    there.copy_(pinned, non_blocking=True)
    torch.cuda.synchronize()
    rate = GIB / (time.perf_counter() - began) / 1e9
    del pinned, there
    torch.cuda.empty_cache()
    if gib:
        torch.cuda.set_per_process_memory_fraction((gib - context) * GIB / total)
    host = round(psutil.virtual_memory().total / GIB)
    return {"context_gib": round(context, 2), "bus_gb_a_second": round(rate, 1), "host_gib": host}


def machine_of(row: Row) -> Machine:
    """What the row pretends to be."""
    here = Machine.here()
    here = dataclasses.replace(here, vram_gb=row.cap) if row.cap and here.vram_gb else here
    return dataclasses.replace(here, ram_gb=T4_RAM, **T4) if row.kind == "t4" and here.vram_gb else here


def ours(row: Row, size: Size, folder: Path, result: dict) -> None:
    """load(memory=plan) and every stage; what was finished is in `result` whatever happens."""
    machine = machine_of(row)
    sides = {"height": size.height, "width": size.width, "num_frames": size.num_frames}
    chosen = plan(machine=machine, model=folder, **sides)
    if row.kind == "nf4-streamed" and machine.vram_gb:
        nf4 = Part("bfloat16", "nf4", "group")
        chosen = Plan(
            "nf4, streamed", Part("float16", "none", "disk"), nf4, one_stage=True, chunk=8192, tile=(256, 192)
        )
        loading.check = lambda made, *_, **__: made  # the rule that this row is to judge
    result["plan"] = chosen.as_dict()
    result["predicted"] = t2v_kit.estimate(chosen, size, folder).rows
    stages = result["stages"]
    with measured(stages.setdefault("load", {})):
        models = t2v_kit.load(folder, memory=chosen)
    settings = t2v_kit.Settings(PROMPT, num_inference_steps=50, **sides).check(models)
    with measured(stages.setdefault("encode", {})):
        prompt = t2v_kit.encode_prompt(models, settings.prompt)
        t2v_kit.encode_prompt(models, "", allow_empty=True)
    with measured(stages.setdefault("denoise", {})) as told:
        told["step_seconds"] = []
        for step in t2v_kit.denoise(models, prompt, t2v_kit.initial_latents(models, settings), settings):
            told["step_seconds"].append(round(step.seconds, 3))
            if len(told["step_seconds"]) == STEPS:
                break
    result["step_seconds"] = statistics.median(told["step_seconds"][1:])
    save_file({"latents": step.latents.contiguous().cpu()}, folder.with_name("latents.safetensors"))
    with measured(stages.setdefault("decode", {})) as told:
        told["video"] = list(t2v_kit.decode(models, step.latents).shape)


def diffusers_recipe(row: Row, size: Size, folder: Path, result: dict) -> None:
    """What diffusers' page on HunyuanVideo recommends: nf4 transformer, model offload, VAE tiling."""
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    quantised = PipelineQuantizationConfig(
        quant_backend="bitsandbytes_4bit", quant_kwargs=nf4, components_to_quantize=["transformer"]
    )
    template = json.loads((folder / "t2v_kit.json").read_text())
    stamps = []
    with measured(result["stages"].setdefault("load", {})):
        tokenizer, template = loading.load_tokenizer(folder / "tokenizer", loading.own_template(template), folder)
        pipe = HunyuanVideoPipeline.from_pretrained(
            folder, tokenizer=tokenizer, quantization_config=quantised, torch_dtype=torch.bfloat16
        )
        pipe.enable_model_cpu_offload()
        pipe.vae.enable_tiling()

    def stamp(_, index, timestep, given):
        torch.cuda.synchronize()
        stamps.append(time.perf_counter())
        return given

    with measured(result["stages"].setdefault("whole", {})) as told:
        pipe(
            PROMPT,
            height=size.height,
            width=size.width,
            num_frames=size.num_frames,
            num_inference_steps=STEPS,
            prompt_template=template,
            callback_on_step_end=stamp,
            output_type="np",
        )
        told["decode_seconds"] = round(time.perf_counter() - stamps[-1], 2)
    result["step_seconds"] = round(statistics.median(b - a for a, b in itertools.pairwise(stamps)), 3)
    result["bitsandbytes"] = version("bitsandbytes")


TITLE = f"{'row':28} {'plan':24} {'GPU GiB (predicted)':>20} {'RAM GiB':>8} {'s a step':>9} {'decode s':>9}"


def line(name: str, result: dict) -> str:
    """A row of the table at the end."""
    stages = result.get("stages", {})
    peak = max((stage.get("gpu_gib", 0) for key, stage in stages.items() if key != "load"), default=0)
    said = max((stage["vram_gb"] for stage in result.get("predicted", [])), default=0)
    ram = max((stage.get("ram_gib", 0) for stage in stages.values()), default=0)
    decode = stages.get("decode", {}).get("seconds") or stages.get("whole", {}).get("decode_seconds") or 0
    plan_name = result.get("plan", {}).get("name", "")
    numbers = f"{peak:12.2f} ({said:5.2f}) {ram:8.1f} {result.get('step_seconds') or 0:9.2f} {decode:9.1f}"
    trouble = result.get("error") or result.get("not_run") or ""
    return f"{name:28} {plan_name:24} {numbers} {trouble[:90]}"


def _done(report: dict, row: Row) -> bool:
    return bool(report["rows"].get(row.name, {}).get("finished"))


if __name__ == "__main__":
    raise SystemExit(main())
