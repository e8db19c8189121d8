"""The evaluation of the demo: right means right, and guessing scores what guessing should."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from internvl.training.demo import archives, digits, evaluate, fonts, material, pictures
from internvl.training.demo.evaluate import Case
from tests.training import demo_material


@pytest.fixture(scope="module")
def drawn():
    return list(evaluate.cases(6, demo_material.held()))


def test_every_task_has_its_number_of_cases_and_they_are_the_same_again(drawn):
    assert Counter(case.task for case in drawn) == dict.fromkeys(evaluate.TASKS, 6)
    again = list(evaluate.cases(6, demo_material.held(), tasks=["word", "box"]))
    first = [case for case in drawn if case.task in ("word", "box")]
    assert sorted(c.dialogue.turns[0].question for c in again) == sorted(
        c.dialogue.turns[0].question for c in first
    )
    other = list(evaluate.cases(6, demo_material.held(), tasks=["word", "box"], seed=1))
    pixels = [[c.dialogue.pictures[0].tobytes() for c in some] for some in (again, other)]
    assert not set(pixels[0]) & set(pixels[1])


def test_a_constant_answer_scores_the_prior(drawn):
    best = {
        task: Counter(c.expected for c in drawn if c.task == task).most_common(1)[0][0]
        for task in evaluate.TASKS
    }
    found = evaluate.score(drawn, [[best[case.task]] for case in drawn])
    assert {task: row["n"] for task, row in found.items()} == dict.fromkeys(evaluate.TASKS, 6)
    for task, row in found.items():
        if task != "box":  # the commonest box is not the one that overlaps most
            assert row["accuracy"] == row["prior"], task
    perfect = evaluate.score(drawn, [[case.expected] for case in drawn])
    assert {row["accuracy"] for row in perfect.values()} == {100.0}


def test_a_box_counts_from_half_overlap():
    truth = "<ref>star</ref><box>[[100, 100, 500, 500]]</box>"
    assert evaluate.right("box", "<ref>star</ref><box>[[110, 90, 520, 480]]</box>", truth)
    assert evaluate.right("box", "star[[100, 100, 500, 310]]", truth)
    assert not evaluate.right("box", "<box>[[100, 100, 500, 290]]</box>", truth)
    assert not evaluate.right("box", "<box>[[100, 100, 500, 500], [0, 0, 9, 9]]</box>", truth)
    assert not evaluate.right("box", "no idea", truth)
    assert evaluate.prior("box", [truth, truth.replace("500", "490"), "[[0, 0, 10, 10]]"]) == 66.7


def test_the_blind_cases_keep_questions_and_swap_files(drawn, tmp_path):
    some = [case for case in drawn if case.task in ("colour", "motion")]
    written = [evaluate.write(case, tmp_path, k) for k, case in enumerate(some)]
    assert [len(case.files) for case in written] == [1] * 6 + [4] * 6
    assert {path.suffix for case in written for path in case.files} == {".png", ".jpg"}
    for case, other in zip(written, evaluate.swapped(written), strict=True):
        assert case.dialogue == other.dialogue
        assert not set(case.files) & set(other.files)
    asked = written[-1].question(0)
    assert asked.startswith("Frame-1: <image>\nFrame-2: <image>\n")
    assert asked.count("<image>") == 4


def test_mistakes_in_the_call_are_named():
    with pytest.raises(ValueError, match="no tasks"):
        list(evaluate.cases(1, None, tasks=["singing"]))
    with pytest.raises(ValueError, match="word"):
        list(evaluate.cases(1, None, tasks=["colour", "word"]))


def test_the_table_replaces_the_old_one(tmp_path):
    readme = tmp_path / "README.md"
    results = {"colour": {"n": 4, "accuracy": 75.0, "prior": 25.0, "blind": 0.0}}
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the lines"):
        evaluate.write_table(readme, results)
    readme.write_text("a\n<!-- accuracy: begin -->\nold\n<!-- accuracy: end -->\nb\n")
    evaluate.write_table(readme, results)
    assert "old" not in readme.read_text()
    assert "| colour | 4 | 75.0 | 25.0 | 0.0 |\n" in readme.read_text()
    evaluate.write_results(tmp_path / "r.json", results, seed=3)
    assert json.loads((tmp_path / "r.json").read_text()) == {"seed": 3, "results": results}


def test_a_case_is_counted_by_its_last_turn():
    turns = tuple(evaluate.questions.QA("count", "How many?", a) for a in ("1", "2"))
    case = Case("second turn", evaluate.Dialogue(turns), (Path("x.png"),))
    assert evaluate.score([case], [["9", "2"]])["second turn"]["accuracy"] == 100
    assert evaluate.score([case], [["1", "9"]])["second turn"]["accuracy"] == 0


CACHED = all(
    (archives.DEFAULT_CACHE / archive.file).exists()
    for archive in (*archives.FONTS.values(), *archives.EMOJI.values(), archives.MNIST)
)


@pytest.mark.slow
@pytest.mark.skipif(not CACHED, reason="the package archives were not fetched on this machine")
def test_what_is_held_out_is_nowhere_in_training():
    train, test = (material.Material.load(split) for split in ("train", "test"))
    assert not set(train.words) & set(test.words)
    assert len(test.words) > 1000
    for a, b in (
        (fonts.load("train").files, fonts.load("test").files),
        ([g.tobytes() for g in digits.load("train").glyphs],
         [g.tobytes() for g in digits.load("test").glyphs]),
    ):  # fmt: skip
        assert not set(a) & set(b)
    styles = [pictures.load(split) for split in ("train", "test")]
    for kind in ("emoji", "flag"):
        drawn = [{np.asarray(p.image).tobytes() for p in style[kind]} for style in styles]
        assert len(drawn[0]) == len(drawn[1]) == len(styles[0][kind])
        assert not drawn[0] & drawn[1]
        assert [p.name for p in styles[0][kind]] == [p.name for p in styles[1][kind]]
