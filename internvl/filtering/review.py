"""The queue: what waits for a person, one sample after the other, in a terminal (report, section
4.3: "All flagged samples are manually reviewed before final removal").

Decisions are written one by one, so a review can be left and taken up at any time, by several
people, in a terminal or on the page. They take effect when the rows are sorted again.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from internvl.filtering.decisions import (
    Word,
    decide,
    is_open,
    load_decisions,
    read_queue,
)
from internvl.filtering.excerpts import excerpt, shortened

_KEYS: Mapping[str, str] = {
    "a": "accept",
    "r": "reject",
    "s": "skip",
    "u": "undo",
    "f": "full",
    "q": "quit",
}
_ASK = "[a]ccept (stays)  [r]eject (goes)  [s]kip  [u]ndo the last  [f]ull text  [q]uit"


@dataclass(frozen=True)
class Which:
    """Part of a queue.

    Attributes:
        rules: samples that one of these rules flagged; empty for any rule.
        datasets: samples of these datasets; empty for any.
    """

    rules: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()

    def takes(self, entry: Mapping[str, Any]) -> bool:
        """Whether an entry belongs to the part."""
        said = {verdict["rule"] for verdict in entry["verdicts"]}
        return (not self.rules or bool(said & set(self.rules))) and (
            not self.datasets or entry["dataset"] in self.datasets
        )


def waiting(folder: Path, which: Which | None = None) -> Iterator[dict[str, Any]]:
    """Entries that nobody decided on, in corpus order.

    Raises:
        FileNotFoundError: there is no queue.
    """
    which, decisions = which or Which(), load_decisions(folder)
    for entry in read_queue(folder):
        if which.takes(entry) and is_open(entry, decisions):
            yield entry


def decide_all(folder: Path, which: Which, word: Word) -> int:
    """Decide on all that wait, in one way; returns how many."""
    entries = list(waiting(folder, which))
    for entry in entries:
        decide(folder, entry, word)
    return len(entries)


def review(
    folder: Path,
    which: Which | None = None,
    *,
    ask: Callable[[str], str] = typer.prompt,
    show: Callable[[str], Any] = typer.echo,
) -> int:
    """Ask a person about all that waits; returns how many decisions were made and not undone.

    Args:
        folder: output of a run.
        which: part of the queue; all if not given.
        ask: asks a question.
        show: writes a text.

    Raises:
        FileNotFoundError: there is no queue.
    """
    entries, place, made = list(waiting(folder, which)), 0, dict[str, int]()
    while place < len(entries):
        entry = entries[place]
        show(describe(entry, f"{place + 1} of {len(entries)}"))
        word = _answer(ask, show)
        if word == "quit":
            break
        if word == "full":
            show(full_text(entry))
        elif word == "undo":
            place = _undo(folder, entries, made, place, show)
        else:
            if word in ("accept", "reject"):
                decide(folder, entry, "accept" if word == "accept" else "reject")
                made[entry["key"]] = place
            place += 1
    return len(made)


def _answer(ask: Callable[[str], str], show: Callable[[str], Any]) -> str:
    while True:
        typed = ask(_ASK).strip().lower()
        for key, word in _KEYS.items():
            if typed in (key, word):
                return word
        show(f"{typed!r} is none of {', '.join(_KEYS.values())}")


def _undo(
    folder: Path,
    entries: list[dict[str, Any]],
    made: dict[str, int],
    place: int,
    show: Callable[[str], Any],
) -> int:
    """Take the last decision back, and go back to it."""
    if not made:
        show("there is nothing to undo")
        return place
    _, last = made.popitem()
    decide(folder, entries[last], "undo")
    return last


# ---------------------------------------------------------------------- text
def describe(entry: Mapping[str, Any], head: str) -> str:
    """What a person sees of an entry in a terminal: verdicts, and the evidence of each."""
    turns = [turn["text"] for turn in entry["turns"]]
    lines = ["", f"--- {head}: {entry['key']} ({entry['where']}, {entry['modality']})"]
    for verdict in entry["verdicts"]:
        lines.append(
            f"* {verdict['rule']}: {verdict['score']:g} against {verdict['threshold']:g}. "
            f"{verdict['note']}"
        )
        cut = excerpt(turns, verdict["span"])
        if cut:
            text = f"{cut.before}>>>{cut.marked}<<<{cut.after}"
            lines.append(textwrap.indent(printable(text), "    "))
    if all(verdict["span"] is None for verdict in entry["verdicts"]):
        lines.append(textwrap.indent(printable(shortened(full_text(entry), 1200)), "    "))
    return "\n".join(lines)


def full_text(entry: Mapping[str, Any]) -> str:
    """All turns of an entry, or the row as it stands if it cannot be read."""
    if "raw" in entry:
        return printable(entry["raw"])
    return "\n".join(f"{turn['role']}: {printable(turn['text'])}" for turn in entry["turns"])


def printable(text: str) -> str:
    """A text that cannot steer a terminal: control characters are shown, not sent."""
    return "".join(_visible(text))


def _visible(text: Iterable[str]) -> Iterator[str]:
    for c in text:
        if c in "\n\t" or c.isprintable() or c == "\u3000":
            yield c
        else:
            yield repr(c)[1:-1]
