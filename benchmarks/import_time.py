"""What does importing the remote code add to `from transformers import PreTrainedModel`?

    python benchmarks/import_time.py [--json] [--runs 7]

Each run is a fresh interpreter that imports the one, then the other, and reads its own CPU time
(user + system) in between: what is added is measured by itself, not as a small difference of two
large numbers. The first run warms the file cache and is not counted. The target is 0.3 s.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET_S = 0.3
PROBE = """
import time
start = time.process_time()
from transformers import PreTrainedModel
base = time.process_time()
from internvl import hub
hub.ring0("modeling_internvl_chat")
print(base - start, time.process_time() - base)
"""


def cpu_seconds() -> tuple[float, float]:
    """CPU time of both imports in a fresh interpreter."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=ROOT, check=True, capture_output=True, text=True
    )
    base, added = run.stdout.split()[-2:]
    return float(base), float(added)


def measure(runs: int) -> dict[str, object]:
    """Measure `runs` times after one warm-up."""
    cpu_seconds()
    base, added = (
        sorted(column) for column in zip(*(cpu_seconds() for _ in range(runs)), strict=True)
    )
    return {
        "benchmark": "import_time",
        "base_s": round(statistics.median(base), 3),
        "added_s": round(statistics.median(added), 3),
        "base_spread_s": [round(base[0], 3), round(base[-1], 3)],
        "added_spread_s": [round(added[0], 3), round(added[-1], 3)],
        "target_s": TARGET_S,
        "met": statistics.median(added) <= TARGET_S,
        "runs": runs,
        "device": "cpu",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--runs", type=int, default=7, help="interpreters (at least 5)")
    options = parser.parse_args()
    result = measure(max(options.runs, 5))
    if options.json:
        print(json.dumps(result))
        return
    print(
        f"importing the remote code adds {result['added_s']:.2f} s of CPU to "
        f"{result['base_s']:.2f} s (median of {result['runs']}, target {TARGET_S} s)"
    )


if __name__ == "__main__":
    main()
