"""Folders that appear whole or not at all.

    OUT.partial/folder is filled -> renamed to OUT
    OUT.partial/journal.json says what it is made of

A run that was stopped leaves OUT.partial. The next run with the same journal goes on with the files
that are there, each of which was written in one step; any other run starts anew.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from internvl.checkpoints.tensors import write_text
from internvl.source_files import optional_json

logger = logging.getLogger(__name__)

_JOURNAL, _MARK = "journal.json", "internvl.checkpoints.staging"


def refuse_existing(out: Path) -> None:
    """Allow an absent or an empty folder only.

    Raises:
        FileExistsError: `out` holds something.
    """
    if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise FileExistsError(
            f"{out} exists and is not an empty folder; name another one, or remove it."
        )


@contextlib.contextmanager
def staging(out: Path, journal: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Give a folder to fill, which becomes `out` when the block ends without an exception.

    Args:
        out: the folder to make.
        journal: what the files depend on; files that a stopped run with an equal one left are kept.
            Without it nothing is kept, and an exception removes what was written.

    Raises:
        FileExistsError: `out` holds something, or OUT.partial is a folder of somebody else.
    """
    refuse_existing(out)
    out = out.absolute()
    partial = out.with_name(out.name + ".partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    with _alone(partial):
        if partial.exists():
            _clear(partial, journal)
        folder = partial / "folder"
        partial.mkdir(exist_ok=True)
        made_of = {"made_by": _MARK, **(journal or {})}
        write_text(partial / _JOURNAL, json.dumps(made_of))
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        except BaseException:
            if journal is None:
                shutil.rmtree(partial)
            raise
        if out.exists():
            out.rmdir()  # empty, see refuse_existing
        folder.rename(out)
        shutil.rmtree(partial)


@contextlib.contextmanager
def _alone(partial: Path) -> Iterator[None]:
    """Keep another run from the same OUT; the lock of a killed one is free."""
    from filelock import FileLock, Timeout

    lock = FileLock(partial.with_name(partial.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(f"{partial} is being written by another run; wait for it.") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _clear(partial: Path, journal: Mapping[str, Any] | None) -> None:
    """Remove what a stopped run left, unless this run goes on with it."""
    if not partial.is_dir():
        raise FileExistsError(f"{partial} is in the way; remove it.")
    contents = {path.name for path in partial.iterdir()}
    found = optional_json(partial / _JOURNAL)
    ours = contents <= {_JOURNAL, _JOURNAL + ".partial", "folder"}
    known = ours and found.get("made_by") == _MARK
    # Stopped before the journal was there, or while the folder was removed.
    early = contents <= {_JOURNAL + ".partial", "folder"} and not any(partial.glob("folder/*"))
    if not known and not early:
        raise FileExistsError(
            f"{partial} is in the way and was not written by this command; remove it."
        )
    if journal is None or found != {"made_by": _MARK, **journal}:
        logger.info("%s was of other files and is built anew", partial)
        shutil.rmtree(partial)
