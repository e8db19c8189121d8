"""Settings files of transformers' own InternVL, from those of the published layout.

    config.json of ours -> what native cannot express is refused -> native config.json, its
                           processor files and chat template, and a note of what was left out

The note stands under `internvl_chat` in the native config.json, where transformers reads over it
and keeps it on saving. It holds only what cannot be read back from the native fields, so a native
model that was changed afterwards comes back changed (native/fields.py reads it).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from internvl import hub
from internvl.checkpoints.native.fields import (
    CONSTANTS,
    INTERNLM2_FIELDS,
    NATIVE_TYPE,
    NOTE,
    QK_NORM_EPS,
    VISION_CONSTANTS,
    VISION_FIELDS,
    VISION_PAIRS,
    published_fields,
)
from internvl.checkpoints.settings import TRANSFORMERS, processor_fields, upgrade_config

# The field of a processor file that says whose it is.
_CLASS_KEYS = {
    "preprocessor_config.json": "image_processor_type",
    "processor_config.json": "processor_class",
    "video_preprocessor_config.json": "video_processor_type",
}
_PROCESSOR = "InternVLProcessor"


@dataclass(frozen=True)
class Native:
    """The settings of a native checkpoint.

    Attributes:
        config: content of config.json, the note included.
        files: content of the processor files, by name.
        chat_template: content of chat_template.jinja.
        notes: what the native layout leaves out or does otherwise, in sentences.
    """

    config: dict[str, Any]
    files: dict[str, dict[str, Any]]
    chat_template: str
    notes: tuple[str, ...]


def native_settings(
    fields: Mapping[str, Any],
    prepared: hub.Prepared,
    processors: Mapping[str, Mapping[str, Any]] | None = None,
) -> Native:
    """Settings of the native layout for a checkpoint in ours.

    Args:
        fields: its config.json, from `upgrade_config`, with `img_context_token_id`.
        prepared: its config, processor and tokenizer.
        processors: its processor files, by name; those that are not ours are not looked at.

    Raises:
        ValueError: a setting that the native classes cannot express; the message names it.
    """
    config = prepared.config
    images = prepared.processor.image_processor
    faults = [*_inexpressible(config), *_inexpressible_images(images)]
    if faults:
        raise ValueError(
            "transformers' own InternVL cannot express this checkpoint: " + "; ".join(faults)
        )
    native = {
        **native_config(config, fields["llm_config"]),
        "architectures": ["InternVLForConditionalGeneration"],
        "transformers_version": TRANSFORMERS,
    }
    if fields.get("torch_dtype"):
        native["torch_dtype"] = fields["torch_dtype"]
    files = _processor_files(images, config.num_image_token)
    native[NOTE] = _note(fields, native, files, processors or {})
    return Native(native, files, _native_template(prepared.processor), tuple(_notes(config)))


def _note(
    fields: Mapping[str, Any],
    native: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Any]],
    processors: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What the way back would lack: {"config": ..., "processors": ...}."""
    config: dict[str, Any] = {}
    if fields["llm_config"]["model_type"] == "internlm2":  # which no native field tells
        config = {"llm_config": {"model_type": "internlm2"}}
    derived = upgrade_config(published_fields(native, files, config))
    lost = _unlike(fields, derived)
    llm = config.get("llm_config", {}) | lost.pop("llm_config", {})
    note = {"config": lost | ({"llm_config": llm} if llm else {}), "processors": {}}
    for name, content in processor_fields(fields).items():
        key = _CLASS_KEYS[name]
        own = processors.get(name) or {}
        if own.get(key) == content[key] and (unlike := _unlike(own, content)):
            note["processors"][name] = {key: own[key], **unlike}
    return note


def native_config(config: Any, llm_names: Iterable[str] | None = None) -> dict[str, Any]:
    """The fields of a native config.json that describe the model.

    Args:
        config: `InternVLChatConfig` of a model that the native class can express.
        llm_names: fields of the decoder to write; None for all that its class has.
    """
    return {
        **CONSTANTS,
        "downsample_ratio": config.downsample_ratio,
        "image_seq_length": config.num_image_token,
        "image_token_id": config.img_context_token_id,
        "model_type": NATIVE_TYPE,
        "text_config": _text_config(config, llm_names),
        "tie_word_embeddings": config.tie_word_embeddings,
        "vision_config": _vision_config(config.vision_config),
        "vision_feature_layer": config.select_layer,
    }


def _notes(config: Any) -> list[str]:
    """What the native class does otherwise, and is no reason to refuse."""
    notes = []
    if config.vision_config.drop_path_rate:
        notes.append(
            f"drop_path_rate {config.vision_config.drop_path_rate} is kept in the note only: the "
            "native encoder trains without stochastic depth."
        )
    llm = config.llm_config
    if llm.model_type == "internlm2" and (llm.rope_scaling or {}).get("type") == "dynamic":
        notes.append(
            f"beyond {llm.max_position_embeddings} positions the native decoder scales all rows of "
            "a batch by its longest, and goes on so until a prompt is shorter than that; ours "
            "scales each row by its own length. A single dialogue is the same."
        )
    return notes


def _inexpressible(config: Any) -> list[str]:
    """Settings of the model that the native class does not have, one sentence each."""
    vision = config.vision_config
    faults = []
    if config.use_backbone_lora or config.use_llm_lora:
        faults.append(
            f"use_backbone_lora is {config.use_backbone_lora} and use_llm_lora "
            f"{config.use_llm_lora}: merge the LoRA layers first (`internvl adopt` does)"
        )
    if config.ps_version != "v2":
        faults.append(f"ps_version is {config.ps_version!r}, and it unshuffles as 'v2' does")
    if config.downsample_ratio not in (1, 0.5, 0.25, 0.125):
        faults.append(
            f"downsample_ratio is {config.downsample_ratio}, and its check of the grid, "
            "`side % ratio == 0`, passes 1, 0.5, 0.25 and 0.125 only"
        )
    if config.pad2square:
        faults.append("pad2square is true, and its image processor does not pad")
    if vision.qk_normalization and vision.layer_norm_eps != QK_NORM_EPS:
        faults.append(
            f"vision_config.layer_norm_eps is {vision.layer_norm_eps} with qk_normalization, and "
            f"its norms of queries and keys have {QK_NORM_EPS} whatever the config says"
        )
    if config.select_layer == 0:
        faults.append("select_layer is 0, which it takes for no layer at all")
    elif config.select_layer != -1 and int(version("transformers").split(".")[0]) < 5:
        faults.append(
            f"select_layer is {config.select_layer}, and the class of transformers "
            f"{version('transformers')} fails for any but -1 (5.x does not)"
        )
    return faults


def _inexpressible_images(images: Any) -> list[str]:
    """Settings of our image processor that the native one does not have."""
    faults = []
    if images.max_tiles > 1 and not images.use_thumbnail:
        faults.append("use_thumbnail is false, and its image processor always adds a thumbnail")
    if not images.upscale:
        faults.append("upscale is false in preprocessor_config.json, and it scales up any image")
    if images.total_tiles is not None:
        faults.append(
            f"total_tiles is {images.total_tiles} in preprocessor_config.json, and it limits the "
            "tiles of single images only"
        )
    return faults


def _vision_config(vision: Any) -> dict[str, Any]:
    return {
        **VISION_CONSTANTS,
        **{native: getattr(vision, ours) for ours, native in VISION_FIELDS.items()},
        **{name: [getattr(vision, name)] * 2 for name in VISION_PAIRS},
        "architectures": ["InternVLVisionModel"],
        "model_type": "internvl_vision",
    }


def _text_config(config: Any, names: Iterable[str] | None) -> dict[str, Any]:
    """The decoder, with rotary settings in the forms of transformers 4 and of transformers 5."""
    llm = config.to_dict()["llm_config"]
    if config.llm_config.model_type == "internlm2":
        text = {native: llm[ours] for ours, native in INTERNLM2_FIELDS.items()}
        text |= {"architectures": ["LlamaForCausalLM"], "mlp_bias": False, "model_type": "llama"}
    else:
        # In the words of the class: Phi-3's "su" is "longrope" today.
        text = {name: llm[name] for name in (llm if names is None else names) if name in llm}
        text["model_type"] = config.llm_config.model_type
        text.pop("rope_parameters", None)
    return text | _rope(llm)


def _rope(llm: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings as `rope_theta` and `rope_scaling`, with the keys of both lines."""
    scaling = copy.deepcopy(llm.get("rope_scaling")) or None
    if scaling and llm["model_type"] != "phi3":  # which takes three keys and no more
        kind = scaling.get("rope_type", scaling.get("type"))
        scaling |= {"rope_type": kind, "type": kind}
    return {"rope_theta": llm["rope_theta"], "rope_scaling": scaling}


def _processor_files(images: Any, image_seq_length: int) -> dict[str, dict[str, Any]]:
    shared = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(images.image_mean),
        "image_std": list(images.image_std),
        "processor_class": _PROCESSOR,
        "resample": int(images.resample),
        "rescale_factor": images.rescale_factor,
        "size": {"height": images.tile_size, "width": images.tile_size},
    }
    return {
        "preprocessor_config.json": {
            **shared,
            "crop_to_patches": images.max_tiles > 1,
            "image_processor_type": "GotOcr2ImageProcessor",  # InternVL has none of its own
            "max_patches": images.max_tiles,
            "min_patches": images.min_tiles,
        },
        "processor_config.json": {
            "image_seq_length": image_seq_length,
            "processor_class": _PROCESSOR,
        },
        "video_preprocessor_config.json": {
            **shared,
            "video_processor_type": "InternVLVideoProcessor",
        },
    }


def _native_template(processor: Any) -> str:
    """Our chat template with the placeholder of the native processor, `<IMG_CONTEXT>`."""
    template = processor.chat_template
    content = "{{- message['content'] -}}"
    changes = {
        "'<image>\\n'": "'<IMG_CONTEXT>\\n'",
        content: content.replace(" -}}", " | replace('<image>', '<IMG_CONTEXT>') -}}"),
    }
    for ours, native in changes.items():
        if template.count(ours) != 1:
            raise ValueError(
                f"the chat template has {template.count(ours)} times {ours}, expected once; it is "
                "not one that conversation.py wrote."
            )
        template = template.replace(ours, native)
    # What the native processor has no setting for is said in the template itself.
    return template if processor.image_labels else "{%- set image_labels = false -%}" + template


def _unlike(fields: Mapping[str, Any], derived: Mapping[str, Any]) -> dict[str, Any]:
    """What `derived` lacks or says otherwise, parts field by field."""
    unlike: dict[str, Any] = {}
    for name, value in fields.items():
        other = derived.get(name, ...)
        if isinstance(value, dict) and isinstance(other, dict) and name.endswith("_config"):
            if inner := _unlike(value, other):
                unlike[name] = inner
        elif other is ... or other != value:
            unlike[name] = value
    return unlike
