"""How full are packed rows, and how many samples a second can be packed on one core?

    python benchmarks/packing.py [--json] [--rounds 5] [--full] [--smoke]

20,000 samples of each mix of tests/data/packing_mixes.py are packed into rows of 16,384 tokens and
48 tiles. The lengths are invented, not InternVL's. Fill is that of the bottleneck,
max(sum tokens / (rows * 16,384), sum tiles / (rows * 48)), of which no rule can reach more than
100 %. Peer: next-fit, which puts samples into a row in the order in which they come and opens
another when the next does not fit; it is what concatenation without a buffer does. Times are of
Python on the CPU, without reading or rendering any sample. `--full` packs with more buffers and
windows.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

from harness import ROOT, Record, Timing, amount, entry, interleave, require

from internvl.data.pack_report import FillReport
from internvl.data.pack_report import measure as measure_fill
from internvl.data.packing import Item, Limits, Packer, make_packer, size_of

QUESTION = "bottleneck fill and speed of the packing rules"
MIXES = ("stage2", "image", "video")
SETTINGS: dict[str, tuple[str, dict[str, int]]] = {
    "report, buffer 20": ("report", {"buffer": 20}),
    "official, buffer 20": ("official", {"buffer": 20}),
    "best_fit, window 1024": ("best_fit", {"window": 1024}),
}
MORE: dict[str, tuple[str, dict[str, int]]] = {
    "report, buffer 100": ("report", {"buffer": 100}),
    "report, buffer 1000": ("report", {"buffer": 1000}),
    "official, buffer 100": ("official", {"buffer": 100}),
    "best_fit, window 64": ("best_fit", {"window": 64}),
    "best_fit, window 256": ("best_fit", {"window": 256}),
}
FILL = {("report, buffer 20", "stage2"): 97.5} | {
    ("best_fit, window 1024", mix): 98.8 for mix in MIXES
}
RATE = {"report, buffer 20": 20_000}
PEER = "next-fit"


class NextFit:
    """The peer, with the calls of a packer that are timed."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.row: list[Item] = []
        self.tokens = self.tiles = 0

    def add(self, item: Item) -> list[list[Item]]:
        """Take a sample; give the row back when it does not fit."""
        tokens, tiles = self.tokens + item.tokens, self.tiles + item.tiles
        if tokens <= self.limits.max_tokens and tiles <= self.limits.max_tiles:
            self.row.append(item)
            self.tokens, self.tiles = tokens, tiles
            return []
        row, self.row = self.row, [item]
        self.tokens, self.tiles = item.tokens, item.tiles
        return [row]

    def flush(self) -> list[list[Item]]:
        """Give back the last row."""
        return [self.row] if self.row else []


def mixes() -> Any:
    """The module of the mixes; tests are not a package."""
    spec = spec_from_file_location("packing_mixes", ROOT / "tests" / "data" / "packing_mixes.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pack(packer: Packer | NextFit, items: Sequence[Item]) -> list[list[Item]]:
    """Every row of the samples."""
    return [row for item in items for row in packer.add(item)] + packer.flush()


def complete(rows: list[list[Item]], items: Sequence[Item], limits: Limits) -> bool:
    """Whether every sample is in one row, and every row within the limits."""
    sizes = [size_of(row) for row in rows]
    within = all(a <= limits.max_tokens and b <= limits.max_tiles for a, b in sizes)
    return within and sorted(item.key for row in rows for item in row) == [i.key for i in items]


def mix_rows(
    mix: str, items: Sequence[Item], limits: Limits, options: Namespace
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows on one mix, fill before speed, and what was found complete."""
    settings = {**SETTINGS, **(MORE if options.full else {})}
    makers: dict[str, Callable[[], Any]] = {PEER: partial(NextFit, limits)}
    for name, (rule, bounds) in settings.items():
        makers[name] = partial(make_packer, rule, limits, **bounds)
    packed = {name: pack(make(), items) for name, make in makers.items()}
    equality = require(
        {f"{mix}: {name}": complete(rows, items, limits) for name, rows in packed.items()}
    )
    fills = [fill_row(mix, name, measure_fill(rows, limits, name)) for name, rows in packed.items()]
    timings = interleave(
        {name: partial(_fresh, make, items) for name, make in makers.items()}, options.rounds
    )
    speeds = [speed_row(mix, name, len(items), timing) for name, timing in timings.items()]
    return fills + speeds, equality


def _fresh(make: Callable[[], Any], items: Sequence[Item]) -> list[list[Item]]:
    return pack(make(), items)


def speed_row(mix: str, name: str, samples: int, timing: Timing) -> dict[str, Any]:
    """A row on speed: samples over the median CPU time, fewest and most of a round beside it."""
    low, high = samples / max(timing.cpu), samples / min(timing.cpu)
    return amount(
        f"{mix}: {name}",
        samples / timing.median,
        "samples/s",
        at_least=RATE.get(name),
        rounds=len(timing.cpu),
        spread=[round(low), round(high)],
    )


def fill_row(mix: str, name: str, fill: FillReport) -> dict[str, Any]:
    """A row on how full rows are."""
    return amount(
        f"{mix}: {name}",
        100 * fill.bottleneck_fill,
        "% bottleneck fill",
        at_least=FILL.get((name, mix)),
        **fill.as_dict(),
    )


def measure(options: Namespace) -> dict[str, Any]:
    """Pack every mix."""
    record = Record("packing", QUESTION, options)
    source = mixes()
    limits = Limits(source.MAX_TOKENS, source.MAX_TILES)
    samples = 500 if options.smoke else 20_000
    equality: dict[str, Any] = {}
    for mix in MIXES:
        sizes = source.samples(mix, samples)
        items = [Item(tokens, tiles, (index,)) for index, (tokens, tiles) in enumerate(sizes)]
        rows, complete_mix = mix_rows(mix, items, limits, options)
        record.add(*rows)
        equality |= complete_mix
    return record.finish(equality=equality, samples=samples)


main = entry(__doc__, measure)

if __name__ == "__main__":
    main()
