"""Importing the remote code costs little and pulls in nothing optional."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = {"timm", "torchvision", "peft", "av", "einops", "decord", "flash_attn"}
PROBE = """
import json, sys, time
from internvl import hub
from transformers import PreTrainedModel
start = time.process_time()
hub.ring0(sys.argv[1])
print(json.dumps({"cpu_s": time.process_time() - start, "modules": sorted(sys.modules)}))
"""


@pytest.mark.parametrize(
    "module", ["modeling_internvl_chat", "preprocessor.processing_internvl_chat"]
)
def test_import_pulls_in_nothing_optional(module, record_property):
    run = subprocess.run(
        [sys.executable, "-c", PROBE, module], cwd=ROOT, capture_output=True, text=True, check=True
    )
    report = json.loads(run.stdout.splitlines()[-1])
    sys.stdout.write(f"{module}: {report['cpu_s']:.2f} s of CPU beyond PreTrainedModel\n")
    record_property("cpu_seconds_beyond_PreTrainedModel", report["cpu_s"])
    ours = {name for name in report["modules"] if name.startswith("internvl")}
    assert f"internvl_hub.{module}" in ours
    assert {name.partition(".")[0] for name in report["modules"]} & OPTIONAL == set()
    # The rest of the workshop stays out of it too.
    door = {"internvl", "internvl.hub", "internvl.source_files"}
    assert {name for name in ours if not name.startswith("internvl_hub")} == door
