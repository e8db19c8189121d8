"""What VLMEvalKit leaves behind, read: scores as numbers, predictions as ours.

    <work>/<model>/T20260818_Ge8e78f05/<model>_DocVQA_VAL.xlsx        predictions
                                       <model>_DocVQA_VAL_acc.csv     scores, or _score.json, ...

Its result files differ from data set to data set, so all numbers in them are read, by names that
say where they stood ("validation|Overall"). Which of them a column of the report is, is known for
the data sets in HEADLINES, which were read off VLMEvalKit's own code.
"""

from __future__ import annotations

import csv
import fnmatch
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from internvl.evaluation.engines.selection import Choice
from internvl.evaluation.records import Prediction, Response
from internvl.source_files import optional_json

FAILED = "Failed to obtain answer"
FORMATS = (".xlsx", ".tsv", ".json")
_SCORES = re.compile(r"_(acc|score|rating|score_result|score_fine)\.(csv|json)$")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CELL = 1 << 27  # the csv module refuses fields beyond 128 KB by default


@dataclass(frozen=True)
class Headline:
    """How a column of the report is computed from the numbers of a data set.

    Attributes:
        names: of the numbers; "*" stands for anything, and must find one.
        how: "mean" or "sum" of them.
        scale: 100 for shares.
    """

    names: tuple[str, ...]
    how: str = "mean"
    scale: float = 1.0

    def of(self, metrics: Mapping[str, float]) -> float | None:
        """The value; None when a number is missing, or it is not clear which it is."""
        found = [
            [value for key, value in metrics.items() if fnmatch.fnmatchcase(key, name)]
            for name in self.names
        ]
        if any(len(values) != 1 for values in found):
            return None
        total = sum(values[0] for values in found)
        return self.scale * (total / len(self.names) if self.how == "mean" else total)


def _refcoco(name: str) -> dict[str, Headline]:
    splits = {"val": "val", "testA": "test-A", "testB": "test-B", "test": "test"}
    return {
        f"{name} ({title})": Headline((f"{name}_{split}|Precision@1",))
        for split, title in splits.items()
    }


def _languages(title: str, prefix: str) -> dict[str, Headline]:
    return {
        f"{title} ({'zh' if code == 'cn' else code})": Headline(
            (f"*{prefix}_{code}|Overall",), scale=100
        )
        for code in ("en", "cn", "pt", "ar", "tr", "ru")
    }


# Data set ("*" stands for anything) -> column of the report, "" for the only one.
HEADLINES: Mapping[str, Mapping[str, Headline]] = {
    "MMMU_DEV_VAL": {"": Headline(("validation|Overall",), scale=100)},
    "MMT-Bench_VAL*": {"": Headline(("ALL|Overall",), scale=100)},
    "MMMB": _languages("MMMB", "MMMB"),
    "MTL_MMBench_DEV": _languages("Multilingual MMBench", "MMBench_dev"),
    "MME-RealWorld": {"": Headline(("Overall",), scale=100)},
    "CharXiv*": {"": Headline(("Overall",), scale=100)},
    "CRPE*": {"": Headline(("total",), scale=100)},
    "WildVision": {"": Headline(("Win Rate",), scale=100)},
    "OCRBench": {"": Headline(("Final Score",))},
    "MME": {"": Headline(("perception", "reasoning"), "sum")},
    "HallusionBench": {"": Headline(("Overall|aAcc", "Overall|fAcc", "Overall|qAcc"))},
    "MathVista_MINI": {"": Headline(("Overall|acc",))},
    "MathVision*": {"": Headline(("Overall|acc",))},
    "MathVerse*": {"": Headline(("Overall|Overall",))},
    "MMVet": {"": Headline(("Overall|acc",))},
    "OlympiadBench*": {"": Headline(("AVG",))},
    "MTVQA_TEST": {"": Headline(("Average",))},
    "VCR_EN_EASY*": {
        "VCR-EN-Easy (EM)": Headline(("Exact_Match",), scale=100),
        "VCR-EN-Easy (Jaccard)": Headline(("Jaccard",), scale=100),
    },
    "POPE": {"": Headline(("Overall|Overall",))},
    "Video-MME*": {"": Headline(("overall|overall",), scale=100)},
    "LongVideoBench*": {"": Headline(("overall|overall",), scale=100)},
    "MVBench*": {"": Headline(("overall|2",))},
    "MLVU_MCQ*": {"": Headline(("M-Avg",), scale=100)},
    "MMBench-Video*": {"": Headline(("coarse_all|Overall",))},
    "CG-Bench*": {
        "CG-Bench (long acc.)": Headline(("long_acc|overall",), scale=100),
        "CG-Bench (clue acc.)": Headline(("clue_acc|overall",), scale=100),
    },
    "RefCOCO": {**_refcoco("RefCOCO"), **_refcoco("RefCOCO+"), **_refcoco("RefCOCOg")},
}
# All others whose table has an "Overall": shares for choices, per cent for answers.
_PERCENT = ("ChartQA", "TextVQA", "DocVQA", "InfoVQA")


@dataclass(frozen=True)
class DataScore:
    """An entry of a run.

    Attributes:
        entry: its name in the plan: the data set, with frames and subtitles of a video.
        n: predictions.
        empty: those without any text. VLMEvalKit's rule for MVBench counts them as right.
        failed: those that are an error message.
        metrics: every number of the result files, by a name that says where it stood.
        columns: column of the report -> value, where it is known which number it is.
        error: what VLMEvalKit says of it, when it has no scores.
        files: result files that were read.
    """

    entry: str
    n: int
    empty: int
    failed: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    columns: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    files: tuple[Path, ...] = ()


# ---------------------------------------------------------------------- whole runs
def read_scores(
    work: Path,
    model: str,
    entries: Mapping[str, Sequence[Choice]],
    *,
    known: Collection[str] = (),
    other_judges: Collection[str] = (),
) -> dict[str, list[DataScore]]:
    """Read the scores of a run.

    Args:
        work: `--work-dir` of run.py.
        model: name of the model in the plan.
        entries: entry -> the choices it serves, see `vlmevalkit.Plan`.
        known: other entries whose files may lie there.
        other_judges: whose files may lie there and do not count.

    Returns:
        Per benchmark, or per entry that belongs to none, its entries.
    """
    found: dict[str, list[DataScore]] = {}
    for entry, choices in entries.items():
        score = _read(work, model, entry, {*entries, *known}, other_judges, choices)
        for key in dict.fromkeys(each.benchmark.key for each in choices) or (entry,):
            found.setdefault(key, []).append(score)
    return found


def folders(work: Path, model: str) -> list[Path]:
    """Folders that hold results of a model, the newest first; some versions make none per run."""
    root = work / model
    runs = sorted((path for path in root.glob("T*") if path.is_dir()), reverse=True)
    return [*runs, root]


def predictions_file(work: Path, model: str, entry: str) -> Path | None:
    """The newest predictions of an entry."""
    for folder in folders(work, model):
        for suffix in FORMATS:
            path = folder / f"{model}_{entry}{suffix}"
            if path.is_file():
                return path
    return None


def _read(
    work: Path,
    model: str,
    entry: str,
    known: Collection[str],
    other_judges: Collection[str],
    choices: Sequence[Choice],
) -> DataScore:
    path = predictions_file(work, model, entry)
    if path is None:
        return DataScore(entry, 0, 0, 0, error=_error(work, model, entry))
    texts = [str(row.get("prediction") or "") for row in read_rows(path)]
    files = _score_files(path.parent, model, entry, known, other_judges)
    metrics: dict[str, float] = {}
    for file in files:
        metrics |= read_metrics(file)
    if not metrics:
        metrics = _from_marks(path)
    return DataScore(
        entry,
        n=len(texts),
        empty=sum(not text.strip() for text in texts),
        failed=sum(text.startswith(FAILED) for text in texts),
        metrics=metrics,
        columns=columns_of(entry, metrics, choices),
        error="" if metrics else _error(work, model, entry),
        files=tuple(files),
    )


def _error(work: Path, model: str, entry: str) -> str:
    """What status.json says of an entry without scores, in the versions that write one."""
    for folder in folders(work, model):
        status = optional_json(folder / "status.json").get("datasets", {}).get(entry, {})
        said = status.get("error_message") or status.get("skip_reason")
        if said:
            return str(said)
    return ""


def _score_files(
    folder: Path, model: str, entry: str, known: Collection[str], other_judges: Collection[str]
) -> list[Path]:
    """Result files of an entry, not those of one whose name begins alike, nor of another judge."""
    prefix = f"{model}_{entry}_"
    longer = [f"{model}_{each}" for each in known if each != entry and each.startswith(entry)]
    found = [
        path
        for path in sorted(folder.glob("*"))
        if path.name.startswith(prefix) and _SCORES.search(path.name)
    ]
    found = [path for path in found if not any(path.name.startswith(each) for each in longer)]
    others = [re.compile(f"_{re.escape(judge)}[_.]") for judge in other_judges]
    return [path for path in found if not any(each.search(path.name) for each in others)]


def columns_of(
    entry: str, metrics: Mapping[str, float], choices: Sequence[Choice] = ()
) -> dict[str, float]:
    """Columns of the report, as far as it is known which number they are.

    Args:
        entry: name of the entry.
        metrics: its numbers.
        choices: what it serves; the only column of a set is named by them.
    """
    columns = list(dict.fromkeys(column for each in choices for column in each.columns))
    if entry.endswith("_subs"):
        columns = [column for column in columns if "wo sub" not in column]
    elif any("wo sub" in column for column in columns):
        columns = [column for column in columns if "wo sub" in column]
    found = {}
    for name, headline in _headlines(entry, metrics).items():
        value = headline.of(metrics)
        column = name or (columns[0] if len(columns) == 1 else "score")
        if value is not None and (not name or not columns or name in columns):
            found[column] = value
    return found


def _headlines(entry: str, metrics: Mapping[str, float]) -> Mapping[str, Headline]:
    for name, headlines in HEADLINES.items():
        if fnmatch.fnmatchcase(entry, name):
            return headlines
    if "Overall" in metrics and entry.startswith(_PERCENT):
        return {"": Headline(("Overall",))}
    overall = [name for name in metrics if name == "Overall" or name.endswith("|Overall")]
    # A table of several splits says itself which is which; nobody else does.
    return {"": Headline((overall[0],), scale=100)} if len(overall) == 1 else {}


# ---------------------------------------------------------------------- result files
def read_metrics(path: Path) -> dict[str, float]:
    """Every number of a result file, CSV or JSON, by a name that says where it stood.

    A cell is named by the words in its row and by its column, a value in nested JSON by its keys,
    all joined by "|". "66.67%" is a number.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text("utf-8"))
            # A list is a table of answers, as with PRED_FORMAT=json.
            return dict(_flat(content, "")) if isinstance(content, dict) else {}
        with path.open(encoding="utf-8", newline="") as file:
            return _table(list(csv.DictReader(file)))
    except (json.JSONDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read ({error}); remove it and run again.") from error


def _table(rows: list[dict[str, str]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in rows:
        words = [value for value in row.values() if value and _number(value) is None]
        for column, value in row.items():
            number = _number(value)
            if column and number is not None:
                found["|".join([*words, column])] = number
    return found


def _flat(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key != "Predictions":  # VCR keeps its answers in the same file
                yield from _flat(inner, f"{name}|{key}" if name else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{name}|{index}" if name else str(index))
    elif (number := _number(value)) is not None:
        yield name, number


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(str(value).strip().removesuffix("%"))
    except ValueError:
        return None
    return number if number == number else None  # no NaN: a category without questions


def _from_marks(path: Path) -> dict[str, float]:
    """Means of the marks, for data sets (MLVU) that write one per answer and nothing else: of each
    task, over the tasks ("M-Avg"), and over the questions."""
    for suffix in FORMATS:
        scored = path.with_name(f"{path.stem}_score{suffix}")
        if not scored.is_file():
            continue
        tasks: dict[str, list[float]] = {}
        for row in read_rows(scored):
            mark = _number(row.get("score"))
            if mark is not None and mark >= 0:  # -1: VLMEvalKit could not tell
                tasks.setdefault(str(row.get("task_type", "")), []).append(mark)
        if not tasks:
            return {}
        means = {task: sum(marks) / len(marks) for task, marks in tasks.items()}
        every = [mark for marks in tasks.values() for mark in marks]
        whole = {"M-Avg": sum(means.values()) / len(means), "Overall": sum(every) / len(every)}
        return {**{task: mean for task, mean in means.items() if task}, **whole}
    return {}


# ---------------------------------------------------------------------- predictions
def read_predictions(path: Path, benchmark: str) -> list[Prediction]:
    """Read a predictions file as ours, so that `internvl eval score` can score it.

    VLMEvalKit keeps the question of the data set, not the prompt it sent, and neither tiles nor
    token counts: `prompt` is the question, the rest is empty, and `finish_reason` is "unknown".

    Args:
        path: of the file: xlsx, tsv or json.
        benchmark: key in benchmarks.toml.

    Raises:
        ValueError: not such a file.
        ImportError: an xlsx file, and openpyxl is not installed.
    """
    rows = read_rows(path)
    if not rows or "prediction" not in rows[0] or "index" not in rows[0]:
        raise ValueError(
            f"{path} has no columns `index` and `prediction`; it holds no predictions."
        )
    return [_prediction(row, benchmark) for row in rows]


def _prediction(row: Mapping[str, Any], benchmark: str) -> Prediction:
    choices = {letter: str(row[letter]) for letter in _LETTERS if row.get(letter) not in (None, "")}
    used = {"index", "question", "prediction", "answer", *choices}
    return Prediction(
        id=str(row["index"]),
        benchmark=benchmark,
        config="vlmevalkit",
        prompt=str(row.get("question") or ""),
        num_tiles=(),
        image_sizes=(),
        prompt_tokens=0,
        responses=(Response(str(row.get("prediction") or ""), 0, "unknown"),),
        answers=_answers(row.get("answer"), choices),
        choices=choices,
        fields={
            name: value
            for name, value in row.items()
            if name and name not in used and value not in (None, "")
        },
    )


def _answers(value: Any, choices: Mapping[str, str]) -> tuple[str, ...]:
    """Accepted answers; several are written as a Python list of strings."""
    if value in (None, ""):
        return ()
    text = str(value)
    if not choices and text.startswith("["):
        import ast

        try:
            listed = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            return (text,)
        if isinstance(listed, list):
            return tuple(map(str, listed))
    return (text,)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a predictions file.

    Raises:
        ValueError: another kind of file.
        ImportError: an xlsx file, and openpyxl is not installed.
    """
    if path.suffix == ".json":
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, list):
            raise ValueError(f"{path} holds no list of rows; expected predictions.")
        return content
    if path.suffix == ".tsv":
        csv.field_size_limit(_CELL)
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter="\t"))
    if path.suffix != ".xlsx":
        raise ValueError(f"{path} is neither xlsx nor tsv nor json.")
    try:
        import openpyxl
    except ImportError as error:
        raise ImportError(f"{path.name} needs openpyxl: pip install 'internvl[eval]'") from error
    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    try:
        lines = book.worksheets[0].iter_rows(values_only=True)
        header = [str(each) for each in next(lines, ())]
        return [dict(zip(header, line, strict=False)) for line in lines]
    finally:
        book.close()


# ---------------------------------------------------------------------- output
def describe(scores: Mapping[str, Sequence[DataScore]]) -> str:
    """A line per number that is a column of the report, and what is wrong with the others."""
    shown = []
    for key, found in scores.items():
        for each in found:
            counts = f"n {each.n}"
            if each.empty or each.failed:
                counts += f", empty {each.empty}, failed {each.failed}"
            shown += [
                f"{key:20} {each.entry:28} {column:28} {value:8.1f}  ({counts})"
                for column, value in each.columns.items()
            ]
            if not each.columns:
                why = each.error or f"{len(each.metrics)} numbers, see --json"
                shown.append(f"{key:20} {each.entry:28} {why}  ({counts})")
    return "\n".join(shown)


def as_json(scores: Mapping[str, Sequence[DataScore]]) -> str:
    """All numbers, as JSON."""
    plain = {key: [asdict(each) for each in found] for key, found in scores.items()}
    return json.dumps(plain, ensure_ascii=False, default=str)
