"""Who runs the tasks of a stage: processes of this machine, Slurm, Ray; all of them datatrove's.

datatrove's own local executor waits for ever when a worker is killed (`multiprocessing.Pool` starts
another, but nobody does its task), and leaves processes behind when it is killed itself. `Local`
has neither fault and shows progress. The rest of datatrove's contract stays: statistics and a file
under `completions` for each task.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from typing import Any

import loguru
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from tqdm.auto import tqdm

from internvl.filtering.config import Executor
from internvl.filtering.pipeline import Stage

logger = logging.getLogger(__name__)


class Local(LocalPipelineExecutor):
    """Tasks in processes of this machine, or in this process if there is one worker.

    Args:
        pipeline: the steps.
        label: of the progress bar.
        options: of datatrove's executor.
    """

    def __init__(self, pipeline: Sequence[PipelineStep], *, label: str, **options: Any) -> None:
        super().__init__(list(pipeline), **options)
        self.label = label

    def run(self) -> None:
        """Do all tasks that are not complete.

        Raises:
            ChildProcessError: a process was killed; the tasks that are complete are kept.
        """
        waiting = self.get_incomplete_ranks(range(self.tasks))
        done = self._in_processes if self.workers > 1 and len(waiting) > 1 else self._here
        bar = tqdm(
            total=self.tasks, initial=self.tasks - len(waiting), desc=self.label, unit="shard"
        )
        with bar:
            for _ in done(waiting):
                bar.update()

    def _here(self, ranks: Sequence[int]) -> Iterator[int]:
        for rank in ranks:
            run_task(self, rank)
            yield rank

    def _in_processes(self, ranks: Sequence[int]) -> Iterator[int]:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["internvl.filtering.steps"]
        )  # imported once, not per worker
        pool = ProcessPoolExecutor(self.workers, context, initializer=_end_with_parent)
        try:
            tasks = [pool.submit(run_task, self, rank) for rank in ranks]
            for task in as_completed(tasks):
                yield task.result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                f"a process of the stage {self.label!r} ended before its task, most likely killed "
                "for want of memory; complete shards are kept. Run again, with fewer "
                "executor.workers or a smaller rows_per_shard if it happens again. (A script that "
                "calls `run` needs `if __name__ == '__main__':`.)"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def run_task(executor: PipelineExecutor, rank: int) -> int:
    """Do one task, with statistics of its own; returns its number.

    datatrove would print a failure with the values of all variables, samples included, before it
    raises it; the exception is enough.
    """
    alone = deepcopy(executor)
    loguru.logger.disable("datatrove")
    try:
        alone._run_for_rank(rank)
    finally:
        loguru.logger.enable("datatrove")
    return rank


def _end_with_parent() -> None:
    """End this process when the one that started it ends, however that may be."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def make_executor(
    settings: Executor, stage: Stage, *, before: PipelineExecutor | None
) -> PipelineExecutor:
    """The executor of a stage.

    Args:
        settings: kind and options.
        stage: the stage.
        before: the stage that has to be complete first.
    """
    steps: list[Any] = list(stage.steps)
    common: dict[str, Any] = {
        "tasks": len(stage.files),
        "workers": min(stage.workers, len(stage.files)),
        "logging_dir": str(stage.folder),
        "skip_completed": not stage.again,
    }
    if settings.kind == "local":
        return Local(steps, label=stage.name, **common)
    if settings.kind == "ray":
        return RayPipelineExecutor(steps, **common, **settings.options)
    name = f"{settings.options.get('job_name', 'internvl-filter')}-{stage.name}"
    return SlurmPipelineExecutor(
        steps, depends=before, **common, **{**settings.options, "job_name": name}
    )
