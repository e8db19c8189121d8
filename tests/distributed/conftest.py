"""Two processes, run once for all tests here, however many workers share the tests."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from safetensors.torch import load_file

from tests import support
from tests.distributed import worker

PATIENCE = 600  # seconds until processes that wait for each other are stopped


class Ranks:
    """What the processes left in a folder."""

    def __init__(self, folder: Path, method: str) -> None:
        self.folder = folder
        self.saved = folder / method
        self._tensors = [
            load_file(folder / f"{method}-{rank}.safetensors") for rank in worker.RANKS
        ]
        self._layouts = [
            json.loads((folder / f"{method}-{rank}.json").read_text(encoding="utf-8"))
            for rank in worker.RANKS
        ]

    def tensors(self, name: str) -> list[worker.Tensors]:
        """What each rank computed with a checkpoint."""
        prefix = f"{name}/"
        return [
            {key.removeprefix(prefix): t for key, t in found.items() if key.startswith(prefix)}
            for found in self._tensors
        ]

    def layouts(self, name: str) -> list[dict[str, Any]]:
        """How the weights lay on each rank."""
        return [layouts[name] for layouts in self._layouts]


def run(folder: Path) -> None:
    """Run the processes; fail with what they wrote if one of them fails."""
    worker.write_odd(folder)
    environment = {**os.environ, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    logs = [folder / f"log-{rank}" for rank in worker.RANKS]
    processes = []
    for rank, log in zip(worker.RANKS, logs, strict=True):
        own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        with log.open("w") as file:
            command = [sys.executable, "-m", "tests.distributed.worker", str(folder)]
            processes.append(
                subprocess.Popen(command, cwd=support.ROOT, env=own, stdout=file, stderr=file)
            )
    try:
        codes = [process.wait(PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(codes):
        pytest.fail("\n".join(f"rank {i}: {log.read_text()[-3000:]}" for i, log in enumerate(logs)))


@pytest.fixture(scope="session")
def distributed_config() -> type:
    """The class that asks for tensor parallelism and FSDP2."""
    from transformers import distributed

    if "tp_size" not in inspect.signature(distributed.DistributedConfig).parameters:
        pytest.skip("tensor parallelism and FSDP2 of custom code came with transformers 5")
    return distributed.DistributedConfig


@pytest.fixture(scope="session")
def folder(distributed_config: type, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of both processes."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        made = tmp_path_factory.mktemp("distributed")
        run(made)
        return made
    shared = tmp_path_factory.getbasetemp().parent / "distributed"  # of all workers
    with FileLock(f"{shared}.lock"):
        if not (shared / "done").exists():
            shared.mkdir(exist_ok=True)
            run(shared)
            (shared / "done").touch()
    return shared


@pytest.fixture(scope="session")
def split(folder: Path) -> Ranks:
    """Results of tensor parallelism."""
    return Ranks(folder, "split")


@pytest.fixture(scope="session")
def shard(folder: Path) -> Ranks:
    """Results of FSDP2."""
    return Ranks(folder, "shard")
