"""The commands for checkpoints, as a user types them."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from internvl.cli import app
from tests import support

DEMO = str(support.ROOT / "demo")


def call(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output


def test_adopt_verify_export(tmp_path):
    adopted, exported = tmp_path / "adopted", tmp_path / "exported"
    assert "everything fits" in call("adopt", DEMO, adopted, "--dry-run")
    assert not adopted.exists()
    assert "144 tensors, 6,277,056 parameters" in call("adopt", DEMO, adopted)
    assert "not an empty folder" in call("adopt", DEMO, adopted, code=2)
    assert call("verify", adopted).strip().endswith("sound")
    written = call("export", adopted, exported, "--dtype", "float32", "--max-shard-size", "9MB")
    assert "0.02 GiB" in written
    assert json.loads(call("verify", exported, "--json"))["sound"] is True
    assert len(list(exported.glob("*.safetensors"))) == 3
    (exported / "model-00001-of-00003.safetensors").unlink()
    output = call("verify", exported, "--no-values", code=1)
    assert "DEFECT  weights    model-00001-of-00003.safetensors is named by the index" in output


def test_export_of_the_demo_by_name(tmp_path):
    assert "144 tensors" in call("export", "demo", tmp_path / "out")


def test_convert(tmp_path):
    output = call("convert", DEMO, tmp_path / "native", "--to", "native")
    assert "native layout, 168 tensors" in output
    assert "logits " in output
    back = call("convert", tmp_path / "native", tmp_path / "back", "--to", "official", "--no-check")
    assert "official layout, 144 tensors" in back
    assert "not compared" in back
    assert "expected one of" in call("convert", DEMO, tmp_path / "x", "--to", "gguf", code=2)


def test_plan():
    words = ["plan", "78B", "--gpus", "4x80GiB", "--images", "4", "--max-tiles", "12"]
    output = call(*words, "--context", "16384", "--batch", "2")
    assert "78,408,318,336 parameters" in output
    assert "146.0 GiB of weights" in output
    assert "engine   tensor parallel" in output
    assert "it does not fit" in call("plan", "78B", "--gpus", "1x80GiB", code=1)
    planned = json.loads(call("plan", DEMO, "--gpus", "8GiB", "--json"))
    assert planned["engine"] == "one GPU"
    assert planned["parameters"] == 6_277_056


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["adopt", "no-such-folder/x/y", "out"], "neither a folder nor the id"),
        (["verify", "no-such-folder"], "is not a folder"),
        (["plan", "5B"], "neither a folder nor a published model"),
        (["plan", "8B", "--gpus", "many"], "gpus is 'many'"),
        (["plan", "8B", "--dtype", "fp8"], "dtype is 'fp8'"),
    ],
    ids=["adopt", "verify", "size", "gpus", "dtype"],
)
def test_errors_are_one_line(words, complaint):
    output = call(*words, code=2)
    assert output.startswith("error: ")
    assert complaint in output
    assert len(output.strip().splitlines()) == 1
