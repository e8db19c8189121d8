"""Held-out accuracy of a checkpoint, through files on disk and the model's own chat path.

Pictures are drawn from seeds and from material that training never uses (the MNIST test split,
unseen words in unseen fonts, another style of emoji), written as PNG or JPEG files, read back by
the image processor, and asked about with ``batch_chat`` in the real prompt template, greedily. An
answer counts when the whole text is equal; a box when it overlaps the true one by more than half.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from internvl import grounding
from internvl.training.demo import (
    archives,
    dialogues,
    drawings,
    naming,
    pictures,
    questions,
    reading,
    scenes,
)
from internvl.training.demo.dialogues import Dialogue
from internvl.training.demo.material import Material
from internvl.training.demo.questions import ShapeFacts

logger = logging.getLogger(__name__)

SEED = 515_151
SETTINGS = {"max_new_tokens": 64, "do_sample": False}
ENOUGH_OVERLAP = 0.5
Rng = np.random.Generator


@dataclass(frozen=True)
class Case:
    """A dialogue of which the last turn counts under ``task``, and the files of its pictures."""

    task: str
    dialogue: Dialogue
    files: tuple[Path, ...] = ()

    @property
    def expected(self) -> str:
        """The right answer of the last turn."""
        return self.dialogue.turns[-1].answer

    def question(self, turn: int) -> str:
        """The text to send; frames are introduced as the processor does it."""
        text = self.dialogue.asked(turn)
        frames = "".join(f"Frame-{k + 1}: <image>\n" for k in range(len(self.files)))
        return text.replace("<video>\n", frames)


@dataclass(frozen=True)
class Held:
    """What the cases are made of: the test split, and the pictures that training knows."""

    material: Material
    known: dict[str, tuple[pictures.Picture, ...]]

    @classmethod
    def load(cls, cache: Path = archives.DEFAULT_CACHE) -> Held:
        """Everything from the archives in ``cache``."""
        return cls(Material.load("test", cache), pictures.load("train", cache))


def _about_scene(task: str, least: int = 1, most: int = 6) -> Callable[[Rng, Any], Dialogue | None]:
    def make(rng: Rng, held: Any) -> Dialogue | None:
        scene = scenes.shape_scene(rng, int(rng.integers(least, most + 1)))
        found = questions.SHAPE_BY_TASK[task](rng, ShapeFacts(scene))
        if found is None:
            return None
        return Dialogue((found,), (scenes.draw_scene(scene, rng),))

    return make


def _box(rng: Rng, held: Any) -> Dialogue | None:
    scene = scenes.shape_scene(rng)
    found = questions.about_box(rng, scene, ShapeFacts(scene))
    if found is None:
        return None
    return Dialogue((found,), (scenes.draw_scene(scene, rng),))


def _second_turn(rng: Rng, held: Any) -> Dialogue | None:
    scene = scenes.shape_scene(rng)
    facts = ShapeFacts(scene)
    first = questions.about_shapes(rng, scene, facts)
    second = questions.follow_up(rng, first, facts) if rng.random() < 0.25 else None
    second = second or questions.about_shapes(rng, scene, facts)
    if second.question == first.question:
        return None
    return Dialogue((first, second), (scenes.draw_scene(scene, rng),))


def _later_image(rng: Rng, held: Any) -> Dialogue:
    both = [scenes.shape_scene(rng), scenes.shape_scene(rng)]
    turns = tuple(questions.about_shapes(rng, scene) for scene in both)
    return Dialogue(turns, tuple(scenes.draw_scene(scene, rng) for scene in both), "later")


def _pair(task: str) -> Callable[[Rng, Any], Dialogue | None]:
    def make(rng: Rng, held: Any) -> Dialogue | None:
        both = [scenes.shape_scene(rng), scenes.shape_scene(rng)]
        found = questions.PAIR_BY_TASK[task](rng, (ShapeFacts(both[0]), ShapeFacts(both[1])))
        shown = tuple(scenes.draw_scene(scene, rng) for scene in both)
        if found is None:
            return None
        return Dialogue((found,), shown, "pair")

    return make


def _clip(task: str) -> Callable[[Rng, Any], Dialogue | None]:
    def make(rng: Rng, held: Any) -> Dialogue | None:
        shots, moves = dialogues.clip(rng)
        found = questions.about_clip(rng, shots, moves, task)
        shown = tuple(scenes.draw_scene(shot, rng) for shot in shots)
        if found is None:
            return None
        return Dialogue((found,), shown, "video")

    return make


def _digits(count: int) -> Callable[[Rng, Held], Dialogue]:
    def make(rng: Rng, held: Held) -> Dialogue:
        drawing, text = dialogues.number_drawing(rng, held.material, count, uci=0.0)
        asked = (
            questions.about_digit(rng, int(text), "digit")
            if count == 1
            else reading.about_number(rng, text, "number")
        )
        return Dialogue((asked,), (drawing.image,))

    return make


def _word(rng: Rng, held: Held) -> Dialogue:
    """Lengths 3-6 are equally likely."""
    length = int(rng.integers(3, 7))
    text = scenes.pick(rng, [word for word in held.material.words if len(word) == length])
    drawing = dialogues.word_drawing(rng, held.material, text)
    return Dialogue((reading.about_text(rng, text, "word"),), (drawing.image,))


def _named(kind: str, *, known: bool) -> Callable[[Rng, Held], Dialogue]:
    def make(rng: Rng, held: Held) -> Dialogue:
        pool = held.known if known else held.material.sources.pictures
        found = scenes.pick(rng, pool[kind])
        drawing = drawings.photo(rng, found) if kind == "photo" else drawings.named(rng, [found])
        return Dialogue((naming.about_picture(rng, found, kind),), (drawing.image,))

    return make


def _chart(task: str) -> Callable[[Rng, Held], Dialogue]:
    def make(rng: Rng, held: Held) -> Dialogue:
        what = drawings.sample_chart(rng)
        drawing = drawings.chart(rng, what, held.material.sources.fonts)
        return Dialogue((reading.about_chart(rng, what, task),), (drawing.image,))

    return make


Maker = Callable[[Rng, Any], Dialogue | None]
# Row of the table: its maker. Those of NEEDS_ARCHIVES use ``Held``, the others ignore it.
TASKS: dict[str, Maker] = {
    "colour": _about_scene("colour", 1, 1),
    "shape": _about_scene("shape", 1, 1),
    "colour of one": _about_scene("colour_of", 2),
    "shape of one": _about_scene("shape_of", 2),
    "exists": _about_scene("exist"),
    "position": _about_scene("position"),
    "relation": _about_scene("relation", 2),
    "relation, yes or no": _about_scene("relation_yn", 2),
    "count 1-6": _about_scene("count"),
    "count 1-9": _about_scene("count", 1, 9),
    "count of some": _about_scene("count_sub"),
    "description": _about_scene("describe"),
    "which of two images": _pair("which"),
    "more of two images": _pair("more"),
    "motion": _clip("motion"),
    "place in a frame": _clip("frame"),
    "second turn": _second_turn,
    "image in the second turn": _later_image,
    "box": _box,
    "one digit": _digits(1),
    "two digits": _digits(2),
    "three digits": _digits(3),
    "word": _word,
    "emoji, unseen style": _named("emoji", known=False),
    "emoji, known style": _named("emoji", known=True),
    "flag, unseen style": _named("flag", known=False),
    "flag, known style": _named("flag", known=True),
    "chart: highest": _chart("highest"),
    "chart: value": _chart("value"),
    "photo": _named("photo", known=True),
}
NEEDS_ARCHIVES = tuple(TASKS)[tuple(TASKS).index("one digit") :]


def cases(
    count: int, held: Held | None, *, seed: int = SEED, tasks: Sequence[str] | None = None
) -> Iterator[Case]:
    """``count`` cases of every task (or of ``tasks``); the same ones for the same seed.

    Raises:
        ValueError: a task that does not exist, or one that needs the archives without ``held``.
    """
    wanted = list(TASKS) if tasks is None else list(tasks)
    if unknown := [task for task in wanted if task not in TASKS]:
        raise ValueError(f"no tasks {unknown}; known are {list(TASKS)}")
    if held is None and (needy := [task for task in wanted if task in NEEDS_ARCHIVES]):
        raise ValueError(f"tasks {needy} are made of the package archives; pass what they hold")
    for task in wanted:
        rng, made = np.random.default_rng([seed, list(TASKS).index(task)]), 0
        while made < count:
            dialogue = TASKS[task](rng, held)
            if dialogue is not None:
                yield Case(task, dialogue)
                made += 1


def write(case: Case, folder: Path, number: int) -> Case:
    """The case with its pictures as files: PNG, every third one JPEG."""
    files = []
    for index, picture in enumerate(case.dialogue.pictures):
        suffix = ".jpg" if number % 3 == 0 else ".png"
        path = folder / f"{number:05d}-{index}{suffix}"
        picture.save(path, quality=90)  # PNG has no quality and ignores it
        files.append(path)
    return replace(case, dialogue=replace(case.dialogue, pictures=()), files=tuple(files))


def swapped(written: Sequence[Case]) -> list[Case]:
    """Every case with the pictures of the next one of its task: what guessing reaches."""
    groups: dict[str, list[Case]] = {}
    for case in written:
        groups.setdefault(case.task, []).append(case)
    return [
        replace(case, files=group[(index + 1) % len(group)].files)
        for group in groups.values()
        for index, case in enumerate(group)
    ]


@dataclass
class _Talk:
    """A case on its way: the tiles of each picture, the history so far."""

    case: Case
    tiles: list[torch.Tensor]
    history: list[tuple[str, str]]

    def shown(self, turn: int) -> int:
        """Pictures that have been shown up to this turn."""
        said = "".join(self.case.question(k) for k in range(turn + 1))
        return said.count("<image>")


def _read(loaded: Any, files: Sequence[Path]) -> list[torch.Tensor]:
    """Tiles of each file; several pictures of one dialogue share the budget of tiles, as frames
    and multi-image questions do in training."""
    processor = loaded.processor.image_processor
    options = {}
    if len(files) > 1:
        options = {"max_tiles": max(1, processor.max_tiles // len(files))}
    batch = processor([str(path) for path in files], return_tensors="pt", **options)
    return list(batch["pixel_values"].to(loaded.model.dtype).split(list(batch["num_tiles"])))


@torch.inference_mode()
def answers(loaded: Any, written: Sequence[Case], *, batch: int = 64) -> list[list[str]]:
    """The model's answers per case and turn; later turns carry the model's own earlier answers.

    Args:
        loaded: What ``hub.load`` returned.
        written: Cases with files.
        batch: Dialogues per ``batch_chat`` call.
    """
    out: list[list[str]] = []
    for start in range(0, len(written), batch):
        talks = [
            _Talk(case, _read(loaded, case.files), []) for case in written[start : start + batch]
        ]
        for turn in range(max(len(talk.case.dialogue.turns) for talk in talks)):
            live = [talk for talk in talks if turn < len(talk.case.dialogue.turns)]
            shown = [talk.tiles[: talk.shown(turn)] for talk in live]
            asked = [talk.case.question(turn) for talk in live]
            replies = loaded.model.batch_chat(
                loaded.tokenizer, torch.cat([tile for tiles in shown for tile in tiles]), asked,
                SETTINGS, num_patches_list=[[len(tile) for tile in tiles] for tiles in shown],
                history=[talk.history or None for talk in live], keep_grounding=True,
            )  # fmt: skip
            for talk, question, reply in zip(live, asked, replies, strict=True):
                talk.history.append((question, reply))
        out += [[reply for _, reply in talk.history] for talk in talks]
    return out


def right(task: str, reply: str, expected: str) -> bool:
    """Whether an answer counts."""
    if task != "box":
        return reply == expected
    found = grounding.parse_boxes(reply, height=1000, width=1000)
    truth = grounding.parse_boxes(expected, height=1000, width=1000)
    return len(found) == 1 and grounding.iou(found[0], truth[0]) > ENOUGH_OVERLAP


def prior(task: str, expected: Sequence[str]) -> float:
    """Share that the best constant answer gets right, in percent."""
    candidates = [answer for answer, _ in Counter(expected).most_common(40)]
    best = max(sum(right(task, answer, truth) for truth in expected) for answer in candidates)
    return round(100 * best / len(expected), 1)


def score(written: Sequence[Case], replies: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
    """Per task: number of cases, share of right last answers in percent, and the prior."""
    marks: dict[str, list[bool]] = {}
    truths: dict[str, list[str]] = {}
    for case, reply in zip(written, replies, strict=True):
        marks.setdefault(case.task, []).append(right(case.task, reply[-1], case.expected))
        truths.setdefault(case.task, []).append(case.expected)
    return {
        task: {
            "n": len(found),
            "accuracy": round(100 * sum(found) / len(found), 1),
            "prior": prior(task, truths[task]),
        }
        for task, found in marks.items()
    }


def evaluate(
    loaded: Any, folder: Path, count: int, held: Held | None, *, seed: int = SEED,
    tasks: Sequence[str] | None = None, blind: bool = True,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Draw, write, ask and score.

    Args:
        loaded: What ``hub.load`` returned.
        folder: Where the picture files go.
        count: Cases per task.
        held: What the archives hold; None for tasks that need none of it.
        seed: Of the drawn cases.
        tasks: Only these tasks.
        blind: Ask a quarter of the cases again with the pictures of other ones.
    """
    written = [
        write(c, folder, k) for k, c in enumerate(cases(count, held, seed=seed, tasks=tasks))
    ]
    results = score(written, answers(loaded, written))
    if blind:
        some = [case for k, case in enumerate(written) if k % count < max(2, count // 4)]
        other = swapped(some)
        for task, row in score(other, answers(loaded, other)).items():
            results[task]["blind"] = row["accuracy"]
    return results


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown table of ``evaluate``'s result."""
    lines = ["| task | n | right % | best constant answer % | blind % |", "|---|---|---|---|---|"]
    for task, row in results.items():
        blind = row.get("blind", "")
        lines.append(f"| {task} | {row['n']} | {row['accuracy']} | {row['prior']} | {blind} |")
    return "\n".join(lines)


_BEGIN, _END = "<!-- accuracy: begin -->", "<!-- accuracy: end -->"


def write_table(readme: Path, results: dict[str, dict[str, float]]) -> None:
    """Replace what stands between the two accuracy marks of ``readme`` with the table.

    Raises:
        ValueError: the marks are missing.
    """
    text = readme.read_text("utf-8")
    if _BEGIN not in text or _END not in text:
        raise ValueError(f"{readme} lacks the lines {_BEGIN!r} and {_END!r}; add them")
    head, rest = text.split(_BEGIN, 1)
    tail = rest.split(_END, 1)[1]
    readme.write_text(f"{head}{_BEGIN}\n{table(results)}\n{_END}{tail}", "utf-8")


def write_results(path: Path, results: dict[str, dict[str, float]], **about: Any) -> None:
    """Write the results as JSON, with what they are of."""
    text = json.dumps({**about, "results": results}, indent=2)
    path.write_text(text + "\n", "utf-8")
