"""The dialogue as messages of Gradio's chatbot.

exchange -> files, question | votes or reasoning, answer, picture of boxes, remark
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from internvl.answers import extract_answer
from internvl.app.uploads import is_video
from internvl.app.visitor import Exchange
from internvl.chat.sampling import choices_in
from internvl.chat.tiles_picture import plural

_TAGS = {"<ref>": "**", "</ref>": "** ", "<box>": "`", "</box>": "` "}
_TAGS |= {"<quad>": "`", "</quad>": "` "}
_TAG = re.compile("|".join(map(re.escape, _TAGS)))


def readable(answer: str) -> str:
    """An answer with labels in bold and boxes in fixed width, in place of their tags."""
    return _TAG.sub(lambda match: _TAGS[match[0]], answer).strip()


def messages(exchanges: Sequence[Exchange]) -> list[dict[str, Any]]:
    """All messages of a dialogue."""
    return [message for exchange in exchanges for message in _messages(exchange)]


def exchange_of(exchanges: Sequence[Exchange], message: int) -> int:
    """The exchange that a message belongs to.

    Args:
        exchanges: of the dialogue.
        message: its number in `messages`.

    Raises:
        IndexError: there is no such message.
    """
    end = 0
    for index, exchange in enumerate(exchanges):
        end += len(_messages(exchange))
        if message < end:
            return index
    raise IndexError(f"There is no message {message}; the chat has {end}.")


def _messages(exchange: Exchange) -> list[dict[str, Any]]:
    return [*_question(exchange), *_answer(exchange)]


def _question(exchange: Exchange) -> list[dict[str, Any]]:
    """Files and question apart: a message with a file in it cannot be edited in the browser."""
    files = [
        {"path": str(path), "alt_text": f"{'Video' if is_video(path) else 'Image'} {path.name}"}
        for path in exchange.files
    ]
    parts: list[Any] = [files, exchange.question] if files else [exchange.question]
    return [{"role": "user", "content": part} for part in parts]


def _answer(exchange: Exchange) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if exchange.before:
        count = plural(exchange.before, "question")
        return [_thought("Waiting", f"{count} of other people before yours.", True)]
    if exchange.state == "voting":
        title = f"Sampling {exchange.options.votes} answers"
        return [_thought(title, "They come from one prefill and are counted at the end.", True)]
    if not exchange.answer:
        return []
    text = readable(exchange.answer)
    if exchange.voted is not None:
        found.append(_thought(*_votes(exchange)))
    if exchange.options.cot:
        final = extract_answer(exchange.answer, choices=choices_in(exchange.question) or None)
        done = exchange.state == "done"
        if not done:
            return [*found, _thought("Reasoning", text, True)]
        if final is not None and len(final) < len(exchange.answer):
            found.append(_thought("Reasoning", text))
            text = f"**{final}**"
    content: list[Any] = [text]
    if exchange.drawn is not None:
        labels = ", ".join(sorted({box.label or "region" for box in exchange.boxes}))
        content.append({"path": str(exchange.drawn), "alt_text": f"Boxes: {labels}"})
    if remark := _remark(exchange):
        content.append(remark)
    return [*found, {"role": "assistant", "content": content}]


def _thought(title: str, content: str, pending: bool = False) -> dict[str, Any]:
    metadata = {"title": title, "status": "pending" if pending else "done"}
    return {"role": "assistant", "content": content, "metadata": metadata}


def _votes(exchange: Exchange) -> tuple[str, str]:
    """Title and table of a vote."""
    voted = exchange.voted
    assert voted is not None
    counts = voted.vote.counts
    if voted.answer is None:
        title = f"No answer found in {len(voted.texts)} texts"
    else:
        most = max(counts.values())
        title = f"{most} of {len(voted.texts)} votes"
        title += " (a tie; the first one wins)" if voted.vote.tie else ""
    lines = ["| answer | votes |", "|---|---|"]
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    lines += [f"| {_cell(answer)} | {number} |" for answer, number in ordered]
    if voted.vote.unparsed:
        lines.append(f"| *without an answer* | {voted.vote.unparsed} |")
    return title, "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:200]


def _remark(exchange: Exchange) -> str:
    if exchange.state != "done":
        return ""
    if exchange.finish == "length":
        most = exchange.options.max_new_tokens
        return f"*Cut off after {most} tokens, the longest answer allowed in the settings.*"
    if exchange.finish == "stopped":
        return "*Stopped.*"
    if exchange.finish == "repetition":
        detail = exchange.reply.detail if exchange.reply is not None else ""
        return f"*Stopped because it repeated itself: {detail}*"
    return ""
