"""MVBench. The other video sets are multiple choice: `choice` and `choice_macro`."""

from __future__ import annotations

from typing import Literal

from internvl.evaluation.metrics.family import Mark, Metric, marked, mean_of
from internvl.evaluation.metrics.text import final
from internvl.evaluation.records import Prediction


def mvbench_correct(prediction: str, gold: str, *, peer: Literal["official"] | None = None) -> bool:
    """Whether the first word of an answer names the option of the reference `(A) yes.`

    Args:
        prediction: the answer.
        gold: letter in brackets, a blank, the option's text.
        peer: None is the official rule for answers whose first word has a letter or digit. With
            "official" (`check_ans`) an empty answer is right, for it is part of any reference.
    """
    said = prediction.replace("Answer: ", "").lower().split(" ")[0]
    option = gold.lower().split(" ")[0]
    if peer is None and not any(character.isalnum() for character in said):
        return False
    return said.replace(".", "") in option or option in said


def _read(prediction: Prediction, text: str) -> Mark:
    answer = final(text)
    gold = prediction.answers[0]
    if gold in prediction.choices:
        gold = f"({gold}) {prediction.choices[gold]}"
    word = answer.replace("Answer: ", "").split(" ")[0].strip("().").strip()
    return marked(mvbench_correct(answer, gold), word or None)


MVBENCH = Metric(
    "mvbench",
    "percent",
    "the first word names the option (official check_ans; an empty answer is wrong); the mean over "
    "tasks (column `task_type`, `task` or `category`)",
    _read,
    formula=mean_of("task_type", "task", "category"),
)
