"""transformers' own InternVL, which shares no code with ours, gives the same logits."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig

from tests import support

# Ours -> transformers', in the order of application. The official converter forgets q_norm, k_norm.
RENAMES = [
    (r"^mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "model.multi_modal_projector.linear_2."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^vision_model\.embeddings\.class_embedding", "model.vision_tower.embeddings.cls_token"),
    (
        r"^vision_model\.embeddings\.patch_embedding\.",
        "model.vision_tower.embeddings.patch_embeddings.projection.",
    ),
    (
        r"^vision_model\.embeddings\.position_embedding",
        "model.vision_tower.embeddings.position_embeddings",
    ),
    (r"^vision_model\.encoder\.layers\.", "model.vision_tower.encoder.layer."),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.", ".attention."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.ls1$", ".lambda_1"),
    (r"\.ls2$", ".lambda_2"),
]


def native_state(state):
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in RENAMES:
            key = re.sub(pattern, replacement, key)
        if ".attention.qkv." in key:
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                renamed[key.replace(".qkv.", f".{part}_proj.")] = rows
        else:
            renamed[key] = value
    return renamed


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2", "qwen2_vit6b"])
def test_same_logits(name):
    ours = support.load(name)
    vision = ours.config.vision_config
    native = InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=InternVLVisionConfig(
                hidden_size=vision.hidden_size,
                num_hidden_layers=vision.num_hidden_layers,
                num_attention_heads=vision.num_attention_heads,
                intermediate_size=vision.intermediate_size,
                image_size=vision.image_size,
                patch_size=vision.patch_size,
                attention_bias=vision.qkv_bias,
                use_qk_norm=vision.qk_normalization,
                norm_type=vision.norm_type,
                layer_norm_eps=vision.layer_norm_eps,
                use_mean_pooling=True,  # the native class adds a final norm otherwise
            ),
            text_config=ours.config.llm_config.to_dict(),
            image_token_id=support.IMG_CONTEXT_ID,
            image_seq_length=ours.num_image_token,
            downsample_ratio=0.5,
            vision_feature_layer=-1,
            tie_word_embeddings=False,
        )
    ).eval()
    missing, unexpected = native.load_state_dict(native_state(ours.state_dict()), strict=False)
    assert not missing
    assert not unexpected
    expected = support.golden(name)
    for case, images in {"image_multitile": "A", "two_images": "AB", "video4": "frames"}.items():
        if f"logits.{case}.input_ids" not in expected:
            continue
        inputs = {
            "input_ids": expected[f"logits.{case}.input_ids"],
            "attention_mask": expected[f"logits.{case}.attention_mask"],
            "pixel_values": support.pixels(name, images),
        }
        torch.testing.assert_close(
            native(**inputs).logits, ours(**inputs).logits, atol=1e-4, rtol=0
        )
