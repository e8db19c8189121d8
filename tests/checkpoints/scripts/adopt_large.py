"""Adopt a checkpoint of 1.9 GB and print what it took: adopt_large.py SOURCE OUT."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from internvl import hub
from internvl.checkpoints.adopt import adopt


def allocated(folder: Path) -> int:
    """Bytes on disk of the files under a folder, linked ones once."""
    files = {path.stat().st_ino: path.stat().st_blocks for path in folder.rglob("*")}
    return 512 * sum(files.values())


def peak() -> int:
    """Greatest resident memory of the process so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


source, out = map(Path, sys.argv[1:])
hub.prepare(source)  # imports and the tokenizer, which everybody pays
before, disk, start = peak(), allocated(source.parent), time.perf_counter()
adopted = adopt(source, out)
sys.stdout.write(
    json.dumps(
        {
            "bytes": adopted.bytes,
            "seconds": time.perf_counter() - start,
            "memory": peak() - before,
            "disk": allocated(source.parent) - disk,
        }
    )
    + "\n"
)
