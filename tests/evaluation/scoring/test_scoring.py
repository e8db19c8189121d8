"""Predictions to scores: what counts, what is reported, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from internvl.evaluation import scoring
from internvl.evaluation.metrics import vcr
from internvl.evaluation.records import read_predictions
from internvl.evaluation.scoring import METRICS, compare, get_metric, score
from tests.evaluation.metrics.examples import ABCD, EXAMPLES, letters, numbered
from tests.evaluation.metrics.rows import row


@pytest.fixture(autouse=True)
def _split_at_blanks(monkeypatch):
    monkeypatch.setattr(vcr, "_english", lambda: str.split)


def replied(*texts, right="B", **extra):
    return row(*texts, answers=[right], choices=ABCD, **extra)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_from_file_to_score(name, tmp_path):
    path = tmp_path / "predictions.jsonl"
    lines = [each.as_line() + "\n" for each in EXAMPLES[name].rows]
    path.write_text("".join(lines), encoding="utf-8")
    rows = read_predictions(path)
    found = score(rows, name, resamples=50)
    assert found.metric == name
    assert found.score == pytest.approx(EXAMPLES[name].score)
    assert "score" not in found.parts
    assert found.n == len(rows) == len(found.marks)
    assert found.groups == len(set(METRICS[name].groups(rows)))
    if found.groups > 1:
        assert found.low <= found.score + 1e-9
        assert found.high >= found.score - 1e-9
    again = json.loads(json.dumps(found.as_dict()))
    assert again["score"] == found.score
    assert again["parts"] == found.parts
    assert "marks" not in again
    assert f"{found.score:.1f} {METRICS[name].unit_name}" in found.describe()
    assert all(part in found.describe() for part in list(found.parts)[:30])


def test_names_of_the_registry():
    assert all(name == metric.name and metric.rule for name, metric in METRICS.items())
    assert get_metric("anls") is METRICS["anls"]
    with pytest.raises(ValueError, match=r"no metric 'relaxed_acuracy'; did you mean relaxed_acc"):
        get_metric("relaxed_acuracy")


def test_shares_of_unparsed_and_truncated_answers():
    rows = [replied("B", "who knows", id="0"), replied("", "A", id="1", cut=True)]
    found = score(rows, "choice")
    assert found.unparsed == 0.5
    assert found.truncated == 0.5
    assert found.responses == 2
    assert "2 responses each; unparsed 50.0%, truncated 50.0%" in found.describe()


class TestVotes:
    def test_majority_of_parsed_answers_counts(self):
        rows = [
            replied("A", "B", "It is (B).", "?", "?", "?", id="0"),  # unparsed have no vote
            replied("A", "B", id="1"),  # a tie goes to the one seen first
            replied("?", "?", id="2"),
        ]
        found = score(rows, "choice")
        assert [mark.parsed for mark in found.marks.values()] == ["B", "A", None]
        assert found.score == pytest.approx(100 / 3)
        assert score(rows, "choice", choose="vote") == found

    def test_answers_are_compared_in_one_form(self):
        rows = [row("\\boxed{2}", "\\boxed{0.5}", "\\boxed{\\frac{1}{2}}", answers=["1/2"])]
        found = score(rows, "mathvision")
        assert found.score == 100
        assert found.marks["0"].parsed == "0.5"

    def test_first_and_best_of(self):
        rows = [replied("A", "B", "B", id="0"), replied("B", "A", "A", id="1")]
        assert score(rows, "choice", choose="first").score == 50
        assert score(rows, "choice", choose=lambda each, marks: len(marks) - 1).score == 50
        best = score(
            rows, "choice", choose=lambda _, marks: int(np.argmax([m.score for m in marks]))
        )
        assert best.score == 100
        with pytest.raises(ValueError, match="row 0: response 3 was chosen of 3"):
            score(rows, "choice", choose=lambda each, marks: len(marks))
        with pytest.raises(ValueError, match="choose is 'best'; expected vote, first"):
            score(rows, "choice", choose="best")

    def test_marks_of_every_response(self):
        marks = scoring.mark_all([replied("A", "B", "x y z", id="0")], "choice")
        assert [(mark.score, mark.parsed) for mark in marks["0"]] == [(0, "A"), (1, "B"), (0, None)]

    def test_vote_in_circular_sets(self):
        rows = [replied("A", "B", "B", id=str(3 + 1_000_000 * n)) for n in range(3)] + [
            replied("B", "A", "A", id="3000003")
        ]
        assert score(rows, "circular").score == 0
        assert score(rows[:3], "circular").score == 100


class TestRefused:
    def test_answers_kept_by_a_server(self):
        rows = [row("cat", id="0"), row("dog", id="1")]
        with pytest.raises(ValueError, match="of this split are not public: score on the server"):
            score(rows, "anls")
        with pytest.raises(ValueError, match=r"1 of 3 rows have no reference.*'5'"):
            score([*numbered(*letters(("A", "A"), ("A", "A"))), row("A", id="5")], "choice")

    def test_rows(self):
        with pytest.raises(ValueError, match="no predictions"):
            score([], "anls")
        with pytest.raises(ValueError, match="id '0' comes twice"):
            score([replied("A"), replied("B")], "choice")
        with pytest.raises(ValueError, match="row '0' has no response"):
            score([replied()], "choice")


class TestInterval:
    def test_groups_and_not_rows_are_resampled(self):
        rows = [
            replied("B" if n % 2 else "A", id=str(n + 1_000_000 * copy))
            for n in range(40)
            for copy in range(4)
        ]
        whole, sets = score(rows, "choice"), score(rows, "circular")
        assert whole.score == sets.score == 50
        assert (whole.groups, sets.groups) == (160, 40)
        width = whole.high - whole.low
        assert sets.high - sets.low == pytest.approx(2 * width, rel=0.15)

    def test_seeded_and_given_generators(self):
        rows = [replied("B" if n % 3 else "A", id=str(n)) for n in range(30)]
        rngs = (None, None, np.random.default_rng(5))
        ends = [score(rows, "choice", rng=rng, resamples=3) for rng in rngs]
        assert (ends[0].low, ends[0].high) == (ends[1].low, ends[1].high)
        assert (ends[0].low, ends[0].high) != (ends[2].low, ends[2].high)

    def test_single_group_has_no_interval(self):
        found = score([replied("B")], "choice")
        assert found.low is found.high is None
        assert "interval" not in found.describe()


class TestCompare:
    def rows(self, right):
        return [
            replied("B" if n < right else "A", id=str(n), task="x" if n % 2 else "y")
            for n in range(60)
        ]

    def test_better_run_is_told_from_a_worse_one(self):
        found = compare(self.rows(40), list(reversed(self.rows(30))), "choice")
        assert found.difference == pytest.approx(100 * 10 / 60)
        assert (found.only_a, found.only_b) == (10, 0)
        assert found.p == pytest.approx(2 / 2**10)
        assert found.mcnemar == pytest.approx(2 / 2**10)
        assert 0 < found.low < found.difference < found.high
        assert "right alone 10 and 0" in found.describe()
        assert json.loads(json.dumps(found.as_dict()))["p"] == found.p

    def test_mean_of_tasks(self):
        found = compare(self.rows(40), self.rows(40), "choice_macro")
        assert (found.difference, found.p, found.mcnemar) == (0, 1, 1)

    def test_sets_are_swapped_as_a_whole(self):
        def sets(right):
            return [
                replied("B" if n < right else "A", id=str(n + 1_000_000 * copy))
                for n in range(10)
                for copy in range(4)
            ]

        found = compare(sets(9), sets(6), "circular")
        assert (found.groups, found.only_a, found.only_b) == (10, 3, 0)
        assert found.p == pytest.approx(2 / 2**3)

    def test_f1_has_no_mcnemar(self):
        rows = EXAMPLES["pope"].rows
        other = [dataclasses.replace(each, responses=rows[0].responses) for each in rows]
        found = compare(rows, other, "pope")
        assert found.mcnemar is None
        assert found.a == pytest.approx(EXAMPLES["pope"].score)
        assert 0 < found.p <= 1

    def test_other_rows_are_refused(self):
        with pytest.raises(ValueError, match="1 only in the first, 0 only in the second"):
            compare(self.rows(40), self.rows(40)[:-1], "choice")
        changed = [*self.rows(40)[:-1], replied("A", right="C", id="59", task="x")]
        with pytest.raises(ValueError, match="row '59' has other reference answers"):
            compare(self.rows(40), changed, "choice")
