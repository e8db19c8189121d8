"""Accumulation and ranks change nothing: the same packs give the same step."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests import support
from tests.data.files import small_mixture
from tests.training import worker

# Measured: 6e-8 relative for accumulation, 2e-7 for two ranks, of the largest weight of a tensor.
TOLERANCE = 1e-6
LAUNCH = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d",
          "--rdzv-endpoint=127.0.0.1:0"]  # fmt: skip


def two_ranks(folder, meta):
    command = [sys.executable, *LAUNCH, "-m", "tests.training.worker", str(folder), str(meta)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(support.ROOT)}
    done = subprocess.run(
        command, cwd=support.ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "result.safetensors")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    meta = small_mixture(folder, images=18, texts=30)
    return {
        "accumulated": worker.train(folder / "runs", meta),
        "one batch": worker.train(folder / "runs", meta, rows=True),
        "two ranks": two_ranks(folder, meta),
    }


@pytest.mark.parametrize("other", ["two ranks", "one batch"])
def test_a_step_is_the_same_however_its_packs_are_shared(other, results):
    """One rank gets all packs without pictures, the other all with: both run every module."""
    expected, found = results["accumulated"], results[other]
    torch.testing.assert_close(found["losses"], expected["losses"], rtol=1e-5, atol=1e-6)
    assert set(found) == set(expected)
    for name, weight in expected.items():
        scale = float(weight.abs().max())
        torch.testing.assert_close(found[name], weight, rtol=0, atol=TOLERANCE * scale, msg=name)


def test_every_part_moved(results):
    before = support.hub.load(dtype="float32").model.state_dict()
    for part in ("vision_model.", "mlp1.", "language_model."):
        names = [name for name in results["accumulated"] if name.startswith(part)]
        moved = [float((results["accumulated"][n] - before[n]).abs().max()) for n in names]
        assert max(moved) > 1e-4, part
