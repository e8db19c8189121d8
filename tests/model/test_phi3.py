"""Phi-3 of InternVL2-4B: its "su" rope is LongRoPE, which transformers calls so today."""

from __future__ import annotations

import math

import torch

from tests import support


def rope(short, long):
    fields = {
        "model_type": "phi3",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "original_max_position_embeddings": 16,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "su", "short_factor": short, "long_factor": long},
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "image_size": 28,
    }
    config = support.configuration.InternVLChatConfig(
        vision_config=vision, llm_config=fields, template="phi3-chat"
    )
    return support.modeling.InternVLChatModel(config).language_model.model.rotary_emb


def test_su_rope_follows_the_formula():
    """Frequencies over the short or long factors, tables times sqrt(1 + ln s / ln M)."""
    short, long = [1.0, 1.1, 1.3, 1.5], [1.0, 2.0, 8.0, 30.0]
    stretch = math.sqrt(1 + math.log(512 / 16) / math.log(16))
    for length, factors in ((10, short), (16, short), (17, long), (40, long)):
        positions = torch.arange(length)[None]
        cos, sin = rope(short, long)(torch.zeros(1, length, 32), positions)
        angles = torch.tensor(
            [
                [p / (f * 10000 ** (2 * i / 8)) for i, f in enumerate(factors)] * 2
                for p in range(length)
            ]
        )
        torch.testing.assert_close(cos[0], angles.cos() * stretch, atol=1e-5, rtol=0)
        torch.testing.assert_close(sin[0], angles.sin() * stretch, atol=1e-5, rtol=0)
