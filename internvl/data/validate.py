"""Looking at a mixture before training on it: what it holds, and what is wrong with it, by line."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm import tqdm

from internvl.data.examples import ExampleMaker, Size
from internvl.data.mixture import Mixture
from internvl.data.packing import Limits
from internvl.data.schema import DataError

logger = logging.getLogger(__name__)

_BINS = 12
_WIDTH = 40


@dataclass(frozen=True)
class Fault:
    """A sample that cannot be used."""

    dataset: str
    where: str
    reason: str
    message: str


@dataclass
class DatasetReport:
    """One dataset.

    Attributes:
        name: key in the meta file.
        rows: in the annotation.
        seen: rows looked at.
        samples: rows that can be used.
        images: in them.
        tiles: of their images and frames.
        tokens: visual tokens included.
        supervised: tokens that are learnt.
        over_limit: samples that would be cut.
        skipped: rows left out, by reason.
        lengths: tokens of each sample, for the histogram.
        tile_counts: tiles of each sample.
    """

    name: str
    rows: int
    seen: int = 0
    samples: int = 0
    images: int = 0
    tiles: int = 0
    tokens: int = 0
    supervised: int = 0
    over_limit: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    tile_counts: Counter[int] = field(default_factory=Counter)

    def add(self, size: Size, limits: Limits | None) -> None:
        """Count a sample that can be used."""
        self.samples += 1
        self.images += size.images
        self.tiles += size.tiles
        self.tokens += size.tokens
        self.supervised += size.supervised
        self.lengths[size.tokens] += 1
        self.tile_counts[size.tiles] += 1
        if limits and (size.tokens > limits.max_tokens or size.tiles > limits.max_tiles):
            self.over_limit += 1


@dataclass
class Report:
    """What `validate` found.

    Attributes:
        datasets: one report each.
        faults: the first of them; all are counted in the datasets.
        total_faults: how many there are.
    """

    datasets: list[DatasetReport]
    faults: list[Fault]
    total_faults: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON; histograms as lists of [value, count]."""
        datasets = []
        for each in self.datasets:
            entry = asdict(each)
            entry["skipped"] = dict(each.skipped)
            entry["lengths"] = sorted(each.lengths.items())
            entry["tile_counts"] = sorted(each.tile_counts.items())
            datasets.append(entry)
        faults = [asdict(fault) for fault in self.faults]
        return {"datasets": datasets, "faults": faults, "total_faults": self.total_faults}


def validate(
    mixture: Mixture,
    maker: ExampleMaker,
    *,
    limit: int | None = None,
    limits: Limits | None = None,
    pixels: bool = False,
    most_faults: int = 100,
) -> Report:
    """Look at every row of every dataset.

    Args:
        mixture: the datasets.
        maker: renders the samples for a checkpoint.
        limit: rows of each dataset, evenly spread; None for all.
        limits: of a packed row, to count the samples over them.
        pixels: decode images and videos instead of reading headers; finds files that are cut off.
        most_faults: faults kept with their message.
    """
    datasets: list[DatasetReport] = []
    faults: list[Fault] = []
    total = 0
    for index, (spec, source) in enumerate(zip(mixture.specs, mixture.sources, strict=True)):
        report = DatasetReport(spec.name, len(source))
        datasets.append(report)
        for row in tqdm(_rows(len(source), limit), desc=spec.name, unit="row", disable=None):
            report.seen += 1
            try:
                report.add(_look(mixture, maker, (index, row, 0), pixels=pixels), limits)
            except DataError as error:
                report.skipped[error.reason] += 1
                total += 1
                if len(faults) < most_faults:
                    faults.append(Fault(spec.name, source.where(row), error.reason, str(error)))
    return Report(datasets, faults, total)


def _rows(count: int, limit: int | None) -> Sequence[int]:
    if limit is None or limit >= count:
        return range(count)
    return [i * count // limit for i in range(limit)]


def _look(mixture: Mixture, maker: ExampleMaker, key: Any, *, pixels: bool) -> Size:
    sample, spec = mixture.sample(key)
    rng = mixture.rng(0, key)
    size = maker.measure(sample, spec, rng)
    if not pixels:
        return size
    example = maker.make(sample, spec, mixture.rng(0, key))
    return Size(example.tokens, example.num_tiles, example.supervised, size.images)


# ---------------------------------------------------------------------- text
def describe(report: Report) -> str:
    """The report for people: a table, histograms, and the faults."""
    head = ("dataset", "rows", "seen", "usable", "images", "tiles", "tokens", "learnt", "too long")
    rows = [
        (d.name, d.rows, d.seen, d.samples, d.images, d.tiles, d.tokens, d.supervised, d.over_limit)
        for d in report.datasets
    ]
    if len(rows) > 1:
        rows.append(("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    lines = list(_table(head, rows))
    for each in report.datasets:
        for name, counts in (("tokens", each.lengths), ("tiles", each.tile_counts)):
            if counts:
                lines += ["", f"{each.name}: samples by {name}", *_bars(counts)]
        for reason, count in each.skipped.most_common():
            lines += ["", f"{each.name}: {count} left out: {reason}"]
    lines += [""] if report.faults else []
    lines += [f"{f.where}: {f.reason}: {f.message}" for f in report.faults]
    if report.total_faults > len(report.faults):
        lines.append(f"... and {report.total_faults - len(report.faults)} more")
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    cells = [head, *([str(row[0]), *(f"{value:,}" for value in row[1:])] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join([first.strip().ljust(widths[0]), *others])


def _bars(counts: Counter[int]) -> Iterator[str]:
    """A histogram of at most twelve bars of equal width."""
    low, high = min(counts), max(counts)
    width = max(1, -(-(high - low + 1) // _BINS))
    bins: Counter[int] = Counter()
    for value, count in counts.items():
        bins[(value - low) // width] += count
    largest = max(bins.values())
    for index in range(max(bins) + 1):
        first, last = low + index * width, min(high, low + (index + 1) * width - 1)
        span = f"{first:,}" if first == last else f"{first:,}-{last:,}"
        bar = "#" * -(-_WIDTH * bins[index] // largest)
        yield f"{span:>17} {bins[index]:>9,} {bar}".rstrip()
