"""Does the prediction of a training's memory agree with what was measured, and does the command choose by it?"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import training
from benchmarks.common import GIB
from t2v_kit import UserError, read_clips, write_toyland
from t2v_kit.cli import learning, main
from t2v_kit.memory.estimate import estimate
from t2v_kit.memory.machine import Machine
from t2v_kit.memory.plan import Part, Size
from t2v_kit.memory.rules import check
from t2v_kit.training.choosing import choose_levers, fastest_levers, training_plan
from t2v_kit.training.footprint import estimate_training
from t2v_kit.training.options import TrainSettings

ROWS = json.loads((Path(__file__).parents[1] / "benchmarks/results/lora_training.json").read_text("utf-8"))
MEASURED = [name for name, row in ROWS.items() if isinstance(row, dict) and "gpu_gib" in row.get("levers_run", {})]
SMALL = TrainSettings(rank=2, optimizer="adamw8bit")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_toyland(tmp_path_factory.mktemp("data") / "clips", 1, 32, 48, 9)


@pytest.mark.parametrize("name", MEASURED)
def test_the_prediction_is_within_ten_per_cent(name):
    """Nothing in it is fitted to these rows: it counts what the code makes."""
    row = ROWS[name]
    frames, height, width = row["size"]
    settings = TrainSettings(optimizer="adamw8bit", **row["levers"])
    predicted = estimate_training(settings, Size(height, width, frames)).vram_gb
    assert predicted == pytest.approx(row["levers_run"]["gpu_gib"], rel=0.1)


@pytest.mark.parametrize(
    "name", [name for name in MEASURED if ROWS[name]["levers"]["activations"] == "offload" and "naive" in ROWS[name]]
)
def test_what_waits_in_ram_is_counted(name):
    """Against what a process had in RAM beside what the plain training before it had left there."""
    row = ROWS[name]
    frames, height, width = row["size"]
    settings = TrainSettings(optimizer="adamw8bit", **row["levers"])
    plain = replace(settings, activations="recompute", offloaded_blocks=None, streamed_blocks=0)
    needs = [estimate_training(each, Size(height, width, frames)).ram_gb for each in (settings, plain)]
    measured = row["levers_run"]["ram_gib_with_files"] - row["naive"]["ram_gib_with_files"]
    assert 0.6 * measured < needs[0] - needs[1] < 1.05 * measured


def test_streamed_weights_wait_in_ram():
    """In 4 bits 60 blocks are 6.1 GiB, the scales apart."""
    none, half, every = (estimate_training(replace(SMALL, streamed_blocks=n)).ram_gb for n in (0, 30, 60))
    assert 5 < every - none < 7 and none < half < every


def test_each_lever_takes_less_than_the_one_before():
    """Of what a block leaves: everything, its input, half of it, nothing; then smaller pieces, and fewer weights."""
    rungs = [{"activations": how} for how in ("keep", "recompute", "fp8", "offload")]
    rungs[3:3] = [{"activations": "offload", "offloaded_blocks": count} for count in (40, 50)]
    rungs += [{"activations": "offload", "chunk": 2048}]
    rungs += [{"activations": "offload", "chunk": 2048, "streamed_blocks": count} for count in (20, 40)]
    needs = [estimate_training(replace(SMALL, **levers)).vram_gb for levers in rungs]
    assert needs == sorted(needs, reverse=True) and len(set(needs)) == len(needs)
    loading = [estimate_training(replace(SMALL, **levers)).loading_gb for levers in rungs]
    assert len(set(loading[:-2])) == 1 and loading[-3] > loading[-2] > loading[-1]  # what is streamed never lies there


@pytest.mark.parametrize("name", [row.name for row in training.ROWS])
def test_the_planner_moves_no_more_than_needed(name):
    """At each size of the benchmark: it fits, one thing less in RAM would not, and nothing is chunked for nothing."""
    row = next(row for row in training.ROWS if row.name == name)
    frames, height, width = row.size
    size, card = Size(height, width, frames), row.cap * 1e9 / GIB
    chosen, needed = fastest_levers(SMALL, size, card)
    assert needed.fits(card) and chosen.activations == "offload" and chosen.chunk == 0
    if chosen.streamed_blocks:
        assert chosen.offloaded_blocks == 60
        less = replace(chosen, streamed_blocks=chosen.streamed_blocks - 1)
    else:
        less = replace(chosen, offloaded_blocks=chosen.offloaded_blocks - 1)
    assert not estimate_training(less, size).fits(card)


def test_chunks_are_the_last_resort():
    """Where everything in RAM does not do, the largest chunk that fits is chosen."""
    chosen, needed = fastest_levers(SMALL, Size(720, 1280, 129), 20)
    assert chosen.chunk == 8192 and needed.fits(20)
    in_ram = {"activations": "offload", "offloaded_blocks": 60, "streamed_blocks": 60}
    assert not estimate_training(replace(SMALL, **in_ram), Size(720, 1280, 129)).fits(20)


def test_a_larger_lora_batch_or_optimiser_takes_more():
    """Each alone."""
    plain = estimate_training(SMALL)
    assert estimate_training(replace(SMALL, rank=64)).lora_gb > 10 * plain.lora_gb
    assert estimate_training(replace(SMALL, optimizer="adamw")).lora_gb > plain.lora_gb
    assert estimate_training(replace(SMALL, batch_size=2)).work_gb == pytest.approx(2 * plain.work_gb)


def test_levers_are_chosen_for_the_card(clips, tiny_folder):
    """A large card keeps everything; a small one pulls levers; none is enough for the 13B's weights."""
    data = read_clips(clips)
    settings, needed = choose_levers(SMALL, 80, data)
    assert settings.activations == "keep" and needed.fits(80)
    large = replace(SMALL, height=544, width=960, num_frames=9)
    tight, needed = choose_levers(large, 9, data)
    assert tight.activations == "offload" and needed.fits(9) and not estimate_training(large).fits(9)
    with pytest.raises(UserError, match=r"memory=1: is not enough: .* memory=3 would work"):
        choose_levers(SMALL, 1, data)
    assert choose_levers(SMALL, 1, data, tiny_folder)[1].vram_gb < 0.1
    with pytest.raises(UserError, match=r"memory=9: .* would wait in RAM, of which there are 4; memory=\d+, where"):
        choose_levers(large, 9, data, ram_gb=4)


def test_the_plan_to_load_with_fits_the_card():
    """8 GB: streamed blocks wait in RAM, and the text encoder, twice as large as the card, comes from disk."""
    card = 8e9 / GIB
    size = Size(320, 512, 33)
    settings, needed = fastest_levers(SMALL, size, card)
    plan = training_plan(settings, size, card)
    assert plan.waiting_blocks == settings.streamed_blocks > 0
    assert plan.text_encoder.offload == "disk" and training_plan(settings, size, 24).text_encoder.offload == "none"
    assert estimate(plan, size, stages=("encode", "decode")).fits(Machine(card, 32))
    everything = replace(plan, waiting_blocks=0)
    assert needed.loading_gb < 6 < estimate(everything, size, stages=("denoise",)).vram_gb
    assert estimate(plan, size, stages=("denoise",)).ram_gb > estimate(everything, size, stages=("denoise",)).ram_gb
    with pytest.raises(UserError, match="waiting_blocks for a transformer that is not in 4 bits"):
        check(replace(plan, transformer=Part()), Machine(card, 32))


def test_what_cannot_be_predicted_is_refused():
    """In one line that says what would work."""
    with pytest.raises(UserError, match="rank=0: only a LoRA's"):
        estimate_training(TrainSettings(rank=0))
    with pytest.raises(UserError, match="quantisation='int3': must be one of"):
        estimate_training(SMALL, quantisation="int3")


def test_the_command_says_what_it_chose(clips, tiny_folder, tmp_path, monkeypatch, capsys):
    """`--memory 12` loads in 4 bits and trains with what fits; a lever beside it is refused."""
    seen = {}

    def loaded(arguments, memory, device):
        seen["memory"] = memory
        raise KeyboardInterrupt

    monkeypatch.setattr(learning, "_loaded", loaded)
    monkeypatch.setattr(learning, "surely_no_gpu", lambda: False)
    words = ["train", str(clips), "--model", str(tiny_folder), "--out", str(tmp_path / "out"), "--memory", "12"]
    main([*words, "--rank", "2"])
    said, complaint = capsys.readouterr()
    assert "training at 32x48x9" in said, complaint
    assert "--activations keep --chunk 0 --streamed-blocks 0" in said
    assert seen["memory"].transformer.quantisation == "nf4" and seen["memory"].waiting_blocks == 0
    assert main([*words, "--chunk", "64"]) == 2
    assert "--chunk 64: --memory 12 chooses it" in capsys.readouterr().err
    assert main([*words[:-1], "much"]) == 2
    assert "--memory much: must be nf4, none or GB" in capsys.readouterr().err
