"""A guard against endless repetition: it stops a generation that has fallen into a loop, says why,
and leaves tables, lists of numbers and code alone (report sections 4.3 to 4.5, Figure 6).

    generated ids -> shortest period at the end -> text of the block -> which kind -> enough copies?

A loop is the same block of tokens again and again, without any change, up to the last token. How
many copies it takes depends on what the block says:

    kind       block                                              copies      and at least
    sentence   a sentence or more, below 400 characters                6      200 characters
               from 400 characters, from 1000 characters            5, 4
    words      one to three words within a line: "temple temple"      32      128 characters
    labels     short lines, or short items between commas             64
               the same with 8 words or more                          16
    marks      "!!!!", emoji, empty lines                                     256 characters

Blocks without words (numbers, separators, dot leaders, ASCII art), rows of tables, numbers with
their labels and units, code, and everything in a code fence never stop a generation, however often
they come: only `max_new_tokens` ends them. Where text can be read both ways it counts as a table or
code. Copies that differ in anything, a counter for instance, are no loop. Prose in the layout of a
table without any separator, and text that somebody asked to have repeated, cannot be told from a
loop; that is why the guard is an option. It does not repair, cut or penalise anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import StoppingCriteria

from internvl.chat.loop_text import count_of, kind_of

FINISH_REASON = "repetition"
MAX_PERIOD = 1024  # tokens: a paragraph of 400 tokens of a small vocabulary is 1000 of a tiny one
MAX_PERIOD_TEXT = 4096  # characters
STRIDE = 16  # tokens between two looks
STRIDE_TEXT = 64  # characters
_FEWEST = 4  # copies that any kind asks for
_PROBE = 16  # tokens at the end that must come again before more is compared
_COPIES = {  # kind -> (size of the block from which it holds, copies), largest first
    "sentence": ((1000, 4), (400, 5), (0, 6)),  # size in characters
    "words": ((0, 32),),
    "labels": ((8, 16), (0, 64)),  # size in words
    "marks": ((0, _FEWEST),),
}
_SPAN = {"sentence": 200, "words": 128, "labels": 128, "marks": 256}  # characters


@dataclass(frozen=True)
class LoopFound:
    """A repetition loop at the end of what was generated.

    Attributes:
        period: length of the repeating block.
        repeats: complete copies of it.
        text: what the block says.
        start: position at which the loop began, counted from the first generated token.
        end: position after the last token that was looked at; `ids[:kept]` leaves out all but one
            copy.
        kind: "sentence", "words", "labels" or "marks".
        unit: what is counted, "tokens" or "characters".
    """

    period: int
    repeats: int
    text: str
    start: int
    end: int
    kind: str
    unit: str = "tokens"

    @property
    def kept(self) -> int:
        """Position after the first copy of the block."""
        return self.start + self.period

    def __str__(self) -> str:
        text = self.text if len(self.text) <= 80 else f"{self.text[:77]}..."
        units = self.unit if self.period > 1 else self.unit.removesuffix("s")
        return (
            f"repetition: {text!r} ({self.period} {units}) came {self.repeats} times in a row, "
            f"from {self.unit.removesuffix('s')} {self.start} to {self.end}"
        )


def find_loop(
    ids: Sequence[int] | np.ndarray | torch.Tensor, tokenizer: Any, *, max_period: int = MAX_PERIOD
) -> LoopFound | None:
    """Find the loop at which a guard would have stopped a finished answer.

    Args:
        ids: (T,) generated ids, without the prompt.
        tokenizer: the one that decodes them.
        max_period: longest block, in tokens.

    Returns:
        The first loop, wherever in the answer it stands, or None.

    Raises:
        ValueError: `max_period` is not positive, or `ids` are not one row.
    """
    return _first_loop(_as_row(ids), _Judge(_decoder(tokenizer), max_period, "tokens"), STRIDE)


def find_loop_in_text(text: str, *, max_period: int = MAX_PERIOD_TEXT) -> LoopFound | None:
    """Find a loop in a text by the same rules, without a tokenizer; periods are in characters.

    Args:
        text: a finished answer.
        max_period: longest block, in characters.

    Raises:
        ValueError: `max_period` is not positive.
    """
    codes = np.array([ord(character) for character in text], dtype=np.int64)
    judge = _Judge(lambda part: "".join(map(chr, part)), max_period, "characters")
    return _first_loop(codes, judge, STRIDE_TEXT)


class LoopGuard(StoppingCriteria):
    """Stops the rows of a generation that have fallen into a loop.

        guard = LoopGuard(tokenizer)
        model.generate(..., stopping_criteria=[guard])
        guard.reasons[0]  # None, or the LoopFound

    It looks at the generated ids every 16 tokens, from the 64th on, so a row stops at most 15
    tokens after its last necessary copy. A look costs one comparison of the last `max_period` ids
    and, once something does repeat, a few comparisons of all generated ids; text is decoded once
    per loop.

    Each row stands for itself. A row that `generate` goes on with for lack of an end token may be
    cut at `end`, or at `kept` to leave one copy. Rows of beams are candidates that change places:
    there `reasons` says what was found in a place, and `find_loop` what is in an answer.

    One guard watches one call of `generate`. Without `prompt_length`, all ids but the last one of
    the first call are the prompt, which is right with `input_ids`, with `inputs_embeds` alone, and
    with both; candidates of an assistant make it a few ids too long.

    Attributes:
        reasons: for each row the loop that stopped it, or None; empty before the first token.

    Args:
        tokenizer: the one of the model.
        prompt_length: ids in front of the generated ones; None finds it out.
        max_period: longest block, in tokens.

    Raises:
        ValueError: `max_period` is not positive, or `prompt_length` is negative.
    """

    def __init__(
        self, tokenizer: Any, prompt_length: int | None = None, *, max_period: int = MAX_PERIOD
    ) -> None:
        if prompt_length is not None and prompt_length < 0:
            raise ValueError(
                f"prompt_length is {prompt_length}; give the ids in front of the generated ones."
            )
        self.reasons: list[LoopFound | None] = []
        self._given_length = prompt_length
        self._prompt_length = 0
        self._looked_at = 0
        self._judge = _Judge(_decoder(tokenizer), max_period, "tokens")

    @property
    def finish_reasons(self) -> list[str | None]:
        """For each row "repetition" if that ended it, else None."""
        return [FINISH_REASON if reason else None for reason in self.reasons]

    def __call__(
        self, input_ids: torch.LongTensor, scores: Any = None, **kwargs: Any
    ) -> torch.BoolTensor:
        """Which of the rows (B, T) are in a loop now: (B,)."""
        rows, length = input_ids.shape
        if self._given_length is not None and length < self._given_length:
            raise ValueError(
                f"prompt_length is {self._given_length}, but generate shows {length} ids with the "
                "new ones; with inputs_embeds alone there is no prompt in front, so give 0."
            )
        if rows != len(self.reasons) or length <= self._prompt_length + 1:
            self._begin(rows, length)
        stopped: Any = torch.zeros(rows, dtype=torch.bool, device=input_ids.device)
        generated = length - self._prompt_length
        if generated // STRIDE > self._looked_at // STRIDE:
            answers = input_ids[:, self._prompt_length :].cpu().numpy()
            for row in range(rows):
                found = self._judge(answers[row])
                if found is not None:
                    stopped[row] = True
                    self.reasons[row] = self.reasons[row] or found
                    # Candidates of an assistant are shown before they count, so look again.
                    generated = self._looked_at
        self._looked_at = generated
        return stopped

    def _begin(self, rows: int, length: int) -> None:
        """Forget what was seen: this is the first token of a generation."""
        self.reasons = [None] * rows
        self._prompt_length = length - 1 if self._given_length is None else self._given_length
        self._looked_at = 0
        self._judge.verdicts.clear()


# ---------------------------------------------------------------------- what repeats
class _Judge:
    """Looks for a loop at the end of a row of ids, and remembers what it has decoded once.

    The verdict on a block depends on the block and on what stands before it, so it holds as long as
    the repetition goes on: a table of 4000 equal cells is decoded once.
    """

    def __init__(self, text_of: Callable[[Sequence[int]], str], max_period: int, unit: str) -> None:
        if max_period < 1:
            raise ValueError(f"max_period is {max_period}; a block has at least one token.")
        self.text_of = text_of
        self.max_period = max_period
        self.unit = unit
        self.verdicts: dict[tuple[int, int, int], _Verdict | None] = {}

    def __call__(self, ids: np.ndarray) -> LoopFound | None:
        for period, start in _periods(ids, self.max_period):
            key = (period, start, hash(ids[: start + period].tobytes()))
            if key not in self.verdicts:
                self.verdicts[key] = self._verdict(ids, period, start)
            verdict = self.verdicts[key]
            if verdict is not None and len(ids) - start >= verdict.tokens:
                repeats = (len(ids) - start) // period
                return LoopFound(
                    period, repeats, verdict.text, start, len(ids), verdict.kind, self.unit
                )
        return None

    def _verdict(self, ids: np.ndarray, period: int, start: int) -> _Verdict | None:
        decoded = self.text_of(ids[start : start + _FEWEST * period].tolist())
        # The row may enter and leave the loop within a character.
        run = decoded.strip("\ufffd") or decoded
        size = run.find(run[: len(run) // 2], 1)  # characters of the shortest block
        if size < 1:
            return None
        kind = kind_of(run, size, self.text_of(ids[:start].tolist()))
        if kind is None:
            return None
        measure = count_of(run[:size]).words if kind == "labels" else size
        copies = next(count for smallest, count in _COPIES[kind] if measure >= smallest)
        characters = max(copies * size, _SPAN[kind])
        per_period = size * max(1, round(len(run) / (_FEWEST * size)))  # characters
        tokens = -(-characters * period // per_period)
        return _Verdict(kind, run[:size], max(tokens, _FEWEST * period))


@dataclass(frozen=True)
class _Verdict:
    """What a block is, and how many tokens of it make a loop."""

    kind: str
    text: str
    tokens: int


def _periods(ids: np.ndarray, max_period: int) -> Iterator[tuple[int, int]]:
    """Periods of which the row ends in four copies or more, and where each begins.

    Short ones first; a longer one follows only where it reaches further back, so multiples of a
    period are left out.
    """
    n = len(ids)
    longest = min(max_period, n // _FEWEST)
    if longest < 1 or n < _FEWEST * _PROBE:
        return
    # How far back the last token stood, narrowed down by the tokens before it.
    distances = np.flatnonzero(ids[n - 1 - longest : n - 1][::-1] == ids[n - 1]) + 1
    for back in range(2, _PROBE + 1):
        if not distances.size:
            return
        distances = distances[ids[n - back - distances] == ids[n - back]]
    reach = shortest = 0
    for period in distances.tolist():
        if period + shortest <= reach:
            continue
        copies = ids[n - _FEWEST * period :]
        if not np.array_equal(copies[period:], copies[:-period]):
            continue
        changes = np.flatnonzero(ids[period:] != ids[:-period])
        start = int(changes[-1]) + 1 if changes.size else 0
        reach, shortest = n - start, period
        yield period, start


def _first_loop(ids: np.ndarray, judge: _Judge, stride: int) -> LoopFound | None:
    """Look at a finished row as it looked while it grew."""
    for end in (*range(stride, len(ids), stride), len(ids)):
        found = judge(ids[:end])
        if found is not None:
            return found
    return None


def _as_row(ids: Sequence[int] | np.ndarray | torch.Tensor) -> np.ndarray:
    row = ids.cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids, dtype=np.int64)
    if row.ndim != 1:
        raise ValueError(f"ids have the shape {row.shape}; give one row of generated ids, (T,).")
    return row


def _decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    def text_of(ids: Sequence[int]) -> str:
        return str(
            tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    return text_of
