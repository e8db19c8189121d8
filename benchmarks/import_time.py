"""What does importing the remote code add to `from transformers import PreTrainedModel`?

    python benchmarks/import_time.py [--json] [--runs 7]

Each run starts two fresh interpreters, one after the other, and measures the CPU time (user +
system) of each whole process. The median of the differences, pair by pair, is what the remote code
costs. The target is 0.3 s.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET_S = 0.3
BASE = "from transformers import PreTrainedModel"
OURS = f"{BASE}\nfrom internvl import hub\nhub.ring0('modeling_internvl_chat')"


def cpu_seconds(code: str) -> float:
    """CPU time of a fresh interpreter that runs `code`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(runs: int) -> dict[str, object]:
    """Interleave base and ours `runs` times after one warm-up of each."""
    for code in (BASE, OURS):
        cpu_seconds(code)
    samples = [(cpu_seconds(BASE), cpu_seconds(OURS)) for _ in range(runs)]
    added = statistics.median(ours - base for base, ours in samples)
    base, ours = (sorted(column) for column in zip(*samples, strict=True))
    return {
        "benchmark": "import_time",
        "base_s": round(statistics.median(base), 3),
        "ours_s": round(statistics.median(ours), 3),
        "added_s": round(added, 3),
        "base_spread_s": [round(base[0], 3), round(base[-1], 3)],
        "ours_spread_s": [round(ours[0], 3), round(ours[-1], 3)],
        "target_s": TARGET_S,
        "met": added <= TARGET_S,
        "runs": runs,
        "device": "cpu",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--runs", type=int, default=7, help="pairs of interpreters (at least 5)")
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
