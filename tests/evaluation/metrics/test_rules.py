"""What holds for every metric, and the decisions where we depart from a peer."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl.evaluation import metrics
from internvl.evaluation.metrics import (
    chartqa,
    choices,
    grounding,
    mirb,
    mmmu,
    ocr,
    vcr,
    video,
    vqa,
)
from internvl.evaluation.metrics.anls import anls
from internvl.evaluation.metrics.crpe import crpe_correct
from internvl.evaluation.metrics.family import UNPARSED, Mark
from internvl.evaluation.metrics.math_answers import math_equal, normalize_extracted_answer
from internvl.evaluation.scoring import METRICS
from tests.evaluation.metrics.examples import ABCD, EXAMPLES, letters, numbered
from tests.evaluation.metrics.rows import row

NAMES = sorted(METRICS)
# Texts that come near answers: letters, boxes, numbers and words of the examples.
PIECES = st.sampled_from(
    ["A", "(B)", "Answer: ", "\\boxed{", "}", "12", "1/2", "\\frac{1}{2}", "yes", "no", "\n", ".",
     "[[1, 2, 3, 4]]", "red", "$", " ", ",", "=", "\u0000", "the "]
)  # fmt: skip
LETTERS = st.sampled_from("aAbB 12.,'-\n\\${}[]\u00e9\u00df\u0130\u3000\u4e2d\u0660")
WORDS = st.text(LETTERS, max_size=20)
TEXTS = st.one_of(WORDS, st.lists(PIECES, max_size=6).map("".join))
BLANKS = ["", " ", "\n\t ", "\u3000"]


@pytest.fixture(autouse=True)
def _split_at_blanks(monkeypatch):
    """VCR without spaCy; test_golden.py has it."""
    monkeypatch.setattr(vcr, "_english", lambda: str.split)


def marks(name):
    return [METRICS[name].mark(each, each.text) for each in EXAMPLES[name].rows]


def test_every_metric_has_an_example():
    assert set(EXAMPLES) == set(METRICS)


@pytest.mark.parametrize("name", NAMES)
def test_summary_of_the_example(name):
    example = EXAMPLES[name]
    parts = METRICS[name].summarise(example.rows, marks(name))
    assert parts["score"] == pytest.approx(example.score, abs=1e-9)
    assert {part: parts.get(part) for part in example.parts} == pytest.approx(example.parts)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_the_rows_does_not_matter(name):
    pairs = list(zip(EXAMPLES[name].rows, marks(name), strict=True))
    expected = METRICS[name].summarise(*zip(*pairs, strict=True))
    random.Random(1).shuffle(pairs)
    shuffled = METRICS[name].summarise(*zip(*pairs, strict=True))
    assert shuffled == pytest.approx(expected)


@pytest.mark.parametrize("name", NAMES)
def test_blank_answers_never_score(name):
    for each in EXAMPLES[name].rows:
        for text in [*BLANKS, "\\boxed{}", "\\boxed{ }"]:
            if name == "vcr" and text not in BLANKS:
                continue  # words between braces are words there
            assert METRICS[name].mark(each, text).score == 0, text
        assert METRICS[name].mark(each, "") == UNPARSED


@settings(max_examples=15)
@given(text=TEXTS)
def test_no_text_breaks_a_metric(text):
    for name in NAMES:
        for each in EXAMPLES[name].rows[-1:]:
            mark = METRICS[name].mark(each, text)
            assert 0 <= mark.score <= 1, name
            assert mark.parsed is None or mark.parsed.strip(), name


@settings(max_examples=20)
@given(text=TEXTS)
def test_blank_answers_of_the_functions_never_score(text):
    references = [text, ""]
    for blank in BLANKS:
        assert anls(blank, references) == 0
        assert chartqa.relaxed_accuracy(blank, references) == 0
        assert vqa.vqa_soft_accuracy(blank, references) == 0
        assert not ocr.contains(blank, references)
        assert not ocr.ocrbench_hit("Digit String Recognition", references, blank)
        assert not ocr.mtvqa_hit(blank, text)
        assert not crpe_correct(f"A. {text}", blank)
        assert not video.mvbench_correct(blank, f"(A) {text}")
        assert not mirb.mirb_correct("attribute", blank, "no")
        assert not math_equal(blank, text)
        assert not math_equal(text, blank)
        assert normalize_extracted_answer(blank, ["a"], "multi_choice", "text", None) is None
        assert choices.first_letter(blank, ABCD) is None


@settings(max_examples=25)
@given(WORDS.filter(str.strip), WORDS)
def test_anls_is_a_similarity(one, two):
    assert anls(one, [one]) == 1
    assert anls(one, [two, one]) == 1
    assert 0 <= anls(one, [two]) <= 1
    if two.strip():
        assert anls(one, [two], 0.0) == anls(two, [one], 0.0)
    assert anls(one, [two]) in (0.0, anls(one, [two], 0.0))
    assert anls(one, [two]) == 0 or anls(one, [two]) >= 0.5


@settings(max_examples=20)
@given(st.lists(st.sampled_from(["a cat", "cat", "dog", "2", "two"]), min_size=10, max_size=10))
def test_vqa_soft_accuracy_counts_matches(answers):
    for text in ("cat", "2", "bird"):
        same = sum(vqa.normalize_vqa_answer(each) == text for each in answers)
        # Leave one out in closed form: own votes see one match less.
        expected = (same * min(1, (same - 1) / 3) + (10 - same) * min(1, same / 3)) / 10
        assert vqa.vqa_soft_accuracy(text, answers) == pytest.approx(max(0, expected))


def test_nothing_is_run_as_code():
    banned = {"eval", "exec", "compile", "sympify", "parse_expr", "__import__"}
    for path in Path(metrics.__file__).parent.glob("*.py"):
        names = {
            getattr(node.func, "attr", getattr(node.func, "id", ""))
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
            and not (
                isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "re"
            )
        }
        assert not names & banned, path.name


def test_marks_refuse_nonsense():
    for score in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match="expected 0 to 1"):
            Mark(score, "x")
    for nothing in (None, " "):
        with pytest.raises(ValueError, match="never scores"):
            Mark(1.0, nothing)


def test_missing_column_is_named():
    with pytest.raises(ValueError, match=r"row 7 has no column image_path.*'mme'.*has category"):
        METRICS["mme"].mark(row("Yes", answers=["Yes"], id="7", category="OCR"), "Yes")


# ---------------------------------------------------------------------- single rules
def test_choice_is_vlmevalkits_rule_and_then_the_marked_answer():
    undecided = "Option A is wrong, B too.\nAnswer: \\boxed{C}"
    assert choices.chosen_letter(undecided, ABCD) == "C"
    assert choices.chosen_letter("A is wrong and B is wrong.\nAnswer: D", ABCD) == "D"
    assert choices.chosen_letter("A or B", ABCD) is None
    assert choices.chosen_letter("E", ABCD) is None


def test_circular_needs_numbers_and_warns_of_missing_copies(caplog):
    metric = METRICS["circular"]
    rows = [make(id=f"{n}000005") for n, make in enumerate(letters(("A", "A"), ("B", "B")), 1)]
    parts = metric.summarise(rows, [metric.mark(each, each.text) for each in rows])
    assert parts["score"] == 100
    assert "Question 5 has 2 of its 4 shifted copies" in caplog.text
    with pytest.raises(ValueError, match="index 'x' is no number"):
        metric.groups([row("A", id="x")])


def test_mme_pairs_pictures_and_warns(caplog):
    rows = [
        row("Yes", answers=["Yes"], id=str(n), category="count", image_path=f"{n}.jpg")
        for n in range(2)
    ]
    metric = METRICS["mme"]
    parts = metric.summarise(rows, [metric.mark(each, each.text) for each in rows])
    assert parts["category/count"] == 100  # accuracy only, no picture has both questions
    assert "there are 1 about 0.jpg" in caplog.text
    assert "MME has 14 subtasks, and these rows 1" in caplog.text


def test_crpe_rows_have_to_be_whole_questions():
    metric, rows = METRICS["crpe"], EXAMPLES["crpe"].rows
    with pytest.raises(ValueError, match=r"rows 2, 3, 4, 5 are no question of CRPE"):
        metric.summarise(rows[2:], [UNPARSED] * 6)
    shifted = [row("A", answers=["A. x"], id=str(n), category="object") for n in range(5, 13)]
    assert len(set(metric.groups(shifted))) == 2  # an index that starts at 5


def test_mme_realworld_takes_the_first_capital():
    assert choices.first_letter("The correct answer is B, not A", ABCD) == "B"
    assert choices.first_letter("it is blue", ABCD) is None
    assert choices.first_letter("blue", ABCD) == "B"
    assert choices.first_letter("?", ABCD) is None


def test_mirb_rules_differ_by_task():
    assert mirb.mirb_correct("count", "I see 12 of them.\n13", "12")
    assert mirb.mirb_correct("3d_scene_concat", "Seven.", "7")
    assert not mirb.mirb_correct("count", "many", "7")
    assert mirb.mirb_correct("attribute", "nothing alike", "no")
    assert not mirb.mirb_correct("attribute", "yes it is", "no")
    assert mirb.mirb_correct("sightseeing", "This is Big Ben in London", "big ben")
    assert not mirb.mirb_correct("arxiv", "A title and more", "a title")
    assert mirb.mirb_correct("arxiv", "A Title.", "a title")


def test_mmmu_pro_follows_the_official_order():
    metric = METRICS["mmmu_pro"]
    (each,) = numbered(*letters(("", "B")))
    assert metric.mark(each, "A is tempting. Answer: B").parsed == "B"
    assert metric.mark(each, "(A) and then (B)").parsed == "B"
    assert metric.mark(each, "no idea").parsed is None
    with pytest.raises(ValueError, match="has no options"):
        metric.mark(row("A", answers=["A"]), "A")


def test_mmmu_open_answers_do_not_match_nothing():
    assert not mmmu.eval_open("", mmmu.parse_open_response("anything"))
    assert mmmu.eval_open(["red", "blue"], mmmu.parse_open_response("It is dark blue."))
    assert not mmmu.eval_open("5", mmmu.parse_open_response("55"))


def test_refcoco_reads_every_form_of_the_reference():
    metric, text = METRICS["refcoco"], "[[100, 100, 500, 500]]"
    corners = {"bbox_x1": "64", "bbox_y1": "48", "bbox_x2": "320.0", "bbox_y2": "240"}
    for fields, answers in (
        (corners, ()),
        ({"bbox": [64, 48, 320, 240]}, ()),
        ({"bbox": "[0.1, 0.1, 0.5, 0.5]"}, ()),  # fractions of the sides
        ({}, ["[64.0, 48.0, 320.0, 240.0]"]),
    ):
        each = row(text, answers=answers, **fields)
        assert metric.mark(each, text) == Mark(1.0, "[64, 48, 320, 240]", {"iou": 1.0})
        assert metric.golds(each) == ("[64.0, 48.0, 320.0, 240.0]",)
    assert metric.golds(row(text)) == ()
    with pytest.raises(ValueError, match="has 3 numbers; expected 4"):
        metric.mark(row(text, answers=["[1, 2, 3]"]), text)


def test_refcoco_reads_fractions_as_the_official_script_does():
    size = {"height": 480, "width": 640}
    assert grounding.predicted_box("[[0.1, 0.1, 0.5, 0.5]]", **size) == (64, 48, 320, 240)
    assert grounding.predicted_box("[[1, 1, 1, 1]]", **size)[2] == pytest.approx(0.64)
    pixels = grounding.predicted_box("[[0, 0, 1200, 100]]", peer="vlmevalkit", **size)
    assert pixels == (0, 0, 640, 100)
    assert grounding.predicted_box("(100,100),(500,500)", **size) is None
    both = grounding.predicted_box("(100,100),(500,500)", peer="vlmevalkit", **size)
    assert both == (64, 48, 320, 240)


def test_vcr_takes_any_tokenizer_and_refuses_refusals():
    whole = vcr.vcr_score("a b c d", ["b c", "c x"], tokenize=str.split)
    assert [blank.exact_match for blank in whole] == [1.0, 0.0]
    assert whole[1].jaccard == pytest.approx(1 / 3)
    assert vcr.vcr_score("Sorry, b c", ["b c"], tokenize=str.split) == [vcr.Blank()]
    assert vcr.vcr_score("Assistant: b c", ["b c"], tokenize=str.split)[0].exact_match == 1


def test_vcr_counts_stretches_and_not_pictures():
    metric = METRICS["vcr"]
    rows = [row("", answers=["a"], id="0"), row("", answers=["b", "c", "d"], id="1")]
    both = [Mark(1.0, "a", {"jaccard": 1.0}), UNPARSED]
    assert metric.summarise(rows, both) == {"score": 25.0, "jaccard": 25.0}


def test_a_reference_that_nothing_can_match_is_an_error():
    stray = row("A", answers=["1"], choices=ABCD)
    for name in ("choice", "circular", "mme_realworld", "mantis", "mmiu", "mmmu", "mmmu_pro"):
        with pytest.raises(
            ValueError, match=r"row 0: the reference \['1'\] is none of the options"
        ):
            METRICS[name].read(stray, "A")
    with pytest.raises(ValueError, match="row 0 has 1 reference answer"):
        METRICS["vqa_soft"].read(row("red", answers=["red"]), "red")
    assert METRICS["vqa_soft"].read(row("red", answers=["red"] * 10), "red").score == 1


def test_a_letter_alone_is_no_text_that_an_answer_of_crpe_may_hold():
    assert not crpe_correct("A", "cannot tell")
    assert crpe_correct("A", "A")
    assert crpe_correct("A. on the table", "it is on the table")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A dog is sitting on the big red mat over there", None),
        ("After looking at all four of them, the answer is B", "B"),
        ("A cat is there", "A"),  # of the golden cases: among the last four words
        ("B is what the picture shows, and so it is a blue dog", None),
    ],
)
def test_a_letter_far_from_the_end_is_a_word(text, letter):
    choices = {"A": "red cat", "B": "blue hat", "C": "green bird", "D": "none of the above"}
    assert metrics.choices.chosen_letter(text, choices) == letter
