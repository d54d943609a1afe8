"""The panel without a browser: its widgets are turned and pressed from Python."""

import html
import math
import re
import shutil
import threading
import time
import weakref
from types import SimpleNamespace

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from conftest import PROMPT
from safetensors.torch import save_file

import t2v_kit as t2v
from t2v_kit.errors import UserError
from t2v_kit.hunyuan.files import HUNYUAN_DEFAULTS
from t2v_kit.memory.machine import Machine
from t2v_kit.memory.plan import Size
from t2v_kit.playground import Playground, Preview, difference, differing, engine, together
from t2v_kit.playground.bars import STAGES, StageBars, duration
from t2v_kit.playground.compare import wiped
from t2v_kit.playground.controls import Controls, Number
from t2v_kit.playground.engine import _plans, verdict
from t2v_kit.playground.look import failure, note, table
from t2v_kit.playground.presets import presets
from t2v_kit.playground.rules import Rules
from t2v_kit.run.folder import read_latents
from t2v_kit.run.target import CHECKPOINT
from t2v_kit.settings import KNOBS

NASTY = '<img src=x onerror="alert(1)"><script>alert(2)</script> & "it\'s"'
FULL = Size(720, 1280, 129, 50)


@pytest.fixture
def panel(tiny32, tmp_path):
    """A panel with the tiny model, its seed locked, a prompt typed, and nothing enlarged."""
    panel = Playground(tiny32, out=tmp_path / "runs")
    panel.controls.lock.value = True
    panel.engine.upscaler.value = "none"
    panel.controls.set(prompt=PROMPT, seed=3)
    return panel


def run(panel, **settings):
    """One finished run, as the history has it."""
    panel.controls.set(**settings)
    panel.generate()
    panel.wait(120)
    assert "Done" in panel.status.value, panel.status.value
    return panel.history.entries[-1]


def every(widget) -> list:
    """The widget and all widgets in it."""
    return [widget, *(inner for child in getattr(widget, "children", ()) for inner in every(child))]


def said(field) -> str:
    """The line under a control, as a reader sees it."""
    return html.unescape(re.sub("<[^>]+>", "", field.words.value))


def is_shown(widget) -> bool:
    return widget.layout.display != "none"


class TestControls:
    def test_every_setting_has_a_control_with_its_help(self, panel):
        assert list(panel.controls.fields) == list(KNOBS)
        for name, field in panel.controls.fields.items():
            widget = field.widget.slider if isinstance(field.widget, Number) else field.widget
            tips = [getattr(widget, tip) for tip in ("tooltip", "description_tooltip") if widget.has_trait(tip)]
            assert KNOBS[name].help in tips and len(KNOBS[name].help) > 30
            assert widget.description == KNOBS[name].label
            assert f"t2v-{name.replace('_', '-')}" in field.widget._dom_classes

    @pytest.mark.parametrize("name", ["num_frames", "height", "width", "num_inference_steps", "guidance_scale", "fps"])
    @pytest.mark.parametrize("defaults", [HUNYUAN_DEFAULTS, {**HUNYUAN_DEFAULTS, "height": 112, "num_frames": 33}])
    def test_every_stop_of_a_slider_is_allowed(self, defaults, name):
        knob, default = KNOBS[name], defaults[name]
        low, high = knob.slider_range(default)
        assert knob.lowest <= low <= default <= high <= knob.highest and high >= 2 * default - 1
        if knob.kind == "whole":
            assert all(knob.nearest(stop) == stop for stop in (low, high)) and (high - low) % knob.step == 0

    @pytest.mark.parametrize(("name", "value"), [("num_frames", 1000), ("height", 20), ("fps", 200.0)])
    def test_a_typed_number_is_never_cut_off(self, panel, name, value):
        """A slider's own box would turn 1000 frames into 65 without a word."""
        number = panel.controls.fields[name].widget
        number.box.value = value
        assert panel.controls.values()[name] == value == number.value and number.slider.max < 1000
        assert panel.generate_button.disabled == (name != "fps")
        stop = number.slider.max if name == "height" else number.slider.min
        number.slider.value = stop
        assert number.box.value == panel.controls.values()[name] == stop

    def test_it_opens_ready_to_generate(self, tiny32, pocket, tmp_path):
        for models in (tiny32, pocket):
            fresh = Playground(models, out=tmp_path)
            assert not fresh.generate_button.disabled
            assert "t2v-error" not in "".join(field.words.value for field in fresh.controls.fields.values())

    def test_presets_are_allowed_and_named(self, panel, tiny32):
        for name, values in presets(tiny32).items():
            t2v.Settings(PROMPT, **values).check(tiny32)
            panel.controls.preset.value = name
            assert {key: panel.controls.values()[key] for key in values} == values
        panel.controls.set(num_inference_steps=7)
        assert panel.controls.preset.value not in presets(tiny32)

    @pytest.mark.parametrize(
        ("name", "value", "works"),
        [
            ("num_frames", 32, "29 or 33"),
            ("width", 50, "48 or 64"),
            ("height", 30, "16 or 32"),
            ("seed", -1, "0 would work"),
            ("guidance_scale", -2.0, "0 would work"),
            ("prompt", "  ", "A red car"),
            ("prompt", "a cat " * 300, "shorter by about"),
            ("negative_prompt", "a cat " * 300, "shorter by about"),
        ],
    )
    def test_a_wrong_value_is_explained_under_its_control(self, panel, name, value, works):
        """In one line, before anything runs; a value that works removes it."""
        panel.controls.set(negative_prompt="fog", true_cfg_scale=2.0)
        before = panel.controls.values()[name]
        assert not panel.generate_button.disabled
        panel.controls.set(**{name: value})
        line = said(panel.controls.fields[name])
        assert line.startswith(f"{name}=") and works in line and "\n" not in line
        assert panel.generate_button.disabled and is_shown(panel.controls.fields[name].words)
        panel.generate()
        assert not panel.running and "needs another value" in panel.status.value
        panel.controls.set(**{name: before})
        assert not panel.generate_button.disabled and not is_shown(panel.controls.fields[name].words)

    def test_several_wrong_values_are_explained_at_once(self, panel):
        panel.controls.set(num_frames=6, width=50, prompt="")
        assert all("would work" in said(panel.controls.fields[name]) for name in ("num_frames", "width", "prompt"))

    def test_what_is_allowed_but_unwise_is_said(self, panel):
        panel.controls.set(num_frames=13, negative_prompt="fog")
        assert "trained on" in said(panel.controls.fields["num_frames"])
        assert "no effect" in said(panel.controls.fields["negative_prompt"])
        assert not panel.generate_button.disabled

    def test_the_notebook_is_told_what_the_panel_has_shown(self, panel, tiny32):
        """A line under a control is no warning: who checks the same size by code still hears of it."""
        panel.controls.set(num_frames=13)
        with pytest.warns(UserWarning, match="13x32x48"):
            t2v.Settings(PROMPT, num_frames=13).check(tiny32)

    def test_unknown_words_are_named(self, pocket):
        controls = Controls(Rules.of(pocket), lambda: controls.check())
        controls.set(prompt="A red zeppelin.")
        assert "zeppelin" in said(controls.fields["prompt"])
        controls.surprise.click()
        assert controls.values()["prompt"] != "A red zeppelin."
        assert "does not know" not in said(controls.fields["prompt"])  # a long one may still get a note on its length

    def test_another_model_brings_its_defaults(self, panel):
        """Before the 13B model is loaded, its defaults and the rules it shares with the others hold."""
        panel.engine.model.value = "hunyuan"
        values = panel.controls.values()
        assert {name: values[name] for name in HUNYUAN_DEFAULTS} == HUNYUAN_DEFAULTS
        panel.controls.set(num_frames=128)
        assert "125 or 129" in said(panel.controls.fields["num_frames"])

    def test_seed_is_drawn_unless_locked(self, panel):
        panel.controls.roll()
        assert panel.controls.values()["seed"] == 3
        panel.controls.lock.value = False
        panel.controls.roll()
        assert panel.controls.values()["seed"] != 3 and not panel.controls.lock.value

    @pytest.mark.parametrize("how", ["typed", "dice", "code"])
    def test_a_seed_that_was_chosen_is_kept(self, panel, how):
        panel.controls.lock.value = False
        if how == "typed":
            panel.controls.fields["seed"].widget.value = 77
        elif how == "code":
            panel.controls.set(seed=77)
        else:
            (dice,) = [widget for widget in every(panel.controls.knobs) if "t2v-dice" in widget._dom_classes]
            dice.click()
        seed = panel.controls.values()["seed"]
        panel.controls.roll()
        assert panel.controls.lock.value and panel.controls.values()["seed"] == seed != 3
        panel.controls.preset.value = "Fine"
        assert panel.controls.values()["seed"] == seed

    def test_the_size_note_is_under_the_knob_that_is_off(self, panel):
        for name, value in (("num_frames", 13), ("height", 48), ("width", 64)):
            before = panel.controls.values()[name]
            panel.controls.set(**{name: value})
            hints = [each for each, field in panel.controls.fields.items() if "trained on" in said(field)]
            assert hints == [name]
            panel.controls.set(**{name: before})


class TestEngine:
    @pytest.mark.parametrize(
        ("memory", "machine", "kind", "words"),
        [
            (None, Machine(0, 16), "hint", "No GPU here"),
            (None, Machine(141, 128, (9, 0)), "good", "fits"),
            (None, Machine(24, 32, (8, 9)), "hint", "does not fit at once"),
            ("auto", Machine(24, 32, (8, 9)), "good", "of 24 GB"),
            ("12", Machine(0, 16), "error", "no GPU"),
        ],
    )
    def test_the_planner_says_what_fits(self, memory, machine, kind, words):
        plan, line, judged = verdict(memory, machine, FULL, "hunyuan")
        assert (judged, words in line, "\n" in line) == (kind, True, False)
        assert (plan is not None) == (kind == "good" and memory is not None)

    def test_the_planner_computes_in_the_background(self, panel, monkeypatch):
        """It takes seconds on a machine with a GPU: the panel does not wait, and shows the result when it is there."""
        monkeypatch.setattr(panel.engine, "_machine", Machine(24, 32, (8, 9)))
        panel.engine.model.value = "hunyuan"
        panel.engine.memory.value = "auto"
        for _ in range(1000):
            if "GB on the GPU" in said(panel.engine.fields["memory"]):
                break
            time.sleep(0.1)
        assert "of 24 GB" in said(panel.engine.fields["memory"]) and panel.engine.plan(panel.engine.choice) is not None

    def test_the_memory_menu_offers_what_the_machine_has(self):
        words = lambda machine: [label for label, _ in _plans(None, machine)]  # noqa: E731
        assert words(Machine(0, 16)) == ["everything on the CPU", "auto: chosen for this machine"]
        assert words(Machine(13, 16, (8, 0)))[2:] == [f"as for a card of {gb} GB" for gb in (6, 8, 12)]

    def test_a_path_that_leads_nowhere_is_said(self, panel):
        panel.engine.upscaler.value = "another file …"
        panel.engine.file.value = "no/such.pth"
        assert "no/such.pth" in said(panel.engine.fields["file"]) and panel.generate_button.disabled
        panel.engine.upscaler.value = "none"
        assert not panel.generate_button.disabled and not is_shown(panel.engine.fields["file"].box)
        panel.engine.model.value = "another folder …"
        panel.engine.folder.value = "nowhere"
        assert "nowhere" in said(panel.engine.fields["folder"]) and panel.generate_button.disabled


class TestLoras:
    """A field for files, a slider for each strength."""

    @pytest.fixture
    def file(self, tiny32, tmp_path):
        at = "transformer.transformer_blocks.0.attn.to_q"
        tensors = {f"{at}.lora_A.weight": torch.ones(2, 32), f"{at}.lora_B.weight": torch.randn(32, 2)}
        save_file(tensors, tmp_path / "style.safetensors")
        return tmp_path / "style.safetensors"

    def test_a_run_is_made_with_it_at_its_strength(self, panel, tiny_folder, file):
        rows = panel.engine.loras
        rows.file.value = str(file)
        rows.add_button.click()
        assert rows.value == [[str(file), 1.0]] and "Loaded when" in said(panel.engine.fields["model"])
        (row,) = rows.rows.children
        rows._rows[0].widget.box.value = 0.4
        entry = run(panel)
        assert entry.settings["loras"] == [[str(file), 0.4]]
        alone = t2v.generate(PROMPT, t2v.load(tiny_folder, loras=[(file, 0.4)]), upscale="none", seed=3)
        assert np.array_equal(entry.video, alone.video)
        kept = panel.engine.models
        rows._rows[0].widget.slider.value = 2.0
        stronger = run(panel)
        assert panel.engine.models is kept and stronger.settings["loras"] == [[str(file), 2.0]]  # not loaded anew
        assert "loras=" in panel.code() and "'loras'" not in said(rows.field)
        (out,) = [widget for widget in every(row) if "t2v-lora-remove" in widget._dom_classes]
        out.click()
        assert "loras" not in run(panel).settings and panel.engine.models is not kept

    def test_what_is_wrong_is_said_under_it(self, panel, file):
        rows = panel.engine.loras
        rows.add("no/such.safetensors")
        assert "there is no such file" in said(rows.field) and not rows.value and not panel.generate_button.disabled
        rows.add(str(file))
        rows.add(str(file))
        assert "is there already" in said(rows.field) and len(rows.value) == 1
        rows._rows[0].widget.box.value = 11.0
        assert "-10 to 10" in said(rows._rows[0].field) and panel.generate_button.disabled
        rows._rows[0].widget.box.value = -10.0
        assert not panel.generate_button.disabled

    def test_a_model_brings_its_own(self, tiny_folder, tmp_path, file):
        models = t2v.load(tiny_folder, device="cpu", loras=[(file, 0.5), (file, [1, 0, 0])])
        panel = Playground(models, out=tmp_path / "runs")
        assert panel.engine.loras.value == [[str(file), 0.5], [str(file), [1.0, 0.0, 0.0]]]
        assert "Loaded when" not in said(panel.engine.fields["model"])
        panel.controls.set(num_inference_steps=2)
        assert "3 strengths for 2 steps" in said(panel.engine.loras._rows[1].field) and panel.generate_button.disabled

    def test_the_queue_keeps_them(self, panel, tiny32, file):
        panel.controls.set(num_frames=5, num_inference_steps=1)
        panel.engine.loras.add(str(file), 0.7)
        panel.enqueue(["with"])
        panel.engine.loras.put([])
        panel.enqueue(["without"])
        later = Playground(tiny32, out=panel.out)  # another kernel
        later.run_queue()
        later.wait(120)
        made = [entry.settings.get("loras") for entry in later.history.entries]
        assert made == [[[str(file), 0.7]], None]


class TestRuns:
    def test_makes_what_generate_makes(self, panel, tiny32):
        entry = run(panel, num_inference_steps=4, guidance_scale=5.0)
        alone = t2v.generate(PROMPT, tiny32, upscale="none", seed=3, num_inference_steps=4, guidance_scale=5.0)
        assert np.array_equal(entry.video, alone.video)
        assert panel.screen.video.value == (entry.folder / "video.mp4").read_bytes()
        assert is_shown(panel.screen.video) and panel.screen.choice.value == "Video"
        assert all(bar.bar_style == "success" for name, bar in panel.bars.bars.items() if name != "upscale")

    def test_shows_preview_then_video_then_enlarged(self, panel):
        panel.engine.upscaler.value = "pocket"
        seen = []
        panel.screen.video.observe(lambda change: seen.append(change["new"]), "value")
        entry = run(panel)
        assert panel.screen.image.value[8:12] == b"WEBP"
        assert seen == [(entry.folder / name).read_bytes() for name in ("video.mp4", "upscaled.mp4")]
        assert panel.screen.choice.options == ("Preview", "Video", "Enlarged")
        panel.screen.choice.value = "Video"
        assert panel.screen.video.value == (entry.folder / "video.mp4").read_bytes()

    def test_the_notebook_stays_alive(self, panel):
        """While it runs, controls answer and a second run is refused."""
        panel.controls.set(num_inference_steps=300)
        panel.generate()
        panel.controls.set(num_frames=6)
        assert panel.running and "would work" in said(panel.controls.fields["num_frames"])
        thread = panel._thread
        panel.generate()
        assert panel._thread is thread and panel.generate_button.disabled and not panel.stop_button.disabled
        panel.stop()
        panel.wait(60)
        assert not panel.running

    def test_stops_within_a_step_and_goes_on_with_the_same_bits(self, panel, tiny32):
        panel.controls.set(num_inference_steps=120)
        panel.generate()
        while not panel.bars.bars["denoise"].value:
            time.sleep(0.001)
        panel.stop()
        done = round(panel.bars.bars["denoise"].value * 120)
        panel.wait(60)
        _, kept = read_latents(panel.unfinished / CHECKPOINT)
        assert done <= kept <= done + 1 and f"after {kept} of 120" in panel.status.value
        assert is_shown(panel.resume_button) and not panel.history.entries
        assert (
            not re.search(r"left|\d+/\d+", panel.bars.words["denoise"].value)
            and "step" not in panel.screen.caption.value
        )
        again = Playground(tiny32, out=panel.out)  # another kernel, the next morning
        assert again.unfinished == panel.unfinished and is_shown(again.resume_button)
        again.resume_button.click()
        again.wait(60)
        (entry,) = again.history.entries
        latents, _ = read_latents(entry.folder / "latents.safetensors")
        alone = t2v.generate(**(entry.settings | {"model": tiny32}), progress=False)
        assert torch.equal(latents, alone.latents) and again.unfinished is None
        assert "Resumed from its own latents" in again.status.value and "reused from" not in again.status.value

    def test_reused_latents_are_told(self, panel):
        first = run(panel)
        assert np.array_equal(run(panel, fps=4).video, first.video)
        assert "reused from" in panel.status.value and "nothing to do" in panel.bars.words["denoise"].value

    def test_a_users_mistake_is_one_line(self, panel, monkeypatch):
        monkeypatch.setattr(
            panel.engine, "load", lambda *_: (_ for _ in ()).throw(t2v.UserError(f"model={NASTY}: no."))
        )
        panel.generate()
        panel.wait(60)
        assert html.escape(NASTY) in panel.status.value and "<details>" not in panel.status.value
        assert not panel.generate_button.disabled and panel.stop_button.disabled

    def test_any_other_error_is_one_line_and_a_folded_traceback(self, panel, monkeypatch):
        monkeypatch.setattr(panel.engine, "load", lambda *_: [][1 : NASTY.index("<")] or {}[NASTY])
        panel.generate()
        panel.wait(60)
        line, folded = panel.status.value.split("<details>")
        assert "KeyError" in line and "Traceback" not in line and "Traceback" in folded
        assert "<script>" not in panel.status.value and not panel.generate_button.disabled

    def test_a_failure_in_the_middle_can_be_resumed(self, tiny32, panel, tmp_path, monkeypatch):
        """In a folder of the home directory, too."""
        monkeypatch.setenv("HOME", str(tmp_path))
        panel.out = Playground(tiny32, out="~/home").out
        assert panel.out == tmp_path / "home"
        out_of_memory = (MemoryError("too little") for _ in range(1))
        monkeypatch.setattr("t2v_kit.run.generating.decode", lambda *_: (_ for _ in ()).throw(next(out_of_memory)))
        panel.generate()
        panel.wait(60)
        assert "MemoryError: too little" in panel.status.value and is_shown(panel.resume_button)
        monkeypatch.undo()
        panel.resume()
        panel.wait(60)
        assert len(panel.history.entries) == 1

    def test_nothing_typed_becomes_markup(self, panel):
        """A prompt with markup and script is text wherever it is shown."""
        for number in (1, 2):
            run(panel, prompt=f"{NASTY} {number}")
            panel.history.toggles[-1].value = True
        shown = [widget.value for widget in every(panel) if isinstance(widget, widgets.HTML)]
        assert sum(html.escape(NASTY) in value for value in shown) >= 3  # two cards, the table, the caption
        assert not [value for value in shown if "<script" in value or "<img" in value]

    def test_the_shown_code_makes_the_same_video(self, panel, tiny_folder):
        # Loaded anew, as the code does: weights that another test has moved in memory round sums differently.
        panel.engine.models = t2v.load(tiny_folder, device="cpu")
        entry = run(panel, prompt="A \"cat\"\nwith \\ and 'quotes'.", num_inference_steps=2)
        panel.code_button.value = True
        made = {}
        exec(panel.code_text.value, made)
        assert np.array_equal(made["run"].video, entry.video)


class TestQueue:
    """Runs that wait: their order, a failure among them, Stop, and a new panel on the same folder."""

    def rows(self, panel) -> list[str]:
        return [html.unescape(re.sub("<[^>]+>", "", row.children[0].value)) for row in panel.queue.rows.children]

    def press(self, panel, row: int, css: str) -> None:
        (pressed,) = [each for each in panel.queue.rows.children[row].children if css in each._dom_classes]
        pressed.click()

    def test_prompts_and_seeds_run_in_their_order(self, panel):
        panel.controls.set(num_frames=5, num_inference_steps=1)
        panel.queue.prompts.value = "A red car.\n\n  A blue cat. \n"
        panel.queue.seeds.value = 2
        panel.queue.add_button.click()
        assert [row.split(" · ")[0] for row in self.rows(panel)] == ["A red car."] * 2 + ["A blue cat."] * 2
        assert not panel.running and panel.queue.prompts.value == "" and is_shown(panel.queue.run_button)
        self.press(panel, 3, "t2v-queue-up")
        self.press(panel, 0, "t2v-queue-remove")
        self.press(panel, 0, "t2v-queue-up")
        panel.queue.run_button.click()
        panel.wait(120)
        made = [(entry.settings["prompt"], entry.settings["seed"]) for entry in panel.history.entries]
        assert made == [("A red car.", 4), ("A blue cat.", 4), ("A blue cat.", 3)]
        assert not panel.queue.waiting and not list(panel.out.glob("*/queued.json"))
        assert len(list(panel.out.iterdir())) == 3 and panel.queue.run_button.disabled

    def test_a_new_panel_takes_over_what_waits(self, panel, tiny32):
        panel.controls.set(num_frames=5, num_inference_steps=1)
        panel.enqueue(["first", "second", "third"])
        panel.queue.move(panel.queue.waiting[2], -2)
        later = Playground(tiny32, out=panel.out)
        assert [row.split(" · ")[0] for row in self.rows(later)] == ["third", "second", "first"]
        later.engine.upscaler.value = "pocket"  # what waits keeps what it was queued with
        later.run_queue()
        later.wait(120)
        assert [entry.settings["prompt"] for entry in later.history.entries] == ["third", "second", "first"]
        assert all(entry.settings["upscale"] == "none" for entry in later.history.entries)

    def test_after_stop_the_queue_waits(self, panel, monkeypatch):
        panel.controls.set(num_frames=5, num_inference_steps=6)
        panel.enqueue(["first", "second"])
        monkeypatch.setattr(panel, "_on_step", lambda step: panel.stop())
        panel.run_queue()
        panel.wait(120)
        assert [item.settings["prompt"] for item in panel.queue.waiting] == ["second"] and not panel.running
        assert panel.unfinished is not None and "Stopped in denoise" in panel.status.value
        monkeypatch.undo()
        panel.resume()
        panel.wait(120)
        assert [entry.settings["prompt"] for entry in panel.history.entries] == ["first", "second"]

    def test_a_failure_does_not_hold_up_the_others(self, panel, monkeypatch):
        panel.controls.set(num_frames=5, num_inference_steps=1)
        panel.enqueue(["first", NASTY, "third"])
        monkeypatch.setattr(panel.engine, "load", self.failing_at(2, panel.engine.load))
        panel.run_queue()
        panel.wait(120)
        assert [entry.settings["prompt"] for entry in panel.history.entries] == ["first", "third"]
        assert "the disk is gone" in panel.queue.words.value and "<script" not in panel.queue.words.value
        assert len(list(panel.out.iterdir())) == 2

    @staticmethod
    def failing_at(number: int, real):
        calls: list = []

        def load(*how):
            calls.append(how)
            if len(calls) == number:
                raise OSError("the disk is gone")
            return real(*how)

        return load

    def test_what_cannot_run_is_not_queued(self, panel):
        panel.controls.set(num_frames=6)
        assert panel.queue.add_button.disabled
        with pytest.raises(UserError, match="the line under it says which would work"):
            panel.enqueue()
        panel.controls.set(num_frames=5, num_inference_steps=1)
        panel.queue.prompts.value = "A red car.\n" + "a red car " * 200
        panel.queue.add_button.click()
        assert "over the limit of 256" in panel.queue.words.value and not panel.queue.waiting
        assert panel.queue.prompts.value and not panel.out.exists()


class TestThreads:
    def test_the_panel_counts_with_its_own_tokenizer(self, panel, tiny32):
        """Checking switches padding off for all users of a tokenizer: a run that pads must not share it."""
        for name in ("tokenizer", "tokenizer_2"):
            own, users = panel.controls.rules.counter(name), (getattr(tiny32.pipe, name), tiny32.counter(name))
            assert all(own is not other and own._tokenizer is not other._tokenizer for other in users)
        shared = tiny32.pipe.tokenizer._tokenizer
        shared.enable_padding(length=9)
        panel.controls.set(prompt="A red car.")
        assert shared.padding["length"] == 9 and panel.controls.rules.counter("tokenizer")._tokenizer.padding is None

    def test_settings_are_edited_while_prompts_are_encoded(self, panel, tiny32):
        """Two seconds of both at once: every encoding is whole, every verdict of the panel is the right one."""
        alone = t2v.encode_prompt(tiny32, PROMPT, padded=True)
        wrong, over = [], threading.Event()

        def encode() -> None:
            while not over.is_set():
                encoding = t2v.encode_prompt(tiny32, PROMPT, padded=True)
                if not torch.equal(encoding.prompt_embeds, alone.prompt_embeds):
                    wrong.append(encoding.prompt_embeds.shape)

        thread = threading.Thread(target=encode)
        thread.start()
        try:
            until = time.monotonic() + 2
            while time.monotonic() < until:
                for frames, ready in ((5, True), (6, False), (9, True)):
                    panel.controls.set(num_frames=frames, prompt=f"A car. {frames} " * frames)
                    assert panel.generate_button.disabled != ready
        finally:
            over.set()
            thread.join(60)
        assert not wrong

    def test_a_run_keeps_the_choices_it_began_with(self, panel, tiny32, monkeypatch):
        """Model, settings and upscaler are turned between the click and the moment the run looks at them."""
        loads, gate = [], threading.Event()
        load = panel.engine.load

        def slow(files, *how):
            gate.wait(60)
            loads.append(files["name"])
            return load(files, *how)

        monkeypatch.setattr(panel.engine, "load", slow)
        panel.generate()
        panel.engine.model.value, panel.engine.upscaler.value = "pocket", "pocket"
        panel.controls.set(prompt="Another.", seed=9)
        gate.set()
        panel.wait(120)
        (entry,) = panel.history.entries
        assert loads == [tiny32.name] == [entry.settings["model"]]
        assert (entry.settings["prompt"], entry.settings["seed"]) == (PROMPT, 3)
        assert entry.settings["upscale"] == "none"

    def test_the_old_model_is_gone_before_the_next_is_loaded(self, tiny_folder, tmp_path, monkeypatch):
        """Two 13B models do not fit side by side: the panel keeps none while it loads."""
        copied = shutil.copytree(tiny_folder, tmp_path / "other")
        panel = Playground(t2v.load(tiny_folder, device="cpu"), out=tmp_path / "runs")
        panel.engine.upscaler.value = "none"
        run(panel, prompt=PROMPT)
        networks = [weakref.ref(panel.engine.models.pipe.transformer), weakref.ref(panel.engine.models.pipe.vae)]
        kept, load = [], engine.load

        def look(*args, **keywords):
            kept.extend(network() for network in networks)
            return load(*args, **keywords)

        monkeypatch.setattr(engine, "load", look)
        panel.engine.model.value = "another folder …"
        panel.engine.folder.value = str(copied)
        panel.generate()
        panel.wait(120)
        assert kept == [None, None] and len(panel.history.entries) == 2, panel.status.value
        monkeypatch.setattr(engine, "load", lambda *_, **__: (_ for _ in ()).throw(t2v.UserError("cannot be loaded")))
        panel.engine.folder.value = str(tiny_folder)
        panel.generate()
        panel.wait(120)
        assert "cannot be loaded" in panel.status.value and not panel.generate_button.disabled
        monkeypatch.undo()
        panel.generate()
        panel.wait(120)
        assert len(panel.history.entries) == 3, panel.status.value


class TestHistoryAndComparison:
    def test_two_are_picked_a_third_takes_the_place_of_the_first(self, panel):
        entries = [run(panel, seed=seed) for seed in (1, 2, 3)]
        for toggle in panel.history.toggles:
            toggle.value = True
        assert panel.comparison.pair == tuple(entries[1:])
        assert [toggle.value for toggle in panel.history.toggles] == [False, True, True]
        assert is_shown(panel.comparison.box) and panel.comparison.film.value[4:8] == b"ftyp"
        assert "<td>seed</td><td>2</td><td>3</td>" in panel.comparison.words.value
        assert f"{t2v.psnr(entries[1].video, entries[2].video):.1f} dB" in panel.comparison.words.value
        panel.comparison.view.value = "Wipe"
        before = panel.comparison.picture.value
        panel.comparison.at.value = 20
        assert panel.comparison.picture.value != before and not is_shown(panel.comparison.film)
        panel.comparison.view.value = "Difference"
        assert is_shown(panel.comparison.film)
        panel.history.toggles[2].value = False
        assert not is_shown(panel.comparison.box)

    def test_the_frames_that_both_have_are_compared(self, panel):
        entries = []
        for frames in (9, 5):
            entries.append(run(panel, num_frames=frames))
            panel.history.toggles[-1].value = True
        shared = t2v.psnr(entries[0].video[:5], entries[1].video)
        assert f"{shared:.1f} dB between the two, over the first 5 frames" in panel.comparison.words.value
        for view in ("Difference", "Wipe", "In step"):
            panel.comparison.view.value = view
            assert not panel.comparison.trouble.value
            assert is_shown(panel.comparison.picture if view == "Wipe" else panel.comparison.film)

    def test_two_sizes_are_refused_not_compared(self, panel):
        for height in (32, 48):
            run(panel, height=height)
            panel.history.toggles[-1].value = True
        assert "two sizes" in panel.comparison.words.value and is_shown(panel.comparison.film)
        panel.comparison.view.value = "Difference"
        assert "9x32x48 and 9x48x48" in panel.comparison.trouble.value and not is_shown(panel.comparison.film)
        panel.comparison.view.value = "In step"
        assert is_shown(panel.comparison.film) and not panel.comparison.trouble.value

    def test_settings_can_be_put_back(self, panel):
        entry = run(panel, seed=8, guidance_scale=4.0)
        panel.controls.set(seed=9, guidance_scale=1.0, prompt="Else.")
        (back,) = [widget for widget in every(panel.history.strip) if "t2v-use" in widget._dom_classes]
        back.click()
        values = panel.controls.values()
        assert {name: values[name] for name in KNOBS} == {name: entry.settings[name] for name in KNOBS}

    def test_arithmetic(self):
        a = np.full((3, 4, 8, 3), 100, np.uint8)
        b = np.full((3, 4, 8, 3), 110, np.uint8)
        assert (difference(a, b, 4) == 40).all() and (difference(b, a, 4) == 40).all()
        assert (difference(a, b, 100) == 255).all() and not difference(a, a).any()
        half = wiped(a, b, 50)
        assert (half[:, :, 0] == 100).all() and (half[:, :, 7] == 110).all() and (half[:, :, 4] == 255).all()
        film = together(a[:1], b, ("one", "two"))
        assert len(film) == 3 and (film[0, -1, 2] == 100).all() and np.array_equal(film[0], film[2])
        assert differing({"x": 1, "y": 2}, {"x": 1, "y": 3, "z": 4}) == [("y", 2, 3), ("z", None, 4)]
        with pytest.raises(t2v.UserError, match="3x4x8 and 2x4x8"):
            difference(a, b[:2])


class TestPreview:
    def test_the_budget_is_kept(self, tiny32):
        """A preview is left out where it would exceed its share of the denoising time so far."""
        preview = Preview(tiny32, budget=0.05)
        latents = torch.zeros(1, 4, 3, 4, 6)
        step = SimpleNamespace(seconds=1.0, latents=latents, predicted_clean=latents)
        drawn = []
        for _ in range(12):
            picture = preview.draw(step, 1.0)
            drawn.append(picture is not None)
            if picture is not None:
                preview.count(0.1)
        assert drawn == [True, False, False, True, False, True, False, True, False, True, False, True]
        assert preview.share == pytest.approx(0.05)
        preview.begin()
        assert preview.share == 0 and preview.draw(step, 1.0) is not None

    def test_it_looks_like_the_video(self, pocket):
        """Much nearer to the frames than their mean colour is; noisy latents look otherwise."""
        settings = t2v.Settings("A red car on the beach at sunset.", num_frames=17, num_inference_steps=8).check(pocket)
        *_, last = t2v.denoise(
            pocket, t2v.encode_prompt(pocket, settings.prompt), t2v.initial_latents(pocket, settings), settings
        )
        video = t2v.decode(pocket, last.latents)
        seen = t2v.preview_rgb(last.latents, Preview(pocket).map).astype(float)
        small = video[0].reshape(14, 8, 24, 8, 3).mean((1, 3))
        assert np.abs(seen[0] - small).mean() < 0.7 * np.abs(small - small.mean((0, 1))).mean()


class TestPieces:
    def test_time_left(self):
        now = [100.0]
        bars = StageBars(clock=lambda: now[0])
        bars.update("denoise", 0, 10)
        assert "working" in bars.words["denoise"].value
        now[0] += 4
        bars.update("denoise", 4, 10)
        assert "4/10 · 6.0 s left" in bars.words["denoise"].value and bars.bars["denoise"].value == 0.4
        bars.halt()
        assert bars.bars["denoise"].bar_style == "warning" and "left" not in bars.words["denoise"].value
        now[0] += 60
        bars.update("denoise", 10, 10)
        assert "1 min 04 s" in bars.words["denoise"].value
        bars.update("decode", 0, 1)
        now[0] += 3
        bars.update("decode", 1, 1)
        bars.reset()
        bars.update("decode", 0, 1)
        assert "3.0 s left" in bars.words["decode"].value, "one unit: what it took last time"
        bars.update("denoise", 8, 10)  # found in a checkpoint: the steps before cost nothing
        now[0] += 5
        bars.update("denoise", 9, 10)
        assert "5.0 s left" in bars.words["denoise"].value

    @pytest.mark.parametrize(
        ("seconds", "words"), [(0.42, "0.4 s"), (59, "59 s"), (61, "1 min 01 s"), (3720, "1 h 02 min")]
    )
    def test_durations(self, seconds, words):
        assert duration(seconds) == words

    def test_every_stage_has_a_bar(self):
        assert list(STAGES) == ["load", "encode", "denoise", "decode", "upscale"]

    def test_html_is_escaped(self):
        for made in (note(NASTY), failure(NASTY, NASTY), table((NASTY,), [(NASTY, math.inf)])):
            assert "<script" not in made and "<img" not in made and html.escape(NASTY) in made
