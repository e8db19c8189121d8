"""Configuration of the whole InternVL chat model: vision encoder, language model, and the facts
that join them.

Published config.json files of InternVL 1.5, 2.0 and 2.5 load as they are. What is written carries
the rotary settings both as transformers 5 (`rope_parameters`) and as transformers 4 (`rope_theta`,
`rope_scaling`) read them.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from .configuration_intern_vit import InternVisionConfig, same_settings
from .configuration_internlm2 import InternLM2Config

PIXEL_SHUFFLE_VERSIONS = ("v1", "v2")
# The image processor holds the same; a test compares them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LLM_TYPES = {
    "InternLM2ForCausalLM": "internlm2",
    "LlamaForCausalLM": "llama",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
}
# Bookkeeping and settings of the old code that would collide with what transformers does itself.
_DROPPED_FROM_LLM = (
    "auto_map",
    "_name_or_path",
    "_commit_hash",
    "transformers_version",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_autoset",
)
_DROPPED_FROM_VISION = (
    "model_type",
    "_attn_implementation",
    "attn_implementation",
    *_DROPPED_FROM_LLM[:4],
)
_NATIVE_READS_ROPE_PARAMETERS = hasattr(PretrainedConfig, "convert_rope_params_to_dict")


class InternVLChatConfig(PretrainedConfig):
    """Configuration of `InternVLChatModel`.

    A field that a config.json omits takes the default of the official class, as the official code
    would; every published checkpoint sets `ps_version` to "v2" itself.

    Args:
        vision_config: `InternVisionConfig` or its fields.
        llm_config: config of the language model or its fields; its `model_type`, or
            `architectures[0]`, names it.
        use_backbone_lora: rank of LoRA layers wrapped into the vision weights; 0 for merged
            weights.
        use_llm_lora: rank of LoRA layers wrapped into the language weights; 0 for merged weights.
        pad2square: pad images to a square before resizing (InternVL 1.1).
        select_layer: hidden state of the vision encoder to use; -1 is the last.
        force_image_size: side of a tile in pixels; that of the vision encoder when None.
        downsample_ratio: ratio of pixel unshuffle; 0.5 makes one visual token of 2 x 2 patches.
        template: name of the prompt template in conversation.py.
        dynamic_image_size: cut images into tiles.
        use_thumbnail: add the whole image as a last tile when there are several.
        ps_version: "v2", or "v1", which leaves the grid of visual tokens transposed.
        min_dynamic_patch: least number of tiles of an image.
        max_dynamic_patch: greatest number of tiles of an image, the thumbnail not counted.
        system_message: replaces the default system message of the template; None keeps it.
        img_context_token_id: id of `<IMG_CONTEXT>`; None in published files, see
            `InternVLChatModel`.
        image_mean: mean per channel of pixels in [0, 1], for tiles that come as uint8; ImageNet's
            when None, as in every published model.
        image_std: their standard deviation per channel.

    Raises:
        ValueError: a language model nobody knows, or an unknown ps_version.
    """

    model_type = "internvl_chat"
    is_composition = True
    sub_configs = {"vision_config": InternVisionConfig, "llm_config": AutoConfig}  # noqa: RUF012
    attribute_map = {"text_config": "llm_config"}  # noqa: RUF012

    def __init__(
        self,
        vision_config: dict[str, Any] | InternVisionConfig | None = None,
        llm_config: dict[str, Any] | PretrainedConfig | None = None,
        use_backbone_lora: int = 0,
        use_llm_lora: int = 0,
        pad2square: bool = False,
        select_layer: int = -1,
        force_image_size: int | None = None,
        downsample_ratio: float = 0.5,
        template: str | None = None,
        dynamic_image_size: bool = False,
        use_thumbnail: bool = False,
        ps_version: str = "v1",
        min_dynamic_patch: int = 1,
        max_dynamic_patch: int = 6,
        system_message: str | None = None,
        img_context_token_id: int | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        if ps_version not in PIXEL_SHUFFLE_VERSIONS:
            raise ValueError(
                f"ps_version is {ps_version!r}, expected one of {PIXEL_SHUFFLE_VERSIONS}; "
                "correct config.json."
            )
        if llm_config is None:
            llm_config = kwargs.pop("text_config", None)
        self.vision_config = _vision_config(vision_config)
        self.llm_config = _llm_config(llm_config)
        self.use_backbone_lora = use_backbone_lora
        self.use_llm_lora = use_llm_lora
        self.pad2square = pad2square
        self.select_layer = select_layer
        self.force_image_size = force_image_size
        self.downsample_ratio = downsample_ratio
        self.template = template
        self.dynamic_image_size = dynamic_image_size
        self.use_thumbnail = use_thumbnail
        self.ps_version = ps_version
        self.min_dynamic_patch = min_dynamic_patch
        self.max_dynamic_patch = max_dynamic_patch
        self.system_message = system_message
        self.img_context_token_id = img_context_token_id
        self.image_mean = list(IMAGENET_MEAN if image_mean is None else image_mean)
        self.image_std = list(IMAGENET_STD if image_std is None else image_std)
        # Trainers and DeepSpeed look for the width here; it is always that of the language model.
        kwargs["hidden_size"] = self.llm_config.hidden_size
        kwargs["tie_word_embeddings"] = bool(getattr(self.llm_config, "tie_word_embeddings", False))
        # Last, because it hands `attn_implementation` down to the two configs above.
        super().__init__(**kwargs)

    @property
    def tile_size(self) -> int:
        """Side of a tile in pixels."""
        return self.force_image_size or self.vision_config.image_size

    @property
    def num_image_token(self) -> int:
        """Visual tokens per tile: 256 for 448 px."""
        return int(
            (self.tile_size // self.vision_config.patch_size) ** 2 * self.downsample_ratio**2
        )

    def to_dict(self) -> dict[str, Any]:
        """Serialise, with the rotary settings in the form of transformers 5 and of transformers
        4."""
        output = super().to_dict()
        output["vision_config"] = self.vision_config.to_dict()
        output["llm_config"] = _with_legacy_rope(self.llm_config.to_dict())
        output["model_type"] = self.model_type
        for part in (output["vision_config"], output["llm_config"]):
            # 4.57 puts a torch dtype there when the model is quantised; JSON cannot hold it.
            part.pop("_pre_quantization_dtype", None)
        return output

    def to_diff_dict(self) -> dict[str, Any]:
        """As `to_dict`, without what equals transformers' own defaults at the top level; both
        parts whole."""
        whole = self.to_dict()
        difference = super().to_diff_dict()
        # Our own fields are all written: other tools read them and have other defaults.
        own = {name: value for name, value in whole.items() if name in _OWN_FIELDS}
        return {
            **difference,
            **own,
            "vision_config": whole["vision_config"],
            "llm_config": whole["llm_config"],
        }

    def __eq__(self, other: object) -> bool:
        """Compare every field (the inherited dataclass equality ignores ours on transformers 5)."""
        return same_settings(self, other)

    __hash__ = None


_OWN_FIELDS = frozenset(
    name for name in InternVLChatConfig.__init__.__annotations__ if name not in ("kwargs", "return")
)


def _vision_config(value: dict[str, Any] | InternVisionConfig | None) -> InternVisionConfig:
    if value is None:
        return InternVisionConfig()
    if not isinstance(value, dict):
        return value
    # Published files say "intern_vit_6b" for the 300M encoder too.
    return InternVisionConfig(**{k: v for k, v in value.items() if k not in _DROPPED_FROM_VISION})


def _llm_config(value: dict[str, Any] | PretrainedConfig | None) -> PretrainedConfig:
    if value is None:
        value = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    if not isinstance(value, dict):
        return value
    fields = copy.deepcopy({k: v for k, v in value.items() if k not in _DROPPED_FROM_LLM})
    architectures = fields.get("architectures") or [None]
    model_type = fields.pop("model_type", None) or LLM_TYPES.get(architectures[0])
    if not model_type:
        raise ValueError(
            "llm_config names no language model: model_type is missing and architectures is "
            f"{architectures}; "
            f"expected one of {sorted(LLM_TYPES)} in config.json."
        )
    if model_type == "internlm2":
        return InternLM2Config(**fields)
    _translate_rope(fields, model_type)
    return AutoConfig.for_model(model_type, **fields)


def _translate_rope(fields: dict[str, Any], model_type: str) -> None:
    """Bring rotary settings into the form that the installed transformers reads, in place."""
    scaling = fields.get("rope_scaling") or {}
    if model_type == "phi3" and scaling.get("type", scaling.get("rope_type")) == "su":
        # The name that LongRoPE had in early 2024, and has in InternVL2-4B.
        fields["rope_scaling"] = _legacy_scaling({**scaling, "rope_type": "longrope"}, model_type)
    parameters = fields.get("rope_parameters")
    if parameters and not _NATIVE_READS_ROPE_PARAMETERS:
        parameters = dict(fields.pop("rope_parameters"))
        fields["rope_theta"] = parameters.pop("rope_theta", fields.get("rope_theta", 10000.0))
        scaled = parameters.get("rope_type", "default") != "default"
        fields["rope_scaling"] = _legacy_scaling(parameters, model_type) if scaled else None


def _legacy_scaling(parameters: dict[str, Any], model_type: str) -> dict[str, Any]:
    kind = parameters.get("rope_type", parameters.get("type"))
    if model_type == "phi3":  # accepts exactly three keys
        return {
            "type": kind,
            "short_factor": parameters["short_factor"],
            "long_factor": parameters["long_factor"],
        }
    return {**parameters, "type": kind, "rope_type": kind}


def _with_legacy_rope(fields: dict[str, Any]) -> dict[str, Any]:
    """Add `rope_theta` and `rope_scaling` beside `rope_parameters`: without them 4.x falls back
    to theta 10000."""
    parameters = fields.get("rope_parameters")
    if isinstance(parameters, dict) and "rope_theta" in parameters:
        others = {key: value for key, value in parameters.items() if key != "rope_theta"}
        scaled = others.get("rope_type", "default") != "default"
        fields["rope_theta"] = parameters["rope_theta"]
        fields["rope_scaling"] = (
            _legacy_scaling(others, fields.get("model_type", "")) if scaled else None
        )
    return fields
