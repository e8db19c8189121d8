"""Rows of predictions files, made by hand, and the golden cases."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from internvl.evaluation.records import Prediction, Response

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "eval"


def cases(name: str) -> list[dict[str, Any]]:
    """Cases of a golden file."""
    found = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    assert len(found["cases"]) == found["n"]
    return found["cases"]


def row(
    *texts: str,
    answers: Iterable[str] = (),
    choices: Mapping[str, str] | None = None,
    id: str = "0",
    size: tuple[int, int] = (480, 640),
    cut: bool = False,
    **fields: Any,
) -> Prediction:
    """A row with a response per text; `cut` ones were truncated."""
    return Prediction(
        id=id,
        benchmark="test",
        config="",
        prompt="<image>\n?",
        num_tiles=(1,),
        image_sizes=(size,),
        prompt_tokens=300,
        responses=tuple(Response(text, 3, "length" if cut else "stop") for text in texts),
        answers=tuple(answers),
        choices=choices or {},
        fields=fields,
    )


def from_case(case: Mapping[str, Any]) -> list[Prediction]:
    """Rows of a golden case: `prediction` and `answer`, `index` as id, all else as columns."""
    found = []
    for number, each in enumerate(case["rows"]):
        fields = {k: v for k, v in each.items() if k not in ("prediction", "answer", "index")}
        identity = str(each.get("index", number))
        found.append(row(each["prediction"], answers=[each["answer"]], id=identity, **fields))
    return found
