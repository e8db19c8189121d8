"""How a rule on one text becomes a rule on a sample.

A family's module has functions from a `View` to a `Finding`; `over_answers` and `over_turns` run
one over a sample and turn the worst finding into a verdict.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from internvl.filtering.rules.text import View, view
from internvl.filtering.verdict import Modality, Record, Role, Rule, Span, Verdict

EVERY_MODALITY: tuple[Modality, ...] = ("text", "image", "multi_image", "video")


@dataclass(frozen=True)
class Finding:
    """What is wrong with one text.

    Attributes:
        score: what was measured.
        threshold: what it was compared with.
        start: first character of the evidence.
        end: one after its last.
        note: one sentence for the person who reviews.
        below: whether the score is too low rather than too high.
    """

    score: float
    threshold: float
    start: int
    end: int
    note: str
    below: bool = False

    @property
    def severity(self) -> float:
        """How far the score is over its threshold, as a ratio."""
        high, low = self.score, self.threshold
        if self.below:
            high, low = low, high
        return high / low if low else float("inf")


TextRule = Callable[[View], Finding | None]


@dataclass(frozen=True)
class RuleSpec:
    """An entry of the map of rules.

    Attributes:
        name: as it stands in a configuration and in verdicts.
        make: from thresholds, all keyword arguments with defaults, to the rule.
        summary: what it flags, in one line.
        source: where the rule or its thresholds are from.
        roles: whose turns it reads.
        modalities: kinds of samples that it reads.
        repetition: whether it looks for the report's repetitive samples.
    """

    name: str
    make: Callable[..., Rule]
    summary: str
    source: str
    roles: tuple[Role, ...] = ("assistant",)
    modalities: tuple[Modality, ...] = EVERY_MODALITY
    repetition: bool = False

    @property
    def options(self) -> Mapping[str, Any]:
        """Thresholds and their defaults."""
        parameters = inspect.signature(self.make).parameters
        return {name: parameter.default for name, parameter in parameters.items()}


def over_answers(name: str, check: TextRule) -> Rule:
    """The rule that looks at every answer and reports the worst."""

    def rule(record: Record) -> Verdict | None:
        worst: tuple[int, Finding] | None = None
        for number, turn in enumerate(record.turns):
            if turn.role != "assistant":
                continue
            question = record.turns[number - 1].text if number else ""
            finding = check(view(turn.text, question))
            if finding and (worst is None or finding.severity > worst[1].severity):
                worst = number, finding
        return worst and verdict(name, *worst)

    return rule


def verdict(name: str, turn: int, finding: Finding) -> Verdict:
    """The verdict of a finding in a turn."""
    return Verdict(
        rule=name,
        score=round(finding.score, 4),
        threshold=finding.threshold,
        span=Span(turn, finding.start, finding.end),
        note=finding.note,
    )
