"""AutoImageProcessor of InternVL: images in, tiles out (InternVL 2.5 report, section 3.1).

    source -> RGB -> grid -> one resize, cut into tiles (uint8) -> float32, normalised ->
    pixel_values (N, 3, S, S)

The tiles of all images stand one after another, each image's thumbnail last; `num_tiles` says how
many belong to which image. Values and order of operations are those of the official code:
pixel_values are equal to the bit. Only PIL and numpy are used; torchvision is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ImagesKwargs

# The Hub loader copies only what an entry file imports itself: name every sibling needed, also
# indirectly.
from .fetching import is_url  # noqa: F401
from .image_sources import SourcePolicy, load_rgb, pad_to_square
from .tiling import Grid, count_tiles, select_grid, split, tile_budget

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class InternVLChatImagesKwargs(ImagesKwargs, total=False):
    """Options of a call beyond transformers' own."""

    min_tiles: int | list[int]
    max_tiles: int | list[int]
    total_tiles: int | None
    use_thumbnail: bool
    upscale: bool
    exif_orientation: bool
    alpha_color: tuple[int, int, int] | None
    pad2square: bool
    max_pixels: int
    allow_urls: bool
    url_max_bytes: int
    url_timeout: float


def square_side(size: Any) -> int:
    """Read a `size` of a CLIP-style file: {"height", "width"}, {"shortest_edge"}, an int, a pair.

    Raises:
        ValueError: it is not a square of at least one pixel.
    """
    if isinstance(size, int):
        sides = [size]
    elif hasattr(size, "items"):  # a dict, or transformers' SizeDict
        sides = [value for value in dict(size.items()).values() if value is not None]
    else:
        sides = list(size) if isinstance(size, (list, tuple)) else []
    if not sides or len(set(sides)) != 1 or not isinstance(sides[0], int) or sides[0] < 1:
        raise ValueError(
            f"size={size!r} is not the side of a square tile; expected e.g. "
            f"{{'height': 448, 'width': 448}}."
        )
    return sides[0]


def normalize_tiles(tiles: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Scale to [0, 1], subtract the mean, divide by the deviation, channels first.

    In float32 and in this order (torchvision's ToTensor, Normalize), because the result is compared
    by its bits.

    Args:
        tiles: uint8 (N, S, S, 3).
        mean: per channel.
        std: per channel.

    Returns:
        float32 (N, 3, S, S).
    """
    count, height, width, channels = tiles.shape
    values = np.empty((count, channels, height, width), dtype=np.float32)
    for number in range(count):  # plane by plane: a plane stays in the cache
        for channel in range(channels):
            plane = values[number, channel]
            plane[...] = tiles[number, :, :, channel]
            plane /= np.float32(255)
            plane -= np.float32(mean[channel])
            plane /= np.float32(std[channel])
    return values


def join_tiles(stacks: Sequence[np.ndarray], side: int) -> np.ndarray:
    """Put stacks of tiles (n, S, S, 3) one after another; no stack gives no tile."""
    if len(stacks) == 1:
        return stacks[0]
    return np.concatenate([np.empty((0, side, side, 3), dtype=np.uint8), *stacks])


def to_output(values: np.ndarray, return_tensors: Any) -> Any:
    """Hand out a numpy array as it is, or as a torch tensor.

    Raises:
        ValueError: another framework.
    """
    kind = getattr(return_tensors, "value", return_tensors)
    if kind in (None, "np", "auto"):
        return values
    if kind == "pt":
        return torch.from_numpy(values)
    raise ValueError(f"return_tensors={return_tensors!r}; expected None, 'np' or 'pt'.")


class InternVLChatImageProcessor(BaseImageProcessor):
    """Cuts images into tiles and normalises them.

    Args:
        size: side S of a tile, {"height": S, "width": S}.
        crop_size: the same side; kept because readers of CLIP-style files (LMDeploy) ask for it.
        image_mean: mean per channel of values in [0, 1].
        image_std: deviation per channel.
        min_tiles: fewest tiles of an image, thumbnail not counted.
        max_tiles: most tiles of an image, thumbnail not counted.
        total_tiles: most tiles of all images of one sample together, shared by equation 4 of the
            report; None for no such limit. Both limits hold: an image gets at most min(max_tiles,
            max(1, total_tiles // images)).
        use_thumbnail: add the whole image as one more tile when there are several.
        upscale: False keeps an image of few pixels at few tiles; see `select_grid`.
        exif_orientation: turn pictures as their EXIF orientation says. The official code ignores
            it.
        alpha_color: colour to blend transparent pixels with. None drops the alpha channel, as the
            official code does.
        pad2square: paste the image into a square of the mean colour before it is tiled. With one
            tile that is the official transform; with several the official one pads tiles, which are
            square already, that is nothing.
        max_pixels: larger images are refused.
        resample: filter of the resize; 3, bicubic, is the official one.
        do_normalize: False gives the uint8 tiles.
        do_resize: must be true, as must do_convert_rgb and do_rescale.
        do_center_crop: of no effect; for readers of CLIP-style files.
        rescale_factor: must be 1 / 255.
        do_convert_rgb: see do_resize.
        do_rescale: see do_resize.
        **kwargs: further fields of preprocessor_config.json, kept as attributes.

    Raises:
        ValueError: a setting that contradicts another or cannot be followed.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012  (transformers' contract)
    valid_kwargs = InternVLChatImagesKwargs
    # Saving copies the code, whichever way this class was loaded.
    _auto_class = "AutoImageProcessor"

    _FIELDS = (
        "alpha_color",
        "crop_size",
        "do_center_crop",
        "do_convert_rgb",
        "do_normalize",
        "do_rescale",
        "do_resize",
        "exif_orientation",
        "image_mean",
        "image_std",
        "max_pixels",
        "max_tiles",
        "min_tiles",
        "pad2square",
        "resample",
        "rescale_factor",
        "size",
        "total_tiles",
        "upscale",
        "use_thumbnail",
    )

    def __init__(
        self,
        size: Any = None,
        crop_size: Any = None,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        min_tiles: int = 1,
        max_tiles: int = 12,
        total_tiles: int | None = None,
        use_thumbnail: bool = True,
        upscale: bool = True,
        exif_orientation: bool = False,
        alpha_color: Sequence[int] | None = None,
        pad2square: bool = False,
        max_pixels: int = 300_000_000,
        resample: int = 3,
        do_normalize: bool = True,
        do_resize: bool = True,
        do_center_crop: bool = True,
        rescale_factor: float = 1 / 255,
        do_convert_rgb: bool = True,
        do_rescale: bool = True,
        **kwargs: Any,
    ) -> None:
        # Whether URLs may be fetched is for the caller to say, never for a file of a checkpoint.
        kwargs.pop("allow_urls", None)
        for key in ("image_processor_type", "feature_extractor_type", "processor_class"):
            kwargs.pop(key, None)
        super().__init__(**kwargs)
        side = square_side(448 if size is None else size)
        if crop_size is not None and square_side(crop_size) != side:
            raise ValueError(
                f"crop_size={crop_size!r} differs from size={size!r}; a tile is not cropped, make "
                "them equal."
            )
        if (
            not (do_resize and do_convert_rgb and do_rescale)
            or abs(rescale_factor * 255 - 1) > 1e-6
        ):
            raise ValueError(
                "do_resize, do_convert_rgb and do_rescale must be true and rescale_factor 1/255: "
                "tiling resizes, "
                f"converts and scales; got {do_resize}, {do_convert_rgb}, {do_rescale}, "
                f"{rescale_factor}."
            )
        self.size = {"height": side, "width": side}
        self.crop_size = {"height": side, "width": side}
        self.image_mean = [float(value) for value in image_mean]
        self.image_std = [float(value) for value in image_std]
        self.min_tiles, self.max_tiles, self.total_tiles = min_tiles, max_tiles, total_tiles
        self.use_thumbnail, self.upscale = use_thumbnail, upscale
        self.exif_orientation, self.pad2square = exif_orientation, pad2square
        self.alpha_color = None if alpha_color is None else [int(value) for value in alpha_color]
        self.max_pixels, self.resample = max_pixels, int(resample)
        self.do_resize, self.do_convert_rgb, self.do_rescale = True, True, True
        self.do_normalize, self.do_center_crop, self.rescale_factor = (
            do_normalize,
            do_center_crop,
            1 / 255,
        )
        self.allow_urls = False
        self._tile_range(
            min_tiles, max_tiles, None if total_tiles is None else tile_budget(total_tiles, 1)
        )

    @property
    def tile_size(self) -> int:
        """Side S of a tile in pixels."""
        return self.size["height"]

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """Same as `preprocess`."""
        return self.preprocess(images, *args, **kwargs)

    def preprocess(self, images: Any, return_tensors: Any = None, **options: Any) -> BatchFeature:
        """Turn images into tiles.

        Args:
            images: one image, a list of images, or a list of lists (one per sample; `total_tiles`
                is shared within a sample). What an image may be: see `load_rgb`.
            return_tensors: None or "np" for a numpy array, "pt" for a torch tensor.
            **options: any setting of the class but `size`, for this call: min_tiles, max_tiles (an
                int, or a list with one entry per image), total_tiles, use_thumbnail, upscale,
                exif_orientation, alpha_color, pad2square, max_pixels, do_normalize, resample,
                image_mean, image_std, and allow_urls, url_max_bytes, url_timeout.

        Returns:
            `pixel_values` (N, 3, S, S), float32 or with do_normalize=False uint8, and `num_tiles`,
            a list with the number of tiles of each image (thumbnail included).

        Raises:
            FileNotFoundError: a path that does not exist.
            ValueError: an image that cannot be read, or options that contradict each other.
            TypeError: an unknown option.
        """
        tiles = self.read_tiles(images, **options)
        pixels = to_output(
            self.to_pixels(join_tiles(tiles, self.tile_size), **options), return_tensors
        )
        return BatchFeature({"pixel_values": pixels, "num_tiles": [len(each) for each in tiles]})

    def to_pixels(self, tiles: np.ndarray, **options: Any) -> np.ndarray:
        """Tiles (N, S, S, 3) as (N, 3, S, S), in float32 and normalised unless told otherwise."""
        settings = self._settings(options)
        if not settings["do_normalize"]:
            return np.ascontiguousarray(tiles.transpose(0, 3, 1, 2))
        return normalize_tiles(tiles, settings["image_mean"], settings["image_std"])

    def read_tiles(self, images: Any, **options: Any) -> list[np.ndarray]:
        """Read images as uint8 tiles, one array (n, S, S, 3) each; arguments as in `preprocess`."""
        settings = self._settings(options)
        samples = nest_images(images)
        sources = [source for sample in samples for source in sample]
        limits = list(self._limits([len(sample) for sample in samples], settings))
        policy = self._policy(settings)
        tiles: list[np.ndarray] = []
        for index, source in enumerate(sources):
            try:
                tiles.append(self._tile(source, policy, settings, *limits[index]))
            except ValueError as error:
                raise ValueError(f"image {index + 1} of {len(sources)}: {error}") from error
        return tiles

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Load images as RGB, nested as they come, under this processor's rules for URLs."""
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(each) for each in image_url_or_urls]
        return load_rgb(image_url_or_urls, self._policy(self._settings({})))

    def count_tiles(self, height: int, width: int, **options: Any) -> int:
        """Tiles of an image of that size, thumbnail included; `options` as in `preprocess`."""
        settings = self._settings(options)
        ((low, high),) = self._limits([1], settings)
        return count_tiles(
            self._grid(height, width, settings, low, high), thumbnail=settings["use_thumbnail"]
        )

    def get_number_of_image_patches(
        self, height: int, width: int, images_kwargs: dict | None = None
    ) -> int:
        """`count_tiles` under the name that transformers and vLLM call."""
        known = {
            key: value for key, value in (images_kwargs or {}).items() if key in self._options()
        }
        return self.count_tiles(height, width, **known)

    def select_grid(self, height: int, width: int, **options: Any) -> Grid:
        """Grid of an image of that size; `options` as in `preprocess`."""
        settings = self._settings(options)
        ((low, high),) = self._limits([1], settings)
        return self._grid(height, width, settings, low, high)

    def to_dict(self) -> dict[str, Any]:
        """The content of preprocessor_config.json, the same on every version of transformers."""
        content: dict[str, Any] = {name: getattr(self, name) for name in self._FIELDS}
        content["image_processor_type"] = type(self).__name__
        auto_map = getattr(self, "auto_map", None) or {}
        if "AutoImageProcessor" in auto_map:
            content["auto_map"] = {"AutoImageProcessor": auto_map["AutoImageProcessor"]}
        return content

    @classmethod
    def _options(cls) -> frozenset[str]:
        fixed = {"size", "crop_size"}
        return frozenset(cls._FIELDS) - fixed | {"allow_urls", "url_max_bytes", "url_timeout"}

    def _settings(self, options: dict[str, Any]) -> dict[str, Any]:
        """The settings of a call: those of the processor, replaced by the call's own."""
        options = {key: value for key, value in options.items() if key not in _IGNORED}
        unknown = sorted(set(options) - self._options())
        if unknown:
            raise TypeError(f"unknown options {unknown}; known are {sorted(self._options())}.")
        nullable = ("total_tiles", "alpha_color")
        given = {
            key: value for key, value in options.items() if value is not None or key in nullable
        }
        return {
            **{name: getattr(self, name) for name in self._FIELDS},
            "allow_urls": self.allow_urls,
            **given,
        }

    def _policy(self, settings: dict[str, Any]) -> SourcePolicy:
        color = settings["alpha_color"]
        limits = {key: settings[key] for key in ("url_max_bytes", "url_timeout") if key in settings}
        return SourcePolicy(
            max_pixels=settings["max_pixels"],
            exif_orientation=settings["exif_orientation"],
            alpha_color=None if color is None else (int(color[0]), int(color[1]), int(color[2])),
            allow_urls=settings["allow_urls"],
            **limits,
        )

    def _limits(
        self, samples: Sequence[int], settings: dict[str, Any]
    ) -> Iterator[tuple[int, int]]:
        """Fewest and most tiles of each image; `samples` holds the images of each sample."""
        total = sum(samples)
        lows = _per_image(settings["min_tiles"], total, "min_tiles")
        highs = _per_image(settings["max_tiles"], total, "max_tiles")
        budget = settings["total_tiles"]
        index = 0
        for count in samples:
            share = None if budget is None else tile_budget(budget, count)
            for _ in range(count):
                yield self._tile_range(lows[index], highs[index], share)
                index += 1

    @staticmethod
    def _tile_range(low: int, high: int, share: int | None) -> tuple[int, int]:
        if not 1 <= low <= high:
            raise ValueError(
                f"min_tiles={low} and max_tiles={high}; expected 1 <= min_tiles <= max_tiles."
            )
        if share is None:
            return low, high
        return min(low, share), min(high, share)  # the budget is the stronger limit

    def _grid(self, height: int, width: int, settings: dict[str, Any], low: int, high: int) -> Grid:
        if settings["pad2square"]:
            height = width = max(height, width)
        return select_grid(
            height,
            width,
            tile=self.tile_size,
            min_tiles=low,
            max_tiles=high,
            upscale=settings["upscale"],
        )

    def _tile(
        self, source: Any, policy: SourcePolicy, settings: dict[str, Any], low: int, high: int
    ) -> np.ndarray:
        """One image as uint8 tiles (n, S, S, 3)."""
        image = load_rgb(source, policy)
        grid = self._grid(image.height, image.width, settings, low, high)
        if settings["pad2square"]:
            image = pad_to_square(image, [int(value * 255) for value in settings["image_mean"]])
        return split(
            image,
            grid,
            tile=self.tile_size,
            thumbnail=settings["use_thumbnail"],
            resample=Image.Resampling(settings["resample"]),
        )


# Options that transformers' pipelines and servers pass to every image processor and that say
# nothing here.
_IGNORED = frozenset({"data_format", "input_data_format", "device", "disable_grouping", "do_pad"})


def is_image(value: Any) -> bool:
    """Whether a value stands for one image rather than for a list of images."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim < 4
    return isinstance(value, dict) or not isinstance(value, (list, tuple))


def nest_images(images: Any) -> list[list[Any]]:
    """Bring one image, a list, a stack (N, ...) or a list of lists into lists per sample."""
    if images is None:
        return []
    if is_image(images):
        return [[images]]
    if all(is_image(each) for each in images):
        return [list(images)]
    return [
        [sample] if is_image(sample) else list(sample) for sample in images if sample is not None
    ]


def _per_image(value: int | Sequence[int], count: int, name: str) -> list[int]:
    if isinstance(value, (int, np.integer)):
        return [int(value)] * count
    values = [int(each) for each in value]
    if len(values) != count:
        raise ValueError(
            f"{name} has {len(values)} entries for {count} images; give one number, or one per "
            "image."
        )
    return values
