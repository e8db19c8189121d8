"""The scripts of docs/multi_gpu.md run as a reader would run them, with two CPU processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModel

from internvl import hub
from tests import support

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("distributed_config")]


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """The demo as a repository of its own, as `internvl adopt` writes it."""
    folder = tmp_path / "demo"
    support.copy_code(folder)
    return Path(shutil.copytree(hub.DEMO, folder, dirs_exist_ok=True))


def torchrun(name: str, *arguments: object, folder: Path) -> str:
    """Run the block that begins with a file name, and return what it wrote."""
    text = (support.ROOT / "docs" / "multi_gpu.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"```python\n(# {name}\n.*?)```", text, flags=re.DOTALL)
    (folder / name).write_text(block, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", name, *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["HF_MODULES_CACHE"] = str(folder / "modules")
    run = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def test_tensor_parallel_script(demo: Path, tmp_path: Path) -> None:
    picture = support.ROOT / "examples" / "circle.png"
    question = "What color is the circle?"
    assert torchrun("run_tp.py", demo, picture, question, folder=tmp_path) == "red\n"


def test_fsdp_script(demo: Path, tmp_path: Path) -> None:
    torchrun("run_fsdp.py", demo, tmp_path / "trained", folder=tmp_path)
    trained = AutoModel.from_pretrained(tmp_path / "trained", trust_remote_code=True)
    assert type(trained).__name__ == "InternVLChatModel"
