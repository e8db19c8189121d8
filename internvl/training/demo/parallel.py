"""Data-parallel training of a small model on a few CPU cores: one single-threaded process per core.

Gradients meet once per step, so a core that others use as well delays a step far less than it
delays the barriers of a multi-threaded matrix product.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Group:
    """The processes of a run: rank, world size, and the sums they share."""

    def __init__(self) -> None:
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self._stop = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number, frame) -> None:
        self._stop = True

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum ``tensor`` over the processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def stopping(self) -> bool:
        """Whether any process was asked to end (SIGTERM, SIGINT); the same answer everywhere."""
        return bool(self.sum(torch.tensor(float(self._stop))) > 0)


class FlatGradients:
    """All gradients of a model in one buffer, so that one sum averages them."""

    def __init__(self, model: nn.Module):
        parameters = list(model.parameters())
        self.flat = torch.zeros(sum(p.numel() for p in parameters))
        offset = 0
        for parameter in parameters:
            size = parameter.numel()
            parameter.grad = self.flat[offset : offset + size].view_as(parameter)
            offset += size

    def average(self, group: Group, clip: float = 1.0) -> float:
        """Average over the processes, clip to norm ``clip``, return the norm before clipping."""
        group.sum(self.flat)
        self.flat.div_(group.world)
        norm = float(self.flat.norm())
        if norm > clip:
            self.flat.mul_(clip / norm)
        return norm

    def zero(self) -> None:
        """Forget the gradients of the last step."""
        self.flat.zero_()


def _entry(rank: int, world: int, port: int, run: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    if world > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        dist.init_process_group("gloo", rank=rank, world_size=world)
    run(*arguments)
    if world > 1:
        dist.destroy_process_group()


def launch(run: Callable, arguments: tuple, *, processes: int, port: int = 29517) -> None:
    """Call ``run(*arguments)`` in ``processes`` single-threaded processes that can build a
    ``Group``."""
    if processes == 1:
        _entry(0, 1, port, run, arguments)
        return
    context = torch.multiprocessing.start_processes(
        _entry, (processes, port, run, arguments), nprocs=processes, join=False,
        start_method="spawn",
    )  # fmt: skip

    def forward(number, frame) -> None:
        for process in context.processes:
            if process.is_alive():
                process.terminate()

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)
    while not context.join():
        pass
