"""A plan as a picture: what fills each GPU, and what is left of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from internvl import plots
from internvl.checkpoints.device_map import GIB
from internvl.checkpoints.plan import Plan

_COLOURS = (plots.BLUE, plots.ORANGE, plots.GREEN)


def draw(plans: Sequence[Plan], path: str | Path) -> Path:
    """Draw a bar a GPU at its worst moment (`Load.used`), plan below plan; its frame is the memory.

    Args:
        plans: what to draw; without an engine, what does not fit reaches out of the frame.
        path: .png or .svg.

    Raises:
        ValueError: no plans, or another kind of file.
        ImportError: matplotlib is not installed.
    """
    if not plans:
        raise ValueError("there is no plan to draw.")
    bars = sum(len(planned.gpus) for planned in plans)
    with plots.figure(path, (9, 1.1 + 0.34 * bars + 0.16 * len(plans))) as figure:
        axes, place, ticks = figure.subplots(), 0.0, {}
        for planned in plans:
            for number, label in enumerate(_labels(planned)):
                _bar(axes, place, planned, number)
                ticks[place] = label
                place += 1.0
            place += 0.5
        axes.set_yticks(list(ticks), list(ticks.values()), fontsize=9)
        axes.tick_params(axis="y", length=0)
        axes.margins(y=0.02)
        axes.invert_yaxis()
        axes.set_xlabel("GiB of a GPU; grey is kept free")
        plots.bare(axes)
        handles, names = axes.get_legend_handles_labels()
        known = dict(zip(names, handles, strict=True))
        figure.legend(
            list(known.values()), list(known), loc="outside upper center", ncols=3, frameon=False
        )
    return Path(path)


def _labels(planned: Plan) -> list[str]:
    """Of each GPU; the first one has the plan's."""
    sizes = [f"{size / GIB:.0f} GiB" for size in planned.gpus]
    cards = " + ".join(f"{len(list(group))} x {size}" for size, group in groupby(sizes))
    what = f"{planned.training['stage']} of {planned.model}" if planned.training else planned.model
    first = f"{what}, {planned.dtype}, {cards}: {planned.engine or 'does not fit'}"
    return [first, *("" for _ in sizes[1:])]


def _bar(axes: Any, place: float, planned: Plan, number: int) -> None:
    load, size, left = planned.loads[number], planned.gpus[number] / GIB, 0.0
    axes.barh(
        place, planned.reserve / GIB, 0.8, left=size - planned.reserve / GIB, color=plots.FAINT
    )
    kept = "weights, gradients, optimiser" if planned.training else "weights"
    parts = {kept: load.weights, "keys and values": load.cache}
    parts["at work: encoding tiles, or decoding"] = load.used - sum(parts.values())
    for (label, bytes_), colour in zip(parts.items(), _COLOURS, strict=True):
        if bytes_:
            axes.barh(place, bytes_ / GIB, 0.8, left=left, color=colour, label=label)
        left += bytes_ / GIB
    colour = plots.INK if planned.headroom[number] >= 0 else plots.RED
    axes.barh(place, size, 0.8, color="none", edgecolor=colour, linewidth=1.2)
