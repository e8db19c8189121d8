"""What happens on the page: each event reads the visitor of its browser, and shows the result.

Events start at once. Those that need the model stand in the engine's line, where they can be
stopped, and where nobody else has to wait behind them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import gradio as gr

from internvl.app import figures
from internvl.app.layout import Page
from internvl.app.line import BusyError
from internvl.app.messages import exchange_of, messages
from internvl.app.options import Options
from internvl.app.pictures import save_boxes
from internvl.app.visitor import Exchange, Visitor
from internvl.app.visitors import Visitors

logger = logging.getLogger(__name__)

# Those that need the model go through Gradio's queue, which streams what they yield; the line is
# kept by the engine.
MODEL = {"concurrency_limit": None}
AT_ONCE = {"queue": False}
# Errors whose message tells the visitor what to do.
KNOWN = (ValueError, OSError, ImportError, IndexError, BusyError)
_PERIOD = 0.08  # seconds between two pictures of a growing answer
_NAMES = {"max_tiles=": "Tiles per image = ", "num_frames=": "Frames per video = "}
_NAMES["max_new_tokens="] = "Longest answer = "


def plain(error: BaseException) -> str:
    """What went wrong, in the words of the page."""
    text = " ".join(str(error).split()) or type(error).__name__
    for name, shown in _NAMES.items():
        text = text.replace(name, shown)
    if is_out_of_memory(error):
        return (
            "There is not enough memory for this question. Fewer tiles, frames or votes, or a "
            "shorter answer, may help."
        )
    return text


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; the session says so in a note."""
    notes = getattr(error, "__notes__", [])
    return isinstance(error, MemoryError) or any("gave back its caches" in note for note in notes)


def is_known(error: BaseException) -> bool:
    """Whether an error tells the visitor what to do; anything else is a bug of ours."""
    return isinstance(error, KNOWN) or is_out_of_memory(error)


class Events:
    """The events of a page.

    Args:
        page: its components.
        visitors: whose dialogues they are about.
    """

    def __init__(self, page: Page, visitors: Visitors) -> None:
        self.page, self.visitors = page, visitors
        self.engine = visitors.engine
        self.names = list(page.options)
        self._looked_at: WeakKeyDictionary[Visitor, tuple[Any, ...]] = WeakKeyDictionary()

    def connect(self, demo: gr.Blocks) -> None:
        """Bind everything, within the `gr.Blocks`."""
        page = self.page
        settings = list(page.options.values())
        shown = [page.chat, page.box, page.meter, page.tiles, page.words, page.attention]
        hidden: dict[str, Any] = {"api_visibility": "private"}
        model = {**hidden, **MODEL, "show_progress": "minimal", "show_progress_on": [page.chat]}
        quick = {**hidden, **AT_ONCE, "show_progress": "hidden"}

        page.box.submit(self.ask, [page.box, *settings], shown, **model)
        page.chat.retry(self.retry, settings, shown, **model)
        page.chat.edit(self.edit, settings, shown, **model)
        page.chat.undo(self.undo, None, shown, **quick)
        page.box.stop(self.stop, None, None, **quick)
        gr.on([page.fresh.click, page.chat.clear], self.clear, None, shown, **quick)
        chosen = page.chat.example_select(self.example, None, page.box, **quick)
        chosen.then(self.ask, [page.box, *settings], shown, **model)

        changes = [page.box.change]
        for name in ("max_tiles", "num_frames", "max_new_tokens", "cot", "system_prompt"):
            changes.append(page.options[name].change)
        gr.on(
            changes,
            self.preview,
            [page.box, *settings],
            [page.tiles, page.meter],
            trigger_mode="always_last",
            **quick,
        )
        look = {**hidden, **MODEL, "show_progress": "minimal"}
        gr.on(
            [page.words.input, page.layer.input, page.part.input],
            self.attention,
            [page.words, page.layer, page.part],
            page.attention,
            trigger_mode="always_last",
            **look,
        )
        demo.unload(self.leave)

    # ------------------------------------------------------------------ asking
    def ask(self, value: dict[str, Any], request: gr.Request, *settings: Any) -> Iterator[Any]:
        """Answer what is in the box."""
        key, visitor = self._visitor(request)
        question, files = value.get("text") or "", _paths(value)
        with shown_errors():
            self.visitors.claim(key, files)
        options = self._options(settings)
        typed = {"text": question, "files": [str(path) for path in files]}
        start = functools.partial(visitor.ask, question, files, options)
        yield from self._answers(key, visitor, start, typed, empty_box=True)

    def retry(self, event: gr.RetryData, request: gr.Request, *settings: Any) -> Iterator[Any]:
        """Answer a question again."""
        key, visitor = self._visitor(request)

        def start() -> Iterator[Exchange]:
            index = exchange_of(visitor.exchanges, _first(event.index))
            return visitor.retry(index, self._options(settings))

        yield from self._answers(key, visitor, start)

    def edit(self, event: gr.EditData, request: gr.Request, *settings: Any) -> Iterator[Any]:
        """Answer another question in the place of an earlier one."""
        key, visitor = self._visitor(request)

        def start() -> Iterator[Exchange]:
            index = exchange_of(visitor.exchanges, _first(event.index))
            return visitor.edit(index, str(event.value), self._options(settings))

        yield from self._answers(key, visitor, start)

    def _answers(
        self,
        key: str,
        visitor: Visitor,
        start: Callable[[], Iterator[Exchange]],
        typed: dict[str, Any] | None = None,
        *,
        empty_box: bool = False,
    ) -> Iterator[Any]:
        """Show an answer as it grows, and everything around it once it is there."""
        exchange, shown = None, 0.0
        if self.visitors.was_forgotten(key):
            gr.Info(
                "Your earlier chat was removed: it was not used for long, or the connection to "
                "this page was lost. This is a new one."
            )
        try:
            for exchange in start():
                if exchange.state == "done" or time.monotonic() - shown < _PERIOD:
                    continue
                box: Any = gr.skip()
                if not shown:
                    box = _box({"text": "", "files": []} if empty_box else None, answering=True)
                shown = time.monotonic()
                yield [messages(visitor.exchanges), box, *[gr.skip()] * 4]
        except Exception as error:
            told = _to_page(error)
            yield self._rest(key, visitor, typed if shown else None)
            raise told from error
        done = exchange is not None and exchange.state == "done"
        if not done and exchange is not None and exchange.finish == "stop":
            gr.Info("The model ended its answer without a word.")
        yield self._rest(key, visitor, None if done else typed)

    def _rest(self, key: str, visitor: Visitor, typed: dict[str, Any] | None) -> list[Any]:
        """The page between two answers."""
        for exchange in visitor.exchanges:
            if exchange.boxes and exchange.boxed is not None and exchange.drawn is None:
                folder = self.visitors.uploads.folder
                exchange.drawn = save_boxes(folder, exchange.boxed, exchange.boxes)
                with contextlib.suppress(ValueError):  # too many files: shown, and soon swept
                    self.visitors.claim(key, [exchange.drawn])
        self.visitors.tidy()
        box = _box(typed, answering=False)
        return [messages(visitor.exchanges), box, *self._beside(visitor)]

    def _beside(self, visitor: Visitor) -> list[Any]:
        """Meter, tiles, words and map of a dialogue in which nothing is going on."""
        page_tiles = figures.tiles((), visitor.media(), self.engine.model.num_image_token)
        try:
            words = visitor.words()
        except BusyError:
            words = []
        choices = [(word.text, index) for index, word in enumerate(words)]
        remark = figures.CHOOSE if words else figures.NO_WORDS
        return [
            figures.meter(self._spent(visitor), self.engine.context),
            page_tiles,
            gr.Radio(choices=choices, value=None, visible=bool(words)),
            figures.note(remark),
        ]

    def _spent(self, visitor: Visitor) -> Any:
        """What the dialogue takes so far; None for an empty one."""
        if not visitor.exchanges:
            return None
        options = visitor.exchanges[-1].options
        return visitor.account("", (), options)

    # ------------------------------------------------------------------ at once
    def stop(self, request: gr.Request) -> None:
        """End the answer that is under way."""
        self._visitor(request)[1].stop()

    def undo(self, event: gr.UndoData, request: gr.Request) -> list[Any]:
        """Take a question back, into the box."""
        key, visitor = self._visitor(request)
        with shown_errors():
            gone = visitor.undo(exchange_of(visitor.exchanges, _first(event.index)))
        typed = None
        if gone is not None:
            typed = {"text": gone.question, "files": [str(path) for path in gone.files]}
        return self._rest(key, visitor, typed)

    def clear(self, request: gr.Request) -> list[Any]:
        """Begin a new chat."""
        key, visitor = self._visitor(request)
        with shown_errors():
            visitor.clear()
        self.visitors.uploads.release(key)
        return self._rest(key, visitor, {"text": "", "files": []})

    def example(self, event: gr.SelectData) -> dict[str, Any]:
        """Put an example into the box: one of ours, by its number.

        `event.value` is what the client says. Gradio would serve any path in it, of the working
        directory or the temporary one, to whoever asks.
        """
        examples, index = self.page.chat.examples or [], event.index
        with shown_errors():
            if not isinstance(index, int) or not 0 <= index < len(examples):
                raise IndexError(f"There is no example {index!r}; there are {len(examples)}.")
        chosen: Any = examples[index]
        return {"text": chosen["text"], "files": [file["path"] for file in chosen["files"]]}

    def preview(
        self, value: dict[str, Any], request: gr.Request, *settings: Any
    ) -> tuple[Any, Any]:
        """Show tiles and cost of a question before it is asked."""
        key, visitor = self._visitor(request)
        files, options = _paths(value), self._options(settings)
        looked_at = (*files, options.max_tiles, options.num_frames)
        fresh = self._looked_at.get(visitor) != looked_at
        self._looked_at[visitor] = looked_at
        try:
            self.visitors.claim(key, files)
            waiting = visitor.read(files, options)
            account = visitor.account(value.get("text") or "", files, options)
        except KNOWN as error:
            return gr.skip(), figures.problem(plain(error))
        self.visitors.tidy()
        page_tiles: Any = gr.skip()
        if fresh:
            per_tile = self.engine.model.num_image_token
            page_tiles = figures.tiles(waiting, visitor.media(), per_tile)
        return page_tiles, figures.meter(account, self.engine.context)

    def attention(self, word: int | None, layer: int, part: Any, request: gr.Request) -> str:
        """Draw where a word came from."""
        if word is None:
            return figures.note(figures.CHOOSE)
        _, visitor = self._visitor(request)
        with shown_errors():
            seen = visitor.attention(int(word))
        return figures.attention(seen, int(layer) - 1 if layer else None, part)

    def leave(self, request: gr.Request) -> None:
        """Forget a visitor whose page was closed."""
        if request.session_hash:
            self.visitors.remove(request.session_hash)

    # ------------------------------------------------------------------ steps
    def _visitor(self, request: gr.Request) -> tuple[str, Visitor]:
        key = request.session_hash or ""
        with shown_errors():
            return key, self.visitors.get(key)

    def _options(self, settings: tuple[Any, ...]) -> Options:
        with shown_errors():
            return Options(**dict(zip(self.names, settings, strict=True))).checked(self.engine)


@contextlib.contextmanager
def shown_errors() -> Iterator[None]:
    """Hand errors that the visitor can act on to the page, or to the client."""
    try:
        yield
    except Exception as error:
        raise _to_page(error) from error


def _to_page(error: Exception) -> gr.Error:
    """What the visitor is told; a bug of ours goes to the log."""
    if isinstance(error, gr.Error):
        return error
    if is_known(error):
        return gr.Error(plain(error), title="This did not work", print_exception=False)
    logger.error("an event failed", exc_info=error)
    return gr.Error("Something went wrong here. It was logged.", print_exception=False)


def _box(value: dict[str, Any] | None, *, answering: bool) -> gr.MultimodalTextbox:
    """The box with another button, and another content if there is one."""
    content: dict[str, Any] = {} if value is None else {"value": value}
    return gr.MultimodalTextbox(submit_btn=not answering, stop_btn=answering, **content)


def _paths(value: dict[str, Any] | None) -> list[Path]:
    return [Path(file) for file in (value or {}).get("files") or []]


def _first(index: int | tuple[int, int]) -> int:
    """The number of a message; a message of several parts comes with that of the part."""
    return index if isinstance(index, int) else index[0]
