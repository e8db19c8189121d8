"""What the servers read of a config, in our words: each function asks for the fields that the
loader of a server asks for, and fails as it would.

Read in the released packages, September to November 2026:
* vLLM 0.33.0: vllm/transformers_utils/config.py (get_config, patch_rope_parameters,
  _CONFIG_ATTRS_MAPPING), vllm/model_executor/models/internvl.py (InternVLChatModel,
  InternVLProcessingInfo) and intern_vit.py. It has no config class of its own: it runs ours.
* SGLang 0.5.23: sglang/srt/configs/internvl.py (its own three config classes, made from
  config.json), sglang/srt/models/internvl.py, sglang/srt/multimodal/processors/internvl.py.
* LMDeploy 0.18.0: lmdeploy/vl/model/internvl.py, lmdeploy/pytorch/models/internvl.py and
  nn/rotary_embedding.py, lmdeploy/turbomind/models/internvl.py and utils.py (parse_rope_param).
  It runs our config class.
* llama.cpp's converter, as vendored in llama-cpp-python 0.3.36: conversion/base.py (load_hparams,
  get_model_architecture, TextModel, MmprojModel), conversion/internvl.py. It reads config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig

# Language models that each can run below an InternVLChatModel.
VLLM = ("Qwen2ForCausalLM", "InternLM2ForCausalLM", "LlamaForCausalLM", "Phi3ForCausalLM")
SGLANG = ("Qwen2ForCausalLM", "InternLM2ForCausalLM")
LMDEPLOY_PYTORCH = VLLM
LMDEPLOY_TURBOMIND = ("Qwen2ForCausalLM", "InternLM2ForCausalLM", "LlamaForCausalLM")


@dataclass(frozen=True)
class Served:
    """The model that a server builds."""

    language_model: str
    vision: tuple[Any, ...]
    text: tuple[Any, ...]
    theta: float
    tile: int
    visual_tokens: int
    ps_version: str = "v2"
    select_layer: int = -1


def vllm(config: Any) -> Served:
    """`config` as AutoConfig gives it, with has_no_defaults_at_init=True."""
    if not hasattr(config, "text_config"):
        config.text_config = config.llm_config
    assert config.architectures[0] == "InternVLChatModel"
    text, vision = config.text_config, config.vision_config
    assert text is config.get_text_config()
    tile = config.force_image_size or vision.image_size
    # Of the image processor that vLLM brings itself.
    assert isinstance(config.min_dynamic_patch, int)
    assert isinstance(config.max_dynamic_patch, int)
    assert isinstance(config.dynamic_image_size, bool)
    assert isinstance(config.use_thumbnail, bool)
    # Pixels are validated against the vision encoder's size, not against the forced one.
    assert tile == vision.image_size
    return Served(
        _supported(text.architectures[0], VLLM),
        _vision(vision),
        _text(text),
        _theta_of_object(text),
        tile,
        int((tile // vision.patch_size) ** 2 * config.downsample_ratio**2),
        config.ps_version,
        config.select_layer,
    )


def sglang(fields: Mapping[str, Any]) -> Served:
    """`fields` is config.json; defaults are those of SGLang's classes."""
    assert fields["model_type"] == "internvl_chat"
    vision = {
        "num_channels": 3,
        "patch_size": 14,
        "image_size": 224,
        "qkv_bias": False,
        "qk_normalization": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "dropout": 0.0,
        "drop_path_rate": 0.0,
        "initializer_factor": 0.1,
        **fields["vision_config"],
    }
    language = dict(fields["llm_config"])
    name = language["architectures"][0]
    if name == "InternLM2ForCausalLM":
        scaling = language.get("rope_scaling")
        assert scaling is None or (len(scaling) == 2 and scaling["type"] in ("linear", "dynamic"))
        text = language
        theta = language.get("rope_theta", 10000)
    else:
        model_type = {"Qwen2ForCausalLM": "qwen2", "LlamaForCausalLM": "llama"}[name]
        built = AutoConfig.for_model(**{**language, "model_type": model_type})
        text, theta = vars(built), _theta_of_object(built)
    assert fields["template"]
    tile = fields.get("force_image_size") or vision["image_size"]
    return Served(
        _supported(name, SGLANG),
        _vision(vision),
        _text(text),
        theta,
        tile,
        int((tile // vision["patch_size"]) ** 2 * fields.get("downsample_ratio", 0.5) ** 2),
        fields.get("ps_version", "v1"),
        fields.get("select_layer", -1),
    )


def lmdeploy(config: Any, *, turbomind: bool = False) -> Served:
    """`config` as AutoConfig gives it."""
    assert config.architectures[0] == "InternVLChatModel"
    vision, text = config.vision_config, config.llm_config
    tile = config.force_image_size  # not that of the encoder, and None would fail
    if config.dynamic_image_size:
        assert isinstance(config.use_thumbnail, bool)
        assert config.min_dynamic_patch <= config.max_dynamic_patch
    assert config.select_layer == -1
    assert config.ps_version == "v2"
    if turbomind:  # v5's dictionary if there is one, the old two fields if not
        rope = getattr(text, "rope_parameters", None)
        scaling = rope if rope is not None else getattr(text, "rope_scaling", None)
        kind = (scaling or {}).get("rope_type") or (scaling or {}).get("type") or "default"
        assert kind in ("default", "dynamic", "linear", "llama3", "yarn"), kind
    return Served(
        _supported(text.architectures[0], LMDEPLOY_TURBOMIND if turbomind else LMDEPLOY_PYTORCH),
        _vision(vision),
        _text(text),
        _theta_of_object(text),
        tile,
        int((tile // vision.patch_size) ** 2 * config.downsample_ratio**2),
    )


def llama_cpp(fields: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> Served:
    """`fields` is config.json, `preprocessor` is preprocessor_config.json."""
    vision, text = fields["vision_config"], fields["llm_config"]
    assert vision["architectures"][0] == "InternVisionModel"  # the projector "internvl"
    assert vision["hidden_act"] in ("gelu", "silu")
    assert len(preprocessor["image_mean"]) == len(preprocessor["image_std"]) == 3
    assert fields["min_dynamic_patch"] >= 0
    assert fields["max_dynamic_patch"] >= 0
    rope = text.get("rope_parameters", text.get("rope_scaling")) or {}
    theta = text.get("rope_theta", rope.get("rope_theta"))
    tile = vision["image_size"]
    ratio = int(1 / fields["downsample_ratio"])
    return Served(
        text["architectures"][0],
        _vision(vision),
        _text(text),
        theta,
        tile,
        (tile // vision["patch_size"] // ratio) ** 2,
    )


def _supported(name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise NotImplementedError(f"{name} is not one of {names}")
    return name


def _get(source: Any, name: str) -> Any:
    return source[name] if isinstance(source, Mapping) else getattr(source, name)


def _vision(source: Any) -> tuple[Any, ...]:
    """What all of them need of the vision encoder."""
    wanted = (
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "intermediate_size",
        "image_size",
        "patch_size",
        "layer_norm_eps",
        "norm_type",  # SGLang's class knows no default
        "qkv_bias",
        "qk_normalization",
        "hidden_act",
        "dropout",
        "drop_path_rate",
        "initializer_factor",
    )
    return tuple(_get(source, name) for name in wanted)


def _text(source: Any) -> tuple[Any, ...]:
    """What all of them need of the language model."""
    wanted = (
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "hidden_act",
    )
    return tuple(_get(source, name) for name in wanted)


def _theta_of_object(config: Any) -> float:
    """As vLLM and LMDeploy: the dictionary of transformers 5, or the attribute."""
    parameters = getattr(config, "rope_parameters", None)
    theta = (parameters or {}).get("rope_theta", getattr(config, "rope_theta", None))
    assert theta is not None, "a server would take 10000"
    return theta
