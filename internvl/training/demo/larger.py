"""A larger language model for the demo: where progressive scaling goes to (docs/progressive.md)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

# Three times the parameters of the demo's own.
WIDTH, LAYERS, HEADS, KEY_HEADS, INNER = 384, 6, 6, 3, 1056
SPREAD = (
    0.036  # 0.7 / sqrt(width): with transformers' 0.02 so narrow a model hardly begins to learn
)
_TOKENIZER = ("tokenizer", "vocab", "merges", "added_tokens", "special_tokens_map")


def language_model(demo: Path, out: Path, seed: int = 0) -> int:
    """Write a Qwen2 folder of random weights with the demo's tokenizer.

    Args:
        demo: The demo checkpoint, for its tokenizer.
        out: Target folder.
        seed: Of the weights.

    Returns:
        Number of parameters.
    """
    own = json.loads((demo / "config.json").read_text("utf-8"))["llm_config"]
    config = Qwen2Config(
        vocab_size=own["vocab_size"],
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        intermediate_size=INNER,
        max_position_embeddings=own["max_position_embeddings"],
        tie_word_embeddings=True,
        initializer_range=SPREAD,
        bos_token_id=own["bos_token_id"],
        eos_token_id=own["eos_token_id"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    model.save_pretrained(out)
    for path in demo.iterdir():
        if path.name.startswith(_TOKENIZER):
            shutil.copyfile(path, out / path.name)
    return model.num_parameters()
