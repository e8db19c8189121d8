"""`internvl train assemble`: new checkpoints from parts that were made apart."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from internvl import hub
from internvl.checkpoints.special_tokens import add_special_tokens
from internvl.checkpoints.verify import verify
from internvl.training.assemble import Options, assemble, describe
from internvl.training.vocabulary import NEW_TOKENS, Tokens, resize_rows
from tests import support
from tests.training import language_models as llms

GREEDY = {"max_new_tokens": 4, "do_sample": False}


def defects(folder):
    """What is wrong with a checkpoint; whether the recorded hashes of the code are those of the
    day is the affair of another test."""
    return [d for check in verify(folder).checks if check.name != "code" for d in check.defects]


@pytest.fixture(scope="module")
def qwen2_llm(tmp_path_factory):
    """A Qwen2 that ties its layers and has spare rows, as the 0.5B and the 3B."""
    folder = tmp_path_factory.mktemp("llm") / "qwen2"
    return llms.language_model(folder, "qwen2", rows=1040, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """The encoder of a golden checkpoint, in a folder of its own."""
    folder = tmp_path_factory.mktemp("vit") / "encoder"
    support.load("qwen2").vision_model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", llms.FAMILIES)
def test_language_models_of_each_family_become_sound_checkpoints_that_chat(family, vit, tmp_path):
    llm = llms.language_model(tmp_path / "llm", family)
    out = tmp_path / "out"
    built = assemble(vit, llm, out, template=llms.TEMPLATES[family])
    assert defects(out) == []
    loaded = hub.load(out)
    assert loaded.model.config.llm_config.model_type == family
    assert built.rows == (llms.TOKENS, llms.TOKENS + 9)
    assert built.new_tokens == NEW_TOKENS
    # Text alone gives the logits of the language model alone, for the ids that it had.
    ids = torch.tensor([[5, 77, 640, 1002, 3]])
    alone = llms.load(llm, family)(input_ids=ids).logits
    joined = loaded.model(input_ids=ids).logits
    assert torch.equal(joined[..., : llms.TOKENS], alone)
    tiles = loaded.processor.image_processor(
        Image.new("RGB", (300, 100), (200, 30, 30)), max_tiles=2, return_tensors="pt"
    )["pixel_values"]
    answer = loaded.model.chat(loaded.tokenizer, tiles, "<image>\nWhat is it?", GREEDY)
    assert isinstance(answer, str)


def test_published_tensors_names_and_ids_are_matched(vit, qwen2_llm, tmp_path):
    built = assemble(vit, qwen2_llm, tmp_path / "out")
    loaded = hub.load(tmp_path / "out")
    config, rows = loaded.model.config, llms.TOKENS + 9
    # Spare rows go: as many rows as tokens, <IMG_CONTEXT> the seventh from the end.
    assert built.rows == (1040, rows) == (1040, config.llm_config.vocab_size)
    assert loaded.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>") == rows - 7
    assert config.img_context_token_id == rows - 7
    ids = loaded.tokenizer.convert_tokens_to_ids(list(NEW_TOKENS))
    assert ids == list(range(llms.TOKENS, rows))
    published = json.loads((support.ROOT / "variants/InternVL2_5-1B/config.json").read_text())
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert set(published) <= set(written)
    same = ("downsample_ratio", "dynamic_image_size", "max_dynamic_patch", "min_dynamic_patch")
    same += ("pad2square", "ps_version", "select_layer", "template", "use_thumbnail", "auto_map")
    assert {key: written[key] for key in same} == {key: published[key] for key in same}
    # The sampling of the instruct model is left behind, and so is its prompt template.
    stated = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert "temperature" not in stated
    assert "language model alone" not in loaded.tokenizer.chat_template


def test_new_rows_are_those_of_add_special_tokens(tmp_path, vit):
    llm = llms.language_model(tmp_path / "llm", "llama")
    assemble(vit, llm, tmp_path / "out", template="Hermes-2")
    got = hub.load(tmp_path / "out").model
    old = llms.load(llm, "llama")
    for module, before in (
        (got.get_input_embeddings(), old.get_input_embeddings().weight),
        (got.get_output_embeddings(), old.get_output_embeddings().weight),
    ):
        assert torch.equal(module.weight[: llms.TOKENS], before)
        torch.testing.assert_close(
            module.weight[llms.TOKENS :], before.mean(0).expand(9, -1), rtol=0, atol=1e-8
        )
    model, tokenizer = support.load("qwen2"), support.tokenizer("qwen2")
    before = model.get_output_embeddings().weight.detach().clone()
    ids = add_special_tokens(model, tokenizer, ["<a>", "<b>"], control=True)
    tokens = Tokens(
        known=1018, rows_before=1018, added=dict(zip("ab", ids, strict=True)), rows=1020
    )
    assert torch.equal(resize_rows(before, tokens), model.get_output_embeddings().weight)


def test_official_rows_are_drawn_in_the_embedding_only(tmp_path, vit):
    llm = llms.language_model(tmp_path / "llm", "qwen2", rows=llms.TOKENS + 4)
    assemble(vit, llm, tmp_path / "out", new_rows="official", seed=7)
    got, old = hub.load(tmp_path / "out").model, llms.load(llm, "qwen2")
    new = got.get_input_embeddings().weight[llms.TOKENS :]
    spare = old.get_input_embeddings().weight[llms.TOKENS :]
    assert torch.equal(new[:4], spare)
    assert 0.015 < new[4:].std() < 0.025  # initializer_range 0.02, 320 numbers
    head = got.get_output_embeddings().weight
    mean = old.get_output_embeddings().weight[: llms.TOKENS].mean(0)
    torch.testing.assert_close(head[llms.TOKENS :], mean.expand(9, -1), rtol=0, atol=1e-8)
    assemble(vit, llm, tmp_path / "again", new_rows="official", seed=7)
    again = hub.load(tmp_path / "again").model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in got.state_dict().items())


def test_tied_layers_stay_tied_unless_untied(vit, qwen2_llm, tmp_path):
    tied = assemble(vit, qwen2_llm, tmp_path / "tied")
    untied = assemble(vit, qwen2_llm, tmp_path / "untied", untie=True)
    assert (tied.tied, untied.tied) == (True, False)
    first, second = hub.load(tmp_path / "tied").model, hub.load(tmp_path / "untied").model
    assert first.get_input_embeddings().weight is first.get_output_embeddings().weight
    assert second.get_input_embeddings().weight is not second.get_output_embeddings().weight
    assert torch.equal(first.get_output_embeddings().weight, second.get_output_embeddings().weight)
    assert defects(tmp_path / "untied") == []


def test_dropped_layers_equal_the_hidden_state_they_end_in(qwen2_llm, tmp_path):
    """48 -> 45 layers with select_layer -1 is hidden state 45 of the whole encoder."""
    source = support.checkpoint("qwen2_vit6b")
    whole = support.load("qwen2_vit6b").vision_model
    depth = whole.config.num_hidden_layers
    built = assemble(source, qwen2_llm, tmp_path / "out", vit_depth=depth - 1)
    assert built.layers == (depth, depth - 1)
    cut = hub.load(tmp_path / "out").model
    assert cut.config.vision_config.num_hidden_layers == depth - 1
    assert cut.config.select_layer == -1
    tiles = support.pixels("qwen2_vit6b", "C")
    with torch.no_grad():
        wanted = whole(tiles, output_hidden_states=True).hidden_states[depth - 1]
        assert torch.equal(cut.vision_model(tiles).last_hidden_state, wanted)


def test_encoder_of_a_chat_checkpoint_keeps_what_it_needs(qwen2_llm, tmp_path):
    source = support.checkpoint("qwen2")
    assemble(source, qwen2_llm, tmp_path / "out")
    got, whole = hub.load(tmp_path / "out").model, support.load("qwen2")
    assert got.config.select_layer == whole.config.select_layer
    tiles = support.pixels("qwen2", "C")
    with torch.no_grad():
        assert torch.equal(
            got.vision_model(tiles).last_hidden_state, whole.vision_model(tiles).last_hidden_state
        )


def test_another_tile_size_resizes_positions_as_the_model_does(vit, qwen2_llm, tmp_path):
    built = assemble(vit, qwen2_llm, tmp_path / "out", tile_size=168)
    got = hub.load(tmp_path / "out")
    wanted = support.load("qwen2").vision_model
    wanted.resize_pos_embeddings(112, 168, 14)
    assert torch.equal(
        got.model.vision_model.embeddings.position_embedding, wanted.embeddings.position_embedding
    )
    assert got.processor.image_seq_length == got.model.num_image_token == 36
    assert "positions resized from tiles of 112 to 168 px" in describe(built)


def test_projector_follows_the_seed_and_the_models_own_initialisation(vit, qwen2_llm, tmp_path):
    first, second, third = (
        hub.load(assemble(vit, qwen2_llm, tmp_path / name, seed=seed).out).model.mlp1
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert torch.equal(first[1].weight, second[1].weight)
    assert not torch.equal(first[1].weight, third[1].weight)
    assert torch.equal(first[0].weight, torch.ones_like(first[0].weight))
    assert not any(layer.bias.any() for layer in (first[0], first[1], first[3]))
    assert 0.019 < first[1].weight.std() < 0.021


def test_dtype_is_that_of_the_language_model_or_the_one_asked_for(vit, qwen2_llm, tmp_path):
    built = assemble(vit, qwen2_llm, tmp_path / "out", dtype="bfloat16", max_shard_size="100KB")
    assert defects(tmp_path / "out") == []
    model = hub.load(tmp_path / "out").model
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}
    assert sum(name.endswith(".safetensors") for name in built.files) > 1
    assert "the encoder was float32 and is bfloat16 now" in describe(built)


def test_slow_sentencepiece_tokenizer_gets_the_nine_behind_its_own(vit, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    from tests.model.test_tokenization_internlm2 import PLACEHOLDERS, TAKING_OVER, VOCAB, train

    llm = llms.language_model(
        tmp_path / "llm", "internlm2", rows=VOCAB, bos_token_id=1, eos_token_id=2, pad_token_id=2
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (llm / name).unlink()
    train(llm, dummy_prefix=False)
    pieces = sentencepiece.SentencePieceProcessor(str(llm / "tokenizer.model"))
    places = [str(pieces.piece_to_id(name)) for name in PLACEHOLDERS]
    tokens = [{"content": token, "special": True} for token in TAKING_OVER]
    code = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
    config = {"tokenizer_class": "InternLM2Tokenizer", "auto_map": code}
    config["added_tokens_decoder"] = dict(zip(places, tokens, strict=True))
    (llm / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    assemble(vit, llm, tmp_path / "out", template="internlm2-chat")
    assert defects(tmp_path / "out") == []
    tokenizer = hub.load(tmp_path / "out").tokenizer
    assert tokenizer.convert_tokens_to_ids(list(NEW_TOKENS)) == list(range(VOCAB, VOCAB + 9))


def test_template_tokens_that_lack_are_named_and_can_be_added(vit, tmp_path):
    llm = llms.language_model(tmp_path / "llm", "llama", rows=1002)
    llms.tokenizer(llm, llms.CONTROL[:2])  # no <|im_start|>
    with pytest.raises(ValueError, match=r"has no <\|im_start\|>, which the template 'Hermes-2'"):
        assemble(vit, llm, tmp_path / "out", template="Hermes-2")
    built = assemble(vit, llm, tmp_path / "out", template="Hermes-2", add_template_tokens=True)
    assert built.new_tokens == ("<|im_start|>", *NEW_TOKENS)
    assert "never saw <|im_start|>" in describe(built)
    assert defects(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vit_depth": 4}, "vit_depth is 4, but .* has 3 layers"),
        ({"vit_depth": 0}, "vit_depth is 0"),
        ({"tile_size": 100}, "tile_size is 100, expected a multiple of 28"),
        ({"template": "vicuna"}, "template 'vicuna' is unknown"),
        ({"new_rows": "zero"}, "new_rows is 'zero'"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
    ],
    ids=["deep", "no_layer", "tile", "template", "rows", "dtype"],
)
def test_choices_that_cannot_be_are_refused(changes, message, vit, qwen2_llm, tmp_path):
    with pytest.raises(ValueError, match=message):
        assemble(vit, qwen2_llm, tmp_path / "out", **changes)
    assert not any(tmp_path.iterdir())


def test_language_models_that_do_not_fit_are_refused(vit, qwen2_llm, tmp_path):
    with pytest.raises(ValueError, match="transfer-vit"):
        assemble(vit, support.checkpoint("qwen2"), tmp_path / "out")
    small = llms.language_model(tmp_path / "small", "qwen2", rows=1004)
    with pytest.raises(ValueError, match="ids up to 1006, but its embedding has 1004 rows"):
        assemble(vit, small, tmp_path / "out")
    other = llms.language_model(tmp_path / "other", "llama")
    fields = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**fields, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"9 missing: language_model\.model\.layers\.2"):
        assemble(vit, other, tmp_path / "out", template="Hermes-2")
    mistral = tmp_path / "mistral"
    mistral.mkdir()
    (mistral / "config.json").write_text('{"model_type": "mistral"}')
    with pytest.raises(ValueError, match=r"model_type 'mistral'.*qwen2"):
        assemble(vit, mistral, tmp_path / "out")


def test_options_are_frozen_defaults_of_the_published_25():
    assert Options() == Options(template="internvl2_5", max_dynamic_patch=12, new_rows="mean")
