"""What happens to images and masks: MMSegmentation's default augmentation, and test-time resizing.

    training   resize by 0.5-2.0 -> crop, none of one class -> flip -> colours -> normalise -> pad
    test       shorter side to the crop size -> both sides up to multiples of the patch size

Arrays are uint8, images (H, W, 3) in RGB, masks (H, W). Images are resized as OpenCV does it,
bilinearly without antialiasing, masks to the nearest pixel by OpenCV's rule: mmcv uses it, and the
reported numbers came about so. HSV is Pillow's: 256 steps of hue where OpenCV has 180.

Official: configs/_base_/datasets/ade20k_504x504.py.

    # H, W pixels (row first, always)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from internvl.evaluation.vision.segmentation.settings import IGNORED
from internvl.evaluation.vision.transforms import normalise

RATIOS = (0.5, 2.0)
LONGEST = 4  # long side at most, in crops: img_scale=(2016, 504)
MAX_SHARE = 0.75  # of a class in a crop
CROP_TRIES = 10
FLIP = 0.5
BRIGHTNESS, CONTRAST, SATURATION = 32, (0.5, 1.5), (0.5, 1.5)
HUE, HUES = 18, 180  # OpenCV's unit: 2 degrees

Size = tuple[int, int]


# ---------------------------------------------------------------------- sizes
def training_size(height: int, width: int, *, crop: int, ratio: float) -> Size:
    """Size (height, width) after the random resize.

    The image keeps its proportions and fits into (4 crop * ratio, crop * ratio), long and short
    side (mmcv's imrescale).

    Args:
        height: of the image.
        width: of the image.
        crop: side of the crop.
        ratio: drawn from 0.5 to 2.0.
    """
    long, short = int(LONGEST * crop * ratio), int(crop * ratio)
    factor = min(long / max(height, width), short / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def evaluation_sizes(height: int, width: int, *, crop: int, patch: int) -> tuple[Size, Size]:
    """Sizes of the two resizes of a test image: shorter side to `crop`, then up to whole patches.

    Args:
        height: of the image.
        width: of the image.
        crop: side of a window.
        patch: side of a patch.
    """
    factor = crop / min(height, width)
    first = int(height * factor + 0.5), int(width * factor + 0.5)
    return first, (math.ceil(first[0] / patch) * patch, math.ceil(first[1] / patch) * patch)


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Resize an image (H, W, 3) to `size`, as OpenCV's INTER_LINEAR."""
    if image.shape[:2] == size:
        return image
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    resized = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
    return resized[0].permute(1, 2, 0).round_().to(torch.uint8).numpy()


def resize_mask(mask: np.ndarray, size: Size) -> np.ndarray:
    """Resize a mask (H, W) to `size`, as OpenCV's INTER_NEAREST: pixel floor(i * old / new)."""
    if mask.shape == size:
        return mask
    rows, columns = (  # the arithmetic is OpenCV's, too, so that rounding falls the same way
        np.minimum(np.floor(np.arange(new) * (1 / (new / old))).astype(np.int64), old - 1)
        for old, new in zip(mask.shape, size, strict=True)
    )
    return mask[rows[:, None], columns[None, :]]


# ---------------------------------------------------------------------- crop
def choose_crop(mask: np.ndarray, crop: int, rng: np.random.Generator) -> Size:
    """Top left corner of a crop in which no class has more than 75 % of the labelled pixels.

    Ten places are tried; if none will do, an eleventh is taken as it is (official cat_max_ratio).

    Args:
        mask: (H, W), may be smaller than the crop.
        crop: side of the crop.
        rng: of the places.
    """
    height, width = mask.shape

    def place() -> Size:
        return (
            int(rng.integers(max(height - crop, 0) + 1)),
            int(rng.integers(max(width - crop, 0) + 1)),
        )

    top, left = place()
    for _ in range(CROP_TRIES):
        counts = np.bincount(mask[top : top + crop, left : left + crop].ravel(), minlength=256)
        counts[IGNORED] = 0
        if np.count_nonzero(counts) > 1 and counts.max() < MAX_SHARE * counts.sum():
            break
        top, left = place()
    return top, left


# ---------------------------------------------------------------------- colours
def distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """MMSegmentation's PhotoMetricDistortion: each step with a probability of one half.

    Brightness is shifted by up to 32, contrast and saturation multiplied by 0.5 to 1.5, hue turned
    by up to 36 degrees; contrast comes second or last.

    Args:
        image: (H, W, 3).
        rng: of the draws.
    """
    if rng.integers(2):
        image = _linear(image, 1.0, rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    early = bool(rng.integers(2))
    if early and rng.integers(2):
        image = _linear(image, rng.uniform(*CONTRAST), 0.0)
    if rng.integers(2):
        hsv = _hsv(image)
        hsv[..., 1] = _linear(hsv[..., 1], rng.uniform(*SATURATION), 0.0)
        image = _rgb(hsv)
    if rng.integers(2):
        hsv = _hsv(image)
        turn = round(int(rng.integers(-HUE, HUE)) * 256 / HUES)
        hsv[..., 0] = (hsv[..., 0].astype(np.int64) + turn) % 256
        image = _rgb(hsv)
    if not early and rng.integers(2):
        image = _linear(image, rng.uniform(*CONTRAST), 0.0)
    return image


def _linear(values: np.ndarray, factor: float, shift: float) -> np.ndarray:
    moved = values.astype(np.float32) * factor + shift
    return np.clip(moved, 0, 255).astype(np.uint8)


def _hsv(image: np.ndarray) -> np.ndarray:
    return np.array(Image.fromarray(image, "RGB").convert("HSV"))


def _rgb(hsv: np.ndarray) -> np.ndarray:
    return np.array(Image.fromarray(hsv, "HSV").convert("RGB"))


# ---------------------------------------------------------------------- to tensors
def augment(
    image: np.ndarray,
    mask: np.ndarray,
    rng: np.random.Generator,
    *,
    crop: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """A training crop.

    Args:
        image: (H, W, 3).
        mask: (H, W).
        rng: of all draws.
        crop: side of the crop.
        mean: per channel, of values in [0, 1].
        std: per channel.

    Returns:
        pixels (3, crop, crop), float32, 0 where padded; labels (crop, crop), int64, 255 there.
    """
    size = training_size(*mask.shape, crop=crop, ratio=rng.uniform(*RATIOS))
    image, mask = resize_image(image, size), resize_mask(mask, size)
    top, left = choose_crop(mask, crop, rng)
    image, mask = (each[top : top + crop, left : left + crop] for each in (image, mask))
    if rng.random() < FLIP:
        image, mask = image[:, ::-1], mask[:, ::-1]
    image = distort(np.ascontiguousarray(image), rng)
    (pixels,) = normalise(torch.from_numpy(image)[None], mean, std)
    height, width = mask.shape
    missing = (0, crop - width, 0, crop - height)  # right and below
    labels = torch.from_numpy(np.ascontiguousarray(mask)).long()
    return F.pad(pixels, missing), F.pad(labels, missing, value=IGNORED)


def evaluation_pixels(
    image: np.ndarray, *, crop: int, patch: int, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """Pixels (3, H, W) of a test image, with sides that are multiples of the patch size.

    Args:
        image: (H, W, 3).
        crop: side of a window.
        patch: side of a patch.
        mean: per channel, of values in [0, 1].
        std: per channel.
    """
    for size in evaluation_sizes(*image.shape[:2], crop=crop, patch=patch):
        image = resize_image(image, size)
    (pixels,) = normalise(torch.from_numpy(image)[None], mean, std)
    return pixels
