"""The training loop: the batch of a step, and all that is random in it, follow from the seed.

    position -> epoch, image, generator -> crop;  step -> positions of this process -> loss -> AdamW

So a run that was stopped goes on as if it had not been, whatever the number of data workers.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from internvl.evaluation.vision.processes import Processes
from internvl.evaluation.vision.segmentation import optim, state
from internvl.evaluation.vision.segmentation.layouts import Data
from internvl.evaluation.vision.segmentation.models import Objective
from internvl.evaluation.vision.segmentation.settings import Settings
from internvl.evaluation.vision.segmentation.transforms import augment

logger = logging.getLogger(__name__)

_ORDER, _CROP, _DROPOUT = range(3)  # what a seed is used for


class Crops(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """An endless stream of training crops, by position: every image once per epoch.

    Args:
        data: images and masks.
        crop: side in pixels.
        mean: see `transforms.augment`.
        std: see `transforms.augment`.
        seed: of order and augmentation.
    """

    def __init__(
        self, data: Data, *, crop: int, mean: Sequence[float], std: Sequence[float], seed: int
    ) -> None:
        self.data, self.crop, self.mean, self.std, self.seed = data, crop, mean, std, seed

    def index(self, position: int) -> int:
        """Which image a position takes."""
        epoch, place = divmod(position, len(self.data.pairs))
        return int(_order(self.seed, epoch, len(self.data.pairs))[place])

    def __getitem__(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = self.data.load(self.index(position))
        rng = np.random.default_rng((self.seed, _CROP, position))
        return augment(image, mask, rng, crop=self.crop, mean=self.mean, std=self.std)


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(length)


def positions(
    steps: range, settings: Settings, *, rank: int = 0, world: int = 1
) -> Iterator[list[int]]:
    """Positions of each part of each step, for one process.

    Args:
        steps: of the run.
        settings: batch and accumulation.
        rank: of the process.
        world: number of processes.

    Raises:
        ValueError: a batch that does not divide.
    """
    parts = world * settings.accumulation
    size, rest = divmod(settings.batch, parts)
    if rest:
        raise ValueError(
            f"a batch of {settings.batch} does not divide over {world} processes with "
            f"{settings.accumulation} parts each; choose a multiple of {parts}."
        )
    for step in steps:
        begin = step * settings.batch + rank * settings.accumulation * size
        for part in range(settings.accumulation):
            yield list(range(begin + part * size, begin + (part + 1) * size))


@dataclass
class Losses:
    """Losses of a run: kept means, and those since the last one kept."""

    kept: list[dict[str, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)

    def add(self, step: int, loss: float, rate: float, every: int) -> None:
        """Note the loss of a step; every so many, keep the mean."""
        self.recent.append(loss)
        if step % every == 0:
            mean = math.fsum(self.recent) / len(self.recent)
            self.kept.append({"step": step, "loss": mean, "lr": rate})
            self.recent = []
            logger.info("step %d: loss %.4f, lr %.3g", step, mean, rate)


def train(
    model: nn.Module,
    crops: Crops,
    settings: Settings,
    folder: Path,
    *,
    processes: Processes,
    facts: dict[str, Any],
    resume: bool = False,
    workers: int = 0,
    save_every: int = 1000,
    log_every: int = 50,
    stop_after: int | None = None,
) -> Losses:
    """Train a model in place.

    Args:
        model: as `models.build` makes it, on the device of `processes`.
        crops: what it learns from.
        settings: of the run.
        folder: for checkpoints.
        processes: that share the run.
        facts: what has to be the same when a run goes on, beside the settings.
        resume: go on from the newest checkpoint, if there is one.
        workers: data processes; 0 loads in this one.
        save_every: steps between checkpoints.
        log_every: steps between losses that are kept.
        stop_after: end, with a checkpoint, after that step.

    Raises:
        ValueError: a checkpoint of another run, a batch that does not divide, or parts of one crop.
        FloatingPointError: a loss that is no number; the step is named, and was not taken.
    """
    _check_parts(settings, processes)
    frozen, num_layers = facts["frozen"], facts["num_layers"]
    groups = optim.parameter_groups(model, num_layers, settings)
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=optim.BETAS)
    losses, start = Losses(), 0
    found = state.checkpoints(folder)
    if resume and found:
        content = state.load_checkpoint(found[-1], settings, facts)
        state.put_weights(model, content["weights"], frozen=frozen, source=found[-1])
        optimizer.load_state_dict(content["optimizer"])
        losses, start = Losses(content["losses"], content["recent"]), content["step"]
        logger.info("going on from step %d (%s)", start, found[-1])
    model.train()
    objective = processes.wrap(Objective(model))
    steps = range(start, min(settings.iterations, stop_after or settings.iterations))
    loader: Any = DataLoader(
        crops,
        batch_sampler=list(positions(steps, settings, rank=processes.rank, world=processes.count)),
        num_workers=workers,
        generator=torch.Generator(),  # so that it leaves torch's own alone; nothing is drawn
        pin_memory=processes.device.type != "cpu",
    )
    batches = iter(loader)
    for step in tqdm(steps, initial=start, total=settings.iterations, disable=not processes.first):
        factor = optim.set_rates(optimizer, step, settings)
        loss = _step(objective, optimizer, batches, settings, step, processes)
        losses.add(step + 1, loss, settings.lr * factor, log_every)
        if processes.first and ((step + 1) % save_every == 0 or step + 1 == steps.stop):
            content = {
                "step": step + 1,
                "settings": settings.as_dict(),
                "facts": facts,
                "weights": state.own_weights(model, frozen=frozen),
                "optimizer": optimizer.state_dict(),
                "losses": losses.kept,
                "recent": losses.recent,
            }
            state.save_checkpoint(folder, content)
    processes.wait()
    return losses


def _check_parts(settings: Settings, processes: Processes) -> None:
    """UperNet pools a map to one value, of which a batch norm needs more than one.

    Raises:
        ValueError: one crop at a time, where batch norms are not shared by the processes.
    """
    shared = processes.count if processes.device.type != "cpu" else 1
    crops = settings.batch // (processes.count * settings.accumulation) * shared
    if settings.mode != "linear" and crops == 1:
        raise ValueError(
            f"a batch of {settings.batch} over {processes.count} processes with "
            f"{settings.accumulation} parts each is one crop at a time, and the batch norms of "
            "UperNet need two; choose a larger batch or fewer parts."
        )


def _step(
    objective: Any,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    settings: Settings,
    step: int,
    processes: Processes,
) -> float:
    """One step of the optimizer; its loss over all processes."""
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=processes.device)
    for part in range(settings.accumulation):
        pixels, labels = (each.to(processes.device, non_blocking=True) for each in next(batches))
        alone = part + 1 < settings.accumulation and isinstance(objective, DistributedDataParallel)
        with (
            objective.no_sync() if alone else contextlib.nullcontext(),
            _dropout_seed((settings.seed, _DROPOUT, step, part, processes.rank), processes.device),
        ):
            loss = objective(pixels, labels) / settings.accumulation
            loss.backward()
        total += loss.detach()
    mean = float(processes.add(total)) / processes.count
    if not math.isfinite(mean):
        raise FloatingPointError(
            f"the loss of step {step} is {mean}; the step was not taken. Lower the learning rate, "
            "or look at the images of the step."
        )
    optimizer.step()
    return mean


@contextlib.contextmanager
def _dropout_seed(key: tuple[int, ...], device: torch.device) -> Iterator[None]:
    """Dropout and drop path draw from torch's global generator: seed it here, restore it after."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    devices = [] if device.type == "cpu" else [device.index or 0]
    kind = {} if device.type == "cpu" else {"device_type": device.type}
    with torch.random.fork_rng(devices, **kind):
        torch.manual_seed(seed)
        yield
