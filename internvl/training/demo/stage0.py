"""The training loop of stage 0: one process, resumable at any step, stopped by SIGTERM."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from internvl import hub
from internvl.training.demo import feed
from internvl.training.demo.archives import DEFAULT_CACHE
from internvl.training.demo.dense import (
    KINDS,
    DenseData,
    DenseModel,
    dense_accuracy,
    dense_loss,
)
from internvl.training.demo.material import Sources
from internvl.training.demo.optim import optimisers, schedule, set_rates

logger = logging.getLogger(__name__)
Batch = tuple[np.ndarray, np.ndarray]  # tiles and targets


@dataclass(frozen=True)
class Stage0Plan:
    """Hyper-parameters of stage 0; ``recipes/demo/stage0.yaml`` has those of the released model."""

    steps: int = 4200
    batch: int = 48
    seed: int = 11
    lr_matrix: float = 1.5e-3  # Muon
    lr_rest: float = 1e-3  # AdamW
    warmup: int = 60  # steps
    flat: float = 0.4  # share of the run before the rate falls
    clip: float = 1.0
    average: float = 0.998  # decay of the moving average of the weights
    evaluate_every: int = 300  # steps
    held_out: int = 192  # pictures per kind that the accuracy is measured on
    save_every: float = 300.0  # seconds

    @classmethod
    def read(cls, path: Path) -> Stage0Plan:
        """The plan in a YAML file.

        Raises:
            ValueError: the file has a key that is not a field.
        """
        import yaml

        found = yaml.safe_load(path.read_text("utf-8"))
        known = {field.name for field in fields(cls)}
        if unknown := set(found) - known:
            raise ValueError(
                f"{path} has {sorted(unknown)}; stage 0 knows {sorted(known)}; correct the file"
            )
        return cls(**found)


def load_vision(folder: Path | str) -> Any:
    """The vision model of a checkpoint folder in float32, with eager attention (fastest on a
    CPU)."""
    model = hub.load(folder).model.vision_model.float()
    model.config._attn_implementation = "eager"
    return model.train().requires_grad_(True)


class Average:
    """The exponential moving average of a model's weights."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = {name: w.detach().clone() for name, w in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model; the first steps weigh more."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, weight in model.state_dict().items():
            self.weights[name].lerp_(weight, 1 - decay)


class Stop:
    """True after SIGTERM or SIGINT, while it is entered; then the old handlers are back."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        """Take the two signals."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True

    def __bool__(self) -> bool:
        return self.asked


class Stage0:
    """A run in a folder: ``stage0.pt`` to resume from, ``vit.safetensors``, ``log.jsonl``."""

    def __init__(self, plan: Stage0Plan, out: Path, start: Path | str):
        self.plan, self.out = plan, out
        out.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(plan.seed)
        self.model = DenseModel(load_vision(start), generator)
        self.optims = optimisers(self.model, lr_matrix=plan.lr_matrix, lr_rest=plan.lr_rest)
        self.average = Average(self.model, plan.average)
        self.step, self.seconds = 0, 0.0
        if (out / "stage0.pt").exists():
            self._restore()

    def _restore(self) -> None:
        state = torch.load(self.out / "stage0.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.weights = state["average"]
        for optim, saved in zip(self.optims, state["optims"], strict=True):
            optim.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Write the resumable state and the averaged ViT, each atomically."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.weights,
            "optims": [optim.state_dict() for optim in self.optims],
            "step": self.step,
            "seconds": self.seconds,
        }
        path = self.out / "stage0.tmp"
        torch.save(state, path)
        path.replace(self.out / "stage0.pt")
        save_vision(self.average.weights, self.out / "vit.safetensors")

    def update(self, tiles: Tensor, targets: Tensor) -> float:
        """One step of training; returns the loss.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        plan = self.plan
        factor = schedule(self.step / plan.steps, self.step, warmup=plan.warmup, flat=plan.flat)
        set_rates(self.optims, factor)
        loss = dense_loss(self.model(tiles), targets)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of step {self.step} is {float(loss)}")
        for optim in self.optims:
            optim.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), plan.clip)
        for optim in self.optims:
            optim.step()
        self.step += 1
        self.average.update(self.model, self.step)
        return loss.item()

    def evaluate(self, held_out: Mapping[str, list[Batch]]) -> dict[str, dict[str, float]]:
        """Accuracy of the averaged weights per kind of picture and label map."""
        live = {name: w.clone() for name, w in self.model.state_dict().items()}
        self.model.load_state_dict(self.average.weights)
        self.model.eval()
        found = {kind: dense_accuracy(self.model, batches) for kind, batches in held_out.items()}
        self.model.load_state_dict(live)
        self.model.train()
        return found

    def log(self, **entry: Any) -> None:
        """Add a line to ``log.jsonl``."""
        line = {"step": self.step, "seconds": round(self.seconds)} | entry
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def save_vision(weights: Mapping[str, Tensor], path: Path) -> None:
    """The ``vision_model.`` weights as float32 safetensors, written atomically."""
    prefix = "vision_model."
    part = {n: w.contiguous() for n, w in weights.items() if n.startswith(prefix)}
    save_file(part, path.with_suffix(".tmp"), metadata={"format": "pt"})
    path.with_suffix(".tmp").chmod(0o644)  # safetensors makes files only their owner can read
    path.with_suffix(".tmp").replace(path)


def _held_out(plan: Stage0Plan, test: Sources) -> dict[str, list[Batch]]:
    """Fixed batches of at most 64 pictures per kind."""
    sizes = [min(64, plan.held_out - first) for first in range(0, plan.held_out, 64)]
    return {
        kind: [
            DenseData(test, size, kind)(feed.step_rng(31337, k), k) for k, size in enumerate(sizes)
        ]
        for kind in KINDS
    }


def train(
    plan: Stage0Plan, out: Path, start: Path | str, cache: Path = DEFAULT_CACHE, workers: int = 1
) -> None:
    """Run stage 0 in ``out``, or resume it there.

    Args:
        plan: Hyper-parameters.
        out: Folder of the run.
        start: Checkpoint folder whose ViT is the start.
        cache: Folder of the archives.
        workers: Data processes beside this one.
    """
    torch.set_num_threads(1)
    run = Stage0(plan, out, start)
    held_out = _held_out(plan, Sources.load("test", cache))
    data = DenseData(Sources.load("train", cache), plan.batch)
    batches = feed.batches(data, seed=plan.seed, start=run.step, workers=workers)
    with Stop() as stop, contextlib.closing(batches):
        _loop(run, batches, held_out, stop)
    run.save()


def _loop(
    run: Stage0, batches: Iterator[tuple[int, Batch]], held_out: dict[str, list[Batch]], stop: Stop
) -> None:
    """Train until the plan is done or somebody asks to stop."""
    plan, began, first, mean = run.plan, time.monotonic(), run.step, 0.0
    before, saved = run.seconds, began
    while run.step < plan.steps and not stop:
        _, (tiles, targets) = next(batches)
        loss = run.update(torch.from_numpy(tiles), torch.from_numpy(targets))
        now = time.monotonic()
        run.seconds = before + now - began
        mean = loss if run.step == first + 1 else 0.95 * mean + 0.05 * loss
        if run.step % 20 == 0:
            rate = (run.step - first) * plan.batch / (now - began)
            logger.info("stage 0 step %d loss %.3f %.0f images/s", run.step, mean, rate)
            run.log(loss=round(mean, 4), images_per_second=round(rate, 1))
        if run.step % plan.evaluate_every == 0 or run.step == plan.steps:
            found = run.evaluate(held_out)
            logger.info("stage 0 step %d %s", run.step, json.dumps(found))
            run.log(accuracy=found)
        if now - saved > plan.save_every:
            run.save()
            saved = now
