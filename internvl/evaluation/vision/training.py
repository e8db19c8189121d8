"""The training of a probe: frozen encoder, a head that learns, a state to go on from.

    step -> views -> mixed pixels -> encoder -> inputs of the head -> loss -> SGD -> average
                                     (or inputs out of the cache)

Every step is a function of the recipe, its number and the state, so a run that was stopped and goes
on ends with the same bits as one that was not (on a CPU, where the arithmetic repeats itself).
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from internvl.evaluation.vision.accuracy import encode, plain_inputs
from internvl.evaluation.vision.checkpoint import (
    STATE,
    head_tensors,
    load_into,
    read_tensors,
    write_tensors,
)
from internvl.evaluation.vision.encoder import Encoder
from internvl.evaluation.vision.folders import LabelledImages
from internvl.evaluation.vision.heads import Head
from internvl.evaluation.vision.loading import Order, TrainingKeys, Views, load_views
from internvl.evaluation.vision.mixing import soft_labels
from internvl.evaluation.vision.processes import Processes
from internvl.evaluation.vision.recipe import (
    Recipe,
    average_of,
    learning_rate,
    update_average,
)
from internvl.evaluation.vision.transforms import normalise

logger = logging.getLogger(__name__)

_MIXING = 2  # keeps the random numbers of the mixing apart from those of views and order
_LOG_EVERY = 10
LOG = "log.jsonl"
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Run:
    """How a training is carried out; but for rounding, nothing of it changes what comes out.

    Attributes:
        out: folder for the state and the log.
        encoder_batch: pictures in the encoder at once; BatchNorm sees the whole batch all the same.
        workers: processes that load pictures.
        save_steps: steps between states, beside the one at the end of every epoch.
        resume: go on from the state in `out`, if there is one.
        cache_gib: most memory for cached features.
        processes: that share the run.
    """

    out: Path
    encoder_batch: int = 16
    workers: int = 0
    save_steps: int = 500
    resume: bool = False
    cache_gib: float = 8.0
    processes: Processes = field(default_factory=Processes)


class Trainer:
    """Trains a head.

    Args:
        encoder: frozen.
        head: is trained in place.
        images: with one label each.
        recipe: the settings.
        run: how it is carried out.
        facts: JSON that has to be the same for a state to be gone on from.

    Attributes:
        average: the average of the weights; None without one.
        history: what `after_epoch` said of every epoch.

    Raises:
        ValueError: an encoder that is not frozen, more in a batch than there are pictures, or
            features that several processes, or the memory allowed, cannot cache.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: Head,
        images: LabelledImages,
        recipe: Recipe,
        run: Run,
        facts: Any = None,
    ) -> None:
        if not encoder.frozen:
            raise ValueError("the encoder is not frozen; load it with freeze=True.")
        if recipe.batch % run.processes.count:
            raise ValueError(
                f"a batch of {recipe.batch} is not shared evenly by {run.processes.count} "
                "processes; change --batch."
            )
        self.encoder, self.head, self.images = encoder, head.to(encoder.device), images
        self.recipe, self.run = recipe, run
        self.order = Order(len(images), recipe.batch, recipe.seed)
        same = {"given": facts, "recipe": asdict(recipe), "images": len(images)}
        self.facts = json.loads(json.dumps({**same, "classes": head.classes}))
        self.average = average_of(head) if recipe.ema else None
        self.optimizer = torch.optim.SGD(
            head.parameters(), lr=0.0, momentum=recipe.momentum, nesterov=recipe.momentum > 0
        )
        self.history: list[dict[str, Any]] = []
        self.step, self._loss_sum = 0, 0.0
        if recipe.cache_features:
            _check_cache(encoder, len(images), recipe.kind, run)

    def train(self, after_epoch: Callable[[Trainer], dict[str, Any]] | None = None) -> None:
        """Train to the end, from the start or from the state that there is.

        Args:
            after_epoch: says something about the head after every epoch; goes into `history`.

        Raises:
            ValueError: a state of other settings, or a picture that cannot be read.
            FloatingPointError: a loss or gradient that is not finite.
        """
        state = self.run.out / STATE
        if self.run.resume and state.is_file():
            self._restore(state)
        wrapped = self.run.processes.wrap(self.head)
        per_epoch = self.order.steps_per_epoch
        total = self.recipe.epochs * per_epoch
        batches = self._batches(self.step, total)
        progress = tqdm(
            batches, initial=self.step, total=total, desc=f"{self.recipe.kind} probe",
            disable=not self.run.processes.first,
        )  # fmt: skip
        for inputs, targets in progress:
            self._update(wrapped, inputs, targets)
            if self.step % per_epoch == 0:
                self._end_epoch(after_epoch)
            if self.step % per_epoch == 0 or self.step % self.run.save_steps == 0:
                self._save(state)

    def _update(self, wrapped: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """One step of SGD."""
        rate = learning_rate(self.step, self.order.steps_per_epoch, self.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        wrapped.train()
        loss = F.cross_entropy(wrapped(inputs), targets)
        self.optimizer.zero_grad()
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self.head.parameters(), self.recipe.clip_grad))
        value = loss.item()
        if not math.isfinite(value) or not math.isfinite(norm):
            raise FloatingPointError(
                f"step {self.step}: loss {value}, norm of the gradients {norm}; the state before "
                f"is kept in {self.run.out}. A lower --lr may help."
            )
        self.optimizer.step()
        if self.average is not None:
            update_average(self.average, self.head, self.recipe.ema)
        self._loss_sum += value
        if self.run.processes.first and self.step % _LOG_EVERY == 0:
            line = {"step": self.step, "lr": rate, "loss": value, "grad_norm": norm}
            with (self.run.out / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self.step += 1

    def _end_epoch(self, after_epoch: Callable[[Trainer], dict[str, Any]] | None) -> None:
        epoch = self.step // self.order.steps_per_epoch
        said = {"epoch": epoch, "loss": self._loss_sum / self.order.steps_per_epoch}
        self._loss_sum = 0.0
        said |= after_epoch(self) if after_epoch is not None else {}
        self.history.append(said)
        if self.run.processes.first:
            logger.info("%s", json.dumps(said))

    # ------------------------------------------------------------------ batches
    def _batches(self, start: int, stop: int) -> Iterator[Batch]:
        """What the head reads, and soft labels, of the steps `start` to `stop` - 1."""
        if self.recipe.cache_features:
            for indices in self.order.indices(start, stop, self.run.processes):
                targets = soft_labels(
                    self._labels(indices),
                    len(self.head.classes),
                    smoothing=self.recipe.mixing.smoothing,
                )
                yield self._cached[indices].to(self.encoder.device), targets
            return
        keys = TrainingKeys(self.order, start, stop, self.run.processes)
        views = Views(self.images, self.encoder.image_size, self.recipe.seed)
        loader = load_views(views, keys, self.run.workers)
        for step, (pixels, indices) in zip(range(start, stop), loader, strict=True):
            yield self._mixed(step, pixels, self._labels(indices.tolist()))

    @functools.cached_property
    def _cached(self) -> torch.Tensor:
        """What the head reads of every picture, on the CPU."""
        inputs = plain_inputs(
            self.head, self.encoder, self.images, batch=self.run.encoder_batch,
            workers=self.run.workers, processes=self.run.processes, title="features",
        )  # fmt: skip
        cached, place = torch.empty(0), 0
        for batch, _ in inputs:
            if not place:
                cached = torch.empty(len(self.images), *batch.shape[1:])
            cached[place : place + len(batch)] = batch.cpu()
            place += len(batch)
        return cached

    def _mixed(self, step: int, views: torch.Tensor, labels: torch.Tensor) -> Batch:
        pixels = normalise(
            views.to(self.encoder.device, non_blocking=True), self.encoder.mean, self.encoder.std
        )
        rng = np.random.default_rng((self.recipe.seed, step, self.run.processes.rank, _MIXING))
        pixels, targets = self.recipe.mixing(pixels, labels, len(self.head.classes), rng)
        return encode(self.encoder, self.head, pixels, self.run.encoder_batch), targets

    def _labels(self, indices: list[int]) -> torch.Tensor:
        labels = [self.images.labels[index][0] for index in indices]
        return torch.tensor(labels, device=self.encoder.device)

    # ------------------------------------------------------------------ state
    def _save(self, path: Path) -> None:
        if self.run.processes.first:
            tensors = head_tensors(self.head, "head")
            if self.average is not None:
                tensors |= head_tensors(self.average, "average")
            names = [name for name, _ in self.head.named_parameters()]
            state = self.optimizer.state_dict()["state"]
            for number, name in enumerate(names):
                if (buffer := state.get(number, {}).get("momentum_buffer")) is not None:
                    tensors[f"momentum.{name}"] = buffer
            progress = {"step": self.step, "loss_sum": self._loss_sum, "history": self.history}
            write_tensors(path, tensors, {"facts": self.facts, **progress})
        self.run.processes.wait()

    def _restore(self, path: Path) -> None:
        tensors, saved = read_tensors(path)
        if saved["facts"] != self.facts:
            found = _first_difference(saved["facts"], self.facts)
            raise ValueError(
                f"{path} was written with other settings or data: {found}; go on with those, or "
                "start in another folder."
            )
        load_into(self.head, tensors, "head")
        if self.average is not None:
            load_into(self.average, tensors, "average")
        for name, parameter in self.head.named_parameters():
            if (buffer := tensors.get(f"momentum.{name}")) is not None:
                self.optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter.device)
        self.step, self._loss_sum = saved["step"], saved["loss_sum"]
        self.history = saved["history"]
        if self.run.processes.first:
            _cut_log(self.run.out / LOG, self.step)
        logger.info("going on at step %d of %s", self.step, path)


def _cut_log(path: Path, step: int) -> None:
    """Drop lines of steps that are done again."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]
        temporary = path.with_suffix(".partial")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, path)


def _first_difference(saved: Any, wanted: Any, name: str = "") -> str:
    """Where two JSON values differ first."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        for key in sorted({*saved, *wanted}):
            if saved.get(key) != wanted.get(key):
                return _first_difference(saved.get(key), wanted.get(key), f"{name} {key}".strip())
    if isinstance(saved, list) and isinstance(wanted, list) and len(saved) == len(wanted):
        for one, other in zip(saved, wanted, strict=True):
            if one != other:
                return _first_difference(one, other, name)
    return f"{name} was {saved!r:.60}, is {wanted!r:.60}"


def _check_cache(encoder: Encoder, images: int, kind: str, run: Run) -> None:
    """Refuse a cache of several processes, or one that takes more memory than allowed."""
    if run.processes.count > 1:
        raise ValueError("features are cached by one process only; start one, or do not cache.")
    patches = (encoder.image_size // encoder.patch_size) ** 2
    vectors = 2 if kind == "linear" else 1 + patches
    gib = 4 * images * vectors * encoder.width / 2**30
    if gib > run.cache_gib:
        raise ValueError(
            f"the features of {images} pictures take {gib:.1f} GiB, more than the "
            f"{run.cache_gib:.1f} GiB allowed; raise --cache-gib, or do not cache."
        )
