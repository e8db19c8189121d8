"""The last stage: every row goes to `kept`, to `removed`, or waits in the queue.

    kept/           rows that nothing flagged or that a person accepted, with a meta file
    removed/        rows that a person rejected or that the policy removes
    removed.jsonl   why each was removed
    queue.jsonl     every flagged row with all its verdicts, decided or not

The folders are filled aside and take their names when they are complete; statistics.json comes
last, so where it is the rest is whole. Nothing here depends on how many processes did the work.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from internvl.filtering.config import Config
from internvl.filtering.decisions import DECISIONS, QUEUE, Decision, is_open, load_decisions
from internvl.filtering.duplicates import load_duplicates
from internvl.filtering.files import to_line, write_json
from internvl.filtering.findings import Findings, as_json, findings_file
from internvl.filtering.judging import UNJUDGED
from internvl.filtering.plan import Plan, Shard, output_name
from internvl.filtering.records import Row, read_rows, to_record
from internvl.filtering.statistics import STATISTICS, Tally
from internvl.filtering.verdict import Record, Verdict
from internvl.filtering.writers import Writer, make_writer

logger = logging.getLogger(__name__)

KEPT, REMOVED, REASONS = "kept", "removed", "removed.jsonl"
State = Literal["kept", "removed", "queued"]
_BUILDING = ".building"
_MEDIA = ("image", "images", "video", "videos")


@dataclass(frozen=True)
class Places:
    """Where the findings of the stages are.

    Attributes:
        per_shard: folders of the stages that look at rows one by one, in the order in which their
            verdicts are listed.
        duplicates: verdicts on rows that are in the corpus twice, by key; None if nobody looked.
    """

    per_shard: tuple[Path, ...]
    duplicates: Path | None = None


def sort_rows(config: Config, plan: Plan, places: Places) -> Mapping[str, Any]:
    """Write the output of a run, and again after decisions were made.

    Returns:
        What statistics.json holds.

    Raises:
        ValueError: the counts do not add up, because files changed in the meantime.
    """
    building = config.folder / _BUILDING
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    (config.folder / STATISTICS).unlink(missing_ok=True)
    with ExitStack() as stack:
        sorter = _Sorter(config, places, building, stack)
        for (name, file), shards in itertools.groupby(plan.shards, lambda s: (s.dataset, s.file)):
            sorter.take_file(output_name(name, file, config.inputs), list(shards))
    sorter.describe()
    _swap(building, config.folder)
    statistics = sorter.tally.as_dict(config.policy)
    write_json(config.folder / STATISTICS, statistics)
    return statistics


def state_of(
    entry: Mapping[str, str],
    verdicts: Sequence[Verdict],
    policy: str,
    decisions: Mapping[str, Decision],
) -> State:
    """Where a flagged row goes: a decision on it counts, then the policy.

    A sample that is flagged only because the judge gave no usable answer waits for a person under
    either policy.
    """
    if not is_open(entry, decisions):
        return "kept" if decisions[entry["key"]].decision == "accept" else "removed"
    if policy == "auto" and any(verdict.rule != UNJUDGED for verdict in verdicts):
        return "removed"
    return "queued"


class _Sorter:
    """The open files and the counts of a run that sorts."""

    def __init__(self, config: Config, places: Places, building: Path, stack: ExitStack) -> None:
        self.config, self.places, self.building = config, places, building
        self.tally = Tally(config.seed, config.examples)
        self.decisions = load_decisions(config.folder)
        self.duplicates = load_duplicates(places.duplicates) if places.duplicates else {}
        self.kept: dict[str, list[Path]] = {}
        self.shard = 0
        self.queue = stack.enter_context((building / QUEUE).open("wb"))
        self.reasons = stack.enter_context((building / REASONS).open("wb"))
        for state in (KEPT, REMOVED):
            (building / state).mkdir()

    def take_file(self, name: Path, shards: Sequence[Shard]) -> None:
        """Sort the rows of one input file."""
        paths = {state: self.building / state / name for state in (KEPT, REMOVED)}
        with ExitStack() as stack:
            writers = {s: make_writer(shards[0].kind, p, stack) for s, p in paths.items()}
            for shard in shards:
                self._take_shard(shard, writers)
        if writers[KEPT].rows:
            self.kept.setdefault(shards[0].dataset, []).append(paths[KEPT])

    def _take_shard(self, shard: Shard, writers: Mapping[str, Writer]) -> None:
        found = [Findings(findings_file(folder, self.shard)) for folder in self.places.per_shard]
        for row in read_rows(shard):
            verdicts = [said for each in found for said in each.of(row.number)]
            if row.key in self.duplicates:
                verdicts += self.duplicates[row.key]
            state: State = self._flagged(row, verdicts) if verdicts else "kept"
            for name, writer in writers.items():
                writer.add(row, name == state)
        ends = [each.finish() for each in found]
        self.tally.add_shard(shard.dataset, ends)
        for writer in writers.values():
            writer.end_shard(shard)
        self.shard += 1

    def _flagged(self, row: Row, verdicts: Sequence[Verdict]) -> State:
        """Put a flagged row into the queue and the counts, and say where it goes."""
        record, _ = to_record(row)
        entry = queue_entry(row, record, verdicts)
        state = state_of(entry, verdicts, self.config.policy, self.decisions)
        self.queue.write(to_line(entry))
        if state == "removed":
            by = "policy" if is_open(entry, self.decisions) else "person"
            reason = {name: entry[name] for name in ("key", "digest", "dataset", "where")}
            self.reasons.write(to_line({**reason, "by": by, "verdicts": entry["verdicts"]}))
        stale = row.key in self.decisions and is_open(entry, self.decisions)
        self.tally.add_flagged(entry, state, stale=stale)
        return state

    def describe(self) -> None:
        """Write the meta file of what was kept."""
        meta = dict(_meta(self.config, self.kept, self.building))
        write_json(self.building / KEPT / "meta.json", meta)
        if self.tally.stale:
            logger.warning(
                "%d decisions are on rows that changed since; they are asked for again (%s)",
                self.tally.stale,
                self.config.folder / DECISIONS,
            )


def queue_entry(row: Row, record: Record, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """A line of the queue: all that a person needs to decide."""
    entry: dict[str, Any] = {
        "key": row.key,
        "digest": row.digest,
        "dataset": row.dataset,
        "modality": record.modality,
        "where": row.where,
        "verdicts": [as_json(verdict) for verdict in verdicts],
        "turns": [asdict(turn) for turn in record.turns],
    }
    media = {key: record.row[key] for key in _MEDIA if record.row.get(key)}
    if media:
        entry["media"] = media
    if not record.turns:  # what cannot be read is shown as it stands
        entry["raw"] = (
            row.content.decode(errors="backslashreplace")
            if isinstance(row.content, bytes)
            else repr(row.content)
        )
    return entry


def _meta(
    config: Config, kept: Mapping[str, Sequence[Path]], building: Path
) -> Iterator[tuple[str, Any]]:
    """Entries of a meta file for what was kept; a dataset that lost all its rows has none."""
    here = config.folder / KEPT
    for each in config.inputs:
        if each.name not in kept:
            logger.warning("dataset %r has no kept rows and is not in meta.json", each.name)
            continue
        files = [path.relative_to(building / KEPT) for path in kept[each.name]]
        annotation = files[0] if files[0].suffix == ".jsonl" else Path(files[0].parts[0])
        root = os.path.relpath(each.root, here) if each.root else ""
        entry = {"root": root, "annotation": annotation.as_posix()}
        yield each.name, {**entry, **each.meta}


def _swap(building: Path, folder: Path) -> None:
    """Give the new output its names, and drop the old one."""
    for name in (KEPT, REMOVED, REASONS, QUEUE):
        old = folder / name
        if old.exists():
            old.rename(building / f"old-{name}")
        (building / name).rename(old)
    shutil.rmtree(building)
