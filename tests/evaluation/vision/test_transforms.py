"""Crops and resizes: torchvision's geometry, PIL's pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from internvl import hub
from internvl.evaluation.vision.transforms import (
    Box,
    normalise,
    plain_view,
    random_box,
    shorter_side_to,
    train_view,
)

BICUBIC = Image.Resampling.BICUBIC


def picture(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@settings(max_examples=15)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 99))
def test_random_boxes_lie_in_the_picture(height, width, seed):
    box = random_box(height, width, np.random.default_rng(seed))
    assert 0 <= box.top <= box.top + box.height <= height
    assert 0 <= box.left <= box.left + box.width <= width
    assert box.height > 0
    assert box.width > 0


def test_random_boxes_have_the_documented_distribution():
    rng = np.random.default_rng(0)
    boxes = [random_box(1000, 1000, rng) for _ in range(2000)]
    areas = np.array([box.height * box.width / 1e6 for box in boxes])
    aspects = np.log([box.width / box.height for box in boxes])
    longest = np.log(4 / 3)
    grid = np.linspace(0.08, 1, 2001)
    fits = np.minimum(1, -np.log(grid) / longest)  # share of the aspects with which an area fits
    assert areas.min() > 0.079
    assert areas.max() > 0.9
    assert areas.mean() == pytest.approx(np.average(grid, weights=fits), abs=0.01)
    aspects = aspects[areas < 0.75]  # where all aspects fit they are uniform
    assert np.abs(aspects).max() < longest + 0.01
    assert aspects.mean() == pytest.approx(0.0, abs=0.02)
    assert aspects.std() == pytest.approx(longest / np.sqrt(3), rel=0.05)
    free = np.array([(box.top, 1000 - box.height - box.top) for box in boxes])
    assert free.mean(axis=0) == pytest.approx([free.mean()] * 2, rel=0.05)


def test_pictures_too_long_for_any_aspect_are_cut_in_the_middle():
    rng = np.random.default_rng(0)
    assert random_box(10, 1000, rng) == Box(0, 493, 10, 13)
    assert random_box(1000, 10, rng) == Box(493, 0, 13, 10)


def test_training_view_is_a_crop_resized_and_flipped_half_the_time():
    image, flipped = picture(90, 120), 0
    for seed in range(40):
        box = random_box(90, 120, np.random.default_rng(seed))
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        expected = np.asarray(image.crop(corners).resize((28, 28), BICUBIC))
        found = train_view(image, 28, np.random.default_rng(seed))
        mirrored = np.array_equal(found, expected[:, ::-1])
        assert mirrored or np.array_equal(found, expected)
        flipped += mirrored
    assert 12 <= flipped <= 28


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (375, 500, (448, 597)),  # 597.33, truncated
        (500, 375, (597, 448)),
        (377, 300, (562, 448)),  # 562.99, truncated
        (300, 377, (448, 562)),
        (448, 448, (448, 448)),
        (8, 8, (448, 448)),
        (3, 1, (1344, 448)),
    ],
)
def test_shorter_side(height, width, expected):
    assert shorter_side_to(height, width, 448) == expected


@pytest.mark.parametrize(
    ("height", "width", "left", "top"), [(30, 41, 5, 0), (45, 30, 0, 7), (28, 28, 0, 0)]
)
def test_plain_view_is_the_middle_of_the_resized_picture(height, width, left, top):
    # 41 -> 38 wide at height 28: (38 - 28) / 2 = 5; 45 -> 42 high: 7
    image = picture(height, width)
    rows, cols = shorter_side_to(height, width, 28)
    resized = image.resize((cols, rows), BICUBIC)
    expected = np.asarray(resized)[top : top + 28, left : left + 28]
    assert np.array_equal(plain_view(image, 28), expected)


def test_odd_margins_round_half_to_even():
    # torchvision: int(round((h - th) / 2.0)); 75 / 2 = 37.5 -> 38, 73 / 2 = 36.5 -> 36
    for width, left in ((175, 38), (173, 36)):
        image = picture(100, width)
        expected = np.asarray(image.crop((left, 0, left + 100, 100)))
        assert np.array_equal(plain_view(image, 100), expected)


def test_normalisation_is_that_of_the_image_processor():
    views = torch.from_numpy(np.asarray(picture(28, 28)).copy())[None]
    module = hub.ring0("preprocessor.image_processing_internvl_chat")
    expected = module.normalize_tiles(views.numpy(), module.IMAGENET_MEAN, module.IMAGENET_STD)
    found = normalise(views, module.IMAGENET_MEAN, module.IMAGENET_STD)
    assert torch.equal(found, torch.from_numpy(expected))
