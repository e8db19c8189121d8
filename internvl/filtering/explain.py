"""What every rule says about one sample, those included that do not flag it.

A rule that flags nothing returns nothing, so how far it was from doing so is found by asking it
again with stricter limits: all of its numbers times 0.75, 0.5, 0.25 and 0.1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl.filtering.excerpts import excerpt
from internvl.filtering.findings import as_json
from internvl.filtering.plan import Shard, format_of, open_parquet
from internvl.filtering.records import Row, read_rows
from internvl.filtering.review import printable
from internvl.filtering.rules import RULES, build
from internvl.filtering.verdict import Record, Verdict

_STRICTER = (0.75, 0.5, 0.25, 0.1)
_ORDER = ("flagged", "below", "silent", "not asked")


@dataclass(frozen=True)
class Explained:
    """What one rule says.

    Attributes:
        rule: name.
        state: "flagged", "below" its limits, "silent" (it finds nothing of its kind, or cannot
            tell how much), or "not asked" (it does not read samples of this modality).
        verdict: what it says; for "below", at the stricter limits.
        factor: the limits at which it says it, as a factor of those of the configuration.
    """

    rule: str
    state: str
    verdict: Verdict | None = None
    factor: float = 1.0


def explain(
    record: Record, bad: Verdict | None, settings: Mapping[str, Any]
) -> Iterator[Explained]:
    """Ask every rule about a sample.

    Args:
        record: the sample.
        bad: why it cannot be read; the rules are not asked then.
        settings: of all rules, as `internvl.filtering.pipeline.rule_settings` gives them.
    """
    if bad is not None:
        yield Explained(bad.rule, "flagged", bad)
        return
    for name, rule in build(settings).items():
        if record.modality not in RULES[name].modalities:
            yield Explained(name, "not asked")
        elif (verdict := rule(record)) is not None:
            yield Explained(name, "flagged", verdict)
        else:
            yield _below(record, name, settings[name])


def _below(record: Record, name: str, given: Mapping[str, Any] | bool) -> Explained:
    options = {**RULES[name].options, **(given if isinstance(given, Mapping) else {})}
    for factor in _STRICTER:
        stricter = {option: _times(value, factor) for option, value in options.items()}
        verdict = build({name: stricter})[name](record)
        if verdict is not None:
            return Explained(name, "below", verdict, factor)
    return Explained(name, "silent")


def _times(value: Any, factor: float) -> Any:
    """A limit times a factor; whole numbers stay whole, and stay above zero."""
    if isinstance(value, Mapping):
        return {key: _times(each, factor) for key, each in value.items()}
    return max(min(1, value), int(value * factor)) if isinstance(value, int) else value * factor


# ---------------------------------------------------------------------- where samples come from
def read_sample(source: str, text: str | None = None) -> Row:
    """The row of "FILE:LINE", or the one that a text holds.

    Args:
        source: a JSON Lines file and a line, from 1; for Parquet a file and a row.
        text: the row itself; `source` is then only its name.

    Raises:
        ValueError: no such form, or no such line.
        FileNotFoundError: no such file.
    """
    if text is not None:
        return Row(1, source, source, "", text.strip().encode(errors="surrogatepass"))
    name, colon, number = source.rpartition(":")
    if not colon or not number.isdecimal() or int(number) < 1:
        raise ValueError(f"{source!r} is no sample; expected FILE:LINE, or - for standard input.")
    content = _row(Path(name), int(number))
    return Row(int(number), source, source, Path(name).stem, content)


def _row(path: Path, number: int) -> bytes | Mapping[str, Any]:
    if format_of(path) == "parquet":
        groups = open_parquet(path).metadata.num_row_groups
        shard = Shard("", str(path), "parquet", 0, groups, 1, 1)
        for row in read_rows(shard):
            if row.number == number:
                return row.content
    else:
        with path.open("rb") as file:
            for line, content in enumerate(file, start=1):
                if line == number:
                    return content.rstrip(b"\r\n")
    raise ValueError(f"{path} has no line {number}.")


# ---------------------------------------------------------------------- text
def describe(record: Record, found: Sequence[Explained]) -> str:
    """The explanation as text: flagged rules first, with their evidence."""
    turns = [turn.text for turn in record.turns]
    lines = [f"{record.where}: {record.modality}, {len(turns)} turns"]
    for each in sorted(found, key=lambda one: _ORDER.index(one.state)):
        verdict = each.verdict
        if verdict is None:
            lines.append(f"{each.state:9} {each.rule}")
            continue
        at = "" if each.state == "flagged" else f", at {each.factor:g} x its limits"
        lines.append(
            f"{each.state:9} {each.rule}: {verdict.score:g} against {verdict.threshold:g}{at}. "
            f"{printable(verdict.note)}"
        )
        cut = excerpt(turns, as_json(verdict)["span"], around=40, most=160)
        if cut and each.state == "flagged":
            text = printable(f"{cut.before}>>>{cut.marked}<<<{cut.after}")
            lines += [f"            {line}" for line in text.splitlines()]
    return "\n".join(lines)


def to_json(found: Sequence[Explained]) -> str:
    """The explanation as JSON."""
    return json.dumps(
        [
            {
                "rule": each.rule,
                "state": each.state,
                "factor": each.factor,
                "verdict": each.verdict and as_json(each.verdict),
            }
            for each in found
        ]
    )
