"""Visual tokens of tiles that were encoded before.

    tile -> key of its content + version of the vision weights -> (Q, D)

One store serves all sessions of a model: the same picture asked about twice, by whomever, is
encoded once. The store is bounded in bytes; what was used least recently goes first.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

import torch

from internvl.chat.weights import WeightsWatch

DEFAULT_BYTES = 2**30


class FeatureStore:
    """Visual tokens by tile.

    Args:
        max_bytes: most memory of the tokens kept; 0 keeps none.

    Raises:
        ValueError: a negative limit.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes is {max_bytes}; expected 0 or more.")
        self.max_bytes = max_bytes
        self.hits = self.misses = 0
        self.nbytes = 0
        self._tokens: OrderedDict[Hashable, torch.Tensor] = OrderedDict()
        self._watch = WeightsWatch()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._tokens)

    @torch.no_grad()
    def encode(
        self, model: Any, pixel_values: torch.Tensor, keys: Sequence[bytes]
    ) -> tuple[torch.Tensor, int]:
        """Visual tokens of tiles; those not known yet are encoded, each distinct one once.

        Args:
            model: the chat model.
            pixel_values: (N, 3, S, S) uint8 tiles.
            keys: their contents' digests.

        Returns:
            (N, Q, D) tokens, and how many tiles were encoded.
        """
        version = self.version(model)
        wanted = [(version, key) for key in keys]
        found = self._look_up(wanted)
        missing = [key for key in dict.fromkeys(wanted) if key not in found]
        if missing:
            first = {key: index for index, key in reversed(list(enumerate(wanted)))}
            encoded = model.extract_feature(pixel_values[[first[key] for key in missing]])
            for key, tokens in zip(missing, encoded, strict=True):
                found[key] = tokens
                self._keep(key, tokens)
        return torch.stack([found[key] for key in wanted]), len(missing)

    def version(self, model: Any) -> Hashable:
        """What the tokens depend on besides the tile: weights and settings of the vision part."""
        config = model.config
        return (
            self._watch.version([model.vision_model, model.mlp1]),
            model.select_layer,
            model.downsample_ratio,
            model.ps_version,
            tuple(config.image_mean),
            tuple(config.image_std),
        )

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._tokens.clear()
            self.nbytes = 0

    def _look_up(self, keys: Sequence[Hashable]) -> dict[Hashable, torch.Tensor]:
        with self._lock:
            found = {}
            for key in keys:
                if key in self._tokens:
                    self._tokens.move_to_end(key)
                    found[key] = self._tokens[key]
            self.hits += sum(key in found for key in keys)
            self.misses += len(set(keys) - set(found))
            return found

    def _keep(self, key: Hashable, tokens: torch.Tensor) -> None:
        if tokens.nbytes > self.max_bytes:
            return
        own = tokens.clone()  # a row of a batch would keep the whole batch alive
        with self._lock:
            if key not in self._tokens:
                self.nbytes += own.nbytes
            self._tokens[key] = own
            while self.nbytes > self.max_bytes:
                _, oldest = self._tokens.popitem(last=False)
                self.nbytes -= oldest.nbytes


_STORES: weakref.WeakKeyDictionary[Any, FeatureStore] = weakref.WeakKeyDictionary()


def store_of(model: Any) -> FeatureStore:
    """The store that the sessions of a model share unless they are given another."""
    return _STORES.setdefault(model, FeatureStore())
