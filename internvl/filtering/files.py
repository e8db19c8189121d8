"""Files that appear whole or not at all, and files that only grow."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

logger = logging.getLogger(__name__)

_PARTIAL = ".partial"


@contextlib.contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes its name when the block ends without an exception.

    Whoever is killed leaves a file `.NAME.PID.partial`; `sweep` removes those.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder and the folders in it."""
    for path in folder.rglob(f".*{_PARTIAL}"):
        path.unlink(missing_ok=True)


def to_line(value: Any) -> bytes:
    """A value as a line of JSON; ASCII, so that no character of the data can break it."""
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and programs, whole or not at all."""
    with whole(path) as file:
        file.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file that `whole` wrote."""
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Add a line to a file and wait until it is on the disk.

    A line that a crash cut off is closed first, so that it spoils no other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(to_line(value))
        file.flush()
        os.fsync(file.fileno())


def read_appended(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file that `append_line` wrote; what a crash cut off is left out, and said.

    A missing file has none.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                value = json.loads(line)
            except ValueError:
                logger.warning("%s:%d is not JSON and is left out: %r", path, number, line[:80])
                continue
            yield value


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder against other runs on this machine; a killed process lets go of it.

    Raises:
        BlockingIOError: another run holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: nobody is kept out
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"another run works in {folder}; wait for it, or name another output."
            ) from None
        yield


def file_name(name: str) -> str:
    """The name of a dataset as that of a file: no separators, different for different names."""
    quoted = quote(name, safe=" +,()[]=@")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted
