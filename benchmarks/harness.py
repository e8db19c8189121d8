"""What the benchmarks share: the command line, interleaved timing, peak memory, the record.

    variants -> warm-up -> rounds (every variant once per round) -> ratio of each round -> median

A ratio is taken within a round, of process CPU time (all threads of the process), because the
variants of a round see the same machine; wall time stands beside it. The models are those of
`random_models.py`. Nothing in this file measures by itself.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
if find_spec("internvl") is None:  # a bare clone, run as `python benchmarks/name.py`
    sys.path.append(str(ROOT))


# ---------------------------------------------------------------------- command line
def parser(doc: str) -> argparse.ArgumentParser:
    """The options that every benchmark has; `doc` is the docstring of its module."""
    options = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--json", action="store_true", help="print one line of JSON")
    options.add_argument("--full", action="store_true", help="full depth, for the published table")
    options.add_argument("--rounds", type=int, default=5, help="timed rounds (default: 5)")
    options.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    options.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="auto: bfloat16 where the CPU multiplies bfloat16 matrices, else float32",
    )
    options.add_argument(
        "--no-memory", action="store_true", help="skip what needs processes of their own"
    )
    options.add_argument("--smoke", action="store_true", help="toy widths: does the script run?")
    return options


def run(measure: Callable[[argparse.Namespace], dict[str, Any]], options: Any) -> None:
    """Set the process up, measure, print the record."""
    torch.set_num_threads(options.threads)
    quiet()
    record = measure(options)
    print(json.dumps(record) if options.json else table(record))


def entry(
    doc: str | None, measure: Callable[[argparse.Namespace], dict[str, Any]], *, rounds: int = 5
) -> Callable[[Sequence[str] | None], None]:
    """The `main` of a script that has no options of its own."""

    def main(arguments: Sequence[str] | None = None) -> None:
        options = parser(doc or "")
        options.set_defaults(rounds=rounds)
        run(measure, options.parse_args(arguments))

    return main


def quiet() -> None:
    """Turn off progress bars and warnings of transformers, which cost time and say nothing here."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("torch").setLevel(logging.ERROR)


def has_bf16_units() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in hardware; where not, float32 is faster."""
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def choose_dtype(name: str) -> torch.dtype:
    """The dtype of `--dtype`."""
    if name == "auto":
        name = "bfloat16" if has_bf16_units() else "float32"
    return getattr(torch, name)


# ---------------------------------------------------------------------- equality
def relative_difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """|first - second| / |second|, Euclidean, in float64."""
    first, second = first.double(), second.double()
    return float((first - second).norm() / second.norm())


def require(flags: dict[str, Any]) -> dict[str, Any]:
    """Return `flags`.

    Raises:
        RuntimeError: one of them is False; there is no point in timing different results.
    """
    wrong = [name for name, value in flags.items() if value is False]
    if wrong:
        raise RuntimeError(f"not equal, so nothing was timed: {wrong}; all of it: {flags}")
    return flags


# ---------------------------------------------------------------------- time
@dataclass
class Timing:
    """Seconds of each round.

    Attributes:
        cpu: process CPU time, user and system, all threads.
        wall: wall time.
    """

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median of the CPU time."""
        return statistics.median(self.cpu)


def interleave(
    variants: dict[str, Callable[[], Any]], rounds: int, *, warm_up: int = 1
) -> dict[str, Timing]:
    """Time every variant once per round, in turning order.

    Args:
        variants: what to call; freeing its result is not timed.
        rounds: timed rounds.
        warm_up: rounds before that.
    """
    timings = {name: Timing() for name in variants}
    names = list(variants)
    with torch.inference_mode():
        for number in range(-warm_up, rounds):
            gc.collect()
            for name in names if number % 2 == 0 else reversed(names):
                wall, cpu = time.perf_counter(), time.process_time()
                result = variants[name]()
                cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
                del result
                if number >= 0:
                    timings[name].cpu.append(cpu)
                    timings[name].wall.append(wall)
    return timings


def derived(formula: Callable[..., float], *timings: Timing) -> Timing:
    """A timing computed from others, round by round."""
    columns = ([getattr(timing, kind) for timing in timings] for kind in ("cpu", "wall"))
    cpu, wall = ([formula(*row) for row in zip(*column, strict=True)] for column in columns)
    return Timing(cpu, wall)


# ---------------------------------------------------------------------- memory
def peak_rss() -> int | None:
    """Highest resident memory of this process in bytes, file-backed pages included; None where
    the system does not tell.

    `ru_maxrss` would be wrong in a child process: it starts at the size of the parent.
    """
    return _status("VmHWM")


def rss() -> int | None:
    """Resident memory of this process in bytes; None where the system does not tell."""
    return _status("VmRSS")


def reset_peak() -> None:
    """Let `peak_rss` start again from what is resident now."""
    gc.collect()
    marker = Path("/proc/self/clear_refs")
    if marker.exists():
        marker.write_text("5", encoding="ascii")


def _status(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def in_child(script: str | Path, *arguments: str) -> dict[str, Any]:
    """Run a script in a fresh interpreter, where no earlier variant has left memory behind.

    Returns:
        What it printed as its last line, JSON.

    Raises:
        RuntimeError: it failed; its last words are in the message.
    """
    command = [sys.executable, str(script), *arguments]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {child.stderr[-2000:]}")
    return json.loads(child.stdout.splitlines()[-1])


def child_arguments(options: argparse.Namespace) -> list[str]:
    """The common options, to be passed on to a child."""
    flags = [f"--{name}" for name in ("full", "smoke") if getattr(options, name)]
    return [*flags, "--threads", str(options.threads), "--dtype", options.dtype]


# ---------------------------------------------------------------------- record
def compare(
    row: str,
    ours: Timing,
    peer: Timing,
    *,
    peer_name: str,
    at_least: float | None = None,
    at_most: float | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """A row: CPU time of the peer over ours with `at_least` (or no target), ours over the peer's
    with `at_most`."""

    def ratios(kind: str) -> list[float]:
        pairs = zip(getattr(ours, kind), getattr(peer, kind), strict=True)
        return [a / b if at_most is not None else b / a for a, b in pairs]

    cpu = ratios("cpu")
    return {
        "row": row,
        "metric": f"CPU time, {'ours / peer' if at_most is not None else 'peer / ours'}",
        "peer": peer_name,
        "value": round(statistics.median(cpu), 3),
        "spread": [round(min(cpu), 3), round(max(cpu), 3)],
        "wall_value": round(statistics.median(ratios("wall")), 3),
        **_verdict(statistics.median(cpu), at_least, at_most),
        "cpu_s": round(ours.median, 5),
        "peer_cpu_s": round(peer.median, 5),
        "wall_s": round(statistics.median(ours.wall), 5),
        "peer_wall_s": round(statistics.median(peer.wall), 5),
        "rounds": len(cpu),
        **extra,
    }


def amount(
    row: str,
    value: float,
    metric: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """A row that is one number, e.g. a share of memory."""
    verdict = _verdict(value, at_least, at_most)
    return {"row": row, "metric": metric, "value": round(value, 3), **verdict, **extra}


def _verdict(value: float, at_least: float | None, at_most: float | None) -> dict[str, Any]:
    if at_least is not None:
        return {"target": f">= {at_least}", "met": value >= at_least}
    if at_most is not None:
        return {"target": f"<= {at_most}", "met": value <= at_most}
    return {"target": None, "met": None}


class Record:
    """Collects what a benchmark found, with what anybody needs to judge it.

    Args:
        benchmark: its name.
        question: what it answers.
        options: its command line.
        dtype: dtype of the models; None where there are none.
    """

    def __init__(
        self, benchmark: str, question: str, options: Any, dtype: torch.dtype | None = None
    ) -> None:
        self.start, self.load = time.perf_counter(), os.getloadavg()
        self.rows: list[dict[str, Any]] = []
        self.head = {
            "benchmark": benchmark,
            "question": question,
            "command": " ".join(["python", f"benchmarks/{benchmark}.py", *sys.argv[1:]]),
            "smoke": options.smoke,
            "full": options.full,
            "threads": torch.get_num_threads(),
            "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
            "dtype_asked": options.dtype,
        }

    def add(self, *rows: dict[str, Any]) -> None:
        """Add rows of `compare` and `amount`."""
        self.rows.extend(rows)

    def finish(self, **extra: Any) -> dict[str, Any]:
        """The whole record; `extra` goes in as it is, `equality` among it."""
        if self.head["smoke"]:  # toy widths: no target was meant for them
            self.rows = [{**row, "met": None} for row in self.rows]
        judged = [row["met"] for row in self.rows if row["met"] is not None]
        return {
            **self.head,
            **machine(),
            "load_average": [round(self.load[0], 2), round(os.getloadavg()[0], 2)],
            "seconds": round(time.perf_counter() - self.start, 1),
            **extra,
            "rows": self.rows,
            "met": all(judged) if judged else None,
        }


def machine() -> dict[str, Any]:
    """The machine and the versions."""
    names = ("torch", "transformers", "pillow", "numpy")
    return {
        "device": "cpu",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "amx": bool(torch.cpu._is_amx_tile_supported()),
        "bf16_units": has_bf16_units(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    before, after = record["load_average"]
    lines = [
        f"{record['benchmark']}: {record['question']}",
        f"{record['cpu']}, {record['cores']} cores, AMX {'yes' if record['amx'] else 'no'}, "
        f"{record['dtype'] or 'no model'}, threads {record['threads']}, "
        f"load {before} -> {after}, {record['seconds']} s",
        f"{versions}, python {record['python']}",
        f"equality: {json.dumps(record.get('equality'))}",
        "",
    ]
    width = max(len(row["row"]) for row in record["rows"])
    for row in record["rows"]:
        lines.extend(_row_lines(row, width))
    return "\n".join(lines)


def _row_lines(row: dict[str, Any], width: int) -> Iterable[str]:
    verdict = {True: "met", False: "NOT MET", None: "not judged"}[row["met"]]
    target = f"target {row['target']}: {verdict}" if row["target"] else ""
    if "cpu_s" in row:
        low, high = row["spread"]
        yield (
            f"{row['row']:{width}}  {row['cpu_s']:9.4f} s  {row['peer_cpu_s']:9.4f} s "
            f"{row['peer']:24} {row['metric'].removeprefix('CPU time, ')} {row['value']:6.2f} "
            f"({low:.2f}..{high:.2f}, wall {row['wall_value']:.2f})  {target}"
        )
    else:
        yield f"{row['row']:{width}}  {row['value']:9.3f} {row['metric']}  {target}"
    for key in ("scaling", "bound", "note"):
        if row.get(key):
            yield f"{'':{width}}    {key}: {row[key]}"
