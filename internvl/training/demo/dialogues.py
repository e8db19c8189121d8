"""Dialogues of the demo task: pictures with several questions each, one maker per dataset."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from internvl.training.demo import drawings, naming, questions, reading, scenes, words
from internvl.training.demo.material import Material
from internvl.training.demo.questions import QA, ShapeFacts
from internvl.training.demo.scenes import Item, Scene, pick

Rng = np.random.Generator
# Look-up, place and relation are harder than colour and shape, and are asked more.
SHAPE_WEIGHTS = {
    "colour": 0.5, "shape": 0.5, "colour_of": 0.9, "shape_of": 0.8, "exist": 1.3, "count": 1.4,
    "count_sub": 1.6, "position": 1.6, "relation": 2.2, "relation_yn": 1.3, "describe": 0.4,
}  # fmt: skip
_SHARES = np.cumsum([SHAPE_WEIGHTS[task] for task in questions.SHAPE_BY_TASK])
# One fact per picture: asked again, the answer could be copied from the turn before.
ONE_FACT = frozenset((
    "colour", "shape", "count", "describe", "more", "motion", "video_colour", "video_shape",
    "digit", "parity", "number", "digit_count", "word", "printed_number", "letter_count", "emoji",
    "flag", "photo", "highest", "lowest", "bars",
))  # fmt: skip
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Dialogue:
    """Pictures and turns. ``layout`` tells where the pictures go: ``image``, ``pair`` (both first),
    ``later`` (the second in the second turn), ``labelled`` (as ``later``, with Image-1 and
    Image-2), ``video`` (frames), ``text`` (none)."""

    turns: tuple[QA, ...]
    pictures: tuple[Image.Image, ...] = ()
    layout: str = "image"

    def asked(self, turn: int) -> str:
        """What the user says, with the tags of the pictures that come in this turn."""
        text = self.turns[turn].question
        tags = {
            "image": ("<image>\n",),
            "pair": ("Image-1: <image>\nImage-2: <image>\n",),
            "later": ("<image>\n", "<image>\n"),
            "labelled": ("Image-1: <image>\n", "Image-2: <image>\n"),
            "video": ("<video>\n",),
            "text": (),
        }[self.layout]
        return (tags[turn] if turn < len(tags) else "") + text


def several(rng: Rng, one: Callable[[], QA | None], least: int, most: int) -> tuple[QA, ...]:
    """Between ``least`` and ``most`` questions about different facts, in random order; fewer, or
    none, when ``one`` finds no more."""
    wanted = int(rng.integers(least, most + 1))
    found: dict[str, QA] = {}
    for _ in range(8 * wanted):
        qa = one()
        if qa is not None:
            found.setdefault(qa.task if qa.task in ONE_FACT else qa.question, qa)
        if len(found) == wanted:
            break
    return tuple(found.values())


def about_scene(rng: Rng, scene: Scene, facts: ShapeFacts) -> QA:
    """A question about one scene; where a lone object stands is too easy to be asked often."""
    while True:
        found = questions.about_shapes(rng, scene, facts, _SHARES)
        if found.task != "position" or len(scene.items) > 1 or rng.random() < 0.4:
            return found


def _with_follow_ups(rng: Rng, turns: tuple[QA, ...], facts: ShapeFacts) -> tuple[QA, ...]:
    """Put an elliptic question ("And the star?") behind some of those it can follow."""
    out: list[QA] = []
    for qa in turns:
        out.append(qa)
        more = questions.follow_up(rng, qa, facts) if rng.random() < 0.3 else None
        if more is not None:
            out.append(more)
    return tuple(out)


def shapes(rng: Rng, material: Material) -> Dialogue:
    """One to nine shapes, 3-8 turns."""
    count = int(rng.integers(1, 7)) if rng.random() < 0.72 else int(rng.integers(7, 10))
    scene = scenes.shape_scene(rng, count)
    facts = ShapeFacts(scene)
    turns = several(rng, lambda: about_scene(rng, scene, facts), 3, 8)
    return Dialogue(_with_follow_ups(rng, turns, facts)[:8], (scenes.draw_scene(scene, rng),))


def boxes(rng: Rng, material: Material) -> Dialogue:
    """One to six shapes, boxes asked more than anything else."""
    while True:
        scene = scenes.shape_scene(rng)
        turns = several(rng, functools.partial(_about_boxes, rng, scene), 2, 5)
        if any(qa.task == "box" for qa in turns):
            return Dialogue(turns, (scenes.draw_scene(scene, rng),))


def _about_boxes(rng: Rng, scene: Scene) -> QA | None:
    facts = ShapeFacts(scene)
    if rng.random() < 0.25:
        return about_scene(rng, scene, facts)
    return questions.about_box(rng, scene, facts)


def pair(rng: Rng, material: Material) -> Dialogue:
    """Two images with questions about both; or (20 %) a second image that comes later."""
    both = [scenes.shape_scene(rng), scenes.shape_scene(rng)]
    facts = (ShapeFacts(both[0]), ShapeFacts(both[1]))
    pictures = tuple(scenes.draw_scene(scene, rng) for scene in both)
    if rng.random() < 0.2:
        first = about_scene(rng, both[0], facts[0])
        rest = several(rng, lambda: about_scene(rng, both[1], facts[1]), 2, 4)
        layout = "labelled" if rng.random() < 0.4 else "later"
        return Dialogue((first, *rest), pictures, layout)
    turns = several(rng, lambda: questions.about_pair(rng, facts), 3, 6)
    return Dialogue(turns, pictures, "pair")


def clip(rng: Rng, frames: int = 4) -> tuple[list[Scene], str]:
    """Frames of one object that moves left, right, up or down, and that direction."""
    moves = pick(rng, sorted(STEPS))
    while True:
        scene = scenes.shape_scene(rng, 1, central=0.0)
        if scene.items[0].size <= 0.4:
            break
    size = scene.items[0].size
    low, high = size * 0.52 + 0.01, 1 - size * 0.52 - 0.01
    travel = float(rng.uniform(0.24, high - low))
    start = float(rng.uniform(low, high - travel))
    across = float(rng.uniform(low, high))
    drift = float(rng.uniform(-0.04, 0.04))
    dx, dy = STEPS[moves]
    if dx + dy < 0:
        start, travel = start + travel, -travel
    along = start + travel * np.linspace(0, 1, frames)
    other = np.clip(across + drift * np.linspace(0, 1, frames), low, high)
    xs, ys = (along, other) if dx else (other, along)
    return [scenes.shifted(scene, float(x), float(y)) for x, y in zip(xs, ys, strict=True)], moves


def _video(rng: Rng, frames: int) -> Dialogue:
    shots, moves = clip(rng, frames)
    turns = several(rng, lambda: questions.about_clip(rng, shots, moves), 2, 5)
    return Dialogue(turns, tuple(scenes.draw_scene(shot, rng) for shot in shots), "video")


def video(rng: Rng, material: Material) -> Dialogue:
    """A clip of four frames."""
    return _video(rng, 4)


def video8(rng: Rng, material: Material) -> Dialogue:
    """A clip of eight frames."""
    return _video(rng, 8)


def number_drawing(
    rng: Rng, material: Material, count: int, uci: float = 0.12
) -> tuple[drawings.Drawing, str]:
    """``count`` handwritten digits whose order from left to right is clear, and what they read;
    ``uci`` is the share of UCI digits."""
    while True:
        row = count > 1 and bool(rng.random() < 0.8)
        drawing, scene = drawings.handwriting(rng, material.sources.digits, count, uci=uci, row=row)
        items: list[Item] = sorted(scene.items, key=lambda item: item.x)
        if all(b.x - a.x > 0.15 for a, b in itertools.pairwise(items)):
            return drawing, "".join(str(item.digit) for item in items)


def digits(rng: Rng, material: Material) -> Dialogue:
    """One, two or three handwritten digits."""
    count = int(pick(rng, (1, 2, 2, 3, 3)))
    drawing, text = number_drawing(rng, material, count)
    if count == 1:
        turns = several(rng, lambda: questions.about_digit(rng, int(text)), 2, 4)
    else:
        turns = several(rng, lambda: reading.about_number(rng, text), 3, 5)
    return Dialogue(turns, (drawing.image,))


def word_drawing(rng: Rng, material: Material, text: str) -> drawings.Drawing:
    """A sign with one word: short ones often on square pictures, long ones on wide ones."""
    height = int(rng.integers(60, 150))
    natural = max(0.8, 0.62 * len(text))  # width of the letters over their height
    aspect = float(np.clip(natural * rng.uniform(0.7, 1.3), 0.8, 3.4))
    size = (round(height * aspect), height)
    return drawings.words(rng, material.sources.fonts, [text], size)


def word(rng: Rng, material: Material) -> Dialogue:
    """A printed word, or (12 %) number, of up to six characters."""
    if rng.random() < 0.12:
        length = int(rng.integers(1, 7))
        text = "".join(str(v) for v in rng.integers(0, 10, length))
    else:
        text = words.training_text(rng, material.words)
    drawing = word_drawing(rng, material, text)
    turns = several(rng, lambda: reading.about_text(rng, text), 2, 5)
    return Dialogue(turns, (drawing.image,))


def emoji(rng: Rng, material: Material) -> Dialogue:
    """One emoji, or (30 %) two or three."""
    pool = material.sources.pictures["emoji"]
    if rng.random() < 0.7:
        found = pick(rng, pool)
        drawing = drawings.named(rng, [found])
        turns = several(rng, lambda: naming.about_picture(rng, found), 1, 3)
        return Dialogue(turns, (drawing.image,))
    while True:
        group = [pick(rng, pool) for _ in range(int(pick(rng, (2, 3))))]
        drawing = drawings.named(rng, group)
        ask = functools.partial(naming.about_several, rng, group, drawing.marks)
        if turns := several(rng, ask, 2, 4):
            return Dialogue(turns, (drawing.image,))


def flag(rng: Rng, material: Material) -> Dialogue:
    """One flag."""
    found = pick(rng, material.sources.pictures["flag"])
    turns = several(rng, lambda: naming.about_picture(rng, found), 1, 3)
    return Dialogue(turns, (drawings.named(rng, [found]).image,))


def photo(rng: Rng, material: Material) -> Dialogue:
    """A new crop of one of the photographs."""
    found = pick(rng, material.sources.pictures["photo"])
    turns = several(rng, lambda: naming.about_picture(rng, found), 1, 3)
    return Dialogue(turns, (drawings.photo(rng, found).image,))


def chart(rng: Rng, material: Material) -> Dialogue:
    """A bar chart."""
    what = drawings.sample_chart(rng)
    drawing = drawings.chart(rng, what, material.sources.fonts)
    turns = several(rng, lambda: reading.about_chart(rng, what), 3, 6)
    return Dialogue(turns, (drawing.image,))


def text(rng: Rng, material: Material) -> Dialogue:
    """Small talk without a picture."""
    return Dialogue(several(rng, lambda: questions.without_picture(rng), 1, 2), (), "text")
