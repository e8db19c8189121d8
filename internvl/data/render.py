"""From the turns of a sample to token ids and labels, by the rules that inference uses.

    turns -> frame of the template -> segments (ids, supervised?) -> ids, labels

The ids are those of `conversation.render` and `encode` for the same turns (a test compares them for
every template and tokenizer), so a model is trained on exactly the prompts it will meet. The loss
mask falls out of the rendering: what an assistant says and the token that ends its turn are
supervised, nothing else is. No text is tokenised apart from what it stands next to, and nothing is
counted afterwards.

# T text positions
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from internvl import hub
from internvl.data.schema import DataError

IGNORE_INDEX = -100
NO_RESPONSE = -1

# A text, or the tiles of one image or frame.
Part = str | int


@dataclass(frozen=True)
class RenderedTurn:
    """A turn whose media are counted.

    Attributes:
        role: "user" or "assistant".
        parts: texts, and in the place of each image or frame the number of its tiles.
    """

    role: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Segment:
    """A run of token ids with one supervision flag.

    Attributes:
        ids: the tokens.
        response: number of the assistant turn that is learnt here, from 0; -1 for none.
    """

    ids: list[int]
    response: int = NO_RESPONSE

    @property
    def supervise(self) -> bool:
        """Whether the tokens are learnt."""
        return self.response != NO_RESPONSE


@dataclass(frozen=True)
class Rendered:
    """A sample in tokens.

    Attributes:
        input_ids: (T,) int64.
        labels: (T,) int64, -100 where nothing is learnt.
        response: (T,) int32, number of the assistant turn a supervised token belongs to, else -1.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    response: np.ndarray


class Renderer:
    """Writes turns for one checkpoint.

    Args:
        conversation: its template, of `conversation.get_conv_template`.
        tokenizer: its tokenizer, slow or fast.
        num_image_token: visual tokens per tile.
    """

    def __init__(self, conversation: Any, tokenizer: Any, num_image_token: int) -> None:
        self._code = hub.ring0("conversation")
        self.conversation, self.tokenizer = conversation, tokenizer
        self.num_image_token = num_image_token
        self._known: dict[tuple[Any, ...], list[int]] = {}

    def render(self, turns: Sequence[RenderedTurn], system: str | None = None) -> Rendered:
        """Write a whole sample.

        Args:
            turns: user and assistant in turn.
            system: system message in place of the template's.

        Raises:
            DataError: an empty turn, or nothing to learn.
        """
        segments = self.segments(turns, system)
        ids = np.array([i for segment in segments for i in segment.ids], np.int64)
        response = np.array([s.response for s in segments for _ in s.ids], np.int32)
        if not (response != NO_RESPONSE).any():
            raise DataError(
                "no_supervised_token",
                "the sample has no assistant turn to learn from; add one, or drop the sample.",
            )
        return Rendered(ids, np.where(response == NO_RESPONSE, IGNORE_INDEX, ids), response)

    def segments(self, turns: Sequence[RenderedTurn], system: str | None = None) -> list[Segment]:
        """The sample as runs of ids; neighbours differ in their response."""
        segments: list[Segment] = []
        for ids, response in self._runs(self._pieces(turns, system)):
            if segments and segments[-1].response == response:
                segments[-1].ids.extend(ids)
            elif ids:
                segments.append(Segment(list(ids), response))
        return segments

    def _pieces(self, turns: Sequence[RenderedTurn], system: str | None) -> list[tuple[Any, int]]:
        """Every piece of the prompt, with the response it belongs to."""
        conversation = self.conversation.copy()
        if system is not None:
            conversation.system_message = system
        pieces = [(piece, NO_RESPONSE) for piece in self._code.system_pieces(conversation)]
        responses = 0
        for number, turn in enumerate(turns, start=1):
            assistant = turn.role == "assistant"
            framed = self._frame(conversation, turn, number)
            learnt = responses if assistant else NO_RESPONSE
            responses += assistant
            pieces += [(piece, NO_RESPONSE) for piece in framed.header]
            pieces += [(piece, learnt) for piece in framed.content]
            for piece in framed.separator:
                pieces.append((piece, learnt))
                if piece.control:  # the end of the turn is learnt, the newline after it is not
                    learnt = NO_RESPONSE
        return [(piece, response) for piece, response in pieces if piece.text and piece.repeat]

    def _frame(self, conversation: Any, turn: RenderedTurn, number: int) -> Any:
        visual = self._code.Visual
        content = [visual(part) if isinstance(part, int) else part for part in turn.parts]
        if not any(content):
            raise DataError(
                "empty_turn", f"turn {number} ({turn.role}) says nothing; write it, or drop it."
            )
        role = conversation.roles[turn.role == "assistant"]
        return self._code.frame_turn(conversation, role, content, self.num_image_token)

    def _runs(self, pieces: list[tuple[Any, int]]) -> Iterator[tuple[list[int], int]]:
        """Ids of each control piece and of each stretch of text between two of them."""
        if not pieces[0][0].control or pieces[0][0].text != self.tokenizer.bos_token:
            yield self._code.beginning_of_sequence(self.tokenizer), NO_RESPONSE
        start = 0
        while start < len(pieces):
            end = start + 1
            if pieces[start][0].control:
                yield self._encode([pieces[start][0]], None, None), pieces[start][1]
            else:
                while end < len(pieces) and not pieces[end][0].control:
                    end += 1
                before = pieces[start - 1][0] if start else None
                after = pieces[end][0] if end < len(pieces) else None
                yield from self._text(pieces[start:end], before, after)
            start = end

    def _text(
        self, pieces: list[tuple[Any, int]], before: Any, after: Any
    ) -> Iterator[tuple[list[int], int]]:
        """Cut a stretch of text where its response changes.

        A token that reaches over the cut belongs to what follows: it is what a model has to write
        after the ids of a prompt that ends at the cut.
        """
        text = "".join(piece.text for piece, _ in pieces)
        ids = self._encode([self._code.Piece(text, False)], before, after)
        done = length = 0
        for (piece, response), follower in zip(pieces, [*pieces[1:], None], strict=True):
            length += len(piece.text)
            if follower is not None and follower[1] == response:
                continue
            cut = len(ids)
            if follower is not None:
                head = self._encode([self._code.Piece(text[:length], False)], before, None)
                cut = max(done, _common_prefix(head, ids))
            yield ids[done:cut], response
            done = cut

    def _encode(self, pieces: list[Any], before: Any, after: Any) -> list[int]:
        """Ids of text between two control pieces, which may swallow white space around it."""
        opened = () if before is None else (before._replace(repeat=1),)
        closed = () if after is None else (after._replace(repeat=1),)
        around = (*opened, *pieces, *closed)
        ids = self._known.get(around)
        if ids is None:
            ids = self._code.encode(around, self.tokenizer, add_bos=False)
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            # Headers and separators are in every sample.
            if sum(len(piece.text) for piece in pieces) <= _LONGEST_KNOWN:
                self._known[around] = ids
        return ids[len(opened) : len(ids) - len(closed)]


_MOST_KNOWN, _LONGEST_KNOWN = 4096, 48


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
