"""Result files of VLMEvalKit: those of a real run here, and one of each other form, as its code
writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from internvl.evaluation.engines.selection import choose
from internvl.evaluation.engines.vlmevalkit_plan import make_plan
from internvl.evaluation.engines.vlmevalkit_results import (
    HEADLINES,
    as_json,
    columns_of,
    describe,
    folders,
    read_metrics,
    read_predictions,
    read_scores,
)

# Written by VLMEvalKit's run.py (ms_vlmeval 0.0.20) for the demo; see docs/evaluation_engines.md.
RECORDED = Path(__file__).parent / "recorded"
# (data set, file behind its name, content, column, value). pandas quotes every cell.
FORMS = [
    (
        "MMMU_DEV_VAL",
        "acc.csv",
        '"split","Overall","Art"\n"dev","0.5","1.0"\n"validation","0.25",""\n',
        "MMMU (val)",
        25.0,
    ),
    ("DocVQA_VAL", "acc.csv", '"val","Overall"\n"81.5","81.5"\n', "score", 81.5),
    ("AI2D_TEST", "acc.csv", '"split","Overall"\n"none","0.875"\n', "AI2D (w M)", 87.5),
    (
        "MMT-Bench_VAL",
        "acc.csv",
        '"split","Overall"\n"VAL","0.5"\n"ALL","0.5"\n',
        "MMT (val)",
        50.0,
    ),
    ("OCRBench", "score.json", {"Text Recognition": 10, "Final Score": 822}, "OCRBench", 822.0),
    ("MME", "score.csv", '"perception","reasoning","OCR"\n"1600","500","1"\n', "MME (sum)", 2100.0),
    (
        "HallusionBench",
        "score.csv",
        '"split","aAcc","fAcc","qAcc"\n"Overall","60","30","30"\n"VD","1","1","1"\n',
        "HallBench (avg)",
        40.0,
    ),
    (
        "MathVista_MINI",
        "gpt-4o-mini_score.csv",
        '"Task&Skill","tot","prefetch","hit","prefetch_rate","acc"\n'
        '"Overall","10","1","6","10.0","60.0"\n"geometry","2","0","1","0","50.0"\n',
        "MathVista (mini)",
        60.0,
    ),
    ("OlympiadBench", "score_result.csv", '"maths","AVG"\n"2","4.9"\n', "OlympiadBench", 4.9),
    ("MTVQA_TEST", "acc.json", {"AR": 10.0, "Average": 27.6}, "MTVQA (avg)", 27.6),
    (
        "VCR_EN_EASY_ALL",
        "en_easy_score.json",
        {"Exact_Match": 0.926, "Jaccard": 0.974, "Predictions": {"0": {"exact_match": 1}}},
        "VCR-EN-Easy (EM)",
        92.6,
    ),
    ("MVBench_16frame", "rating.json", {"overall": [2, 4, "50.00%"]}, "MVBench", 50.0),
    (
        "Video-MME_32frame_subs",
        "rating.json",
        {"overall": {"overall": "0.642", "domain": {"Sports": "nan"}}},
        "Video-MME (w sub)",
        64.2,
    ),
    (
        "RefCOCO",
        "acc.csv",
        '"Split","Precision@1","Average IoU","Samples"\n"RefCOCO_val","90.3","0.8","3"\n'
        '"RefCOCO_testA","94.5","0.8","3"\n"RefCOCO+_val","85.2","0.8","3"\n'
        '"Average","90.0","0.8","9"\n',
        "RefCOCO (test-A)",
        94.5,
    ),
    (
        "MMMB",
        "acc.csv",
        '"split","Overall","DATASET"\n"none","0.8","MMMB_ar"\n"none","0.9","MMMB_cn"\n',
        "MMMB (zh)",
        90.0,
    ),
    (
        "CG-Bench_MCQ_Grounding_32frame_subs",
        "rating.json",
        {"long_acc": {"overall": 0.424}, "clue_acc": {"overall": 0.6}},
        "CG-Bench (clue acc.)",
        60.0,
    ),
]


@pytest.mark.parametrize(("entry", "name", "content", "column", "value"), FORMS)
def test_each_form_of_result_file(entry, name, content, column, value, tmp_path):
    run = tmp_path / "M" / "T20260818_Ge8e78f05"
    run.mkdir(parents=True)
    rows = [{"index": 0, "question": "q", "answer": "a", "prediction": text} for text in ("a", " ")]
    (run / f"M_{entry}.json").write_text(json.dumps(rows))
    text = content if isinstance(content, str) else json.dumps(content)
    (run / f"M_{entry}_{name}").write_text(text)
    key = next(name for name, planned in ENTRIES.items() if entry in planned)
    (score,) = read_scores(tmp_path, "M", {entry: tuple(choose([key], "vlmevalkit"))}).popitem()[1]
    assert score.columns[column] == pytest.approx(value)
    assert (score.n, score.empty, score.failed) == (2, 1, 0)
    assert f"{value:.1f}" in describe({key: [score]})
    assert json.loads(as_json({key: [score]}))[key][0]["columns"][column] == pytest.approx(value)


PLANNED = (
    "MMMU_DEV_VAL",
    "DocVQA_VAL",
    "AI2D_TEST",
    "MMT-Bench_VAL",
    "OCRBench",
    "MME",
    "HallusionBench",
    "MathVista_MINI",
    "OlympiadBench",
    "MTVQA_TEST",
    "VCR_EN_EASY_ALL",
    "MVBench",
    "Video-MME",
    "MMMB",
    "CGBench_MCQ_Grounding_32frame_subs",
    "refcoco",
)
ENTRIES = {name: list(make_plan([name], "m").config["data"]) for name in PLANNED}


def test_every_headline_is_of_a_data_set_that_can_be_planned():
    entries = {entry for each in ENTRIES.values() for entry in each}
    others = ["mathvision", "mathverse", "mmvet", "pope", "longvideobench", "mmbench_video"]
    others += ["mtl_mmbench", "mme_realworld", "crpe", "charxiv", "wildvision", "mlvu"]
    entries |= set(make_plan(others, "m").config["data"])
    for name in HEADLINES:
        assert [each for each in entries if each.startswith(name.rstrip("*"))], name


def test_a_video_without_subtitles_fills_the_column_without():
    choices = choose(["videomme"], "vlmevalkit")
    metrics = {"overall|overall": 0.6}
    assert columns_of("Video-MME_16frame", metrics, choices) == {"Video-MME (wo sub)": 60.0}
    assert columns_of("Video-MME_16frame_subs", metrics, choices) == {"Video-MME (w sub)": 60.0}


def test_several_splits_without_a_name_are_not_guessed_at():
    metrics = {"dev|Overall": 0.5, "test|Overall": 0.6}
    assert columns_of("AI2D_TEST", metrics, choose(["AI2D_TEST"], "vlmevalkit")) == {}


def entries(*names: str) -> dict:
    return {name: tuple(choose([name], "vlmevalkit")) for name in names}


def test_files_of_a_longer_name_are_not_taken(tmp_path):
    run = tmp_path / "M"
    run.mkdir()
    rows = json.dumps([{"index": 0, "question": "q", "prediction": "1"}])
    for name, value in (("MathVision", 20), ("MathVision_MINI", 30)):
        (run / f"M_{name}.json").write_text(rows)
        table = f'"Subject","acc"\n"Overall","{value}"\n'
        (run / f"M_{name}_gpt-4o-mini_score.csv").write_text(table)
    scores = read_scores(tmp_path, "M", entries("MathVision", "MathVision_MINI"))
    found = {each.entry: each.columns for each in scores["mathvision"]}
    assert found == {
        "MathVision": {"MATH-Vision (full)": 20.0},
        "MathVision_MINI": {"MATH-Vision (mini)": 30.0},
    }


def test_files_of_other_runs_and_judges_are_not_taken(tmp_path):
    run = tmp_path / "M"
    run.mkdir()
    rows = json.dumps([{"index": 0, "question": "q", "prediction": "1"}])
    for name in ("AI2D_TEST", "MathVista_MINI"):
        (run / f"M_{name}.json").write_text(rows)
    (run / "M_AI2D_TEST_NO_MASK_acc.csv").write_text('"split","Overall"\n"none","0.9"\n')
    for judge, value in (("gpt-4o", 50), ("gpt-4o-mini", 60)):
        table = f'"Task&Skill","acc"\n"Overall","{value}"\n'
        (run / f"M_MathVista_MINI_{judge}_score.csv").write_text(table)
    asked = entries("AI2D_TEST", "MathVista_MINI")
    known = ["AI2D_TEST_NO_MASK"]
    for other, value in (("gpt-4o-mini", 50), ("gpt-4o", 60)):
        scores = read_scores(tmp_path, "M", asked, known=known, other_judges=[other])
        (masked,), (vista,) = scores["ai2d"], scores["mathvista"]
        assert not masked.metrics
        assert list(vista.columns.values()) == [value]
    # A judge that failed does not inherit what another one said.
    both = ["gpt-4o", "gpt-4o-mini"]
    (vista,) = read_scores(tmp_path, "M", asked, other_judges=both)["mathvista"]
    assert not vista.metrics


def test_the_newest_run_counts_and_one_without_scores_says_why(tmp_path):
    rows = [{"index": i, "prediction": "Failed to obtain answer via API."} for i in range(3)]
    for number, day in enumerate(("T20260818_Ge8e78f05", "T20260819_Ge8e78f05")):
        run = tmp_path / "M" / day
        run.mkdir(parents=True)
        (run / "M_POPE.json").write_text(json.dumps(rows[: number + 1]))
    assert folders(tmp_path, "M")[0].name == "T20260819_Ge8e78f05"
    status = {"datasets": {"POPE": {"error_message": "no judge"}, "MME": {"skip_reason": "none"}}}
    (run / "status.json").write_text(json.dumps(status))
    scores = read_scores(tmp_path, "M", entries("POPE", "MME"))
    (pope,), (mme,) = scores["pope"], scores["mme"]
    assert (pope.n, pope.failed, pope.error) == (2, 2, "no judge")
    assert (mme.n, mme.error) == (0, "none")
    assert "no judge" in describe(scores)
    assert "failed 2" in describe(scores)


def test_marks_alone_are_averaged(tmp_path):
    run = tmp_path / "M"
    run.mkdir()
    marks = (("plotQA", 1), ("plotQA", 0), ("ego", 1), ("ego", 1), ("ego", -1))
    rows = [
        {"index": i, "prediction": "A", "task_type": task, "score": mark}
        for i, (task, mark) in enumerate(marks)
    ]
    (run / "M_MLVU_MCQ_16frame.json").write_text(json.dumps(rows))
    (run / "M_MLVU_MCQ_16frame_score.json").write_text(json.dumps(rows))
    choices = {"MLVU_MCQ_16frame": tuple(choose(["mlvu"], "vlmevalkit"))}
    (score,) = read_scores(tmp_path, "M", choices)["mlvu"]
    assert score.columns == {"MLVU (M-Avg)": 75.0}  # of tasks, not of questions
    assert score.metrics["Overall"] == 0.75


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "x_score.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"x_score\.json cannot be read"):
        read_metrics(path)


# ---------------------------------------------------------------------- predictions
def test_predictions_of_a_real_run():
    pytest.importorskip("openpyxl", reason="VLMEvalKit writes xlsx")
    found = read_predictions(RECORDED / "demo_DemoShapes.xlsx", "ai2d")
    assert len(found) == 8
    first = found[0]
    assert (first.id, first.prompt) == ("0", "What color is the circle?")
    assert first.choices == {"A": "red", "B": "umbrella", "C": "9"}
    assert first.answers == ("A",)
    assert first.fields == {"category": "shapes", "split": "test"}
    assert first.responses[0].finish_reason == "unknown"
    from internvl.evaluation.records import Prediction

    assert Prediction.from_line(first.as_line()) == first


def test_other_formats_and_lists_of_answers(tmp_path):
    path = tmp_path / "p.tsv"
    path.write_text(
        "index\tquestion\tanswer\tprediction\n7\t\"two\nlines\"\t\"['a', 'b']\"\t007\n8\tq\t[x\t\n"
    )
    seven, eight = read_predictions(path, "textvqa")
    assert (seven.answers, seven.text, seven.prompt) == (("a", "b"), "007", "two\nlines")
    assert (eight.answers, eight.text) == (("[x",), "")
    (tmp_path / "q.json").write_text(json.dumps([{"index": 1}]))
    with pytest.raises(ValueError, match="holds no predictions"):
        read_predictions(tmp_path / "q.json", "textvqa")
    (tmp_path / "q.csv").write_text("")
    with pytest.raises(ValueError, match="neither xlsx nor tsv nor json"):
        read_predictions(tmp_path / "q.csv", "textvqa")
