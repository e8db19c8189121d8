"""Muon for the matrices and AdamW for the rest, in fp32, with the recipe's schedule."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from internvl.training.muon import Muon


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
