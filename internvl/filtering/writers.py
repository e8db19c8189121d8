"""Rows written back in the format that they were read in, as they were read.

A line of JSON Lines keeps its bytes (a missing line break at the end of the file is added, a byte
order mark and blank lines are left out); a Parquet file keeps its schema, its metadata and the
limits of its row groups.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from internvl.filtering.plan import Shard, open_parquet
from internvl.filtering.records import Row


class Writer(Protocol):
    """Takes the rows of a file that are to be in another."""

    rows: int

    def add(self, row: Row, wanted: bool) -> None:
        """Take the next row of the file, or pass over it."""
        ...

    def end_shard(self, shard: Shard) -> None:
        """Note that all rows of a shard were given."""
        ...


class LineWriter:
    """Writes JSON Lines; there is no file until there is a row.

    Args:
        path: the file to make.
        stack: closes it.
    """

    def __init__(self, path: Path, stack: contextlib.ExitStack) -> None:
        self.path, self.rows = path, 0
        self._stack = stack
        self._file: Any = None

    def add(self, row: Row, wanted: bool) -> None:
        """Write the line of a row, or pass over it."""
        if not wanted:
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._stack.enter_context(self.path.open("wb"))
        assert isinstance(row.content, bytes)
        self._file.write(row.content + b"\n")
        self.rows += 1

    def end_shard(self, shard: Shard) -> None:
        """Nothing is left to do."""


class TableWriter:
    """Writes Parquet, a shard at a time; there is no file until there is a row.

    Args:
        path: the file to make.
        stack: closes it.
    """

    def __init__(self, path: Path, stack: contextlib.ExitStack) -> None:
        self.path, self.rows = path, 0
        self._stack = stack
        self._wanted: list[bool] = []
        self._file: Any = None

    def add(self, row: Row, wanted: bool) -> None:
        """Note whether a row is wanted."""
        self._wanted.append(wanted)
        self.rows += wanted

    def end_shard(self, shard: Shard) -> None:
        """Copy the wanted rows, embedded images and all."""
        source, first = open_parquet(shard.file), 0
        for group in range(shard.start, shard.end):
            count = source.metadata.row_group(group).num_rows
            wanted = self._wanted[first : first + count]
            first += count
            if any(wanted):
                self._write(source, source.read_row_group(group), wanted)
        self._wanted.clear()

    def _write(self, source: Any, table: Any, wanted: Sequence[bool]) -> None:
        import pyarrow
        import pyarrow.parquet

        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            codec = source.metadata.row_group(0).column(0).compression
            self._file = self._stack.enter_context(
                pyarrow.parquet.ParquetWriter(
                    self.path,
                    source.schema_arrow,
                    compression="none" if codec == "UNCOMPRESSED" else codec,
                )
            )
        self._file.write_table(table.filter(pyarrow.array(wanted)))


def make_writer(kind: str, path: Path, stack: contextlib.ExitStack) -> Writer:
    """The writer of a format, see `Shard.kind`; the stack closes it."""
    return LineWriter(path, stack) if kind == "jsonl" else TableWriter(path, stack)
