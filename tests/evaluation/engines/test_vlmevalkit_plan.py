"""What run.py is told: model, prompts, chain of thought, frames; and what is refused before."""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from internvl.evaluation.engines import vlmevalkit
from internvl.evaluation.engines.vlmevalkit import model_path
from internvl.evaluation.engines.vlmevalkit_checkout import Checkout
from internvl.evaluation.engines.vlmevalkit_plan import make_plan
from internvl.evaluation.run_config import ModelSource
from tests import support

RUN = """
import json, os, sys
print("progress", flush=True)
options = sys.argv[sys.argv.index("--config"):]
plan = json.load(open(options[1]))
(name,) = plan["model"]
work = os.path.join(options[options.index("--work-dir") + 1], name, "T20260818_Ge8e78f05")
os.makedirs(work, exist_ok=True)
json.dump({"argv": options[2:], "cot": os.environ["USE_COT"], "data": os.environ.get("LMUData")},
          open(os.path.join(work, "called.json"), "w"))
for entry in plan["data"]:
    if entry != "MME":
        rows = [{"index": 0, "question": "q", "answer": "a", "prediction": "a"}]
        json.dump(rows, open(os.path.join(work, f"{name}_{entry}.json"), "w"))
"""


def test_the_model_and_its_traps():
    made = make_plan(["docvqa", "mmmu_pro"], "some/path", name="InternVL2_5-8B")
    model = made.config["model"]["InternVL2_5-8B"]
    assert model == {
        "class": "InternVL25Chat",
        "model_path": "some/path",
        "version": "V2.0",
        "use_postprocess": False,
        "own_prompts": ["MMMU_Pro"],
        "max_new_tokens": 4096,
    }
    assert made.environment == {"USE_COT": "0"}
    assert made.config["data"] == {
        "DocVQA_TEST": {"class": "ImageVQADataset", "dataset": "DocVQA_TEST"},
        # The class of VLMEvalKit would be built without the name of its data set.
        "MMMU_Pro_10c": {"class": "InternVLMMMUPro", "dataset": "MMMU_Pro_10c"},
        "MMMU_Pro_V": {"class": "InternVLMMMUPro", "dataset": "MMMU_Pro_V"},
    }


def test_chain_of_thought_comes_with_the_extraction_of_the_answer():
    made = make_plan(["mmmu"], "m", mode="cot")
    assert made.environment == {"USE_COT": "1"}
    assert made.config["model"]["InternVL"]["use_postprocess"] is True


def test_a_video_has_an_entry_per_frame_count_and_with_and_without_subtitles():
    data = make_plan(["videomme"], "m").config["data"]
    assert list(data) == [
        f"Video-MME_{n}frame{suffix}" for n in (16, 32, 48, 64) for suffix in ("", "_subs")
    ]
    assert data["Video-MME_16frame_subs"] == {
        "class": "VideoMME",
        "dataset": "Video-MME",
        "nframe": 16,
        "use_subtitle": True,
    }
    assert list(make_plan(["mvbench"], "m").config["data"]) == ["MVBench_16frame"]
    assert list(make_plan(["mlvu"], "m", frames=[8]).config["data"]) == ["MLVU_MCQ_8frame"]
    assert make_plan(["Video-MME_8frame"], "m").config["data"] == {"Video-MME_8frame": {}}
    (long,) = make_plan(["longvideobench"], "m", frames=[32]).config["data"].values()
    assert long["use_subtitle"] is False
    turned = make_plan(["longvideobench"], "m", frames=[32], turned=["LongVideoBench"])
    assert turned.config["data"]["LongVideoBench_32frame"]["use_subtitle"] is True
    (clue,) = make_plan(["cgbench"], "m").config["data"].values()
    assert (clue["nframe"], clue["use_subtitle"]) == (32, True)


def test_nothing_to_do_is_refused():
    with pytest.raises(ValueError, match="name at least one"):
        make_plan([], "m")
    own = make_plan([], "m", local={"Mine": "CustomMCQDataset"})
    assert own.config["data"] == {"Mine": {"class": "CustomMCQDataset", "dataset": "Mine"}}


# ---------------------------------------------------------------------- running
@pytest.fixture
def where(tmp_path, monkeypatch):
    """A run.py that writes predictions as VLMEvalKit does, started without our classes."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "run.py").write_text(RUN)
    plugin = tmp_path / "plugin.py"
    plugin.write_text("import runpy, sys\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0])\n")
    monkeypatch.setattr(vlmevalkit, "PLUGIN", plugin)
    return Checkout(folder, "e8e78f05" + "0" * 32)


@pytest.fixture
def model(tmp_path):
    """A folder that AutoModel loads, as far as one looks without loading it."""
    folder = tmp_path / "InternVL2_5-1B"
    folder.mkdir()
    config = json.loads((support.ROOT / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_internvl_chat.py").write_text("")
    return ModelSource(str(folder))


def called(out: Path, name: str = "InternVL2_5-1B") -> dict:
    return json.loads((out / "work" / name / "T20260818_Ge8e78f05" / "called.json").read_text())


def test_run_reads_and_converts_what_came_out(where, model, tmp_path, capfd):
    out = tmp_path / "out"
    data = tmp_path / "data"
    scores = vlmevalkit.run(["docvqa"], model, out, where=where, data_folder=data)
    (score,) = scores["docvqa"]
    assert (score.entry, score.n, score.failed) == ("DocVQA_TEST", 1, 0)
    assert "progress" in capfd.readouterr().out
    call = called(out)
    assert call["argv"][2:] == ["--reuse", "--judge", "exact_matching"]
    assert (call["cot"], call["data"]) == ("0", str(data))
    ours = (out / "predictions" / "DocVQA_TEST.jsonl").read_text()
    assert json.loads(ours)["benchmark"] == "docvqa"


def test_a_folder_takes_more_data_sets_but_no_other_settings(where, model, tmp_path):
    out = tmp_path / "out"
    vlmevalkit.run(["docvqa"], model, out, where=where)
    vlmevalkit.run(["chartqa"], model, out, where=where)
    held = json.loads((out / "run.json").read_text())["data"]
    assert list(held) == ["DocVQA_TEST", "ChartQA_TEST"]
    with pytest.raises(ValueError, match=r"other settings.*max_new_tokens: 4096 -> 64"):
        vlmevalkit.run(["docvqa"], model, out, where=where, settings={"max_new_tokens": 64})
    with pytest.raises(ValueError, match=r"USE_COT: '0' -> '1'"):
        vlmevalkit.run(["mmmu"], model, out, where=where, mode="cot")


def test_a_data_set_that_failed_is_an_error_although_run_py_ends_well(where, model, tmp_path):
    with pytest.raises(ValueError, match=r"no predictions for MME \(see its log\)"):
        vlmevalkit.run(["mme", "docvqa"], model, tmp_path / "out", where=where)
    work = tmp_path / "out" / "work" / "InternVL2_5-1B" / "T20260818_Ge8e78f05"
    status = {"datasets": {"MME": {"error_message": "no such file."}}}
    (work / "status.json").write_text(json.dumps(status))
    with pytest.raises(ValueError, match=r"MME \(no such file\); the others"):
        vlmevalkit.run(["mme", "docvqa"], model, tmp_path / "out", where=where)


def test_a_folder_belongs_to_one_checkpoint(where, model, tmp_path):
    run = functools.partial(vlmevalkit.run, ["docvqa"], model, tmp_path / "out", where=where)
    run(identity={"adapter": "a", "weights": "1"})
    run(identity={"adapter": "a", "weights": "1"})
    with pytest.raises(ValueError, match=r"another checkpoint.*adapter: 'a' -> 'b'"):
        run(identity={"adapter": "b", "weights": "1"})
    with pytest.raises(ValueError, match="loads bfloat16"):
        vlmevalkit.run(["docvqa"], replace(model, dtype="float32"), tmp_path, where=where)


def test_a_run_knows_the_judges_before_it(where, model, tmp_path, monkeypatch):
    asked = []
    read = vlmevalkit.read_scores

    def spy(*args, other_judges, **options):
        asked.append(other_judges)
        return read(*args, other_judges=other_judges, **options)

    monkeypatch.setattr(vlmevalkit, "read_scores", spy)
    for judge in ("gpt-4o", "gpt-4o-mini"):
        vlmevalkit.run(["mmvet"], model, tmp_path / "out", where=where, judge=judge)
    vlmevalkit.run(["mmvet"], model, tmp_path / "out", where=where, infer_only=True)
    assert asked == [[], ["gpt-4o"], ["gpt-4o", "gpt-4o-mini"]]


def test_scores_that_failed_are_an_error_and_missing_ones_a_warning(where, model, tmp_path, caplog):
    run = functools.partial(vlmevalkit.run, ["docvqa"], model, tmp_path / "out", where=where)
    run()
    assert "no scores of DocVQA_TEST" in caplog.text
    work = tmp_path / "out" / "work" / "InternVL2_5-1B" / "T20260818_Ge8e78f05"
    status = {"datasets": {"DocVQA_TEST": {"error_message": "no judge."}}}
    (work / "status.json").write_text(json.dumps(status))
    with pytest.raises(ValueError, match=r"could not score DocVQA_TEST \(no judge\)"):
        run()
    run(infer_only=True)


def test_paths_are_those_of_where_we_are(where, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv("LMUData", "data")
    vlmevalkit.run(["docvqa"], model, tmp_path / "out", where=where, python="bin/python")
    assert called(tmp_path / "out")["data"] == str(tmp_path / "data")


def test_a_judge_is_asked_for_before_anything_runs(where, model, tmp_path):
    with pytest.raises(ValueError, match="needs a judge for MMVet, MathVista_MINI"):
        vlmevalkit.run(["mmvet", "mathvista"], model, tmp_path / "out", where=where)
    vlmevalkit.run(["mmvet"], model, tmp_path / "out", where=where, infer_only=True)
    assert called(tmp_path / "out")["argv"][-2:] == ["--mode", "infer"]


def test_several_processes_are_started_by_torchrun(where, model, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(vlmevalkit.process, "run", lambda command, **_: seen.append(command))
    with pytest.raises(ValueError, match="no predictions"):
        vlmevalkit.run(["docvqa"], model, tmp_path / "out", where=where, processes=2)
    words = list(map(str, seen[0]))
    assert words[:5] == [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


def test_a_model_is_a_hub_id_a_folder_with_code_or_exported(tmp_path):
    assert model_path(ModelSource("OpenGVLab/InternVL2_5-8B"), tmp_path)[1] == "InternVL2_5-8B"
    with pytest.raises(ValueError, match=r"no code that AutoModel could load.*internvl export"):
        model_path(ModelSource(str(support.checkpoint("qwen2"))), tmp_path)
    path, name = model_path(ModelSource(None), tmp_path)
    assert (path, name) == (str(tmp_path / "checkpoint"), "demo")
    assert (tmp_path / "checkpoint" / "modeling_internvl_chat.py").is_file()
    before = (tmp_path / "checkpoint" / "config.json").stat().st_mtime_ns
    model_path(ModelSource(None), tmp_path)  # a run that goes on
    assert (tmp_path / "checkpoint" / "config.json").stat().st_mtime_ns == before
