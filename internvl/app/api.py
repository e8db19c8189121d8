"""Endpoints for programs, by name; docs/app.md lists them. A client is a visitor like any other.

client = gradio_client.Client(url)
client.predict("What is it?", [handle_file("photo.jpg")], api_name="/ask")
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from internvl.app.events import AT_ONCE, MODEL, shown_errors
from internvl.app.figures import available
from internvl.app.options import Options
from internvl.app.pictures import heat, save
from internvl.app.visitor import Exchange, Visitor
from internvl.app.visitors import Visitors
from internvl.chat.attention_map import Part
from internvl.chat.media import Media
from internvl.chat.tiles_picture import draw_tilings


class Api:
    """The functions behind the endpoints.

    Args:
        visitors: the clients.
    """

    def __init__(self, visitors: Visitors) -> None:
        self.visitors, self.engine = visitors, visitors.engine

    # ------------------------------------------------------------------ asking
    def ask(
        self,
        request: gr.Request,
        question: str,
        files: list[str] | None = None,
        options: dict[str, Any] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Ask about images and videos; the answer grows from result to result."""
        visitor, paths = self._visitor(request), self._paths(request, files)
        yield from self._records(visitor, lambda: visitor.ask(question, paths, _options(options)))

    def retry(
        self, request: gr.Request, options: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Answer the last question again."""
        visitor = self._visitor(request)
        last = len(visitor.exchanges) - 1
        yield from self._records(visitor, lambda: visitor.retry(last, _options(options)))

    def edit(
        self,
        request: gr.Request,
        index: float,
        question: str,
        options: dict[str, Any] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Ask another question in the place of one, counted from 0, and forget what followed."""
        visitor = self._visitor(request)
        yield from self._records(
            visitor, lambda: visitor.edit(int(index), question, _options(options))
        )

    def _records(self, visitor: Visitor, start: Any) -> Iterator[dict[str, Any]]:
        with shown_errors():
            for exchange in start():
                yield record(exchange)
        self.visitors.tidy()

    # ------------------------------------------------------------------ at once
    def stop(self, request: gr.Request) -> dict[str, Any]:
        """End the answer that is under way; what was said stays."""
        self._visitor(request).stop()
        return {"stopping": True}

    def undo(self, request: gr.Request) -> dict[str, Any]:
        """Take the last question back."""
        visitor = self._visitor(request)
        with shown_errors():
            gone = visitor.undo()
        return {
            "question": None if gone is None else gone.question,
            "turns": len(visitor.exchanges),
        }

    def clear(self, request: gr.Request) -> dict[str, Any]:
        """Forget the dialogue and remove its files."""
        visitor = self._visitor(request)
        with shown_errors():
            visitor.clear()
        self.visitors.uploads.release(request.session_hash or "")
        return {"turns": 0}

    def history(self, request: gr.Request) -> list[dict[str, Any]]:
        """All questions and answers of the dialogue."""
        return [record(exchange) for exchange in self._visitor(request).exchanges]

    def account(
        self,
        request: gr.Request,
        question: str,
        files: list[str] | None = None,
        options: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """What a question would cost, without asking it."""
        visitor, paths = self._visitor(request), self._paths(request, files)
        with shown_errors():
            cost = visitor.account(question, paths, _options(options))
        self.visitors.tidy()
        return {
            "prompt_tokens": cost.prompt_tokens,
            "visual_tokens": cost.visual_tokens,
            "text_tokens": cost.text_tokens,
            "max_new_tokens": cost.max_new_tokens,
            "context": cost.context,
            "fits": not cost.excess,
            "excess": cost.excess,
            "kv_bytes": cost.kv_bytes,
        }

    def tiles(
        self,
        request: gr.Request,
        files: list[str] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[str | None, list[dict[str, Any]]]:
        """How images and videos would be cut: a picture of the images, and the facts."""
        visitor, paths = self._visitor(request), self._paths(request, files)
        with shown_errors():
            media = visitor.read(paths, _options(options))
        self.visitors.tidy()
        tilings = [each.tiling for each in media if each.tiling is not None]
        picture = self._saved(request, draw_tilings(tilings), "tiles") if tilings else None
        per_tile = self.engine.model.num_image_token
        return picture, [_tiling(each, per_tile) for each in media]

    def model(self) -> dict[str, Any]:
        """Facts about the checkpoint."""
        return self.engine.describe()

    # ------------------------------------------------------------------ attention
    def words(self, request: gr.Request) -> list[str]:
        """Words of the last answer, for `/attention`."""
        with shown_errors():
            return [word.text for word in self._visitor(request).words()]

    def attention(
        self, request: gr.Request, word: float, layer: float = 0, part: Part = "image"
    ) -> tuple[list[tuple[str, str]], dict[str, Any]]:
        """Where the last answer looked when it wrote a word: pictures, and the numbers."""
        chosen = None if not layer else int(layer) - 1
        with shown_errors():
            if part not in get_args(Part):
                raise ValueError(f"part is {part!r}; expected {', '.join(get_args(Part))}.")
            seen = self._visitor(request).attention(int(word))
            if chosen is not None and not 0 <= chosen < len(seen.weights):
                raise ValueError(f"There is no layer {chosen + 1}; expected 1 to the last, or 0.")
            pictures, facts = [], []
            for media, cells, weights in zip(
                seen.media, seen.maps(chosen), seen.on_tiles(chosen), strict=True
            ):
                shown = available(part, cells[0].thumbnail is not None)
                facts.append(
                    {
                        "source": media.label,
                        "share": float(weights.sum()),
                        "cells": [each.of(shown).tolist() for each in cells],
                    }
                )
                if media.tiling is not None:
                    peak = float(cells[0].of(shown).max())
                    drawn = heat(media.tiling.image, cells[0], shown, peak)
                    pictures.append((self._saved(request, drawn, "attention"), media.label))
        return pictures, {"word": seen.word.text, "images": facts}

    # ------------------------------------------------------------------ steps
    def _visitor(self, request: gr.Request) -> Visitor:
        with shown_errors():
            return self.visitors.get(request.session_hash or "")

    def _paths(self, request: gr.Request, files: Sequence[str] | None) -> list[Path]:
        paths = [Path(str(file)) for file in files or []]
        with shown_errors():
            self.visitors.claim(request.session_hash or "", paths)
        return paths

    def _saved(self, request: gr.Request, picture: Any, name: str) -> str:
        file = save(self.visitors.uploads.folder, picture, name)
        with shown_errors():
            self.visitors.claim(request.session_hash or "", [file])
        return str(file)


def record(exchange: Exchange) -> dict[str, Any]:
    """An exchange as JSON: `answer` as `chat()` gives it, `raw` with the tags of boxes."""
    reply, voted = exchange.reply, exchange.voted
    boxes = [
        {
            "label": box.label,
            "xyxy": [round(value, 2) for value in box.xyxy],
            "image": exchange.boxed.label if exchange.boxed is not None else None,
        }
        for box in exchange.boxes
    ]
    tokens = votes = None
    if reply is not None:
        tokens = {
            "prompt": reply.prompt_tokens,
            "reused": reply.reused_tokens,
            "answer": len(reply.ids),
            "tiles": reply.tiles,
            "encoded_tiles": reply.encoded_tiles,
        }
    if voted is not None:
        votes = {
            "winner": voted.answer,
            "counts": dict(voted.vote.counts),
            "without_answer": voted.vote.unparsed,
            "tie": voted.vote.tie,
            "texts": [_TAGS.sub("", text) for text in voted.texts],
        }
    return {
        "question": exchange.question,
        "files": [media.label for media in exchange.media],
        "answer": _TAGS.sub("", exchange.answer),
        "raw": exchange.answer,
        "state": exchange.state,
        "before": exchange.before,
        "finish": exchange.finish,
        "boxes": boxes,
        "votes": votes,
        "tokens": tokens,
    }


_TAGS = re.compile(r"</?(?:ref|box|quad)>")


def _tiling(media: Media, tokens_per_tile: int) -> dict[str, Any]:
    tiles, tiling = sum(media.num_tiles), media.tiling
    facts: dict[str, Any] = {"source": media.label, "kind": "video" if media.is_video else "image"}
    if tiling is None:
        facts["frames"] = tiles
    else:
        facts |= {"height": tiling.image.height, "width": tiling.image.width}
        facts |= {"rows": tiling.rows, "cols": tiling.cols, "thumbnail": tiling.thumbnail}
    return {**facts, "tiles": tiles, "tokens": tiles * tokens_per_tile}


def _options(values: dict[str, Any] | None) -> Options:
    return Options.of(values or {})


def connect(visitors: Visitors) -> None:
    """Offer the endpoints, within the `gr.Blocks`; nothing of them is on the page."""
    api = Api(visitors)
    with gr.Column(visible=False):
        question, index = gr.Textbox(label="question"), gr.Number(0, label="index")
        files = gr.File(file_count="multiple", label="files")
        options, result = gr.JSON({}, label="options"), gr.JSON(label="result")
        word, layer = gr.Number(0, label="word"), gr.Number(0, label="layer")
        part = gr.Textbox("image", label="part")
        picture, pictures = gr.Image(type="filepath", label="picture"), gr.Gallery(label="pictures")
        button = gr.Button("API")
    asked = [question, files, options]
    waiting: list[tuple[Any, list[Any], Any]] = [
        (api.ask, asked, result),
        (api.retry, [options], result),
        (api.edit, [index, question, options], result),
        (api.words, [], result),
        (api.attention, [word, layer, part], [pictures, result]),
    ]
    quick: list[tuple[Any, list[Any], Any]] = [
        (api.stop, [], result),
        (api.undo, [], result),
        (api.clear, [], result),
        (api.history, [], result),
        (api.account, asked, result),
        (api.tiles, [files, options], [picture, result]),
        (api.model, [], result),
    ]
    for functions, how in ((waiting, MODEL), (quick, {**AT_ONCE, **MODEL})):
        for function, inputs, outputs in functions:
            button.click(
                function,
                inputs,
                outputs,
                api_name=function.__name__,
                api_description=function.__doc__,
                **how,
            )
