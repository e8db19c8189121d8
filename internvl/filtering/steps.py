"""The stages as datatrove pipeline steps.

    rules       ReadRows -> CheckRules -> WriteFindings      a task per shard
    judge       ReadRows -> AskJudge   -> WriteFindings      a task per shard
    duplicates  FindDuplicates                               one task
    sort        SortRows                                     one task

What goes from step to step are rows, not datatrove's Documents: nothing is to drop or change one.
datatrove notes which tasks are complete; a step writes its file whole before that, so a task that
was killed at any moment is done again and gives the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from internvl.filtering.config import Config
from internvl.filtering.duplicates import write_duplicates
from internvl.filtering.findings import Looked, findings_file, write_findings
from internvl.filtering.judging import Asker, judged
from internvl.filtering.plan import Plan
from internvl.filtering.records import read_rows, to_record
from internvl.filtering.report import write_report
from internvl.filtering.rules import check
from internvl.filtering.sorting import Places, sort_rows
from internvl.filtering.verdict import Rule


class ReadRows(PipelineStep):
    """Read the shard of a task; a row that cannot be read has a verdict that says so.

    Args:
        plan: the shards.
    """

    type, name = "read", "rows"

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Looked]:
        """Yield the rows of shard `rank`."""
        for row in read_rows(self.plan.shards[rank]):
            record, bad = to_record(row)
            self.stat_update("rows", unit="row")
            yield Looked(row.number, record, (bad,) if bad else ())


class CheckRules(PipelineStep):
    """Say what the rules say.

    Args:
        make: gives the rules, in the process that uses them.
    """

    type, name = "check", "rules"

    def __init__(self, make: Callable[[], Mapping[str, Rule]]) -> None:
        super().__init__()
        self.make = make

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Looked]:
        """Yield the rows with the verdicts of the rules; a rule that fails stops the task."""
        rules = self.make()
        for each in data:
            if each.verdicts:  # what cannot be read has no turns to look at
                yield each
                continue
            try:
                found = check(each.record, rules)
            except Exception as error:
                error.add_note(f"while the rules looked at {each.record.where} ({each.record.key})")
                raise
            self.stat_update(*(verdict.rule for verdict in found), unit="row")
            yield replace(each, verdicts=tuple(found))


class AskJudge(PipelineStep):
    """Have an LLM score the rows of a shard.

    Args:
        config: the run.
        make: gives the judge, in the process that uses it.
    """

    type, name = "ask", "judge"

    def __init__(self, config: Config, make: Callable[[], Asker]) -> None:
        super().__init__()
        self.config, self.make = config, make

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Looked]:
        """Yield the rows with the verdicts and the scores of the judge."""
        yield from judged(self.config, self.make(), list(data))


class WriteFindings(PipelineStep):
    """Write what was said about the rows of a shard.

    Args:
        folder: of the stage.
    """

    type, name = "write", "findings"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Take all rows; yields nothing."""
        write_findings(findings_file(self.folder, rank), data)
        yield from ()


class FindDuplicates(PipelineStep):
    """Look for samples that are in the corpus twice.

    Args:
        config: the run.
        plan: the corpus.
        places: where the stages before wrote, and where this one does.
    """

    type, name = "find", "duplicates"

    def __init__(self, config: Config, plan: Plan, places: Places) -> None:
        super().__init__()
        self.config, self.plan, self.places = config, plan, places

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Write the verdicts; yields nothing."""
        assert self.places.duplicates is not None
        settings = self.config.duplicates or {}
        write_duplicates(self.places.duplicates, self.plan, self.places.per_shard, settings)
        yield from ()


class SortRows(PipelineStep):
    """Write the output.

    Args:
        config: the run.
        plan: the corpus.
        places: where the stages before wrote.
    """

    type, name = "write", "output"

    def __init__(self, config: Config, plan: Plan, places: Places) -> None:
        super().__init__()
        self.config, self.plan, self.places = config, plan, places

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Write it; yields nothing."""
        sort_rows(self.config, self.plan, self.places)
        write_report(self.config.folder)
        yield from ()
