"""Muon for the matrices and AdamW for the rest, in fp32, with the recipe's schedule."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from internvl.training.demo.parallel import Group


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
    """Momentum, orthogonalised; the update's RMS is matched to AdamW's (0.2 * sqrt(longer side)).

    The processes of ``workers`` share the orthogonalising: each does every world-th matrix.
    """

    def __init__(
        self, params, lr: float, workers: Group, momentum: float = 0.95, weight_decay: float = 0.05
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.workers = workers

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update of every group whose learning rate is not zero."""
        jobs = [(w, group) for group in self.param_groups if group["lr"] for w in group["params"]]
        if not jobs:
            return
        flat = torch.zeros(sum(weight.numel() for weight, _ in jobs))
        offset = 0
        for index, (weight, group) in enumerate(jobs):
            state = self.state[weight]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(weight)
            state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
            if index % self.workers.world == self.workers.rank:
                update = weight.grad.lerp(state["momentum"], group["momentum"])
                flat[offset : offset + weight.numel()] = orthogonalise(update).flatten()
            offset += weight.numel()
        self.workers.sum(flat)
        for (weight, group), update in zip(
            jobs, flat.split([weight.numel() for weight, _ in jobs]), strict=True
        ):
            scale = group["lr"] * 0.2 * max(weight.shape) ** 0.5
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(update.view_as(weight), alpha=-scale)


def _is_matrix(name: str, weight: Tensor) -> bool:
    outside = ("embed", "head", "class_embedding")
    return weight.dim() == 2 and min(weight.shape) >= 64 and not any(o in name for o in outside)


def optimisers(
    model: nn.Module, workers: Group, *, lr_matrix: float, lr_rest: float,
    weight_decay: float = 0.05,
) -> list[torch.optim.Optimizer]:  # fmt: skip
    """Muon on the wide matrices, AdamW on everything else; groups keep ``base_lr`` and
    ``vision``."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, weight in model.named_parameters():
        key = (_is_matrix(name, weight), "vision_model" in name)
        groups.setdefault(key, []).append(weight)
    out: list[torch.optim.Optimizer] = []
    for matrix, rate in ((True, lr_matrix), (False, lr_rest)):
        parts = [
            {"params": weights, "lr": rate, "base_lr": rate, "vision": vision}
            for (is_matrix, vision), weights in groups.items()
            if is_matrix == matrix
        ]
        if matrix:
            out.append(Muon(parts, rate, workers, weight_decay=weight_decay))
        else:
            out.append(
                torch.optim.AdamW(parts, lr=rate, betas=(0.9, 0.98), weight_decay=weight_decay)
            )
    return out


def schedule(progress: float, step: int, *, warmup: int, flat: float, floor: float = 0.03) -> float:
    """Learning-rate factor: linear warm-up, flat until ``flat`` of the run, then linear to
    ``floor``."""
    rise = min(1.0, (step + 1) / warmup)
    if progress <= flat:
        return rise
    return rise * max(floor, 1 - (1 - floor) * (progress - flat) / (1 - flat))


def set_rates(optims: list[torch.optim.Optimizer], factor: float, vision: float = 1.0) -> None:
    """Scale every group's base rate by ``factor``, the vision model's also by ``vision``."""
    for optim in optims:
        for group in optim.param_groups:
            group["lr"] = group["base_lr"] * factor * (vision if group["vision"] else 1.0)
