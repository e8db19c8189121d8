"""The mixture: which datasets, how often each, and in which order (report section 4.1, Figure 5).

A meta file names the datasets in the official form. `Mixture.order` is a pure function of the seed,
the epoch and the shard, so that a run can be resumed from a few integers and a thousand ranks need
not talk to each other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from internvl.data.schema import Sample, parse_row
from internvl.data.sources import HUB, Source, open_source

# Dataset, row, and which of its repetitions within the epoch.
Key = tuple[int, int, int]
MAX_REPEAT = 4.0


@dataclass(frozen=True)
class DatasetSpec:
    """One entry of a meta file.

    Attributes:
        name: key in the meta file.
        root: folder that the media are in.
        annotation: the rows.
        data_augment: compress images as JPEG at random.
        max_dynamic_patch: n_max, tiles of an image; None for the checkpoint's.
        repeat_time: r in (0, 4], how often the dataset is seen in an epoch.
        length: rows, as the file says; counted where it can be.
        min_frames: fewest frames of a video; None for the recipe's.
        max_frames: most frames of a video; None for the recipe's.
        split: of a dataset on the Hub, or of a saved one.
        streaming: read the rows in their order, never all at once; needs `length`.
    """

    name: str
    root: str
    annotation: str
    data_augment: bool = False
    max_dynamic_patch: int | None = None
    repeat_time: float = 1.0
    length: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    split: str = "train"
    streaming: bool = False

    def __post_init__(self) -> None:
        """Refuse what no sampling could do."""
        if not 0 < self.repeat_time <= MAX_REPEAT:
            raise ValueError(
                f"dataset {self.name!r} has repeat_time {self.repeat_time}; expected a number in "
                f"(0, {MAX_REPEAT:g}] (report section 4.1)."
            )
        if self.max_dynamic_patch is not None and self.max_dynamic_patch < 1:
            raise ValueError(
                f"dataset {self.name!r} has max_dynamic_patch {self.max_dynamic_patch}; expected "
                "at least 1."
            )
        if self.streaming and not self.length:
            raise ValueError(
                f"dataset {self.name!r} is a stream, whose rows nobody can count; give its length."
            )
        low, high = self.min_frames or 1, self.max_frames or self.min_frames or 1
        if not 1 <= low <= high:
            raise ValueError(
                f"dataset {self.name!r} has min_frames {self.min_frames} and max_frames "
                f"{self.max_frames}; expected 1 <= min_frames <= max_frames."
            )


def load_meta(path: str | os.PathLike) -> list[DatasetSpec]:
    """Read a meta file: `{name: {root, annotation, data_augment, repeat_time, ...}}`.

    Relative paths in it are relative to its folder.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, unknown keys, or values that cannot be.
    """
    path = Path(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds no datasets; expected {{name: {{root, annotation, ...}}}}.")
    return [_spec(path, name, entry) for name, entry in content.items()]


def _spec(path: Path, name: str, entry: Any) -> DatasetSpec:
    known = {each.name for each in fields(DatasetSpec)} - {"name"}
    if not isinstance(entry, Mapping) or "annotation" not in entry:
        raise ValueError(f"{path}: dataset {name!r} names no annotation file.")
    if unknown := sorted(set(entry) - known):
        raise ValueError(
            f"{path}: dataset {name!r} has unknown keys {unknown}; known are {sorted(known)}."
        )
    for key in ("root", "annotation"):
        if str(entry.get(key, "")).startswith("s3://"):
            raise ValueError(
                f"{path}: dataset {name!r} has {key} {entry[key]!r}; object stores are not read, "
                "download it or mount it as a folder."
            )
    places = {"root": os.path.join(path.parent, entry.get("root") or "")}
    if not entry["annotation"].startswith(HUB):
        places["annotation"] = os.path.join(path.parent, entry["annotation"])
    return DatasetSpec(**{"name": name, **entry, **places})


class Mixture:
    """Datasets and the order in which their rows are seen.

    Args:
        specs: the datasets.
        seed: of every draw.
        weighting: "len" shuffles an epoch evenly, every dataset giving r times its rows; "sqrt"
            draws datasets with probability ~ sqrt(r n) and starts a dataset again when it is at
            its end.
        repeat: "sampled" draws the rows of a fractional r anew in each epoch; "official" takes the
            first ones, and knows no fraction above 1.

    Raises:
        ValueError: no datasets, an unknown option, or a fraction that "official" does not know.
    """

    def __init__(
        self,
        specs: Sequence[DatasetSpec],
        *,
        seed: int = 0,
        weighting: Literal["len", "sqrt"] = "len",
        repeat: Literal["sampled", "official"] = "sampled",
    ) -> None:
        if not specs:
            raise ValueError("a mixture needs at least one dataset.")
        if weighting not in ("len", "sqrt") or repeat not in ("sampled", "official"):
            raise ValueError(
                f"weighting={weighting!r}, repeat={repeat!r}; expected 'len' or 'sqrt', and "
                "'sampled' or 'official'."
            )
        for spec in specs:
            if repeat == "official" and spec.repeat_time > 1 and spec.repeat_time % 1:
                raise ValueError(
                    f"dataset {spec.name!r} has repeat_time {spec.repeat_time}; the official code "
                    "knows no fraction above 1. Use repeat='sampled'."
                )
        self.specs, self.seed = tuple(specs), seed
        self.weighting, self.repeat = weighting, repeat
        self.sources: tuple[Source, ...] = tuple(
            open_source(spec.annotation, split=spec.split, length=spec.length)
            if spec.streaming
            else open_source(spec.annotation, split=spec.split)
            for spec in specs
        )

    @cached_property
    def sizes(self) -> np.ndarray:
        """Samples that each dataset gives in an epoch: round(r n)."""
        rows = [len(source) for source in self.sources]
        for spec, count in zip(self.specs, rows, strict=True):
            if not count:
                raise ValueError(f"dataset {spec.name!r} has no rows: {spec.annotation}.")
        share = [count * spec.repeat_time for spec, count in zip(self.specs, rows, strict=True)]
        rounding = int if self.repeat == "official" else round
        return np.array([max(1, rounding(each)) for each in share], np.int64)

    def __len__(self) -> int:
        """Samples in an epoch."""
        return int(self.sizes.sum())

    def order(self, epoch: int, shard: int = 0, shards: int = 1, start: int = 0) -> Iterator[Key]:
        """Keys of the samples of one shard of an epoch.

        A pure function of its arguments and of the mixture: the shards of an epoch are disjoint and
        together complete.

        Args:
            epoch: from 0.
            shard: which share.
            shards: how many shares.
            start: keys of the shard to leave out, at no cost.
        """
        datasets, places = self._share(epoch, shard, shards, start)
        passes: dict[int, tuple[int, np.ndarray]] = {}
        for dataset, place in zip(datasets.tolist(), places.tolist(), strict=True):
            size, rows = int(self.sizes[dataset]), len(self.sources[dataset])
            number, offset = divmod(place, size)
            if passes.get(dataset, (-1, None))[0] != number:
                passes[dataset] = number, self._rows(dataset, epoch, number)
            copy = number * -(-size // rows) + offset // rows
            yield dataset, int(passes[dataset][1][offset]), copy

    def sample(self, key: Sequence[int]) -> tuple[Sample, DatasetSpec]:
        """Read and parse the sample of a key.

        Raises:
            DataError: a row that cannot be used; `where` tells its place.
        """
        dataset, row = key[0], key[1]
        spec, source = self.specs[dataset], self.sources[dataset]
        where = f"{spec.name} row {row + 1}"
        return parse_row(source.row(row), root=spec.root, where=where), spec

    def first_rows(self, dataset: int, count: int) -> list[int]:
        """The rows of a dataset that an epoch begins with."""
        return self._rows(dataset, 0, 0)[:count].tolist()

    def where(self, key: Sequence[int]) -> str:
        """File and line of the sample of a key; slow, for messages only."""
        return self.sources[key[0]].where(key[1])

    def rng(self, epoch: int, key: Sequence[int]) -> np.random.Generator:
        """The randomness of one sample: its JPEG quality, its frames."""
        return np.random.default_rng([self.seed, epoch, *key[:3]])

    def _share(
        self, epoch: int, shard: int, shards: int, start: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The dataset of each sample of a shard, and which of its dataset's samples it is."""
        draws = self._draws(epoch)  # (n,)
        counts = np.bincount(draws, minlength=len(self.specs))
        within = np.arange(len(draws), dtype=np.int32)  # from the first sample of the dataset
        within -= np.repeat((np.cumsum(counts) - counts).astype(np.int32), counts)
        places = np.empty(len(draws), np.int32)
        places[np.argsort(draws, kind="stable")] = within
        mine = slice(shard + start * shards, None, shards)
        return draws[mine].copy(), places[mine].copy()  # the rest is let go

    def _draws(self, epoch: int) -> np.ndarray:
        """The dataset of each sample of an epoch, in order."""
        rng = np.random.default_rng([self.seed, epoch, _DRAWS])
        if self.weighting == "len":
            draws = np.repeat(np.arange(len(self.sizes), dtype=np.int16), self.sizes)
            rng.shuffle(draws)
            return draws
        weights = np.sqrt(self.sizes)
        return rng.choice(len(self.sizes), size=len(self), p=weights / weights.sum()).astype(
            np.int16
        )

    def _rows(self, dataset: int, epoch: int, number: int) -> np.ndarray:
        """The rows of one pass of a dataset through its r n samples."""
        rows, size = len(self.sources[dataset]), int(self.sizes[dataset])
        if self.specs[dataset].streaming:
            return np.arange(size) % rows
        rng = np.random.default_rng([self.seed, epoch, _ROWS, dataset, number])
        whole, rest = divmod(size, rows)
        every = np.arange(rows, dtype=np.int32)
        if self.repeat == "official" and not whole:
            return rng.permutation(every[:rest])  # the first rows, in another order
        passes = [rng.permutation(every) for _ in range(whole)]
        return np.concatenate([*passes, rng.permutation(every)[:rest]])


# Streams of randomness that must not meet.
_DRAWS, _ROWS = 1, 2
