"""lm-eval itself, on local tasks with the demo: in process, and by its command on the export."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from internvl import hub
from internvl.evaluation import benchmarks
from internvl.evaluation.engines.export_llm import export_language_model
from internvl.evaluation.engines.lm_eval import run_language
from tests.evaluation.engines import real

pytest.importorskip("lm_eval", reason="lm-eval is not installed (docs/evaluation_engines.md)")
pytestmark = pytest.mark.slow

ROWS = [
    {"question": "Is there a red star?", "choices": ["yes", "no"], "answer": 0},
    {"question": "Which image has more objects?", "choices": ["Image-1", "Image-2"], "answer": 1},
    {"question": "How many objects are there?", "choices": ["1", "2", "3"], "answer": 1},
    {"question": "In which direction does it move?", "choices": ["left", "right"], "answer": 1},
    {"question": "Which digit is this?", "choices": ["7", "3"], "answer": 0},
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
CHOICE = (
    TASK
    + """
output_type: multiple_choice
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
)
ANSWER = (
    TASK
    + """
output_type: generate_until
doc_to_target: "{{{{choices[answer]}}}}"
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
generation_kwargs: {{until: [], do_sample: false}}
"""
)
NAMES = ("internvl_choice", "internvl_answer")


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder of task files over local data."""
    real.go_offline(monkeypatch, tmp_path)
    folder = tmp_path / "tasks"
    folder.mkdir()
    file = real.write_lines(folder / "rows.jsonl", ROWS)
    for name, text in zip(NAMES, (CHOICE, ANSWER), strict=True):
        (folder / f"{name}.yaml").write_text(text.format(name=name, file=file))
    return folder


def answers(lines: str) -> list[str]:
    return [json.loads(line)["resps"][0][0] for line in lines.splitlines()]


def test_in_process_and_by_its_command(tasks, tmp_path):
    loaded = hub.load()
    settings = {"max_new_tokens": 16}
    expected = [
        loaded.model.chat(loaded.tokenizer, None, row["question"], settings) for row in ROWS
    ]
    assert len(set(expected)) > 1
    # As an InternLM2 has it: the config's end is not that of an answer, and rows of a batch differ
    # in length.
    loaded.model.language_model.generation_config.eos_token_id = 5
    out = tmp_path / "out"
    scores = run_language(
        loaded,
        NAMES,
        batch_size=len(ROWS),
        max_new_tokens=16,
        out=out,
        identity={"model": "demo"},
        tasks_folder=tasks,
    )
    assert [score.n for score in scores.values()] == [len(ROWS)] * 2
    assert answers((out / "internvl_answer.jsonl").read_text("utf-8")) == expected
    assert loaded.tokenizer.padding_side == hub.load().tokenizer.padding_side
    assert not list(out.rglob("*.db"))  # what it kept for an interrupted run

    export_language_model(None, tmp_path / "llm")
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={tmp_path / 'llm'},dtype=auto"]
    command += ["--tasks", ",".join(NAMES), "--include_path", str(tasks), "--apply_chat_template"]
    command += ["--batch_size", str(len(ROWS)), "--gen_kwargs", "max_gen_toks=16"]
    command += ["--output_path", str(tmp_path / "command"), "--log_samples"]
    subprocess.run(command, check=True, cwd=tmp_path)
    (file,) = (tmp_path / "command").rglob("results_*.json")
    results = json.loads(file.read_text("utf-8"))["results"]
    for name in NAMES:
        for metric, value in scores[name].metrics.items():
            assert results[name][metric] == pytest.approx(value)
    (file,) = (tmp_path / "command").rglob("samples_internvl_answer*.jsonl")
    assert answers(file.read_text("utf-8")) == expected


def test_every_task_is_one_of_lm_eval():
    from lm_eval.tasks import TaskManager

    known = set(TaskManager().all_tasks)
    named = {t for each in benchmarks.languages().values() for t in each.engines.get("lm_eval", ())}
    assert named <= known
    assert not {name for name in known if "theoremqa" in name.lower() or name == "mbpp_cn"}
