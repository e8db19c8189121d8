"""Small corpora, rules that are easy to foresee, and a judge that answers without an LLM."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from internvl.filtering import pipeline
from internvl.filtering.config import Config, parse_config
from internvl.filtering.judging import UNJUDGED, Assessment
from internvl.filtering.prompts import Kind
from internvl.filtering.verdict import Record, Rule, Span, Verdict


# ---------------------------------------------------------------------- rules
def says(word: str) -> Rule:
    """A rule that flags answers with a word in them, and scores how often it is there."""

    def rule(record: Record) -> Verdict | None:
        for number, text in record.answers:
            if word in text:
                start = text.index(word)
                span = Span(number, start, start + len(word))
                return Verdict(
                    f"says_{word}", float(text.count(word)), 0.5, span, f"It says {word}."
                )
        return None

    return rule


def two_rules() -> dict[str, Rule]:
    """Rules whose flags are known: "loop" and "zero"."""
    return {f"says_{word}": says(word) for word in ("loop", "zero")}


def failing_rules() -> dict[str, Rule]:
    """A rule with a fault that the sample of id 7 brings out."""

    def rule(record: Record) -> Verdict | None:
        return Verdict("ratio", 1 / (record.row["id"] - 7), 2.0)

    return {"ratio": rule}


def deadly_rules(mark: Path) -> dict[str, Rule]:
    """A rule that kills its process once, as the kernel does for want of memory.

    Args:
        mark: file that tells that it did.
    """

    def rule(record: Record) -> Verdict | None:
        if record.row.get("id") == 25 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), 9)
        return says("loop")(record)

    return {"says_loop": rule}


def parricidal_rules(mark: Path) -> dict[str, Rule]:
    """A rule that once kills the process that runs the pipeline, and waits for its own end.

    Args:
        mark: file that takes the number of the waiting process.
    """

    def rule(record: Record) -> Verdict | None:
        if record.row.get("id") == 25 and not mark.exists():
            mark.write_text(str(os.getpid()))
            os.kill(multiprocessing.parent_process().pid, signal.SIGKILL)
            time.sleep(60)
        return says("loop")(record)

    return {"says_loop": rule}


# ---------------------------------------------------------------------- runs
def run(config: Config, rules: Callable[[], Mapping[str, Rule]] = two_rules) -> Any:
    """Run with the rules and the judge of this file."""
    return pipeline.run(config, rules=rules, judge=WordJudge)


def run_until(config: Config, moment: int, moments: Any = None) -> None:
    """Run, and end by SIGKILL before a file of the output is touched for the n-th time.

    Args:
        config: the run.
        moment: which time; 0 for never.
        moments: takes how often it is touched, for a run that comes to its end.
    """
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in _TOUCHES or not str(arguments[0]).startswith(config.output):
            return
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    run(config)
    if moments is not None:
        moments.value = seen


_TOUCHES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.scandir"}


# ---------------------------------------------------------------------- judge
class WordJudge:
    """Scores a sample by what it says: "poor" 3, "dumb" no answer, else 8."""

    def assess(
        self, records: Iterable[Record], kinds: Callable[[Record], Sequence[Kind]]
    ) -> Iterator[Assessment]:
        """Answers, the last sample first: the order must not matter."""
        for record in reversed(list(records)):
            text = " ".join(text for _, text in record.answers)
            for kind in kinds(record):
                score = None if "dumb" in text else 3.0 if f"poor {kind}" in text else 8.0
                yield Assessment(record.key, kind, score)

    def verdict(self, answer: Assessment) -> Verdict | None:
        """Thresholds of the report: 7 for quality; 3 and less is repetition here."""
        if answer.score is None:
            return Verdict(UNJUDGED, 0.0, 0.0, note="There was no usable answer.")
        return Verdict(f"llm_{answer.kind}", answer.score, 7.0) if answer.score < 7 else None


# ---------------------------------------------------------------------- corpora
def official(question: str, answer: str, **more: Any) -> dict[str, Any]:
    """A row of the official format."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **more}


def messages(question: Any, answer: str, **more: Any) -> dict[str, Any]:
    """A row of the messages format."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    """Write rows as JSON Lines; bytes are written as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def answer_of(number: int) -> str:
    """Every tenth says loop, every fifteenth zero, so every thirtieth both."""
    said = f"The answer to question {number} is {number * number}, of course."
    return said + " loop loop" * (number % 10 == 0) + " zero" * (number % 15 == 0)


def small_corpus(folder: Path, rows: int = 60) -> Config:
    """Two datasets in both formats, one with rows that cannot be read, as a configuration.

    Of `rows` rows each, "text" has a broken line in place of row 4 and "pictures" images.
    """
    text: list[Any] = [official(f"Question {i}?", answer_of(i), id=i) for i in range(1, rows + 1)]
    text[3] = b'{"conversations": [{"from": "human"'
    write_lines(folder / "data" / "text.jsonl", text)
    pictures = [
        messages(
            [{"type": "image"}, {"type": "text", "text": f"What is {i}?"}],
            answer_of(i),
            images=[f"{i}.png"],
        )
        for i in range(1, rows + 1)
    ]
    write_lines(folder / "data" / "pictures.jsonl", pictures)
    meta = {
        name: {"root": "media", "annotation": f"{name}.jsonl", **more}
        for name, more in (("text", {}), ("pictures", {"max_dynamic_patch": 6, "repeat_time": 2}))
    }
    (folder / "data" / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return configure(folder)


def configure(folder: Path, **values: Any) -> Config:
    """The configuration of a small corpus; shards of 17 rows, no duplicates."""
    content: Mapping[str, Any] = {
        "inputs": "data/meta.json",
        "output": "out",
        "rows_per_shard": 17,
        "duplicates": None,
        **values,
    }
    return parse_config(content, folder)


# ---------------------------------------------------------------------- output
OUTPUT = ("kept", "removed", "removed.jsonl", "queue.jsonl", "statistics.json", "report.html")


def output(folder: Path) -> dict[str, bytes]:
    """All that a run wrote for people and training, by name."""
    files = [path for name in OUTPUT for path in [folder / name, *folder.glob(f"{name}/**/*")]]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files if p.is_file()}


def lines_of(path: Path) -> list[Any]:
    """The values of a JSON Lines file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]
