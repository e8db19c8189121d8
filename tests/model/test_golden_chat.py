"""chat, batch_chat and chat_stream give the official prompts, ids, answers and histories."""

from __future__ import annotations

import pytest

from tests import support

# Inputs on which the official code goes on with a wrong prompt, or fails inside: refused here.
REFUSED = {
    "npl_without_enough_image_tags": "1 <image> tags over its 1 turns but 2 images",
    "more_image_tags_than_images": "2 <image> tags over its 1 turns but 1 images",
    "npl_sum_mismatch": "names 6 tiles but pixel_values has 5",
    "image_tag_text_only": "1 <image> tags over its 1 turns but 0 images",
    "batch_npl_none": "num_patches_list is missing",
}
# Text of the user or of the model that the official code takes for control: here it stays text.
TAKEN_AS_TEXT = {"image_tag_in_history_answer", "special_tokens_in_question"}


def prepare(model, case):
    model.conv_template = support.conversation.get_conv_template(case["template"])
    system_message = case.get("system_message")
    model.system_message = (
        model.conv_template.system_message if system_message is None else system_message
    )


@pytest.fixture
def model(name, attention):
    return support.load(name, attn_implementation=attention)


def single(model, tokenizer, name, case):
    """Arguments of chat() for a golden case."""
    history = case["history"] and [tuple(turn) for turn in case["history"]]
    pixels = support.pixels(name, case["pixels"])
    return (tokenizer, pixels, case["question"], case["generation_config"], history), {
        "num_patches_list": case["num_patches_list"]
    }


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty`")
def test_chat(name, model):
    tokenizer = support.tokenizer(name)
    checked = 0
    for case in support.golden_json(name, "chat"):
        if "questions" in case or case["label"] in TAKEN_AS_TEXT | REFUSED.keys():
            continue
        prepare(model, case)
        arguments, options = single(model, tokenizer, name, case)
        answer, history = model.chat(*arguments, return_history=True, **options)
        assert answer == case["response"], case["label"]
        assert [list(turn) for turn in history] == case["history_out"], case["label"]
        checked += 1
    assert checked >= 16


def test_prompts_and_ids(name):
    model, tokenizer = support.load(name), support.tokenizer(name)
    checked = 0
    for case in support.golden_json(name, "chat"):
        if "prompt" not in case or case["label"] in TAKEN_AS_TEXT | REFUSED.keys():
            continue
        prepare(model, case)
        (_, pixels, question, _, history), options = single(model, tokenizer, name, case)
        counts = options["num_patches_list"]
        (request,) = model._requests(
            tokenizer, pixels, [question], None if counts is None else [counts], [history],
            support.conversation.IMAGE_TOKENS,
        )  # fmt: skip
        assert support.conversation.prompt_text(request.pieces) == case["prompt"], case["label"]
        assert request.ids == case["input_ids"], case["label"]
        checked += 1
    assert checked >= 16


def test_generated_ids(name):
    """The ids themselves, not only their text."""
    model, tokenizer = support.load(name), support.tokenizer(name)
    for case in support.golden_json(name, "chat"):
        if case["label"].split("/")[0] not in ("image_turn2", "numbered_images", "video"):
            continue
        prepare(model, case)
        (_, pixels, question, settings, history), options = single(model, tokenizer, name, case)
        counts = options["num_patches_list"]
        requests = model._requests(
            tokenizer, pixels, [question], None if counts is None else [counts], [history],
            support.conversation.IMAGE_TOKENS,
        )  # fmt: skip
        features = model._features(pixels, requests)
        ids = model._new_ids(
            model._generation_inputs(tokenizer, requests, features),
            support.hub.ring0("dialogue_internvl_chat").turn_settings(
                tokenizer, model.conv_template.end_of_turn, settings
            ),
        )
        assert ids[0].tolist() == case["output_ids"], case["label"]


def test_batch_chat(name, model):
    tokenizer = support.tokenizer(name)
    checked = 0
    for case in support.golden_json(name, "chat"):
        if "responses" not in case:
            continue
        prepare(model, case)
        answers = model.batch_chat(
            tokenizer,
            support.pixels(name, case["pixels"]),
            case["questions"],
            case["generation_config"],
            num_patches_list=case["num_patches_list"],
        )
        assert answers == case["responses"], case["label"]
        checked += 1
    assert checked == 3


def test_chat_stream_joins_to_the_answer(name):
    model, tokenizer = support.load(name), support.tokenizer(name)
    for case in support.golden_json(name, "chat"):
        unfit = "questions" in case or "beams" in case["label"] or "penalty" in case["label"]
        if unfit or case["label"] in TAKEN_AS_TEXT | REFUSED.keys():
            continue
        prepare(model, case)
        arguments, options = single(model, tokenizer, name, case)
        pieces = list(model.chat_stream(*arguments, **options))
        assert "".join(pieces) == case["response"], case["label"]


def test_wrong_counts_are_refused(name):
    model, tokenizer = support.load(name), support.tokenizer(name)
    seen = set()
    for case in support.golden_json(name, "chat"):
        if case["label"] not in REFUSED:
            continue
        prepare(model, case)
        if "questions" in case:
            method, options = model.batch_chat, {}
            arguments = (tokenizer, support.pixels(name, "AB"), case["questions"], {})
        else:
            method = model.chat
            arguments, options = single(model, tokenizer, name, case)
        with pytest.raises(ValueError, match=REFUSED[case["label"]]):
            method(*arguments, **options)
        seen.add(case["label"])
    assert seen == REFUSED.keys()


def test_control_tokens_in_text_stay_text(name):
    model, tokenizer = support.load(name), support.tokenizer(name)
    for case in support.golden_json(name, "chat"):
        if case["label"] != "special_tokens_in_question":
            continue
        prepare(model, case)
        (_, pixels, question, _, history), _ = single(model, tokenizer, name, case)
        (request,) = model._requests(
            tokenizer, pixels, [question], None, [history], support.conversation.IMAGE_TOKENS
        )
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert "<|im_end|>" in question
        assert request.ids.count(end) == case["input_ids"].count(end) - 1
        assert request.ids.count(tokenizer.convert_tokens_to_ids("<ref>")) == 1
        assert tokenizer.decode(request.ids) == tokenizer.decode(case["input_ids"])
