"""Fonts of the printed words: 16 families to train on, 4 whole families held out for the test."""

from __future__ import annotations

import functools
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ImageFont

from internvl.training.demo import archives
from internvl.training.demo.archives import DEFAULT_CACHE

HELD_OUT = ("libre-baskerville", "nunito", "ubuntu", "zilla-slab")
WEIGHTS = ("400", "500", "600", "700", "800")
SIZES = tuple(range(8, 33, 2)) + tuple(range(36, 161, 4))  # pixels; asked-for sizes are rounded


@dataclass(frozen=True)
class Fonts:
    """The faces of one split; each is the bytes of a WOFF file, which FreeType reads."""

    names: tuple[str, ...]
    files: tuple[bytes, ...]

    def sample(self, rng: np.random.Generator, size: float) -> ImageFont.FreeTypeFont:
        """A random face at the nearest size of ``SIZES``."""
        index = int(rng.integers(len(self.files)))
        nearest = min(SIZES, key=lambda known: abs(known - size))
        return _face(self.files[index], nearest)


@functools.lru_cache(maxsize=4096)
def _face(data: bytes, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(io.BytesIO(data), size, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=2)
def load(split: str, cache: Path = DEFAULT_CACHE) -> Fonts:
    """The fonts of ``split``: ``train`` or ``test`` (families that training never shows).

    Raises:
        ValueError: another split name, or an archive with the wrong hash.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    names, files = [], []
    for family, archive in archives.FONTS.items():
        if (family in HELD_OUT) != (split == "test"):
            continue
        with tarfile.open(archive.fetch(cache)) as content:
            for weight in WEIGHTS:
                for style in ("normal", "italic"):
                    name = f"{family}-latin-{weight}-{style}.woff"
                    try:
                        data = archives.member(content, f"package/files/{name}")
                    except KeyError:  # few families have all weights
                        continue
                    names.append(name)
                    files.append(data)
    return Fonts(tuple(names), tuple(files))
