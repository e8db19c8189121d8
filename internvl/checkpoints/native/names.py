"""Names and shapes of the tensors in two layouts: the published one, and that of transformers' own
InternVL (InternVLForConditionalGeneration).

    published name  <-> native name, as checkpoints store it <-> native name in the module tree
    fused qkv rows  <-> q_proj, k_proj, v_proj

Every tensor but the fused projections is the same, bit for bit, under another name; a fused one is
cut into three, or joined of three, along its rows. So the way there and back changes nothing.

    # C  ViT width   D  decoder width   d  head width   k  key heads   g  query heads per key head
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# One row per tensor: published, native. `*` is one part of a name and stands in both.
VISION = (
    ("vision_model.embeddings.class_embedding", "vision_tower.embeddings.cls_token"),
    ("vision_model.embeddings.position_embedding", "vision_tower.embeddings.position_embeddings"),
    (
        "vision_model.embeddings.patch_embedding.*",
        "vision_tower.embeddings.patch_embeddings.projection.*",
    ),
    (
        "vision_model.encoder.layers.*.attn.proj.*",
        "vision_tower.encoder.layer.*.attention.projection_layer.*",
    ),
    (
        "vision_model.encoder.layers.*.attn.q_norm.weight",
        "vision_tower.encoder.layer.*.attention.q_norm.weight",
    ),
    (
        "vision_model.encoder.layers.*.attn.k_norm.weight",
        "vision_tower.encoder.layer.*.attention.k_norm.weight",
    ),
    ("vision_model.encoder.layers.*.norm1.*", "vision_tower.encoder.layer.*.layernorm_before.*"),
    ("vision_model.encoder.layers.*.norm2.*", "vision_tower.encoder.layer.*.layernorm_after.*"),
    ("vision_model.encoder.layers.*.mlp.fc1.*", "vision_tower.encoder.layer.*.mlp.fc1.*"),
    ("vision_model.encoder.layers.*.mlp.fc2.*", "vision_tower.encoder.layer.*.mlp.fc2.*"),
    ("vision_model.encoder.layers.*.ls1", "vision_tower.encoder.layer.*.lambda_1"),
    ("vision_model.encoder.layers.*.ls2", "vision_tower.encoder.layer.*.lambda_2"),
)
PROJECTOR = (
    ("mlp1.0.*", "multi_modal_projector.layer_norm.*"),
    ("mlp1.1.*", "multi_modal_projector.linear_1.*"),
    ("mlp1.3.*", "multi_modal_projector.linear_2.*"),
)
# InternLM2 is a Llama with other names. The decoders that transformers has keep theirs.
INTERNLM2 = (
    ("language_model.model.tok_embeddings.weight", "language_model.model.embed_tokens.weight"),
    (
        "language_model.model.layers.*.attention.wo.*",
        "language_model.model.layers.*.self_attn.o_proj.*",
    ),
    (
        "language_model.model.layers.*.feed_forward.w1.weight",
        "language_model.model.layers.*.mlp.gate_proj.weight",
    ),
    (
        "language_model.model.layers.*.feed_forward.w3.weight",
        "language_model.model.layers.*.mlp.up_proj.weight",
    ),
    (
        "language_model.model.layers.*.feed_forward.w2.weight",
        "language_model.model.layers.*.mlp.down_proj.weight",
    ),
    (
        "language_model.model.layers.*.attention_norm.weight",
        "language_model.model.layers.*.input_layernorm.weight",
    ),
    (
        "language_model.model.layers.*.ffn_norm.weight",
        "language_model.model.layers.*.post_attention_layernorm.weight",
    ),
    ("language_model.model.norm.weight", "language_model.model.norm.weight"),
    ("language_model.output.weight", "language_model.lm_head.weight"),
)
# Fused projections: published, and native with {part} for q, k and v.
VISION_QKV = (
    "vision_model.encoder.layers.*.attn.qkv.*",
    "vision_tower.encoder.layer.*.attention.{part}_proj.*",
)
INTERNLM2_QKV = (
    "language_model.model.layers.*.attention.wqkv.*",
    "language_model.model.layers.*.self_attn.{part}_proj.*",
)
# Native checkpoints keep the prefixes of the first release; the module tree has others.
PREFIXES = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)


# ---------------------------------------------------------------------- shapes
@dataclass(frozen=True)
class Fused:
    """Rows of a fused projection: `groups` times the queries, keys and values of a group.

    Attributes:
        groups: 1 for [Q | K | V] of the vision encoder, k for InternLM2, whose rows are grouped by
            key head.
        shares: rows of queries, keys and values in a group, in units of the keys: (1, 1, 1) or
            (g, 1, 1).
    """

    groups: int
    shares: tuple[int, int, int]

    def split(self, fused: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Cut a weight (rows, D) or a bias (rows,) into those of q, k and v, in order of heads."""
        grouped = fused.unflatten(0, (self.groups, -1))  # (k, (g + 2) * d, ...)
        unit = grouped.shape[1] // sum(self.shares)
        parts = grouped.split([unit * share for share in self.shares], dim=1)
        return tuple(part.flatten(0, 1) for part in parts)

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The inverse of `split`."""
        import torch

        grouped = [part.unflatten(0, (self.groups, -1)) for part in parts]
        return torch.cat(grouped, dim=1).flatten(0, 1)


# ---------------------------------------------------------------------- names
def as_stored(name: str) -> str:
    """The name that native checkpoints store a tensor of the native module tree under."""
    return _reprefixed(name, [(module, stored) for stored, module in PREFIXES])


def as_module(name: str) -> str:
    """The inverse of `as_stored`."""
    return _reprefixed(name, PREFIXES)


def _reprefixed(name: str, prefixes: Iterable[tuple[str, str]]) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


class NameMap:
    """The tables above for one checkpoint.

    Args:
        config: `InternVLChatConfig` of the published layout.
    """

    def __init__(self, config: Any) -> None:
        llm = config.llm_config
        self.rows = [*VISION, *PROJECTOR]
        self.fused = {VISION_QKV: Fused(1, (1, 1, 1))}
        self.is_internlm2 = llm.model_type == "internlm2"
        if self.is_internlm2:
            self.rows += INTERNLM2
            k = llm.num_key_value_heads
            self.fused[INTERNLM2_QKV] = Fused(k, (llm.num_attention_heads // k, 1, 1))

    def native(self, name: str) -> tuple[tuple[str, ...], Fused | None]:
        """Native names, as stored, of a published one: one, or three and how to cut it.

        Raises:
            ValueError: a name that no tensor of the published layout has.
        """
        for (published, native), fused in self.fused.items():
            if target := _renamed(name, published, native):
                return tuple(target.format(part=part) for part in "qkv"), fused
        for published, native in self.rows:
            if target := _renamed(name, published, native):
                return (target,), None
        if not self.is_internlm2 and name.startswith("language_model."):
            return (name,), None
        raise ValueError(f"{name} is not the name of a tensor of the published layout.")

    def to_native(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A published state dict under the names of the native module tree, as views if it can."""
        renamed: dict[str, torch.Tensor] = {}
        for name, value in weights.items():
            targets, fused = self.native(name)
            parts = (value,) if fused is None else fused.split(value)
            renamed |= {as_module(new): part for new, part in zip(targets, parts, strict=True)}
        return renamed


def _renamed(name: str, pattern: str, target: str) -> str | None:
    """`target` with what `*` of `pattern` stands for in `name`; None if they do not match."""
    match = re.fullmatch(re.escape(pattern).replace(r"\*", "([^.]+)"), name)
    if match is None:
        return None
    found = iter(match.groups())
    return re.sub(r"\*", lambda _: next(found), target)
