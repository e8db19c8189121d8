"""The language model as a folder: the same logits, the same prompt, and an end that engines see."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from internvl import hub
from internvl.evaluation.engines.export_llm import describe, export_language_model
from internvl.source_files import read_json
from tests import support

MESSAGES = [{"role": "user", "content": "Is it even?"}]


def test_the_demo(tmp_path):
    out = tmp_path / "llm"
    written = export_language_model(None, out, max_shard_size="2MB")
    assert written.architecture == "Qwen2ForCausalLM"
    assert not written.needs_code
    assert not list(out.glob("*.py"))
    assert len(list(out.glob("*.safetensors"))) > 1
    loaded = hub.load()
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto").eval()
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight  # tied, as in the demo
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    conversation = hub.ring0("conversation")
    template = conversation.get_conv_template("internvl2_5")
    turns = [(template.roles[0], MESSAGES[0]["content"]), (template.roles[1], None)]
    pieces = conversation.render(template, turns, 16)
    assert ids[0].tolist() == conversation.encode(pieces, loaded.tokenizer)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, loaded.model.language_model(ids).logits)
    answer = model.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
    assert answer[-1] == tokenizer.eos_token_id  # generation_config.json says where to stop
    text = tokenizer.decode(answer, skip_special_tokens=True)
    settings = {"max_new_tokens": 16}
    assert text == loaded.model.chat(loaded.tokenizer, None, MESSAGES[0]["content"], settings)
    assert "--apply_chat_template" in describe(written)


@pytest.mark.parametrize("name", ["qwen2", "internlm2", "phi3"])
def test_every_kind_of_language_model(name, tmp_path):
    out = tmp_path / "llm"
    written = export_language_model(support.checkpoint(name), out)
    code = name == "internlm2"
    assert written.needs_code == code
    assert ("trust_remote_code=True" in describe(written)) == code
    model, info = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, trust_remote_code=code, output_loading_info=True
    )
    assert not any(info.values()), info
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = support.load(name).language_model(ids).logits
        assert torch.equal(model.eval()(ids).logits, expected)
    config = read_json(out / "config.json")
    template = support.conversation.get_conv_template(
        read_json(support.checkpoint(name) / "config.json")["template"]
    )
    tokenizer = AutoTokenizer.from_pretrained(out)
    end = tokenizer.convert_tokens_to_ids(template.end_of_turn)
    assert written.end_of_turn == tokenizer.eos_token == template.end_of_turn
    assert config["eos_token_id"] == tokenizer.eos_token_id == end
    assert end in GenerationConfig.from_pretrained(out).eos_token_id
    assert template.end_of_turn in tokenizer.apply_chat_template(MESSAGES, tokenize=False)


def test_the_tokenizer_of_internlm2_comes_with_its_code(tmp_path):
    source, out = internlm2(tmp_path / "source"), tmp_path / "llm"
    export_language_model(source, out)
    assert (out / "tokenization_internlm2.py").is_file()
    tokenizer = AutoTokenizer.from_pretrained(out, trust_remote_code=True)
    assert type(tokenizer).__name__ == "InternLM2Tokenizer"
    assert tokenizer.eos_token == "<|im_end|>"  # published: </s>, which no answer ends with
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids.count(tokenizer.eos_token_id) == 2


def internlm2(folder: Path) -> Path:
    """The InternLM2 checkpoint with a tokenizer as the published ones have it."""
    sentencepiece = pytest.importorskip("sentencepiece")
    ignored = shutil.ignore_patterns("*token*", "vocab.json", "merges.txt")
    shutil.copytree(support.checkpoint("internlm2"), folder, ignore=ignored)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(f"what is {i} plus {i * 7}?" for i in range(300)),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        minloglevel=2,
    )
    special = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
    added = {str(400 + i): {"content": t, "special": True} for i, t in enumerate(special)}
    config = {"tokenizer_class": "InternLM2Tokenizer", "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "</s>"}))
    return folder


def test_what_cannot_be_exported(tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        export_language_model(None, full)
    damaged = tmp_path / "damaged"
    shutil.copytree(support.checkpoint("qwen2"), damaged)
    config = read_json(damaged / "config.json")
    config["llm_config"]["num_hidden_layers"] = 5
    (damaged / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"does not fit its config\.json.*missing.*layers\.4"):
        export_language_model(damaged, tmp_path / "out")
    assert not (tmp_path / "out").exists()
