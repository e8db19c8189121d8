"""Answers of an LLM, kept, so that none is paid for twice.

Each process appends to a file of its own, so any number of them can share a folder, also over a
network, and one that is killed loses at most the line that it was writing.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from internvl.filtering.files import append_line, read_appended


class AnswerCache:
    """Answers by key: what was asked, of which model, with which sampling.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
        self._file = folder / name
        self._answers: dict[str, Mapping[str, Any]] = {}
        for path in sorted(folder.glob("*.jsonl")):
            for line in read_appended(path):
                self._answers[line["key"]] = line

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The kept answer, as it was put in."""
        return self._answers.get(key)

    def put(self, key: str, **answer: Any) -> None:
        """Keep an answer; it is on the disk when this returns."""
        line = {"key": key, **answer}
        append_line(self._file, line)
        self._answers[key] = line
