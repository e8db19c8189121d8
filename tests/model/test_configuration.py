"""Configurations: published files load as they are, survive both lines, and compare by value."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from tests import support

InternVLChatConfig = support.configuration.InternVLChatConfig


def published(name):
    return json.loads((support.checkpoint(name) / "config.json").read_text())


def theta(config):
    """Base of the rotary embedding, wherever the installed transformers keeps it."""
    parameters = getattr(config.llm_config, "rope_parameters", None)
    return parameters["rope_theta"] if parameters else config.llm_config.rope_theta


def test_a_published_file_loads_as_it_is_and_round_trips(name, tmp_path):
    fields = published(name)
    before = copy.deepcopy(fields)
    config = InternVLChatConfig(**fields)
    assert fields == before
    for key in ("template", "ps_version", "select_layer", "force_image_size", "max_dynamic_patch"):
        assert getattr(config, key) == fields[key]
    assert theta(config) == fields["llm_config"]["rope_theta"]
    config.save_pretrained(tmp_path)
    assert InternVLChatConfig.from_pretrained(tmp_path) == config
    written = json.loads((tmp_path / "config.json").read_text())
    # What 4.x and other engines read; without it they fall back to a base of 10000, in silence.
    assert written["llm_config"]["rope_theta"] == fields["llm_config"]["rope_theta"]
    assert written["llm_config"]["architectures"] == fields["llm_config"]["architectures"]
    for key in ("hidden_size", "norm_type", "qkv_bias", "qk_normalization", "drop_path_rate"):
        assert written["vision_config"][key] == fields["vision_config"][key]


def test_rotary_settings_of_the_other_line_are_understood():
    fields = published("qwen2")
    four = InternVLChatConfig(**fields)
    del fields["llm_config"]["rope_theta"]
    fields["llm_config"]["rope_parameters"] = {"rope_type": "default", "rope_theta": 1000000}
    assert theta(InternVLChatConfig(**fields)) == theta(four) == 1000000
    scaled = {"rope_type": "linear", "rope_theta": 1000000, "factor": 2.0}
    fields["llm_config"]["rope_parameters"] = scaled
    written = InternVLChatConfig(**fields).to_dict()["llm_config"]
    assert written["rope_theta"] == 1000000
    assert written["rope_scaling"]["rope_type"] == "linear"
    assert written["rope_scaling"]["factor"] == 2.0


def test_equality_sees_every_field(name):
    config, other = InternVLChatConfig(**published(name)), InternVLChatConfig(**published(name))
    assert config == other
    for change in (
        {"downsample_ratio": 0.25},
        {"template": "Hermes-2"},
        {"vision_config": {**published(name)["vision_config"], "qkv_bias": None}},
        {"llm_config": {**published(name)["llm_config"], "vocab_size": 7}},
    ):
        assert InternVLChatConfig(**{**published(name), **change}) != config


def test_aliases_and_derived_facts(name):
    config = InternVLChatConfig(**published(name))
    assert config.text_config is config.llm_config
    assert config.get_text_config() is config.llm_config
    assert config.hidden_size == config.llm_config.hidden_size
    assert config.num_image_token == (support.tile_size(name) // 28) ** 2
    assert InternVLChatConfig(text_config=published(name)["llm_config"]).llm_config == (
        InternVLChatConfig(llm_config=published(name)["llm_config"]).llm_config
    )


def test_defaults_and_unknown_values():
    assert InternVLChatConfig().get_text_config().model_type == "qwen2"
    assert InternVLChatConfig().system_message is None
    with pytest.raises(ValueError, match="ps_version is 'v3'"):
        InternVLChatConfig(ps_version="v3")
    with pytest.raises(ValueError, match="llm_config names no language model"):
        InternVLChatConfig(llm_config={"architectures": [""]})
    only_architecture = {"architectures": ["InternLM2ForCausalLM"]}
    assert InternVLChatConfig(llm_config=only_architecture).llm_config.model_type == "internlm2"
    with pytest.raises(ValueError, match="template 'internvl9' is unknown"):
        support.conversation.get_conv_template("internvl9")


def test_a_system_message_replaces_that_of_the_template_and_null_keeps_it():
    tokenizer = support.tokenizer("qwen2")
    for value, expected in ((None, "书生·万象"), ("You are terse.", "You are terse."), ("", "")):
        model = support.load("qwen2")
        fields = {**published("qwen2"), "system_message": value}
        again = support.modeling.InternVLChatModel(
            InternVLChatConfig(**fields), model.vision_model, model.language_model
        )
        (request,) = again._requests(
            tokenizer, None, ["Hi"], None, None, support.conversation.IMAGE_TOKENS
        )
        prompt = support.conversation.prompt_text(request.pieces)
        assert prompt.startswith(f"<|im_start|>system\n{expected if value is not None else '你是'}")
        assert expected in prompt
        assert "None" not in prompt


def test_lora_wrapped_weights_are_refused():
    fields = {**published("qwen2"), "use_llm_lora": 16}
    with pytest.raises(ValueError, match="the weights are wrapped in LoRA layers"):
        support.modeling.InternVLChatModel(InternVLChatConfig(**fields))


def test_one_dtype_for_every_part():
    """4.57 would give parts built from a config dtypes of their own."""
    config = InternVLChatConfig(**published("qwen2"))
    for dtype in (torch.bfloat16, torch.float32):
        model = support.modeling.InternVLChatModel._from_config(config, dtype=dtype)
        assert {p.dtype for p in model.parameters()} == {dtype}


def test_flash_attention_asked_for_where_it_cannot_run_changes_nothing():
    config = InternVLChatConfig(**published("qwen2"))
    model = support.modeling.InternVLChatModel(config, use_flash_attn=True)
    if not torch.cuda.is_available():
        assert model.vision_model.config._attn_implementation == "sdpa"
