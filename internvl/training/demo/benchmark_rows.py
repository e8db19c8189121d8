"""Rows of the demo's benchmarks: what the real ones ask, of pictures that the demo knows.

A maker takes a generator, the number of the picture and the material, and returns the rows about
one new picture (or clip, or pair): dicts of the columns that the real file has, with PIL images in
`image` or `images` and the frames of a clip in `frames`; `benchmarks.py` writes them. None means
that this scene does not allow the question, and the next one is drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from internvl.training.demo import dialogues, drawings, questions, reading, scenes
from internvl.training.demo.evaluate import Held
from internvl.training.demo.labels import LETTERS
from internvl.training.demo.phrasings import PHRASINGS, RELATION_WORDS
from internvl.training.demo.questions import QA, QUADRANTS, ShapeFacts, article
from internvl.training.demo.scenes import COLOURS, SHAPES, Scene, pick

Rng = np.random.Generator
Row = dict[str, Any]
Maker = Callable[[Rng, int, Held | None], list[Row] | None]

CIRCLE = 1_000_000  # between the index of a question and of its shifted copy, as in MMBench
CLIP_FRAMES = 16
_CLIP_SIDE = 224  # pixels at most; a frame is one tile of 112
_ABC = "ABCDE"
_EASY = ("colour_of", "shape_of", "position", "count")
_SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
_MOVES = ("left", "right", "up", "down")


# ---------------------------------------------------------------------- helpers
def _asked(qa: QA) -> str:
    """A question without the request of the benchmarks, which the runner adds."""
    return qa.question.removesuffix(_SHORT_ANSWER)


def _plain(rng: Rng, task: str, **slots: str) -> str:
    return pick(rng, PHRASINGS[task]).format(**slots)


def _with_letters(rng: Rng, right: str, others: Sequence[str], count: int = 4) -> Row:
    """Columns A, B, ... and `answer`: the right option among some of the others."""
    wrong = [each for each in others if each != right]
    kept = [wrong[int(k)] for k in rng.permutation(len(wrong))[: count - 1]]
    options = [str(each) for each in rng.permutation([right, *kept])]
    return {**dict(zip(_ABC, options, strict=False)), "answer": _ABC[options.index(right)]}


_OPTIONS: dict[str, Sequence[str]] = {
    "colour_of": COLOURS,
    "shape_of": SHAPES,
    "position": QUADRANTS,
    "relation": ("left", "right", "above", "below"),
    "count": [str(count) for count in range(1, 10)],
    "count_sub": [str(count) for count in range(6)],
}
_CATEGORIES = {
    "colour_of": "color", "shape_of": "shape", "relation": "spatial_relation",
    "count_sub": "count_of_some",
}  # fmt: skip


def _with_options(
    rng: Rng, kinds: Sequence[str], most: int
) -> tuple[str, QA, Sequence[str], Image.Image] | None:
    """A category, a question about a scene of up to `most` shapes, what could be the answer, and
    the picture."""
    kind = pick(rng, kinds)
    scene = scenes.shape_scene(rng, int(rng.integers(2, most + 1)))
    found = questions.SHAPE_BY_TASK[kind](rng, ShapeFacts(scene))
    if found is None or found.answer not in _OPTIONS[kind]:
        return None
    picture = scenes.draw_scene(scene, rng)
    return _CATEGORIES.get(kind, kind), found, _OPTIONS[kind], picture


# ---------------------------------------------------------------------- multiple choice
def choices(rng: Rng, number: int, held: Held | None) -> list[Row] | None:
    """MMBench: a question four times, its options shifted; copies name the row of the picture."""
    made = _with_options(rng, _EASY, 6)
    if made is None:
        return None
    category, qa, options, picture = made
    first = _with_letters(rng, qa.answer, options)
    texts, place = [first[letter] for letter in "ABCD"], "ABCD".index(first["answer"])
    rows: list[Row] = []
    for shift in range(4):
        shifted = texts[shift:] + texts[:shift]
        rows.append({
            "index": number + shift * CIRCLE, "question": _asked(qa), "hint": "",
            **dict(zip("ABCD", shifted, strict=True)), "answer": "ABCD"[(place - shift) % 4],
            "category": category, "l2-category": "perception", "split": "dev",
            "image": picture if shift == 0 else str(number),
        })  # fmt: skip
    return rows


def own_prompt(rng: Rng, number: int, held: Held | None) -> list[Row] | None:
    """MME-RealWorld: five options, the last of which is a refusal, and no request for a letter."""
    made = _with_options(rng, tuple(_OPTIONS), 9)
    if made is None:
        return None
    category, qa, options, picture = made
    cells = _with_letters(rng, qa.answer, options)
    cells["E"] = "This image doesn't feature it."
    area = "Reasoning" if category.startswith("count") else "Perception"
    return [{
        "index": number, "question": _asked(qa), **cells, "category": f"{area}/{category}",
        "l2-category": category, "image": picture,
    }]  # fmt: skip


def marked_images(rng: Rng, number: int, held: Held | None) -> list[Row] | None:
    """MMMU: the question says where its pictures belong; every second one is open."""
    made = _with_options(rng, _EASY, 6)
    if made is None:
        return None
    category, qa, options, picture = made
    question = _asked(qa)
    row: Row = {
        "index": f"validation_Drawing_{number + 1}", "question": f"<image 1> {question}",
        "category": category, "l2-category": "Drawing", "split": "validation", "image": picture,
    }  # fmt: skip
    letters = _with_letters(rng, qa.answer, options)
    return [row | ({"answer": qa.answer} if number % 2 else letters)]


# ---------------------------------------------------------------------- yes or no
def _names(scene: Scene) -> set[str]:
    return {item.name for item in scene.items}


def _exists(rng: Rng, name: str) -> str:
    return _plain(rng, "exist", a=article(name), p=questions.plural(name))


def objects(rng: Rng, number: int, held: Held | None) -> list[Row] | None:
    """POPE: one object that is there, which counts in all categories, and three that are not.

    Random is any other object, popular has the commonest colour of the file's pictures (red, see
    `_reddish`), adversarial takes colour and shape from two objects of this picture.
    """
    scene = _reddish(rng, scenes.shape_scene(rng, int(rng.integers(2, 7))))
    there = _names(scene)
    every = {f"{colour} {shape}" for colour in COLOURS for shape in SHAPES}
    absent = {
        "random": every - there,
        "popular": {name for name in every - there if name.startswith("red ")},
        "adversarial": {f"{a.colour} {b.shape}" for a in scene.items for b in scene.items} - there,
    }
    if not all(absent.values()):
        return None
    picture = scenes.draw_scene(scene, rng)
    asked = [(pick(rng, sorted(there)), "Yes", ",".join(absent))]
    asked += [(pick(rng, sorted(names)), "No", kind) for kind, names in absent.items()]
    return [
        {"index": 4 * number + k, "question": _exists(rng, name), "answer": answer,
         "category": category, "image": picture}
        for k, (name, answer, category) in enumerate(asked)
    ]  # fmt: skip


def _reddish(rng: Rng, scene: Scene) -> Scene:
    """The scene with one object painted red, where that can be seen; so red is the commonest."""
    rgb = scenes.sample_rgb(rng, "red", scene.background)
    if rgb is None:
        return scene
    index = int(rng.integers(len(scene.items)))
    return _repainted(scene, index, "red", rgb)


def _repainted(scene: Scene, index: int, colour: str, rgb: scenes.RGB) -> Scene:
    items = list(scene.items)
    items[index] = replace(items[index], colour=colour, rgb=rgb)
    return replace(scene, items=tuple(items))


def pairs(rng: Rng, number: int, held: Held | None) -> list[Row] | None:
    """MME: two questions about a picture, one to be answered yes and one no."""
    subtask = ("existence", "position", "color")[number % 3]
    scene = scenes.shape_scene(rng, int(rng.integers(2, 7)))
    asked = _both_ways(rng, scene) if subtask == "position" else _there_or_not(rng, scene, subtask)
    if asked is None:
        return None
    picture = scenes.draw_scene(scene, rng)
    return [
        {"index": 2 * number + k, "category": subtask, "question": question, "answer": answer,
         "image_path": f"{subtask}/{number:06d}.png", "image": picture}
        for k, (question, answer) in enumerate(zip(asked, ("Yes", "No"), strict=True))
    ]  # fmt: skip


def _both_ways(rng: Rng, scene: Scene) -> tuple[str, str] | None:
    """Is one object left (right, above, below) of another, and is it on the opposite side?"""
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    names = ShapeFacts(scene).names
    known = [item for item in scene.items if names[item.name] == 1]
    clear = [(a, b) for a, b in itertools.permutations(known, 2) if questions.direction(a, b)]
    if not clear:
        return None
    a, b = pick(rng, clear)
    way = questions.direction(a, b)
    assert way is not None  # the others are not clear
    form = pick(rng, PHRASINGS["relation_yn"])
    words = [pick(rng, RELATION_WORDS[each]) for each in (way, opposite[way])]
    one, two = (form.format(o=a.name, o2=b.name, r=each) for each in words)
    return one, two


def _there_or_not(rng: Rng, scene: Scene, subtask: str) -> tuple[str, str] | None:
    item = pick(rng, scene.items)
    if subtask == "existence":  # of a shape in any colour
        absent = [shape for shape in SHAPES if all(shape != other.shape for other in scene.items)]
        names = (item.shape, pick(rng, absent)) if absent else None
    else:  # of this shape in another colour
        others = [c for c in COLOURS if f"{c} {item.shape}" not in _names(scene)]
        names = (item.name, f"{pick(rng, others)} {item.shape}") if others else None
    if names is None:
        return None
    return _exists(rng, names[0]), _exists(rng, names[1])


def illusions(rng: Rng, number: int, held: Held | None) -> list[Row] | None:
    """HallusionBench: two questions about a figure and about its edited twin, where the answers
    change places: one object was painted in another colour."""
    scene = scenes.shape_scene(rng, int(rng.integers(2, 6)))
    index = int(rng.integers(len(scene.items)))
    old = scene.items[index]
    colour = pick(rng, [each for each in COLOURS if each != old.colour])
    rgb = scenes.sample_rgb(rng, colour, scene.background)
    if rgb is None:
        return None
    edited = _repainted(scene, index, colour, rgb)
    names = (old.name, edited.items[index].name)
    if names[0] in _names(edited) or names[1] in _names(scene):
        return None
    asked = [_exists(rng, name) for name in names]
    rows: list[Row] = []
    for figure, shown in enumerate((scene, edited)):
        picture = scenes.draw_scene(shown, rng)
        for k, question in enumerate(asked):
            rows.append({
                "index": f"VD_shapes_x_{number}_{figure}_{k}", "category": "VD",
                "l2-category": "shapes", "question": question,
                "answer": "Yes" if k == figure else "No", "image": picture,
            })  # fmt: skip
    return rows


# ---------------------------------------------------------------------- grounding
def _boxed(rng: Rng) -> tuple[str, list[float], Scene, Image.Image] | None:
    scene = scenes.shape_scene(rng)
    facts = ShapeFacts(scene)
    item = pick(rng, scene.items)
    name = facts.reference(rng, item)
    if name is None:
        return None
    edges = (min(1.0, max(0.0, edge)) for edge in scenes.box(item, scene))
    sides = (scene.width, scene.height) * 2
    box = [round(edge * side, 2) for edge, side in zip(edges, sides, strict=True)]
    return name, box, scene, scenes.draw_scene(scene, rng)


def regions(rng: Rng, number: int, held: Held | None) -> list[Row] | None:
    """RefCOCO in the form of the official scripts: one object by a phrase, box in pixels."""
    made = _boxed(rng)
    if made is None:
        return None
    name, box, scene, picture = made
    return [{
        "image": picture, "sent": name, "bbox": box, "height": scene.height, "width": scene.width,
    }]  # fmt: skip


def regions_table(rng: Rng, number: int, held: Held | None) -> list[Row] | None:
    """RefCOCO in the form of VLMEvalKit: the whole prompt, corners in columns, splits by size."""
    made = _boxed(rng)
    if made is None:
        return None
    name, box, scene, picture = made
    corners = dict(zip(("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"), box, strict=True))
    split = "RefCOCO+_testA" if len(scene.items) <= 3 else "RefCOCO+_testB"
    return [{
        "index": number, "question": PHRASINGS["box"][0].format(o=name), "answer": str(box),
        "split": split, "width": scene.width, "height": scene.height, **corners, "image": picture,
    }]  # fmt: skip


# ---------------------------------------------------------------------- several images, video
def _pair(rng: Rng) -> tuple[QA, list[Image.Image]] | None:
    both = [scenes.shape_scene(rng), scenes.shape_scene(rng)]
    task = pick(rng, ("which", "more", "pair_count"))
    found = questions.PAIR_BY_TASK[task](rng, (ShapeFacts(both[0]), ShapeFacts(both[1])))
    if found is None:
        return None
    return found, [scenes.draw_scene(scene, rng) for scene in both]


def several_images(rng: Rng, number: int, held: Held | None) -> list[Row] | None:
    """Mantis-Eval: two images and a short answer."""
    made = _pair(rng)
    if made is None:
        return None
    qa, pictures = made
    return [{
        "id": f"drawn_{number}", "question_type": "short-answer", "question": _asked(qa),
        "answer": qa.answer, "data_source": "drawn", "category": qa.task, "images": pictures,
    }]  # fmt: skip


def images_by_letter(rng: Rng, number: int, held: Held | None) -> list[Row] | None:
    """BLINK: two images in one cell, and the letter of an option."""
    made = _pair(rng)
    if made is None or made[0].task == "pair_count":
        return None
    qa, pictures = made
    cells = _with_letters(rng, qa.answer, ("Image-1", "Image-2"))
    return [{
        "index": number, "question": _asked(qa), **cells, "category": qa.task, "image": pictures,
        "image_path": [f"{number:06d}_{k + 1}.png" for k in range(len(pictures))],
    }]  # fmt: skip


def _clip(rng: Rng) -> tuple[str, QA, Sequence[str], list[Image.Image]]:
    shots, moves = dialogues.clip(rng, CLIP_FRAMES)
    scale = min(1.0, _CLIP_SIDE / max(shots[0].width, shots[0].height))
    width, height = (round(scale * side) for side in (shots[0].width, shots[0].height))
    shots = [replace(shot, width=width, height=height) for shot in shots]
    task = pick(rng, ("motion", "video_colour", "video_shape"))
    options = {"motion": _MOVES, "video_colour": COLOURS, "video_shape": SHAPES}[task]
    found = questions.about_clip(rng, shots, moves, task)
    assert found is not None  # only the place in a frame may be unclear
    names = {"motion": "Moving Direction", "video_colour": "Moving Attribute"}
    frames = [scenes.draw_scene(shot, rng) for shot in shots]
    return names.get(task, "Object Recognition"), found, options, frames


def clips(rng: Rng, number: int, held: Held | None) -> list[Row] | None:
    """MVBench: a clip of 16 frames, the candidates by their text."""
    task, qa, options, frames = _clip(rng)
    cells = _with_letters(rng, qa.answer, options)
    candidates = [cells[letter] for letter in _ABC if letter in cells]
    return [{
        "index": number, "task_type": task, "prefix": "video/", "data_type": "video",
        "bound": False, "start": "", "end": "", "video": f"mvbench_{number:06d}.mp4",
        "question": _asked(qa), "answer": qa.answer, "candidates": candidates, "frames": frames,
    }]  # fmt: skip


def clips_own_prompt(rng: Rng, number: int, held: Held | None) -> list[Row] | None:
    """CG-Bench's long questions: multiple choice without a request for a letter."""
    task, qa, options, frames = _clip(rng)
    return [{
        "index": number, "video": f"cgbench_{number:06d}.mp4", "question": _asked(qa),
        **_with_letters(rng, qa.answer, options), "category": task, "frames": frames,
    }]  # fmt: skip


# ---------------------------------------------------------------------- reading
def _need(held: Held | None) -> Held:
    if held is None:
        raise ValueError("this benchmark prints words; pass what the package archives hold.")
    return held


def _word(rng: Rng, held: Held, shortest: int = 3) -> str:
    length = int(rng.integers(shortest, 7))
    return pick(rng, [word for word in held.material.words if len(word) == length])


def documents(rng: Rng, number: int, held: Held | None) -> list[Row] | None:
    """DocVQA: a printed word of 3 to 6 letters in a font of the test."""
    source = _need(held)
    word = _word(rng, source)
    picture = dialogues.word_drawing(rng, source.material, word).image
    asked = _asked(reading.about_text(rng, word, "word"))
    return [{"index": number, "question": asked, "answer": [word], "image": picture}]


def scene_text(rng: Rng, number: int, held: Held | None) -> list[Row] | None:
    """TextVQA: what ten people read. One in seven of them gets a letter wrong."""
    source = _need(held)
    word = _word(rng, source)
    picture = dialogues.word_drawing(rng, source.material, word).image
    asked = _asked(reading.about_text(rng, word, "word"))
    people = [word if rng.random() < 6 / 7 else _misread(rng, word) for _ in range(10)]
    answers = [each.lower() for each in people]
    return [{"index": number, "question": asked, "answer": answers, "image": picture}]


def _misread(rng: Rng, word: str) -> str:
    place = int(rng.integers(len(word)))
    return word[:place] + pick(rng, LETTERS.replace(word[place], "")) + word[place + 1 :]


def charts(rng: Rng, number: int, held: Held | None) -> list[Row] | None:
    """ChartQA: questions of people (which bar, how many) and augmented ones (values)."""
    what = drawings.sample_chart(rng)
    picture = drawings.chart(rng, what, _need(held).material.sources.fonts).image
    human = number % 2 == 0
    task = pick(rng, ("highest", "lowest", "bars", "higher", "bar_at")) if human else "value"
    qa = reading.about_chart(rng, what, task)
    return [{
        "index": number, "question": _asked(qa), "answer": qa.answer,
        "split": "human" if human else "augmented", "image": picture,
    }]  # fmt: skip


def ocr(rng: Rng, number: int, held: Held | None) -> list[Row] | None:
    """OCRBench: five of its categories."""
    source = _need(held)
    kinds = (
        "Regular Text Recognition", "Non-Semantic Text Recognition", "Digit String Recognition",
        "Handwriting Recognition", "Scene Text-centric VQA",
    )  # fmt: skip
    kind = kinds[number % len(kinds)]
    if kind == "Handwriting Recognition":
        drawing, text = dialogues.number_drawing(rng, source.material, 3, uci=0.0)
        qa = reading.about_number(rng, text, "number")
    else:
        text = {
            "Non-Semantic Text Recognition": _some(rng, LETTERS),
            "Digit String Recognition": _some(rng, "0123456789"),
        }.get(kind) or _word(rng, source)
        drawing = dialogues.word_drawing(rng, source.material, text)
        qa = reading.about_text(rng, text, "letter_at" if kind == kinds[-1] else "word")
    return [{
        "index": number, "question": _asked(qa), "answer": [qa.answer], "category": kind,
        "image": drawing.image,
    }]  # fmt: skip


def _some(rng: Rng, characters: str) -> str:
    return "".join(pick(rng, characters) for _ in range(int(rng.integers(3, 6))))
