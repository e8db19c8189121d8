"""A judge in this process: a random LLM, so what counts is how it is asked, not what it says."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from internvl import hub
from internvl.filtering.judge import make_judge
from internvl.filtering.judge_client import Prompt, Sampling
from internvl.filtering.judge_local import LocalModel
from internvl.filtering.verdict import Record, Said

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An LLM of random weights with the tokenizer of the demo and a chat template."""
    out = tmp_path_factory.mktemp("llm")
    tokenizer = AutoTokenizer.from_pretrained(hub.REPOSITORY / "demo", trust_remote_code=True)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(out)
    config = Qwen2Config(
        vocab_size=1024, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=48, max_position_embeddings=600,
        eos_token_id=tokenizer.eos_token_id, initializer_range=0.5,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        Qwen2ForCausalLM(config).save_pretrained(out)
    return out


def prompts(*texts):
    return [Prompt([{"role": "user", "content": text}], {}) for text in texts]


def test_answer_does_not_depend_on_the_batch(folder):
    """Padding on the wrong side, or seen by the model, would change it."""
    asked = prompts("A?", "What is the colour of the second circle from the left?", "How many?")
    sampling = Sampling(max_tokens=12)
    one = dict(LocalModel(str(folder), sampling, batch=1, dtype="float32").answers(asked))
    many = dict(LocalModel(str(folder), sampling, batch=3, dtype="float32").answers(asked))
    assert one == many
    assert len({reply.text for reply in one.values()}) > 1
    assert all(reply.tokens > 0 for reply in one.values())


def test_prompt_that_does_not_fit_is_refused_by_name(folder):
    model = LocalModel(str(folder), Sampling(max_tokens=12), dtype="float32")
    found = dict(model.answers(prompts("A?", "word " * 700)))
    assert not found[0].refused
    assert "do not fit into 600" in found[1].refused
    assert "judge.max_characters" in found[1].refused


def test_what_it_cannot_say_in_json_is_unjudged(folder, tmp_path):
    judge = make_judge(
        {"model": str(folder), "dtype": "float32", "max_tokens": 8, "attempts": 1,
         "max_characters": 200},
        tmp_path,
    )  # fmt: skip
    record = Record((Said("user", "Q?"), Said("assistant", "A.")), "a", key="a:1")
    (found,) = judge.assess([record], lambda one: ("repetition",))
    assert found.score is None
    assert judge.verdict(found).rule == "unjudged"


def test_model_without_a_chat_template_is_refused(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    for path in folder.iterdir():
        if path.name.startswith(("model", "config", "generation")):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="has no chat template"):
        LocalModel(str(tmp_path), Sampling())
