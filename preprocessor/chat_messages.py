"""Messages in the form that transformers and OpenAI clients use, rendered so that text stays text.

A chat template writes users' words between control tokens, and in the resulting string one cannot
tell who wrote what. So every text of the messages is replaced by a mark before the template runs,
and put back afterwards as text: only what the template itself wrote can become a control token or a
placeholder.

    messages -> ordered parts: Piece (template or user text) | Media (the place of an image or a
    video)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from .encoding import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, Piece, split_control
from .fetching import decode_base64, is_data_url

ROLES = ("system", "user", "assistant")
IMAGE_ITEM_OPTIONS = ("min_tiles", "max_tiles")
VIDEO_ITEM_OPTIONS = ("num_frames", "sampling", "fps", "bound")
_PLACEHOLDERS = re.compile(f"({IMAGE_PLACEHOLDER}|{VIDEO_PLACEHOLDER})")
_MARK = re.compile("\0([0-9]+)\0")


@dataclass
class Media:
    """The place of an image or a video in a prompt.

    Attributes:
        kind: "image" or "video".
        source: what stands there; None until it is filled from the call's `images` or `videos`.
        options: settings for this one alone.
    """

    kind: str
    source: Any = None
    options: dict[str, Any] = field(default_factory=dict)


Part = Piece | Media


def is_batch(conversation: Any) -> bool:
    """Whether this is a list of conversations rather than one."""
    return (
        isinstance(conversation, (list, tuple))
        and len(conversation) > 0
        and (isinstance(conversation[0], (list, tuple)) or hasattr(conversation[0], "messages"))
    )


def split_placeholders(text: str) -> Iterator[Part]:
    """Split text at `<image>` and `<video>`."""
    for part in _PLACEHOLDERS.split(text):
        if part in (IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER):
            yield Media(part.strip("<>"))
        elif part:
            yield Piece(part, False)


def prompt_parts(text: str, tokens: Sequence[str]) -> Iterator[Part]:
    """Split a trusted prompt string: control tokens, placeholders, text.

    Args:
        text: a prompt as a chat template renders it.
        tokens: the control tokens.
    """
    for piece in split_control(text, tokens):
        if piece.control:
            yield piece
        else:
            yield from split_placeholders(piece.text)


def normalize_messages(messages: Any) -> list[dict[str, Any]]:
    """Check messages and bring them into one form, leaving the caller's untouched.

    Returns:
        Dicts of `role` and `content`, which is a string or a list of {"type": "text", "text"},
        {"type": "image", "media": Media} and {"type": "video", "media": Media}.

    Raises:
        ValueError: a message or an item of another form.
    """
    messages = getattr(messages, "messages", messages)
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(
            "a conversation is a non-empty list of messages, {'role', 'content'} each."
        )
    normal = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message:
            raise ValueError(
                f"message {index + 1} is {message!r:.80}; expected {{'role', 'content'}}."
            )
        role, content = message["role"], message.get("content")
        if role not in ROLES or (role == "system" and index > 0):
            raise ValueError(
                f"message {index + 1} has role {role!r}; expected user or assistant, "
                "or system for the first message."
            )
        if content is None or isinstance(content, str):
            normal.append({"role": role, "content": content or ""})
        elif isinstance(content, (list, tuple)):
            items = [_normalize_item(item, f"message {index + 1}") for item in content]
            if role == "system" and any(item["type"] != "text" for item in items):
                raise ValueError(
                    "the system message holds an image or a video; it can only hold text."
                )
            normal.append({"role": role, "content": items})
        else:
            raise ValueError(
                f"message {index + 1} has content of type {type(content).__name__}; "
                "expected a string or a list of items."
            )
    return normal


def _normalize_item(item: Any, where: str) -> dict[str, Any]:
    """One item of list content."""
    if isinstance(item, str):
        return {"type": "text", "text": item}
    if not isinstance(item, Mapping):
        raise ValueError(f"{where} holds an item of type {type(item).__name__}; expected a dict.")
    kind = item.get("type") or next(
        (key for key in ("text", "image", "video") if key in item), None
    )
    if kind == "text":
        if not isinstance(item.get("text"), str):
            raise ValueError(f"{where} holds a text item without a string under 'text'.")
        return {"type": "text", "text": item["text"]}
    if kind in ("image", "image_url"):
        media = Media("image", _item_source(item, ("image", "url", "path", "base64", "image_url")))
        keys = IMAGE_ITEM_OPTIONS
    elif kind in ("video", "video_url"):
        media = Media("video", _item_source(item, ("video", "url", "path", "base64", "video_url")))
        keys = VIDEO_ITEM_OPTIONS
    else:
        raise ValueError(f"{where} holds an item of type {kind!r}; expected text, image or video.")
    media.options = {key: item[key] for key in keys if item.get(key) is not None}
    return {"type": media.kind, "media": media}


def _item_source(item: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """What an item names, or None if it only marks a place."""
    for key in keys:
        value = item.get(key)
        if value is None:
            continue
        if key == "base64" and isinstance(value, str) and not is_data_url(value):
            return decode_base64(value)
        if key in ("image_url", "video_url") and isinstance(value, Mapping):
            value = value.get("url")
        return value
    return None


def render_prompt(messages: list[dict[str, Any]], template: str, variables: dict[str, Any]) -> str:
    """Render normalised messages as a prompt string."""
    plain = [
        {
            "role": message["role"],
            "content": message["content"]
            if isinstance(message["content"], str)
            else [
                {key: item[key] for key in ("type", "text") if key in item}
                for item in message["content"]
            ],
        }
        for message in messages
    ]
    rendered, _ = render_jinja_template(conversations=[plain], chat_template=template, **variables)
    return rendered[0]


def render_parts(
    messages: list[dict[str, Any]], template: str, variables: dict[str, Any], tokens: Sequence[str]
) -> list[Part]:
    """Render normalised messages as parts in which text of the messages is never control.

    Args:
        messages: what `normalize_messages` returned.
        template: source of the chat template.
        variables: what the template may use besides the messages.
        tokens: the control tokens.

    Returns:
        The parts. String content of users is split at its placeholders; elsewhere `<image>` is
        text.

    Raises:
        ValueError: the template left images or videos of the messages out, or wrote others.
    """
    texts: list[tuple[str, bool]] = []

    def mark(text: str, *, placeholders: bool) -> str:
        if not text:
            return ""  # templates ask whether a message is empty
        texts.append((text, placeholders))
        return f"\0{len(texts) - 1}\0"

    marked: list[dict[str, Any]] = []
    items: list[Media] = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            content = mark(content, placeholders=message["role"] == "user")
        else:
            items += [item["media"] for item in content if "media" in item]
            content = [
                {"type": "text", "text": mark(item["text"], placeholders=False)}
                if item["type"] == "text"
                else {"type": item["type"]}
                for item in content
            ]
        marked.append({"role": message["role"], "content": content})
    if "\0" in template:
        raise ValueError("the chat template holds a NUL character; remove it.")
    rendered = render_prompt(marked, template, variables)
    return list(_restore(rendered, texts, items, tokens))


def _restore(
    rendered: str, texts: list[tuple[str, bool]], items: list[Media], tokens: Sequence[str]
) -> Iterator[Part]:
    """Put texts and media back in the place of their marks."""
    waiting = iter(items)
    # Odd parts are the numbers inside the marks.
    for position, part in enumerate(_MARK.split(rendered)):
        if position % 2:
            text, placeholders = texts[int(part)]
            yield from split_placeholders(text) if placeholders else [Piece(text, False)]
            continue
        for piece in prompt_parts(part, tokens):
            if isinstance(piece, Media):
                media = next(waiting, None)
                if media is None or media.kind != piece.kind:
                    raise ValueError(
                        f"the chat template writes a <{piece.kind}> that the messages do not hold "
                        "there; use the chat_template.jinja of this checkpoint."
                    )
                yield media
            else:
                yield piece
    left = sum(1 for _ in waiting)
    if left:
        raise ValueError(
            f"the chat template leaves out {left} of {len(items)} images and videos of the "
            "messages; "
            "use the chat_template.jinja of this checkpoint."
        )
