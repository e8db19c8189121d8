"""The benchmarks in words: lists, one of them in full, a score beside the report's.

    internvl eval list --table 7
    internvl eval show docvqa

docs/benchmarks.md, made by `build_benchmarks.py`, has the same on one page.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from internvl.evaluation.benchmarks import (
    METHODS,
    MODALITIES,
    Benchmark,
    LanguageSet,
    VisionSet,
    languages,
    load,
    vision,
)
from internvl.evaluation.report_tables import MODELS, model_name, report_table

ENGINE_NAMES = {
    "vlmevalkit": "VLMEvalKit",
    "lmms_eval": "lmms-eval",
    "lm_eval": "lm-eval",
    "opencompass": "OpenCompass",
}
COT = {
    "no": "asked for the answer directly",
    "max(direct, cot)": "asked directly and with the CoT prompt; the report takes the higher score",
    "cot": "asked with the CoT prompt",
}
_WIDTH = 100
AnySet = Benchmark | LanguageSet | VisionSet
_KINDS: Mapping[type, str] = {
    Benchmark: "multimodal", LanguageSet: "language", VisionSet: "vision",
}  # fmt: skip
_HEADS: Mapping[type, tuple[str, ...]] = {
    Benchmark: ("key", "benchmark", "input", "tiles", "metric", "scored by", "cot", "engines"),
    LanguageSet: ("key", "benchmark", "area", "shots", "engines"),
    VisionSet: ("key", "benchmark", "task", "classes", "metric"),
}


# ---------------------------------------------------------------------- lists
def select(table: int | None = None, modality: str | None = None) -> list[AnySet]:
    """The benchmarks of a table, or with a kind of input; all of them without either.

    Args:
        table: 6 to 15.
        modality: "image", "images", "video" or "text" (Table 13). Sets of the vision encoder ask
            nothing and have none.

    Raises:
        ValueError: an unknown table or modality, or no benchmark fits both.
    """
    if modality is not None and modality not in MODALITIES:
        raise ValueError(f"no modality {modality!r}; there are {', '.join(MODALITIES)}.")
    if table is not None and not 6 <= table <= 15:
        raise ValueError(f"Table {table} has no benchmarks; Tables 6 to 15 have.")
    found: list[AnySet] = [*load().values(), *languages().values(), *vision().values()]
    kept = [
        each
        for each in found
        if table in (None, table_of(each)) and modality in (None, _modality(each))
    ]
    if not kept:
        raise ValueError(f"Table {table} has no benchmark with the modality {modality!r}.")
    return kept


def list_rows(table: int | None = None, modality: str | None = None) -> list[dict[str, Any]]:
    """What `select` finds, as dicts for JSON; `kind` says which of the three each is."""
    return [
        {"kind": _KINDS[type(each)], "table": table_of(each), **each.as_dict()}
        for each in select(table, modality)
    ]


def list_text(
    table: int | None = None, modality: str | None = None, *, as_json: bool = False
) -> str:
    """What `select` finds, a line each under the tables of the report; or as JSON."""
    if as_json:
        return json.dumps(list_rows(table, modality), ensure_ascii=False)
    chosen = select(table, modality)
    blocks = []
    for number in dict.fromkeys(map(table_of, chosen)):
        sets = [each for each in chosen if table_of(each) == number]
        rows = [_HEADS[type(sets[0])], *map(_line, sets)]
        blocks.append(f"Table {number}: {report_table(number).title}\n{_aligned(rows)}")
    end = f"{len(chosen)} benchmarks; `internvl eval show KEY` tells all about one."
    return "\n\n".join([*blocks, end])


def table_of(each: AnySet) -> int:
    """The table of the report that a set is in."""
    return 13 if isinstance(each, LanguageSet) else each.table


def _modality(each: AnySet) -> str:
    if isinstance(each, Benchmark):
        return each.modality
    return "text" if isinstance(each, LanguageSet) else ""


def _line(each: AnySet) -> tuple[str, ...]:
    if isinstance(each, LanguageSet):
        return each.key, each.column, each.area, str(each.shots), _engine_names(each)
    if isinstance(each, VisionSet):
        return each.key, each.name, each.task, str(each.classes), each.metric_note
    return (
        each.key, each.name, each.modality, short_size(each), each.metric or "-", each.scoring,
        each.cot, _engine_names(each),
    )  # fmt: skip


def short_size(benchmark: Benchmark) -> str:
    """Tiles per image, `12 (64)` where several share a budget, or frame counts: `16/32 frames`."""
    if benchmark.frames:
        return f"{'/'.join(map(str, benchmark.frames))} frames"
    if benchmark.modality == "images":
        return f"{benchmark.max_tiles} ({benchmark.total_tiles})"
    return str(benchmark.max_tiles)


def _engine_names(each: Benchmark | LanguageSet) -> str:
    return ", ".join(ENGINE_NAMES[engine] for engine in each.engines) or "none"


def _aligned(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join(indent + line.rstrip() for line in lines)


# ---------------------------------------------------------------------- one in full
def describe(each: AnySet) -> str:
    """All that is known about a benchmark: what `internvl eval show` prints before a sample."""
    if isinstance(each, LanguageSet):
        head, facts = f"{each.key}: {each.column}", _language_facts(each)
    elif isinstance(each, VisionSet):
        head, facts = f"{each.key}: {each.name}", _vision_facts(each)
    else:
        head, facts = f"{each.key}: {each.name}", _facts(each)
    lines = [head, *(_hanging(name, text) for name, text in facts), "", "The report's values:"]
    lines.append(_aligned(values_of(each)))
    if each.traps:
        lines += ["", "Known differences:" if isinstance(each, Benchmark) else "Remarks:"]
        lines += [_hanging("", trap, mark="* ") for trap in each.traps]
    return "\n".join(lines)


def _facts(benchmark: Benchmark) -> list[tuple[str, str]]:
    facts = [
        ("report", f"Table {benchmark.table}, row {benchmark.row} of 48"),
        ("data", f"{benchmark.data}; {benchmark.split}"),
        ("question", f"prompt rule `{benchmark.prompt}`, {COT[benchmark.cot]}"),
        ("pictures", _pictures(benchmark)),
        ("answer", f"at most {benchmark.max_new_tokens} new tokens"),
        ("score", _score(benchmark)),
        ("needs", needs(benchmark)),
    ]
    for engine, keys in benchmark.engines.items():
        text = ", ".join(f"{key} ({measured(benchmark, key)})" for key in keys)
        facts.append((ENGINE_NAMES[engine], text))
    return facts


def _pictures(benchmark: Benchmark) -> str:
    if benchmark.frames:
        counts = ", ".join(map(str, benchmark.frames))
        best = "; the report takes the best" if len(benchmark.frames) > 1 else ""
        return f"{counts} frames of one tile{best}"
    text = f"at most {benchmark.max_tiles} tiles, and the thumbnail"
    if benchmark.modality == "images":
        text += f", for each image; all images share {benchmark.total_tiles}"
    return text + ("; the first image is doubled first" if benchmark.upscale_first else "")


def _score(benchmark: Benchmark) -> str:
    metric = f"metric `{benchmark.metric}`, " if benchmark.metric else ""
    return f"{metric}{benchmark.metric_note}; {benchmark.scoring}"


def needs(benchmark: Benchmark) -> str:
    """What a score takes besides the model and the data."""
    having = [ENGINE_NAMES[engine] for engine in benchmark.engines]
    engines = f"run it in {' or '.join(having)}" if having else "only the official script has one"
    if benchmark.scoring == "server":
        return f"a server: {benchmark.server} scores the predictions"
    if benchmark.scoring == "judge":
        server = f"; the report's is {benchmark.server}" if benchmark.server else ""
        return f"a judge, which is not part of this package: {engines}{server}"
    text = "nothing"
    if benchmark.scoring == "rule, then judge":
        text += "; without a judge, answers that the rule cannot read are wrong"
    if benchmark.server:
        text += f"; for the report's split a server: {benchmark.server}"
    return text


def measured(benchmark: Benchmark, key: str) -> str:
    """Which columns of the report an engine's key measures, in words."""
    columns = benchmark.measures[key]
    if not columns:
        return "no column of the report"
    if columns == benchmark.columns:
        return "the report's column" if len(columns) == 1 else "all columns"
    return ", ".join(columns)


def _language_facts(each: LanguageSet) -> list[tuple[str, str]]:
    keys = [(ENGINE_NAMES[engine], ", ".join(names)) for engine, names in each.engines.items()]
    return [
        ("report", f"Table 13, {each.area}"),
        ("shots", str(each.shots)),
        ("score", "by what the model writes in OpenCompass, as in the report; lm-eval mostly takes "
                  "the likelihoods of the options, and its numbers are other ones"),
        *keys,
    ]  # fmt: skip


def _vision_facts(each: VisionSet) -> list[tuple[str, str]]:
    return [
        ("report", f"Table {each.table}, {each.task}"),
        ("data", f"{each.data}; {each.split}"),
        ("classes", str(each.classes)),
        ("score", f"{each.metric_note}, in percent"),
        ("methods", ", ".join(METHODS[each.task])),
    ]


def _hanging(name: str, text: str, mark: str = "") -> str:
    first = f"  {mark or name.ljust(12)}"
    return textwrap.fill(
        text, _WIDTH, initial_indent=first, subsequent_indent=" " * len(first),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


# ---------------------------------------------------------------------- values
def values_of(each: AnySet) -> list[tuple[str, ...]]:
    """The report's values as rows of text, a head first."""
    if isinstance(each, LanguageSet):
        columns: tuple[str, ...] = (each.column,)
        rows: Mapping[str, Mapping[str, float | None]] = {
            model: {each.column: value} for model, value in each.report.items()
        }
    else:
        columns = METHODS[each.task] if isinstance(each, VisionSet) else each.columns
        rows = each.report
    digits = {column: decimals(row[column] for row in rows.values()) for column in columns}
    lines = [
        (name, *(number(row[column], digits[column]) for column in columns))
        for name, row in rows.items()
    ]
    return [("", *columns), *lines]


def decimals(values: Any) -> int:
    """Digits after the point that a column is printed with: as many as its longest value has."""
    known = [value for value in values if value is not None]
    return max((len(f"{value:g}".partition(".")[2]) for value in known), default=0)


def number(value: float | None, digits: int) -> str:
    """A value of the report as it prints it."""
    return "-" if value is None else f"{value:.{digits}f}"


def compare_with_report(
    benchmark: Benchmark, value: float, size: str, column: str | None = None
) -> str:
    """Say how a score compares with the report's.

    Args:
        benchmark: what was measured.
        value: the score, in the report's unit (percent, mostly).
        size: of the model, `8B` or `InternVL2_5-8B`.
        column: the report's column, or the engine's key; all columns are shown without it.

    Returns:
        A line for each column, and what limits the comparison.

    Raises:
        ValueError: no such size or column, or a value that is no finite number.
    """
    if not math.isfinite(value):
        raise ValueError(f"the score is {value}; expected a finite number.")
    model = model_name(size)
    columns = _asked(benchmark, column)
    lines = []
    if len(columns) > 1:
        lines.append(f"{benchmark.name} has {len(columns)} columns; name yours to see one.")
    for each in columns:
        of_all = (benchmark.report[name][each] for name in MODELS)
        digits = decimals(of_all)
        theirs = benchmark.report[model][each]
        if theirs is None:
            lines.append(f"{each}: {value:.{digits}f}; the report has none of {model}.")
            continue
        difference = f"{value - theirs:+.{digits}f}"
        lines.append(
            f"{each}: {value:.{digits}f}; the report has {theirs:.{digits}f} of {model} "
            f"({difference})."
        )
    if benchmark.server:
        lines.append(f"The report's is of a split that {benchmark.server} scores.")
    if benchmark.scoring == "rule, then judge":
        lines.append("The report's toolkit asks a judge about answers that no rule can read.")
    if benchmark.traps:
        many = "s" if len(benchmark.traps) > 1 else ""
        lines.append(
            f"{len(benchmark.traps)} known difference{many}: `internvl eval show {benchmark.key}`."
        )
    return "\n".join(lines)


def _asked(benchmark: Benchmark, column: str | None) -> tuple[str, ...]:
    if column is None:
        return benchmark.columns
    if column in benchmark.columns:
        return (column,)
    if column in benchmark.measures:
        if not benchmark.measures[column]:
            raise ValueError(f"{column} measures no column of the report ({benchmark.key}).")
        return benchmark.measures[column]
    raise ValueError(
        f"{benchmark.key} has no column {column!r}; it has {list(benchmark.columns)}, and the "
        f"engines' keys {list(benchmark.measures)}."
    )
