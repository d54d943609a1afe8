"""The judge and the evaluation measure what they say they measure."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import t2v_kit
from benchmarks import frontier
from t2v_kit import toyland
from t2v_kit.toyland import FPS, Scene, random_scene
from t2v_kit.toyland.picture import draw
from training import batches, evaluate, judge, probe

SCENE = Scene("dog", "red", "beach", "sunset", "left", "high", ("ball", "blue"), seed=3)


def answer_for(scene: Scene, **other) -> list[torch.Tensor]:
    """Probabilities of a judge who sees exactly `scene`; `other`: classes of CHOICES said instead."""
    classes = probe.labels([scene])[0].tolist()
    for name, word in other.items():
        classes[len(toyland.SUBJECTS) + list(judge.CHOICES).index(name)] = judge.CHOICES[name].index(word)
    return [torch.eye(size)[max(c, 0)][None] for size, c in zip(judge.SIZES, classes)]


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    """Both architectures with random weights, saved and loaded as training does it."""
    folder = tmp_path_factory.mktemp("probes")
    torch.manual_seed(0)
    for name, kind in judge.KINDS.items():
        save_file(
            {k: v.half() if v.is_floating_point() else v for k, v in kind().state_dict().items()},
            folder / f"{name}.safetensors",
        )
    return judge.load_probes(folder), folder


# ---- the score sheet -------------------------------------------------------------------------------------


def test_a_perfect_answer_scores_one_everywhere():
    scores = judge.score(answer_for(SCENE), [judge.wish(SCENE)])
    assert {name: value.item() for name, value in scores.items()} == dict.fromkeys(scores, 1.0)


@pytest.mark.parametrize(
    "changed, name",
    [
        (dict(subject="cat"), "subject"),
        (dict(companion=None), "subject"),
        (dict(colour="white"), "colour"),
        (dict(companion=("ball", "green")), "colour"),
        (dict(place="street"), "place"),
        (dict(sky="snow"), "sky"),
        (dict(direction="right"), "direction"),
        (dict(speed="slow"), "speed"),
    ],
)
def test_each_mistake_costs_its_own_attribute_and_all(changed, name):
    scores = judge.score(answer_for(replace(SCENE, **changed)), [judge.wish(SCENE)])
    wrong = {k for k, v in scores.items() if v.item() == 0}
    assert {name, "all"} <= wrong <= {name, "all", "colour"}  # an absent subject has no colour to be right


def test_swapped_colours_are_wrong():
    """Binding: the right colours on the wrong subjects are no success."""
    swapped = replace(SCENE, colour="blue", companion=("ball", "red"))
    assert judge.score(answer_for(swapped), [judge.wish(SCENE)])["colour"].item() == 0


def test_what_was_not_asked_does_not_count():
    scores = judge.score(answer_for(SCENE), [{"subjects": {"dog": None, "ball": None}, "sky": "sunset"}])
    assert {k for k, v in scores.items() if v.isnan().item()} == {"colour", "place", "direction", "speed"}
    assert scores["all"].item() == 1
    assert "colour" not in judge.table(scores)


def test_moving_backwards_and_garbage_are_told_apart():
    scores = judge.score(answer_for(SCENE, facing="right", clean=False), [judge.wish(SCENE)])
    assert (scores["direction"].item(), scores["facing"].item(), scores["clean"].item()) == (1, 0, 0)


# ---- the probes' lessons ---------------------------------------------------------------------------------


def test_the_probes_lessons_are_labelled_right():
    """Backwards clips move the other way, spoilt ones have no attributes, the same seed gives the same lesson."""
    torch.manual_seed(0)
    clips, label = probe.fresh(random.Random(1), 20, "cpu")
    rng = random.Random(1)
    truth = probe.labels([random_scene(rng, pair=0.5) for _ in range(20)])
    assert clips.shape == (20, judge.FRAMES, 3, judge.HEIGHT, judge.WIDTH) and clips.dtype == torch.uint8
    assert (label[:4, -4] == 1 - truth[:4, -4]).all() and (label[:4, :-4] == truth[:4, :-4]).all()
    assert (label[4:8] == truth[4:8]).all()
    assert (label[8:, :-1] == probe.UNKNOWN).all() and (label[8:, -1] == 0).all()
    assert (clips[-1] == clips[-1, :1]).all() and not (clips[0] == clips[0, :1]).all()  # the last kind stands still
    torch.manual_seed(0)
    assert torch.equal(clips, probe.fresh(random.Random(1), 20, "cpu")[0])


def test_half_the_frames_are_the_frames_that_are_looked_at():
    """Drawing 17 frames at 8 a second gives every other one of 33 at 16."""
    half = draw([SCENE], 32, 48, 17, toyland.FPS / 2, "cpu").image
    assert torch.allclose(half, toyland.render_batch([SCENE], 32, 48, 33)[:, :, ::2], atol=1e-4)


def test_shrink_takes_any_size():
    for t, h, w in ((33, 112, 192), (9, 32, 48), (1, 64, 64)):
        assert judge.shrink(torch.rand(2, 3, t, h, w)).shape == (2, 17, 3, 56, 96)


def test_the_probes_are_small_and_answer_every_question(probes):
    said = judge.answers(probes[0], torch.rand(2, 3, 9, 32, 48))
    assert [p.shape[1] for p in said[0]] == judge.SIZES
    assert torch.allclose(said[0][0], (said[1][0] + said[2][0]) / 2)
    for model in probes[0]:
        assert sum(p.numel() for p in model.parameters()) < 1.5e6


# ---- the batches and the evaluation ----------------------------------------------------------------------


def test_batches_are_the_same_mathematics_as_the_stages(tiny32):
    """Two prompts of different length at once, against encode_prompt, denoise and decode one by one."""
    prompts = ["A red dog.", "Sunny day, a blue balloon over the mountains, slow motion, to the left."]
    videos = batches.make(tiny32, batches.encode(tiny32, prompts), [5, 6])
    for i, prompt in enumerate(prompts):
        settings = t2v_kit.Settings(prompt, seed=5 + i)
        latents = t2v_kit.initial_latents(tiny32, settings)
        for step in t2v_kit.denoise(tiny32, t2v_kit.encode_prompt(tiny32, prompt), latents, settings):
            latents = step.latents
        expected = torch.from_numpy(t2v_kit.decode(tiny32, latents)).permute(3, 0, 1, 2) / 255
        assert (videos[i] - expected).abs().max() < 2 / 255


def test_psnr_is_right():
    assert evaluate.psnr(torch.tensor(255.0**2)).item() == pytest.approx(0)
    assert evaluate.psnr(torch.tensor(255.0**2 / 1000)).item() == pytest.approx(30)


def test_spread_is_the_mean_distance_within_groups_of_four():
    square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    expected = (4 + 2 * 2**0.5) / 6
    assert evaluate.spread(torch.cat([square, square + 9])).item() == pytest.approx(expected)


def test_the_frechet_distance_is_that_of_two_normals():
    """Of means two apart and deviations 1 and 3 in each of two dimensions: 8 + 2 (3 - 1)^2; of a set and itself, 0."""
    torch.manual_seed(0)
    x, y = torch.randn(2, 40_000, 2, dtype=torch.float64)
    assert evaluate.frechet(x, 2 + 3 * y).item() == pytest.approx(16, rel=0.02)
    assert evaluate.frechet(x, x).item() == pytest.approx(0, abs=1e-9)


def test_edges_are_those_of_what_moves():
    """A blurred subject has less of them, a still background counts for nothing."""
    scenes = [replace(SCENE, companion=None, sky="sunny", place=place) for place in ("street", "meadow")]
    sharp = draw(scenes, 56, 96, 9, FPS, "cpu").image
    soft = torch.nn.functional.avg_pool3d(sharp, (1, 5, 5), 1, (0, 2, 2))
    assert (batches.edges(soft) < 0.7 * batches.edges(sharp)).all()
    assert batches.edges(sharp[:, :, :1].repeat(1, 1, 9, 1, 1)).isnan().all()


def test_every_measurement_runs_and_is_written(tiny_folder, probes, tmp_path, monkeypatch):
    """All of it on the tiny random model: numbers in range beside the weights, pictures in --out."""
    options = {
        "model": tiny_folder,
        "probes": probes[1],
        "count": 4,
        "batch": 2,
        "out": tmp_path,
        "teacher": tiny_folder / "transformer",
    }
    monkeypatch.setattr("sys.argv", ["evaluate", *(f"--{name}={value}" for name, value in options.items())])
    evaluate.main()
    file = tiny_folder / "evaluation.json"
    result = json.loads(file.read_text("utf-8"))
    file.unlink()
    assert set(result) == set(evaluate.MEASUREMENTS)
    assert len(result["vae"]["psnr_by_frame"]) == 9 and 0 < result["vae"]["psnr"] < 30
    assert set(judge.ATTRIBUTES) <= set(result["adherence"]["adherence"])
    assert result["guidance"]["1"]["velocity_error"] < 1e-3  # guidance 1 is the teacher's own, here the same weights
    assert result["guidance"]["6"]["diversity_pixels"] > 0
    assert result["text"]["tokens A, pooled A"]["change"] == 0 < result["text"]["tokens B, pooled A"]["change"]
    assert result["by_hand"]["all but the project's own"]["prompts"] >= 3
    assert {f.name for f in tmp_path.iterdir()} == {"vae.png", "adherence.png", "by_hand.png", "underspecified.png"}


def test_shortcuts_are_set_beside_the_plain_run(tiny_folder, probes, tmp_path, monkeypatch):
    """The plain way is its own measure, fewer steps are less work, and what cannot run here leaves its row out and
    stops no other."""
    file, ways = tmp_path / "frontier.json", ["2 steps", "SeaCache 0.3", "Heun + 2 steps", "nf4", "attention sage"]
    monkeypatch.setattr(frontier, "EXACT", "9 steps")
    options = {"model": tiny_folder, "probes": probes[1], "prompts": 3, "out": file}
    monkeypatch.setattr(
        "sys.argv", ["frontier", *(f"--{name}={value}" for name, value in options.items()), "--ways", *ways]
    )
    assert frontier.main() == 0
    report = json.loads(file.read_text("utf-8"))
    rows = report["rows"]
    assert report["prompts"] == 3 and list(rows) == ["plain", *ways[:-1]]
    assert (rows["plain"]["work"], rows["plain"]["psnr"], rows["plain"]["motion_error"]) == (1, 99, 0)
    assert rows["Heun + 2 steps"]["work"] == 1 and rows["2 steps"]["work"] == 0.667 and rows["nf4"]["work"] is None
    for row in rows.values():
        assert row["prompts"] == 3 and row["psnr_to_exact"] < 99
        assert row["psnr_interval"][0] <= row["psnr"] <= row["psnr_interval"][1]
        assert all(0 <= value <= 1 for value in row["adherence"].values())
    assert frontier.picture(report).axes
    assert [name for name, row in rows.items() if row.get("times_faster", 0) <= 0] == ["nf4"], "bits are for GPUs"
    monkeypatch.setattr("sys.argv", ["frontier", "--only-seconds", f"--model={tiny_folder}", f"--out={file}"])
    assert frontier.main() == 0
    timed = json.loads(file.read_text("utf-8"))
    assert timed["timed_on"].startswith("CPU") and timed["rows"].keys() == rows.keys()
    assert all(timed["rows"][name]["psnr"] == row["psnr"] for name, row in rows.items())


def test_the_interval_of_a_share_keeps_its_width_where_all_are_right():
    low, high = frontier.wilson(60, 60)
    assert 0.93 < low < 0.95 and high == 1
    assert frontier.wilson(30, 60) == pytest.approx([0.377, 0.623], abs=1e-3)


def test_no_row_beats_those_of_the_frontier():
    rows = {
        "plain": {"work": 1.0, "psnr": 99, "prompts": 60},
        "a": {"work": 0.5, "psnr": 30, "prompts": 60},
        "b": {"work": 0.6, "psnr": 29, "prompts": 60},
        "c": {"work": 0.7, "psnr": 40, "prompts": 60},
        "int8": {"work": None, "psnr": 50, "prompts": 60},
        "of one prompt": {"work": 0.4, "psnr": 80, "prompts": 1},
    }
    assert frontier.best(rows) == ["a", "c"]


def test_the_shipped_figures_are_of_the_shipped_weights():
    """evaluation.json was written for them; that the card says the same, `test_documents_have_todays_figures` knows."""
    pocket = t2v_kit.load("pocket", device="cpu")
    figures = json.loads((pocket.folder / "evaluation.json").read_text("utf-8"))
    assert {"vae", "adherence"} <= set(figures) <= set(evaluate.MEASUREMENTS)
    for name, figure in figures.items():
        assert figure["made_with"]["weights"] == {p: evaluate.digest(pocket.folder / p) for p in evaluate.PARTS[name]}
        if name != "vae":
            assert figure["made_with"]["judge"] == evaluate.digest(Path(judge.__file__).with_name("weights"))


def test_the_bundle_is_small():
    """What is shipped of pocket stays under 40 MiB, its LoRAs apart, and no picture is part of it."""
    files = [path for path in (Path(t2v_kit.__file__).parent / "pocket").rglob("*") if path.is_file()]
    loras = [path for path in files if path.parent.name == "lora"]
    assert sum(path.stat().st_size for path in files if path not in loras) < 40 * 2**20
    assert all(path.stat().st_size < 3_000_000 for path in loras)
    assert {path.suffix for path in files} == {".safetensors", ".json", ".md"}


def test_a_quick_evaluation_measures_the_same(tiny_folder, probes, tmp_path, monkeypatch):
    """--fast keeps the VAE's own figures in float32, and says what it rounds elsewhere."""
    options = {
        "model": tiny_folder,
        "probes": probes[1],
        "count": 2,
        "batch": 2,
        "out": tmp_path,
        "what": "vae,underspecified",
    }
    results = []
    for fast in ("--no-fast", "--fast"):
        monkeypatch.setattr("sys.argv", ["evaluate", fast, *(f"--{name}={value}" for name, value in options.items())])
        evaluate.main()
        file = tiny_folder / "evaluation.json"
        results.append(json.loads(file.read_text("utf-8")))
        file.unlink()
    exact, quick = results
    assert quick["vae"] == exact["vae"] and quick["vae"]["made_with"]["dtype"] == "float32"
    assert (
        quick["underspecified"]["made_with"]["dtype"] == evaluate.FAST != exact["underspecified"]["made_with"]["dtype"]
    )
