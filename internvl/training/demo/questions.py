"""Questions about drawn scenes, several phrasings per task, with the true short answers.

Answers are drawn evenly: yes and no, the counts, the directions. A function that cannot ask its
question about a scene (two red circles, say, so "the red circle" means nothing) returns None.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from internvl.training.demo.phrasings import NO_PICTURE, PHRASINGS, RELATION_WORDS, TEXT_ONLY
from internvl.training.demo.scenes import COLOURS, SHAPES, Item, Scene, box, pick

QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


@dataclass(frozen=True)
class QA:
    """One question, its answer, and the task it is counted under."""

    task: str
    question: str
    answer: str


def article(name: str) -> str:
    """``name`` with its indefinite article."""
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def ask(rng: np.random.Generator, task: str, answer: str, **slots: str) -> QA:
    """A question of ``task`` in a random phrasing, now and then typed carelessly."""
    question = pick(rng, PHRASINGS[task]).format(**slots)
    return QA(task, vary(rng, question), answer)


def vary(rng: np.random.Generator, question: str) -> str:
    """Small differences in typing: case, missing mark, a courtesy, the benchmarks' short-answer
    request."""
    if "gray" in question and rng.random() < 0.25:
        question = question.replace("gray", "grey")
    kind = rng.random()
    if kind < 0.07:
        return question.lower()
    if kind < 0.13:
        return question[:-1]
    if kind < 0.16:
        return question + "\nAnswer the question using a single word or phrase."
    if kind < 0.18:
        return "Please answer: " + question
    return question


class ShapeFacts:
    """What can be asked about a shape scene: names, counts, unique attributes."""

    def __init__(self, scene: Scene):
        self.items = scene.items
        self.shapes = Counter(item.shape for item in scene.items)
        self.colours = Counter(item.colour for item in scene.items)
        self.names = Counter(item.name for item in scene.items)

    def reference(self, rng: np.random.Generator, item: Item) -> str | None:
        """A phrase that means this item and no other, without an article."""
        options = []
        if self.names[item.name] == 1:
            options += [item.name, item.name]
        if self.shapes[item.shape] == 1:
            options.append(item.shape)
        if self.colours[item.colour] == 1:
            options.append(f"{item.colour} {pick(rng, ('object', 'shape'))}")
        if len(self.items) == 1:
            options.append(pick(rng, ("object", "shape")))
        return pick(rng, options) if options else None

    def has(self, shape: str, colour: str) -> bool:
        """Whether some item fits; an empty string fits all."""
        return any(shape in ("", i.shape) and colour in ("", i.colour) for i in self.items)


def quadrant(item: Item) -> str | None:
    """``top left`` ... or ``center``; None when the item is too near a border line to say."""
    dx, dy = item.x - 0.5, item.y - 0.5
    if abs(dx) <= 0.06 and abs(dy) <= 0.06:
        return "center"
    if min(abs(dx), abs(dy)) < 0.075:
        return None
    return f"{'top' if dy < 0 else 'bottom'} {'left' if dx < 0 else 'right'}"


def direction(a: Item, b: Item) -> str | None:
    """Where ``a`` is as seen from ``b``; None when neither axis clearly dominates."""
    dx, dy = a.x - b.x, a.y - b.y
    if max(abs(dx), abs(dy)) < 0.16 or max(abs(dx), abs(dy)) < 1.4 * min(abs(dx), abs(dy)):
        return None
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def _colour(rng: np.random.Generator, facts: ShapeFacts) -> QA | None:
    if len(facts.items) != 1:
        return None
    item = facts.items[0]
    word = pick(rng, ("object", "shape", item.shape))
    return ask(rng, "colour", item.colour, any=word)


def _shape(rng: np.random.Generator, facts: ShapeFacts) -> QA | None:
    if len(facts.items) != 1:
        return None
    return ask(rng, "shape", facts.items[0].shape, c=facts.items[0].colour)


def _colour_of(rng: np.random.Generator, facts: ShapeFacts) -> QA | None:
    item = pick(rng, facts.items)
    if len(facts.items) == 1 or facts.shapes[item.shape] != 1:
        return None
    return ask(rng, "colour_of", item.colour, s=item.shape)


def _shape_of(rng: np.random.Generator, facts: ShapeFacts) -> QA | None:
    item = pick(rng, facts.items)
    if len(facts.items) == 1 or facts.colours[item.colour] != 1:
        return None
    return ask(rng, "shape_of", item.shape, c=item.colour)


def _thing(rng: np.random.Generator, shape: str, colour: str) -> str:
    return f"{colour} {shape or pick(rng, ('object', 'shape'))}".strip()


def _wanted(rng: np.random.Generator, facts: ShapeFacts, present: bool) -> tuple[str, str] | None:
    """(shape, colour) that is or is not in the scene; absent pairs often share one attribute with
    it."""
    for _ in range(12):
        item = pick(rng, facts.items)
        shape, colour = item.shape, item.colour
        form = rng.random()
        if not present:
            if rng.random() < 0.6:
                colour = pick(rng, COLOURS)
            else:
                shape = pick(rng, SHAPES)
            if form < 0.4:
                shape, colour = pick(rng, SHAPES), pick(rng, COLOURS)
        if form < 0.2:
            colour = ""
        elif form < 0.4:
            shape = ""
        if facts.has(shape, colour) == present:
            return shape, colour
    return None


def _exist(rng: np.random.Generator, facts: ShapeFacts) -> QA | None:
    present = bool(rng.random() < 0.5)
    wanted = _wanted(rng, facts, present)
    if wanted is None:
        return None
    name = _thing(rng, *wanted)
    return ask(rng, "exist", "yes" if present else "no", a=article(name), p=plural(name))


def _count(rng: np.random.Generator, facts: ShapeFacts) -> QA | None:
    return ask(rng, "count", str(len(facts.items)))


def _count_sub(rng: np.random.Generator, facts: ShapeFacts) -> QA | None:
    values: dict[int, list[str]] = {}
    for shape in SHAPES:
        values.setdefault(facts.shapes[shape], []).append(plural(shape))
    for colour in COLOURS:
        words = [f"{colour} objects", f"{colour} shapes"]
        values.setdefault(facts.colours[colour], []).append(pick(rng, words))
    for name, number in facts.names.items():
        values.setdefault(number, []).append(plural(name))
    value = pick(rng, sorted(values))
    return ask(rng, "count_sub", str(value), p=pick(rng, values[value]))


def plural(name: str) -> str:
    """``crosses``, ``red circles``."""
    return f"{name}es" if name.endswith("s") else f"{name}s"


def _position(rng: np.random.Generator, facts: ShapeFacts) -> QA | None:
    item = pick(rng, facts.items)
    where, name = quadrant(item), facts.reference(rng, item)
    if where is None or name is None:
        return None
    return ask(rng, "position", where, o=name)


def _two(rng: np.random.Generator, facts: ShapeFacts) -> tuple[str, str, str] | None:
    if len(facts.items) < 2:
        return None
    for _ in range(6):
        a, b = (facts.items[int(k)] for k in rng.choice(len(facts.items), 2, replace=False))
        where = direction(a, b)
        first, second = facts.reference(rng, a), facts.reference(rng, b)
        if where and first and second:
            return first, second, where
    return None


def _relation(rng: np.random.Generator, facts: ShapeFacts) -> QA | None:
    found = _two(rng, facts)
    return found and ask(rng, "relation", found[2], o=found[0], o2=found[1])


def _relation_yn(rng: np.random.Generator, facts: ShapeFacts) -> QA | None:
    found = _two(rng, facts)
    if found is None:
        return None
    said = found[2]
    true = bool(rng.random() < 0.5)
    if not true:
        opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
        said = opposite[said]
    words = pick(rng, RELATION_WORDS[said])
    return ask(rng, "relation_yn", "yes" if true else "no", o=found[0], o2=found[1], r=words)


def _describe(rng: np.random.Generator, facts: ShapeFacts) -> QA | None:
    items = sorted(facts.items, key=lambda item: item.x)
    names = [article(item.name) for item in items]
    if len(items) > 3:
        return ask(rng, "describe", f"{len(items)} objects")
    if any(b.x - a.x < 0.1 for a, b in itertools.pairwise(items)):
        return None
    answer = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return ask(rng, "describe", answer)


Asker = Callable[[np.random.Generator, ShapeFacts], QA | None]
SHAPE_TASKS: tuple[tuple[Asker, float], ...] = (
    (_colour, 0.6), (_shape, 0.6), (_colour_of, 1.0), (_shape_of, 1.0), (_exist, 1.5),
    (_count, 1.0), (_count_sub, 1.2), (_position, 1.5), (_relation, 1.6), (_relation_yn, 0.8),
    (_describe, 0.35),
)  # fmt: skip
SHAPE_BY_TASK = {asker.__name__[1:]: asker for asker, _ in SHAPE_TASKS}
_SHAPE_SHARES = np.cumsum([weight for _, weight in SHAPE_TASKS])


def about_shapes(
    rng: np.random.Generator,
    scene: Scene,
    facts: ShapeFacts | None = None,
    shares: np.ndarray = _SHAPE_SHARES,
) -> QA:
    """A random question about a shape scene; ``shares``: cumulative weights of the tasks."""
    facts = facts or ShapeFacts(scene)
    while True:
        index = int(np.searchsorted(shares, rng.random() * shares[-1], "right"))
        found = SHAPE_TASKS[index][0](rng, facts)
        if found is not None:
            return found


def about_box(rng: np.random.Generator, scene: Scene, facts: ShapeFacts) -> QA | None:
    """Where a named object is, as a box of the form that ``internvl.grounding`` reads.

    Coordinates are thousandths of the picture, rounded to hundredths: one thousandth of a tile is a
    ninth of a pixel.
    """
    item = pick(rng, facts.items)
    name = facts.reference(rng, item)
    if name is None:
        return None
    numbers = [round(100 * min(1.0, max(0.0, edge))) * 10 for edge in box(item, scene)]
    where = ", ".join(str(number) for number in numbers)
    question = PHRASINGS["box"][0].format(o=name)
    return QA("box", question, f"<ref>{name}</ref><box>[[{where}]]</box>")


def about_digit(rng: np.random.Generator, label: int, task: str | None = None) -> QA:
    """A random question about a picture of one digit."""
    if task is None:
        task = ("digit", "digit", "digit_is", "parity", "describe")[int(rng.integers(5))]
    if task == "digit":
        return ask(rng, task, str(label))
    if task == "parity":
        return ask(rng, task, "odd" if label % 2 else "even")
    if task == "describe":
        return ask(rng, task, f"the digit {label}")
    shown = label if rng.random() < 0.5 else int((label + rng.integers(1, 10)) % 10)
    return ask(rng, task, "yes" if shown == label else "no", d=str(shown))


def image_name(rng: np.random.Generator, index: int) -> str:
    """``Image-1`` or ``the first image``."""
    return f"Image-{index + 1}" if rng.random() < 0.5 else f"the {ORDINALS[index]} image"


def _which(rng: np.random.Generator, pair: tuple[ShapeFacts, ShapeFacts]) -> QA | None:
    index = int(rng.integers(2))
    wanted = _wanted(rng, pair[index], True)
    if wanted is None or pair[1 - index].has(*wanted):
        return None
    return ask(rng, "which", f"Image-{index + 1}", a=article(_thing(rng, *wanted)))


def _more(rng: np.random.Generator, pair: tuple[ShapeFacts, ShapeFacts]) -> QA | None:
    first, second = (len(facts.items) for facts in pair)
    return None if first == second else ask(rng, "more", f"Image-{1 if first > second else 2}")


def _pair_attribute(rng: np.random.Generator, pair: tuple[ShapeFacts, ShapeFacts]) -> QA | None:
    index = int(rng.integers(2))
    facts, name = pair[index], image_name(rng, index)
    item = pick(rng, facts.items)
    if rng.random() < 0.5:
        if facts.shapes[item.shape] != 1:
            return None
        return ask(rng, "pair_colour", item.colour, s=item.shape, k=name)
    if facts.colours[item.colour] != 1:
        return None
    return ask(rng, "pair_shape", item.shape, c=item.colour, k=name)


def _pair_count(rng: np.random.Generator, pair: tuple[ShapeFacts, ShapeFacts]) -> QA | None:
    index = int(rng.integers(2))
    return ask(rng, "pair_count", str(len(pair[index].items)), k=image_name(rng, index))


PAIR_TASKS = (_which, _which, _which, _more, _pair_attribute, _pair_attribute, _pair_count)
PAIR_BY_TASK = {"which": _which, "more": _more, "pair_count": _pair_count}


def about_pair(rng: np.random.Generator, pair: tuple[ShapeFacts, ShapeFacts]) -> QA:
    """A random question about two shape scenes."""
    while True:
        found = pick(rng, PAIR_TASKS)(rng, pair)
        if found is not None:
            return found


def about_clip(
    rng: np.random.Generator, frames: list[Scene], moves: str, task: str | None = None
) -> QA | None:
    """A question about a clip of one moving object; None when the drawn task does not fit."""
    item = frames[0].items[0]
    word = pick(rng, ("object", "shape", item.shape, item.name))
    task = (
        task
        or ("motion", "motion", "motion", "frame", "frame", "video_colour", "video_shape")[
            int(rng.integers(7))
        ]
    )
    if task == "motion":
        return ask(rng, task, moves, any=word)
    if task == "video_colour":
        return ask(rng, task, item.colour, s=item.shape)
    if task == "video_shape":
        return ask(rng, task, item.shape)
    index = int(rng.integers(len(frames)))
    where = quadrant(frames[index].items[0])
    if where is None or where == "center":
        return None
    names = [f"Frame-{index + 1}", f"the {ORDINALS[index]} frame"]
    if index == len(frames) - 1:
        names.append("the last frame")
    return ask(rng, task, where, any=word, f=pick(rng, names))


def follow_up(rng: np.random.Generator, before: QA, facts: ShapeFacts) -> QA | None:
    """An elliptic question ("And the blue star?") that only makes sense after ``before``."""
    if before.task == "position":
        found = _position(rng, facts)
        asker = "position"
    elif before.task == "colour_of":
        found, asker = _colour_of(rng, facts), "colour_of"
    else:
        return None
    if found is None:
        return None
    item_name = _named_in(found.question, facts)
    if item_name is None:
        return None
    lead = pick(rng, ("And the {}?", "What about the {}?"))
    return QA(asker, lead.format(item_name), found.answer)


def _named_in(question: str, facts: ShapeFacts) -> str | None:
    lowered = question.lower()
    for name in facts.names:
        if name in lowered:
            return name
    for shape in facts.shapes:
        if facts.shapes[shape] == 1 and f"the {shape}" in lowered:
            return shape
    return None


def without_picture(rng: np.random.Generator) -> QA:
    """A text-only exchange: small talk, or a question about a picture that is not there."""
    if rng.random() < 0.6:
        questions, answer = pick(rng, TEXT_ONLY)
        return QA("text", pick(rng, questions), answer)
    item = Item(0.3, 0.3, 0.3, (0, 0, 0), shape=pick(rng, SHAPES), colour=pick(rng, COLOURS))
    found = about_shapes(rng, Scene((item,), (255, 255, 255), 112, 112))
    return QA("text", found.question, NO_PICTURE)
