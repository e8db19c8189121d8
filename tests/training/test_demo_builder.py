"""The data of the demo as files: deterministic, in the official format, with true answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from internvl import grounding, hub
from internvl.data.examples import ExampleMaker
from internvl.data.mixture import Mixture, load_meta
from internvl.training.demo import builder, dialogues, questions, scenes, words
from internvl.training.demo.material import Material
from internvl.training.demo.questions import ShapeFacts
from internvl.training.demo.scenes import Item, Scene
from tests.training import demo_material


@pytest.fixture(scope="module")
def material():
    return demo_material.material()


@pytest.fixture
def no_archives(material, monkeypatch):
    monkeypatch.setattr(Material, "load", classmethod(lambda cls, split, cache: material))


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_files_follow_from_the_seed_whatever_the_processes(no_archives, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "CHUNK", 3)
    for folder, seed, processes in (("one", 5, 1), ("two", 5, 2), ("other", 6, 1)):
        builder.build(tmp_path / folder, seed=seed, scale=0.0008, processes=processes)
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    assert one["shapes.jsonl"] != contents(tmp_path / "other")["shapes.jsonl"]
    pictures = [data for name, data in one.items() if name.startswith("images/shapes/")]
    assert len(pictures) == len(set(pictures)) == 16


def test_every_row_becomes_an_example_of_the_demo(no_archives, tmp_path):
    sizes = builder.build(tmp_path, seed=2, scale=0.0008)
    assert set(sizes) == set(builder.DATASETS)
    prepared = hub.prepare(hub.REPOSITORY / "demo")
    maker = ExampleMaker(prepared)
    mixture = Mixture(load_meta(tmp_path / "meta_stage2.json"), seed=0)
    tiles: dict[str, set[int]] = {}
    for key in mixture.order(0):
        sample, spec = mixture.sample(key)
        example = maker.make(sample, spec, mixture.rng(0, key), key)
        assert example.supervised >= 2 * sum(turn.role == "assistant" for turn in sample.turns)
        tiles.setdefault(spec.name, set()).add(example.num_tiles)
    assert tiles["pair"] == {2}
    assert tiles["video"] == {4}
    assert tiles["video8"] == {8}
    assert tiles["text"] == {0}
    assert max(tiles["words"]) in (3, 4)  # two or three parts and the thumbnail
    assert all(tiles[name] == {1} for name in ("shapes", "boxes", "digits", "charts"))


def test_stage_1_leaves_the_hard_datasets_out():
    sizes = dict.fromkeys(builder.DATASETS, 10)
    first, second = builder.meta("stage1", sizes), builder.meta("stage2", sizes)
    assert set(second) == set(builder.DATASETS)
    assert set(second) - set(first) == {"boxes", "video8"}
    assert any(entry["repeat_time"] % 1 for entry in second.values())


def test_dialogues_begin_with_every_kind_of_question(material):
    rng = np.random.default_rng(0)
    made = [dialogues.shapes(rng, material) for _ in range(400)]
    assert {d.turns[0].task for d in made} == set(questions.SHAPE_BY_TASK)
    assert max(len(d.turns) for d in made) == 8
    for dialogue in made:
        facts = [qa.task for qa in dialogue.turns if qa.task in dialogues.ONE_FACT]
        assert len(facts) == len(set(facts))


def test_tags_stand_where_the_pictures_come():
    qa = questions.QA("count", "How many?", "2")
    blank = Image.new("RGB", (8, 8))
    for layout, asked in {
        "image": ["<image>\nHow many?", "How many?"],
        "pair": ["Image-1: <image>\nImage-2: <image>\nHow many?", "How many?"],
        "later": ["<image>\nHow many?", "<image>\nHow many?"],
        "labelled": ["Image-1: <image>\nHow many?", "Image-2: <image>\nHow many?"],
        "video": ["<video>\nHow many?", "How many?"],
        "text": ["How many?", "How many?"],
    }.items():
        dialogue = dialogues.Dialogue((qa, qa), (blank,), layout)
        assert [dialogue.asked(turn) for turn in (0, 1)] == asked


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_boxes_are_where_the_ink_is(shape):
    item = Item(0.4, 0.6, 0.5, (255, 0, 0), angle=8.0, shape=shape, colour="red")
    scene = Scene((item,), (255, 255, 255), 300, 240)
    rng = np.random.default_rng(0)
    ink = (np.asarray(scenes.draw_scene(scene, rng)) == (255, 0, 0)).all(-1)
    ys, xs = np.nonzero(ink)
    truth = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    qa = questions.about_box(rng, scene, ShapeFacts(scene))
    (found,) = grounding.parse_boxes(qa.answer, height=240, width=300)
    assert found.label in ("red " + shape, shape, "red object", "red shape", "object")
    assert grounding.iou(found.xyxy, truth) > 0.93


def test_boxes_are_of_the_object_that_is_named():
    rng = np.random.default_rng(2)
    for _ in range(60):
        scene = scenes.shape_scene(rng, 4)
        qa = questions.about_box(rng, scene, ShapeFacts(scene))
        if qa is None:
            continue
        (found,) = grounding.parse_boxes(qa.answer, height=1000, width=1000)
        said = set(found.label.split()) - {"object", "shape"}
        (item,) = (item for item in scene.items if said <= {item.shape, item.colour})
        left, top, right, bottom = found.xyxy
        assert left < 1000 * item.x < right
        assert top < 1000 * item.y < bottom


def test_training_prints_no_held_out_word():
    listed = ("APPLE", "PLUM", "PEAR", "FIG", "TO", "ORANGE", "GRAPE", "LEMON", "MANGO")
    known = (*(word for word in listed if not words.held_out(word)), "AX", "BAR", "TREE", "HOUSE")
    rng = np.random.default_rng(4)
    printed = {words.training_text(rng, known) for _ in range(3000)}
    assert not [text for text in printed - set(known) if words.held_out(text)]
    assert {len(text) for text in printed} == set(range(1, 7))
    assert 0.09 < np.mean([words.held_out(f"WORD{k}") for k in range(2000)]) < 0.16


def test_rows_are_plain_json(no_archives, tmp_path):
    builder.build(tmp_path, seed=3, scale=0.0005, only={"words", "pair"})
    assert sorted(json.loads((tmp_path / "meta_stage2.json").read_text())) == ["pair", "words"]
    for line in (tmp_path / "pair.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        assert len(row["image"]) == 2
        assert [said["from"] for said in row["conversations"][:2]] == ["human", "gpt"]
