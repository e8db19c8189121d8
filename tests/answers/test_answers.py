"""Final answers equal those of the peers on their own cases, and ours where they have no rule."""

from __future__ import annotations

import json
import math
import random
import re

import pytest

from internvl import answers
from internvl.answers import extract_answer, extract_number, normalize_answer
from tests import support


def cases(name: str) -> list[dict]:
    path = support.GOLDEN / "eval" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["cases"]


class TestPeers:
    def test_boxed(self):
        for case in cases("boxed_answer"):
            assert answers.extract_boxed(case["text"]) == case["vlmevalkit_boxed"]
            assert answers.answer_line(case["text"]) == case["vlmevalkit_mmmu_pro_cot"]

    @pytest.mark.parametrize("peer", ["vlmevalkit", "mmmu", "mmmu_pro"])
    def test_multiple_choice(self, peer):
        column = peer if peer == "vlmevalkit" else f"{peer}_official"
        checked = 0
        for case in cases("multiple_choice"):
            found = answers.extract_choice(case["response"], case["choices"], peer=peer)
            expected = case[column]
            if expected in (False, "Z") or isinstance(expected, dict):  # none, refused, random
                expected = None
            assert found == expected, case["response"]
            checked += expected is not None
        assert checked >= 10

    def test_majority_vote(self):
        for case in cases("majority_vote"):
            assert answers.majority_vote(case["answers"], None).winner == case["lm_eval"]


def test_prompts_are_those_of_figure_9():
    # Typed from the report, whose "\$" is an escape of the typesetter.
    printed = (
        "Answer the preceding multiple choice question. The last line of your response should "
        "follow this format: 'Answer: \\boxed{$LETTER}' (without quotes), where LETTER is one of "
        "the options. If you are uncertain or the problem is too complex, make a reasoned guess "
        "based on the information provided. Avoid repeating steps indefinitely—provide your best "
        "guess even if unsure. Think step by step logically, considering all relevant information "
        "before answering."
    )
    assert printed == answers.COT_MULTIPLE_CHOICE
    assert "where 'FINAL_ANSWER' is your conclusion based on the" in answers.COT_OPEN
    assert answers.COT_OPEN.startswith("Answer the preceding question. The last line")
    direct = "Which?\nA. x\nB. y\nAnswer with the option's letter from the given choices directly."
    assert answers.with_cot(direct, multiple_choice=True) == f"Which?\nA. x\nB. y\n{printed}"
    assert answers.with_cot("Why?", multiple_choice=False) == f"Why?\n{answers.COT_OPEN}"


class TestExtraction:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("So \\boxed{1}, or rather \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
            ("The **answer is: B**", "B"),
            ("Answer: 42\nThat was all.", "42"),
            ("First answer: 3.\nFinal answer: 4", "4"),
            ("Final answer:\n", "Final answer:"),
            ("\u7b54\u6848\uff1a\u7ea2\u8272", "\u7ea2\u8272"),
            ("最终答案是 7", "7"),
            ("Answer: 5\nThe answer is surely \\boxed{6}", "6"),
            ("It stands.\n\n  A red cat. \n", "A red cat."),
            ("The answering machine is old", "The answering machine is old"),
            ("\\boxed{}", None),
            ("  \n ", None),
            ("", None),
        ],
    )
    def test_text(self, text, expected):
        assert extract_answer(text) == expected

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Answer: \\boxed{$C$}", "C"),
            ("A is wrong, so is B.\nAnswer: C", "C"),
            ("Answer: (B) a dog", "B"),
            ("It is the dog", "B"),
            ("A or B, I cannot tell", None),
            ("Answer: \\boxed{}", None),
            ("Sorry, I can't help with images of people yet.", None),
        ],
    )
    def test_choice(self, text, expected):
        assert extract_answer(text, choices={"A": "cat", "B": "dog", "C": "bird"}) == expected

    def test_letters_alone(self):
        assert extract_answer("Answer: B", "choice", "ABCD") == "B"
        assert extract_answer("I think E", "choice", "ABCD") is None
        with pytest.raises(ValueError, match="there are no choices"):
            extract_answer("B", "choice")
        with pytest.raises(ValueError, match="kind is 'letter'"):
            extract_answer("B", "letter")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("3 apples and 4 pears make 1,234.5.", "1,234.5"),
            ("It is 3/4.", "3/4"),
            ("\\frac{1}{2}", "\\frac{1}{2}"),
            ("50% of them", "50%"),
            ("minus: -7", "-7"),
            ("row x-7", "7"),
            (".5 of it", ".5"),
            ("\uff11\uff12\u4e2a", "12"),
            ("about 1e3", "1e3"),
            ("many", None),
            ("...", None),
        ],
    )
    def test_number(self, text, expected):
        assert extract_number(text) == expected

    def test_number_of_an_answer(self):
        assert extract_answer("3 + 4 = 7.\nAnswer: about 7 apples, of 9", "number") == "9"
        assert extract_answer("2 and \\boxed{\\text{5 cm}}", "number") == "5"
        assert extract_answer("\\boxed{five} of 6", "number") is None

    @pytest.mark.parametrize(
        "text",
        [each * 100_000 for each in ("{", "\\boxed{", "answer: ", "1", "1,", "\\text{")],
        ids=["braces", "boxes", "markers", "digits", "commas", "wrappers"],
    )
    def test_long_texts_take_linear_time(self, text):
        for kind in ("text", "number"):
            extract_answer(text, kind)
        normalize_answer(text)
        extract_answer(text, choices="AB")


class TestNormalisation:
    @pytest.mark.parametrize(
        "same",
        [
            ("12", "12.0", "12.", " 12 ", "$12$", "\uff11\uff12", "+12"),
            ("1/2", "0.5", "\\frac{1}{2}", "\\dfrac{2}{4}", ".5", "$\\frac{1}{2}$."),
            ("1,234.5", "1234.5", "2469/2"),
            ("b", "B", "(B)", "B.", "b)", "\\text{B}"),
            ("Red cat", "red  cat.", "\\text{Red cat}", "$\\mathrm{red\\ cat}$"),
            ("50%", "50\\%", "50.0%"),
            ("1000", "1e3", "1,000"),
        ],
        ids=lambda group: group[0],
    )
    def test_the_same(self, same):
        assert len({normalize_answer(each) for each in same}) == 1

    @pytest.mark.parametrize(
        ("one", "other"),
        [("50%", "0.5"), ("5 cm", "5"), ("1/0", "0"), ("-3", "3"), ("1.5", "15"), ("ab", "b")],
    )
    def test_not_the_same(self, one, other):
        assert normalize_answer(one) != normalize_answer(other)


class TestVotes:
    def test_normalised_and_unparsed(self):
        vote = answers.majority_vote(["0.5", None, "1/3", "\\frac{1}{2}", " ", "1/2", "..."])
        assert (vote.winner, vote.tie, vote.unparsed) == ("0.5", False, 3)
        assert vote.counts == {"1/2": 3, "1/3": 1}

    def test_ties_go_to_the_answer_seen_first(self):
        assert answers.majority_vote(["b", "a", "a", "B"]) == answers.Vote(
            "b", {"b": 2, "a": 2}, 0, True
        )

    def test_nothing_to_vote_on(self):
        assert answers.majority_vote([None, ""]) == answers.Vote(None, {}, 2, False)
        assert answers.majority_vote([]) == answers.Vote(None)

    def test_an_empty_answer_is_never_right(self):
        assert not answers.is_same("", "")
        assert not answers.is_same(None, "")
        assert answers.maj_at_k([None, None], "", 1) == 0


class TestCurves:
    def test_one_voter_is_the_share_of_right_answers(self):
        assert answers.maj_at_k(["a", "b", "a", None], "A", 1) == 0.5

    def test_all_voters_are_one_vote(self):
        assert answers.maj_at_k(["a", "b", "a"], "a", 3) == 1
        assert answers.maj_at_k(["b", "a"], "a", 2) == 0  # a tie, b came first

    def test_mean_over_all_subsets(self):
        # aab, aac, abc (first seen: a) twice, and the order stays that of the samples.
        assert answers.maj_at_k(["a", "b", "c", "a"], "a", 3) == 3 / 4

    def test_many_subsets_need_a_generator(self):
        samples = ["a"] * 20 + ["b"] * 12
        with pytest.raises(ValueError, match="give a generator"):
            answers.maj_at_k(samples, "a", 16)
        one = answers.maj_at_k(samples, "a", 16, generator=random.Random(1), draws=300)
        assert one == answers.maj_at_k(samples, "a", 16, generator=random.Random(1), draws=300)
        assert 0.8 < one <= 1

    def test_pass_at_k(self):
        assert answers.pass_at_k(8, 0, 4) == 0
        assert answers.pass_at_k(8, 8, 1) == 1
        assert answers.pass_at_k(8, 2, 1) == pytest.approx(0.25)
        assert answers.pass_at_k(10, 3, 5) == pytest.approx(1 - math.comb(7, 5) / math.comb(10, 5))
        assert answers.pass_at_k(4000, 1, 2000) == pytest.approx(0.5)

    @pytest.mark.parametrize(
        ("call", "complaint"),
        [
            (lambda: answers.pass_at_k(4, 5, 1), "c is 5"),
            (lambda: answers.pass_at_k(4, 1, 5), "k is 5"),
            (lambda: answers.maj_at_k(["a"], "a", 0), "k is 0"),
        ],
        ids=["right ones", "drawn", "voters"],
    )
    def test_impossible_numbers(self, call, complaint):
        with pytest.raises(ValueError, match=re.escape(complaint)):
            call()
