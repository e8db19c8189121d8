"""How much faster than the official loop is a picture cut into tiles, to the bit the same?

    python benchmarks/preprocess.py [--json] [--rounds 5] [--threads 1] [--full] [--smoke]

A 2048 x 1536 JPEG becomes 12 tiles and a thumbnail, and 64 frames of 1280 x 704 become 64 tiles.
Peers: the loop of the model card (resize, crop tile by tile, to tensor, normalise, stack), written
with PIL and torch because torchvision is not needed here; and transformers' own PIL image processor
for InternVL, `GotOcr2ImageProcessorPil`. Both give float32. Ours gives float32 too, or, with
`do_normalize=False`, uint8 tiles that the model normalises on its device: that is the fastest exact
path on offer, and the one with a target; one row counts that normalisation, on the CPU. The bound
of a row is the peer's time over that of Pillow's resizes alone (and of decoding, where that is
part of the row), which an exact path through Pillow has to spend. `--full` changes nothing but the
rounds (15). The picture, being cheap, gets twice the rounds of the frames.
"""

from __future__ import annotations

import io
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from harness import Record, Timing, compare, derived, interleave, parser, require, run
from PIL import Image

from internvl import hub

QUESTION = "pictures to tiles, against the loop of the model card"
OFFICIAL, NATIVE = "official loop", "transformers PIL"
TARGET_TILES, TARGET_FRAMES = 1.35, 1.25
MAX_TILES = 12


class Work:
    """The pictures, and every way to turn them into tiles.

    Args:
        smoke: small pictures and tiles.
    """

    def __init__(self, *, smoke: bool) -> None:
        self.side = 56 if smoke else 448
        self.picture = picture(*((192, 256) if smoke else (1536, 2048)), seed=0)
        count, height, width = (4, 88, 160) if smoke else (64, 704, 1280)
        distinct = [picture(height, width, seed=seed) for seed in range(1, 5)]
        self.frames = [distinct[index % len(distinct)] for index in range(count)]
        stream = io.BytesIO()
        self.picture.save(stream, "JPEG", quality=90)
        self.jpeg = stream.getvalue()
        images = hub.ring0("preprocessor.image_processing_internvl_chat")
        videos = hub.ring0("preprocessor.video_processing_internvl_chat")
        self.tiling = hub.ring0("preprocessor.tiling")
        self.functional = hub.ring0("functional_internvl_chat")
        size = {"height": self.side, "width": self.side}
        self.images = images.InternVLChatImageProcessor(size=size, max_tiles=MAX_TILES)
        self.videos = videos.InternVLChatVideoProcessor(size=size)
        self.mean, self.std = images.IMAGENET_MEAN, images.IMAGENET_STD
        self.native = native_processor(size, self.mean, self.std)
        self.picture = self.decode()  # what a decoder makes of the JPEG, not what it was made of

    def decode(self) -> Image.Image:
        """The JPEG as the official loop opens it."""
        return Image.open(io.BytesIO(self.jpeg)).convert("RGB")

    def grid(self, image: Image.Image, max_tiles: int) -> Any:
        """Grid of a picture."""
        return self.tiling.select_grid(
            image.height, image.width, tile=self.side, max_tiles=max_tiles
        )

    # ------------------------------------------------------------------ peers
    def official(self, image: Image.Image, max_tiles: int = MAX_TILES) -> torch.Tensor:
        """The loop of the model card: dynamic_preprocess, then ToTensor and Normalize per tile."""
        side, grid = self.side, self.grid(image, max_tiles)
        resized = image.resize((side * grid.cols, side * grid.rows), Image.Resampling.BICUBIC)
        tiles = []
        for index in range(grid.tiles):
            left, top = index % grid.cols * side, index // grid.cols * side
            tiles.append(resized.crop((left, top, left + side, top + side)))
        if len(tiles) > 1:
            tiles.append(image.resize((side, side), Image.Resampling.BICUBIC))
        return torch.stack([self.to_normalized_tensor(tile) for tile in tiles])

    def to_normalized_tensor(self, tile: Image.Image) -> torch.Tensor:
        """ToTensor and Normalize of torchvision; its Resize returns a tile of the right size."""
        values = torch.from_numpy(np.array(tile, copy=True)).permute(2, 0, 1).contiguous()
        values = values.to(torch.float32).div(255).clone()
        mean = torch.as_tensor(self.mean)[:, None, None]
        std = torch.as_tensor(self.std)[:, None, None]
        return values.sub_(mean).div_(std)

    def official_frames(self) -> torch.Tensor:
        """`load_video` of the model card after decoding."""
        return torch.cat([self.official(frame, max_tiles=1) for frame in self.frames])

    def native_frames(self) -> torch.Tensor:
        """The native processor, one tile per frame."""
        return self.native(self.frames, crop_to_patches=False, return_tensors="pt")["pixel_values"]

    # ------------------------------------------------------------------ ours
    def tiles(self, source: Any, *, normalize: bool) -> torch.Tensor:
        """Tiles of one picture."""
        result = self.images(source, do_normalize=normalize, return_tensors="pt")
        return result["pixel_values"]

    def frame_tiles(self, *, normalize: bool) -> torch.Tensor:
        """Tiles of the frames."""
        result = self.videos(self.frames, do_normalize=normalize, return_tensors="pt")
        return result["pixel_values_videos"]

    def normalized_by_model(self, tiles: torch.Tensor) -> torch.Tensor:
        """What the model does to uint8 tiles, on a CPU."""
        return self.functional.normalize_pixels(tiles, self.mean, self.std)

    # ------------------------------------------------------------------ what cannot be skipped
    def resizes(self) -> tuple[Image.Image, Image.Image]:
        """Pillow's resizes of the picture alone."""
        side, grid = self.side, self.grid(self.picture, MAX_TILES)
        return (
            self.picture.resize((side * grid.cols, side * grid.rows), Image.Resampling.BICUBIC),
            self.picture.resize((side, side), Image.Resampling.BICUBIC),
        )

    def frame_resizes(self) -> list[Image.Image]:
        """Pillow's resizes of the frames alone."""
        size = (self.side, self.side)
        return [frame.resize(size, Image.Resampling.BICUBIC) for frame in self.frames]


def picture(height: int, width: int, *, seed: int) -> Image.Image:
    """A picture with coarse shapes and fine noise; Pillow's resize takes equally long for any."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noise = generator.integers(-8, 9, smooth.shape)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def native_processor(size: dict[str, int], mean: Sequence[float], std: Sequence[float]) -> Any:
    """The processor that transformers gives native InternVL checkpoints without torchvision."""
    from transformers.models.got_ocr2 import image_processing_pil_got_ocr2 as native

    return native.GotOcr2ImageProcessorPil(
        size=size,
        crop_to_patches=True,
        min_patches=1,
        max_patches=MAX_TILES,
        image_mean=list(mean),
        image_std=list(std),
    )


def equality(work: Work) -> dict[str, Any]:
    """All ways give the same bits: float32 as it is, uint8 after the official arithmetic."""
    official, frames = work.official(work.decode()), work.official_frames()
    mean = torch.tensor(work.mean)[:, None, None]
    std = torch.tensor(work.std)[:, None, None]

    def as_official(tiles: torch.Tensor) -> torch.Tensor:
        return tiles.to(torch.float32).div(255).sub(mean).div(std)

    expected = [np.asarray(image) for image in work.resizes()]
    grid = work.grid(work.picture, MAX_TILES)
    cells = expected[0].reshape(grid.rows, work.side, grid.cols, work.side, 3).swapaxes(1, 2)
    stacked = np.concatenate([cells.reshape(-1, work.side, work.side, 3), expected[1][None]])
    bytes_ = work.tiles(work.jpeg, normalize=False)
    native = work.native(work.picture, return_tensors="pt")["pixel_values"]
    return require(
        {
            "tiles": len(official),
            "frames": len(frames),
            "tiles_uint8_bits": bool((bytes_.numpy() == stacked.transpose(0, 3, 1, 2)).all()),
            "tiles_uint8_normalized_bits": torch.equal(as_official(bytes_), official),
            "tiles_uint8_model_bits": torch.equal(work.normalized_by_model(bytes_), official),
            "tiles_float32_bits": torch.equal(work.tiles(work.jpeg, normalize=True), official),
            "frames_uint8_normalized_bits": torch.equal(
                as_official(work.frame_tiles(normalize=False)), frames
            ),
            "frames_float32_bits": torch.equal(work.frame_tiles(normalize=True), frames),
            "native_tiles_close": torch.allclose(native, official, atol=1e-5),
            "native_frames_close": torch.allclose(work.native_frames(), frames, atol=1e-5),
        }
    )


def tile_rows(work: Work, rounds: int) -> list[dict[str, Any]]:
    """Rows of the picture."""
    variants: dict[str, Callable[[], Any]] = {
        "official jpeg": lambda: work.official(work.decode()),
        "uint8 jpeg": lambda: work.tiles(work.jpeg, normalize=False),
        "float32 jpeg": lambda: work.tiles(work.jpeg, normalize=True),
        "native jpeg": lambda: work.native(work.decode(), return_tensors="pt"),
        "decode": work.decode,
        "official": lambda: work.official(work.picture),
        "uint8": lambda: work.tiles(work.picture, normalize=False),
        "float32": lambda: work.tiles(work.picture, normalize=True),
        "uint8, model": lambda: work.normalized_by_model(work.tiles(work.picture, normalize=False)),
        "resizes": work.resizes,
    }
    t = interleave(variants, rounds)
    fixed = derived(lambda first, second: first + second, t["resizes"], t["decode"])
    encoded = bound("JPEG decoding and resizes", fixed, t["uint8 jpeg"], t["official jpeg"])
    decoded = bound("resizes", t["resizes"], t["uint8"], t["official"])
    target = TARGET_TILES
    return [
        compare(
            "JPEG -> 13 tiles uint8",
            t["uint8 jpeg"],
            t["official jpeg"],
            peer_name=OFFICIAL,
            at_least=target,
            bound=encoded,
        ),
        compare(
            "decoded -> 13 tiles uint8",
            t["uint8"],
            t["official"],
            peer_name=OFFICIAL,
            at_least=target,
            bound=decoded,
        ),
        compare("decoded -> 13 tiles float32", t["float32"], t["official"], peer_name=OFFICIAL),
        compare(
            "decoded -> uint8 -> model float32",
            t["uint8, model"],
            t["official"],
            peer_name=OFFICIAL,
        ),
        compare("JPEG -> 13 tiles uint8", t["uint8 jpeg"], t["native jpeg"], peer_name=NATIVE),
        compare("JPEG -> 13 tiles float32", t["float32 jpeg"], t["native jpeg"], peer_name=NATIVE),
    ]


def frame_rows(work: Work, rounds: int) -> list[dict[str, Any]]:
    """Rows of the frames."""
    variants: dict[str, Callable[[], Any]] = {
        "official": work.official_frames,
        "uint8": lambda: work.frame_tiles(normalize=False),
        "float32": lambda: work.frame_tiles(normalize=True),
        "native": work.native_frames,
        "resizes": work.frame_resizes,
    }
    t = interleave(variants, rounds)
    name, limit = (
        f"{len(work.frames)} frames",
        bound("resizes", t["resizes"], t["uint8"], t["official"]),
    )
    return [
        compare(
            f"{name} uint8",
            t["uint8"],
            t["official"],
            peer_name=OFFICIAL,
            at_least=TARGET_FRAMES,
            bound=limit,
        ),
        compare(f"{name} float32", t["float32"], t["official"], peer_name=OFFICIAL),
        compare(f"{name} uint8", t["uint8"], t["native"], peer_name=NATIVE),
        compare(f"{name} float32", t["float32"], t["native"], peer_name=NATIVE),
    ]


def bound(what: str, fixed: Timing, ours: Timing, peer: Timing) -> str:
    """What part of our time every exact path has to spend, and the ratio if that were all."""
    ceiling = derived(lambda above, below: above / below, peer, fixed).median
    return (
        f"Pillow's {what} are {fixed.median * 1e3:.1f} of {ours.median * 1e3:.1f} ms: no path "
        f"through them exceeds {ceiling:.2f}x"
    )


def threaded_rows(work: Work, rounds: int) -> list[dict[str, Any]]:
    """The main rows once more with two torch threads; numpy and Pillow use one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        t = interleave(
            {
                "official": lambda: work.official(work.picture),
                "uint8": lambda: work.tiles(work.picture, normalize=False),
                "official frames": work.official_frames,
                "uint8 frames": lambda: work.frame_tiles(normalize=False),
            },
            rounds,
        )
    finally:
        torch.set_num_threads(threads)
    count = len(work.frames)
    return [
        compare("2 threads, 13 tiles uint8", t["uint8"], t["official"], peer_name=OFFICIAL),
        compare(
            f"2 threads, {count} frames uint8",
            t["uint8 frames"],
            t["official frames"],
            peer_name=OFFICIAL,
        ),
    ]


def measure(options: Namespace) -> dict[str, Any]:
    """Compare results, then time."""
    rounds = max(options.rounds, 15) if options.full else options.rounds
    record = Record("preprocess", QUESTION, options)
    work = Work(smoke=options.smoke)
    equal = equality(work)
    record.add(
        *tile_rows(work, 2 * rounds), *frame_rows(work, rounds), *threaded_rows(work, rounds)
    )
    return record.finish(equality=equal, jpeg_bytes=len(work.jpeg))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    run(measure, parser(__doc__).parse_args(arguments))


if __name__ == "__main__":
    main()
