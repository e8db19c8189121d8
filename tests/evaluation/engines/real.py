"""What the tests that run a real engine share: questions over example pictures, and their files.

They need packages that are not part of this one; docs/evaluation_engines.md says how to make an
environment for them.
"""

from __future__ import annotations

import base64
import csv
import json
import os
from pathlib import Path
from typing import Any

from tests import support

EXAMPLES = support.ROOT / "examples"
# No network, and remote code is copied into a folder of the test.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def questions(most: int = 100) -> list[dict[str, Any]]:
    """Questions about one picture with a short answer, out of examples/questions.json."""
    every = json.loads((EXAMPLES / "questions.json").read_text("utf-8"))
    kept = [
        each
        for each in every
        if "image" in each and "turns" not in each and "[[" not in each["expected"]
    ]
    return kept[:most]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_tsv(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A table as VLMEvalKit reads it."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        table.writeheader()
        table.writerows(rows)
    return path


def encoded(name: str) -> str:
    """An example picture in base64."""
    return base64.b64encode((EXAMPLES / name).read_bytes()).decode()


def go_offline(monkeypatch: Any, folder: Path) -> None:
    """For subprocesses, which read the environment."""
    for name, value in {**OFFLINE, "HF_MODULES_CACHE": str(folder / "modules")}.items():
        monkeypatch.setenv(name, value)
    paths = [str(support.ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
