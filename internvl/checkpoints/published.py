"""What was published, as data: the vision encoders of the report's Table 1, the chat models of its
Table 2, and the language models under them.

Not every value could be read in a published file. `inferred` names the fields that follow from the
base model, from the vocabulary rule or from memory instead; docs/checkpoints.md explains them. The
config.json beside real weights always wins: nothing here is consulted when they are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
        factors: per-frequency factors below and beyond the original length ("su"); None for none.
        inferred: fields of its config that were not read in a published file.
    """

    name: str
    family: Family
    shape: tuple[int, int, int, int, int]
    positions: int = 32768
    theta: float = 1e6
    scaling: float | None = None
    factors: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    inferred: tuple[str, ...] = ()

    def config(self) -> dict[str, Any]:
        """The `llm_config` of config.json."""
        hidden, width, layers, heads, kv_heads = self.shape
        family = self.family
        return {
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
            "rope_scaling": self.rope_scaling(),
            "rope_theta": self.theta,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": family.vocab_size,
            **dict(family.extra),
        }

    def rope_scaling(self) -> dict[str, Any] | None:
        """The `rope_scaling` of `llm_config`, in the form of the published files."""
        if self.factors is not None:
            short, long = map(list, self.factors)
            return {"type": "su", "short_factor": short, "long_factor": long}
        return None if self.scaling is None else {"type": "dynamic", "factor": self.scaling}


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
_QWEN2 = Family(
    "Qwen2ForCausalLM",
    "qwen2",
    vocab_size=151655,
    img_context=151648,
    bos=151643,
    eos=151645,
    pad=151643,
    stop=(151645, 151643),
    epsilon=1e-6,
    extra=(("use_sliding_window", False),),
)
_QWEN25 = replace(_QWEN2, vocab_size=151674, img_context=151667)
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
# Of Phi-3-mini-128k-instruct as released in April 2024. A later revision has other lists and calls
# them "longrope", a type that the official InternVL code refuses.
# fmt: off
_PHI3_SHORT = (
    1.05, 1.05, 1.05, 1.1, 1.1, 1.1500000000000001, 1.2000000000000002, 1.2500000000000002,
    1.3000000000000003, 1.3500000000000003, 1.5000000000000004, 2.000000000000001,
    2.000000000000001, 2.000000000000001, 2.000000000000001, 2.000000000000001,
    2.000000000000001, 2.000000000000001, 2.000000000000001, 2.000000000000001,
    2.000000000000001, 2.000000000000001, 2.000000000000001, 2.000000000000001,
    2.000000000000001, 2.000000000000001, 2.000000000000001, 2.000000000000001,
    2.000000000000001, 2.000000000000001, 2.000000000000001, 2.000000000000001,
    2.0500000000000007, 2.0500000000000007, 2.0500000000000007, 2.1000000000000005,
    2.1000000000000005, 2.1000000000000005, 2.1500000000000004, 2.1500000000000004,
    2.3499999999999996, 2.549999999999999, 2.5999999999999988, 2.5999999999999988,
    2.7499999999999982, 2.849999999999998, 2.849999999999998, 2.9499999999999975,
)
_PHI3_LONG = (
    1.0299999713897705, 1.0499999523162842, 1.0499999523162842, 1.0799999237060547,
    1.2299998998641968, 1.2299998998641968, 1.2999999523162842, 1.4499999284744263,
    1.5999999046325684, 1.6499998569488525, 1.8999998569488525, 2.859999895095825,
    3.68999981880188, 5.419999599456787, 5.489999771118164, 5.489999771118164, 9.09000015258789,
    11.579999923706055, 15.65999984741211, 15.769999504089355, 15.789999961853027,
    18.360000610351562, 21.989999771118164, 23.079999923706055, 30.009998321533203,
    32.35000228881836, 32.590003967285156, 35.56000518798828, 39.95000457763672,
    53.840003967285156, 56.20000457763672, 57.95000457763672, 59.29000473022461,
    59.77000427246094, 59.920005798339844, 61.190006256103516, 61.96000671386719,
    62.50000762939453, 63.3700065612793, 63.48000717163086, 63.48000717163086,
    63.66000747680664, 63.850006103515625, 64.08000946044922, 64.760009765625,
    64.80001068115234, 64.81001281738281, 64.81001281738281,
)
# fmt: on
_PHI3_MINI = LanguageModel(
    "Phi-3-mini-128k-instruct",
    _PHI3,
    (3072, 8192, 32, 32, 32),
    positions=131072,
    theta=1e4,
    factors=(_PHI3_SHORT, _PHI3_LONG),
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
            theta=5e7,
            scaling=2.5,
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
