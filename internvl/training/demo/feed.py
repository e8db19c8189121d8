"""Batches made ahead of time in worker processes, in a fixed order, from per-step seeds."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator
from queue import Empty
from typing import Any

import numpy as np


def step_rng(seed: int, step: int) -> np.random.Generator:
    """The generator of one step: a run resumed at a step sees the same data as an unbroken one."""
    return np.random.default_rng([seed, step])


def _work(make: Callable, queue: Any, seed: int, first: int, stride: int, niceness: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the trainer's save-and-stop handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(niceness)
    step = first
    while True:
        queue.put((step, make(step_rng(seed, step), step)))
        step += stride


def batches(
    make: Callable[[np.random.Generator, int], object],
    *,
    seed: int,
    start: int = 0,
    workers: int = 1,
    ahead: int = 6,
    niceness: int = 0,
    patience: float = 600.0,
) -> Generator[tuple[int, Any], None, None]:
    """Yield ``(step, make(rng, step))`` for step = start, start + 1, ... for ever.

    With ``workers=0`` batches are made in this process. Workers end with the iterator.

    Raises:
        RuntimeError: a worker delivered nothing for ``patience`` seconds.
    """
    if workers == 0:
        step = start
        while True:
            yield step, make(step_rng(seed, step), step)
            step += 1
    context = multiprocessing.get_context("fork")
    queues = [context.Queue(maxsize=max(2, ahead // workers)) for _ in range(workers)]
    processes = [
        context.Process(
            target=_work, args=(make, queue, seed, start + k, workers, niceness), daemon=True
        )
        for k, queue in enumerate(queues)
    ]
    for process in processes:
        process.start()
    try:
        step = start
        while True:
            try:
                got, batch = queues[(step - start) % workers].get(timeout=patience)
            except Empty:
                raise RuntimeError(f"no batch for step {step} within {patience} s") from None
            yield got, batch
            step += 1
    finally:
        for process in processes:
            # Not terminate(): SIGTERM before the worker's first line meets the trainer's handler.
            process.kill()
        for process in processes:
            process.join()
