"""Where stages run: what Slurm is handed does the whole run, and what Ray would get.

No Slurm is needed: stand-ins for its three commands do each job when it is submitted.
"""

from __future__ import annotations

import os
import pickle
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from datatrove.executor import RayPipelineExecutor

from internvl import hub
from internvl.filtering import pipeline
from internvl.filtering.config import Executor
from internvl.filtering.executors import make_executor
from internvl.filtering.plan import make_plan
from tests.filtering import runs

SBATCH = """\
    #!{python}
    import os, pathlib, re, subprocess, sys
    script, log = pathlib.Path(sys.argv[-1]).read_text(), pathlib.Path({log!r})
    number = len(list(log.iterdir()))
    (log / f"{{number}}.sh").write_text(" ".join(sys.argv[1:-1]) + "\\n" + script)
    last = re.search(r"--array=0-(\\d+)", script)
    for task in range(int(last[1]) + 1 if last else 1):
        environment = {{**os.environ, "SLURM_ARRAY_TASK_ID": str(task), "RUN_OFFSET": "0",
                       "SLURM_NODELIST": "node1", "SLURM_JOB_ID": str(1000 + number)}}
        subprocess.run(["bash", "-c", script], env=environment, check=True, stdout=sys.stderr)
    print("Submitted batch job", 1000 + number)
"""
SRUN = """\
    #!/bin/bash
    while [ "$1" != launch_pickled_pipeline ]; do shift; done
    exec "$@"
"""
SCONTROL = """\
    #!/bin/bash
    echo "$SLURM_NODELIST"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Folder of the scripts that were submitted."""
    commands, log = tmp_path / "bin", tmp_path / "submitted"
    commands.mkdir()
    log.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        text = textwrap.dedent(text)
        if name == "sbatch":
            text = text.format(python=sys.executable, log=str(log))
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    path = [str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(path))
    monkeypatch.setenv("PYTHONPATH", str(hub.REPOSITORY))
    return log


def test_slurm_jobs_do_the_whole_run(slurm, tmp_path):
    local = replace(
        runs.small_corpus(tmp_path), rows_per_shard=60, rules={"others": False, "refusal": True}
    )
    pipeline.run(local)
    options = {"partition": "cpu", "time": "01:00:00", "job_name": "clean"}
    config = replace(
        local, output=str(tmp_path / "cluster"), executor=Executor("slurm", 3, options)
    )
    assert pipeline.run(config) is None
    assert runs.output(config.folder) == runs.output(local.folder)

    scripts = [(slurm / f"{n}.sh").read_text() for n in range(len(list(slurm.iterdir())))]
    jobs = [script for script in scripts if "launch_pickled_pipeline" in script]
    assert "#SBATCH --job-name=clean-rules" in jobs[0]
    assert "#SBATCH --array=0-1%2" in jobs[0]
    assert "#SBATCH --job-name=clean-sort" in jobs[1]
    assert "--dependency=afterok:1000" in jobs[1]
    assert all("#SBATCH --partition=cpu" in job for job in jobs)


def test_ray_gets_the_steps_and_the_options(tmp_path):
    config = replace(runs.small_corpus(tmp_path), executor=Executor("ray", 4, {"cpus_per_task": 2}))
    stage = pipeline.make_stages(config, make_plan(config), runs.two_rules)[0]
    executor = make_executor(config.executor, stage, before=None)
    assert isinstance(executor, RayPipelineExecutor)
    assert (executor.tasks, executor.workers, executor.cpus_per_task) == (8, 4, 2)
    assert pickle.loads(pickle.dumps(executor.pipeline))[0].plan == stage.steps[0].plan


def test_missing_datatrove_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "internvl.filtering.executors", None)
    with pytest.raises(ImportError, match=r"pip install 'internvl\[filter\]'"):
        pipeline.run(runs.small_corpus(tmp_path))
