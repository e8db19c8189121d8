"""Pictures with names: emoji, flags, and the few real photographs that packages hold.

The emoji and flags of the Google style are for training; those of the Twitter style (Twemoji) only
for the test. The photographs are the same in both: naming them is memory under new crops.
"""

from __future__ import annotations

import functools
import io
import json
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from internvl.training.demo import archives
from internvl.training.demo.archives import DEFAULT_CACHE

# short name of the emoji data: the name the demo says
EMOJI = {
    "airplane": "airplane", "anchor": "anchor", "apple": "apple", "avocado": "avocado",
    "balloon": "balloon", "banana": "banana", "basketball": "basketball", "bell": "bell",
    "bike": "bicycle", "broccoli": "broccoli", "butterfly": "butterfly", "bus": "bus",
    "cactus": "cactus", "birthday": "cake", "camera": "camera", "car": "car",
    "carrot": "carrot", "cat": "cat", "cherries": "cherries", "snowflake": "snowflake",
    "clock3": "clock", "cloud": "cloud", "coffee": "coffee", "cookie": "cookie", "corn": "corn",
    "cow": "cow", "crab": "crab", "crown": "crown", "cucumber": "cucumber", "dog": "dog",
    "doughnut": "donut", "duck": "duck", "eggplant": "eggplant", "elephant": "elephant",
    "eyeglasses": "glasses", "fire": "fire", "fish": "fish", "frog": "frog", "gift": "gift",
    "grapes": "grapes", "guitar": "guitar", "hamburger": "burger", "hammer": "hammer",
    "house": "house", "jack_o_lantern": "pumpkin", "key": "key", "ladybug": "ladybug",
    "lemon": "lemon", "lion_face": "lion", "lock": "lock", "earth_africa": "globe",
    "monkey_face": "monkey", "mouse": "mouse", "mushroom": "mushroom", "octopus": "octopus",
    "owl": "owl", "panda_face": "panda", "penguin": "penguin", "pig": "pig",
    "pineapple": "pineapple", "pizza": "pizza", "rabbit": "rabbit", "rainbow": "rainbow",
    "rocket": "rocket", "rose": "rose", "scissors": "scissors", "shark": "shark",
    "snail": "snail", "snowman_without_snow": "snowman", "soccer": "football",
    "spider": "spider", "strawberry": "strawberry", "sunny": "sun", "sunflower": "sunflower",
    "tiger": "tiger", "tomato": "tomato", "traffic_light": "traffic light",
    "evergreen_tree": "tree", "palm_tree": "palm tree", "tulip": "tulip", "turtle": "turtle",
    "umbrella": "umbrella",
    "watermelon": "watermelon", "whale": "whale", "crescent_moon": "moon",
    "necktie": "tie", "shirt": "shirt", "dress": "dress", "book": "book", "bomb": "bomb",
}  # fmt: skip
FLAGS = {
    "ar": "Argentina", "at": "Austria", "au": "Australia", "be": "Belgium", "br": "Brazil",
    "ca": "Canada", "ch": "Switzerland", "cl": "Chile", "cn": "China", "cz": "Czechia",
    "de": "Germany", "dk": "Denmark", "es": "Spain", "fi": "Finland", "fr": "France",
    "gb": "United Kingdom", "gr": "Greece", "hu": "Hungary", "ie": "Ireland", "il": "Israel",
    "in": "India", "it": "Italy", "jp": "Japan", "ke": "Kenya", "kr": "South Korea",
    "mx": "Mexico", "ng": "Nigeria", "nl": "Netherlands", "no": "Norway", "pk": "Pakistan",
    "pl": "Poland", "pt": "Portugal", "ro": "Romania", "se": "Sweden", "tr": "Turkey",
    "ua": "Ukraine", "us": "United States", "vn": "Vietnam", "za": "South Africa", "cu": "Cuba",
}  # fmt: skip
# name the demo says: archive, member; licences in DATA.md
PHOTOS = {
    "astronaut": ("image", "astronaut.png"), "bricks": ("image", "brick.png"),
    "photographer": ("image", "camera.png"), "cat": ("image", "chelsea.png"),
    "clock": ("image", "clock_motion.png"), "cup of coffee": ("image", "coffee.png"),
    "coins": ("image", "coins.png"), "grass": ("image", "grass.png"),
    "gravel": ("image", "gravel.png"), "galaxies": ("image", "hubble_deep_field.jpg"),
    "moon": ("image", "moon.png"), "motorcycle": ("image", "motorcycle_left.png"),
    "page of text": ("image", "page.png"), "retina": ("image", "retina.jpg"),
    "rocket": ("image", "rocket.jpg"), "temple": ("learn", "china.jpg"),
    "flower": ("learn", "flower.jpg"),
}  # fmt: skip
NAMES = tuple(
    [f"emoji {name}" for name in EMOJI.values()]
    + [f"flag {name}" for name in FLAGS.values()]
    + [f"photo {name}" for name in PHOTOS]
)  # classes of stage 0


@dataclass(frozen=True)
class Picture:
    """A named picture: ``kind`` is emoji, flag or photo; ``image`` is RGBA, or RGB for a photo."""

    kind: str
    name: str
    image: Image.Image

    @property
    def label(self) -> int:
        """Index into ``NAMES``."""
        return NAMES.index(f"{self.kind} {self.name}")


def _emoji(style: str, cache: Path) -> list[Picture]:
    with tarfile.open(archives.EMOJI[style].fetch(cache)) as archive:
        entries = json.loads(archives.member(archive, "package/emoji.json"))
        files = {entry["short_name"]: entry["image"] for entry in entries}
        # one pass over the compressed archive, in its own order
        wanted = {
            f"package/img/{style}/64/{files[code]}": ("emoji", n) for code, n in EMOJI.items()
        }
        for code, name in FLAGS.items():
            short = f"flag-{code}" if f"flag-{code}" in files else code
            wanted[f"package/img/{style}/64/{files[short]}"] = ("flag", name)
        found = []
        for entry in archive:
            if entry.name in wanted:
                data = archives.member(archive, entry.name)
                image = Image.open(io.BytesIO(data)).convert("RGBA")
                found.append(Picture(*wanted[entry.name], image))
    return sorted(found, key=lambda picture: picture.label)


def _photos(cache: Path) -> list[Picture]:
    found = []
    paths = {
        "image": (archives.SCIKIT_IMAGE, "skimage/data/"),
        "learn": (archives.SCIKIT_LEARN, "sklearn/datasets/images/"),
    }
    for name, (source, file) in PHOTOS.items():
        archive, folder = paths[source]
        with zipfile.ZipFile(archive.fetch(cache)) as wheel:
            image = Image.open(io.BytesIO(wheel.read(folder + file))).convert("RGB")
        image.thumbnail((320, 320), Image.Resampling.BICUBIC)
        found.append(Picture("photo", name, image))
    return found


@functools.lru_cache(maxsize=2)
def load(split: str, cache: Path = DEFAULT_CACHE) -> dict[str, tuple[Picture, ...]]:
    """Pictures by kind: emoji and flags of ``split``'s style (``train`` or ``test``), all photos.

    Raises:
        ValueError: another split name, or an archive with the wrong hash.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    drawn = _emoji("google" if split == "train" else "twitter", cache)
    return {
        "emoji": tuple(p for p in drawn if p.kind == "emoji"),
        "flag": tuple(p for p in drawn if p.kind == "flag"),
        "photo": tuple(_photos(cache)),
    }


def stained(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """The picture with its colours moved a little: gain and shift per channel, some contrast."""
    pixels = np.asarray(picture, np.float32)
    colour, rest = pixels[..., :3], pixels[..., 3:]
    spread = 0.04 if rng.random() < 0.5 else 0.12
    strong = (colour - 128) * rng.uniform(0.75, 1.2) + 128
    moved = strong * rng.normal(1, spread, 3) + rng.normal(0, 255 * spread * 0.5, 3)
    whole = np.concatenate([moved, rest], -1)
    return Image.fromarray(np.clip(whole, 0, 255).astype(np.uint8), picture.mode)


def cropped(rng: np.random.Generator, photo: Image.Image) -> Image.Image:
    """A crop of 55-100 % of each side, mirrored half of the time."""
    share = rng.uniform(0.55, 1.0, 2)
    width, height = (max(32, round(s * f)) for s, f in zip(photo.size, share, strict=True))
    left = int(rng.integers(photo.width - width + 1))
    top = int(rng.integers(photo.height - height + 1))
    crop = photo.crop((left, top, left + width, top + height))
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return stained(rng, crop)
