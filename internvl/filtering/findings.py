"""What a stage found in a shard: a file that is there as a whole, or not at all.

A line for each flagged row, in order, and a last line that tells how many rows were looked at:

    {"row": 17, "verdicts": [{"rule": ..., "score": ..., ...}]}
    {"rows": 10000, "modalities": {"text": 10000}, "scores": {"quality": {"8": 10000}}}
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from internvl.filtering.files import to_line, whole
from internvl.filtering.verdict import Record, Span, Verdict


@dataclass(frozen=True)
class Looked:
    """A row on its way through a stage.

    Attributes:
        row: its number in its dataset.
        record: the row as the rules see it.
        verdicts: what was said so far.
        scores: what a judge measured, by kind, whether the sample is flagged or not.
    """

    row: int
    record: Record
    verdicts: tuple[Verdict, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)


def write_findings(path: Path, rows: Iterable[Looked]) -> None:
    """Write the findings of a shard; the file appears when all of its rows are in it."""
    modalities: Counter[str] = Counter()
    scores: dict[str, Counter[int]] = {}
    with whole(path) as file:
        for each in rows:
            modalities[each.record.modality] += 1
            for kind, score in each.scores.items():
                scores.setdefault(kind, Counter())[int(score)] += 1
            if each.verdicts:
                said = [as_json(verdict) for verdict in each.verdicts]
                file.write(to_line({"row": each.row, "verdicts": said}))
        file.write(
            to_line({"rows": modalities.total(), "modalities": modalities, "scores": scores})
        )


class Findings:
    """The findings of a shard, read beside its rows.

    Args:
        path: the file.

    Raises:
        ValueError: at the end, the file is of another number of rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = self._read()
        self._next: Mapping[str, Any] = next(self._lines)
        self._rows = 0

    def of(self, row: int) -> list[Verdict]:
        """The verdicts on a row; every row has to be asked for, in order."""
        self._rows += 1
        if self._next.get("row") != row:
            return []
        found = [from_json(each) for each in self._next["verdicts"]]
        self._next = next(self._lines)
        return found

    def finish(self) -> Mapping[str, Any]:
        """The last line, once all rows were asked for."""
        if self._next.get("rows") != self._rows:
            raise ValueError(
                f"{self.path} is about {self._next.get('rows')} rows, but {self._rows} were read; "
                "the data changed while it was filtered. Run again."
            )
        return self._next

    def _read(self) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            for line in file:
                yield json.loads(line)


def findings_file(folder: Path, shard: int) -> Path:
    """Where a stage writes what it found in a shard."""
    return folder / "shards" / f"{shard:05d}.jsonl"


def as_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON has it."""
    return asdict(verdict)


def from_json(value: Mapping[str, Any]) -> Verdict:
    """The verdict that `as_json` wrote."""
    span = value["span"] and Span(**value["span"])
    return Verdict(**{**value, "span": span})
