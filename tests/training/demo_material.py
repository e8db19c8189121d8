"""Material of the demo made here, in place of the package archives: no download, no licence."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from internvl.training.demo import evaluate, pictures
from internvl.training.demo.digits import Digits
from internvl.training.demo.fonts import Fonts
from internvl.training.demo.material import Material, Sources


def strokes() -> Digits:
    """Digits whose label is the number of strokes less one."""
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 10
    glyphs = np.zeros((80, 28, 28), np.uint8)
    for index, label in enumerate(labels):
        for stroke in range(label + 1):
            glyphs[index, 3 + 2 * stroke, 6 + int(rng.integers(3)) : 22] = 255
    return Digits(glyphs, labels, np.arange(80) >= 40)


def icons() -> dict[str, tuple[pictures.Picture, ...]]:
    """A picture for every name: a disc or a square in a colour of its own."""
    rng = np.random.default_rng(1)
    found: dict[str, list[pictures.Picture]] = {"emoji": [], "flag": [], "photo": []}
    for label in pictures.NAMES:
        kind, name = label.split(" ", 1)
        rgb = tuple(int(v) for v in rng.integers(0, 256, 3))
        image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        shape = (
            ImageDraw.Draw(image).ellipse if kind == "emoji" else ImageDraw.Draw(image).rectangle
        )
        shape((4, 8, 60, 56), fill=rgb)
        if kind == "photo":
            image = image.convert("RGB")
        found[kind].append(pictures.Picture(kind, name, image))
    return {kind: tuple(all_of) for kind, all_of in found.items()}


def material(words: tuple[str, ...] = ("TO", "CAT", "TREE", "HOUSE", "GARDEN")) -> Material:
    """Everything that a drawing may need; the one font is Pillow's own."""
    face = ImageFont.load_default(20)
    return Material(Sources(strokes(), Fonts(("default",), (face.font_bytes,)), icons()), words)


def held() -> evaluate.Held:
    """What the evaluation's cases are made of."""
    return evaluate.Held(material(), icons())
