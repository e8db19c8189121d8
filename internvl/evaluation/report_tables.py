"""The report's tables as data, and the averages that it prints over several of their columns.

    >>> from internvl.evaluation.report_tables import report_table
    >>> report_table(7).values["InternVL2_5-8B"]["DocVQA (test)"]
    93.0

`report_values.toml` beside this file holds Tables 2 and 6 to 15 as the report prints them. What a
column measures, and how, is a matter of `benchmarks.py`.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

SIZES = ("1B", "2B", "4B", "8B", "26B", "38B", "78B")
MODELS = tuple(f"InternVL2_5-{size}" for size in SIZES)
_VALUES = Path(__file__).with_name("report_values.toml")
_BENCHMARKS = Path(__file__).with_name("benchmarks.toml")


@dataclass(frozen=True)
class ReportTable:
    """A table of the report.

    Attributes:
        number: of the table.
        title: what it is about.
        columns: their names, in the report's order.
        values: model or encoder -> column -> value, in the unit of the report; None for its "-".

    Raises:
        ValueError: a row without one of the columns, or a value that is no finite number.
    """

    number: int
    title: str
    columns: tuple[str, ...]
    values: Mapping[str, Mapping[str, float | None]] = field(hash=False)

    def __post_init__(self) -> None:
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise ValueError(f"Table {self.number} has no columns, or one twice: {self.columns}.")
        for model, row in self.values.items():
            if tuple(row) != self.columns:
                raise ValueError(
                    f"Table {self.number}, {model}: {len(row)} values {list(row)[:3]}...; "
                    f"expected one for each of the {len(self.columns)} columns."
                )
            check_values(row, f"Table {self.number}, {model}")
        object.__setattr__(self, "values", frozen(self.values))


@dataclass(frozen=True)
class Part:
    """A term of an average: a column of a benchmark, divided by `divide` to become percent."""

    key: str
    column: str
    divide: float = 1.0


@dataclass(frozen=True)
class Average:
    """A mean that the report prints over columns of several benchmarks.

    Attributes:
        key: of the average.
        name: in words.
        table: where it is printed.
        column: its column there.
        parts: what it is the mean of.
        note: how well the report's own columns reproduce it.

    Raises:
        ValueError: fewer than two parts, or a part that is there twice.
    """

    key: str
    name: str
    table: int
    column: str
    parts: tuple[Part, ...]
    note: str

    def __post_init__(self) -> None:
        if len(self.parts) < 2 or len(set(self.parts)) < len(self.parts):
            raise ValueError(f"the average {self.key} needs two or more different parts.")

    def of(self, values: Mapping[str, float]) -> float:
        """The mean of values by column, in the unit of the report.

        Raises:
            ValueError: a column that is missing, that does not belong here, or has no number.
        """
        wanted = {part.column for part in self.parts}
        if wanted != set(values):
            raise ValueError(
                f"{self.name}: missing {sorted(wanted - set(values))}, unknown "
                f"{sorted(set(values) - wanted)}; give exactly {sorted(wanted)}."
            )
        terms = [values[part.column] / part.divide for part in self.parts]
        if not all(map(math.isfinite, terms)):
            raise ValueError(f"{self.name}: a value is no finite number: {dict(values)}.")
        return math.fsum(terms) / len(terms)


def check_values(row: Mapping[str, float | None], where: str) -> None:
    """Refuse values that are neither None nor a finite number (ValueError; names `where`)."""
    for column, value in row.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and math.isfinite(value)):
            raise ValueError(f"{where}: {column} is {value!r}; expected a number or None.")


def frozen(value: Any) -> Any:
    """A copy of nested dicts and lists that cannot be changed."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: frozen(inner) for key, inner in value.items()})
    if isinstance(value, (list, tuple)):
        return tuple(frozen(inner) for inner in value)
    return value


@cache
def report_tables() -> Mapping[int, ReportTable]:
    """All tables of the file, by number."""
    content = tomllib.loads(_VALUES.read_text(encoding="utf-8"))
    found = {}
    for number, table in content["table"].items():
        columns = tuple(table["columns"])
        values = {}
        for model, row in table["values"].items():
            if len(row) != len(columns):
                raise ValueError(
                    f"{_VALUES.name}, Table {number}, {model}: {len(row)} values for "
                    f"{len(columns)} columns."
                )
            cells = (None if cell == "-" else float(cell) for cell in row)
            values[model] = dict(zip(columns, cells, strict=True))
        found[int(number)] = ReportTable(int(number), table["title"], columns, values)
    return MappingProxyType(found)


def report_table(number: int) -> ReportTable:
    """A table of the report.

    Raises:
        ValueError: the file has no table of that number.
    """
    tables = report_tables()
    if number not in tables:
        raise ValueError(f"no Table {number} here; there are {', '.join(map(str, tables))}.")
    return tables[number]


@cache
def facts() -> Mapping[str, Any]:
    """What benchmarks.toml holds, as it stands there."""
    found: Mapping[str, Any] = frozen(tomllib.loads(_BENCHMARKS.read_text(encoding="utf-8")))
    return found


@cache
def averages() -> Mapping[str, Average]:
    """The averages over several benchmarks (Tables 2, 10 and 13), by key."""
    found = {}
    for key, each in facts()["average"].items():
        parts = tuple(
            Part(part["key"], part["column"], float(part.get("divide", 1)))
            for part in each["parts"]
        )
        table = report_table(each["table"])
        if each["column"] not in table.columns:
            raise ValueError(f"Table {table.number} has no column {each['column']!r}.")
        found[key] = Average(key, each["name"], table.number, each["column"], parts, each["note"])
    return MappingProxyType(found)


def opencompass_average(values: Mapping[str, float]) -> float:
    """The average of Table 2: eight sets, in percent.

    Args:
        values: by benchmark: `mmbench_v11` (English), `mmstar`, `mmmu_val`, `mathvista`,
            `hallusionbench`, `ai2d` (with mask), `ocrbench` (points of 1000, of which a tenth
            counts) and `mmvet`.

    Raises:
        ValueError: not exactly these eight, or a value that is no finite number.
    """
    average = averages()["opencompass"]
    columns = {part.key: part.column for part in average.parts}
    if set(values) != set(columns):
        raise ValueError(
            f"{average.name}: missing {sorted(set(columns) - set(values))}, unknown "
            f"{sorted(set(values) - set(columns))}; give exactly {sorted(columns)}."
        )
    return average.of({columns[key]: value for key, value in values.items()})


def model_name(size: str) -> str:
    """`8B`, `8b` or `InternVL2_5-8B` to the last.

    Raises:
        ValueError: no size of InternVL 2.5.
    """
    name = size if size in MODELS else f"InternVL2_5-{size.upper()}"
    if name not in MODELS:
        raise ValueError(f"no size {size!r} of InternVL 2.5; there are {', '.join(SIZES)}.")
    return name
