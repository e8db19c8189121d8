"""Fields of config.json in two layouts: the published one, and that of transformers' own InternVL.

    tables: ours <-> native
    native config.json -> config.json of ours, with what the note says, if there is one

The other direction, and what is refused there, is in native/settings.py.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from internvl import hub
from internvl.checkpoints.settings import upgrade_config
from internvl.source_files import optional_json

NATIVE_TYPE = "internvl"
NOTE = "internvl_chat"
# Ours -> native, of the vision encoder. Native image_size and patch_size are (rows, columns).
VISION_FIELDS = {
    "attention_dropout": "attention_dropout",
    "dropout": "projection_dropout",
    "hidden_act": "hidden_act",
    "hidden_size": "hidden_size",
    "initializer_factor": "layer_scale_init_value",
    "initializer_range": "initializer_range",
    "intermediate_size": "intermediate_size",
    "layer_norm_eps": "layer_norm_eps",
    "norm_type": "norm_type",
    "num_attention_heads": "num_attention_heads",
    "num_channels": "num_channels",
    "num_hidden_layers": "num_hidden_layers",
    "qk_normalization": "use_qk_norm",
    "qkv_bias": "attention_bias",
}
VISION_PAIRS = ("image_size", "patch_size")
# What every InternViT and every projector of ours is.
VISION_CONSTANTS = {
    "hidden_dropout_prob": 0.0,
    "use_absolute_position_embeddings": True,
    "use_mask_token": False,
    "use_mean_pooling": True,  # the native encoder ends in a norm otherwise
}
CONSTANTS = {"projector_hidden_act": "gelu", "vision_feature_select_strategy": "default"}
# InternLM2 -> Llama, the rotary settings apart.
INTERNLM2_FIELDS = {
    **{
        name: name
        for name in (
            "attention_dropout",
            "bos_token_id",
            "eos_token_id",
            "hidden_act",
            "hidden_size",
            "initializer_range",
            "intermediate_size",
            "max_position_embeddings",
            "num_attention_heads",
            "num_hidden_layers",
            "num_key_value_heads",
            "pad_token_id",
            "rms_norm_eps",
            "tie_word_embeddings",
            "use_cache",
            "vocab_size",
        )
    },
    "bias": "attention_bias",
}
QK_NORM_EPS = 1e-6  # which the native class does not let anyone choose
_ROPE = ("rope_theta", "rope_scaling")


def published_settings(
    fields: Mapping[str, Any], folder: Path, template: str | None = None
) -> dict[str, Any]:
    """The config.json of our layout for a native checkpoint.

    Args:
        fields: its config.json.
        folder: where its processor files are.
        template: name of the prompt template, for a checkpoint without a note.

    Raises:
        ValueError: a native setting that our classes cannot express, or no template.
    """
    files = {
        name: optional_json(folder / name)
        for name in ("preprocessor_config.json", "processor_config.json")
    }
    note = (fields.get(NOTE) or {}).get("config") or {}
    published = published_fields(fields, files, note)
    return upgrade_config(published, template=choose_template(published, template))


def choose_template(fields: Mapping[str, Any], given: str | None) -> str:
    """The template that config.json names, or the one that was given.

    Raises:
        ValueError: there is neither, or they differ.
    """
    known = fields.get("template")
    if known and given and known != given:
        raise ValueError(
            f"config.json names template {known!r}, got {given!r}; leave it out, or correct "
            "config.json."
        )
    if not (known or given):
        raise ValueError(
            "config.json names no prompt template; pass the one that the model was trained with, "
            f"one of {sorted(hub.ring0('conversation').TEMPLATES)}."
        )
    return known or given or ""


def published_fields(
    fields: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]], note: Mapping[str, Any]
) -> dict[str, Any]:
    """What a native config.json, its processor files and the note say in our fields.

    Raises:
        ValueError: a native setting that our classes cannot express.
    """
    from transformers import InternVLConfig

    # Fills in what a config.json leaves to defaults, which are not ours.
    native: Any = InternVLConfig.from_dict(copy.deepcopy(dict(fields)))
    _check_native(native)
    vision = native.vision_config
    images = files.get("preprocessor_config.json") or {}
    nested = (files.get("processor_config.json") or {}).get("image_processor")
    images = nested or images  # where transformers 5 saves it
    side = (images.get("size") or {}).get("height", vision.image_size[0])
    published = {
        "downsample_ratio": native.downsample_ratio,
        "dynamic_image_size": True,
        "force_image_size": side,
        "image_mean": images.get("image_mean"),
        "image_std": images.get("image_std"),
        "img_context_token_id": native.image_token_id,
        "llm_config": _llm_config(fields, note),
        "max_dynamic_patch": images.get("max_patches", 12),
        "min_dynamic_patch": images.get("min_patches", 1),
        "model_type": hub.CHAT_TYPE,
        "ps_version": "v2",
        "select_layer": native.vision_feature_layer,
        "template": None,
        "use_thumbnail": True,
        "vision_config": {
            **{ours: getattr(vision, name) for ours, name in VISION_FIELDS.items()},
            **{name: getattr(vision, name)[0] for name in VISION_PAIRS},
            "drop_path_rate": 0.0,
            **note.get("vision_config", {}),
        },
    }
    dtype = fields.get("torch_dtype") or fields.get("dtype")
    parts = ("vision_config", "llm_config")
    published |= {name: value for name, value in note.items() if name not in parts}
    return published | ({"torch_dtype": dtype} if dtype else {})


def _check_native(native: Any) -> None:
    """Refuse what our classes cannot express.

    Raises:
        ValueError: which field.
    """
    vision = native.vision_config
    wanted = [(f"vision_config.{name}", value) for name, value in VISION_CONSTANTS.items()]
    faults = [
        f"{name} is {found!r}, and ours always has {value!r}"
        for name, value in [*wanted, *CONSTANTS.items()]
        if (found := getattr(vision if "." in name else native, name.split(".")[-1])) != value
    ]
    for name in VISION_PAIRS:
        if len(set(getattr(vision, name))) != 1:
            faults.append(f"vision_config.{name} is {getattr(vision, name)}, and ours is square")
    if not isinstance(native.vision_feature_layer, int):
        faults.append(
            f"vision_feature_layer is {native.vision_feature_layer}, and ours takes one layer"
        )
    if vision.use_qk_norm and vision.layer_norm_eps != QK_NORM_EPS:
        faults.append(
            f"vision_config.layer_norm_eps is {vision.layer_norm_eps}, but the norms of queries "
            f"and keys of the native class have {QK_NORM_EPS}, and ours one for all"
        )
    if faults:
        raise ValueError("the published layout cannot express this: " + "; ".join(faults))


def _llm_config(fields: Mapping[str, Any], note: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder in the words of config.json; InternLM2 where the note says so."""
    text = fields.get("text_config")
    if not isinstance(text, Mapping):
        raise ValueError("config.json has no text_config, so nobody knows the language model.")
    # transformers 5 goes by the whole's field, transformers 4 by the decoder's.
    tied = fields.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    text = {**text, "tie_word_embeddings": tied}
    known = note.get("llm_config", {})
    # With the defaults of its class, and the rotary settings of both lines, whichever it has.
    probe = {"model_type": hub.CHAT_TYPE, "llm_config": text}
    whole = hub.build_config(probe).to_dict()["llm_config"]
    rope = {name: whole.get(name) for name in _ROPE}
    if known.get("model_type") == "internlm2":
        text = {ours: whole[native] for ours, native in INTERNLM2_FIELDS.items()}
        if scaling := rope["rope_scaling"]:
            rope["rope_scaling"] = {"factor": scaling["factor"], "type": scaling["type"]}
    text.pop("rope_parameters", None)
    return {**text, **rope, **known}
