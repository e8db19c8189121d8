"""The published layout, written down a second time: every weight name and its shape.

From the shapes of the published checkpoints themselves (the InternVL2_5-8B index adds up to the
byte), not from the code under test and not from internvl/checkpoints/published.py.
"""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]

# name: (encoder, family, H, F, L, heads, kv heads, vocabulary)
CHAT = {
    "InternVL2_5-1B": ("300M", "qwen", 896, 4864, 24, 14, 2, 151674),
    "InternVL2_5-2B": ("300M", "internlm2", 2048, 8192, 24, 16, 8, 92553),
    "InternVL2_5-4B": ("300M", "qwen", 2048, 11008, 36, 16, 2, 151674),
    "InternVL2_5-8B": ("300M", "internlm2", 4096, 14336, 32, 32, 8, 92553),
    "InternVL2_5-26B": ("6B", "internlm2", 6144, 16384, 48, 48, 8, 92553),
    "InternVL2_5-38B": ("6B", "qwen", 5120, 27648, 64, 40, 8, 151674),
    "InternVL2_5-78B": ("6B", "qwen", 8192, 29568, 80, 64, 8, 151674),
    "InternVL2-1B": ("300M", "qwen", 896, 4864, 24, 14, 2, 151655),
    "InternVL2-2B": ("300M", "internlm2", 2048, 8192, 24, 16, 8, 92553),
    "InternVL2-4B": ("300M", "phi3", 3072, 8192, 32, 32, 32, 32020),
    "InternVL2-8B": ("300M", "internlm2", 4096, 14336, 32, 32, 8, 92553),
    "InternVL2-26B": ("6B", "internlm2", 6144, 16384, 48, 48, 8, 92553),
    "InternVL2-40B": ("6B", "llama", 7168, 20480, 60, 56, 8, 64009),
    "InternVL2-Llama3-76B": ("6B", "llama", 8192, 28672, 80, 64, 8, 128265),
    "InternVL-Chat-V1-5": ("6B", "internlm2", 6144, 16384, 48, 48, 8, 92553),
    "Mini-InternVL-Chat-2B-V1-5": ("300M", "internlm2", 2048, 8192, 24, 16, 8, 92553),
    "Mini-InternVL-Chat-4B-V1-5": ("300M", "phi3", 3072, 8192, 32, 32, 32, 32020),
}
# name: (encoder, L, image size)
VISION = {
    "InternViT-6B-224px": ("6B", 48, 224),
    "InternViT-6B-448px-V1-0": ("6B", 48, 448),
    "InternViT-6B-448px-V1-2": ("6B", 45, 448),
    "InternViT-6B-448px-V1-5": ("6B", 45, 448),
    "InternViT-6B-448px-V2_5": ("6B", 45, 448),
    "InternViT-300M-448px": ("300M", 24, 448),
    "InternViT-300M-448px-V2_5": ("300M", 24, 448),
}
# Parameters and tensors.
COUNTS = {
    "InternVL2_5-1B": (938_193_024, 637),
    "InternVL2_5-2B": (2_205_754_368, 517),
    "InternVL2_5-4B": (3_712_637_952, 781),
    "InternVL2_5-8B": (8_075_365_376, 573),
    "InternVL2_5-26B": (25_514_186_112, 934),
    "InternVL2_5-38B": (38_388_164_992, 1366),
    "InternVL2_5-78B": (78_408_318_336, 1558),
    "InternVL2-1B": (938_158_976, 637),
    "InternVL2-2B": (2_205_754_368, 517),
    "InternVL2-4B": (4_146_855_936, 541),
    "InternVL2-8B": (8_075_365_376, 573),
    "InternVL2-26B": (25_514_186_112, 934),
    "InternVL2-40B": (40_068_712_832, 1138),
    "InternVL2-Llama3-76B": (76_262_358_400, 1318),
    "InternVL-Chat-V1-5": (25_514_186_112, 934),
    "Mini-InternVL-Chat-2B-V1-5": (2_205_754_368, 517),
    "Mini-InternVL-Chat-4B-V1-5": (4_146_855_936, 541),
    "InternViT-6B-448px-V1-2": (5_536_496_000, 589),
    "InternViT-6B-448px-V1-5": (5_536_496_000, 589),
    "InternViT-6B-448px-V2_5": (5_536_496_000, 589),
    "InternViT-300M-448px": (304_012_288, 340),
    "InternViT-300M-448px-V2_5": (304_012_288, 340),
}


def vision_shapes(encoder: str, layers: int, image_size: int) -> Shapes:
    """Weights of an InternViT, without prefix."""
    large = encoder == "6B"
    c, f = (3200, 12800) if large else (1024, 4096)
    shapes = {
        "embeddings.class_embedding": (1, 1, c),
        "embeddings.patch_embedding.weight": (c, 3, 14, 14),
        "embeddings.patch_embedding.bias": (c,),
        "embeddings.position_embedding": (1, 1 + (image_size // 14) ** 2, c),
    }
    for i in range(layers):
        block = {
            "attn.qkv.weight": (3 * c, c),
            "attn.proj.weight": (c, c),
            "attn.proj.bias": (c,),
            "mlp.fc1.weight": (f, c),
            "mlp.fc1.bias": (f,),
            "mlp.fc2.weight": (c, f),
            "mlp.fc2.bias": (c,),
            "norm1.weight": (c,),
            "norm2.weight": (c,),
            "ls1": (c,),
            "ls2": (c,),
        }
        if large:
            block |= {"attn.q_norm.weight": (c,), "attn.k_norm.weight": (c,)}
        else:
            block |= {"attn.qkv.bias": (3 * c,), "norm1.bias": (c,), "norm2.bias": (c,)}
        shapes |= {f"encoder.layers.{i}.{key}": shape for key, shape in block.items()}
    return shapes


def language_shapes(
    family: str, h: int, f: int, layers: int, heads: int, kv_heads: int, vocabulary: int
) -> Shapes:
    """Weights of a language model, without prefix."""
    d = h // heads
    if family == "internlm2":
        outer = {
            "model.tok_embeddings.weight": (vocabulary, h),
            "model.norm.weight": (h,),
            "output.weight": (vocabulary, h),
        }
        block = {
            "attention.wqkv.weight": ((heads + 2 * kv_heads) * d, h),
            "attention.wo.weight": (h, h),
            "feed_forward.w1.weight": (f, h),
            "feed_forward.w3.weight": (f, h),
            "feed_forward.w2.weight": (h, f),
            "attention_norm.weight": (h,),
            "ffn_norm.weight": (h,),
        }
    else:
        outer = {
            "model.embed_tokens.weight": (vocabulary, h),
            "model.norm.weight": (h,),
            "lm_head.weight": (vocabulary, h),
        }
        block = {
            "self_attn.o_proj.weight": (h, h),
            "mlp.down_proj.weight": (h, f),
            "input_layernorm.weight": (h,),
            "post_attention_layernorm.weight": (h,),
        }
        if family == "phi3":
            block |= {
                "self_attn.qkv_proj.weight": (3 * h, h),
                "mlp.gate_up_proj.weight": (2 * f, h),
            }
        else:
            rows = {"q": h, "k": kv_heads * d, "v": kv_heads * d}
            block |= {f"self_attn.{key}_proj.weight": (n, h) for key, n in rows.items()}
            block |= {"mlp.gate_proj.weight": (f, h), "mlp.up_proj.weight": (f, h)}
            if family == "qwen":
                block |= {f"self_attn.{key}_proj.bias": (n,) for key, n in rows.items()}
    inner = {
        f"model.layers.{i}.{key}": shape for i in range(layers) for key, shape in block.items()
    }
    return outer | inner


def shapes(name: str) -> Shapes:
    """Every weight of a published checkpoint."""
    if name in VISION:
        return vision_shapes(*VISION[name])
    encoder, family, h, *rest = CHAT[name]
    layers, c4 = (45, 12800) if encoder == "6B" else (24, 4096)
    projector = {
        "mlp1.0.weight": (c4,),
        "mlp1.0.bias": (c4,),
        "mlp1.1.weight": (h, c4),
        "mlp1.1.bias": (h,),
        "mlp1.3.weight": (h, h),
        "mlp1.3.bias": (h,),
    }
    vision = vision_shapes(encoder, layers, 448)
    language = language_shapes(family, h, *rest)
    return {
        **{f"vision_model.{key}": shape for key, shape in vision.items()},
        **projector,
        **{f"language_model.{key}": shape for key, shape in language.items()},
    }
