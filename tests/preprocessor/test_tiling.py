"""The grid of tiles against the official code, and the cut against cropping."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.preprocessor import helpers
from tests.preprocessor.helpers import tiling

GRIDS = json.loads((helpers.GOLDEN / "grids.json").read_text())
pixels = st.integers(1, 6000)


def official(cols_rows: list[int]) -> tiling.Grid:
    return tiling.Grid(rows=cols_rows[1], cols=cols_rows[0])


@pytest.mark.parametrize("limit", GRIDS["grids"])
def test_grids_equal_the_official_ones(limit):
    for (width, height), expected in zip(GRIDS["sizes"], GRIDS["grids"][limit], strict=True):
        grid = tiling.select_grid(height, width, tile=448, max_tiles=int(limit))
        assert grid == official(expected), (width, height)


@pytest.mark.parametrize("limits", GRIDS["grids_min_max"])
def test_grids_with_a_minimum_equal_the_official_ones(limits):
    low, high = map(int, limits.split("-"))
    for (width, height), expected in zip(
        GRIDS["sizes"], GRIDS["grids_min_max"][limits], strict=True
    ):
        grid = tiling.select_grid(height, width, tile=448, min_tiles=low, max_tiles=high)
        assert grid == official(expected), (width, height)


def test_ties_are_broken_as_the_official_code_does():
    for limit, width, height, expected in GRIDS["ties"]:
        grid = tiling.select_grid(height, width, tile=448, max_tiles=limit)
        assert grid == official(expected), (limit, width, height)


def test_rows_come_before_columns():
    assert tiling.select_grid(500, 3000, tile=448, max_tiles=6) == tiling.Grid(rows=1, cols=6)
    assert tiling.select_grid(5000, 100, tile=448, max_tiles=12) == tiling.Grid(rows=12, cols=1)


@pytest.mark.parametrize(
    ("limit", "count"), [(6, 14), (12, 35), (18, 58), (24, 84), (36, 140), (48, 198)]
)
def test_number_of_candidates(limit, count):
    grids = tiling.candidate_grids(1, limit)
    assert len(grids) == len(set(grids)) == count
    assert max(grid.tiles for grid in grids) == limit


@given(
    height=pixels,
    width=pixels,
    low=st.integers(1, 6),
    more=st.integers(0, 10),
    upscale=st.booleans(),
)
def test_every_grid_is_within_its_limits(height, width, low, more, upscale):
    grid = tiling.select_grid(
        height, width, tile=56, min_tiles=low, max_tiles=low + more, upscale=upscale
    )
    assert low <= grid.tiles <= low + more


@given(height=pixels, width=pixels)
def test_without_upscaling_the_target_never_has_more_pixels(height, width):
    grid = tiling.select_grid(height, width, tile=112, max_tiles=12, upscale=False)
    assert grid.tiles == 1 or grid.tiles * 112 * 112 <= height * width
    # An image that has the pixels for every grid gets the same one either way.
    if height * width >= 12 * 112 * 112:
        assert grid == tiling.select_grid(height, width, tile=112, max_tiles=12)


def test_without_upscaling_a_small_image_is_one_tile():
    assert tiling.select_grid(384, 512, tile=448, max_tiles=12).tiles == 12
    assert tiling.select_grid(384, 512, tile=448, max_tiles=12, upscale=False).tiles == 1
    assert tiling.select_grid(10, 10, tile=448, min_tiles=3, max_tiles=9, upscale=False).tiles == 3


@given(height=pixels, width=pixels, limit=st.integers(1, 12))
def test_turning_an_image_turns_its_grid_or_keeps_the_distance(height, width, limit):
    grid = tiling.select_grid(height, width, tile=64, max_tiles=limit)
    other = tiling.candidate_grids(1, limit)
    distance = abs(width / height - grid.cols / grid.rows)
    assert all(distance <= abs(width / height - each.cols / each.rows) for each in other)


@settings(max_examples=40)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    limit=st.integers(1, 9),
    thumb=st.booleans(),
)
def test_one_resize_and_a_reshape_equal_cropping(height, width, limit, thumb):
    image = helpers.picture(width, height)
    grid = tiling.select_grid(height, width, tile=20, max_tiles=limit)
    tiles = tiling.split(image, grid, tile=20, thumbnail=thumb)
    big = image.resize((20 * grid.cols, 20 * grid.rows))
    crops = [
        np.asarray(big.crop((20 * col, 20 * row, 20 * col + 20, 20 * row + 20)))
        for row in range(grid.rows)
        for col in range(grid.cols)
    ]
    if thumb and len(crops) > 1:
        crops.append(np.asarray(image.resize((20, 20))))
    assert tiles.dtype == np.uint8
    assert np.array_equal(tiles, np.stack(crops))
    assert len(tiles) == tiling.count_tiles(grid, thumbnail=thumb)


@pytest.mark.parametrize(
    ("total", "images", "share"), [(12, 1, 12), (12, 5, 2), (12, 12, 1), (12, 50, 1), (24, 7, 3)]
)
def test_equation_four(total, images, share):
    assert tiling.tile_budget(total, images) == share


@pytest.mark.parametrize(
    "options",
    [
        {"height": 0, "width": 5, "tile": 448},
        {"height": 5, "width": 5, "tile": 0},
        {"height": 5, "width": 5, "tile": 448, "min_tiles": 3, "max_tiles": 2},
        {"height": 5, "width": 5, "tile": 448, "min_tiles": 0},
    ],
)
def test_impossible_requests_are_refused(options):
    with pytest.raises(ValueError, match=r"cannot be cut|leave no grid"):
        tiling.select_grid(options.pop("height"), options.pop("width"), **options)


def test_split_wants_rgb():
    with pytest.raises(ValueError, match="mode L"):
        tiling.split(helpers.picture().convert("L"), tiling.Grid(1, 1), tile=28, thumbnail=False)
    with pytest.raises(ValueError, match="total_tiles=0"):
        tiling.tile_budget(0, 3)
