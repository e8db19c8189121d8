"""Learning rates and parameter groups, as mmcv and the official optimizer constructor have them."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from internvl.evaluation.vision.segmentation.settings import Settings

BETAS = (0.9, 0.999)
_BLOCK = re.compile(r"(?:^|\.)encoder\.model\.encoder\.layers\.(\d+)\.")
_EMBEDDINGS = re.compile(r"(?:^|\.)encoder\.model\.embeddings\.")


def rate_factor(
    step: int, *, iterations: int, warmup: int, warmup_ratio: float = 1e-6, power: float = 1.0
) -> float:
    """Share of the peak learning rate in a step, counted from 0.

        decay(t)  = (1 - t / T) ^ power
        factor(t) = decay(t) * (1 - (1 - t / W) (1 - ratio))    for t < W
                  = decay(t)                                    after

    The decay runs from the start, below the warm-up, so the peak is (1 - W / T) ^ power and not 1
    (mmcv's LrUpdaterHook with policy "poly").

    Args:
        step: t.
        iterations: T.
        warmup: W.
        warmup_ratio: share at t = 0.
        power: of the decay.

    Raises:
        ValueError: a step outside of the run.
    """
    if not 0 <= step < iterations:
        raise ValueError(f"step is {step}; expected 0 to {iterations - 1}.")
    decay: float = (1 - step / iterations) ** power
    if step >= warmup:
        return decay
    return decay * (1 - (1 - step / warmup) * (1 - warmup_ratio))


def depth_of(name: str, num_layers: int) -> int:
    """Depth of a parameter, for layer decay: 0 embeddings, i + 1 the i-th block, L + 1 the rest.

    The deconvolutions of the pyramid belong to the rest, as in the official constructor.

    Args:
        name: of the parameter.
        num_layers: L.
    """
    if _EMBEDDINGS.search(name):
        return 0
    block = _BLOCK.search(name)
    return int(block[1]) + 1 if block else num_layers + 1


def parameter_groups(model: nn.Module, num_layers: int, settings: Settings) -> list[dict[str, Any]]:
    """Groups for AdamW, of what learns.

    The learning rate of depth d is lr * layer_decay ^ (L + 1 - d). Biases and vectors have no
    weight decay. The class token and the position embedding, which are no vectors here, have it:
    the official exception is by names that never occur ("pos_embed" for "backbone.pos_embed").

    Args:
        model: all of it.
        num_layers: L.
        settings: peak rate and decays.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith(".bias")
            key = (depth_of(name, num_layers), decays)
            groups.setdefault(key, []).append(parameter)
    found = []
    for (depth, decays), parameters in sorted(groups.items(), key=lambda item: item[0]):
        rate = settings.lr * settings.resolved_layer_decay ** (num_layers + 1 - depth)
        found.append(
            {
                "params": parameters,
                "lr": rate,
                "peak_lr": rate,
                "weight_decay": settings.resolved_weight_decay if decays else 0.0,
            }
        )
    return found


def set_rates(optimizer: torch.optim.Optimizer, step: int, settings: Settings) -> float:
    """Set the learning rates of a step; returns the share of the peak."""
    factor = rate_factor(
        step,
        iterations=settings.iterations,
        warmup=settings.resolved_warmup,
        warmup_ratio=settings.warmup_ratio,
        power=settings.power,
    )
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return factor
