"""Tables 4 and 5 and Figure 7 of the report as data."""

from __future__ import annotations

import tomllib
from collections import Counter

import pytest

from internvl.data import build_mixture, catalogue
from internvl.data.catalogue import load_catalogue
from internvl.data.mixture import DatasetSpec

CATALOGUE = load_catalogue()
# Rows of the tables, counted by hand: datasets of each task, SynthDoG-RU once.
TABLE_4 = {
    "Captioning": 17, "General QA": 13, "Mathematics": 9, "Chart": 14, "OCR": 32, "Knowledge": 15,
    "Grounding": 8, "Document": 4, "Conversation": 6, "Medical": 7, "GUI": 2,
}  # fmt: skip
TABLE_5 = {
    ("single_image", "Captioning"): 5, ("single_image", "General QA"): 9,
    ("single_image", "Mathematics"): 12, ("single_image", "Chart"): 16, ("single_image", "OCR"): 29,
    ("single_image", "Knowledge"): 8, ("single_image", "Document"): 4,
    ("single_image", "Grounding"): 7, ("single_image", "Science"): 4,
    ("single_image", "Conversation"): 8, ("single_image", "Medical"): 10,
    ("single_image", "GUI"): 14, ("multi_image", "General QA"): 8, ("multi_image", "Document"): 2,
    ("video", "Captioning"): 6, ("video", "General QA"): 12, ("video", "GUI"): 1,
    ("text", "General QA"): 17, ("text", "Code"): 6, ("text", "Long Context"): 4,
    ("text", "Mathematics"): 6, ("text", "Knowledge"): 1,
}  # fmt: skip


MTVQA = "ko ja it ru de fr th ar vi"


def test_rows_have_as_many_datasets_as_the_tables():
    images = CATALOGUE.select(stage="pretrain", modality="single_or_multi_image")
    assert Counter(each.task for each in images) == TABLE_4
    video = CATALOGUE.select(stage="pretrain", modality="video")
    assert Counter(each.task for each in video) == {"Captioning": 4, "General QA": 6}
    finetune = CATALOGUE.select(stage="finetune")
    assert Counter((each.modality, each.task) for each in finetune) == TABLE_5


@pytest.mark.parametrize(
    ("stage", "task", "name", "cites", "languages"),
    [
        (
            "finetune",
            "OCR",
            "MTVQA",
            (227,),
            tuple(MTVQA.split()),
        ),
        ("finetune", "Grounding", "RefCOCO/+/g", (280, 177), ("en",)),
        ("finetune", "General QA", "VideoChat2-IT", (130, 131), ("en", "zh")),
        ("finetune", "Captioning", "ShareGPT4o", (35,), ("en", "zh")),
        ("finetune", "Knowledge", "KVQA", (207,), ("en",)),
        ("pretrain", "Captioning", "FaceCaption", (49,), ()),
        ("pretrain", "OCR", "SynthDoG-RU", (112,), ("ru",)),
        ("pretrain", "Chart", "Synthetic Chart2Markdown", (), ("en",)),
        ("pretrain", "General QA", "LSMDC", (201,), ("en",)),
    ],
)
def test_entries_say_what_the_report_prints(stage, task, name, cites, languages):
    (found,) = CATALOGUE.select(stage=stage, task=task, name=name)
    assert (found.cites, found.languages) == (cites, languages)


def test_places_are_unique():
    places = Counter((e.stage, e.modality, e.task, e.name) for e in CATALOGUE.entries)
    assert max(places.values()) == 1
    assert all(cite in range(1, 318) for each in CATALOGUE.entries for cite in each.cites)


def test_own_data_has_no_citation():
    own = {each.name for each in CATALOGUE.entries if not each.cites}
    assert own - {"LeetCode"} == {name for name in CATALOGUE.values("name") if "Synthetic" in name}


def test_totals_of_figure_7():
    assert CATALOGUE.samples == {
        "InternVL 1.5": 5_100_000, "InternVL 2.0": 7_300_000, "InternVL 2.5": 16_300_000,
    }  # fmt: skip
    assert sum(CATALOGUE.token_shares.values()) == pytest.approx(100)
    assert CATALOGUE.token_shares["video"] == 39.79


def test_augmentation_and_tiles_follow_section_4_1():
    for each in CATALOGUE.entries:
        assert each.augment == (each.modality not in ("video", "text"))
        assert (each.n_max is None) == (each.modality == "text")
        assert each.n_max is None or each.n_max in each.n_max_reported
        if each.modality == "video":
            assert each.n_max == 1
        if each.modality == "multi_image":
            assert each.n_max_reported == (24, 36)
        spec = DatasetSpec(each.name, "", "a.jsonl", max_dynamic_patch=each.n_max)
        assert spec.max_dynamic_patch == each.n_max


def test_what_is_known_of_sources_belongs_to_a_dataset():
    content = tomllib.loads(catalogue._FILE.read_text("utf-8"))
    assert set(content["source"]) <= set(CATALOGUE.values("name"))
    for name, source in content["source"].items():
        assert set(source) <= {"hub", "page", "licence"}, name
        assert source, name
        assert source.get("hub", "a/b").count("/") == 1
        assert source.get("page", "https://").startswith("http")


# ---------------------------------------------------------------------- choosing
def test_selection_ignores_case_and_joins_conditions():
    names = {each.name for each in CATALOGUE.select(stage="FINETUNE", task="ocr", language="ru")}
    assert names == {"CyrillicHandwriting", "MTVQA"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"task": "OCRR"}, "has task 'OCRR'; did you mean 'OCR'"),
        ({"name": "ChartVQA"}, "did you mean 'ChartQA'"),
        ({"stage": "stage2"}, "has stage 'stage2'"),
        ({"language": "klingon"}, "there are "),
    ],
)
def test_what_no_dataset_has_is_said(asked, message):
    with pytest.raises(ValueError, match=message):
        CATALOGUE.select(**asked)


def test_page_is_made_of_the_catalogue(tmp_path):
    assert build_mixture.main(["--check"]) == 0
    stale = tmp_path / "mixture.md"
    stale.write_text(build_mixture.page() + "more")
    assert build_mixture.main(["--check"], stale) == 1
    assert build_mixture.main([], stale) == 0
    assert build_mixture.main(["--check"], stale) == 0
    page = build_mixture.page()
    assert all(f"| {each.name} |" in page for each in CATALOGUE.entries)
