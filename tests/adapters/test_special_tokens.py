"""New tokens: rows, ids, config, training of the new rows alone or of all, saving and loading."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from internvl import hub
from internvl.checkpoints.adapters import lora_config
from internvl.checkpoints.export import export_loaded
from internvl.checkpoints.special_tokens import add_special_tokens, token_options
from internvl.source_files import read_json
from tests import support
from tests.adapters.training import batch, logits, source, train
from tests.hub.test_load import internlm2_folder

peft = pytest.importorskip("peft")
FAMILIES = ("demo", "internlm2", "phi3", "qwen2")  # the demo's head is tied, the others' are not
TOKENS = ["<seg>", "<act_1>", "<depth>"]


def rows(model):
    """Copies of the embedding and of the output layer."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return [layer.weight.detach().clone() for layer in layers]


def is_tied(model):
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_ids_and_config(family, tmp_path):
    loaded = hub.load(source(family, tmp_path), dtype="float32")
    model, tokenizer = loaded.model, loaded.tokenizer
    inputs = batch(loaded)
    V, old, plain = len(tokenizer), rows(model), logits(model, inputs)
    ids = add_special_tokens(model, tokenizer, TOKENS)
    assert ids == [V, V + 1, V + 2] == tokenizer.convert_tokens_to_ids(TOKENS)
    for before, after in zip(old, rows(model), strict=True):
        assert after.shape == (V + 3, before.shape[1])
        assert torch.equal(after[:V], before)
        torch.testing.assert_close(after[V:], before.mean(0).expand(3, -1), rtol=0, atol=1e-6)
    assert is_tied(model) == (family == "demo") == model.config.tie_word_embeddings
    assert model.get_output_embeddings().out_features == model.config.llm_config.vocab_size == V + 3
    assert model.language_model.vocab_size == len(tokenizer) == V + 3
    image = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    assert model.config.img_context_token_id == image
    # Images are found although <IMG_CONTEXT> is not the seventh from the end, and nothing changed.
    assert torch.equal(logits(model, batch(loaded))[:, :V], plain)
    out = tmp_path / "out"
    export_loaded(loaded, out)
    config = hub.build_config(read_json(out / "config.json"))
    assert support.modeling.InternVLChatModel(config).context_token_id == image
    again = hub.load(out)
    assert again.tokenizer.convert_tokens_to_ids(TOKENS) == ids
    assert AutoTokenizer.from_pretrained(out).convert_tokens_to_ids(TOKENS) == ids
    assert torch.equal(logits(again.model, inputs), logits(model, inputs))


def test_words_and_control_tokens():
    """Whoever writes a word gets it; a control token that a user types is text."""
    loaded = hub.load(dtype="float32")
    (word,) = add_special_tokens(loaded.model, loaded.tokenizer, ["<seg>"])
    (control,) = add_special_tokens(loaded.model, loaded.tokenizer, ["<|tool|>"], control=True)
    assert control == word + 1
    messages = [{"role": "user", "content": "<seg> and <|tool|>"}]
    (ids,) = loaded.processor.apply_chat_template(messages, tokenize=True)
    assert ids.count(word) == 1
    assert control not in ids
    (ids,) = loaded.processor("<seg> and <|tool|>")["input_ids"]  # a prompt string is trusted
    assert (ids.count(word), ids.count(control)) == (1, 1)
    assert loaded.tokenizer.decode([word, control], skip_special_tokens=True) == "<seg>"
    requests = loaded.model._requests(
        loaded.tokenizer, None, ["<seg> and <|tool|>"], None, None, ("<img>", "<IMG_CONTEXT>", "")
    )
    assert requests[0].ids.count(word) == 1
    assert control not in requests[0].ids


def test_rows_to_spare_are_used_first():
    """Some checkpoints have more rows than tokens; those rows count for no mean."""
    loaded = hub.load(support.checkpoint("phi3"), dtype="float32")
    model, V = loaded.model, len(loaded.tokenizer)
    model.resize_token_embeddings(V + 2, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[V:] = 100.0
    ids = add_special_tokens(model, loaded.tokenizer, ["<a>"])
    assert (ids, model.config.llm_config.vocab_size) == ([V], V + 2)
    for weight in rows(model):
        torch.testing.assert_close(weight[V], weight[:V].mean(0))
        assert (weight[V + 1] == 100).all()
    assert add_special_tokens(model, loaded.tokenizer, ["<b>", "<c>"]) == [V + 1, V + 2]
    assert model.config.llm_config.vocab_size == V + 3


def sentence(ids):
    """A row of ids with every new token in it, to be learnt as it is."""
    row = torch.tensor([[5, 6, ids[0], 7, ids[2], ids[1], 8, 9]])
    return {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row}


@pytest.mark.parametrize("choice", ["new", "all"])
@pytest.mark.parametrize("family", FAMILIES[:2])
def test_train_save_reload_merge(family, choice, tmp_path):
    loaded = hub.load(source(family, tmp_path), dtype="float32")
    ids = add_special_tokens(loaded.model, loaded.tokenizer, TOKENS)
    export_loaded(loaded, tmp_path / "base")
    base = hub.load(tmp_path / "base")
    old = rows(base.model)
    options = token_options(base.model, ids, choice)
    tuned = peft.get_peft_model(base.model, lora_config(base.model.config, rank=2, **options))
    losses = train(tuned, sentence(ids))
    assert losses[-1] < losses[0]
    after = logits(tuned, sentence(ids))
    tuned.save_pretrained(tmp_path / "adapter")

    again = hub.load(tmp_path / "base", adapter=tmp_path / "adapter")
    assert again.tokenizer.convert_tokens_to_ids(TOKENS) == ids
    assert torch.equal(logits(again.model, sentence(ids)), after)
    export_loaded(again, tmp_path / "merged")
    merged = hub.load(tmp_path / "merged")
    assert is_tied(merged.model) == (family == "demo")
    # Worst found: 1.2e-6 of logits up to 20.
    error = (logits(merged.model, sentence(ids)) - after).abs().max() / after.abs().max()
    assert error < 1e-5
    for before, new in zip(old, rows(merged.model), strict=True):
        changed = (new != before).any(1).nonzero().flatten().tolist()
        assert changed == ids if choice == "new" else set(ids) < set(changed)


def test_an_adapter_of_more_tokens_does_not_fit_the_first_base(tmp_path):
    for choice in ("new", "all"):
        loaded = hub.load(dtype="float32")
        ids = add_special_tokens(loaded.model, loaded.tokenizer, TOKENS)
        options = token_options(loaded.model, ids, choice)
        tuned = peft.get_peft_model(loaded.model, lora_config(loaded.model.config, **options))
        tuned.save_pretrained(tmp_path / choice)
        with pytest.raises(ValueError, match=r"adapter in .* does not fit the model"):
            hub.load(adapter=tmp_path / choice)
        # The rows begin alike every time, so the base need not be stored.
        base = hub.load(dtype="float32")
        add_special_tokens(base.model, base.tokenizer, TOKENS)
        again = peft.PeftModel.from_pretrained(base.model, tmp_path / choice)
        assert torch.equal(logits(again, sentence(ids)), logits(tuned.eval(), sentence(ids)))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "expected a list of at least one string"),
        ("<seg>", "expected a list of at least one string"),
        (["<seg>", "<box>"], "tokens already: '<box>'"),
        (["<a>", "<b>", "<a>"], "double: '<a>'"),
        (["<a>", " <b>", ""], "white space around: ' <b>', ''"),
    ],
    ids=["none", "string", "known", "double", "space"],
)
def test_what_cannot_be_a_new_token(tokens, message):
    loaded = hub.load()
    with pytest.raises(ValueError, match=message):
        add_special_tokens(loaded.model, loaded.tokenizer, tokens)
    assert len(loaded.tokenizer) == 1024
    assert loaded.model.get_input_embeddings().weight.shape[0] == 1024


def test_other_refusals(tmp_path):
    loaded = hub.load(support.checkpoint("qwen2"))
    with pytest.raises(ValueError, match=r"ids are \[2000\]; expected those of tokens, below 1018"):
        token_options(loaded.model, [2000])
    with pytest.raises(ValueError, match="rows is 'some'"):
        token_options(loaded.model, [7], "some")
    tuned = peft.get_peft_model(loaded.model, lora_config(loaded.model.config))
    with pytest.raises(TypeError, match="carries PEFT adapters"):
        add_special_tokens(tuned, loaded.tokenizer, ["<a>"])


def test_the_sentencepiece_tokenizer_takes_control_tokens_only(tmp_path):
    loaded = hub.load(internlm2_folder(tmp_path / "InternVL2_5-8B"), dtype="float32")
    known = len(loaded.tokenizer)
    with pytest.raises(ValueError, match="spells every added token out"):
        add_special_tokens(loaded.model, loaded.tokenizer, ["<seg>"])
    assert len(loaded.tokenizer) == known
    (index,) = add_special_tokens(loaded.model, loaded.tokenizer, ["<seg>"], control=True)
    assert index == known
    assert loaded.processor("a <seg>")["input_ids"][0][-1] == index
