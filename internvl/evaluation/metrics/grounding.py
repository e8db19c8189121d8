"""RefCOCO, RefCOCO+ and RefCOCOg: is the box of an answer the region that was described?"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Literal

from internvl.evaluation.metrics.family import (
    Mark,
    Metric,
    Rows,
    Terms,
    add,
    column,
    labels,
    mean_of,
)
from internvl.evaluation.records import Prediction
from internvl.grounding import Four, iou, parse_boxes

_NUMBER = r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?"
_NUMBERS = re.compile(_NUMBER)
_BRACKETS = re.compile(r"\[\s*" + r"(?:\s*,\s*|\s+)".join([f"({_NUMBER})"] * 4) + r"\s*\]")
_CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
_ENOUGH = 0.5


def predicted_box(
    text: str,
    *,
    height: float,
    width: float,
    peer: Literal["official", "vlmevalkit"] = "official",
) -> Four | None:
    """The first box of an answer, in pixels, or None.

    Args:
        text: the answer.
        height: of the image, in pixels.
        width: of the image, in pixels.
        peer: "official" (evaluate_grounding.py) takes four numbers in brackets as they are, in
            thousandths, or as fractions when they sum to less than 4. "vlmevalkit" takes any four
            numbers, as fractions if none exceeds 1.5 and as pixels if one exceeds 1000, clips them
            to the image and puts the corners in order.

    Returns:
        (x1, y1, x2, y2).
    """
    if peer == "official":
        boxes = parse_boxes(text, height=int(height), width=int(width), scale="auto")
        return boxes[0].unclipped if boxes else None
    match = _BRACKETS.search(text)
    numbers = match.groups() if match else _NUMBERS.findall(text)[:4]
    if len(numbers) < 4:
        return None
    values = [float(number) for number in numbers]
    largest = max(map(abs, values))
    scale = 1.0 if largest <= 1.5 else 1000.0
    sides = (width, height, width, height)
    if largest <= 1000:
        values = [value * side / scale for value, side in zip(values, sides, strict=True)]
    x1, y1, x2, y2 = (min(max(v, 0.0), side) for v, side in zip(values, sides, strict=True))
    return (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))


def refcoco_iou(
    text: str,
    truth: Sequence[float],
    *,
    height: float,
    width: float,
    peer: Literal["official", "vlmevalkit"] = "official",
) -> float:
    """Intersection over union of the first box of an answer and the true one.

    Args:
        text: the answer.
        truth: x1, y1, x2, y2 in pixels.
        height: of the image, in pixels.
        width: of the image, in pixels.
        peer: as in `predicted_box`. The official rule keeps swapped corners, which have no area.

    Returns:
        0 to 1; 0 without a box.
    """
    box = predicted_box(text, height=height, width=width, peer=peer)
    return 0.0 if box is None else iou(box, truth)


def refcoco_hit(
    text: str,
    truth: Sequence[float],
    *,
    height: float,
    width: float,
    peer: Literal["official", "vlmevalkit"] = "official",
) -> bool:
    """Whether the intersection over union is at least 0.5."""
    return refcoco_iou(text, truth, height=height, width=width, peer=peer) >= _ENOUGH


def true_box(prediction: Prediction) -> Four | None:
    """The reference of a row in pixels: columns `bbox_x1` ... `bbox_y2`, `bbox`, or its answer.

    Numbers that do not exceed 1.5 are fractions of the sides, as in VLMEvalKit.
    """
    found = [column(prediction, name) for name in _CORNERS]
    if None in found:
        found = [column(prediction, "bbox") or next(iter(prediction.answers), None)]
        if found[0] is None:
            return None
        text = found[0] if isinstance(found[0], str) else json.dumps(found[0])
        found = list(_NUMBERS.findall(text))
    if len(found) != 4:
        raise ValueError(f"row {prediction.id}: the box has {len(found)} numbers; expected 4.")
    x1, y1, x2, y2 = (float(number) for number in found)
    if max(map(abs, (x1, y1, x2, y2))) > 1.5:
        return (x1, y1, x2, y2)
    height, width = _size(prediction)
    return (x1 * width, y1 * height, x2 * width, y2 * height)


def _size(prediction: Prediction) -> tuple[float, float]:
    """Height and width of the image: its columns, or as it was read."""
    height, width = column(prediction, "height"), column(prediction, "width")
    if height is not None and width is not None:
        return float(height), float(width)
    if not prediction.image_sizes:
        raise ValueError(
            f"row {prediction.id} has neither columns `height` and `width` nor image sizes, and a "
            "box in thousandths means nothing without them."
        )
    return prediction.image_sizes[0]


def _golds(prediction: Prediction) -> tuple[str, ...]:
    box = true_box(prediction)
    return () if box is None else (str(list(box)),)


def _read(prediction: Prediction, text: str) -> Mark:
    height, width = _size(prediction)
    truth = true_box(prediction)
    box = predicted_box(text, height=height, width=width)
    if box is None or truth is None:
        return Mark(0.0, None)
    overlap = iou(box, truth)
    written = ", ".join(f"{value:g}" for value in box)
    return Mark(float(overlap >= _ENOUGH), f"[{written}]", {"iou": overlap})


def _terms(rows: Rows) -> Terms:
    terms: dict[str, tuple[float, float]] = {}
    for prediction, mark in rows:
        for name in ("all", *labels(prediction, ("split", "dataset", "category"))):
            add(terms, name, mark.score, 1.0)
        add(terms, "IoU", mark.values.get("iou", 0.0), 1.0)
    return terms


REFCOCO = Metric(
    "refcoco",
    "percent",
    "IoU >= 0.5 of the first box, corners as written (official evaluate_grounding.py); the mean "
    "over splits (column `split`, `dataset` or `category`); the true box in pixels is in "
    "`bbox_x1`..`bbox_y2`, `bbox` or the answer, the size in `height` and `width` or image_sizes",
    _read,
    terms=_terms,
    formula=mean_of("split", "dataset", "category"),
    golds=_golds,
)
