"""Write the trained weights as a Hub folder: sharded safetensors, configs, tokenizer, processor
files."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from internvl import hub
from internvl.training.demo.network import DemoShape

logger = logging.getLogger(__name__)

SHARDS = 3
SHARD_LIMIT = 10_000_000  # bytes: no file of the repository is larger
_REMOTE = "modeling_internvl_chat.InternVLChatModel"


def chat_config(shape: DemoShape, tokens: Mapping[str, int]) -> dict:
    """config.json of the demo.

    Args:
        shape: Sizes of the model.
        tokens: Ids of ``<|endoftext|>`` and ``<|im_end|>``.
    """
    vision = {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
        "dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": shape.vision_width,
        "image_size": shape.tile,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 4 * shape.vision_width,
        "layer_norm_eps": 1e-6,
        "norm_type": "layer_norm",
        "num_attention_heads": shape.vision_heads,
        "num_channels": 3,
        "num_hidden_layers": shape.vision_layers,
        "patch_size": shape.patch,
        "qk_normalization": False,
        "qkv_bias": True,
        "torch_dtype": "bfloat16",
        "use_flash_attn": True,
    }
    language = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        "bos_token_id": tokens["<|endoftext|>"],
        "eos_token_id": tokens["<|im_end|>"],
        "hidden_act": "silu",
        "hidden_size": shape.width,
        "initializer_range": 0.02,
        "intermediate_size": shape.mlp,
        "max_position_embeddings": 4096,
        "max_window_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pad_token_id": tokens["<|endoftext|>"],
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocabulary,
    }
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {
            "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
            "AutoModel": _REMOTE,
            "AutoModelForCausalLM": _REMOTE,
            "AutoModelForImageTextToText": _REMOTE,
            "AutoModelForMultimodalLM": _REMOTE,
        },
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": shape.tile,
        "hidden_size": shape.width,
        "llm_config": language,
        "max_dynamic_patch": 1,
        "min_dynamic_patch": 1,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": vision,
    }


def published_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """bf16 weights under the published names; the tied output layer is written once, as the
    embedding."""
    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in state.items()}


def write_shards(state: Mapping[str, Tensor], folder: Path, shards: int = SHARDS) -> None:
    """Write ``model-0000k-of-0000n.safetensors`` of about equal size, and the index.

    Raises:
        ValueError: a shard would exceed the repository's file limit.
    """
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in state.items()}
    total, seen = sum(sizes.values()), 0
    parts: list[dict[str, Tensor]] = [{} for _ in range(shards)]
    for name, tensor in state.items():
        parts[min(shards - 1, seen * shards // total)][name] = tensor
        seen += sizes[name]
    for old in folder.glob("model-*.safetensors"):
        old.unlink()
    weight_map = {}
    for index, part in enumerate(parts):
        size = sum(sizes[name] for name in part)
        if size > SHARD_LIMIT:
            raise ValueError(f"shard of {size} bytes, expected <= {SHARD_LIMIT}; use more shards")
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors makes files that only their owner can read
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / "model.safetensors.index.json", index)


def release(
    checkpoint: Path, folder: Path, *, averaged: bool = True, shape: DemoShape | None = None
) -> None:
    """Turn ``qa.pt`` into the Hub folder ``folder``, whose tokenizer files are already there.

    Args:
        checkpoint: What the training wrote.
        folder: Target, with the tokenizer files.
        averaged: Take the moving average of the weights instead of the last ones.
        shape: Sizes of the model; the demo's by default.
    """
    saved = torch.load(checkpoint, weights_only=True)
    state = saved["smooth"]
    if not averaged:
        prefix = "model."
        state = {
            key.removeprefix(prefix): value
            for key, value in saved["model"].items()
            if key.startswith(prefix)
        }
    shape = shape or DemoShape(vocabulary=len(state["language_model.model.embed_tokens.weight"]))
    added = json.loads((folder / "added_tokens.json").read_text("utf-8"))
    write_shards(published_state(state), folder)
    _write_json(folder / "config.json", chat_config(shape, added))
    generation = {
        "bos_token_id": added["<|endoftext|>"],
        "eos_token_id": [added["<|im_end|>"], added["<|endoftext|>"]],
        "pad_token_id": added["<|endoftext|>"],
        "use_cache": True,
    }
    _write_json(folder / "generation_config.json", generation)
    write_processor_files(folder, shape)
    logger.info("released step %d of %s into %s", saved["step"], checkpoint, folder)


def write_processor_files(folder: Path, shape: DemoShape) -> None:
    """The processor's JSON files, from the repository's own with the demo's tile size, and the
    template."""
    conversation = hub.ring0("conversation")
    template = conversation.chat_template(conversation.get_conv_template("internvl2_5"))
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    for name in (
        "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"
    ):  # fmt: skip
        root = hub.REPOSITORY / name
        if root.exists():
            fields = json.loads(root.read_text("utf-8"))
            _write_json(folder / name, resized(fields, shape))


def resized(fields: dict, shape: DemoShape) -> dict:
    """Processor settings of the 448 px models turned into the demo's: tile size, tokens, one
    tile."""
    out = {}
    for key, value in fields.items():
        if isinstance(value, dict) and key != "auto_map":
            out[key] = resized(value, shape)
        elif key in ("height", "width"):
            out[key] = shape.tile if value == 448 else value
        elif key == "image_seq_length":
            out[key] = shape.visual_tokens
        elif key == "max_tiles":
            out[key] = 1
        elif key == "num_frames":
            out[key] = 4
        else:
            out[key] = value
    return out


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
