"""Every tensor of ours has a place in every server, and every place gets its tensors."""

from __future__ import annotations

import re

import pytest

from internvl import hub
from internvl.checkpoints.tensors import layout
from tests import support
from tests.serving import readers, weights

FAMILIES = ("demo", *support.NAMES, "llama")


def config_of(family: str):
    """A small config of each language model and vision encoder."""
    if family == "demo":
        return support.configuration.InternVLChatConfig.from_pretrained(hub.DEMO)
    name = "qwen2" if family == "llama" else family
    config = support.configuration.InternVLChatConfig.from_pretrained(support.checkpoint(name))
    if family != "llama":
        return config
    fields = config.to_dict()
    fields["llm_config"] |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    return support.configuration.InternVLChatConfig(**fields)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    """A config, its language model, and the tensors that a checkpoint of it stores."""
    config = config_of(request.param)
    return config, config.llm_config.architectures[0], set(layout(config).shapes)


def test_vllm_and_lmdeploy(model):
    config, name, stored = model
    shards = weights.consumed(stored, name)
    assert weights.incomplete(shards) == []
    assert shards.keys() == weights.parameters(config)


def test_vllm_notices_a_missing_tensor(model):
    config, name, stored = model
    for lost in stored:
        shards = weights.consumed(stored - {lost}, name)
        assert weights.incomplete(shards) or shards.keys() < weights.parameters(config), lost


def test_sglang(model):
    config, name, stored = model
    if name not in readers.SGLANG:  # it says so before it loads anything
        with pytest.raises((NotImplementedError, KeyError)):
            readers.sglang({**config.to_dict(), "template": "internvl2_5"})
        return
    outside = [tensor for tensor in stored if not tensor.startswith("language_model.")]
    for part in weights.SGLANG_ANYWHERE[name]:
        assert not [tensor for tensor in outside if part in tensor]
    wanted = {weights.sglang_name(parameter) for parameter in weights.parameters(config)}
    found = {weights.sglang_name(tensor) for tensor in weights.consumed(stored, name)}
    assert found == wanted
    # The attention module there is attn.attn, with qkv_proj, proj and the two norms.
    attention = {parameter for parameter in wanted if "vision_model" in parameter and
                 ".attn." in parameter}  # fmt: skip
    pattern = r".*\.attn\.attn\.(qkv_proj|proj|q_norm|k_norm)\.(weight|bias)"
    assert all(re.fullmatch(pattern, parameter) for parameter in attention)


def test_turbomind(model):
    _, name, stored = model
    outside = {tensor for tensor in stored if not tensor.startswith("language_model.")}
    assert [tensor for tensor in outside if not weights.turbomind_knows(tensor)] == []
    assert name in readers.LMDEPLOY_PYTORCH


def test_llama_cpp(model):
    _, name, stored = model
    parts = {tensor: weights.gguf_part(tensor, name) for tensor in stored}
    vision = {tensor for tensor, part in parts.items() if part == "mmproj"}
    assert vision == {tensor for tensor in stored if not tensor.startswith("language_model.")}
    with pytest.raises(ValueError, match="Can not map"):
        weights.gguf_part("vision_tower.layers.0.ls1", name)


def test_adapter_names(tmp_path):
    """An adapter on the language model: names and modules as vLLM's and LMDeploy's loaders read
    them (vllm/lora/utils.py parse_fine_tuned_lora_name, vllm/lora/peft_helper.py)."""
    peft = pytest.importorskip("peft")
    import json

    from safetensors import safe_open

    names = "(q|k|v|o|gate|up|down)_proj"
    config = peft.LoraConfig(r=4, target_modules=rf"language_model\..*\.{names}")
    peft.get_peft_model(support.load("qwen2"), config).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (fields["bias"], fields["use_dora"], fields["modules_to_save"]) == ("none", False, None)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as opened:
        keys = list(opened.keys())
    layers = config_of("qwen2").llm_config.num_hidden_layers
    pattern = (
        r"base_model\.model\.(language_model\.model\.layers\.\d+\.\w+\.(\w+))\.lora_[AB]\.weight"
    )
    matches = [re.fullmatch(pattern, key) for key in keys]
    assert all(matches)
    assert len(keys) == layers * 7 * 2
    # The module has to be one that the server has, stacked or not.
    stacked = weights.consumed({f"{match[1]}.weight" for match in matches}, "Qwen2ForCausalLM")
    assert stacked.keys() <= weights.parameters(config_of("qwen2"))
    assert weights.incomplete(stacked) == []
