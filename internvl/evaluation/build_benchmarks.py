"""Write docs/benchmarks.md from what is known of the benchmarks.

python -m internvl.evaluation.build_benchmarks           # write
python -m internvl.evaluation.build_benchmarks --check   # compare; exit code 1 on a difference
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from internvl.evaluation.benchmark_text import (
    ENGINE_NAMES,
    decimals,
    number,
    short_size,
)
from internvl.evaluation.benchmarks import (
    METHODS,
    Benchmark,
    base_model,
    languages,
    load,
    vision,
)
from internvl.evaluation.report_tables import MODELS, SIZES, Average, averages, report_table

logger = logging.getLogger(__name__)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
_HEAD = """# The benchmarks of the report

Written by `python -m internvl.evaluation.build_benchmarks` from `benchmarks.toml` and
`report_values.toml` in `internvl/evaluation/`; a test compares. On the command line:

```bash
internvl eval list
internvl eval list --table 7 --json
internvl eval show docvqa
```

**Whose numbers.** Every score on this page is the report's (arXiv 2412.05271), as printed; "-" is
its own. None was measured by this project.

**What stands where.** The report says which sets it used, mostly through VLMEvalKit, and little of
how: prompts, tile limits and lengths are those of VLMEvalKit's InternVL entry (e8e78f05), or of the
official scripts (OpenGVLab/InternVL 2410d1d) for the sets that it lacks, and where the report's own
words fit only those. They were read in the source, as were lmms-eval 0.7.3, lm-eval 0.4.13 and
OpenCompass 0.5.4; `docs/evaluation.md` tells what was run.

**Columns of the tables below.** *prompt*: a rule of `internvl/evaluation/prompts.py`. *tiles*: most
tiles of an image, thumbnail not counted; in brackets what all images of a question share; frames
have one tile each, and of several frame counts the report takes the best. *metric*: a name for
`internvl eval score`; "-" where only others can score. *scored by*: a rule; a rule, and a judge (a
language model) for the answers that it cannot read; a judge; or a server that keeps the answers.
*CoT*: whether the report, or the toolkit for it, asks for reasoning. An engine's key in brackets
measures another split or a part, and no column of the report.
"""


def page() -> str:
    """The page."""
    parts = [_HEAD.rstrip(), _engines()]
    for table in range(6, 13):
        parts.append(f"## Table {table}: {report_table(table).title}")
        rows = [each for each in load().values() if each.table == table]
        parts += [_facts(rows), _values(rows), _traps(rows)]
    parts += [_language(), _vision()]
    parts.append("## Averages over several sets")
    parts += [_average(each) for each in averages().values()]
    return "\n\n".join(parts) + "\n"


def _engines() -> str:
    lines = []
    for engine in ("vlmevalkit", "lmms_eval"):
        missing = [f"`{each.key}`" for each in load().values() if engine not in each.engines]
        lines.append(f"* {ENGINE_NAMES[engine]} lacks {len(missing)} of 48: {', '.join(missing)}.")
    without = [f"`{key}`" for key, each in languages().items() if "lm_eval" not in each.engines]
    lines.append(f"* lm-eval lacks {len(without)} of 17 language sets: {', '.join(without)}.")
    return (
        "## Engines\n\nNo engine has all of it:\n\n" + "\n".join(lines) + "\n\n"
        "What is true of all sets: VLMEvalKit fails on questions without a picture (it divides 64 "
        "by the number of images); lmms-eval's InternVL adapter cuts every image into 6 tiles at "
        "most, whatever the set, and drops the sampling temperature; both need CUDA as they come."
    )


def _facts(rows: Sequence[Benchmark]) -> str:
    head = ["key", "benchmark", "data; split", "prompt", "tiles", "tokens", "metric", "scored by",
            "CoT", "VLMEvalKit", "lmms-eval"]  # fmt: skip
    lines = [
        [
            f"`{each.key}`", each.name, f"{each.data}; {each.split}", each.prompt,
            short_size(each) + (", first image doubled" if each.upscale_first else ""),
            str(each.max_new_tokens), each.metric or "-", _scored(each), each.cot,
            _keys(each, "vlmevalkit"), _keys(each, "lmms_eval"),
        ]
        for each in rows
    ]  # fmt: skip
    return _table(head, lines)


def _scored(benchmark: Benchmark) -> str:
    server = f"; the report's split by {benchmark.server}" if benchmark.server else ""
    return f"{benchmark.scoring}: {benchmark.metric_note}{server}"


def _keys(benchmark: Benchmark, engine: str) -> str:
    keys = benchmark.engines.get(engine, ())
    return ", ".join(f"`{key}`" if benchmark.measures[key] else f"(`{key}`)" for key in keys) or "-"


def _values(rows: Sequence[Benchmark]) -> str:
    lines = []
    for each in rows:
        for column in each.columns:
            values = [each.report[model][column] for model in MODELS]
            digits = decimals(values)
            lines.append([column, *(number(value, digits) for value in values)])
    return "InternVL2.5 in the report:\n\n" + _table(["column", *SIZES], lines)


def _traps(rows: Sequence[Benchmark]) -> str:
    lines = [f"* `{each.key}`: {_escaped(trap)}" for each in rows for trap in each.traps]
    return "Known differences:\n\n" + "\n".join(lines)


def _language() -> str:
    head = ["key", "benchmark", "area", "shots", "OpenCompass", "lm-eval", "remarks"]
    lines = [
        [
            f"`{each.key}`", each.column, each.area, str(each.shots),
            " ".join(f"`{key}`" for key in each.engines["opencompass"]),
            " ".join(f"`{key}`" for key in each.engines.get("lm_eval", ())) or "-",
            " ".join(each.traps),
        ]
        for each in languages().values()
    ]  # fmt: skip
    table = report_table(13)
    pairs = [model for model in table.values if model.startswith("InternVL2_5")]
    models = [name for model in pairs for name in (base_model(model), model)]
    values = [
        [column, *(number(table.values[model][column], 1) for model in models)]
        for column in table.columns
    ]
    return "\n\n".join([
        f"## Table 13: {table.title}",
        "All by OpenCompass, which scores what the model writes. lm-eval mostly takes the "
        "likelihoods of the options: its numbers are not those of this table.",
        _table(head, lines),
        "InternVL2.5 beside the language models that it started from:",
        _table(["column", *models], values),
    ])  # fmt: skip


def _vision() -> str:
    parts = [
        "## Tables 14 and 15: the vision encoder alone",
        "Classification with a frozen encoder: a linear layer, or attention pooling and a linear "
        "layer. Segmentation: a linear layer or UperNet on the frozen encoder (head), or UperNet "
        "with all weights trained (full). All in percent.",
    ]
    head = ["key", "set", "data; split", "classes", "metric", "remarks"]
    parts.append(_table(head, [
        [f"`{each.key}`", each.name, f"{each.data}; {each.split}", str(each.classes),
         each.metric_note, " ".join(each.traps)]
        for each in vision().values()
    ]))  # fmt: skip
    for table in (14, 15):
        sets = [each for each in vision().values() if each.table == table]
        for method in METHODS[sets[0].task]:
            columns = [f"{method}: {each.column}" for each in sets] + [f"{method}: avg."]
            rows = [
                [encoder, *(number(values[column], 1) for column in columns)]
                for encoder, values in report_table(table).values.items()
            ]
            parts.append(
                _table([f"Table {table}, {method}", *(c.partition(": ")[2] for c in columns)], rows)
            )
    return "\n\n".join(parts)


def _average(average: Average) -> str:
    printed, mean, difference = ["printed"], ["mean of the columns"], ["difference"]
    models = []
    for model in report_table(average.table).values:
        ours = recomputed(average, model)
        theirs = report_table(average.table).values[model][average.column]
        if ours is None or theirs is None:
            continue
        models.append(model)
        printed.append(number(theirs, 1))
        mean.append(f"{ours:.2f}")
        difference.append(f"{ours - theirs:+.2f}")
    columns = ", ".join(
        part.column + (f" / {part.divide:g}" if part.divide != 1 else "") for part in average.parts
    )
    title = f"### Table {average.table}, {average.column}: {average.name}"
    body = _table(["", *models], [printed, mean, difference])
    return f"{title}\n\nMean of {columns}. {average.note}\n\n{body}"


def recomputed(average: Average, model: str) -> float | None:
    """An average from the report's own columns; None where it does not print all of them."""
    values = {}
    for part in average.parts:
        table = 13 if part.key in languages() else load()[part.key].table
        value = report_table(table).values.get(model, {}).get(part.column)
        if value is None:
            return None
        values[part.column] = value
    return average.of(values)


def _escaped(text: str) -> str:
    """Tags in angle brackets, which Markdown would take for HTML, as code."""
    return re.sub(r"<[^<>]+>", lambda match: f"`{match[0]}`", text)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def main(arguments: list[str] | None = None, path: Path = PAGE) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description="Write docs/benchmarks.md.")
    parser.add_argument("--check", action="store_true", help="compare with docs/benchmarks.md")
    if not parser.parse_args(arguments).check:
        path.write_text(page(), encoding="utf-8")
        return 0
    if path.is_file() and path.read_text(encoding="utf-8") == page():
        return 0
    logger.error("%s is stale; run: python -m internvl.evaluation.build_benchmarks", path.name)
    return 1


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
