"""What was published, as data: the vision encoders of the report's Table 1, the chat models of its
Table 2, and the language models under them.

Not every value could be read in a published file. `inferred` names the fields that follow from the
base model, from the vocabulary rule or from memory instead; docs/checkpoints.md explains them. The
config.json beside real weights always wins: nothing here is consulted when they are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VisionEncoder:
    """An InternViT of Table 1.

    Attributes:
        name: its Hub name.
        large: 6B (RMSNorm, normalised queries and keys) or 300M (LayerNorm, biased qkv).
        layers: blocks.
        image_size: side of a tile in pixels.
        training: resolution and loss it was trained with, for the table in docs.
    """

    name: str
    large: bool
    layers: int
    image_size: int
    training: str

    def config(self) -> dict[str, Any]:
        """Every field of `InternVisionConfig`."""
        large = self.large
        return {
            "architectures": ["InternVisionModel"],
            "attention_dropout": 0.0,
            "drop_path_rate": 0.0,
            "dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_size": 3200 if large else 1024,
            "image_size": self.image_size,
            "initializer_factor": 0.1 if large else 1.0,
            "initializer_range": 1e-10 if large else 0.02,
            "intermediate_size": 12800 if large else 4096,
            "layer_norm_eps": 1e-6,
            "model_type": "intern_vit_6b",
            "norm_type": "rms_norm" if large else "layer_norm",
            "num_attention_heads": 25 if large else 16,
            "num_channels": 3,
            "num_hidden_layers": self.layers,
            "patch_size": 14,
            "qk_normalization": large,
            "qkv_bias": not large,
            "torch_dtype": "bfloat16",
            "use_flash_attn": True,
        }


@dataclass(frozen=True)
class Family:
    """What the language models of one tokenizer and one architecture share.

    Attributes:
        architecture: class of the language model.
        model_type: transformers' name of it.
        vocab_size: rows of the embeddings, which is `len(tokenizer)` with the nine InternVL tokens.
        img_context: id of `<IMG_CONTEXT>`.
        bos: id that starts a sequence.
        eos: id that ends one, in the config of the language model.
        pad: id of padding.
        stop: ids that end `generate` when nobody says otherwise; `chat` looks its own up.
        epsilon: of the norms.
        extra: further fields of the config.
    """

    architecture: str
    model_type: str
    vocab_size: int
    img_context: int
    bos: int
    eos: int
    pad: int
    stop: tuple[int, ...]
    epsilon: float
    extra: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class LanguageModel:
    """A language model of Table 2.

    Attributes:
        name: its Hub name, without the owner.
        family: tokenizer and architecture.
        shape: hidden size, MLP width, layers, query heads, key and value heads.
        positions: positions trained on.
        theta: base of the rotary embedding.
        scaling: factor of the dynamic NTK scaling; None for none.
        inferred: fields of its config that were not read in a published file.
    """

    name: str
    family: Family
    shape: tuple[int, int, int, int, int]
    positions: int = 32768
    theta: float = 1e6
    scaling: float | None = None
    inferred: tuple[str, ...] = ()

    def config(self) -> dict[str, Any]:
        """The `llm_config` of config.json."""
        hidden, width, layers, heads, kv_heads = self.shape
        family = self.family
        fields = {
            "architectures": [family.architecture],
            "attention_dropout": 0.0,
            "bos_token_id": family.bos,
            "eos_token_id": family.eos,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "initializer_range": 0.02,
            "intermediate_size": width,
            "max_position_embeddings": self.positions,
            "model_type": family.model_type,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": kv_heads,
            "pad_token_id": family.pad,
            "rms_norm_eps": family.epsilon,
            "rope_theta": self.theta,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": family.vocab_size,
            **dict(family.extra),
        }
        if "rope_scaling" not in self.inferred:  # an unknown one is left out, not guessed
            fields["rope_scaling"] = self.scaling and {"type": "dynamic", "factor": self.scaling}
        return fields


@dataclass(frozen=True)
class ChatModel:
    """A chat model of Table 2, or one that shares its layout.

    Attributes:
        name: its Hub name.
        vision: the encoder.
        language: the language model.
        template: name of the prompt template in conversation.py.
    """

    name: str
    vision: VisionEncoder
    language: LanguageModel
    template: str

    @property
    def inferred(self) -> tuple[str, ...]:
        """Fields that were not read in a published file, as paths in config.json."""
        fields = [f"llm_config.{field}" for field in self.language.inferred]
        if "vocab_size" in self.language.inferred:  # the id follows from it
            fields.append("img_context_token_id")
        return tuple(fields)


# ------------------------------------------------------------------------------ vision encoders
VIT_6B_V15 = VisionEncoder("InternViT-6B-448px-V1-5", True, 45, 448, "dynamic 448, NTP")
VIT_6B_V25 = VisionEncoder("InternViT-6B-448px-V2_5", True, 45, 448, "dynamic 448, NTP")
VIT_300M = VisionEncoder("InternViT-300M-448px", False, 24, 448, "dynamic 448, NTP")
VIT_300M_V25 = VisionEncoder("InternViT-300M-448px-V2_5", False, 24, 448, "dynamic 448, NTP")
VISION_ENCODERS = (
    VisionEncoder("InternViT-6B-224px", True, 48, 224, "fixed 224, CLIP"),
    VisionEncoder("InternViT-6B-448px-V1-0", True, 48, 448, "fixed 448, NTP"),
    VisionEncoder("InternViT-6B-448px-V1-2", True, 45, 448, "fixed 448, NTP"),
    VIT_6B_V15,
    VIT_6B_V25,
    VIT_300M,
    VIT_300M_V25,
)

# ------------------------------------------------------------------------------ language models
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
_INTERNLM2 = Family(
    "InternLM2ForCausalLM",
    "internlm2",
    vocab_size=92553,
    img_context=92546,
    bos=1,
    eos=2,
    pad=2,
    stop=(92542, 92543),
    epsilon=1e-5,
    extra=(("bias", False),),
)
_QWEN2_FIELDS = {
    "bos": 151643,
    "eos": 151645,
    "pad": 151643,
    "stop": (151645, 151643),
    "epsilon": 1e-6,
    "extra": (("use_sliding_window", False),),
}
_QWEN2 = Family("Qwen2ForCausalLM", "qwen2", 151655, 151648, **_QWEN2_FIELDS)
_QWEN25 = Family("Qwen2ForCausalLM", "qwen2", 151674, 151667, **_QWEN2_FIELDS)
_PHI3 = Family(
    "Phi3ForCausalLM",
    "phi3",
    vocab_size=32020,
    img_context=32013,
    bos=1,
    eos=32000,
    pad=32000,
    stop=(32007, 32000),
    epsilon=1e-5,
    extra=(("original_max_position_embeddings", 4096),),
)
_YI = Family(
    "LlamaForCausalLM",
    "llama",
    vocab_size=64009,
    img_context=64002,
    bos=1,
    eos=2,
    pad=0,
    stop=(7, 2),
    epsilon=1e-5,
)
_LLAMA3 = Family(
    "LlamaForCausalLM",
    "llama",
    vocab_size=128265,
    img_context=128258,
    bos=128000,
    eos=128003,
    pad=128001,
    stop=(128003, 128001),
    epsilon=1e-5,
)

_INTERNLM2_1_8B = (2048, 8192, 24, 16, 8)
_INTERNLM2_7B = (4096, 14336, 32, 32, 8)
_INTERNLM2_20B = (6144, 16384, 48, 48, 8)
_QWEN_0_5B = (896, 4864, 24, 14, 2)
_DIMENSIONS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)

_SETTINGS = ("max_position_embeddings", "rope_theta", "rms_norm_eps")

_INTERNLM2_CHAT_20B = LanguageModel("internlm2-chat-20b", _INTERNLM2, _INTERNLM2_20B, scaling=3.0)
_INTERNLM25_CHAT_7B = LanguageModel("internlm2_5-7b-chat", _INTERNLM2, _INTERNLM2_7B, scaling=2.0)
_PHI3_MINI = LanguageModel(
    "Phi-3-mini-128k-instruct",
    _PHI3,
    (3072, 8192, 32, 32, 32),
    positions=131072,
    theta=1e4,
    inferred=(
        *_DIMENSIONS,
        *_SPECIAL,
        "vocab_size",
        *_SETTINGS,
        "rope_scaling",
    ),
)

# ------------------------------------------------------------------------------ chat models
CHAT_MODELS = (
    ChatModel(
        "InternVL2_5-1B",
        VIT_300M_V25,
        LanguageModel(
            "Qwen2.5-0.5B-Instruct",
            _QWEN25,
            _QWEN_0_5B,
            inferred=_SETTINGS,
        ),
        "internvl2_5",
    ),
    ChatModel(
        "InternVL2_5-2B",
        VIT_300M_V25,
        LanguageModel("internlm2_5-1_8b-chat", _INTERNLM2, _INTERNLM2_1_8B, scaling=2.0),
        "internvl2_5",
    ),
    ChatModel(
        "InternVL2_5-4B",
        VIT_300M_V25,
        LanguageModel("Qwen2.5-3B-Instruct", _QWEN25, (2048, 11008, 36, 16, 2)),
        "internvl2_5",
    ),
    ChatModel("InternVL2_5-8B", VIT_300M_V25, _INTERNLM25_CHAT_7B, "internvl2_5"),
    ChatModel(
        "InternVL2_5-26B",
        VIT_6B_V25,
        LanguageModel(
            "internlm2_5-20b-chat",
            _INTERNLM2,
            _INTERNLM2_20B,
            inferred=(*_DIMENSIONS, *_SETTINGS, "rope_scaling"),
        ),
        "internvl2_5",
    ),
    ChatModel(
        "InternVL2_5-38B",
        VIT_6B_V25,
        LanguageModel(
            "Qwen2.5-32B-Instruct",
            _QWEN25,
            (5120, 27648, 64, 40, 8),
            inferred=(*_DIMENSIONS, *_SETTINGS),
        ),
        "internvl2_5",
    ),
    ChatModel(
        "InternVL2_5-78B",
        VIT_6B_V25,
        LanguageModel("Qwen2.5-72B-Instruct", _QWEN25, (8192, 29568, 80, 64, 8)),
        "internvl2_5",
    ),
    ChatModel(
        "InternVL2-1B",
        VIT_300M,
        LanguageModel("Qwen2-0.5B-Instruct", _QWEN2, _QWEN_0_5B, inferred=("vocab_size",)),
        "Hermes-2",
    ),
    ChatModel(
        "InternVL2-2B",
        VIT_300M,
        LanguageModel("internlm2-chat-1_8b", _INTERNLM2, _INTERNLM2_1_8B, scaling=2.0),
        "internlm2-chat",
    ),
    ChatModel("InternVL2-4B", VIT_300M, _PHI3_MINI, "phi3-chat"),
    ChatModel("InternVL2-8B", VIT_300M, _INTERNLM25_CHAT_7B, "internlm2-chat"),
    ChatModel("InternVL2-26B", VIT_6B_V15, _INTERNLM2_CHAT_20B, "internlm2-chat"),
    ChatModel(
        "InternVL2-40B",
        VIT_6B_V15,
        LanguageModel(
            "Nous-Hermes-2-Yi-34B",
            _YI,
            (7168, 20480, 60, 56, 8),
            positions=4096,
            theta=5e6,
            inferred=(
                *_DIMENSIONS,
                *_SPECIAL,
                "vocab_size",
                *_SETTINGS,
            ),
        ),
        "Hermes-2",
    ),
    ChatModel(
        "InternVL2-Llama3-76B",
        VIT_6B_V15,
        LanguageModel(
            "Hermes-2-Theta-Llama-3-70B",
            _LLAMA3,
            (8192, 28672, 80, 64, 8),
            positions=8192,
            theta=5e5,
            inferred=_SPECIAL,
        ),
        "internlm2-chat",
    ),
    ChatModel("InternVL-Chat-V1-5", VIT_6B_V15, _INTERNLM2_CHAT_20B, "internlm2-chat"),
    ChatModel(
        "Mini-InternVL-Chat-2B-V1-5",
        VIT_300M,
        LanguageModel("internlm2-chat-1_8b", _INTERNLM2, _INTERNLM2_1_8B, scaling=2.0),
        "internlm2-chat",
    ),
    ChatModel("Mini-InternVL-Chat-4B-V1-5", VIT_300M, _PHI3_MINI, "phi3-chat"),
)
# The checkpoint whose Hub repository the root of this repository is.
ROOT_MODEL = "InternVL2_5-78B"
