from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from internvl.evaluation.vision.segmentation import run
from internvl.evaluation.vision.segmentation.layouts import find
from tests.evaluation.vision_segmentation import worker
from tests.evaluation.vision_segmentation.small import make_encoder, write_rectangles

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["linear", "full"])
def test_two_processes(mode, tmp_path):
    data = write_rectangles(tmp_path / "data", val=5)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", worker.__file__, str(data), str(tmp_path), mode]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert first.keys() == second.keys()
    for name, value in first.items():  # gradients were averaged: both took the same steps
        assert torch.equal(value, second[name]), name
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["work"]["processes"] == 2
    # Each pixel of the five images was counted once, by one of the two.
    assert sum(each["pixels"] for each in results["classes"]) == 5 * 64 * 80
    test = find("folders", data, "val")
    alone = run.evaluate_only(make_encoder(freeze=mode != "full"), test, tmp_path / "run")
    assert [each["pixels"] for each in alone["classes"]] == [
        each["pixels"] for each in results["classes"]
    ]
    # The statistics that count are those of the first process, whose file was written.
    assert alone["miou"] == pytest.approx(results["miou"], abs=15)
