"""Files of a run: checkpoints to go on from, and the trained model.

    checkpoint-000500.pt    weights, optimizer, losses, settings: tensors and plain values only
    segmenter.safetensors   all weights but those of a frozen encoder
    segmenter.json          settings, classes, fingerprint of the encoder
    results.json            scores

Each is written under another name first and then renamed, so none is ever half a file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from internvl.evaluation.vision.segmentation.settings import Settings

KEPT = 2  # checkpoints, as official
WEIGHTS, DESCRIPTION, RESULTS = "segmenter.safetensors", "segmenter.json", "results.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)\.pt")
_ENCODER = re.compile(r"(?:^|\.)encoder\.model\.")


def own_weights(model: nn.Module, *, frozen: bool) -> dict[str, torch.Tensor]:
    """Weights and batch norm statistics that a run makes: all but a frozen encoder's."""
    state = model.state_dict()
    return {name: value for name, value in state.items() if not frozen or not _ENCODER.search(name)}


def put_weights(
    model: nn.Module, weights: Mapping[str, torch.Tensor], *, frozen: bool, source: Path
) -> None:
    """Load what `own_weights` gave.

    Raises:
        ValueError: names or shapes that do not fit.
    """
    expected = own_weights(model, frozen=frozen)
    wrong = sorted(
        set(expected.keys() ^ weights.keys())
        | {
            name
            for name in expected.keys() & weights.keys()
            if expected[name].shape != weights[name].shape
        }
    )
    if wrong:
        raise ValueError(
            f"{source} does not fit the model: {', '.join(wrong[:4])} and others of {len(wrong)} "
            "are missing, unknown or of another shape; it belongs to another encoder, mode or "
            "number of classes."
        )
    model.load_state_dict(weights, strict=False)


# ---------------------------------------------------------------------- files
def write_json(path: Path, content: Any) -> None:
    """Write JSON, atomically."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    _write(path, lambda part: part.write_text(text + "\n", encoding="utf-8"))


def write_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write safetensors, atomically."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    _write(path, lambda part: save_file(tensors, part, metadata={"format": "pt"}))


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read what `write_weights` wrote.

    Raises:
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; train first, or correct --out.")
    return load_file(path)


def read_description(folder: Path) -> dict[str, Any]:
    """Read segmenter.json of a run.

    Raises:
        FileNotFoundError: no run was finished there.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; train first, or correct --out.")
    description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return description


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    write(part)
    os.replace(part, path)


# ---------------------------------------------------------------------- checkpoints
def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, the newest last."""
    found = {
        int(match[1]): path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _CHECKPOINT.fullmatch(path.name))
    }
    return [found[step] for step in sorted(found)]


def save_checkpoint(folder: Path, content: dict[str, Any]) -> Path:
    """Write a checkpoint and remove all but the newest two."""
    path = folder / f"checkpoint-{content['step']:06d}.pt"
    _write(path, lambda part: torch.save(content, part))
    for old in checkpoints(folder)[:-KEPT]:
        old.unlink()
    return path


def load_checkpoint(path: Path, settings: Settings, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Args:
        path: of the file.
        settings: of the run that wants to go on.
        facts: what else has to be the same: encoder, data, number of processes.

    Raises:
        ValueError: a run with other settings or facts; they are named.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    before = {**content["settings"], **content["facts"]}
    now = {**settings.as_dict(), **facts}
    changed = [
        f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError(
            f"{path} belongs to another run ({'; '.join(changed)}); give the same values to go on "
            "from it, or another --out."
        )
    return content
