"""Writes the training data of the demo as files: meta JSON, JSONL and pictures.

    OUT/meta_<stage>.json                          the mixtures (STAGES), in the official form
    OUT/<dataset>.jsonl                            LLaVA-style conversations
    OUT/images/<dataset>/<thousands>/...           PNG and JPEG files; a clip is a folder of frames

Every sample is a function of (seed, dataset, number), whatever the number of processes.
"""

from __future__ import annotations

import functools
import json
import logging
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from internvl.training.demo import dialogues
from internvl.training.demo.archives import DEFAULT_CACHE
from internvl.training.demo.dialogues import Dialogue
from internvl.training.demo.material import Material

logger = logging.getLogger(__name__)
CHUNK = 250  # samples that one process makes at a time
SHARD = 1000  # samples whose pictures share a folder


@dataclass(frozen=True)
class Dataset:
    """One dataset: its maker, its size at scale 1, and its repeat factors.

    ``stage1`` to ``stage2_last`` are repeat factors, 0 for a dataset that the stage
    does without; ``frames`` is set for clips.
    """

    make: Callable[[np.random.Generator, Material], Dialogue]
    size: int
    stage1: float
    stage2: float
    stage2_hard: float
    stage2_last: float
    tiles: int = 1
    frames: int | None = None


# Later what is learnt is asked less and what is hard more.
DATASETS: dict[str, Dataset] = {
    "shapes": Dataset(dialogues.shapes, 20_000, 0.4, 1.0, 0.5, 1.0),
    "boxes": Dataset(dialogues.boxes, 6_000, 0.0, 1.5, 2.5, 4.0),
    "pair": Dataset(dialogues.pair, 6_000, 0.2, 1.0, 2.0, 4.0),
    "video": Dataset(dialogues.video, 4_500, 0.2, 1.0, 0.5, 0.4, frames=4),
    "video8": Dataset(dialogues.video8, 500, 0.0, 1.0, 1.0, 0.5, frames=8),
    "digits": Dataset(dialogues.digits, 10_000, 0.4, 1.0, 0.8, 0.8),
    "words": Dataset(dialogues.word, 16_000, 0.3, 1.2, 1.5, 1.0, tiles=3),
    "emoji": Dataset(dialogues.emoji, 6_000, 0.5, 1.0, 2.0, 1.5),
    "flags": Dataset(dialogues.flag, 2_500, 0.5, 0.8, 3.0, 1.5),
    "charts": Dataset(dialogues.chart, 6_000, 0.3, 1.0, 0.8, 0.6),
    "photos": Dataset(dialogues.photo, 1_000, 0.5, 0.8, 3.0, 1.5),
    "text": Dataset(dialogues.text, 1_000, 0.3, 0.5, 0.3, 0.2),
}
STAGES = ("stage1", "stage2", "stage2_hard", "stage2_last")
_material: Material | None = None  # of a worker process


def make(name: str, number: int, seed: int, material: Material) -> tuple[Dialogue, Any]:
    """Sample ``number`` of a dataset, and its generator as the drawing left it."""
    index = list(DATASETS).index(name)
    rng = np.random.default_rng([seed, index, number])
    return DATASETS[name].make(rng, material), rng


def _save(image: Image.Image, path: Path, rng: np.random.Generator) -> str:
    """Write a PNG, or (25 %) a JPEG; returns the suffix."""
    if rng.random() < 0.25:
        image.save(path.with_suffix(".jpg"), quality=int(rng.integers(75, 97)))
        return ".jpg"
    image.save(path.with_suffix(".png"), compress_level=1)
    return ".png"


def write(dialogue: Dialogue, rng: np.random.Generator, out: Path, stem: str) -> dict[str, Any]:
    """Write the pictures of a dialogue and return its row in the official format.

    Args:
        dialogue: What to write.
        rng: Draws the file formats.
        out: Root of the data.
        stem: Path of the pictures below ``out``, without what tells them apart.
    """
    row: dict[str, Any] = {}
    if dialogue.layout == "video":
        (out / stem).mkdir(parents=True, exist_ok=True)
        for index, frame in enumerate(dialogue.pictures):
            _save(frame, out / stem / str(index), rng)
        row["video"] = stem
    elif dialogue.pictures:
        (out / stem).parent.mkdir(parents=True, exist_ok=True)
        many = len(dialogue.pictures) > 1
        stems = [f"{stem}-{k + 1}" if many else stem for k in range(len(dialogue.pictures))]
        files = [
            name + _save(picture, out / f"{name}.x", rng)
            for name, picture in zip(stems, dialogue.pictures, strict=True)
        ]
        row["image"] = files if many else files[0]
    row["conversations"] = [
        said
        for turn, qa in enumerate(dialogue.turns)
        for said in (
            {"from": "human", "value": dialogue.asked(turn)},
            {"from": "gpt", "value": qa.answer},
        )
    ]
    return row


def _chunk(name: str, first: int, last: int, seed: int, out: Path) -> list[str]:
    if _material is None:
        raise RuntimeError("the process has no material; call _prepare first")
    lines = []
    for number in range(first, last):
        dialogue, rng = make(name, number, seed, _material)
        stem = f"images/{name}/{number // SHARD:03d}/{number:06d}"
        row = {"id": number} | write(dialogue, rng, out, stem)
        lines.append(json.dumps(row, ensure_ascii=False))
    return lines


def _prepare(cache: Path) -> None:
    global _material
    _material = Material.load("train", cache)


def _chunks(name: str, count: int, seed: int, out: Path) -> list[Callable[[], list[str]]]:
    return [
        functools.partial(_chunk, name, first, min(first + CHUNK, count), seed, out)
        for first in range(0, count, CHUNK)
    ]


def _run(job: Callable[[], list[str]]) -> list[str]:
    return job()


def _results(jobs: list[Callable[[], list[str]]], processes: int) -> Iterator[list[str]]:
    if processes == 1:
        yield from map(_run, jobs)
        return
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        yield from pool.imap(_run, jobs)


def build(
    out: Path, *, seed: int, scale: float = 1.0, cache: Path = DEFAULT_CACHE, processes: int = 1,
    only: set[str] | None = None,
) -> dict[str, int]:  # fmt: skip
    """Write the data; returns the samples per dataset. A dataset whose JSONL is there is kept.

    Args:
        out: Target folder.
        seed: Of every sample.
        scale: Share of the sizes in ``DATASETS``.
        cache: Folder of the archives.
        processes: Worker processes; 1 makes everything here.
        only: Only these datasets.
    """
    out.mkdir(parents=True, exist_ok=True)
    _prepare(cache)
    sizes = {
        name: max(1, round(dataset.size * scale))
        for name, dataset in DATASETS.items()
        if only is None or name in only
    }
    for name, count in sizes.items():
        if (out / f"{name}.jsonl").exists():
            logger.info("%s is there already", name)
            continue
        partial = out / f"{name}.jsonl.partial"
        with partial.open("w", encoding="utf-8") as file:
            for lines in _results(_chunks(name, count, seed, out), processes):
                file.writelines(f"{line}\n" for line in lines)
        partial.replace(out / f"{name}.jsonl")
        logger.info("%s: %d samples", name, count)
    for stage in STAGES:
        text = json.dumps(meta(stage, sizes), indent=2)
        (out / f"meta_{stage}.json").write_text(text + "\n", "utf-8")
    return sizes


def meta(stage: str, sizes: dict[str, int]) -> dict[str, dict[str, Any]]:
    """The meta file of one of ``STAGES``; paths are relative to it."""
    found = {}
    for name, count in sizes.items():
        dataset = DATASETS[name]
        repeat = getattr(dataset, stage)
        if not repeat:
            continue
        found[name] = {
            "root": ".", "annotation": f"{name}.jsonl", "data_augment": not dataset.frames,
            "max_dynamic_patch": dataset.tiles, "repeat_time": repeat, "length": count,
        }  # fmt: skip
        if dataset.frames:
            found[name] |= {"min_frames": dataset.frames, "max_frames": dataset.frames}
    return found
