"""lmms-eval 0.7.3: a model plug-in, and its command driven for the benchmarks of the report.

    lmms_eval --model internvl25 --model_args pretrained=PATH,batch_size=8 --tasks docvqa_val

`manifest` is the entry point (group `lmms_eval.models`) by which lmms-eval finds the model; the
model itself is in lmms_eval_model.py, and what a request asks of it in lmms_eval_requests.py.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl.evaluation.engines import process
from internvl.evaluation.engines.selection import Choice, choose
from internvl.evaluation.run_config import differences
from internvl.evaluation.runner import write_atomic

if TYPE_CHECKING:
    from internvl.evaluation.run_config import ModelSource

logger = logging.getLogger(__name__)

ENGINE, MODEL = "lmms_eval", "internvl25"
CLASS = "internvl.evaluation.engines.lmms_eval_model.InternVL25"


def manifest() -> Any:
    """What lmms-eval is told of the model, a `ModelManifest`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(MODEL, simple_class_path=CLASS, aliases=("internvl2_5",))


# ---------------------------------------------------------------------- the command
def run(
    names: Sequence[str],
    model: ModelSource,
    out: Path,
    *,
    mode: str = "direct",
    limit: int | None = None,
    batch_size: int = 8,
    max_tiles: int | None = None,
    num_frames: int | None = None,
    processes: int = 1,
    include: Path | None = None,
    cache: bool = True,
    identity: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Run lmms-eval on some benchmarks, and read what it found.

    Greedy answers are kept in `out` as they come, so that an interrupted run goes on where it was.

    Args:
        names: benchmarks, or tasks of lmms-eval; with `include` any task.
        model: the checkpoint.
        out: folder of the run.
        mode: "cot" prefers tasks that ask for reasoning.
        limit: only that many questions of each task.
        batch_size: questions at once.
        max_tiles: of an image, for all tasks.
        num_frames: of a video, for all tasks.
        processes: one model each, by torchrun.
        include: folder of task files of one's own.
        cache: keep answers; off for tasks that compare likelihoods, which the cache of lmms-eval
            0.7.3 cannot hold.
        identity: what tells the checkpoint from another of the same name.

    Returns:
        Per benchmark its tasks, and per task the metrics by lmms-eval's names.

    Raises:
        ImportError: lmms-eval is not installed, or does not know the plug-in.
        ValueError: an unknown benchmark, a folder of another run, or a failed run.
    """
    require()
    chosen = _chosen(names, mode, include)
    arguments = _model_arguments(model, max_tiles, num_frames)
    _claim(out, {"model_args": arguments, "identity": dict(identity or {}), "limit": limit})
    starter = [sys.executable, "-m"]
    if processes > 1:
        starter += ["torch.distributed.run", "--nproc-per-node", str(processes), "-m"]
    command = [*starter, "lmms_eval", "--model", MODEL, "--model_args", arguments]
    command += ["--tasks", ",".join(dict.fromkeys(task for _, task in chosen))]
    command += ["--batch_size", str(batch_size), "--output_path", str(out / "results")]
    command += ["--log_samples", *(["--use_cache", str(out / "cache")] if cache else [])]
    if limit is not None:
        command += ["--limit", str(limit)]
    if include is not None:
        command += ["--include_path", str(include)]
    before = _result_files(out)
    process.run(command)
    new = [path for path, changed in _result_files(out).items() if before.get(path) != changed]
    return read_results(out, chosen, files=new)


def require() -> None:
    """Find out whether lmms-eval is here and knows the plug-in.

    Raises:
        ImportError: which of the two is missing.
    """
    from importlib.metadata import entry_points

    if importlib.util.find_spec("lmms_eval") is None:
        raise ImportError("lmms-eval is not installed: pip install 'lmms-eval==0.7.3'")
    if MODEL not in {each.name for each in entry_points(group="lmms_eval.models")}:
        raise ImportError(
            f"lmms-eval does not see the model {MODEL!r}, because this package is not installed in "
            f"the environment of {sys.executable}: pip install -e . (its entry point says it)"
        )


def _chosen(names: Sequence[str], mode: str, include: Path | None) -> list[tuple[str, str]]:
    """(benchmark, task) pairs; a task of one's own is its own benchmark."""
    if include is not None:
        if mode != "direct":
            raise ValueError(
                "tasks of one's own ask as they say; --mode is for those of lmms-eval."
            )
        return [(name, name) for name in names]
    found: list[Choice] = choose(names, ENGINE, mode)
    return [(each.benchmark.key, each.key) for each in found]


def _model_arguments(model: ModelSource, max_tiles: int | None, num_frames: int | None) -> str:
    given = {
        "pretrained": model.source,
        "subfolder": model.subfolder,
        "revision": model.revision,
        "adapter": model.adapter,
        "dtype": model.dtype,
        "quantization": model.quantization,
        "max_tiles": max_tiles,
        "num_frames": num_frames,
    }
    return ",".join(f"{name}={value}" for name, value in given.items() if value is not None)


def _claim(out: Path, settings: Mapping[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path, now = out / "run.json", json.loads(json.dumps(settings))
    if path.exists():
        found = differences(json.loads(path.read_text("utf-8")), now)
        if found:
            raise ValueError(
                f"{out} holds a run of other settings ({'; '.join(found)}); name another folder."
            )
    write_atomic(path, json.dumps(now, indent=2) + "\n")


# ---------------------------------------------------------------------- results
def _result_files(out: Path) -> dict[Path, int]:
    """Result files of a folder of runs, and when each was written."""
    files = (out / "results").rglob("*_results.json")
    return {path: path.stat().st_mtime_ns for path in files}


def read_results(
    out: Path, chosen: Sequence[tuple[str, str]], *, files: Collection[Path] | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    """Read the newest results of each task out of a folder of runs.

    Args:
        out: folder of the run.
        chosen: (benchmark, task) pairs.
        files: result files that count, those of one run; all of the folder when None.

    Raises:
        ValueError: a task without results.
    """
    counting = _result_files(out) if files is None else files
    newest: dict[str, dict[str, float]] = {}
    for path in sorted(counting, key=lambda path: path.name):
        content = json.loads(path.read_text("utf-8"))
        for part in ("results", "groups"):
            for task, metrics in (content.get(part) or {}).items():
                newest[task] = _numbers(metrics)
    absent = [task for _, task in chosen if task not in newest]
    if absent:
        raise ValueError(
            f"lmms-eval left no results of {', '.join(absent)} in {out / 'results'}; its log says "
            "why."
        )
    found: dict[str, dict[str, dict[str, float]]] = {}
    for benchmark, task in chosen:
        found.setdefault(benchmark, {})[task] = newest[task]
    return found


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics by name; standard errors and what is not a number are left out."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, (int, float))
        and not isinstance(value, bool)
        and "," in name
        and "_stderr" not in name
    }


def describe(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A line per metric of each task."""
    return "\n".join(
        f"{key:20} {task:28} {metric:40} {value:10.4f}"
        for key, tasks in scores.items()
        for task, metrics in tasks.items()
        for metric, value in metrics.items()
    )
