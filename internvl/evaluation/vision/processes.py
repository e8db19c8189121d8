"""One process or several: who this one is, and what they add up (torchrun, accelerate launch)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Processes:
    """The processes that share a run.

    Attributes:
        rank: number of this one.
        count: of all.
        device: what this one computes on.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this one writes the files."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait for all."""
        if self.count > 1:
            dist.barrier()

    def leave(self) -> None:
        """End the communication, when all is done."""
        if self.count > 1:
            dist.destroy_process_group()

    def add(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def wrap(self, head: Module) -> nn.Module:
        """A module whose gradients are averaged over the processes.

        On accelerators its BatchNorm takes the statistics of all processes, as the official one
        does. PyTorch has no such layer for the CPU: there each process takes its own.
        """
        if self.count == 1:
            return head
        accelerated = self.device.type != "cpu"
        wrapped = nn.SyncBatchNorm.convert_sync_batchnorm(head) if accelerated else head
        return nn.parallel.DistributedDataParallel(
            wrapped, device_ids=[self.device] if accelerated else None
        )


def find_processes(device: str = "auto") -> Processes:
    """Join the processes that torchrun or accelerate started; a process alone is fine.

    Args:
        device: "auto" for an accelerator of each process where there is one; or a name such as
            "cpu".

    Raises:
        ValueError: several processes on a device that is named.
    """
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu")
    named = state.device if device in ("auto", "cpu") else torch.device(device)
    if state.num_processes > 1 and device not in ("auto", "cpu"):
        raise ValueError(
            f"{state.num_processes} processes on the device {device!r}; leave the device out, so "
            "that each takes its own."
        )
    return Processes(state.process_index, state.num_processes, named)
