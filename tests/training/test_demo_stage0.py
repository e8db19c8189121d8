"""Stage 0: the label maps say what the tile shows, and the run learns, resumes and stops."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from internvl import hub
from internvl.training import muon
from internvl.training.demo import (
    archives,
    dense,
    drawings,
    feed,
    fonts,
    labels,
    optim,
    release,
    scenes,
    stage0,
)
from internvl.training.demo.labels import CHARACTERS, IGNORE, MAPS, Mark, label_maps
from internvl.training.demo.material import Sources
from internvl.training.demo.scenes import Item, Scene
from tests.training import demo_material

DEMO = hub.REPOSITORY / "demo"
ROW = {name: row for row, name in enumerate(MAPS)}


@pytest.fixture(scope="module")
def sources():
    return demo_material.material().sources


@pytest.fixture
def no_archives(sources, monkeypatch):
    monkeypatch.setattr(Sources, "load", classmethod(lambda cls, split, cache: sources))


def test_label_maps_mark_the_patch_of_the_centre():
    item = Item(0.3, 0.7, 0.2, (255, 0, 0), shape="star", colour="red")
    marks = labels.scene_marks(Scene((item,), (255, 255, 255), 112, 112))
    maps = label_maps(marks).reshape(len(MAPS), 8, 8)
    row, column = int(0.7 * 8), int(0.3 * 8)
    assert maps[ROW["centre_shape"], row, column] == scenes.SHAPES.index("star")
    assert maps[ROW["centre_colour"], row, column] == scenes.COLOURS.index("red")
    assert (maps[ROW["centre_shape"]] != len(scenes.SHAPES)).sum() == 1
    assert maps[ROW["x"], row, column] == int(0.3 * 16)
    assert maps[ROW["y"], row, column] == int(0.7 * 16)
    covered = maps[ROW["shape"]] != len(scenes.SHAPES)
    assert ((maps[ROW["x"]] != IGNORE) == covered).all()


def test_a_window_shows_the_marks_in_it_and_no_halves():
    marks = [
        Mark("character", x, 0.5, 0.1, 0.5, {"character": CHARACTERS.index(letter)})
        for x, letter in ((0.1, "A"), (0.45, "B"), (0.9, "C"))
    ]
    seen = []
    for column in range(2):
        maps = label_maps(marks, (column / 2, 0.0, 0.5, 1.0)).reshape(len(MAPS), 8, 8)
        sides = maps[[ROW["left_character"], ROW["right_character"]]]
        found = sides[sides != len(CHARACTERS)]
        seen.append("".join(sorted(CHARACTERS[k] for k in found)))
        covered = maps[ROW["character"]]
        assert set(covered[covered != len(CHARACTERS)]) == set(found)
    assert seen == ["AB", "C"]
    maps = label_maps(marks[:1]).reshape(len(MAPS), 8, 8)
    assert maps[ROW["right_character"], 4, 0] == 0  # x = 0.1: right half of the first patch


def test_characters_are_marked_where_they_are_printed(sources):
    rng = np.random.default_rng(3)
    for _ in range(30):
        drawing = drawings.words(rng, sources.fonts, ["HI8"], (240, 100))
        pixels = np.asarray(drawing.image, np.float32).mean(-1)
        ink = np.abs(pixels - np.median(pixels)) > 40
        for mark in drawing.marks:
            left, right = (round((mark.x + s * mark.width / 2) * 240) for s in (-1, 1))
            top, bottom = (round((mark.y + s * mark.height / 2) * 100) for s in (-1, 1))
            assert ink[max(0, top) : bottom, max(0, left) : right].mean() > 0.12
        outside = ink.copy()
        xs = [mark.x * 240 for mark in drawing.marks]
        outside[:, max(0, int(min(xs)) - 40) : int(max(xs)) + 40] = False
        assert outside.mean() < 0.02


def test_characters_of_a_turned_sign_are_marked_where_they_went(sources, monkeypatch):
    monkeypatch.setattr(drawings, "finish", lambda rng, image: image)
    rng, turned = np.random.default_rng(0), 0
    for _ in range(250):
        drawing = drawings.words(rng, sources.fonts, ["HHHHHHHHHHHHHH"], (400, 160))
        first, last = drawing.marks[0], drawing.marks[-1]
        if abs(first.y - last.y) * 160 < 15 or max(first.y, last.y) > 0.85:
            continue
        turned += 1
        pixels = np.asarray(drawing.image, np.float32).mean(-1)
        ink = np.abs(pixels - np.median(pixels)) > 40
        for mark in (first, last):
            left, right = (round((mark.x + s * mark.width / 2) * 400) for s in (-1, 1))
            rows = np.flatnonzero(ink[:, max(0, left + 1) : right - 1].any(1))
            assert abs((rows.min() + rows.max()) / 2 - mark.y * 160) < 4
    assert turned >= 5


def test_bars_are_as_high_as_their_values_say(sources):
    rng = np.random.default_rng(5)
    what = drawings.Chart(("red", "green", "blue"), (10, 1, 5))
    marks = drawings.chart(rng, what, sources.fonts).marks
    heights = [mark.height for mark in marks]
    assert heights[0] == pytest.approx(10 * heights[1]) == pytest.approx(2 * heights[2])
    maps = label_maps(marks)
    assert set(maps[ROW["bar"]]) - {IGNORE} == {9, 0, 4}


def test_every_kind_of_tile_has_targets_of_its_maps(sources):
    wanted = {
        "words": "character", "digits": "centre_digit", "shapes": "centre_shape", "named": "name",
        "charts": "bar",
    }  # fmt: skip
    assert set(wanted) == set(dense.KINDS)
    for kind, name in wanted.items():
        tiles, targets = dense.DenseData(sources, 12, kind)(feed.step_rng(1, 0), 0)
        assert tiles.shape == (12, 112, 112, 3)
        found = targets[:, ROW[name]]
        assert ((found != IGNORE) & (found < MAPS[name][0] - (MAPS[name][1] > 0))).any(1).sum() >= 8


def plan(**changes):
    values = {"steps": 4, "batch": 6, "warmup": 2, "evaluate_every": 4, "held_out": 3}
    return stage0.Stage0Plan(**(values | changes))


def test_stage_0_learns_logs_and_goes_on_where_it_stopped(no_archives, sources, tmp_path):
    torch.manual_seed(0)
    tiles, targets = dense.DenseData(sources, 12)(feed.step_rng(0, 0), 0)
    tiles, targets = torch.from_numpy(tiles), torch.from_numpy(targets)
    before = stage0.Stage0(plan(), tmp_path / "fresh", DEMO).model
    before = dense.dense_loss(before(tiles), targets).item()
    stage0.train(plan(), tmp_path / "whole", DEMO, tmp_path, workers=0)
    whole = stage0.Stage0(plan(), tmp_path / "whole", DEMO)
    assert whole.step == 4
    assert dense.dense_loss(whole.model(tiles), targets).item() < before - 3
    last = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[-1])
    assert set(last["accuracy"]) == set(dense.KINDS)

    half = tmp_path / "half"
    update = stage0.Stage0.update

    def interrupted(self, *batch):
        loss = update(self, *batch)
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    stage0.Stage0.update = interrupted
    try:
        stage0.train(plan(), half, DEMO, tmp_path, workers=0)
    finally:
        stage0.Stage0.update = update
    assert stage0.Stage0(plan(), half, DEMO).step == 2
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    stage0.train(plan(), half, DEMO, tmp_path, workers=0)
    again = stage0.Stage0(plan(), half, DEMO)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    assert torch.equal(
        load_file(half / "vit.safetensors")["vision_model.embeddings.class_embedding"],
        whole.average.weights["vision_model.embeddings.class_embedding"],
    )


def test_stage_1_starts_from_the_new_vit_and_the_old_rest(tmp_path):
    run = stage0.Stage0(plan(), tmp_path / "run", DEMO)
    with torch.no_grad():
        for weight in run.average.weights.values():
            weight += 0.01
    run.save()
    release.start(DEMO, tmp_path / "run" / "vit.safetensors", tmp_path / "start")
    loaded = hub.load(tmp_path / "start")
    base = hub.load(DEMO)
    assert loaded.processor.image_processor.max_tiles == release.MAX_TILES
    assert loaded.model.config.max_dynamic_patch == release.MAX_TILES
    for name, weight in loaded.model.state_dict().items():
        old = base.model.state_dict()[name].float()
        moved = 0.01 if name.startswith("vision_model.") else 0.0
        assert torch.allclose(weight, old + moved, atol=1e-6), name

    # and back: bfloat16 shards under the repository's limit
    release.release(tmp_path / "start", tmp_path / "start")
    shards = sorted((tmp_path / "start").glob("model-*.safetensors"))
    assert len(shards) == release.SHARDS
    assert {w.dtype for shard in shards for w in load_file(shard).values()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="use more shards"):
        release.write_shards({"w": torch.zeros(6_000_000).bfloat16()}, tmp_path, shards=1)


def test_the_recipe_is_read_and_mistakes_are_named(tmp_path):
    recipe = hub.REPOSITORY / "recipes" / "demo" / "stage0.yaml"
    assert stage0.Stage0Plan.read(recipe).batch == 48
    (tmp_path / "wrong.yaml").write_text("steps: 3\nbatchsize: 4\n")
    with pytest.raises(ValueError, match="batchsize"):
        stage0.Stage0Plan.read(tmp_path / "wrong.yaml")


def test_orthogonalise_gives_singular_values_near_one():
    generator = torch.Generator().manual_seed(0)
    for shape in ((64, 192), (192, 64), (96, 96)):
        values = torch.linalg.svdvals(muon.orthogonalise(torch.randn(shape, generator=generator)))
        assert 0.3 < values.median() < 1.3
        assert values.max() < 1.3


def test_schedule_warms_up_holds_and_decays():
    factors = [optim.schedule(k / 100, k, warmup=10, flat=0.5) for k in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[20] == factors[50] == 1
    assert factors[100] == pytest.approx(0.03)
    assert factors[50:] == sorted(factors[50:], reverse=True)


def test_a_damaged_archive_is_refused(tmp_path):
    (tmp_path / archives.MNIST.file).write_bytes(b"not the archive")
    with pytest.raises(ValueError, match="sha256"):
        archives.MNIST.fetch(tmp_path)


def test_whole_families_of_fonts_are_held_out():
    assert set(fonts.HELD_OUT) < set(archives.FONTS)
    assert len(fonts.HELD_OUT) == 4


def test_batches_from_workers_are_those_made_here():
    def make(rng: np.random.Generator, step: int) -> float:
        return step + rng.random()

    here = feed.batches(make, seed=3, start=5, workers=0)
    there = feed.batches(make, seed=3, start=5, workers=2)
    assert [next(here) for _ in range(6)] == [next(there) for _ in range(6)]
    there.close()
    assert multiprocessing.active_children() == []
