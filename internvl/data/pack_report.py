"""How full packs are: numbers, a text table and a picture.

    samples -> each rule of `packing` -> packs -> FillReport -> table, picture

A row has two capacities, and whichever runs out first binds it. So the figure to look at is the
bottleneck fill: the share that the data need of the binding capacity, of all that the packs have
of it. 100 % is the bound that no rule can beat; token fill alone stays below it wherever tiles
bind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from internvl import plots
from internvl.data.packing import Item, Limits, Packer, Rule, make_packer, size_of

RULES: tuple[Rule, ...] = ("report", "official", "best_fit")
UNPACKED = "unpacked"  # one sample a row
_TOKENS, _TILES = plots.BLUE, plots.ORANGE
_LINES = ((plots.INK, "-"), (plots.RED, "--"), (plots.GREEN, "-."))


@dataclass
class FillReport:
    """What became of a stream of packs.

    Attributes:
        rule: the packing rule.
        limits: what a row may hold.
        packs: how many.
        tokens: of all packs.
        tiles: of all packs.
        samples_per_pack: packs by the number of samples in them.
    """

    rule: str
    limits: Limits
    packs: int = 0
    tokens: int = 0
    tiles: int = 0
    samples_per_pack: Counter[int] = field(default_factory=Counter)

    def add(self, pack: Sequence[Item]) -> None:
        """Count a pack."""
        tokens, tiles = size_of(pack)
        self.packs += 1
        self.tokens += tokens
        self.tiles += tiles
        self.samples_per_pack[len(pack)] += 1

    @property
    def samples(self) -> int:
        """Samples in all packs."""
        return sum(count * packs for count, packs in self.samples_per_pack.items())

    @property
    def token_fill(self) -> float:
        """Share of the token places that are filled, 0 to 1."""
        return self.tokens / (self.packs * self.limits.max_tokens) if self.packs else 0.0

    @property
    def tile_fill(self) -> float:
        """Share of the tile places that are filled, 0 to 1."""
        return self.tiles / (self.packs * self.limits.max_tiles) if self.packs else 0.0

    @property
    def bottleneck_fill(self) -> float:
        """The larger of both: max(sum tokens / (packs * l_max), sum tiles / (packs * t_max))."""
        return max(self.token_fill, self.tile_fill)

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return {
            "rule": self.rule,
            "max_tokens": self.limits.max_tokens,
            "max_tiles": self.limits.max_tiles,
            "samples": self.samples,
            "packs": self.packs,
            "tokens": self.tokens,
            "tiles": self.tiles,
            "token_fill": round(self.token_fill, 5),
            "tile_fill": round(self.tile_fill, 5),
            "bottleneck_fill": round(self.bottleneck_fill, 5),
            "samples_per_pack": {
                str(n): packs for n, packs in sorted(self.samples_per_pack.items())
            },
        }


def measure(packs: Iterable[Sequence[Item]], limits: Limits, rule: str) -> FillReport:
    """Report on a stream of packs, of which none is kept."""
    report = FillReport(rule, limits)
    for pack in packs:
        report.add(pack)
    return report


def compare_rules(
    items: Iterable[Item],
    limits: Limits,
    *,
    rules: Sequence[Rule] = RULES,
    buffer: int = 20,
    window: int = 1024,
) -> list[FillReport]:
    """Pack the same samples by several rules at once; the samples may be a stream.

    Args:
        items: the samples.
        limits: what a row may hold.
        rules: the rules.
        buffer: open packs of "report" and "official".
        window: open packs of "best_fit".

    Returns:
        A report on each rule, after one on the samples as they are, one a row.

    Raises:
        ValueError: a sample that no row can hold, or no samples.
    """
    unpacked = FillReport(UNPACKED, limits)
    packers: list[Packer] = [make_packer(r, limits, buffer=buffer, window=window) for r in rules]
    reports = [FillReport(rule, limits) for rule in rules]
    for item in items:
        unpacked.add([item])
        for packer, report in zip(packers, reports, strict=True):
            for pack in packer.add(item):
                report.add(pack)
    if not unpacked.packs:
        raise ValueError("there are no samples to pack; give a mixture that has some.")
    for packer, report in zip(packers, reports, strict=True):
        for pack in packer.flush():
            report.add(pack)
    return [unpacked, *reports]


def text_table(reports: Sequence[FillReport]) -> str:
    """The reports for people: a table, and below it how many samples share a pack, by rule."""
    first = reports[0]
    lines = [
        f"{first.samples:,} samples, {first.tokens:,} tokens, {first.tiles:,} tiles; "
        f"a row holds {first.limits.max_tokens:,} tokens and {first.limits.max_tiles:,} tiles",
        "",
        f"{'rule':10} {'packs':>9} {'token fill':>11} {'tile fill':>10} {'bottleneck':>11}"
        f" {'samples a pack (10 % / median / 90 % / most)':>46}",
    ]
    for report in reports:
        counts = report.samples_per_pack
        spread = " / ".join(f"{_quantile(counts, share)}" for share in (0.1, 0.5, 0.9, 1.0))
        lines.append(
            f"{report.rule:10} {report.packs:>9,} {report.token_fill:>11.1%}"
            f" {report.tile_fill:>10.1%} {report.bottleneck_fill:>11.1%} {spread:>46}"
        )
    for report in reports:
        if report.rule != UNPACKED:
            lines += ["", f"{report.rule}: packs by samples in them", *_bars(report)]
    return "\n".join(lines)


def _bars(report: FillReport, rows: int = 12, width: int = 40) -> list[str]:
    """A histogram in text, in at most so many rows of equal span."""
    bins = _bins(report.samples_per_pack, rows)
    most = max(packs for *_, packs in bins)
    return [
        f"  {_span(low, high):>9} {packs:>9,} {'#' * -(-packs * width // most)}"
        for low, high, packs in bins
    ]


def _bins(counts: Counter[int], rows: int) -> list[tuple[int, int, int]]:
    """First and last number of samples, and packs, of each bin."""
    low, high = min(counts), max(counts)
    step = -(-(high - low + 1) // rows)
    return [
        (start, start + step - 1, sum(counts[n] for n in range(start, start + step)))
        for start in range(low, high + 1, step)
    ]


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def _quantile(counts: Counter[int], share: float) -> int:
    """Smallest number of samples that at least `share` of the packs do not exceed."""
    wanted, seen, found = share * sum(counts.values()), 0, 0
    for found in sorted(counts):
        seen += counts[found]
        if seen >= wanted:
            break
    return found


# ---------------------------------------------------------------------- picture
def draw(reports: Sequence[FillReport], path: str | Path) -> Path:
    """Draw fill and samples a pack by rule; the suffix, .svg or .png, says how.

    Needs matplotlib (`pip install 'internvl[plot]'`).

    Raises:
        ValueError: another suffix.
    """
    with plots.figure(path, (11, 1.6 + 0.75 * len(reports))) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_fill(left, reports)
        _draw_counts(right, [report for report in reports if report.rule != UNPACKED])
        first = reports[0]
        figure.suptitle(
            f"{first.samples:,} samples into rows of {first.limits.max_tokens:,} tokens and "
            f"{first.limits.max_tiles:,} tiles",
            fontsize=12,
        )
    return Path(path)


def _draw_fill(axes: Any, reports: Sequence[FillReport]) -> None:
    """Bars of token and tile fill; the number beside them is that of the bottleneck."""
    for row, report in enumerate(reports):
        for shift, name, fill, colour in (
            (-0.2, "tokens", report.token_fill, _TOKENS),
            (0.2, "tiles", report.tile_fill, _TILES),
        ):
            label = name if row == 0 else None
            axes.barh(row + shift, 100 * fill, 0.36, color=colour, label=label)
        axes.text(
            102,
            row,
            f"{report.bottleneck_fill:.1%}\n{report.packs:,} rows",
            va="center",
            fontsize=9,
            color=plots.INK,
        )
    axes.axvline(100, color=plots.INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(reports)), [report.rule for report in reports])
    axes.invert_yaxis()
    axes.set_xlim(0, 122)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("% of the rows' capacity; beside: the bottleneck")
    plots.bare(axes)
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.15), ncols=2, frameon=False)


def _draw_counts(axes: Any, reports: Sequence[FillReport]) -> None:
    """How many samples share a pack, as the share of packs with at most so many."""
    for report, (colour, style) in zip(reports, cycle(_LINES)):
        numbers = sorted(report.samples_per_pack)
        shares, seen = [], 0
        for number in numbers:
            seen += report.samples_per_pack[number]
            shares.append(100 * seen / report.packs)
        axes.step(numbers, shares, style, where="post", label=report.rule, color=colour)
    axes.set_xlabel("samples in a pack")
    axes.set_ylabel("% of packs with at most so many")
    axes.set_ylim(0, 100)
    plots.bare(axes)
    axes.legend(frameon=False, loc="lower right")
