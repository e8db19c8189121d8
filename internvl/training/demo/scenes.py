"""Drawn scenes of the demo task: coloured shapes and handwritten digits on one small picture.

Everything is a pure function of an explicit numpy Generator. Positions and sizes are fractions of
the picture, so one scene can be drawn at any resolution; a drawing becomes a training tile the same
way a user's file does at inference (RGB, one PIL bicubic resize to the tile).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
TILE = 112  # pixels, side of the demo's tile

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
COLOURS = (
    "red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "gray", "black",
)  # fmt: skip
ANCHORS: dict[str, tuple[RGB, ...]] = {
    "red": ((255, 0, 0), (225, 20, 25), (235, 50, 45), (214, 30, 45)),
    "green": ((0, 128, 0), (0, 230, 0), (34, 160, 60), (60, 180, 75)),
    "blue": ((0, 0, 255), (30, 80, 220), (40, 110, 235), (65, 105, 225)),
    "yellow": ((255, 255, 0), (250, 225, 30), (255, 220, 0)),
    "orange": ((255, 165, 0), (255, 140, 0), (245, 130, 32)),
    "purple": ((128, 0, 128), (145, 30, 180), (110, 50, 170)),
    "pink": ((255, 192, 203), (255, 105, 180), (250, 150, 190)),
    "brown": ((150, 50, 40), (139, 69, 19), (120, 75, 40)),
    "gray": ((128, 128, 128), (150, 150, 150), (110, 110, 110)),
    "black": ((0, 0, 0), (25, 25, 25)),
}
_MIN_CONTRAST = 70.0  # Euclidean RGB distance between an object and the background
# by number of objects
_MAX_SIZE = {1: 0.62, 2: 0.5, 3: 0.42, 4: 0.36, 5: 0.32, 6: 0.30, 7: 0.27, 8: 0.25, 9: 0.23}
_MIN_SIZE = 0.18  # 0.15 from seven objects on


@dataclass(frozen=True)
class Item:
    """One thing in a scene: a shape (``shape``, ``colour``) or a handwritten digit (``digit`` >=
    0).

    ``x``, ``y`` (centre) and ``size`` (diameter) are fractions of the picture; ``angle`` is in
    degrees.
    """

    x: float
    y: float
    size: float
    rgb: RGB
    angle: float = 0.0
    shape: str = ""
    colour: str = ""
    digit: int = -1
    outline: bool = False

    @property
    def name(self) -> str:
        """What a person would call it, e.g. ``red circle``."""
        return f"{self.colour} {self.shape}" if self.shape else str(self.digit)


@dataclass(frozen=True)
class Scene:
    """Items on a plain background, with the pixel size it is to be drawn at."""

    items: tuple[Item, ...]
    background: RGB
    width: int
    height: int
    noise: float = 0.0


def pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    """One element of a sequence, uniformly."""
    return options[int(rng.integers(len(options)))]


def _jitter(rng: np.random.Generator, rgb: RGB, spread: float) -> RGB:
    return as_rgb(np.clip(np.asarray(rgb) + rng.normal(0, spread, 3), 0, 255))


def as_rgb(values: Any) -> RGB:
    """Three numbers as a colour."""
    red, green, blue = (int(v) for v in values)
    return red, green, blue


def sample_background(rng: np.random.Generator) -> RGB:
    """White half of the time, otherwise light, mid or dark."""
    kind = rng.random()
    if kind < 0.5:
        return (255, 255, 255)
    if kind < 0.65:
        return (int(rng.integers(228, 255)),) * 3
    if kind < 0.85:
        return as_rgb(rng.integers(215, 256, 3))
    if kind < 0.90:
        return _jitter(rng, (0, 0, 0), 3)
    return as_rgb(rng.integers(10, 60, 3))


def sample_canvas(rng: np.random.Generator) -> tuple[int, int]:
    """(width, height) in pixels: 112-640, most of them near square."""
    kind = rng.random()
    if kind < 0.15:
        side = TILE
    elif kind < 0.80:
        side = int(rng.integers(113, 257))
    elif kind < 0.95:
        side = int(rng.integers(257, 449))
    else:
        side = int(rng.integers(449, 641))
    aspect = 1.0
    if rng.random() < 0.45:
        aspect = math.exp(rng.uniform(-0.22, 0.22))
    return max(64, round(side * math.sqrt(aspect))), max(64, round(side / math.sqrt(aspect)))


def sample_rgb(rng: np.random.Generator, colour: str, background: RGB) -> RGB | None:
    """A shade of ``colour`` that stands out from the background, or None."""
    for _ in range(4):
        rgb = _jitter(rng, pick(rng, ANCHORS[colour]), 6.0)
        if math.dist(rgb, background) >= _MIN_CONTRAST:
            return rgb
    return None


def sample_places(
    rng: np.random.Generator, sizes: list[float], *, gap: float = 0.04
) -> list[tuple[float, float]] | None:
    """Non-overlapping centres for discs of the given diameters, or None when none was found."""
    places: list[tuple[float, float]] = []
    least = 0.22 if len(sizes) <= 6 else 0.19
    for index, size in enumerate(sizes):
        low, high = size * 0.52 + 0.01, 1 - size * 0.52 - 0.01
        for _ in range(40):
            x, y = rng.uniform(low, high), rng.uniform(low, high)
            if all(
                math.hypot(x - px, y - py) >= max((size + sizes[j]) * 0.53 + gap, least)
                for j, (px, py) in enumerate(places[:index])
            ):
                places.append((x, y))
                break
        else:
            return None
    return places


def sample_attributes(
    rng: np.random.Generator, count: int, reuse: float, background: RGB
) -> list[tuple[str, str, RGB]]:
    """(shape, colour, rgb) for ``count`` objects; with probability ``reuse`` one attribute is
    repeated."""
    out: list[tuple[str, str, RGB]] = []
    while len(out) < count:
        shape, colour = pick(rng, SHAPES), pick(rng, COLOURS)
        if out and rng.random() < reuse:
            other = pick(rng, out)
            if rng.random() < 0.5:
                shape = other[0]
            else:
                colour = other[1]
        rgb = sample_rgb(rng, colour, background)
        if rgb is not None:
            out.append((shape, colour, rgb))
    return out


def shape_scene(
    rng: np.random.Generator, count: int | None = None, *, central: float = 0.12
) -> Scene:
    """A scene of 1-9 shapes (1-6 when ``count`` is None); a lone shape stands in the middle with
    probability ``central``."""
    count = int(rng.integers(1, 7)) if count is None else count
    background = sample_background(rng)
    width, height = sample_canvas(rng)
    attributes = sample_attributes(rng, count, float(pick(rng, (0.0, 0.3, 0.7))), background)
    while True:
        least = _MIN_SIZE if count <= 6 else 0.15
        sizes = [float(rng.uniform(least, _MAX_SIZE[count])) for _ in range(count)]
        places = sample_places(rng, sizes, gap=0.04 if count <= 6 else 0.015)
        if places is not None:
            break
    if count == 1 and rng.random() < central:
        x, y = (float(v) for v in rng.uniform(0.46, 0.54, 2))
        places = [(x, y)]
    outline = bool(rng.random() < 0.15)
    items = tuple(
        Item(x, y, size, rgb, _angle(rng, shape), shape, colour, outline=outline)
        for (x, y), size, (shape, colour, rgb) in zip(places, sizes, attributes, strict=True)
    )
    return Scene(items, background, width, height, _noise(rng))


def _angle(rng: np.random.Generator, shape: str) -> float:
    if shape == "triangle" and rng.random() < 0.1:
        return 180.0
    return float(rng.uniform(-10, 10)) if rng.random() < 0.7 else 0.0


def _noise(rng: np.random.Generator) -> float:
    return float(rng.uniform(2, 8)) if rng.random() < 0.15 else 0.0


def digit_scene(rng: np.random.Generator, labels: list[int]) -> Scene:
    """A scene of handwritten digits with the given labels, dark on light or light on dark."""
    count = len(labels)
    width, height = sample_canvas(rng)
    dark = rng.random() < 0.4
    if dark:
        background = (0, 0, 0) if rng.random() < 0.6 else _jitter(rng, (30, 30, 35), 12)
    else:
        background = (255, 255, 255) if rng.random() < 0.6 else _jitter(rng, (238, 238, 235), 10)
    while True:
        top = {1: 0.95, 2: 0.52}.get(count, 0.46)
        sizes = [float(rng.uniform(0.36, top)) for _ in labels]
        places = sample_places(rng, [size * 0.85 for size in sizes])
        if places is not None:
            break
    level = 255 if dark else 0
    tint = rng.random() < 0.15
    ink = _jitter(rng, (level,) * 3, 40 if tint else 10)
    items = tuple(
        Item(x, y, size, ink, float(rng.uniform(-12, 12)), digit=label)
        for (x, y), size, label in zip(places, sizes, labels, strict=True)
    )
    return Scene(items, background, width, height, _noise(rng))


def digit_row(rng: np.random.Generator, labels: list[int]) -> Scene:
    """Handwritten digits side by side, as a written number."""
    scene = digit_scene(rng, labels)
    count = len(labels)
    size = float(rng.uniform(0.75, 1.0)) / max(count, 1.25)
    xs = 0.5 + (np.arange(count) - (count - 1) / 2) * size * rng.uniform(0.8, 0.95)
    y = float(rng.uniform(0.5 * size, 1 - 0.5 * size))
    wide = max(scene.width, scene.height)
    items = tuple(
        replace(item, x=float(x), y=y + float(rng.uniform(-0.03, 0.03)), size=size)
        for item, x in zip(scene.items, xs, strict=True)
    )
    return replace(scene, items=items, width=wide, height=wide)


def shifted(scene: Scene, x: float, y: float) -> Scene:
    """The same one-item scene with its item at (x, y): one frame of a clip."""
    return replace(scene, items=(replace(scene.items[0], x=x, y=y),))


_UNIT = {
    "square": [(-0.43, -0.43), (0.43, -0.43), (0.43, 0.43), (-0.43, 0.43)],
    "triangle": [(0.0, -0.5), (0.47, 0.38), (-0.47, 0.38)],
    "diamond": [(0.0, -0.5), (0.34, 0.0), (0.0, 0.5), (-0.34, 0.0)],
    "cross": [
        (-0.16, -0.48), (0.16, -0.48), (0.16, -0.16), (0.48, -0.16), (0.48, 0.16), (0.16, 0.16),
        (0.16, 0.48), (-0.16, 0.48), (-0.16, 0.16), (-0.48, 0.16), (-0.48, -0.16), (-0.16, -0.16),
    ],
    "star": [
        (math.sin(k * math.pi / 5) * r, -math.cos(k * math.pi / 5) * r)
        for k in range(10)
        for r in (0.52 if k % 2 == 0 else 0.22,)
    ],
}  # fmt: skip


def _outline(item: Item) -> list[tuple[float, float]]:
    """Corners of a turned shape round the origin, in units of its size."""
    cos, sin = math.cos(math.radians(item.angle)), math.sin(math.radians(item.angle))
    return [(px * cos - py * sin, px * sin + py * cos) for px, py in _UNIT[item.shape]]


def box(item: Item, scene: Scene) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of an item as fractions of the picture."""
    size = item.size * min(scene.width, scene.height)
    if item.shape in _UNIT:
        xs, ys = zip(*_outline(item), strict=True)
    else:
        reach = 0.48 if item.shape else 0.36  # a handwritten digit has a margin in its frame
        xs = ys = (-reach, reach)
    fx, fy = size / scene.width, size / scene.height
    return (
        item.x + min(xs) * fx,
        item.y + min(ys) * fy,
        item.x + max(xs) * fx,
        item.y + max(ys) * fy,
    )


def _draw_shape(draw: ImageDraw.ImageDraw, item: Item, width: int, height: int) -> None:
    cx, cy = item.x * width, item.y * height
    size = item.size * min(width, height)
    line = (40, 40, 40) if sum(item.rgb) > 200 else (150, 150, 150)
    pen: dict[str, Any] = {"fill": item.rgb}
    if item.outline:
        pen |= {"outline": line, "width": max(1, round(size * 0.03))}
    if item.shape == "circle":
        r = size * 0.48
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), **pen)
        return
    points = [(cx + size * px, cy + size * py) for px, py in _outline(item)]
    draw.polygon(points, **pen)


def _paste_digit(image: Image.Image, item: Item, glyph: np.ndarray) -> None:
    size = max(8, round(item.size * min(image.size)))
    mask = Image.fromarray(glyph).resize((size, size), Image.Resampling.BICUBIC)
    mask = mask.rotate(item.angle, Image.Resampling.BILINEAR)
    corner = (round(item.x * image.width - size / 2), round(item.y * image.height - size / 2))
    image.paste(item.rgb, corner, mask)


def draw_scene(
    scene: Scene, rng: np.random.Generator, glyphs: list[np.ndarray] | None = None
) -> Image.Image:
    """The scene as an RGB image of ``scene.width`` x ``scene.height`` pixels.

    Args:
        scene: What to draw.
        rng: Source of the pixel noise.
        glyphs: One uint8 array (ink = 255) per digit item, in the order of the items.
    """
    image = Image.new("RGB", (scene.width, scene.height), scene.background)
    draw = ImageDraw.Draw(image)
    for index, item in enumerate(scene.items):
        if item.digit >= 0 and glyphs is not None:
            _paste_digit(image, item, glyphs[index])
        else:
            _draw_shape(draw, item, scene.width, scene.height)
    if scene.noise:
        noise = rng.normal(0, scene.noise, (scene.height, scene.width, 1))
        pixels = np.asarray(image, np.float32) + noise
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The image after one JPEG round trip."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def to_tile(image: Image.Image, rng: np.random.Generator | None = None) -> np.ndarray:
    """(TILE, TILE, 3) uint8 by one PIL bicubic resize; with ``rng``, 20 % pass through JPEG
    first."""
    if rng is not None and rng.random() < 0.2:
        image = jpeg(image, int(rng.integers(60, 96)))
    if image.size != (TILE, TILE):
        image = image.resize((TILE, TILE), Image.Resampling.BICUBIC)
    return np.asarray(image)
