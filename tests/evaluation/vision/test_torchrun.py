"""A probe of two CPU processes: each picture scored once, one result, and a run that resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from internvl.evaluation.vision.checkpoint import read_tensors
from tests import support
from tests.evaluation.vision import digits

pytestmark = pytest.mark.slow


def torchrun(
    data: Path, out: Path, *options: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a probe of two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "tests.evaluation.vision.worker"]
    command += [str(data), "--out", str(out), "--size", "28", "--workers", "0", "--device", "cpu"]
    command += ["--epochs", "6", "--batch", "16", "--lr", "0.8", "--ema", "0.9"]
    return subprocess.run(
        [*command, "--mixup", "0", "--cutmix", "0", "--save-steps", "4", *options],
        cwd=support.ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def test_two_processes(tmp_path):
    data = digits.write(tmp_path / "digits", classes=3)
    (data / "test" / "2" / "23.png").unlink()  # 23 pictures: not shared evenly
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = torchrun(data, whole)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("linear probe of demo") == 1  # by the first process only
    found = result(whole)
    assert found["recipe"]["processes"] == 2
    assert found["accuracy"]["val"]["last"]["n"] == 23
    assert found["history"][-1]["loss"] < found["history"][0]["loss"]

    assert torchrun(data, parts, STOP_AT="10").returncode != 0
    assert read_tensors(parts / "state.safetensors")[1]["step"] == 9  # 3 steps an epoch
    done = torchrun(data, parts, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert result(parts) == found
    assert (parts / "heads.safetensors").read_bytes() == (whole / "heads.safetensors").read_bytes()
