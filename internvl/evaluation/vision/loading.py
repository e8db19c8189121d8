"""From labelled pictures to batches, the same ones in every run, interrupted or not.

    step -> epoch and place in it -> indices of the batch (this process's share) -> views
    (seed, epoch, index) -> random numbers of a view

Nothing keeps a state, so a run that goes on at step s sees what it would have seen.

    # N pictures of a batch in this process   S side in pixels
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from internvl import hub
from internvl.evaluation.vision.folders import LabelledImages
from internvl.evaluation.vision.processes import Processes
from internvl.evaluation.vision.transforms import plain_view, train_view

_VIEWS = 1  # keeps the random numbers of views apart from those of the order
PLAIN = -1  # the epoch of a view without augmentation


@dataclass(frozen=True)
class Order:
    """Which pictures the steps of a run take.

    Attributes:
        images: how many there are.
        batch: pictures of a step, over all processes; what does not fill one is left for a later
            epoch, as in the official loader.
        seed: of the order.

    Raises:
        ValueError: fewer pictures than a batch has.
    """

    images: int
    batch: int
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= self.images:
            raise ValueError(
                f"a batch of {self.batch} of {self.images} pictures; expected 1 to {self.images}."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch."""
        return self.images // self.batch

    def indices(self, start: int, stop: int, processes: Processes) -> Iterator[list[int]]:
        """This process's share of the steps `start` to `stop` - 1."""
        shuffled, of_epoch = np.empty(0, dtype=np.int64), -1
        for step in range(start, stop):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != of_epoch:
                shuffled = np.random.default_rng((self.seed, epoch)).permutation(self.images)
                of_epoch = epoch
            part = shuffled[place * self.batch : (place + 1) * self.batch]
            yield part[processes.rank :: processes.count].tolist()


class Views(Dataset):
    """Pictures as uint8 views (S, S, 3), by (epoch, index); PLAIN as the epoch for the plain one.

    Args:
        images: the pictures.
        side: S.
        seed: of the random crops and flips.
    """

    def __init__(self, images: LabelledImages, side: int, seed: int = 0) -> None:
        self.images, self.side, self.seed = images, side, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
        """The view, and the index.

        Raises:
            FileNotFoundError: the picture is gone.
            ValueError: it cannot be read; its name is in the message.
        """
        epoch, index = key
        sources = hub.ring0("preprocessor.image_sources")
        image = sources.load_rgb(self.images.sources[index], sources.SourcePolicy())
        if epoch == PLAIN:
            view = plain_view(image, self.side)
        else:
            rng = np.random.default_rng((self.seed, epoch, index, _VIEWS))
            view = train_view(image, self.side, rng)
        return torch.from_numpy(view.copy()), index


@dataclass(frozen=True)
class TrainingKeys:
    """Keys of `Views` for the steps `start` to `stop` - 1, batch by batch, made when asked for."""

    order: Order
    start: int
    stop: int
    processes: Processes

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Batches of (epoch, index)."""
        batches = self.order.indices(self.start, self.stop, self.processes)
        for step, indices in zip(range(self.start, self.stop), batches, strict=True):
            yield [(step // self.order.steps_per_epoch, index) for index in indices]

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class PlainKeys:
    """Keys of `Views` for this process's share of all pictures, each once and none twice."""

    count: int
    batch: int
    processes: Processes

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Batches of (PLAIN, index)."""
        mine = self._mine
        for i in range(0, len(mine), self.batch):
            yield [(PLAIN, k) for k in mine[i : i + self.batch]]

    def __len__(self) -> int:
        return -(-len(self._mine) // self.batch)

    @property
    def _mine(self) -> range:
        return range(self.processes.rank, self.count, self.processes.count)


def load_views(views: Views, keys: TrainingKeys | PlainKeys, workers: int) -> Any:
    """Batches of views, uint8 (N, S, S, 3), and their indices, (N,).

    Args:
        views: the pictures.
        keys: which of them.
        workers: processes that load; 0 for this one.
    """
    return DataLoader(
        views,
        batch_sampler=keys,
        generator=torch.Generator(),  # else it would draw from the global one
        num_workers=workers,
        pin_memory=keys.processes.device.type != "cpu",
    )
