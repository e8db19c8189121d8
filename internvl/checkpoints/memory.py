"""How many bytes a chat model takes: weights, cache, activations, training.

    config -> parameters per part (from the meta model) -> bytes in a dtype
    config, tiles, tokens -> cache, and the greatest sum of tensors alive at once

The formulas count the tensors that the code of this repository, and transformers' decoders, hold at
the worst moment, with sdpa or flash attention, whose own workspace is small. They are compared with
counted tensors on small models in tests/checkpoints/test_memory.py, term by term. What an
allocator, CUDA and libraries take on top is not in them; `plan` adds a reserve.

    # B samples   T positions   V vocabulary   D decoder width   F MLP width   L layers
    # d head width   N tiles   n tokens of a tile in the encoder (1 + P)   Q visual tokens of a tile
    # C ViT width
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from internvl import hub
from internvl.checkpoints.tensors import layout
from internvl.context import head_width, kv_bytes_per_token

BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}
DTYPES = (*BYTES, "int8", "int4")
# bitsandbytes: int8 with a float32 scale per row; nf4 with an 8-bit scale per 64 weights, which
# themselves have a float32 scale per 256 (double quantisation).
_INT8_ROW = 4
_NF4_BLOCK, _NF4_GROUP = 64, 256


# ---------------------------------------------------------------------- weights
@dataclass(frozen=True)
class Parts:
    """Bytes of the weights of each part of a model, in the order of the data flow.

    Attributes:
        vision: InternViT.
        projector: mlp1.
        embeddings: token embedding of the decoder.
        layers: each decoder layer.
        norm: last norm of the decoder.
        head: output layer; 0 when tied to the embedding.
        names: module path of embeddings, layers (without their number), norm and head.
    """

    vision: int
    projector: int
    embeddings: int
    layers: tuple[int, ...]
    norm: int
    head: int
    names: tuple[str, str, str, str]

    @property
    def total(self) -> int:
        """All of it."""
        around = self.vision + self.projector + self.embeddings + self.norm + self.head
        return around + sum(self.layers)


def parts(config: Any, dtype: str = "bf16") -> Parts:
    """Bytes of the weights of a chat model, part by part.

    int8 and int4 store the linear layers of the decoder; vision encoder, projector, embeddings,
    norms and output layer stay in bfloat16, as `internvl.quantization` leaves them.

    Args:
        config: `InternVLChatConfig`.
        dtype: "fp32", "bf16", "fp16", "int8" or "int4".

    Raises:
        ValueError: an unknown dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}.")
    shapes = _shapes(config)
    internlm2 = config.llm_config.model_type == "internlm2"
    model = "language_model.model."
    head = "language_model.output" if internlm2 else "language_model.lm_head"
    embeddings = f"{model}{'tok_embeddings' if internlm2 else 'embed_tokens'}"
    layers = [0] * config.llm_config.num_hidden_layers
    sums = {"vision_model": 0, "mlp1": 0, embeddings: 0, f"{model}norm": 0, head: 0}
    for name, shape in shapes.items():
        if name.startswith(f"{model}layers."):
            number = int(name.removeprefix(f"{model}layers.").partition(".")[0])
            layers[number] += stored_bytes(shape, dtype)
        else:
            part = next(part for part in sums if name.startswith(f"{part}."))
            sums[part] += int(math.prod(shape) * BYTES.get(dtype, 2))
    vision, projector, *around = sums.values()
    names = (embeddings, f"{model}layers", f"{model}norm", head)
    return Parts(vision, projector, around[0], tuple(layers), around[1], around[2], names)


def parameters(config: Any) -> int:
    """Number of parameters."""
    return sum(math.prod(shape) for shape in _shapes(config).values())


def _shapes(config: Any) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes, once for each config: a plan asks many times."""
    return _shapes_of(config.to_json_string(use_diff=False))


@functools.lru_cache(maxsize=32)
def _shapes_of(config: str) -> Mapping[str, tuple[int, ...]]:
    return layout(hub.build_config(json.loads(config))).shapes


def stored_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a weight of a decoder layer in a dtype; only matrices are quantised."""
    count = math.prod(shape)
    if dtype in BYTES or len(shape) < 2:
        return int(count * BYTES.get(dtype, 2))
    if dtype == "int8":
        return count + _INT8_ROW * shape[0]
    blocks = math.ceil(count / _NF4_BLOCK)
    return math.ceil(count / 2) + blocks + 4 * math.ceil(blocks / _NF4_GROUP)


# ---------------------------------------------------------------------- inference
@dataclass(frozen=True)
class Workload:
    """What is asked of a model at once.

    Attributes:
        batch: samples B.
        context: positions T of a sample, visual tokens and the answer included.
        tiles: tiles of a sample, thumbnails included.
    """

    batch: int = 1
    context: int = 16384
    tiles: int = 0


def number_bytes(dtype: str) -> int:
    """Bytes of a number in activations and cache: quantised models compute in bfloat16."""
    return int(BYTES.get(dtype, 2))


def kv_cache(config: Any, work: Workload, dtype: str = "bf16") -> int:
    """Bytes of keys and values of all positions."""
    per_token = kv_bytes_per_token(config.llm_config, number_bytes(dtype))
    return work.batch * work.context * per_token


def vision_activations(
    config: Any, work: Workload, dtype: str = "bf16", *, vit_batch_size: int = 32
) -> int:
    """Bytes alive, at most, while tiles are encoded: pixels, visual tokens, and a block at work.

    The MLP holds 5 C + 2 F a token: the input of the encoder and of the block, the state after
    attention, the attended values, the normed state, and both sides of the activation. Attention
    holds 8 C, normalised queries and keys 2 C more, or the float32 copy of a norm.

    Args:
        config: `InternVLChatConfig`.
        work: the workload.
        dtype: of the weights.
        vit_batch_size: tiles that are encoded at once.
    """
    vision, b = config.vision_config, number_bytes(dtype)
    tiles = work.batch * work.tiles
    if not tiles:
        return 0
    C, F = vision.hidden_size, vision.intermediate_size
    n = 1 + (config.tile_size // vision.patch_size) ** 2
    attention = 8 * C
    if vision.qk_normalization:
        attention = max(10 * C, (7 + 8 // b) * C)
    block = max(5 * C + 2 * F, attention) * n * b
    pixels = tiles * vision.num_channels * config.tile_size**2 * b
    tokens = tiles * config.num_image_token * config.llm_config.hidden_size * b
    # Pieces and their concatenation, where there are several.
    joined = tokens if tiles > vit_batch_size else 0
    return pixels + tokens + max(min(tiles, vit_batch_size) * block, joined)


# Tensors that a decoder layer holds: in the MLP of widths D and F, in attention of width D.
_PREFILL = {"internlm2": (5, 3, 9), "phi3": (4, 4, 9)}
_PREFILL_DEFAULT = (4, 3, 7)


def decoder_activations(config: Any, work: Workload, dtype: str = "bf16") -> int:
    """Bytes alive, at most, in a prefill, without the cache: embeddings and a layer at work.

    A layer's MLP holds the gate, the other branch and their product, of F each, beside the state,
    its residual and its norm; attention holds 7 D or 9 D. Several samples, of unequal length, need
    a mask of T x T bytes each, which attention turns into numbers.

    Args:
        config: `InternVLChatConfig`.
        work: the workload.
        dtype: of the weights.
    """
    llm, b = config.llm_config, number_bytes(dtype)
    D, F = llm.hidden_size, llm.intermediate_size
    wide, inner, attention = _PREFILL.get(llm.model_type, _PREFILL_DEFAULT)
    tables = 2 * head_width(llm)  # cosines and sines, shared by the samples
    mask = work.context if work.batch > 1 else 0
    layer = max(wide * D + inner * F, attention * D + mask) * b
    positions = work.batch * work.context
    return positions * (layer + mask) + work.context * (tables * b + 8)


def embedded(config: Any, work: Workload, dtype: str = "bf16") -> int:
    """Bytes of the token embeddings of the prompt, which exist while tiles are encoded."""
    return work.batch * work.context * config.llm_config.hidden_size * number_bytes(dtype)


# ---------------------------------------------------------------------- training
TRAINED = {"stage1": ("mlp1",), "stage1.5": ("vision", "mlp1"), "stage2": ("vision", "mlp1", "llm")}
# Width-sized tensors that the backward pass of a checkpointed layer holds beside 6 F.
_BACKWARD = {"internlm2": 10.5, "phi3": 11.5}
_BACKWARD_DEFAULT = 9.0
_LOGIT_BYTES = 12  # logits, their float32 copy and its gradient, in any dtype


@dataclass(frozen=True)
class Training:
    """Bytes of a training step beside the weights.

    Attributes:
        trained: parameters that are trained.
        gradients: bytes of their gradients.
        optimizer: bytes of AdamW: float32 moments, and float32 weights beside 16-bit ones.
        activations: bytes alive, at most, of a step with activation checkpointing.
    """

    trained: int
    gradients: int
    optimizer: int
    activations: int


def training(config: Any, work: Workload, stage: str, dtype: str = "bf16") -> Training:
    """Bytes of a training step of a stage of the report (Table 3), beside the weights.

    Args:
        config: `InternVLChatConfig`.
        work: samples (or packs) of a step on one device.
        stage: "stage1" (projector), "stage1.5" (encoder and projector) or "stage2" (all).
        dtype: "bf16", "fp16" or "fp32".

    Raises:
        ValueError: an unknown stage, or a dtype that is not trained.
    """
    if stage not in TRAINED:
        raise ValueError(f"train is {stage!r}, expected one of {', '.join(TRAINED)}.")
    if dtype not in BYTES:
        raise ValueError(f"weights in {dtype} are not trained; take bf16, fp16 or fp32.")
    sizes = parts(config, "fp32")
    every = {"vision": sizes.vision, "mlp1": sizes.projector}
    every["llm"] = sizes.total - sizes.vision - sizes.projector
    trained = sum(every[part] for part in TRAINED[stage]) // 4
    b = number_bytes(dtype)
    return Training(
        trained=trained,
        gradients=trained * b,
        optimizer=trained * (8 + (4 if b == 2 else 0)),
        activations=_training_activations(config, work, b, vision="vision" in TRAINED[stage]),
    )


def _training_activations(config: Any, work: Workload, b: int, *, vision: bool) -> int:
    """The worst of: the loss, the backward of a decoder layer, that of an encoder block."""
    llm = config.llm_config
    D, F, positions = llm.hidden_size, llm.intermediate_size, work.batch * work.context
    kept = positions * (llm.num_hidden_layers + 3) * D * b
    layer = 6 * F + (_BACKWARD.get(llm.model_type, _BACKWARD_DEFAULT) + (3 if b == 2 else 0)) * D
    loss = positions * _LOGIT_BYTES * llm.vocab_size
    encoder_kept, block = _encoder_training(config, work, b)
    if not vision:  # no graph: the encoder keeps nothing
        encoder_kept, block = 0, 0
    # A layer's own input is among those kept, and of the three D beside them it needs none.
    decoder = kept + max(loss, positions * int((layer - 3 * D) * b))
    pixels = work.batch * work.tiles * 3 * config.tile_size**2 * b
    return pixels + encoder_kept + max(decoder, block)


def _encoder_training(config: Any, work: Workload, b: int) -> tuple[int, int]:
    """Bytes that the encoder keeps for its backward pass, and those of a block at work."""
    vision = config.vision_config
    C, F, D = vision.hidden_size, vision.intermediate_size, config.llm_config.hidden_size
    n = 1 + (config.tile_size // vision.patch_size) ** 2
    tokens = work.batch * work.tiles * n * b
    wide = 10.0
    if vision.qk_normalization:
        wide = 16.0 if b == 4 else 23.0
    kept = tokens * (vision.num_hidden_layers * C + 2 * C + 3 * D // 4)
    return kept, int(tokens * (3 * F + (wide - 2) * C))
