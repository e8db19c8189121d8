"""Packing: the rules of the report and of the official code, best fit, and what all must keep."""

from __future__ import annotations

import functools
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl.data.packing import (
    Item,
    Limits,
    OfficialPacker,
    Packer,
    Piece,
    ReportPacker,
    Span,
    make_packer,
    select,
    size_of,
)
from tests.data import packing_mixes

RULES = ("report", "official", "best_fit")
TABLE_3 = Limits(packing_mixes.MAX_TOKENS, packing_mixes.MAX_TILES)
SMALL = Limits(20, 6)
Sizes = list[tuple[int, int]]
SIZES = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 6)), max_size=60)


def items(sizes: Sizes) -> list[Item]:
    return [Item(tokens, tiles, (7, index)) for index, (tokens, tiles) in enumerate(sizes)]


def pack(packer: Packer, samples: list[Item]) -> list[list[Item]]:
    return [pack for item in samples for pack in packer.add(item)] + packer.flush()


def indices(packs: list[list[Item]]) -> list[list[int]]:
    return [[item.key[1] for item in pack] for pack in packs]


@functools.cache
def mix(name: str) -> tuple[Item, ...]:
    return tuple(items(packing_mixes.samples(name)))


def bottleneck(packs: int, samples: tuple[Item, ...], limits: Limits) -> float:
    tokens, tiles = size_of(samples)
    return max(tokens / (packs * limits.max_tokens), tiles / (packs * limits.max_tiles))


# ---------------------------------------------------------------------- how full
@pytest.mark.parametrize(
    ("rule", "name", "least", "packs"),
    [
        ("report", "stage2", 0.975, 3969),
        ("report", "image", 0.98, 2634),
        ("report", "video", 0.975, 5429),
        ("official", "stage2", 0.94, 4115),  # by an independent program 4,115 as well
        ("best_fit", "stage2", 0.988, 3902),
        ("best_fit", "image", 0.988, 2627),
        ("best_fit", "video", 0.988, 5327),
    ],
)
def test_fill_of_the_published_mixes(rule, name, least, packs):
    found = pack(make_packer(rule, TABLE_3), list(mix(name)))
    assert len(found) == packs
    assert bottleneck(len(found), mix(name), TABLE_3) >= least


# ---------------------------------------------------------------------- the rule of the report
def by_the_words_of_the_report(sizes: Sizes, limits: Limits, buffer: int) -> list[list[int]]:
    """Section 4.2, step by step, without a binary search."""
    opened: list[list[int]] = []
    packs = []

    def size(members: list[int]) -> tuple[int, int]:
        return sum(sizes[i][0] for i in members), sum(sizes[i][1] for i in members)

    for index in range(len(sizes)):
        fitting = [
            members
            for members in opened
            if size([*members, index])[0] <= limits.max_tokens
            and size([*members, index])[1] <= limits.max_tiles
        ]
        # Among equals the one that became so last.
        selected = max(reversed(fitting), key=size) if fitting else []
        joint = [*selected, index]
        opened = [members for members in opened if members is not selected]
        if size(joint)[0] == limits.max_tokens or size(joint)[1] == limits.max_tiles:
            packs.append(joint)
            continue
        opened.append(joint)
        if len(opened) > buffer:
            longest = max(reversed(opened), key=size)
            opened = [members for members in opened if members is not longest]
            packs.append(longest)
    return packs + sorted(opened, key=size)


@settings(max_examples=100)
@given(sizes=SIZES, buffer=st.integers(1, 6))
def test_report_rule_is_what_the_words_say(sizes, buffer):
    found = indices(pack(ReportPacker(SMALL, buffer), items(sizes)))
    assert found == by_the_words_of_the_report(sizes, SMALL, buffer)


def joined(packer: Packer, opened: Sizes, size: tuple[int, int]) -> list[int]:
    """Which open packs a sample shares its row with."""
    samples = items([*opened, size])
    packer.restore([[sample] for sample in samples[:-1]])
    packs = packer.add(samples[-1]) or [
        [samples[key[1]] for key in pack] for pack in packer.state()
    ]
    (found,) = (pack for pack in indices(packs) if len(opened) in pack)
    return found[:-1]


@pytest.mark.parametrize(
    ("opened", "size", "found"),
    [
        ([(11, 0), (12, 0), (15, 0)], (7, 0), [1]),  # the longest that has room
        ([(11, 1), (12, 5), (15, 1)], (7, 2), [0]),  # tiles keep the longest out: the next shorter
        ([(12, 1), (12, 4), (12, 5)], (7, 2), [1]),  # equally long: the one with more tiles
        ([(11, 0), (12, 3)], (8, 3), [1]),  # the sums may reach both limits
        ([(11, 1), (12, 5)], (10, 1), []),  # none has room
    ],
    ids=["longest", "tiles", "tie", "exact", "none"],
)
def test_report_rule_searches(opened, size, found):
    assert joined(ReportPacker(SMALL, 9), opened, size) == found


def test_report_rule_yields_what_reaches_a_limit():
    packer = ReportPacker(SMALL, 9)
    packer.restore([items([(11, 1)])])
    assert indices(packer.add(Item(20, 0, (7, 1)))) == [[1]]
    assert indices(packer.add(Item(12, 6, (7, 2)))) == [[2]]
    assert indices(packer.add(Item(9, 0, (7, 3)))) == [[0, 3]]


def test_report_rule_over_capacity_yields_the_longest():
    packer = ReportPacker(SMALL, 2)
    found = [packer.add(item) for item in items([(17, 1), (18, 0), (18, 1), (17, 0)])]
    assert [indices(packs) for packs in found] == [[], [], [[2]], [[1]]]


# ---------------------------------------------------------------------- the official rule
@pytest.mark.parametrize(
    ("opened", "size", "found"),
    [
        ([(11, 4), (15, 1)], (5, 1), [0]),  # the most tiled, though the other is longer
        ([(11, 5), (15, 1)], (5, 2), [1]),  # too many tiles together, so the next
        ([(11, 2), (12, 2)], (7, 2), [0]),  # equally tiled: the older
        ([(11, 1), (12, 5)], (10, 1), []),
    ],
    ids=["most tiled", "next", "older", "none"],
)
def test_official_rule_searches(opened, size, found):
    assert joined(OfficialPacker(SMALL, 9), opened, size) == found


def test_official_rule_puts_a_pack_behind_its_equals():
    packer = OfficialPacker(SMALL, 9)
    for item in items([(11, 2), (12, 3), (13, 2), (14, 1)]):
        packer.add(item)
    assert packer.state() == [[[7, index]] for index in (1, 0, 2, 3)]


def test_official_rule_over_capacity_yields_the_most_tiled():
    packer = OfficialPacker(SMALL, 2)
    found = [packer.add(item) for item in items([(11, 1), (19, 0), (17, 2), (18, 1)])]
    assert [indices(packs) for packs in found] == [[], [], [[2]], [[0]]]


# ---------------------------------------------------------------------- best fit
def test_best_fit_takes_the_fullest_pack_with_room_and_carries_the_rest():
    packer = make_packer("best_fit", SMALL, window=4)
    first = [packer.add(item) for item in items([(5, 0), (12, 0), (14, 0), (8, 0)])]
    # 14 + 5 would be fuller than 12 + 5, but 12 + 8 comes first and is full.
    assert [indices(packs) for packs in first] == [[], [], [], [[1, 3]]]
    assert packer.state() == [[[7, 0], [7, 2]]]
    assert indices(packer.add(Item(1, 0, (7, 4)))) == []
    assert indices(packer.flush()) == [[0, 2, 4]]
    assert packer.flush() == []


def test_best_fit_carries_at_most_half_a_window():
    packer = make_packer("best_fit", SMALL, window=6)
    # No two share a row, and none is full.
    yielded = [packer.add(item) for item in items([(n, 0) for n in (11, 16, 12, 15, 13, 14)])]
    assert indices(yielded[-1]) == [[1], [3], [5]]  # the fullest, in order of arrival
    assert packer.state() == [[[7, 0]], [[7, 2]], [[7, 4]]]


# ---------------------------------------------------------------------- what every rule keeps
@settings(max_examples=40)
@given(sizes=SIZES, bound=st.integers(2, 9))
@pytest.mark.parametrize("rule", RULES)
def test_no_sample_is_lost_and_no_limit_broken(rule, sizes, bound):
    packer, packs = make_packer(rule, SMALL, buffer=bound, window=bound), []
    for item in items(sizes):
        packs += packer.add(item)
        assert len(packer.state()) <= bound
    packs += packer.flush()
    assert sorted(index for pack in indices(packs) for index in pack) == list(range(len(sizes)))
    for each in packs:
        tokens, tiles = size_of(each)
        assert 0 < tokens <= SMALL.max_tokens
        assert tiles <= SMALL.max_tiles
    assert packer.state() == []


@settings(max_examples=40)
@given(sizes=SIZES, cut=st.integers(0, 60), bound=st.integers(2, 9))
@pytest.mark.parametrize("rule", RULES)
def test_a_restored_packer_goes_on_alike(rule, sizes, cut, bound):
    samples = items(sizes)
    first, second = (make_packer(rule, SMALL, buffer=bound, window=bound) for _ in range(2))
    for item in samples[:cut]:
        first.add(item)
    state = first.state()
    assert all(type(number) is int for pack in state for key in pack for number in key)
    second.add(Item(1, 0, (0, 0)))  # what was there gives way
    second.restore([[samples[key[1]] for key in pack] for pack in state])
    assert second.state() == state
    assert pack(second, samples[cut:]) == pack(first, samples[cut:])


@pytest.mark.parametrize("rule", RULES)
def test_the_state_is_a_copy(rule):
    packer = make_packer(rule, SMALL)
    packer.add(Item(3, 1, (1, 2)))
    state = packer.state()
    state[0].append([9])
    given_back = [[Item(3, 1, (1, 2))]]
    packer.restore(given_back)
    packer.add(Item(3, 1, (1, 3)))
    assert (len(given_back[0]), len(state[0])) == (1, 2)
    assert indices(packer.flush()) == [[2, 3]]


@pytest.mark.parametrize("rule", RULES)
def test_a_state_whose_samples_have_changed_is_put_in_order(rule):
    packer = make_packer(rule, SMALL)
    packer.restore([[Item(15, 1, (7, 0))], [Item(11, 3, (7, 1))], [Item(12, 2, (7, 2))]])
    orders = {"report": [1, 2, 0], "official": [1, 2, 0], "best_fit": [0, 1, 2]}
    assert packer.state() == [[[7, index]] for index in orders[rule]]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [(21, 0), (3, 7), (0, 0), (3, -1)], ids=str)
def test_what_no_row_can_hold_is_refused(rule, size):
    packer = make_packer(rule, SMALL)
    with pytest.raises(ValueError, match=r"a row holds 1 to 20 and 0 to 6; cut long samples"):
        packer.add(Item(*size))
    with pytest.raises(ValueError, match="a row holds"):
        packer.restore([[Item(15, 0), Item(6, 0)]])
    assert packer.flush() == []


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="'next_fit' is unknown; expected report"):
        make_packer("next_fit", SMALL)
    for rule in ("report", "official"):
        with pytest.raises(ValueError, match="buffer is 0; expected at least 1"):
            make_packer(rule, SMALL, buffer=0)
    with pytest.raises(ValueError, match="window is 1; expected at least 2"):
        make_packer("best_fit", SMALL, window=1)
    for limits in ((0, 4), (4, 0)):
        with pytest.raises(ValueError, match="expected at least 1 of each"):
            Limits(*limits)


# ---------------------------------------------------------------------- Select
@pytest.mark.parametrize(
    ("tokens", "images", "preferred", "pieces"),
    [
        (20, [], [], [(0, 20, 0)]),
        (45, [], [], [(0, 20, 0), (20, 40, 0), (40, 45, 0)]),
        # An image is not torn; the text before it stays with what precedes.
        (30, [(2, 6, 1), (18, 24, 2)], [], [(0, 18, 1), (18, 30, 2)]),
        # Too many tiles, though the tokens would fit.
        (20, [(2, 6, 4), (8, 12, 3), (13, 16, 3)], [], [(0, 8, 4), (8, 20, 6)]),
        # Cut where a turn begins, if one does; not within an image, not without need.
        (30, [], [8, 15, 25], [(0, 15, 0), (15, 30, 0)]),
        (30, [(10, 20, 1)], [15], [(0, 20, 1), (20, 30, 0)]),
        (50, [], [5], [(0, 5, 0), (5, 25, 0), (25, 45, 0), (45, 50, 0)]),
        # An image that begins a piece, and one that ends with the row.
        (40, [(0, 20, 6), (20, 40, 6)], [], [(0, 20, 6), (20, 40, 6)]),
    ],
    ids=["fits", "text", "whole", "tiles", "turn", "in image", "once", "full"],
)
def test_select_by_hand(tokens, images, preferred, pieces):
    found = select(tokens, [Span(*image) for image in images], SMALL, preferred=preferred)
    assert [(piece.start, piece.stop, piece.tiles) for piece in found] == pieces


@st.composite
def long_samples(draw):
    """Token count, spans of images, places to cut."""
    spans, end = [], 0
    for _ in range(draw(st.integers(0, 8))):
        start = end + draw(st.integers(0, 12))
        end = start + draw(st.integers(1, 20))
        spans.append(Span(start, end, draw(st.integers(1, 6))))
    tokens = end + draw(st.integers(0 if end else 1, 50))
    return tokens, spans, draw(st.lists(st.integers(0, tokens), max_size=6))


@settings(max_examples=150)
@given(sample=long_samples(), prefer=st.booleans())
def test_select_loses_and_tears_nothing(sample, prefer):
    tokens, images, preferred = sample
    pieces = select(tokens, images, SMALL, preferred=preferred if prefer else ())
    assert [piece.start for piece in pieces] == [0, *[piece.stop for piece in pieces[:-1]]]
    assert pieces[-1].stop == tokens
    tile = 0
    for piece in pieces:
        held = [span for span in images if piece.start <= span.start < piece.stop]
        assert all(span.stop <= piece.stop for span in held)
        assert piece == Piece(piece.start, piece.stop, tile, sum(span.tiles for span in held))
        assert 0 < piece.stop - piece.start <= SMALL.max_tokens
        assert piece.tiles <= SMALL.max_tiles
        tile += piece.tiles
    if not prefer:  # no piece could take one more token, or one more image
        for piece, following in itertools.pairwise(pieces):
            span = next((span for span in images if span.start == following.start), None)
            longer = span.stop if span else following.start + 1
            tiles = piece.tiles + (span.tiles if span else 0)
            assert longer - piece.start > SMALL.max_tokens or tiles > SMALL.max_tiles


@pytest.mark.parametrize(
    ("tokens", "images", "message"),
    [
        (0, [], "a sample has 0 tokens"),
        (40, [(0, 21, 1)], r"image 1 has 21 tokens and 1 tiles, but a row holds 20 and 6; lower"),
        (40, [(0, 5, 1), (5, 9, 7)], "image 2 has 4 tokens and 7 tiles"),
        (40, [(0, 5, 1), (4, 9, 1)], "expected spans in order"),
        (8, [(4, 9, 1)], "expected spans in order"),
        (8, [(4, 4, 1)], "expected spans in order"),
        (8, [(4, 5, 0)], "expected spans in order"),
    ],
    ids=["empty", "long", "tiled", "overlap", "outside", "no token", "no tile"],
)
def test_select_refuses(tokens, images, message):
    with pytest.raises(ValueError, match=message):
        select(tokens, [Span(*image) for image in images], SMALL)
