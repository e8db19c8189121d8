"""The built-in runner: a benchmark file in, predictions.jsonl out; batches, shards, resume.

    samples -> batches of fixed membership -> parts/000012.jsonl each -> predictions.jsonl

A batch is the unit of work, of sharding and of resuming. Which samples form a batch depends on the
file and the batch size alone, so one process, two processes and a run that was killed five times
write the same bytes. A part is written to a temporary file and renamed: it is there as a whole or
not at all. Whoever finds all parts complete joins them.

Times are not in predictions.jsonl, because they would make it another file each time; they are in
times.jsonl beside it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from internvl import hub
from internvl.evaluation.asking import Asker
from internvl.evaluation.records import Prediction, Sample, lines, read_predictions
from internvl.evaluation.run_config import RunConfig, differences, versions

logger = logging.getLogger(__name__)

PREDICTIONS, TIMES, ABOUT, PARTS = "predictions.jsonl", "times.jsonl", "run.json", "parts"


@dataclass(frozen=True)
class Shard:
    """Which of several processes this is: batch k belongs to rank k modulo world."""

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(
                f"rank is {self.rank} of {self.world}; expected 0 to {self.world - 1}."
            )

    @classmethod
    def from_environment(cls) -> Shard:
        """Rank and world size as torchrun and accelerate set them."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def write_atomic(path: Path, text: str) -> None:
    """Write a file as a whole: a temporary one beside it, renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


def open_run(folder: Path, config: RunConfig, count: int) -> None:
    """Claim a folder for a configuration, or find that it is its own.

    Args:
        folder: of the run; made when it does not exist.
        config: of the run.
        count: samples.

    Raises:
        ValueError: the folder holds a run of another configuration, of other library versions, or
            files of something else.
    """
    about: dict[str, Any] = {"hash": config.hash, "config": asdict(config), "samples": count}
    about["versions"] = versions()
    path = folder / ABOUT
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        # Other processes of this run may be at these lines too, with the same content.
        own = (PARTS, ABOUT, f".{ABOUT}")
        if foreign := [each.name for each in folder.iterdir() if not each.name.startswith(own)]:
            raise ValueError(
                f"{folder} holds no run, but {sorted(foreign)[:3]}; name a new folder."
            )
        (folder / PARTS).mkdir(exist_ok=True)
        write_atomic(path, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    before = json.loads(path.read_text("utf-8"))
    if found := differences(before, json.loads(json.dumps(about))):
        raise ValueError(
            f"{folder} holds a run of another configuration ({'; '.join(found)}); name another "
            "folder, or delete this one to start again."
        )


def batches(samples: Sequence[Sample], size: int) -> list[Sequence[Sample]]:
    """Batches of fixed membership, in the order of the file."""
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def run(
    samples: Sequence[Sample],
    config: RunConfig,
    folder: str | Path,
    *,
    loaded: hub.Loaded | None = None,
    shard: Shard | None = None,
    device_map: Any = None,
) -> list[Prediction] | None:
    """Answer the samples that a run still lacks.

    Args:
        samples: of the benchmark, all of them; a shard takes its share.
        config: of the run.
        folder: of the run.
        loaded: the checkpoint, when it is loaded already; otherwise it is, if anything is left.
        shard: which of several processes this is; the only one when None.
        device_map: for loading, see `hub.load`.

    Returns:
        All predictions in the order of the samples; None while other processes are still at it.

    Raises:
        ValueError: a folder of another run, or a sample that cannot be asked; what was answered
            before stays on disk.
    """
    folder, shard = Path(folder), shard or Shard()
    open_run(folder, config, len(samples))
    if (folder / PREDICTIONS).exists():
        return read_predictions(folder / PREDICTIONS)
    parts = batches(samples, config.batch_size)
    own = [number for number in range(len(parts)) if number % shard.world == shard.rank]
    left = [number for number in own if not _part(folder, number).exists()]
    if left:
        loaded = loaded if loaded is not None else config.model.load(device_map)
        asker = Asker(loaded, config)
        with _progress(len(own), len(own) - len(left), config.benchmark, shard) as bar:
            for number in left:
                _work(folder, number, asker, parts[number])
                bar.update()
    return join(folder, len(parts))


def _part(folder: Path, number: int) -> Path:
    return folder / PARTS / f"{number:06d}.jsonl"


@contextlib.contextmanager
def _progress(total: int, done: int, name: str, shard: Shard) -> Iterator[Any]:
    label = name if shard.world == 1 else f"{name} {shard.rank + 1}/{shard.world}"
    with tqdm(total=total, initial=done, desc=label, unit="batch", disable=None) as bar:
        yield bar


def _work(folder: Path, number: int, asker: Asker, samples: Sequence[Sample]) -> None:
    """Answer one batch and put its part in place."""
    began = time.time()
    predictions = asker.answer(samples)
    seconds = time.time() - began
    stamp = {
        "batch": number,
        "began": round(began, 3),
        "seconds": round(seconds, 4),
        "ids": [each.id for each in predictions],
    }
    write_atomic(_part(folder, number).with_suffix(".time"), json.dumps(stamp) + "\n")
    write_atomic(_part(folder, number), "".join(lines(predictions)))


def join(folder: Path, count: int) -> list[Prediction] | None:
    """Join the parts of a run when all are there.

    Two processes that end together may both join: they write the same bytes.

    Args:
        folder: of the run.
        count: parts.

    Returns:
        The predictions; None when parts are missing.
    """
    target = folder / PREDICTIONS
    try:
        texts = [_part(folder, number).read_text("utf-8") for number in range(count)]
        stamps = [
            _part(folder, number).with_suffix(".time").read_text("utf-8") for number in range(count)
        ]
    except FileNotFoundError:
        return read_predictions(target) if target.exists() else None
    write_atomic(folder / TIMES, "".join(stamps))
    write_atomic(target, "".join(texts))
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    return read_predictions(target)


def seconds_of(folder: str | Path) -> float:
    """Seconds that the batches of a finished run took, summed over processes."""
    text = (Path(folder) / TIMES).read_text("utf-8")
    return sum(json.loads(line)["seconds"] for line in text.splitlines())
