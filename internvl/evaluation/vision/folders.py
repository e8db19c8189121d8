"""Pictures with labels, out of folders: image-folder data sets, and ImageNet as people keep it.

    ROOT/train/CLASS/*.jpg                          classes are the names of the folders, sorted
    ROOT/val/CLASS/*.jpg                            or test/ where there is no val/
    ROOT/val/*.JPEG + val.txt                       ImageNet as its archive holds it

Of ImageNet the folders are wnids, and their sorted order is the order of the thousand classes that
everybody means by an index, the official `imagenet_classes.json` too.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl.source_files import some

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class LabelledImages:
    """What a head is trained or scored on.

    Attributes:
        sources: a path each, or anything that the image processor reads.
        labels: classes accepted for each, indices of the head's; one, but in ReaL any number.
        among: classes among which the head decides; None for all of them.
    """

    sources: Sequence[Any]
    labels: Sequence[tuple[int, ...]]
    among: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.sources) != len(self.labels) or not self.sources:
            raise ValueError(
                f"there are {len(self.sources)} images and {len(self.labels)} labels; expected as "
                "many of both, and at least one."
            )

    def __len__(self) -> int:
        return len(self.sources)


def class_folders(root: Path) -> dict[str, list[Path]]:
    """Class -> its pictures, both sorted, of a folder of class folders.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no class folders in it, or one without pictures.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} does not exist; expected a folder of class folders.")
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    if not names:
        raise ValueError(f"{root} has no folders; expected one per class, with pictures in it.")
    found = {name: _pictures(root / name) for name in names}
    empty = [name for name, pictures in found.items() if not pictures]
    if empty:
        hint = ""
        if len(names) == 1 and any(path.is_dir() for path in (root / names[0]).iterdir()):
            hint = f" Did you mean {root / names[0]}?"
        raise ValueError(
            f"{root} has class folders without pictures ({some(empty)}); expected files "
            f"ending in {', '.join(EXTENSIONS)}, directly in the folder of their class.{hint}"
        )
    return found


def _pictures(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:  # which needs no `stat` per file: ImageNet has a million
        names = [each.name for each in entries if each.is_file()]
    return [folder / name for name in sorted(names) if name.lower().endswith(EXTENSIONS)]


def read_training(root: str | Path) -> tuple[LabelledImages, tuple[str, ...]]:
    """ROOT/train, and the names of its classes.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: as `class_folders`.
    """
    found = class_folders(Path(root) / "train")
    return label_folders(found, {name: k for k, name in enumerate(found)}), tuple(found)


def read_test(root: str | Path, classes: Sequence[str]) -> LabelledImages:
    """A folder of class folders of its own.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a class that the head does not know, or as `class_folders`.
    """
    return label_folders(class_folders(Path(root)), {name: k for k, name in enumerate(classes)})


def read_validation(
    root: str | Path, classes: Sequence[str], labels: str | Path | None = None
) -> LabelledImages:
    """ROOT/val, or ROOT/test where there is no val.

    Args:
        root: the data set.
        classes: of the head.
        labels: file with the class of every picture of a flat folder: `NAME CLASS` per line, CLASS
            a folder name or an index, or LOC_val_solution.csv of Kaggle; when None, ROOT/val.txt
            and ROOT/LOC_val_solution.csv are looked for.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: a class that the head does not know, pictures without a label, or labels that
            cannot be read.
    """
    root = Path(root)
    folder = root / ("test" if not (root / "val").is_dir() and (root / "test").is_dir() else "val")
    index = {name: k for k, name in enumerate(classes)}
    if labels is None and folder.is_dir() and _pictures(folder):  # the archive's flat folder
        files = [root / "val.txt", root / "LOC_val_solution.csv"]
        labels = next((file for file in files if file.is_file()), None)
        if labels is None:
            raise FileNotFoundError(
                f"{folder} holds pictures and no class folders, and {root} has neither "
                f"{files[0].name} nor {files[1].name}; pass the file with their labels, or sort "
                "them into class folders."
            )
    if labels is None:
        return label_folders(class_folders(folder), index)
    known = _read_labels(Path(labels), index)
    pictures = _pictures(folder)
    unlabelled = [path.name for path in pictures if path.stem not in known]
    if unlabelled:
        raise ValueError(f"{labels} has no label for {some(unlabelled)} of {folder}.")
    return LabelledImages(pictures, [(known[path.stem],) for path in pictures])


def label_folders(found: dict[str, list[Path]], index: dict[str, int]) -> LabelledImages:
    """Pictures of class folders, labelled by the name of their folder.

    Raises:
        ValueError: a folder that is no class of the head.
    """
    unknown = sorted(set(found) - set(index))
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(found)} folders are not among the {len(index)} classes that "
            f"the head was trained on: {some(unknown)}; expected names such as "
            f"{some(sorted(index)[:2])}."
        )
    pairs = [(path, (index[name],)) for name, pictures in found.items() for path in pictures]
    return LabelledImages([path for path, _ in pairs], [label for _, label in pairs])


def _read_labels(file: Path, index: dict[str, int]) -> dict[str, int]:
    """Name of a picture, without its ending -> class."""
    known: dict[str, int] = {}
    with file.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines, delimiter="," if file.suffix == ".csv" else " ")
        for number, row in enumerate(rows, 1):
            if not row or row == ["ImageId", "PredictionString"]:
                continue
            name, label = row[0], row[1].split()[0] if len(row) > 1 and row[1].strip() else ""
            if label not in index and not (label.isdecimal() and int(label) < len(index)):
                raise ValueError(
                    f"{file}, line {number}: {row!r:.60} is no picture with one of the "
                    f"{len(index)} classes; expected `NAME CLASS`, CLASS a folder of train/ or an "
                    "index from 0. The ground truth file of the development kit counts classes "
                    "in another order and is not read."
                )
            known[Path(name).stem] = index[label] if label in index else int(label)
    return known
