"""Figures in files: the same bytes for the same numbers, whole or not at all.

Needs matplotlib (`pip install 'internvl[plot]'`), which is imported when something is drawn: no
display is needed, and pyplot's state is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Okabe and Ito's colours, told apart by people with any colour vision.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9",
)  # fmt: skip
INK, FAINT = "#333333", "#E4E4E4"
# Of curves, of which there may be many.
COLOURS = ("#1f6f8b", "#d1662b", "#5a8f3c", "#7d4e9e", "#b23a48", "#6b6b6b", "#c9a227")
_SUFFIXES = (".png", ".svg")


def picture_path(path: str | Path) -> Path:
    """The path of a picture.

    Raises:
        ValueError: another suffix than .png and .svg.
    """
    target = Path(path)
    if target.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"cannot draw {target}; expected a name that ends in .png or .svg.")
    return target


@contextmanager
def figure(
    path: str | Path, size: tuple[float, float], *, font_size: float = 10.0
) -> Iterator[Any]:
    """A figure of matplotlib, which is written when the block ends.

    Args:
        path: the picture; its suffix says of what kind. Folders are made.
        size: width and height in inches; a PNG has 150 pixels an inch.
        font_size: in points.

    Raises:
        ValueError: as `picture_path`.
        ImportError: matplotlib is not installed.
    """
    target = picture_path(path)
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'internvl[plot]'.") from error
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.hashsalt": "internvl", "svg.fonttype": "none", "font.size": font_size,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        drawn = Figure(figsize=size, layout="constrained")
        yield drawn
        kind = target.suffix.lower().removeprefix(".")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        # The date in an SVG, and the version in both, would make it another file.
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        drawn.savefig(temporary, format=kind, dpi=150, metadata=metadata)
        temporary.replace(target)


def bare(axes: Any) -> None:
    """Take the upper and the right line of the frame away."""
    axes.spines[["top", "right"]].set_visible(False)
