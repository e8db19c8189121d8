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

    def row(self, index: int) -> Mapping[str, Any]:
        """A row."""
        ...

    def where(self, index: int) -> str:
        """Where a row stands, for messages ("docvqa.jsonl:17")."""
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

    def row(self, index: int) -> Mapping[str, Any]:
        """Parse one row.

        Raises:
            IndexError: no such row.
            DataError: a line that is not a JSON object.
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
            raise DataError("bad_row", f"the line is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError("bad_row", f"the line is a {type(row).__name__}; expected an object.")
        return row

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


# ---------------------------------------------------------------------- datasets
HUB = "hub:"
_GLOB = frozenset("*?[")


def open_source(annotation: str, *, split: str = "train", length: int | None = None) -> Source:
    """Open the rows of a dataset.

    Args:
        annotation: a JSON Lines file; Parquet as a file, a glob or a folder; a folder that
            `datasets` saved; or "hub:" and the id of a dataset on the Hub.
        split: of a dataset on the Hub, or of a saved DatasetDict.
        length: rows, for a stream: they are then read in their order and never all at once. None
            for random access.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a format that is not known.
        ImportError: `datasets` is needed and not installed.
    """
    if length is not None:
        return StreamSource(annotation, split, length)
    if annotation.endswith((".jsonl", ".json")):
        return JsonlSource(annotation)
    return TableSource(annotation, split)


class TableSource:
    """Parquet files, a saved dataset, or a dataset of the Hub, through `datasets`.

    Columns of images stay bytes until they are looked at.

    Args:
        annotation: as in `open_source`.
        split: as in `open_source`.
    """

    def __init__(self, annotation: str, split: str = "train") -> None:
        self.name, self.annotation, self.split = _short(annotation), annotation, split
        self._table: Any = None

    def __len__(self) -> int:
        return len(self._opened())

    def row(self, index: int) -> Mapping[str, Any]:
        """A row; columns without a value in it are left out."""
        row = self._opened()[index]
        return {key: value for key, value in row.items() if value is not None}

    def where(self, index: int) -> str:
        """Name and number of a row."""
        return f"{self.name} row {index + 1}"

    def _opened(self) -> Any:
        if self._table is None:
            table = _open_dataset(self.annotation, self.split, streaming=False)
            self._table = table.cast(_undecoded(table.features))
        return self._table


class StreamSource:
    """A dataset that is read in its order, for what does not fit on a disk.

    Rows have to be asked for in ascending order; going back opens the stream again. A worker reads
    past the rows of the others.

    Args:
        annotation: as in `open_source`.
        split: as in `open_source`.
        length: rows that there are.
    """

    def __init__(self, annotation: str, split: str, length: int) -> None:
        self.name, self.annotation, self.split = _short(annotation), annotation, split
        self.length = length
        self._rows: Any = None
        self._next = 0

    def __len__(self) -> int:
        return self.length

    def row(self, index: int) -> Mapping[str, Any]:
        """The row of that number.

        Raises:
            DataError: the stream ends before it.
        """
        if self._rows is None or index < self._next:
            stream = _open_dataset(self.annotation, self.split, streaming=True).decode(False)
            self._rows, self._next = iter(stream.skip(index)), index
        for row in self._rows:
            self._next += 1
            if self._next > index:
                return {key: value for key, value in row.items() if value is not None}
        raise DataError(
            "stream_ended",
            f"{self.name} ends at row {self._next}, but its `length` is {self.length}; correct "
            "the meta file.",
        )

    def where(self, index: int) -> str:
        """Name and number of a row."""
        return f"{self.name} row {index + 1}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None, "_next": 0}


def _short(annotation: str) -> str:
    return annotation if annotation.startswith(HUB) else Path(annotation).name


def _open_dataset(annotation: str, split: str, *, streaming: bool) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"{annotation} needs the package datasets: pip install 'internvl[train]'"
        ) from error
    if annotation.startswith(HUB):
        return datasets.load_dataset(annotation.removeprefix(HUB), split=split, streaming=streaming)
    path = Path(annotation)
    if annotation.endswith(".jsonl"):
        kind, files = "json", annotation
    elif annotation.endswith(".parquet") or _GLOB & set(annotation):
        kind, files = "parquet", annotation
    elif (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        found = datasets.load_from_disk(annotation)
        found = found[split] if isinstance(found, dict) else found
        return found.to_iterable_dataset() if streaming else found
    elif path.is_dir():
        kind, files = "parquet", str(path / "**" / "*.parquet")
    else:
        raise ValueError(
            f"{annotation} is of no known format; expected *.jsonl, *.parquet, a folder of "
            f"Parquet files, a folder that `datasets` saved, or {HUB}ID for a dataset on the Hub."
        )
    return datasets.load_dataset(kind, data_files=files, split="train", streaming=streaming)


def _undecoded(feature: Any) -> Any:
    """The features of a table with its images as bytes."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, datasets.Features):
        return datasets.Features({name: _undecoded(each) for name, each in feature.items()})
    if isinstance(feature, dict):
        return {name: _undecoded(each) for name, each in feature.items()}
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return type(feature)(_undecoded(feature.feature))
    return feature
