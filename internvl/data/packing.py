"""Packing (report section 4.2): which samples share a row, decided from two numbers of each sample.

    Select -> pieces within both limits -> Search, Pack, Maintain -> packs

The language model limits the tokens of a row, the vision encoder its tiles. Three rules fill both:
"report" is that of the report, "official" that of the official code, "best_fit" packs a window of
samples at a time and leaves the least space empty. A packer sees numbers and keys only;
`internvl.data.collate` makes tensors of what it decides.

    packer   open packs it holds   decides
    report   `buffer`              at once
    official `buffer`              at once
    best_fit `window`              when the window is full
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Rule = Literal["report", "official", "best_fit"]
Keys = list[list[list[int]]]


@dataclass(frozen=True)
class Limits:
    """What one row may hold.

    Attributes:
        max_tokens: l_max of the report, 16,384 in its training.
        max_tiles: t_max of the report, 48 in its training.

    Raises:
        ValueError: a limit below 1.
    """

    max_tokens: int
    max_tiles: int

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.max_tiles < 1:
            raise ValueError(
                f"the limits are {self.max_tokens} tokens and {self.max_tiles} tiles a row; "
                "expected at least 1 of each."
            )


@dataclass(frozen=True, slots=True)
class Item:
    """One sample, as packing sees it.

    Attributes:
        tokens: length of the sample, visual tokens included.
        tiles: tiles of the sample, 0 for text.
        key: what names the sample.
    """

    tokens: int
    tiles: int
    key: tuple[int, ...] = ()


class Packer(Protocol):
    """Takes samples one by one and gives packs back; the same samples give the same packs."""

    def add(self, item: Item) -> list[list[Item]]:
        """Take a sample.

        Returns:
            The packs that this completed, oldest decision first.

        Raises:
            ValueError: a sample that no row can hold, see `select`.
        """

    def flush(self) -> list[list[Item]]:
        """Give back what is left, at the end of the data."""

    def state(self) -> Keys:
        """Keys of the samples of each open pack, in the packer's own order."""

    def restore(self, packs: Sequence[Sequence[Item]]) -> None:
        """Take the open packs of a `state` in place of one's own, samples in place of keys.

        A packer of the same rule and limits then goes on as the one that gave the state.
        """


def make_packer(rule: Rule, limits: Limits, *, buffer: int = 20, window: int = 1024) -> Packer:
    """Make a packer.

    Args:
        rule: "report", "official" or "best_fit".
        limits: what a row may hold.
        buffer: open packs that "report" and "official" keep; 20 in the official scripts.
        window: open packs among which "best_fit" chooses, new samples included. Whoever keeps the
            pixels of all of them in memory wants fewer: 1,024 samples of 9 tiles of 448 px are
            5.5 GB. On the mixes of benchmarks/packing.py, 64 wastes at most 0.7 percent more.

    Raises:
        ValueError: an unknown rule, a buffer below 1 or a window below 2.
    """
    if rule == "report":
        return ReportPacker(limits, buffer)
    if rule == "official":
        return OfficialPacker(limits, buffer)
    if rule == "best_fit":
        return BestFitPacker(limits, window)
    raise ValueError(f"packing rule {rule!r} is unknown; expected report, official or best_fit.")


# ---------------------------------------------------------------------- Select
@dataclass(frozen=True)
class Span:
    """What must stay together: an image from `<img>` to `</img>`, its name before it if it has one.

    Attributes:
        start: its first token.
        stop: the token after its last.
        tiles: tiles of the image.
    """

    start: int
    stop: int
    tiles: int


@dataclass(frozen=True)
class Piece:
    """Part of a sample that fits into a row.

    Attributes:
        start: its first token.
        stop: the token after its last.
        first_tile: its first tile, counted over the sample.
        tiles: its tiles.
    """

    start: int
    stop: int
    first_tile: int
    tiles: int


def select(
    tokens: int, images: Sequence[Span], limits: Limits, *, preferred: Sequence[int] = ()
) -> list[Piece]:
    """Cut a sample into pieces within both limits (report section 4.2, "Select").

    The report says that a sample "is truncated into multiple smaller items", not where. Here a
    piece is as long as both limits allow, then cut back to the last preferred place in it, if there
    is one. Nothing is dropped and no image is torn; a sample that fits is one piece. Whether a
    piece still has something to learn from is for the caller to see.

    Args:
        tokens: length of the sample.
        images: spans of its images, in order, not overlapping.
        limits: what a row may hold.
        preferred: where a cut does least harm, such as the first token of each user turn.

    Raises:
        ValueError: an image that no row can hold, spans out of order, or an empty sample.
    """
    _check_spans(tokens, images, limits)
    wanted = sorted(
        place for place in set(preferred) if not any(s.start < place < s.stop for s in images)
    )
    pieces: list[Piece] = []
    start = first = tile = 0  # token, image and tile at which the piece begins
    while start < tokens:
        stop = _furthest(start, tokens, images[first:], limits)
        if stop < tokens:
            place = bisect_right(wanted, stop) - 1
            stop = wanted[place] if place >= 0 and wanted[place] > start else stop
        held = [span.tiles for span in images[first:] if span.start < stop]
        pieces.append(Piece(start, stop, tile, sum(held)))
        start, first, tile = stop, first + len(held), tile + sum(held)
    return pieces


def _furthest(start: int, tokens: int, images: Sequence[Span], limits: Limits) -> int:
    """Where a piece that begins at `start` has to end, `images` being those from there on."""
    stop, tiles = min(tokens, start + limits.max_tokens), 0
    for span in images:
        tiles += span.tiles
        if span.start >= stop or (span.stop <= stop and tiles <= limits.max_tiles):
            continue
        return span.start  # beyond `start`: a single image fits, by `_check_spans`
    return stop


def _check_spans(tokens: int, images: Sequence[Span], limits: Limits) -> None:
    if tokens < 1:
        raise ValueError(f"a sample has {tokens} tokens; expected at least 1.")
    end = 0
    for number, span in enumerate(images, 1):
        if not end <= span.start < span.stop <= tokens or span.tiles < 1:
            raise ValueError(
                f"image {number} has tokens {span.start} to {span.stop} of {tokens} and "
                f"{span.tiles} tiles; expected spans in order, each with a token and a tile."
            )
        end = span.stop
        length = span.stop - span.start
        if length > limits.max_tokens or span.tiles > limits.max_tiles:
            raise ValueError(
                f"image {number} has {length} tokens and {span.tiles} tiles, but a row holds "
                f"{limits.max_tokens} and {limits.max_tiles}; lower max_dynamic_patch of the "
                "dataset or raise the limits."
            )


# ---------------------------------------------------------------------- Search, Pack, Maintain
Size = tuple[int, int]  # tokens, tiles


class _OpenPacks:
    """The open packs of a packer, in an order that is the packer's own.

    Attributes:
        limits: what a row may hold.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._packs: list[list[Item]] = []
        self._sizes: list[Size] = []  # of the packs, in the same order

    def flush(self) -> list[list[Item]]:
        """Give back what is left, at the end of the data."""
        packs = self._packs
        self._packs, self._sizes = [], []
        return packs

    def state(self) -> Keys:
        """Keys of the samples of each open pack, in the packer's own order."""
        return [[list(item.key) for item in pack] for pack in self._packs]

    def restore(self, packs: Sequence[Sequence[Item]]) -> None:
        """Take the open packs of a `state` in place of one's own, samples in place of keys."""
        sizes = [size_of(pack) for pack in packs]
        for size in sizes:
            self._check(*size)
        # A state is in order; samples that have changed since need not be.
        order = sorted(range(len(sizes)), key=lambda index: self._rank(sizes[index]))
        self._packs = [list(packs[index]) for index in order]
        self._sizes = [sizes[index] for index in order]

    def _rank(self, size: Size) -> Size:
        """By what open packs are ordered, lowest first; equals stay in the order they came."""
        return (0, 0)

    def _check(self, tokens: int, tiles: int) -> None:
        limits = self.limits
        if not (0 < tokens <= limits.max_tokens and 0 <= tiles <= limits.max_tiles):
            raise ValueError(
                f"a sample or pack has {tokens} tokens and {tiles} tiles, but a row holds 1 to "
                f"{limits.max_tokens} and 0 to {limits.max_tiles}; cut long samples with "
                "`select` before packing."
            )

    def _take(self, index: int) -> tuple[list[Item], Size]:
        return self._packs.pop(index), self._sizes.pop(index)

    def _put(self, index: int, pack: list[Item], size: Size) -> None:
        self._packs.insert(index, pack)
        self._sizes.insert(index, size)


class ReportPacker(_OpenPacks):
    """The rule of the report: join the longest open pack that has room.

    Where the words of section 4.2 leave a choice:

    * Search wants a sum "shorter than l_max" with "fewer than t_max" tiles, Maintain yields what
      "exceeds" them. Together nothing would ever be full. Here a sample fits if both sums are
      within the limits, and a pack that reaches either is yielded.
    * "The longest sequence length and the maximum number of image tiles is selected" names two
      maxima. Here the longest wins, and tiles decide between equally long ones. So too for what is
      yielded when the buffer is over its capacity.
    * A binary search over lengths finds the longest pack that the tokens fit. From there the list
      is walked towards shorter packs until the tiles fit as well.

    Args:
        limits: what a row may hold.
        buffer: open packs to keep.
    """

    def __init__(self, limits: Limits, buffer: int) -> None:
        super().__init__(limits)
        self.buffer = _at_least(buffer, 1, "buffer")

    def add(self, item: Item) -> list[list[Item]]:
        """Take a sample; see `Packer.add`."""
        tokens, tiles = item.tokens, item.tiles
        self._check(tokens, tiles)
        limits, sizes = self.limits, self._sizes  # sizes ascend
        index = bisect_right(sizes, (limits.max_tokens - tokens, limits.max_tiles)) - 1
        room = limits.max_tiles - tiles
        while index >= 0 and sizes[index][1] > room:
            index -= 1
        pack: list[Item] = []
        if index >= 0:
            pack, size = self._take(index)
            tokens, tiles = tokens + size[0], tiles + size[1]
        pack.append(item)
        if tokens == limits.max_tokens or tiles == limits.max_tiles:
            return [pack]
        self._put(bisect_right(sizes, (tokens, tiles)), pack, (tokens, tiles))
        return [self._take(-1)[0]] if len(sizes) > self.buffer else []

    def _rank(self, size: Size) -> Size:
        return size


class OfficialPacker(_OpenPacks):
    """The rule of the official code, with the settings of its scripts.

    Open packs are ordered by tiles, most first, and a sample joins the first that has room for it.
    A pack is yielded when it has exactly all tokens or all tiles, and the one with most tiles when
    the buffer is over its capacity. The official code drops samples with too many tiles; here, as
    with every rule, they are refused.

    Args:
        limits: what a row may hold.
        buffer: open packs to keep.
    """

    def __init__(self, limits: Limits, buffer: int) -> None:
        super().__init__(limits)
        self.buffer = _at_least(buffer, 1, "buffer")

    def add(self, item: Item) -> list[list[Item]]:
        """Take a sample; see `Packer.add`."""
        tokens, tiles = item.tokens, item.tiles
        self._check(tokens, tiles)
        limits, sizes = self.limits, self._sizes
        long, wide = limits.max_tokens - tokens, limits.max_tiles - tiles
        fits = (i for i, size in enumerate(sizes) if size[0] <= long and size[1] <= wide)
        pack: list[Item] = []
        if (index := next(fits, None)) is not None:
            pack, size = self._take(index)
            tokens, tiles = tokens + size[0], tiles + size[1]
        pack.append(item)
        if tokens == limits.max_tokens or tiles == limits.max_tiles:
            return [pack]
        fewer = (i for i, size in enumerate(sizes) if size[1] < tiles)
        self._put(next(fewer, len(sizes)), pack, (tokens, tiles))
        return [self._take(0)[0]] if len(sizes) > self.buffer else []

    def _rank(self, size: Size) -> Size:
        return (-size[1], 0)


class BestFitPacker(_OpenPacks):
    """Best-fit decreasing in two dimensions, a window at a time.

    The fullness of a pack is that of its fuller dimension: max(tokens / l_max, tiles / t_max). When
    the window is full, its packs, of which the new ones are single samples, are taken from the
    fullest down, and each joins the fullest pack that has room for it, or stays alone. What is full
    then is yielded, in the order in which the samples came, and the rest is carried into the next
    window. At most half of the window is carried, the emptiest packs of it.

    Args:
        limits: what a row may hold.
        window: open packs among which to choose.
    """

    # Share of either limit at which a pack is no longer carried, in percent. Between 90 and 99.9
    # the packs of the benchmark's mixes differ by less than 0.05 %.
    FULL = 97

    def __init__(self, limits: Limits, window: int) -> None:
        super().__init__(limits)
        self.window = _at_least(window, 2, "window")

    def add(self, item: Item) -> list[list[Item]]:
        """Take a sample; see `Packer.add`."""
        self._check(item.tokens, item.tiles)
        self._put(len(self._packs), [item], (item.tokens, item.tiles))
        return self._close() if len(self._packs) >= self.window else []

    def flush(self) -> list[list[Item]]:
        """Give back what is left, at the end of the data."""
        self._join()
        return super().flush()

    def _fullness(self, size: Size) -> int:
        """Fullness in units of 1 / (l_max * t_max): whole numbers, the same on every machine."""
        return max(size[0] * self.limits.max_tiles, size[1] * self.limits.max_tokens)

    def _join(self) -> None:
        """Pack the window, in place; a joint pack stands where its first part stood."""
        limits, sizes, parts = self.limits, self._sizes, self._packs
        fullness = [self._fullness(size) for size in sizes]
        joint: list[list[int]] = []  # of each pack: which parts
        totals: list[Size] = []
        for part in sorted(range(len(parts)), key=fullness.__getitem__, reverse=True):
            tokens, tiles = sizes[part]
            long, wide = limits.max_tokens - tokens, limits.max_tiles - tiles
            fits = [i for i, size in enumerate(totals) if size[0] <= long and size[1] <= wide]
            if fits:
                best = max(fits, key=lambda index: self._fullness(totals[index]))
                joint[best].append(part)
                totals[best] = (totals[best][0] + tokens, totals[best][1] + tiles)
            else:
                joint.append([part])
                totals.append((tokens, tiles))
        order = sorted(range(len(joint)), key=lambda index: min(joint[index]))
        self._packs = [[x for part in sorted(joint[i]) for x in parts[part]] for i in order]
        self._sizes = [totals[index] for index in order]

    def _close(self) -> list[list[Item]]:
        """Pack a full window; give back what is full and keep the rest."""
        self._join()
        whole = self.limits.max_tokens * self.limits.max_tiles
        fullness = [self._fullness(size) for size in self._sizes]
        emptiest = sorted(range(len(fullness)), key=fullness.__getitem__)[: self.window // 2]
        carried = {index for index in emptiest if fullness[index] * 100 < self.FULL * whole}
        yielded = [pack for index, pack in enumerate(self._packs) if index not in carried]
        self._packs = [self._packs[index] for index in sorted(carried)]
        self._sizes = [self._sizes[index] for index in sorted(carried)]
        return yielded


def size_of(pack: Sequence[Item]) -> Size:
    """Tokens and tiles of a pack."""
    return sum(item.tokens for item in pack), sum(item.tiles for item in pack)


def _at_least(value: int, least: int, name: str) -> int:
    if value < least:
        raise ValueError(f"{name} is {value}; expected at least {least} open packs.")
    return value
