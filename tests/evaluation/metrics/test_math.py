"""Formulas: what is equal, what is not, and that no text takes long or is run."""

from __future__ import annotations

import math
import sys

import pytest

from internvl.evaluation.metrics import latex, olympiad
from internvl.evaluation.metrics.math_answers import math_equal
from internvl.evaluation.metrics.olympiad import olympiad_equal
from internvl.evaluation.scoring import METRICS
from tests.evaluation.metrics.examples import ABCD
from tests.evaluation.metrics.rows import row


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("\\frac{1}{2}", "0.5", True),
        ("$\\dfrac{\\pi}{4}$", "\\frac{\\pi}{4}", True),
        ("2\\sqrt{2}", "\\sqrt{8}", True),
        ("1.4142136", "\\sqrt{2}", True),  # 4e-8 apart
        ("1.41421", "\\sqrt{2}", False),  # 4e-6 apart
        ("1,200", "1200", True),
        ("1200.0", "1200", True),
        ("50\\%", "0.5", False),
        ("Blue", "blue", True),
        ("x+1", "1+x", False),  # with symbols only equal texts count, as in VLMEvalKit
        ("", "", False),
        ("3", "", False),
        ("__import__('os').getpid()", "1", False),
    ],
)
def test_math_equal(answer, reference, same):
    assert math_equal(answer, reference) is same


def test_official_mathvision_rounds_to_two_decimals():
    assert not math_equal("3.14", "\\pi")
    assert math_equal("3.14", "\\pi", peer="official")
    assert math_equal("3.1384", "\\pi", peer="official")
    assert not math_equal("3.13", "\\pi", peer="official")


class TestMathVista:
    metric = METRICS["mathvista"]

    def mark(self, text, answers, kind="free_form", form="integer", choices=None, **fields):
        each = row(
            text, answers=answers, choices=choices, question_type=kind, answer_type=form, **fields
        )
        return self.metric.mark(each, text)

    def test_choices_by_letter_and_by_nearest_text(self):
        assert self.mark("It is (C).", ["C"], "multi_choice", "text", ABCD).parsed == "green"
        assert self.mark("blu", ["B"], "multi_choice", "text", ABCD).score == 1
        assert self.mark("blu", ["blue"], "multi_choice", "text", ABCD).score == 1  # text as answer
        long = "The picture shows many things, of which some are near to one and some to another."
        assert self.mark(long, ["D"], "multi_choice", "text", ABCD).parsed is None

    def test_numbers_in_sentences(self):
        assert self.mark("There are 3 cats.", ["3"]).score == 1
        assert self.mark("\\boxed{1,200}", ["1200"]).score == 1
        assert self.mark("12.7", ["12"]).score == 1  # cut off, as the official script has it
        assert self.mark("no number", ["3"]).parsed is None
        assert self.mark("2.349", ["2.35"], form="float", precision=2).score == 1
        assert self.mark("0.50", ["0.5"], form="float", precision="1.0").score == 1


def test_mathvision_accepts_the_text_of_the_right_option():
    metric, choices = METRICS["mathvision"], {"A": "$\\frac{1}{2}$", "B": "$2$"}
    each = row("", answers=["A"], choices=choices)
    assert metric.mark(each, "\\boxed{0.5}").score == 1
    assert metric.mark(each, "\\boxed{A}").parsed == "A"
    assert metric.mark(each, "\\boxed{B}").score == 0
    reasons = "First, we look at the figure.\nThen we are done, it seems to me.\nSo it goes."
    assert metric.mark(each, reasons).parsed is None


class TestOlympiad:
    @pytest.mark.parametrize(
        ("reference", "answer", "same"),
        [
            ("$v=\\frac{2L}{t}$", "\\boxed{\\frac{2 L}{t}}", True),  # right side of = only
            ("v=3", "v=4", False),
            ("3,5", "\\boxed{5}, \\boxed{3}", True),  # any order, every box
            ("3,5", "\\boxed{3}", False),
            ("3,3", "3,5", False),  # each part once
            ("(1,2),(3,4)", "(3,4),(1,2)", True),
            ("(1,2)", "(2,1)", False),
            ("[0,\\frac{1}{2}]", "$[0, 0.5]$", True),
            ("[0,1)", "[0,1]", False),
            ("(-\\infty,0)\\cup(1,2)", "x \\in (-\\infty, 0) \\cup (1, 2)", True),
            ("0.25", "25%", True),
            ("\\pm 2", "2,-2", True),
            ("8.1 \\times 10^{3}", "8100", True),
            ("y=2x+1", "y-2x=1", True),
            ("y=2x+1", "2y=4x+2", True),
            ("y=2x+1", "y=2x+2", False),
            ("5\\mathrm{~J}", "5J", True),
            ("5 m", "5", False),  # a unit is a symbol
            ("\\sin^2 a + \\cos^2 a", "1", False),  # symbols on one side only: the official rule
            ("(a+b)^2", "a^2+2ab+b^2", True),
            ("(a+b)^2", "a^2+ab+b^2", False),
            ("a", "1.0001a", False),
            ("\\sqrt{a^2}", "a", True),  # positive points
            ("K", "k", False),
            ("30^\\circ", "30", True),
            ("\u80fd", "\u80fd", True),
            ("5", "$$", False),
            ("5", "\\boxed{5", False),
        ],
    )
    def test_equal(self, reference, answer, same):
        assert olympiad_equal(reference, answer) is same

    def test_tolerances(self):
        assert olympiad_equal("9.8", "9.81", 0.01)
        assert not olympiad_equal("9.8", "9.82", 0.01)
        assert olympiad_equal("\\cos 1", "0.54", 1e-3)
        # Each belongs to its reference, in whatever order the answers come.
        assert olympiad_equal("100, 0.1", "0.11, 104", [5, 0.02])
        assert not olympiad_equal("100, 0.1", "0.13, 104", [5, 0.02])
        assert not olympiad_equal("1, 2", "1, 2.5", [1, 1, 1])

    def test_answer_is_looked_for_in_its_sentence(self):
        text = "We box \\boxed{7}.\nSo the final answer is $\\boxed{3}$.\n"
        assert olympiad.answer_sentence(text) == "$\\boxed{3}$."
        chinese = "\u6240\u4ee5\u6700\u7ec8\u7b54\u6848\u662f\\boxed{4}\u3002"
        assert olympiad.answer_formulas(olympiad.answer_sentence(chinese)) == "4"
        assert olympiad.answer_sentence("\\boxed{1}\nAnswer: \\boxed{2}") == "\\boxed{2}"
        assert olympiad.answer_formulas("x\nso $a$ and $b$") == "a,b"

    def test_columns_of_the_benchmark(self):
        metric = METRICS["olympiad"]
        each = row("", final_answer="['$\\frac{1}{2}$']", error=None, answer_type="Numerical")
        assert metric.golds(each) == ("$\\frac{1}{2}$",)
        assert metric.mark(each, "\\boxed{0.5}").score == 1
        loose = row("", answers=["2,3"], error="1e-1,")
        assert metric.mark(loose, "\\boxed{2.05, 3}").score == 1
        assert metric.mark(loose, "\\boxed{2, 3.05}").score == 0
        tuples = row("", answers=["(1,2)"], error="1", answer_type="Tuple")
        assert metric.mark(tuples, "\\boxed{(1,2.5)}").score == 0
        assert metric.mark(loose, "because " * 80).parsed is None


class TestBounds:
    @pytest.mark.parametrize(
        "text",
        [
            "9^{9^{9^{9}}}",
            "10^{10^{10^{10}}}",
            "5000000!",
            "((9!)!)!",
            "x^{x^{x^{x^{x^{x}}}}}",
            "\\exp(\\exp(9))",
            "\\sum_{i=1}^{1000000000} i",
            "\\int_0^1 x dx",
            "1+" * 62 + "1",
            "1+" * 250 + "1",
            "\\frac{1}{2",
            "{" * 150,
            "\u4e2d",
            "",
        ],
    )
    def test_not_computed(self, text):
        assert latex.parse(text) is None

    def test_computed(self):
        assert latex.value(latex.parse("\\frac{\\pi}{2}")) == pytest.approx(math.pi / 2)
        assert latex.value(latex.parse("2^{100}")) == 2.0**100
        assert latex.value(latex.parse("\\sqrt{-4}")) == 2j
        assert latex.value(latex.parse("x")) is None
        assert latex.value(latex.parse("\\frac{1}{0}")) is None

    def test_missing_parser_says_what_to_install(self, monkeypatch):
        latex.parse.cache_clear()
        for name in [name for name in sys.modules if name.startswith("antlr4")]:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, "antlr4", None)
        monkeypatch.setattr(
            "sympy.parsing.latex._parse_latex_antlr.import_module", lambda *_, **__: None
        )
        with pytest.raises(ImportError, match=r"pip install 'internvl\[eval\]'"):
            latex.parse("77")
