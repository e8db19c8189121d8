"""Compute-lean twins of the published modules, for training on a CPU.

``DemoVision`` and ``DemoDecoder`` hold exactly the parameters of InternVisionModel and of a Qwen2
language model under the published names, and compute the same function (a test compares both
through InternVLChatModel). They differ only in what they skip: attention is a plain batched product
(its backward is faster than the fused CPU kernel), the patch convolution is a matrix product, and
the last decoder layer runs its query, output and MLP parts only at the positions whose logits are
wanted.
"""

# N tiles   P patches per tile (64)   Q visual tokens per tile (16)   C ViT width (192)
# B samples   T text positions   D decoder width (256)   V vocabulary

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class DemoShape:
    """Sizes of the demo model; the defaults are the released checkpoint's."""

    tile: int = 112
    patch: int = 14
    vision_width: int = 192
    vision_layers: int = 6
    vision_heads: int = 3
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 704
    vocabulary: int = 1024
    rope_theta: float = 10000.0

    @property
    def side(self) -> int:
        """Patches per tile side."""
        return self.tile // self.patch

    @property
    def visual_tokens(self) -> int:
        """Decoder tokens per tile after the 2x2 pixel unshuffle."""
        return (self.side // 2) ** 2


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, p, c = x.shape
        d = c // self.heads
        qkv = self.qkv(x).view(n, p, 3, self.heads, d).permute(2, 0, 3, 1, 4)
        q, k, v = (t.reshape(n * self.heads, p, d) for t in qkv)
        weights = torch.softmax(torch.bmm(q * d**-0.5, k.transpose(1, 2)), dim=-1)
        out = torch.bmm(weights, v).view(n, self.heads, p, d).transpose(1, 2).reshape(n, p, c)
        return self.proj(out)


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _VisionLayer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = _Attention(width, heads)
        self.mlp = _Mlp(width, 4 * width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.ls1 = nn.Parameter(torch.ones(width))
        self.ls2 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x)) * self.ls1
        return x + self.mlp(self.norm2(x)) * self.ls2


class _Embeddings(nn.Module):
    def __init__(self, shape: DemoShape):
        super().__init__()
        self.shape = shape
        c = shape.vision_width
        self.class_embedding = nn.Parameter(torch.randn(1, 1, c) * 0.02)
        self.patch_embedding = nn.Conv2d(3, c, shape.patch, stride=shape.patch)
        self.position_embedding = nn.Parameter(torch.randn(1, shape.side**2 + 1, c) * 0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        n, s, p = len(pixels), self.shape.side, self.shape.patch
        patches = pixels.view(n, 3, s, p, s, p).permute(0, 2, 4, 1, 3, 5).reshape(n, s * s, -1)
        weight = self.patch_embedding.weight.flatten(1)
        x = F.linear(patches, weight, self.patch_embedding.bias)  # (N, P, C)
        x = torch.cat([self.class_embedding.expand(n, -1, -1), x], dim=1)
        return x + self.position_embedding


class _Encoder(nn.Module):
    def __init__(self, shape: DemoShape):
        super().__init__()
        self.layers = nn.ModuleList(
            _VisionLayer(shape.vision_width, shape.vision_heads) for _ in range(shape.vision_layers)
        )


class DemoVision(nn.Module):
    """InternViT (300M style) at demo size: (N, 3, S, S) pixels to (N, P, C) patch features."""

    def __init__(self, shape: DemoShape):
        super().__init__()
        self.shape = shape
        self.embeddings = _Embeddings(shape)
        self.encoder = _Encoder(shape)

    def forward(self, pixels: Tensor) -> Tensor:
        """Raw output of the last layer without the class token, (N, P, C)."""
        x = self.embeddings(pixels)
        for layer in self.encoder.layers:
            x = layer(x)
        return x[:, 1:]

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """The recipe's start: nearly mean-free patch filters, strong positions, Xavier linears."""
        weight = self.embeddings.patch_embedding.weight
        weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
        weight -= 0.85 * weight.mean(dim=(2, 3), keepdim=True)
        weight *= 2
        self.embeddings.patch_embedding.bias.zero_()
        self.embeddings.position_embedding.normal_(0, 0.5, generator=generator)
        self.embeddings.class_embedding.normal_(0, 0.02, generator=generator)
        for module in self.encoder.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                module.bias.zero_()


def projector(shape: DemoShape) -> nn.Sequential:
    """LayerNorm, Linear, GELU, Linear: 4C unshuffled features to the decoder width."""
    wide = 4 * shape.vision_width
    return nn.Sequential(
        nn.LayerNorm(wide), nn.Linear(wide, shape.width), nn.GELU(),
        nn.Linear(shape.width, shape.width),
    )  # fmt: skip


def unshuffle(features: Tensor, side: int) -> Tensor:
    """(N, P, C) row-major patches to (N, P / 4, 4C): 2x2 neighbours, row first (``ps_version``
    v2)."""
    n, _, c = features.shape
    half = side // 2
    x = features.view(n, half, 2, half, 2, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(n, half * half, 4 * c)


class _SelfAttention(nn.Module):
    def __init__(self, shape: DemoShape):
        super().__init__()
        self.heads, self.kv_heads = shape.heads, shape.kv_heads
        self.head_dim = shape.width // shape.heads
        self.q_proj = nn.Linear(shape.width, shape.width)
        self.k_proj = nn.Linear(shape.width, shape.kv_heads * self.head_dim)
        self.v_proj = nn.Linear(shape.width, shape.kv_heads * self.head_dim)
        self.o_proj = nn.Linear(shape.width, shape.width, bias=False)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


class _GatedMlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class _Norm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class _DecoderLayer(nn.Module):
    def __init__(self, shape: DemoShape):
        super().__init__()
        self.self_attn = _SelfAttention(shape)
        self.mlp = _GatedMlp(shape.width, shape.mlp)
        self.input_layernorm = _Norm(shape.width)
        self.post_attention_layernorm = _Norm(shape.width)

    def attend(
        self, queries: Tensor, memory: Tensor, turn_q: tuple[Tensor, Tensor],
        turn_k: tuple[Tensor, Tensor], bias: Tensor,
    ) -> Tensor:  # fmt: skip
        """Grouped-query attention of normed ``queries`` (B, M, D) over normed ``memory`` (B, T,
        D)."""
        a = self.self_attn
        b, m, width = queries.shape
        t, d, groups = memory.shape[1], a.head_dim, a.heads // a.kv_heads
        q = _rotate(a.q_proj(queries).view(b, m, a.heads, d).transpose(1, 2), *turn_q)
        k = _rotate(a.k_proj(memory).view(b, t, a.kv_heads, d).transpose(1, 2), *turn_k)
        v = a.v_proj(memory).view(b, t, a.kv_heads, d).transpose(1, 2)
        q = (q * d**-0.5).reshape(b * a.kv_heads, groups * m, d)
        k, v = (x.reshape(b * a.kv_heads, t, d) for x in (k, v))
        scores = torch.bmm(q, k.transpose(1, 2)).view(b, a.heads, m, t) + bias
        weights = torch.softmax(scores, dim=-1).view(b * a.kv_heads, groups * m, t)
        out = torch.bmm(weights, v).view(b, a.heads, m, d).transpose(1, 2).reshape(b, m, width)
        return a.o_proj(out)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        normed = self.input_layernorm(x)
        x = x + self.attend(normed, normed, (cos, sin), (cos, sin), bias)
        return x + self.mlp(self.post_attention_layernorm(x))

    def at(self, x: Tensor, rows: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
        """As ``forward`` but only at positions ``rows`` (B, M) of each sample: (B, M, D)."""
        pick = rows[:, :, None]
        normed = self.input_layernorm(x)
        chosen = x.gather(1, pick.expand(-1, -1, x.shape[-1]))
        wanted = normed.gather(1, pick.expand(-1, -1, x.shape[-1]))
        turn = pick[:, None].expand(-1, 1, -1, cos.shape[-1])
        cos_q, sin_q = cos.gather(2, turn), sin.gather(2, turn)
        bias_q = bias.gather(2, pick[:, None].expand(-1, 1, -1, bias.shape[-1]))
        y = chosen + self.attend(wanted, normed, (cos_q, sin_q), (cos, sin), bias_q)
        return y + self.mlp(self.post_attention_layernorm(y))


class _Qwen2(nn.Module):
    def __init__(self, shape: DemoShape):
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(_DecoderLayer(shape) for _ in range(shape.layers))
        self.norm = _Norm(shape.width)


class DemoDecoder(nn.Module):
    """Qwen2 decoder with tied embeddings; parameter names are those of Qwen2ForCausalLM."""

    def __init__(self, shape: DemoShape):
        super().__init__()
        self.shape = shape
        self.model = _Qwen2(shape)

    def forward(self, embeds: Tensor, positions: Tensor, allowed: Tensor, rows: Tensor) -> Tensor:
        """Logits (B, M, V) at the positions ``rows``.

        Args:
            embeds: Input embeddings, (B, T, D).
            positions: Rotary positions, (B, T).
            allowed: True where query i may see key j, (B, T, T).
            rows: Indices of the positions whose logits are wanted, (B, M).
        """
        d = self.shape.width // self.shape.heads
        inverse = self.shape.rope_theta ** (-torch.arange(0, d, 2, dtype=torch.float32) / d)
        angle = positions[:, None, :, None].float() * inverse  # (B, 1, T, d / 2)
        angle = torch.cat((angle, angle), dim=-1)
        cos, sin = angle.cos().to(embeds.dtype), angle.sin().to(embeds.dtype)
        bias = torch.zeros_like(allowed, dtype=embeds.dtype)
        bias = bias.masked_fill_(~allowed, torch.finfo(embeds.dtype).min)[:, None]
        x = embeds
        for layer in self.model.layers[:-1]:
            x = layer(x, cos, sin, bias)
        x = self.model.layers[-1].at(x, rows, cos, sin, bias)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """The recipe's start for a small decoder."""
        for name, weight in self.named_parameters():
            if weight.dim() == 1:
                if name.endswith("bias"):
                    weight.zero_()
                continue
            gain = 0.3 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.7
            std = 0.08 if "embed_tokens" in name else gain * weight.shape[1] ** -0.5
            weight.normal_(0, std, generator=generator)


class DemoModel(nn.Module):
    """Vision, projector and decoder under InternVLChatModel's state-dict names."""

    def __init__(self, shape: DemoShape):
        super().__init__()
        self.shape = shape
        self.vision_model = DemoVision(shape)
        self.mlp1 = projector(shape)
        self.language_model = DemoDecoder(shape)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Set every parameter from ``seed``."""
        generator = torch.Generator().manual_seed(seed)
        self.vision_model.initialise(generator)
        self.language_model.initialise(generator)
        first, second = self.mlp1[1], self.mlp1[3]
        first.weight.normal_(0, first.in_features**-0.5, generator=generator)
        second.weight.normal_(0, 1.5 * second.in_features**-0.5, generator=generator)
        first.bias.zero_()
        second.bias.zero_()

    def visual(self, features: Tensor) -> Tensor:
        """(N, P, C) patch features to (N, Q, D) decoder inputs."""
        return self.mlp1(unshuffle(features, self.shape.side))

    def embed(self, ids: Tensor, visual: Tensor, context_id: int) -> Tensor:
        """Token embeddings (B, T, D) with the <IMG_CONTEXT> rows replaced, in order, by ``visual``.

        Raises:
            ValueError: the number of placeholders is not the number of visual tokens.
        """
        embeds = self.language_model.model.embed_tokens(ids)
        mask = ids == context_id
        flat = visual.reshape(-1, visual.shape[-1])
        if int(mask.sum()) != len(flat):
            raise ValueError(
                f"{int(mask.sum())} <IMG_CONTEXT> tokens but {len(flat)} visual tokens; "
                "the collator must emit one placeholder per visual token"
            )
        return embeds.masked_scatter(mask[..., None], flat)


def normalise(tiles: Tensor) -> Tensor:
    """(N, S, S, 3) uint8 tiles to (N, 3, S, S) float32, ImageNet mean and standard deviation."""
    mean = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)
    return (tiles.permute(0, 3, 1, 2).float().div(255) - mean) / std


def parameter_count(model: nn.Module) -> float:
    """Millions of parameters."""
    return math.fsum(p.numel() for p in model.parameters()) / 1e6
