"""Adopt checkpoints in child processes that are killed at five points each, then to the end.

    adopt_killed.py FOLDER SOURCE...

A point is a change of a file or folder: opened for writing, renamed, linked, made, removed. Prints
for each source a JSON list: per point the number of the change, and the state of OUT right after
the kill, and what the next run made of it.
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

FOLDER, *SOURCES = map(Path, sys.argv[1:])
CHANGES = ("os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
POINTS = 5


def in_child(source: Path, out: Path, kill_at: int | None, report: Path) -> int:
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
    adopt(source, out, max_shard_size="200KB")
    if kill_at is None:
        counted = str(seen)  # writing the report is a change too
        report.write_text(counted)
    os._exit(0)


def state(out: Path, whole: Path) -> str:
    """Whether OUT is absent, or equal to the whole one."""
    if not out.exists():
        return "absent"
    return "whole" if contents(out) == contents(whole) else "broken"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file; the name of the folder stands in the card."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes().replace(folder.name.encode(), b"")
        for path in files
    }


def points(source: Path, number: int) -> list[dict]:
    """Kill an adoption at each point, and run it again."""
    whole, report = FOLDER / f"whole{number}", FOLDER / f"changes{number}"
    if in_child(source, whole, None, report):
        raise SystemExit("the uninterrupted run failed")
    changes, results = int(report.read_text()), []
    for point in range(POINTS):
        out = FOLDER / f"out{number}-{point}"
        partial = out.with_name(out.name + ".partial")
        kill_at = 1 + point * (changes - 1) // (POINTS - 1)
        status = in_child(source, out, kill_at, report)
        after = state(out, whole)
        shards = partial.glob("folder/*.safetensors")
        left = {path.name: path.stat().st_mtime_ns for path in shards}
        again = in_child(source, out, 0, report) if after == "absent" else 0
        kept = [name for name, time in left.items() if (out / name).stat().st_mtime_ns == time]
        results.append(
            {
                "change": kill_at,
                "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
                "after": after,
                "again": again,
                "finally": state(out, whole),
                "left": len(left),
                "kept": len(kept),
                "partial": partial.exists(),
            }
        )
    return results


torch.set_num_threads(1)
hub.prepare()  # imports happen before the forks
found = [points(source, number) for number, source in enumerate(SOURCES)]
sys.stdout.write(json.dumps(found) + "\n")
