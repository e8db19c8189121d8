"""Are the weights still those that something was computed with?

A version number stands for the parameters, buffers and adapters of some modules. It changes when a
tensor is replaced or written into, and when an adapter is added, switched, scaled, merged or turned
off; going back to an earlier adapter gives its earlier number back.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# What PEFT's layers say about which adapter computes, and how much.
_ADAPTER_STATE = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")
_REMEMBERED = 8


@dataclass
class _State:
    """A snapshot; tensors are referred to, not kept alive."""

    number: int
    tensors: list[weakref.ref[torch.Tensor] | None]
    facts: list[Any]

    def matches(self, tensors: list[torch.Tensor], facts: list[Any]) -> bool:
        if len(tensors) != len(self.tensors) or facts != self.facts:
            return False
        pairs = zip(self.tensors, tensors, strict=True)
        return all(reference is None or reference() is tensor for reference, tensor in pairs)


class WeightsWatch:
    """Numbers the states of modules; safe to call from several threads."""

    def __init__(self) -> None:
        self._states: list[_State] = []
        self._count = 0
        self._lock = threading.Lock()

    def version(self, modules: Iterable[nn.Module]) -> int:
        """The number of the present state.

        Writing through `parameter.data` leaves no trace in PyTorch and is not seen.

        Args:
            modules: all that takes part in the computation.
        """
        tensors, facts = _observe(list(modules))
        with self._lock:
            for state in self._states:
                if state.matches(tensors, facts):
                    return state.number
            self._count += 1
            references = [None if t.is_meta else weakref.ref(t) for t in tensors]
            self._states = [
                _State(self._count, references, facts),
                *self._states[: _REMEMBERED - 1],
            ]
            return self._count


def _observe(modules: list[nn.Module]) -> tuple[list[torch.Tensor], list[Any]]:
    """Tensors of modules, and what has to stay equal about them and about adapters."""
    tensors: list[torch.Tensor] = []
    facts: list[Any] = []
    for module in modules:
        for part in module.modules():
            adapters = [repr(part.__dict__[n]) for n in _ADAPTER_STATE if n in part.__dict__]
            if adapters:
                facts.append(adapters)
        for tensor in (*module.parameters(), *module.buffers()):
            tensors.append(tensor)
            # An offloaded tensor is replaced at every pass: its name and shape are all there is.
            place = (0, 0) if tensor.is_meta else (_version(tensor), _address(tensor))
            facts.append((tensor.dtype, tensor.device, tensor.shape, *place))
    return tensors, facts


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _address(tensor: torch.Tensor) -> int:
    try:
        return tensor.data_ptr()
    except (RuntimeError, NotImplementedError):  # a quantised tensor made of several
        return 0
