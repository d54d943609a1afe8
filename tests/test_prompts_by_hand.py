"""The prompts that a model is judged by: written by hand, each with what it asks for."""

from __future__ import annotations

import json
import random
import re
from collections import Counter

import pytest

from t2v_kit import toyland
from t2v_kit.toyland import random_scene
from t2v_kit.toyland.captions import draw_omit, tell
from t2v_kit.toyland.lexicon import SHADES
from training import evaluate, judge

ROWS = json.loads(evaluate.BY_HAND.read_text("utf-8"))


def words(text: str) -> str:
    return " ".join(re.findall(r"[a-z-]+", text.lower()))


def test_two_hundred_prompts_and_the_projects_own():
    kinds = Counter(row["kind"] for row in ROWS)
    assert kinds["project"] == 1 and sum(kinds.values()) == 201
    assert len({row["prompt"] for row in ROWS}) == 201
    assert set(kinds) == {
        "project",
        "plain",
        "underspecified",
        "reordered",
        "synonyms",
        "two_subjects",
        "binding",
        "unknown_words",
        "keywords",
        "bare_nouns",
        "capitals",
        "lower_case",
        "typos",
        "long",
        "tenses",
        "requests",
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["prompt"][:40])
def test_what_a_prompt_by_hand_expects_is_in_the_world(row):
    assert set(row) <= {"kind", "prompt", "subjects", "place", "sky", "direction", "speed"}
    assert set(row["subjects"]) <= set(toyland.SUBJECTS) and len(row["subjects"]) in (1, 2)
    assert set(row["subjects"].values()) <= {*toyland.COLOURS, None}
    for name in judge.ATTRIBUTES[2:]:
        assert row.get(name) in (*judge.CHOICES[name], None)
    for colour in row["subjects"].values():
        said = row["prompt"].lower()
        assert row["kind"] == "typos" or colour is None or any(shade in said for shade in (colour, *SHADES[colour]))


def test_binding_prompts_come_in_swapped_pairs():
    rows = [row for row in ROWS if row["kind"] == "binding"]
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        a, b = one["subjects"], other["subjects"]
        assert set(a) == set(b) and list(a.values()) == list(b.values())[::-1] and a != b
        assert sorted(words(one["prompt"]).split()) == sorted(words(other["prompt"]).split())


def test_prompts_by_hand_are_not_captions():
    """A stranger's 'red car' may be one. Of more than four words none is among many thousand captions."""
    rng = random.Random(0)
    said = {words(tell(random_scene(rng), rng, draw_omit(rng, 0.6)).plain) for _ in range(20_000)}
    assert said & {words(row["prompt"]) for row in ROWS if row["kind"] == "bare_nouns"}
    assert not {text for text in (words(row["prompt"]) for row in ROWS) if len(text.split()) > 4} & said
