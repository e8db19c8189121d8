"""Muon for the matrices and AdamW for the rest, in fp32, with the recipe's schedule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def orthogonalise(gradient: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrix, (rows, columns).

    torch.optim.Muon runs it in bf16, which a CPU without bf16 units does several times slower.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = gradient / gradient.norm().clamp(min=1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; the update's RMS is that of AdamW (0.2 * sqrt(longer side))."""

    def __init__(
        self,
        params: Iterable,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalise(weight.grad.lerp(state["momentum"], group["momentum"]))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * 0.2 * max(weight.shape) ** 0.5)


def _is_matrix(name: str, weight: Tensor) -> bool:
    outside = ("embed", "head", "class_embedding")
    return weight.dim() == 2 and min(weight.shape) >= 64 and not any(o in name for o in outside)


def optimisers(
    model: nn.Module, *, lr_matrix: float, lr_rest: float, weight_decay: float = 0.05
) -> list[torch.optim.Optimizer]:
    """Muon on the wide matrices, AdamW on everything else; groups keep ``base_lr``."""
    matrices = [w for name, w in model.named_parameters() if _is_matrix(name, w)]
    rest = [w for name, w in model.named_parameters() if not _is_matrix(name, w)]
    parts = [
        [{"params": weights, "lr": rate, "base_lr": rate}]
        for weights, rate in ((matrices, lr_matrix), (rest, lr_rest))
    ]
    return [
        Muon(parts[0], lr_matrix, weight_decay=weight_decay),
        torch.optim.AdamW(parts[1], lr=lr_rest, betas=(0.9, 0.98), weight_decay=weight_decay),
    ]


def schedule(progress: float, step: int, *, warmup: int, flat: float, floor: float = 0.03) -> float:
    """Learning-rate factor: linear warm-up, flat until ``flat`` of the run, then linear to
    ``floor``."""
    rise = min(1.0, (step + 1) / warmup)
    if progress <= flat:
        return rise
    return rise * max(floor, 1 - (1 - floor) * (progress - flat) / (1 - flat))


def set_rates(optims: list[torch.optim.Optimizer], factor: float) -> None:
    """Scale every group's base rate by ``factor``."""
    for optim in optims:
        for group in optim.param_groups:
            group["lr"] = group["base_lr"] * factor
