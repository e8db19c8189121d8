"""What benchmarks/vision_segment.py counts, composes and published."""

from __future__ import annotations

import importlib
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from internvl.evaluation.vision.segmentation.miou import Confusion
from tests import support


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(support.ROOT / "benchmarks"))
    return importlib.import_module


def test_mean_iou_is_that_of_the_package(script):
    rng = np.random.default_rng(0)
    confusion = Confusion(5)
    truth = torch.from_numpy(rng.choice([0, 1, 3, 255], 200))  # classes 2 and 4 do not occur
    confusion.update(torch.from_numpy(rng.choice([0, 1, 3], 200)), truth)
    matrices = np.stack([confusion.matrix.numpy()] * 2)
    expected = pytest.approx([confusion.scores().miou] * 2)
    assert script("vision_segment").mean_iou(matrices).tolist() == expected


def test_resampling_keeps_rows_together(script):
    module, rng = script("vision_segment"), np.random.default_rng(0)
    counts = rng.integers(0, 50, (12, 3, 3))
    better = counts + 30 * np.eye(3, dtype=np.int64)
    outcomes = {
        "less": [SimpleNamespace(counts=counts)] * 2,
        "more": [SimpleNamespace(counts=better)] * 2,
        "same": [SimpleNamespace(counts=counts)],
    }
    found = module.resampled(outcomes, np.random.default_rng(1))
    assert found["less"].shape == (module.RESAMPLED,)
    assert np.array_equal(found["less"], found["same"])  # the same images in every sample
    assert (found["more"] > found["less"]).all()
    assert found["less"].std() > 0
    middle = float(module.mean_iou(counts.sum(0)))
    assert np.percentile(found["less"], 2.5) < middle < np.percentile(found["less"], 97.5)


def test_masks_are_where_the_emoji_are(script):
    module = script("segment_data")
    photo = Image.new("RGB", (64, 64), (128, 128, 128))
    colours = [(255, 0, 0), (0, 0, 255)]
    glyphs = [[Image.new("RGBA", (64, 64), (*colour, 255))] for colour in colours]
    for seed in range(4):
        image, mask = module.compose(np.random.default_rng(seed), [photo], glyphs)
        pixels = np.asarray(image).astype(int)
        assert mask.shape == pixels.shape[:2] == module.SCENE
        assert {0, 1, 2} >= set(np.unique(mask)) != {0}
        for label, colour in enumerate(colours, 1):
            near = np.abs(pixels - colour).max(-1) < 100
            assert (near == (mask == label)).mean() > 0.98  # but for smooth borders


def test_the_page_says_what_was_measured(script):
    record = json.loads((support.ROOT / "docs" / "vision_segment.json").read_text())
    module = script("vision_segment")
    assert record["recipe"] == {**module.RECIPE, "by_mode": module.BY_MODE}
    assert not record["tuning"]
    page = (support.ROOT / "docs" / "vision_evaluation.md").read_text()
    assert record["command"] in page
    table = {
        cells[0]: cells[1:]
        for line in re.findall(r"^\| (.*) \|$", page, flags=re.MULTILINE)
        if len(cells := line.split(" | ")) == 3
    }
    for place, each in enumerate(record["sets"]):
        assert table["commonest class everywhere"][place] == f"{each['constant']:.1f}"
        for row in each["rows"]:
            name = {"floor": "linear, new weights"}.get(row["row"], row["row"])
            low, high = row["interval"]
            assert table[name][place] == f"{row['miou']:.1f} [{low:.1f}, {high:.1f}]", name
            assert row["encoder_unchanged"] == (row["row"] != "full")
            assert row["miou"] == pytest.approx(np.mean(row["seeds"]), abs=0.01)
