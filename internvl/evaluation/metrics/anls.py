"""ANLS, average normalised Levenshtein similarity: DocVQA and InfoVQA (Biten et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from internvl.evaluation.metrics.family import Mark, Metric, marked
from internvl.evaluation.metrics.text import edit_distance, final
from internvl.evaluation.records import Prediction


def anls(
    prediction: str,
    answers: Sequence[str],
    threshold: float = 0.5,
    *,
    peer: Literal["official", "paper"] | None = None,
) -> float:
    """Similarity to the nearest of the accepted answers.

    1 - distance / length, case and runs of blanks aside; below the threshold it is 0. As the script
    of the challenge has it, `length` is that of the longer text AS WRITTEN, blanks included.

    Args:
        prediction: the answer.
        answers: those accepted.
        threshold: the least similarity that counts.
        peer: whose rule. None: the official one, but a blank answer scores 0. "official"
            (infographicsvqa_eval.py, equal to VLMEvalKit's): a blank answer equals a blank
            reference. "paper" (and the package `anls`): exactly the threshold is not enough.

    Returns:
        0 to 1; 0 without answers.
    """
    if not answers or (peer is None and not prediction.strip()):
        return 0.0
    best = max(_similarity(prediction, answer) for answer in answers)
    enough = best > threshold if peer == "paper" else best >= threshold
    return best if enough else 0.0


def _similarity(prediction: str, answer: str) -> float:
    one, two = (" ".join(text.lower().split()) for text in (prediction, answer))
    length = max(len(prediction.upper()), len(answer.upper()))  # not len(text): "\u00df" has 2
    return 1.0 if length == 0 else 1.0 - edit_distance(one, two) / length


def _read(prediction: Prediction, text: str) -> Mark:
    answer = final(text)
    return marked(anls(answer, prediction.answers), answer)


ANLS = Metric(
    "anls",
    "percent",
    "ANLS, threshold 0.5, best of the accepted answers (official script of the challenge)",
    _read,
)
