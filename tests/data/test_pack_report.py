"""The report on packs: figures by hand, the table, the picture."""

from __future__ import annotations

from collections import Counter

import pytest
from PIL import Image

from internvl.data.pack_report import FillReport, compare_rules, draw, measure, text_table
from internvl.data.packing import Item, Limits

LIMITS = Limits(20, 4)
PACKS = [[Item(10, 1), Item(5, 1)], [Item(20, 0)], [Item(1, 4), Item(2, 0)]]


def test_figures_by_hand():
    report = measure(iter(PACKS), LIMITS, "report")
    assert (report.packs, report.samples, report.tokens, report.tiles) == (3, 5, 38, 6)
    assert report.samples_per_pack == Counter({2: 2, 1: 1})
    assert report.token_fill == pytest.approx(38 / 60)
    assert report.tile_fill == pytest.approx(6 / 12)
    assert report.bottleneck_fill == pytest.approx(38 / 60)
    wide = measure(iter(PACKS), Limits(100, 4), "report")
    assert (wide.token_fill, wide.bottleneck_fill) == (pytest.approx(38 / 300), 0.5)  # tiles bind
    assert report.as_dict() == {
        "rule": "report",
        "max_tokens": 20,
        "max_tiles": 4,
        "samples": 5,
        "packs": 3,
        "tokens": 38,
        "tiles": 6,
        "token_fill": 0.63333,
        "tile_fill": 0.5,
        "bottleneck_fill": 0.63333,
        "samples_per_pack": {"1": 1, "2": 2},
    }
    assert FillReport("report", LIMITS).bottleneck_fill == 0


def test_rules_are_compared_on_the_same_samples():
    samples = [Item(tokens, tiles) for tokens, tiles in [(9, 1), (12, 2), (8, 1), (11, 0)] * 5]
    reports = compare_rules(iter(samples), LIMITS, buffer=3, window=8)
    assert [r.rule for r in reports] == ["unpacked", "report", "official", "best_fit"]
    assert {(r.samples, r.tokens, r.tiles) for r in reports} == {(20, 200, 20)}
    assert [r.packs for r in reports] == [20, 10, 10, 10]
    with pytest.raises(ValueError, match="no samples to pack"):
        compare_rules([], LIMITS)


def test_table():
    reports = compare_rules([item for pack in PACKS for item in pack], LIMITS, rules=["report"])
    table = text_table(reports)
    assert table.splitlines()[0] == (
        "5 samples, 38 tokens, 6 tiles; a row holds 20 tokens and 4 tiles"
    )
    rows = {line.split()[0]: line.split() for line in table.splitlines() if line}
    assert rows["unpacked"][1:5] == ["5", "38.0%", "30.0%", "38.0%"]
    assert "report: packs by samples in them" in table
    counts = reports[1].samples_per_pack
    for number, packs in counts.items():
        assert rows[str(number)][1] == str(packs)


def test_histogram_has_few_rows_and_every_pack():
    report = measure([[Item(1, 0)] * n for n in [1, 1, 1, 2, 30, 61]], Limits(99, 1), "report")
    bars = text_table([report]).split("in them\n")[1].splitlines()
    assert len(bars) <= 12
    assert sum(int(bar.split()[1]) for bar in bars) == 6
    assert bars[0].split()[:2] == ["1-6", "4"]
    assert len(bars[0].split()[2]) == 40


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_picture(suffix, tmp_path):
    pytest.importorskip("matplotlib")
    reports = compare_rules([item for pack in PACKS for item in pack], LIMITS)
    path = draw(reports, tmp_path / f"fill{suffix}")
    if suffix == ".png":
        with Image.open(path) as picture:
            colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 16)}
        assert {(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)} <= colours  # bars of tokens and of tiles
        return
    text = path.read_text(encoding="utf-8")
    for report in reports:
        assert f">{report.rule}</text>" in text
        assert f"{report.bottleneck_fill:.1%}" in text
    again = draw(reports, tmp_path / "again.svg")
    assert again.read_bytes() == path.read_bytes()


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"fill.pdf; expected a name that ends in .png or .svg"):
        draw([measure(PACKS, LIMITS, "report")], tmp_path / "fill.pdf")
