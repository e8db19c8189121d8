"""Which samples the LLM judge is asked about, and what its answers say (report, Figure 8).

pure text     quality score + repetition
multimodal                    repetition
exempt        no repetition: the academic datasets of the report, by configuration
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from internvl.filtering.config import Config
from internvl.filtering.findings import Looked
from internvl.filtering.prompts import Domain, Kind
from internvl.filtering.verdict import Record, Verdict

UNJUDGED = "unjudged"


@dataclass(frozen=True)
class Assessment:
    """What a judge says about a sample.

    Attributes:
        key: of the sample.
        kind: what was judged.
        score: 0-10; None if no answer could be used.
        domain: by whose questions the quality was judged.
        reason: that the LLM gave; without a score, why there is none.
    """

    key: str
    kind: Kind
    score: float | None
    domain: Domain | None = None
    reason: str = ""


class Asker(Protocol):
    """What the pipeline needs of a judge; `internvl.filtering.judge` has one."""

    def assess(
        self, records: Iterable[Record], kinds: Callable[[Record], Sequence[Kind]]
    ) -> Iterator[Assessment]:
        """Assessments in any order, one for each sample and kind."""
        ...

    def verdict(self, assessment: Assessment) -> Verdict | None:
        """The verdict of a score under its threshold; `unjudged` where there is no score."""
        ...


def kinds(config: Config, record: Record) -> tuple[Kind, ...]:
    """What the judge is asked about a sample."""
    if not record.turns:
        return ()
    asked: list[Kind] = ["quality"] if record.modality == "text" else []
    if not config.is_exempt(record.dataset):
        asked.append("repetition")
    return tuple(asked)


def judged(config: Config, judge: Asker, rows: Sequence[Looked]) -> Iterator[Looked]:
    """The rows with the scores and the verdicts of the judge, in their order.

    Raises:
        ValueError: the judge left a question without an answer, which would be a silent pass.
    """
    found = {each.record.key: replace(each, verdicts=()) for each in rows}
    asked = {(key, kind) for key, each in found.items() for kind in kinds(config, each.record)}
    records = [each.record for each in rows if kinds(config, each.record)]
    for answer in judge.assess(records, lambda record: kinds(config, record)):
        asked.discard((answer.key, answer.kind))
        seen, said = found[answer.key], judge.verdict(answer)
        scores = dict(seen.scores)
        if answer.score is not None:
            scores[answer.kind] = answer.score
        verdicts = (*seen.verdicts, said) if said else seen.verdicts
        found[answer.key] = replace(seen, scores=scores, verdicts=verdicts)
    if asked:
        raise ValueError(
            f"the judge gave no answer, not even an unusable one, to {len(asked)} questions, "
            f"e.g. {min(asked)}; this is a fault of the judge."
        )
    for each in found.values():  # answers came in any order
        yield replace(each, verdicts=tuple(sorted(each.verdicts, key=lambda said: said.rule)))
