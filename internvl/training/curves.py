"""`internvl train curves`: the losses of runs as a picture, and as JSON to draw them from again.

A run is a folder that `internvl train` wrote; its newest checkpoint holds the log of all its steps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from internvl import plots
from internvl.training.trainer import last_checkpoint

Points = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Curve:
    """The losses of a run.

    Attributes:
        name: of the run, for the legend.
        train: (step, loss), each the mean since the point before.
        held_out: (step, loss) on the evaluation data of the recipe; empty without one.
    """

    name: str
    train: Points
    held_out: Points = ()


def read(source: str | Path) -> list[Curve]:
    """The curve of a run's folder, or all curves of a JSON file of `save`.

    Raises:
        FileNotFoundError: a folder without a complete checkpoint.
    """
    path = Path(source)
    if path.suffix == ".json":
        return [
            Curve(row["name"], _points(row["train"]), _points(row["held_out"]))
            for row in json.loads(path.read_text(encoding="utf-8"))
        ]
    checkpoint = last_checkpoint(path)
    if checkpoint is None:
        raise FileNotFoundError(
            f"{path} holds no complete checkpoint; expected the folder of a run, runs/..., or a "
            "JSON file that `internvl train curves --json` wrote."
        )
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    rows = state["log_history"]
    return [Curve(path.name, _column(rows, "loss"), _column(rows, "eval_loss"))]


def _column(rows: Sequence[dict[str, Any]], name: str) -> Points:
    return tuple((row["step"], round(row[name], 4)) for row in rows if name in row)


def _points(pairs: Sequence[Sequence[float]]) -> Points:
    return tuple((int(step), float(loss)) for step, loss in pairs)


def save(curves: Sequence[Curve], path: str | Path) -> None:
    """Write curves as JSON, one run a line."""
    lines = ",\n".join(json.dumps(asdict(curve)) for curve in curves)
    Path(path).write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def draw(curves: Sequence[Curve], path: str | Path, *, overlay: bool = False) -> Path:
    """Draw curves; held-out losses are dashed.

    Needs matplotlib (`pip install 'internvl[plot]'`).

    Args:
        curves: what to draw.
        path: picture to write, .png or .svg.
        overlay: let every run begin at step 0, to compare them; else each begins where the one
            before it ended, as the stages of one model do.

    Raises:
        ValueError: another suffix, or a curve without a point.
    """
    if empty := [curve.name for curve in curves if not curve.train]:
        raise ValueError(f"{empty} logged no loss yet; train for `log_every` steps first.")
    with plots.figure(path, (9, 4)) as figure:
        axes, begin = figure.subplots(), 0
        for curve, colour in zip(curves, cycle(plots.COLOURS)):
            _line(axes, curve.train, begin, color=colour, label=curve.name)
            _line(axes, curve.held_out, begin, color=colour, linestyle="--", marker=".")
            if not overlay:
                begin += curve.train[-1][0]
                axes.axvline(begin, color="#c8c8c8", linewidth=0.8, zorder=0)
        axes.set(xlabel="steps", ylabel="loss", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(which="minor", labelsize=7)
        plots.bare(axes)
        axes.legend(frameon=False)
    return Path(path)


def _line(axes: Any, points: Points, begin: int, **style: Any) -> None:
    if points:
        axes.plot([begin + step for step, _ in points], [loss for _, loss in points], **style)
