"""From generated ids to an answer, whole or in instalments.

    ids -> text without control tokens -> cut at the end-of-turn text, stripped

Whole and streamed answers go through the same steps, so the instalments join to the whole.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .conversation import GROUNDING_TAGS


class AnswerDecoder:
    """Turns generated ids into text.

    Args:
        tokenizer: the checkpoint's tokenizer.
        end_of_turn: text that ends an answer.
        keep_grounding: leave `<ref> </ref> <box> </box> <quad> </quad>` in the text. They are
            special tokens, which a tokenizer leaves out.
    """

    def __init__(self, tokenizer: Any, end_of_turn: str, *, keep_grounding: bool = False) -> None:
        self.tokenizer, self.end_of_turn = tokenizer, end_of_turn
        self._dropped: frozenset[int] | None = None
        if keep_grounding:
            special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
            known = tokenizer.get_added_vocab()
            tags = {known[tag] for tag in GROUNDING_TAGS if tag in known}
            self._dropped = frozenset((special | set(tokenizer.all_special_ids)) - tags)

    def text(self, ids: Sequence[int]) -> str:
        """Decode ids, white space and all."""
        if self._dropped is None:
            return self.tokenizer.decode(ids, skip_special_tokens=True)
        kept = [index for index in ids if index not in self._dropped]
        return self.tokenizer.decode(
            kept, skip_special_tokens=False, spaces_between_special_tokens=False
        )

    def answer(self, ids: Sequence[int]) -> str:
        """Decode ids as an answer: up to the end-of-turn text, stripped."""
        return self.text(ids).split(self.end_of_turn)[0].strip()

    def stream(self, ids: Iterable[list[int]]) -> Iterator[str]:
        """Decode ids as they come; the pieces join to what `answer` gives."""
        return stripped(self._decoded(ids), self.end_of_turn)

    def _decoded(self, stream: Iterable[list[int]]) -> Iterator[str]:
        """A text that ends within a character waits for its other bytes.

        Decoding starts a little before the new ids, because a token's text may depend on the one
        before it.
        """
        ids: list[int] = []
        start = read = 0
        for new in stream:
            ids += new
            before, now = self.text(ids[start:read]), self.text(ids[start:])
            if len(now) > len(before) and not now.endswith("\ufffd"):
                yield now[len(before) :]
                start, read = read, len(ids)
        before, now = self.text(ids[start:read]), self.text(ids[start:])
        if len(now) > len(before):
            yield now[len(before) :]


def stripped(texts: Iterator[str], end: str) -> Iterator[str]:
    """Cut at the end-of-turn text and strip white space at both ends, without looking further
    ahead than needed."""
    held, begun = "", False
    for text in texts:
        held += text
        if end in held:
            held = held.split(end)[0]
            break
        if not begun:
            held = held.lstrip()
            begun = bool(held)
        # White space may turn out to be the end, and so may the beginning of the end-of-turn text.
        safe = len(held.rstrip())
        for size in range(min(len(end) - 1, len(held)), 0, -1):
            if held.endswith(end[:size]):
                safe = min(safe, len(held[:-size].rstrip()))
                break
        if safe:
            yield held[:safe]
            held = held[safe:]
    held = held.rstrip() if begun else held.strip()
    if held:
        yield held


def stream_ids(
    generate: Callable[..., Any],
    settings: dict[str, Any],
    cancel: threading.Event | None = None,
    results: list[Any] | None = None,
) -> Iterator[list[int]]:
    """Run `generate` in a thread and hand out the new ids as they come.

    Closing the iterator stops the generation after the token it is at, and waits for it.

    Args:
        generate: called with `settings`, a streamer and a stopping criterion. It is to be given
            embeddings alone: an id of the prompt would be handed out too.
        settings: all that it takes.
        cancel: stops the generation when set.
        results: receives what `generate` returned.
    """
    stop = _Stop(cancel)
    criteria = StoppingCriteriaList([*settings.get("stopping_criteria", []), stop])
    settings = {**settings, "stopping_criteria": criteria}
    tokens = _TokenQueue()

    def run() -> None:
        try:
            output = generate(**settings, streamer=tokens)
            if results is not None:
                results.append(output)
            tokens.finish(None)
        except BaseException as error:  # noqa: BLE001  (handed to the consumer, who raises it)
            tokens.finish(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield from tokens
    finally:
        stop.now.set()
        thread.join()


class _Stop(StoppingCriteria):
    """Stops the generation when the consumer is gone, or when the caller says so."""

    def __init__(self, cancel: threading.Event | None) -> None:
        self.now = threading.Event()
        self.cancel = cancel

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        stop = self.now.is_set() or (self.cancel is not None and self.cancel.is_set())
        return torch.full((input_ids.shape[0],), stop, dtype=torch.bool, device=input_ids.device)


class _TokenQueue(BaseStreamer):
    """Hands the ids that `generate` streams to another thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue = queue.SimpleQueue()

    def put(self, value: torch.Tensor) -> None:
        """Receive ids; the (empty) prompt comes first and adds nothing."""
        self._queue.put(value.reshape(-1).tolist())

    def end(self) -> None:
        """`generate` is done; `finish` follows."""

    def finish(self, error: BaseException | None) -> None:
        """End the stream, with the error that ended it."""
        self._queue.put((error,))

    def __iter__(self) -> Iterator[list[int]]:
        while isinstance(item := self._queue.get(), list):
            yield item
        if item[0] is not None:
            raise item[0]
