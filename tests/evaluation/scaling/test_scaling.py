"""Curves over the number of answers: what a vote and the best answer are worth, how surely."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from internvl.answers import maj_at_k, pass_at_k
from internvl.cli import app
from internvl.evaluation import scaling as module
from internvl.evaluation.records import Response, lines
from internvl.evaluation.scaling import (
    Scaling,
    higher,
    higher_of_parts,
    pass_curve,
    scaling,
    vote_curve,
)
from internvl.evaluation.scoring import get_metric, score
from tests.evaluation.metrics.examples import ABCD, EXAMPLES
from tests.evaluation.metrics.rows import row


def letters(*texts, right="B", **extra):
    return row(*texts, answers=[right], choices=ABCD, **extra)


def random_rows(count, answers, seed=0):
    """Letters with different chances of being right, and some answers that name none."""
    rng = random.Random(seed)
    return [
        letters(*rng.choices(["B", "A", "C", "who knows"], [i, 2, 1, 1], k=answers), id=str(i))
        for i in range(count)
    ]


def parsed(each):
    return [None if r.text == "who knows" else r.text for r in each.responses]


# ---------------------------------------------------------------------- values
def test_every_k_is_the_mean_of_maj_at_k_and_pass_at_k():
    rows = random_rows(12, 7)
    found = scaling(rows, "choice", resamples=10)
    assert found.majority.ks == list(range(1, 8))
    assert found.majority.exact
    assert found.passed.exact
    for vote, best in zip(found.majority.points, found.passed.points, strict=True):
        majority = [maj_at_k(parsed(each), "B", vote.k) for each in rows]
        right = [sum(r.text == "B" for r in each.responses) for each in rows]
        passed = [pass_at_k(7, count, best.k) for count in right]
        assert vote.value == pytest.approx(100 * np.mean(majority))
        assert best.value == pytest.approx(100 * np.mean(passed))


def test_too_many_subsets_are_drawn_and_are_the_same_again(monkeypatch):
    rows = random_rows(6, 11, seed=3)
    truth = vote_curve(rows, "choice", ks=[2, 5], resamples=10)
    monkeypatch.setattr(module, "MOST_SUBSETS", 100)
    found = vote_curve(rows, "choice", ks=[2, 5], resamples=10)
    assert (truth.exact, found.exact) == (True, False)  # 11 over 5 is 462
    assert found.at(2) == truth.at(2)
    assert found.at(5).value == pytest.approx(truth.at(5).value, abs=1)
    assert found.at(5).value != truth.at(5).value
    assert found == vote_curve(rows, "choice", ks=[2, 5], resamples=10)
    other = vote_curve(rows, "choice", ks=[5], resamples=10, rng=np.random.default_rng(9))
    assert other.at(5).value != found.at(5).value


@pytest.mark.parametrize(
    "name", ["anls", "choice_macro", "circular", "hallusion", "mme", "mmt", "ocrbench", "pope",
             "refcoco", "relaxed_accuracy", "vqa_soft"]
)  # fmt: skip
def test_a_vote_of_all_answers_is_the_score(name):
    rows = []
    for index, each in enumerate(EXAMPLES[name].rows):
        text, other = each.text, EXAMPLES[name].rows[index - 1].text
        rows.append(
            replace(each, responses=tuple(Response(t, 2, "stop") for t in (other, text, text)))
        )
    found = scaling(rows, name, ks=[3], resamples=10, draws=3)
    assert found.majority.at(3).value == pytest.approx(score(rows, name, resamples=10).score)
    assert found.passed.at(3).value >= 0
    alone = [replace(each, responses=each.responses[1:2]) for each in rows]
    once = scaling(alone, name, resamples=10)
    assert once.majority.at(1).value == pytest.approx(EXAMPLES[name].score)
    assert once.passed.at(1).value == pytest.approx(EXAMPLES[name].score)


def test_rows_that_are_judged_together_win_or_lose_together():
    rows = [
        letters("B", "A", right="B", id="7"),
        letters("C", "A", right="C", id="1000007"),
        letters("B", "B", right="B", id="8"),
        letters("C", "C", right="C", id="1000008"),
    ]
    found = vote_curve(rows, "circular", resamples=10, draws=500)
    assert found.at(1).value == pytest.approx(100 * (1 / 4 + 1) / 2, abs=3)
    assert not found.exact
    assert found.at(2).value == 100.0  # ties go to the first
    assert vote_curve(rows, "circular", ks=[2], resamples=10).exact


def test_marks_between_right_and_wrong():
    rows = [row("ALBUN", "ALBUM", "OTHER", answers=["ALBUM"])]
    found = scaling(rows, "anls", resamples=10)
    marks = [0.8, 1.0, 0.0]
    for k in (1, 2, 3):
        best = np.mean([max(some) for some in itertools.combinations(marks, k)])
        assert found.passed.at(k).value == pytest.approx(100 * best)
    # All differ, so the first of those drawn wins: 0.8 in two of three pairs, and of all three.
    assert found.majority.at(2).value == pytest.approx(100 * (0.8 + 0.8 + 1.0) / 3)
    assert found.majority.at(3).value == pytest.approx(80)


def test_the_same_number_written_differently_votes_together():
    rows = [row("7", "12.0", "12", answers=["12"])]
    assert vote_curve(rows, "mmmu", ks=[3], resamples=10).at(3).value == 100
    rows = [row("7", "12.0", "13", answers=["12"])]
    assert vote_curve(rows, "mmmu", ks=[3], resamples=10).at(3).value == 0


def test_what_was_not_found_has_no_vote_and_does_not_score():
    rows = [letters("who knows", "who knows", "B"), letters(*["who knows"] * 3, id="1")]
    found = scaling(rows, "choice", resamples=10)
    assert found.majority.at(3).value == 50
    assert found.majority.at(3).silent == 0.5
    assert found.majority.at(1).value == pytest.approx(100 / 6)
    assert [p.silent for p in found.majority.points] == pytest.approx([5 / 6, 4 / 6, 0.5])
    assert [p.silent for p in found.passed.points] == pytest.approx([5 / 6, 4 / 6, 0.5])
    assert found.unparsed == pytest.approx(5 / 6)


def test_tokens_and_truncated_answers():
    given = (Response("B", 10, "stop", 1), Response("A B C", 30, "length", 1))
    rows = [replace(letters("?"), responses=given), replace(letters("?", id="1"), responses=given)]
    found = scaling(rows, "choice", resamples=10)
    assert found.truncated == 0.5
    assert found.tokens == 20
    assert [point.tokens for point in found.majority.points] == [20, 40]


# ---------------------------------------------------------------------- bands
def test_bands_are_over_questions_and_the_gain_is_paired():
    rows = [letters("A", "B", "B", id=str(i)) for i in range(30)]
    rows += [letters("A", "A", "C", id=str(i)) for i in range(30, 60)]
    found = vote_curve(rows, "choice", resamples=400)
    first, last = found.at(1), found.at(3)
    assert last.value == pytest.approx(50)
    assert 35 < last.low < 42
    assert 58 < last.high < 65
    assert first.gain == first.gain_low == first.gain_high == 0
    assert last.gain == pytest.approx(100 * (1 - 2 / 3) / 2)
    # 0 or 1/3 per row: a third of the width that the score has.
    assert last.gain_high - last.gain_low == pytest.approx((last.high - last.low) / 3, abs=0.5)
    assert found == vote_curve(rows, "choice", resamples=400)
    alike = vote_curve(rows[:30], "choice", resamples=50).at(3)
    assert (alike.low, alike.value, alike.high) == (100, 100, 100)
    single = vote_curve(rows[:1], "choice").at(3)
    assert single.low is None
    assert single.gain_high is None


def test_a_curve_goes_through_json():
    found = scaling(random_rows(5, 3), "choice", resamples=20)
    again = Scaling.from_dict(json.loads(json.dumps(found.as_dict())))
    assert again == found
    with pytest.raises(ValueError, match="not a Scaling"):
        Scaling.from_dict({"metric": "choice"})
    lines = found.describe().splitlines()
    assert len(lines) == 2 + 3
    assert f"{found.majority.at(3).value:.1f}" in lines[-1]


# ---------------------------------------------------------------------- mistakes
def test_mistakes_are_named():
    rows = random_rows(2, 3)
    with pytest.raises(ValueError, match="row '0' has 3 answers and row '5' has 2"):
        scaling([*rows[:1], letters("A", "B", id="5")], "choice")
    for wrong in ([0], [4], []):
        with pytest.raises(ValueError, match="expected some of 1 to 3"):
            scaling(rows, "choice", ks=wrong)
    with pytest.raises(ValueError, match="no point at k = 2"):
        pass_curve(rows, "choice", ks=[1], resamples=10).at(2)
    with pytest.raises(ValueError, match="no metric 'choise'"):
        scaling(rows, "choise")


# ---------------------------------------------------------------------- max(direct, CoT)
def test_the_higher_of_two_runs_says_how_it_was_chosen():
    found = higher({"direct": 56.0, "cot": 58.5})
    assert (found.mode, found.score) == ("cot", 58.5)
    assert found.how == module.PICKED
    text = found.describe()
    assert "direct 56.0" in text
    assert "picked on the test set" in text
    assert higher({"direct": 1.0, "cot": 1.0}).mode == "direct"
    with pytest.raises(ValueError, match="at least two"):
        higher({"direct": 56.0})
    with pytest.raises(ValueError, match="'cot' is nan"):
        higher({"direct": 56.0, "cot": float("nan")})


def test_of_mmmu_pro_the_higher_one_of_each_setting_is_taken(tmp_path):
    def run(name, right):
        rows = [
            letters("B" if k < right[setting] else "A", id=f"{setting}{k}", setting=setting)
            for setting in ("standard", "vision")
            for k in range(10)
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(lines(rows)), "utf-8")
        return str(path)

    direct = run("direct", {"standard": 5, "vision": 3})
    cot = run("cot", {"standard": 4, "vision": 5})
    words = ["eval", "max", direct, cot, "--benchmark", "mmmu_pro"]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["score"] == 50.0  # not 45, the higher mean
    assert found["scores"] == {"direct": 40.0, "cot": 45.0}
    assert "setting/vision: max(direct 30.0, cot 50.0)" in CliRunner().invoke(app, words).stdout
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join((tmp_path / "cot.jsonl").read_text().splitlines(True)[:-1]))
    words[3] = str(fewer)
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2
    assert "the runs have other rows: 1 only in the first" in refused.stderr
    with pytest.raises(ValueError, match="the same modes"):
        higher_of_parts({"a": {"direct": 1.0, "cot": 2.0}, "b": {"direct": 1.0}})


def test_the_metric_may_be_an_object():
    rows = random_rows(3, 2)
    assert scaling(rows, get_metric("choice"), resamples=5) == scaling(rows, "choice", resamples=5)
