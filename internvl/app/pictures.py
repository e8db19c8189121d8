"""Pictures for visitors: the tiles as the model gets them, boxes, attention on an image."""

from __future__ import annotations

import base64
import io
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

from internvl.chat.attention_map import Cells, Part
from internvl.chat.media import Media
from internvl.grounding import Box, draw_boxes

_SHEET = 960  # longest side of a picture in pixels
_GAP = 4
# From transparent black over purple and orange to pale yellow: dark to light for every kind of
# colour vision, as in matplotlib's "inferno".
_ANCHORS = (
    (0.0, (4, 2, 20)),
    (0.25, (87, 16, 110)),
    (0.5, (188, 55, 84)),
    (0.75, (249, 142, 9)),
    (1.0, (252, 255, 164)),
)


@dataclass(frozen=True)
class Sheet:
    """Tiles in one picture, with gaps that show where the image was cut.

    Attributes:
        picture: RGBA; the gaps are transparent.
        rows: tiles down.
        cols: tiles across.
    """

    picture: Image.Image
    rows: int
    cols: int


def tile_sheet(tiles: torch.Tensor, cols: int, longest: int = _SHEET) -> Sheet:
    """Lay tiles out in rows, exactly the pixels that the model gets, made smaller to fit.

    Args:
        tiles: (n, 3, S, S) uint8, in reading order.
        cols: tiles in a row.
        longest: most pixels of the longer side.
    """
    n, side = len(tiles), tiles.shape[-1]
    cols = min(cols, n)
    rows = -(-n // cols)
    shown = min(side, max(48, longest // max(rows, cols)))
    step = shown + _GAP
    sheet = Image.new("RGBA", (cols * step - _GAP, rows * step - _GAP), (0, 0, 0, 0))
    for index, tile in enumerate(tiles):
        picture = Image.fromarray(tile.permute(1, 2, 0).contiguous().numpy())
        if shown != side:
            picture = picture.resize((shown, shown), Image.Resampling.LANCZOS)
        sheet.paste(picture, (index % cols * step, index // cols * step))
    return Sheet(sheet, rows, cols)


def media_sheets(media: Media) -> tuple[Sheet, Sheet | None]:
    """The tiles of an image and its thumbnail, or the frames of a video and None."""
    tiling = media.tiling
    if tiling is None:
        return tile_sheet(media.pixel_values, cols=4), None
    sheet = tile_sheet(media.pixel_values[: tiling.rows * tiling.cols], tiling.cols)
    if not tiling.thumbnail:
        return sheet, None
    return sheet, tile_sheet(media.pixel_values[-1:], 1, longest=_SHEET // 2)


def colours(values: torch.Tensor) -> torch.Tensor:
    """Colours of a heat map.

    Args:
        values: any shape, 0 to 1.

    Returns:
        The shape and 3 more, uint8 RGB.
    """
    places = torch.tensor([place for place, _ in _ANCHORS])
    anchors = torch.tensor([colour for _, colour in _ANCHORS], dtype=torch.float32)
    values = values.clamp(0, 1).contiguous()
    right = torch.bucketize(values, places[1:-1], right=True) + 1
    left = right - 1
    share = ((values - places[left]) / (places[right] - places[left]))[..., None]
    return (anchors[left] * (1 - share) + anchors[right] * share).round().to(torch.uint8)


def heat(picture: Image.Image, cells: Cells, part: Part, peak: float) -> Image.Image:
    """Lay attention over a picture: grey where there is none, coloured where there is.

    The values are those of the cells; between the middles of cells they are interpolated, for the
    eye alone.

    Args:
        picture: the image before tiling, or a frame.
        cells: attention on it.
        part: which of it, see `Cells.of`.
        peak: the value that gets the strongest colour.

    Returns:
        RGB, the longer side at most 960 px.
    """
    scale = min(1.0, _SHEET / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    grey = picture.resize(size, Image.Resampling.LANCZOS).convert("L")
    base = grey.point([round(8 + 0.52 * level) for level in range(256)]).convert("RGB")
    values = cells.of(part)[None, None]
    tokens = avg_pool2d(values, cells.patches_per_token)[0, 0]  # equal within a token
    strength = (tokens / peak if peak > 0 else tokens).clamp(0, 1)
    field = Image.fromarray(strength.numpy()).resize(size, Image.Resampling.BILINEAR)
    smooth = torch.frombuffer(bytearray(field.tobytes()), dtype=torch.float32)
    smooth = smooth.reshape(size[1], size[0]).clamp(0, 1)
    overlay = Image.fromarray(colours(smooth).numpy())
    alpha = Image.fromarray((smooth.pow(0.8) * 220).to(torch.uint8).numpy())
    return Image.composite(overlay, base, alpha)


def data_url(picture: Image.Image) -> str:
    """A picture as text, so that no file of it is kept."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=88, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def save_boxes(folder: Path, media: Media, boxes: Sequence[Box]) -> Path:
    """Draw boxes on an image and save it, under a name that nobody can guess.

    Args:
        folder: where to make it.
        media: the image.
        boxes: in its pixels.

    Returns:
        The file.

    Raises:
        ValueError: a video.
    """
    if media.tiling is None:
        raise ValueError(f"{media.label} is a video; boxes belong to an image.")
    image = media.tiling.image
    short = min(image.size)  # bolder than by default: a chat shows pictures small
    line, text = max(3, round(short / 110)), max(14, round(short / 22))
    picture = draw_boxes(image, boxes, line_width=line, text_size=text)
    if max(picture.size) > 2 * _SHEET:
        picture.thumbnail((2 * _SHEET, 2 * _SHEET), Image.Resampling.LANCZOS)
    return save(folder, picture, "boxes")


def save(folder: Path, picture: Image.Image, name: str) -> Path:
    """Save a picture in a folder of its own, under a name that nobody can guess."""
    file = folder / secrets.token_hex(16) / f"{name}.webp"
    file.parent.mkdir(parents=True)
    picture.save(file, "WEBP", quality=90)
    return file
