"""Models for the benchmarks: widths of InternVL2.5-1B, any depth, random weights, built in seconds.

    config (variants/InternVL2_5-1B) -> ours -> the same under another attention (weights shared)
                                             -> transformers' own InternVL (weights copied)

Weights are random, so nothing here says anything about answers; `equality` compares those of ours
and of the peers before anything is timed.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import torch
from harness import ROOT, relative_difference, require

from internvl import hub
from internvl.checkpoints.native.names import NameMap
from internvl.checkpoints.native.settings import native_config

LAYERS = 24  # of InternViT-300M, and of the 1B decoder
CONFIG = ROOT / "variants" / "InternVL2_5-1B" / "config.json"
BF16_TOLERANCE = 0.02  # relative, of logits; 2 layers differ by less than half of it
_BLOCK = 1_000_003  # random numbers drawn; a prime, so that rows of no weight repeat each other
# Widths for the smoke test of a script: the same code in a second.
TOY_VISION = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 56,
}
TOY_LLM = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
}
TOY_VOCABULARY = 512


# ---------------------------------------------------------------------- models
def chat_config(
    vision_layers: int, llm_layers: int, *, vocabulary: int | None = None, smoke: bool = False
) -> Any:
    """Config of InternVL2.5-1B (InternViT-300M, Qwen2.5-0.5B, 151,674 ids) at another depth.

    Args:
        vision_layers: blocks of the vision encoder, 24 in the published model.
        llm_layers: blocks of the decoder, 24 in the published model.
        vocabulary: ids; None for the published number, or a toy one with `smoke`.
        smoke: toy widths.
    """
    fields = json.loads(CONFIG.read_text(encoding="utf-8"))
    fields["vision_config"]["num_hidden_layers"] = vision_layers
    fields["llm_config"]["num_hidden_layers"] = llm_layers
    if smoke:
        fields["vision_config"] |= TOY_VISION
        fields["llm_config"] |= TOY_LLM
        vocabulary = vocabulary or TOY_VOCABULARY
        fields["force_image_size"] = TOY_VISION["image_size"]
    if vocabulary is not None:
        fields["llm_config"] |= {"vocab_size": vocabulary}
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            fields["llm_config"][name] = vocabulary - 10
    # The third of the nine InternVL tokens, which close every published vocabulary.
    fields["img_context_token_id"] = fields["llm_config"]["vocab_size"] - 7
    return hub.ring0("configuration_internvl_chat").InternVLChatConfig.from_dict(fields)


def chat_model(config: Any, dtype: torch.dtype, *, attention: str = "sdpa", seed: int = 0) -> Any:
    """`InternVLChatModel` with random weights, built in a second or two at full size."""
    model_class = hub.ring0("modeling_internvl_chat").InternVLChatModel
    return _random_model(model_class, config, dtype, attention, seed)


def _random_model(
    model_class: Any, config: Any, dtype: torch.dtype, attention: str, seed: int
) -> Any:
    model = _skeleton(model_class, config, attention)
    draw = _Weights(dtype, seed)
    weights = {name: draw(name, meta) for name, meta in model.state_dict().items()}
    return _finish(model, weights)


def _skeleton(model_class: Any, config: Any, attention: str) -> Any:
    """A model whose parameters are on the meta device; its buffers are real."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = model_class(copy.deepcopy(config))
    model.set_attn_implementation(attention)
    return model


def _finish(model: Any, weights: dict[str, torch.Tensor]) -> Any:
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(False).eval()


class _Weights:
    """Draws weights: norms and layer scales around 1, all else around 0, deviation 0.02.

    One block of numbers is drawn and laid out again and again: drawing a billion takes ten times
    as long, and no kernel is faster or slower for it.
    """

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.block = (torch.randn(_BLOCK, generator=generator) * 0.02).to(dtype)
        self.start = 0

    def __call__(self, name: str, meta: torch.Tensor) -> torch.Tensor:
        flat = torch.empty(meta.numel(), dtype=self.block.dtype)
        filled = 0
        while filled < len(flat):
            piece = self.block[self.start : self.start + len(flat) - filled]
            flat[filled : filled + len(piece)] = piece
            filled += len(piece)
            self.start = (self.start + len(piece)) % _BLOCK
        is_scale = name.endswith((".ls1", ".ls2")) or (meta.ndim == 1 and name.endswith("weight"))
        return (flat + 1 if is_scale else flat).view(meta.shape)


def twin(model: Any, attention: str) -> Any:
    """A second model on the same weights (shared, not copied) with another attention."""
    return _finish(_skeleton(type(model), model.config, attention), model.state_dict())


def native_model(model: Any, *, attention: str = "sdpa") -> Any:
    """transformers' own InternVL with a copy of the weights of our chat model."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    config = InternVLConfig(**native_config(model.config))
    weights = {name: value.clone() for name, value in native_weights(model.state_dict()).items()}
    return _finish(_skeleton(InternVLForConditionalGeneration, config, attention), weights)


def native_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a `chat_model` under transformers-native names, views of the same memory."""
    return NameMap(chat_config(1, 1)).to_native(weights)


# ---------------------------------------------------------------------- inputs
def pixels(config: Any, tiles: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random normalised tiles (N, 3, S, S); `config` is that of the chat model."""
    generator = torch.Generator().manual_seed(1)
    side = config.tile_size
    return torch.randn(tiles, 3, side, side, generator=generator).to(dtype)


def prompt_ids(config: Any, tiles: int, text: int) -> torch.Tensor:
    """Ids (1, T): half of the text, the visual tokens of `tiles`, the other half of the text."""
    generator = torch.Generator().manual_seed(2)
    highest = min(config.img_context_token_id, config.llm_config.vocab_size // 2)
    words = torch.randint(highest, (text,), generator=generator)
    visual = torch.full((tiles * config.num_image_token,), config.img_context_token_id)
    return torch.cat([words[: text // 2], visual, words[text // 2 :]])[None]


@torch.inference_mode()
def greedy_ids(model: Any, ids: torch.Tensor, tiles: torch.Tensor | None, count: int) -> list[int]:
    """Exactly `count` ids that a model, ours or native, goes on with."""
    images = {} if tiles is None else {"pixel_values": tiles}
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=count,
        min_new_tokens=count,
        pad_token_id=0,
        **images,
    )
    return output[0, -count:].tolist()


# ---------------------------------------------------------------------- equality
@torch.inference_mode()
def equality(*, smoke: bool = False, count: int = 6) -> dict[str, Any]:
    """Compare our model under SDPA with eager attention and with transformers' own InternVL.

    At 2 + 2 layers of real width on one tile: in float32 by the ids of greedy decoding, which must
    be the same; in bfloat16 by the relative difference of the logits on those ids.

    Raises:
        RuntimeError: they differ.
    """
    config = chat_config(2, 2, smoke=smoke)
    models = {"sdpa": chat_model(config, torch.float32)}
    models["eager"] = twin(models["sdpa"], "eager")
    models["native"] = native_model(models["sdpa"])
    ids, tiles = prompt_ids(config, 1, 16), pixels(config, 1)
    found = {name: greedy_ids(model, ids, tiles, count) for name, model in models.items()}
    models.pop("eager")  # shares weights with the first, which is about to be cast
    forced = torch.cat([ids, torch.tensor([found["sdpa"]])], dim=1)
    for model in models.values():
        model.to(torch.bfloat16)
    models["eager"] = twin(models["sdpa"], "eager")
    options = {"input_ids": forced, "pixel_values": tiles.bfloat16(), "logits_to_keep": count}
    logits = {name: model(**options).logits.float() for name, model in models.items()}
    result: dict[str, Any] = {"bf16_tolerance": BF16_TOLERANCE}
    for name in ("eager", "native"):
        difference = relative_difference(logits[name], logits["sdpa"])
        result[f"fp32_ids_equal_{name}"] = found[name] == found["sdpa"]
        result[f"bf16_logit_difference_{name}"] = round(difference, 5)
        result[f"bf16_within_tolerance_{name}"] = difference <= BF16_TOLERANCE
    return require(result)
