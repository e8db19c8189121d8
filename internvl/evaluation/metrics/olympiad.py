r"""OlympiadBench: several answers, tolerances, intervals, equations (He et al. 2024).

    text -> the sentence of the answer -> every box -> cleaned -> split at commas -> paired

The rules are those of the official math_judger.py, which VLMEvalKit has too, with three changes.
Formulas with symbols are compared by their values at fixed points instead of sympy's `simplify`,
whose time has no bound. Of several tolerances each belongs to its reference, where the official
call hands the answer over in the place of the reference. And parts are paired in the best way
instead of greedily, which can give away a part that another one needs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from internvl.evaluation.metrics import latex
from internvl.evaluation.metrics.family import (
    Mark,
    Metric,
    Rows,
    Terms,
    add,
    average,
    column,
    given_answers,
    marked,
)
from internvl.evaluation.records import Prediction

_TOLERANCE = 1e-8
_SENTENCE = re.compile(
    "(?:So the final answer is |\u6240\u4ee5\u6700\u7ec8\u7b54\u6848\u662f"
    r"|^\W*(?:Answer|\u7b54\u6848)\W{0,4}[:\uff1a])(.*)",
    re.MULTILINE,
)
_REPLACED = {
    "\\left": "",
    "\\right": "",
    "\u2236": ":",
    "\uff0c": ",",
    "$": "",
    "\\approx": "=",
    "\\simeq": "=",
    "\\sim": "=",
    "^\\prime": "'",
    "^{\\prime}": "'",
    "^\\circ": "",
    "%": "",
}
_ENDS = "\n$,.:;^_=+`!@#%&*~\uff0c\u3002"
_STYLE = re.compile(r"\\(?:mathrm|mathbf)\{~?([^}]*)\}")
_HAN = re.compile("[\u4e00-\u9fff]+")
_DOLLARS = re.compile(r"\$(.*?)\$")
_OPEN, _CLOSED = ("(", "["), (")", "]")


# ---------------------------------------------------------------------- finding
def answer_sentence(text: str) -> str:
    """What follows the last "So the final answer is" (or its Chinese), or the last "Answer:", which
    the prompt of Figure 9 asks for; the whole text without either."""
    found = _SENTENCE.findall(text)
    return found[-1].strip() if found else text


def answer_formulas(text: str) -> str | None:
    r"""All `\boxed{}` of a text, joined by commas; else the formulas in `$` of its last line; else
    the text. None when a box does not end."""
    contents = []
    for match in re.finditer(r"\\boxed\{", text):
        depth, end = 1, match.end()
        while depth and end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth:
            return None
        contents.append(text[match.end() : end - 1])
    if not contents:
        contents = _DOLLARS.findall(text.strip().rpartition("\n")[2])
    return ",".join(contents) if contents else text


def _clean(text: str) -> str:
    if "\\in " in text:
        text = text.split("\\in ")[1]
    for old, new in _REPLACED.items():
        text = text.replace(old, new)
    return _STYLE.sub(r"\1", text.strip(_ENDS))


def _items(text: str) -> list[str]:
    """Split at commas outside brackets; an item with a plus-minus sign becomes two."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(text):
        if character in _OPEN:
            depth += 1
        elif character in _CLOSED:
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    if start < len(text):
        parts.append(text[start:].strip())
    signs = (("+", "-") if "\\pm" in part else (None,) for part in parts)
    return [
        part if sign is None else part.replace("\\pm", sign)
        for part, each in zip(parts, signs, strict=True)
        for sign in each
    ]


# ---------------------------------------------------------------------- comparing
def olympiad_equal(
    reference: str, answer: str, tolerance: float | Sequence[float] = _TOLERANCE
) -> bool:
    r"""Whether an answer is the reference: every part of one is a part of the other.

    Parts are equal as texts; as numbers within the tolerance, per cents counting as fractions or
    not; as intervals, end by end; as formulas, of which only the right side of `=` counts; or as
    equations of which one is a whole multiple of the other.

    Args:
        reference: right answers, with commas between.
        answer: those of the model, or its whole text with `\boxed{}`.
        tolerance: absolute; one, or one per part of the reference.

    Returns:
        False too for an empty answer.
    """
    texts = [answer_formulas(text) for text in (reference, answer)]
    if texts[0] is None or texts[1] is None:
        return False
    first, second = (_clean(text) for text in texts if text is not None)
    if not second.strip():
        return False
    if first == second:
        return True
    wanted, given = (_items(_HAN.sub("", text)) for text in (first, second))
    tolerances = [tolerance] if isinstance(tolerance, (int, float)) else list(tolerance)
    if len(tolerances) == 1:
        tolerances = tolerances * len(wanted)
    if len(wanted) != len(given) or len(tolerances) != len(wanted):
        return False
    return _paired(wanted, given, tolerances)


def _paired(wanted: Sequence[str], given: Sequence[str], tolerances: Sequence[float]) -> bool:
    """Whether the parts can be paired so that all pairs are the same (Kuhn's algorithm)."""
    partners: dict[int, int] = {}  # place in `given` -> place in `wanted`

    def pair(place: int, tried: set[int]) -> bool:
        for other, text in enumerate(given):
            if other in tried or not _same(wanted[place], text, tolerances[place]):
                continue
            tried.add(other)
            if other not in partners or pair(partners[other], tried):
                partners[other] = place
                return True
        return False

    return all(pair(place, set()) for place in range(len(wanted)))


def _same(reference: str, answer: str, tolerance: float) -> bool:
    if reference == answer:
        return reference != ""
    both = (reference, answer)
    intervals = all(text.startswith(_OPEN) and text.endswith(_CLOSED) for text in both)
    if intervals and _same_intervals(reference, answer, tolerance):
        return True
    numbers = [_float(text) for text in both]
    if numbers[0] is not None and numbers[1] is not None:
        forms = (numbers[0] / 100, numbers[0], numbers[0] * 100)
        if any(latex.same_value(form, numbers[1], tolerance) for form in forms):
            return True
    if not all("=" in text for text in both) and _same_formulas(reference, answer, tolerance):
        return True
    return _same_equations(reference, answer)


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _same_intervals(reference: str, answer: str, tolerance: float) -> bool:
    """Unions of intervals, or tuples: the same brackets, the same ends, in the same order."""
    pieces = [text.split("\\cup") for text in (reference, answer)]
    if len(pieces[0]) != len(pieces[1]):
        return False
    for one, two in zip(*pieces, strict=True):
        one, two = one.strip(), two.strip()
        if not one or not two or (one[0], one[-1]) != (two[0], two[-1]):
            return False
        ends = [text.strip("[]()").split(",") for text in (one, two)]
        if len(ends[0]) != len(ends[1]):
            return False
        pairs = zip(ends[0], ends[1], strict=True)
        if not all(_same_formulas(first, second, tolerance) for first, second in pairs):
            return False
    return True


def _same_formulas(reference: str, answer: str, tolerance: float) -> bool:
    sides = [text.split("=")[1] if "=" in text else text for text in (reference, answer)]
    first, second = (_parsed(side) for side in sides)
    if first is None or second is None:
        return False
    if first == second:
        return True
    if bool(first.free_symbols) != bool(second.free_symbols):
        return False
    if first.free_symbols:
        return latex.same_function(first, second)
    values = latex.value(first), latex.value(second)
    if values[0] is None or values[1] is None:
        return False
    return latex.same_value(values[0], values[1], tolerance)


def _parsed(text: str) -> Any:
    import sympy

    expression = latex.parse(text)
    return expression if isinstance(expression, sympy.Expr) else None


def _same_equations(reference: str, answer: str) -> bool:
    import sympy

    if reference.count("=") != 1 or answer.count("=") != 1:
        return False
    first, second = latex.parse(reference), latex.parse(answer)
    if not (isinstance(first, sympy.Equality) and isinstance(second, sympy.Equality)):
        return False
    return latex.same_equation(first, second)


# ---------------------------------------------------------------------- the benchmark
def _golds(prediction: Prediction) -> tuple[str, ...]:
    """The answers, or the column `final_answer`, a list of one text."""
    if given := given_answers(prediction):
        return given
    cell = column(prediction, "final_answer")
    if isinstance(cell, (list, tuple)):
        return tuple(map(str, cell))
    # As VLMEvalKit: brackets and quotes off. Read as a list, `\\f` would become a form feed.
    return () if cell is None else (str(cell)[2:-2].replace("\\\\", "\\"),)


def _tolerances(prediction: Prediction) -> float | list[float]:
    error = column(prediction, "error")
    if error is None or "Tuple" in str(column(prediction, "answer_type")):
        return _TOLERANCE
    parts = [float(part) if part.strip() else _TOLERANCE for part in str(error).split(",")]
    return parts[0] if len(parts) == 1 else parts


def _read(prediction: Prediction, text: str) -> Mark:
    sentence = answer_sentence(text)
    formulas = answer_formulas(sentence)
    if formulas is None or (formulas == text and len(text) > latex.LONGEST):
        return marked(False, None)  # a long text that marks no answer
    limit = _tolerances(prediction)
    right = any(olympiad_equal(gold, sentence, limit) for gold in _golds(prediction))
    return marked(right, _clean(formulas))


def _terms(rows: Rows) -> Terms:
    terms = dict(average(rows))
    for prediction, mark in rows:
        source = str(column(prediction, "source") or "")
        if not source:
            continue
        subject = "maths" if "maths" in source else "physics"
        language = "zh" if "zh" in source else "en"
        for name in (source, subject, f"{language}_{subject}"):
            add(terms, f"source/{name}", mark.score, 1.0)
    return terms


OLYMPIAD = Metric(
    "olympiad",
    "percent",
    "every answer equal as text, number (tolerance in column `error`), interval, formula or "
    "equation (official math_judger.py); over all rows, parts by `source`",
    _read,
    terms=_terms,
    golds=_golds,
)
