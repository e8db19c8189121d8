"""Text benchmarks: sets to tasks, what is refused, results read. lm-eval itself runs in
test_lm_eval_real.py."""

from __future__ import annotations

import json
import logging
import os
import sys

import pytest

from internvl import hub
from internvl.evaluation import benchmarks
from internvl.evaluation.engines import lm_eval
from internvl.evaluation.engines.lm_eval import (
    LanguageScore,
    TextTask,
    allowed,
    coding_sets,
    describe,
    missing,
    run_language,
    tasks_of,
)

LOADED = hub.Loaded(model=None, processor=None, tokenizer=object())


def test_thirteen_of_seventeen():
    assert len(benchmarks.languages()) == 17
    assert set(missing()) == {"gaokao", "c3", "theoremqa", "mbpp_cn"}
    tasks = tasks_of([])
    assert len(tasks) == 13
    assert {each.key for each in tasks} | set(missing()) == set(benchmarks.languages())
    shots = {each.key: each.shots for each in tasks}
    assert (shots["mmlu"], shots["gsm8k"], shots["bbh"]) == (5, 4, 0)


def test_names_of_a_set():
    wanted = TextTask("bbh", "bbh_zeroshot", 0)
    assert tasks_of(["bbh"]) == tasks_of(["BBH"]) == tasks_of(["bbh_zeroshot"]) == [wanted]
    assert tasks_of(["bbh_cot_zeroshot"]) == [TextTask("bbh", "bbh_cot_zeroshot", 0)]


def test_sets_that_lm_eval_lacks_are_named_with_who_has_them():
    with pytest.raises(ValueError, match=r"lm-eval has no TheoremQA: .*OpenCompass.*TheoremQA"):
        tasks_of(["theoremqa"])
    with pytest.raises(ValueError, match=r"no set 'mmluu'.*did you mean mmlu"):
        tasks_of(["mmluu"])


def test_a_task_of_ones_own(tmp_path):
    assert tasks_of(["mine"], tmp_path) == [TextTask("mine", "mine", None)]


def test_what_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    for name in ("humaneval", "mbpp"):
        with pytest.raises(ValueError, match="run programs that the model wrote"):
            run_language(LOADED, [name])
    with pytest.raises(ValueError, match="vision encoder"):
        run_language(hub.Loaded(None, None, None), ["mmlu"])
    with pytest.raises(ValueError, match="give `identity`"):
        run_language(LOADED, ["mmlu"], out=tmp_path)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'lm-eval==0\.4\.13'"):
        run_language(LOADED, ["mmlu"])


def test_code_is_left_out_of_all_sets_unless_it_is_allowed(caplog):
    assert coding_sets() == ["humaneval", "mbpp"]
    assert len(allowed(tasks_of([]), allow_code=True, named=False)) == 13
    with caplog.at_level(logging.WARNING):
        assert len(allowed(tasks_of([]), allow_code=False, named=False)) == 11
    assert "humaneval_instruct and mbpp run programs" in caplog.text


# As lm-eval 0.4.13 returns them.
GROUP = {
    "results": {"mmlu_a": {"alias": "a", "sample_len": 2, "acc,none": 0.5, "acc_stderr,none": 0.5}},
    "groups": {
        "mmlu": {"name": "mmlu", "alias": "mmlu", "acc,none": 0.25, "acc_stderr,none": 0.125}
    },
    "n-shot": {"mmlu_a": 5, "mmlu_b": 5},
    "n-samples": {
        "mmlu_a": {"original": 100, "effective": 2},
        "mmlu_b": {"original": 114, "effective": 2},
    },
    "samples": {"mmlu_a": [{"doc_id": 0, "resps": [["A"]]}]},
    "lm_eval_version": "0.4.13",
}


def test_the_score_of_a_group_is_that_of_the_group(caplog):
    score = lm_eval._score(TextTask("mmlu", "mmlu", 5), GROUP)
    assert score == LanguageScore("mmlu", "mmlu", 5, 4, {"acc,none": 0.25}, {"acc,none": 0.125})
    assert "25.0 ± 12.5  (n 4, 5-shot)" in describe({"mmlu": score})
    with caplog.at_level(logging.WARNING):
        lm_eval._score(TextTask("mmlu", "mmlu", 4), GROUP)
    assert "ran with [5] examples, not 4" in caplog.text


def test_a_finished_set_is_not_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(lm_eval, "language_model", lambda *_: object())
    runs = []

    def run(model, task, limit, allow, folder, out, settings):
        runs.append(task.task)
        score = lm_eval._score(task, {**GROUP, "groups": {task.task: GROUP["groups"]["mmlu"]}})
        lm_eval._store(out, task, settings, score, GROUP)
        return score

    monkeypatch.setattr(lm_eval, "_run", run)
    here = {"out": tmp_path, "identity": {"weights": "1"}}
    first = run_language(LOADED, ["mmlu"], **here)
    again = run_language(LOADED, ["mmlu", "cmmlu"], **here)
    assert runs == ["mmlu", "cmmlu"]
    assert again["mmlu"] == first["mmlu"]
    answers = (tmp_path / "mmlu.jsonl").read_text().splitlines()
    assert json.loads(answers[0]) == {"task": "mmlu_a", "doc_id": 0, "resps": [["A"]]}
    with pytest.raises(ValueError, match=r"other settings.*weights: '1' -> '2'"):
        run_language(LOADED, ["mmlu"], out=tmp_path, identity={"weights": "2"})


def test_code_may_run_for_as_long_as_it_is_allowed(monkeypatch):
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    with lm_eval._code_allowed(False):
        assert "HF_ALLOW_CODE_EVAL" not in os.environ
    with lm_eval._code_allowed(True):
        assert os.environ["HF_ALLOW_CODE_EVAL"] == "1"
    assert "HF_ALLOW_CODE_EVAL" not in os.environ
