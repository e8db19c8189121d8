"""The two heads of Table 14: a linear layer, and attention pooling under one.

    linear      [class token ; mean of patches] (N, 2C) -> BatchNorm -> Linear (N, K)
    attention   all tokens (N, 1 + P, C) -> AttentionPooling (N, C) -> BatchNorm -> Linear (N, K)

Shapes, epsilons and initial values are those of `classification/models/intern_vit_6b.py` of
OpenGVLab/InternVL (`cls_patch_concat`, `attention_pooling`), whose BatchNorm has weight and bias,
eps 1e-6 and momentum 0.1, and is synchronised over processes. Heads are float32.

    # N images   P patches   C width   K classes   h heads   d width of a head
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from internvl.evaluation.vision.encoder import Encoder, Features

KINDS = ("linear", "attention")


class AttentionPooling(nn.Module):
    """One query, the mean of all tokens, attends to all tokens.

    Query, keys and values have a LayerNorm each (eps 1e-5); the three projections have biases that
    start at zero.

    Args:
        width: C.
        num_heads: h; the official one takes the encoder's (25 of the 6B, 16 of the 300M).

    Raises:
        ValueError: heads that do not divide the width.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"{num_heads} heads do not divide the width {width}.")
        self.num_heads = num_heads
        self.norm_query = nn.LayerNorm(width, eps=1e-5)
        self.norm_key = nn.LayerNorm(width, eps=1e-5)
        self.norm_value = nn.LayerNorm(width, eps=1e-5)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        for projection in (self.query, self.key, self.value):
            nn.init.zeros_(projection.bias)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pool (N, 1 + P, C) to (N, C)."""
        query = self.query(self.norm_query(tokens.mean(dim=1, keepdim=True)))  # (N, 1, C)
        key, value = self.key(self.norm_key(tokens)), self.value(self.norm_value(tokens))
        query, key, value = (
            x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in (query, key, value)
        )  # (N, h, 1 | 1 + P, d)
        pooled = F.scaled_dot_product_attention(query, key, value)  # (N, h, 1, d)
        return self.proj(pooled.flatten(1))


class Head(nn.Module):
    """A probe: what is trained on frozen features.

    Args:
        kind: "linear" or "attention".
        width: C of the encoder.
        classes: names of the K classes, in the order of the logits.
        num_heads: heads of the attention pooling.

    Raises:
        ValueError: another kind, no two classes, or heads that do not divide the width.
    """

    def __init__(self, kind: str, width: int, classes: Sequence[str], num_heads: int) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"the kind of a probe is {kind!r}, expected one of {KINDS}.")
        if len(set(classes)) != len(classes) or len(classes) < 2:
            raise ValueError(
                f"there are {len(classes)} classes, {len(set(classes))} of them different; "
                "expected at least two, each once."
            )
        self.kind, self.classes = kind, tuple(classes)
        self.settings = {"kind": kind, "width": width, "num_heads": num_heads}
        linear = kind == "linear"
        self.pool = nn.Identity() if linear else AttentionPooling(width, num_heads)
        self.norm = nn.BatchNorm1d(2 * width if linear else width, eps=1e-6)
        self.classifier = nn.Linear(self.norm.num_features, len(classes))
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def inputs(self, features: Features) -> torch.Tensor:
        """What of the features the head reads, without any parameter: this is what is cached.

        Returns:
            (N, 2C) for a linear head, (N, 1 + P, C) for attention pooling.
        """
        if self.kind == "attention":
            return features.tokens
        return torch.cat([features.class_token, features.patches.mean(dim=1)], dim=1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map what `inputs` gives to logits (N, K)."""
        return self.classifier(self.norm(self.pool(inputs)))


def build_head(kind: str, encoder: Encoder, classes: Sequence[str], seed: int) -> Head:
    """A new head for an encoder, with initial values that depend on the seed alone.

    Raises:
        ValueError: as `Head`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Head(kind, encoder.width, classes, encoder.num_heads)
