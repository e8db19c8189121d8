"""Losses: the weights of equation 5, and cross-entropy that never holds all logits.

Equation 5 of the report (section 3.4):

    L = sum_i w_i / (sum_j w_j) * L_i,   w_i = 1 / x^0  (token averaging)
                                               1 / x^1  (sample averaging)
                                               1 / x^0.5  (square averaging, what InternVL 2.5 uses)

x is the number of tokens in the response to which token i belongs. The official code counts the
tokens of the whole conversation instead; `per` chooses.

# T text positions
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from internvl.data.examples import Example
from internvl.data.render import NO_RESPONSE

Averaging = Literal["token", "sample", "square"]
EXPONENTS: dict[str, float] = {"token": 0.0, "sample": 1.0, "square": 0.5}


@dataclass(frozen=True)
class LossWeights:
    """Weights of the tokens of an example; callable, as the data stream wants it.

    Attributes:
        averaging: token, sample or square.
        per: what x counts: the tokens of the "response", as the report says, or of the
            "conversation", as the official code does.
    """

    averaging: Averaging = "square"
    per: Literal["response", "conversation"] = "response"

    def __post_init__(self) -> None:
        """Refuse names that no equation has."""
        if self.averaging not in EXPONENTS or self.per not in ("response", "conversation"):
            raise ValueError(
                f"averaging={self.averaging!r}, per={self.per!r}; expected one of "
                f"{sorted(EXPONENTS)}, and 'response' or 'conversation'."
            )

    def __call__(self, example: Example) -> np.ndarray:
        """Weights (T,) float32 of the labels of an example; 0 where nothing is learnt."""
        groups = example.response
        if self.per == "conversation":
            groups = np.where(groups == NO_RESPONSE, NO_RESPONSE, 0)
        return token_weights(groups, EXPONENTS[self.averaging])


def token_weights(groups: np.ndarray, exponent: float) -> np.ndarray:
    """Weights w = x^-exponent of equation 5.

    Args:
        groups: (T,) the group that each token is averaged in, -1 for tokens that are not learnt.
        exponent: 0, 1 or 0.5.

    Returns:
        (T,) float32; a group of x tokens sums to x^(1 - exponent).
    """
    learnt = groups != NO_RESPONSE
    weights = np.zeros(len(groups), np.float32)
    if learnt.any():
        counts = np.bincount(groups[learnt])
        weights[learnt] = counts[groups[learnt]].astype(np.float64) ** -exponent
    return weights


def cut_cross_entropy() -> Any:
    """The fused kernel of cut-cross-entropy, for `InternVLChatModel.loss_kernel`.

    It leaves out the gradients that bfloat16 could not hold; here all are kept, so that the loss is
    the one that the chunks give.

    Raises:
        ImportError: cut-cross-entropy, or the Triton that it needs, is not installed.
    """
    try:
        from cut_cross_entropy import linear_cross_entropy
    except ImportError as error:
        raise ImportError(
            f"loss_kernel: cce needs a CUDA device, and pip install cut-cross-entropy ({error})."
        ) from error
    return partial(linear_cross_entropy, reduction="none", filter_eps=None)
