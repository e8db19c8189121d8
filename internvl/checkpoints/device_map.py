"""Device maps for a chat model over several GPUs: balanced by bytes, in the order of the data flow.

    GPU 0: vision encoder, mlp1, token embedding, first layers
    ...
    last GPU: last layers, norm, output layer

Every visual token passes from the encoder through mlp1 into the embeddings, so these three stay
together, beside room for the tiles at work. Layers keep their order: activations cross from a GPU
to the next one only. The official `split_model` counts layers, as if the encoder weighed half a
GPU's share of them whatever the model; here bytes are counted, of weights, cache, activations.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from internvl.checkpoints import memory
from internvl.checkpoints.memory import Parts, Workload

GIB = 2**30
# CUDA's context and kernels, the allocator's fragments: an assumption, not a measurement.
RESERVE = 1 * GIB
_GPUS = re.compile(r"(?:(\d+)\s*x\s*)?(\d+(?:\.\d+)?)\s*(GiB|GB)", re.IGNORECASE)


def parse_gpus(text: str) -> list[int]:
    """Bytes of each GPU: "4x80GiB", "24GiB,80GiB", "2x80GiB+1x24GB".

    Raises:
        ValueError: something else.
    """
    sizes: list[int] = []
    for part in re.split(r"[,+]", text):
        match = _GPUS.fullmatch(part.strip())
        if match is None:
            raise ValueError(
                f"gpus is {text!r}, expected a count and a memory like 4x80GiB, or several such "
                "joined by + or a comma."
            )
        unit = GIB if match[3].lower() == "gib" else 10**9
        sizes += [int(float(match[2]) * unit)] * int(match[1] or 1)
    if not sizes or min(sizes) <= 0:
        raise ValueError(f"gpus is {text!r}, which names no memory.")
    return sizes


@dataclass(frozen=True)
class Load:
    """Bytes on a device.

    Attributes:
        weights: parameters.
        cache: keys and values.
        vision: pixels, visual tokens and encoder blocks at work.
        decoder: embeddings and decoder layers at work.
    """

    weights: int = 0
    cache: int = 0
    vision: int = 0
    decoder: int = 0

    @property
    def used(self) -> int:
        """The worst moment: tiles are encoded before the decoder has anything to keep."""
        return self.weights + max(self.vision, self.cache + self.decoder)


class DoesNotFit(ValueError):
    """A model is too large for the GPUs; the message has the numbers."""


@dataclass(frozen=True)
class Costs:
    """What each piece of a model costs, for a workload.

    Attributes:
        parts: bytes of the weights.
        layer_cache: keys and values of one layer.
        vision: `memory.vision_activations`, and the embedded prompt that waits for them.
        decoder: `memory.decoder_activations`.
        sums: bytes of the weights of the first 0, 1, 2, ... layers.
    """

    parts: Parts
    layer_cache: int
    vision: int
    decoder: int
    sums: tuple[int, ...]

    @classmethod
    def of(cls, config: Any, dtype: str, work: Workload) -> Costs:
        """Costs of a config in a dtype."""
        layers = config.llm_config.num_hidden_layers
        vision = memory.vision_activations(config, work, dtype)
        parts = memory.parts(config, dtype)
        return cls(
            parts=parts,
            sums=tuple(itertools.accumulate(parts.layers, initial=0)),
            layer_cache=memory.kv_cache(config, work, dtype) // layers,
            vision=vision + memory.embedded(config, work, dtype) if vision else 0,
            decoder=memory.decoder_activations(config, work, dtype),
        )

    def load(self, first: bool, layers: range, tail: bool) -> Load:
        """The load of a device that holds the front, a run of layers, or the tail."""
        parts = self.parts
        front = parts.vision + parts.projector + parts.embeddings if first else 0
        back = parts.norm + parts.head if tail else 0
        return Load(
            weights=front + back + self.sums[layers.stop] - self.sums[layers.start],
            cache=self.layer_cache * len(layers),
            vision=self.vision if first else 0,
            decoder=self.decoder if first or layers or tail else 0,
        )


@dataclass(frozen=True)
class Placement:
    """Which layers each GPU holds.

    Attributes:
        ranges: layers of each GPU; GPU 0 also has the vision encoder, mlp1 and the embedding.
        tail: GPU of the norm and the output layer.
        loads: bytes on each GPU.
        offloaded: layers for which there was no room.
    """

    ranges: tuple[range, ...]
    tail: int
    loads: tuple[Load, ...]
    offloaded: range


def place(costs: Costs, sizes: Sequence[int]) -> Placement:
    """Spread a model so that the least headroom of any GPU is as great as can be.

    Args:
        costs: of the model and the workload.
        sizes: bytes that may be used on each GPU; the headroom can come out negative.
    """
    # With a small encoder the output layer is better off on GPU 0, as in the official map.
    tails = {len(sizes) - 1, 0}
    if not costs.parts.head:
        tails = {0}  # tied to the embedding, so it stays with it
    found = [_spread(costs, sizes, tail) for tail in sorted(tails, reverse=True)]
    return max(found, key=lambda placement: _headroom(placement, sizes))


def _headroom(placement: Placement, sizes: Sequence[int]) -> int:
    return min(size - load.used for size, load in zip(sizes, placement.loads, strict=True))


def _spread(costs: Costs, sizes: Sequence[int], tail: int) -> Placement:
    """The best placement with the tail on a given GPU: balance all GPUs, fix the first one's
    layers, balance the others among themselves, and so on."""
    count, start = len(costs.parts.layers), 0
    ranges: list[range] = []
    for gpu in range(len(sizes)):
        if gpu == len(sizes) - 1:
            ranges.append(range(start, count))
            break
        headroom = _best_headroom(costs, sizes, tail, gpu, start)
        stop = _fill(costs, sizes[gpu] - headroom, gpu, tail, start)
        ranges.append(range(start, stop))
        start = stop
    loads = [costs.load(gpu == 0, layers, gpu == tail) for gpu, layers in enumerate(ranges)]
    return Placement(tuple(ranges), tail, tuple(loads), range(count, count))


def _fill(costs: Costs, limit: int, gpu: int, tail: int, start: int) -> int:
    """First layer that does not fit on a GPU any more."""
    stops = range(start + 1, len(costs.parts.layers) + 1)
    # The load grows with every layer.
    return start + bisect.bisect_right(
        stops, limit, key=lambda stop: costs.load(gpu == 0, range(start, stop), gpu == tail).used
    )


def _best_headroom(costs: Costs, sizes: Sequence[int], tail: int, gpu: int, start: int) -> int:
    """The greatest headroom with which the layers from `start` fit on the GPUs from `gpu` on."""

    def fits(headroom: int) -> bool:
        first = start
        for index in range(gpu, len(sizes)):
            limit = sizes[index] - headroom
            if costs.load(index == 0, range(first, first), index == tail).used > limit:
                return False
            first = _fill(costs, limit, index, tail, first)
        return first == len(costs.parts.layers)

    total = costs.load(True, range(len(costs.parts.layers)), True)
    low, high = -(total.used + costs.vision + costs.decoder), max(sizes)  # low always fits
    while high - low > 2**20:  # to the MiB
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def place_with_offload(costs: Costs, sizes: Sequence[int]) -> Placement:
    """Fill the GPUs in order; what is left over is for the CPU or the disk.

    Raises:
        DoesNotFit: the front alone, or a single layer, is too large.
    """
    count, start = len(costs.parts.layers), 0
    tail = len(sizes) - 1 if costs.parts.head else 0
    ranges = []
    for gpu, size in enumerate(sizes):
        empty = costs.load(gpu == 0, range(start, start), gpu == tail).used
        if empty > size:
            raise DoesNotFit(
                f"GPU {gpu} has {size / GIB:.1f} GiB to use, but what must be on it takes "
                f"{empty / GIB:.1f} GiB; lower images, tiles or context, or take a larger GPU."
            )
        stop = _fill(costs, size, gpu, tail, start)
        ranges.append(range(start, stop))
        start = stop
    loads = [costs.load(gpu == 0, layers, gpu == tail) for gpu, layers in enumerate(ranges)]
    return Placement(tuple(ranges), tail, tuple(loads), range(start, count))


def plan_device_map(
    config: Any,
    gpus: str | Sequence[int],
    *,
    dtype: str = "bf16",
    work: Workload | None = None,
    reserve: int = RESERVE,
    offload: str | None = None,
) -> dict[str, int | str]:
    """A `device_map` for `from_pretrained`, balanced by bytes.

    Args:
        config: `InternVLChatConfig`.
        gpus: "4x80GiB", or the bytes of each GPU.
        dtype: "bf16", "fp16", "fp32", "int8" or "int4".
        work: what will be asked of the model; None for one image of 13 tiles in 8,192 positions.
        reserve: bytes to leave alone on each GPU.
        offload: "cpu" or "disk" for layers that fit on no GPU; None refuses.

    Returns:
        Module path -> GPU number, or `offload`. Every parameter is covered.

    Raises:
        DoesNotFit: there is not enough memory, and how much is missing.
        ValueError: sizes, dtype or `offload` that cannot be.
    """
    if offload not in (None, "cpu", "disk"):
        raise ValueError(f"offload is {offload!r}, expected 'cpu', 'disk' or None.")
    total = parse_gpus(gpus) if isinstance(gpus, str) else list(gpus)
    sizes = [size - reserve for size in total]
    work = work or Workload(1, 8192, 13)
    costs = Costs.of(config, dtype, work)
    placement = place(costs, sizes)
    missing = -_headroom(placement, sizes)
    if missing > 0:
        if offload is None:
            needed = sum(load.used for load in placement.loads)
            raise DoesNotFit(
                f"the model needs {needed / GIB:.1f} GiB on {len(sizes)} GPUs that have "
                f"{sum(sizes) / GIB:.1f} GiB to use; the fullest is {missing / GIB:.1f} GiB short. "
                "Take more or larger GPUs, int8 or int4, a shorter context or fewer tiles, or "
                "offload='cpu'."
            )
        placement = place_with_offload(costs, sizes)
    return _as_map(config, costs.parts, placement, offload)


def _as_map(
    config: Any, parts: Parts, placement: Placement, offload: str | None
) -> dict[str, int | str]:
    embeddings, layers, norm, head = parts.names
    device_map: dict[str, int | str] = {"vision_model": 0, "mlp1": 0, embeddings: 0}
    if config.llm_config.model_type != "internlm2":
        device_map["language_model.model.rotary_emb"] = 0
    for gpu, held in enumerate(placement.ranges):
        device_map |= {f"{layers}.{i}": gpu for i in held}
    device_map |= {f"{layers}.{i}": str(offload) for i in placement.offloaded}
    return device_map | {norm: placement.tail, head: placement.tail}
