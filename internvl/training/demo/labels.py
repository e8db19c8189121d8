"""Label maps of stage 0: what each 14 px patch of a tile covers.

A drawing lists its marks (an object, a character, a bar), in fractions of the picture. A tile sees
a window of the picture, and its 8 x 8 patches get one class per map from the marks inside.
"""

# P patches per tile (64)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from internvl.training.demo.pictures import NAMES
from internvl.training.demo.scenes import COLOURS, SHAPES, Scene, box

SIDE = 8  # patches per tile side
BINS = 16  # classes of places and extents: 7 px each
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHARACTERS = LETTERS + "0123456789"
TOP = 10  # largest value of a bar
IGNORE = -100
# name: classes (background last where there is one), weight of the background class; 0 = no
# background
MAPS: dict[str, tuple[int, float]] = {
    "shape": (len(SHAPES) + 1, 0.3),
    "colour": (len(COLOURS) + 1, 0.3),
    "centre_shape": (len(SHAPES) + 1, 0.1),
    "centre_colour": (len(COLOURS) + 1, 0.1),
    "centre_digit": (11, 0.1),
    "digit": (11, 0.3),
    "x": (BINS, 0.0),
    "y": (BINS, 0.0),
    "width": (BINS, 0.0),
    "height": (BINS, 0.0),
    "left_character": (len(CHARACTERS) + 1, 0.1),
    "right_character": (len(CHARACTERS) + 1, 0.1),
    "character": (len(CHARACTERS) + 1, 0.2),
    "name": (len(NAMES) + 1, 0.1),
    "bar": (TOP, 0.0),
}
WIDTH = sum(classes for classes, _ in MAPS.values())
_ROWS = {name: row for row, name in enumerate(MAPS)}
_CENTRES = (np.arange(SIDE) + 0.5) / SIDE
Window = tuple[float, float, float, float]  # left, top, width, height as fractions of the picture
WHOLE: Window = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Mark:
    """One thing to be recognised: its centre, extents, the half axes of what it surely covers.

    ``kind`` is shape, digit, character, name or bar; ``classes`` maps the names of label maps to
    classes. All lengths are fractions of the picture.
    """

    kind: str
    x: float
    y: float
    width: float
    height: float
    classes: dict[str, int] = field(default_factory=dict)


_REACH = {"shape": 0.38, "digit": 0.42, "character": 0.5, "name": 0.42, "bar": 0.5}


def scene_marks(scene: Scene) -> list[Mark]:
    """The marks of a scene of shapes or digits."""
    marks = []
    for item in scene.items:
        left, top, right, bottom = box(item, scene)
        if item.digit >= 0:
            kind, classes = "digit", {"digit": item.digit}
        else:
            classes = {"shape": SHAPES.index(item.shape), "colour": COLOURS.index(item.colour)}
            kind = "shape"
        marks.append(Mark(kind, item.x, item.y, right - left, bottom - top, classes))
    return marks


def _bin(value: float) -> int:
    return min(BINS - 1, max(0, int(value * BINS)))


def label_maps(marks: Sequence[Mark], window: Window = WHOLE) -> np.ndarray:
    """(maps, P) int64 targets of the tile that shows ``window`` of the picture, rows of ``MAPS``.

    Marks whose centre is outside the window are left out: half a letter has no name.
    """
    maps = np.empty((len(MAPS), SIDE, SIDE), np.int64)
    for row, (classes, background) in enumerate(MAPS.values()):
        maps[row] = classes - 1 if background else IGNORE
    left, top, width, height = window
    for mark in marks:
        x, y = (mark.x - left) / width, (mark.y - top) / height
        if 0 <= x < 1 and 0 <= y < 1:
            _paint(maps, mark, x, y, mark.width / width, mark.height / height)
    return maps.reshape(len(MAPS), -1)


def _paint(maps: np.ndarray, mark: Mark, x: float, y: float, width: float, height: float) -> None:
    row, column = int(y * SIDE), int(x * SIDE)
    reach = _REACH[mark.kind]
    dx = np.abs(_CENTRES[None, :] - x) / max(reach * width, 1e-6)
    dy = np.abs(_CENTRES[:, None] - y) / max(reach * height, 1e-6)
    square = mark.kind in ("bar", "character")
    covered = np.maximum(dx, dy) <= 1 if square else np.hypot(dx, dy) <= 1
    covered[row, column] = True
    for name, value in mark.classes.items():
        maps[_ROWS[name]][covered] = value
    if mark.kind == "character":
        half = "left_character" if (x * SIDE) % 1 < 0.5 else "right_character"
        maps[_ROWS[half], row, column] = mark.classes["character"]
        return
    if mark.kind in ("shape", "digit"):
        for name, value in mark.classes.items():
            maps[_ROWS[f"centre_{name}"], row, column] = value
    maps[_ROWS["x"]][covered], maps[_ROWS["y"]][covered] = _bin(x), _bin(y)
    maps[_ROWS["width"]][covered], maps[_ROWS["height"]][covered] = _bin(width), _bin(height)
