"""The key-value cache of a dialogue, and how much of it the next prompt can go on from.

    positions of the cache  [system | question 1 + image | answer 1 | ...]
    positions of the prompt [system | question 1 + image | answer 1 | question 2]
                             `------ the same: kept ------------------'`- new: computed

A position is the id of a token, or, for a visual token, its tile and its place in it. So whatever
changed, an earlier question, the system message, the tiles of an image, exactly the positions from
there on are computed anew.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from transformers.cache_utils import DynamicCache

from internvl import hub

# The id of a token; or a tile and the place of the visual token in it.
Position = int | tuple[Hashable, int]


def positions_of(
    ids: Sequence[int], image_token: int, tiles: Iterable[Hashable], tokens_per_tile: int
) -> list[Position]:
    """What each position of a prompt holds.

    Args:
        ids: of the prompt.
        image_token: id of `<IMG_CONTEXT>`.
        tiles: what each tile's visual tokens depend on, in the order of the prompt.
        tokens_per_tile: visual tokens Q.

    Raises:
        ValueError: more or fewer visual tokens than the tiles have.
    """
    visual: list[Position] = [(tile, place) for tile in tiles for place in range(tokens_per_tile)]
    if ids.count(image_token) != len(visual):
        raise ValueError(
            f"the prompt has {ids.count(image_token)} visual tokens but its tiles have "
            f"{len(visual)}; build both from the same images."
        )
    waiting = iter(visual)
    return [next(waiting) if index == image_token else index for index in ids]


class PrefixCache:
    """Keys and values of the last prompt and answer.

    Args:
        config: of the language model.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self._cache: DynamicCache | None = None
        self._positions: list[Position] = []
        self._state: Hashable = None

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values."""
        cache = self._cache  # read once: another thread may be answering
        if cache is None:
            return 0
        layers: list[Any] = cache.layers
        tensors = (tensor for layer in layers for tensor in (layer.keys, layer.values))
        # A cropped tensor is a view: what it is a view of is what takes the memory.
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in tensors
            if t is not None
        }
        return sum(storages.values())

    def begin(self, prompt: Sequence[Position], weights: Hashable) -> tuple[DynamicCache, int]:
        """Hand out the cache, cut to what the prompt shares with it.

        Args:
            prompt: what each of its positions holds.
            weights: version of the weights of the language model.

        Returns:
            The cache, which the generation goes on from, and the positions it holds: all of the
            prompt but the last at most, because that one gives the first token of the answer.
        """
        regime = hub.ring0("generation_internvl_chat").rotary_regime(self._config, len(prompt))
        state = (weights, regime)
        if self._cache is None or state != self._state:
            self.clear()
            self._state = state
        shared = min(_common(self._positions, prompt), len(prompt) - 1)
        self._crop(shared)
        if self._cache is None:
            # Without a config every layer keeps all positions, also those that a sliding window
            # hides: only so can it be cut.
            self._cache = DynamicCache()
        return self._cache, shared

    def settle(self, positions: Sequence[Position]) -> None:
        """Note what the cache holds after a generation.

        Args:
            positions: prompt and answer; the cache may hold fewer of them.
        """
        if self._cache is None:
            return
        held = self._cache.get_seq_length()
        regime = hub.ring0("generation_internvl_chat").rotary_regime
        if held > len(positions) or self._state[1] != regime(self._config, held):  # type: ignore[index]
            self.clear()
            return
        self._positions = list(positions[:held])

    def recover(self) -> None:
        """Undo what a broken generation left: back to the positions that were there before it."""
        if self._cache is None:
            return
        layers: list[Any] = self._cache.layers
        lengths = {layer.get_seq_length() for layer in layers}
        if not lengths or min(lengths) < len(self._positions):
            self.clear()
            return
        for layer in layers:
            if surplus := layer.get_seq_length() - len(self._positions):
                layer.crop(-surplus)

    def clear(self) -> None:
        """Give the memory back."""
        self._cache, self._positions, self._state = None, [], None

    def fork(self) -> PrefixCache:
        """A cache that goes on by itself; the tensors are shared, neither writes into them."""
        other = PrefixCache(self._config)
        if self._cache is not None:
            other._cache = hub.ring0("generation_internvl_chat").branch(self._cache)
        other._positions, other._state = list(self._positions), self._state
        return other

    def _crop(self, length: int) -> None:
        if self._cache is None:
            return
        if length == 0:
            self._cache, self._positions = None, []
            return
        surplus = self._cache.get_seq_length() - length
        if surplus:
            self._cache.crop(-surplus)
        self._positions = self._positions[:length]


def _common(first: Sequence[Position], second: Sequence[Position]) -> int:
    """Length of the common beginning."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))
