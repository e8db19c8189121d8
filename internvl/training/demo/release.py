"""The demo's checkpoint folders: the start of stage 1, and the released one.

demo/ + vit.safetensors of stage 0  --start-->    a folder in float32 to train
a trained folder                    --release-->  demo/ in bfloat16, in shards
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

logger = logging.getLogger(__name__)

SHARDS = 3
SHARD_LIMIT = 10_000_000  # bytes: no file of the repository is larger
MAX_TILES = 3  # a wide picture of words becomes two or three tiles and a thumbnail
_INDEX = "model.safetensors.index.json"


def weights_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder, sharded or not.

    Raises:
        FileNotFoundError: the folder has no safetensors weights.
    """
    if (folder / _INDEX).exists():
        index = json.loads((folder / _INDEX).read_text("utf-8"))
        files = sorted(set(index["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    if missing := [name for name in files if not (folder / name).exists()]:
        raise FileNotFoundError(f"{folder} lacks {missing}; is it a checkpoint folder?")
    return {name: w for file in files for name, w in load_file(folder / file).items()}


def write_shards(state: Mapping[str, Tensor], folder: Path, shards: int = SHARDS) -> None:
    """Write ``model-0000k-of-0000n.safetensors`` of about equal size, and the index.

    Raises:
        ValueError: a shard would exceed the repository's file limit.
    """
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in state.items()}
    total, seen = sum(sizes.values()), 0
    parts: list[dict[str, Tensor]] = [{} for _ in range(shards)]
    for name, tensor in state.items():
        parts[min(shards - 1, seen * shards // total)][name] = tensor
        seen += sizes[name]
    if (largest := max(sum(sizes[name] for name in part) for part in parts)) > SHARD_LIMIT:
        raise ValueError(f"shard of {largest} bytes, expected <= {SHARD_LIMIT}; use more shards")
    for old in folder.glob("model-*.safetensors"):
        old.unlink()
    weight_map: dict[str, str] = {}
    for index, part in enumerate(parts):
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors makes files that only their owner can read
        weight_map |= dict.fromkeys(part, file)
    listed = dict(sorted(weight_map.items()))
    _write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": listed})


def start(base: Path, vision: Path, out: Path) -> None:
    """A folder to begin stage 1 with: ``base`` with the ViT of stage 0, in float32.

    Args:
        base: The demo checkpoint of the version before.
        vision: ``vit.safetensors`` of a stage-0 run.
        out: Target; its weights are replaced.

    Raises:
        ValueError: the ViT has other tensors than the base's.
    """
    state = {name: w.float() for name, w in weights_of(base).items()}
    trained = load_file(vision)
    wanted = {name: w.shape for name, w in state.items() if name.startswith("vision_model.")}
    if wanted != {name: w.shape for name, w in trained.items()}:
        raise ValueError(f"{vision} does not hold the ViT of {base}: other names or shapes")
    out.mkdir(parents=True, exist_ok=True)
    for path in base.iterdir():
        if path.suffix in (".json", ".jinja", ".txt") and path.name != _INDEX:
            shutil.copyfile(path, out / path.name)
    save_file(state | trained, out / "model.safetensors", metadata={"format": "pt"})
    _set(out / "config.json", torch_dtype="float32")
    allow_tiles(out)


def release(checkpoint: Path, folder: Path) -> None:
    """Put trained weights into ``folder`` (demo/), in bfloat16; its other files stay.

    Args:
        checkpoint: A trained folder.
        folder: Target, with configuration, tokenizer and processor files.

    Raises:
        ValueError: the checkpoint has other tensors than the folder, or one is not finite.
    """
    state = weights_of(checkpoint)
    shapes = {name: w.shape for name, w in weights_of(folder).items()}
    state.pop("language_model.lm_head.weight", None)  # tied: it is the embedding
    if {name: w.shape for name, w in state.items()} != shapes:
        raise ValueError(f"{checkpoint} and {folder} differ in tensors; same sizes are expected")
    if broken := [name for name, w in state.items() if not bool(torch.isfinite(w).all())]:
        raise ValueError(f"{checkpoint} has values that are not finite in {broken}")
    write_shards({n: w.to(torch.bfloat16).contiguous() for n, w in state.items()}, folder)
    allow_tiles(folder)
    logger.info("released %s into %s", checkpoint, folder)


def allow_tiles(folder: Path, tiles: int = MAX_TILES) -> None:
    """Let pictures of the checkpoint have up to ``tiles`` tiles."""
    _set(folder / "config.json", max_dynamic_patch=tiles)
    _set(folder / "preprocessor_config.json", max_tiles=tiles)


def _set(path: Path, **changes: Any) -> None:
    _write_json(path, json.loads(path.read_text("utf-8")) | changes)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
