"""Every golden case, and every peer in it: what the functions of others gave for the same input."""

from __future__ import annotations

import pytest

from internvl.evaluation.metrics import (
    anls,
    chartqa,
    crpe,
    grounding,
    math_answers,
    mmmu,
    ocr,
    vcr,
    video,
    vqa,
    yes_no,
)
from internvl.evaluation.metrics.family import Metric
from internvl.evaluation.scoring import METRICS
from tests.evaluation.metrics.rows import cases, from_case, row


def near(value):
    return pytest.approx(value, abs=1e-6)


def summary(metric: Metric, case: dict) -> dict[str, float]:
    rows = from_case(case)
    return metric.summarise(rows, [metric.mark(each, each.text) for each in rows])


@pytest.mark.parametrize("case", cases("anls"), ids=lambda case: case["prediction"])
def test_anls(case):
    text, answers = case["prediction"], case["answers"]
    assert case["vlmevalkit"] == case["internvl_official"]
    assert anls.anls(text, answers, peer="official") == near(case["internvl_official"])
    assert anls.anls(text, answers, peer="paper") == near(case["anls_pkg"])
    assert anls.anls(text, answers) == near(case["internvl_official"] if text else 0.0)


@pytest.mark.parametrize("peer", ["vlmevalkit", "official"])
def test_relaxed_accuracy(peer):
    column = "internvl_official" if peer == "official" else peer
    for case in cases("relaxed_accuracy"):
        found = chartqa.relaxed_accuracy(case["prediction"], case["answers"], peer=peer)
        assert found == case[column], case


@pytest.mark.parametrize("peer", ["vlmevalkit", "official"])
def test_vqa(peer):
    column = "internvl_official" if peer == "official" else peer
    for case in cases("vqa_normalize"):
        assert vqa.normalize_vqa_answer(case["text"], peer=peer) == case[column]
    for case in cases("vqa_soft_accuracy"):
        form = vqa.normalize_vqa_answer(case["prediction"], peer=peer)
        assert form == case["norm_official" if peer == "official" else "norm_vlmevalkit"]
        found = vqa.vqa_soft_accuracy(case["prediction"], case["answers"], peer=peer)
        assert found == near(case[column])


@pytest.mark.parametrize("case", cases("yes_no_extraction"), ids=lambda case: case["text"])
def test_yes_no(case):
    assert yes_no.extract_yes_no(case["text"]) == {"Unknown": None}.get(
        case["vlmevalkit"], case["vlmevalkit"]
    )
    for peer in ("official_pope", "official_mme"):
        said = yes_no.extract_yes_no(case["text"], peer=peer)
        assert (said or "other").lower() == case[f"internvl_{peer}"]


@pytest.mark.parametrize("case", cases("pope"))
def test_pope(case):
    parts = summary(yes_no.POPE, case)
    names = {"Overall": "F1", "acc": "accuracy", "precision": "precision", "recall": "recall"}
    for split, values in case["vlmevalkit"].items():
        for name, value in values.items():
            part = f"{names[name]}/{'pooled' if split == 'Overall' else split}"
            assert parts[part] == near(value), part
    official = case["internvl_official_overall_f1"]
    found = summary(yes_no.pope("official_pope"), case)["score"]
    if isinstance(official, dict):  # nothing is said yes in a category: 0 / 0 there, 0 here
        assert official == {"raises": "ZeroDivisionError"}
        assert 0 <= found < 100
    else:
        assert found == near(official)


@pytest.mark.parametrize("case", cases("mme"))
def test_mme(case):
    parts, expected = summary(yes_no.MME, case), case["vlmevalkit"]
    assert parts["score"] == near(expected["perception"] + expected["reasoning"])
    assert parts["perception"] == near(expected["perception"])
    assert parts["cognition"] == near(expected["reasoning"])
    for subtask, value in expected.items():
        if subtask not in ("perception", "reasoning"):
            assert parts[f"category/{subtask}"] == near(value)
    official = summary(yes_no.mme("official_mme"), case)
    assert [official["perception"], official["cognition"]] == near(
        case["internvl_official_perception_cognition"]
    )


@pytest.mark.parametrize("case", cases("hallusionbench"))
def test_hallusion(case):
    parts = summary(yes_no.HALLUSION, case)
    assert {name: parts[name] for name in case["vlmevalkit"]} == near(case["vlmevalkit"])
    assert parts["score"] == near(sum(case["vlmevalkit"].values()) / 3)


@pytest.mark.parametrize("case", cases("mmmu_open"), ids=lambda case: case["response"])
def test_mmmu_open(case):
    parsed = mmmu.parse_open_response(case["response"])
    assert set(parsed) == set(case["parsed"])
    assert len(parsed) == len(case["parsed"])
    assert mmmu.eval_open(case["gold"], parsed) == case["correct"]
    mark = METRICS["mmmu"].mark(row(answers=[case["gold"]]), case["response"])
    assert mark.score == case["correct"]


@pytest.mark.parametrize("peer", ["official", "vlmevalkit"])
@pytest.mark.parametrize("case", cases("refcoco"), ids=lambda case: case["text"])
def test_refcoco(case, peer):
    truth = (64.0, 48.0, 320.0, 240.0)
    expected = case["internvl_official_iou" if peer == "official" else "vlmevalkit_iou"]
    size = {"height": 480, "width": 640}
    found = grounding.refcoco_iou(case["text"], truth, peer=peer, **size)
    assert found == near(expected)
    assert grounding.refcoco_hit(case["text"], truth, peer=peer, **size) == (expected >= 0.5)
    if peer == "official":
        mark = METRICS["refcoco"].mark(row(answers=[str(list(truth))]), case["text"])
        assert mark.score == (expected >= 0.5)


@pytest.mark.parametrize("case", cases("ocrbench"), ids=lambda case: case["prediction"])
def test_ocrbench(case):
    found = ocr.ocrbench_hit(case["category"], case["answers"], case["prediction"])
    assert found == case["vlmevalkit"]


@pytest.mark.parametrize("case", cases("mtvqa"))
def test_mtvqa(case):
    parts = summary(METRICS["mtvqa"], case)
    assert parts.pop("score") == near(case["vlmevalkit"].pop("Average"))
    assert parts == near({f"category/{k}": value for k, value in case["vlmevalkit"].items()})


@pytest.mark.parametrize("case", cases("crpe"), ids=lambda case: case["prediction"])
def test_crpe(case):
    assert crpe.crpe_correct(case["gold"], case["prediction"]) == case["vlmevalkit"]


# Where spaCy's rules for English split the golden texts elsewhere than at blanks.
SPACY = {
    "don't stop now": ["do", "n't", "stop", "now"],
    "I can't see one two": ["I", "ca", "n't", "see", "one", "two"],
    "The U.S. Army, founded": ["The", "U.S.", "Army", ",", "founded"],
    "hello, world": ["hello", ",", "world"],
}


def as_spacy(text: str) -> list[str]:
    return SPACY.get(text, text.split())


def check_vcr(tokenize=None):
    for case in cases("vcr_en"):
        blanks = vcr.vcr_score(case["prediction"], case["answers"], tokenize=tokenize)
        assert len(blanks) == len(case["vlmevalkit"])
        for blank, expected in zip(blanks, case["vlmevalkit"], strict=True):
            assert vars(blank) == near(expected), case["prediction"]


def test_vcr():
    check_vcr(as_spacy)


@pytest.mark.slow  # three seconds of imports
def test_vcr_with_spacy():
    pytest.importorskip("spacy")  # the extra [vcr]
    check_vcr()
    split = vcr._english()
    for case in cases("vcr_en"):
        for text in (case["prediction"], *case["answers"]):
            assert split(text) == as_spacy(text)


@pytest.mark.parametrize("case", cases("mathvista_normalize"), ids=lambda case: case["extraction"])
def test_mathvista_normalize(case):
    names = ("extraction", "choices", "question_type", "answer_type", "precision")
    found = math_answers.normalize_extracted_answer(*(case[name] for name in names))
    assert found == case["internvl_official"]


@pytest.mark.parametrize("case", cases("mvbench"), ids=lambda case: case["prediction"])
def test_mvbench(case):
    text, gold = case["prediction"], case["gold"]
    official = video.mvbench_correct(text, gold, peer="official")
    assert official == case["internvl_official"]
    assert video.mvbench_correct(text, gold) == (official and bool(text))
