"""Batches: every tile once, little padding, answers of single calls; pixels as bytes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tests import support

functional = support.hub.ring0("functional_internvl_chat")
SETTINGS = {"max_new_tokens": 8, "do_sample": False}


def as_bytes(normalised):
    """uint8 tiles of normalised ones."""
    return ((normalised * support.STD + support.MEAN) * 255).round().to(torch.uint8)


def seen_tiles(model):
    """Tiles of every call of the vision encoder from now on."""
    counts = []
    model.vision_model.register_forward_hook(lambda module, args, out: counts.append(len(args[0])))
    return counts


class TestPlan:
    @pytest.mark.parametrize("seed", range(20))
    def test_fewest_batches_within_the_limit(self, seed):
        generator = np.random.default_rng(seed)
        lengths = generator.integers(20, 3400, 7).tolist()
        batches = functional.plan_batches(lengths, batch_size=5)
        assert sorted(index for batch in batches for index in batch) == list(range(7))
        assert all(len(batch) <= 5 and batch == sorted(batch) for batch in batches)
        assert waste(lengths, batches) <= functional.MAX_WASTE
        # All other ways to cut the sorted samples into as many batches or fewer.
        order = sorted(range(7), key=lambda index: lengths[index])
        for count in range(1, len(batches) + 1):
            for cuts in itertools.combinations(range(1, 7), count - 1):
                ends = [0, *cuts, 7]
                other = [order[a:b] for a, b in itertools.pairwise(ends)]
                if any(len(batch) > 5 for batch in other):
                    continue
                if count == len(batches):
                    assert waste(lengths, other) >= waste(lengths, batches)
                else:
                    assert waste(lengths, other) > functional.MAX_WASTE

    def test_tiles_of_the_benchmark(self):
        generator = np.random.default_rng(0)
        for _ in range(50):
            lengths = [256 * n + 40 for n in generator.integers(1, 14, 16).tolist()]
            batches = functional.plan_batches(lengths)
            assert waste(lengths, batches) <= 0.15
            assert len(batches) <= 4

    def test_sizes(self):
        assert functional.plan_batches([]) == []
        assert functional.plan_batches([5, 5, 5]) == [[0, 1, 2]]
        assert functional.plan_batches([5, 5, 5], 2) == [[1, 2], [0]]
        assert functional.plan_batches([9, 9, 9], 1) == [[2], [1], [0]]
        assert functional.plan_batches([10, 100], max_waste=0) == [[1], [0]]
        many = functional.plan_batches([7] * 600 + [900] * 2)
        assert sorted(i for batch in many for i in batch) == list(range(602))
        with pytest.raises(ValueError, match="batch_size is 0"):
            functional.plan_batches([1], 0)


def waste(lengths, batches):
    """Share of padding."""
    positions = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    return 1 - sum(lengths) / positions


def test_distinct_tiles():
    tiles = torch.rand(3, 3, 8, 8)
    mirrored = tiles[0].flip(-1)  # the same sum
    stack = torch.stack([tiles[0], tiles[1], tiles[0], mirrored, tiles[1], tiles[2]])
    assert functional.distinct_tiles(stack) == ([0, 1, 3, 5], [0, 1, 0, 2, 1, 3])
    assert functional.distinct_tiles(as_bytes(stack))[1] == [0, 1, 0, 2, 1, 3]
    assert functional.distinct_tiles(stack[:0]) == ([], [])


def test_batches_answer_as_single_calls_in_any_order_and_encode_each_tile_once(name):
    model, tokenizer = support.load(name), support.tokenizer(name)
    samples = [
        ("What is <image> this?", "A", [5], None),
        ("Hello", None, [], [("Who are you?", "A model.")]),
        ("<image> and <image>, compare them at some length, please.", "AC", [5, 1], None),
        ("Why?", "C", [1], [("<image>\nWhat?", "A cat.")]),
        ("Nothing", None, [], None),
    ]

    def arguments(chosen):
        tiles = [support.pixels(name, each[1]) for each in chosen if each[1]]
        return {
            "pixel_values": torch.cat(tiles) if tiles else None,
            "questions": [each[0] for each in chosen],
            "num_patches_list": [each[2] for each in chosen],
            "history": [each[3] for each in chosen],
        }

    single = [
        model.batch_chat(tokenizer, generation_config=SETTINGS, **arguments([sample]))[0]
        for sample in samples
    ]
    assert len(set(single)) > 1
    counts = seen_tiles(model)
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        for options in ({}, {"batch_size": 2}):
            counts.clear()
            answers = model.batch_chat(
                tokenizer,
                generation_config=SETTINGS,
                **arguments([samples[i] for i in order]),
                **options,
            )
            assert answers == [single[i] for i in order]
            assert sum(counts) == 6  # A has 5 tiles and C one, whoever asks for them


class TestIds:
    """batch_ids: what batch_chat decodes."""

    QUESTIONS = ("What is this?", "Hello there, who are you and what can you see?")

    def ids(self, model, tokenizer, settings):
        tiles = support.pixels("qwen2", "C")
        return model.batch_ids(
            tokenizer, tiles, list(self.QUESTIONS), settings, num_patches_list=[1, 0]
        )

    def test_texts_are_those_of_batch_chat(self):
        model, tokenizer = support.load("qwen2"), support.tokenizer("qwen2")
        decoder = support.hub.ring0("streaming_internvl_chat").AnswerDecoder(
            tokenizer, "<|im_end|>"
        )
        found = self.ids(model, tokenizer, SETTINGS)
        texts = model.batch_chat(
            tokenizer, support.pixels("qwen2", "C"), list(self.QUESTIONS), SETTINGS,
            num_patches_list=[1, 0],
        )  # fmt: skip
        assert [decoder.answer(answers[0]) for _, answers in found] == texts
        requests = model._requests(
            tokenizer, support.pixels("qwen2", "C"), self.QUESTIONS, [1, 0], None,
            support.conversation.IMAGE_TOKENS,
        )  # fmt: skip
        assert [count for count, _ in found] == [len(each.ids) for each in requests]
        assert model.batch_ids(tokenizer, None, [], SETTINGS) == []

    def test_ids_end_with_the_end_of_the_turn(self):
        model, tokenizer = support.load("qwen2"), support.tokenizer("qwen2")
        stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
        row, steps = iter([5, 6, stop]), []

        def say(module, args, kwargs, output):  # row 0 ends after two tokens, row 1 never
            steps.append(1)
            output.logits[:] = -1.0
            output.logits[0, -1, next(row, 7)] = 1.0
            output.logits[1, -1, 9] = 1.0

        model.register_forward_hook(say, with_kwargs=True)
        found = model.batch_ids(tokenizer, None, ["one", "two"], SETTINGS)
        assert [answers for _, answers in found] == [[[5, 6, stop]], [[9] * 8]]
        assert len(steps) == 8

    def test_several_answers_from_one_prefill(self):
        model, tokenizer = support.load("qwen2"), support.tokenizer("qwen2")
        counts = seen_tiles(model)
        settings = {"max_new_tokens": 6, "do_sample": True, "num_return_sequences": 3}
        torch.manual_seed(0)
        found = self.ids(model, tokenizer, settings)
        assert [len(answers) for _, answers in found] == [3, 3]
        assert len({tuple(ids) for _, answers in found for ids in answers}) > 2
        assert counts == [1]


def test_a_chat_model_is_no_reward_model():
    model = support.load("qwen2")
    with pytest.raises(ValueError, match="this checkpoint has no reward head"):
        model.select_best_response(tokenizer=None, question="?", response_list=["a", "b"])


def test_padding_of_a_batch_stays_small():
    model, tokenizer = support.load("qwen2"), support.tokenizer("qwen2")
    positions = []
    model.language_model.register_forward_hook(
        lambda module, args, kwargs, out: positions.append(kwargs["inputs_embeds"].shape[:2]),
        with_kwargs=True,
    )
    counts = [1, 13, 2, 12, 7, 1]
    tiles = support.pixels("qwen2", "C").repeat(sum(counts), 1, 1, 1)
    model.batch_chat(
        tokenizer, tiles, ["What?"] * 6, {"max_new_tokens": 1}, num_patches_list=counts
    )
    assert sum(rows for rows, _ in positions) == 6
    assert len(positions) < 6
    image_tokens = support.conversation.IMAGE_TOKENS
    requests = model._requests(tokenizer, tiles, ["What?"] * 6, counts, None, image_tokens)
    useful = sum(len(request.ids) for request in requests)
    assert useful >= 0.85 * sum(rows * width for rows, width in positions)


class TestBytes:
    def test_values_are_those_of_the_image_processor(self):
        preprocessing = support.hub.ring0("preprocessor.image_processing_internvl_chat")
        tiles = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
        tiles[0, 0, :, 0] = np.arange(40)
        expected = preprocessing.normalize_tiles(
            tiles, preprocessing.IMAGENET_MEAN, preprocessing.IMAGENET_STD
        )
        config = support.configuration.InternVLChatConfig()
        result = functional.normalize_pixels(
            torch.from_numpy(tiles).permute(0, 3, 1, 2), config.image_mean, config.image_std
        )
        assert np.array_equal(result.numpy(), expected)

    def test_model_takes_bytes(self, name):
        model, tokenizer = support.load(name), support.tokenizer(name)
        tiles = as_bytes(support.pixels(name, "A"))
        normalised = functional.normalize_pixels(
            tiles, model.config.image_mean, model.config.image_std
        )
        with torch.no_grad():
            expected = model.extract_feature(normalised)
            assert torch.equal(model.extract_feature(tiles), expected)
        assert model.chat(tokenizer, tiles, "What?", SETTINGS) == model.chat(
            tokenizer, normalised, "What?", SETTINGS
        )
        other = support.load(name)
        other.config.image_mean = [0.5, 0.5, 0.5]
        with torch.no_grad():
            assert not torch.equal(other.extract_feature(tiles), expected)

    def test_the_encoder_alone_refuses_them(self):
        model = support.load("qwen2")
        with pytest.raises(ValueError, match=r"torch.uint8, expected normalised floats"):
            model.vision_model(as_bytes(support.pixels("qwen2", "C")))
        with pytest.raises(ValueError, match=r"torch.int64"):
            model.extract_feature(as_bytes(support.pixels("qwen2", "C")).long())


class TestVisionChunks:
    def test_sizes_and_values(self, name):
        model = support.load(name)
        counts = seen_tiles(model)
        tiles = support.pixels(name, "AB")
        with torch.no_grad():
            whole = model.extract_feature(tiles, vit_batch_size=9)
            assert counts == [9]
            assert torch.allclose(model.extract_feature(tiles, 4), whole, atol=1e-5)
            assert counts[1:] == [4, 4, 1]
            model.vit_batch_size = 5
            model.extract_feature(tiles)
            assert counts[4:] == [5, 4]

    def test_default_follows_the_device(self):
        assert functional.default_vit_batch_size(torch.device("cpu"), 1025) == 1
        assert functional.default_vit_batch_size(torch.device("cpu"), 65) == 31
        assert functional.default_vit_batch_size(torch.device("cuda"), 1025) == 32
        assert functional.default_vit_batch_size(torch.device("cpu"), 5000) == 1

    def test_no_graph_and_no_hidden_states_at_inference(self):
        model, tokenizer = support.load("qwen2"), support.tokenizer("qwen2")
        outputs = []
        model.vision_model.register_forward_hook(lambda module, args, out: outputs.append(out))
        model.chat(tokenizer, support.pixels("qwen2", "A"), "What?", SETTINGS)
        list(model.chat_stream(tokenizer, support.pixels("qwen2", "A"), "What?", SETTINGS))
        assert len(outputs) == 2
        for output in outputs:
            assert output.hidden_states is None
            assert output.last_hidden_state.grad_fn is None

    def test_training_keeps_its_graph(self):
        model = support.load("qwen2").train()
        model.vit_batch_size = 1
        counts = seen_tiles(model)
        features = model.extract_feature(support.pixels("qwen2", "A"))
        assert features.requires_grad
        assert counts == [5]


class TestGrounding:
    TEXT = "A <ref>red cat</ref><box>[[1, 2, 3, 4]]</box> here."

    @pytest.fixture
    def ids(self):
        tokenizer = support.tokenizer("qwen2")
        pieces = [support.conversation.Piece(self.TEXT, False)]
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        return tokenizer, [*support.conversation.encode(pieces, tokenizer), end]

    def test_tags_stay_when_asked(self, ids):
        decoder = support.hub.ring0("streaming_internvl_chat").AnswerDecoder
        tokenizer, row = ids
        assert decoder(tokenizer, "<|im_end|>", keep_grounding=True).answer(row) == self.TEXT
        without = decoder(tokenizer, "<|im_end|>").answer(row)
        assert without == "A red cat[[1, 2, 3, 4]] here."
        chunks = [[each] for each in row]
        kept = decoder(tokenizer, "<|im_end|>", keep_grounding=True)
        assert "".join(kept.stream(chunks)) == self.TEXT

    def test_chat_keeps_them(self, ids):
        tokenizer, row = ids
        model = support.load("qwen2")
        waiting = iter(row)

        def say(module, args, kwargs, output):
            output.logits[:] = -1.0
            output.logits[..., -1, next(waiting)] = 1.0

        def chat(**options):
            nonlocal waiting
            waiting = iter(row)
            return model.chat(
                tokenizer, None, "Where?", {"max_new_tokens": 60, "do_sample": False}, **options
            )

        model.register_forward_hook(say, with_kwargs=True)
        assert chat(keep_grounding=True) == self.TEXT
        assert chat() == "A red cat[[1, 2, 3, 4]] here."
        assert chat(keep_grounding=True, return_history=True)[1] == [("Where?", self.TEXT)]
