"""Small random language models with a tokenizer each, as `internvl train assemble` gets them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from internvl import hub
from tests import support

FAMILIES = ("qwen2", "llama", "phi3", "internlm2")
TEMPLATES = {
    "qwen2": "internvl2_5",
    "llama": "Hermes-2",
    "phi3": "phi3-chat",
    "internlm2": "internlm2-chat",
}
CONTROL = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
TOKENS = 1000 + len(CONTROL)
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1001,
    "eos_token_id": 1001,
    "pad_token_id": 1001,
}


def tokenizer(folder: Path, control: tuple[str, ...] = CONTROL) -> None:
    """Write the golden tokenizer without the tokens of InternVL, as a language model has it."""
    source = support.checkpoint("qwen2")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(source / name, folder)
    fields = json.loads((source / "tokenizer.json").read_text("utf-8"))
    template = fields["added_tokens"][0]
    numbered = dict(enumerate(control, start=1000))
    fields["added_tokens"] = [{**template, "id": i, "content": t} for i, t in numbered.items()]
    (folder / "tokenizer.json").write_text(json.dumps(fields), "utf-8")
    config = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    entry = next(iter(config["added_tokens_decoder"].values()))
    config["added_tokens_decoder"] = {str(i): {**entry, "content": t} for i, t in numbered.items()}
    config["additional_special_tokens"] = list(control[2:])
    config["chat_template"] = "{{ 'You are the language model alone.' }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")


def language_model(folder: Path, family: str, *, rows: int = TOKENS, **changes: Any) -> Path:
    """Write a random language model of a family, with `rows` rows in its embedding."""
    torch.manual_seed(11)
    settings = {**SHAPE, "vocab_size": rows, **changes}
    if family == "internlm2":
        module = hub.ring0("modeling_internlm2")
        config = hub.ring0("configuration_internlm2").InternLM2Config(**settings, bias=False)
        model = module.InternLM2ForCausalLM(config)
    else:
        classes = {
            "qwen2": (Qwen2Config, Qwen2ForCausalLM),
            "llama": (LlamaConfig, LlamaForCausalLM),
            "phi3": (Phi3Config, Phi3ForCausalLM),
        }
        config_class, model_class = classes[family]
        model = model_class(config_class(**settings))
    model.generation_config.temperature, model.generation_config.do_sample = 0.7, True
    model.save_pretrained(folder)
    tokenizer(folder)
    return folder


def load(folder: Path, family: str) -> Any:
    """The language model alone, in eval mode."""
    if family == "internlm2":
        return hub.ring0("modeling_internlm2").InternLM2ForCausalLM.from_pretrained(folder).eval()
    return AutoModelForCausalLM.from_pretrained(folder).eval()
