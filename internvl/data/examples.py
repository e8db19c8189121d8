"""From a sample to what a model is trained on: tiles, ids, labels (report sections 3.1 and 3.4).

    images -> random JPEG -> grid -> tiles --------------.
    videos -> 8-32 random frames -> one tile a frame ----+-> counts -> rendered turns -> Example

The dynamic resolution is the processor's: one image has up to n_max tiles, N images share n_max as
equation 4 says, a frame has one. n_max is the dataset's.

# N tiles   S tile side   T text positions
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from internvl import hub
from internvl.data.augment import QUALITIES, random_jpeg
from internvl.data.mixture import DatasetSpec
from internvl.data.packing import Piece, Span
from internvl.data.render import NO_RESPONSE, Part, RenderedTurn, Renderer
from internvl.data.schema import DataError, Media, Sample


@dataclass(frozen=True)
class ExampleOptions:
    """How samples become examples.

    Attributes:
        min_frames: fewest frames drawn from a video.
        max_frames: most frames drawn from a video.
        jpeg: lowest and highest quality of the random compression.
        jpeg_per: compress the whole image, as the report says, or each tile, as the official code
            does.
    """

    min_frames: int = 8
    max_frames: int = 32
    jpeg: tuple[int, int] = QUALITIES
    jpeg_per: Literal["image", "tile"] = "image"

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if not 1 <= self.min_frames <= self.max_frames:
            raise ValueError(
                f"min_frames={self.min_frames} and max_frames={self.max_frames}; expected "
                "1 <= min_frames <= max_frames."
            )
        if not 1 <= self.jpeg[0] <= self.jpeg[1] <= 100:
            raise ValueError(f"jpeg={self.jpeg}; expected two qualities within 1..100.")
        if self.jpeg_per not in ("image", "tile"):
            raise ValueError(f"jpeg_per={self.jpeg_per!r}; expected 'image' or 'tile'.")


@dataclass(frozen=True)
class Example:
    """A sample that a model can be trained on.

    Attributes:
        input_ids: (T,) int64.
        labels: (T,) int64, -100 where nothing is learnt.
        response: (T,) int32, number of the assistant turn a supervised token belongs to, else -1.
        tiles: (N, S, S, 3) uint8, in the order of their visual tokens.
        key: (dataset, row, copy), and the part of a sample that was cut.
        loss_weight: (T,) float32 weights of the labels, once somebody has set them.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    response: np.ndarray
    tiles: np.ndarray
    key: tuple[int, ...] = ()
    loss_weight: np.ndarray | None = None

    @property
    def tokens(self) -> int:
        """Text positions, visual tokens included."""
        return len(self.input_ids)

    @property
    def num_tiles(self) -> int:
        """Tiles of all images and frames."""
        return len(self.tiles)

    @property
    def supervised(self) -> int:
        """Tokens that are learnt."""
        return int((self.response != NO_RESPONSE).sum())


@dataclass(frozen=True)
class Size:
    """What an example costs, found without decoding a pixel of an image."""

    tokens: int
    tiles: int
    supervised: int
    images: int


class ExampleMaker:
    """Makes examples for one checkpoint.

    Args:
        prepared: `hub.Prepared`, or anything with `config`, `processor` and `tokenizer`.
        options: how.
    """

    def __init__(self, prepared: Any, options: ExampleOptions | None = None) -> None:
        self.options = options or ExampleOptions()
        self.processor = prepared.processor
        self.context_id = prepared.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
        self.tokens_per_tile = prepared.config.num_image_token
        conversation = hub.ring0("conversation").get_conv_template(prepared.config.template)
        if prepared.config.system_message is not None:
            conversation.system_message = prepared.config.system_message
        self.renderer = Renderer(conversation, prepared.tokenizer, self.tokens_per_tile)

    def make(
        self, sample: Sample, spec: DatasetSpec, rng: np.random.Generator, key: tuple[int, ...] = ()
    ) -> Example:
        """Read the media, cut them into tiles, render the turns.

        Args:
            sample: what a row says.
            spec: the dataset it is from: n_max, augmentation, frames.
            rng: draws the quality of images and the frames of videos.
            key: kept in the example.

        Raises:
            DataError: media that cannot be read, or turns that cannot be learnt from.
        """
        stacks: list[np.ndarray] = []
        images = _count(sample, "image")

        def read(media: Media) -> list[int]:
            if media.kind == "image":
                found = [self._image(media, images, spec, rng)]
            else:
                found = [frame[None] for frame in self._frames(media, spec, rng)]
            stacks.extend(found)
            return [len(stack) for stack in found]

        rendered = self._render(sample, read)
        side = self.processor.image_processor.tile_size
        tiles = np.concatenate([np.empty((0, side, side, 3), np.uint8), *stacks])
        return Example(rendered.input_ids, rendered.labels, rendered.response, tiles, key)

    def measure(self, sample: Sample, spec: DatasetSpec, rng: np.random.Generator) -> Size:
        """What `make` would give for the same arguments, from the headers of the images alone.

        A video counts the frames that are drawn, which is too many if its file has fewer.

        Raises:
            DataError: as `make`, but for pixels that cannot be decoded.
        """
        images, tiles = _count(sample, "image"), []

        def count(media: Media) -> list[int]:
            if media.kind == "video":
                found = [1] * self._draw_frames(media, spec, rng)
            else:
                found = [self._count_tiles(media, images, spec)]
                if spec.data_augment and self.options.jpeg_per == "image":
                    rng.integers(*self.options.jpeg, endpoint=True)  # as `make` does
            tiles.extend(found)
            return found

        rendered = self._render(sample, count)
        supervised = int((rendered.response != NO_RESPONSE).sum())
        return Size(len(rendered.input_ids), sum(tiles), supervised, images)

    def _render(self, sample: Sample, read: Callable[[Media], list[int]]) -> Any:
        """Render a sample, its media replaced by the number of tiles that `read` tells."""
        turns, system = [], None
        for turn in sample.turns:
            if turn.role == "system":
                system = "".join(part for part in turn.parts if isinstance(part, str))
                continue
            parts: list[Part] = []
            for part in turn.parts:
                if isinstance(part, str):
                    parts.append(part)
                else:
                    parts += self._place(part, read(part))
            turns.append(RenderedTurn(turn.role, tuple(parts)))
        return self.renderer.render(turns, system)

    def _place(self, media: Media, tiles: list[int]) -> Iterator[Part]:
        """Tiles in their place: frames one a line, each with its number, as at inference."""
        for number, count in enumerate(tiles, start=1):
            if media.kind == "video":
                prefix = self.processor.frame_prefix.replace("{index}", str(number))
                yield ("\n" if number > 1 else "") + prefix
            yield count

    # ------------------------------------------------------------------ media
    def _max_tiles(self, images: int, spec: DatasetSpec) -> int:
        """n_max of one image of a sample with so many (equation 4); a thumbnail comes on top."""
        own = self.processor.image_processor.max_tiles
        limit = own if spec.max_dynamic_patch is None else spec.max_dynamic_patch
        return hub.ring0("preprocessor.tiling").tile_budget(limit, images)

    def _image(
        self, media: Media, images: int, spec: DatasetSpec, rng: np.random.Generator
    ) -> np.ndarray:
        """Tiles (n, S, S, 3) of an image."""
        processor, options = self.processor.image_processor, self.options
        with _reading(media):
            image = processor.fetch_images(media.source)
            if spec.data_augment and options.jpeg_per == "image":
                image = random_jpeg(image, rng, options.jpeg)
            limit = self._max_tiles(images, spec)
            (tiles,) = processor.read_tiles([image], min_tiles=1, max_tiles=limit)
        if spec.data_augment and options.jpeg_per == "tile":
            compressed = [random_jpeg(Image.fromarray(tile), rng, options.jpeg) for tile in tiles]
            tiles = np.stack([np.asarray(tile) for tile in compressed])
        return tiles

    def _count_tiles(self, media: Media, images: int, spec: DatasetSpec) -> int:
        """Tiles of an image, from its header."""
        processor = self.processor.image_processor
        with _reading(media):
            height, width = _size(media.source, processor)
        return processor.count_tiles(
            height, width, min_tiles=1, max_tiles=self._max_tiles(images, spec)
        )

    def _draw_frames(self, media: Media, spec: DatasetSpec, rng: np.random.Generator) -> int:
        low = self.options.min_frames if spec.min_frames is None else spec.min_frames
        high = self.options.max_frames if spec.max_frames is None else spec.max_frames
        count = int(rng.integers(low, high, endpoint=True))
        if isinstance(media.source, (list, tuple)):
            return min(count, len(media.source))
        return count

    def _frames(
        self, media: Media, spec: DatasetSpec, rng: np.random.Generator
    ) -> list[np.ndarray]:
        """Tiles (S, S, 3) of the frames drawn from a video: as many as drawn, none twice."""
        count = self._draw_frames(media, spec, rng)
        with _reading(media):
            clip = self.processor.video_processor.read(
                media.source, num_frames=count, sampling="random", generator=rng, **media.options
            )
        # A clip with fewer frames than drawn is filled up with its last one.
        seen = dict(zip(clip.indices, clip.frames, strict=True))
        return list(seen.values())


def _count(sample: Sample, kind: str) -> int:
    parts = (part for turn in sample.turns for part in turn.parts)
    return sum(isinstance(part, Media) and part.kind == kind for part in parts)


@contextmanager
def _reading(media: Media) -> Iterator[None]:
    """Name what goes wrong with an image or a video as a fault of the sample."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError("missing_file", str(error)) from error
    except (ValueError, TimeoutError, OSError) as error:
        raise DataError(f"bad_{media.kind}", str(error)) from error


def _size(source: Any, processor: Any) -> tuple[int, int]:
    """Height and width of an image, from its header where the file alone tells them."""
    sources = hub.ring0("preprocessor.image_sources")
    policy = sources.SourcePolicy(max_pixels=processor.max_pixels)
    isfile = isinstance(source, (str, bytes, Path, Mapping)) and not processor.exif_orientation
    content = sources.read_source(source, policy) if isfile else None
    if content is None:
        image = processor.fetch_images(source)
        return image.height, image.width
    with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as stream:
        try:
            with sources.open_image(stream, policy.max_pixels) as image:
                return image.height, image.width
        except OSError as error:
            raise ValueError(f"{sources.describe(source)} is not a readable image") from error


# ---------------------------------------------------------------------- cutting
def image_spans(example: Example, context_id: int, tokens_per_tile: int) -> list[Span]:
    """Where the images of an example stand, tags included.

    Args:
        example: the example.
        context_id: id of `<IMG_CONTEXT>`.
        tokens_per_tile: visual tokens of a tile.
    """
    places = np.concatenate([[False], example.input_ids == context_id, [False]])
    edges = np.flatnonzero(np.diff(places.astype(np.int8)))
    return [
        Span(int(first) - 1, int(end) + 1, int(end - first) // tokens_per_tile)
        for first, end in zip(edges[::2], edges[1::2], strict=True)
    ]


def cut(example: Example, pieces: Sequence[Piece]) -> list[Example]:
    """The parts of an example that is too long for a row; each knows its number."""
    parts = []
    for number, piece in enumerate(pieces):
        tokens = slice(piece.start, piece.stop)
        weight = None if example.loss_weight is None else example.loss_weight[tokens]
        parts.append(
            Example(
                example.input_ids[tokens],
                example.labels[tokens],
                example.response[tokens],
                example.tiles[piece.first_tile : piece.first_tile + piece.tiles],
                (*example.key, number),
                weight,
            )
        )
    return parts
