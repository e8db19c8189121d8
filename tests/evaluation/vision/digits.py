"""The digits of digits.png as an image folder: 16 of each class for training, 8 for the test."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

SHEET = Path(__file__).with_name("digits.png")
SIDE, PER_CLASS, TRAINING = 8, 24, 16


def write(root: Path, *, classes: int = 10) -> Path:
    """Write ROOT/train and ROOT/test, and return ROOT."""
    with Image.open(SHEET) as sheet:
        for digit in range(classes):
            for number in range(PER_CLASS):
                folder = root / ("train" if number < TRAINING else "test") / str(digit)
                folder.mkdir(parents=True, exist_ok=True)
                top, left = digit * SIDE, number * SIDE
                sheet.crop((left, top, left + SIDE, top + SIDE)).save(folder / f"{number:02}.png")
    return root
