"""Rows of a dataset as samples: turns of text, images and videos.

Two formats are read. The official one has `conversations` of `from` and `value`, with `image` (one
or a list), `video` and `clip` beside them; `<image>` and `<video>` mark their places in what the
human says. The messages format of TRL and `datasets` has `messages` of `role` and `content`; a list
content holds images and videos as items, and top-level `images` and `videos` fill items and tags
that name none. Both become the same Sample, and its text is exactly what inference would be given
for it.

A row that says less or more than it shows is refused with a named error; nothing is guessed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from internvl import hub

Role = Literal["system", "user", "assistant"]
_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_TAGS = re.compile("(<image>|<video>)")


class DataError(ValueError):
    """A sample that cannot be used.

    Attributes:
        reason: short name under which such samples are counted.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        # Raised in workers, caught in the process that counts.
        return type(self), (self.reason, str(self))


@dataclass(frozen=True)
class Media:
    """An image or a video in its place.

    Attributes:
        kind: "image" or "video".
        source: path (with the root in front), bytes, data URL, PIL image, or frames of a video.
        options: for a video, `bound`: first and last second.
    """

    kind: Literal["image", "video"]
    source: Any
    options: Mapping[str, Any] = field(default_factory=dict)


Part = str | Media


@dataclass(frozen=True)
class Turn:
    """What one side says: texts and media in their order."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Sample:
    """One conversation.

    Attributes:
        turns: system message first if there is one; then user and assistant in turn.
        where: file and line, for messages.
    """

    turns: tuple[Turn, ...]
    where: str = ""


def parse_row(
    row: Mapping[str, Any], *, root: str | os.PathLike | None = None, where: str = ""
) -> Sample:
    """Read a row of either format.

    Args:
        row: the row.
        root: folder that relative paths of media are in.
        where: file and line, for messages.

    Raises:
        DataError: a row of another form, turns out of order, or tags that do not fit the media.
    """
    if not isinstance(row, Mapping):
        raise DataError("bad_row", f"a row is a {type(row).__name__}; expected an object.")
    if row.get("conversations") is not None:
        turns = _official(row, root)
    elif row.get("messages") is not None:
        turns = _messages(row, root)
    else:
        raise DataError(
            "bad_row",
            f"a row has the keys {sorted(row)}; expected 'conversations' (official format) or "
            "'messages'.",
        )
    _check_order(turns)
    return Sample(tuple(turns), where)


def _check_order(turns: Sequence[Turn]) -> None:
    """User first, then assistant and user in turn, an assistant last."""
    spoken = [turn.role for turn in turns if turn.role != "system"]
    if "assistant" not in spoken:
        raise DataError("no_supervised_token", "the sample has no assistant turn to learn from.")
    for number, role in enumerate(spoken, start=1):
        expected = "user" if number % 2 else "assistant"
        if role != expected:
            raise DataError(
                "wrong_order",
                f"turn {number} is of the {role}, expected {expected}: a conversation begins with "
                "the user, and the two alternate.",
            )
    if spoken[-1] != "assistant":
        raise DataError(
            "wrong_order", "the last turn is of the user, and nobody answers it; drop that turn."
        )


# ---------------------------------------------------------------------- official format
def _official(row: Mapping[str, Any], root: Any) -> list[Turn]:
    said = row["conversations"]
    if not isinstance(said, Sequence) or isinstance(said, str) or not said:
        raise DataError("bad_row", f"'conversations' is {said!r:.60}; expected a list of turns.")
    spoken: list[tuple[Role, str]] = []
    for number, turn in enumerate(said, start=1):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
            raise DataError(
                "bad_row", f"turn {number} is {turn!r:.60}; expected 'from' and a string 'value'."
            )
        spoken.append((_role(turn.get("from"), number), turn["value"]))
    options = {} if row.get("clip") is None else {"bound": _clip(row["clip"])}
    images = [Media("image", _path(source, root)) for source in _as_list(row.get("image"))]
    videos = [Media("video", _path(v, root), options) for v in _videos(row.get("video"))]
    return _with_tags(_with_prefix(spoken, len(images), len(videos)), images, videos)


def _role(name: Any, number: int) -> Role:
    if name not in _ROLES:
        raise DataError(
            "unknown_role", f"turn {number} is from {name!r}; expected one of {sorted(_ROLES)}."
        )
    if _ROLES[name] == "system" and number > 1:
        raise DataError("unknown_role", f"turn {number} is the system's; it can only come first.")
    return _ROLES[name]


def _clip(clip: Any) -> tuple[float, float]:
    if isinstance(clip, Mapping):
        clip = [clip.get("start"), clip.get("end")]
    try:
        start, end = (float(second) for second in clip)
    except (TypeError, ValueError):
        raise DataError(
            "bad_row", f"'clip' is {clip!r:.60}; expected the first and the last second."
        ) from None
    return start, end


def _with_prefix(
    spoken: list[tuple[Role, str]], images: int, videos: int
) -> list[tuple[Role, str]]:
    """Put the tag of a lone image or video before the first question if nobody wrote one."""
    asked = "".join(text for role, text in spoken if role == "user")
    prefix = "<image>\n" if images == 1 and "<image>" not in asked else ""
    prefix += "<video>\n" if videos == 1 and "<video>" not in asked else ""
    first = next((i for i, (role, _) in enumerate(spoken) if role == "user"), None)
    if not prefix or first is None:
        return spoken
    role, text = spoken[first]
    return [*spoken[:first], (role, prefix + text), *spoken[first + 1 :]]


def _with_tags(
    spoken: Sequence[tuple[Role, str]], images: Sequence[Media], videos: Sequence[Media]
) -> list[Turn]:
    """Put media in the places of their tags, in order; only what a user says has tags."""
    waiting = {"<image>": list(images), "<video>": list(videos)}
    asked = "".join(text for role, text in spoken if role == "user")
    for tag, media in waiting.items():
        _check_tags(asked.count(tag), len(media), tag)
    turns = []
    for role, text in spoken:
        parts: list[Part] = [text]
        if role == "user":
            parts = [waiting[p].pop(0) if p in waiting else p for p in _TAGS.split(text)]
        turns.append(Turn(role, tuple(part for part in parts if part != "")))
    return turns


def _check_tags(tags: int, media: int, tag: str) -> None:
    if tags == media:
        return
    raise DataError(
        "too_few_tags" if tags < media else "too_many_tags",
        f"the user turns have {tags} {tag} tags and the row has {media} {tag.strip('<>')}s; write "
        "one tag for each, in order.",
    )


# ---------------------------------------------------------------------- messages format
def _messages(row: Mapping[str, Any], root: Any) -> list[Turn]:
    code = hub.ring0("preprocessor.chat_messages")
    try:
        messages = code.normalize_messages(row["messages"])
    except ValueError as error:
        raise DataError("bad_row", str(error)) from error
    items = [m for message in messages for m in _items(message) if m["type"] == "image"]
    labelled = len(items) > 1
    waiting = {
        "image": list(_as_list(row["images"] if "images" in row else row.get("image"))),
        "video": list(_videos(row["videos"] if "videos" in row else row.get("video"))),
    }
    turns, seen = [], 0
    for message in messages:
        parts: list[Part] = []
        for item in _items(message):
            if item["type"] == "text":
                parts.append(item["text"])
                continue
            label = ""
            if item["type"] == "image":
                seen += 1
                label = f"Image-{seen}: " if labelled else ""
            # What the chat template of the processor writes.
            parts += [label, _filled(item["media"], waiting, root), "\n"]
        if isinstance(message["content"], str):
            parts = list(_string_content(message, waiting, root))
        turns.append(Turn(message["role"], tuple(part for part in parts if part != "")))
    for kind, rest in waiting.items():
        if rest:
            raise DataError(
                "too_few_tags",
                f"{len(rest)} of the row's {kind}s have no place in its messages; write an item "
                f"{{'type': '{kind}'}} or a <{kind}> tag for each.",
            )
    return turns


def _items(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [] if isinstance(message["content"], str) else message["content"]


def _string_content(
    message: Mapping[str, Any], waiting: dict[str, list[Any]], root: Any
) -> Iterator[Part]:
    text = message["content"]
    for part in _TAGS.split(text) if message["role"] == "user" else [text]:
        if part in ("<image>", "<video>"):
            empty = hub.ring0("preprocessor.chat_messages").Media(part.strip("<>"))
            yield _filled(empty, waiting, root)
        else:
            yield part


def _filled(media: Any, waiting: dict[str, list[Any]], root: Any) -> Media:
    """A place with its image or video: its own, else the next of the row."""
    source = media.source
    if source is None:
        if not waiting[media.kind]:
            raise DataError(
                "too_many_tags",
                f"the messages have a place for {media.kind} more than the row has; give the "
                "item a source, or add one to the row.",
            )
        source = waiting[media.kind].pop(0)
    return Media(media.kind, _path(source, root), dict(media.options))


# ---------------------------------------------------------------------- media
def _as_list(value: Any) -> list[Any]:
    if value is None or value == "" or (isinstance(value, Sequence) and len(value) == 0):
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _videos(value: Any) -> list[Any]:
    """Videos of a row. A list of lists is several videos given by their frames."""
    return _as_list(value)


def _path(source: Any, root: Any) -> Any:
    """Join a relative path to the root; other sources stay. Frames of a video are joined each."""
    if isinstance(source, (list, tuple)):
        return [_path(each, root) for each in source]
    if isinstance(source, Mapping) and source.get("bytes") is None and source.get("path"):
        return _path(source["path"], root)
    if not isinstance(source, str) or root is None:
        return source
    if source.startswith(("data:", "http://", "https://")) or os.path.isabs(source):
        return source
    return os.path.join(root, source)
