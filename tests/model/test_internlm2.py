"""InternLM2: the fused projection, dynamic NTK, and what the golden data does not reach."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests import support

configuration = support.hub.ring0("configuration_internlm2")
internlm2 = support.hub.ring0("modeling_internlm2")


def tiny(**options):
    settings = {
        "vocab_size": 60,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "bias": False,
        "pad_token_id": 2,
        "initializer_range": 0.3,
        **options,
    }
    return configuration.InternLM2Config(**settings)


@pytest.mark.parametrize(("length", "factor"), [(20, 2.0), (33, 2.0), (64, 2.0), (50, 3.0)])
def test_dynamic_ntk_follows_the_formula_from_the_current_length(length, factor):
    config = tiny(
        max_position_embeddings=32,
        rope_theta=10000,
        rope_scaling={"type": "dynamic", "factor": factor},
    )
    d, trained = config.head_dim, 32
    base = 10000.0
    if length > trained:
        base *= (factor * length / trained - (factor - 1)) ** (d / (d - 2))
    cos, sin = internlm2.rotary_tables(config, torch.arange(length)[None], torch.float32)
    for position in (0, 1, length - 1):
        angles = [position / base ** (2 * i / d) for i in range(d // 2)] * 2
        torch.testing.assert_close(
            cos[0, position], torch.tensor([math.cos(a) for a in angles]), atol=2e-5, rtol=0
        )
        torch.testing.assert_close(
            sin[0, position], torch.tensor([math.sin(a) for a in angles]), atol=2e-5, rtol=0
        )


@torch.no_grad()
def test_a_long_call_leaves_no_trace_in_a_short_one():
    """The official decoder keeps its longest table, so the second short call differs there."""
    config = tiny(max_position_embeddings=16, rope_scaling={"type": "dynamic", "factor": 2.0})
    model = internlm2.InternLM2ForCausalLM(config).eval()
    short, long = torch.randint(3, 60, (1, 8)), torch.randint(3, 60, (1, 40))
    before = model(input_ids=short).logits
    model(input_ids=long)
    assert torch.equal(model(input_ids=short).logits, before)
    # In a batch, a short padded row keeps its own table.
    padded = torch.cat([torch.full((1, 32), 2), short], dim=1)
    mask = torch.tensor([[1] * 40, [0] * 32 + [1] * 8])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    together = model(
        input_ids=torch.cat([long, padded]), attention_mask=mask, position_ids=positions
    ).logits
    torch.testing.assert_close(together[1, -8:], before[0], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    "scaling", [None, {"type": "dynamic", "factor": 2.0}, {"type": "linear", "factor": 4.0}]
)
def test_equal_to_llama_with_the_weights_split_apart(scaling):
    """transformers' Llama knows the same scalings; beyond the trained length too."""
    config = tiny(max_position_embeddings=16, rope_theta=10000, rope_scaling=scaling)
    model = internlm2.InternLM2ForCausalLM(config).eval()
    llama_config = LlamaConfig(
        vocab_size=60,
        hidden_size=48,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=16,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=10000,
        rope_scaling=scaling and {"rope_type": scaling["type"], **scaling},
        tie_word_embeddings=False,
    )
    llama = LlamaForCausalLM(llama_config).eval()
    state = {}
    names = {
        "tok_embeddings": "embed_tokens",
        "attention.wo": "self_attn.o_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w3": "mlp.up_proj",
        "feed_forward.w2": "mlp.down_proj",
    }
    for key, weight in model.state_dict().items():
        if "wqkv" in key:
            groups = weight.view(2, 5, 8, 48)  # 2 key heads: 3 queries, key, value of width 8
            parts = {"q": groups[:, :3], "k": groups[:, 3], "v": groups[:, 4]}
            for part, rows in parts.items():
                state[key.replace("attention.wqkv", f"self_attn.{part}_proj")] = rows.reshape(
                    -1, 48
                )
            continue
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        state["lm_head.weight" if key == "output.weight" else key] = weight
    llama.load_state_dict(state)
    for length in (12, 40):
        ids = torch.randint(3, 60, (2, length))
        torch.testing.assert_close(
            model(input_ids=ids).logits, llama(input_ids=ids).logits, atol=1e-4, rtol=0
        )


def test_generates_saves_and_reloads_by_itself(tmp_path):
    model = internlm2.InternLM2ForCausalLM(tiny()).eval()
    ids = torch.randint(3, 60, (2, 5))
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    expected = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    model.save_pretrained(tmp_path)
    again = internlm2.InternLM2ForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config == model.config
    assert torch.equal(
        again.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options), expected
    )
    embeds = model.get_input_embeddings()(ids)
    new = model.generate(inputs_embeds=embeds, attention_mask=torch.ones_like(ids), **options)
    assert torch.equal(new, expected[:, 5:])


def test_outputs_hidden_states_attentions_and_loss():
    model = internlm2.InternLM2ForCausalLM(tiny(attn_implementation="eager"))
    ids = torch.randint(3, 60, (2, 5))
    output = model(input_ids=ids, labels=ids, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3
    assert output.attentions[0].shape == (2, 6, 5, 5)
    assert torch.allclose(output.attentions[0].sum(-1), torch.ones(2, 6, 5))
    expected = torch.nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    )
    torch.testing.assert_close(output.loss, expected)


def test_rotary_settings_of_both_lines_and_bad_ones():
    five = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 3}}
    four = {"rope_theta": 1e6, "rope_scaling": {"type": "dynamic", "factor": 3.0}}
    assert tiny(**five) == tiny(**four)
    assert tiny(**five) != tiny()
    for scaling in (
        {"type": "yarn", "factor": 2.0},
        {"type": "dynamic"},
        {"type": "linear", "factor": 0.5},
    ):
        with pytest.raises(ValueError, match="rope_scaling is"):
            tiny(rope_scaling=scaling)
    with pytest.raises(ValueError, match="separate output layer"):
        tiny(tie_word_embeddings=True)
