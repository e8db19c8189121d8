"""What does the first token of turns 1 to 5 cost when the dialogue remembers what it computed?

    python benchmarks/turns.py [--json] [--rounds 3] [--threads 1] [--dtype auto] [--full] [--smoke]

A picture of 13 tiles comes with the first question; four more questions follow, each after an
answer of 19 tokens. Ours is a `ChatSession`; the peer is `chat()` with the whole history and all
tiles, as the official model cards call it, on the same model: same kernels, nothing remembered.
Both stop after the first token. The session has to read the answer before a question too, because
here it was not the one to generate it. By default 1 of 24 ViT layers and 4 of 24 decoder layers
run; more ViT layers make the peer alone slower.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from dialogues import (
    GREEDY,
    HISTORY_ANSWER,
    QUESTIONS,
    bytes_of,
    close,
    last_logits,
    model_of,
    processor,
    tokenizer,
)
from harness import Record, Timing, choose_dtype, compare, entry, interleave, require
from random_models import LAYERS

from internvl.chat.features import FeatureStore
from internvl.chat.media import Media
from internvl.chat.session import ChatSession

QUESTION = "time to the first token of turns 1 to 5, 13 tiles in turn 1"
PEER = "chat() with the whole history"
TARGET = 1 / 20
TILES, VISION_DEPTH, DEPTH = 13, 1, 4
ONE = {"max_new_tokens": 1, **GREEDY}


class Dialogue:
    """The turns, by a session and by `chat()`."""

    def __init__(self, model: Any, words: Any, tiles: int) -> None:
        self.model, self.words = model, words
        self.processor = processor(model, words)
        self.media = Media("picture", False, bytes_of(model.config, tiles), [tiles])
        self.session: ChatSession | None = None

    def history(self, turns: int) -> list[tuple[str, str]]:
        """The turns before."""
        asked = [f"<image>\n{QUESTIONS[0]}", *QUESTIONS[1:]]
        return [(asked[index], HISTORY_ANSWER) for index in range(turns)]

    def begin(self) -> None:
        """A new session, which shares nothing with earlier ones."""
        self.session = ChatSession(self.model, self.processor, features=FeatureStore())

    def remembered(self, turn: int, **settings: Any) -> str:
        """Turn `turn` (from 0) of the session, which is at it."""
        images = [self.media] if turn == 0 else []
        (answer,) = self.session.sample(QUESTIONS[turn], images, answers=1, **{**ONE, **settings})
        return answer

    def go_on(self, turn: int) -> None:
        """Give the turn its answer."""
        self.session.answer_with(QUESTIONS[turn], HISTORY_ANSWER, [self.media] if turn == 0 else [])

    def fresh(self, turn: int, **settings: Any) -> str:
        """The same turn without a memory."""
        question = QUESTIONS[turn] if turn else f"<image>\n{QUESTIONS[0]}"
        return self.model.chat(
            self.words,
            self.media.pixel_values,
            question,
            {**ONE, **settings},
            history=self.history(turn),
            num_patches_list=self.media.num_tiles,
        )


def equality(words: Any, options: Namespace) -> dict[str, Any]:
    """Answers in float32, and logits of the first token in bfloat16, of every turn."""
    tiles = 2
    dialogue = Dialogue(model_of(2, 2, smoke=options.smoke), words, tiles)
    dialogue.begin()
    same = True
    for turn in range(len(QUESTIONS)):
        said = dialogue.remembered(turn, max_new_tokens=6)
        same &= said == dialogue.fresh(turn, max_new_tokens=6)
        dialogue.go_on(turn)
    found: dict[str, Any] = require({"fp32_answers_equal": same})
    dialogue.model.to(torch.bfloat16)
    dialogue.begin()
    for turn in range(len(QUESTIONS)):
        with last_logits(dialogue.model) as seen:
            dialogue.remembered(turn)
            dialogue.fresh(turn)
        found |= close(seen[0], seen[-1], f"bf16_turn_{turn + 1}")
        dialogue.go_on(turn)
    return found


def measure(options: Namespace) -> dict[str, Any]:
    """Compare answers, then time turn by turn."""
    dtype = choose_dtype(options.dtype)
    record = Record("turns", QUESTION, options, dtype)
    words = tokenizer()
    equal = equality(words, options)
    depths = (LAYERS, LAYERS) if options.full else (VISION_DEPTH, DEPTH)
    model = model_of(*depths, dtype, smoke=options.smoke)
    dialogue = Dialogue(model, words, 2 if options.smoke else TILES)
    turns = range(len(QUESTIONS))
    ours, peer = [Timing() for _ in turns], [Timing() for _ in turns]
    for _ in range(options.rounds):
        dialogue.begin()
        for turn in turns:
            timed = interleave(
                {
                    "ours": lambda turn=turn: dialogue.remembered(turn),
                    "peer": lambda turn=turn: dialogue.fresh(turn),
                },
                1,
                warm_up=0,
            )
            dialogue.go_on(turn)
            for all_rounds, name in ((ours[turn], "ours"), (peer[turn], "peer")):
                all_rounds.cpu += timed[name].cpu
                all_rounds.wall += timed[name].wall
    for turn in turns:
        row = compare(
            f"turn {turn + 1}",
            ours[turn],
            peer[turn],
            peer_name=PEER,
            at_most=TARGET if turn else None,  # the first turn has nothing to remember
            scaling=f"{depths[0]} of {LAYERS} ViT and {depths[1]} of {LAYERS} decoder layers",
        )
        record.add(row)
    return record.finish(equality=equal, tiles=len(dialogue.media.pixel_values))


main = entry(__doc__, measure, rounds=3)

if __name__ == "__main__":
    main()
