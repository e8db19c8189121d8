"""The experiment on loops: its data, its broken answers, and how it counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from internvl import hub
from internvl.data.mixture import load_meta
from internvl.filtering.rules import build, check
from internvl.filtering.verdict import Record, Said
from internvl.training.demo import evaluate, loops
from internvl.training.demo.evaluate import Case
from internvl.training.recipes import load_recipe


def made(number):
    return loops.steps(np.random.default_rng(number))


def test_answers_count_right():
    for number in range(30):
        (turn,) = made(number).turns
        what = turn.question.replace("-shaped", "")
        named = turn.answer.split("Object ")[1:]
        words = {part.split(". ")[0].split()[-2:][i] for part in named for i in (0, 1)}
        word = next((w for w in words if f" {w}" in what), None)
        fits = sum(f" {word}" in part.split(". ")[0] for part in named) if word else 0
        assert turn.answer.endswith(f"the answer is {fits}.")


@pytest.mark.parametrize("number", range(20))
def test_broken_answers_loop_and_whole_ones_do_not(number):
    rules = build(dict.fromkeys(loops.LOOPS, True))
    rng = np.random.default_rng(number)
    answer = loops.steps(rng).turns[0].answer
    other = loops.broken(rng, answer)
    assert not check(Record((Said("assistant", answer),)), rules)
    assert check(Record((Said("assistant", other),)), rules)
    assert answer.startswith(other[:40])


def test_both_corpora_differ_in_the_broken_answers_only(tmp_path):
    assert loops.build(tmp_path, count=20, share=0.15) == 3
    rows = {
        name: [
            json.loads(line) for line in (tmp_path / name / "steps.jsonl").read_bytes().splitlines()
        ]
        for name in ("clean", "dirty")
    }
    differ = [a["id"] for a, b in zip(rows["clean"], rows["dirty"], strict=True) if a != b]
    assert len(differ) == 3
    for clean, dirty in zip(rows["clean"], rows["dirty"], strict=True):
        assert clean["image"] == dirty["image"]
        assert clean["conversations"][0] == dirty["conversations"][0]
    for name in rows:
        (spec,) = load_meta(tmp_path / name / "meta.json")
        assert (Path(spec.root) / rows[name][0]["image"]).exists()


def test_recipe_is_read():
    recipe = load_recipe(hub.REPOSITORY / "recipes" / "demo" / "loops.yaml")
    assert recipe.steps == 240


def test_score_counts_loops_ends_and_answers():
    cases = [Case("steps", made(number)) for number in range(4)]
    right = [case.expected for case in cases]
    said = [
        loops.Answer(right[0], True),
        loops.Answer("Object 1 is a red star. " * 20, False),
        loops.Answer("That is all, and the answer is 99.", True),
        loops.Answer("Object 1 is a red star. " * 20 + right[3], True),
    ]
    found = loops.score(cases, said)
    assert found == {"n": 4, "loops": 50.0, "endless": 25.0, "right": 50.0}


def test_picture_is_drawn(tmp_path):
    rows = [
        {"data": name, "temperature": t, "n": 50, "loops": 2.0, "endless": 0.0, "right": 60.0}
        for name in ("clean", "dirty")
        for t in (0.0, 1.0)
    ]
    loops.draw(rows, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert "greedy" in text
    assert "temperature 1" in text


def test_answers_end_or_not(tmp_path):
    """The demo says a word and ends; in 3 tokens a description has no end."""
    loaded = hub.load(hub.REPOSITORY / "demo")
    written = loops.held_out(3, tmp_path)
    found = loops.answers(loaded, written, 0.0, batch=2)
    assert all(answer.ended for answer in found)
    assert [answer.text for answer in found] == [a[0] for a in evaluate.answers(loaded, written)]
