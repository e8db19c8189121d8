"""LoRA layers that the official training code left wrapped into a checkpoint, merged.

With `use_llm_lora` or `use_backbone_lora` the official code wraps the language model or the vision
encoder with PEFT and saves the wrapped names:

    language_model.base_model.model.<name>.base_layer.weight    W (out, in), or <name>.weight
    language_model.base_model.model.<name>.lora_A.default.weight    A (r, in)
    language_model.base_model.model.<name>.lora_B.default.weight    B (out, r)

The merged weight is W + alpha / r * B A, where alpha is always 2 r in that code. It is computed in
float32 and rounded once, to the dtype of W.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from internvl.checkpoints.tensors import Stored, Weights
from internvl.source_files import some

if TYPE_CHECKING:
    import torch

SCALE = 2.0  # alpha / r
_WRAPPED = re.compile(r"^(language_model|vision_model)\.base_model\.model\.(.+)$")
_FACTOR = re.compile(r"^(?P<layer>.+)\.lora_(?P<factor>[AB])(\.default)?\.weight$")
_RANKS = {"language_model": "use_llm_lora", "vision_model": "use_backbone_lora"}


@dataclass(frozen=True)
class Part:
    """What a tensor of the merged checkpoint is made of, as names of stored tensors.

    Attributes:
        base: the weight W.
        down: A, None for a tensor without LoRA.
        up: B, None for a tensor without LoRA.
    """

    base: str
    down: str | None = None
    up: str | None = None


def merge_plan(stored: Mapping[str, Stored], fields: Mapping[str, Any]) -> dict[str, Part]:
    """Name every tensor of the merged checkpoint, and what it is made of.

    Args:
        stored: the tensors of the source.
        fields: its config.json.

    Returns:
        Merged name -> parts, in the order of the source; for a source without LoRA each name is
        made of itself.

    Raises:
        ValueError: factors without a partner or a weight, of a rank that config.json does not say,
            or of a kind that the official code does not write.
    """
    factors: dict[str, dict[str, str]] = {}
    bases: dict[str, str] = {}
    for name in stored:
        wrapped = _WRAPPED.match(name)
        plain = f"{wrapped[1]}.{wrapped[2]}" if wrapped else name
        factor = _FACTOR.match(plain)
        if wrapped and factor:
            factors.setdefault(factor["layer"], {})[factor["factor"]] = name
        elif wrapped and ".lora_" in plain:
            raise ValueError(
                f"{name} is not a LoRA factor of a linear layer (DoRA, embeddings and biases are "
                "not written by the official code); merge it with the code that trained it."
            )
        else:
            bases[plain.replace(".base_layer.", ".") if wrapped else plain] = name
    _check_partners(bases, factors)
    _check_ranks(stored, fields, factors)
    return {
        name: _part(base, factors.get(name.removesuffix(".weight"), {}))
        for name, base in bases.items()
    }


def merged(weights: Weights, part: Part) -> torch.Tensor:
    """Read a tensor of the merged checkpoint: W + 2 B A, or W."""
    base = weights.read(part.base)
    if part.down is None or part.up is None:
        return base
    down, up = weights.read(part.down).float(), weights.read(part.up).float()
    return (base.float() + SCALE * (up @ down)).to(base.dtype)


def _part(base: str, factors: Mapping[str, str]) -> Part:
    return Part(base, factors.get("A"), factors.get("B"))


def _check_partners(bases: Mapping[str, str], factors: Mapping[str, Mapping[str, str]]) -> None:
    alone = [layer for layer, pair in factors.items() if set(pair) != {"A", "B"}]
    if alone:
        raise ValueError(
            f"only one of the two LoRA factors is stored for {some(alone)}; the checkpoint is "
            "incomplete."
        )
    homeless = [layer for layer in factors if f"{layer}.weight" not in bases]
    if homeless:
        raise ValueError(
            f"there are LoRA factors but no weight for {some(homeless)}; the folder holds an "
            "adapter or a part of a checkpoint, use the whole one."
        )


def _check_ranks(
    stored: Mapping[str, Stored],
    fields: Mapping[str, Any],
    factors: Mapping[str, Mapping[str, str]],
) -> None:
    """The scale is only known through the rank that config.json states."""
    for layer, pair in factors.items():
        field = _RANKS[layer.partition(".")[0]]
        rank = stored[pair["A"]].shape[0]
        if rank != fields.get(field, 0) or stored[pair["B"]].shape[1] != rank:
            raise ValueError(
                f"{layer} has LoRA factors of shapes {stored[pair['A']].shape} and "
                f"{stored[pair['B']].shape}, but config.json says {field}={fields.get(field, 0)}; "
                "config.json and weights belong to different checkpoints."
            )
