"""Write docs/scaling.md: what every size takes, and on which GPUs it fits.

    python -m internvl.checkpoints.build_scaling           # write
    python -m internvl.checkpoints.build_scaling --check   # compare; exit code 1 on a difference

Every number on the page comes from memory.py and device_map.py.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from internvl import hub
from internvl.checkpoints import memory
from internvl.checkpoints.device_map import GIB, RESERVE, Costs, Load, place
from internvl.checkpoints.memory import Workload
from internvl.checkpoints.plan import describe, largest_context, plan, published_config
from internvl.checkpoints.tensors import write_text
from internvl.context import kv_bytes_per_token

logger = logging.getLogger(__name__)

PAGE = hub.REPOSITORY / "docs" / "scaling.md"
SIZES = ("1B", "2B", "4B", "8B", "26B", "38B", "78B")
CARDS = (24, 48, 80)
COUNTS = (1, 2, 3, 4, 6, 8)
QUESTION = Workload(batch=1, context=8192, tiles=13)
PACK = Workload(batch=1, context=16384, tiles=48)

_HEAD = """# Memory: which size fits where

Written by `python -m internvl.checkpoints.build_scaling`; a test compares. The same numbers for any
config, folder or Hub id, from its config.json alone:

```bash
python -m internvl plan 78B --gpus 4x80GiB --images 4 --max-tiles 12 --context 16384 --batch 2
python -m internvl plan ./my-checkpoint --gpus 24GiB --dtype int4
python -m internvl plan 8B --gpus 8x80GiB --train stage2 --context 16384
```

```python
from internvl.checkpoints.plan import plan_device_map, published_config

device_map = plan_device_map(published_config("78B"), "4x80GiB")
print(device_map["vision_model"], device_map["language_model.lm_head"])  # 0 3
```
"""
_METHOD = """## How the numbers are made

* **Weights**: parameters of the model built on the meta device, so exact; int8 and int4 are those
  of bitsandbytes (int8 with a float32 scale per row; nf4 with double quantisation), of the
  decoder's linear layers only. Vision encoder, projector, embeddings and output layer stay in
  bfloat16.
* **Cache**: 2 x layers x key heads x head width x 2 bytes a position.
* **Activations**: the greatest sum of tensors that are alive at once, by the formulas in
  `internvl/checkpoints/memory.py`: while tiles are encoded (32 at a time), and while the decoder
  prefills.
* **Training**: gradients in the dtype of the weights, float32 moments and float32 master weights,
  sharded over all GPUs (FSDP2, ZeRO-3) with two gathered layers; activations with checkpointing, on
  each GPU.
* **Reserve**: 1 GiB a GPU for CUDA's context and the allocator's fragments. This is an assumption.

`pytest tests/checkpoints/test_memory.py` counts the tensors of small models of every family on a
CPU, in float32 and bfloat16: weights, cache, gradients and optimiser are equal to the byte,
activations within 10 %. **Nothing here was measured on a GPU**; eager attention, beams, and servers
with caches of their own take more.
"""


def page() -> str:
    """The whole page."""
    return "\n".join(
        [
            _HEAD,
            _models(),
            _gpus(),
            _two_cards(),
            _official(),
            _example(),
            _training(),
            _METHOD,
        ]
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = list(head)
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _gib(count: float) -> str:
    return f"{count / GIB:.1f}"


def _models() -> str:
    rows = []
    for size in SIZES:
        config = published_config(size)
        weights = [memory.parts(config, dtype).total for dtype in ("bf16", "int8", "int4")]
        rows.append(
            [
                size,
                f"{memory.parameters(config):,}",
                *map(_gib, weights),
                f"{kv_bytes_per_token(config.llm_config):,}",
                _gib(memory.kv_cache(config, QUESTION)),
                _gib(memory.vision_activations(config, QUESTION)),
                _gib(memory.decoder_activations(config, QUESTION)),
            ]
        )
    head = ["InternVL2.5", "parameters", "bf16 GiB", "int8", "int4", "cache bytes/position"]
    head += ["cache", "encoding", "prefill"]
    return (
        "## What a size takes\n\n"
        "Weights; then, for one image of 13 tiles in 8,192 positions, keys and values, encoding "
        "the tiles, and\nprefilling, in GiB.\n\n" + _table(head, rows)
    )


def _gpus() -> str:
    rows = []
    for size in SIZES:
        config = published_config(size)
        for dtype in ("bf16", "int8", "int4"):
            cells = [fewest(config, card, dtype) for card in CARDS]
            rows.append([size, dtype, *cells])
    head = ["InternVL2.5", "dtype", *(f"{card} GiB cards" for card in CARDS)]
    return (
        "## How many GPUs\n\n"
        "Fewest cards that answer about one image of 13 tiles in 8,192 positions with a "
        "byte-balanced `device_map`, and\nthe longest context that fits there.\n\n"
        + _table(head, rows)
        + "\n![What fills the GPUs of six plans](images/device_plan.svg)\n\n"
        "One image of 13 tiles in 8,192 positions; `python docs/scripts/plots.py device_plan` "
        "draws it, and\n`internvl plan 26B --gpus 3x24GiB --plot plan.svg` one of your own.\n"
    )


def fewest(config: Any, card: int, dtype: str) -> str:
    """Fewest cards of so many GiB for one question, and the longest context there: "2 (13,568)"."""
    costs = Costs.of(config, dtype, QUESTION)
    for count in COUNTS:
        sizes = [card * GIB - RESERVE] * count
        if all(load.used <= sizes[0] for load in place(costs, sizes).loads):
            engine = "device_map" if count > 1 else "one GPU"
            longest = largest_context(config, sizes, dtype, QUESTION, engine)
            return f"{count} ({longest:,})"
    return "-"


def _two_cards() -> str:
    config = published_config("78B")
    sizes = [79 * GIB] * 2
    rows = []
    for batch in (1, 2, 4):
        longest = largest_context(config, sizes, "bf16", Workload(batch, 8192, 13), "device_map")
        rows.append([batch, f"{longest:,}"])
    total = memory.parts(config).total
    return (
        f"## The 78B on two 80 GiB cards\n\nIts weights take {_gib(total)} GiB in bfloat16, so two "
        f"cards hold them with {_gib(2 * 80 * GIB - total)} GiB to spare: short contexts\nonly. "
        "With a `device_map` and 1 GiB of reserve on each card, one image a sample:\n\n"
        + _table(["samples at once", "longest context of each"], rows)
    )


def official_loads(costs: Costs, gpus: int) -> list[Load]:
    """Loads of the official `split_model`.

    Half a share of layers on GPU 0, and there too the vision encoder, the embedding, the norm, the
    output layer and the last layer.

    Args:
        costs: of the model and the workload.
        gpus: their number.
    """
    layers = len(costs.parts.layers)
    share = math.ceil(layers / (gpus - 0.5))
    counts = [math.ceil(share * 0.5)] + [share] * (gpus - 1)
    stops = [min(stop, layers - 1) for stop in itertools.accumulate(counts)]
    starts = [0, *stops[:-1]]
    loads = [
        costs.load(gpu == 0, range(start, stop), gpu == 0)
        for gpu, (start, stop) in enumerate(zip(starts, stops, strict=True))
    ]
    last = costs.load(False, range(layers - 1, layers), False)
    first = loads[0]
    loads[0] = replace(first, weights=first.weights + last.weights, cache=first.cache + last.cache)
    return loads


def _official() -> str:
    rows = []
    for size in ("8B", "26B", "78B"):
        config = published_config(size)
        costs = Costs.of(config, "bf16", Workload(1, 0, 0))
        for gpus in (2, 3, 4, 8):
            ours = max(load.used for load in place(costs, [80 * GIB] * gpus).loads)
            theirs = max(load.used for load in official_loads(costs, gpus))
            rows.append([size, gpus, f"{theirs / 1e9:.1f}", f"{ours / 1e9:.1f}"])
    return (
        "## Against the official `split_model`\n\n"
        "Weights on the fullest GPU, in GB (10^9 bytes). A test compares all chat models on 2 to 8 "
        "GPUs, with and without\ncache and activations: the planned map is never worse.\n\n"
        + _table(["InternVL2.5", "GPUs", "`split_model`", "`plan_device_map`"], rows)
    )


def _example() -> str:
    planned = plan("78B", gpus="4x80GiB", images=4, max_tiles=12, context=16384, batch=2)
    return (
        "## A plan\n\n`python -m internvl plan 78B --gpus 4x80GiB --images 4 --max-tiles 12 "
        f"--context 16384 --batch 2`:\n\n```\n{describe(planned)}\n```\n"
    )


def _training() -> str:
    rows = []
    for size in SIZES:
        config = published_config(size)
        for stage in memory.TRAINED:
            step = memory.training(config, PACK, stage)
            states = memory.parts(config).total + step.gradients + step.optimizer
            cells = [_fewest_training(size, stage, card) for card in (40, 80)]
            activations = _gib(step.activations)
            rows.append([size, stage, f"{step.trained:,}", _gib(states), activations, *cells])
    head = ["InternVL2.5", "stage", "trained", "states GiB", "activations", "40 GiB", "80 GiB"]
    return (
        "## Training\n\n"
        "One pack of 16,384 positions with 48 tiles on each GPU (report, section 4.2). Weights, "
        "gradients and optimiser are\nsharded over all GPUs, activations are not; the last two "
        "columns are the fewest cards.\n\n" + _table(head, rows)
    )


def _fewest_training(size: str, stage: str, card: int) -> str:
    config = published_config(size)
    step = memory.training(config, PACK, stage)
    parts = memory.parts(config)
    states = parts.total + step.gradients + step.optimizer
    gathered = 2 * max(*parts.layers, parts.embeddings, parts.head)
    for count in (1, 2, 4, 8, 16, 32, 64, 128):
        used = states / count + (gathered if count > 1 else 0) + step.activations
        if used <= card * GIB - RESERVE:
            return str(count)
    return "-"


def main(arguments: list[str] | None = None, path: Path = PAGE) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with docs/scaling.md")
    if not parser.parse_args(arguments).check:
        write_text(path, page())
        return 0
    if path.is_file() and path.read_text(encoding="utf-8") == page():
        return 0
    logger.error("%s is stale; run: python -m internvl.checkpoints.build_scaling", path.name)
    return 1


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
