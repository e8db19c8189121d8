"""Which parameter of each server a stored tensor ends up in, and which parameters it builds.

Releases and files as in readers.py, and for the weights:
* vLLM: hf_to_vllm_mapper of models/{internlm2,qwen2,llama}.py, packed_modules_mapping of phi3.py,
  parameters of intern_vit.py. `PARAMETERS["vllm"]` was compared with `named_parameters()` of vLLM
  0.33.0 itself, built on the CPU from exported folders of the golden checkpoints and the demo.
* SGLang: InternVLChatModel.load_weights.
* LMDeploy: InternVLChatModel.load_weights, and load_weights of qwen2.py, internlm2.py, phi3.py,
  llama.py in lmdeploy/pytorch/models; map_legacy_internvl_keys of turbomind/models/internvl.py.
* llama.cpp: filter_tensors and modify_tensors of conversion/internvl.py, TextModel.filter_tensors,
  and the names in gguf-py/gguf/tensor_mapping.py.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

Shards = dict[str, set[object]]

_QKV = {f".{part}_proj.": (".qkv_proj.", part) for part in "qkv"}
_GATED = {".gate_proj.": (".gate_up_proj.", 0), ".up_proj.": (".gate_up_proj.", 1)}
_INTERNLM2 = {".w1.": (".gate_up_proj.", 0), ".w3.": (".gate_up_proj.", 1)}
# Part of a name -> what stands there in the server, and the shard that the tensor becomes.
STACKED = {
    "Qwen2ForCausalLM": {**_QKV, **_GATED},
    "LlamaForCausalLM": {**_QKV, **_GATED},
    "InternLM2ForCausalLM": _INTERNLM2,
    "Phi3ForCausalLM": {},
}
# What a stacked parameter has to be made of. Fused projections come whole, or are split on loading.
COMPLETE = {".qkv_proj.": {"q", "k", "v"}, ".gate_up_proj.": {0, 1}}

_VISION_LAYER = [
    "attn.qkv.weight",
    "attn.proj.weight",
    "attn.proj.bias",
    "norm1.weight",
    "norm2.weight",
    "ls1",
    "ls2",
    "mlp.fc1.weight",
    "mlp.fc1.bias",
    "mlp.fc2.weight",
    "mlp.fc2.bias",
]
_VISION = [
    "vision_model.embeddings.class_embedding",
    "vision_model.embeddings.position_embedding",
    "vision_model.embeddings.patch_embedding.weight",
    "vision_model.embeddings.patch_embedding.bias",
    "mlp1.0.weight",
    "mlp1.0.bias",
    "mlp1.1.weight",
    "mlp1.1.bias",
    "mlp1.3.weight",
    "mlp1.3.bias",
]
_LLAMA_LAYER = [
    "self_attn.qkv_proj.weight",
    "self_attn.o_proj.weight",
    "mlp.gate_up_proj.weight",
    "mlp.down_proj.weight",
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
]
_LAYER = {
    "Qwen2ForCausalLM": [*_LLAMA_LAYER, "self_attn.qkv_proj.bias"],
    "LlamaForCausalLM": _LLAMA_LAYER,
    "Phi3ForCausalLM": _LLAMA_LAYER,
    "InternLM2ForCausalLM": [
        "attention.wqkv.weight",
        "attention.wo.weight",
        "feed_forward.gate_up_proj.weight",
        "feed_forward.w2.weight",
        "attention_norm.weight",
        "ffn_norm.weight",
    ],
}


def parameters(config: object) -> set[str]:
    """The parameters that vLLM builds; LMDeploy's PyTorch engine and SGLang name them alike, but
    for the attention of SGLang's vision encoder, see `sglang_name`."""
    vision, text = config.vision_config, config.llm_config
    per_layer = list(_VISION_LAYER)
    per_layer += ["attn.qkv.bias"] if vision.qkv_bias else []
    per_layer += ["attn.q_norm.weight", "attn.k_norm.weight"] if vision.qk_normalization else []
    per_layer += ["norm1.bias", "norm2.bias"] if vision.norm_type == "layer_norm" else []
    found = set(_VISION)
    for number in range(vision.num_hidden_layers):
        found |= {f"vision_model.encoder.layers.{number}.{name}" for name in per_layer}
    name = text.architectures[0]
    for number in range(text.num_hidden_layers):
        found |= {f"language_model.model.layers.{number}.{part}" for part in _LAYER[name]}
    embedding, head = (
        ("tok_embeddings", "output") if name == "InternLM2ForCausalLM" else
        ("embed_tokens", "lm_head")
    )  # fmt: skip
    found |= {f"language_model.model.{part}.weight" for part in (embedding, "norm")}
    if not text.tie_word_embeddings:
        found.add(f"language_model.{head}.weight")
    return found


def consumed(names: Iterable[str], language_model: str) -> Shards:
    """Where the stored tensors end up: parameter -> the shards of it that come."""
    found: Shards = defaultdict(set)
    for name in names:
        for part, (target, shard) in STACKED[language_model].items():
            if part in name and name.startswith("language_model."):
                found[name.replace(part, target)].add(shard)
                break
        else:
            found[name].add("whole")
    return dict(found)


def incomplete(shards: Shards) -> list[str]:
    """Parameters of which a part is missing."""
    faults = []
    for name, parts in shards.items():
        wanted = next((whole for part, whole in COMPLETE.items() if part in name), {"whole"})
        if parts not in ({"whole"}, wanted):
            faults.append(name)
    return faults


def sglang_name(name: str) -> str:
    """SGLang wraps the attention of the vision encoder once more."""
    if "vision_model" not in name:
        return name
    return name.replace("attn.", "attn.attn.").replace("qkv.", "qkv_proj.")


# SGLang looks for these anywhere in a name, in the vision encoder too: none may occur there.
SGLANG_ANYWHERE = {
    "Qwen2ForCausalLM": ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"),
    "InternLM2ForCausalLM": ("w1", "w3"),
}

_TURBOMIND = {
    r"vision_model\.embeddings\.class_embedding": "embeddings.cls_token",
    r"vision_model\.embeddings\.position_embedding": "embeddings.position_embeddings",
    r"vision_model\.embeddings\.patch_embedding\.(weight|bias)": "embeddings.projection",
    r"vision_model\.encoder\.layers\.\d+\.ls[12]": "lambda",
    r"vision_model\.encoder\.layers\.\d+\.norm[12]\.(weight|bias)": "layernorm",
    r"vision_model\.encoder\.layers\.\d+\.attn\.(qkv|proj|q_norm|k_norm)\.(weight|bias)": "attn",
    r"vision_model\.encoder\.layers\.\d+\.mlp\.fc[12]\.(weight|bias)": "mlp",
    r"mlp1\.[013]\.(weight|bias)": "multi_modal_projector",
}


def turbomind_knows(name: str) -> bool:
    """Whether a tensor outside the language model is renamed for TurboMind's vision encoder."""
    return any(re.fullmatch(pattern, name) for pattern in _TURBOMIND)


_GGUF_LLAMA = r"model\.(embed_tokens|norm)\.weight|lm_head\.weight|model\.layers\.\d+\.(" + (
    r"input_layernorm|post_attention_layernorm|self_attn\.(q_proj|k_proj|v_proj|o_proj|qkv_proj)|"
    r"mlp\.(gate_proj|up_proj|down_proj|gate_up_proj))\.(weight|bias)"
)
_GGUF_INTERNLM2 = r"model\.(tok_embeddings|norm)\.weight|output\.weight|model\.layers\.\d+\.(" + (
    r"attention_norm|ffn_norm|attention\.(wqkv|wo)|feed_forward\.w[123])\.weight"
)


def gguf_part(name: str, language_model: str) -> str:
    """Which of the two files of llama.cpp a tensor goes to.

    Raises:
        ValueError: "Can not map tensor", as the converter says.
    """
    if name.startswith("language_model."):
        pattern = _GGUF_INTERNLM2 if language_model == "InternLM2ForCausalLM" else _GGUF_LLAMA
        if re.fullmatch(pattern, name.removeprefix("language_model.")):
            return "text"
    elif name.startswith(("vision_model", "mlp")) and turbomind_knows(name):
        return "mmproj"
    raise ValueError(f"Can not map tensor {name!r}")
