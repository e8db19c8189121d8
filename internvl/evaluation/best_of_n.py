"""Best of N: a scorer of the user's chooses one of the answers to each question.

    run with N answers per row + Scorer -> scores -> the best answer -> any metric

Only the hook is here. The report has no reward model, and no checkpoint of this repository has a
reward head: VisualPRM-8B, which VLMEvalKit uses for InternVL (`best_of_n`), is another model with
code of its own. Whoever has one writes a function around it and names it: `load_scorer`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

from tqdm import tqdm

from internvl.evaluation.records import Prediction


class Scorer(Protocol):
    """Says how good an answer is."""

    def __call__(self, question: str, images: Sequence[Any], response: str) -> float:
        """Score one answer.

        Args:
            question: as the model was asked, `<image>` tags included.
            images: path, bytes or PIL image each, as in `Sample`.
            response: the answer.

        Returns:
            A finite number; higher is better. Only answers to one question are compared.
        """
        ...


def load_scorer(name: str) -> Scorer:
    """Import a scorer.

    Args:
        name: "package.module:function"; the function may be any callable, also an attribute of an
            object ("my_rewards:MODEL.score").

    Raises:
        ValueError: another form, a module that does not exist, or something that cannot be called.
    """
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise ValueError(f"the scorer is {name!r}; expected package.module:function.")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the scorer {name!r} cannot be imported: {error}; install it, or run where it can be "
            "imported from (PYTHONPATH)."
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"the scorer {name!r}: {module_name} has no {path!r}.")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(
            f"the scorer {name!r} is a {type(found).__name__}; expected a function of question, "
            "images and response."
        )
    return cast(Scorer, found)


def response_scores(
    predictions: Sequence[Prediction],
    scorer: Scorer,
    images: Mapping[str, Sequence[Any]] | None = None,
) -> dict[str, list[float]]:
    """Score every answer; an answer that a row has twice is scored once.

    Args:
        predictions: rows with their answers.
        scorer: the scorer.
        images: id of the sample -> its images (`{each.id: each.images for each in samples}`), for
            a predictions file has none. None for a scorer that reads text alone: it gets ().

    Returns:
        id -> score of each answer, in their order.

    Raises:
        ValueError: a row without images in `images`, or a score that is no finite number.
    """
    found: dict[str, list[float]] = {}
    for each in tqdm(predictions, desc="scorer", unit="question", disable=None):
        if images is not None and each.id not in images:
            raise ValueError(
                f"row {each.id!r} has no entry in the images; read them from the file of its run."
            )
        shown = () if images is None else images[each.id]
        known: dict[str, float] = {}
        for response in each.responses:
            if response.text not in known:
                known[response.text] = _number(scorer(each.prompt, shown, response.text), each.id)
        found[each.id] = [known[response.text] for response in each.responses]
    return found


def _number(value: Any, row: str) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"row {row!r}: the scorer returned {value!r}; expected a finite number.")
    return score


def best_of_n(
    predictions: Sequence[Prediction],
    scorer: Scorer,
    images: Mapping[str, Sequence[Any]] | None = None,
) -> list[Prediction]:
    """Keep the answer with the highest score of each row; of equal ones the first.

    What it returns is scored and compared like the predictions of any other run.

    Args:
        predictions: rows with their answers; they stay as they are.
        scorer: the scorer.
        images: as in `response_scores`.

    Raises:
        ValueError: as in `response_scores`, or a row without answers.
    """
    silent = [each.id for each in predictions if not each.responses]
    if silent:
        raise ValueError(f"row {silent[0]!r} has no answers to choose from; run it again.")
    scores = response_scores(predictions, scorer, images)
    places = {key: row.index(max(row)) for key, row in scores.items()}
    return [replace(each, responses=(each.responses[places[each.id]],)) for each in predictions]


def by_scores(scores: Mapping[str, Sequence[float]]) -> Callable[[Prediction, Sequence[Any]], int]:
    """The scores as a rule for `scoring.score(choose=...)`, which then also counts what was not
    chosen as unparsed or truncated.

    Args:
        scores: what `response_scores` returned.
    """

    def choose(prediction: Prediction, marks: Sequence[Any]) -> int:
        row = scores[prediction.id]
        return row.index(max(row)) if len(row) == len(marks) else -1

    return choose
