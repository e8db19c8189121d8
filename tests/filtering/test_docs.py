"""docs/filtering.md says of the rules what they are."""

from __future__ import annotations

import json
import re

from internvl import hub
from internvl.filtering.rules import RULES

PAGE = (hub.REPOSITORY / "docs" / "filtering.md").read_text("utf-8")


def test_table_of_the_rules_is_true():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    expected = [
        (name, spec.summary, ", ".join(f"`{k}` {v}" for k, v in spec.options.items()), spec.source)
        for name, spec in RULES.items()
    ]
    assert rows == expected


def test_numbers_of_the_texts_are_true():
    for name in ("hard_negatives", "positives"):
        path = hub.REPOSITORY / "tests" / "filtering" / "data" / f"{name}.jsonl"
        assert f" {len(path.read_bytes().splitlines())} " in PAGE


def test_figures_of_the_experiment_are_those_that_were_measured():
    rows = json.loads((hub.REPOSITORY / "docs" / "demo_loops.json").read_text("utf-8"))
    assert len(rows) == 9
    for name in ("clean", "4 % loops", "filtered"):
        own = [row for row in rows if row["data"] == name]
        (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {name} |")]
        cells = [float(re.sub(r"\*|\(.*\)", "", cell)) for cell in line.strip("|").split("|")[1:]]
        assert cells == [row["loops"] for row in own] + [row["right"] for row in own]
