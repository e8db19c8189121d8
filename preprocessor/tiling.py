"""Which grid of tiles an image is cut into, and the cut itself (InternVL 2.5 report, section 3.1).

The choice of the grid is arithmetic on four numbers and touches no pixel. The cut is one resize of
the whole image and a reshape: the tiles equal those of cropping one by one, which is what the
official code does.

Nothing here knows of files, colour modes or normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

# H, W  pixels    S  side of a tile    n  tiles of one image (thumbnail included)


@dataclass(frozen=True)
class Grid:
    """Tiles down and tiles across."""

    rows: int
    cols: int

    @property
    def tiles(self) -> int:
        """How many tiles the grid has, the thumbnail not counted."""
        return self.rows * self.cols


@lru_cache(maxsize=256)
def candidate_grids(min_tiles: int, max_tiles: int) -> tuple[Grid, ...]:
    """List every grid of `min_tiles` to `max_tiles` tiles, fewest tiles first (equation 1).

    Two grids of equally many tiles never tie for the closest aspect ratio, so their order is free.

    Raises:
        ValueError: the range is empty or starts below 1.
    """
    if not 1 <= min_tiles <= max_tiles:
        raise ValueError(
            f"min_tiles={min_tiles} and max_tiles={max_tiles} leave no grid; expected 1 <= "
            "min_tiles <= max_tiles."
        )
    grids = [
        Grid(rows, cols)
        for rows in range(1, max_tiles + 1)
        for cols in range(1, max_tiles // rows + 1)
        if rows * cols >= min_tiles
    ]
    return tuple(sorted(grids, key=lambda grid: grid.tiles))


@lru_cache(maxsize=4096)
def select_grid(
    height: int,
    width: int,
    *,
    tile: int,
    min_tiles: int = 1,
    max_tiles: int = 12,
    upscale: bool = True,
) -> Grid:
    """Choose the grid whose aspect ratio is closest to the image's (equation 2).

    On a tie the grid with more tiles is taken if the image has more than half of its target area.
    The report says "at most twice the original"; the comparison here is strict, applies to exact
    ties only, and the largest grid that passes wins: what the official code does, and what every
    checkpoint was trained with.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        tile: side of a tile in pixels.
        min_tiles: fewest tiles.
        max_tiles: most tiles.
        upscale: False drops every grid whose target area (rows * cols * tile * tile) exceeds height
            * width, so that an image is never enlarged as a whole; when that drops all of them,
            those with the fewest tiles stay (1 x 1 when min_tiles is 1).

    Returns:
        The grid.

    Raises:
        ValueError: an image or a tile without pixels, or an empty range of tiles.
    """
    if height < 1 or width < 1 or tile < 1:
        raise ValueError(
            f"an image of {height} x {width} pixels cannot be cut into tiles of {tile} pixels."
        )
    candidates = candidate_grids(min_tiles, max_tiles)
    if not upscale:
        fitting = [grid for grid in candidates if grid.tiles * tile * tile <= height * width]
        fewest = [grid for grid in candidates if grid.tiles == candidates[0].tiles]
        candidates = tuple(fitting or fewest)
    aspect = width / height
    best = candidates[0]
    smallest = float("inf")
    for grid in candidates:
        # float64 as in the official code: equality of two such differences is part of the
        # definition.
        difference = abs(aspect - grid.cols / grid.rows)
        if difference < smallest:
            smallest, best = difference, grid
        elif difference == smallest and width * height > 0.5 * tile * tile * grid.tiles:
            best = grid
    return best


def tile_budget(total_tiles: int, num_images: int) -> int:
    """Share `total_tiles` among the images of a sample: max(1, floor(total / N)), equation 4.

    Thumbnails come on top, as in training.

    Raises:
        ValueError: the total is below 1.
    """
    if total_tiles < 1:
        raise ValueError(
            f"total_tiles={total_tiles}; expected at least 1, or None for no limit over all images."
        )
    return max(1, total_tiles // max(1, num_images))


def count_tiles(grid: Grid, *, thumbnail: bool) -> int:
    """Tiles that `split` returns for `grid`."""
    return grid.tiles + (1 if thumbnail and grid.tiles != 1 else 0)


def split(
    image: Image.Image,
    grid: Grid,
    *,
    tile: int,
    thumbnail: bool,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> np.ndarray:
    """Resize an image to its grid and cut it, left to right, then top to bottom (equation 3).

    Args:
        image: an RGB image.
        grid: what `select_grid` returned.
        tile: side S of a tile in pixels.
        thumbnail: add the whole image, resized to one tile, as the last tile when the grid has
            several.
        resample: the filter; bicubic is the official one.

    Returns:
        uint8 array (n, S, S, 3).

    Raises:
        ValueError: the image is not RGB.
    """
    if image.mode != "RGB":
        raise ValueError(
            f"split() got an image of mode {image.mode}; expected RGB, convert it first."
        )
    rows, cols = grid.rows, grid.cols
    resized = np.asarray(
        image.resize((cols * tile, rows * tile), resample)
    )  # (rows * S, cols * S, 3)
    cells = resized.reshape(rows, tile, cols, tile, 3).swapaxes(1, 2)  # (rows, cols, S, S, 3)
    tiles = np.empty((count_tiles(grid, thumbnail=thumbnail), tile, tile, 3), dtype=np.uint8)
    tiles[: grid.tiles].reshape(cells.shape)[...] = cells
    if len(tiles) > grid.tiles:
        tiles[-1] = np.asarray(image.resize((tile, tile), resample))
    return tiles
