"""The state of a probe on its way, and the trained heads, as safetensors files.

One file holds the head, its average and the momentum, with everything else as JSON in its
metadata. It is written beside its place and moved there, so a stopped run leaves the state before
or the state after, and nothing is unpickled when it is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from internvl.evaluation.vision.heads import Head

STATE, HEADS = "state.safetensors", "heads.safetensors"


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], facts: Any) -> None:
    """Write tensors with JSON beside them, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(own, temporary, metadata={"probe": json.dumps(facts)})
    os.replace(temporary, path)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """What `write_tensors` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; it is written by a probe.")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["probe"])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} was not written by a probe: {error}") from error


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def head_tensors(head: Head, prefix: str) -> dict[str, torch.Tensor]:
    """The state of a head under a prefix."""
    return {f"{prefix}.{name}": tensor for name, tensor in head.state_dict().items()}


def load_into(head: Head, tensors: Mapping[str, torch.Tensor], prefix: str) -> None:
    """Load what `head_tensors` gave.

    Raises:
        ValueError: tensors of another head.
    """
    start = f"{prefix}."
    own = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
    try:
        head.load_state_dict(own)
    except RuntimeError as error:
        raise ValueError(f"the tensors {prefix!r} belong to another head: {error}") from error


def save_heads(folder: Path, heads: Mapping[str, Head], facts: Mapping[str, Any]) -> Path:
    """Write trained heads of one kind, with their classes.

    Args:
        folder: gets heads.safetensors.
        heads: "last", and "ema" where there is an average.
        facts: what else is worth knowing, JSON.
    """
    first = next(iter(heads.values()))
    tensors = {k: t for name, head in heads.items() for k, t in head_tensors(head, name).items()}
    content = {
        **facts,
        "settings": first.settings,
        "classes": first.classes,
        "heads": list(heads),
    }
    write_tensors(folder / HEADS, tensors, content)
    return folder / HEADS


def load_head(folder: str | Path, name: str | None = None) -> Head:
    """A trained head out of the folder of a probe, in eval mode, on the CPU.

    Args:
        folder: of the run.
        name: "last" or "ema"; None for the average where there is one.

    Raises:
        FileNotFoundError: no heads there.
        ValueError: another file, or no head of that name.
    """
    path = Path(folder) / HEADS
    tensors, facts = read_tensors(path)
    chosen = facts["heads"][-1] if name is None else name
    if chosen not in facts["heads"]:
        raise ValueError(f"{path} has no head {name!r}, expected one of {facts['heads']}.")
    head = Head(**facts["settings"], classes=tuple(facts["classes"]))
    load_into(head, tensors, chosen)
    return head.eval()
