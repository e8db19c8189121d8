"""Tables 2 and 6 to 15 of the report as data: complete, as printed, and of one sense."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from internvl.evaluation import benchmarks, build_benchmarks, report_tables
from internvl.evaluation.benchmarks import get, languages, load, vision
from internvl.evaluation.prompts import RULES
from internvl.evaluation.report_tables import MODELS, averages, report_table

# All numbers of a table (of Tables 6 to 12: in the rows of InternVL2.5), added up in the report's
# HTML, which was read apart from the text that report_values.toml was made of: how many, and their
# sum.
SUMS = {
    6: (70, 2530.4), 7: (84, 11763.6), 8: (70, 4082.6), 9: (77, 20577.29), 10: (18, 1619.1),
    11: (91, 6437.3), 12: (44, 2387.96), 13: (204, 11804.5), 14: (90, 6978.5), 15: (55, 2347.1),
}  # fmt: skip
# Columns that are made of others.
MADE = {10: {"avg."}, 13: {"Average", "Gain"}}
# Mean of the report's columns less Table 2, in the order of the sizes.
OPENCOMPASS = (0.275, 0.1375, 0.0875, 0.15, -0.05, 0.025, -0.0625)


# ---------------------------------------------------------------------- completeness
def test_rows_are_those_of_the_report():
    rows = list(load().values())
    assert [each.row for each in rows] == list(range(1, 49))
    assert Counter(each.table for each in rows) == {
        6: 7, 7: 9, 8: 10, 9: 10, 10: 3, 11: 3, 12: 6,
    }  # fmt: skip
    assert [each.table for each in rows] == sorted(each.table for each in rows)
    assert len(languages()) == 17
    assert Counter(each.table for each in vision().values()) == {14: 6, 15: 2}


@pytest.mark.parametrize("number", range(6, 14))
def test_every_column_belongs_to_one_row(number):
    if number == 13:
        used = [each.column for each in languages().values()]
    else:
        used = [c for each in load().values() if each.table == number for c in each.columns]
    table = report_table(number)
    assert Counter(used) == Counter(set(table.columns) - MADE.get(number, set()))
    # In the order of the report: a row never takes the column of its neighbour.
    assert used == [column for column in table.columns if column in used]


@pytest.mark.parametrize(("number", "differences"), [(14, {"delta"}), (15, {"delta 1", "delta 2"})])
def test_every_column_of_the_encoder_belongs_to_one_set(number, differences):
    sets = [each for each in vision().values() if each.table == number]
    methods = benchmarks.METHODS[sets[0].task]
    names = [f"{m}: {c}" for m in methods for c in (*(each.column for each in sets), "avg.")]
    assert Counter(report_table(number).columns) == Counter([*names, *differences])


def test_languages_are_those_of_section_6_1():
    areas = Counter(each.area for each in languages().values())
    assert areas == {
        "examination": 4, "knowledge": 4, "reasoning": 3, "mathematics": 3, "coding": 3,
    }  # fmt: skip
    shots = {each.column: each.shots for each in languages().values() if each.shots}
    assert shots == {
        "MMLU": 5, "CMMLU": 5, "C-Eval": 5, "GSM8K": 4, "MATH": 4, "HumanEval": 4, "MBPP": 3,
    }  # fmt: skip
    assert all(each.engines["opencompass"] for each in languages().values())


def test_engines_lack_what_they_lack():
    def missing(engine):
        return {key for key, each in load().items() if engine not in each.engines}

    assert missing("vlmevalkit") == {"mantis", "mmiu", "mirb", "mmvet_v2", "mmhal"}
    assert missing("lmms_eval") == {
        "mmiu", "rbench", "mmbench_v11", "mmhal", "mmmb", "mtl_mmbench", "mmbench_video",
    }  # fmt: skip
    assert {key for key, each in languages().items() if "lm_eval" not in each.engines} == {
        "gaokao", "c3", "theoremqa", "mbpp_cn",
    }  # fmt: skip


# ---------------------------------------------------------------------- values
@pytest.mark.parametrize(
    ("key", "column", "size", "value"),
    [
        ("mmmu_val", "MMMU (val)", "78B", 70.1),
        ("mmmu_pro", "MMMU-Pro (vision)", "38B", 44.0),
        ("mathvision", "MATH-Vision (full)", "2B", 14.7),
        ("olympiadbench", "OlympiadBench", "1B", 1.7),
        ("ai2d", "AI2D (w M)", "2B", 74.9),  # these and MuirBench are damaged in the PDF's text
        ("ai2d", "AI2D (wo M)", "2B", 83.5),
        ("charxiv", "CharXiv (RQ)", "2B", 21.3),
        ("charxiv", "CharXiv (DQ)", "2B", 49.7),
        ("ocrbench", "OCRBench", "26B", 852),
        ("vcr", "VCR-EN-Easy (Jaccard)", "78B", 94.5),
        ("muirbench", "MuirBench", "1B", 29.9),
        ("wildvision", "WildVision (win rate)", "78B", 71.4),
        ("rbench", "R-Bench (dis)", "4B", 66.1),
        ("mme", "MME (sum)", "8B", 2344.1),
        ("mmbench", "MMB (CN)", "26B", 85.5),
        ("mmvet_v2", "MMVetv2 (0613)", "38B", 62.1),
        ("mmhal", "MMHal (score)", "26B", 3.70),
        ("pope", "POPE (avg)", "78B", 90.8),
        ("refcoco", "RefCOCO (test-B)", "78B", 92.5),
        ("refcoco_plus", "RefCOCO+ (val)", "8B", 85.2),
        ("refcocog", "RefCOCOg (test)", "4B", None),
        ("mmmb", "MMMB (tr)", "1B", 45.3),
        ("mtl_mmbench", "Multilingual MMBench (ar)", "26B", 67.5),
        ("videomme", "Video-MME (w sub)", "38B", 73.1),
        ("mmbench_video", "MMBench-Video (val)", "78B", 1.97),
        ("cgbench", "CG-Bench (clue acc.)", "78B", 58.5),
        ("cgbench", "CG-Bench (long acc.)", "38B", None),
    ],
)
def test_values_are_as_printed(key, column, size, value):
    assert get(key).reported(size, column) == value
    assert get(key).report[f"InternVL2_5-{size}"][column] == value


@pytest.mark.parametrize(("number", "expected"), list(SUMS.items()))
def test_tables_add_up_to_the_same_as_in_another_reading(number, expected):
    cells = [value for row in report_table(number).values.values() for value in row.values()]
    values = [value for value in cells if value is not None]
    assert (len(values), round(sum(values), 2)) == expected


@pytest.mark.parametrize("number", range(6, 13))
def test_rows_hold_what_the_table_holds(number):
    table, made = report_table(number), MADE.get(number, set())
    assert set(table.values) <= set(MODELS)
    for model, row in table.values.items():
        rows = [each.report[model] for each in load().values() if each.table == number]
        ours = {column: value for each in rows for column, value in each.items()}
        assert ours == {column: value for column, value in row.items() if column not in made}


@pytest.mark.parametrize(
    ("model", "column", "value"),
    [
        ("InternVL2_5-2B", "C3", 78.0),
        ("InternLM2.5-1.8B-Chat", "C3", 61.4),
        ("InternVL2_5-8B", "GSM8K", 77.8),
        ("InternLM2-20B-Chat", "MBPP-CN", 55.8),
        ("InternVL2-26B", "NaturalQuestions", 28.8),
        ("InternVL2_5-26B", "TheoremQA", 15.4),
    ],
)
def test_language_values_are_as_printed(model, column, value):
    (found,) = [each for each in languages().values() if each.column == column]
    assert found.report[model] == value


def test_vision_values_are_as_printed():
    assert vision()["in_a"].report["InternViT-6B-448px-V1.5"] == {"linear": 69.8, "attention": 86.0}
    assert vision()["in1k"].report["InternViT-6B-224px (448 px)"]["attention"] == 88.8
    assert vision()["cocostuff"].report["InternViT-6B-448px-V2.5"] == {
        "linear": 35.6, "head": 49.7, "full": 51.8,
    }  # fmt: skip


# ---------------------------------------------------------------------- what the report computes
# Half a digit for what is printed, as much for the mean of the parts; measured worst beside each.
@pytest.mark.parametrize("model", MODELS)
def test_mmmu_pro_overall_is_the_mean(model):
    row = get("mmmu_pro").report[model]
    mean = (row["MMMU-Pro (std10)"] + row["MMMU-Pro (vision)"]) / 2
    assert mean == pytest.approx(row["MMMU-Pro (overall)"], abs=0.0501)  # 0.05


def test_refcoco_average_is_the_mean_of_eight():
    average = averages()["refcoco_avg"]
    assert len(average.parts) == 8
    for model in ("InternVL2_5-8B", "InternVL2_5-78B"):
        printed = report_table(10).values[model]["avg."]
        assert build_benchmarks.recomputed(average, model) == pytest.approx(printed, abs=0.0501)
    assert build_benchmarks.recomputed(average, "InternVL2_5-4B") is None


def test_language_average_and_gain_follow_from_the_rows():
    average, table = averages()["language"], report_table(13)
    assert {part.key for part in average.parts} == set(languages())
    for model, row in table.values.items():
        mean = build_benchmarks.recomputed(average, model)
        assert mean == pytest.approx(row["Average"], abs=0.06)  # 0.053: InternVL2-8B
        if row["Gain"] is not None:
            base = table.values[benchmarks.base_model(model)]["Average"]
            assert row["Average"] - base == pytest.approx(row["Gain"], abs=1e-9)
    with pytest.raises(ValueError, match="Table 13 has no 'InternVL2_5-78B'"):
        benchmarks.base_model("InternVL2_5-78B")


@pytest.mark.parametrize("number", [14, 15])
def test_averages_of_the_encoder_follow_from_the_columns(number):
    sets = [each for each in vision().values() if each.table == number]
    methods = benchmarks.METHODS[sets[0].task]
    for encoder, row in report_table(number).values.items():
        means = []
        for method in methods:
            values = [each.report[encoder][method] for each in sets]
            means.append(row[f"{method}: avg."])
            assert sum(values) / len(values) == pytest.approx(means[-1], abs=0.0501)  # 0.05
        for mean, name in zip(means[1:], (c for c in row if c.startswith("delta")), strict=True):
            assert mean - means[0] == pytest.approx(row[name], abs=0.1001)  # 0.1


@pytest.mark.parametrize(("model", "difference"), list(zip(MODELS, OPENCOMPASS, strict=True)))
def test_opencompass_average_differs_from_table_2_as_stated(model, difference):
    average = averages()["opencompass"]
    values = {part.key: load()[part.key].report[model][part.column] for part in average.parts}
    printed = report_table(2).values[model]["OpenCompass"]
    found = report_tables.opencompass_average(values)
    assert found - printed == pytest.approx(difference, abs=1e-9)
    assert f"{found - printed:.2f}".lstrip("+-") in average.note or abs(difference) < 0.07


def test_opencompass_average_takes_eight_and_a_tenth_of_ocrbench():
    keys = [part.key for part in averages()["opencompass"].parts]
    values = dict.fromkeys(keys, 0.0)
    assert report_tables.opencompass_average({**values, "ocrbench": 800}) == 10
    assert report_tables.opencompass_average({**values, "mmvet": 80}) == 10
    with pytest.raises(ValueError, match=r"missing \['mmvet'\], unknown \['mmvet_v2'\]"):
        report_tables.opencompass_average(
            {("mmvet_v2" if key == "mmvet" else key): 1.0 for key in keys}
        )
    with pytest.raises(ValueError, match="no finite number"):
        report_tables.opencompass_average({**values, "mmstar": float("nan")})


# ---------------------------------------------------------------------- names
def test_every_name_leads_to_its_row():
    owners = Counter(
        key for each in load().values() for keys in each.engines.values() for key in keys
    )
    for each in load().values():
        for name in (each.key, each.name, *each.aliases, each.key.upper()):
            assert get(name) is each, name
        for keys in each.engines.values():
            assert all(get(key) is each for key in keys if owners[key] == 1)
    assert {key for key, count in owners.items() if count > 1} == {"RefCOCO"}
    assert get("RefCOCO") is get("refcoco")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("DOCVQA_VAL", "docvqa"), ("ai2d test no mask", "ai2d"), ("mmmu", "mmmu_val"),
        ("refcoco+_bbox_rec_testA", "refcoco_plus"), ("RefCOCO+", "refcoco_plus"),
        ("Video-MME", "videomme"), ("MMBench_DEV_EN", "mmbench"), ("MMBench_dev_en", "mtl_mmbench"),
        ("mmbench-test-en-v11", "mmbench_v11"),
    ],
)  # fmt: skip
def test_aliases(name, key):
    assert get(name).key == key


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("docvqq", "did you mean docvqa"),
        ("TinyMCQ", "there are mmmu_val, mmmu_test"),
        ("mmbench_Dev_En", "can be MMBench_DEV_EN or MMBench_dev_en"),
        ("MMLU", "language"),
        ("ade20k", r"vision encoder alone \(Table 15\)"),
        ("", "there are mmmu_val"),
    ],
)
def test_unknown_names_are_answered_with_near_ones(name, message):
    with pytest.raises(ValueError, match=message):
        get(name)


def test_two_rows_cannot_have_a_name(monkeypatch):
    docvqa, infovqa = get("docvqa"), get("infovqa")
    clash = dataclasses.replace(infovqa, aliases=("DocVQA_VAL",))
    monkeypatch.setattr(benchmarks, "load", lambda: {"docvqa": docvqa, "infovqa": clash})
    with pytest.raises(ValueError, match="'DocVQA_VAL' names both"):
        benchmarks.names.__wrapped__()
    clash = dataclasses.replace(infovqa, aliases=("docvqa",))
    monkeypatch.setattr(benchmarks, "load", lambda: {"docvqa": docvqa, "infovqa": clash})
    with pytest.raises(ValueError, match="'docvqa' names both"):
        benchmarks.names.__wrapped__()


def test_keys_of_engines_measure_what_they_say():
    ai2d = get("ai2d")
    assert ai2d.measures["AI2D_TEST_NO_MASK"] == ai2d.measures["ai2d_no_mask"] == ("AI2D (wo M)",)
    assert get("docvqa").measures["DocVQA_VAL"] == ()
    assert get("pope").measures["POPE"] == ()  # pooled, and not the mean of three
    assert get("mmmb").measures["MMMB"] == get("mmmb").columns
    for each in load().values():
        assert set(each.measures) == {key for keys in each.engines.values() for key in keys}


# ---------------------------------------------------------------------- sense
def test_metrics_exist():
    from internvl.evaluation.scoring import METRICS

    assert {each.metric for each in load().values() if each.metric} <= set(METRICS)


def test_settings_make_sense():
    assert {each.prompt for each in load().values()} == set(RULES)
    for each in load().values():
        assert (each.modality == "video") == (each.max_tiles == 1)
        if each.table == 10:
            assert (each.prompt, each.max_new_tokens) == ("grounding", 100)
    assert {key for key, each in load().items() if each.upscale_first} == {"mmmu_val", "mmmu_test"}
    assert {key for key, each in load().items() if each.cot == "max(direct, cot)"} == {
        "mmmu_val", "mmmu_test", "mmmu_pro",
    }  # fmt: skip
    assert {key for key, each in load().items() if each.scoring in ("judge", "server")} == {
        "mmmu_test", "charxiv", "wildvision", "mmvet", "mmvet_v2", "mmhal",
        "mmbench_video",
    }  # fmt: skip
    assert [get(key).max_tiles for key in ("chartqa", "docvqa", "infovqa", "ocrbench")] == [
        12, 18, 24, 24,
    ]  # fmt: skip
    assert [get(key).total_tiles for key in ("mantis", "mirb", "mmiu", "blink")] == [6, 6, 12, 64]
    assert get("videomme").frames == (16, 32, 48, 64)
    assert (get("mvbench").frames, get("cgbench").frames) == ((16,), (32,))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"key": "Doc VQA"}, "has key 'Doc VQA'"),
        ({"row": 49}, "has row 49; expected 1 to 48"),
        ({"table": 13}, "has table 13"),
        ({"modality": "audio"}, "has modality 'audio'"),
        ({"scoring": "exact"}, "has scoring 'exact'"),
        ({"cot": "yes"}, "has cot 'yes'"),
        ({"prompt": "shortest"}, "has prompt 'shortest'"),
        ({"data": ""}, "has data ''"),
        ({"metric": ""}, "has metric ''; expected a name in scoring.METRICS"),
        ({"scoring": "judge"}, "has metric 'anls'; expected none"),
        ({"scoring": "server", "metric": "", "server": ""}, "has server ''"),
        ({"max_tiles": 65}, "has max_tiles 65; expected 64"),
        ({"max_new_tokens": 0}, "has max_new_tokens 0"),
        ({"frames": (16,)}, "has frames"),
        ({"modality": "video"}, "has frames"),
        ({"modality": "video", "frames": (32, 16)}, "expected rising counts"),
        ({"columns": ()}, "has columns"),
        ({"engines": {"vlm": ("x",)}}, "has engine 'vlm'"),
        ({"engines": {"lmms_eval": ()}}, "has keys of lmms_eval"),
        ({"measures": {"DocVQA_TRAIN": ()}}, "has measures 'DocVQA_TRAIN'"),
        ({"measures": {"DocVQA_VAL": ("DocVQA",)}}, "has measures of DocVQA_VAL"),
        ({"report": {"InternVL3-8B": {"DocVQA (test)": 1.0}}}, "has report 'InternVL3-8B'"),
        ({"report": {"InternVL2_5-8B": {"DocVQA": 1.0}}}, "has report of InternVL2_5-8B"),
        ({"report": {"InternVL2_5-8B": {"DocVQA (test)": "-"}}}, "expected a number or None"),
    ],
)
def test_nonsense_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(get("docvqa"), **changed)


def test_nonsense_is_refused_of_language_and_vision_too():
    for changed in ({"area": "sports"}, {"shots": -1}, {"engines": {"x": ("y",)}}):
        with pytest.raises(ValueError, match="language set 'mmlu' has"):
            dataclasses.replace(languages()["mmlu"], **changed)
    for changed in ({"task": "detection"}, {"classes": 1}, {"report": {"x": {"linear": 1.0}}}):
        with pytest.raises(ValueError, match="vision set 'in1k' has"):
            dataclasses.replace(vision()["in1k"], **changed)
    table = report_table(12)
    with pytest.raises(ValueError, match="expected one for each of the 8 columns"):
        dataclasses.replace(table, values={"a": {"MVBench": 1.0}})
    with pytest.raises(ValueError, match="two or more different parts"):
        dataclasses.replace(averages()["language"], parts=())


def test_nothing_can_be_changed():
    docvqa = get("docvqa")
    with pytest.raises(TypeError):
        load()["docvqa"] = docvqa
    with pytest.raises(TypeError):
        docvqa.report["InternVL2_5-8B"]["DocVQA (test)"] = 99.0
    with pytest.raises(TypeError):
        docvqa.engines["vlmevalkit"] = ()
    with pytest.raises(TypeError):
        report_table(7).values["InternVL2_5-8B"] = {}
    given = {"vlmevalkit": ["DocVQA_TEST"]}
    changed = dataclasses.replace(docvqa, engines=given, measures={})
    given["vlmevalkit"].append("other")
    assert changed.engines == {"vlmevalkit": ("DocVQA_TEST",)}
    assert len({*load().values(), *languages().values(), *vision().values()}) == 73  # hashable


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("9B", None), "no size '9B'"),
        (("8B", None), "name one"),
        (("8B", "MMMU-Pro"), "has no column 'MMMU-Pro'"),
    ],
)
def test_report_is_asked_with_size_and_column(asked, message):
    with pytest.raises(ValueError, match=message):
        get("mmmu_pro").reported(*asked)
    assert get("docvqa").reported("8b") == get("docvqa").reported("InternVL2_5-8B") == 93.0
