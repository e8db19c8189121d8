"""Run a benchmark and score it: one run, one per frame count of a video set, or a suite of them.

    Plan (benchmark, data, model, mode, folder) -> run(s) -> predictions -> Outcome -> score.json

Videos: the report tries 16, 32, 48 and 64 frames and prints the maximum (Table 12). All of them are
kept and shown (Figure 10 is the curve), and the maximum is called what it is: chosen on the test
set.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from internvl import hub
from internvl.evaluation.benchmarks import Benchmark
from internvl.evaluation.records import Prediction, Sample
from internvl.evaluation.run_config import ModelSource, config_for
from internvl.evaluation.runner import Shard, run, write_atomic
from internvl.evaluation.samples import fingerprint
from internvl.evaluation.scoring import Score, get_metric, score

logger = logging.getLogger(__name__)

SCORE = "score.json"


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        benchmark: the row of benchmarks.toml.
        samples: of its file.
        model: the checkpoint.
        folder: of the run.
        frames: frame counts of a video set; () for images and text.
        settings: fields of `RunConfig` that replace those of the benchmark.
    """

    benchmark: Benchmark
    samples: Sequence[Sample]
    model: ModelSource
    folder: Path
    frames: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a run gave.

    Attributes:
        benchmark: the row.
        folder: of the run.
        scores: per frame count; under 0 for images and text. Empty where no rule scores the
            benchmark, or where answers are kept by a server.
        why: why there is no score, or "".
    """

    benchmark: Benchmark
    folder: Path
    scores: Mapping[int, Score] = field(default_factory=dict)
    why: str = ""

    @property
    def best(self) -> tuple[int, Score] | None:
        """The frame count with the highest score, and that score."""
        if not self.scores:
            return None
        return max(self.scores.items(), key=lambda item: item[1].score)

    def as_dict(self) -> dict[str, Any]:
        """For score.json."""
        found: dict[str, Any] = {"benchmark": self.benchmark.key, "why_no_score": self.why}
        if self.best is not None:
            frames, best = self.best
            found |= best.as_dict()
            if frames:
                found |= {"frames": frames, "chosen_on_the_test_set": len(self.scores) > 1}
                found["per_frames"] = {str(k): v.as_dict() for k, v in self.scores.items()}
        return found

    def describe(self) -> str:
        """For people."""
        if self.best is None:
            return f"{self.benchmark.name}: no score. {self.why}"
        frames, best = self.best
        text = f"{self.benchmark.name}: {best.describe()}"
        if frames:
            each = ", ".join(f"{k}: {v.score:.1f}" for k, v in sorted(self.scores.items()))
            text += f"\n  frames  {each}"
            if len(self.scores) > 1:
                text += f" (the best, {frames}, was chosen on the test set, as in the report)"
        return text


def execute(
    plan: Plan,
    *,
    loaded: hub.Loaded | None = None,
    shard: Shard | None = None,
    device_map: Any = None,
) -> Outcome | None:
    """Run what is left of a plan, and score it.

    Args:
        plan: what to run.
        loaded: the checkpoint, when it is loaded already.
        shard: which of several processes this is.
        device_map: for loading.

    Returns:
        The outcome, also in score.json; None while other processes are still at it.

    Raises:
        ValueError: as in `runner.run`; a video set without frame counts, or frames for another.
    """
    video = any(sample.video is not None for sample in plan.samples)
    counts = plan.frames or (plan.benchmark.frames if video else ())
    if video and not counts:
        raise ValueError(f"{plan.benchmark.key} has videos; say how many frames (--frames 16).")
    if plan.frames and not video:
        raise ValueError(f"--frames is for videos, and {plan.benchmark.key} here has none.")
    data = fingerprint(plan.samples)
    found: dict[int, list[Prediction] | None] = dict.fromkeys(counts or (0,))
    # A second time, because others may have ended a count since this process had done its share:
    # whoever is the last of all finds every count whole.
    for frames in (*found, *found):
        if found[frames] is not None:
            continue
        config = config_for(plan.benchmark, plan.model, data, frames=frames, **dict(plan.settings))
        folder = plan.folder / f"frames-{frames}" if frames else plan.folder
        found[frames] = run(
            plan.samples, config, folder, loaded=loaded, shard=shard, device_map=device_map
        )
    done = {frames: each for frames, each in found.items() if each is not None}
    if len(done) < len(found):
        return None
    outcome = scored(plan.benchmark, plan.folder, done)
    if len(outcome.scores) > 1:
        _draw(outcome)
    text = json.dumps(outcome.as_dict(), indent=2, ensure_ascii=False)
    write_atomic(plan.folder / SCORE, text + "\n")
    return outcome


def _draw(outcome: Outcome) -> None:
    """The score over the number of frames, as Figure 10 has it."""
    from internvl.evaluation import curves

    lines = {outcome.benchmark.name: outcome.scores}
    try:
        for name in ("frames.svg", "frames.png"):
            curves.draw_frames(lines, outcome.folder / name)
    except ImportError as error:  # the scores are there without their picture
        logger.warning("frames.svg was not drawn: %s", error)


def scored(
    benchmark: Benchmark, folder: Path, predictions: Mapping[int, Sequence[Prediction]]
) -> Outcome:
    """Score predictions per frame count (0: no video).

    Args:
        benchmark: the row, which names the metric.
        folder: of the run.
        predictions: per frame count.
    """
    why = unscored(benchmark, [each for some in predictions.values() for each in some])
    if why:
        return Outcome(benchmark, folder, why=why)
    metric = get_metric(benchmark.metric)
    return Outcome(benchmark, folder, {k: score(v, metric) for k, v in predictions.items()})


def unscored(benchmark: Benchmark, predictions: Sequence[Prediction]) -> str:
    """Why no rule here can score these predictions; "" when one can."""
    if not benchmark.metric:
        names = ", ".join(benchmark.engines.get("vlmevalkit", ())) or "its official script"
        return (
            f"It is scored by {benchmark.scoring} ({benchmark.metric_note}); the answers are in "
            f"predictions.jsonl, and VLMEvalKit runs the judge: {names}."
        )
    golds = get_metric(benchmark.metric).golds
    if predictions and not any(golds(each) for each in predictions):
        return (
            "No sample has a reference answer: those of this split are kept by a server"
            f"{f' ({benchmark.server})' if benchmark.server else ''}; hand predictions.jsonl in."
        )
    return ""


# ---------------------------------------------------------------------- suites
@dataclass(frozen=True)
class Entry:
    """One benchmark of a suite file.

    Attributes:
        name: of its folder.
        benchmark: its row in benchmarks.toml.
        file: its samples.
        max_tiles: most tiles of an image; those of the row when None.
        frames: frame counts of a video; those of the row when ().
    """

    name: str
    benchmark: str
    file: Path
    max_tiles: int | None = None
    frames: tuple[int, ...] = ()


def read_suite(path: str | Path) -> list[Entry]:
    """Read a suite: `{"benchmarks": [{"name", "benchmark", "file"}, ...]}`, files relative to it.

    An entry may have `max_tiles` and `frames`, the limits that it is meant to be run with.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another form; the entry is named.
    """
    path = Path(path)
    content = json.loads(path.read_text("utf-8"))
    entries = content.get("benchmarks") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'{path} is no suite; expected {{"benchmarks": [...]}} with entries.')
    found = []
    for number, each in enumerate(entries):
        if not isinstance(each, dict) or not {"name", "benchmark", "file"} <= each.keys():
            raise ValueError(f"{path}, entry {number}: expected name, benchmark and file.")
        limits = (each.get("max_tiles"), tuple(each.get("frames") or ()))
        found.append(Entry(each["name"], each["benchmark"], path.parent / each["file"], *limits))
    return found
