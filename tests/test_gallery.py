"""Runs are found again, compared, looked at and made again, from what their folders say."""

import json
import runpy
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from conftest import PROMPT
from PIL import Image

import t2v_kit
from t2v_kit import Stopped, UserError, compare, gallery, generate, runs
from t2v_kit.run.records import RunRecord

SMALL = {"num_frames": 5, "height": 32, "width": 48, "upscale": "none", "progress": False}
CAR = "A red car drives to the left on the beach at sunset, slow motion."


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory):
    """A folder with three runs, one of them stopped, and one in a folder of its own below."""
    folder, models = tmp_path_factory.mktemp("made") / "runs", t2v_kit.load(tiny_folder, device="cpu")
    common = {**SMALL, "model": models}
    generate(PROMPT, out=folder / "first", seed=1, **common)
    generate(CAR, out=folder / "second", seed=2, guidance_scale=3, **common)
    with pytest.raises(Stopped):
        generate(CAR, out=folder / "third", num_inference_steps=9, **common, stop=_after(4))
    generate(CAR, out=folder / "sweep/one", seed=7, **common)
    return folder


def _after(calls: int):
    """A stop that says so at its call number `calls`, counted from 0."""
    asked = iter(range(1000))
    return lambda: next(asked) == calls


def names(found: list[RunRecord]) -> list[str]:
    return [record.folder.name for record in found]


def test_find(made):
    """All, oldest first, and by words, settings, and whether they are finished."""
    assert names(runs(made)) == ["first", "second", "third", "one"]
    assert names(runs(made, "RED car")) == ["second", "third", "one"]
    assert names(runs(made, seed=2)) == ["second"] and names(runs(made, "car", finished=False)) == ["third"]
    assert names(runs(made, guidance_scale=3.0, finished=True)) == ["second"]
    assert runs(made / "nowhere") == []
    with pytest.raises(UserError, match="sede=1: no setting of a run; did you mean 'seed'"):
        runs(made, sede=1)


def test_a_damaged_run_is_told_and_left_out(made):
    (made / "bad").mkdir()
    (made / "bad/settings.json").write_text("{")
    try:
        with pytest.warns(UserWarning, match=r"bad/settings.json: is not what generate writes"):
            assert names(runs(made)) == ["first", "second", "third", "one"]
    finally:
        (made / "bad/settings.json").unlink()
        (made / "bad").rmdir()


def test_dates_are_times_and_not_text(made, tmp_path):
    """Noon in Tokyo comes before noon in London, and a date that cannot be read comes first."""
    record = json.loads((made / "first/settings.json").read_text())
    dates = {"london": "2026-03-01T12:00:00+00:00", "tokyo": "2026-03-01T12:30:00+09:00", "lost": "yesterday"}
    for name, date in dates.items():
        record["made_with"]["date"] = date
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.json").write_text(json.dumps(record))
    assert names(runs(tmp_path)) == ["lost", "tokyo", "london"]


def test_foreign_folders_are_told_and_left_out(made, tmp_path):
    """An extra table is no damage; settings.json of another program, or a broken video, is."""
    record = json.loads((made / "first/settings.json").read_text())
    contents = {"noted": record | {"notes": "mine"}, "other": {"settings": {"font": 12}, "made_with": {}}}
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.json").write_text(json.dumps(content))
        (tmp_path / name / "log.jsonl").write_text('5\n{"level": "info"}\n')
    with pytest.warns(UserWarning, match=r"other/settings.json: is not .*settings lack prompt"):
        (noted,) = runs(tmp_path)
    assert noted.settings == record["settings"] and gallery([noted]).shape[1] == 256 + 16
    (tmp_path / "noted/video.mp4").write_text("no film")
    with pytest.warns(UserWarning, match="noted: left out of the gallery"):
        assert gallery([noted, *runs(made, seed=7)]).shape[1] == 256 + 16
    with pytest.raises(UserError, match="video is damaged"):
        gallery([noted])


def test_look(made, tiny_folder):
    """Steps, seconds and memory as the log has them; frames from the file, as they were but for H.264's losses."""
    first, _, third, _ = runs(made)
    assert (first.steps, first.finished, third.steps, third.finished) == (3, True, 4, False)
    assert list(first.seconds) == list(first.memory) == ["load", "encode", "denoise", "decode"]
    assert all(0 < gib < 100 for gib in first.memory.values()) and first.seconds["denoise"] > 0
    assert {path.name for path in first.files} >= {"video.mp4", "log.jsonl"}
    video = generate(**{**first.settings, "progress": False}).video
    np.testing.assert_allclose(first.video().mean((1, 2, 3)), video.mean((1, 2, 3)), atol=3)


def test_compare(made):
    """Only what differs, a column a run; as a table it can be read, and as a dict it can be used."""
    first, second, third, _ = runs(made)
    told = compare(first, second, third)
    assert told == {
        "prompt": [PROMPT, CAR, CAR],
        "num_inference_steps": [3, 3, 9],
        "guidance_scale": [6.0, 3.0, 6.0],
        "seed": [1, 2, 0],
    }
    lines = repr(told).splitlines()
    assert lines[0].split() == ["first", "second", "third"] and lines[3].split() == ["guidance_scale", "6", "3", "6"]
    assert len({line.find("3  ") for line in lines[2:3]}) == 1
    assert repr(compare(first, first)) == "no setting differs"
    assert compare(made / "first", str(made / "second")).keys() == {"prompt", "guidance_scale", "seed"}
    with pytest.raises(UserError, match="two runs or more"):
        compare(first)
    with pytest.raises(UserError, match="is no run"):
        compare(first, made / "nowhere")


def test_compare_names_other_versions(made, tmp_path):
    """After the settings: weights, device, versions; and runs that were never written."""
    record = json.loads((made / "first/settings.json").read_text())
    record["made_with"] |= {"torch": "1.0", "date": "1999-12-31"}
    (tmp_path / "old").mkdir()
    (tmp_path / "old/settings.json").write_text(json.dumps(record))
    assert compare(made / "first", tmp_path / "old") == {"torch": [torch.__version__, "1.0"]}


def test_gallery_is_a_picture_of_all(made):
    """A card each, in rows: the middle frame, or how far an unfinished run is; and an error without runs."""
    picture = gallery(made, columns=3)
    assert picture.dtype == np.uint8 and picture.shape[1] == 3 * 256 + 16
    video = runs(made)[1].video()
    small = Image.fromarray(video[2]).resize((240, 160), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(picture[16:176, 272:512], np.asarray(small))
    grey = picture[16:176, 528:768].reshape(-1, 3)
    assert (grey == 232).all(axis=1).mean() > 0.9 and grey.min() < 150  # '4 of 9 steps'
    assert gallery(runs(made, seed=7)).shape[1] == 256 + 16
    with pytest.raises(UserError, match="holds no run"):
        gallery(made / "nowhere")
    for columns in (0, 2.5, True):
        with pytest.raises(UserError, match=f"columns={columns}: must be a whole number from 1; 4 would work"):
            gallery(made, columns)


def test_rerun(made, tiny32, tmp_path):
    """The same keywords, or some of them changed."""
    first = runs(made)[0]
    again = first.rerun(model=tiny32, progress=False)
    assert torch.equal(again.latents, generate(PROMPT, tiny32, seed=1, **SMALL).latents)
    other = first.rerun(tmp_path / "other", model=tiny32, seed=9, progress=False)
    assert compare(first, other) == {"seed": [1, 9]} and other.folder == tmp_path / "other"


AWKWARD = 'Say "hi", it\'s\n\\ <script>alert(1)</script> {x} 🏍️ A red car.'


@pytest.mark.parametrize("ending", [".py", ".ipynb"])
def test_export_makes_it_again(tiny_folder, tmp_path, monkeypatch, ending):
    """The script and the notebook's cells, run, give the same latents, whatever is in the prompt."""
    monkeypatch.chdir(tmp_path)
    run = generate(AWKWARD, str(tiny_folder), "run", seed=4, guidance_scale=2.5, **SMALL)
    path = RunRecord.read("run").export(f"recipes/again{ending}")
    text = path.read_text(encoding="utf-8")
    if ending == ".ipynb":
        notebook = nbformat.reads(text, as_version=4)
        nbformat.validate(notebook)
        assert run.record["made_with"]["weights_hash"] in notebook.cells[0].source
        shown = []
        monkeypatch.setattr(t2v_kit, "show_video", lambda video, fps: shown.append(video))
        again = {}
        exec("\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code"), again)
        np.testing.assert_array_equal(shown[0], run.video)
    else:
        again = runpy.run_path(str(path))
        assert run.record["made_with"]["weights_hash"] in text and Path("recipes/again/video.mp4").exists()
    assert torch.equal(again["run"].latents, run.latents) and again["run"].settings == run.settings


def test_export_to_something_else(made, tmp_path):
    with pytest.raises(UserError, match=r"must end in .py or .ipynb; .*x.py' would work"):
        runs(made)[0].export(tmp_path / "x.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        runs(made)[0].export(tmp_path / "file/x.py")
