"""The benchmarks run: at toy size, the same lines that ran on the GPU."""

import t2v_kit  # noqa: I001  (first: it makes torchvision importable)

import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import figures, install, table
from benchmarks.common import GIB
from benchmarks.fit import fit_memory
from benchmarks.rows import ROWS, SET_ASIDE_SIZES
from benchmarks.timeline import busy, lanes
from t2v_kit.hunyuan.names import DOWNLOADS, PUBLISHED
from t2v_kit.memory.plan import Plan, Size
from t2v_kit.memory.estimate import estimate
from tests.forks import finished

ROOT = Path(__file__).parents[1]
NAMES = (
    "memory",
    "speed",
    "upscaling",
    "limits",
    "training",
    "from-video",
    "loras",
    "command-line",
    "install",
    "python",
)
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in NAMES)]


def full_size(tmp_path: Path, *options: str) -> tuple[int, dict]:
    """Run `benchmarks.full_size --tiny`; its exit status and what it wrote."""
    out = tmp_path / "results" / "tiny.json"
    done = run("full_size", "--tiny", "--weights", str(tmp_path), "--out", str(out), *options)
    assert out.exists(), done.stderr
    assert list(tmp_path.iterdir()) == [out.parent], "the weights are still there"
    return done.returncode, json.loads(out.read_text())


def test_full_size_goes_through_every_stage(tmp_path):
    """From written weights to an enlarged video: the shapes follow from each other and every stage was timed."""
    status, report = full_size(tmp_path, "--steps", "3")
    stages = {row["stage"]: row for row in report["stages"]}
    assert status == 0 and report["finished"]
    assert list(stages)[:3] == ["make weights", "save", "load"]
    assert stages["encode prompt"]["cropped"] == 95  # as for Llama 3's tokenizer
    assert len(stages["denoise"]["step_seconds"]) == 3
    assert stages["denoise"]["latents"] == [1, 16, 3, 6, 8]
    assert stages["decode, tiled"]["video"] == [9, 48, 64, 3]
    assert stages["upscale"]["video"] == [9, 192, 256, 3]
    assert all(row["seconds"] > 0 for row in report["stages"])


def test_full_size_keeps_what_it_measured_when_time_is_over(tmp_path):
    """The time-box ends the run between stages, without losing the results and with another exit status."""
    status, report = full_size(tmp_path, "--seconds", "0.01")
    assert status == 1 and not report["finished"]
    assert [row["stage"] for row in report["stages"]] == ["make weights"]


def run(module: str, *options: str) -> subprocess.CompletedProcess:
    """`python -m benchmarks.MODULE` on the CPU."""
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    return finished(["-m", f"benchmarks.{module}", *options], environment)


def test_a_whole_video_is_interrupted_and_continued(tmp_path):
    """The command is stopped in its imports; called again, the script lets it end, and adds up both."""
    options = ["--tiny", "--steps", "3", "--weights", str(tmp_path / "weights"), "--out", str(tmp_path / "out.json")]
    assert run("whole_video", *options, "--seconds", "0.5").returncode
    assert run("whole_video", *options).returncode == 0
    report = json.loads((tmp_path / "out.json").read_text())
    stopped, made = report["commands"]
    assert stopped["exit_status"] and not made["exit_status"]
    assert "first_step" not in stopped and made["first_step"] == report["step_seconds"][0]
    assert len(report["step_seconds"]) == 3 and report["seconds"]["commands"] > made["seconds"]
    assert [row["stage"] for row in report["stages"]] == ["load", "encode", "denoise", "decode"]


def test_memory_runs_rows_in_their_own_processes(tmp_path):
    """Ours finishes with peaks beside what was predicted; diffusers' recipe, which needs a GPU, fails alone."""
    out = tmp_path / "memory.json"
    done = run("memory", "--tiny", "--rows", "8-544x960x61", "--weights", str(tmp_path / "w"), "--out", str(out))
    rows = json.loads(out.read_text())["rows"]
    ours, recipe = rows["ours-8-544x960x61"], rows["diffusers-8-544x960x61"]
    assert done.returncode == 0 and ours["finished"], done.stderr
    assert list(ours["stages"]) == ["load", "encode", "denoise", "decode"] and ours["step_seconds"] > 0
    assert [row["stage"] for row in ours["predicted"]] == ["encode", "denoise", "decode"]
    assert "No GPU found" in recipe["error"] and "ours-8-544x960x61" in done.stdout


def test_speed_compares_every_way_of_calling(tmp_path):
    """The same result to 1e-4, whatever way; what was measured is written, also what the time did not suffice for."""
    out = tmp_path / "speed.json"
    assert run("speed", "--tiny", "--sizes", "544x960x61", "--seconds", "20", "--out", str(out)).returncode == 0
    report = json.loads(out.read_text())
    for kind in ("no padding, no mask", "in chunks"):
        assert report[f"544x960x61, {kind}"]["relative_difference"] < 1e-4
    skipped = [
        row for row in report.values() if isinstance(row, dict) and ({"seconds", "not_run", "kernels"} & set(row))
    ]
    assert len(skipped) >= 5


def test_decoding_is_measured_both_ways(tmp_path):
    """As it is and compiled, with the same pixels, and what a tile's time goes into."""
    out = tmp_path / "decoding.json"
    done = run("decoding", "--tiny", "--rows", "512|profile", "--out", str(out))
    report = json.loads(out.read_text())
    plain, compiled = (report[f"tile 512, {kind}"] for kind in ("as it is", "compiled"))
    assert done.returncode == 0 and plain["seconds"] > 0, done.stderr
    assert compiled["relative_difference"] < 1e-4 and compiled["times_faster"] > 0
    assert report["profile, compiled"]["kernels"]


def test_rows_are_set_aside_before_anything_is_fitted():
    """Sizes and caps on both sides, and no row of the T4's or of diffusers' among those to fit on."""
    fit = [row for row in ROWS if not row.set_aside]
    aside = [row for row in ROWS if row.set_aside and row.kind == "ours"]
    assert len(fit) >= 4 and len(aside) >= 4 and {row.kind for row in fit} == {"ours"}
    assert not {row.size for row in fit} & set(SET_ASIDE_SIZES) and len({row.name for row in ROWS}) == len(ROWS)


def test_fitting_finds_the_line_and_never_stays_below():
    """Work 1, 2, 4 GiB with a factor of 1.5 and half a GiB on top; then one point above, and one point alone."""
    points = [{"work_gb": w, "weights_gb": 10, "measured": {"gpu_gib": 10.5 + 1.5 * w}} for w in (1, 2, 4)]
    assert fit_memory(points) == {"factor": 1.5, "gib": 0.5}
    points[1]["measured"]["gpu_gib"] += 0.2
    found = fit_memory(points)
    told = [p["weights_gb"] + found["factor"] * p["work_gb"] + found["gib"] for p in points]
    assert all(t >= p["measured"]["gpu_gib"] - 0.001 for t, p in zip(told, points))
    assert fit_memory(points[:1]) == {"factor": 1.0, "gib": 1.0}


def test_lanes_join_what_is_near_and_keep_what_overlaps():
    """Copies to the GPU and kernels, from 0; copies back and fills are left out; a pause under 0.1 ms is none."""
    events = [
        ("Memcpy HtoD (Pinned -> Device)", 10.0, 5.0),
        ("gemm", 12.0, 1.0),
        ("gemm", 13.05, 1.0),
        ("softmax", 20.0, 2.0),
        ("Memcpy DtoH (Device -> Pageable)", 30.0, 1.0),
        ("Memset (Device)", 31.0, 1.0),
    ]
    assert lanes(events) == {"copy": [[0.0, 5.0]], "compute": [[2.0, 4.05], [10.0, 12.0]]}
    assert busy(lanes(events)["compute"]) == pytest.approx(4.05)


ROW = {
    "size": "544x960x61", "cap": 8, "kind": "ours", "finished": True, "plan": {"name": "streamed"}, "context_gib": 0.5,
    "bus_gb_a_second": 50, "step_seconds": 3.0,
    "stages": {"denoise": {"gpu_gib": 6.0, "ram_gib": 30.0}, "decode": {"gpu_gib": 5.0, "seconds": 12.0}},
}  # fmt: skip
REPORT = {"device": "a GPU", "date": "2026-01-02", "ram_gib": 100, "versions": {"torch": "2", "diffusers": "3"}}


def test_a_stale_table_is_refused(tmp_path):
    """Missing place, other numbers, the right table: only the last one passes, and writing brings it about."""
    text, folders = "# Title\n<!-- benchmarks: memory -->\n<!-- end -->\nafter\n", (tmp_path,)
    uncapped = ROW | {"cap": None, "step_seconds": 2.0}
    (tmp_path / "memory.json").write_text(json.dumps(REPORT | {"rows": {"a": uncapped, "b": ROW}}))
    assert "no place for the table memory" in figures.stale("# Title\n", {"memory"}, folders)[0]
    assert figures.stale(text, (), folders) == ["other numbers in the table memory"]
    new = figures.filled(text, folders)
    assert figures.stale(new, {"memory"}, folders) == [] and figures.filled(new, folders) == new
    said = f"{estimate(Plan('streamed'), Size(544, 960, 61)).vram_gb:.1f}"
    assert f"| 8 GB | 544 x 960 x 61 | streamed | {said} → 6.0 | 30.0 | 3.00 | 1.50x | 12 s | 2.5 min |" in new
    assert new.startswith("# Title") and new.endswith("after\n")
    assert figures.figure("streaming cost", ".1%", folders) == "50.0 %"
    (tmp_path / "memory.json").write_text(json.dumps(REPORT | {"rows": {"b": ROW | {"step_seconds": 3.5}}}))
    assert figures.stale(new, (), folders) == ["other numbers in the table memory"]


GROUPS = ("adherence", "one_subject", "two_subjects", "ceiling")
EVALUATION = {
    "vae": {"psnr": 35.06},
    "adherence": {"prompts": 9, **{name: {"all": 0.5} for name in GROUPS}},
    "guidance": {"3": {"adherence": {"all": 1.0}, "diversity_features": 2.0, "chroma": 0.2}, "made_with": {}},
}


def test_a_stale_figure_is_refused(tmp_path):
    """A figure in a sentence is its file's number in its format; a hand-typed or unknown one is refused."""
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    text = "PSNR: <!-- figure: evaluation/vae/psnr as .1f -->34.9<!-- end --> dB,\nof "
    text += "<!-- figure: evaluation/adherence/one_subject/all as .0% --><!-- end -->."
    assert len(figures.stale(text, (), (tmp_path,))) == 2
    new = figures.filled(text, (tmp_path,))
    assert "-->35.1<!--" in new and "-->50 %<!--" in new and figures.stale(new, (), (tmp_path,)) == []
    assert "begins with the mark" in figures.stale("a\n" + new[6:], (), (tmp_path,))[0]
    nowhere = "<!-- figure: evaluation/vae/sharpness as .1f -->1.0<!-- end -->"
    assert "no 'sharpness' in ['psnr']" in figures.stale("x " + nowhere, (), (tmp_path,))[0]
    with pytest.raises(KeyError, match="leads to no number"):
        figures.figure("evaluation/vae", ".1f", (tmp_path,))
    assert figures.figure("speed/anything", ".1f", (tmp_path,)) == "not measured yet"


def test_rows_of_a_list_are_found_by_their_name(tmp_path):
    (tmp_path / "full_size.json").write_text(json.dumps({"stages": [{"stage": "load", "seconds": 9.3}]}))
    assert figures.figure("full_size/stages/load/seconds", ".0f", (tmp_path,)) == "9"


def test_tables_of_the_vae_and_the_upscaler(tmp_path):
    """The largest step between frames is told with the first frame and without; the upscaler's gain is over Lanczos."""
    own = {"clips": 2, "psnr": 35.0, "psnr_worst_tenth": 30.0, "psnr_subject": 28.0, "largest_jump_between_frames": 2.0}
    (tmp_path / "evaluation.json").write_text(json.dumps({"vae": own | {"psnr_by_frame": [36, 34, 34.5, 34.25]}}))
    networks = {"Lanczos": 28.0, "pocket_x4": 33.5, "pocket_wdn_x4": 27.0}
    psnr = {name: dict.fromkeys(("degraded", "noisy", "clean", "decoded"), value) for name, value in networks.items()}
    (tmp_path / "training.json").write_text(json.dumps({"upscaler": {"psnr_db": psnr}}))
    made = figures.tables((tmp_path,))
    assert "| worst tenth of the clips | 34 | 30.00 |" in made["vae"] and "|  | 0.50 |" in made["vae"]
    assert "| degraded | 28.0 | +5.5 | -1.0 |" in made["upscaler"]


def test_tables_of_the_evaluation(tmp_path):
    """A row a group of prompts and a guidance scale; what was not measured leaves its cell empty."""
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    made = figures.tables((tmp_path,))
    assert set(made) == {"adherence", "guidance", "settings", "notebooks"}
    assert "| 9 held-out prompts | 50 % |" in made["adherence"]
    assert made["guidance"].splitlines()[-1] == "| 3 | 100 % | 2.0 | 0.200 |  |  |"


@pytest.mark.parametrize("path", figures.documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documents_have_todays_figures(path):
    """Otherwise: python -m benchmarks.figures --write."""
    required = figures.REQUIRED.get(path.relative_to(ROOT).as_posix(), ())
    assert figures.stale(path.read_text("utf-8"), required) == []


BY_HAND = {  # a rule by which `load` decides, not a measurement; the size of a download
    "docs/memory.md": ["80 %"],
}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_pages_hold_no_figure_by_hand(path):
    """Shares, decibels, seconds and factors stand between marks, or come from a source named in the same row."""
    text = figures.TABLE.sub("", path.read_text("utf-8"))
    text = figures.FIGURE.sub("", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    text = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
    by_hand = re.findall(r"[\d.]+ (?:%|dB|s|ms|GiB|MiB|M|MB|million|billion|times)(?!\w)", text)
    assert by_hand == BY_HAND.get(path.relative_to(ROOT).as_posix(), [])


@pytest.mark.parametrize("name", DOWNLOADS)
def test_the_size_of_a_download_is_that_of_the_weights(name):
    """What is asked before it, and what the configurations say."""
    short = {whole: short for short, whole in PUBLISHED.items()}.get(name, name)
    counted = estimate(Plan(), Size(16, 16, 1), short).disk_gb * GIB / 1e9
    assert f"{name} is about {counted:.0f} GB to download" in DOWNLOADS[name]


def test_what_is_installed_is_counted(monkeypatch):
    """Packages that are needed by others, by extras of others, and once each."""
    said = {"a": ["b", "c; extra == 'more'"], "b": ["a[more]"], "c": ["d; python_version < '3'", "gone"]}

    def installed(name):
        if name not in said:
            raise install.PackageNotFoundError(name)
        return SimpleNamespace(requires=said[name])

    monkeypatch.setattr(install, "distribution", installed)
    assert sorted(install.needed(["a  # a remark", "", "x ; python_version < '3'"])) == ["a", "b", "c"]


def test_the_readme_is_one_page_and_lists_every_notebook():
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 120
    assert sorted(table.ABOUT) == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    heading, seconds = table.title_and_seconds(ROOT / "notebooks/05_denoising.ipynb")
    assert heading == "05 · Denoising" and seconds > 0


def test_a_notebook_without_a_title_or_its_seconds_is_refused(tmp_path):
    (tmp_path / "08_y.ipynb").write_text(json.dumps({"cells": [{"source": ["# 08 · None\n"]}]}), "utf-8")
    with pytest.raises(ValueError, match="08_y"):
        table.title_and_seconds(tmp_path / "08_y.ipynb")


def test_shortcuts_were_measured_with_these_weights():
    """What documents and notebooks say of shortcuts is of the shipped weights: else run benchmarks.frontier."""
    report = figures.read("frontier")
    assert report["weights"] == t2v_kit.load("pocket").weights_hash
