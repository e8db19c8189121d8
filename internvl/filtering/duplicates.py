"""Samples that are in the corpus twice: the stage that looks at all shards at once.

Samples that nothing else flags come first, so the copy that stays is one that stays for good; among
equals it is the first of the corpus.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from internvl.filtering.files import to_line, whole
from internvl.filtering.findings import Findings, as_json, findings_file, from_json
from internvl.filtering.plan import Plan
from internvl.filtering.records import read_rows, to_record
from internvl.filtering.verdict import Record, Verdict

logger = logging.getLogger(__name__)


def write_duplicates(
    path: Path, plan: Plan, folders: Sequence[Path], settings: Mapping[str, Any]
) -> None:
    """Look for duplicates and write the verdicts on all copies but one.

    Args:
        path: the file to make.
        plan: the corpus.
        folders: of the stages before, whose verdicts tell which samples come last.
        settings: of `internvl.filtering.near_duplicates.find_duplicates`.
    """
    from internvl.filtering.near_duplicates import find_duplicates

    with whole(path) as file:
        for key, verdict in find_duplicates(_in_turn(plan, folders), **settings):
            file.write(to_line({"key": key, "verdict": as_json(verdict)}))


def load_duplicates(path: Path) -> dict[str, list[Verdict]]:
    """The verdicts that `write_duplicates` wrote, by key."""
    found: dict[str, list[Verdict]] = {}
    with path.open("rb") as file:
        for line in file:
            value = json.loads(line)
            found.setdefault(value["key"], []).append(from_json(value["verdict"]))
    return found


def _in_turn(plan: Plan, folders: Sequence[Path]) -> Iterator[Record]:
    """All samples that can be read: those without a verdict, then the others."""
    for flagged in (False, True):
        for number, shard in enumerate(plan.shards):
            found = [Findings(findings_file(folder, number)) for folder in folders]
            for row in read_rows(shard):
                verdicts = [said for each in found for said in each.of(row.number)]
                if bool(verdicts) == flagged:
                    record, bad = to_record(row)
                    if not bad:
                        yield record
