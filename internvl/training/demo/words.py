"""The words that pictures print: those of training, and held-out ones that it never shows."""

from __future__ import annotations

import functools
import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np

from internvl.training.demo import archives
from internvl.training.demo.archives import DEFAULT_CACHE
from internvl.training.demo.labels import LETTERS
from internvl.training.demo.scenes import pick

LONGEST = 6
_LEVELS = ("10", "20", "35", "40")  # SCOWL sizes: from the commonest words on


def held_out(word: str) -> bool:
    """Whether a word is for the test only: one in eight, by its hash; single letters never."""
    return len(word) > 1 and hashlib.sha256(word.encode()).digest()[0] < 32


@functools.lru_cache(maxsize=2)
def load(split: str, cache: Path = DEFAULT_CACHE) -> tuple[str, ...]:
    """Capitalised English words of 2-6 letters of ``split``: ``train`` or ``test``.

    Raises:
        ValueError: another split name, or an archive with the wrong hash.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    found: set[str] = set()
    with tarfile.open(archives.WORDS.fetch(cache)) as archive:
        for level in _LEVELS:
            found |= set(
                json.loads(archives.member(archive, f"package/english-words-{level}.json"))
            )
    wanted = {word.upper() for word in found if 2 <= len(word) <= LONGEST}
    return tuple(
        word
        for word in sorted(wanted)
        if set(word) <= set(LETTERS) and held_out(word) == (split == "test")
    )


def training_text(rng: np.random.Generator, known: tuple[str, ...]) -> str:
    """A training word, or (30 %) letters that are no word; never a held-out word."""
    while True:
        if rng.random() < 0.7:
            length = int(pick(rng, (1, 2, 3, 3, 4, 4, 5, 5, 6, 6)))
            if length > 1:
                return pick(rng, _by_length(known)[length])
            return pick(rng, LETTERS)
        text = "".join(pick(rng, LETTERS) for _ in range(int(rng.integers(1, LONGEST + 1))))
        if not held_out(text):
            return text


@functools.lru_cache(maxsize=2)
def _by_length(known: tuple[str, ...]) -> dict[int, tuple[str, ...]]:
    return {n: tuple(w for w in known if len(w) == n) for n in range(2, LONGEST + 1)}
