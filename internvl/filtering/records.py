"""Rows of a shard, and a row as the rules see it.

`internvl.data.schema.parse_row` refuses what training could not use. Here such a row still becomes
a `Record`, because a rule has to see what is wrong with it; only what cannot be read at all is a
`bad_row`, which is flagged like anything else and never lost. Media are not opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl.filtering.plan import Shard, is_blank, open_parquet
from internvl.filtering.verdict import Record, Role, Said, Verdict

BAD_ROW = "bad_row"
_BOM = b"\xef\xbb\xbf"
_ROLES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_SOURCES = ("image", "video", "url", "path", "base64", "image_url", "video_url")

Content = bytes | Mapping[str, Any]


class BadRow(ValueError):
    """A row that is no conversation."""


@dataclass(frozen=True)
class Row:
    """One row as it stands in its file.

    Attributes:
        number: in its dataset, from 1.
        key: tells it from every other row of the corpus.
        where: file and line, for messages.
        dataset: name.
        content: the line without its end (JSON Lines), or the columns (Parquet) with the digest of
            embedded files in place of their bytes.
    """

    number: int
    key: str
    where: str
    dataset: str
    content: Content

    @property
    def digest(self) -> str:
        """Stands for the content; a decision is on a content, not on a line number."""
        data = self.content
        if not isinstance(data, bytes):
            data = json.dumps(data, sort_keys=True, default=str).encode()
        return hashlib.blake2b(data, digest_size=8).hexdigest()


# ---------------------------------------------------------------------- reading
def read_rows(shard: Shard) -> Iterator[Row]:
    """The rows of a shard, in order."""
    contents = _read_lines(shard) if shard.kind == "jsonl" else _read_groups(shard)
    name = Path(shard.file).name
    for number, (line, content) in enumerate(contents, start=shard.row):
        where = f"{name}:{line}" if shard.kind == "jsonl" else f"{name} row {line}"
        yield Row(number, f"{shard.dataset}:{number}", where, shard.dataset, content)


def _read_lines(shard: Shard) -> Iterator[tuple[int, Content]]:
    with open(shard.file, "rb") as stream:
        stream.seek(shard.start)
        position, number = shard.start, shard.line
        while position < shard.end:
            line = stream.readline()
            if not is_blank(line):
                yield number, line.removeprefix(_BOM).rstrip(b"\r\n")
            position, number = position + len(line), number + 1


def _read_groups(shard: Shard) -> Iterator[tuple[int, Content]]:
    file, number = open_parquet(shard.file), shard.line
    for batch in file.iter_batches(batch_size=256, row_groups=range(shard.start, shard.end)):
        for row in batch.to_pylist():
            yield (
                number,
                {key: _undecoded(value) for key, value in row.items() if value is not None},
            )
            number += 1


def _undecoded(value: Any) -> Any:
    """A column with bytes, such as those of an image, replaced by what tells them apart."""
    if isinstance(value, bytes):
        return f"sha256:{hashlib.sha256(value).hexdigest()}"
    if isinstance(value, dict):
        return {key: _undecoded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_undecoded(each) for each in value]
    return value


# ---------------------------------------------------------------------- understanding
def to_record(row: Row) -> tuple[Record, Verdict | None]:
    """A row as the rules see it; with a verdict, and without turns, if it cannot be read."""
    try:
        content = row.content
        if isinstance(content, bytes):
            content = _parsed(content)
        turns, images, videos = _conversation(content)
        record = Record(turns, row.dataset, row.where, images, videos, row.key, content)
        return record, None
    except BadRow as error:
        known = content if isinstance(content, Mapping) else {}
        empty = Record((), row.dataset, row.where, key=row.key, row=known)
        return empty, Verdict(BAD_ROW, 1.0, 1.0, note=str(error))


def _parsed(line: bytes) -> Mapping[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"the line is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise BadRow(f"the line is a {type(content).__name__}; expected an object.")
    return content


def _conversation(row: Mapping[str, Any]) -> tuple[tuple[Said, ...], int, int]:
    """Turns, number of images, number of videos."""
    if row.get("conversations") is not None:
        said, own = _official(row["conversations"]), {"image": 0, "video": 0}
        columns = "image", "video"
    elif row.get("messages") is not None:
        said, own = _messages(row["messages"])
        columns = "images" if "images" in row else "image", "videos" if "videos" in row else "video"
    else:
        raise BadRow(f"the row has the keys {sorted(row)}; expected conversations or messages.")
    for turn in said:
        try:
            turn.text.encode()
        except UnicodeEncodeError as error:
            raise BadRow(f"a turn holds half a character (a lone surrogate): {error}") from error
    images, videos = (len(_as_list(row.get(name))) for name in columns)
    return tuple(said), images + own["image"], videos + own["video"]


def _official(turns: Any) -> list[Said]:
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise BadRow(f"'conversations' is {turns!r:.60}; expected a list of turns.")
    said = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
            raise BadRow(f"turn {number} is {turn!r:.60}; expected 'from' and a string 'value'.")
        said.append(Said(_role(turn.get("from"), number), turn["value"]))
    return said


def _role(name: Any, number: int) -> Role:
    if not isinstance(name, str) or name not in _ROLES:
        raise BadRow(f"turn {number} is from {name!r}; expected one of {sorted(_ROLES)}.")
    return _ROLES[name]


def _messages(messages: Any) -> tuple[list[Said], dict[str, int]]:
    """Turns, and how many images and videos the items themselves name."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise BadRow(f"'messages' is {messages!r:.60}; expected a list of messages.")
    said, named = [], {"image": 0, "video": 0}
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping):
            raise BadRow(f"message {number} is {message!r:.60}; expected 'role' and 'content'.")
        content = message.get("content")
        parts = [content or ""] if content is None or isinstance(content, str) else content
        if not isinstance(parts, Sequence):
            raise BadRow(f"message {number} has content {content!r:.60}; expected text or items.")
        texts = [_item(part, named, number) for part in parts]
        said.append(Said(_role(message.get("role"), number), "".join(texts)))
    return said, named


def _item(item: Any, named: dict[str, int], number: int) -> str:
    """The text of an item of list content: its own, or the tag of an image or a video."""
    if isinstance(item, str):
        return item
    if not isinstance(item, Mapping):
        raise BadRow(f"message {number} holds an item {item!r:.60}; expected an object.")
    # Parquet gives every item the keys of all; those without a value are not its own.
    own = {key: value for key, value in item.items() if value is not None}
    kind = str(own.get("type") or next((k for k in ("text", "image", "video") if k in own), None))
    kind = kind.removesuffix("_url")
    if kind == "text" and isinstance(own.get("text"), str):
        return str(own["text"])
    if kind not in named:
        raise BadRow(f"message {number} holds an item {item!r:.60}; expected text, image or video.")
    named[kind] += any(name in own for name in _SOURCES)
    return f"<{kind}>\n"


def _as_list(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
