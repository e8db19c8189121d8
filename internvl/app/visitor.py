"""One person's dialogue: what was asked, what was answered, and what happens to both.

The dialogue proper is a `ChatSession`; here is what people add to it: files, options, reasoning and
votes, stopping, asking again. Every step either happens as a whole or leaves the dialogue as it
was. Nothing here knows of a browser.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from internvl import grounding
from internvl.app.bounds import MEBI
from internvl.app.engine import Engine
from internvl.app.line import BusyError, Place
from internvl.app.options import Options
from internvl.app.uploads import check_upload, is_video
from internvl.chat import attention_map, sampling
from internvl.chat.accounting import Account
from internvl.chat.media import Limits, Media, read_image, read_video, recut
from internvl.chat.request import Turn
from internvl.chat.session import Reply

_NAMED = re.compile(r"\bImage-(\d+)\b")
_PATIENCE = 1.0  # seconds between two looks at the line
_BUSY = "This chat is still answering. Please wait, or stop the answer."
# A file, and the tiles or frames it was read with.
_Key = tuple[Path, int]


@dataclass
class Exchange:
    """A question and its answer, as a visitor sees them.

    Attributes:
        question: as typed.
        files: what came with it.
        media: the same, read.
        options: checked ones.
        answer: so far, with the tags of boxes.
        state: "waiting", "writing", "voting", then "done".
        before: questions of others before it.
        finish: why it ended: "stop", "length", "repetition", "stopped" or "vote".
        reply: how the answer came about; None for a vote.
        voted: the vote, if it was one.
        boxes: regions that the answer names.
        boxed: the image they are of.
        drawn: a file with both, once someone has made it.
        words: of the answer, in a dialogue with images.
    """

    question: str
    files: tuple[Path, ...]
    media: tuple[Media, ...]
    options: Options
    answer: str = ""
    state: str = "waiting"
    before: int = 0
    finish: str = ""
    reply: Reply | None = None
    voted: sampling.Voted | None = None
    boxes: list[grounding.Box] = field(default_factory=list)
    boxed: Media | None = None
    drawn: Path | None = None
    words: list[attention_map.Word] = field(default_factory=list)


class Visitor:
    """A dialogue and its owner's wishes.

    Args:
        engine: the model.

    Attributes:
        exchanges: the dialogue.
        session: what the model knows of it; one turn for each exchange that is done.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.session = engine.session()
        self.exchanges: list[Exchange] = []
        self._read: dict[_Key, Media] = {}
        self._cancel = threading.Event()
        self._mine = threading.Lock()
        self._seen: tuple[Exchange, attention_map.WordAttention] | None = None

    # ------------------------------------------------------------------ asking
    @property
    def busy(self) -> bool:
        """Whether an answer is under way."""
        return self._mine.locked()

    def ask(self, question: str, files: Sequence[Path], options: Options) -> Iterator[Exchange]:
        """Ask, and hand out the exchange whenever its answer has grown.

        After the last one the exchange is part of `exchanges`, unless nothing was said.

        Args:
            question: may be empty when there are files to describe.
            files: images and videos, in order.
            options: of this answer.

        Raises:
            ValueError: a question, a file or an option that cannot be followed; a full context.
            BusyError: another answer is under way.
        """
        return self._answer(len(self.exchanges), question, files, options)

    def retry(self, index: int, options: Options) -> Iterator[Exchange]:
        """Ask the question of an exchange again, and forget what followed; as `ask` otherwise.

        Raises:
            IndexError: there is no such exchange.
        """
        exchange = self._exchange(index)
        return self._answer(index, exchange.question, exchange.files, options)

    def edit(self, index: int, question: str, options: Options) -> Iterator[Exchange]:
        """Ask another question about the files of an exchange; as `retry` otherwise."""
        return self._answer(index, question, self._exchange(index).files, options)

    def stop(self) -> None:
        """End the answer after the token it is at; what was said so far stays."""
        self._cancel.set()

    def undo(self, index: int | None = None) -> Exchange | None:
        """Take exchanges back, from one of them to the last.

        Args:
            index: the first one to go; the last one when None.

        Returns:
            That exchange; None when there is none.
        """
        with self._alone():
            if not self.exchanges:
                return None
            index = len(self.exchanges) - 1 if index is None else index
            exchange = self._exchange(index)
            del self.exchanges[index:]
            self._cut(index)
            return exchange

    def clear(self) -> None:
        """End an answer that is under way, and forget everything.

        Raises:
            BusyError: the answer does not end.
        """
        self.stop()
        with self._alone(self.engine.bounds.patience_seconds):
            self.session = self.engine.session()
            self.exchanges, self._read, self._seen = [], {}, None

    # ------------------------------------------------------------------ looking
    def read(self, files: Sequence[Path], options: Options) -> tuple[Media, ...]:
        """Read files as the model would get them; each is decoded once.

        Returns:
            Images, then videos: the order in which the model gets them.

        Raises:
            ValueError: too many or too large files, or one that cannot be read.
            FileNotFoundError: a file is gone.
        """
        bounds = self.engine.bounds
        if len(files) > bounds.files:
            raise ValueError(
                f"{len(files)} files with one question; up to {bounds.files} are possible."
            )
        options = options.checked(self.engine)
        used = {id(each): each for each in self.media()}
        media: dict[_Key, Media] = {}
        found, held = [], sum(each.nbytes for each in used.values())
        for path in files:
            key = (path, (options.num_frames if is_video(path) else options.max_tiles) or 0)
            if key not in media:
                media[key] = each = self._media(key, options)
                held += 0 if id(each) in used else each.nbytes
            found.append(media[key])  # a file that is there twice is two images
            if held > bounds.media_bytes:
                raise ValueError(
                    f"The images of this chat take {held / MEBI:.0f} MB of memory; up to "
                    f"{bounds.media_bytes / MEBI:.0f} are possible. Please start a new chat."
                )
        # What was added to a question and taken away again is not kept.
        kept = {key: each for key, each in self._read.items() if id(each) in used}
        self._read = {**kept, **media}
        images, videos = _sorted(found)
        return (*images, *videos)

    def account(self, question: str, files: Sequence[Path], options: Options) -> Account:
        """What a question would cost, without asking it.

        Raises:
            ValueError: as in `read`.
        """
        options = options.checked(self.engine)
        asked = self._asked(question, options) if question.strip() else ""
        turn = Turn(asked, self.read(files, options))
        return self.engine.account(
            [*self.session.turns, turn],
            self._system_message(options),
            options.max_new_tokens or 1,
        )

    def words(self) -> list[attention_map.Word]:
        """Words of the last answer, for `attention`; none before it, or in a dialogue without
        images. Never waits for the model.

        Raises:
            BusyError: an answer is under way.
        """
        if not self.exchanges:
            return []
        last = self.exchanges[-1]
        if last.state != "done":
            raise BusyError(_BUSY)
        return last.words

    def attention(self, word: int) -> attention_map.WordAttention:
        """Where the last answer looked when it wrote a word.

        Args:
            word: its number in `words`.

        Raises:
            IndexError: no such word.
            BusyError: as in `words`, or the model does not become free.
        """
        words = self.words()
        if not 0 <= word < len(words):
            raise IndexError(f"The last answer has no word {word}; it has {len(words)}.")
        seen, last = self._seen, self.exchanges[-1]
        if seen is not None and seen[0] is last and seen[1].word == words[word]:
            return seen[1]
        with self._alone(), self.engine.turn():
            self.session.system_message = self._system_message(last.options)
            ids = last.reply.ids if last.reply is not None else None
            found = attention_map.word_attention(self.session, -1, words[word], ids)
            self._seen = (last, found)
        return found

    def media(self) -> list[Media]:
        """Images and videos of the dialogue, in order."""
        return [media for exchange in self.exchanges for media in exchange.media]

    @property
    def nbytes(self) -> int:
        """Memory of the dialogue: images, visual tokens, keys and values, attention."""
        held, seen = self.session.memory(), self._seen
        media = {id(each): each.nbytes for each in [*self.media(), *self._read.values()]}
        attention = 0 if seen is None else seen[1].weights.nbytes
        return held["kv_bytes"] + held["feature_bytes"] + sum(media.values()) + attention

    def release(self) -> None:
        """Give back what can be computed again: keys, values, visual tokens, attention."""
        self.session.release()
        self._seen = None

    # ------------------------------------------------------------------ steps
    @contextlib.contextmanager
    def _alone(self, patience: float = 0) -> Iterator[None]:
        taken = self._mine.acquire(timeout=patience) if patience else self._mine.acquire(False)
        if not taken:
            raise BusyError(_BUSY)
        try:
            yield
        finally:
            self._mine.release()

    def _exchange(self, index: int) -> Exchange:
        if not 0 <= index < len(self.exchanges):
            raise IndexError(f"There is no question {index}; the chat has {len(self.exchanges)}.")
        return self.exchanges[index]

    def _media(self, key: _Key, options: Options) -> Media:
        if key in self._read:
            return self._read[key]
        path, processor = key[0], self.engine.loaded.processor
        clip = is_video(path)
        with self.engine.decoding:
            others = [each for (known, _), each in self._read.items() if known == path]
            if others and not clip:  # decoded before, under another limit
                return recut(processor, others[0], options.limits)
            return self._decode(path, options, clip=clip)

    def _decode(self, path: Path, options: Options, *, clip: bool) -> Media:
        check_upload(path, self.engine.bounds)
        reader = read_video if clip else read_image
        try:
            return reader(self.engine.loaded.processor, path, options.limits)
        except (OSError, ValueError) as error:  # the visitor knows the name, not the place
            text = str(error).replace(str(path), path.name)
            raise ValueError(f"{path.name} cannot be read: {text}") from error

    def _system_message(self, options: Options) -> str:
        return options.system_prompt or self.engine.system_message

    def _asked(self, question: str, options: Options) -> str:
        return sampling.reasoning_prompt(question) if options.cot else question

    def _check(self, question: str, files: Sequence[Path]) -> str:
        question, most = question.strip(), self.engine.bounds.question_characters
        if not question:
            hint = " about the files" if files else ""
            raise ValueError(f"Please type a question{hint}.")
        if len(question) > most:
            raise ValueError(
                f"The question has {len(question)} characters; it may have up to {most}."
            )
        return question

    def _answer(
        self, index: int, question: str, files: Sequence[Path], options: Options
    ) -> Iterator[Exchange]:
        """Put an exchange in the place of those from `index` on."""
        question = self._check(question, files)
        options = options.checked(self.engine)
        with self._alone(), contextlib.ExitStack() as leaving:
            self._cancel.clear()  # first: who stops while files are read stops this answer
            media = self.read(files, options)
            place = leaving.enter_context(self.engine.line.place())
            exchange = Exchange(question, tuple(files), media, options)
            before, self.exchanges[index:] = self.exchanges[index:], [exchange]
            turns: list[Turn] | None = None  # of the session, taken back once it is our turn
            limits, system_message = self.session.limits, self.session.system_message
            try:
                yield exchange
                yield from self._wait(place, exchange)
                if self._cancel.is_set():
                    exchange.finish = "stopped"
                else:
                    turns = self._cut(index)
                    yield from self._run(exchange)
            finally:  # an error, a closed generator or a normal end
                if turns is not None and len(self.session.turns) > index:
                    self._settle(exchange)
                else:
                    self._limit(limits)
                    self.session.system_message = system_message
                    self.exchanges[index:] = before
                    self._restore(turns or [])
            leaving.close()  # whoever comes next need not wait until this is shown
            yield exchange

    def _wait(self, place: Place, exchange: Exchange) -> Iterator[Exchange]:
        """Stand in line until it is the turn of the exchange, or it is stopped."""
        while not self._cancel.is_set() and (before := place.wait(_PATIENCE)):
            exchange.before = before
            yield exchange  # so that a visitor who left is noticed
        exchange.before = 0

    def _run(self, exchange: Exchange) -> Iterator[Exchange]:
        """Let the model answer."""
        options = exchange.options
        self.session.system_message = self._system_message(options)
        self._limit(options.limits)
        if options.seed is not None and (options.sample or options.votes > 1):
            torch.manual_seed(options.seed)  # nobody else draws meanwhile
        yield from (self._vote if options.votes > 1 else self._stream)(exchange)

    def _limit(self, limits: Limits) -> None:
        """Cut the images of all turns under the limits of the next answer."""
        if limits == self.session.limits:
            return
        self.session.limits = limits
        for exchange, turn in zip(self.exchanges, self.session.turns, strict=False):
            exchange.media = tuple(turn.media)

    def _stream(self, exchange: Exchange) -> Iterator[Exchange]:
        exchange.state = "writing"
        stream = self.session.stream(
            self._asked(exchange.question, exchange.options),
            *_sorted(exchange.media),
            cancel=self._cancel,
            **exchange.options.generation(),
        )
        with contextlib.closing(stream):
            for piece in stream:
                exchange.answer += piece
                yield exchange
        exchange.reply = self.session.last
        exchange.finish = self.session.last.finish_reason if self.session.last else "stopped"

    def _vote(self, exchange: Exchange) -> Iterator[Exchange]:
        exchange.state = "voting"
        yield exchange
        options = exchange.options
        turns = len(self.session.turns)
        voted = sampling.vote(
            self.session,
            exchange.question,
            *_sorted(exchange.media),
            votes=options.votes,
            cot=options.cot,
            stopping_criteria=StoppingCriteriaList([_Cancelled(self._cancel)]),
            **options.generation(),
        )
        if self._cancel.is_set():  # answers that were cut off do not vote
            while len(self.session.turns) > turns:
                self.session.undo()
            exchange.finish = "stopped"
            return
        exchange.answer, exchange.voted, exchange.finish = voted.text, voted, "vote"

    def _settle(self, exchange: Exchange) -> None:
        """Finish an exchange whose turn the session has."""
        exchange.answer = self.session.turns[-1].answer
        exchange.finish = exchange.finish or "stopped"
        exchange.reply = exchange.reply or (None if exchange.voted else self.session.last)
        exchange.state = "done"
        self._find_boxes(exchange)
        self._seen = None
        if any(each.media for each in self.exchanges):  # now, while the tokenizer is ours
            ids = exchange.reply.ids if exchange.reply is not None else None
            exchange.words = attention_map.words_of_turn(self.session, -1, ids)

    def _find_boxes(self, exchange: Exchange) -> None:
        """Boxes of an answer, and their image: the one that the question names as Image-k, else the
        latest."""
        images = [media for media in self.media() if media.tiling is not None]
        if not images:
            return
        named = _NAMED.findall(exchange.question)
        chosen = images[-1]
        if named and 1 <= int(named[-1]) <= len(images):
            chosen = images[int(named[-1]) - 1]
        assert chosen.tiling is not None
        picture = chosen.tiling.image
        found = grounding.parse_boxes(exchange.answer, height=picture.height, width=picture.width)
        exchange.boxes = [box for box in found if box.tagged and box.valid]
        exchange.boxed = chosen if exchange.boxes else None

    def _cut(self, index: int) -> list[Turn]:
        """Take back turns of the session from one on, and return them."""
        gone: list[Turn] = []
        while len(self.session.turns) > index:
            gone.insert(0, self.session.undo())
        return gone

    def _restore(self, turns: list[Turn]) -> None:
        """Put turns back that were taken; called by whoever has the model, and so its tokenizer."""
        for turn in turns:
            self.session.answer_with(turn.question, turn.answer, *_sorted(turn.media))


class _Cancelled(StoppingCriteria):
    """Stops a generation when an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


def _sorted(media: Sequence[Media]) -> tuple[list[Media], list[Media]]:
    """Images, videos."""
    return [m for m in media if not m.is_video], [m for m in media if m.is_video]
