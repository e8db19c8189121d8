"""Names to the keys of an engine: complete, and refused where an engine has nothing."""

from __future__ import annotations

import pytest

from internvl.evaluation import benchmarks
from internvl.evaluation.engines.selection import choose, owners
from internvl.evaluation.engines.vlmevalkit_plan import make_plan

ROWS = benchmarks.load().values()


def keys(*names: str, engine: str = "vlmevalkit", mode: str = "direct") -> list[str]:
    return [each.key for each in choose(names, engine, mode)]


@pytest.mark.parametrize("engine", ["vlmevalkit", "lmms_eval"])
def test_every_benchmark_that_an_engine_has_can_be_chosen(engine):
    having = [row for row in ROWS if row.engines.get(engine)]
    assert len(having) > 35
    for row in having:
        chosen = choose([row.key], engine)
        assert {each.benchmark.key for each in chosen} == {row.key}
        measured = {column for each in chosen for column in each.columns}
        known = {column for key in row.engines[engine] for column in row.measures[key]}
        assert measured == known, row.key


def test_every_key_of_vlmevalkit_has_an_entry_in_its_configuration():
    every = [key for row in ROWS for key in row.engines.get("vlmevalkit", ())]
    assert len(set(every)) > 80
    for key in set(every):
        made = make_plan([key], "model", frames=[16])
        assert all(
            fields == {} or {"class", "dataset"} <= fields.keys()
            for fields in made.config["data"].values()
        ), key


def test_a_benchmark_stands_for_the_keys_that_measure_its_columns():
    assert keys("docvqa") == ["DocVQA_TEST"]
    assert keys("DocVQA_VAL") == ["DocVQA_VAL"]  # another split, when it is named
    assert keys("mathvision") == ["MathVision_MINI", "MathVision"]
    assert keys("mmmb") == ["MMMB"]  # the single languages are columns of it
    assert keys("ai2d", "AI2D_TEST") == ["AI2D_TEST", "AI2D_TEST_NO_MASK"]
    assert keys("pope") == ["POPE"]  # measures none, and is all there is


def test_chain_of_thought_has_keys_of_its_own():
    assert keys("mmmu_pro") == ["MMMU_Pro_10c", "MMMU_Pro_V"]
    assert keys("mmmu_pro", mode="cot") == ["MMMU_Pro_10c_COT", "MMMU_Pro_V_COT"]
    assert keys("mmmu", mode="cot") == ["MMMU_DEV_VAL"]
    assert keys("mathvista", engine="lmms_eval") == ["mathvista_testmini_format"]
    assert keys("mathvista", engine="lmms_eval", mode="cot") == ["mathvista_testmini_cot"]
    with pytest.raises(ValueError, match=r"DocVQA.*without chain of thought"):
        keys("docvqa", mode="cot")


def test_a_key_is_that_of_the_engine_whatever_its_case():
    assert keys("docvqa_val") == ["DocVQA_VAL"]  # not the test split, which has no labels
    assert keys("DocVQA_VAL", engine="lmms_eval") == ["docvqa_val"]
    with pytest.raises(ValueError, match=r"MMBench_DEV_EN is what VLMEvalKit calls.*lmms-eval has"):
        keys("MMBench_DEV_EN", engine="lmms_eval")
    with pytest.raises(ValueError, match=r"vcr_wiki_en_easy_100 is what lmms-eval calls"):
        keys("vcr_wiki_en_easy_100")


def test_lmms_eval_reasons_only_where_it_has_a_task_for_it():
    with pytest.raises(ValueError, match=r"no task of MMMU .* that asks for reasoning"):
        keys("mmmu", engine="lmms_eval", mode="cot")


def test_what_an_engine_lacks_is_said():
    with pytest.raises(ValueError, match=r"VLMEvalKit has no Mantis-Eval.*lmms-eval has.*eval run"):
        keys("mantis")
    with pytest.raises(ValueError, match="lmms-eval has no MMIU"):
        keys("mmiu", engine="lmms_eval")
    with pytest.raises(ValueError, match="name at least one"):
        keys()
    with pytest.raises(ValueError, match="mode is 'vote'"):
        keys("docvqa", mode="vote")
    with pytest.raises(ValueError, match="did you mean"):
        keys("docvqaa")


def test_refcoco_serves_three():
    assert {each.key for each in owners("RefCOCO", "vlmevalkit")} == {
        "refcoco",
        "refcoco_plus",
        "refcocog",
    }
    assert keys("refcoco", "refcoco_plus", "refcocog") == ["RefCOCO"] * 3
