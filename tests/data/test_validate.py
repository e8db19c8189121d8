"""Validation finds every fault, counts what can be used, and the page shows what is learnt."""

from __future__ import annotations

import json
import re

import pytest

from internvl import hub
from internvl.data.examples import ExampleMaker
from internvl.data.mixture import Mixture, load_meta
from internvl.data.packing import Limits
from internvl.data.preview import write_preview
from internvl.data.schema import DataError
from internvl.data.skips import SkipPolicy, Skips
from internvl.data.validate import describe, validate
from tests.data.files import picture, turns, write_meta, write_rows


@pytest.fixture(scope="module")
def prepared():
    return hub.prepare()


@pytest.fixture(scope="module")
def maker(prepared):
    return ExampleMaker(prepared)


@pytest.fixture
def mixture(tmp_path):
    whole = picture(tmp_path / "whole.png", 224, 112)
    cut = (tmp_path / "whole.png").read_bytes()[:-200]
    (tmp_path / "cut.png").write_bytes(cut)
    rows = [
        {"image": whole, "conversations": turns("What?", "Noise")},
        {"image": "absent.png", "conversations": turns("What?", "Noise")},
        {"image": "cut.png", "conversations": turns("What?", "Noise")},
        {"conversations": turns("Hi", "<b>Hello</b> & bye")},
        {"conversations": turns("Hi")},
        {"image": whole, "conversations": turns("<image><image>?", "Noise")},
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("not json\n")
    entry = {"annotation": "rows.jsonl", "max_dynamic_patch": 3}
    return Mixture(load_meta(write_meta(tmp_path, rows=entry)))


@pytest.mark.parametrize("pixels", [False, True], ids=["headers", "pixels"])
def test_every_fault_is_found_with_its_line(pixels, mixture, maker):
    report = validate(mixture, maker, pixels=pixels, limits=Limits(100, 2))
    expected = {2: "missing_file", 5: "no_supervised_token", 6: "too_many_tags", 7: "bad_row"}
    expected |= {3: "bad_image"} if pixels else {}
    found = {int(f.where.removeprefix("rows.jsonl:")): f.reason for f in report.faults}
    assert found == expected
    (dataset,) = report.datasets
    assert dataset.skipped.total() == report.total_faults == len(expected)
    assert (dataset.rows, dataset.seen) == (7, 7)
    assert dataset.samples == (2 if pixels else 3)
    assert dataset.images == (1 if pixels else 2)
    assert dataset.tiles == 3 * dataset.images  # two and the thumbnail
    assert dataset.over_limit == dataset.images
    assert dataset.tokens == sum(n * count for n, count in dataset.lengths.items())
    text = describe(report)
    for line, reason in expected.items():
        assert f"rows.jsonl:{line}: {reason}:" in text
    json.dumps(report.as_dict())


def test_faults_beyond_the_bound_are_counted(mixture, maker):
    report = validate(mixture, maker, most_faults=1)
    assert len(report.faults) == 1
    assert report.total_faults == 4
    assert "... and 3 more" in describe(report)


def test_a_limit_spreads_over_the_rows(mixture, maker):
    report = validate(mixture, maker, limit=3)
    assert report.datasets[0].seen == 3
    assert [fault.where for fault in report.faults] == ["rows.jsonl:5"]  # rows 1, 3 and 5


def test_the_page_shows_what_is_learnt(mixture, maker, prepared, tmp_path):
    path = write_preview(tmp_path / "page.html", mixture, maker, prepared.tokenizer, samples=7)
    page = path.read_text(encoding="utf-8")
    learnt = re.findall(r"class=learnt>([^<]*)</span>", page)
    assert "".join(learnt).count("&lt;|im_end|&gt;") == 2
    assert "Noise" in "".join(learnt)
    assert "<b>Hello" not in page
    assert "&lt;IMG_CONTEXT&gt; x 48" in page
    assert page.count("<img ") == 3
    assert "left out (missing_file)" in page
    assert not re.search(r"(src|href)=\"?(https?:)?//", page)


# ---------------------------------------------------------------------- skips
def test_skips_are_counted_logged_and_bounded(caplog):
    skips = Skips(SkipPolicy(max_share=0.5, grace=3, shown=2))
    for number in range(3):
        skips.seen += 1
        skips.note(DataError("bad_row", "a fault"), lambda n=number: f"rows.jsonl:{n}")
    assert skips.total == skips.reasons["bad_row"] == 3
    assert [record.getMessage() for record in caplog.records] == [
        "left out (bad_row): rows.jsonl:0: a fault", "left out (bad_row): rows.jsonl:1: a fault",
    ]  # fmt: skip
    skips.seen = 8
    skips.note(DataError("bad_image", "another"), lambda: "x")  # 4 of 8
    with pytest.raises(DataError, match=r"5 of 8 .*bad_row.*rows.jsonl:9: last"):
        skips.note(DataError("bad_row", "last"), lambda: "rows.jsonl:9")


def test_impossible_policies_are_refused():
    with pytest.raises(ValueError, match="max_share"):
        SkipPolicy(max_share=1.5)
