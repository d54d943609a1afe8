"""An interrupted run continues: killed at every write, killed at random, stopped, a full disk, another version.

What SIGKILL leaves behind is the folder as it is at that moment. So `Camera` copies it at every change of a file, and
each copy is resumed in this process; a few whole processes are killed besides, as users' are. This process does not
fork: a child would wait for ever for locks that threads of its parent held.
"""

import contextlib
import errno
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import torch
from conftest import PROMPT
from diffusers import FirstBlockCacheConfig
from safetensors.torch import load_file

from t2v_kit import Stopped, UserError, compare, generate, resume, tiles
from t2v_kit.atomic import PREFIX
from t2v_kit.model.loading import load
from t2v_kit.run import folder as folder_module
from t2v_kit.run import generating as run_module
from t2v_kit.run.folder import RunFolder, read_log
from t2v_kit.run.records import RunRecord
from t2v_kit.run.target import CHECKPOINT, FILES, LOCK
from t2v_kit.stages import prompt as prompt_module
from tests.forks import python

SMALL = {"prompt": PROMPT, "num_frames": 5, "height": 32, "width": 48, "num_inference_steps": 6, "seed": 3}
LONG = {**SMALL, "num_inference_steps": 40}
WHOLE = {name for name in FILES if name != "upscaled.mp4"} | {"log.jsonl"}
KEYWORDS = {"upscale": "none", "progress": False, "checkpoint_every": 2}
WATCHERS = {"progress": False, "checkpoint_every": 2}
PATIENCE = 120  # seconds: a limit to every wait for another process


class Camera:
    """Copies a run's folder at every write, rename and removal of a file in it, into `store`/NUMBER/run.

    events: what had just happened when each copy was made.
    """

    def __init__(self, monkeypatch, folder: Path, store: Path, logs: bool = False) -> None:
        self.folder, self.store, self.events = folder, store, []
        self.real_unlink = Path.unlink
        monkeypatch.setattr(os, "replace", self._replacing(os.replace))
        monkeypatch.setattr(Path, "unlink", self._unlinking(Path.unlink))
        if logs:
            monkeypatch.setattr(RunFolder, "log", self._logging(RunFolder.log))

    def shot(self, event: str) -> Path:
        self.events.append(event)
        place = self.store / str(len(self.events)) / "run"  # apart: the latents of a folder beside it would be taken
        shutil.copytree(self.folder, place)
        return place

    def places(self):
        return [(event, self.store / str(number) / "run") for number, event in enumerate(self.events, 1)]

    def _replacing(self, real):
        @functools.wraps(real)
        def replace(source, target):
            source, target = Path(source), Path(target)
            if target.parent != self.folder or target.name.startswith(PREFIX):
                return real(source, target)
            for event, share in (("before writing", 0), ("half-way through", 0.5), ("after writing", 1)):
                copy = self.shot(f"{event} {target.name}") / source.name
                os.truncate(copy, int(copy.stat().st_size * share))
            real(source, target)
            self.shot(f"after renaming to {target.name}")

        return replace

    def _unlinking(self, real):
        @functools.wraps(real)
        def unlink(path, missing_ok=False):
            seen = path.parent == self.folder and path.exists()
            real(path, missing_ok=missing_ok)
            if seen:
                self.shot(f"after removing {path.name}")

        return unlink

    def _logging(self, real):
        @functools.wraps(real)
        def log(folder, **line):
            real(folder, **line)
            if folder.started and folder.path == self.folder:
                self.shot(f"after a line of {line.get('stage', line.get('event'))}")

        return log


def filmed(monkeypatch, folder: Path, store: Path, models, settings=SMALL, logs=False, **keywords) -> Camera:
    """A run in `folder`, with a copy of that at every change."""
    with monkeypatch.context() as patched:
        camera = Camera(patched, folder, store, logs)
        generate(**settings, model=models, out=folder, **{**KEYWORDS, **keywords})
    return camera


def continued(folder: Path, models, settings=SMALL, **watchers):
    """Resume what a kill left; where it came before there was a run, begin it."""
    if (folder / "settings.json").exists():
        return resume(folder, models, **{**WATCHERS, **watchers})
    return generate(**settings, model=models, out=folder, **{**KEYWORDS, **watchers})


@pytest.fixture(scope="module")
def half(tiny_folder):
    """The tiny model in bfloat16."""
    return load(tiny_folder, device="cpu", dtype="bfloat16")


def latents_in(folder: Path) -> torch.Tensor:
    return load_file(folder / "latents.safetensors")["latents"]


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def steps_in(lines: list[dict]) -> list[int]:
    """The denoising steps of a log, in the order in which they were made."""
    return [line["step"] for line in lines if line.get("stage") == "denoise" and "seconds" in line and "step" in line]


def test_killed_at_every_write_and_rename(half, tmp_path, monkeypatch):
    """Before, half-way through and after each write, after each rename and removal: the same bits in the end."""
    camera = filmed(monkeypatch, tmp_path / "whole/run", tmp_path / "shots", half)
    latents = latents_in(tmp_path / "whole/run")
    assert latents.dtype == torch.bfloat16
    for what in ("before writing", "half-way through", "after writing", "after renaming to"):
        assert camera.events.count(f"{what} {CHECKPOINT}") == 3
        for name in WHOLE - {"log.jsonl"}:
            assert camera.events.count(f"{what} {name}") == 1
    assert f"after removing {CHECKPOINT}" in camera.events
    for event, folder in camera.places():
        finished = steps_in(read_log(folder))
        run = continued(folder, half)
        assert same(latents_in(folder), latents) and same(run.latents, latents), f"killed {event}"
        assert names(folder) == WHOLE, f"killed {event}"
        again = steps_in(read_log(folder))[len(finished) :]
        assert len(again) <= 6 - (len(finished) - 2 if len(finished) > 2 else 0)  # at most one checkpoint's steps twice
        if "video.mp4" in event or "contact_sheet" in event:
            assert not again  # finished latents are not made again
        shutil.rmtree(folder.parent)


def test_killed_while_another_run_is_replaced(tiny32, tmp_path, monkeypatch):
    """Whatever lies in the folder belongs to the settings.json in it: the old run or the new one, never a mixture."""
    old, new = SMALL, {**SMALL, "seed": 4}
    latents = {}
    for name, settings in (("old", old), ("new", new)):
        generate(**settings, model=tiny32, out=tmp_path / name / "run", **KEYWORDS)
        latents[settings["seed"]] = latents_in(tmp_path / name / "run")
    shutil.copytree(tmp_path / "old/run", tmp_path / "replaced/run")
    camera = filmed(monkeypatch, tmp_path / "replaced/run", tmp_path / "shots", tiny32, new)
    seen = set()
    for number, (_, folder) in enumerate(camera.places(), 1):  # noqa: B007 (asserted below)
        if (folder / CHECKPOINT).exists():
            break
        seed = json.loads((folder / "settings.json").read_text())["settings"]["seed"]
        seen.add((seed, (folder / "latents.safetensors").exists()))
        continued(folder, tiny32)
        assert same(latents_in(folder), latents[seed])
    assert seen == {(3, True), (3, False), (4, False)} and number > 10


def mid_denoise(folder: Path) -> int:
    """How many steps a killed run had finished; 0 when it was not in the middle of denoising."""
    lines = read_log(folder)
    over = any(line.get("stage") == "denoise" and "step" not in line for line in lines)
    return 0 if over or not lines else max(steps_in(lines), default=0)


def test_killed_at_random_moments(tiny32, tmp_path, monkeypatch):
    """Between any two steps: each run ends with the same bits, and most continue behind a checkpoint."""
    camera = filmed(monkeypatch, tmp_path / "whole/run", tmp_path / "shots", tiny32, LONG, True, checkpoint_every=3)
    latents = latents_in(tmp_path / "whole/run")
    moments = [folder for event, folder in camera.places() if event == "after a line of denoise"]
    in_the_middle, resumed_at = [], []
    for folder in random.Random(0).sample(moments, 12):
        in_the_middle += [mid_denoise(folder)] if mid_denoise(folder) else []
        continued(folder, tiny32, LONG)
        assert same(latents_in(folder), latents)
        resumed_at += [line["step"] for line in read_log(folder) if line.get("event") == "started" and "step" in line]
    assert len(in_the_middle) >= 10 and len(set(in_the_middle)) >= 5
    assert len(set(resumed_at)) >= 4


@contextlib.contextmanager
def victim(model_folder: Path, out: Path, verb: str, settings: dict = LONG):
    """A process of victim.py, killed at the end whatever happens."""
    command = [Path(__file__).with_name("victim.py"), model_folder, out, verb, json.dumps(settings)]
    here = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    with tempfile.TemporaryFile("w+") as words:
        process = python(command, here, stderr=words)
        try:
            yield process
        finally:
            process.kill()
            process.wait(PATIENCE)
            words.seek(0)
            print(words.read()[-2000:])  # shown when the test fails


def wait_until(reached, process) -> None:
    """Wait for another process to get somewhere, as long as it lives and not for ever."""
    limit = time.monotonic() + PATIENCE
    while not reached():
        assert process.poll() is None, f"the process ended with {process.returncode}"
        assert time.monotonic() < limit, f"nothing came of it in {PATIENCE} s"
        time.sleep(0.002)


def test_processes_killed_again_and_again(tiny_folder, tiny32, tmp_path):
    """Whole processes killed in the middle of denoising, the second one while it resumes; and no folder is shared."""
    whole = generate(**LONG, model=tiny32, **KEYWORDS)
    folder, reached = tmp_path / "apart" / "run", []
    for verb in ("generate", "resume"):
        before = len(steps_in(read_log(folder)))
        with victim(tiny_folder, folder, verb) as process:
            wait_until(lambda before=before: len(steps_in(read_log(folder))) >= before + 5, process)
            os.kill(process.pid, signal.SIGSTOP)  # it lives, and holds its folder
            for intruder in (generate, resume):
                keywords = {"out": folder, **SMALL, **KEYWORDS} if intruder is generate else {"folder": folder}
                with pytest.raises(UserError, match=rf"another run \(process {process.pid}\) is writing there"):
                    intruder(model=tiny32, **keywords)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait(PATIENCE) == -signal.SIGKILL
        reached.append(max(steps_in(read_log(folder))))
        assert (folder / LOCK).exists() and not (folder / "video.mp4").exists()
    assert reached[1] > reached[0]
    run = resume(folder, tiny32, **WATCHERS)
    assert same(run.latents, whole.latents) and names(folder) == WHOLE
    assert len([line for line in read_log(folder) if line.get("event") == "started" and "step" in line]) == 2


def full_at(monkeypatch, number: int) -> list[str]:
    """Let the disk be full at write or rename number `number`; the list gets the names of all of them."""
    calls: list[str] = []

    def failing(real, place, writes: bool):
        @functools.wraps(real)
        def write(*args, **kwargs):
            calls.append(Path(args[place]).name)
            if len(calls) == number:
                if writes:
                    Path(args[place]).write_bytes(b"half")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        return write

    monkeypatch.setattr(folder_module, "save_file", failing(folder_module.save_file, 1, True))
    monkeypatch.setattr(prompt_module, "save_file", failing(prompt_module.save_file, 1, True))
    monkeypatch.setattr(run_module, "save_video", failing(run_module.save_video, 0, True))
    monkeypatch.setattr(os, "replace", failing(os.replace, -1, False))
    return calls


def test_a_disk_that_is_full_at_every_write(tiny32, tmp_path, monkeypatch):
    """One line that says what could not be written and how to continue; what was whole stays, and is continued."""
    with monkeypatch.context() as patched:
        writes = full_at(patched, 0)
        generate(**SMALL, model=tiny32, out=tmp_path / "whole/run", **KEYWORDS)
    assert len(writes) >= 13
    for number, name in enumerate(writes, 1):
        folder = tmp_path / str(number) / "run"
        with monkeypatch.context() as patched:
            full_at(patched, number)
            with pytest.raises(UserError, match=r"No space left on device.*make room") as raised:
                generate(**SMALL, model=tiny32, out=folder, **KEYWORDS)
        assert "\n" not in str(raised.value) and f"resume('{folder}')" in str(raised.value)
        for file in folder.glob("*.safetensors"):
            load_file(file)
        assert not list(folder.glob(f"{PREFIX}*")) and not (folder / LOCK).exists()
        continued(folder, tiny32)
        assert same(latents_in(folder), latents_in(tmp_path / "whole/run")), name


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB, and a function that leaves so many bytes of it free."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip(
            "a small tmpfs cannot be mounted here (that needs root): only the stand-in for a full disk was tested"
        )

    def leave_free(size: int) -> None:
        (disk / "filler").write_bytes(b"")
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - size))

    yield disk, leave_free
    subprocess.run(["umount", str(disk)], check=True)


def test_a_real_full_disk(tiny32, small_disk):
    """From no room to enough: an error with one line, or a whole run; and then it goes on."""
    disk, leave_free = small_disk
    whole = generate(**SMALL, model=tiny32, upscale="none", progress=False)
    outcomes = []
    for room in (*range(0, 60_000, 4096), 200_000, 1_000_000, 3_500_000):
        leave_free(room)
        folder = disk / f"run{room}"
        try:
            generate(**SMALL, model=tiny32, out=folder, upscale="none", progress=False, checkpoint_every=2)
            outcomes.append("whole")
        except UserError as mistake:
            assert "\n" not in str(mistake) and "annot be written" in str(mistake)
            outcomes.append(sorted(names(folder)) if folder.exists() else [])
            leave_free(3_500_000)
            if (folder / "settings.json").exists():
                run = resume(folder, tiny32, progress=False)
                assert same(run.latents, whole.latents) and names(folder) == WHOLE
        shutil.rmtree(folder, ignore_errors=True)
        if outcomes[-1] == "whole":
            break
    assert outcomes[-1] == "whole" and len({str(each) for each in outcomes}) >= 4


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stopped_at(step: int, models, **keywords) -> Path:
    """A run in 'run' that was asked to stop after so many steps."""
    taken = []
    with pytest.raises(Stopped) as raised:
        generate(
            **{**SMALL, "model": models, "out": "run", "upscale": "none", "progress": False, **keywords},
            on_step=taken.append, stop=lambda: len(taken) == step,
        )  # fmt: skip
    assert (raised.value.stage, raised.value.done, raised.value.total) == ("denoise", step, 6)
    assert str(raised.value) == f"stopped in denoise after {step} of 6; resume('{Path('run').absolute()}') continues."
    return raised.value.folder


def test_stop_acts_within_a_step_and_resume_goes_on(tiny, here):
    """Stopped after step 4 exactly, though checkpoints are every 5; two more steps give the same bits."""
    whole = generate(**SMALL, model=tiny, upscale="none")
    folder = stopped_at(4, tiny)
    assert names(folder) == {"settings.json", "prompt.safetensors", CHECKPOINT, "log.jsonl"}
    steps, stages = [], []
    run = resume(folder, tiny, on_step=steps.append, on_stage=lambda *told: stages.append(told))
    assert [step.index for step in steps] == [4, 5] and ("denoise", 4, 6) in stages and ("denoise", 6, 6) in stages
    assert same(run.latents, whole.latents) and (run.video == whole.video).all()
    assert run.reused == here / "run" and names(folder) == WHOLE


def test_resume_loads_the_model_by_its_name(tiny_folder, here):
    """Without `model`, what settings.json names is loaded."""
    models = run_module.load(tiny_folder)
    whole = generate(**SMALL, model=models, upscale="none")
    stopped_at(3, models)
    assert same(resume("run").latents, whole.latents)


def test_resume_reads_the_same_files_of_a_folder_again(tiny_folder, here):
    """Plain weights and a variant lie side by side: by the folder's name alone the plain ones would be read."""
    both = shutil.copytree(tiny_folder, here / "both")
    transformer = load(tiny_folder, device="cpu").pipe.transformer
    with torch.no_grad():
        transformer.proj_out.weight *= -1
    transformer.save_pretrained(both / "transformer", variant="turned")
    models = load(both, variant="turned")
    whole = generate(**SMALL, model=models, upscale="none")
    stopped_at(3, models)
    assert same(resume("run").latents, whole.latents)


def test_stop_while_upscaling_keeps_the_latents(tiny32, here):
    """Between two enlarged frames; the latents are finished, so nothing is denoised again."""
    calls = []

    def stop() -> bool:
        return calls[-1][0] == "upscale" and calls[-1][1] == 2

    keywords = {**SMALL, "model": tiny32, "out": "run", "on_stage": lambda *told: calls.append(told)}
    with pytest.raises(Stopped, match=r"stopped in upscale after 2 of 5; resume\('.*run'\) continues"):
        generate(**keywords, stop=stop)
    assert names(here / "run") == WHOLE - {"contact_sheet.png"}
    steps = []
    run = resume("run", tiny32, on_step=steps.append)
    assert not steps and run.upscaled.shape == (5, 128, 192, 3) and names(here / "run") == WHOLE | {"upscaled.mp4"}


def test_stop_between_two_tiles_keeps_the_latents(tiny32, here):
    """A decoding of minutes is not waited for."""
    told = []
    larger = {**SMALL, "height": 64, "width": 96, "upscale": "none"}
    keywords = {**larger, "model": tiny32, "out": "run", "on_stage": lambda *each: told.append(each)}
    with tiles(tiny32, pixels=32, overlap=8), pytest.raises(Stopped, match="stopped in decode after 4 of 12; resume"):
        generate(**keywords, stop=lambda: told[-1][:2] == ("decode", 4))
    steps = []
    run = resume("run", tiny32, on_step=steps.append)
    assert not steps and run.video.shape == (5, 64, 96, 3) and names(here / "run") == WHOLE


def test_stop_without_a_folder_keeps_nothing_and_says_so(tiny32):
    with pytest.raises(Stopped, match="stopped in denoise after 0 of 6; without an out folder nothing was kept"):
        generate(**SMALL, model=tiny32, upscale="none", stop=lambda: True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ZeroDivisionError])
def test_whatever_ends_denoising_leaves_a_checkpoint(tiny32, here, error):
    """Ctrl-C, memory that ran out, a mistake in a callback: the last whole step is there."""

    def fail(step) -> None:
        if step.index == 3:
            raise error

    whole = generate(**SMALL, model=tiny32, upscale="none")
    with pytest.raises(error):
        generate(**SMALL, model=tiny32, out="run", upscale="none", on_step=fail)
    steps = []
    assert same(resume("run", tiny32, on_step=steps.append).latents, whole.latents)
    assert [step.index for step in steps] == [4, 5]


def test_the_same_call_again_goes_on_too(tiny32, here):
    """generate with the same settings in the same folder takes the checkpoint; reuse=False begins anew."""
    whole = generate(**SMALL, model=tiny32, upscale="none")
    for reuse, left in ((True, 3), (False, 6)):
        stopped_at(3, tiny32, reuse=False)
        steps = []
        keywords = {**SMALL, "model": tiny32, "out": "run", "upscale": "none", "reuse": reuse}
        run = generate(**keywords, on_step=steps.append)
        assert len(steps) == left and same(run.latents, whole.latents)
        assert (run.reused is None) == (not reuse)


def test_a_truncated_checkpoint_is_named_and_kept(tiny32, here):
    """The line names the file; nothing is touched; without that file the run begins from its prompt."""
    whole = generate(**SMALL, model=tiny32, upscale="none")
    folder = stopped_at(4, tiny32)
    checkpoint = folder / CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=r"run/checkpoint.safetensors: is damaged .*delete this one file") as raised:
        resume(folder, tiny32)
    assert "\n" not in str(raised.value) and {path: path.read_bytes() for path in folder.iterdir()} == before
    checkpoint.unlink()
    assert same(resume(folder, tiny32).latents, whole.latents)


def edited(folder: Path, table: str, **changes) -> None:
    path = folder / "settings.json"
    record = json.loads(path.read_text())
    record[table] |= changes
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("table", "change", "told"),
    [
        ("made_with", {"torch": "1.0"}, "torch was 1.0, is "),
        ("made_with", {"t2v_kit": "9.9"}, "t2v_kit was 9.9, is "),
        ("made_with", {"weights_hash": "0" * 16}, "weights_hash was 0000000000000000, is "),
        ("made_with", {"device": "cuda"}, "device was cuda, is cpu"),
        ("settings", {"sampler": "fancy"}, "settings.json: of another version. sampler='fancy': there is no such"),
        ("settings", {"height": 65}, "height=65"),
    ],
)
def test_a_folder_of_another_version_is_refused_and_kept(tiny32, here, table, change, told):
    """What differs is named in one line, and nothing in the folder is touched."""
    folder = stopped_at(4, tiny32)
    edited(folder, table, **change)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=told) as raised:
        resume(folder, tiny32)
    assert "\n" not in str(raised.value) and {path: path.read_bytes() for path in folder.iterdir()} == before


def test_anyway_goes_on_with_another_version(tiny32, here):
    """The saved steps are not made again, the difference is told and logged."""
    folder = stopped_at(4, tiny32)
    edited(folder, "made_with", torch="1.0")
    steps = []
    with pytest.warns(UserWarning, match=r"run: continues although torch was 1.0, is .* bits may differ"):
        run = resume(folder, tiny32, anyway=True, on_step=steps.append)
    assert [step.index for step in steps] == [4, 5] and names(folder) == WHOLE
    assert any(line.get("event") == "changed" and line["torch"][0] == "1.0" for line in read_log(folder))
    assert json.loads((folder / "settings.json").read_text()) == run.record


def test_with_code_of_ones_own_anyway_goes_on(tiny32, here):
    """What a hook does cannot be read, so that it always counts as another; with anyway the saved steps stay."""
    with tiny32.pipe.transformer.register_forward_hook(lambda *_: None):
        folder = stopped_at(4, tiny32)
        with pytest.raises(UserError, match=r"unknown_code was .*lambda.*, is .*lambda"):
            resume(folder, tiny32)
        steps = []
        with pytest.warns(UserWarning, match="continues although unknown_code"):
            resume(folder, tiny32, anyway=True, on_step=steps.append)
    assert [step.index for step in steps] == [4, 5]


@pytest.mark.parametrize("setting", [{"upscale": "pocket"}, {"seed": 4}, {"out": "other"}, {"reuse": False}])
def test_a_resumed_run_keeps_its_settings(tiny32, here, setting):
    ((name, value),) = setting.items()
    with pytest.raises(UserError, match=f"{name}={value!r}: a resumed run keeps its settings") as raised:
        resume("run", tiny32, **setting)
    assert "\n" not in str(raised.value)


def test_a_folder_in_the_home_directory(tiny32, here, monkeypatch):
    """~ is the home directory wherever a run's folder is named."""
    monkeypatch.setenv("HOME", str(here))
    stopped_at(4, tiny32)
    assert resume("~/run", tiny32, progress=False).folder == here / "run"
    assert RunRecord.read("~/run").finished and not compare("~/run", here / "run")


def test_seconds_of_all_sittings(tiny32, here):
    """The steps before the stop count as well, though their stage came to no end; peaks are the highest."""
    stopped_at(4, tiny32)
    before = RunRecord.read("run").seconds
    resume("run", tiny32, progress=False)
    lines = [line for line in read_log("run") if "seconds" in line]
    first = sum(line["seconds"] for line in lines if line["stage"] == "denoise" and line.get("step", 9) <= 4)
    (last,) = [line for line in lines if line["stage"] == "denoise" and "peak_gib" in line]
    loads = [line["seconds"] for line in lines if line["stage"] == "load"]
    after = RunRecord.read("run")
    assert before["denoise"] == pytest.approx(first) and first > 0
    assert after.seconds["denoise"] == pytest.approx(first + last["seconds"])
    assert len(loads) == 2 and after.seconds["load"] == pytest.approx(sum(loads))
    assert after.memory["load"] == max(line["peak_gib"] for line in lines if line["stage"] == "load")


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"settings": {}}', '{"settings": [], "made_with": {}}'])
def test_a_folder_that_is_no_run(tiny32, here, content):
    (here / "run").mkdir()
    if content is not None:
        (here / "run/settings.json").write_text(content)
    with pytest.raises(UserError, match="is no run" if content is None else "is not what generate writes") as raised:
        resume("run", tiny32)
    assert "\n" not in str(raised.value)


def test_a_step_cache_begins_anew_and_says_so(tiny32, here):
    """What the cache remembered is gone: resuming resets it and tells that the bits may differ."""
    transformer = tiny32.pipe.transformer
    transformer.enable_cache(FirstBlockCacheConfig(threshold=10.0))
    try:
        whole = generate(**SMALL, model=tiny32, upscale="none")
        folder = stopped_at(3, tiny32)
        assert (
            "FirstBlockCacheConfig(threshold=10.0"
            in json.loads((folder / "settings.json").read_text())["made_with"]["step_cache"]
        )
        steps = []
        with pytest.warns(UserWarning, match="the step cache begins empty here"):
            run = resume(folder, tiny32, on_step=steps.append)
        assert len(steps) == 3 and not same(run.latents, whole.latents)  # this threshold skips all but the first step
        assert same(generate(**SMALL, model=tiny32, upscale="none").latents, whole.latents)
        stopped_at(3, tiny32, reuse=False)
    finally:
        transformer.disable_cache()
    with pytest.raises(UserError, match=r"step_cache was FirstBlockCacheConfig.*, is None"):
        resume("run", tiny32)


def test_a_scheduler_that_knows_more_than_its_step_says_so(tiny32, here):
    """Of HunyuanVideo's scheduler the step is the whole state; one that draws noise at each step goes on otherwise."""
    held = tiny32.pipe.scheduler
    tiny32.pipe.scheduler = type(held).from_config(held.config, stochastic_sampling=True)
    try:
        folder = stopped_at(3, tiny32)
        with pytest.warns(UserWarning, match="FlowMatchEulerDiscreteScheduler forgets its earlier steps"):
            resume(folder, tiny32)
    finally:
        tiny32.pipe.scheduler = held


def test_a_line_of_the_log_that_a_kill_cut_short(tiny32, here):
    """It is left out, and the log goes on behind it."""
    folder = stopped_at(3, tiny32)
    with open(folder / "log.jsonl", "a") as file:
        file.write('{"time": "2026-')
    resume(folder, tiny32)
    assert steps_in(read_log(folder)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("every", [0, -1, 2.5, True, "often"])
def test_checkpoint_every_is_checked(tiny32, here, every):
    with pytest.raises(UserError, match="checkpoint_every="):
        generate(**SMALL, model=tiny32, out="run", upscale="none", checkpoint_every=every)
    assert not names(here)
