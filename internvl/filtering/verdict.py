"""What a rule looks at and what it says: the vocabulary of the filtering pipeline.

A rule is a pure function from a `Record` to a `Verdict` or None. It reads no file, holds no state
and knows no engine, so it runs in a notebook as it runs in a thousand processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Modality = Literal["text", "image", "multi_image", "video"]
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Said:
    """One turn, as text; tags of media stay in it as `<image>` and `<video>`."""

    role: Role
    text: str


@dataclass(frozen=True)
class Record:
    """One sample as the rules see it.

    Attributes:
        turns: system message first if there is one; then user and assistant.
        dataset: name of the dataset, as in the mixture.
        where: file and line, for messages.
        images: images that the row names, whatever its tags say.
        videos: videos that the row names.
        key: what tells this sample from every other of the corpus.
        row: the row as it was read; it is written back untouched.
    """

    turns: tuple[Said, ...]
    dataset: str = ""
    where: str = ""
    images: int = 0
    videos: int = 0
    key: str = ""
    row: Mapping[str, Any] = field(default_factory=dict)

    @property
    def modality(self) -> Modality:
        """Kind of the sample, as in Figure 7; text takes a pipeline of its own in Figure 8."""
        if self.videos:
            return "video"
        if self.images:
            return "image" if self.images == 1 else "multi_image"
        return "text"

    @property
    def answers(self) -> tuple[tuple[int, str], ...]:
        """(turn number, text) of what the assistant says."""
        return tuple(
            (i, turn.text) for i, turn in enumerate(self.turns) if turn.role == "assistant"
        )


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of a turn."""

    turn: int
    start: int
    end: int


@dataclass(frozen=True)
class Verdict:
    """A rule's flag on a sample.

    Attributes:
        rule: name of the rule.
        score: what the rule measured.
        threshold: what it was compared with.
        span: the evidence, None when the whole sample is.
        note: one sentence for the person who reviews.
    """

    rule: str
    score: float
    threshold: float
    span: Span | None = None
    note: str = ""


Rule = Callable[[Record], Verdict | None]
