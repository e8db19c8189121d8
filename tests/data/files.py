"""Small datasets on disk, as the tests of the data pipeline need them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(path: Path, width: int = 112, height: int = 112, seed: int = 0) -> str:
    """Write a noisy picture; returns its name."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path.name


def turns(*said: str) -> list[dict[str, str]]:
    """Turns of the official format: human and gpt in turn."""
    roles = ("human", "gpt")
    return [{"from": roles[i % 2], "value": value} for i, value in enumerate(said)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write JSON Lines; returns the name of the file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path.name


def write_meta(folder: Path, **datasets: dict[str, Any]) -> Path:
    """Write a meta file of datasets whose media are in the same folder."""
    content = {name: {"root": ".", **entry} for name, entry in datasets.items()}
    path = folder / "meta.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def small_mixture(folder: Path, images: int = 12, texts: int = 8, seed: int = 0) -> Path:
    """A mixture of two datasets: pictures of one to three tiles, and text of several lengths."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(images):
        name = picture(folder / f"{index}.png", 112 * (1 + index % 3), 112, seed=index)
        rows.append({"image": name, "conversations": turns(f"Number {index}?", f"It is {index}.")})
    write_rows(folder / "images.jsonl", rows)
    long = [
        {"conversations": turns("Tell.", "so " * int(rng.integers(5, 60)))} for _ in range(texts)
    ]
    write_rows(folder / "texts.jsonl", long)
    return write_meta(
        folder,
        images={"annotation": "images.jsonl", "data_augment": True, "max_dynamic_patch": 3},
        texts={"annotation": "texts.jsonl", "repeat_time": 1.5},
    )
