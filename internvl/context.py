"""Facts of a decoder's context: for how many positions it is made, and what one costs to keep."""

from __future__ import annotations

from typing import Any


def context_length(llm_config: Any) -> int:
    """Positions that a language model is made for: its `max_position_embeddings`, times the factor
    of a dynamic or linear rotary scaling."""
    rope = getattr(llm_config, "rope_parameters", None)
    rope = rope or getattr(llm_config, "rope_scaling", None) or {}
    factor = 1.0
    if rope.get("rope_type", rope.get("type")) in ("dynamic", "linear"):
        factor = float(rope.get("factor", 1.0))
    return int(llm_config.max_position_embeddings * factor)


def head_width(llm_config: Any) -> int:
    """Width of an attention head."""
    heads = llm_config.num_attention_heads
    return getattr(llm_config, "head_dim", None) or llm_config.hidden_size // heads


def key_heads(llm_config: Any) -> int:
    """Heads of keys and values."""
    heads = getattr(llm_config, "num_key_value_heads", None)
    return heads or llm_config.num_attention_heads


def kv_bytes_per_token(llm_config: Any, bytes_per_number: int = 2) -> int:
    """Bytes of one position in the key-value cache: 2 x layers x key heads x head width."""
    row = key_heads(llm_config) * head_width(llm_config)
    return 2 * llm_config.num_hidden_layers * row * bytes_per_number
