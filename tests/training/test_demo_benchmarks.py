"""The drawn benchmarks: written as the real ones are, and true."""

from __future__ import annotations

import ast
import base64
import io
import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from internvl.evaluation import benchmarks as real
from internvl.evaluation import prompts
from internvl.evaluation.evaluate import read_suite
from internvl.evaluation.records import Prediction, Response
from internvl.evaluation.samples import Source, read_samples
from internvl.evaluation.scoring import score
from internvl.training.demo import benchmark_rows as rows
from internvl.training.demo import benchmarks, scenes
from internvl.training.demo.questions import ShapeFacts, direction
from internvl.training.demo.scenes import COLOURS, SHAPES
from tests.training import demo_material

HELD = demo_material.held()
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return benchmarks.build(tmp_path_factory.mktemp("suite"), count=6, held=HELD)


@pytest.fixture(scope="module")
def samples(suite):
    return {each.name: read_samples(Source(str(each.file))) for each in read_suite(suite)}


def table_of(suite, name):
    """As VLMEvalKit reads it."""
    return pd.read_csv(suite.parent / f"{name}.tsv", sep="\t")


def picture(cell):
    return Image.open(io.BytesIO(base64.b64decode(cell, validate=True)))


# ---------------------------------------------------------------------- formats
def test_the_suite_names_rows_of_the_report(suite, samples):
    entries = json.loads(suite.read_text("utf-8"))["benchmarks"]
    assert [each["name"] for each in entries] == list(benchmarks.BENCHMARKS)
    for each in entries:
        assert real.get(each["benchmark"]).metric
        assert each["rows"] == len(samples[each["name"]]) >= 6
        assert each["seed"] == benchmarks.SEED
        assert ("frames" in each) != ("max_tiles" in each)
    assert len({each["benchmark"] for each in entries}) == len(entries) >= 11


def answered(sample):
    """A row with an answer that is right."""
    fields, answer = dict(sample.fields), sample.answers[0]
    if len(sample.answers) == 10:
        answer = Counter(sample.answers).most_common(1)[0][0]
    if "height" in fields and not sample.choices:  # a box, in thousandths
        sides = [int(fields["width"]), int(fields["height"])] * 2
        box = zip(json.loads(answer), sides, strict=True)
        answer = f"[[{', '.join(str(round(1000 * edge / side)) for edge, side in box)}]]"
    if "task_type" in fields:
        answer = f"({answer}) {sample.choices[answer]}"
    return Prediction(
        sample.id, "", "", "<image>\n?", (1,), (), 10, (Response(answer, 2, "stop"),),
        sample.answers, sample.choices, fields,
    )  # fmt: skip


@pytest.mark.parametrize("name", benchmarks.BENCHMARKS)
def test_right_answers_score_everything_and_silence_nothing(name, samples):
    row = real.get(benchmarks.BENCHMARKS[name].benchmark)
    found = [answered(each) for each in samples[name]]
    best = {"mme": 600, "ocrbench": len(found)}.get(row.metric, 100)
    assert score(found, row.metric, resamples=5).score == pytest.approx(best)
    silent = [replace(each, responses=(Response("", 1, "stop"),)) for each in found]
    assert score(silent, row.metric, resamples=5).score == 0
    for each in samples[name]:
        frames = 4 if each.video is not None else 0
        asked = prompts.build(each, row.prompt, frames=frames)
        assert asked.count("<image>") == len(each.images) + frames > 0
        assert asked.count(prompts.SHORT) <= 1
        for image in each.images:
            read = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
            assert read.mode == "RGB"
            assert min(read.size) >= 8


def test_tables_are_those_of_vlmevalkit(suite):
    for name, local in benchmarks.BENCHMARKS.items():
        if local.kind != "tsv":
            continue
        table = table_of(suite, name)
        assert table["index"].is_unique
        assert not table[["question", "answer"]].isna().any(axis=None)
        if "image" not in table:
            continue
        cells = dict(zip(table["index"].astype(str), table["image"].astype(str), strict=True))
        for cell in cells.values():
            if len(cell) <= 64:  # the index of the row that has the picture
                assert len(cells[cell]) > 64
            elif cell.startswith("["):
                assert [picture(each).format for each in ast.literal_eval(cell)] == ["PNG", "PNG"]
            else:
                assert picture(cell).format == "PNG"
    names = [ast.literal_eval(each) for each in table_of(suite, "two_images_letter")["image_path"]]
    assert all(len(each) == 2 for each in names)
    for name in ("documents", "reading", "scene_text"):
        answers = [ast.literal_eval(each) for each in table_of(suite, name)["answer"]]
        assert {len(each) for each in answers} == {10 if name == "scene_text" else 1}
    assert set(table_of(suite, "charts")["split"]) == {"human", "augmented"}


def test_shifted_copies_keep_their_right_option(suite):
    table = table_of(suite, "circular")
    for _, copies in table.groupby(table["index"] % rows.CIRCLE):
        assert len(copies) == 4
        assert set(copies["answer"]) == set("ABCD")
        right = [str(each[each["answer"]]) for _, each in copies.iterrows()]
        assert len(set(right)) == 1
        orders = {tuple(each[letter] for letter in "ABCD") for _, each in copies.iterrows()}
        assert len(orders) == 4


def test_marks_of_images_and_open_questions(samples):
    both = Counter(bool(each.choices) for each in samples["marked_images"])
    assert both == {True: 3, False: 3}
    assert all("<image 1>" in each.question for each in samples["marked_images"])


def test_official_boxes_are_pixels(suite):
    lines = (suite.parent / "grounding.jsonl").read_text("utf-8").splitlines()
    for each in map(json.loads, lines):
        assert set(each) == {"image", "sent", "bbox", "height", "width"}
        with Image.open(suite.parent / each["image"]) as image:
            assert image.size == (each["width"], each["height"])
            x1, y1, x2, y2 = each["bbox"]
            assert 0 <= x1 < x2 <= image.width
            assert 0 <= y1 < y2 <= image.height
            inside = np.asarray(image)[int((y1 + y2) / 2), int((x1 + x2) / 2)].astype(int)
            corner = np.asarray(image)[0, 0].astype(int)
            assert np.abs(inside - corner).sum() > 40


def test_clips_are_videos_of_sixteen_frames_that_move(suite):
    av = pytest.importorskip("av")
    table = table_of(suite, "clips")
    for _, row in table.iterrows():
        assert row["answer"] in ast.literal_eval(row["candidates"])
        with av.open(str(suite.parent / row["prefix"] / row["video"])) as clip:
            frames = [
                frame.to_ndarray(format="rgb24").astype(int) for frame in clip.decode(video=0)
            ]
        assert len(frames) == 16
        assert (
            np.abs(frames[0] - frames[-1]).sum() > 10 * np.abs(frames[0] - frames[0]).sum() + 1000
        )
        if row["task_type"] == "Moving Direction":
            where = [_centre(frame) for frame in (frames[0], frames[-1])]
            dy, dx = where[1][0] - where[0][0], where[1][1] - where[0][1]
            moves = (
                ("right" if dx > 0 else "left")
                if abs(dx) > abs(dy)
                else ("down" if dy > 0 else "up")
            )
            assert moves == row["answer"]


def _centre(frame):
    """(row, column) of what is not the ground."""
    other = np.abs(frame - np.median(frame, axis=(0, 1))).sum(-1) > 60
    return np.argwhere(other).mean(0)


# ---------------------------------------------------------------------- truth
@pytest.fixture
def shown(monkeypatch):
    """The scenes that are drawn."""
    found: list[scenes.Scene] = []

    def draw(scene, rng, glyphs=None):
        found.append(scene)
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(scenes, "draw_scene", draw)
    return found


def made(maker, number, shown):
    shown.clear()
    rng = np.random.default_rng([3, number])
    while True:
        if found := maker(rng, number, None):
            return found
        shown.clear()


def says(scene, question):
    """Whether an object of the question is in the scene."""
    words = re.findall("[a-z]+", question.lower().replace("grey", "gray"))
    shape = next((s for s in SHAPES if s in words or f"{s}s" in words or f"{s}es" in words), "")
    colour = next((c for c in COLOURS if c in words), "")
    assert shape or colour
    return ShapeFacts(scene).has(shape, colour)


@pytest.mark.parametrize("number", range(12))
def test_objects_are_there_or_not_and_tempt_as_their_category_says(number, shown):
    found = made(rows.objects, number, shown)
    (scene,) = shown
    assert [row["answer"] for row in found] == ["Yes", "No", "No", "No"]
    assert [row["category"] for row in found[1:]] == ["random", "popular", "adversarial"]
    assert found[0]["category"] == "random,popular,adversarial"
    assert [says(scene, row["question"]) for row in found] == [True, False, False, False]
    assert " red " in found[2]["question"].lower()
    facts, tempting = ShapeFacts(scene), found[3]["question"].lower()
    assert any(colour in tempting for colour in facts.colours)
    assert any(shape in tempting for shape in facts.shapes)


@pytest.mark.parametrize("number", range(12))
def test_of_two_questions_about_a_picture_one_is_true(number, shown):
    yes, no = made(rows.pairs, number, shown)
    (scene,) = shown
    assert (yes["answer"], no["answer"]) == ("Yes", "No")
    assert yes["image_path"] == no["image_path"]
    assert yes["category"] == no["category"] == ("existence", "position", "color")[number % 3]
    if yes["category"] != "position":
        assert says(scene, yes["question"])
        assert not says(scene, no["question"])
        return
    names = [item for item in scene.items if item.name in yes["question"]]
    a, b = sorted(names, key=lambda item: yes["question"].index(item.name))
    way = direction(a, b)
    for question, right in ((yes["question"], way), (no["question"], OPPOSITE[way])):
        words = {"above": ("above", "over"), "below": ("below", "under")}.get(right, (right,))
        assert any(f" {word} " in question for word in words)


@pytest.mark.parametrize("number", range(8))
def test_twins_swap_their_answers(number, shown):
    found = made(rows.illusions, number, shown)
    assert [row["index"].split("_")[3:] for row in found] == [
        [str(number), figure, question] for figure in "01" for question in "01"
    ]
    assert [row["answer"] for row in found] == ["Yes", "No", "No", "Yes"]
    assert len(shown) == 2
    for row, scene in zip(found, (shown[0], shown[0], shown[1], shown[1]), strict=True):
        assert says(scene, row["question"]) == (row["answer"] == "Yes")


# ---------------------------------------------------------------------- seeds and mistakes
def test_a_row_depends_on_seed_and_number_alone(tmp_path, suite):
    again = benchmarks.build(tmp_path / "a", count=2, held=HELD, only=["documents", "grounding"])
    for name in ("documents.tsv", "grounding.jsonl"):
        short, long = ((folder / name).read_bytes() for folder in (again.parent, suite.parent))
        assert long.startswith(short)
    other = benchmarks.build(tmp_path / "b", count=2, held=HELD, only=["documents"], seed=1)
    assert (other.parent / "documents.tsv").read_bytes() != (
        again.parent / "documents.tsv"
    ).read_bytes()


def test_without_the_archives_those_that_print_are_left_out(tmp_path):
    plain = [name for name, local in benchmarks.BENCHMARKS.items() if not local.archives]
    assert len(plain) >= 8
    with pytest.raises(ValueError, match="'chart'"):
        benchmarks.build(tmp_path, only=["chart"])
    with pytest.raises(ValueError, match="count is 0"):
        benchmarks.build(tmp_path, count=0)
    with pytest.raises(ValueError, match="charts is made of the package archives"):
        benchmarks.build(tmp_path, count=1, only=["charts"])
    path = benchmarks.build(tmp_path, count=1, only=plain[:1])
    assert [each.name for each in read_suite(path)] == plain[:1]


# ---------------------------------------------------------------------- scores
def test_the_table_has_scores_and_what_guessing_gets(tmp_path, samples, suite):
    names = ["objects", "two_images_letter", "clips"]
    entries = json.loads(suite.read_text("utf-8"))
    entries["benchmarks"] = [each for each in entries["benchmarks"] if each["name"] in names]
    own = tmp_path / "suite.json"
    own.write_text(json.dumps(entries), "utf-8")
    for name in names:
        folder = tmp_path / "runs" / name / ("frames-4" if name == "clips" else "")
        folder.mkdir(parents=True)
        lines = [answered(each).as_line() + "\n" for each in samples[name]]
        (folder / "predictions.jsonl").write_text("".join(lines), "utf-8")
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in benchmarks.table(own, tmp_path / "runs").splitlines()[2:]
    ]
    assert [row[0] for row in cells] == names
    assert all(row[3] == "100.0" for row in cells)
    letters = Counter(each.answers[0] for each in samples["two_images_letter"])
    assert float(cells[1][5]) == pytest.approx(100 * max(letters.values()) / 6, abs=0.1)
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- scores: begin -->\nold\n<!-- scores: end -->\nb\n", "utf-8")
    benchmarks.replace_between(page, "scores", "new")
    assert page.read_text("utf-8") == ("a\n<!-- scores: begin -->\nnew\n<!-- scores: end -->\nb\n")
    with pytest.raises(ValueError, match="votes: begin"):
        benchmarks.replace_between(page, "votes", "new")
