"""Top-1 and top-5 accuracy of heads on frozen features, in percent.

Every picture is counted once, also with several processes (the official evaluation repeats a few of
them to fill the last batch). Where a head decides among some classes, the others' logits are left
out. Several heads (the last weights, their average) share one pass through the encoder.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from internvl.evaluation.vision.encoder import Encoder
from internvl.evaluation.vision.folders import LabelledImages
from internvl.evaluation.vision.heads import Head
from internvl.evaluation.vision.loading import PlainKeys, Views, load_views
from internvl.evaluation.vision.processes import Processes
from internvl.evaluation.vision.transforms import normalise
from internvl.evaluation.vision.variants import read_variant


@dataclass(frozen=True)
class Accuracy:
    """What a head got right.

    Attributes:
        n: pictures.
        top1: right ones, percent.
        top5: those with a right class among the first five, percent.
    """

    n: int
    top1: float
    top5: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `top1` (Wilson, 1927), percent: the pictures are a sample."""
        z, p = 1.959964, self.top1 / 100
        middle, spread = (
            p + z * z / (2 * self.n),
            z * math.sqrt(p * (1 - p) / self.n + (z / (2 * self.n)) ** 2),
        )
        scale = 100 / (1 + z * z / self.n)
        return (middle - spread) * scale, (middle + spread) * scale

    def as_dict(self) -> dict[str, float | int | list[float]]:
        """For a JSON file, percentages with three decimals."""
        low, high = self.interval
        return {
            "n": self.n,
            "top1": round(self.top1, 3),
            "top5": round(self.top5, 3),
            "interval": [round(low, 3), round(high, 3)],
        }


def count_right(
    logits: torch.Tensor, labels: Sequence[tuple[int, ...]], among: tuple[int, ...] | None = None
) -> tuple[int, int]:
    """How many rows have an accepted class first, and among the first five.

    Args:
        logits: (N, K).
        labels: accepted classes of each row.
        among: classes to decide among; None for all.
    """
    candidates = torch.arange(logits.shape[1]) if among is None else torch.tensor(among)
    logits = logits.float().cpu()[:, candidates]
    best = candidates[logits.topk(min(5, len(candidates)), dim=1).indices].tolist()
    first = sum(row[0] in accepted for row, accepted in zip(best, labels, strict=True))
    five = sum(
        not set(row).isdisjoint(accepted) for row, accepted in zip(best, labels, strict=True)
    )
    return first, five


def encode(encoder: Encoder, head: Head, pixels: torch.Tensor, chunk: int) -> torch.Tensor:
    """What a head reads of pictures, the encoder taking `chunk` of them at a time.

    Args:
        encoder: the frozen encoder.
        head: a head of the kind that is wanted.
        pixels: (N, 3, H, W), normalised.
        chunk: most pictures in the encoder at once.
    """
    return torch.cat([head.inputs(encoder.features(part)) for part in pixels.split(chunk)])


def plain_inputs(
    head: Head,
    encoder: Encoder,
    images: LabelledImages,
    *,
    batch: int,
    workers: int,
    processes: Processes,
    title: str,
) -> Iterable[tuple[torch.Tensor, list[tuple[int, ...]]]]:
    """What a head reads of every plain picture, and its labels, batch by batch."""
    keys = PlainKeys(len(images), batch, processes)
    loader = load_views(Views(images, encoder.image_size), keys, workers)
    for views, indices in tqdm(loader, desc=title, leave=False, disable=not processes.first):
        pixels = normalise(views.to(encoder.device), encoder.mean, encoder.std)
        labels = [images.labels[index] for index in indices.tolist()]
        yield encode(encoder, head, pixels, batch), labels


@torch.no_grad()
def score(
    heads: Mapping[str, Head],
    inputs: Iterable[tuple[torch.Tensor, Sequence[tuple[int, ...]]]],
    *,
    among: tuple[int, ...] | None = None,
    processes: Processes | None = None,
) -> dict[str, Accuracy]:
    """The accuracy of heads of one kind on the same inputs.

    Args:
        heads: by name; left in the mode they were in.
        inputs: what they read, and the accepted labels.
        among: see `count_right`.
        processes: that share the pictures.
    """
    processes = processes or Processes()
    modes = {name: head.training for name, head in heads.items()}
    counts = torch.zeros(len(heads), 3, dtype=torch.float64)
    for head in heads.values():
        head.eval()
    for batch, labels in inputs:
        for row, head in zip(counts, heads.values(), strict=True):
            first, five = count_right(head(batch), labels, among)
            row += torch.tensor([len(labels), first, five])
    for name, head in heads.items():
        head.train(modes[name])
    total = processes.add(counts.to(processes.device, torch.float32)).tolist()  # exact to 2^24
    return {
        name: Accuracy(int(n), 100 * first / n, 100 * five / n)
        for name, (n, first, five) in zip(heads, total, strict=True)
    }


def evaluate_images(
    head: Head,
    encoder: Encoder,
    images: LabelledImages,
    *,
    batch: int = 16,
    workers: int = 0,
    processes: Processes | None = None,
    title: str = "images",
) -> Accuracy:
    """The accuracy of a trained head on pictures.

    Args:
        head: a copy of it goes where the encoder is.
        encoder: the one it was trained on.
        images: labelled with its classes.
        batch: pictures in the encoder at once.
        workers: processes that load.
        processes: that share the pictures.
        title: of the progress bar.

    Raises:
        ValueError: a picture that cannot be read.
    """
    processes = processes or Processes(device=encoder.device)
    head = copy.deepcopy(head).to(encoder.device)
    inputs = plain_inputs(
        head, encoder, images, batch=batch, workers=workers, processes=processes, title=title
    )
    return score({"head": head}, inputs, among=images.among, processes=processes)["head"]


def evaluate_variant(
    head: Head,
    encoder: Encoder,
    variant: str,
    root: str | Path,
    *,
    real_labels: str | Path | None = None,
    **options: Any,
) -> Accuracy:
    """The accuracy of a trained head on a variant of ImageNet.

    Args:
        head: knows its classes.
        encoder: the one it was trained on.
        variant: name, see `variants.VARIANTS`.
        root: its folder.
        real_labels: see `variants.read_variant`.
        **options: as `evaluate_images`.

    Raises:
        FileNotFoundError: as `variants.read_variant`.
        ValueError: as `variants.read_variant`, or a picture that cannot be read.
    """
    images = read_variant(variant, root, head.classes, real_labels)
    return evaluate_images(head, encoder, images, **{"title": variant, **options})
