"""Hashes of the remote code, by which `verify` tells whether a folder carries it unchanged.

    python -m internvl.checkpoints.code_hashes           # write code_hashes.json
    python -m internvl.checkpoints.code_hashes --check   # compare; exit code 1 on a difference

`make check` compares, so the file is that of the code in the same commit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
from pathlib import Path

from internvl.checkpoints.settings import code_files
from internvl.checkpoints.tensors import write_text

logger = logging.getLogger(__name__)

FILE = Path(__file__).with_name("code_hashes.json")


def digest(path: Path) -> str:
    """SHA-256 of a text file, whatever its line ends."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def current() -> dict[str, str]:
    """Path in a self-contained folder -> hash of the file of this repository."""
    return {name: digest(path) for name, path in code_files().items()}


def recorded() -> dict[str, str]:
    """What code_hashes.json says."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with code_hashes.json")
    if not parser.parse_args(arguments).check:
        write_text(FILE, json.dumps(current(), indent=2, sort_keys=True) + "\n")
        return 0
    now, then = current(), recorded()
    changed = sorted(name for name in now.keys() | then if now.get(name) != then.get(name))
    for name in changed:
        logger.error("%s is not as code_hashes.json says", name)
    if changed:
        logger.error("run: python -m internvl.checkpoints.code_hashes")
    return 1 if changed else 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
