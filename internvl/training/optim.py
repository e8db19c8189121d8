"""Optimisers: AdamW as in the report, and Muon for the matrices with AdamW for the rest.

Muon reaches the same loss in about two thirds of the time on small models; it is an option, and no
recipe of the report uses it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from internvl.training.muon import Muon
from internvl.training.recipes import Optimizer
from internvl.training.stages import chat_model

# Names of what AdamW keeps: tables, patches and heads are no linear maps between hidden states.
_NOT_MATRICES = ("embed", "embeddings", "lm_head", "output.weight", "mlp1")


def make_optimizer(model: Any, options: Optimizer, decayed: Iterable[str]) -> torch.optim.Optimizer:
    """Make the optimiser of a run.

    Args:
        model: the model, frozen as the stage says.
        options: what the recipe says.
        decayed: names of the parameters that are decayed; neither biases nor norms.

    Raises:
        ValueError: nothing learns.
    """
    decayed = set(decayed)
    vision = {id(weight) for weight in chat_model(model).vision_model.parameters()}
    groups: dict[tuple[bool, bool, bool], list[torch.nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            matrix = options.name == "muon" and weight.ndim == 2 and not _is_table(name)
            groups.setdefault((matrix, id(weight) in vision, name in decayed), []).append(weight)
    if not groups:
        raise ValueError("nothing learns in this stage; look at `stage` and `lora` of the recipe.")
    adam: list[dict[str, Any]] = []
    muon: list[dict[str, Any]] = []
    for (matrix, seen, decay), weights in groups.items():
        rate = options.lr if not matrix or options.muon_lr is None else options.muon_lr
        (muon if matrix else adam).append(
            {
                "params": weights,
                "lr": rate * (options.vision_scale if seen else 1.0),
                "weight_decay": options.weight_decay if decay else 0.0,
            }
        )
    made: list[torch.optim.Optimizer] = []
    if adam:
        made.append(torch.optim.AdamW(adam, lr=options.lr, betas=options.betas, eps=options.eps))
    if muon:
        made.append(Muon(muon))
    return made[0] if len(made) == 1 else Several(made)


def _is_table(name: str) -> bool:
    return any(part in name for part in _NOT_MATRICES)


class Several(torch.optim.Optimizer):
    """Several optimisers as one, so that schedulers and trainers see one list of groups.

    Args:
        parts: optimisers of different parameters.
    """

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        # The groups themselves, not the base class's copies: a scheduler writes to them.
        self.param_groups = [group for part in parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step all of them."""
        if closure is not None:
            raise ValueError("a closure cannot be evaluated for several optimisers at once.")
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The states of all, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
