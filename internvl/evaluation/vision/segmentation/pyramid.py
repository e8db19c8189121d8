"""Four feature maps of a plain ViT, as UperNet wants them.

    hidden state 12 (N, C, ph, pw) -> two deconvolutions   -> stride  4
                 23                -> one deconvolution    -> stride  8
                 34                -> as it is             -> stride 16
                 45                -> max pooling          -> stride 32

Numbers are those of 45 blocks. Strides are UperNet's names: with patches of 14 pixels they are 3.5,
7, 14 and 28. Official: `with_fpn` of mmseg/models/backbones/intern_vit_6b.py. The four modules
learn even when the encoder is frozen.

    # N images   C width   L blocks   ph, pw  patch rows and columns
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BackboneOutput

from internvl.evaluation.vision.encoder import Encoder

LEVELS = 4


def out_indices(num_layers: int) -> tuple[int, ...]:
    """Blocks whose outputs are taken, counted from 0: ceil(k L / 4) - 1 for k = 1 to 4.

    It gives both sets of the official configs: 11, 23, 35, 47 of 48 blocks (InternViT-6B-224px) and
    11, 22, 33, 44 of 45 (InternViT-6B-448px-V2.5).

    Args:
        num_layers: L.

    Raises:
        ValueError: fewer than four blocks.
    """
    if num_layers < LEVELS:
        raise ValueError(
            f"the encoder has {num_layers} blocks; UperNet takes {LEVELS} of them, so it needs at "
            "least that many: use --mode linear."
        )
    return tuple(math.ceil(k * num_layers / LEVELS) - 1 for k in range(1, LEVELS + 1))


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (N, C, H, W), computed in float32."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Normalise each pixel; the dtype stays."""
        values = maps.float()
        variance, mean = torch.var_mean(values, dim=1, correction=0, keepdim=True)
        values = (values - mean) * torch.rsqrt(variance + self.eps)
        scaled = values * self.weight.float()[:, None, None] + self.bias.float()[:, None, None]
        return scaled.to(maps.dtype)


class Pyramid(nn.Module):
    """A backbone in the sense of transformers: `channels`, `forward_with_filtered_kwargs`.

    Args:
        encoder: frozen or not; becomes a part of this module.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        C = encoder.width
        self.encoder = encoder
        self.layers = tuple(index + 1 for index in out_indices(encoder.num_layers))
        self.channels = [C] * LEVELS
        # Names and order of the official modules, final norms off.
        self.up1 = nn.Sequential(_deconvolution(C), ChannelNorm(C), nn.GELU(), _deconvolution(C))
        self.up2 = nn.Sequential(_deconvolution(C))
        self.up3 = nn.Identity()
        self.up4 = nn.MaxPool2d(kernel_size=2, stride=2)

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Map normalised pixels (N, 3, H, W) to four float32 maps, the finest first.

        Raises:
            ValueError: H or W that is no multiple of the patch size, or only one patch.
        """
        maps = self.encoder.maps(pixel_values, self.layers)  # four times (N, C, ph, pw)
        if min(maps[0].shape[2:]) < 2:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, of which a side is one patch "
                "of the encoder; the coarsest map halves the grid, so give two patches at least."
            )
        ups = (self.up1, self.up2, self.up3, self.up4)
        with self._precision():
            return [up(each).float() for up, each in zip(ups, maps, strict=True)]

    def forward_with_filtered_kwargs(self, pixel_values: torch.Tensor, **_: Any) -> BackboneOutput:
        """What transformers' UperNet calls; attentions and hidden states are not returned."""
        return BackboneOutput(feature_maps=tuple(self(pixel_values)))

    def _precision(self) -> Any:
        """The precision of the encoder, as in the official code; the heads compute in float32."""
        if self.encoder.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.encoder.device.type, dtype=self.encoder.autocast)


def _deconvolution(channels: int) -> nn.ConvTranspose2d:
    """Doubles both sides; N(0, 2 / fan_out) weights with fan_out = 4 C, as official."""
    layer = nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / (4 * channels)))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
