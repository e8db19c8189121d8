"""Pictures of test-time scaling (Figure 9) and of scores over frames (Figure 10).

    Scaling -> maj@k and pass@k over k, with bands, and the tokens they cost
    {frames: Score} -> a line per benchmark, with intervals

The same numbers give the same file (`internvl.plots`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from internvl import plots
from internvl.evaluation.scaling import Curve, Scaling
from internvl.evaluation.scoring import Score

_FONT_SIZE = 9.0


def draw_scaling(
    panels: Mapping[str, Mapping[str, Scaling]],
    path: str | Path,
    *,
    levels: Mapping[str, Mapping[str, float]] | None = None,
    columns: int = 3,
) -> Path:
    """Draw maj@k (full lines) and pass@k (dashed) over k, a panel per task.

    The upper axis of a panel has the tokens that k answers cost, by its first run.

    Args:
        panels: title -> name of a run ("temperature 0.6") -> its curves.
        path: .png or .svg.
        levels: title -> name -> a score that does not depend on k, drawn as a dotted line
            ("greedy").
        columns: panels side by side.

    Raises:
        ValueError: nothing to draw, or another kind of file.
        ImportError: matplotlib is not installed.
    """
    if not panels or not all(panels.values()):
        raise ValueError(f"nothing to draw: {[name for name, runs in panels.items() if not runs]}.")
    names = list(dict.fromkeys(name for runs in panels.values() for name in runs))
    colours = {name: plots.COLOURS[i % len(plots.COLOURS)] for i, name in enumerate(names)}
    rows, wide = math.ceil(len(panels) / columns), min(columns, len(panels))
    size = (3.4 * wide + 0.3, 3.1 * rows + 0.5)
    with plots.figure(path, size, font_size=_FONT_SIZE) as figure:
        grid = figure.subplots(rows, wide, squeeze=False)
        for axes, (title, runs) in zip(grid.flat, panels.items(), strict=False):
            _panel(axes, title, runs, colours, (levels or {}).get(title, {}))
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        handles: dict[str, Any] = {}
        for axes in grid.flat:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        figure.legend(
            list(handles.values()), list(handles), loc="outside lower center",
            ncols=min(wide, math.ceil(len(handles) / 2)), frameon=False, fontsize=8,
        )  # fmt: skip
    return Path(path)


def _panel(
    axes: Any,
    title: str,
    runs: Mapping[str, Scaling],
    colours: Mapping[str, str],
    levels: Mapping[str, float],
) -> None:
    for name, run in runs.items():
        _line(axes, run.majority, f"maj@k, {name}", colours[name], "-", 0.16)
        _line(axes, run.passed, f"pass@k, {name}", colours[name], "--", 0.08)
    for index, (name, value) in enumerate(levels.items()):
        style = (0, (1, 1 + index))
        axes.axhline(value, color="#333333", linewidth=1.0, linestyle=style, label=name)
    first = next(iter(runs.values()))
    axes.set_title(f"{title}, n = {first.n}", fontsize=10)
    ks = first.majority.ks
    ticks = [k for k in ks if k & (k - 1) == 0] or ks
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()
    axes.set_xlabel("answers per question, k")
    axes.set_ylabel(first.majority.unit_name)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    axes.spines["right"].set_visible(False)
    above = axes.secondary_xaxis("top")
    above.set_xticks(ticks, [f"{k * first.tokens:.0f}" for k in ticks])
    above.minorticks_off()
    above.tick_params(labelsize=7, length=2)
    above.set_xlabel("tokens generated per question", fontsize=7)


def _line(axes: Any, curve: Curve, label: str, colour: str, style: str, shade: float) -> None:
    values = [point.value for point in curve.points]
    axes.plot(curve.ks, values, style, color=colour, linewidth=1.5, label=label)
    if all(point.low is not None for point in curve.points):
        low, high = ([getattr(point, end) for point in curve.points] for end in ("low", "high"))
        axes.fill_between(curve.ks, low, high, color=colour, alpha=shade, linewidth=0)


def draw_frames(scores: Mapping[str, Mapping[int, Score]], path: str | Path) -> Path:
    """Draw scores over the number of frames, a line per benchmark, with their intervals.

    Args:
        scores: name -> frames -> score, as `internvl eval run --frames 16,32,48,64` has them.
        path: .png or .svg.

    Raises:
        ValueError: nothing to draw, scores in different units, or another kind of file.
        ImportError: matplotlib is not installed.
    """
    units = {score.unit_name for line in scores.values() for score in line.values()}
    if not units or not all(scores.values()):
        raise ValueError(f"nothing to draw: {dict(scores) or 'no benchmarks'}.")
    if len(units) > 1:
        raise ValueError(f"the scores are in {sorted(units)}; draw one unit in a picture.")
    with plots.figure(path, (5.6, 3.6), font_size=_FONT_SIZE) as figure:
        axes = figure.subplots()
        for index, (name, line) in enumerate(scores.items()):
            _frame_line(axes, name, line, plots.COLOURS[index % len(plots.COLOURS)])
        counts = sorted({frames for line in scores.values() for frames in line})
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("frames")
        axes.set_ylabel(units.pop())
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
        plots.bare(axes)
        axes.legend(frameon=False)
    return Path(path)


def _frame_line(axes: Any, name: str, line: Mapping[int, Score], colour: str) -> None:
    counts = sorted(line)
    label = f"{name}, n = {line[counts[0]].n}"
    values = [line[count].score for count in counts]
    axes.plot(counts, values, "o-", color=colour, markersize=4, linewidth=1.5, label=label)
    for count in counts:
        low, high = line[count].low, line[count].high
        if low is not None and high is not None:
            axes.vlines(count, low, high, color=colour, linewidth=1.0)
            axes.plot([count, count], [low, high], "_", color=colour, markersize=7)
