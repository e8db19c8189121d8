"""`internvl eval engine ...`: options reach the engines, and mistakes are named."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from internvl.evaluation.engines import commands, lm_eval, lmms_eval, vlmevalkit
from internvl.evaluation.engines import vlmevalkit_checkout as checkouts
from internvl.evaluation.engines.lm_eval import LanguageScore
from internvl.evaluation.engines.vlmevalkit_results import DataScore

app = typer.Typer()
for _name, _command in commands.COMMANDS.items():
    app.command(_name)(_command)


def invoke(*words: str) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.output, result.exception


@pytest.mark.parametrize("name", list(commands.COMMANDS))
def test_help(name):
    code, output, _ = invoke(name, "--help")
    assert code == 0
    assert "--subfolder" in output


def test_vlmevalkit(tmp_path, monkeypatch):
    (tmp_path / "run.py").write_text("")
    monkeypatch.setattr(checkouts, "_difference", lambda *_: "")
    seen = {}

    def run(names, model, out, **options):
        seen.update(names=names, model=model, out=out, **options)
        score = DataScore("DocVQA_TEST", 2, 0, 0, {"Overall": 50.0}, {"DocVQA (test)": 50.0})
        return {"docvqa": [score]}

    monkeypatch.setattr(vlmevalkit, "run", run)
    common = ["vlmevalkit", "docvqa", "--checkout", str(tmp_path), "--out", str(tmp_path / "o")]
    code, output, error = invoke(
        *common, "--frames", "16,32", "--local", "Mine=CustomMCQDataset", "--own-prompt", "CharXiv"
    )
    assert code == 0, error
    assert "DocVQA (test)" in output
    assert (seen["names"], seen["frames"]) == (["docvqa"], (16, 32))
    assert seen["local"] == {"Mine": "CustomMCQDataset"}
    assert seen["own_prompts"] == ("MMMU_Pro", "CharXiv")
    assert seen["settings"] == {"max_new_tokens": 4096}
    code, output, _ = invoke(*common, "--json")
    assert json.loads(output)["docvqa"][0]["metrics"] == {"Overall": 50.0}
    assert "expected numbers" in str(invoke(*common, "--frames", "16;32")[2])
    assert "no NAME=CLASS" in str(invoke(*common, "--local", "Mine")[2])


def test_lmms_eval(tmp_path, monkeypatch):
    seen = {}

    def run(names, model, out, **options):
        seen.update(options, names=names)
        return {"docvqa": {"docvqa_val": {"anls,none": 0.5}}}

    monkeypatch.setattr(lmms_eval, "run", run)
    code, output, error = invoke("lmms-eval", "docvqa_val", "--max-tiles", "6", "--no-cache")
    assert code == 0, error
    assert "anls,none" in output
    assert (seen["max_tiles"], seen["cache"]) == (6, False)
    assert len(seen["identity"]["weights"]) == 32  # of the demo


def test_language(tmp_path, monkeypatch):
    score = LanguageScore("mmlu", "mmlu", 5, 2, {"acc,none": 0.5}, {})
    monkeypatch.setattr(lm_eval, "run_language", lambda *_, **__: {"mmlu": score})
    code, output, error = invoke("language", "--out", str(tmp_path))
    assert code == 0, error
    assert "50.0  (n 2, 5-shot)" in output
    for key in (*lm_eval.missing(), "humaneval", "mbpp"):
        assert f"{key:24} not run" in output
    assert "lm-eval has no C3" in str(invoke("language", "c3")[2])


def test_export_llm(tmp_path):
    code, output, error = invoke("export-llm", str(tmp_path / "absent"), str(tmp_path / "out"))
    assert code == 1
    assert isinstance(error, FileNotFoundError)
    assert output == ""
