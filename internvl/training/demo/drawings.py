"""Drawings with marks: printed words, named pictures, bar charts, shapes and handwriting.

Like ``scenes``: everything is a pure function of an explicit numpy Generator, and a drawing is what
a user's file would hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from PIL.ImageFont import FreeTypeFont

from internvl.training.demo import pictures, scenes
from internvl.training.demo.digits import Digits
from internvl.training.demo.fonts import SIZES, Fonts
from internvl.training.demo.labels import CHARACTERS, TOP, Mark, scene_marks
from internvl.training.demo.pictures import Picture
from internvl.training.demo.scenes import ANCHORS, COLOURS, RGB, Scene, as_rgb, pick

# character, centre x, centre y, width, height in pixels
_Glyph = tuple[str, float, float, float, float]


@dataclass(frozen=True)
class Drawing:
    """A picture and what is in it."""

    image: Image.Image
    marks: tuple[Mark, ...]


def of_scene(
    scene: Scene, rng: np.random.Generator, glyphs: list[np.ndarray] | None = None
) -> Drawing:
    """A scene of shapes or digits, drawn."""
    return Drawing(scenes.draw_scene(scene, rng, glyphs), tuple(scene_marks(scene)))


def handwriting(
    rng: np.random.Generator, source: Digits, count: int, *, uci: float = 0.12, row: bool = False
) -> tuple[Drawing, Scene]:
    """``count`` handwritten digits; 30 % of the lone ones are the bare 28x28 frame, as files often
    are.

    Args:
        rng: Source of randomness.
        source: Where the handwriting comes from.
        count: Digits in the picture.
        uci: Share of UCI digits.
        row: Side by side instead of anywhere.
    """
    pairs = [source.sample(rng, uci=uci) for _ in range(count)]
    glyphs, labels = [glyph for glyph, _ in pairs], [label for _, label in pairs]
    if count == 1 and rng.random() < 0.3:
        scene, image = _bare_digit(rng, glyphs[0], labels[0])
        return Drawing(image, tuple(scene_marks(scene))), scene
    scene = scenes.digit_row(rng, labels) if row else scenes.digit_scene(rng, labels)
    return of_scene(scene, rng, glyphs), scene


def _bare_digit(
    rng: np.random.Generator, glyph: np.ndarray, label: int
) -> tuple[Scene, Image.Image]:
    ink = glyph if rng.random() < 0.6 else 255 - glyph
    side = 28 * int(pick(rng, (1, 2, 4, 5, 8)))
    how = Image.Resampling.NEAREST if rng.random() < 0.3 else Image.Resampling.BICUBIC
    image = Image.fromarray(ink).convert("RGB").resize((side, side), how)
    scene = Scene((scenes.Item(0.5, 0.5, 1.0, (0, 0, 0), digit=label),), (0, 0, 0), side, side)
    return scene, image


def finish(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Now and then a little noise or blur, as scans and screenshots have."""
    kind = rng.random()
    if kind < 0.12:
        noise = rng.normal(0, rng.uniform(2, 10), (image.height, image.width, 1))
        pixels = np.asarray(image, np.float32) + noise
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if kind < 0.2:
        return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.9))))
    return image


def paper_and_ink(rng: np.random.Generator) -> tuple[RGB, RGB]:
    """Colours of the ground and of the writing, well apart."""
    kind = rng.random()
    if kind < 0.45:
        return (255, 255, 255), as_rgb(rng.integers(0, 60, 3))
    while True:
        paper = scenes.sample_background(rng)
        ink = pick(rng, ANCHORS[pick(rng, COLOURS)])
        if rng.random() < 0.3:
            paper, ink = ink, (255, 255, 255)
        weights = (0.3, 0.59, 0.11)  # it is mostly lightness that makes print readable
        contrast = abs(sum(w * (a - b) for w, a, b in zip(weights, paper, ink, strict=True)))
        if contrast > 80:
            return paper, ink


@dataclass(frozen=True)
class _Print:
    """One line to print: its text, face, pixels between letters beyond the font's own, colour."""

    text: str
    font: FreeTypeFont
    spacing: float
    ink: RGB

    @property
    def length(self) -> float:
        """Width in pixels."""
        return self.font.getlength(self.text) + self.spacing * (len(self.text) - 1)

    @property
    def capital(self) -> float:
        """Height of a capital letter in pixels."""
        _, top, _, bottom = self.font.getbbox("H", anchor="ls")
        return bottom - top

    def fitted(self, width: float) -> _Print:
        """The same line in a size that fits into ``width`` pixels, if there is one."""
        line = self
        while line.length > width * 0.97 and line.font.size > SIZES[0]:
            scale = width * 0.93 / line.length
            below = [size for size in SIZES if size <= line.font.size * min(scale, 0.99)]
            font = line.font.font_variant(size=below[-1] if below else SIZES[0])
            line = replace(line, font=font, spacing=line.spacing * scale)
        return line

    def draw(self, draw: ImageDraw.ImageDraw, left: float, baseline: float) -> list[_Glyph]:
        """Print the line; returns where its characters are."""
        out, x, height = [], left, self.capital
        if not self.spacing:
            draw.text((left, baseline), self.text, fill=self.ink, font=self.font, anchor="ls")
        for index, character in enumerate(self.text):
            if self.spacing:
                draw.text((x, baseline), character, fill=self.ink, font=self.font, anchor="ls")
            width = self.font.getlength(character)
            if character != " ":
                out.append((character, x + width / 2, baseline - height / 2, width, height))
            x = left + self.font.getlength(self.text[: index + 1]) + self.spacing * (index + 1)
        return out


def words(
    rng: np.random.Generator, fonts: Fonts, lines: Sequence[str], size: tuple[int, int]
) -> Drawing:
    """Printed lines on a plain ground, each in its own face, somewhere in the picture.

    Args:
        rng: Source of randomness.
        fonts: The faces to choose from.
        lines: Text, one string per line.
        size: Width and height of the picture in pixels.
    """
    width, height = size
    paper, ink = paper_and_ink(rng)
    image = Image.new("RGB", size, paper)
    room, found = height / len(lines), []
    for index, text in enumerate(lines):
        font = fonts.sample(rng, room * float(rng.uniform(0.45, 1.0)))
        spacing = float(rng.uniform(0.02, 0.3)) * font.size if rng.random() < 0.2 else 0.0
        line = _Print(text, font, spacing, ink).fitted(width)
        x = max(0.0, width - line.length) * float(rng.uniform(0.1, 0.9))
        slack = max(0.0, room - line.capital * 1.15) * float(rng.uniform(0.1, 0.9))
        found += line.draw(ImageDraw.Draw(image), x, room * index + line.capital * 1.05 + slack)
    most = 5.0 * min(1.0, 1.6 * height / width)  # degrees; the ends of a wide sign stay inside
    angle = float(rng.uniform(-most, most)) if rng.random() < 0.3 else 0.0
    if angle:
        image = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=paper)
    marks = tuple(_character_mark(glyph, angle, width, height) for glyph in found)
    return Drawing(finish(rng, image), marks)


def _character_mark(glyph: _Glyph, angle: float, width: int, height: int) -> Mark:
    character, x, y, w, h = glyph
    turn = math.radians(angle)  # PIL turns counter-clockwise round the middle
    dx, dy = x - width / 2, y - height / 2
    x = width / 2 + dx * math.cos(turn) + dy * math.sin(turn)
    y = height / 2 - dx * math.sin(turn) + dy * math.cos(turn)
    classes = {"character": CHARACTERS.index(character)}
    return Mark("character", x / width, y / height, w / width, h / height, classes)


def named(rng: np.random.Generator, found: Sequence[Picture]) -> Drawing:
    """Emoji and flags on a plain ground, one large or several small."""
    width, height = scenes.sample_canvas(rng)
    ground = scenes.sample_background(rng)
    if rng.random() < 0.3:
        ground = as_rgb(rng.integers(60, 256, 3))
    image = Image.new("RGB", (width, height), ground)
    short = min(width, height)
    top = {1: 0.98, 2: 0.6}.get(len(found), 0.5)
    while True:
        sizes = [float(rng.uniform(0.42 if len(found) == 1 else 0.3, top)) for _ in found]
        places = scenes.sample_places(rng, [size * 0.9 for size in sizes])
        if places is not None:
            break
    marks = []
    for (x, y), size, picture in zip(places, sizes, found, strict=True):
        side = max(8, round(size * short))
        icon = pictures.stained(rng, picture.image).resize((side, side), Image.Resampling.BICUBIC)
        if rng.random() < 0.6:
            icon = icon.rotate(float(rng.uniform(-15, 15)), Image.Resampling.BICUBIC)
        if picture.kind == "emoji" and rng.random() < 0.3:
            icon = icon.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        corner = (round(x * width - side / 2), round(y * height - side / 2))
        image.paste(icon, corner, icon)
        marks.append(Mark("name", x, y, side / width, side / height, {"name": picture.label}))
    return Drawing(finish(rng, image), tuple(marks))


def photo(rng: np.random.Generator, picture: Picture) -> Drawing:
    """A new crop of a photograph."""
    image = pictures.cropped(rng, picture.image)
    return Drawing(finish(rng, image), (Mark("name", 0.5, 0.5, 1.0, 1.0, {"name": picture.label}),))


@dataclass(frozen=True)
class Chart:
    """Bars from left to right: their colour names and values 1-10."""

    colours: tuple[str, ...]
    values: tuple[int, ...]


def sample_chart(rng: np.random.Generator) -> Chart:
    """3-6 bars of different colours; one is highest and one is lowest."""
    count = int(rng.integers(3, 7))
    colours = tuple(str(c) for c in rng.permutation(COLOURS)[:count])
    while True:
        values = [int(v) for v in rng.integers(1, TOP + 1, count)]
        if values.count(max(values)) == values.count(min(values)) == 1:
            return Chart(colours, tuple(values))


def chart(rng: np.random.Generator, what: Chart, fonts: Fonts) -> Drawing:
    """A bar chart with an axis from 0 to 10, lines at the even values, and mostly their numbers."""
    side = int(rng.integers(150, 340))
    width, height = side, round(side * math.exp(rng.uniform(-0.2, 0.2)))
    light = (255, 255, 255) if rng.random() < 0.7 else as_rgb(rng.integers(225, 256, 3))
    image = Image.new("RGB", (width, height), light)
    draw = ImageDraw.Draw(image)
    left, right = width * rng.uniform(0.1, 0.16), width * rng.uniform(0.93, 0.98)
    floor, ceiling = height * rng.uniform(0.88, 0.95), height * rng.uniform(0.05, 0.1)
    font = fonts.sample(rng, height * 0.06)
    line, numbers, thick = (205, 205, 205), rng.random() < 0.8, max(1, side // 150)
    for value in range(0, TOP + 1, 2):
        y = floor + (ceiling - floor) * value / TOP
        draw.line((left, y, right, y), fill=line, width=thick)
        if numbers:
            draw.text(
                (left - side * 0.015, y), str(value), fill=(40, 40, 40), font=font, anchor="rm"
            )
    step = (right - left) / len(what.values)
    bar, marks = step * rng.uniform(0.5, 0.85), []
    for index, (colour, value) in enumerate(zip(what.colours, what.values, strict=True)):
        rgb = scenes.sample_rgb(rng, colour, light) or ANCHORS[colour][0]
        x = left + step * (index + 0.5)
        top = floor + (ceiling - floor) * value / TOP
        draw.rectangle((x - bar / 2, top, x + bar / 2, floor), fill=rgb)
        classes = {"colour": COLOURS.index(colour), "bar": value - 1}
        y, tall = (top + floor) / 2, floor - top
        marks.append(Mark("bar", x / width, y / height, bar / width, tall / height, classes))
    draw.line((left, floor, right, floor), fill=(30, 30, 30), width=thick)
    draw.line((left, floor, left, ceiling), fill=(30, 30, 30), width=thick)
    return Drawing(finish(rng, image), tuple(marks))
