"""What one process gives to its visitors, at most."""

from __future__ import annotations

from dataclasses import dataclass, fields

MEBI, GIBI = 2**20, 2**30


@dataclass(frozen=True)
class Bounds:
    """Limits of the app.

    Attributes:
        file_bytes: largest upload.
        pixels: most pixels of an image.
        files: images and videos of one question.
        frames: most frames of a video.
        new_tokens: longest answer that can be asked for.
        votes: most answers of a vote.
        question_characters: longest question, and longest system prompt.
        media_bytes: images and tiles of one dialogue.
        memory_bytes: images, visual tokens, keys and values of all dialogues together.
        disk_bytes: files of one visitor, those made for him included.
        visitors: dialogues that are kept.
        waiting: questions that may wait for the model; further ones are turned away.
        idle_seconds: a dialogue that was not used for so long is forgotten.
        patience_seconds: longest wait for an answer that is being stopped to end.
        decoding: files that are decoded at a time; that needs no model, but processors and memory.

    Raises:
        ValueError: a limit below 1.
    """

    file_bytes: int = 50 * MEBI
    pixels: int = 64_000_000
    files: int = 16
    frames: int = 32
    new_tokens: int = 4096
    votes: int = 16
    question_characters: int = 20_000
    media_bytes: int = 512 * MEBI
    memory_bytes: int = 4 * GIBI
    disk_bytes: int = GIBI
    visitors: int = 64
    waiting: int = 16
    idle_seconds: float = 3600
    patience_seconds: float = 60
    decoding: int = 2

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) < 1:
                raise ValueError(f"{each.name} is {getattr(self, each.name)}; expected 1 or more.")
