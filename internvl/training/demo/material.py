"""What the drawings are made of, per split: handwriting, fonts, pictures, words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from internvl.training.demo import digits, fonts, pictures, words
from internvl.training.demo.archives import DEFAULT_CACHE


@dataclass(frozen=True)
class Sources:
    """Everything that drawings need from archives, of one split."""

    digits: digits.Digits
    fonts: fonts.Fonts
    pictures: dict[str, tuple[pictures.Picture, ...]]

    @classmethod
    def load(cls, split: str, cache: Path = DEFAULT_CACHE) -> Sources:
        """The sources of ``split``: ``train`` or ``test``."""
        return cls(digits.load(split, cache), fonts.load(split, cache), pictures.load(split, cache))


@dataclass(frozen=True)
class Material:
    """The sources of a split and the words that it may print."""

    sources: Sources
    words: tuple[str, ...]

    @classmethod
    def load(cls, split: str, cache: Path = DEFAULT_CACHE) -> Material:
        """The material of ``split``: ``train`` or ``test``."""
        return cls(Sources.load(split, cache), words.load(split, cache))
