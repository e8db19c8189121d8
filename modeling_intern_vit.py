"""InternViT: the vision encoder of InternVL (report section 2.2), 300M and 6B, also usable alone.

    pixels (N, 3, H, W) -> patches + class token (N, 1 + P, C) -> L blocks -> last_hidden_state (N,
    1 + P, C)

There is no norm before the first and none after the last block. Pixel unshuffle and the projector
belong to `modeling_internvl_chat.py`.

    # N tiles   P patches per tile (ph * pw)   C width   L blocks   h heads   d width of a head
    # ph, pw  patch rows and columns   H, W  pixels (row first, always)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.integrations import use_kernel_forward_from_hub
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_intern_vit import InternVisionConfig


@use_kernel_forward_from_hub("RMSNorm")
class InternRMSNorm(nn.Module):
    """Root mean square norm of the 6B encoder, computed in float32 and scaled in the input
    dtype."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis."""
        dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(dtype)


NORM_CLASSES: dict[str, Callable[..., nn.Module]] = {
    "rms_norm": InternRMSNorm,
    "layer_norm": nn.LayerNorm,
}


class InternDropPath(nn.Module):
    """Stochastic depth: drops a residual branch for whole samples while training, and rescales
    the kept ones."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        """Drop rows of `branch` (N, ...) with probability `rate`."""
        if not self.training:
            return branch
        keep = 1.0 - self.rate
        mask = branch.new_empty((branch.shape[0],) + (1,) * (branch.ndim - 1)).bernoulli_(keep)
        return branch * mask / keep


def resize_position_grid(grid: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """Resize the patch part of a position embedding, bicubic in float32.

    Args:
        grid: (1, P, C) positions of a square grid, without the class token.
        rows: patch rows wanted.
        cols: patch columns wanted.

    Returns:
        (1, rows * cols, C) in the dtype of `grid`; `grid` itself when the size is unchanged, where
        the interpolation is the identity bit for bit.
    """
    side = int(grid.shape[1] ** 0.5)
    if (rows, cols) == (side, side):
        return grid
    square = grid.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, C, side, side)
    resized = F.interpolate(square, size=(rows, cols), mode="bicubic", align_corners=False)
    return resized.reshape(1, -1, rows * cols).permute(0, 2, 1).to(grid.dtype)


class InternVisionEmbeddings(nn.Module):
    """Patches, class token and learned positions."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_dim = config.hidden_size
        self.image_size = config.image_size
        self.patch_size = config.patch_size
        self.num_patches = (self.image_size // self.patch_size) ** 2
        self.num_positions = self.num_patches + 1

        self.class_embedding = nn.Parameter(torch.randn(1, 1, self.embed_dim))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, self.embed_dim, kernel_size=self.patch_size, stride=self.patch_size
        )
        self.position_embedding = nn.Parameter(torch.randn(1, self.num_positions, self.embed_dim))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Map pixels (N, 3, H, W) of any size >= one patch to (N, 1 + P, C), patches row-major."""
        weight = self.patch_embedding.weight
        if weight.device.type != "meta":  # offloaded: its hook moves the input
            pixel_values = pixel_values.to(weight.device)
        patches = self.patch_embedding(pixel_values.to(weight.dtype))  # (N, C, ph, pw)
        N, _, rows, cols = patches.shape
        patches = patches.flatten(2).transpose(1, 2)  # (N, P, C)
        tokens = torch.cat([self.class_embedding.expand(N, -1, -1), patches], dim=1)
        grid = resize_position_grid(self.position_embedding[:, 1:], rows, cols)
        return tokens + torch.cat([self.position_embedding[:, :1], grid], dim=1)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention over (N, h, 1 + P, d) in the working dtype, as the official encoder
    computes it."""
    weights = (query * scaling) @ key.transpose(-2, -1)
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.dropout(weights.softmax(dim=-1), p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class InternAttention(nn.Module):
    """Self-attention over the patches of one tile: fused qkv, optional QK-norm over all heads
    at once."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_dim = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim = self.embed_dim // self.num_heads
        self.scale = self.head_dim**-0.5
        self.is_causal = False
        self.qkv = nn.Linear(self.embed_dim, 3 * self.embed_dim, bias=config.qkv_bias)
        self.qk_normalization = config.qk_normalization
        if self.qk_normalization:
            self.q_norm = InternRMSNorm(self.embed_dim, eps=config.layer_norm_eps)
            self.k_norm = InternRMSNorm(self.embed_dim, eps=config.layer_norm_eps)
        self.proj = nn.Linear(self.embed_dim, self.embed_dim)
        self.proj_drop = nn.Dropout(config.dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map (N, 1 + P, C) to the same shape."""
        N, T, C = hidden_states.shape
        query, key, value = self.qkv(hidden_states).chunk(3, dim=-1)  # rows of the weight: Q, K, V
        if self.qk_normalization:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (
            x.view(N, T, self.num_heads, self.head_dim).transpose(1, 2) for x in (query, key, value)
        )
        # transformers decides from this source text whether attention can be switched: 5.x looks
        # for `ALL_ATTENTION_FUNCTIONS.get_interface(`, 4.57 for the two names used below.
        attend = eager_attention_forward
        if self.config._attn_implementation != "eager":
            attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        dropout = self.config.attention_dropout if self.training else 0.0
        attended, _ = attend(
            self, query, key, value, None, scaling=self.scale, dropout=dropout, is_causal=False
        )
        return self.proj_drop(self.proj(attended.reshape(N, T, C)))


class InternMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map (..., C) to (..., C)."""
        return self.fc2(self.act(self.fc1(hidden_states)))


class InternVisionEncoderLayer(GradientCheckpointingLayer):
    """One block: x <- x + DropPath(ls * f(norm(x))) for attention, then for the MLP."""

    def __init__(self, config: InternVisionConfig, drop_path_rate: float) -> None:
        super().__init__()
        C = config.hidden_size
        norm_class = NORM_CLASSES[config.norm_type]
        self.attn = InternAttention(config)
        self.mlp = InternMLP(config)
        self.norm1 = norm_class(C, eps=config.layer_norm_eps)
        self.norm2 = norm_class(C, eps=config.layer_norm_eps)
        self.ls1 = nn.Parameter(config.initializer_factor * torch.ones(C))
        self.ls2 = nn.Parameter(config.initializer_factor * torch.ones(C))
        self.drop_path1 = InternDropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.drop_path2 = InternDropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map (N, 1 + P, C) to the same shape."""
        dtype = hidden_states.dtype
        attended = self.attn(self.norm1(hidden_states).to(dtype))
        hidden_states = hidden_states + self.drop_path1(attended * self.ls1)
        transformed = self.mlp(self.norm2(hidden_states).to(dtype))
        return hidden_states + self.drop_path2(transformed * self.ls2)


class InternVisionEncoder(nn.Module):
    """The stack of blocks; drop path grows linearly with depth."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.config = config
        L = config.num_hidden_layers
        # Python floats on purpose: a tensor would have no value while the model is built on the
        # meta device.
        rates = [config.drop_path_rate * i / max(L - 1, 1) for i in range(L)]
        self.layers = nn.ModuleList(InternVisionEncoderLayer(config, rate) for rate in rates)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        output_hidden_states: bool = False,
        num_layers: int | None = None,
    ) -> BaseModelOutput:
        """Run the first `num_layers` blocks (all when None).

        Args:
            hidden_states: (N, 1 + P, C) embeddings.
            output_hidden_states: also return the input and the output of every block run.
            num_layers: number of blocks to run; the remaining ones cost nothing.
        """
        collected = [hidden_states]
        for layer in self.layers[:num_layers]:
            hidden_states = layer(hidden_states)
            if output_hidden_states:
                collected.append(hidden_states)
        return BaseModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=tuple(collected) if output_hidden_states else None,
        )


class InternVisionModel(PreTrainedModel):
    """InternViT. Loads a published InternViT folder, and the encoder out of a whole InternVL
    checkpoint."""

    config_class = InternVisionConfig
    # A checkpoint of the whole chat model stores the encoder under this prefix, an InternViT folder
    # without it.
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = ["InternVisionEncoderLayer", "InternVisionEmbeddings"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"^language_model\.", r"^mlp1\."]  # noqa: RUF012

    def __init__(self, config: InternVisionConfig, use_flash_attn: bool | None = None) -> None:
        super().__init__(config)
        self.embeddings = InternVisionEmbeddings(config)
        self.encoder = InternVisionEncoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, InternVisionEmbeddings):
            nn.init.normal_(module.class_embedding)
            nn.init.normal_(module.position_embedding)
        elif isinstance(module, InternVisionEncoderLayer):
            nn.init.constant_(module.ls1, self.config.initializer_factor)
            nn.init.constant_(module.ls2, self.config.initializer_factor)
        elif isinstance(module, (nn.LayerNorm, InternRMSNorm)):
            nn.init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        """Return the embeddings (pixels to tokens)."""
        return self.embeddings

    def resize_pos_embeddings(self, old_size: int, new_size: int, patch_size: int) -> None:
        """Permanently resize the position embedding for tiles of `new_size` pixels; config follows.

        Args:
            old_size: side in pixels that the embedding is for now.
            new_size: side in pixels wanted.
            patch_size: side of a patch in pixels.

        Raises:
            ValueError: `old_size` does not fit the embedding the model has.
        """
        embeddings = self.embeddings
        if (old_size // patch_size) ** 2 + 1 != embeddings.position_embedding.shape[1]:
            raise ValueError(
                f"old_size {old_size} with patch_size {patch_size} means "
                f"{(old_size // patch_size) ** 2} patches, "
                f"but the position embedding has {embeddings.position_embedding.shape[1] - 1}; "
                "pass the size the "
                f"model was built for ({self.config.image_size})."
            )
        side = new_size // patch_size
        with torch.no_grad():
            old = embeddings.position_embedding
            grid = resize_position_grid(old[:, 1:], side, side)
            embeddings.position_embedding = nn.Parameter(torch.cat([old[:, :1], grid], dim=1))
        embeddings.image_size = self.config.image_size = new_size
        embeddings.num_patches, embeddings.num_positions = side**2, side**2 + 1

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        pixel_embeds: torch.Tensor | None = None,
        *,
        num_layers: int | None = None,
    ) -> tuple | BaseModelOutputWithPooling:
        """Encode tiles.

        Args:
            pixel_values: (N, 3, H, W) normalised pixels; moved to the patch filters, and cast.
            output_hidden_states: also return the L + 1 hidden states, the embeddings first.
            return_dict: False for a plain tuple.
            pixel_embeds: (N, 1 + P, C) embeddings that replace `pixel_values`.
            num_layers: run only that many blocks; `last_hidden_state` is then the output of the
                last one run.

        Returns:
            last_hidden_state (N, 1 + P, C) without a final norm, and pooler_output (N, C), its
            class token.

        Raises:
            ValueError: neither or both inputs, or pixels that are not (N, 3, H, W).
        """
        if (pixel_values is None) == (pixel_embeds is None):
            raise ValueError(
                "InternVisionModel needs either pixel_values or pixel_embeds, got both or neither."
            )
        if pixel_embeds is None:
            if pixel_values.ndim != 4:
                raise ValueError(
                    f"pixel_values has shape {tuple(pixel_values.shape)}, expected (tiles, "
                    "channels, height, width)."
                )
            if not pixel_values.is_floating_point():
                raise ValueError(
                    f"pixel_values are {pixel_values.dtype}, expected normalised floats; the chat "
                    "model normalises uint8 tiles, the encoder alone does not."
                )
            pixel_embeds = self.embeddings(pixel_values)
        if output_hidden_states is None:
            output_hidden_states = bool(getattr(self.config, "output_hidden_states", False))
        encoded = self.encoder(
            pixel_embeds, output_hidden_states=output_hidden_states, num_layers=num_layers
        )
        hidden = encoded.last_hidden_state
        if return_dict is False:
            outputs = (hidden, hidden[:, 0])
            return (*outputs, encoded.hidden_states) if output_hidden_states else outputs
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=hidden[:, 0],
            hidden_states=encoded.hidden_states,
        )
