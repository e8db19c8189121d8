"""Where images and masks are: ADE20K, COCO-Stuff-164K, or two folders.

    ade20k      images/{training,validation}/X.jpg     annotations/{training,validation}/X.png
    coco_stuff  images/{train2017,val2017}/X.jpg       annotations/.../X_labelTrainIds.png
    folders     images/{train,val}/X.{jpg,png,...}     masks/{train,val}/X.png      classes.txt

ADE20K is ADEChallengeData2016 as published: label 0 is "other" and is not asked, 1 to 150 become 0
to 149. COCO-Stuff is as MMSegmentation's tools/convert_datasets/coco_stuff164k.py leaves it: 171
classes. In `folders` a mask holds classes from 0, and 255 where nothing is asked.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from internvl import hub
from internvl.evaluation.vision.segmentation.settings import IGNORED

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_SPLITS = ("train", "val")


@dataclass(frozen=True)
class Layout:
    """How a data set lies on the disk.

    Attributes:
        name: what the command line takes.
        folders: of the two splits.
        masks: folder of the masks.
        suffix: of a mask, after the stem of the image.
        num_classes: None where classes.txt says it.
        reduce_zero_label: label 0 is not asked, the others count from 1.
    """

    name: str
    folders: tuple[str, str]
    masks: str = "annotations"
    suffix: str = ".png"
    num_classes: int | None = None
    reduce_zero_label: bool = False


LAYOUTS = {
    each.name: each
    for each in (
        Layout("ade20k", ("training", "validation"), num_classes=150, reduce_zero_label=True),
        Layout(
            "coco_stuff", ("train2017", "val2017"), suffix="_labelTrainIds.png", num_classes=171
        ),
        Layout("folders", _SPLITS, masks="masks"),
    )
}


@dataclass(frozen=True)
class Pair:
    """An image and its mask."""

    image: Path
    mask: Path


@dataclass(frozen=True)
class Data:
    """One split of a data set.

    Attributes:
        pairs: in the order of the names.
        class_names: K names; numbers where the data set has none.
        reduce_zero_label: see `Layout`.
    """

    pairs: tuple[Pair, ...]
    class_names: tuple[str, ...]
    reduce_zero_label: bool = False

    def digest(self) -> str:
        """The sha256 over the names of the images, in order."""
        names = "\n".join(pair.image.name for pair in self.pairs)
        return hashlib.sha256(names.encode()).hexdigest()

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) and mask (H, W), uint8, of a pair.

        Raises:
            ValueError: a damaged file, a mask of another size or kind, or a class beyond K.
        """
        pair = self.pairs[index]
        image, mask = read_image(pair.image), read_mask(pair.mask)
        if image.shape[:2] != mask.shape:
            raise ValueError(
                f"{pair.image} has {image.shape[0]}x{image.shape[1]} pixels (height x width) and "
                f"{pair.mask} {mask.shape[0]}x{mask.shape[1]}; they do not belong together."
            )
        if self.reduce_zero_label:
            mask = without_zero(mask)
        labels = mask[mask != IGNORED]
        if labels.size and labels.max() >= len(self.class_names):
            raise ValueError(
                f"{pair.mask} has class {labels.max()}"
                f"{' after the shift by one' if self.reduce_zero_label else ''}, expected 0 to "
                f"{len(self.class_names) - 1} or {IGNORED}; check the layout and its classes."
            )
        return image, mask


def find(layout: str, root: str | Path, split: str) -> Data:
    """Find the images and masks of a split.

    Args:
        layout: a name in `LAYOUTS`.
        root: folder of the data set.
        split: "train" or "val".

    Raises:
        FileNotFoundError: a folder that does not exist.
        ValueError: no such layout or split; no image; an image without a mask; two images of one
            name; no classes.txt where the layout needs it.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; expected one of {', '.join(LAYOUTS)}.")
    if split not in _SPLITS:
        raise ValueError(f"split is {split!r}; expected train or val.")
    rules, root = LAYOUTS[layout], Path(root)
    folder = rules.folders[_SPLITS.index(split)]
    images, masks = root / "images" / folder, root / rules.masks / folder
    for each in (images, masks):
        if not each.is_dir():
            raise FileNotFoundError(
                f"{each} is no folder; layout {layout!r} has images in {images} and masks in "
                f"{masks}: check the folder and --layout."
            )
    found: dict[str, Path] = {}
    for path in sorted(images.iterdir()):
        if path.suffix.lower() in PICTURES:
            if path.stem in found:
                raise ValueError(f"{found[path.stem]} and {path} would have the same mask.")
            found[path.stem] = path
    if not found:
        raise ValueError(f"{images} holds no image ({', '.join(PICTURES)}).")
    pairs = tuple(Pair(path, masks / f"{stem}{rules.suffix}") for stem, path in found.items())
    lost = [pair.mask.name for pair in pairs if not pair.mask.is_file()]
    if lost:
        raise ValueError(
            f"{len(lost)} of {len(pairs)} images have no mask in {masks}, {lost[0]} for instance; "
            "add the masks, or take the images away."
        )
    return Data(pairs, _class_names(rules, root), rules.reduce_zero_label)


def _class_names(rules: Layout, root: Path) -> tuple[str, ...]:
    """Names of the classes.

    Raises:
        ValueError: no names where they are needed, or another number of them than there are
            classes.
    """
    names: tuple[str, ...] = ()
    listed, ade = root / "classes.txt", root / "objectInfo150.txt"
    if listed.is_file():
        names = tuple(filter(None, map(str.strip, listed.read_text("utf-8").splitlines())))
    elif rules.name == "ade20k" and ade.is_file():  # Idx Ratio Train Val Stuff Name, tabs between
        rows = ade.read_text("utf-8").splitlines()[1:]
        names = tuple(row.split("\t")[-1].split(",")[0].strip() for row in rows if row.strip())
    elif rules.num_classes is None:
        raise ValueError(f"{listed} is missing; write the names of the classes, one a line.")
    else:
        names = tuple(map(str, range(rules.num_classes)))
    expected = rules.num_classes or len(names)
    if len(names) != expected or not 1 < len(names) < IGNORED:
        raise ValueError(
            f"{root} names {len(names)} classes, layout {rules.name!r} expects "
            f"{rules.num_classes or f'2 to {IGNORED - 1}'}; correct its list of classes."
        )
    return names


def without_zero(mask: np.ndarray) -> np.ndarray:
    """Turn label 0 into 255 and count the others from 0; 255 stays."""
    return np.where((mask == 0) | (mask == IGNORED), IGNORED, mask - 1).astype(np.uint8)


def read_image(path: Path) -> np.ndarray:
    """Read an image (H, W, 3), uint8, RGB, turned as its EXIF says.

    Raises:
        ValueError: a file that cannot be decoded; its name is in the message.
    """
    sources = hub.ring0("preprocessor.image_sources")
    return np.array(sources.load_rgb(path, sources.SourcePolicy(exif_orientation=True)))


def read_mask(path: Path) -> np.ndarray:
    """Read a mask (H, W), uint8: grey values, or indices of a palette.

    Raises:
        ValueError: a file that cannot be decoded, a mask in colours, or values beyond 255.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode, values = image.mode, np.array(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no readable mask ({error}); replace it.") from error
    if values.ndim != 2 or mode == "1" or values.dtype.kind not in "ui":
        raise ValueError(
            f"{path} has mode {mode}, expected one channel of class numbers (L, P or I;16); "
            "a mask in colours has to be converted."
        )
    if values.size and (values.min() < 0 or values.max() > IGNORED):
        raise ValueError(f"{path} has values up to {values.max()}, expected 0 to {IGNORED}.")
    return values.astype(np.uint8)
