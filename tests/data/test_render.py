"""Rendering gives the ids of inference, and the loss mask is what an assistant says."""

from __future__ import annotations

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl import hub
from internvl.data.render import NO_RESPONSE, RenderedTurn, Renderer
from internvl.data.schema import DataError
from tests import support

conversation = support.conversation
TEMPLATES = sorted(conversation.TEMPLATES)
TOKENS_PER_TILE = 3


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """The golden fast tokenizers, and a slow one as InternLM2 has it."""
    folder = tmp_path_factory.mktemp("internlm2")
    corpus = ["a cat sits on the mat", "assistant user system", "你好，世界", "yes no red blue"]  # noqa: RUF001
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus * 50),
            model_writer=file,
            vocab_size=360,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
            user_defined_symbols=["<|im_start|>", "<|im_end|>"],
        )
    slow = hub.ring0("tokenization_internlm2").InternLM2Tokenizer(
        str(folder / "tokenizer.model"),
        additional_special_tokens=["<img>", "</img>", "<IMG_CONTEXT>", "<ref>", "</ref>"],
    )
    slow.add_tokens(["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"], special_tokens=True)
    return {"qwen2": support.tokenizer("qwen2"), "phi3": support.tokenizer("phi3"), "slow": slow}


words = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            "<|im_end|>",
            "<IMG_CONTEXT>",
            "</s>",
            "<ref>",
            "</ref>",
            "<box>",
            " ",
            "\n",
            "a cat",
            "你好",
        ]
    ),
)
texts = st.lists(words, min_size=1, max_size=4).map("".join).filter(bool)
parts = st.lists(st.one_of(texts, st.integers(1, 3)), min_size=1, max_size=3).map(tuple)
dialogues = st.lists(st.tuples(parts, texts), min_size=1, max_size=3)


def turns_of(dialogue):
    turns = []
    for asked, answer in dialogue:
        turns += [RenderedTurn("user", asked), RenderedTurn("assistant", (answer,))]
    return turns


def inference_ids(template, turns, tokenizer):
    """What chat() would be given if the last answer were part of its history."""
    content = [
        [conversation.Visual(part) if isinstance(part, int) else part for part in turn.parts]
        for turn in turns
    ]
    roles = [template.roles[turn.role == "assistant"] for turn in turns]
    pieces = conversation.render(
        template, list(zip(roles, content, strict=True)), num_image_token=TOKENS_PER_TILE
    )
    return conversation.encode(pieces, tokenizer)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", ["qwen2", "phi3", "slow"])
@settings(max_examples=15)
@given(dialogue=dialogues)
def test_ids_are_those_of_inference(name, kind, dialogue, tokenizers):
    template, tokenizer = conversation.get_conv_template(name), tokenizers[kind]
    if any(control not in tokenizer.get_vocab() for control in template.control):
        pytest.skip(f"the tokenizer has not all of {template.control}")
    turns = turns_of(dialogue)
    rendered = Renderer(template, tokenizer, TOKENS_PER_TILE).render(turns)
    assert rendered.input_ids.tolist() == inference_ids(template, turns, tokenizer)
    learnt = rendered.response != NO_RESPONSE
    assert (rendered.labels[learnt] == rendered.input_ids[learnt]).all()
    assert (rendered.labels[~learnt] == -100).all()
    assert sorted(set(rendered.response[learnt].tolist())) == list(range(len(dialogue)))


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_learnt_is_the_answers_and_their_ends(name, tokenizers):
    template, tokenizer = conversation.get_conv_template(name), tokenizers["phi3"]
    if any(control not in tokenizer.get_vocab() for control in template.control):
        tokenizer = tokenizers["qwen2"]
    if any(control not in tokenizer.get_vocab() for control in template.control):
        pytest.skip(f"the tokenizer has not all of {template.control}")
    dialogue = [((2, "\nHow many cats?"), "Two cats."), (("Which colours?",), "Red, and blue.")]
    segments = Renderer(template, tokenizer, TOKENS_PER_TILE).segments(turns_of(dialogue))
    learnt = [segment for segment in segments if segment.supervise]
    texts = [tokenizer.decode(segment.ids).strip() for segment in learnt]
    end = template.end_of_turn
    assert texts == [f"Two cats.{end}", f"Red, and blue.{end}"]
    assert [segment.response for segment in learnt] == [0, 1]


def test_an_answer_is_learnt_after_the_prompt_of_inference(tokenizers):
    """The tokens before an answer are the prompt that ends where the model has to write."""
    template, tokenizer = conversation.get_conv_template("internvl2_5"), tokenizers["qwen2"]
    for answer in ("Yes.", " spaced", "\n\nlines", "7"):
        turns = [RenderedTurn("user", ("Is it?",)), RenderedTurn("assistant", (answer,))]
        rendered = Renderer(template, tokenizer, 1).render(turns)
        first = int(np.flatnonzero(rendered.response == 0)[0])
        opened = [(template.roles[0], "Is it?"), (template.roles[1], None)]
        prompt = conversation.encode(conversation.render(template, opened), tokenizer)
        # A token that joins the header and the answer is learnt, whole.
        assert rendered.input_ids[:first].tolist() == prompt[:first]
        assert len(prompt) - first <= 1


def test_the_system_message_of_a_sample_takes_the_place_of_the_templates(tokenizers):
    template, tokenizer = conversation.get_conv_template("internvl2_5"), tokenizers["qwen2"]
    turns = turns_of([(("Hi",), "Hello")])
    rendered = Renderer(template, tokenizer, 1).render(turns, system="Be brief.")
    text = tokenizer.decode(rendered.input_ids.tolist())
    assert "Be brief." in text
    assert template.system_message not in text
    assert conversation.get_conv_template("internvl2_5").system_message == template.system_message


def test_a_token_of_id_0_is_learnt(tokenizers):
    """The official collator pads with 0 and takes every 0 for padding; it is "!" in Qwen2's."""
    tokenizer = tokenizers["qwen2"]
    word = tokenizer.convert_ids_to_tokens(0)
    turns = [RenderedTurn("user", ("Hi",)), RenderedTurn("assistant", (f"Hello{word}",))]
    rendered = Renderer(conversation.get_conv_template("internvl2_5"), tokenizer, 1).render(turns)
    assert (rendered.labels == 0).sum() == 1


def test_nothing_to_learn_and_empty_turns_are_named(tokenizers):
    renderer = Renderer(conversation.get_conv_template("internvl2_5"), tokenizers["qwen2"], 1)
    with pytest.raises(DataError) as caught:
        renderer.render([RenderedTurn("user", ("Hi",))])
    assert caught.value.reason == "no_supervised_token"
    with pytest.raises(DataError) as caught:
        renderer.render([RenderedTurn("user", ("Hi",)), RenderedTurn("assistant", ("",))])
    assert caught.value.reason == "empty_turn"
