"""Everything an image can come as, and everything that is none."""

from __future__ import annotations

import base64
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.preprocessor import helpers
from tests.preprocessor.helpers import encoded, image_processor, image_sources, picture

POLICY = image_sources.SourcePolicy()
IMAGE = picture(20, 12)
PIXELS = np.asarray(IMAGE)


def load(source, **policy):
    return np.asarray(image_sources.load_rgb(source, image_sources.SourcePolicy(**policy)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("images")
    IMAGE.save(where / "image.png")
    return where


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: folder / "image.png",
        lambda folder: str(folder / "image.png"),
        lambda folder: encoded(IMAGE),
        lambda folder: bytearray(encoded(IMAGE)),
        lambda folder: memoryview(encoded(IMAGE)),
        lambda folder: IMAGE,
        lambda folder: Image.open(folder / "image.png"),
        lambda folder: "data:image/png;base64," + base64.b64encode(encoded(IMAGE)).decode(),
        lambda folder: base64.b64encode(encoded(IMAGE)).decode(),
        lambda folder: {"bytes": encoded(IMAGE), "path": None},
        lambda folder: {"bytes": None, "path": str(folder / "image.png")},
        lambda folder: PIXELS,
        lambda folder: PIXELS.astype(np.int64),
        lambda folder: PIXELS.astype(np.float32) / 255,
        lambda folder: PIXELS / 255,
        lambda folder: np.moveaxis(PIXELS, -1, 0),
        lambda folder: np.concatenate([PIXELS, PIXELS[..., :1]], axis=-1),
        lambda folder: torch.from_numpy(PIXELS.copy()),
        lambda folder: torch.from_numpy(PIXELS.copy()).permute(2, 0, 1),
        lambda folder: torch.from_numpy(PIXELS.copy()).permute(2, 0, 1) / 255,
    ],
)
def test_every_kind_of_source_gives_the_same_pixels(make, folder):
    assert np.array_equal(load(make(folder)), PIXELS)


@pytest.mark.parametrize("shape", [(12, 20), (12, 20, 1), (1, 12, 20)])
def test_grey_arrays(shape):
    grey = PIXELS[..., 0]
    for array in (grey.reshape(shape), torch.from_numpy(grey.copy()).reshape(shape)):
        assert np.array_equal(load(array), np.repeat(grey[..., None], 3, axis=-1))
    assert np.array_equal(load(np.eye(4, dtype=bool))[..., 0], np.eye(4, dtype=np.uint8) * 255)


def test_arrays_with_channels_at_both_ends_are_read_by_their_kind():
    array = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    assert np.array_equal(load(array), array)
    assert np.array_equal(load(torch.from_numpy(array)), np.moveaxis(array, 0, -1))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 5, 2), np.uint8), "no axis of 1, 3 or 4 channels"),
        (np.zeros((2, 2, 3, 3), np.uint8), "not one image"),
        (np.zeros(5, np.uint8), "not one image"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.full((5, 5, 3), 300), r"expected integers in \[0, 255\]"),
        (np.full((5, 5, 3), -1), r"expected integers in \[0, 255\]"),
        (np.full((5, 5, 3), 255.0), r"expected floats in \[0, 1\]"),
        (np.full((5, 5, 3), -0.5), r"expected floats in \[0, 1\]"),
        (np.full((5, 5, 3), np.nan), r"expected floats in \[0, 1\]"),
        (np.full((5, 5, 3), 1j), "expected integers"),
        (torch.randn(3, 5, 5) * 3, r"expected floats in \[0, 1\]"),
    ],
)
def test_arrays_that_are_no_pixels(array, message):
    with pytest.raises((ValueError, TypeError), match=message):
        load(array)


@pytest.mark.parametrize(
    "source",
    [
        b"",
        b"no image at all",
        encoded(IMAGE)[:40],
        encoded(picture(200, 200))[:5000],
        encoded(picture(200, 200), "JPEG")[:3000],
        encoded(IMAGE, "GIF")[:60],
        encoded(picture(100, 100), "BMP")[:3000],
        encoded(picture(100, 100), "WEBP")[:300],
        encoded(picture(100, 100), "TIFF")[:3000],
        "data:image/png;base64,iVBORw0KGgo=",
        "data:image/png;base64,@@@@",
        "data:image/png",
        {"name": "x.png"},
        17,
        None,
        pytest.param(object(), id="object"),
    ],
    ids=str,
)
def test_what_is_no_image_is_a_named_error(source):
    with pytest.raises(ValueError, match=r"image 1 of 1: .+"):
        image_processor()([source])


@settings(max_examples=60)
@given(
    place=st.integers(0, 3000),
    value=st.integers(0, 255),
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP"]),
)
def test_flipped_bytes_give_an_image_or_a_named_error(place, value, kind):
    content = bytearray(encoded(picture(40, 30), kind))
    content[place % len(content)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            shape = load(bytes(content)).shape
        except ValueError as error:
            told = str(error)
            shape = None
    if shape is None:
        assert "bytes is not a readable image: " in told
    else:
        assert shape[2:] == (3,)


def test_missing_files_and_folders(folder):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(folder / "nothing.png")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load("x" * 5000 + ".png")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load("with\0nul.png")
    with pytest.raises(ValueError, match="is a folder"):
        load(folder)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_before_they_are_decoded():
    for width, height in [(100_000, 100_000), (20_000, 15_001), (60_000, 60_000)]:
        with pytest.raises(ValueError, match="more than max_pixels=300000000"):
            load(bomb(width, height))
    with pytest.raises(ValueError, match="more than max_pixels=100"):
        load(IMAGE, max_pixels=100)
    with pytest.raises(ValueError, match="more than max_pixels=100"):
        image_processor(max_pixels=100)(PIXELS)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_our_limit_holds_also_where_pillows_is_lower(monkeypatch):
    file = encoded(picture(200, 200))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(file))
    assert load(file).shape == (200, 200, 3)
    with pytest.raises(ValueError, match="more than max_pixels=30000"):
        load(file, max_pixels=30_000)


def test_images_without_pixels():
    with pytest.raises(ValueError, match="0 x 5 pixels"):
        load(Image.new("RGB", (0, 5)))


def test_a_closed_image_is_a_named_error(folder):
    image = Image.open(folder / "image.png")
    image.close()
    with pytest.raises(ValueError, match="cannot be decoded"):
        load(image)


def test_the_callers_image_is_left_alone():
    image = Image.new("RGBA", (20, 10), (1, 2, 3, 4))
    before = image.tobytes()
    load(image, alpha_color=(9, 9, 9), exif_orientation=True)
    assert image.mode == "RGBA"
    assert image.tobytes() == before


def test_urls_are_not_fetched_by_default():
    for url in (
        "http://example.com/a.png",
        "https://example.com/a.png",
        "HTTPS://example.com/a.png",
    ):
        with pytest.raises(ValueError, match="pass allow_urls=True"):
            image_processor()(url)
        with pytest.raises(ValueError, match="pass allow_urls=True"):
            image_processor().fetch_images([url])
    with pytest.raises(FileNotFoundError):
        image_processor()("file:///etc/hostname")


def test_padding_centres_the_image():
    padded = np.asarray(image_sources.pad_to_square(picture(10, 4), (1, 2, 3)))
    assert padded.shape == (10, 10, 3)
    assert (padded[:3] == (1, 2, 3)).all()
    assert (padded[7:] == (1, 2, 3)).all()
    assert np.array_equal(padded[3:7], np.asarray(picture(10, 4)))


def test_descriptions_hold_no_content():
    assert len(image_sources.describe("data:image/png;base64," + "A" * 10_000)) < 120
    assert image_sources.describe(b"abc") == "3 bytes"
    assert "RGB" in image_sources.describe(IMAGE)
    assert "(12, 20, 3)" in image_sources.describe(PIXELS)


def test_helpers_draw_what_they_say():
    assert helpers.picture().size == (150, 100)
    assert POLICY.allow_urls is False
