"""A checkpoint of 1.9 GB is adopted without a second copy of it in memory or on disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from internvl import hub
from internvl.checkpoints.tensors import layout
from tests import support

SCRIPT = Path(__file__).parent / "scripts" / "adopt_large.py"
GIB = 2**30


def sparse_checkpoint(folder: Path) -> Path:
    """InternVL2.5-1B with weights of zero, whose file takes no room on the disk."""
    folder.mkdir()
    shutil.copyfile(support.ROOT / "variants/InternVL2_5-1B/config.json", folder / "config.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(support.ROOT / name, folder / name)
    config = hub.build_config(json.loads((folder / "config.json").read_text()))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in layout(config).shapes.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def test_a_large_checkpoint_is_linked_not_read(tmp_path):
    source = sparse_checkpoint(tmp_path / "source")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT, source, tmp_path / "out"],
        env={**os.environ, "PYTHONPATH": str(support.ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    measured = json.loads(result.stdout.splitlines()[-1])
    assert measured["bytes"] == 2 * 938_193_024
    # The tokenizer of 151,674 entries is loaded once more; weights would be 1.75 GiB.
    assert measured["memory"] < 0.3 * GIB
    assert measured["disk"] < 0.05 * GIB
    link = (tmp_path / "out" / "model.safetensors").stat()
    assert link.st_ino == (source / "model.safetensors").stat().st_ino
