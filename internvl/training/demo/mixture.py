"""The question-answer batches: which pictures, which questions, how many of each kind."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

from internvl.training.demo import questions, scenes
from internvl.training.demo.dense import digit_picture, label_maps
from internvl.training.demo.digits import Digits
from internvl.training.demo.packing import Frame, Packed, Row, collate
from internvl.training.demo.questions import QA, ShapeFacts
from internvl.training.demo.scenes import Scene, pick

# kind: share of the batches, tiles per row, tokens of a row after the prefix, answer tokens of a
# row
KINDS: dict[str, tuple[float, int, int, int]] = {
    "shapes": (5.0, 1, 136, 34),
    "digits": (0.6, 1, 80, 18),
    "pair": (1.3, 2, 116, 30),
    "video": (1.0, 4, 76, 16),
    "clip8": (0.15, 8, 76, 16),
    "text": (0.2, 0, 40, 14),
}
_LONGEST_PREFIX = {"shapes": 33, "digits": 33, "pair": 84, "video": 112, "clip8": 210, "text": 33}
# Looking an object up by name and saying where it is comes last, so it is asked most.
SHAPE_WEIGHTS = {
    "colour": 0.4, "shape": 0.4, "colour_of": 0.8, "shape_of": 0.7, "exist": 1.2, "count": 0.8,
    "count_sub": 1.7, "position": 2.6, "relation": 3.2, "relation_yn": 2.2, "describe": 0.35,
}  # fmt: skip
_SHARES = np.cumsum([SHAPE_WEIGHTS[task] for task in questions.SHAPE_BY_TASK])
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def clip(rng: np.random.Generator, frames: int = 4) -> tuple[list[Scene], str]:
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


def _chain(rng: np.random.Generator, one, facts: ShapeFacts | None = None) -> list[QA]:
    """One question, or (28 %) two or three turns; a follow-up now and then."""
    chain = [one()]
    if rng.random() < 0.28:
        for _ in range(1 + int(rng.random() < 0.4)):
            more = None
            if facts is not None and rng.random() < 0.5:
                more = questions.follow_up(rng, chain[-1], facts)
            chain.append(more or one())
    return chain


@dataclass
class QAData:
    """Makes question-answer batches of about ``tiles`` tiles; callable as ``feed.batches`` wants
    it.

    ``schedule_seed`` alone decides the kind of a step, so that all processes of a run work on the
    same kind.
    """

    tokenizer: Tokenizer
    digits: Digits
    tiles: int = 64
    schedule_seed: int = 1
    kind: str | None = None
    frame: Frame = field(init=False)

    def __post_init__(self) -> None:
        """Build the prompt frame."""
        self.frame = Frame(self.tokenizer, visual_tokens=16)

    def __call__(self, rng: np.random.Generator, step: int) -> Packed:
        """The batch of one step."""
        kind = self.kind or self.kind_of(step)
        _, per_row, room, answers = KINDS[kind]
        count = max(1, self.tiles // max(per_row, 2 if kind == "text" else 1))
        make = getattr(self, f"_{kind}")
        rows, tiles, maps = [], [], []
        length = _LONGEST_PREFIX[kind] + room
        for _ in range(count):
            row, new_tiles, new_maps = make(rng, length, answers)
            rows.append(row)
            tiles += new_tiles
            maps += new_maps
        return collate(rows, tiles, maps, length, answers, self.frame.special("<|endoftext|>"))

    def kind_of(self, step: int) -> str:
        """The kind of batch of this step."""
        shares = np.array([share for share, *_ in KINDS.values()])
        rng = np.random.default_rng([self.schedule_seed, 77, step])
        return str(rng.choice(list(KINDS), p=shares / shares.sum()))

    def _fill(self, rng, row: Row, one, length: int, answers: int, facts=None) -> None:
        misses = 0
        while misses < 3:
            misses += not row.add_chain(self.frame, _chain(rng, one, facts), length, answers)

    def _about(self, rng, scene: Scene, facts: ShapeFacts) -> QA:
        """A question about one scene; where a lone object stands is too easy to be asked often."""
        while True:
            found = questions.about_shapes(rng, scene, facts, _SHARES)
            if found.task != "position" or len(scene.items) > 1 or rng.random() < 0.4:
                return found

    def _tile(self, rng, scene: Scene) -> np.ndarray:
        return scenes.to_tile(scenes.draw_scene(scene, rng), rng)

    def _shapes(self, rng, length: int, answers: int):
        scene = scenes.shape_scene(rng)
        facts = ShapeFacts(scene)
        row = Row(self.frame.prefix(["", 1]))
        self._fill(rng, row, lambda: self._about(rng, scene, facts), length, answers, facts)
        return row, [self._tile(rng, scene)], [label_maps(scene)]

    def _digits(self, rng, length: int, answers: int):
        scene, tile = digit_picture(rng, self.digits, 1)
        label = scene.items[0].digit
        row = Row(self.frame.prefix(["", 1]))
        self._fill(rng, row, lambda: questions.about_digit(rng, label), length, answers)
        return row, [tile], [label_maps(scene)]

    def _pair(self, rng, length: int, answers: int):
        both = [scenes.shape_scene(rng), scenes.shape_scene(rng)]
        facts = (ShapeFacts(both[0]), ShapeFacts(both[1]))
        kind = rng.random()
        if kind < 0.2:
            row = self._later_image(rng, both, facts)
            about = lambda: self._about(rng, both[1], facts[1])  # noqa: E731
        else:
            parts = ["", 2] if kind < 0.27 else ["Image-1: ", 1, "\nImage-2: ", 1]
            row = Row(self.frame.prefix(parts))
            about = lambda: questions.about_pair(rng, facts)  # noqa: E731
        self._fill(rng, row, about, length, answers)
        return row, [self._tile(rng, scene) for scene in both], [label_maps(s) for s in both]

    def _later_image(self, rng, both: list[Scene], facts) -> Row:
        """First turn about one image, second turn brings another; the chains ask about that one."""
        labelled = rng.random() < 0.4
        first = "Image-1: " if labelled else ""
        head = self.frame.prefix([first, 1])
        while True:
            qa = questions.about_shapes(rng, both[0], facts[0])
            ids, answer = self.frame.turn(f"\n{qa.question}", qa.answer)
            if len(ids) <= 26:
                break
        user = self.frame.text("user\nImage-2: " if labelled else "user\n")
        row = Row([*head, *ids, *self.frame.later(), *user, *self.frame.image()])
        row.learn(ids, len(head), answer, qa, 0)
        return row

    def _video(self, rng, length: int, answers: int, frames: int = 4):
        shots, moves = clip(rng, frames)
        form = "\nFrame-{}: " if rng.random() < 0.7 else "\nFrame{}: "
        parts: list[str | int] = []
        for index in range(frames):
            label = form.format(index + 1)
            parts += [label if index else label[1:], 1]
        row = Row(self.frame.prefix(parts))

        def one() -> QA:
            while True:
                found = questions.about_clip(rng, shots, moves)
                if found is not None:
                    return found

        self._fill(rng, row, one, length, answers)
        return row, [self._tile(rng, s) for s in shots], [label_maps(s) for s in shots]

    def _clip8(self, rng, length: int, answers: int):
        return self._video(rng, length, answers, frames=8)

    def _text(self, rng, length: int, answers: int):
        row = Row(self.frame.prefix([""])[:-2])
        # the question shares its text run with the role header, so the row is one plain
        # conversation
        for turn in range(2):
            qa = questions.without_picture(rng)
            text = f"user\n{qa.question}"
            ids, answer = self.frame.turn(text, qa.answer)
            ids = [*self.frame.later(), *ids] if turn else ids
            answer += len(ids) - len(self.frame.turn(text, qa.answer)[0])
            if turn and len(row.ids) + len(ids) > length:
                break
            start = len(row.ids)
            if len(row.rows) + len(ids) - answer > answers or start + len(ids) > length:
                break
            row.learn(ids, start, answer, qa, turn)
            row.ids += ids
            row.positions += range(start, start + len(ids))
            row.slots += [0] * len(ids)
        return row, [], []
