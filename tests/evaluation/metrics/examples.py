"""A few rows for every registered metric, with the score that they must get."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from internvl.evaluation.records import Prediction
from tests.evaluation.metrics.rows import row

ABCD = {"A": "red", "B": "blue", "C": "green", "D": "none of them"}
YES = {"A": "yes", "B": "no"}


@dataclass(frozen=True)
class Example:
    """Rows, the headline, and parts that the summary must have."""

    rows: list[Prediction]
    score: float
    parts: dict[str, float] = field(default_factory=dict)


def numbered(*rows: partial) -> list[Prediction]:
    return [make(id=str(number)) for number, make in enumerate(rows)]


def letters(*pairs: tuple[str, str], **fields: str) -> list[partial]:
    """Multiple choice: (text, right letter)."""
    return [partial(row, text, answers=[right], choices=ABCD, **fields) for text, right in pairs]


def free(text: str, *answers: str, **fields: object) -> partial:
    return partial(row, text, answers=answers, **fields)


def _circular() -> list[Prediction]:
    one = letters(("A", "A"), ("(B)", "B"), ("C. green", "C"), ("The answer is D", "D"))
    two = letters(("A", "A"), ("B", "B"), ("C", "C"), ("C", "D"))
    rows = [make(id=str(7 + 1_000_000 * n), category="color") for n, make in enumerate(one)]
    return rows + [make(id=str(8 + 1_000_000 * n), category="shape") for n, make in enumerate(two)]


def _hallusion() -> list[Prediction]:
    # set 0: two figures with two questions each; set 1: one of each.
    said = {"0_0_0": "Yes", "0_0_1": "No", "0_1_0": "Yes", "0_1_1": "unsure", "1_0_0": "No."}
    truth = {"0_0_0": "Yes", "0_0_1": "No", "0_1_0": "Yes", "0_1_1": "No", "1_0_0": "No"}
    return [
        row(text, answers=[truth[key]], id=f"VD_chart_x_{key}", **{"l2-category": "chart"})
        for key, text in said.items()
    ]


def _mme() -> list[Prediction]:
    rows = [
        free("Yes", "Yes", category="OCR", image_path="1.jpg"),
        free("No", "No", category="OCR", image_path="1.jpg"),
        free("Yes", "Yes", category="OCR", image_path="2.jpg"),
        free("Yes", "No", category="OCR", image_path="2.jpg"),
        free("no", "No", category="code_reasoning", image_path="1.jpg"),
        free("yes", "No", category="code_reasoning", image_path="1.jpg"),
    ]
    return numbered(*rows)


def _pope() -> list[Prediction]:
    said = [("Yes", "Yes", "random"), ("Yes", "No", "random"), ("No", "No", "random")]
    said += [("Yes", "Yes", "popular,adversarial"), ("No", "Yes", "popular")]
    return numbered(*(free(text, right, category=kind) for text, right, kind in said))


def _refcoco() -> list[Prediction]:
    box, size = "[64, 48, 320, 240]", {"height": "480", "width": "640"}
    right, half = "<ref>it</ref><box>[[100, 100, 500, 500]]</box>", "[[100, 100, 300, 499]]"
    rows = [free(right, box, split="RefCOCO_val", **size) for _ in range(3)]
    rows += [free(half, box, split="RefCOCO_testA", **size), free("none", box, split="RefCOCO_val")]
    return numbered(*rows)


def _crpe() -> list[Prediction]:
    right = [free(x, f"{x}. cat", category="object") for x in "ABCD"]
    wrong = [free("A", f"{x}. on top of it", category="predicate") for x in "ABCD"]
    return numbered(*right, *wrong)


def _mathvista() -> list[Prediction]:
    kinds = {"question_type": "free_form", "precision": "1.0", "task": "figure"}
    choice = {"question_type": "multi_choice", "answer_type": "text"}
    rows = [
        free("\\boxed{12.0}", "12", answer_type="integer", skills="['arithmetic']", **kinds),
        free("Answer: 2.34", "2.3", answer_type="float", **kinds),
        free("[2007, 2008]", "[2007, 2008]", answer_type="list", **kinds),
        partial(row, "(B)", answers=["B"], choices=ABCD, **choice),
        partial(row, "grean", answers=["C"], choices=ABCD, **choice),
        free("I see twelve of them", "12", answer_type="integer", **kinds),
    ]
    return numbered(*rows)


MIXED = letters(("A", "A"), ("I think it is blue", "B"), ("A or B", "A"), ("\\boxed{D}", "D"))
EXAMPLES = {
    "anls": Example(
        numbered(free("10 m", "10m"), free("cat", "dog"), free("Two", "two", "2")), 175 / 3
    ),
    "relaxed_accuracy": Example(
        numbered(
            free("104", "100", split="human"),
            free("106", "100", split="human"),
            free("Blue", "blue", split="augmented"),
        ),
        75.0,
        {"split/human": 50.0, "split/augmented": 100.0, "all rows": 200 / 3},
    ),
    "vqa_soft": Example(
        numbered(free("Stop", *["stop"] * 10), free("stop", *["stop"] * 2, *["go"] * 8)), 80.0
    ),
    "yes_no": Example(numbered(free("Yes.", "Yes"), free("yes or no", "No")), 50.0),
    "pope": Example(
        _pope(),
        100 * (2 / 3 + 2 / 3 + 1) / 3,
        {"F1/random": 200 / 3, "F1/pooled": 75.0, "accuracy/random": 200 / 3},
    ),
    "mme": Example(
        _mme(), 75 + 50 + 50, {"perception": 125.0, "cognition": 50.0, "category/OCR": 125.0}
    ),
    "hallusion": Example(
        _hallusion(),
        100 * (4 / 5 + 2 / 3 + 2 / 3) / 3,
        {"aAcc": 80.0, "fAcc": 200 / 3, "qAcc": 200 / 3, "aAcc/l2-category/chart": 80.0},
    ),
    "choice": Example(numbered(*MIXED), 75.0),
    "choice_macro": Example(
        numbered(*letters(("A", "A"), ("A", "B"), task="one"), *letters(("C", "C"), task="two")),
        75.0,
        {"task/one": 50.0, "task/two": 100.0, "all rows": 200 / 3},
    ),
    "circular": Example(
        _circular(), 50.0, {"category/color": 100.0, "category/shape": 0.0, "rows": 87.5}
    ),
    "mmt": Example(
        numbered(
            *letters(("A", "A"), ("A", "A"), ("B", "A"), category="x", **{"l2-category": "k"}),
            *letters(("B", "A"), category="y", **{"l2-category": "k"}),
        ),
        50.0,
        {"l2-category/k": 100 / 3, "category/x": 200 / 3},
    ),
    "mme_realworld": Example(
        numbered(
            *letters(("The best answer is (C)", "C"), category="Perception/OCR"),
            *letters(("The answer is C or so", "D"), category="Reasoning/OCR"),
            *letters(("none of", "D"), category="Reasoning/OCR"),
        ),
        200 / 3,
        {"category/Perception": 100.0, "category/Reasoning": 50.0},
    ),
    "mantis": Example(
        numbered(
            *letters(("(B)", "B"), ("green", "C"), ("B.", "B"), question_type="multi-choice"),
            free("Three", "three", question_type="short-answer"),
        ),
        75.0,
    ),
    "mmiu": Example(numbered(*letters(("A: red", "A"), ("it is green", "C"), task="one")), 100.0),
    "mmmu": Example(
        numbered(*MIXED, free("So the answer is 1,000", "1000"), free("unclear", "7")),
        100 * 4 / 6,
    ),
    "mmmu_pro": Example(
        numbered(
            *letters(("It is A. Answer: B", "B"), ("A", "B"), setting="standard"),
            *letters(("Answer: $C$", "C"), setting="vision"),
        ),
        75.0,
        {"setting/standard": 50.0, "setting/vision": 100.0},
    ),
    "refcoco": Example(_refcoco(), 37.5, {"split/RefCOCO_val": 75.0, "split/RefCOCO_testA": 0.0}),
    "ocrbench": Example(
        numbered(
            free("It says CENTRE.", "centre", category="Regular Text Recognition"),
            free("x^{2}", "x ^ { 2 }", category="Handwritten Mathematical Expression Recognition"),
            free("no", "yes", category="Doc-oriented VQA"),
            free("12", "12", category="Digit String Recognition"),
        ),
        3.0,
        {"category/Text Recognition": 2.0, "category/Doc-oriented VQA": 0.0},
    ),
    "mtvqa": Example(
        numbered(free("le café", "Café.", category="FR"), free("東京", "大阪", category="JA")),
        50.0,
        {"category/FR": 100.0, "category/JA": 0.0},
    ),
    "containment": Example(numbered(free("It is The  Sun", "the sun"), free("a", "b")), 50.0),
    "crpe": Example(_crpe(), 50.0, {"category/object": 100.0, "rows": 62.5}),
    "vcr": Example(
        numbered(free("in the early 19th century", "the early 19th"), free("one b c", "a b", "x")),
        100 / 3,
        {"jaccard": 100 * (1 + 1 / 3 + 0) / 3},
    ),
    "mathvista": Example(_mathvista(), 100 * 5 / 6, {"skill/arithmetic": 100.0}),
    "mathvision": Example(
        numbered(
            *letters(("\\boxed{B}", "B")),
            free("\\boxed{\\frac{3}{4}}", "0.75"),
            free("\\boxed{2\\sqrt{3}}", "$\\sqrt{12}$"),
            free("\\boxed{3.1416}", "\\pi"),
        ),
        75.0,
    ),
    "mathverse": Example(
        numbered(
            free("so \\boxed{B}", "B", question_type="multi-choice", problem_version="Text Lite"),
            free("\\boxed{$60$}", "60", question_type="free-form", problem_version="Vision Only"),
            free("\\boxed{61}", "60", question_type="free-form", problem_version="Vision Only"),
        ),
        200 / 3,
        {"problem_version/Vision Only": 50.0},
    ),
    "olympiad": Example(
        numbered(
            free(
                "So the final answer is \\boxed{3}, \\boxed{2}.", "$2$,$3$", source="OE_MM_maths_en"
            ),
            free("\\boxed{0.52}", "0.5", error="1e-1", source="OE_MM_physics_zh"),
            free("\\boxed{0.7}", "0.5", error="1e-1", source="OE_MM_physics_zh"),
        ),
        200 / 3,
        {"source/maths": 100.0, "source/zh_physics": 50.0},
    ),
    "mvbench": Example(
        numbered(*letters(("(A) red.", "A"), ("b", "B"), ("(C)", "A"), task_type="State Change")),
        200 / 3,
        {"task_type/State Change": 200 / 3},
    ),
    "mirb": Example(
        numbered(
            free("C", "c", task="food"),
            free("in Paris, I think", "Paris", task="sightseeing"),
            free("There are three.", "3", task="count"),
            free("3 cats", "3", task="count"),
            free("no idea", "no", task="analogy"),
        ),
        100 * (1 + 1 / 2 + 1) / 3,
        {"area/Knowledge": 100.0, "area/Perception": 50.0, "all rows": 80.0},
    ),
    "exact": Example(numbered(free("Answer: 1,200.", "1200"), free("a", "b")), 50.0),
}
