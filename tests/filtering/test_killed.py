"""Killed at any moment and run again: the same bytes as one run without interruption."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.filtering import runs

KILLS = 10


@pytest.fixture(scope="module")
def context():
    """Makes processes that can be killed, from a server that has the modules already."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.filtering.runs", "internvl.filtering.steps"])
    return found


def end_of(context, *arguments) -> int:
    process = context.Process(target=runs.run_until, args=arguments)
    process.start()
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def whole(context, tmp_path_factory):
    """(configuration, output, number of times that files were touched) of an uninterrupted run."""
    config = replace(
        runs.small_corpus(tmp_path_factory.mktemp("runs")), judge={}, duplicates={"near": False}
    )
    moments = context.Value("i", 0)
    assert end_of(context, config, 0, moments) == 0
    return config, runs.output(config.folder), moments.value


@pytest.mark.parametrize("kill", range(KILLS))
def test_killed_and_run_again_gives_the_same_output(context, whole, kill):
    config, expected, moments = whole
    assert moments > 100
    moment = int(np.random.default_rng([6, kill]).integers(1, moments + 1))
    config = replace(config, output=f"{config.output}-{kill}")
    assert end_of(context, config, moment) == -signal.SIGKILL
    statistics = runs.run(config)
    assert runs.output(config.folder) == expected
    parts = ("kept", "removed", "queued")
    assert statistics["read"] == 120 == sum(statistics[part] for part in parts)
    assert not list(config.folder.rglob("*.partial"))


def test_killed_again_and_again_comes_to_its_end(context, whole):
    """Each run is given little more than the last stage takes, which is done as a whole."""
    config, expected, _ = whole
    again = context.Value("i", 0)
    assert end_of(context, config, 0, again) == 0  # all but the last stage is there already
    config = replace(config, output=f"{config.output}-often")
    kills = 0
    while (code := end_of(context, config, again.value + 10)) == -signal.SIGKILL:
        kills += 1
        assert kills < 20, "a run that is killed gets no further"
    assert (code, kills >= 2) == (0, True)
    assert runs.output(config.folder) == expected


def test_killed_worker_is_an_error_and_not_a_wait_for_ever(tmp_path):
    deadly = partial(runs.deadly_rules, tmp_path / "mark")
    config = runs.small_corpus(tmp_path)
    config = replace(config, executor=replace(config.executor, workers=2))
    with pytest.raises(ChildProcessError, match="complete shards are kept"):
        runs.run(config, deadly)
    statistics = runs.run(config, deadly)
    assert statistics["read"] == 120


def test_workers_end_with_the_process_that_started_them(context, tmp_path):
    mark = tmp_path / "mark"
    parricidal = partial(runs.parricidal_rules, mark)
    config = runs.small_corpus(tmp_path)
    two = replace(config, executor=replace(config.executor, workers=2))
    process = context.Process(target=runs.run, args=(two, parricidal))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    worker = int(mark.read_text())
    for _ in range(300):  # it wants a moment to notice
        if not is_alive(worker):
            break
        time.sleep(0.1)
    assert not is_alive(worker)
    assert runs.run(two, parricidal)["read"] == 120


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
