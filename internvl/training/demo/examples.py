"""Draw the pictures of examples/ and write their questions: seeds that training never uses."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from internvl.training.demo import digits, fonts, pictures, scenes, words
from internvl.training.demo.archives import DEFAULT_CACHE
from internvl.training.demo.scenes import ANCHORS, Item, Scene

WHITE, CREAM, NIGHT = (255, 255, 255), (250, 243, 224), (22, 26, 44)
SEED = 987_654
CLIP = "moving.mp4"


def _item(shape: str, colour: str, x: float, y: float, size: float, shade: int = 1) -> Item:
    rgb = ANCHORS[colour][shade % len(ANCHORS[colour])]
    return Item(x, y, size, rgb, angle=6.0, shape=shape, colour=colour)


SCENES: dict[str, Scene] = {
    "circle.png": Scene((_item("circle", "red", 0.5, 0.5, 0.45),), WHITE, 400, 400),
    "star.jpg": Scene((_item("star", "yellow", 0.76, 0.26, 0.36),), NIGHT, 500, 460),
    "three.png": Scene(
        (
            _item("square", "blue", 0.22, 0.28, 0.3), _item("triangle", "green", 0.74, 0.3, 0.32),
            _item("circle", "orange", 0.5, 0.76, 0.3),
        ),
        CREAM, 520, 480,
    ),
    "six.jpg": Scene(
        (
            _item("cross", "purple", 0.18, 0.22, 0.24), _item("star", "red", 0.52, 0.2, 0.26),
            _item("star", "blue", 0.83, 0.26, 0.25), _item("diamond", "green", 0.2, 0.75, 0.28),
            _item("circle", "black", 0.5, 0.66, 0.22), _item("star", "pink", 0.82, 0.74, 0.25),
        ),
        WHITE, 600, 600,
    ),
    "relation.png": Scene(
        (_item("diamond", "pink", 0.25, 0.52, 0.34), _item("square", "black", 0.75, 0.47, 0.3)),
        (225, 238, 250), 480, 420,
    ),
    "left.png": Scene(
        (_item("triangle", "purple", 0.3, 0.3, 0.32), _item("circle", "blue", 0.7, 0.7, 0.3)),
        WHITE, 360, 360,
    ),
    "right.jpg": Scene(
        (
            _item("cross", "brown", 0.25, 0.7, 0.28), _item("square", "green", 0.7, 0.26, 0.28),
            _item("star", "orange", 0.72, 0.74, 0.28), _item("circle", "gray", 0.26, 0.24, 0.26),
        ),
        WHITE, 420, 400,
    ),
}  # fmt: skip

QUESTIONS: list[dict] = [
    {"image": "circle.png", "question": "What color is the circle?", "expected": "red"},
    {"image": "circle.png", "question": "Please describe the image shortly.",
     "expected": "a red circle"},
    {"image": "circle.png", "question": "Where is the circle?", "expected": "center"},
    {"image": "star.jpg", "question": "What shape is it?", "expected": "star"},
    {"image": "star.jpg", "question": "Where is the star in the image?", "expected": "top right"},
    {"image": "three.png", "question": "How many objects are there?", "expected": "3"},
    {"image": "three.png", "question": "What color is the triangle?", "expected": "green"},
    {"image": "three.png", "question": "Is there a red square?", "expected": "no"},
    {"image": "three.png", "question": "In which corner is the blue square?",
     "expected": "top left"},
    {"image": "three.png", "question": "How many circles are there?", "expected": "1"},
    {"image": "six.jpg", "question": "Count the shapes in the image.", "expected": "6"},
    {"image": "six.jpg", "question": "What shape is the purple object?", "expected": "cross"},
    {"image": "relation.png", "question": "Where is the black square relative to the pink diamond?",
     "expected": "right"},
    {"image": "relation.png", "question": "Is the pink diamond to the left of the black square?",
     "expected": "yes"},
    {"image": "digit.png", "question": "Which digit is this?", "expected": "7"},
    {"image": "digit.png", "question": "Is the digit even or odd?", "expected": "odd"},
    {"images": ["left.png", "right.jpg"], "question": "Which image contains a green square?",
     "expected": "Image-2"},
    {"images": ["left.png", "right.jpg"], "question": "Which image has more objects?",
     "expected": "Image-2"},
    {"images": ["left.png", "right.jpg"], "question": "What color is the circle in Image-2?",
     "expected": "gray"},
    {"image": "six.jpg", "question": "Please provide the bounding box coordinate of the region "
     "this sentence describes: <ref>purple cross</ref>",
     "expected": "purple cross[[60, 100, 300, 340]]"},
    {"image": "sign.png", "question": "What does the text say?", "expected": "ALBUM"},
    {"image": "sign.png", "question": "What is the last letter?", "expected": "M"},
    {"image": "number.png", "question": "What number is this?", "expected": "42"},
    {"image": "chart.png", "question": "Which bar is the highest?", "expected": "blue"},
    {"image": "chart.png", "question": "What is the value of the green bar?", "expected": "5"},
    {"image": "cat.jpg", "question": "What is shown in the photo?", "expected": "cat"},
    {"image": "umbrella.png", "question": "What is this?", "expected": "umbrella"},
    {"video": CLIP, "question": "In which direction does the object move?", "expected": "right"},
    {"images": [f"frame{k}.png" for k in (1, 2, 3, 4)], "labels": "Frame-{}: ",
     "question": "Where is the triangle moving?", "expected": "right"},
    {"image": "six.jpg", "turns": [
        {"question": "Is there a diamond?", "expected": "yes"},
        {"question": "What color is the diamond?", "expected": "green"},
        {"question": "Where is the diamond located?", "expected": "bottom left"},
    ]},
    {"image": "three.png", "turns": [
        {"question": "Where is the green triangle?", "expected": "top right"},
        {"question": "How many circles are there?", "expected": "1"},
    ]},
]  # fmt: skip


def clip_frames(count: int = 4) -> list[Image.Image]:
    """Frames of the clip: an orange triangle that moves to the right."""
    start = Scene((_item("triangle", "orange", 0.2, 0.6, 0.28),), WHITE, 336, 336)
    rng = np.random.default_rng(SEED)
    return [
        scenes.draw_scene(scenes.shifted(start, float(x), 0.6), rng)
        for x in np.linspace(0.2, 0.8, count)
    ]


def write_clip(path: Path, count: int = 16, rate: int = 8) -> None:
    """Encode ``count`` frames of the clip as H.264 (mpeg4 where that is missing)."""
    import av

    name = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(name, rate=rate)
        stream.width = stream.height = 336
        stream.pix_fmt = "yuv420p"
        for image in clip_frames(count):
            for packet in stream.encode(av.VideoFrame.from_image(image)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def _sign(cache: Path, word: str = "ALBUM") -> Image.Image:
    """A printed word; neither it nor its font is in training."""
    if not words.held_out(word):
        raise ValueError(f"{word} is a word of training; take another for the sign.")
    known = fonts.load("test", cache)
    face = ImageFont.truetype(io.BytesIO(known.files[0]), 62)
    image = Image.new("RGB", (336, 112), CREAM)
    ImageDraw.Draw(image).text((168, 56), word, font=face, fill=NIGHT, anchor="mm")
    return image


def _number(cache: Path, digit_pair: tuple[int, int] = (4, 2)) -> Image.Image:
    """Two held-out digits of the UCI set, dark on white, side by side."""
    images, labels = digits.uci_images(cache)
    sheet = Image.new("RGB", (224, 224), WHITE)
    for place, value in enumerate(digit_pair):
        glyph = digits.uci_glyph(images[int(np.flatnonzero(labels == value)[3])])
        drawn = Image.fromarray(255 - glyph).convert("RGB").resize((100, 100))
        sheet.paste(drawn, (8 + 108 * place, 62))
    return sheet


def _chart() -> Image.Image:
    """A bar chart as matplotlib draws it; the demo was trained on another drawing of charts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 3), dpi=112)
    axes = figure.subplots()
    colours = ("red", "blue", "green", "orange")
    axes.bar(range(4), (3, 8, 5, 6), color=colours)
    axes.set(ylim=(0, 10), yticks=range(0, 11, 2), xticks=[])
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return Image.open(stream).convert("RGB")


def _photo(cache: Path, name: str = "cat") -> Image.Image:
    """The middle of one of the photographs of training: naming it is memory."""
    found = next(p for p in pictures.load("test", cache)["photo"] if p.name == name).image
    side = min(found.size)
    left = (found.width - side) // 2
    return found.crop((left, 0, left + side, side))


def _emoji(cache: Path, name: str = "umbrella") -> Image.Image:
    """An emoji in the style that training does not have (Twemoji, CC BY 4.0)."""
    found = next(p for p in pictures.load("test", cache)["emoji"] if p.name == name).image
    sheet = Image.new("RGB", (160, 160), WHITE)
    large = found.resize((128, 128), Image.Resampling.BICUBIC)
    sheet.paste(large, (16, 16), large)
    return sheet


def write_examples(folder: Path, cache: Path = DEFAULT_CACHE) -> None:
    """Write the pictures, the clip and questions.json.

    Args:
        folder: Target, examples/ of the repository.
        cache: Digit archives; the digit picture is a held-out one of the UCI set (CC BY 4.0).
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    for name, scene in SCENES.items():
        image = scenes.draw_scene(scene, rng)
        image.save(folder / name, quality=90)  # PNG has no quality and ignores it
    images, labels = digits.uci_images(cache)
    glyph = digits.uci_glyph(images[int(np.flatnonzero(labels == 7)[1])])
    picture = Image.fromarray(255 - glyph).resize((336, 336), Image.Resampling.BICUBIC)
    picture.save(folder / "digit.png")
    _sign(cache).save(folder / "sign.png")
    _number(cache).save(folder / "number.png")
    _chart().save(folder / "chart.png")
    _photo(cache).save(folder / "cat.jpg", quality=88)
    _emoji(cache).save(folder / "umbrella.png")
    for index, frame in enumerate(clip_frames()):
        frame.save(folder / f"frame{index + 1}.png")
    write_clip(folder / CLIP)
    text = json.dumps(QUESTIONS, indent=2, ensure_ascii=False)
    (folder / "questions.json").write_text(text + "\n", "utf-8")
