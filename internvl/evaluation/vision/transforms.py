"""What is done to a picture before a probe sees it: the official weak augmentation, and none.

    train   RandomResizedCrop(S), bicubic -> flip with probability 1/2
    val     Resize(S), bicubic, the shorter side -> CenterCrop(S)

The geometry is torchvision's (`RandomResizedCrop`, `Resize`, `CenterCrop`), whose PIL path resizes
with PIL as well. torchvision itself is not needed, because its wheels do not load next to CPU
builds of torch, nor timm, whose transforms import it. Random numbers come from a generator that is
an argument, so what an image turns into does not depend on the worker that loads it.

    # S side of the result   H, W  pixels (row first)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

SCALE = (0.08, 1.0)  # share of the area that a crop has, torchvision's default
RATIO = (3 / 4, 4 / 3)  # width over height of a crop
_TRIES = 10


@dataclass(frozen=True)
class Box:
    """A rectangle of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(height: int, width: int, rng: np.random.Generator) -> Box:
    """The part of a picture that RandomResizedCrop takes (Szegedy et al., 2015).

    Area uniform in SCALE of the picture's, log of the aspect uniform in that of RATIO, place
    uniform; after ten boxes that do not fit, the largest one in the middle whose aspect is in
    RATIO.

    Args:
        height: H.
        width: W.
        rng: is drawn from.
    """
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*SCALE)
        aspect = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(height - h + 1))
            return Box(top, int(rng.integers(width - w + 1)), h, w)
    w, h = width, height
    if width / height < RATIO[0]:
        h = round(w / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(h * RATIO[1])
    return Box((height - h) // 2, (width - w) // 2, h, w)


def shorter_side_to(height: int, width: int, side: int) -> tuple[int, int]:
    """(H, W) of a picture whose shorter side is brought to `side`, the longer one truncated."""
    if width <= height:
        return int(side * height / width), side
    return side, int(side * width / height)


def train_view(image: Image.Image, side: int, rng: np.random.Generator) -> np.ndarray:
    """A random crop, flipped or not.

    Args:
        image: RGB.
        side: S.
        rng: is drawn from.

    Returns:
        uint8 (S, S, 3).
    """
    box = random_box(image.height, image.width, rng)
    # Cut first: with `box=` of PIL's resize the filter would see pixels around the crop.
    crop = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    pixels = np.asarray(crop.resize((side, side), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(pixels[:, ::-1]) if rng.random() < 0.5 else pixels


def plain_view(image: Image.Image, side: int) -> np.ndarray:
    """The middle of a picture.

    Args:
        image: RGB.
        side: S.

    Returns:
        uint8 (S, S, 3).
    """
    height, width = shorter_side_to(image.height, image.width, side)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    top, left = round((height - side) / 2), round((width - side) / 2)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def normalise(views: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Scale to [0, 1], subtract the mean, divide by the deviation, in float32 and in this order.

    Args:
        views: uint8 (N, S, S, 3).
        mean: per channel.
        std: per channel.

    Returns:
        float32 (N, 3, S, S), on the device of `views`.
    """
    pixels = views.permute(0, 3, 1, 2).to(torch.float32) / 255
    shift = torch.tensor(mean, device=views.device)[:, None, None]
    scale = torch.tensor(std, device=views.device)[:, None, None]
    return (pixels - shift) / scale
