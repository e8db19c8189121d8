"""Which rows belong to which shard: the unit of work that is done, or done again, as a whole.

A plan is made once and written down. Its shards are in corpus order, which is that of the
configuration: datasets, files by name, rows.

    JSON Lines   bytes [start, end) of a file, cut at line breaks
    Parquet      row groups [start, end) of a file
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from internvl.filtering.config import Config, Input
from internvl.filtering.files import file_name, write_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """Neighbouring rows of one file.

    Attributes:
        dataset: name.
        file: path.
        kind: format of the file.
        start: first byte or row group.
        end: one after the last.
        line: number of the first line (JSON Lines) or row (Parquet) in its file, from 1.
        row: number of the first row in its dataset, from 1.
    """

    dataset: str
    file: str
    kind: Literal["jsonl", "parquet"]
    start: int
    end: int
    line: int
    row: int


@dataclass(frozen=True)
class Plan:
    """All shards.

    Attributes:
        digest: stands for the files, their sizes and times, and the size of a shard.
        shards: in corpus order.
    """

    digest: str
    shards: tuple[Shard, ...]


def make_plan(config: Config) -> Plan:
    """Cut the corpus into shards, or read how it was cut.

    Files that changed since give another plan, and nothing of the old one is used.

    Raises:
        FileNotFoundError: a dataset has no files.
        ValueError: files of another format, or no rows at all.
        ImportError: Parquet without pyarrow.
    """
    files = [(each, file) for each in config.inputs for file in _files(each)]
    state = [(each.name, str(f), f.stat().st_size, f.stat().st_mtime_ns) for each, f in files]
    digest = digest_of([1, state, config.rows_per_shard])
    path = config.folder / "work" / f"plan-{digest}.json"
    if path.exists():
        shards = json.loads(path.read_text(encoding="utf-8"))
        return Plan(digest, tuple(Shard(**each) for each in shards))
    made = tuple(_shards(config.inputs, config.rows_per_shard))
    if not made:
        raise ValueError(f"{[str(file) for _, file in files]} hold no rows; nothing to filter.")
    write_json(path, [asdict(each) for each in made])
    logger.info("%d shards of about %d rows", len(made), config.rows_per_shard)
    return Plan(digest, made)


def digest_of(value: Any) -> str:
    """Sixteen hexadecimal digits that stand for a value of JSON."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def output_name(dataset: str, file: str, inputs: Sequence[Input]) -> Path:
    """Where the rows of a file go, below `kept` or `removed`.

    A JSON Lines file is named by its dataset; Parquet files keep their names in a folder of it.
    """
    found = next(each for each in inputs if each.name == dataset)
    if format_of(Path(file)) == "jsonl":
        return Path(file_name(dataset) + ".jsonl")
    folder = Path(found.annotation)
    below = Path(file).relative_to(folder) if folder.is_dir() else Path(Path(file).name)
    return Path(file_name(dataset)) / below


def _files(each: Input) -> list[Path]:
    """The files of a dataset, by name."""
    path = Path(each.annotation)
    if path.is_dir():
        found = sorted(path.rglob("*.parquet"))
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            raise ValueError(
                f"dataset {each.name!r}: {path} is a folder that `datasets` saved; write it as "
                "Parquet first (Dataset.to_parquet)."
            )
    elif path.exists():
        found = [path]
    else:
        found = sorted(Path(name) for name in glob.glob(each.annotation))
    if not found:
        raise FileNotFoundError(
            f"dataset {each.name!r}: no file is at {each.annotation}; expected a *.jsonl file, or "
            "*.parquet as a file, a glob or a folder."
        )
    kinds = [format_of(file) for file in found]
    if len(found) > 1 and "jsonl" in kinds:
        raise ValueError(
            f"dataset {each.name!r}: {each.annotation} means {len(found)} files; of JSON Lines a "
            "dataset is one file, so name each as a dataset."
        )
    if len({file.name for file in found}) < len(found) and not path.is_dir():
        raise ValueError(
            f"dataset {each.name!r}: {each.annotation} means several files of the same name; name "
            "their folder instead."
        )
    return found


def format_of(file: Path) -> Literal["jsonl", "parquet"]:
    """The format of a file, by its name.

    Raises:
        ValueError: none that is known.
    """
    if file.suffix == ".parquet":
        return "parquet"
    if file.suffix in (".jsonl", ".json"):
        return "jsonl"
    raise ValueError(f"{file} is of no known format; expected *.jsonl or *.parquet.")


def _shards(inputs: Sequence[Input], rows: int) -> Iterator[Shard]:
    for each in inputs:
        first = 1
        for file in _files(each):
            kind = format_of(file)
            cut = _cut_lines if kind == "jsonl" else _cut_groups
            for start, end, line, count in cut(file, rows):
                if count:
                    yield Shard(each.name, str(file), kind, start, end, line, first)
                first += count


def _cut_lines(file: Path, rows: int) -> Iterator[tuple[int, int, int, int]]:
    """(start, end, first line, rows) of runs of lines; blank lines are no rows."""
    start, line, count, position = 0, 1, 0, 0
    with file.open("rb") as stream:
        for number, text in enumerate(stream, start=1):
            position += len(text)
            count += not is_blank(text)
            if count == rows:
                yield start, position, line, count
                start, line, count = position, number + 1, 0
    if count:
        yield start, position, line, count


def is_blank(line: bytes) -> bool:
    """Whether a line is no row."""
    return line.isspace() or not line.removeprefix(b"\xef\xbb\xbf").strip()


def _cut_groups(file: Path, rows: int) -> Iterator[tuple[int, int, int, int]]:
    """(first row group, one after the last, first row, rows) of runs of row groups."""
    metadata = open_parquet(file).metadata
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    start, line, count = 0, 1, 0
    for group, size in enumerate(sizes):
        count += size
        if count >= rows or group == len(sizes) - 1:
            yield start, group + 1, line, count
            start, line, count = group + 1, line + count, 0


def open_parquet(file: str | Path) -> Any:
    """Open a Parquet file.

    Raises:
        ImportError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{file} needs pyarrow: pip install 'internvl[train]'") from error
    return pyarrow.parquet.ParquetFile(file)
