"""generate() and forward() keep transformers' contract, for every language model family."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import DynamicCache, TextIteratorStreamer

from tests import support

GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 1001}


def prompt(name, tokenizer, model, question, tiles):
    """Ids of one question with one image of so many tiles."""
    pieces = support.conversation.render(
        model.conv_template,
        [
            (model.conv_template.roles[0], [support.conversation.Visual(tiles), "\n" + question]),
            (model.conv_template.roles[1], None),
        ],
        model.num_image_token,
    )
    return support.conversation.encode(pieces, tokenizer)


@pytest.fixture
def batch(name):
    """Two samples of different tile counts and lengths, left-padded."""
    model, tokenizer = support.load(name), support.tokenizer(name)
    rows = [
        prompt(name, tokenizer, model, "What?", 5),
        prompt(name, tokenizer, model, "Where is it?", 1),
    ]
    width = max(map(len, rows))
    ids = torch.tensor([[1001] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": support.pixels(name, "AC")}
    singles = [
        {"input_ids": torch.tensor([row]), "pixel_values": support.pixels(name, images)}
        for row, images in zip(rows, ("A", "C"), strict=True)
    ]
    return model, inputs, singles


def test_prompt_and_new_ids_from_pixels_new_ids_from_features_or_embeddings(batch):
    model, inputs, singles = batch
    whole = model.generate(**inputs, **GREEDY)
    width = inputs["input_ids"].shape[1]
    assert torch.equal(whole[:, :width], inputs["input_ids"])
    new = whole[:, width:]
    assert new.shape == (2, 8)

    text = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    features = model.extract_feature(inputs["pixel_values"])
    assert torch.equal(model.generate(**text, visual_features=features, **GREEDY), new)
    embeds = model._embed(inputs["input_ids"], None, inputs["pixel_values"], None, None)
    mask = inputs["attention_mask"]
    assert torch.equal(model.generate(inputs_embeds=embeds, attention_mask=mask, **GREEDY), new)
    assert torch.equal(model.generate(inputs["input_ids"], **{**inputs, **GREEDY}), whole)
    # Other trainers call the language model by itself.
    alone = model.language_model.generate(inputs_embeds=embeds, attention_mask=mask, **GREEDY)
    assert torch.equal(alone, new)
    for row, single in enumerate(singles):
        one = model.generate(
            **single, attention_mask=torch.ones_like(single["input_ids"]), **GREEDY
        )
        assert torch.equal(one[0, -8:], new[row])


def test_cache_or_none_gives_the_same_ids(batch):
    model, inputs, _ = batch
    assert torch.equal(
        model.generate(**inputs, **GREEDY), model.generate(**inputs, **GREEDY, use_cache=False)
    )


def test_static_cache_gives_the_same_ids(batch):
    model, inputs, _ = batch
    static = model.generate(**inputs, **GREEDY, cache_implementation="static", disable_compile=True)
    assert torch.equal(model.generate(**inputs, **GREEDY), static)


def test_beams_keep_each_sample_its_own_tiles(batch):
    model, inputs, singles = batch
    options = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}
    together = model.generate(**inputs, **options)[:, -8:]
    for row, single in enumerate(singles):
        one = model.generate(
            **single, attention_mask=torch.ones_like(single["input_ids"]), **options
        )
        assert torch.equal(one[:, -8:], together[2 * row : 2 * row + 2])


def test_several_answers_encode_the_images_once(batch):
    model, inputs, _ = batch
    seen = []
    model.vision_model.register_forward_hook(
        lambda module, args, output: seen.append(args[0].shape[0])
    )
    options = {**GREEDY, "do_sample": True, "num_return_sequences": 3}
    output = model.generate(**inputs, **options)
    assert output.shape[0] == 6
    assert seen == [6]
    width = inputs["input_ids"].shape[1]
    assert torch.equal(output[:, :width], inputs["input_ids"].repeat_interleave(3, 0))


def test_scores_are_the_log_probabilities_of_the_forward_pass(batch):
    model, inputs, _ = batch
    output = model.generate(
        **inputs, **GREEDY, return_dict_in_generate=True, output_scores=True, output_logits=True
    )
    scores = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 8, dtype=torch.long)], 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(
            input_ids=output.sequences,
            attention_mask=mask,
            position_ids=positions,
            pixel_values=inputs["pixel_values"],
        ).logits
    expected = logits[:, -9:-1].log_softmax(-1).gather(-1, output.sequences[:, -8:, None])[..., 0]
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_logits_to_keep_and_cached_continuation(batch):
    model, _, singles = batch
    single = singles[0]
    whole = model(**single).logits
    last = model(**single, logits_to_keep=1).logits
    torch.testing.assert_close(last, whole[:, -1:], atol=1e-4, rtol=0)
    head, tail = single["input_ids"][:, :-4], single["input_ids"][:, -4:]
    cache = DynamicCache(config=model.config.get_text_config())
    model(
        input_ids=head, pixel_values=single["pixel_values"], past_key_values=cache, use_cache=True
    )
    continued = model(input_ids=tail, past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(continued, whole[:, -4:], atol=1e-4, rtol=0)
    plain = model(**single, return_dict=False)
    assert torch.equal(plain[0], whole)


def test_more_or_fewer_visual_tokens_than_places_are_refused(batch):
    model, _, singles = batch
    ids = singles[0]["input_ids"]
    for tiles in (singles[0]["pixel_values"][:-1], singles[1]["pixel_values"].repeat(6, 1, 1, 1)):
        with pytest.raises(ValueError, match=r"<IMG_CONTEXT> tokens .* visual tokens"):
            model(input_ids=ids, pixel_values=tiles)
        with pytest.raises(ValueError, match=r"<IMG_CONTEXT> tokens .* visual tokens"):
            model.generate(input_ids=ids, pixel_values=tiles, **GREEDY)
    with pytest.raises(ValueError, match="images were given without input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, 8), pixel_values=singles[1]["pixel_values"])
    with pytest.raises(ValueError, match="num_tiles sums to 4 but pixel_values has 5"):
        model(**singles[0], num_tiles=[4])
    with pytest.raises(ValueError, match="num_tiles sums to 4 but pixel_values has 5"):
        model.generate(**singles[0], num_tiles=[4], **GREEDY)
    with pytest.raises(ValueError, match="image_flags has 2 entries but there are 5 tiles"):
        model(**singles[0], image_flags=torch.ones(2))


def test_rows_packed_by_positions_equal_separate_rows(name, attention):
    model = support.load(name, attn_implementation=attention)
    first, second = torch.randint(3, 900, (1, 9)), torch.randint(3, 900, (1, 6))
    separate = torch.cat([model(input_ids=row).logits for row in (first, second)], dim=1)
    row = torch.cat([first, second], dim=1)
    positions = torch.cat([torch.arange(9), torch.arange(6)])[None]
    for options in ({}, {"attention_mask": torch.ones_like(row)}, {"use_cache": False}):
        packed = model(input_ids=row, position_ids=positions, **options).logits
        torch.testing.assert_close(packed, separate, atol=1e-4, rtol=0)
    # Without restarting positions the two samples see each other: the comparison above can fail.
    assert not torch.allclose(model(input_ids=row).logits, separate, atol=1e-2)
    with pytest.raises(ValueError, match="a cache cannot keep packed samples apart"):
        model(
            input_ids=row,
            position_ids=positions,
            attention_mask=torch.ones_like(row),
            use_cache=True,
        )


def test_padding_tiles_get_a_gradient_of_zero(name):
    model = support.load(name)
    ids = torch.randint(3, 900, (1, 7))
    loss = model(
        pixel_values=support.pixels(name, "C"),
        input_ids=ids,
        image_flags=torch.zeros(1, 1, dtype=torch.long),
        labels=ids,
    ).loss
    assert float(loss) == pytest.approx(float(model(input_ids=ids, labels=ids).loss), rel=1e-6)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert float(model.mlp1[1].weight.grad.abs().sum()) == 0


def test_loss_normalised_by_the_trainer(name):
    model = support.load(name)
    ids = torch.randint(3, 900, (2, 7))
    labels = ids.clone()
    labels[:, :3] = -100
    mean = float(model(input_ids=ids, labels=labels).loss)
    given = float(model(input_ids=ids, labels=labels, num_items_in_batch=16).loss)
    assert given == pytest.approx(mean * 8 / 16, rel=1e-5)
    weights = torch.where(labels == -100, 0.0, 0.25)
    weighted = float(model(input_ids=ids, labels=labels, loss_weight=weights).loss)
    assert weighted == pytest.approx(mean, rel=1e-5)


def test_gradient_checkpointing_of_the_whole_model(name):
    ids = torch.randint(3, 900, (1, 7))
    gradients = []
    for checkpointing in (False, True):
        model = support.load(name).train()
        if checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key], msg=key)


def test_attention_can_be_chosen_per_part_and_switched():
    model = support.load(
        "qwen2", attn_implementation={"vision_config": "eager", "llm_config": "sdpa"}
    )
    assert model.vision_model.config._attn_implementation == "eager"
    assert model.language_model.config._attn_implementation == "sdpa"
    model.set_attn_implementation({"vision_config": "sdpa", "llm_config": "eager"})
    assert model.vision_model.config._attn_implementation == "sdpa"
    assert model.language_model.config._attn_implementation == "eager"


def test_the_model_cards_streaming_snippet(qwen2):
    model, tokenizer = qwen2
    settings = {"max_new_tokens": 12, "do_sample": False}
    answer = model.chat(tokenizer, None, "Hello", settings)
    streamer = TextIteratorStreamer(
        tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60
    )
    thread = threading.Thread(
        target=model.chat,
        kwargs={
            "tokenizer": tokenizer,
            "pixel_values": None,
            "question": "Hello",
            "generation_config": {**settings, "streamer": streamer},
        },
    )
    thread.start()
    text = ""
    for piece in streamer:
        if piece == model.conv_template.sep:
            break
        text += piece
    thread.join()
    assert text.strip() == answer


def test_resizing_the_vocabulary(name):
    model = support.load(name)
    rows = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(rows + 3)
    assert model.get_input_embeddings().weight.shape[0] == rows + 3
    assert model.get_output_embeddings().weight.shape[0] == rows + 3
    assert model.config.llm_config.vocab_size == rows + 3
    assert model(input_ids=torch.tensor([[rows + 2]])).logits.shape[-1] == rows + 3


@torch.no_grad()
def test_the_forward_pass_compiles_to_one_graph():
    name = "internlm2"  # the one decoder that is not transformers' own
    model = support.load(name)
    ids = support.golden(name)["logits.image_single.input_ids"]
    inputs = {"input_ids": ids, "pixel_values": support.pixels(name, "C")}
    compiled = torch.compile(model.__call__, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)
