"""Draw the pictures of docs/images that show results, again from the kept results.

    python docs/scripts/plots.py            # SVG and PNG of each
    python docs/scripts/plots.py NAME ...   # some of them

Nothing is measured here: each page says how its results were made. Device plans and packing are
computed from configs and seeded samples, in seconds. docs/images/performance.* comes from
`python benchmarks/report.py --render`, data_flow.* from docs/scripts/data_flow.py, and the
pictures of the app from `python -m tests.app.screenshots`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
_GPUS = (("26B", "3x24GiB"), ("26B", "2x48GiB"), ("26B", "1x80GiB"), ("78B", "1x80GiB"))
_GPUS += (("78B", "2x80GiB"), ("78B", "4x48GiB"))


def training(path: Path) -> None:
    """Losses of the demo's runs (docs/log.md)."""
    from internvl.training import curves

    curves.draw(curves.read(ROOT / "docs" / "demo_training.json"), path)


def progressive(path: Path) -> None:
    """Losses with and without a transferred vision encoder (docs/progressive.md)."""
    from internvl.training import curves

    curves.draw(curves.read(ROOT / "docs" / "demo_progressive.json"), path, overlay=True)


def loops(path: Path) -> None:
    """Answers that loop, by training data (docs/filtering.md)."""
    from internvl.training.demo import loops as module

    rows = json.loads((ROOT / "docs" / "demo_loops.json").read_text("utf-8"))
    module.draw(rows, path)


def voting(path: Path) -> None:
    """maj@k and pass@k of the demo (docs/test_time_scaling.md)."""
    from internvl.training.demo import voting as module

    module.draw(module.read(ROOT / "docs" / "voting.json"), path)


def packing(path: Path) -> None:
    """How full rows are by the three rules (docs/training.md)."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from packing import mixes

    from internvl.data.pack_report import compare_rules, draw
    from internvl.data.packing import Item, Limits

    items = [Item(*size, (index,)) for index, size in enumerate(mixes().samples("stage2"))]
    draw(compare_rules(items, Limits(max_tokens=16384, max_tiles=48)), path)


def device_plan(path: Path) -> None:
    """What fills GPUs of some sizes (docs/scaling.md)."""
    from internvl.checkpoints.plan import plan
    from internvl.checkpoints.plan_picture import draw

    draw([plan(size, gpus=gpus) for size, gpus in _GPUS], path)


PLOTS: dict[str, Callable[[Path], None]] = {
    "demo_training": training,
    "demo_progressive": progressive,
    "demo_loops": loops,
    "voting": voting,
    "packing": packing,
    "device_plan": device_plan,
}


def main(arguments: list[str] | None = None) -> None:
    """Draw them."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("name", nargs="*", choices=[*PLOTS, []], help="of pictures; default: all")
    options.add_argument("--out", type=Path, default=IMAGES, help="folder (default: docs/images)")
    chosen = options.parse_args(arguments)
    for name in chosen.name or PLOTS:
        for suffix in (".svg", ".png"):
            PLOTS[name](chosen.out / f"{name}{suffix}")


if __name__ == "__main__":
    main()
