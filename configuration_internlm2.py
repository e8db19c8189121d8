"""Configuration of InternLM2 and InternLM2.5, the language models of the 2B, 8B and 26B
checkpoints."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from .configuration_intern_vit import same_settings

ROPE_TYPES = ("dynamic", "linear")


class InternLM2Config(PretrainedConfig):
    """Hyper-parameters of `InternLM2ForCausalLM`.

    Args:
        vocab_size: rows of the embedding and of the output layer.
        hidden_size: width D.
        intermediate_size: width of the gated MLP.
        num_hidden_layers: number of layers.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads; `num_attention_heads` when None.
        hidden_act: activation of the gate.
        max_position_embeddings: positions trained on; dynamic NTK scaling starts beyond them.
        initializer_range: standard deviation of new weights.
        rms_norm_eps: epsilon of the norms.
        use_cache: whether generation keeps keys and values.
        pad_token_id: padding id.
        bos_token_id: id that starts a sequence.
        eos_token_id: id, or ids, that end one.
        tie_word_embeddings: must be False; no InternLM2 checkpoint ties them.
        bias: whether the attention projections have a bias.
        rope_theta: base of the rotary embedding.
        rope_scaling: None, or {"type": "dynamic" | "linear", "factor": >= 1}.
        attention_dropout: dropout of the attention weights.
        **kwargs: what transformers takes; `rope_parameters`, the form in which transformers 5
            writes the rotary settings, is understood too.

    Raises:
        ValueError: rotary settings that the official code cannot have written, or tied embeddings.
    """

    model_type = "internlm2"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012
    # Rows of wqkv are grouped by key head, so a column split keeps whole groups together.
    # transformers plans for embeddings by the name `embed_tokens`; ours has another one.
    base_model_tp_plan = {  # noqa: RUF012
        "tok_embeddings": "embedding_rowwise",
        "layers.*.attention.wqkv": "colwise",
        "layers.*.attention.wo": "rowwise",
        "layers.*.feed_forward.w1": "colwise",
        "layers.*.feed_forward.w3": "colwise",
        "layers.*.feed_forward.w2": "rowwise",
    }
    base_model_fsdp_plan = {  # noqa: RUF012
        "tok_embeddings": "free_full_weight",
        "layers.*": "free_full_weight",
        "norm": "keep_full_weight",
    }
    # Shadows the property of transformers 5, which would turn the published form into another one.
    rope_scaling = None

    def __init__(
        self,
        vocab_size: int = 103168,
        hidden_size: int = 4096,
        intermediate_size: int = 11008,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        num_key_value_heads: int | None = None,
        hidden_act: str = "silu",
        max_position_embeddings: int = 2048,
        initializer_range: float = 0.02,
        rms_norm_eps: float = 1e-6,
        use_cache: bool = True,
        pad_token_id: int | None = 0,
        bos_token_id: int | None = 1,
        eos_token_id: int | list[int] | None = 2,
        tie_word_embeddings: bool = False,
        bias: bool = True,
        rope_theta: float = 10000,
        rope_scaling: dict[str, Any] | None = None,
        attention_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if tie_word_embeddings:
            raise ValueError(
                "tie_word_embeddings is True, but InternLM2 has a separate output layer; set it "
                "to False."
            )
        parameters = kwargs.pop("rope_parameters", None)
        if parameters is not None and rope_scaling is None:
            rope_theta = parameters.get("rope_theta", rope_theta)
            kind = parameters.get("rope_type", "default")
            rope_scaling = (
                None if kind == "default" else {"type": kind, "factor": parameters.get("factor")}
            )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = (
            num_attention_heads if num_key_value_heads is None else num_key_value_heads
        )
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.bias = bias
        self.rope_theta = rope_theta
        self.rope_scaling = _checked_scaling(rope_scaling)
        self.attention_dropout = attention_dropout
        super().__init__(
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            tie_word_embeddings=False,
            **kwargs,
        )

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_attention_heads

    def __eq__(self, other: object) -> bool:
        """Compare every field (the inherited dataclass equality ignores ours on transformers 5)."""
        return same_settings(self, other)

    __hash__ = None


def _checked_scaling(scaling: dict[str, Any] | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    kind = scaling.get("type", scaling.get("rope_type"))
    factor = scaling.get("factor")
    if kind == "default":
        return None
    if kind not in ROPE_TYPES or not isinstance(factor, (int, float)) or factor < 1:
        raise ValueError(
            f"rope_scaling is {scaling}, expected None or "
            f"{{'type': one of {ROPE_TYPES}, 'factor': a number >= 1}}; "
            "correct llm_config in config.json."
        )
    return {"type": kind, "factor": float(factor)}
