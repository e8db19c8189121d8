"""Images, videos and processors that the tests of the preprocessor share."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from internvl import hub
from tests import support

batching = hub.ring0("preprocessor.batching")
chat_messages = hub.ring0("preprocessor.chat_messages")
encoding = hub.ring0("preprocessor.encoding")
fetching = hub.ring0("preprocessor.fetching")
frame_sampling = hub.ring0("preprocessor.frame_sampling")
image_processing = hub.ring0("preprocessor.image_processing_internvl_chat")
image_sources = hub.ring0("preprocessor.image_sources")
processing = hub.ring0("preprocessor.processing_internvl_chat")
tiling = hub.ring0("preprocessor.tiling")
tokenizer_files = hub.ring0("preprocessor.tokenizer_files")
video_decoding = hub.ring0("preprocessor.video_decoding")
video_processing = hub.ring0("preprocessor.video_processing_internvl_chat")

GOLDEN = support.GOLDEN / "preprocess"

# The images that the golden hashes belong to: sizes of RGB images, then one image per other mode.
_SIZES = (
    "1x1 2x3 13x7 1x5000 5000x1 4x900 900x4 100x100 447x449 448x448 449x448 448x896 896x448 "
    "800x600 "
    "600x800 640x480 1024x768 768x1024 1280x720 720x1280 1344x448 448x1344 1344x896 896x1344 "
    "1600x1200 1920x1080 2048x1536 1536x2048 2480x3508 3000x500 500x3000 4000x250 250x4000 1x448 "
    "333x1000 1000x333 250x180 316x316 317x317 633x634 634x634 950x950 320x256 700x320 1300x1200 "
    "130x120 555x375 1500x500 900x720"
)
RGB_SIZES = _SIZES.split()
MODES = ("RGBA", "L", "LA", "P", "P*", "CMYK", "I;16", "1", "F", "YCbCr")
OTHERS = [f"{mode} 700x420" for mode in MODES]
OTHERS += ["RGBA 50x400", "P 1x1", "LA 900x300", "L 3x3"]


def sha256(array: np.ndarray) -> str:
    """Hash of the bytes of an array."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def golden_pixels(index: int) -> int:
    """Number of pixels of the image number `index`."""
    size = (RGB_SIZES + OTHERS)[index].split()[-1]
    width, height = map(int, size.split("x"))
    return width * height


def golden_image(index: int) -> Image.Image:
    """Draw the image number `index` behind the golden hashes, with integers only."""
    if index < len(RGB_SIZES):
        mode, size = "RGB", RGB_SIZES[index]
    else:
        mode, size = OTHERS[index - len(RGB_SIZES)].split()
    width, height = map(int, size.split("x"))
    down, across = np.mgrid[:height, :width]
    noise = np.random.RandomState(1000 + index).randint(-24, 25, size=(height, width, 3))
    ramps = [
        across * 255 // max(width - 1, 1),
        down * 255 // max(height - 1, 1),
        (across // 16 + down // 16) % 2 * 160 + 40,
    ]
    rgb = (np.stack(ramps, axis=-1) + noise).clip(0, 255).astype(np.uint8)
    return _in_mode(mode, rgb, across, down)


def _in_mode(mode: str, rgb: np.ndarray, across: np.ndarray, down: np.ndarray) -> Image.Image:
    size = rgb.shape[1::-1]

    def plane(values: np.ndarray) -> np.ndarray:
        return (values % 256).astype(np.uint8)[..., None]

    if mode == "RGBA":
        return Image.fromarray(np.concatenate([rgb, plane(across + 2 * down)], axis=-1))
    if mode == "L":
        return Image.fromarray(rgb[..., 0])
    if mode == "LA":
        image = Image.fromarray(rgb[..., 1].copy()).convert("LA")
        image.putalpha(Image.fromarray(plane(3 * across + down)[..., 0]))
        return image
    if mode in ("P", "P*"):
        image = Image.frombytes(
            "P", size, plane(rgb[..., 0].astype(int) * 7 + rgb[..., 1]).tobytes()
        )
        k = np.arange(256)
        image.putpalette(
            np.concatenate([plane(k * 37), plane(k * 91 + 13), plane(255 - k)], -1).tobytes()
        )
        if mode == "P*":
            image.info["transparency"] = 5
        return image
    if mode == "CMYK":
        key = ((across + down) % 128).astype(np.uint8)[..., None]
        return Image.frombytes("CMYK", size, np.concatenate([rgb, key], axis=-1).tobytes())
    if mode == "I;16":
        return Image.frombytes(
            "I;16", size, (rgb[..., 0] * np.uint16(256) + rgb[..., 1]).astype("<u2").tobytes()
        )
    if mode == "1":
        return Image.fromarray(rgb[..., 2] > 128)
    if mode == "F":
        return Image.fromarray(rgb[..., 0].astype(np.float32))
    if mode == "YCbCr":
        return Image.frombytes("YCbCr", size, rgb.tobytes())
    return Image.fromarray(rgb)


def golden_tiles() -> list[dict[str, Any]]:
    """Golden grids and hashes per image."""
    return json.loads((GOLDEN / "tiles.json").read_text())["cases"]


def picture(width: int = 150, height: int = 100, seed: int = 0) -> Image.Image:
    """A small colourful RGB image."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image as the bytes of a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def image_processor(size: int = 28, **options: Any) -> Any:
    """An image processor with small tiles."""
    return image_processing.InternVLChatImageProcessor(
        size={"height": size, "width": size}, **options
    )


def processor(
    template: str = "internvl2_5", name: str = "qwen2", size: int = 28, **options: Any
) -> Any:
    """A processor with small tiles, two visual tokens per tile and a golden tokenizer."""
    conversation = support.conversation.get_conv_template(template)
    return processing.InternVLChatProcessor(
        image_processor(size),
        support.tokenizer(name),
        image_seq_length=2,
        template=template,
        chat_template=support.conversation.chat_template(conversation),
        **options,
    )


def write_video(
    file: Path | io.BytesIO,
    frames: int = 60,
    *,
    rate: int = 25,
    codec: str = "libx264",
    gop: int = 10,
    form: str | None = None,
) -> Path | io.BytesIO:
    """Write a video whose frame i is grey of brightness 4 * i: a frame tells its own number."""
    import av

    target = str(file) if isinstance(file, Path) else file
    with av.open(target, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", gop
        for number in range(frames):
            grey = np.full((48, 64, 3), 4 * number % 256, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return file


def frame_numbers(tiles: np.ndarray) -> list[int]:
    """The numbers that frames of `write_video` carry, from their uint8 tiles."""
    return [round(float(tile.mean()) / 4) for tile in tiles]
