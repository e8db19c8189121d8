"""MIRB: a rule per task, the mean of the tasks of each of four areas (Zhao et al. 2024)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from internvl.evaluation.metrics.family import (
    Formula,
    Mark,
    Metric,
    column,
    marked,
    percentages,
)
from internvl.evaluation.metrics.text import final
from internvl.evaluation.records import Prediction

AREAS = {
    "Knowledge": ("food", "sightseeing"),
    "Reasoning": ("codeu", "plot_code", "analogy", "3d_scene"),
    "Perception": ("image_jigsaw", "count", "attribute"),
    "Multi-Hop": ("visual_chain", "arxiv"),
}
_YES_NO = ("analogy", "attribute")
_CONTAINED = ("sightseeing",)
_COUNTED = ("count", "visual_chain", "3d_scene", "image_needles")
_CARDINALS = "zero one two three four five six seven eight nine ten"
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth"
_WORDS = {word: str(value) for value, word in enumerate(_CARDINALS.split())} | {
    word: str(value) for value, word in enumerate(_ORDINALS.split(), 1)
}


def mirb_answer(task: str, prediction: str) -> str:
    """What an answer says: its first line or sentence; its first number where things are counted.

    Args:
        task: such as "count"; `_concat` variants are treated alike.
        prediction: the answer.

    Returns:
        "" where a number was asked for and there is none.
    """
    text = prediction.strip()
    end = text.find("\n")
    if end <= 0:
        end = text.find(".")
    if end > 0:
        text = text[:end]
    if task.removesuffix("_concat") in _COUNTED:
        number = re.search(r"\d+", text)
        return number[0] if number else _WORDS.get(text.lower(), "")
    return text


def mirb_correct(task: str, prediction: str, answer: str) -> bool:
    """Whether an answer is right by the rule of its task (official evaluate_mirb.py).

    Equal, case aside; where yes or no is asked, "yes" stands in it or not; for sightseeing the
    reference stands in it. A blank answer is wrong, where the official script takes it for a no.
    """
    said, wanted = mirb_answer(task, prediction).lower(), answer.lower()
    if not said.strip():
        return False
    asked = task in _YES_NO or (task in _CONTAINED and wanted in ("yes", "no"))
    if asked:
        return wanted in ("yes", "no") and ("yes" in said) == (wanted == "yes")
    return wanted in said if task in _CONTAINED else wanted == said


def _read(prediction: Prediction, text: str) -> Mark:
    task, answer = str(column(prediction, "task")), final(text)
    right = any(mirb_correct(task, answer, each) for each in prediction.answers)
    return marked(right, mirb_answer(task, answer) or None)


def _formula(totals: Mapping[str, float]) -> Formula:
    """The mean over areas of the mean over their tasks; other tasks of the set are only shown."""
    parts = dict(percentages(totals))
    areas = {}
    for area, tasks in AREAS.items():
        there = [f"task/{task}" for task in tasks if f"task/{task}" in totals]
        if there:
            areas[area] = dict.fromkeys(there, 100.0 / len(there))
    if areas:
        parts["all rows"] = parts["score"]
        parts["score"] = {
            name: weight / len(areas) for each in areas.values() for name, weight in each.items()
        }
    return parts | {f"area/{area}": weights for area, weights in areas.items()}


MIRB = Metric(
    "mirb",
    "percent",
    "equal, containing or yes/no, as the task has it (official evaluate_mirb.py); the mean of the "
    "areas Knowledge, Reasoning, Perception and Multi-Hop, each the mean of its tasks (column "
    "`task`)",
    _read,
    ("task",),
    formula=_formula,
)
