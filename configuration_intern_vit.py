"""Configuration of InternViT, the vision encoder of InternVL (report section 2.2, Table 1).

One class describes both encoders: InternViT-300M (LayerNorm, biased qkv) and InternViT-6B (RMSNorm,
normalised queries and keys, unbiased qkv). The defaults are those of the 6B model, because
published config.json files omit fields whose value is the 6B default.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

NORM_TYPES = ("rms_norm", "layer_norm")


def same_settings(first: PretrainedConfig, second: object) -> bool:
    """Whether two configs say the same, wherever they were read from.

    By class name, because each Auto class of transformers 5 imports its own copy of this file.
    """
    if type(first).__name__ != type(second).__name__:
        return False
    ours, theirs = first.to_dict(), second.to_dict()
    for settings in (ours, theirs):
        settings.pop("_name_or_path", None)
    return ours == theirs


class InternVisionConfig(PretrainedConfig):
    """Hyper-parameters of `InternVisionModel`.

    Args:
        num_channels: colour channels of the input.
        patch_size: side of a patch in pixels.
        image_size: side of a tile in pixels; fixes the length of the position embedding.
        qkv_bias: whether the fused query-key-value projection has a bias.
        hidden_size: width C of the encoder.
        num_attention_heads: heads; must divide `hidden_size`.
        intermediate_size: width of the MLP.
        qk_normalization: RMSNorm over all heads of the queries and of the keys before attention.
        num_hidden_layers: number of blocks L.
        use_flash_attn: accepted because published configs carry it; attention is chosen with
            `attn_implementation`, as everywhere in transformers.
        hidden_act: activation of the MLP.
        norm_type: "rms_norm" or "layer_norm".
        layer_norm_eps: epsilon of every norm.
        dropout: dropout after the attention and MLP projections.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        attention_dropout: dropout of the attention weights.
        initializer_range: standard deviation of new linear weights.
        initializer_factor: initial value of the layer scales.

    Raises:
        ValueError: a value that no InternViT can have (unknown norm, heads that do not divide the
            width).
    """

    model_type = "intern_vit_6b"
    base_config_key = "vision_config"
    # Attention stays replicated: 25 heads do not divide over 2, 4 or 8 devices and QK-norm spans
    # all heads.
    base_model_tp_plan = {  # noqa: RUF012
        "encoder.layers.*.mlp.fc1": "colwise",
        "encoder.layers.*.mlp.fc2": "rowwise",
    }
    base_model_fsdp_plan = {  # noqa: RUF012
        "embeddings": "free_full_weight",
        "encoder.layers.*": "free_full_weight",
    }

    def __init__(
        self,
        num_channels: int = 3,
        patch_size: int = 14,
        image_size: int = 224,
        qkv_bias: bool = False,
        hidden_size: int = 3200,
        num_attention_heads: int = 25,
        intermediate_size: int = 12800,
        qk_normalization: bool = True,
        num_hidden_layers: int = 48,
        use_flash_attn: bool = True,
        hidden_act: str = "gelu",
        norm_type: str = "rms_norm",
        layer_norm_eps: float = 1e-6,
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        initializer_factor: float = 0.1,
        **kwargs: Any,
    ) -> None:
        if norm_type not in NORM_TYPES:
            raise ValueError(
                f"vision_config.norm_type is {norm_type!r}, expected one of {NORM_TYPES}; "
                "correct config.json."
            )
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"vision_config.hidden_size {hidden_size} is not divisible by num_attention_heads "
                f"{num_attention_heads}; correct config.json."
            )
        self.num_channels = num_channels
        self.patch_size = patch_size
        self.image_size = image_size
        self.qkv_bias = qkv_bias
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.qk_normalization = qk_normalization
        self.num_hidden_layers = num_hidden_layers
        self.use_flash_attn = use_flash_attn
        self.hidden_act = hidden_act
        self.norm_type = norm_type
        self.layer_norm_eps = layer_norm_eps
        self.dropout = dropout
        self.drop_path_rate = drop_path_rate
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        self.initializer_factor = initializer_factor
        super().__init__(**kwargs)

    def __eq__(self, other: object) -> bool:
        """Compare every field (the inherited dataclass equality ignores ours on transformers 5)."""
        return same_settings(self, other)

    __hash__ = None
