"""Held-out accuracy of a released checkpoint, through files on disk and the model's own chat path.

Pictures are drawn from seeds that training never uses, written as PNG or JPEG files, read back by
the image processor, and asked about with ``batch_chat`` in the real prompt template. An answer
counts when the whole text is equal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from internvl.training.demo import digits, questions, scenes
from internvl.training.demo.dense import digit_picture_image
from internvl.training.demo.mixture import clip
from internvl.training.demo.questions import QA, ShapeFacts

logger = logging.getLogger(__name__)

SEED = 424_242


@dataclass(frozen=True)
class Case:
    """A dialogue about pictures: question-answer turns, of which the last one counts under
    ``task``."""

    task: str
    turns: tuple[QA, ...]
    pictures: tuple[Image.Image, ...] = ()
    labels: tuple[str, ...] = ("",)
    files: tuple[Path, ...] = field(default=())

    def question(self, turn: int) -> str:
        """The text to send: the first turn carries the ``<image>`` tags with their labels."""
        text = self.turns[turn].question
        if turn:
            return text
        return "".join(f"{label}<image>\n" for label in self.labels) + text


def _shape_case(rng: np.random.Generator, task: str) -> Case | None:
    count = 1 if task in ("colour", "shape") else None
    scene = scenes.shape_scene(rng, count)
    found = questions.SHAPE_BY_TASK[task](rng, ShapeFacts(scene))
    return found and Case(task, (found,), (scenes.draw_scene(scene, rng),))


def _second_turn(rng: np.random.Generator, task: str) -> Case | None:
    scene = scenes.shape_scene(rng)
    facts = ShapeFacts(scene)
    first = questions.about_shapes(rng, scene, facts)
    second = None
    if rng.random() < 0.25:
        second = questions.follow_up(rng, first, facts)
    second = second or questions.about_shapes(rng, scene, facts)
    return Case(task, (first, second), (scenes.draw_scene(scene, rng),))


def _digit_case(rng: np.random.Generator, task: str, source: digits.Digits, uci: float) -> Case:
    scene, image = digit_picture_image(rng, source, 1, uci=uci)
    kind = "digit" if task.startswith("digit (") else task
    return Case(task, (questions.about_digit(rng, scene.items[0].digit, kind),), (image,))


def _pair_case(rng: np.random.Generator, task: str) -> Case | None:
    both = [scenes.shape_scene(rng), scenes.shape_scene(rng)]
    facts = (ShapeFacts(both[0]), ShapeFacts(both[1]))
    found = questions.PAIR_BY_TASK[task](rng, facts)
    pictures = tuple(scenes.draw_scene(scene, rng) for scene in both)
    return found and Case(task, (found,), pictures, ("Image-1: ", "Image-2: "))


def _clip_case(rng: np.random.Generator, task: str) -> Case | None:
    shots, moves = clip(rng)
    found = questions.about_clip(rng, shots, moves, task)
    pictures = tuple(scenes.draw_scene(shot, rng) for shot in shots)
    labels = tuple(f"Frame-{index + 1}: " for index in range(len(shots)))
    return found and Case(task, (found,), pictures, labels)


def makers(source: digits.Digits | None) -> dict[str, Callable]:
    """Task name to a function (rng, task) that makes a case or None; digit tasks need
    ``source``."""
    table: dict[str, Callable] = dict.fromkeys(questions.SHAPE_BY_TASK, _shape_case)
    table |= dict.fromkeys(questions.PAIR_BY_TASK, _pair_case)
    table |= dict.fromkeys(("motion", "frame"), _clip_case)
    table["second turn"] = _second_turn
    if source is not None:
        table["digit (MNIST)"] = lambda rng, task: _digit_case(rng, task, source, 0.0)
        table["digit (UCI)"] = lambda rng, task: _digit_case(rng, task, source, 1.0)
        table["digit_is"] = lambda rng, task: _digit_case(rng, task, source, 0.0)
    return table


def cases(
    count: int,
    source: digits.Digits | None = None,
    *,
    seed: int = SEED,
    tasks: set[str] | None = None,
) -> Iterator[Case]:
    """``count`` cases of every task (or of ``tasks``); the same ones for the same seed."""
    for number, (task, make) in enumerate(makers(source).items()):
        if tasks is not None and task not in tasks:
            continue
        rng, made = np.random.default_rng([seed, number]), 0
        while made < count:
            case = make(rng, task)
            if case is not None:
                yield case
                made += 1


def write(case: Case, folder: Path, name: str) -> Case:
    """The case with its pictures as files: PNG, every third one JPEG."""
    files = []
    for index, picture in enumerate(case.pictures):
        suffix = ".jpg" if (len(name) + int(name)) % 3 == 0 else ".png"
        path = folder / f"{name}-{index}{suffix}"
        picture.save(path, **({"quality": 90} if suffix == ".jpg" else {}))
        files.append(path)
    return replace(case, files=tuple(files), pictures=())


@torch.inference_mode()
def answers(loaded, written: list[Case], *, batch: int = 64) -> list[list[str]]:
    """The model's answers per case and turn; later turns carry the model's own earlier answers.

    Args:
        loaded: What ``hub.load`` returned.
        written: Cases with files.
        batch: Dialogues per ``batch_chat`` call.
    """
    out: list[list[str]] = [[] for _ in written]
    settings = {"max_new_tokens": 24, "do_sample": False}
    order = sorted(
        range(len(written)), key=lambda k: (len(written[k].turns), len(written[k].files))
    )
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        files = [str(path) for k in part for path in written[k].files]
        tiles = loaded.processor.image_processor(files, return_tensors="pt")["pixel_values"]
        tiles = tiles.to(loaded.model.dtype)
        histories: dict[int, list[tuple[str, str]]] = {k: [] for k in part}
        for turn in range(max(len(written[k].turns) for k in part)):
            live = [k for k in part if turn < len(written[k].turns)]
            if len(live) < len(part):
                keep = [k in live for k in part for _ in written[k].files]
                tiles, part = tiles[torch.tensor(keep)], live
            asked = [written[k].question(turn) for k in live]
            replies = loaded.model.batch_chat(
                loaded.tokenizer, tiles, asked, settings,
                num_patches_list=[[1] * len(written[k].files) for k in live],
                history=[histories[k] or None for k in live],
            )  # fmt: skip
            for k, question, reply in zip(live, asked, replies, strict=True):
                histories[k].append((question, reply))
                out[k].append(reply)
    return out


def score(written: list[Case], replies: list[list[str]]) -> dict[str, dict[str, float]]:
    """Per task: number of cases and share of exactly right last answers."""
    table: dict[str, list[bool]] = {}
    for case, reply in zip(written, replies, strict=True):
        table.setdefault(case.task, []).append(reply[-1] == case.turns[-1].answer)
    return {
        task: {"n": len(marks), "accuracy": round(100 * sum(marks) / len(marks), 1)}
        for task, marks in table.items()
    }


def evaluate(
    loaded, folder: Path, count: int, source: digits.Digits | None, *, seed: int = SEED,
    tasks: set[str] | None = None, blind: bool = False,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Draw, write, ask and score.

    Args:
        loaded: What ``hub.load`` returned.
        folder: Where the picture files go.
        count: Cases per task.
        source: Test digits; None leaves the digit tasks out.
        seed: Of the drawn cases.
        tasks: Only these tasks.
        blind: Give every case the pictures of another one of its task: what guessing reaches.
    """
    written = [
        write(case, folder, f"{index:05d}")
        for index, case in enumerate(cases(count, source, seed=seed, tasks=tasks))
    ]
    shown = written
    if blind:
        by_task: dict[str, list[Case]] = {}
        for case in written:
            by_task.setdefault(case.task, []).append(case)
        shown = [
            replace(case, files=group[(index + 1) % len(group)].files)
            for group in by_task.values()
            for index, case in enumerate(group)
        ]
    return score(shown, answers(loaded, shown))


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown table of ``evaluate``'s result."""
    lines = ["| task | n | exact answers % |", "|---|---|---|"]
    lines += [f"| {task} | {row['n']} | {row['accuracy']} |" for task, row in results.items()]
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
