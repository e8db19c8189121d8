"""Yes or no: POPE, MME, HallusionBench, and any other set of such questions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from internvl.evaluation.metrics.family import (
    Formula,
    Mark,
    Metric,
    Rows,
    Terms,
    add,
    column,
    labels,
    marked,
)
from internvl.evaluation.metrics.text import final
from internvl.evaluation.metrics.vqa import without_punctuation
from internvl.evaluation.records import Prediction

logger = logging.getLogger(__name__)

Peer = Literal["vlmevalkit", "official_pope", "official_mme"]

_SUBTASKS = 14
_COGNITION = (
    "code_reasoning",
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
)


def extract_yes_no(text: str, *, peer: Peer = "vlmevalkit") -> str | None:
    """Whether a text says yes or no.

    Args:
        text: the answer.
        peer: "vlmevalkit" (`YOrN_Extraction`): one of the two words stands in it, and not the
            other. "official_pope" (eval_pope.py): No if the first sentence has the word no, No or
            not, else Yes, for an empty text too. "official_mme" (calculation.py): what the first
            four characters hold.

    Returns:
        "Yes", "No", or None, which the peers call Unknown and other.
    """
    if peer == "official_pope":
        words = text.split(".")[0].replace(",", "").split(" ")
        return "No" if {"No", "no", "not"} & set(words) else "Yes"
    lowered = text.lower()
    if peer == "official_mme":
        start = lowered[:4]
        return "Yes" if "yes" in start else "No" if "no" in start else None
    found = {"yes", "no"} & set(without_punctuation(lowered).split())
    return found.pop().capitalize() if len(found) == 1 else None


def _reader(peer: Peer) -> Callable[[Prediction, str], Mark]:
    def read(prediction: Prediction, text: str) -> Mark:
        said = extract_yes_no(final(text), peer=peer)
        return marked(said == _truth(prediction), said)

    return read


def _truth(prediction: Prediction) -> str:
    answer = prediction.answers[0].strip().capitalize()
    if answer not in ("Yes", "No"):
        raise ValueError(f"row {prediction.id}: the answer is {answer!r}; expected Yes or No.")
    return answer


# ---------------------------------------------------------------------- POPE
def _pope_terms(rows: Rows) -> Terms:
    """Hits of "yes" by category; a row with several categories counts in each, and once pooled per
    category, as when VLMEvalKit explodes the rows."""
    terms: dict[str, tuple[float, float]] = {}
    for prediction, mark in rows:
        truth, said = _truth(prediction) == "Yes", mark.parsed == "Yes"
        both = float(truth and said)
        for category in str(column(prediction, "category")).split(","):
            for name in (category.strip(), "pooled"):
                add(terms, f"F1/{name}", 2 * both, float(truth) + float(said))
                add(terms, f"accuracy/{name}", mark.score, 1.0)
                add(terms, f"precision/{name}", both, float(said))
                add(terms, f"recall/{name}", both, float(truth))
                add(terms, f"yes/{name}", float(said), 1.0)
    return terms


def _pope_formula(totals: Mapping[str, float]) -> Formula:
    each = [name for name in totals if name.startswith("F1/") and name != "F1/pooled"]
    return {
        "score": dict.fromkeys(each, 100.0 / len(each)),
        **{name: {name: 100.0} for name in totals},
    }


def pope(peer: Peer = "vlmevalkit") -> Metric:
    """POPE: the mean of the F1 of its three categories, as the official script and the report have.

    VLMEvalKit's number, one F1 over all of them, is the part `F1/pooled`.

    Args:
        peer: how yes and no are found; with "vlmevalkit" an answer that says neither is no "yes".
    """
    return Metric(
        "pope",
        "percent",
        "mean F1 of `yes` over the categories random, popular and adversarial (column `category`, "
        "several joined by a comma); part F1/pooled is VLMEvalKit's",
        _reader(peer),
        ("category",),
        _pope_terms,
        _pope_formula,
    )


# ---------------------------------------------------------------------- MME
def _picture(predictions: Sequence[Prediction]) -> list[str]:
    return [f"{column(p, 'category')}/{column(p, 'image_path')}" for p in predictions]


def _mme_terms(rows: Rows) -> Terms:
    """Accuracy over questions, accuracy+ over pictures whose two questions are both right."""
    prediction = rows[0][0]
    subtask = column(prediction, "category")
    terms = {f"acc/{subtask}": (sum(mark.score for _, mark in rows), float(len(rows)))}
    if len(rows) == 2:
        terms[f"acc+/{subtask}"] = (rows[0][1].score * rows[1][1].score, 1.0)
    else:
        logger.warning(
            "MME asks two questions about a picture, and there are %d about %s (%s): it does not "
            "count in acc+.",
            *(len(rows), column(prediction, "image_path"), subtask),
        )
    return terms


def _mme_formula(totals: Mapping[str, float]) -> Formula:
    subtasks = list(dict.fromkeys(name.partition("/")[2] for name in totals))
    if len(subtasks) < _SUBTASKS:
        logger.warning(
            "MME has %d subtasks, and these rows %d, so their sum is lower.",
            *(_SUBTASKS, len(subtasks)),
        )

    def of(chosen: Sequence[str]) -> dict[str, float]:
        both = (f"{kind}/{subtask}" for subtask in chosen for kind in ("acc", "acc+"))
        return {name: 100.0 for name in both if name in totals}

    return {
        "score": of(subtasks),
        "perception": of([each for each in subtasks if each not in _COGNITION]),
        "cognition": of([each for each in subtasks if each in _COGNITION]),
        **{f"category/{each}": of([each]) for each in subtasks},
    }


def mme(peer: Peer = "vlmevalkit") -> Metric:
    """MME: accuracy and accuracy+ of each of 14 subtasks, in per cent, all added up (at most 2800).

    Args:
        peer: how yes and no are found.
    """
    return Metric(
        "mme",
        "points of 2800",
        "accuracy + accuracy+ (both questions about a picture, column `image_path`), in per cent, "
        "summed over the subtasks (column `category`)",
        _reader(peer),
        ("category", "image_path"),
        _mme_terms,
        _mme_formula,
        _picture,
    )


# ---------------------------------------------------------------------- HallusionBench
def _hallusion_key(prediction: Prediction) -> tuple[str, str, str]:
    """Set (with its kind), figure and question, from their columns or from `index`."""
    names = ("set_id", "figure_id", "question_id")
    found = [column(prediction, name) for name in names]
    if None in found:
        index = str(column(prediction, "index"))
        found = list(index.split("_")[3:6])
        if len(found) < 3:
            raise ValueError(
                f"row {prediction.id}: the index {index!r} names no set, figure and question; "
                "expected the form VD_chart_x_0_1_2."
            )
    kind = column(prediction, "l2-category", "subcategory")
    return f"{kind}_{found[0]}", str(found[1]), str(found[2])


def _hallusion_sets(predictions: Sequence[Prediction]) -> list[str]:
    return [_hallusion_key(prediction)[0] for prediction in predictions]


def _hallusion_terms(rows: Rows) -> Terms:
    terms: dict[str, tuple[float, float]] = {}
    figures: dict[str, list[float]] = {}
    questions: dict[str, list[float]] = {}
    for prediction, mark in rows:
        _, figure, question = _hallusion_key(prediction)
        figures.setdefault(figure, []).append(mark.score)
        questions.setdefault(question, []).append(mark.score)
    parts = ["all", *labels(rows[0][0], ("category", "l2-category"))]
    for part in parts:
        add(terms, f"aAcc/{part}", sum(mark.score for _, mark in rows), len(rows))
        add(terms, f"fAcc/{part}", sum(map(min, figures.values())), len(figures))
        add(terms, f"qAcc/{part}", sum(map(min, questions.values())), len(questions))
    return terms


def _hallusion_formula(totals: Mapping[str, float]) -> Formula:
    kinds = ("aAcc", "fAcc", "qAcc")
    return {
        "score": dict.fromkeys((f"{kind}/all" for kind in kinds), 100.0 / 3),
        **{name.removesuffix("/all"): {name: 100.0} for name in totals},
    }


POPE = pope()
MME = mme()
HALLUSION = Metric(
    "hallusion",
    "percent",
    "mean of aAcc (questions), fAcc (figures) and qAcc (questions over all figures of their set) "
    "(VLMEvalKit, report section 5.4); set, figure and question are read from `index`",
    _reader("vlmevalkit"),
    terms=_hallusion_terms,
    formula=_hallusion_formula,
    groups=_hallusion_sets,
)
YES_NO = Metric(
    "yes_no",
    "percent",
    "the text says yes or no, and not the other (VLMEvalKit)",
    _reader("vlmevalkit"),
)
