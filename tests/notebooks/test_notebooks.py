"""The notebooks: what a clone holds is clean, and each runs top to bottom.

One kernel per test process runs them, emptied in between, because imports take longer than most
notebooks; `make test-slow` gives each a kernel of its own.

The values that a notebook is about are read from its kernel after its last cell, so that no
notebook has to assert anything in front of its reader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import support

nbformat = pytest.importorskip("nbformat", reason="pip install -e '.[notebooks]'")
nbclient = pytest.importorskip("nbclient", reason="pip install -e '.[notebooks]'")
jupyter_client = pytest.importorskip("jupyter_client", reason="pip install -e '.[notebooks]'")

FOLDER = support.ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
STRIP = "jupyter nbconvert --clear-output --inplace notebooks/*.ipynb"


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_of(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


# ---------------------------------------------------------------------- as they stand in git
def test_there_are_seven():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"0{number}" for number in range(1, 8)]
    assert {path.stem for path in NOTEBOOKS} == set(PICTURES) == set(WANTED)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stripped_and_stable(path):
    text, notebook = path.read_text("utf-8"), read(path)
    nbformat.validate(notebook)
    assert json.loads(text)["metadata"] == METADATA, f"strip it: {STRIP}"
    assert len(notebook.cells) <= 12
    for number, cell in enumerate(notebook.cells, 1):
        assert cell.id == f"cell-{number:02}"
        assert cell.metadata == {}
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), f"strip it: {STRIP}"
    assert text == nbformat.writes(notebook) + "\n"  # as Jupyter saves it, so diffs stay small


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_tells_what_how_long_and_what_next(path):
    notebook = read(path)
    first = notebook.cells[0].source
    assert first.startswith("# ")
    assert "**You learn**" in first
    assert "**Time**" in first
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "\n## Next\n" in prose
    for target in re.findall(r"\]\(([^)#]+)\)", prose):
        assert (path.parent / target).exists(), target
    for source in code_of(notebook):  # Python alone: no shell, no magic, no installation
        compile(source, path.name, "exec")


# ---------------------------------------------------------------------- in a kernel
PICTURES = {
    "01_quick_start": 4,
    "02_tiling": 5,
    "03_images_and_videos": 3,
    "04_finetuning": 3,
    "05_packing": 5,
    "06_voting": 2,
    "07_published_checkpoints": 2,
}
# Names, figures and random numbers of the notebook before.
EMPTY = """get_ipython().reset(new_session=False)
import random as _random, numpy as _numpy, torch as _torch, matplotlib.pyplot as _pyplot
_pyplot.close("all"), _pyplot.rcdefaults()
[each.seed(0) for each in (_random, _numpy.random)] + [_torch.manual_seed(0)];"""
# Of each notebook: an expression for its kernel, and what it has to be, or has to fulfil.
WANTED: dict[str, dict[str, Any]] = {
    "01_quick_start": {
        "answer": "cross",
        "session.history[-1][1]": "6",
        "answers": {
            "star.jpg": "top right",
            "number.png": "42",
            "sign.png": "ALBUM",
            "chart.png": "blue",
            "umbrella.png": "umbrella",
            "cat.jpg": "cat",
        },
        "[box.label for box in boxes]": ["blue square", "green triangle"],
        "min(box.valid for box in boxes)": True,
        "plain": ["red"],
    },
    "02_tiling": {
        "[[each.tiling.rows, each.tiling.cols] for each in media]": [[2, 3], [1, 3]],
        "list(pixels.shape)": [4, 3, 448, 448],
        "[int(tiles.min()), int(tiles.max())]": [1, 13],
        "costs": {
            "defaults": [3328, 1792, 3328],
            "max_tiles=6": [1792, 1792, 256],
            "max_tiles=1": [256, 256, 256],
            "upscale=False": [3328, 1792, 256],
        },
        "right_words[1]": 0,
        "right_words[3]": lambda right: right >= 7,
    },
    "03_images_and_videos": {
        "list(compared.values())": ["Image-2", "Image-2"],
        "said": ["circle", "red", "yellow", "star"],
        "reused": lambda tokens: tokens[0] == 0 and min(tokens[1:]) > 40,
        "computed": lambda tokens: max(tokens[1:]) < 45,
        "[direction, from_list]": ["right", "right"],
        "replies[1:]": ["red", "Image-2", "right"],
    },
    "04_finetuning": {
        "share_right(json_before)": 0,
        "share_right(json_after)": lambda share: share >= 0.9,
        "share_right(color_before, 'color')": lambda share: share >= 0.9,
        "curve.train[-1][1] / curve.train[0][1]": lambda ratio: ratio < 0.05,
        "share_right(json_again)": lambda share: share >= 0.9,
    },
    "05_packing": {
        "fill": lambda fill: (
            fill["unpacked"] < 0.3
            and min(fill["official"], fill["report"]) > 0.95
            and fill["best_fit"] == max(fill.values()) <= 1
        ),
        "len(packs) / len(few)": lambda share: share < 0.5,
        "decisions": [[], [], [[1, 3]], [], [], [[2, 5]]],
        "abs(packed - alone) / alone": lambda error: error < 1e-4,
        "int(mask.sum()) - sum(n.tokens * (n.tokens + 1) // 2 for n in examples)": 0,
    },
    "06_voting": {
        "vote.winner": "STONE",
        "[run.majority.ks for run in found.values()]": [[1, 2, 4, 8, 16]] * 2,
        "found['temperature 1'].majority.at(16).gain": lambda gain: gain > 5,
        "found['temperature 1'].passed.at(16).value - greedy_right": lambda more: more > 0,
    },
    "07_published_checkpoints": {
        "weights['bf16'][-1]": lambda gib: abs(gib - 146.0) < 0.1,
        "plans['1x80GiB'].engine": "one GPU",
        "None in [each.engine for each in (planned, *plans.values())]": False,
        "[adopted.tensors, adopted.parameters]": [144, 6_277_056],
        "list(sound.defects)": [],
        "' '.join(damaged.defects)": lambda text: "layers.4" in text and ".safetensors" in text,
    },
}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory) -> Iterator[Any]:
    """A running kernel whose files lie in a folder of the tests."""
    folder = str(tmp_path_factory.mktemp("kernel"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(name, folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        manager = jupyter_client.KernelManager(kernel_name="python3")
        manager.start_kernel(cwd=str(FOLDER))
        yield manager
        manager.shutdown_kernel(now=True)


def run(kernel: Any, path: Path) -> None:
    notebook, wanted = read(path), WANTED[path.stem]
    asked = ", ".join(f"{each!r}: {each}" for each in wanted)
    cells = [EMPTY, f"import json as _json\nprint(_json.dumps({{{asked}}}))"]
    before, probe = map(nbformat.v4.new_code_cell, cells)
    notebook.cells = [before, *notebook.cells, probe]
    nbclient.NotebookClient(notebook, km=kernel, timeout=None, startup_timeout=600).execute()
    outputs = [each for cell in notebook.cells for each in cell.get("outputs", ())]
    assert [each.text for each in outputs if each.get("name") == "stderr"] == []
    pictures = [each.data["image/png"] for each in outputs if "image/png" in each.get("data", {})]
    assert len(pictures) == PICTURES[path.stem]
    assert min(map(len, pictures)) > 5_000  # no empty axes
    found = json.loads(probe.outputs[0].text)
    for expression, value in wanted.items():
        fulfilled = value(found[expression]) if callable(value) else value == found[expression]
        assert fulfilled, (expression, found[expression])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_top_to_bottom(path, kernel):
    run(kernel, path)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_in_a_kernel_of_its_own(path, kernel):
    kernel.restart_kernel(now=True)
    run(kernel, path)
