"""Boxes in answers, prompts and training data (InternVL 2.5 report, section 5.7).

InternVL writes `<ref>label</ref><box>[[x1, y1, x2, y2]]</box>`: x to the right and y down from the
top left corner of the WHOLE image, as integers from 0 to 1000, whatever tiles the image was cut
into. This file turns such text into pixels and back, draws boxes, and compares them:

    text -> parse_boxes -> [Box] -> draw_boxes, iou        pixels -> format_boxes -> text

SIZES ARE HEIGHT FIRST, THEN WIDTH, and by keyword only, because `PIL.Image.size` is the other way
round. COORDINATES ARE x1, y1, x2, y2, the order of the text. A `Box` is always in pixels.

Nothing here asks a model, decodes tokens or scores a benchmark. Tags are special tokens: an answer
has them only if its decoding was told to leave them (`keep_grounding=True` in `chat`).
"""

from __future__ import annotations

import colorsys
import logging
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image, ImageDraw, ImageFont

logger = logging.getLogger(__name__)

# H, W  pixels    Four  x1, y1, x2, y2    Point  x, y
Four = tuple[float, float, float, float]
Point = tuple[float, float]
Rectangle = tuple[int, int, int, int]
Colour = tuple[int, int, int]

FRAME = 1000  # the frame of prompts, answers and training data
PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: {}"
# Data sets compute x + width in floats; this share of a side is noise, not a mistake.
_NOISE = 1e-6

_TAG = re.compile(r"</?(?:ref|box|quad)>")
_N = r"\s*([-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*"
_NUMBER = re.compile(_N)
_FOUR = rf"\[{_N},{_N},{_N},{_N}\]"
_EIGHT = rf"\[{','.join([_N] * 8)}\]"
_PAIR = rf"\[{_N},{_N}\]"
_PAIRS = rf"\[\s*{_PAIR}(?:\s*,\s*{_PAIR}){{3}}\s*\]"
_TOKEN = re.compile(
    r"<ref>(?P<ref>(?:(?!</?(?:ref|box|quad)>).)*+)(?:</ref>|(?=<(?:box|quad)>))"
    rf"|<(?P<close>/?)(?P<tag>box|quad)>|(?P<numbers>{_FOUR}|{_EIGHT})|(?P<pairs>{_PAIRS})",
    re.DOTALL,
)
# Where a label without tags can begin: a new line, the end of a list or of a sentence.
_LABEL_START = re.compile(r"[\n\]]|[.!?;:]\s|[\u3002\uff01\uff1f\uff1a\uff1b]")
_NOT_OF_A_LABEL = " \t-*,'\"`(\u3001\uff0c\u2022"
_BEFORE_A_VALUE = (":", "=", "\uff1a", "\u201c", "{", "[")

# Tried in this order for labels beyond ASCII letters, which are all that Pillow's own font has.
_FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "msyh.ttc", "simhei.ttf", "PingFang.ttc")


@dataclass(frozen=True)
class Box:
    """A region of an image, IN PIXELS of the whole image (never 0-1000).

    Attributes:
        x1: left edge, 0 <= x1 <= x2 <= W for a parsed box.
        y1: top edge, 0 <= y1 <= y2 <= H for a parsed box.
        x2: right edge.
        y2: bottom edge.
        label: the text of `<ref>`; None if there is none.
        corners: the four points of a `<quad>` in pixels, in the order of the text; x1 to y2 is then
            the rectangle around them. None for a box.
        source: the 4 numbers of the text, or the 8 of a quad; () for a box that was not parsed.
        scale: the number that stands for the whole side in `source`: 1000 or 1.
        unclipped: `source` in pixels, with neither clipping nor reordering: what the official
            RefCOCO evaluation compares. For a quad its enclosing rectangle.
        clipped: some number of `source` lay outside 0..`scale`, and was moved to the border.
        problem: None, or why the text is no proper box: "no area", "outside the image" (both
            leave a box without area), or "swapped corners" (put in order here).
        tagged: it stood in `<box>` or `<quad>`. Four numbers in brackets without tags can also be
            something else, such as a list of years.
        label_guessed: the label was the text in front of `[[`, for want of `<ref>`; its first words
            may not belong to it.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    label: str | None = None
    corners: tuple[Point, Point, Point, Point] | None = None
    source: tuple[float, ...] = ()
    scale: float = FRAME
    unclipped: Four | None = None
    clipped: bool = False
    problem: str | None = None
    tagged: bool = False
    label_guessed: bool = False

    def __post_init__(self) -> None:
        points = [value for point in self.corners or () for value in point]
        if not all(math.isfinite(value) for value in (*self.xyxy, *points)):
            raise ValueError(f"a Box needs finite pixels; got {self.xyxy}, corners {self.corners}.")
        if self.x1 > self.x2 or self.y1 > self.y2:
            raise ValueError(
                f"a Box is (left, top, right, bottom) in pixels; got {self.xyxy}, whose corners "
                "are swapped. Sort them, or convert from (left, top, width, height)."
            )

    @property
    def xyxy(self) -> Four:
        """(x1, y1, x2, y2) in pixels."""
        return (self.x1, self.y1, self.x2, self.y2)

    @property
    def valid(self) -> bool:
        """Whether the text was a proper box; a box that was only clipped is."""
        return self.problem is None


# ---------------------------------------------------------------------------------- text -> boxes
def parse_boxes(
    text: str, *, height: int, width: int, scale: float | Literal["auto"] = FRAME
) -> list[Box]:
    """Find every box of an answer, in the order of the text.

    Read are `<ref>label</ref><box>[[x1, y1, x2, y2], ...]</box>`, the same without `<ref>`, what is
    left when decoding dropped the tags (`label[[...]]`), bare `[[...]]` and `[...]`, and
    `<quad>` with eight numbers or four pairs (no public InternVL data shows its form; both are
    accepted). Numbers may be negative or have decimals. A list that is cut off, or has any other
    count of numbers, is not a box and is passed over: no text raises.

    A box takes the label of the `<ref>` in front if only blanks, punctuation and other boxes lie
    between. Without tags, the text between the start of the line, sentence or list and `[[` is
    taken, and the box is marked `label_guessed`.

    Args:
        text: the answer.
        height: height of the whole image in pixels. HEIGHT AND WIDTH are those of the image before
            tiling, after any rotation by its EXIF data, as the model was shown it.
        width: width of the whole image in pixels.
        scale: what the numbers call the whole side: 1000, or 1 for the data sets that count
            from 0 to 1; "auto" takes 1 for a box whose four numbers sum to less than 4 (eight: 8)
            and 1000 otherwise, the rule of the official evaluate_grounding.py.

    Returns:
        Boxes in pixels, clipped to the image and with their corners in order; `problem`, `clipped`,
        `source` and `unclipped` tell what the text said. Look at `valid` before counting one.

    Raises:
        ValueError: a height, width or scale that is not positive.
    """
    _check_size(height, width)
    if scale != "auto" and not (isinstance(scale, int | float) and 0 < scale < math.inf):
        raise ValueError(f'scale={scale!r}; expected 1000, 1 (for numbers from 0 to 1) or "auto".')
    return [_box(found, height, width, scale) for found in _find(text)]


class _Found(NamedTuple):
    numbers: list[float]  # 4 or 8
    label: str | None
    guessed: bool
    tagged: bool


def _find(text: str) -> Iterator[_Found]:
    """Yield what the text says of every box."""
    label: str | None = None
    guessed, inside, end = False, "", 0
    for match in _TOKEN.finditer(text):
        gap = _TAG.sub("", text[end : match.start()])
        if match["ref"] is not None:
            label, guessed, inside = match["ref"].strip() or None, False, ""
        elif match["tag"]:
            inside = "" if match["close"] else match["tag"]
            if inside and _has_words(gap):
                label, guessed = None, False
        elif match["numbers"] or inside == "quad":
            if not inside and _has_words(gap):
                label = _guess_label(gap)
                guessed = label is not None
            numbers = [float(number) for number in _NUMBER.findall(match[0])]
            yield _Found(numbers, label, guessed, bool(inside))
        else:
            continue  # four points outside <quad> are just a list of points
        end = match.end()


def _has_words(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _guess_label(gap: str) -> str | None:
    """Read the label off the text before the inner `[` of a box whose tags were dropped."""
    head, bracket, rest = gap.rpartition("[")
    if not bracket or rest.strip() or head.endswith("  "):
        return None  # "The box is [1, 2, 3, 4]": a single bracket follows a sentence, not a label
    label = _LABEL_START.split(head)[-1].strip(_NOT_OF_A_LABEL)
    return label if _has_words(label) and not label.endswith(_BEFORE_A_VALUE) else None


def _box(found: _Found, height: int, width: int, scale: float | Literal["auto"]) -> Box:
    """Scale numbers to pixels, clip and order them, and note what was wrong."""
    numbers, quad = found.numbers, len(found.numbers) == 8
    side = (FRAME if sum(numbers) >= len(numbers) else 1) if scale == "auto" else scale
    sides = [float(width), float(height)] * (len(numbers) // 2)
    pixels = [number * length / side for number, length in zip(numbers, sides, strict=True)]
    inside = [min(max(value, 0.0), length) for value, length in zip(pixels, sides, strict=True)]
    written = _enclosing(pixels) if quad else _four(pixels)
    kept = _enclosing(inside)  # of two corners: puts them in order
    problem = None
    if not _has_area(kept):
        problem = "outside the image" if _has_area(_enclosing(pixels)) else "no area"
    elif not _has_area(written):
        problem = "swapped corners"
    return Box(
        *kept,
        label=found.label,
        corners=_corners(inside) if quad else None,
        source=tuple(numbers),
        scale=side,
        unclipped=written,
        clipped=not all(0 <= number <= side for number in numbers),
        problem=problem,
        tagged=found.tagged,
        label_guessed=found.guessed,
    )


def _four(values: Sequence[float]) -> Four:
    return (values[0], values[1], values[2], values[3])


def _corners(values: Sequence[float]) -> tuple[Point, Point, Point, Point]:
    first, second, third, fourth = zip(values[0::2], values[1::2], strict=True)
    return (first, second, third, fourth)


def _enclosing(values: Sequence[float]) -> Four:
    """The rectangle around points given as x, y, x, y, ..."""
    return (min(values[0::2]), min(values[1::2]), max(values[0::2]), max(values[1::2]))


def _has_area(box: Four) -> bool:
    return box[2] > box[0] and box[3] > box[1]


def _check_size(height: int, width: int) -> None:
    for name, side in (("height", height), ("width", width)):
        if not 0 < side < math.inf:
            raise ValueError(f"{name}={side}; expected the whole image's {name} in pixels, > 0.")


# ---------------------------------------------------------------------------------- boxes -> text
def format_boxes(
    boxes: Iterable[Box | Sequence[float]], *, height: int, width: int, label: str | None = None
) -> str:
    """Write boxes as prompts and training data have them.

    One line per label, in the order in which labels first appear, the form of the official data
    (OpenGVLab/InternVL, issues 227 and 239):

        <ref>dog</ref><box>[[100, 100, 500, 500], [600, 20, 640, 90]]</box>

    Numbers are `round(x / width * 1000)`, as in the official documentation, so an edge moves by at
    most 0.05 % of the side. Where that would leave a thin box without area, its edges are rounded
    outwards instead (at most 0.1 %).

    Args:
        boxes: IN PIXELS: a `Box`, or (x1, y1, x2, y2), or eight numbers x1, y1, ..., x4, y4 for a
            `<quad>` (written as one list of eight; no public data shows the official form).
        height: height of the whole image in pixels.
        width: width of the whole image in pixels.
        label: label of all boxes; None takes each `Box`'s own, and writes no `<ref>` where there is
            none.

    Raises:
        ValueError: no boxes; a box with another count of numbers, with NaN or infinity, with
            swapped corners, without area, or outside the image; a label that is empty or holds
            a tag.
    """
    _check_size(height, width)
    lines: dict[tuple[str | None, str], list[str]] = {}
    for index, box in enumerate(boxes):
        values = _values(box, index)
        where = f"box {index} {tuple(values)}"
        frame = _to_frame(values, height, width, where)
        name = label if label is not None or not isinstance(box, Box) else box.label
        tag = "quad" if len(values) == 8 else "box"
        lines.setdefault((name, tag), []).append(str(frame))
    if not lines:
        raise ValueError("there are no boxes to write; got an empty list.")
    return "\n".join(
        f"{'' if name is None else _ref(name)}<{tag}>[{', '.join(parts)}]</{tag}>"
        for (name, tag), parts in lines.items()
    )


def grounding_prompt(phrase: str) -> str:
    """Ask for the box of what `phrase` describes, as the official RefCOCO evaluation does.

    The wording is that of evaluate_grounding.py ("coordinate"); model cards print "coordinates".

    Raises:
        ValueError: the phrase is empty or holds a tag.
    """
    return PROMPT.format(_ref(phrase))


def _ref(label: str) -> str:
    tag = _TAG.search(label)
    if tag or not label.strip():
        got = f"the tag {tag.group()} inside" if tag else "no text"
        raise ValueError(f"{got} in the label {label!r}; expected plain words for <ref>..</ref>.")
    return f"<ref>{label}</ref>"


def _values(box: Box | Sequence[float], index: int) -> list[float]:
    """Read the 4 or 8 pixel values of a box."""
    if isinstance(box, Box):
        return [value for point in box.corners for value in point] if box.corners else [*box.xyxy]
    try:
        values = [float(value) for value in box]
    except (TypeError, ValueError):
        values = []
    if len(values) not in (4, 8):
        raise ValueError(
            f"box {index} is {box!r}; expected a Box, (x1, y1, x2, y2) or 8 numbers for a quad, in "
            "pixels (a single box goes into a list)."
        )
    return values


def _to_frame(values: Sequence[float], height: int, width: int, where: str) -> list[int]:
    """Pixels to integers of the 0-1000 frame."""
    sides = [(width, height)[index % 2] for index in range(len(values))]
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"{where} is not finite; the data it comes from has a hole.")
    for value, side in zip(values, sides, strict=True):
        if not -_NOISE * side <= value <= side * (1 + _NOISE):
            raise ValueError(
                f"{where} leaves the image of height {height} and width {width} (pixels, height "
                "first); clip it, and check that it is x1, y1, x2, y2 in pixels of this image."
            )
    shares = [min(max(v / side, 0.0), 1.0) for v, side in zip(values, sides, strict=True)]
    frame = [round(share * FRAME) for share in shares]
    if len(values) == 8:
        if not _has_area(_enclosing(frame)):
            raise ValueError(f"{where} has no area in the frame of 0 to {FRAME}.")
        return frame
    for low, high in ((0, 2), (1, 3)):
        if shares[high] - shares[low] <= _NOISE:
            raise ValueError(
                f"{where} has no area or swapped corners; expected x1 < x2 and y1 < y2."
            )
        if frame[low] == frame[high]:
            frame[low] = math.floor(shares[low] * FRAME)
            frame[high] = math.ceil(shares[high] * FRAME)
    return frame


# ------------------------------------------------------------------------------------- comparison
def iou(first: Box | Sequence[float], second: Box | Sequence[float]) -> float:
    """Intersection over union of two boxes in the same frame.

    A `Box` counts as clipped and with its corners in order, a quad as the rectangle around it. A
    sequence x1, y1, x2, y2 is taken as it is, so that `iou(box.unclipped, truth)` is the number
    of the official RefCOCO evaluation.

    Returns:
        0 to 1; 0 where a box has no area, swapped corners or a number that is not finite.

    Raises:
        ValueError: a sequence of neither 4 nor 8 numbers.
    """
    one, two = (_rectangle(box, index) for index, box in enumerate((first, second)))
    if not (all(map(math.isfinite, (*one, *two))) and _has_area(one) and _has_area(two)):
        return 0.0
    overlap_x = min(one[2], two[2]) - max(one[0], two[0])
    overlap_y = min(one[3], two[3]) - max(one[1], two[1])
    if overlap_x <= 0 or overlap_y <= 0:
        return 0.0
    shared = overlap_x * overlap_y
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    return shared / (sum(areas) - shared)


def _rectangle(box: Box | Sequence[float], index: int) -> Four:
    if isinstance(box, Box):
        return box.xyxy
    values = _values(box, index)
    return _enclosing(values) if len(values) == 8 else _four(values)


# ---------------------------------------------------------------------------------------- drawing
def draw_boxes(
    image: Image.Image,
    boxes: Iterable[Box | Sequence[float]],
    *,
    font: str | Path | None = None,
    line_width: int | None = None,
    text_size: int | None = None,
) -> Image.Image:
    """Draw boxes and labels on a copy of an image.

    Each label has its colour, and each box without label its own. Lines run around the region, not
    over it. Boxes without area are left out.

    Pillow's own font has ASCII letters only. For a label beyond them (accents, Chinese) common
    fonts of the system are tried; where none has its characters, the box shows its index in
    `boxes`, such as "#3", and a warning tells the label. Pass `font` to avoid that. A label wider
    than its box and than half the image is cut off, with dots.

    Args:
        image: the image the boxes refer to; not changed.
        boxes: IN PIXELS, a `Box` or 4 or 8 numbers each, as for `format_boxes`.
        font: path or name of a TrueType or OpenType font for all labels.
        line_width: in pixels; None takes about 1/250 of the shorter side, at least 2.
        text_size: in pixels; None takes about 1/30 of the shorter side, at least 12.

    Returns:
        A new RGB image of the same size.

    Raises:
        ValueError: a box that has neither 4 nor 8 numbers, or a number that is not finite.
        OSError: `font` cannot be read.
    """
    canvas = image.convert("RGB") if image.mode != "RGB" else image.copy()
    short = min(canvas.size)
    stroke = max(1, line_width) if line_width else max(2, round(short / 250))
    size = max(1, text_size) if text_size else max(12, round(short / 30))
    draw = ImageDraw.Draw(canvas)
    regions = [_region(box, index) for index, box in enumerate(boxes)]
    colours = _colours(regions)
    shown = [(i, region) for i, region in enumerate(regions) if _has_area(region.xyxy)]
    for index, region in shown:
        _outline(draw, region, colours[index], stroke)
    labels = {i: " ".join((region.label or "").split())[:200] for i, region in shown}
    faces = _faces(labels.values(), font, size)
    taken: list[Rectangle] = []  # labels last, so that no line runs through them
    for index, region in shown:
        if labels[index]:
            text, face = _drawable(labels[index], index, faces)
            taken.append(_write(draw, region, text, face, colours[index], stroke, taken))
    return canvas


def _region(box: Box | Sequence[float], index: int) -> Box:
    if isinstance(box, Box):
        return box
    values = _values(box, index)
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"box {index} {tuple(values)} is not finite, so it cannot be drawn.")
    return Box(*_enclosing(values), corners=_corners(values) if len(values) == 8 else None)


def _colours(regions: Sequence[Box]) -> list[Colour]:
    """One colour per label, and one per box without label."""
    keys = [region.label or index for index, region in enumerate(regions)]
    chosen = {}
    for number, key in enumerate(dict.fromkeys(keys)):
        # Steps of the golden ratio around the circle of hues never come back to the same one.
        hue, value = (number * 0.6180339887 + 0.97) % 1, (0.95, 0.7)[number % 2]
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.9, value)
        chosen[key] = (round(red * 255), round(green * 255), round(blue * 255))
    return [chosen[key] for key in keys]


def _outline(draw: ImageDraw.ImageDraw, region: Box, colour: Colour, stroke: int) -> None:
    if region.corners:
        draw.line([*region.corners, region.corners[0]], fill=colour, width=stroke, joint="curve")
        return
    right, bottom = (side - 1 for side in draw.im.size)
    left = min(max(math.floor(region.x1) - stroke, 0), right)
    top = min(max(math.floor(region.y1) - stroke, 0), bottom)
    end_x = max(min(math.ceil(region.x2) + stroke - 1, right), left)
    end_y = max(min(math.ceil(region.y2) + stroke - 1, bottom), top)
    draw.rectangle((left, top, end_x, end_y), outline=colour, width=stroke)


def _faces(labels: Iterable[str], font: str | Path | None, size: int) -> list[Any]:
    """Load the font of the labels, and those of the system if it lacks a character."""
    faces = [ImageFont.truetype(str(font), size) if font else ImageFont.load_default(size)]
    if not font and not _has_glyphs(faces[0], "".join(labels)):
        for name in _FONTS:
            try:
                faces.append(ImageFont.truetype(name, size))
            except OSError:
                logger.debug("The font %s is not installed.", name)
    return faces


def _drawable(label: str, index: int, faces: Sequence[Any]) -> tuple[str, Any]:
    """Choose a font that has all characters of a label, or shorten the label to a number."""
    for face in faces:
        if _has_glyphs(face, label):
            return label, face
    logger.warning(
        "No font has all characters of the label %r, so box %d is drawn as #%d; pass `font=`, the "
        "path of a font that has them.",
        *(label, index, index),
    )
    return f"#{index}", faces[0]


def _has_glyphs(face: Any, text: str) -> bool:
    """Whether a font has every character, told by the picture it gives for what it lacks."""
    missing = face.getmask("\U0010ffff")  # a code point that is never assigned
    lacking = (missing.size, bytes(missing))
    masks = (face.getmask(character) for character in set(text) if not character.isspace())
    return all((mask.size, bytes(mask)) != lacking for mask in masks)


def _write(
    draw: ImageDraw.ImageDraw,
    region: Box,
    text: str,
    face: Any,
    colour: Colour,
    stroke: int,
    taken: Sequence[Rectangle],
) -> Rectangle:
    """Write a label on a background, beside its box and where no other label is; return where."""
    image_width, image_height = draw.im.size
    pad = max(2, stroke // 2 + 1)
    room = max(image_width / 2, min(region.x2 - region.x1, image_width)) - 2 * pad
    while len(text) > 4 and face.getlength(text) > room:
        text = text[:-4].rstrip() + "..."
    ascent, descent = face.getmetrics()
    across, down = math.ceil(face.getlength(text)) + 2 * pad, ascent + descent + 2 * pad
    left = max(min(math.floor(region.x1) - stroke, image_width - across), 0)
    above, below = math.floor(region.y1) - stroke - down, math.ceil(region.y2) + stroke
    places = (above, math.floor(region.y1), below, math.floor(region.y2) - down)
    inside = [top for top in places if 0 <= top <= image_height - down] or [0]
    spots = [(left, top, left + across, top + down) for top in inside]
    free = [spot for spot in spots if not any(_meet(spot, other) for other in taken)]
    spot = (free or spots)[0]
    draw.rectangle((spot[0], spot[1], spot[2] - 1, spot[3] - 1), fill=colour)
    red, green, blue = colour
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
    draw.text((spot[0] + pad, spot[1] + pad), text, fill=ink, font=face)
    return spot


def _meet(one: Rectangle, two: Rectangle) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]
