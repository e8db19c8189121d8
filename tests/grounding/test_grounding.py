"""Boxes from text and back, against the official evaluation, and what is drawn."""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from internvl import grounding
from internvl.grounding import (
    Box,
    draw_boxes,
    format_boxes,
    grounding_prompt,
    iou,
    parse_boxes,
)

ROOT = Path(__file__).resolve().parents[2]
REFCOCO = json.loads((ROOT / "tests/golden/eval/refcoco.json").read_text(encoding="utf-8"))
H, W = 500, 2000  # unlike, so that no exchange of the two can pass
A, B = (100.0, 200.0, 300.0, 400.0), (500.0, 600.0, 700.0, 800.0)
TEXT_A, TEXT_B = "[100, 200, 300, 400]", "[500, 600, 700, 800]"
QUAD = (10.0, 20.0, 30.0, 20.0, 30.0, 90.0, 10.0, 90.0)
fixed = settings(derandomize=True, deadline=None, max_examples=200)


def parse(text: str, **options) -> list[Box]:
    return parse_boxes(text, height=H, width=W, **options)


# ---------------------------------------------------------------------------------- text -> boxes
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"<ref>dog</ref><box>[{TEXT_A}]</box>", [("dog", A)]),
        (f"<ref>dog</ref><box>[{TEXT_A}, {TEXT_B}]</box>", [("dog", A), ("dog", B)]),
        (
            f"Sure.\n```\n<ref>dog</ref><box>[{TEXT_A}]</box>\n"
            f"<ref>\u732b</ref><box>[{TEXT_B}]</box>\n```",
            [("dog", A), ("\u732b", B)],
        ),
        (f"<ref>a</ref><box>[{TEXT_A}]</box>, <box>[{TEXT_B}]</box>", [("a", A), ("a", B)]),
        (f"<ref> a </ref>: <box> [ {TEXT_A} ] </box>", [("a", A)]),
        (f"<ref>a</ref><box>[{TEXT_A}]</box>, <ref>b</ref><box>[{TEXT_B}]", [("a", A), ("b", B)]),
        (f"<ref>a</ref><box>[{TEXT_A}]</box> but there <box>[{TEXT_B}]", [("a", A), (None, B)]),
        (f"<ref>a</ref><box>[[1, 2, 3], {TEXT_A}]</box>", [("a", A)]),
        (f"<ref>[1, 2, 3, 4]</ref><box>[{TEXT_A}]</box>", [("[1, 2, 3, 4]", A)]),
        (f"<ref>a <box>[{TEXT_A}]</box>", [("a", A)]),
        (f"<ref></ref><box>[{TEXT_A}]</box>", [(None, A)]),
        (f"<ref>a {TEXT_A}", [(None, A)]),
        (f"the dog <box>[{TEXT_A}]</box>", [(None, A)]),
        (f"<box>{TEXT_A}</box>", [(None, A)]),
        (f"[{TEXT_A}]", [(None, A)]),
        (f"It is at {TEXT_A}, or {TEXT_B}.", [(None, A), (None, B)]),
        (f'{{"bbox_2d": {TEXT_A}, "label": "dog"}}', [(None, A)]),
        ("[100,200,300,400]", [(None, A)]),
        ("[[\n100 ,\t200,\n 300., 4e2 ]]", [(None, A)]),
        ("[+100, 200.0, 300.00, 400]", [(None, A)]),
    ],
)
def test_forms_of_boxes(text, expected):
    boxes = parse(text)
    assert [(box.label, box.source) for box in boxes] == expected
    assert all(box.valid and not box.clipped and not box.label_guessed for box in boxes)
    assert all(box.tagged == ("<box>" in text) for box in boxes)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (f"dog[{TEXT_A}]", ["dog"]),
        (f"the left dog [{TEXT_A}]", ["the left dog"]),
        (f"dog[{TEXT_A}, {TEXT_B}]", ["dog", "dog"]),
        (f"dog[{TEXT_A}]cat[{TEXT_B}]", ["dog", "cat"]),
        (f"Sure!\n- **dog**[{TEXT_A}]\n- \u732b[{TEXT_B}]", ["dog", "\u732b"]),
        (f"I see two. Here: the dog[{TEXT_A}] near a cat[{TEXT_B}]", ["the dog", "near a cat"]),
        (f"[[a, b, c, d]] dog[{TEXT_A}]", ["dog"]),
        (f"The box: [{TEXT_A}]", [None]),
        (f"The box:[{TEXT_A}]", [None]),
        (f"box =[{TEXT_A}]", [None]),
        (f"dog\n[{TEXT_A}]", [None]),
        (f"<ref>dog</ref>[{TEXT_A}] cat[{TEXT_B}]", ["dog", "cat"]),
    ],
)
def test_labels_whose_tags_vanished(text, labels):
    boxes = parse(text)
    assert [box.label for box in boxes] == labels
    known = ["<ref>dog" in text and box.label == "dog" for box in boxes]
    assert [box.label_guessed for box in boxes] == [
        box.label is not None and not tag for box, tag in zip(boxes, known, strict=True)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no box",
        "[[1, 2, 3]]",
        "[1, 2, 3, 4, 5]",
        "[[a, b, c, d]]",
        "<box>[[1, 2, 3, 4",
        "<box>[[1, 2, 3, 4.",
        "<box>[[1, , 3, 4]]</box>",
        "[[1, 2], [3, 4]]",
        "[[1, 2], [3, 4], [5, 6], [7, 8]]",
        "<box>[[nan, 2, inf, 4]]</box>",
        "<ref>dog</ref><box>",
        "[1; 2; 3; 4]",
        "1, 2, 3, 4",
        "[-, 2, 3, 4]",
        "</box></ref><ref><ref><quad><box>",
    ],
)
def test_what_is_no_box_is_passed_over(text):
    assert parse(text) == []


def test_pixels_are_those_of_the_whole_image():
    (box,) = parse_boxes("[[100, 200, 300, 400]]", height=H, width=W)
    assert box.xyxy == box.unclipped == (200.0, 100.0, 600.0, 200.0)
    assert (box.x1, box.y1, box.x2, box.y2) == box.xyxy
    assert box.scale == 1000


@pytest.mark.parametrize(
    "written", ["[[10, 20, 30, 20, 30, 90, 10, 90]]", "[[10, 20], [30, 20], [30, 90], [10, 90]]"]
)
def test_quads(written):
    (quad,) = parse(f"<ref>sign</ref><quad>{written}</quad>")
    assert quad.label == "sign"
    assert quad.source == QUAD
    assert quad.corners == ((20.0, 10.0), (60.0, 10.0), (60.0, 45.0), (20.0, 45.0))
    assert quad.xyxy == quad.unclipped == (20.0, 10.0, 60.0, 45.0)
    assert quad.valid
    assert quad.tagged


@pytest.mark.parametrize(
    ("written", "pixels", "clipped", "problem"),
    [
        ("[-10, 0, 500, 500]", (0.0, 0.0, 1000.0, 250.0), True, None),
        ("[0, 0, 1000, 1000]", (0.0, 0.0, 2000.0, 500.0), False, None),
        ("[900, 900, 1000.5, 1e9]", (1800.0, 450.0, 2000.0, 500.0), True, None),
        ("[0, 0, 1e999, 500]", (0.0, 0.0, 2000.0, 250.0), True, None),
        ("[300, 400, 100, 200]", (200.0, 100.0, 600.0, 200.0), False, "swapped corners"),
        ("[300, 200, 100, 400]", (200.0, 100.0, 600.0, 200.0), False, "swapped corners"),
        ("[100, 200, 100, 400]", (200.0, 100.0, 200.0, 200.0), False, "no area"),
        ("[1200, 100, 1500, 500]", (2000.0, 50.0, 2000.0, 250.0), True, "outside the image"),
        ("[-9, -9, -5, -5]", (0.0, 0.0, 0.0, 0.0), True, "outside the image"),
    ],
)
def test_improper_boxes_are_clipped_ordered_and_flagged(written, pixels, clipped, problem):
    (box,) = parse(written)
    assert box.xyxy == pixels
    assert (box.clipped, box.problem) == (clipped, problem)
    assert box.valid == (problem is None)
    assert list(box.source) == [float(number) for number in written.strip("[]").split(",")]


def test_frames_from_0_to_1():
    (box,) = parse("[[0.1, 0.2, 0.3, 0.4]]", scale=1)
    assert box.xyxy == pytest.approx((200.0, 100.0, 600.0, 200.0))
    small, large = parse("[[0.1, 0.2, 0.3, 0.4]] [[100, 200, 300, 400]]", scale="auto")
    assert (small.scale, large.scale) == (1, 1000)
    assert small.xyxy == pytest.approx(large.xyxy)
    # The rule of the official evaluation: 4 or more in sum is the frame of 0 to 1000.
    assert [box.scale for box in parse("[1, 1, 1, 1] [0, 0, 1, 2]", scale="auto")] == [1000, 1]
    assert parse("[0.1, 0.2, 1.3, 0.4]", scale=1)[0].clipped


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"height": 0}, "height=0"),
        ({"width": -1}, "width=-1"),
        ({"height": math.nan}, "height=nan"),
        ({"scale": 0}, "scale=0"),
        ({"scale": "pixels"}, "scale='pixels'"),
    ],
)
def test_wrong_arguments_are_refused(options, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        parse_boxes("", **{"height": 10, "width": 10, **options})


def test_sizes_cannot_be_given_by_position():
    with pytest.raises(TypeError):
        parse_boxes("[[1, 2, 3, 4]]", 500, 2000)
    with pytest.raises(TypeError):
        format_boxes([(1, 2, 3, 4)], 500, 2000)


PIECES = ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "[", "[[", "]", "]]", ",", " "]
PIECES += ["\n", "-", ".", "1", "999", "1e999", "0.5", "dog", "\u732b", TEXT_A, f"[{TEXT_B}]"]
PIECES += [str(list(QUAD)), "[[1, 2], [3, 4], [5, 6], [7, 8]]", "<re", "9" * 400, "\u0661"]
near_text = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)


@fixed
@given(st.one_of(st.text(max_size=200), near_text), st.sampled_from([1000, 1, "auto"]))
def test_no_text_raises(text, scale):
    for box in parse(text, scale=scale):
        assert 0 <= box.x1 <= box.x2 <= W
        assert 0 <= box.y1 <= box.y2 <= H
        assert len(box.source) == (8 if box.corners else 4)
        assert box.valid == (box.problem is None)
        if box.valid and not box.clipped and not box.corners:
            assert box.xyxy == box.unclipped


def test_a_cut_answer_keeps_its_complete_boxes():
    text = (
        f"<ref>dog</ref><box>[{TEXT_A}, {TEXT_B}]</box>\n<ref>cat</ref><box>[{TEXT_B}]</box> and "
        f"<ref>sign</ref><quad>[{list(QUAD)}]</quad> there"
    )
    whole = parse(text)
    assert [box.label for box in whole] == ["dog", "dog", "cat", "sign"]
    ends = [match.end() for match in re.finditer(r"\d\]", text)]
    for cut in range(len(text) + 1):
        assert parse(text[:cut]) == whole[: sum(end <= cut for end in ends)]


# ---------------------------------------------------------------------------------- boxes -> text
def test_the_form_of_training_data():
    boxes = [(200, 100, 600, 200), np.array([1000.0, 300.0, 1400.0, 400.0])]
    assert format_boxes(boxes, height=H, width=W, label="dog") == (
        "<ref>dog</ref><box>[[100, 200, 300, 400], [500, 600, 700, 800]]</box>"
    )
    assert format_boxes(boxes[:1], height=H, width=W) == "<box>[[100, 200, 300, 400]]</box>"
    assert format_boxes([[v * 2 for v in QUAD]], height=1000 * 2, width=1000 * 2) == (
        "<quad>[[10, 20, 30, 20, 30, 90, 10, 90]]</quad>"
    )


def test_labels_go_one_per_line():
    boxes = [
        Box(200, 100, 600, 200, "dog"),
        Box(0, 0, 1000, 500, "\u732b"),
        Box(1000, 300, 1400, 400, "dog"),
        Box(2, 1, 4, 2),
    ]
    text = format_boxes(boxes, height=H, width=W)
    assert text == (
        "<ref>dog</ref><box>[[100, 200, 300, 400], [500, 600, 700, 800]]</box>\n"
        "<ref>\u732b</ref><box>[[0, 0, 500, 1000]]</box>\n<box>[[1, 2, 2, 4]]</box>"
    )
    assert format_boxes(boxes[:2], height=H, width=W, label="x").count("<ref>x</ref>") == 1


def test_what_was_parsed_is_written_again():
    text = (
        f"<ref>dog</ref><box>[{TEXT_A}, {TEXT_B}]</box>\n"
        f"<ref>sign</ref><quad>[{[int(number) for number in QUAD]}]</quad>"
    )
    assert format_boxes(parse(text), height=H, width=W) == text


sides = st.integers(1, 12_000)
shares = st.floats(0, 1, allow_subnormal=False)


@fixed
@given(sides, sides, st.lists(st.tuples(shares, shares, shares, shares), min_size=1, max_size=4))
def test_round_trip_moves_an_edge_by_a_thousandth_at_most(height, width, fractions):
    given_boxes = []
    for one, two, three, four in fractions:
        (x1, x2), (y1, y2) = (
            sorted((one * width, three * width)),
            sorted((two * height, four * height)),
        )
        if x2 - x1 > 2e-6 * width and y2 - y1 > 2e-6 * height:
            given_boxes.append((x1, y1, x2, y2))
    if not given_boxes:
        return
    text = format_boxes(given_boxes, height=height, width=width, label="a dog")
    read = parse_boxes(text, height=height, width=width)
    assert len(read) == len(given_boxes)
    for box, pixels in zip(read, given_boxes, strict=True):
        assert box.valid
        assert not box.clipped
        assert box.label == "a dog"
        errors = np.abs(np.subtract(box.xyxy, pixels)) / (width, height, width, height)
        assert errors.max() <= 0.001 + 1e-12
        for low, high, side in ((0, 2, width), (1, 3, height)):
            edges = [round(pixels[low] / side * 1000), round(pixels[high] / side * 1000)]
            if edges[0] != edges[1]:  # the official formula, unless it leaves nothing
                assert [box.source[low], box.source[high]] == edges
                assert errors[[low, high]].max() <= 0.0005 + 1e-12


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ((499.1, 499.3), (499, 500)),
        ((499.6, 499.8), (499, 500)),
        ((499.9, 500.1), (499, 501)),
        ((0.0, 0.2), (0, 1)),
        ((999.8, 1000.0), (999, 1000)),
    ],
)
def test_thin_boxes_are_rounded_outwards(edges, expected):
    text = format_boxes([(edges[0], 0, edges[1], 1000)], height=1000, width=1000)
    assert text == f"<box>[[{expected[0]}, 0, {expected[1]}, 1000]]</box>"


def test_float_noise_at_the_border_is_no_error():
    text = format_boxes([(-1e-9, 0, W + 1e-9, H)], height=H, width=W)
    assert text == "<box>[[0, 0, 1000, 1000]]</box>"


@pytest.mark.parametrize(
    ("boxes", "complaint"),
    [
        ([], "no boxes"),
        ([(0, 0, 2001, 10)], "leaves the image of height 500 and width 2000"),
        ([(0, 0, 10, 501)], "leaves the image"),
        ([(-1, 0, 10, 10)], "leaves the image"),
        ([(0, 0, 10, 10), (0, math.nan, 10, 10)], "box 1 .* is not finite"),
        ([(0, 0, math.inf, 10)], "not finite"),
        ([(10, 0, 10, 10)], "no area"),
        ([(20, 0, 10, 10)], "swapped corners"),
        ([(0, 0, 10)], "expected a Box"),
        ([0, 0, 10, 10], "a single box goes into a list"),
        (["0000"], "no area"),
        (["dog!"], "expected a Box"),
        ([(5, 5, 5, 5, 5, 5, 5, 5)], "no area"),
    ],
)
def test_wrong_boxes_are_refused(boxes, complaint):
    with pytest.raises(ValueError, match=complaint):
        format_boxes(boxes, height=H, width=W)


@pytest.mark.parametrize("label", ["", "  ", "a</ref>b", "<box>", "a <quad> b"])
def test_labels_that_would_break_the_form_are_refused(label):
    with pytest.raises(ValueError, match="label"):
        format_boxes([(0, 0, 10, 10)], height=H, width=W, label=label)
    with pytest.raises(ValueError, match="label"):
        grounding_prompt(label)


def test_a_box_refuses_nonsense():
    with pytest.raises(ValueError, match="corners are swapped"):
        Box(10, 0, 5, 5)
    with pytest.raises(ValueError, match="finite"):
        Box(0, 0, math.nan, 5)


def test_prompt_is_the_official_one():
    assert grounding_prompt("the left dog") == (
        "Please provide the bounding box coordinate of the region this sentence describes: "
        "<ref>the left dog</ref>"
    )


# ------------------------------------------------------------------------------------- comparison
@pytest.mark.parametrize("index", range(REFCOCO["n"]))
def test_refcoco_iou_equals_the_peers(index):
    # The official evaluation compares what was written; VLMEvalKit clips it and orders the corners.
    case, truth = REFCOCO["cases"][index], REFCOCO["gt_box_abs_xyxy"]
    height, width = REFCOCO["image_hw"]
    boxes = parse_boxes(case["text"], height=height, width=width)
    as_written = iou(boxes[0].unclipped, truth) if boxes else 0.0
    assert as_written == pytest.approx(case["internvl_official_iou"], abs=1e-6)
    assert (iou(boxes[0], truth) if boxes else 0.0) == pytest.approx(
        case["vlmevalkit_iou"], abs=1e-6
    )


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (5, 0, 15, 10), 1 / 3),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),
        ((0, 0, 10, 10), (10, 10, 0, 0), 0.0),
        ((0, 0, 0, 0), (0, 0, 0, 0), 0.0),
        ((0, 0, math.nan, 10), (0, 0, 10, 10), 0.0),
        ((0, 0, math.inf, 10), (0, 0, 10, 10), 0.0),
        ((0, 0, 10, 0, 10, 10, 0, 10), (0, 0, 10, 10), 1.0),
    ],
)
def test_iou(first, second, expected):
    assert iou(first, second) == pytest.approx(expected)
    assert iou(second, first) == pytest.approx(expected)
    if len(first) == 4 and expected == 1:
        assert iou(Box(*first), second) == 1


def test_iou_of_a_wrong_number_of_values_is_refused():
    with pytest.raises(ValueError, match="expected a Box"):
        iou((0, 0, 10), (0, 0, 10, 10))


# ---------------------------------------------------------------------------------------- drawing
GREY = (127, 127, 127)


def grey(height: int = 300, width: int = 400) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def changed(image: Image.Image) -> np.ndarray:
    return (np.asarray(image) != 127).any(axis=-1)


def test_lines_run_around_the_region_and_the_image_stays():
    image = grey()
    drawn = draw_boxes(image, [(100, 50, 200, 150)], line_width=3)
    assert not changed(image).any()
    assert drawn.size == image.size
    expected = np.zeros((300, 400), dtype=bool)
    expected[47:153, 97:203] = True
    expected[50:150, 100:200] = False
    assert (changed(drawn) == expected).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_every_mode_gives_rgb(mode):
    assert draw_boxes(grey().convert(mode), [Box(10, 40, 60, 90, "dog")]).mode == "RGB"


def test_boxes_at_the_border_keep_their_lines():
    drawn = changed(draw_boxes(grey(), [(0, 0, 400, 300)], line_width=2))
    assert drawn[0].all()
    assert drawn[-1].all()
    assert drawn[:, 0].all()
    assert drawn[:, -1].all()
    assert not drawn[2:-2, 2:-2].any()


def test_line_and_text_grow_with_the_image():
    share = [changed(draw_boxes(grey(s, s), [Box(s / 4, s / 4, s / 2, s / 2, "dog")])).mean()
             for s in (600, 2400)]  # fmt: skip
    assert share[1] == pytest.approx(share[0], rel=0.25)


def test_colours_tell_labels_apart():
    boxes = [Box(10, 40 + 5 * i, 60, 90 + 5 * i, f"label {i}") for i in range(30)]
    colours = grounding._colours([*boxes, boxes[0], Box(0, 0, 1, 1), Box(0, 0, 1, 1)])
    assert colours[30] == colours[0]
    assert len(set(colours)) == 32


def test_boxes_without_area_are_left_out():
    boxes = parse_boxes("[[1200, 0, 1300, 9]] dog[[5, 5, 5, 5]]", height=300, width=400)
    assert len(boxes) == 2
    assert not changed(draw_boxes(grey(), boxes)).any()


def test_labels_of_boxes_in_one_corner_do_not_cover_each_other():
    boxes = [Box(100, 100, 180 + 40 * i, 180 + 30 * i, name) for i, name in enumerate("abc")]
    plain = [Box(*box.xyxy) for box in boxes]
    labelled = np.asarray(draw_boxes(grey(), boxes))
    bare = np.asarray(draw_boxes(grey(), plain))
    for colour in grounding._colours(boxes):
        assert (labelled == colour).all(-1).sum() > (bare == colour).all(-1).sum() + 60


def test_long_labels_do_not_fill_the_image():
    drawn = changed(draw_boxes(grey(), [Box(300, 200, 340, 240, "very " * 100)]))
    columns = np.flatnonzero(drawn.any(axis=0))
    assert columns.min() >= 190
    assert drawn.mean() < 0.1


def test_quads_are_drawn_as_lines():
    quad = Box(100, 50, 200, 150, corners=((150, 50), (200, 100), (150, 150), (100, 100)))
    drawn = changed(draw_boxes(grey(), [quad], line_width=2))
    assert drawn[75, 125]
    assert drawn[125, 175]
    assert not drawn[55, 105]
    assert not drawn[100, 150]


def test_a_label_that_no_font_has_becomes_a_number(monkeypatch, caplog):
    monkeypatch.setattr(grounding, "_FONTS", ())  # a machine without fonts of its own
    boxes = [Box(10, 100, 60, 150, "dog"), Box(200, 100, 260, 150, "\u72d7")]
    with caplog.at_level(logging.WARNING):
        drawn = draw_boxes(grey(), boxes)
    assert "'\u72d7'" in caplog.text
    assert "#1" in caplog.text
    assert "dog" not in caplog.text
    numbered = draw_boxes(grey(), [boxes[0], Box(200, 100, 260, 150, "#1")])
    assert drawn.tobytes() == numbered.tobytes()


def test_a_font_that_is_missing_is_an_error():
    with pytest.raises(OSError, match="resource"):
        draw_boxes(grey(), [Box(10, 100, 60, 150, "dog")], font="no-such-font.ttf")


@pytest.mark.parametrize("box", [(0, 0, math.nan, 5), (0, 0, 5)])
def test_what_cannot_be_drawn_is_refused(box):
    with pytest.raises(ValueError, match="box 0"):
        draw_boxes(grey(), [box])


@pytest.mark.parametrize("side", [1, 3, 20])
def test_small_images_can_be_drawn_on(side):
    drawn = draw_boxes(grey(side, side), [Box(0, 0, side, side, "a long label"), (50, 50, 60, 60)])
    assert drawn.size == (side, side)


# ------------------------------------------------------------------------------------------ guide
def test_the_guide_runs():
    guide = (ROOT / "docs/grounding.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    runnable = [block for block in blocks if "load(" not in block]
    assert len(runnable) == 2
    exec("\n".join(runnable), {"answer": f"<ref>dog</ref><box>[{TEXT_A}]</box>"})
