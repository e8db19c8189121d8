"""Prompts, tiles and settings against what VLMEvalKit's InternVLChat sent (tests/golden)."""

from __future__ import annotations

import json

import pytest

from internvl import hub
from internvl.evaluation import benchmarks, prompts
from internvl.evaluation.asking import prepare
from internvl.evaluation.records import Sample
from internvl.evaluation.run_config import ModelSource, config_for
from internvl.evaluation.samples import read_samples
from tests import support

KIT = support.GOLDEN / "vlmevalkit"
# File -> row of benchmarks.toml; the order is that of the recorded calls. TinyMCQ is a set of the
# user's own, which VLMEvalKit treats as it treats MMBench.
SETS = {
    "TinyMCQ": "mmbench",
    "MMMU_DEV_VAL": "mmmu_val",
    "ChartQA_TEST": "chartqa",
    "DocVQA_VAL": "docvqa",
    "TextVQA_VAL": "textvqa",
    "POPE": "pope",
    "OCRBench": "ocrbench",
}


@pytest.fixture(scope="module")
def processor():
    """The image side of a published checkpoint: 448 pixels, thumbnail."""
    images = hub.ring0("preprocessor.image_processing_internvl_chat")
    settings = json.loads((support.ROOT / "preprocessor_config.json").read_text())

    class Images:
        image_processor = images.InternVLChatImageProcessor(**settings)

    return Images()


def calls(name="calls.jsonl"):
    return [json.loads(line) for line in (KIT / name).read_text().splitlines()]


def asked(processor, name):
    row = benchmarks.get(SETS[name])
    # Documented trap: the kit drops POPE's own suffix, which the official script sends, as we do.
    rule = "question" if name == "POPE" else None
    config = config_for(row, ModelSource(), "", weights="", max_new_tokens=8, prompt=rule)
    return [
        (prepare(processor, each, config), config) for each in read_samples(KIT / f"{name}.tsv")
    ]


def test_calls_equal_those_of_vlmevalkit(processor):
    made = [each for name in SETS for each in asked(processor, name)]
    recorded = calls()
    assert len(made) == len(recorded) == 24
    for (ours, config), theirs in zip(made, recorded, strict=True):
        assert ours.prompt == theirs["question"]
        assert list(ours.num_tiles) == theirs["num_patches_list"]
        assert list(ours.pixel_values.shape) == theirs["pixel_values"][0]
        sent = {name: str(value) for name, value in config.generation.items()}
        assert sent == theirs["generation_config"]


def test_pope_has_the_suffix_of_the_official_script():
    row = benchmarks.get("pope")
    sample = read_samples(KIT / "POPE.tsv")[0]
    assert prompts.text_of(sample, row.prompt) == f"{sample.question}\n{prompts.SHORT}"
    assert any("VLMEvalKit" in trap for trap in row.traps)


@pytest.mark.parametrize(
    ("rule", "sample", "frames", "index"),
    [
        ("question", Sample("0", "which?", images=("a", "b")), 0, 0),
        ("question", Sample("0", "Q? ", video="clip"), 3, 3),
        ("video_letter", Sample("0", "Q?", video="clip", choices={}), 2, 4),
    ],
)
def test_edge_calls(rule, sample, frames, index):
    theirs = calls("calls_edge.jsonl")[index]["question"]
    if rule == "video_letter":  # the kit puts options into the question before
        theirs = theirs.replace(prompts.LETTER, "Answer the question directly.")
    assert prompts.build(sample, rule, frames=frames) == theirs


def test_places_in_the_text_become_labels():
    sample = Sample("0", "Is <image> like <image>?", images=("a", "b"))
    built = prompts.build(sample, "question")
    assert built == "Image-1: <image>\nImage-2: <image>\nIs <Image-1> like <Image-2>?"
    mantis = prompts.build(sample, "mantis")
    assert mantis.startswith("Image-1: <image>\nImage-2: <image>\nIs Image-1 like Image-2?\n")
    gathered = Sample("0", "<image> <image>Which?", images=("a", "b"))
    assert prompts.build(gathered, "question") == "Image-1: <image>\nImage-2: <image>\nWhich?"


def test_a_tag_without_picture_is_refused():
    with pytest.raises(ValueError, match="sample 7: the question has 2 <image> but 1 images"):
        prompts.build(Sample("7", "<image> or <image>", images=("a",)), "question")


CHOICES = {"A": "red", "B": "blue"}


@pytest.mark.parametrize(
    ("rule", "sample", "text"),
    [
        ("short", Sample("0", "Q"), f"Q\n{prompts.SHORT}"),
        ("short_inline", Sample("0", "Q"), f"Q {prompts.SHORT}"),
        ("yes_no", Sample("0", "Q"), f"Q Please answer yes or no. {prompts.SHORT}"),
        ("letter", Sample("0", "Q", choices=CHOICES), f"Q\nA. red\nB. blue\n{prompts.LETTER}"),
        ("letter", Sample("0", "Q", fields={"hint": "H"}), "H\nQ\nAnswer the question directly."),
        (
            "letter",
            Sample("0", "\u989c\u8272", choices=CHOICES),
            f"\u989c\u8272\nA. red\nB. blue\n{prompts.LETTER_CN}",
        ),
        ("detail", Sample("0", "Q"), f"Q\n{prompts.DETAIL}"),
        (
            "grounding",
            Sample("0", "the dog"),
            "Please provide the bounding box coordinate of the region this sentence describes: "
            "<ref>the dog</ref>",
        ),
        (
            "mathverse",
            Sample("0", "please directly answer the question and provide the correct option"),
            "please provide the correct option",
        ),
        (
            "mirb",
            Sample("0", "Q", fields={"task": "count_concat"}),
            "Q\nAnswer with a single number.",
        ),
        ("mmiu", Sample("0", "Q", choices=CHOICES), f"Q\nA: red\nB: blue\n{prompts.LETTER}"),
        ("mantis", Sample("0", "Q", choices=CHOICES), f"Q\n(A) red\n(B) blue\n{prompts.LETTER}"),
    ],
)  # fmt: skip
def test_rules(rule, sample, text):
    assert prompts.text_of(sample, rule) == text


def test_mmmu_pro_has_its_options():
    # VLMEvalKit sends the question without them (trap 1).
    sample = Sample("0", "Q", choices=CHOICES)
    assert prompts.text_of(sample, "mmmu_pro").startswith(
        "Q\nA. red\nB. blue\nAnswer with the option"
    )
    assert prompts.text_of(sample, "mmmu_pro", cot=True).endswith(
        "Think step by step before answering."
    )
    vision = Sample("0", "", choices=CHOICES)
    assert "'Answer: $LETTER'" in prompts.text_of(vision, "mmmu_pro")


def test_cot_takes_the_place_of_the_direct_instruction():
    text = prompts.text_of(Sample("0", "Q", choices=CHOICES), "letter", cot=True)
    assert prompts.LETTER not in text
    assert "\\boxed{$LETTER}" in text
    opened = prompts.text_of(Sample("0", "Q"), "short", cot=True)
    assert prompts.SHORT not in opened
    assert "\\boxed{$FINAL_ANSWER}" in opened
    for question in ("Q", "\u95ee"):  # an open question among others; in Chinese
        text = prompts.text_of(Sample("0", question), "letter")
        assert prompts.text_of(Sample("0", question), "letter", cot=True).startswith(question)
        instruction = text.removeprefix(question).strip()
        assert instruction not in prompts.text_of(Sample("0", question), "letter", cot=True)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [((12, 64, 1), 12), ((6, 64, 20), 3), ((12, 12, 20), 1), ((6, 64, 0), 6)],
)
def test_images_share_the_budget(limits, expected):
    assert prompts.tile_limit(*limits) == expected


def test_unknown_rule():
    with pytest.raises(ValueError, match="no prompt rule 'x'"):
        prompts.text_of(Sample("0", "Q"), "x")
