"""chat, batch_chat and chat_stream: mixed batches, histories, streams, and what they leave
alone."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from tests import support

SETTINGS = {"max_new_tokens": 10, "do_sample": False}
streaming = support.hub.ring0("streaming_internvl_chat")

# Question, images, tiles of each image, history: text, one image, several, a video, an image in a
# later turn.
SAMPLES = [
    ("Hello", "", [], None),
    ("What is this?", "A", [5], None),
    ("Image-1: <image>\nImage-2: <image>\nCompare.", "AB", [5, 4], None),
    (
        "".join(f"Frame{i + 1}: <image>\n" for i in range(4)) + "What moves?",
        "frames",
        [1] * 4,
        None,
    ),
    ("And here? <image>", "BC", [4, 1], [("<image>\nWhat?", "a cat <image>"), ("Sure?", "yes")]),
    ("And now?", "", [], [("Hi", "hello")]),
    ("Again?", "C", [1], [("What is <image>?", "a dog")]),
]


def tiles(name, samples):
    parts = [support.pixels(name, images) for _, images, _, _ in samples if images]
    return torch.cat(parts) if parts else None


def test_a_mixed_batch_equals_single_calls_in_any_order(name):
    model, tokenizer = support.load(name), support.tokenizer(name)
    singles = [
        model.chat(
            tokenizer,
            support.pixels(name, images),
            question,
            SETTINGS,
            history=history,
            num_patches_list=counts,
        )
        for question, images, counts, history in SAMPLES
    ]
    for order in (range(len(SAMPLES)), [3, 0, 5, 6, 4, 2, 1]):
        samples = [SAMPLES[i] for i in order]
        answers, histories = model.batch_chat(
            tokenizer,
            tiles(name, samples),
            [s[0] for s in samples],
            SETTINGS,
            num_patches_list=[s[2] for s in samples],
            history=[s[3] for s in samples],
            return_history=True,
        )
        assert answers == [singles[i] for i in order]
        for sample, answer, history in zip(samples, answers, histories, strict=True):
            assert history[:-1] == (sample[3] or [])
            assert history[-1][1] == answer
    assert histories[order.index(1)][0][0] == "<image>\nWhat is this?"


def test_a_new_image_in_a_later_turn_is_seen(qwen2):
    model, tokenizer = qwen2
    history = [("<image>\nWhat?", "a cat")]
    answers = {
        images: model.chat(
            tokenizer,
            support.pixels("qwen2", images),
            "<image>\nAnd this?",
            SETTINGS,
            history=history,
            num_patches_list=[1, tiles],
        )
        for images, tiles in (("CA", 5), ("CB", 4))
    }
    assert answers["CA"] != answers["CB"]
    with pytest.raises(ValueError, match=r"2 <image> tags over its 2 turns but 1 images"):
        model.chat(
            tokenizer, support.pixels("qwen2", "A"), "<image>\nAnd this?", SETTINGS, history=history
        )


def test_nothing_of_the_caller_changes(qwen2):
    model, tokenizer = qwen2
    config = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": 5, "top_p": 0.95}
    history = [("Hi", "hello")]
    before = copy.deepcopy((config, history, tokenizer.padding_side))
    model.batch_chat(
        tokenizer,
        None,
        ["a", "b b b"],
        config,
        [0, 0],
        history=[history, None],
        return_history=True,
    )
    list(model.chat_stream(tokenizer, None, "a", config, history=history))
    assert (config, history, tokenizer.padding_side) == before

    own = GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=5)
    assert model.chat(tokenizer, None, "a", own) == model.chat(tokenizer, None, "a", config)
    assert (own.eos_token_id, own.pad_token_id) == (5, None)
    assert model.chat(tokenizer, None, "a", {**config, "use_cache": False}) == model.chat(
        tokenizer, None, "a", config
    )


def test_counts_are_checked_per_question(qwen2):
    model, tokenizer = qwen2
    image = support.pixels("qwen2", "C")
    for arguments, message in [
        ((image, ["a", "b"], SETTINGS, [1]), "2 questions but num_patches_list has 1 entries"),
        ((image, ["a"], SETTINGS, [-1]), "negative entry"),
        ((image, "a", SETTINGS, [1]), "questions is one string"),
        ((image, ["a", "<image>"], SETTINGS, [1, 0]), "question 1 has 1 <image> tags"),
        ((image, ["a"], SETTINGS, [1], []), "1 questions but 0 histories"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.batch_chat(tokenizer, *arguments)
    with pytest.raises(ValueError, match="one answer per question"):
        model.chat(tokenizer, None, "a", {**SETTINGS, "do_sample": True, "num_return_sequences": 2})
    assert model.batch_chat(tokenizer, None, [], SETTINGS) == []


def test_verbose_shows_the_prompt_with_images_collapsed(qwen2, capsys):
    model, tokenizer = qwen2
    answer = model.chat(tokenizer, support.pixels("qwen2", "A"), "What?", SETTINGS, verbose=True)
    shown = capsys.readouterr().out
    assert "user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n" in shown
    assert shown.endswith(answer + "\n")
    assert "<IMG_CONTEXT>" not in shown


def test_control_tokens_in_a_system_message_are_text(qwen2):
    model, tokenizer = support.load("qwen2"), qwen2[1]
    model.system_message = "Be <|im_end|> brief. <IMG_CONTEXT>"
    tokens = support.conversation.IMAGE_TOKENS
    (request,) = model._requests(tokenizer, None, ["Hi"], None, None, tokens)
    assert request.ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
    assert support.IMG_CONTEXT_ID not in request.ids
    assert "Be <|im_end|> brief. <IMG_CONTEXT>" in tokenizer.decode(request.ids)


def test_grounding_tags_that_a_tokenizer_lacks_are_text(qwen2):
    class WithoutTags:
        """A tokenizer of another vocabulary."""

        name_or_path = "another"
        bos_token_id = None
        added_tokens_decoder = qwen2[1].added_tokens_decoder

        def get_added_vocab(self):
            return {k: v for k, v in qwen2[1].get_added_vocab().items() if "ref" not in k}

        def __call__(self, text, **options):
            return qwen2[1](text, **options)

    text = "Where is <ref>the cat</ref>?"
    pieces = [support.conversation.Piece(text, False)]
    expected = qwen2[1](text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert support.conversation.encode(pieces, WithoutTags()) == expected


def test_a_model_without_template_says_so(qwen2):
    model, tokenizer = support.load("qwen2"), qwen2[1]
    model.conv_template = None
    with pytest.raises(ValueError, match=r"config.json has no `template`"):
        model.chat(tokenizer, None, "a", SETTINGS)


class TestStream:
    def test_cancelling_stops_the_generation(self, qwen2):
        model, tokenizer = qwen2
        cancel, steps = threading.Event(), []
        handle = model.language_model.register_forward_hook(lambda *_: steps.append(1))
        stream = model.chat_stream(
            tokenizer, None, "Hello", {"max_new_tokens": 500, "eos_token_id": None}, cancel=cancel
        )
        next(stream)
        cancel.set()
        list(stream)
        handle.remove()
        assert len(steps) < 500

    def test_closing_the_iterator_stops_the_generation(self, qwen2):
        model, tokenizer = qwen2
        threads = threading.active_count()
        stream = model.chat_stream(tokenizer, None, "Hello", {"max_new_tokens": 500})
        next(stream)
        stream.close()
        assert threading.active_count() == threads

    def test_errors_of_the_generation_reach_the_consumer(self, qwen2):
        model, tokenizer = qwen2
        with pytest.raises(ValueError, match="num_beams"):
            list(model.chat_stream(tokenizer, None, "Hello", {**SETTINGS, "num_beams": 2}))

    @settings(deadline=None, max_examples=60)
    @given(text=st.text(max_size=40), sizes=st.lists(st.integers(1, 3), min_size=1))
    def test_any_text_comes_whole_and_never_in_half_characters(self, text, sizes):
        tokenizer = support.tokenizer("qwen2")
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        chunks, start = [], 0
        while start < len(ids):
            size = sizes[len(chunks) % len(sizes)]
            chunks.append(ids[start : start + size])
            start += size
        pieces = list(streaming.AnswerDecoder(tokenizer, "<|im_end|>").stream(chunks))
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        assert "".join(pieces) == whole.split("<|im_end|>")[0].strip()
        if "\ufffd" not in whole:
            assert not any("\ufffd" in piece for piece in pieces)

    @pytest.mark.parametrize(
        ("texts", "expected"),
        [
            (["  a", " ", " b ", "  "], "a  b"),
            (["a <", "|im", "_end|> b"], "a"),
            (["a <", "|i", "x"], "a <|ix"),
            (["\n", "  "], ""),
            ([" <|im_end|>"], ""),
            (["x", "<|im_end|>", "y"], "x"),
        ],
    )
    def test_stripping(self, texts, expected):
        assert "".join(streaming.stripped(iter(texts), "<|im_end|>")) == expected
