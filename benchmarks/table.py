"""Tables of measurements as Markdown, made from benchmarks/results and the model's evaluation.json.

`python -m benchmarks.figures --write` puts them between their marks in README.md and the other documents.
"""

from __future__ import annotations

import t2v_kit  # noqa: F401  (first: it makes torchvision importable)

# isort: split
import json
import re
from itertools import pairwise
from pathlib import Path

from benchmarks.common import RESULTS
from benchmarks.rows import SIZES
from t2v_kit.memory.estimate import estimate
from t2v_kit.memory.plan import Plan, Size
from t2v_kit.settings import KNOBS

POCKET = Path(__file__).parents[1] / "t2v_kit" / "pocket"
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
STAGES = ("encode", "denoise", "decode", "whole")
#: What each notebook is about, in the order in which to read them
ABOUT = {
    "00_quickstart": "all five stages, in ten cells",
    "01_prompt_encoding": "tokens, the system instruction, hidden states, CLIP, padding",
    "02_video_compression": "the causal 3D VAE: what 4 x 8 x 8 keeps, and where causality leaks",
    "03_noisy_latents": "flow matching: from clip to noise, sigma, shift, the loss",
    "04_dual_to_single_stream": "tokens, RoPE, blocks of both kinds by hand, where the parameters are",
    "15_attention_maps": "which word is looked at where, and whether the map can be trusted",
    "05_denoising": "the loop in a dozen lines, what settles first, steps, guidance",
    "12_from_video": "strength, first frames, keyframes, fills, seams and loops, from a clip or a picture",
    "14_step_caches": "steps that are not computed, what they save and what they cost",
    "13_speed": "the roofline of your machine, attention kernels, shortcuts audited, several cards",
    "06_small_gpus": "int8 and nf4, offload, the planner for your card",
    "07_decoding": "tiles and their seams, memory, files that can make themselves again",
    "08_upscaling": "side by side, errors, a photograph and a film, what sharpness costs, flicker, which network",
    "09_playground": "every knob on one panel, a queue, stop and resume, two runs compared",
    "10_training": "a small transformer from random weights, what the loss cannot tell, dropped prompts and guidance",
    "11_lora": "a subject that the model has never seen, what is forgotten, which checkpoint, rank and strength",
}
UNGRADED = ("prompts", "facing", "clean")  # of a verdict: what is no attribute of the prompt


def tables(folders: tuple[Path, ...] = (RESULTS, POCKET)) -> dict[str, str]:
    """Every table whose measurements are in one of `folders`, by name, as Markdown."""
    makers = {
        "memory": ("memory", memory),
        "cards": ("memory", cards),
        "speed": ("speed", speed),
        "decoding": ("decoding", decoding),
    }
    makers |= {"adherence": ("evaluation", adherence), "guidance": ("evaluation", guidance), "vae": ("evaluation", vae)}
    makers |= {"upscaler": ("training", upscaler)}
    makers |= {path.stem: (path.stem, upscaling) for folder in folders for path in folder.glob("upscaling*.json")}
    makers |= {"real_networks_cpu": ("real_networks_cpu", real_networks), "steadying": ("steadying", steadying)}
    makers |= {"frontier": ("frontier", frontier), "fp8": ("fp8", fp8)}
    made = {"settings": settings(), "notebooks": notebooks()}
    for name, (file, make) in makers.items():
        path = next((folder / f"{file}.json" for folder in folders if (folder / f"{file}.json").exists()), None)
        table = make(json.loads(path.read_text("utf-8"))) if path else None
        if table:
            made[name] = table
    return made


def settings() -> str:
    """A row for each setting of a video: what is said of it in `t2v_kit.settings`."""
    lines = ["| in Python | on the command line | range | what it does |", "|---|---|---|---|"]
    for name, knob in KNOBS.items():
        span = "" if knob.kind not in ("whole", "real") else f"{knob.lowest:g} to {knob.highest:g}"
        span = f"from {knob.lowest:g}" if knob.highest >= 2**62 else span
        option = "PROMPT" if name == "prompt" else f"--{name.replace('_', '-')}"
        words = knob.help.replace("|", "\\|")  # which would end the table's cell
        lines.append(f"| `{name}` | `{option}` | {span} | {words} |")
    return "\n".join(lines)


def notebooks(folder: Path = NOTEBOOKS) -> str:
    """A row for each notebook: its own title, what it is about, and the seconds that its first cell says."""
    lines = ["| notebook | what it is about | seconds |", "|---|---|---|"]
    for name, about in ABOUT.items():
        heading, seconds = title_and_seconds(folder / f"{name}.ipynb")
        lines.append(f"| [{heading}](notebooks/{name}.ipynb) | {about} | {seconds} |")
    return "\n".join([*lines, "", "Seconds of all cells on two CPU cores, to the nearest thirty."])


def title_and_seconds(notebook: Path) -> tuple[str, int]:
    """What a notebook's first cell says: '05 · Denoising', and the seconds that `make notebooks` measured."""
    text = "".join(json.loads(notebook.read_text("utf-8"))["cells"][0]["source"])
    seconds = re.search(r"Runs in about (\d+) seconds", text)
    if not text.startswith("# ") or not seconds:
        raise ValueError(f"{notebook.name}: the first cell has no heading, or does not say how long it runs")
    return text.partition("\n")[0].removeprefix("# "), int(seconds[1])


def cards(report: dict) -> str:
    """A row for each GPU memory cap at the largest size: the peak, seconds a step, and what 50 steps come to."""
    rows = [row for row in report["rows"].values() if row.get("size") == "720x1280x129" and row["kind"] == "ours"]
    lines = ["| GPU memory | GPU peak, GiB | RAM, GiB | seconds a step | 50 steps |", "|---|---|---|---|---|"]
    for row in sorted((row for row in rows if row["cap"]), key=lambda row: row["cap"]):
        peak = max(stage["gpu_gib"] for stage in row["stages"].values() if "gpu_gib" in stage)
        ram = max(stage.get("ram_gib", 0) for stage in row["stages"].values())
        step = row["step_seconds"]
        lines.append(f"| {row['cap']:g} GB | {peak:.1f} | {ram:.0f} | {step:.1f} | {50 * step / 60:.0f} min |")
    return "\n".join(lines)


def adherence(report: dict) -> str | None:
    """A row a group of prompts: the share that the judge found right, by attribute and in everything."""
    if "adherence" not in report:
        return None
    own = report["adherence"]
    count = own["prompts"]
    rows = {f"{count} held-out prompts": own["adherence"], "of them, with one subject": own["one_subject"]}
    rows |= {"of them, with two subjects": own["two_subjects"]}
    if "ceiling" in own:
        rows |= {f"ceiling: the same {count} scenes, drawn and through the VAE": own["ceiling"]}
    if "by_hand" in report:
        whole = next(row for name, row in report["by_hand"].items() if name.startswith("all"))
        rows[f"written by hand ({whole['prompts']}), of which"] = whole
        for kind, row in report["by_hand"]["by_kind"].items():
            rows[f"{kind.replace('_', ' ')} ({row['prompts']})"] = row
    names = [name for name in own["adherence"] if name not in UNGRADED]
    lines = ["| | " + " | ".join("everything" if name == "all" else name for name in names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for title, row in rows.items():
        lines.append(f"| {title} | " + " | ".join(f"{row[name]:.0%}" if name in row else "" for name in names) + " |")
    return "\n".join(lines).replace("%", " %")


def vae(report: dict) -> str | None:
    """A row a measure of how near the VAE gives clips back, in dB, beside what it aims at."""
    if "psnr_by_frame" not in report.get("vae", {}):
        return None
    own, frames = report["vae"], report["vae"]["psnr_by_frame"]
    rows = {
        f"PSNR of {own['clips']} whole clips": ("37", own["psnr"]),
        "worst tenth of the clips": ("34", own["psnr_worst_tenth"]),
        "on the subject's pixels": ("32", own["psnr_subject"]),
        "largest step from frame to frame": ("0.3", own["largest_jump_between_frames"]),
        "of them after the first frame, which is coded alone": ("", max(abs(b - a) for a, b in pairwise(frames[1:]))),
    }
    lines = ["| the VAE, in dB | aim | measured |", "|---|---|---|"]
    return "\n".join(lines + [f"| {name} | {aim} | {value:.2f} |" for name, (aim, value) in rows.items()])


def upscaler(report: dict) -> str | None:
    """A row a kind of frames: Lanczos, and what pocket's two networks gain over it, in dB."""
    if "upscaler" not in report:
        return None
    psnr = report["upscaler"]["psnr_db"]
    kinds = {
        "degraded": "degraded",
        "noisy": "drawn small, with noise",
        "clean": "drawn small",
        "decoded": "through the VAE",
    }
    lines = ["| frames | Lanczos, dB | `pocket_x4` | `pocket_wdn_x4` |", "|---|---|---|---|"]
    for kind, name in kinds.items():
        plain = psnr["Lanczos"][kind]
        gains = (f"{psnr[network][kind] - plain:+.1f}" for network in ("pocket_x4", "pocket_wdn_x4"))
        lines.append(f"| {name} | {plain:.1f} | " + " | ".join(gains) + " |")
    return "\n".join(lines)


def guidance(report: dict) -> str | None:
    """A row a guidance scale: what the knob does to videos, and how far it is from guidance asked for twice."""
    if "guidance" not in report:
        return None
    titles = ["guidance", "everything right", "diversity over seeds", "saturation"]
    titles += ["distance from its teacher's guidance", "the same, if the knob did nothing"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for scale, row in report["guidance"].items():
        if not isinstance(row, dict) or "adherence" not in row:
            continue
        cells = [scale, f"{row['adherence']['all']:.0%}", f"{row['diversity_features']:.1f}", f"{row['chroma']:.3f}"]
        for name in ("velocity_error", "velocity_error_without_knob"):
            cells.append(f"{row[name]:.0%}" if name in row else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines).replace("%", " %")


def memory(report: dict) -> str:
    """A row a cap and size: did it run, peaks and what `estimate` says now, seconds; the same by diffusers' recipe."""
    rows = report["rows"]
    free = {
        row["size"]: row["step_seconds"] for row in rows.values() if row.get("cap", 0) is None and "step_seconds" in row
    }
    titles = ["cap", "video", "plan", "GPU peak, predicted → measured", "RAM", "seconds a step", "against uncapped"]
    titles += ["decode", "50 steps¹"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    sizes = list(SIZES)
    for row in sorted(
        (row for row in rows.values() if "size" in row),
        key=lambda row: (sizes.index(row["size"]), row["cap"] or 0, row["kind"] == "diffusers"),
    ):
        lines.append("| " + " | ".join(_memory_cells(row, free.get(row["size"]))) + " |")
    lines += [
        "",
        f"One {report['device']}, {report['date'][:10]}, random weights; torch {report['versions']['torch']}, "
        f"diffusers {report['versions']['diffusers']}. GPU peaks in GiB, of PyTorch's allocator; the cap is PyTorch's "
        f"own, less the CUDA context ({_spread(rows, 'context_gib')} GiB). A capped H200 is no small card: "
        f"{_spread(rows, 'host_gib')} GiB of RAM, {_spread(rows, 'bus_gb_a_second')} GB/s to the GPU. RAM is the "
        "process' own peak. ¹ Arithmetic, not run.",
    ]
    return "\n".join(lines)


def _memory_cells(row: dict, free: float | None) -> list[str]:
    peaks = [row["stages"][name]["gpu_gib"] for name in STAGES if "gpu_gib" in row["stages"].get(name, {})]
    ram = max((stage.get("ram_gib", 0) for stage in row["stages"].values()), default=0)
    said = estimate(Plan(**row["plan"]), Size(*SIZES[row["size"]])).vram_gb if "plan" in row else None
    step = row.get("step_seconds")
    decode = row["stages"].get("decode", {}).get("seconds") or row["stages"].get("whole", {}).get("decode_seconds")
    name = "diffusers' recipe" if row["kind"] == "diffusers" else row.get("plan", {}).get("name", row["kind"])
    ratio = f"{step / free:.2f}x" if step and free and row["cap"] else ""
    if row["kind"] == "t4":
        name += " (T4's terms)"
    if not row.get("finished"):
        name += ": out of memory" if "OutOfMemory" in row.get("error", "") else ": failed"
    return [
        f"{row['cap']:g} GB" if row["cap"] else "none",
        row["size"].replace("x", " x "),
        name,
        f"{'' if said is None else f'{said:.1f} → '}{max(peaks):.1f}" if peaks else "",
        f"{ram:.1f}",
        f"{step:.2f}" if step else "",
        ratio,
        f"{decode:.0f} s" if decode else "",
        f"{50 * step / 60:.1f} min" if step else "",
    ]


def speed(report: dict) -> str:
    """A row a size and way of computing: seconds a step, how many times faster, how different."""
    lines = [
        "| video | blocks | seconds a step | times faster | relative difference | GPU GiB beside the weights |",
        "|---|---|---|---|---|---|",
    ]
    for key, row in report.items():
        size, _, kind = key.partition(", ")
        if not isinstance(row, dict) or "step_seconds" not in row:
            continue
        warm = f" (after {row['warm_up']:.0f} s of compiling)" if kind == "compiled" else ""
        different = f"{row['relative_difference']:.1e}" if "relative_difference" in row else ""
        faster = f"{row['times_faster']:.2f}" if "times_faster" in row else ""
        lines.append(
            f"| {size.replace('x', ' x ')} | {kind}{warm} | {row['seconds']:.2f} | {faster} | {different} "
            f"| {row.get('gpu_gib_beside_weights', '')} |"
        )
    versions = f"torch {report['versions']['torch']}, diffusers {report['versions']['diffusers']}"
    return "\n".join(
        [*lines, "", f"One {report['device']}, {report['date'][:10]}, random weights, uncapped; {versions}."]
    )


def decoding(report: dict) -> str:
    """A row a size of tile: the whole stage as it is and compiled, and how different the pixels are."""
    lines = [
        "| tiles of | as it is | compiled | times faster | GPU GiB | compiled | relative difference |",
        "|---" * 7 + "|",
    ]
    warm = []
    for key, row in report.items():
        if key.endswith(", compiled") and "seconds" in row:
            plain = report[key.replace("compiled", "as it is")]
            warm.append(row["warm_up"])
            pixels = key.removeprefix("tile ").removesuffix(", compiled")
            lines.append(
                f"| {pixels} pixels | {plain['seconds']:.1f} s | {row['seconds']:.1f} s | {row['times_faster']:.2f} "
                f"| {plain['gpu_gib']:.1f} | {row['gpu_gib']:.1f} | {row['relative_difference']:.1e} |"
            )
    versions = f"torch {report['versions']['torch']}, diffusers {report['versions']['diffusers']}"
    size, date = report["size"].replace("x", " x "), report["date"][:10]
    said = f"{size}, float16, random weights, one {report['device']}, {date}; {versions}. The first compiled tile took "
    said += f"{warm[0]:.0f} s, the first of another size at most {max(warm[1:], default=0):.1f} s."
    return "\n".join([*lines, "", said])


def frontier(report: dict) -> str:
    """A row a shortcut on pocket: work, speed, how near to the plain run and to many small steps, motion, adherence."""
    rows = {name: row for name, row in report["rows"].items() if row["prompts"] > 1}
    columns = ("shortcut", "work", "times faster", "PSNR, dB", "to 100 steps, dB", "motion error", "followed")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name, row in rows.items():
        low, high = row["psnr_interval"]
        least, most = row["adherence_interval"]
        near = "" if name == "plain" else f"{row['psnr']:.1f} ({low:.1f} to {high:.1f})"
        cells = [name, "" if row["work"] is None else f"{row['work']:.0%}"]
        cells += [f"{row['times_faster']:.2f}" if "times_faster" in row else "", near]
        cells.append(f"{row['psnr_to_exact']:.1f}" if "psnr_to_exact" in row else "")
        cells += [f"{row['motion_error']:.0%}", f"{row['adherence']['all']:.0%} ({least:.0%} to {most:.0%})"]
        lines.append("| " + " | ".join(cells).replace("%", " %") + " |")
    devices = ", ".join(dict.fromkeys(row.get("device", report["device"]) for row in rows.values()))
    said = f"{report['prompts']} held-out prompts, {devices}, {report['date'][:10]}; in brackets 95 % intervals; "
    said += f"seconds on a {report['timed_on']}, each beside a plain run, as is the plain run itself."
    return "\n".join([*lines, "", said])


def fp8(report: dict) -> str:
    """A row a kernel and a row a step of the 13B: what 8-bit floats save, and their error."""
    lines = ["| 13B, 720 x 1280 x 129 | seconds | TFLOP/s | times faster | relative difference |", "|---" * 5 + "|"]
    for key, row in report.items():
        if isinstance(row, dict) and "seconds" in row:
            error = row["relative_difference"] if "relative_difference" in row else row["relative_error"]
            seconds = f"{row['seconds']:.1f}" if row["seconds"] > 1 else f"{row['seconds']:.3f}"
            cells = [key, seconds, f"{row['tflops']:.0f}" if "tflops" in row else ""]
            cells += [f"{row['times_faster']:.2f}" if row.get("times_faster", 1) != 1 else "", f"{error:.1e}"]
            lines.append("| " + " | ".join(cells) + " |")
    versions = f"torch {report['versions']['torch']}, diffusers {report['versions']['diffusers']}"
    said = f"One {report['device']}, {report['date'][:10]}, compiled blocks, random weights; {versions}."
    return "\n".join([*lines, "", said])


def real_networks(report: dict) -> str:
    """A row a published network: how many times the speed of the official loop and of ncnn, and how near it stays."""
    columns = {f"{ours}_times_faster_than_{rival}": f"{ours}, of {name}" for ours in ("auto", "float32")
               for rival, name in (("official", "the official loop"), ("ncnn", "ncnn"))}  # fmt: skip
    lines = ["| " + " | ".join(["network", "frame", *columns.values(), "differs by"]) + " |"]
    lines.append("|---" * (len(columns) + 3) + "|")
    for name, row in report.items():
        if isinstance(row, dict) and "auto_dtype" in row:
            cells = [f"`{name}`", f"{row['size'][1]} x {row['size'][0]}", *(f"{row[key]:.2f}" for key in columns)]
            lines.append("| " + " | ".join([*cells, f"{row['mean_difference']['ours, auto']:.2f}"]) + " |")
    threads = "one thread" if report["threads"] == 1 else f"{report['threads']} threads"
    said = f"**{report['device']}**, {threads}, torch {report['versions']['torch']}, {report['date'][:10]}"
    return "\n".join([said, "", *lines])


def steadying(report: dict) -> str:
    """A row a film, network and way to steady: change from frame to frame, distance from the truth, sharpness."""
    lines = ["| film | enlarged by | shown | still | along motion | PSNR, dB | step between pixels |", "|---" * 7 + "|"]
    for film, networks in report.items():
        if not isinstance(networks, dict) or "the truth" not in networks:
            continue
        rows = [("", "the truth", networks["the truth"])]
        named = {name: ways for name, ways in networks.items() if name not in ("size", "the truth")}
        rows += [(f"`{name}`", way, row) for name, ways in named.items() for way, row in ways.items()]
        for name, way, row in rows:
            cells = [f"{row[key]:.2f}" if row[key] is not None else "" for key in ("still", "along_motion", "psnr")]
            lines.append("| " + " | ".join([film.split("_")[0], name, way, *cells, f"{row['sharpness']:.2f}"]) + " |")
    return "\n".join([f"**{report['frames']} frames of each film**, {report['date'][:10]}", "", *lines])


def upscaling(report: dict) -> str:
    """A row a network and size: seconds a frame, memory; then the times faster than the official frame loop."""
    alone = any("pytorch_seconds_a_frame" in row for row in report.values() if isinstance(row, dict))
    lines = [f"| network | video | ms a frame | {'by PyTorch | ' * alone}of the limit | GPU GiB | batch |"]
    lines.append("|---" * (6 + alone) + "|")
    capped = []
    more = ["| same frames, ours against the official loop | times faster |", "|---|---|"]
    for key, row in report.items():
        if key.startswith("networks") and "seconds_a_frame" in row:
            width, height = row["size"][1], row["size"][0]
            cells = [row["network"].split(" (")[0], f"{width} x {height}", f"{1000 * row['seconds_a_frame']:.1f}"]
            if alone:
                cells.append(f"{1000 * row['pytorch_seconds_a_frame']:.1f}" if "pytorch_seconds_a_frame" in row else "")
            cells += [f"{row['share_of_limit']:.0%}".replace("%", " %")]
            cells += [f"{row['gpu_gib_peak']:.1f}" if "gpu_gib_peak" in row else "", str(row.get("batch", ""))]
            lines.append("| " + " | ".join(cells) + " |")
        elif isinstance(row, dict) and "median_times_faster" in row:
            more.append(f"| {key} | {row['median_times_faster']:.2f} |")
        elif isinstance(row, dict) and "cap_gb" in row and "seconds" in row:
            capped.append(
                f"{key}: {row['seconds']:.1f} s for 129 frames within {row['cap_gb']:.0f} GB, "
                f"of which {row['gpu_gib_reserved_peak']:.1f} GiB were used."
            )
    title = f"**{report['device']}**, torch {report['versions']['torch']}, {report['date'][:10]}"
    return "\n".join([title, "", *lines, "", *(more if len(more) > 2 else []), "", *capped]).rstrip("\n")


def _spread(rows: dict, key: str) -> str:
    values = [row[key] for row in rows.values() if key in row]
    ends = dict.fromkeys((min(values, default=0), max(values, default=0)))
    return " to ".join(f"{end:g}" for end in ends) if values else "unknown"
