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
@pytest.mark.parametrize("kind", ["linked", "merged"])
def test_killed_at_ten_points(kind, tmp_path):
    source = tmp_path / "source"
    if kind == "merged":
        pytest.importorskip("peft")
        sources.lora_wrapped(source, "internlm2", llm=4)
    else:
        source = support.checkpoint("internlm2")
    folder = tmp_path / "adopted-here"
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(support.ROOT), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT, source, folder / "whole", folder],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads(result.stdout.splitlines()[-1])
    points = report["points"]
    assert len({point["change"] for point in points}) == 10
    for point in points:
        assert point["killed"], point
        assert point["after"] in ("absent", "whole"), point
        assert point["again"] == 0, point
        assert point["finally"] == "whole", point
        # What was finished before the kill was not done again.
        assert point["kept"] == point["left"], point
    assert any(point["left"] for point in points)
    assert points[0]["after"] == "absent"
    assert not any(point["partial"] for point in points if point["after"] == "absent")
