"""Stage 0: the ViT learns to say, per patch, what it covers (dense supervision, no text).

One linear head on the raw last layer; eight label maps per picture. A ViT trained this way already
knows shape, colour, digit and place when the question-answer training starts.
"""

# N tiles   P patches per tile   C ViT width

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from internvl.training.demo import digits, feed, scenes
from internvl.training.demo.digits import Digits
from internvl.training.demo.network import DemoShape, DemoVision, normalise
from internvl.training.demo.optim import optimisers, schedule, set_rates
from internvl.training.demo.parallel import FlatGradients, Group
from internvl.training.demo.scenes import COLOURS, SHAPES, Scene, pick

logger = logging.getLogger(__name__)

SIDE = 8  # patches per tile side
BINS = 16  # classes of the x and y maps: 7 px each
# name, classes (background last where there is one), weight of the background class
MAPS = (
    ("shape", len(SHAPES) + 1, 0.3),
    ("colour", len(COLOURS) + 1, 0.3),
    ("centre_shape", len(SHAPES) + 1, 0.1),
    ("centre_colour", len(COLOURS) + 1, 0.1),
    ("centre_digit", 11, 0.1),
    ("digit", 11, 0.3),
    ("x", BINS, 0.0),
    ("y", BINS, 0.0),
)
IGNORE = -100
_CENTRES = (np.arange(SIDE) + 0.5) / SIDE
WIDTH = sum(classes for _, classes, _ in MAPS)


def label_maps(scene: Scene) -> np.ndarray:
    """(8 maps, SIDE * SIDE patches) int64 targets of a scene, rows of ``MAPS``."""
    maps = np.empty((len(MAPS), SIDE, SIDE), np.int64)
    for index, (_, classes, background) in enumerate(MAPS):
        maps[index] = classes - 1 if background else IGNORE
    short = min(scene.width, scene.height)
    for item in scene.items:
        reach = (0.3 if item.digit >= 0 else 0.36) * item.size
        dx = (_CENTRES[None, :] - item.x) * (scene.width / short)
        dy = (_CENTRES[:, None] - item.y) * (scene.height / short)
        covered = np.hypot(dx, dy) <= reach
        row, column = (min(SIDE - 1, int(v * SIDE)) for v in (item.y, item.x))
        covered[row, column] = True
        if item.digit >= 0:
            maps[5][covered] = item.digit
            maps[4, row, column] = item.digit
        else:
            shape, colour = SHAPES.index(item.shape), COLOURS.index(item.colour)
            maps[0][covered], maps[1][covered] = shape, colour
            maps[2, row, column], maps[3, row, column] = shape, colour
        maps[6][covered] = min(BINS - 1, int(item.x * BINS))
        maps[7][covered] = min(BINS - 1, int(item.y * BINS))
    return maps.reshape(len(MAPS), -1)


def digit_picture_image(
    rng: np.random.Generator, source: Digits, count: int | None = None, *, uci: float = 0.12
) -> tuple[Scene, Image.Image]:
    """A digit scene and its picture; 30 % of the lone digits are the bare 28x28 frame, as files
    often are.

    Args:
        rng: Source of randomness.
        source: Where the handwriting comes from.
        count: Digits in the picture; None draws 1-3.
        uci: Share of UCI digits.
    """
    if count is None:
        count = int(pick(rng, (1, 1, 1, 2, 3)))
    pairs = [source.sample(rng, uci=uci) for _ in range(count)]
    glyphs, labels = [g for g, _ in pairs], [label for _, label in pairs]
    if count == 1 and rng.random() < 0.3:
        return _bare_digit(rng, glyphs[0], labels[0])
    scene = scenes.digit_scene(rng, labels)
    return scene, scenes.draw_scene(scene, rng, glyphs)


def digit_picture(
    rng: np.random.Generator, source: Digits, count: int | None = None
) -> tuple[Scene, np.ndarray]:
    """``digit_picture_image`` with the picture made into a tile."""
    scene, image = digit_picture_image(rng, source, count)
    return scene, scenes.to_tile(image, rng)


def _bare_digit(
    rng: np.random.Generator, glyph: np.ndarray, label: int
) -> tuple[Scene, Image.Image]:
    ink = glyph if rng.random() < 0.6 else 255 - glyph
    side = 28 * int(pick(rng, (1, 2, 4, 5, 8)))
    how = Image.Resampling.NEAREST if rng.random() < 0.3 else Image.Resampling.BICUBIC
    image = Image.fromarray(ink).convert("RGB").resize((side, side), how)
    scene = Scene((scenes.Item(0.5, 0.5, 1.0, (0, 0, 0), digit=label),), (0, 0, 0), side, side)
    return scene, image


@dataclass(frozen=True)
class DenseData:
    """Makes stage-0 batches; callable as ``feed.batches`` wants it."""

    digits: Digits
    batch: int = 64
    digit_share: float = 0.5

    def __call__(self, rng: np.random.Generator, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Tiles (batch, S, S, 3) uint8 and targets (batch, maps, P)."""
        tiles, targets = [], []
        for _ in range(self.batch):
            if rng.random() < self.digit_share:
                scene, tile = digit_picture(rng, self.digits)
            else:
                scene = scenes.shape_scene(rng)
                tile = scenes.to_tile(scenes.draw_scene(scene, rng), rng)
            tiles.append(tile)
            targets.append(label_maps(scene))
        return np.stack(tiles), np.stack(targets)


class DenseModel(nn.Module):
    """The ViT and one linear head for all label maps."""

    def __init__(self, shape: DemoShape):
        super().__init__()
        self.vision_model = DemoVision(shape)
        self.head = nn.Linear(shape.vision_width, WIDTH)

    def forward(self, tiles: Tensor) -> Tensor:
        """Logits of all maps side by side, (N, P, WIDTH)."""
        return self.head(self.vision_model(normalise(tiles)))


def dense_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over the maps of the weighted cross-entropy; logits (N, P, WIDTH), targets (N, maps,
    P)."""
    total = logits.new_zeros(())
    for index, part in enumerate(logits.split([classes for _, classes, _ in MAPS], dim=-1)):
        _, classes, background = MAPS[index]
        weight = torch.ones(classes)
        if background:
            weight[-1] = background
        target = targets[:, index].reshape(-1)
        if bool((target != IGNORE).any()):
            total = total + F.cross_entropy(
                part.reshape(-1, classes), target, weight=weight, ignore_index=IGNORE
            )
    return total


@torch.no_grad()
def dense_accuracy(model: DenseModel, batches: list[tuple[np.ndarray, np.ndarray]]) -> dict:
    """Per map: share of right answers over the patches that are not background."""
    right, count = np.zeros(len(MAPS)), np.zeros(len(MAPS))
    for tiles, targets in batches:
        logits = model(torch.from_numpy(tiles))
        for index, part in enumerate(logits.split([c for _, c, _ in MAPS], dim=-1)):
            target = torch.from_numpy(targets[:, index])
            keep = target != IGNORE
            if MAPS[index][2]:
                keep &= target != MAPS[index][1] - 1
            right[index] += int((part.argmax(-1) == target)[keep].sum())
            count[index] += int(keep.sum())
    return {name: round(float(right[i] / count[i]), 4) for i, (name, _, _) in enumerate(MAPS)}


def load_state(path: Path, model: nn.Module, optims: list) -> dict:
    """Load what ``save_state`` wrote into the model and its optimisers; returns the whole
    record."""
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optim, saved in zip(optims, state["optims"], strict=True):
        optim.load_state_dict(saved)
    return state


@dataclass(frozen=True)
class DensePlan:
    """Hyper-parameters of stage 0."""

    steps: int = 2000
    batch: int = 64
    seed: int = 11
    lr_matrix: float = 2e-3
    lr_rest: float = 1e-3
    warmup: int = 60
    flat: float = 0.4
    evaluate_every: int = 300
    held_out: int = 8  # batches of 64 pictures
    save_every: int = 200


def save_state(path: Path, model: nn.Module, optims: list, step: int, **extra) -> None:
    """Write a resumable checkpoint atomically (weights, optimiser states, step)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blob = {"model": model.state_dict(), "optims": [o.state_dict() for o in optims], "step": step}
    torch.save(blob | extra, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def train_dense(plan: DensePlan, out: Path, cache: Path, workers: int = 1) -> None:
    """Run (or resume) stage 0 in one process of a group; rank 0 writes ``stage0.pt``,
    ``stage0.jsonl``.

    Args:
        plan: Hyper-parameters.
        out: Folder of the run.
        cache: Folder of the digit archives.
        workers: Data processes beside this one.
    """
    group, path = Group(), out / "stage0.pt"
    train, test = digits.load("train", cache), digits.load("test", cache)
    size = plan.batch // group.world
    model = DenseModel(DemoShape())
    generator = torch.Generator().manual_seed(plan.seed)
    model.vision_model.initialise(generator)
    nn.init.normal_(model.head.weight, 0, 0.02, generator=generator)
    nn.init.zeros_(model.head.bias)
    optims = optimisers(model, group, lr_matrix=plan.lr_matrix, lr_rest=plan.lr_rest)
    gradients = FlatGradients(model)
    step = load_state(path, model, optims)["step"] if path.exists() else 0
    held_out = [DenseData(test, 64)(feed.step_rng(31337, k), k) for k in range(plan.held_out)]
    stream = feed.batches(
        DenseData(train, size), seed=plan.seed + 1000 * group.rank, start=step, workers=workers
    )
    began, first = time.monotonic(), step
    while step < plan.steps and not group.stopping():
        _, (tiles, targets) = next(stream)
        set_rates(optims, schedule(step / plan.steps, step, warmup=plan.warmup, flat=plan.flat))
        loss = dense_loss(model(torch.from_numpy(tiles)), torch.from_numpy(targets))
        gradients.zero()
        loss.backward()
        gradients.average(group)
        for optim in optims:
            optim.step()
        step += 1
        if group.rank:
            continue
        if step % 20 == 0:
            rate = (step - first) * plan.batch / (time.monotonic() - began)
            logger.info("stage 0 step %d loss %.3f %.0f images/s", step, float(loss), rate)
        if step % plan.save_every == 0:
            save_state(path, model, optims, step)
        if step % plan.evaluate_every == 0 or step == plan.steps:
            accuracy = dense_accuracy(model, held_out)
            logger.info("stage 0 step %d %s", step, accuracy)
            with (out / "stage0.jsonl").open("a") as log:
                log.write(json.dumps({"step": step, "accuracy": accuracy}) + "\n")
    if group.rank == 0:
        save_state(path, model, optims, step)
