"""Many questions about the same pictures in one row, each as if it were asked alone.

    row = prefix (system message, images) + chain + chain + ... + padding
    chain = one to three turns about these images

A chain sees the prefix and itself; its positions start right after the prefix. So the ViT and the
prefix are paid once, and every chain's logits equal those of the plain prompt of the released
model's chat().
"""

# B rows   T tokens per row   M answer tokens per row

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from internvl import hub
from internvl.training.demo.questions import QA

IGNORE = -100


class Frame:
    """The internvl2_5 prompt frame in token ids, for chains of turns about some images."""

    def __init__(self, tokenizer: Tokenizer, visual_tokens: int):
        self.visual_tokens = visual_tokens
        self.special = tokenizer.token_to_id
        conversation = hub.ring0("conversation").get_conv_template("internvl2_5")
        self.end = self.special("<|im_end|>")
        self._start = self.special("<|im_start|>")
        self.text: Callable[[str], tuple[int, ...]] = lru_cache(maxsize=50_000)(
            lambda text: tuple(tokenizer.encode(text, add_special_tokens=False).ids)
        )
        system = self.text(f"system\n{conversation.system_message}")
        self._opening = [self._start, *system, self.end, *self.text("\n"), self._start]
        self._to_answer = [self.end, *self.text("\n"), self._start]

    def prefix(self, parts: Sequence[str | int]) -> list[int]:
        """System message and the head of the first user turn; ``parts`` are texts and tile counts.

        The first part must be text (it may be empty) and the last an image, so that the question
        that follows starts a text run of its own.
        """
        ids = [*self._opening, *self.text(f"user\n{parts[0]}")]
        for part in parts[1:]:
            ids += self.text(part) if isinstance(part, str) else self.image(part)
        return ids

    def image(self, tiles: int = 1) -> list[int]:
        """``<img>``, the visual tokens of ``tiles`` tiles, ``</img>``."""
        context = [self.special("<IMG_CONTEXT>")] * (tiles * self.visual_tokens)
        return [self.special("<img>"), *context, self.special("</img>")]

    def turn(self, question: str, answer: str) -> tuple[list[int], int]:
        """Ids from the question's text run to the end-of-turn token, and where the answer
        starts."""
        head = [*self.text(question), *self._to_answer]
        spoken = self.text(f"assistant\n{answer}")
        skip = len(self.text("assistant\n"))
        return [*head, *spoken, self.end], len(head) + skip

    def later(self) -> list[int]:
        """What stands between an answer's end-of-turn token and the next user's text run."""
        return [*self.text("\n"), self._start]


@dataclass
class Row:
    """One row under construction."""

    ids: list[int]
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    asked: list[tuple[QA, int]] = field(default_factory=list)
    prefix: int = 0

    def __post_init__(self) -> None:
        """Everything given at the start is prefix."""
        self.prefix = len(self.ids)
        self.positions = list(range(self.prefix))
        self.slots = [0] * self.prefix

    def learn(self, ids: Sequence[int], start: int, answer: int, qa: QA, turn: int) -> None:
        """Mark ``ids[answer:]``, placed at ``start`` of the row, as an answer to be predicted."""
        for offset in range(answer, len(ids)):
            self.rows.append(start + offset - 1)
            self.targets.append(ids[offset])
            self.owners.append(len(self.asked))
        self.asked.append((qa, turn))

    def add_chain(self, frame: Frame, chain: Sequence[QA], room: int, answers: int) -> bool:
        """Append a chain of turns as a new slot if tokens and answer places suffice."""
        ids: list[int] = []
        marks: list[tuple[list[int], int, int, QA]] = []
        for turn, qa in enumerate(chain):
            if turn:
                ids += frame.later()
            text = f"\n{qa.question}" if turn == 0 else f"user\n{qa.question}"
            part, answer = frame.turn(text, qa.answer)
            marks.append((part, len(ids), answer, qa))
            ids += part
        wanted = sum(len(part) - answer for part, _, answer, _ in marks)
        ids = ids[:-1]  # the last end-of-turn token is only a target
        if len(self.ids) + len(ids) > room or len(self.rows) + wanted > answers:
            return False
        first = len(self.ids)
        for turn, (part, offset, answer, qa) in enumerate(marks):
            self.learn(part, first + offset, answer, qa, turn)
        slot = max(self.slots) + 1
        self.slots += [slot] * len(ids)
        self.positions += range(self.prefix, self.prefix + len(ids))
        self.ids += ids
        return True


@dataclass(frozen=True)
class Packed:
    """A batch: arrays ready for the model, and what was asked.

    ``ids``, ``positions``, ``slots`` are (B, T); ``rows``, ``targets``, ``owners`` are (B, M):
    where a logit is wanted, the token to predict there (-100: padding), and the index of its
    question in ``asked``.
    """

    tiles: np.ndarray
    maps: np.ndarray
    ids: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    rows: np.ndarray
    targets: np.ndarray
    owners: np.ndarray
    asked: list[tuple[str, int]]


def collate(
    rows: list[Row], tiles: list[np.ndarray], maps: list[np.ndarray], length: int, answers: int,
    padding: int,
) -> Packed:  # fmt: skip
    """Pad rows to (B, length) and (B, answers).

    Raises:
        ValueError: a row is longer than the plan allows.
    """
    too_long = [len(row.ids) for row in rows if len(row.ids) > length]
    if too_long:
        raise ValueError(f"rows of {too_long} tokens, expected at most {length}: enlarge the plan")
    shape = (len(rows), length)
    ids = np.full(shape, padding, np.int64)
    positions, slots = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
    places = np.zeros((len(rows), answers), np.int64)
    targets = np.full((len(rows), answers), IGNORE, np.int64)
    owners = np.full((len(rows), answers), -1, np.int64)
    asked: list[tuple[str, int]] = []
    for index, row in enumerate(rows):
        size, marks = len(row.ids), len(row.rows)
        ids[index, :size], positions[index, :size] = row.ids, row.positions
        slots[index, :size] = row.slots
        places[index, :marks], targets[index, :marks] = row.rows, row.targets
        owners[index, :marks] = np.asarray(row.owners) + len(asked)
        asked += [(qa.task, turn) for qa, turn in row.asked]
    pixels = np.stack(tiles) if tiles else np.zeros((0, 112, 112, 3), np.uint8)
    labels = np.stack(maps) if maps else np.zeros((0, 8, 64), np.int64)
    return Packed(pixels, labels, ids, positions, slots, places, targets, owners, asked)


def visible(slots: Tensor) -> Tensor:
    """(B, T, T) bool: causal, and a chain sees the prefix (slot 0) and itself only."""
    same = slots[:, :, None] == slots[:, None, :]
    prefix = (slots == 0)[:, None, :]
    return (same | prefix) & torch.ones(slots.shape[1], slots.shape[1], dtype=torch.bool).tril()
