"""Best of N: the scorer decides, and nothing else does."""

from __future__ import annotations

import math
import types

import pytest

from internvl.evaluation.best_of_n import best_of_n, by_scores, load_scorer, response_scores
from internvl.evaluation.scoring import score
from tests.evaluation.metrics.examples import ABCD
from tests.evaluation.metrics.rows import row


def rows():
    return [
        row("A", "B", "B, and more", answers=["B"], choices=ABCD, id="0"),
        row("C", "C", "A", answers=["C"], choices=ABCD, id="1"),
    ]


def test_the_highest_score_is_kept_and_of_equals_the_first():
    asked = []

    def length(question, images, response):
        asked.append((question, images, response))
        return len(response)

    before = rows()
    found = best_of_n(before, length, {"0": ["zero.png"], "1": ["one.png"]})
    assert [each.text for each in found] == ["B, and more", "C"]
    assert [len(each.responses) for each in found] == [1, 1]
    assert before == rows()
    assert asked[0] == (before[0].prompt, ["zero.png"], "A")
    assert [response for _, _, response in asked] == ["A", "B", "B, and more", "C", "A"]
    assert score(found, "choice", resamples=5).score == 100
    assert response_scores(before, length)["1"] == [1, 1, 1]


def test_scores_choose_the_answer_that_counts():
    scores = {"0": [3.0, 1.0, 2.0], "1": [0.0, 0.5, 0.1]}
    assert score(rows(), "choice", choose=by_scores(scores), resamples=5).score == 50
    with pytest.raises(ValueError, match="row 1"):
        score(rows(), "choice", choose=by_scores({**scores, "1": [1.0]}), resamples=5)


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "good"])
def test_a_score_is_a_finite_number(value):
    with pytest.raises(ValueError, match=r"row '0': the scorer returned .* finite number"):
        best_of_n(rows(), lambda question, images, response: value)


def test_rows_need_images_and_answers():
    def zero(question, images, response):
        return 0.0

    with pytest.raises(ValueError, match="row '1' has no entry in the images"):
        best_of_n(rows(), zero, {"0": []})
    with pytest.raises(ValueError, match="row '2' has no answers"):
        best_of_n([*rows(), row(id="2")], zero)


def test_a_scorer_is_found_by_its_name(monkeypatch):
    import sys

    own = types.ModuleType("own_rewards")
    own.length = lambda question, images, response: len(response)
    own.limit = 3
    monkeypatch.setitem(sys.modules, "own_rewards", own)
    assert load_scorer("own_rewards:length") is own.length
    assert load_scorer("math:inf.hex")() == "inf"
    for name, message in {
        "own_rewards": "package.module:function",
        "own_rewards:": "package.module:function",
        "no_such_module_here:f": "cannot be imported: No module named 'no_such_module_here'",
        "own_rewards:width": "has no 'width'",
        "own_rewards:limit": "is a int; expected a function",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_scorer(name)
