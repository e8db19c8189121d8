"""The benchmarks in words: lists, one in full, a score beside the report's, the page."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pytest

from internvl.evaluation import benchmark_text, build_benchmarks
from internvl.evaluation.benchmarks import Benchmark, get, languages, load, vision


def test_list_names_what_is_asked_for():
    text = benchmark_text.list_text()
    names = {line.split()[0] for line in text.splitlines() if line.startswith("  ")}
    assert names == {*load(), *languages(), *vision(), "key"}
    table_7 = benchmark_text.list_text(table=7)
    assert "docvqa" in table_7
    assert "mmmu_val" not in table_7
    assert [each.key for each in benchmark_text.select(modality="text")] == list(languages())
    videos = benchmark_text.select(modality="video")
    assert [each.table for each in videos] == [12] * 6
    assert "16/32/48/64 frames" in benchmark_text.list_text(12, "video")
    assert "12 (12)" in benchmark_text.list_text(8, "images")


def test_list_as_json_holds_everything():
    rows = json.loads(benchmark_text.list_text(as_json=True))
    assert Counter(row["kind"] for row in rows) == {"multimodal": 48, "language": 17, "vision": 8}
    (docvqa,) = [row for row in rows if row["key"] == "docvqa"]
    assert docvqa["report"]["InternVL2_5-8B"] == {"DocVQA (test)": 93.0}
    assert docvqa["engines"]["vlmevalkit"] == ["DocVQA_TEST", "DocVQA_VAL"]
    assert set(docvqa) >= {each.name for each in dataclasses.fields(Benchmark)}
    assert all(row["table"] for row in rows)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"table": 5}, "Table 5 has no benchmarks"),
        ({"modality": "audio"}, "no modality 'audio'"),
        ({"table": 7, "modality": "video"}, "Table 7 has no benchmark with the modality 'video'"),
    ],
)
def test_list_says_what_there_is_not(asked, message):
    with pytest.raises(ValueError, match=message):
        benchmark_text.list_text(**asked)


def test_description_tells_all():
    for each in (*load().values(), *languages().values(), *vision().values()):
        text = benchmark_text.describe(each)
        flat = " ".join(text.split())
        for trap in each.traps:
            assert " ".join(trap.split()) in flat, each.key
        head, *rows = benchmark_text.values_of(each)
        assert not isinstance(each, Benchmark) or head[1:] == each.columns
        for name, *cells in rows:
            (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{name} ")]
            assert line.split()[-len(cells) :] == cells, each.key
        if isinstance(each, Benchmark):
            assert f"prompt rule `{each.prompt}`" in flat
            assert each.metric_note in flat
            assert all(key in text for keys in each.engines.values() for key in keys)


@pytest.mark.parametrize(
    ("key", "needs"),
    [
        ("textvqa", "nothing"),
        ("mmstar", "nothing; without a judge, answers that the rule cannot read are wrong"),
        ("docvqa", "nothing; for the report's split a server: Robust Reading"),
        ("mmmu_test", "a server: EvalAI"),
        ("wildvision", "a judge, which is not part of this package: run it in VLMEvalKit or lmms"),
        ("mmhal", "only the official script has one"),
        ("mmvet_v2", "the report's is MM-Vet v2's evaluation server"),
    ],
)
def test_description_says_what_a_score_needs(key, needs):
    assert needs in " ".join(benchmark_text.describe(get(key)).split())


def test_values_are_printed_with_the_digits_of_the_report():
    assert ("InternVL2_5-26B", "3.70") in benchmark_text.values_of(get("mmhal"))
    assert ("InternVL2_5-8B", "822") in benchmark_text.values_of(get("ocrbench"))
    assert ("InternVL2_5-8B", "93.0") in benchmark_text.values_of(get("docvqa"))
    assert ("InternVL2_5-1B", "-", "-") in benchmark_text.values_of(get("cgbench"))


@pytest.mark.parametrize(
    ("key", "value", "size", "column", "said"),
    [
        ("docvqa", 92.63, "8B", None, "92.6; the report has 93.0 of InternVL2_5-8B (-0.4)"),
        ("docvqa", 92.63, "8B", None, "Robust Reading Competition"),
        ("ocrbench", 830, "InternVL2_5-8B", None, "830; the report has 822 of InternVL2_5-8B (+8)"),
        ("cgbench", 40, "8B", "CG-Bench (long acc.)", "the report has none of InternVL2_5-8B"),
        ("ai2d", 92, "8B", "AI2D_TEST_NO_MASK", "AI2D (wo M): 92.0; the report has 92.8"),
        ("mmmu_pro", 40, "38B", None, "MMMU-Pro has 3 columns; name yours"),
        ("mmmu_pro", 40, "38B", None, "MMMU-Pro (overall): 40.0; the report has 46.0"),
        ("mmstar", 60, "8B", None, "asks a judge"),
        ("textvqa", 60, "8B", None, "3 known differences: `internvl eval show textvqa`"),
    ],
)
def test_a_score_is_put_beside_the_report(key, value, size, column, said):
    assert said in benchmark_text.compare_with_report(get(key), value, size, column)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((float("nan"), "8B"), "expected a finite number"),
        ((1.0, "9B"), "no size '9B'"),
        ((1.0, "8B", "DocVQA"), "has no column 'DocVQA'"),
        ((1.0, "8B", "DocVQA_VAL"), "measures no column of the report"),
    ],
)
def test_a_score_that_cannot_be_compared_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        benchmark_text.compare_with_report(get("docvqa"), *arguments)


def test_page_is_made_of_the_files(tmp_path):
    assert build_benchmarks.main(["--check"]) == 0
    stale = tmp_path / "benchmarks.md"
    assert build_benchmarks.main(["--check"], stale) == 1
    stale.write_text(build_benchmarks.page() + "more", encoding="utf-8")
    assert build_benchmarks.main(["--check"], stale) == 1
    assert build_benchmarks.main([], stale) == 0
    assert build_benchmarks.main(["--check"], stale) == 0
    page = build_benchmarks.page()
    for key in (*load(), *languages(), *vision()):
        assert f"| `{key}` |" in page
    assert "| MMHal (score) | 2.49 | 2.94 | 3.31 | 3.65 | 3.70 | 3.71 | 3.89 |" in page
    assert "| difference | +0.27 | +0.14 | +0.09 | +0.15 | -0.05 | +0.03 | -0.06 |" in page
    assert "<Image-i>" not in page.replace("`<Image-i>`", "")
