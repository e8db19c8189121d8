"""An adoption that is killed leaves OUT absent, and the next one finishes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import support
from tests.checkpoints import sources

SCRIPT = Path(__file__).parent / "scripts" / "adopt_killed.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_ten_points(tmp_path):
    pytest.importorskip("peft")
    merged = tmp_path / "source"
    sources.lora_wrapped(merged, "internlm2", llm=4)
    folder = tmp_path / "adopted-here"
    folder.mkdir()
    result = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT, folder, support.checkpoint("internlm2"), merged],
        env={**os.environ, "PYTHONPATH": str(support.ROOT), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    linked, merged = json.loads(result.stdout.splitlines()[-1])
    for points in (linked, merged):
        assert len({point["change"] for point in points}) == 5
        for point in points:
            assert point["killed"], point
            assert point["after"] in ("absent", "whole"), point
            assert point["again"] == 0, point
            assert point["finally"] == "whole", point
            # What was finished before the kill was not done again.
            assert point["kept"] == point["left"], point
            assert not (point["partial"] and point["after"] == "absent"), point
        assert any(point["left"] for point in points)
        assert points[0]["after"] == "absent"
