"""One run over several processes of this machine: the same command again, once per shard.

For more machines start `internvl eval run` itself under torchrun or accelerate: it takes its shard
from RANK and WORLD_SIZE. Slurm's own variables are not read, as a batch script has them too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

_TOOL = (sys.executable, "-m", "internvl")


def run_shards(arguments: Sequence[str], processes: int) -> None:
    """Run `internvl ARGUMENTS --shard i/n` for every shard, and wait for all.

    A shard that fails ends the others; what they had answered stays on disk.

    Args:
        arguments: of the command line, without a shard.
        processes: how many.

    Raises:
        ValueError: a shard failed; its own message stands on standard error.
    """
    running = [
        subprocess.Popen(
            [*_TOOL, *arguments, "--shard", f"{rank}/{processes}"],
            env={**os.environ, "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,  # the result is written once, by who started them
        )
        for rank in range(processes)
    ]
    try:
        while any(each.poll() is None for each in running):
            if any(each.poll() for each in running):
                break
            time.sleep(0.05)
        failed = [rank for rank, each in enumerate(running) if each.poll()]
    finally:
        for each in running:
            if each.poll() is None:
                each.terminate()
        for each in running:
            each.wait()
    if failed:
        raise ValueError(
            f"shard {failed[0]} of {processes} ended with exit code "
            f"{running[failed[0]].returncode}; mend what it says, and start again to go on."
        )
