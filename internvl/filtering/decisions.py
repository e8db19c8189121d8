"""What people decided: a file that only grows, in which the last word on a sample counts.

"accept" keeps the sample, "reject" removes it, "undo" takes a decision back. A decision is on a
content: when the row changed since, it is asked for again.
"""

from __future__ import annotations

import getpass
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from internvl.filtering.files import append_line, read_appended, read_lines

logger = logging.getLogger(__name__)

QUEUE, DECISIONS = "queue.jsonl", "decisions.jsonl"
Word = Literal["accept", "reject", "undo"]


@dataclass(frozen=True)
class Decision:
    """One line of the file.

    Attributes:
        key: of the sample.
        digest: of its content.
        decision: what was decided.
        by: who decided.
        time: when, UTC.
    """

    key: str
    digest: str
    decision: Word
    by: str = ""
    time: str = ""


def load_decisions(folder: Path) -> dict[str, Decision]:
    """The last decision on each sample, by key.

    Raises:
        ValueError: a line that is no decision.
    """
    found: dict[str, Decision] = {}
    for line in read_appended(folder / DECISIONS):
        try:
            decision = Decision(**line)
        except TypeError as error:
            raise ValueError(f"{folder / DECISIONS} holds {line!r:.120}: {error}") from error
        if decision.decision not in get_args(Word):
            raise ValueError(
                f"{folder / DECISIONS} holds the decision {decision.decision!r} on {decision.key}; "
                f"expected one of {list(get_args(Word))}."
            )
        found[decision.key] = decision
    return {key: each for key, each in found.items() if each.decision != "undo"}


def decide(folder: Path, entry: Mapping[str, Any], word: Word) -> None:
    """Write down a decision on an entry of the queue."""
    time = datetime.now(UTC).isoformat(timespec="seconds")
    decision = Decision(entry["key"], entry["digest"], word, _user(), time)
    append_line(folder / DECISIONS, asdict(decision))


def read_queue(folder: Path) -> Iterator[dict[str, Any]]:
    """The flagged samples, in corpus order.

    Raises:
        FileNotFoundError: there is no queue.
    """
    path = folder / QUEUE
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} holds no {QUEUE}; expected the output folder of a finished "
            "`internvl filter run`."
        )
    yield from read_lines(path)


def is_open(entry: Mapping[str, Any], decisions: Mapping[str, Decision]) -> bool:
    """Whether nobody decided on this entry as it is."""
    decision = decisions.get(entry["key"])
    return decision is None or decision.digest != entry["digest"]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an account
        return ""
