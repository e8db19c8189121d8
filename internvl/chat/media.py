"""Images and videos, read and cut into the tiles that a model is given.

Tiles stay bytes: a quarter of the memory of normalised ones, and the model normalises them on its
device to the same bits. Each tile has a key made of its content, by which its visual tokens are
found again.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from internvl import hub
from internvl.chat.tiles_picture import Tiling


@dataclass(frozen=True)
class Limits:
    """How media are read; None leaves a setting to the checkpoint.

    Attributes:
        max_tiles: most tiles of an image, thumbnail not counted.
        num_frames: frames of a video.
        allow_urls: fetch http(s) URLs.
    """

    max_tiles: int | None = None
    num_frames: int | None = None
    allow_urls: bool = False

    def options(self, *names: str) -> dict[str, Any]:
        """The settings among `names` that are set."""
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Media:
    """An image or a video, ready for the model.

    Attributes:
        label: where it comes from, short.
        is_video: one tile per frame, and a line of text for each.
        pixel_values: (n, 3, S, S) uint8 tiles.
        num_tiles: tiles of the image, or a 1 for each frame.
        tiling: the image and how it is cut; None for a video.
    """

    label: str
    is_video: bool
    pixel_values: torch.Tensor
    num_tiles: list[int]
    tiling: Tiling | None = None

    @functools.cached_property
    def keys(self) -> tuple[bytes, ...]:
        """A digest of the content of each tile."""
        shape = str(tuple(self.pixel_values.shape[1:])).encode()
        return tuple(
            hashlib.blake2b(tile.numpy().tobytes(), digest_size=16, key=shape).digest()
            for tile in self.pixel_values.contiguous()
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the tiles and of the image they were cut from."""
        picture = self.tiling.image if self.tiling is not None else None
        whole = 0 if picture is None else picture.width * picture.height * len(picture.getbands())
        return self.pixel_values.nbytes + whole


def is_remote(source: str) -> bool:
    """Whether a word on the command line is a URL or a data URL."""
    return source.lower().startswith(("http://", "https://", "data:"))


def short_name(source: Any) -> str:
    """A name for a source that fits on a line."""
    if isinstance(source, (str, Path)):
        text = str(source)
        if text.lower().startswith("data:"):
            return text[:24] + "..."
        return text if is_remote(text) else Path(text).name
    return type(source).__name__


def read_image(processor: Any, source: Any, limits: Limits | None = None) -> Media:
    """Read an image and cut it into tiles.

    Args:
        processor: of the checkpoint.
        source: path, URL (if the limits allow it), data URL, bytes, PIL image, array or tensor.
        limits: see `Limits`.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: not a readable image.
    """
    limits = limits or Limits()
    images = processor.image_processor
    sources = hub.ring0("preprocessor.image_sources")
    policy = sources.SourcePolicy(
        max_pixels=images.max_pixels,
        exif_orientation=images.exif_orientation,
        alpha_color=None if images.alpha_color is None else tuple(images.alpha_color),
        allow_urls=limits.allow_urls,
    )
    return _cut(processor, sources.load_rgb(source, policy), short_name(source), limits)


def recut(processor: Any, media: Media, limits: Limits | None = None) -> Media:
    """Cut an image again, under other limits; a video stays as it was read."""
    if media.tiling is None:
        return media
    return _cut(processor, media.tiling.image, media.label, limits)


def _cut(processor: Any, picture: Any, label: str, limits: Limits | None) -> Media:
    images = processor.image_processor
    options = (limits or Limits()).options("max_tiles")
    if "max_tiles" in options:
        options["min_tiles"] = min(images.min_tiles, options["max_tiles"])
    tiles = images(picture, return_tensors="pt", do_normalize=False, **options)
    grid = images.select_grid(picture.height, picture.width, **options)
    count = int(tiles["num_tiles"][0])
    tiling = Tiling(label, picture, grid.rows, grid.cols, images.tile_size, count > grid.tiles)
    return Media(label, False, tiles["pixel_values"], [count], tiling)


def read_video(processor: Any, source: Any, limits: Limits | None = None) -> Media:
    """Read a video: one tile per chosen frame.

    Args:
        processor: of the checkpoint.
        source: path, folder of images, bytes, URL (if the limits allow it) or frames.
        limits: see `Limits`.

    Raises:
        FileNotFoundError: a path that does not exist.
        ImportError: a video file, and PyAV is not installed.
        ValueError: not a readable video.
    """
    options = (limits or Limits()).options("num_frames", "allow_urls")
    tiles = processor.video_processor([source], return_tensors="pt", do_normalize=False, **options)
    return Media(
        short_name(source), True, tiles["pixel_values_videos"], [1] * tiles["num_frames"][0]
    )
