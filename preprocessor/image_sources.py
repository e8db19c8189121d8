"""Any image that a caller may hold or name, as one RGB picture in memory.

The official code opens a file and calls `convert("RGB")`: the alpha channel is dropped, 16-bit grey
is clipped at 255, the EXIF orientation is ignored. That is the default here. What a file must not
do is end in a traceback from inside Pillow or in a picture with a grey lower half: truncated,
corrupt and oversized files are ValueErrors.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from .fetching import decode_base64, decode_data_url, fetch_url, is_data_url, is_url

# What Pillow's decoders raise on broken files.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    OverflowError,
    NotImplementedError,
    AttributeError,
    struct.error,
    zlib.error,
)
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]{40,}={0,2}\s*\Z")


@dataclass(frozen=True)
class SourcePolicy:
    """How images are read.

    Attributes:
        max_pixels: most pixels that an image (a video frame) may have.
        exif_orientation: turn the picture as its EXIF orientation says; the official code does not.
        alpha_color: RGB colour to blend transparent pixels with; None drops the alpha channel, as
            the official code does.
        allow_urls: fetch http(s) URLs.
        url_max_bytes: largest body of a URL.
        url_timeout: seconds for a URL.
    """

    max_pixels: int = 300_000_000
    exif_orientation: bool = False
    alpha_color: tuple[int, int, int] | None = None
    allow_urls: bool = False
    url_max_bytes: int = 64 << 20
    url_timeout: float = 20.0


def describe(source: Any) -> str:
    """Name a source in an error message without pouring its content into it."""
    if isinstance(source, str):
        return repr(source if len(source) <= 100 else source[:60] + "...")
    if isinstance(source, (os.PathLike, Path)):
        return repr(os.fspath(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes"
    if isinstance(source, Image.Image):
        return f"PIL image of mode {source.mode} and size {source.size}"
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return f"{type(source).__name__} of shape {tuple(source.shape)} and type {source.dtype}"
    return f"object of type {type(source).__name__}"


def read_source(source: Any, policy: SourcePolicy) -> Path | bytes | None:
    """Resolve what names a file: a path, bytes, a (data) URL, base64, a {"path"} or {"bytes"} dict.

    Returns:
        An existing path, or the bytes; None if the source names no file (a picture, an array).

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a URL without permission, or one that fails.
    """
    if isinstance(source, dict):
        held = next(
            (source[key] for key in ("bytes", "path", "url", "base64") if source.get(key)), None
        )
        if held is None:
            raise ValueError(
                f"a dict with keys {sorted(source)} names no file; expected 'bytes' or 'path'."
            )
        return read_source(held, policy)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, os.PathLike):
        return _existing(os.fspath(source))
    if not isinstance(source, str):
        return None
    if is_data_url(source):
        return decode_data_url(source)
    if is_url(source):
        if not policy.allow_urls:
            raise ValueError(
                f"{describe(source)} is a URL, and URLs are not fetched by default; pass "
                "allow_urls=True, or download it."
            )
        return fetch_url(source, max_bytes=policy.url_max_bytes, timeout=policy.url_timeout)
    if len(source) >= 40 and _BASE64.match(source) and not _exists(source):
        return decode_base64(source)
    return _existing(source)


def _exists(path: str) -> bool:
    try:
        return os.path.exists(path)
    except (OSError, ValueError):  # too long for a path, or with a NUL
        return False


def _existing(path: str | bytes) -> Path:
    name = os.fsdecode(path)
    if not _exists(name):
        raise FileNotFoundError(
            f"there is no file {describe(name)}; expected a path, a data URL, base64 or bytes."
        )
    return Path(name)


def load_rgb(source: Any, policy: SourcePolicy) -> Image.Image:
    """Load an image as RGB.

    Args:
        source: path, bytes, PIL image, data URL, base64 text, URL (if the policy allows it),
            {"path"} or {"bytes"} dict, numpy array (H, W), (H, W, 1 | 3 | 4) or (C, H, W), or torch
            tensor (C, H, W) or (H, W, C); arrays hold uint8, or floats in [0, 1].
        policy: limits and conversions.

    Returns:
        A PIL image of mode RGB.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: anything else that is no image, or not one within the limits.
    """
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _convert(array_to_image(source), policy)
    if isinstance(source, Image.Image):
        return _convert(source, policy)
    content = read_source(source, policy)
    if content is None:
        raise ValueError(
            f"{describe(source)} is not an image; expected a path, bytes, a PIL image, a numpy "
            "array, a torch tensor, "
            "a data URL or base64."
        )
    if isinstance(content, Path) and content.is_dir():
        raise ValueError(f"{describe(source)} is a folder; expected an image file.")
    stream = content.open("rb") if isinstance(content, Path) else io.BytesIO(content)
    with stream:
        try:
            with open_image(stream, policy.max_pixels) as image:
                return _convert(image, policy)
        except _DECODE_ERRORS as error:
            raise ValueError(
                f"{describe(source)} is not a readable image: {error or type(error).__name__}"
            ) from error


def open_image(stream: Any, max_pixels: int) -> Image.Image:
    """Open an image file lazily, its size checked before a pixel is decoded.

    Pillow's own limit against decompression bombs is one for the whole process and lower than ours;
    a file that only fails that one is opened by the plugin it belongs to.

    Raises:
        ValueError: the image has more than `max_pixels` pixels.
        OSError: it is no image.
    """
    try:
        image = Image.open(stream)
    except Image.DecompressionBombError:
        image = _open_without_limit(stream)
    check_pixels(image.height, image.width, max_pixels)
    return image


def _open_without_limit(stream: Any) -> Image.Image:
    stream.seek(0)
    prefix = stream.read(16)
    for name in Image.ID:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(prefix) is not True:
            continue
        stream.seek(0)
        try:
            return factory(stream, "")
        except (
            SyntaxError,
            IndexError,
            TypeError,
            struct.error,
        ):  # not this format: how Pillow's plugins say so
            continue
    raise OSError("no plugin of Pillow opens it")


def check_pixels(height: int, width: int, max_pixels: int) -> None:
    """Refuse pictures without pixels and pictures with too many.

    Raises:
        ValueError: either.
    """
    if height < 1 or width < 1:
        raise ValueError(f"it has {width} x {height} pixels; an image needs at least one.")
    if height * width > max_pixels:
        raise ValueError(
            f"it has {width} x {height} = {height * width} pixels, more than "
            f"max_pixels={max_pixels}; "
            "raise max_pixels if the image is meant to be that large."
        )


def _convert(image: Image.Image, policy: SourcePolicy) -> Image.Image:
    """Decode, and convert to RGB under the policy."""
    check_pixels(image.height, image.width, policy.max_pixels)
    try:
        image.load()
        if policy.exif_orientation:
            image = ImageOps.exif_transpose(image)
        if image.mode == "La":  # premultiplied grey converts to its own kind only
            image = image.convert("LA")
        if policy.alpha_color is not None and image.has_transparency_data:
            layer = image.convert("RGBA")
            backdrop = Image.new("RGBA", layer.size, (*policy.alpha_color, 255))
            image = Image.alpha_composite(backdrop, layer)
        return image if image.mode == "RGB" else image.convert("RGB")
    except _DECODE_ERRORS as error:
        raise ValueError(
            f"an image of mode {image.mode} cannot be decoded to RGB: {error}"
        ) from error


def array_to_image(array: np.ndarray | torch.Tensor) -> Image.Image:
    """Turn an array into a PIL image.

    Args:
        array: (H, W), or with 1, 3 or 4 channels, last or first. When both ends could be channels,
            a numpy array is read as (H, W, C) and a tensor as (C, H, W).

    Returns:
        An image of mode L, RGB or RGBA.

    Raises:
        ValueError: another shape, or values that are no pixels.
    """
    first = isinstance(array, torch.Tensor)
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    told = f"an array of shape {array.shape} and type {array.dtype}"
    if array.ndim == 3:
        ends = (array.shape[0] in (1, 3, 4), array.shape[-1] in (1, 3, 4))
        if not any(ends):
            raise ValueError(
                f"{told} has no axis of 1, 3 or 4 channels; expected (H, W, C) or (C, H, W)."
            )
        if (ends[0] and first) or not ends[1]:
            array = np.moveaxis(array, 0, -1)
        if array.shape[-1] == 1:
            array = array[..., 0]
    elif array.ndim != 2:
        raise ValueError(f"{told} is not one image; expected (H, W), (H, W, C) or (C, H, W).")
    if 0 in array.shape:
        raise ValueError(f"{told} has no pixels.")
    return Image.fromarray(np.ascontiguousarray(_to_uint8(array, told)))


def _to_uint8(array: np.ndarray, told: str) -> np.ndarray:
    """Bring values to 0..255; floats must lie in [0, 1], integers in [0, 255]."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.floating):
        if not (low >= 0 and high <= 1):  # also false for NaN
            raise ValueError(
                f"{told} has values from {low} to {high}; expected floats in [0, 1] "
                "(pixels before normalisation; divide by 255 or convert to uint8)."
            )
        return np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.integer) or low < 0 or high > 255:
        raise ValueError(
            f"{told} has values from {low} to {high}; expected integers in [0, 255] or floats in "
            "[0, 1]."
        )
    return array.astype(np.uint8)


def pad_to_square(image: Image.Image, color: Sequence[int]) -> Image.Image:
    """Paste an image into the middle of a square of its longer side, as the official code does."""
    side = max(image.size)
    if image.width == image.height:
        return image
    square = Image.new("RGB", (side, side), tuple(color))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
