"""Hyper-parameters of segmentation (report section 7.2.2), and what the three modes differ in."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Mode = Literal["linear", "head", "full"]
IGNORED = 255  # label of pixels that are not asked
MODES: tuple[Mode, ...] = ("linear", "head", "full")
# Official test_cfg: windows of 504 pixels every 322, which are 23 of their 36 patches.
_STRIDE = 23 / 36
_WARMUP = 1500 / 80_000


@dataclass(frozen=True)
class Settings:
    """One run; the defaults are those of the report.

    Attributes:
        mode: "linear" and "head" leave the encoder as it is, "full" trains it.
        crop: side of training crops and test windows in pixels.
        iterations: optimiser steps.
        batch: crops of a step, over all devices.
        accumulation: parts that a device splits its share of a batch into. Batch norms see a part.
        lr: peak learning rate.
        warmup: steps; None for the same share of the run as in the report, 1,500 of 80,000.
        warmup_ratio: the first learning rate, as a share.
        power: of the polynomial decay.
        weight_decay: None for that of the mode: 0 in "linear", else 0.05.
        layer_decay: None for that of the mode: 0.95 in "full", else 1.
        drop_path: None for that of the mode: 0.4 in "full", else 0.
        channels: width of UperNet and of the auxiliary head.
        precision: "bfloat16" for the encoder and the pyramid; the heads stay in float32.
        gradient_checkpointing: compute activations of the encoder again in the backward pass.
        seed: of new weights, order, augmentation, dropout.

    Raises:
        ValueError: what no run could have.
    """

    mode: Mode
    crop: int = 504
    iterations: int = 80_000
    batch: int = 16
    accumulation: int = 1
    lr: float = 4e-5
    warmup: int | None = None
    warmup_ratio: float = 1e-6
    power: float = 1.0
    weight_decay: float | None = None
    layer_decay: float | None = None
    drop_path: float | None = None
    channels: int = 1536
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}; expected one of {', '.join(MODES)}.")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision is {self.precision!r}; expected float32 or bfloat16.")
        for name in ("crop", "iterations", "batch", "accumulation", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; expected 0 or more.")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; expected more than 0.")
        if not 0 <= self.resolved_warmup < self.iterations:
            raise ValueError(
                f"warmup is {self.resolved_warmup} of {self.iterations} iterations; expected fewer."
            )
        if self.mode != "full" and (self.layer_decay or 1) != 1:
            raise ValueError(
                f"layer_decay is {self.layer_decay} in mode {self.mode!r}, where no layer of the "
                "encoder learns; leave it out."
            )
        if self.mode != "full" and self.drop_path:
            raise ValueError(
                f"drop_path is {self.drop_path} in mode {self.mode!r}: a frozen encoder is never "
                "in training mode; leave it out."
            )

    @property
    def resolved_warmup(self) -> int:
        """Steps of warm-up."""
        return round(_WARMUP * self.iterations) if self.warmup is None else self.warmup

    @property
    def resolved_weight_decay(self) -> float:
        """Weight decay of the run."""
        by_mode = 0.0 if self.mode == "linear" else 0.05
        return by_mode if self.weight_decay is None else self.weight_decay

    @property
    def resolved_layer_decay(self) -> float:
        """Factor of the learning rate from one block to the one below."""
        by_mode = 0.95 if self.mode == "full" else 1.0
        return by_mode if self.layer_decay is None else self.layer_decay

    @property
    def resolved_drop_path(self) -> float:
        """Stochastic depth of the last block."""
        by_mode = 0.4 if self.mode == "full" else 0.0
        return by_mode if self.drop_path is None else self.drop_path

    def stride(self, patch_size: int) -> int:
        """Pixels between test windows, in whole patches: 322 for a crop of 504."""
        return max(1, round(_STRIDE * self.crop / patch_size)) * patch_size

    def as_dict(self) -> dict[str, Any]:
        """All values, those that follow from the mode among them."""
        return {
            **asdict(self),
            "warmup": self.resolved_warmup,
            "weight_decay": self.resolved_weight_decay,
            "layer_decay": self.resolved_layer_decay,
            "drop_path": self.resolved_drop_path,
        }
