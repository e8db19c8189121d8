"""The table of docs/vision_evaluation.md says what docs/vision_probe.json holds."""

from __future__ import annotations

import json
import re

from tests import support

DOCS = support.ROOT / "docs"


def cell(test: dict) -> str:
    if len(test["seeds"]) > 1:
        return f"{test['top1']:.1f} ({min(test['seeds']):.1f} to {max(test['seeds']):.1f})"
    low, high = test["interval"]
    return f"{test['top1']:.1f} [{low:.1f}, {high:.1f}]"


def test_the_table_is_that_of_the_record():
    rows = json.loads((DOCS / "vision_probe.json").read_text(encoding="utf-8"))["rows"]
    assert all(row["unchanged"] for row in rows)
    wanted: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, test in row["accuracy"].items():
            wanted.setdefault((row["data"], name), [str(test["n"])]).append(cell(test))
    text = (DOCS / "vision_evaluation.md").read_text(encoding="utf-8")
    table = text.partition("### Measured on the demo")[2].partition("Ten epochs")[0]
    found = [
        re.split(r" *\| *", line.strip("| "))[1:]
        for line in table.splitlines()
        if line.startswith(("| UCI", "| emoji", "| the same"))
    ]
    assert found == list(wanted.values())
