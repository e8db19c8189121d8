"""The ImageNet variants of Table 14: their folders, and which classes a head decides among.

    imagenet-a, imagenet-r   ROOT/wnid/*: 200 classes; the other 800 logits are left out
    imagenet-sketch          ROOT/wnid/*: all classes
    imagenet-v2              ROOT/0 ... ROOT/999, indices (matched-frequency in the table)
    imagenet-real            the pictures of ImageNet's validation set, real.json with the labels

The 200 classes are the folders that the variant itself has, so nobody's list of them is needed. In
ReaL a picture may have several labels, and is left out when it has none.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from internvl.evaluation.vision.folders import (
    EXTENSIONS,
    LabelledImages,
    class_folders,
    label_folders,
)
from internvl.source_files import some

logger = logging.getLogger(__name__)

IMAGENET_CLASSES = 1000
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")


@dataclass(frozen=True)
class Variant:
    """A test set of ImageNet classes.

    Attributes:
        name: what the command line takes.
        column: of Table 14.
        images: how many pictures are scored in the published set.
        classes: how many classes it has.
        layout: "wnid", "index" or "real".
    """

    name: str
    column: str
    images: int
    classes: int
    layout: str


# Pictures: logs in the README of OpenGVLab/InternVL, classification/; of ReaL's 50,000, those with
# a label (Beyer et al., 2020).
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("imagenet-real", "IN-ReaL", 46_837, IMAGENET_CLASSES, "real"),
        Variant("imagenet-v2", "IN-V2", 10_000, IMAGENET_CLASSES, "index"),
        Variant("imagenet-a", "IN-A", 7_500, 200, "wnid"),
        Variant("imagenet-r", "IN-R", 30_000, 200, "wnid"),
        Variant("imagenet-sketch", "IN-Ske", 50_889, IMAGENET_CLASSES, "wnid"),
    )
}


def get_variant(name: str) -> Variant:
    """A variant by its name.

    Raises:
        ValueError: no such variant.
    """
    if name not in VARIANTS:
        raise ValueError(f"there is no variant {name!r}; expected one of {sorted(VARIANTS)}.")
    return VARIANTS[name]


def read_variant(
    name: str, root: str | Path, classes: Sequence[str], real_labels: str | Path | None = None
) -> LabelledImages:
    """The pictures of a variant, labelled for a head.

    Args:
        name: of the variant.
        root: folder of its class folders; for ReaL the folder with ImageNet's validation pictures.
        classes: of the head; the wnids of ImageNet in sorted order.
        real_labels: real.json of ReaL; ROOT/real.json when None.

    Raises:
        FileNotFoundError: a folder or file that does not exist.
        ValueError: no such variant; classes that the head does not have; a head that was not
            trained on the thousand classes, where indices stand for them.
    """
    variant, root = get_variant(name), Path(root)
    if variant.layout != "wnid" and len(classes) != IMAGENET_CLASSES:
        raise ValueError(
            f"{name} names classes by their index among ImageNet's {IMAGENET_CLASSES}, but the "
            f"head has {len(classes)}; train it on the whole of ImageNet-1K."
        )
    if variant.layout == "real":
        images = _read_real(root, Path(real_labels or root / "real.json"))
        found = IMAGENET_CLASSES
    else:
        folders = class_folders(root)
        names = [str(k) for k in range(len(classes))] if variant.layout == "index" else classes
        images = label_folders(folders, {name: k for k, name in enumerate(names)})
        found = len(folders)
        if variant.classes < IMAGENET_CLASSES:
            images = replace(images, among=tuple(sorted({label for (label,) in images.labels})))
    if not is_complete(variant, len(images), found):
        logger.warning(
            "%s has %d images of %d classes, %s has %d of %d: the score is not that of the table",
            root, len(images), found, name, variant.images, variant.classes,
        )  # fmt: skip
    return images


def is_complete(variant: Variant, images: int, classes: int) -> bool:
    """Whether there are as many pictures and classes as were published."""
    return (images, classes) == (variant.images, variant.classes)


def _read_real(root: Path, file: Path) -> LabelledImages:
    """Pictures of the validation set that have ReaL labels, wherever below `root` they lie."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; ReaL needs its real.json.")
    if not root.is_dir():
        raise FileNotFoundError(f"{root} does not exist; expected ImageNet's validation pictures.")
    labels = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(labels, list) or not all(
        isinstance(each, list) and all(k in range(IMAGENET_CLASSES) for k in each)
        for each in labels
    ):
        raise ValueError(
            f"{file} is not ReaL's real.json; expected a list with a list of class indices below "
            f"{IMAGENET_CLASSES} for every picture."
        )
    pictures = sorted(
        (path for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS),
        key=lambda path: path.name,
    )
    numbers = [_NUMBER.fullmatch(path.stem) for path in pictures]
    strange = [
        path.name
        for path, number in zip(pictures, numbers, strict=True)
        if number is None or not 1 <= int(number[1]) <= len(labels)
    ]
    if strange or not pictures:
        raise ValueError(
            f"{root} has {len(pictures)} pictures, among them {some(strange) or 'none'} that "
            f"{file.name} has no labels for; expected ILSVRC2012_val_00000001.JPEG to "
            f"ILSVRC2012_val_{len(labels):08d}.JPEG."
        )
    accepted = [tuple(labels[int(number[1]) - 1]) for number in numbers if number is not None]
    kept = [pair for pair in zip(pictures, accepted, strict=True) if pair[1]]
    return LabelledImages([path for path, _ in kept], [label for _, label in kept])
