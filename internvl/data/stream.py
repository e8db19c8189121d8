"""The stream of packs: order -> samples -> examples -> packs -> batches, for one reader of many.

Every rank has workers and every worker is a shard of the mixture with a packer of its own. What a
worker will yield next is a function of (seed, epoch, shard, cursor) and of the samples in its open
packs, so the state of a run is a few integers per worker; it travels with each batch, and a stream
made from it goes on as the first would have. Samples that waited in open packs are read again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from internvl.data.collate import collate
from internvl.data.examples import Example, ExampleMaker, cut, image_spans
from internvl.data.mixture import Mixture
from internvl.data.packing import Item, Limits, Packer, Rule, make_packer, select
from internvl.data.render import NO_RESPONSE
from internvl.data.schema import DataError
from internvl.data.skips import SkipPolicy, Skips

# Epoch, dataset, row, copy, part.
FullKey = tuple[int, ...]
Weigh = Callable[[Example], np.ndarray]


@dataclass(frozen=True)
class StreamOptions:
    """How a stream packs.

    Attributes:
        max_tokens: l_max, tokens of a row.
        max_tiles: t_max, tiles of a row.
        rule: of `packing.make_packer`.
        buffer: open packs of the rules "report" and "official".
        window: samples of the rule "best_fit".
        over_length: what to do with a sample that is over a limit: "cut" it into several, as the
            report says, or "truncate" its text, as the official code does; then a sample whose
            images do not fit is left out.
        epochs: end after that many; None for never.
        flash: add what FlashAttention needs.
        skips: how many samples may be left out.
    """

    max_tokens: int = 16384
    max_tiles: int = 48
    rule: Rule = "report"
    buffer: int = 20
    window: int = 64
    over_length: Literal["cut", "truncate"] = "cut"
    epochs: int | None = None
    flash: bool = False
    skips: SkipPolicy = field(default_factory=SkipPolicy)

    @property
    def limits(self) -> Limits:
        """The limits of a row."""
        return Limits(self.max_tokens, self.max_tiles)


@dataclass
class ShardState:
    """Where one worker stands, in integers.

    Attributes:
        epoch: the epoch it reads.
        cursor: samples of the shard read in that epoch.
        open: keys of the samples in its open packs.
        ready: keys of packs that are complete but not yet yielded.
        seen: samples looked at, over all epochs.
        skipped: samples left out, by reason.
    """

    epoch: int = 0
    cursor: int = 0
    open: list[list[list[int]]] = field(default_factory=list)
    ready: list[list[list[int]]] = field(default_factory=list)
    seen: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


class PackStream(IterableDataset):
    """Batches of one pack for the ranks and workers of a run.

    A batch holds what `collate` makes, and under "info" what the trainer keeps for itself: the
    worker, its state after this batch, the keys in it, and what it holds.

    Args:
        mixture: the datasets and their order.
        maker: makes examples.
        weigh: loss weights (T,) of an example.
        options: how to pack.
        rank: this process.
        world: all processes.
        states: of each worker of this rank, to go on from; empty to begin.
        first_worker: the worker whose turn it is when going on.
    """

    def __init__(
        self,
        mixture: Mixture,
        maker: ExampleMaker,
        weigh: Weigh,
        options: StreamOptions,
        *,
        rank: int = 0,
        world: int = 1,
        states: Sequence[dict[str, Any]] = (),
        first_worker: int = 0,
    ) -> None:
        super().__init__()
        self.mixture, self.maker, self.weigh, self.options = mixture, maker, weigh, options
        self.rank, self.world = rank, world
        self.states, self.first_worker = list(states), first_worker

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        index, workers = (0, 1) if info is None else (info.id, info.num_workers)
        if self.states and len(self.states) != workers:
            raise ValueError(
                f"the run was stopped with {len(self.states)} data workers and goes on with "
                f"{workers}; set the number back, or the order of the data would change."
            )
        # The loader asks its workers in turn, beginning with the first.
        worker = (self.first_worker + index) % workers
        shard = self._shard(worker, workers)
        for pack in shard.packs():
            yield self._batch(pack, worker, shard)

    def _shard(self, worker: int, workers: int) -> _Shard:
        state = ShardState(**self.states[worker]) if self.states else ShardState()
        return _Shard(self, state, self.rank * workers + worker, self.world * workers)

    def _batch(self, pack: list[Example], worker: int, shard: _Shard) -> dict[str, Any]:
        batch = collate(pack, flash=self.options.flash)
        info = {
            "worker": worker,
            "state": shard.snapshot(),
            "keys": [list(example.key) for example in pack],
            "samples": len(pack),
            "tokens": sum(example.tokens for example in pack),
            "tiles": sum(example.num_tiles for example in pack),
            "supervised": sum(example.supervised for example in pack),
        }
        return {**batch, "info": info}


class _Shard:
    """One worker's walk through its share of the mixture."""

    def __init__(self, stream: PackStream, state: ShardState, shard: int, shards: int) -> None:
        self.stream, self.shard, self.shards = stream, shard, shards
        self.mixture, self.options = stream.mixture, stream.options
        options = self.options
        self.packer: Packer = make_packer(
            options.rule, options.limits, buffer=options.buffer, window=options.window
        )
        self.epoch, self.cursor = state.epoch, state.cursor
        self.skips = Skips(options.skips, state.seen, Counter(state.skipped))
        self.examples: dict[FullKey, Example] = {}
        self.packer.restore([self._reread(pack) for pack in state.open])
        self.ready = [self._reread(pack) for pack in state.ready]

    def packs(self) -> Iterator[list[Example]]:
        """Yield packs for ever, or for `epochs` epochs and then what is left open."""
        while True:
            while self.ready:
                pack = self.ready.pop(0)
                yield [self.examples.pop(item.key) for item in pack]
            if self.epoch == self.options.epochs:
                self.ready = self.packer.flush()
                if not self.ready:
                    return
                continue
            yield from self._read_epoch()
            self.epoch, self.cursor = self.epoch + 1, 0

    def _read_epoch(self) -> Iterator[list[Example]]:
        order = self.mixture.order(self.epoch, self.shard, self.shards, self.cursor)
        for key in order:
            self.cursor += 1
            for example in self._examples((self.epoch, *key)):
                item = Item(example.tokens, example.num_tiles, example.key)
                self.examples[example.key] = example
                self.ready += self.packer.add(item)
            while self.ready:
                pack = self.ready.pop(0)
                yield [self.examples.pop(item.key) for item in pack]

    def snapshot(self) -> dict[str, Any]:
        """The state after the pack that was yielded last."""
        return {
            "epoch": self.epoch,
            "cursor": self.cursor,
            "open": [[list(key) for key in pack] for pack in self.packer.state()],
            "ready": [[list(item.key) for item in pack] for pack in self.ready],
            "seen": self.skips.seen,
            "skipped": dict(self.skips.reasons),
        }

    def _examples(self, key: FullKey) -> list[Example]:
        """The examples of a sample: one, several if it is cut, none if it cannot be used."""
        self.skips.seen += 1
        kept = []
        try:
            for example in self._make(key):
                if example.supervised:
                    kept.append(example)
                else:  # a part of a long sample in which nobody answers
                    self.skips.reasons["unsupervised_part"] += 1
        except DataError as error:
            self.skips.note(error, lambda: self.mixture.where(key[1:]))
        return kept

    def _make(self, key: FullKey) -> list[Example]:
        epoch, *within = key
        sample, spec = self.mixture.sample(within)
        maker = self.stream.maker
        example = maker.make(sample, spec, self.mixture.rng(epoch, within), key)
        example = replace(example, loss_weight=self.stream.weigh(example))
        limits = self.options.limits
        if example.tokens <= limits.max_tokens and example.num_tiles <= limits.max_tiles:
            return [replace(example, key=(*key, 0))]
        over = (
            f"{example.tokens} tokens and {example.num_tiles} tiles are more than "
            f"a row holds ({limits.max_tokens}, {limits.max_tiles})"
        )
        spans = image_spans(example, maker.context_id, maker.tokens_per_tile)
        try:
            parts = select(example.tokens, spans, limits, preferred=_ends_of_answers(example))
        except ValueError as error:
            raise DataError("over_length", f"{over}: {error}") from error
        if self.options.over_length == "cut":
            return cut(example, parts)
        (whole,) = select(example.tokens, [], Limits(limits.max_tokens, 1))[:1]
        if spans and (example.num_tiles > limits.max_tiles or spans[-1].stop > whole.stop):
            raise DataError("over_length", f"{over}; lower max_dynamic_patch of the dataset.")
        return cut(example, [replace(whole, tiles=example.num_tiles)])

    def _reread(self, pack: Sequence[Sequence[int]]) -> list[Item]:
        """Read the samples of a pack of an earlier state again."""
        items = []
        for key in pack:
            *whole, part = key
            example = next(e for e in self._make(tuple(whole)) if e.key[-1] == part)
            self.examples[example.key] = example
            items.append(Item(example.tokens, example.num_tiles, example.key))
        return items


def _ends_of_answers(example: Example) -> list[int]:
    """Where a cut does least harm: after an answer."""
    learnt = example.response != NO_RESPONSE
    return [int(place) + 1 for place in np.flatnonzero(learnt[:-1] & ~learnt[1:])]
