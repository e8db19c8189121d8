"""From names to what an engine is to run: its own keys, and the columns of the report they measure.

A name is a benchmark ("docvqa"), which stands for the keys that measure its columns, or else a key
of the engine ("DocVQA_VAL"), which stands for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from internvl.evaluation.benchmarks import Benchmark, folded, get, load

TITLES = {"vlmevalkit": "VLMEvalKit", "lmms_eval": "lmms-eval", "lm_eval": "lm-eval"}
MODES = ("direct", "cot")


@dataclass(frozen=True)
class Choice:
    """A key of an engine, chosen for a benchmark.

    Attributes:
        benchmark: whose it is.
        key: what the engine calls it.
    """

    benchmark: Benchmark
    key: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the report that it measures; none for another split, or a part."""
        return self.benchmark.measures.get(self.key, ())


def choose(names: Sequence[str], engine: str, mode: str = "direct") -> list[Choice]:
    """What an engine is to run.

    Keys may be written in another case. Of a benchmark's keys those are taken that measure columns
    which no earlier one does. In mode "cot" keys that ask for reasoning themselves (`..._COT`) come
    first, in mode "direct" they are left out.

    Args:
        names: benchmarks, or keys of the engine.
        engine: "vlmevalkit" or "lmms_eval".
        mode: "direct" or "cot".

    Raises:
        ValueError: an unknown name or mode, a benchmark that the engine lacks (who has it is said),
            another engine's key, or in mode "cot" a benchmark that the report runs without
            reasoning, or for which lmms-eval has no task that asks for it.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; expected one of {', '.join(MODES)}.")
    if not names:
        raise ValueError("name at least one benchmark; `internvl eval list` shows them.")
    chosen: list[Choice] = []
    for name in names:
        benchmark = get(name)
        _check_mode(benchmark, mode)
        keys = benchmark.engines.get(engine, ())
        if not keys:
            raise ValueError(_lacking(benchmark, engine))
        chosen += [Choice(benchmark, key) for key in _keys(name, benchmark, engine, mode)]
    return list(dict.fromkeys(chosen))


def owners(key: str, engine: str) -> list[Benchmark]:
    """The benchmarks that have a key of an engine; RefCOCO serves three."""
    return [each for each in load().values() if key in each.engines.get(engine, ())]


def _check_mode(benchmark: Benchmark, mode: str) -> None:
    if mode == "cot" and benchmark.cot == "no":
        raise ValueError(
            f"the report asks {benchmark.name} without chain of thought; run it in mode direct, "
            "apart from those with."
        )


def _keys(name: str, benchmark: Benchmark, engine: str, mode: str) -> list[str]:
    """The key that a name is, or those that stand for the benchmark."""
    keys = benchmark.engines[engine]
    if mode == "cot" and engine == "lmms_eval" and not any(map(_reasons, keys)):
        raise ValueError(
            f"lmms-eval has no task of {benchmark.name} that asks for reasoning; run mode direct, "
            "or another engine."
        )
    # lmms-eval has tasks that are called as a whole benchmark is (`ai2d`, of two settings).
    if name in keys and name != benchmark.key:
        return [name]
    if folded(name) != folded(benchmark.key):
        if own := [key for key in keys if folded(key) == folded(name)]:
            return own[:1]
        for other, theirs in benchmark.engines.items():
            if other != engine and name in theirs:
                raise ValueError(
                    f"{name} is what {TITLES[other]} calls a part of {benchmark.name}; "
                    f"{TITLES[engine]} has {', '.join(keys)}."
                )
    return _measuring(benchmark, keys, mode)


def _reasons(key: str) -> bool:
    return key.lower().endswith("_cot")


def _measuring(benchmark: Benchmark, keys: Sequence[str], mode: str) -> list[str]:
    reasoning = [key for key in keys if _reasons(key)]
    others = [key for key in keys if key not in reasoning]
    found: list[str] = []
    covered: set[str] = set()
    for key in [*reasoning, *others] if mode == "cot" else others:
        columns = set(benchmark.measures.get(key, ()))
        if columns - covered:
            found.append(key)
            covered |= columns
    # A benchmark of which the engine has another split only, or aggregates it differently.
    return found or others[:1]


def _lacking(benchmark: Benchmark, engine: str) -> str:
    others = [TITLES.get(each, each) for each in benchmark.engines]
    own = f"; the built-in runner can (`internvl eval run {benchmark.key}`)"
    return (
        f"{TITLES[engine]} has no {benchmark.name}"
        + (f"; {' and '.join(others)} has" if others else "")
        + (own if benchmark.metric else "")
        + "."
    )
