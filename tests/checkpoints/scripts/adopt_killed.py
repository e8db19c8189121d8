"""Adopt a checkpoint in child processes that are killed at ten points, then once to the end.

    adopt_killed.py SOURCE WHOLE FOLDER

A point is a change of a file or folder: opened for writing, renamed, linked, made, removed. Prints
a JSON list: per point the number of the change, and the state of OUT right after the kill.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from internvl import hub
from internvl.checkpoints.adopt import adopt

SOURCE, WHOLE, FOLDER = map(Path, sys.argv[1:])
CHANGES = ("os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
POINTS = 10


def in_child(out: Path, kill_at: int | None, report: Path) -> int:
    """Adopt in a child; kill it before change number `kill_at`. Return its wait status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    seen = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event == "open":
            path, _, flags = arguments
            changes = isinstance(path, str) and bool(flags & (os.O_WRONLY | os.O_RDWR))
        else:
            path = arguments[0]
            changes = event in CHANGES
        if not changes or FOLDER.name not in str(path) + str(arguments):
            return
        seen += 1
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    adopt(SOURCE, out, max_shard_size="200KB")
    if kill_at is None:
        counted = str(seen)  # writing the report is a change too
        report.write_text(counted)
    os._exit(0)


def state(out: Path) -> str:
    """Whether OUT is absent, or equal to the whole one."""
    if not out.exists():
        return "absent"
    return "whole" if contents(out) == contents(WHOLE) else "broken"


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes().replace(
            folder.name.encode(), WHOLE.name.encode()
        )
        for path in files
    }


def main() -> None:
    torch.set_num_threads(1)
    hub.prepare()  # imports happen before the forks
    report = FOLDER / "changes"
    if in_child(WHOLE, None, report):
        raise SystemExit("the uninterrupted run failed")
    changes = int(report.read_text())
    results = []
    for number in range(POINTS):
        out = FOLDER / f"out{number}"
        kill_at = 1 + number * (changes - 1) // (POINTS - 1)
        status = in_child(out, kill_at, report)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        after = state(out)
        shards = {
            path.name: path.stat().st_mtime_ns
            for path in (FOLDER / f"out{number}.partial").glob("folder/*.safetensors")
        }
        again = in_child(out, 0, report) if after == "absent" else 0
        kept = [name for name, time in shards.items() if (out / name).stat().st_mtime_ns == time]
        results.append(
            {
                "change": kill_at,
                "killed": killed,
                "after": after,
                "again": again,
                "finally": state(out),
                "left": len(shards),
                "kept": len(kept),
                "partial": (FOLDER / f"out{number}.partial").exists(),
            }
        )
    sys.stdout.write(json.dumps({"changes": changes, "points": results}) + "\n")


main()
