"""Where rows come from.

JSONL is read by byte offsets: making a source costs nothing, the first use scans the file for line
breaks (no JSON is parsed), and then any row is one seek away. A million rows are 8 MB of offsets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from internvl.data.schema import DataError

_CHUNK = 16 << 20
_BOM = b"\xef\xbb\xbf"


class Source(Protocol):
    """Rows that can be read in any order."""

    name: str

    def __len__(self) -> int: ...

    def row(self, index: int) -> tuple[Mapping[str, Any], str]:
        """A row, and where it stands ("docvqa.jsonl:17")."""
        ...


class JsonlSource:
    """A JSON Lines file.

    Lines of white space are not rows. The object can be pickled and forked; every process opens the
    file for itself.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: at first use, no such file.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.name = self.path.name
        self._starts: np.ndarray | None = None
        self._file: Any = None
        self._owner = 0

    def __len__(self) -> int:
        return len(self._lines()) - 1

    def row(self, index: int) -> tuple[Mapping[str, Any], str]:
        """Parse one row.

        Raises:
            IndexError: no such row.
            DataError: a line that is not a JSON object, by its number.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} rows; row {index} was asked for.")
        start = int(self._lines()[index])
        file = self._opened()
        file.seek(start)
        line = file.readline().removeprefix(_BOM)
        try:
            row = json.loads(line)
        except ValueError as error:
            where = self.where(index)
            raise DataError("bad_row", f"{where} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(
                "bad_row", f"{self.where(index)} is a {type(row).__name__}; expected an object."
            )
        return row, f"{self.name} row {index + 1}"

    def where(self, index: int) -> str:
        """File and line number of a row; reads the file up to it, so for messages only."""
        file = self._opened()
        file.seek(0)
        left, lines = int(self._lines()[index]), 1
        while left > 0:
            chunk = file.read(min(_CHUNK, left))
            lines += chunk.count(b"\n")
            left -= len(chunk)
        return f"{self.name}:{lines}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_owner": 0}

    def _opened(self) -> Any:
        # A file position is shared by forked processes; a second handle is not.
        if self._file is None or self._owner != os.getpid():
            self._file, self._owner = self.path.open("rb"), os.getpid()
        return self._file

    def _lines(self) -> np.ndarray:
        """Byte offset of every row, and the end of the file."""
        if self._starts is None:
            self._starts = _row_offsets(self.path)
        return self._starts


def _row_offsets(path: Path) -> np.ndarray:
    """Offsets (rows + 1,) int64 of the lines that hold more than white space, and of the end."""
    ends: list[np.ndarray] = []
    position = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            ends.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10) + position)
            position += len(chunk)
        breaks = np.concatenate([np.empty(0, np.int64), *ends]) + 1
        starts = np.concatenate([[0], breaks])
        starts = starts[starts < position].astype(np.int64)
        widths = np.diff(np.append(starts, position))
        # Only a short line can be blank; those few are looked at.
        blank = [i for i in np.flatnonzero(widths <= _LONGEST_BLANK) if _is_blank(file, starts[i])]
    return np.append(np.delete(starts, blank), position)


_LONGEST_BLANK = 8


def _is_blank(file: Any, start: int) -> bool:
    file.seek(int(start))
    return not file.readline().removeprefix(_BOM).strip()
