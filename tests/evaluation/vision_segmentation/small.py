"""A small encoder with random weights, and a data set of coloured rectangles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from internvl import hub
from internvl.evaluation.vision.encoder import Encoder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLOURS = np.array([(40, 40, 40), (220, 60, 50), (60, 90, 220)])
CLASSES = ("ground", "red", "blue")


def make_encoder(*, freeze: bool = True, layers: int = 4, seed: int = 0, **fields) -> Encoder:
    """An InternViT of width 32 for images of 56 pixels."""
    config = hub.ring0("configuration_intern_vit").InternVisionConfig(
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=64,
        num_hidden_layers=layers,
        image_size=56,
        norm_type="layer_norm",
        qkv_bias=True,
        qk_normalization=False,
        initializer_factor=1.0,
        **fields,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = hub.ring0("modeling_intern_vit").InternVisionModel(config)
    return Encoder(model, image_size=56, mean=MEAN, std=STD, freeze=freeze)


def rectangles(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image (64, 80, 3) with a red and a blue rectangle, some noise, and its mask."""
    mask = np.zeros((64, 80), np.uint8)
    for label in (1, 2):
        top, left = int(rng.integers(4, 34)), int(rng.integers(4, 44))
        mask[top : top + 26, left : left + 32] = label
    image = COLOURS[mask] + rng.normal(0, 8, (64, 80, 1))
    return np.clip(image, 0, 255).astype(np.uint8), mask


def write_rectangles(root: Path, *, train: int = 8, val: int = 3, seed: int = 0) -> Path:
    """The data set in the layout `folders`."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            image, mask = rectangles(rng)
            Image.fromarray(image).save(root / "images" / split / f"{number}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{number}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root
