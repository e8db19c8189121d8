"""Pictures of curves: what is given is drawn, and the same numbers give the same file."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from internvl.evaluation.curves import draw_frames, draw_scaling
from internvl.evaluation.scaling import scaling
from internvl.evaluation.scoring import score
from tests.evaluation.metrics.examples import ABCD
from tests.evaluation.metrics.rows import row


def run(*texts):
    rows = [row(*texts, answers=["B"], choices=ABCD, id=str(i)) for i in range(8)]
    rows.append(row(*["A"] * len(texts), answers=["B"], choices=ABCD, id="8"))
    return scaling(rows, "choice", resamples=20)


PANELS = {"word": {"temperature 0.6": run("A", "B", "B"), "temperature 1": run("B", "A", "B")}}


def test_curves_levels_and_tokens_are_drawn_and_the_same_again(tmp_path):
    levels = {"word": {"greedy": 61.0}}
    path = draw_scaling(PANELS, tmp_path / "a.svg", levels=levels)
    text = path.read_text("utf-8")
    for said in (
        "word, n = 9",
        "maj@k, temperature 0.6",
        "pass@k, temperature 1",
        "greedy",
        "answers per question, k",
        "tokens generated per question",
        ">percent<",
        ">2<",
        ">6<",  # tokens of two answers of three
    ):
        assert said in text, said
    assert "<dc:date>" not in text
    again = draw_scaling(PANELS, tmp_path / "b.svg", levels=levels)
    assert again.read_text("utf-8") == text
    assert sorted(tmp_path.iterdir()) == [path, again]


def test_a_png_has_a_panel_per_task(tmp_path):
    many = {key: {"one": PANELS["word"]["temperature 1"]} for key in "abc"}
    path = draw_scaling(many, tmp_path / "deep" / "a.png", columns=2)
    with Image.open(path) as picture:
        assert picture.width > 900
        assert picture.height > 900


def test_scores_over_frames(tmp_path):
    rows = [row("B" if i % 2 else "A", answers=["B"], choices=ABCD, id=str(i)) for i in range(9)]
    line = {frames: score(rows[: frames // 8], "choice", resamples=20) for frames in (16, 64)}
    single = score(rows[:1], "choice")
    assert single.low is None
    path = draw_frames({"moving": line, "one": {32: single}}, tmp_path / "a.svg")
    text = path.read_text("utf-8")
    for said in (">16<", ">32<", ">64<", ">frames<", ">percent<", "moving, n = 2", "one, n = 1"):
        assert said in text, said


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"\.png or \.svg"):
        draw_scaling(PANELS, tmp_path / "a.pdf")
    for nothing in ({}, {"word": {}}):
        with pytest.raises(ValueError, match="nothing to draw"):
            draw_scaling(nothing, tmp_path / "a.svg")
        with pytest.raises(ValueError, match="nothing to draw"):
            draw_frames(nothing, tmp_path / "a.svg")
    rows = [row("B", answers=["B"], choices=ABCD)]
    found = score(rows, "choice")
    mixed = {"a": {16: found}, "b": {16: replace(found, unit_name="points of 1000")}}
    with pytest.raises(ValueError, match="one unit"):
        draw_frames(mixed, tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())
