"""Answers and beams that share a prefill have the ids that transformers' own `generate` gives."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from tests import support

SETTINGS = {"max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 1001}
SAMPLED = {**SETTINGS, "do_sample": True, "temperature": 0.9, "top_p": 0.95}
generation = support.hub.ring0("generation_internvl_chat")


@pytest.fixture
def batch(name):
    """Two samples of different lengths and tile counts, left-padded."""
    model, tokenizer = support.load(name), support.tokenizer(name)
    requests = model._requests(
        tokenizer,
        support.pixels(name, "AC"),
        ["<image>\nWhat is in this picture?", "Where <image>"],
        [[5], [1]],
        None,
        support.conversation.IMAGE_TOKENS,
    )
    pixels = support.pixels(name, "AC")
    inputs = model._generation_inputs(tokenizer, requests, model._features(pixels, requests))
    return model, pixels, inputs


def own(model, seed, **options):
    """What transformers' own `generate` gives, with its prefill of every copy."""
    torch.manual_seed(seed)
    return super(generation.PrefillOnceMixin, model).generate(**options)


def ours(model, seed, **options):
    torch.manual_seed(seed)
    return model.generate(**options)


def prefilled(model):
    """(rows, positions) of every forward pass of the language model with several positions."""
    shapes = []

    def note(module, args, kwargs, output):
        shape = (kwargs["inputs_embeds"]).shape[:2]
        if shape[1] > 1:
            shapes.append(tuple(shape))

    model.language_model.register_forward_hook(note, with_kwargs=True)
    return shapes


@pytest.mark.parametrize("given", ["ids and pixels", "embeddings", "text"])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({**SAMPLED, "num_return_sequences": 5}, id="sampled"),
        pytest.param({**SETTINGS, "num_beams": 3, "num_return_sequences": 2}, id="beams"),
        pytest.param({**SAMPLED, "num_beams": 2}, id="sampled beams"),
        pytest.param(
            {**SAMPLED, "num_return_sequences": 3, "repetition_penalty": 1.3}, id="penalty"
        ),
    ],
)
def test_ids_are_those_of_transformers(batch, options, given):
    model, pixels, inputs = batch
    mask = {"attention_mask": inputs["attention_mask"]}
    ids, embeds = {"input_ids": inputs["input_ids"]}, {"inputs_embeds": inputs["inputs_embeds"]}
    if given == "ids and pixels":
        expected = own(model, 7, **ids, **embeds, **mask, **options)
        shapes = prefilled(model)
        result = ours(model, 7, **ids, pixel_values=pixels, **mask, **options)
    elif given == "embeddings":
        expected = own(model, 7, **embeds, **mask, **options)
        shapes = prefilled(model)
        result = ours(model, 7, **embeds, **mask, **options)
    else:
        expected = own(model, 7, **ids, **mask, **options)
        shapes = prefilled(model)
        result = ours(model, 7, **ids, **mask, **options)
    assert torch.equal(result, expected)
    assert shapes == [(2, inputs["input_ids"].shape[1] - 1)]


def test_a_cache_of_the_caller_is_continued_and_not_multiplied(batch):
    model, _, inputs = batch
    row = {key: value[:1] for key, value in inputs.items()}
    expected = own(model, 3, **row, **SAMPLED, num_return_sequences=4)
    cache = DynamicCache()
    with torch.no_grad():
        model(
            inputs_embeds=row["inputs_embeds"][:, :30],
            attention_mask=row["attention_mask"][:, :30],
            past_key_values=cache,
            use_cache=True,
        )
    shapes = prefilled(model)
    options = {**row, **SAMPLED, "num_return_sequences": 4, "past_key_values": cache}
    assert torch.equal(ours(model, 3, **options), expected)
    assert shapes == [(1, row["input_ids"].shape[1] - 31)]
    assert cache.layers[0].keys.shape[0] == 1
    assert cache.get_seq_length() == row["input_ids"].shape[1] - 1


def test_a_cache_with_a_row_per_answer_is_left_as_it_is(batch):
    model, _, inputs = batch
    row = {key: value[:1] for key, value in inputs.items()}
    cache = generation.branch(
        generation.prefill(model, {"inputs_embeds": row["inputs_embeds"]}, None), 3
    )
    expected = own(model, 3, **row, **SAMPLED, num_return_sequences=3)
    result = ours(model, 3, **row, **SAMPLED, num_return_sequences=3, past_key_values=cache)
    assert torch.equal(result, expected)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"use_cache": False}, id="no cache"),
        pytest.param({"cache_implementation": "static", "disable_compile": True}, id="static"),
    ],
)
def test_other_caches_are_left_to_transformers(batch, options):
    model, _, inputs = batch
    options = {**SAMPLED, **options, "num_return_sequences": 2, **inputs}
    del options["inputs_embeds"]
    assert torch.equal(ours(model, 5, **options), own(model, 5, **options))


def test_hidden_states_are_those_of_the_whole_prompt(batch):
    model, _, inputs = batch
    options = {**SAMPLED, "num_return_sequences": 2, "return_dict_in_generate": True, **inputs}
    output = ours(model, 5, **options, output_hidden_states=True)
    expected = own(model, 5, **options, output_hidden_states=True)
    assert output.hidden_states[0][-1].shape[:2] == (4, inputs["input_ids"].shape[1])
    assert torch.equal(output.hidden_states[0][-1], expected.hidden_states[0][-1])
    # Scores are of new tokens alone: the shared prefill gives them too.
    output = ours(model, 5, **options, output_scores=True)
    expected = own(model, 5, **options, output_scores=True)
    assert torch.equal(output.sequences, expected.sequences)
    assert len(output.scores) == len(expected.scores)
    for one, other in zip(output.scores, expected.scores, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_padding_that_transformers_finds_by_itself(batch):
    model, _, inputs = batch
    options = {**SAMPLED, "num_return_sequences": 2, "input_ids": inputs["input_ids"]}
    assert torch.equal(ours(model, 5, **options), own(model, 5, **options))


class TestPromptLookup:
    """Candidates are copied from the prompt and checked: the answer is the greedy one."""

    def test_generate(self, batch):
        model, pixels, inputs = batch
        row = {key: value[:1] for key, value in inputs.items()}
        settings = {**SETTINGS, "eos_token_id": 1017}  # 4.57 needs one to look a prompt up
        greedy = model.generate(**row, **settings)
        lookup = {**settings, "prompt_lookup_num_tokens": 4}
        assert torch.equal(model.generate(**row, **lookup), greedy)
        ids = {key: row[key] for key in ("input_ids", "attention_mask")}
        assert torch.equal(model.generate(**ids, pixel_values=pixels[:5], **lookup), greedy)
        features = model.extract_feature(pixels[:5])
        new = model.generate(**ids, visual_features=features, **lookup)
        assert torch.equal(new, greedy[:, -12:])
        with pytest.raises(ValueError, match="pass both"):
            model.generate(inputs_embeds=row["inputs_embeds"], **lookup)

    def test_an_assistant_changes_no_answer(self):
        model, tokenizer = support.load("qwen2"), support.tokenizer("qwen2")
        arguments = (tokenizer, support.pixels("qwen2", "A"), "What is <image>?")
        settings = {"max_new_tokens": 12, "do_sample": False}
        expected = model.chat(*arguments, settings)
        assistant = support.load("qwen2").language_model  # it sees words, and no image
        steps = []
        assistant.register_forward_hook(lambda *_: steps.append(1))
        assert model.chat(*arguments, {**settings, "assistant_model": assistant}) == expected
        assert steps

    def test_fewer_forward_passes_for_repeated_text(self):
        model, tokenizer = support.load("qwen2"), support.tokenizer("qwen2")
        for layer in model.language_model.model.layers:  # the next token follows from the last one,
            layer.self_attn.o_proj.weight.data.zero_()  # so the text soon goes round in a circle
            layer.mlp.down_proj.weight.data.zero_()
        settings = {"max_new_tokens": 200, "do_sample": False}
        steps = []
        model.language_model.register_forward_hook(lambda *_: steps.append(1))
        answer = model.chat(tokenizer, None, "Hello", settings)
        plain = len(steps)
        lookup = model.chat(tokenizer, None, "Hello", {**settings, "prompt_lookup_num_tokens": 5})
        assert lookup == answer
        assert len(steps) - plain < 0.5 * plain

    def test_chat_and_batch_chat(self, name):
        model, tokenizer = support.load(name), support.tokenizer(name)
        arguments = (tokenizer, support.pixels(name, "AC"), ["<image>\nWhat?", "Why?", "<image> x"])
        options = {"num_patches_list": [5, 0, 1]}
        settings = {"max_new_tokens": 8, "do_sample": False}
        expected = model.batch_chat(*arguments, settings, **options)
        lookup = {**settings, "prompt_lookup_num_tokens": 3}
        assert model.batch_chat(*arguments, lookup, **options) == expected

    def test_penalties_and_streams_are_refused(self):
        model, tokenizer = support.load("qwen2"), support.tokenizer("qwen2")
        lookup = {"max_new_tokens": 4, "prompt_lookup_num_tokens": 3}
        with pytest.raises(ValueError, match=r"repetition_penalty=1\.2"):
            model.chat(tokenizer, None, "a", {**lookup, "repetition_penalty": 1.2})
        with pytest.raises(ValueError, match="cannot be streamed"):
            list(model.chat_stream(tokenizer, None, "a", lookup))
