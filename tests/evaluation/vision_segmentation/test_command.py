from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from internvl.evaluation.vision.segmentation.commands import COMMANDS, segment
from tests.evaluation.vision_segmentation.small import write_rectangles

SMALL = ["--layout", "folders", "--size", "28", "--device", "cpu", "--workers", "0"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(write_rectangles(tmp_path_factory.mktemp("command"), train=3, val=2))


def invoke(*arguments: str):
    app = typer.Typer()
    app.command()(segment)
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_train_resume_evaluate(root, tmp_path):
    """The demo's encoder, from the command line."""
    assert (segment,) == COMMANDS
    out = ["--out", str(tmp_path / "run")]
    train = [root, *out, *SMALL, "--iterations", "2", "--batch", "2", "--lr", "0.01"]
    said = invoke(*train)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    line = f"linear, 2 images: miou {results['miou']:.2f}"
    assert line in said
    assert (results["model"], results["layout"]) == ("demo", "folders")
    assert results["settings"]["weight_decay"] == 0
    assert results["encoder"]["before"] == results["encoder"]["after"]
    assert line in invoke(*train, "--resume")  # nothing is left to do
    (tmp_path / "run" / "results.json").unlink()
    assert line in invoke(root, *out, *SMALL, "--evaluate")
    with pytest.raises(ValueError, match="holds a run"):
        invoke(*train)


def test_faults(root, tmp_path):
    out = ["--out", str(tmp_path / "run")]
    with pytest.raises(ValueError, match="linear, head, full"):
        invoke(root, *out, *SMALL, "--mode", "probe")
    with pytest.raises(FileNotFoundError, match="--layout"):
        invoke(root, *out, "--layout", "ade20k", "--device", "cpu")
    with pytest.raises(ValueError, match="correct --size"):
        invoke(root, *out, *SMALL, "--size", "30", "--iterations", "1", "--warmup", "0")
    with pytest.raises(FileNotFoundError, match="train first"):
        invoke(root, *out, *SMALL, "--evaluate")
