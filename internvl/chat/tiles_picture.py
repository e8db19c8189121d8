"""A picture of how images are cut: grid lines, tile numbers in reading order, the thumbnail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_LINE, _PAPER, _INK = (255, 64, 64), (255, 255, 255), (32, 32, 32)
_MARGIN = 16
# Pixels of the picture: side of a tile at least, side of a grid at most.
_SMALLEST, _LARGEST = 160, 1280


@dataclass(frozen=True)
class Tiling:
    """How one image is cut.

    Attributes:
        label: its name in the prompt or in the file system.
        image: the image, RGB.
        rows: tiles down.
        cols: tiles across.
        side: side of a tile in pixels, as the model sees it.
        thumbnail: whether the whole image follows as one more tile.
    """

    label: str
    image: Image.Image
    rows: int
    cols: int
    side: int
    thumbnail: bool

    @property
    def tiles(self) -> int:
        """Tiles that the model gets, thumbnail included."""
        return self.rows * self.cols + self.thumbnail

    def caption(self) -> str:
        """One line about it; the size of the image is width x height."""
        size = f"{self.image.width} x {self.image.height} px"
        count = plural(self.tiles, "tile")
        return f"{self.label}: {size} -> {self.grid()} = {count} of {self.side} px"

    def grid(self) -> str:
        """Rows, columns and whether there is a thumbnail."""
        grid = f"{plural(self.rows, 'row')} x {plural(self.cols, 'column')}"
        return grid + (" + thumbnail" if self.thumbnail else "")


def plural(count: int, noun: str) -> str:
    """Write a number with its noun."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def draw_tilings(tilings: Sequence[Tiling]) -> Image.Image:
    """Draw images one below the other, each as the model sees it: stretched to its grid.

    Raises:
        ValueError: there are no images.
    """
    if not tilings:
        raise ValueError("there are no images to draw; give at least one.")
    panels = [_panel(tiling) for tiling in tilings]
    width = max(panel.width for panel in panels)
    sheet = Image.new("RGB", (width, sum(panel.height for panel in panels)), _PAPER)
    top = 0
    for panel in panels:
        sheet.paste(panel, (0, top))
        top += panel.height
    return sheet


def _panel(tiling: Tiling) -> Image.Image:
    longest = max(tiling.rows, tiling.cols)
    side = max(min(tiling.side, _LARGEST // longest), _SMALLEST)
    font = ImageFont.load_default(16)
    caption = tiling.caption()
    grid = tiling.image.resize((tiling.cols * side, tiling.rows * side), Image.Resampling.BICUBIC)
    _number(grid, tiling.rows, tiling.cols, side)
    parts = [grid]
    if tiling.thumbnail:
        small = tiling.image.resize((side, side), Image.Resampling.BICUBIC)
        _number(small, 1, 1, side, first=tiling.tiles, note="thumbnail")
        parts.append(small)
    head = 16 + 2 * _MARGIN
    width = sum(part.width + _MARGIN for part in parts) + _MARGIN
    width = max(width, int(font.getlength(caption)) + 2 * _MARGIN)
    panel = Image.new("RGB", (width, head + grid.height + _MARGIN), _PAPER)
    ImageDraw.Draw(panel).text((_MARGIN, _MARGIN), caption, fill=_INK, font=font)
    left = _MARGIN
    for part in parts:
        panel.paste(part, (left, head))
        left += part.width + _MARGIN
    return panel


def _number(
    picture: Image.Image, rows: int, cols: int, side: int, first: int = 1, note: str = ""
) -> None:
    """Frame the cells of a grid and number them in reading order, in place."""
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(min(28, side // 10))
    for index in range(rows * cols):
        top, left = index // cols * side, index % cols * side
        draw.rectangle((left, top, left + side - 1, top + side - 1), outline=_LINE, width=2)
        text = f"{first + index} {note}".strip()
        box = draw.textbbox((left + 6, top + 6), text, font=font)
        draw.rectangle((box[0] - 4, box[1] - 4, box[2] + 4, box[3] + 4), fill=_LINE)
        draw.text((left + 6, top + 6), text, fill=_PAPER, font=font)
