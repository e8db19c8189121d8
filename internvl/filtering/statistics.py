"""Counts of a run: by state, dataset, modality and rule; scores as histograms; examples.

A pure function of the data, the findings and the decisions: no times, no order of processes.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from internvl.filtering.excerpts import excerpt, shortened

STATISTICS = "statistics.json"
STATES = ("kept", "removed", "queued")
_BINS = 20
_LOGARITHMIC = 100.0  # scores that spread further than this ratio


class Tally:
    """Counts rows as they are sorted.

    Args:
        seed: chooses the examples.
        examples: that many for each rule.
    """

    def __init__(self, seed: int, examples: int) -> None:
        self.seed, self.examples = seed, examples
        self.read: Counter[tuple[str, str]] = Counter()  # (dataset, modality)
        self.flagged: Counter[tuple[str, str, str]] = Counter()  # (dataset, modality, state)
        self.by_rule: Counter[tuple[str, str]] = Counter()  # (rule, state)
        self.by_rule_and_dataset: Counter[tuple[str, str]] = Counter()
        self.by_rule_and_modality: Counter[tuple[str, str]] = Counter()
        self.alone: Counter[str] = Counter()
        self.scores: dict[str, list[float]] = {}
        self.thresholds: dict[str, float] = {}
        self.judge: dict[str, Counter[str]] = {}
        self.stale = 0
        self._chosen: dict[str, list[tuple[int, str, dict[str, Any]]]] = {}

    def add_shard(self, dataset: str, ends: Sequence[Mapping[str, Any]]) -> None:
        """Count the rows of a shard, given the last lines of its findings."""
        for modality, count in ends[0]["modalities"].items():
            self.read[dataset, modality] += count
        for end in ends:
            for kind, counts in end["scores"].items():
                self.judge.setdefault(kind, Counter()).update(counts)

    def add_flagged(self, entry: Mapping[str, Any], state: str, *, stale: bool) -> None:
        """Count a flagged row.

        Args:
            entry: its line of the queue.
            state: where it goes.
            stale: whether a decision was on another content.
        """
        dataset, modality = entry["dataset"], entry["modality"]
        self.flagged[dataset, modality, state] += 1
        self.stale += stale
        rules = {verdict["rule"]: verdict for verdict in entry["verdicts"]}
        if len(rules) == 1:
            self.alone.update(list(rules))
        for rule, verdict in rules.items():
            self.by_rule[rule, state] += 1
            self.by_rule_and_dataset[rule, dataset] += 1
            self.by_rule_and_modality[rule, modality] += 1
            self.scores.setdefault(rule, []).append(verdict["score"])
            self.thresholds[rule] = verdict["threshold"]
            self._choose(rule, entry, verdict, state)

    def _choose(
        self, rule: str, entry: Mapping[str, Any], verdict: Mapping[str, Any], state: str
    ) -> None:
        """Keep the example if its draw is among the lowest: a sample without order or memory."""
        text = f"{self.seed}|{rule}|{entry['key']}".encode()
        draw = -int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
        heap = self._chosen.setdefault(rule, [])
        if len(heap) < self.examples:
            heapq.heappush(heap, (draw, entry["key"], _example(entry, verdict, state)))
        elif heap and draw > heap[0][0]:
            heapq.heapreplace(heap, (draw, entry["key"], _example(entry, verdict, state)))

    # ------------------------------------------------------------------ as a file
    def as_dict(self, policy: str) -> dict[str, Any]:
        """What statistics.json holds.

        Raises:
            ValueError: rows were lost or doubled; a fault of this program.
        """
        rules = sorted(self.scores, key=lambda rule: (-len(self.scores[rule]), rule))
        return {
            "policy": policy,
            **self._counts(list(self.read)),
            "flagged": self.flagged.total(),
            "stale_decisions": self.stale,
            "datasets": self._grouped(0),
            "modalities": self._grouped(1),
            "rules": {rule: self._rule(rule) for rule in rules},
            "judge": {
                kind: {score: counts[score] for score in sorted(counts, key=int)}
                for kind, counts in sorted(self.judge.items())
            },
        }

    def _grouped(self, part: int) -> dict[str, dict[str, int]]:
        """Counts by dataset (0) or by modality (1), in the order of the corpus."""
        names = dict.fromkeys(pair[part] for pair in self.read)
        return {name: self._counts([p for p in self.read if p[part] == name]) for name in names}

    def _counts(self, pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
        """Rows read and where they went; what nothing flagged was kept."""
        read = sum(self.read[pair] for pair in pairs)
        flagged = {s: sum(self.flagged[(*pair, s)] for pair in pairs) for s in STATES}
        clean = read - sum(flagged.values())
        if clean < 0:
            raise ValueError(f"{pairs}: {read} rows were read, but {flagged} are flagged.")
        return {
            "read": read,
            **flagged,
            "kept": clean + flagged["kept"],
            "accepted": flagged["kept"],
        }

    def _rule(self, rule: str) -> dict[str, Any]:
        examples = sorted(self._chosen.get(rule, ()), key=lambda each: -each[0])
        return {
            "flagged": len(self.scores[rule]),
            "alone": self.alone[rule],
            **{state: self.by_rule[rule, state] for state in STATES},
            "datasets": _of(rule, self.by_rule_and_dataset),
            "modalities": _of(rule, self.by_rule_and_modality),
            "threshold": self.thresholds[rule],
            "histogram": histogram(self.scores[rule]),
            "examples": [example for _, _, example in examples],
        }


def _of(rule: str, counts: Mapping[tuple[str, str], int]) -> dict[str, int]:
    return {other: count for (name, other), count in counts.items() if name == rule}


def _example(entry: Mapping[str, Any], verdict: Mapping[str, Any], state: str) -> dict[str, Any]:
    """What the report shows of a sample."""
    turns = [turn["text"] for turn in entry["turns"]]
    cut = excerpt(turns, verdict["span"])
    whole = shortened(turns[-1] if turns else entry.get("raw", ""), 600)
    return {
        **{name: entry[name] for name in ("key", "where", "dataset", "modality")},
        "state": state,
        "score": verdict["score"],
        "threshold": verdict["threshold"],
        "note": verdict["note"],
        "turn": cut.turn if cut else None,
        "before": cut.before if cut else "",
        "marked": cut.marked if cut else "",
        "after": cut.after if cut else whole,
    }


def histogram(scores: Iterable[float], bins: int = _BINS) -> dict[str, list[float]]:
    """Counts of scores between edges, evenly, or by ratio where they spread far.

    Args:
        scores: at least one.
        bins: how many.

    Returns:
        `edges` (bins + 1) and `counts` (bins); one bin if all scores are equal. Scores that are
        not finite are counted in `infinite`.
    """
    scores = list(scores)
    finite = [score for score in scores if math.isfinite(score)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    if low == high:
        counts: list[float] = [len(finite)]
        return {"edges": [low, high], "counts": counts, "infinite": [len(scores) - len(finite)]}
    ratio = low > 0 and high / low > _LOGARITHMIC
    first, last = (math.log(low), math.log(high)) if ratio else (low, high)
    counts = [0] * bins
    for score in finite:
        place = ((math.log(score) if ratio else score) - first) / (last - first)
        counts[min(bins - 1, int(place * bins))] += 1
    steps = [first + (last - first) * i / bins for i in range(bins + 1)]
    edges = [round(math.exp(step) if ratio else step, 6) for step in steps]
    return {"edges": edges, "counts": counts, "infinite": [len(scores) - len(finite)]}


def read_statistics(folder: Path) -> Mapping[str, Any]:
    """What a run counted.

    Raises:
        FileNotFoundError: the run is not complete.
    """
    path = folder / STATISTICS
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} holds no {STATISTICS}; the run is not complete, or this is no output folder."
        )
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
