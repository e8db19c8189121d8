"""Stage 0: the ViT learns to say, per patch, what it covers (dense supervision, no text).

One linear head on the raw last layer; the label maps of ``labels``. The report starts from a
contrastively pre-trained InternViT; a ViT trained this way already knows shape, colour, digit,
character and place when the question-answer training starts.
"""

# N tiles   P patches per tile   C ViT width

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from internvl.training.demo import drawings, scenes
from internvl.training.demo.drawings import Drawing
from internvl.training.demo.labels import (
    IGNORE,
    LETTERS,
    MAPS,
    WHOLE,
    WIDTH,
    Window,
    label_maps,
)
from internvl.training.demo.material import Sources
from internvl.training.demo.scenes import TILE, pick

# letters that words are made of, rare ones a little more often than English has them
_LETTER_SHARES = np.array([
    8, 3, 4, 4, 10, 3, 3, 4, 7, 2, 3, 5, 4, 6, 7, 3, 2, 6, 6, 7, 4, 2, 3, 2, 3, 2,
], float)  # fmt: skip
_LETTER_SHARES /= _LETTER_SHARES.sum()


def random_text(rng: np.random.Generator, longest: int = 8) -> str:
    """Random letters, or (30 %) random digits: the ViT learns characters, not words."""
    length = int(rng.integers(1, longest + 1))
    if rng.random() < 0.3:
        return "".join(str(v) for v in rng.integers(0, 10, length))
    if rng.random() < 0.5:
        return "".join(rng.choice(list(LETTERS), length, p=_LETTER_SHARES))
    return "".join(rng.choice(list(LETTERS), length))


Tile = tuple[np.ndarray, np.ndarray]  # (S, S, 3) uint8 and (maps, P) int64


def _whole(drawing: Drawing, rng: np.random.Generator) -> Tile:
    return scenes.to_tile(drawing.image, rng), label_maps(drawing.marks)


def cut(drawing: Drawing, rng: np.random.Generator, columns: int, column: int) -> Tile:
    """Tile ``column`` of a picture that dynamic resolution cuts into ``columns`` side by side."""
    image = drawing.image
    if rng.random() < 0.2:
        image = scenes.jpeg(image, int(rng.integers(60, 96)))
    image = image.resize((TILE * columns, TILE), Image.Resampling.BICUBIC)
    window: Window = (column / columns, 0.0, 1 / columns, 1.0)
    tile = np.asarray(image.crop((TILE * column, 0, TILE * (column + 1), TILE)))
    return tile, label_maps(drawing.marks, window if columns > 1 else WHOLE)


def words_tile(rng: np.random.Generator, sources: Sources) -> Tile:
    """A tile of printed text: a wide picture's part (mostly), its thumbnail, or a square page."""
    kind = rng.random()
    if kind < 0.5:  # one word on a wide picture, cut into two or three tiles
        columns = int(pick(rng, (2, 3)))
        height = int(rng.integers(60, 200))
        aspect = columns * float(rng.uniform(0.8, 1.2))
        lines = [random_text(rng) for _ in range(int(pick(rng, (1, 1, 2, 3))))]
        if len(lines) == 1 and rng.random() < 0.5:
            lines = [random_text(rng, 6)]
        drawing = drawings.words(rng, sources.fonts, lines, (round(height * aspect), height))
        return cut(drawing, rng, columns, int(rng.integers(columns)))
    side = int(rng.integers(90, 300))
    if kind < 0.6:  # a thumbnail: the letters are squeezed
        size = (round(side * float(rng.uniform(1.6, 2.6))), side)
        lines = [random_text(rng, 6) for _ in range(int(pick(rng, (1, 1, 2))))]
        return _whole(drawings.words(rng, sources.fonts, lines, size), rng)
    count = int(pick(rng, (1, 2, 3, 4, 5)))
    lines = [random_text(rng, 4 + count) for _ in range(count)]
    size = (side, round(side * float(rng.uniform(0.8, 1.25))))
    return _whole(drawings.words(rng, sources.fonts, lines, size), rng)


def digits_tile(rng: np.random.Generator, sources: Sources) -> Tile:
    """One to three handwritten digits."""
    count = int(pick(rng, (1, 2, 2, 3, 3, 3)))
    row = count > 1 and bool(rng.random() < 0.6)
    return _whole(drawings.handwriting(rng, sources.digits, count, row=row)[0], rng)


def shapes_tile(rng: np.random.Generator, sources: Sources) -> Tile:
    """One to nine shapes."""
    return _whole(drawings.of_scene(scenes.shape_scene(rng, int(rng.integers(1, 10))), rng), rng)


def named_tile(rng: np.random.Generator, sources: Sources) -> Tile:
    """Emoji and flags, one to three; or a photograph."""
    if rng.random() < 0.22:
        return _whole(drawings.photo(rng, pick(rng, sources.pictures["photo"])), rng)
    pool = sources.pictures["flag" if rng.random() < 0.3 else "emoji"]
    found = [pick(rng, pool) for _ in range(int(pick(rng, (1, 1, 2, 3))))]
    return _whole(drawings.named(rng, found), rng)


def chart_tile(rng: np.random.Generator, sources: Sources) -> Tile:
    """A bar chart."""
    return _whole(drawings.chart(rng, drawings.sample_chart(rng), sources.fonts), rng)


TileMaker = Callable[[np.random.Generator, Sources], Tile]
KINDS: dict[str, tuple[float, TileMaker]] = {
    "words": (0.46, words_tile),
    "digits": (0.16, digits_tile),
    "shapes": (0.12, shapes_tile),
    "named": (0.18, named_tile),
    "charts": (0.08, chart_tile),
}


@dataclass(frozen=True)
class DenseData:
    """Makes stage-0 batches; callable as ``feed.batches`` wants it."""

    sources: Sources
    batch: int = 48
    kind: str | None = None  # all of this kind

    def __call__(self, rng: np.random.Generator, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Tiles (batch, S, S, 3) uint8 and targets (batch, maps, P)."""
        names = list(KINDS)
        shares = np.array([share for share, _ in KINDS.values()])
        chosen = rng.choice(len(names), self.batch, p=shares / shares.sum())
        made = [KINDS[self.kind or names[int(index)]][1](rng, self.sources) for index in chosen]
        return np.stack([tile for tile, _ in made]), np.stack([maps for _, maps in made])


def normalise(tiles: Tensor) -> Tensor:
    """(N, S, S, 3) uint8 tiles to (N, 3, S, S) float32, ImageNet mean and standard deviation."""
    mean = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)
    return (tiles.permute(0, 3, 1, 2).float().div(255) - mean) / std


class DenseModel(nn.Module):
    """A ViT and one linear head for all label maps."""

    def __init__(self, vision_model: Any, generator: torch.Generator):
        super().__init__()
        self.vision_model = vision_model
        self.head = nn.Linear(vision_model.config.hidden_size, WIDTH)
        nn.init.normal_(self.head.weight, 0, 0.02, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, tiles: Tensor) -> Tensor:
        """Logits of all maps side by side, (N, P, WIDTH), from uint8 tiles (N, S, S, 3)."""
        features = self.vision_model(pixel_values=normalise(tiles)).last_hidden_state
        return self.head(features[:, 1:])


def _parts(logits: Tensor) -> tuple[Tensor, ...]:
    return logits.split([classes for classes, _ in MAPS.values()], dim=-1)


def dense_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over the maps of the weighted cross-entropy; logits (N, P, WIDTH), targets (N, maps,
    P)."""
    total = logits.new_zeros(())
    for index, (part, (classes, background)) in enumerate(
        zip(_parts(logits), MAPS.values(), strict=True)
    ):
        target = targets[:, index].reshape(-1)
        part = part.reshape(-1, classes)
        if not background:
            keep = target != IGNORE
            if bool(keep.any()):
                total = total + F.cross_entropy(part[keep], target[keep])
            continue
        weight = torch.ones(classes)
        weight[-1] = background
        total = total + F.cross_entropy(part, target, weight=weight)
    return total


@torch.no_grad()
def dense_accuracy(
    model: nn.Module, batches: list[tuple[np.ndarray, np.ndarray]]
) -> dict[str, float]:
    """Per map: share of right answers over the patches that are not background; maps without any
    are left out."""
    right, count = np.zeros(len(MAPS)), np.zeros(len(MAPS))
    for tiles, targets in batches:
        logits = model(torch.from_numpy(tiles))
        for index, (part, (classes, background)) in enumerate(
            zip(_parts(logits), MAPS.values(), strict=True)
        ):
            target = torch.from_numpy(targets[:, index])
            keep = target != IGNORE
            if background:
                keep &= target != classes - 1
            right[index] += int((part.argmax(-1) == target)[keep].sum())
            count[index] += int(keep.sum())
    return {
        name: round(float(right[row] / count[row]), 4)
        for row, name in enumerate(MAPS)
        if count[row]
    }
