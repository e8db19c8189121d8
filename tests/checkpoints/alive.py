"""Counts the bytes of tensors that are alive, which an accelerator's allocator has to hold."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Alive(TorchDispatchMode):
    """While active, follows every storage that an operation makes, until it is freed.

    Attributes:
        now: bytes alive of what was made inside.
        peak: greatest `now`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._follow((args, kwargs), counts=False)  # made before, or where nobody sees it
        out = func(*args, **(kwargs or {}))
        self._follow(out, counts=True)
        return out

    def _follow(self, tree: Any, *, counts: bool) -> None:
        for tensor in tree_leaves(tree):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._known:
                size = storage.nbytes() if counts else 0
                self._known.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                # Addresses are used again: a freed one is unknown.
                weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self.now -= size
        self._known.discard(key)
