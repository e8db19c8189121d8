"""Other programs as subprocesses: their progress passes through, and they end when we end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

# Seconds that a program has to end by itself after each signal.
PATIENCE = 20.0


class Terminated(KeyboardInterrupt):
    """We were asked to end by SIGTERM or SIGHUP; like Ctrl-C, it unwinds to the top."""


def run(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> None:
    """Run a program to its end, with our standard output and error.

    It gets a process group of its own. On Ctrl-C, SIGTERM or a lost terminal the group is
    interrupted as Ctrl-C would do it, so that it can write what it has; who does not listen is
    terminated, then killed.

    Args:
        command: program and arguments.
        environment: variables to set, beside ours.
        cwd: folder to run in; ours when None.

    Raises:
        ValueError: it failed; its own message stands above.
        KeyboardInterrupt: we were interrupted; the program has ended.
    """
    words = [str(each) for each in command]
    logger.info("running %s", " ".join(words))
    variables = {**os.environ, **(environment or {})}
    with _terminating(), _started(words, variables, cwd) as process:
        code = process.wait()
    if code:
        raise ValueError(
            f"{Path(words[0]).name} {' '.join(words[1:3])} ended with code {code}; what went wrong "
            "is in its output above."
        )


@contextlib.contextmanager
def _started(
    words: list[str], variables: dict[str, str], cwd: Path | None
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(words, env=variables, cwd=cwd, start_new_session=True)
    try:
        yield process
    except BaseException:
        _end(process)
        raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children, the gentle way first."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # children that outlived it


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """Let SIGTERM unwind the stack, and SIGHUP unless it is ignored (nohup); outside the main
    thread they stay as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def unwind(number: int, frame: FrameType | None) -> Any:
        raise Terminated

    numbers = [signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, unwind) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
