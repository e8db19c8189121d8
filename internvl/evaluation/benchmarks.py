"""The benchmarks of the InternVL 2.5 report: what they are, how they are asked and scored.

    >>> from internvl.evaluation.benchmarks import get
    >>> get("DocVQA_VAL").max_tiles
    18

`benchmarks.toml` beside this file holds them: 48 multimodal ones (Tables 6 to 12), 17 of language
(Table 13) and eight for the vision encoder (Tables 14 and 15), with what is known to differ between
the report, the official scripts and the engines. All of it is read once and cannot be changed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from types import MappingProxyType
from typing import Any

from internvl.evaluation.prompts import RULES
from internvl.evaluation.report_tables import (
    MODELS,
    check_values,
    facts,
    frozen,
    model_name,
    report_table,
)

MODALITIES = ("image", "images", "video", "text")
SCORING = ("rule", "rule, then judge", "judge", "server")
COT = ("no", "max(direct, cot)", "cot")
ENGINES = ("vlmevalkit", "lmms_eval", "lm_eval", "opencompass")
AREAS = ("examination", "knowledge", "reasoning", "mathematics", "coding")
METHODS = {"classification": ("linear", "attention"), "segmentation": ("linear", "head", "full")}
_KEY = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True)
class Benchmark:
    """A multimodal benchmark: one or several columns of a table of the report.

    Attributes:
        key: what the command line takes.
        name: in words.
        row: 1 to 48, in the order of the tables.
        table: table of the report, 6 to 12.
        columns: columns of that table that it fills.
        modality: "image" (one per question), "images" (can be several), "video" or "text".
        data: data set of the Hub, or where the data comes from.
        split: which part, with its size.
        metric: a name in `scoring.METRICS`; empty if only a judge or a server scores it.
        metric_note: the metric in words.
        scoring: "rule", "rule, then judge" (for what the rule cannot read), "judge" or "server".
        prompt: a name in `prompts.RULES`.
        max_tiles: most tiles of an image, thumbnail not counted.
        total_tiles: tiles that the images of a question share.
        upscale_first: the first image is doubled before it is cut (MMMU).
        frames: frame counts of a video; the report takes the best. Empty for images.
        cot: "no", "max(direct, cot)" or "cot" (Figure 9).
        max_new_tokens: longest answer.
        engines: "vlmevalkit", "lmms_eval" -> its keys; an engine that is missing has it not.
        report: "InternVL2_5-8B" -> column -> value; None where the report prints "-".
        traps: what report, official scripts and engines are known to do differently.
        measures: engine's key -> columns that it measures; none for another split or a part.
        aliases: other names for it.
        server: who keeps the answers of the report's split; empty if they are published.

    Raises:
        ValueError: a word, a number or a name that is not as said here.
    """

    key: str
    name: str
    row: int
    table: int
    columns: tuple[str, ...]
    modality: str
    data: str
    split: str
    metric: str
    metric_note: str
    scoring: str
    prompt: str
    max_tiles: int
    total_tiles: int
    upscale_first: bool
    frames: tuple[int, ...]
    cot: str
    max_new_tokens: int
    engines: Mapping[str, tuple[str, ...]] = field(hash=False)
    report: Mapping[str, Mapping[str, float | None]] = field(hash=False)
    traps: tuple[str, ...] = ()
    measures: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    aliases: tuple[str, ...] = ()
    server: str = ""

    def __post_init__(self) -> None:
        for name in ("engines", "report", "measures"):
            object.__setattr__(self, name, frozen(getattr(self, name)))
        refuse = _Refuse(f"benchmark {self.key!r}")
        refuse.unless(_KEY.fullmatch(self.key) is not None, "key", self.key, "a-z, 0-9 and _")
        refuse.unless(1 <= self.row <= 48, "row", self.row, "1 to 48")
        refuse.unless(6 <= self.table <= 12, "table", self.table, "6 to 12")
        for name, words in (("modality", MODALITIES), ("scoring", SCORING), ("cot", COT)):
            refuse.unless(getattr(self, name) in words, name, getattr(self, name), words)
        refuse.unless(self.prompt in RULES, "prompt", self.prompt, sorted(RULES))
        for name in ("name", "data", "split", "metric_note"):
            refuse.unless(getattr(self, name), name, "", "some text")
        by_others = self.scoring in ("judge", "server")
        refuse.unless(
            by_others != bool(self.metric), "metric", self.metric,
            "none, for it is scored by others" if by_others else "a name in scoring.METRICS",
        )  # fmt: skip
        refuse.unless(
            self.scoring != "server" or bool(self.server), "server", self.server, "who scores it"
        )
        self._check_sizes(refuse)
        self._check_names(refuse)

    def _check_sizes(self, refuse: _Refuse) -> None:
        for name in ("max_tiles", "total_tiles", "max_new_tokens"):
            refuse.unless(getattr(self, name) > 0, name, getattr(self, name), "1 or more")
        refuse.unless(
            self.max_tiles <= self.total_tiles, "max_tiles", self.max_tiles, self.total_tiles
        )
        in_order = list(self.frames) == sorted(set(self.frames)) and min(self.frames, default=1) > 0
        refuse.unless(in_order, "frames", self.frames, "rising counts")
        refuse.unless(
            bool(self.frames) == (self.modality == "video"), "frames", self.frames,
            "counts for a video, and for nothing else",
        )  # fmt: skip

    def _check_names(self, refuse: _Refuse) -> None:
        unique = bool(self.columns) and len(set(self.columns)) == len(self.columns)
        refuse.unless(unique, "columns", self.columns, "one or more, each once")
        refuse.engines(self.engines)
        keys = {key for keys in self.engines.values() for key in keys}
        for key, columns in self.measures.items():
            refuse.unless(key in keys, "measures", key, f"one of its engines' keys {sorted(keys)}")
            known = set(columns) <= set(self.columns)
            refuse.unless(known, f"measures of {key}", columns, self.columns)
        for model, row in self.report.items():
            refuse.unless(model in MODELS, "report", model, MODELS)
            refuse.unless(tuple(row) == self.columns, f"report of {model}", list(row), self.columns)
            check_values(row, f"benchmark {self.key!r}, {model}")

    def reported(self, size: str, column: str | None = None) -> float | None:
        """What the report prints.

        Args:
            size: `8B` or `InternVL2_5-8B`.
            column: one of `columns`; can be left out if there is one only.

        Raises:
            ValueError: no such size or column, or several columns and none is given.
        """
        row = self.report[model_name(size)]
        if column is None and len(self.columns) > 1:
            raise ValueError(f"{self.key} has the columns {list(self.columns)}; name one.")
        chosen = self.columns[0] if column is None else column
        if chosen not in self.columns:
            raise ValueError(f"{self.key} has no column {chosen!r}; it has {list(self.columns)}.")
        return row[chosen]

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts and lists, for JSON."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}


@dataclass(frozen=True)
class LanguageSet:
    """A benchmark of language: a row of Table 13, which OpenCompass measured.

    Attributes:
        key: what the command line takes.
        column: as the report prints it; also its name.
        area: group of section 6.1: "examination", "knowledge", "reasoning", ...
        shots: examples in the prompt, in the report.
        engines: "opencompass" -> its configurations, "lm_eval" -> its tasks, if it has any.
        report: model, or the language model it started from -> value.
        traps: what to know of it.

    Raises:
        ValueError: an unknown area or engine, or a negative number of shots.
    """

    key: str
    column: str
    area: str
    shots: int
    engines: Mapping[str, tuple[str, ...]] = field(hash=False)
    report: Mapping[str, float | None] = field(hash=False)
    traps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("engines", "report"):
            object.__setattr__(self, name, frozen(getattr(self, name)))
        refuse = _Refuse(f"language set {self.key!r}")
        refuse.unless(_KEY.fullmatch(self.key) is not None, "key", self.key, "a-z, 0-9 and _")
        refuse.unless(self.area in AREAS, "area", self.area, AREAS)
        refuse.unless(self.shots >= 0, "shots", self.shots, "0 or more")
        refuse.engines(self.engines)
        check_values(self.report, f"language set {self.key!r}")

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts and lists, for JSON."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}


@dataclass(frozen=True)
class VisionSet:
    """A benchmark of the vision encoder: columns of Table 14 or 15.

    Attributes:
        key: what the command line takes.
        name: in words.
        table: 14 (classification) or 15 (segmentation).
        column: its name there, without the method.
        task: "classification" or "segmentation".
        classes: how many are told apart.
        data: data set, as it is called where it is kept.
        split: which part, with its size.
        metric_note: the metric in words; in percent.
        report: encoder -> method ("linear", "attention"; "linear", "head", "full") -> value.
        traps: what to know of it.

    Raises:
        ValueError: an unknown task, or values that are not those of its methods.
    """

    key: str
    name: str
    table: int
    column: str
    task: str
    classes: int
    data: str
    split: str
    metric_note: str
    report: Mapping[str, Mapping[str, float | None]] = field(hash=False)
    traps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "report", frozen(self.report))
        refuse = _Refuse(f"vision set {self.key!r}")
        refuse.unless(self.task in METHODS, "task", self.task, tuple(METHODS))
        refuse.unless(self.classes > 1, "classes", self.classes, "2 or more")
        for encoder, row in self.report.items():
            methods = METHODS[self.task]
            refuse.unless(tuple(row) == methods, f"report of {encoder}", list(row), methods)
            check_values(row, f"vision set {self.key!r}, {encoder}")

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts and lists, for JSON."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}


@dataclass(frozen=True)
class _Refuse:
    """Raises with one wording: whose field, what was got, what was expected."""

    whose: str

    def unless(self, right: bool, name: str, got: Any, expected: Any) -> None:
        if not right:
            raise ValueError(f"{self.whose} has {name} {got!r}; expected {expected}.")

    def engines(self, engines: Mapping[str, Sequence[str]]) -> None:
        for engine, keys in engines.items():
            self.unless(engine in ENGINES, "engine", engine, ENGINES)
            self.unless(bool(keys) and all(keys), f"keys of {engine}", keys, "one or more")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


# ---------------------------------------------------------------------- reading
@cache
def load() -> Mapping[str, Benchmark]:
    """The multimodal benchmarks, by key, in the order of the tables.

    Raises:
        ValueError: the file that comes with the package is damaged; the row is named.
    """
    defaults = facts()["defaults"]
    found: dict[str, Benchmark] = {}
    for row in facts()["benchmark"]:
        benchmark = _benchmark({**defaults, **row})
        if benchmark.key in found:
            raise ValueError(f"benchmarks.toml has {benchmark.key!r} twice.")
        found[benchmark.key] = benchmark
    return MappingProxyType(found)


def _benchmark(row: Mapping[str, Any]) -> Benchmark:
    """A row of the file. An engine's keys stand there with the column that each measures."""
    table = report_table(row["table"])
    columns = row["columns"]
    unknown = set(columns) - set(table.columns)
    if unknown:
        raise ValueError(f"{row['key']}: Table {table.number} has no columns {sorted(unknown)}.")
    keys = {engine: row[engine] for engine in ENGINES if engine in row}
    measures = {
        key: columns if column == "*" else (column,) if column else ()
        for of_engine in keys.values()
        for key, column in of_engine.items()
    }
    if len(measures) < sum(map(len, keys.values())):
        raise ValueError(f"{row['key']}: two engines have the same key; `measures` needs it once.")
    own = {name: value for name, value in row.items() if name not in ENGINES}
    return Benchmark(
        **own,
        engines={engine: tuple(of_engine) for engine, of_engine in keys.items()},
        measures=measures,
        report={
            model: {column: table.values.get(model, {}).get(column) for column in columns}
            for model in MODELS
        },
    )


@cache
def languages() -> Mapping[str, LanguageSet]:
    """The language sets of Table 13, by key, in its order."""
    table = report_table(13)
    found = {}
    for row in facts()["language"]:
        own = {name: value for name, value in row.items() if name not in ENGINES}
        found[row["key"]] = LanguageSet(
            **own,
            engines={engine: row[engine] for engine in ("opencompass", "lm_eval") if engine in row},
            report={model: values[row["column"]] for model, values in table.values.items()},
        )
    return MappingProxyType(found)


@cache
def vision() -> Mapping[str, VisionSet]:
    """The vision encoder's sets of Tables 14 and 15, by key."""
    found = {}
    for key, row in facts()["vision"].items():
        values = report_table(row["table"]).values
        report = {
            encoder: {method: line[f"{method}: {row['column']}"] for method in METHODS[row["task"]]}
            for encoder, line in values.items()
        }
        found[key] = VisionSet(key=key, report=report, **row)
    return MappingProxyType(found)


def base_model(model: str) -> str:
    """The language model that a model of Table 13 started from.

    Raises:
        ValueError: the report has no language results for it.
    """
    bases: Mapping[str, str] = facts()["bases"]
    if model not in bases:
        raise ValueError(f"Table 13 has no {model!r}; it has {', '.join(bases)}.")
    return bases[model]


# ---------------------------------------------------------------------- finding
@cache
def names() -> Mapping[str, str]:
    """Every name of a benchmark -> its key: key, name, aliases and the engines' keys.

    A key that an engine has for several benchmarks (RefCOCO) belongs to the one of that name.

    Raises:
        ValueError: two benchmarks claim a name.
    """
    found: dict[str, str] = {}
    for benchmark in load().values():
        for name in (benchmark.key, benchmark.name, *benchmark.aliases):
            if found.setdefault(name, benchmark.key) != benchmark.key:
                raise ValueError(f"{name!r} names both {found[name]} and {benchmark.key}.")
    engines: dict[str, set[str]] = {}
    for benchmark in load().values():
        for keys in benchmark.engines.values():
            for key in keys:
                engines.setdefault(key, set()).add(benchmark.key)
    for key, owners in engines.items():
        if len(owners) == 1:
            (owner,) = owners
            if found.setdefault(key, owner) != owner:
                raise ValueError(f"{key!r} names both {found[key]} and {owner}.")
        elif key not in found:
            raise ValueError(f"{key!r} is an engine's key of {sorted(owners)} and no one's name.")
    return MappingProxyType(found)


def get(name: str) -> Benchmark:
    """The benchmark of a name: its key, its name in words, an alias or an engine's key.

    Upper and lower case, and - _ and blanks, are the same unless that would be ambiguous.

    Raises:
        ValueError: no benchmark, or several, have that name; near ones are named.
    """
    known = names()
    if name in known:
        return load()[known[name]]
    keys = {known[each] for each in known if folded(each) == folded(name)}
    if len(keys) == 1:
        return load()[keys.pop()]
    if keys:
        exact = sorted(each for each in known if folded(each) == folded(name))
        raise ValueError(f"{name!r} can be {' or '.join(exact)}; write it as one of them.")
    raise ValueError(f"no benchmark {name!r}; {_hint(name, known)}")


def folded(name: str) -> str:
    """A name in which upper and lower case, and - _ and blanks, are the same."""
    return re.sub(r"[-_\s]+", "_", name.strip().casefold())


def _hint(name: str, known: Iterable[str]) -> str:
    asked = folded(name)
    if asked in languages():
        return "it is a set of language (Table 13), not a multimodal one."
    if asked in vision():
        return f"it is for the vision encoder alone (Table {vision()[asked].table})."
    by_folded = {folded(each): each for each in known}
    near = difflib.get_close_matches(asked, by_folded, n=3, cutoff=0.6)
    near += [each for each in by_folded if asked and asked in each and each not in near][:3]
    if near:
        return f"did you mean {' or '.join(by_folded[each] for each in near[:3])}?"
    return f"there are {', '.join(load())}."
